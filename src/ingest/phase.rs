//! What a connection is doing, and since when.
//!
//! Handler, socket and watch are polled in the connection's own task; it is atomic only because the task moves between
//! threads.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What a connection is doing; the table in [`super::serve`] has the limit of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Handshake,
    Fresh,
    Idle,
    Quiet,
    Head,
    Body,
    Expired,
    Answer,
    Writing,
    Draining,
    Closing,
}

const PHASES: [Phase; 11] = [
    Phase::Handshake,
    Phase::Fresh,
    Phase::Idle,
    Phase::Quiet,
    Phase::Head,
    Phase::Body,
    Phase::Expired,
    Phase::Answer,
    Phase::Writing,
    Phase::Draining,
    Phase::Closing,
];
const PHASE_BITS: u32 = 4;

/// The phase and when it began.
pub(super) struct PhaseTracker {
    start: Instant,
    /// Microseconds from `start` to the begin of the phase, then [`PHASE_BITS`] bits of the phase.
    packed: AtomicU64,
}

impl PhaseTracker {
    pub(super) fn new() -> PhaseTracker {
        PhaseTracker {
            start: Instant::now(),
            packed: AtomicU64::new(Phase::Fresh as u64),
        }
    }

    pub(super) fn enter(&self, phase: Phase, now: Instant) {
        let micros = now.duration_since(self.start).as_micros() as u64;
        self.packed
            .store(micros << PHASE_BITS | phase as u64, Ordering::Relaxed);
    }

    /// The body's deadline has passed.
    pub(super) fn body_expired(&self) -> bool {
        self.current() == Phase::Expired
    }

    pub(super) fn current(&self) -> Phase {
        self.read().0
    }

    /// The phase, and the time since its begin.
    pub(super) fn look(&self, now: Instant) -> (Phase, Duration) {
        let (phase, began) = self.read();
        (phase, now.duration_since(self.start).saturating_sub(began))
    }

    fn read(&self) -> (Phase, Duration) {
        let packed = self.packed.load(Ordering::Relaxed);
        let phase = PHASES[(packed & ((1 << PHASE_BITS) - 1)) as usize % PHASES.len()];
        (phase, Duration::from_micros(packed >> PHASE_BITS))
    }

    /// Bytes came in.
    pub(super) fn received(&self) {
        if matches!(self.current(), Phase::Fresh | Phase::Idle | Phase::Quiet) {
            self.enter(Phase::Head, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_keep_their_begin() {
        let tracker = PhaseTracker::new();
        assert_eq!(tracker.current(), Phase::Fresh);
        for (index, phase) in PHASES.into_iter().enumerate() {
            let now = tracker.start + Duration::from_secs(index as u64);
            tracker.enter(phase, now);
            let later = now + Duration::from_millis(3);
            assert_eq!(tracker.look(later), (phase, Duration::from_millis(3)));
        }
    }

    #[test]
    fn bytes_begin_a_head_only_between_requests() {
        for (before, after) in [
            (Phase::Fresh, Phase::Head),
            (Phase::Idle, Phase::Head),
            (Phase::Quiet, Phase::Head),
            (Phase::Body, Phase::Body),
            (Phase::Answer, Phase::Answer),
            (Phase::Writing, Phase::Writing),
            (Phase::Closing, Phase::Closing),
            (Phase::Handshake, Phase::Handshake),
        ] {
            let tracker = PhaseTracker::new();
            tracker.enter(before, Instant::now());
            tracker.received();
            assert_eq!(tracker.current(), after);
        }
    }
}
