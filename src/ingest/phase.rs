//! What a connection is doing, and since when.
//!
//! Handler, socket and timer are polled in the connection's own task; the lock exists only because that task moves
//! between threads.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

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

/// The phase and when it began.
pub(super) struct PhaseTracker(Mutex<(Phase, Instant)>);

impl PhaseTracker {
    pub(super) fn new() -> PhaseTracker {
        PhaseTracker(Mutex::new((Phase::Fresh, Instant::now())))
    }

    pub(super) fn enter(&self, phase: Phase, now: Instant) {
        *self.0.lock() = (phase, now);
    }

    /// Whether the body's deadline has passed.
    pub(super) fn body_expired(&self) -> bool {
        self.current() == Phase::Expired
    }

    pub(super) fn current(&self) -> Phase {
        self.0.lock().0
    }

    /// The phase, and the time since it began.
    pub(super) fn look(&self, now: Instant) -> (Phase, Duration) {
        let (phase, began) = *self.0.lock();
        (phase, now.saturating_duration_since(began))
    }

    /// Notes that bytes arrived.
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
