//! A connection as its requests see it: what it is doing, whether it may be closed for another, and which answer it still owes.
//!
//! A client may close its side after its request and still gets its answer. One that is gone looks the same until the answer
//! reaches it and comes back as a reset. So a request is counted when its answer has been written; if the client's side was
//! closed by then, only after [`HALF_CLOSED_GRACE`] or that reset: as its own outcome, or as `disconnected`. Its events are
//! durable and counted either way.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::{
    intake::Intake,
    phase::{Phase, PhaseTracker},
};
use crate::metrics::Outcome;

/// How long a client that closed its side has to reject an answer.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);

/// The answer was written, but perhaps to a client that is gone.
const WRITTEN: u8 = 1 << 7;

/// What a connection becomes, once; until then it is a stranger.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// A request of it has been admitted.
    Known,
    /// Another connection has its place.
    Recycled,
}

/// A connection, as its requests see it.
pub(super) struct Connection {
    pub(super) intake: Arc<Intake>,
    pub(super) phase: PhaseTracker,
    pub(super) id: u64,
    requests: AtomicU64,
    /// One more than the index of the outcome whose answer is on its way, and [`WRITTEN`]; 0 without one.
    owed: AtomicU8,
    standing: OnceLock<Standing>,
}

impl Connection {
    pub(super) fn new(intake: Arc<Intake>, id: u64) -> Connection {
        Connection {
            intake,
            phase: PhaseTracker::new(),
            id,
            requests: AtomicU64::new(0),
            owed: AtomicU8::new(0),
            standing: OnceLock::new(),
        }
    }

    /// A request of it is admitted: from now on nobody takes its place. False when somebody has already.
    pub(super) fn admit(&self) -> bool {
        *self.standing.get_or_init(|| Standing::Known) == Standing::Known
    }

    /// Takes its place, which only a stranger gives up. The connection's task must be ended then.
    pub(super) fn recycle(&self) -> bool {
        self.standing.set(Standing::Recycled).is_ok()
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.standing.get().is_none()
    }

    pub(super) fn is_recycled(&self) -> bool {
        self.standing.get() == Some(&Standing::Recycled)
    }

    /// An id for the log, unique in this process: the connection's number and the request's number on it.
    pub(super) fn next_request(&self) -> (u64, u64) {
        (self.id, self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// An answer is on its way; it is counted when it was written.
    pub(super) fn owes(&self, outcome: Outcome) {
        let former = self.owed.swap(outcome.index() as u8 + 1, Ordering::Relaxed);
        // The client went on, so it is there, whatever its side of the connection looked like.
        self.count(former);
    }

    /// All that was to be written is written.
    pub(super) fn flushed(&self, has_ended: impl FnOnce() -> bool) {
        if self.phase.current() == Phase::Writing {
            self.phase.enter(Phase::Idle, Instant::now());
        }
        let owed = self.owed.load(Ordering::Relaxed);
        if owed == 0 {
            return;
        }
        if has_ended() {
            self.owed.store(owed | WRITTEN, Ordering::Relaxed);
        } else {
            self.owed.store(0, Ordering::Relaxed);
            self.count(owed);
        }
    }

    /// Counts what is still owed at the end of the connection.
    pub(super) async fn settle(&self, tcp: &TcpStream) {
        let owed = self.owed.swap(0, Ordering::Relaxed);
        if owed == 0 {
            return;
        }
        let is_written = owed & WRITTEN != 0;
        if is_written
            && timeout(HALF_CLOSED_GRACE, tcp.ready(Interest::ERROR))
                .await
                .is_err()
        {
            self.count(owed);
        } else {
            self.intake.metrics.webhook(Outcome::Disconnected);
        }
    }

    fn count(&self, owed: u8) {
        if let Some(outcome) = Outcome::ALL.get(usize::from(owed & !WRITTEN).wrapping_sub(1)) {
            self.intake.metrics.webhook(*outcome);
        }
    }
}

/// A connection whose task may be ended at any moment, to give its place to another one.
pub(super) struct Served<'c>(pub(super) &'c Connection);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        let Served(connection) = self;
        // A request that was being handled counts itself.
        if connection.owed.swap(0, Ordering::Relaxed) != 0 {
            connection.intake.metrics.webhook(Outcome::Disconnected);
        } else if connection.is_recycled() && connection.phase.current() == Phase::Head {
            connection.intake.metrics.webhook(Outcome::Overloaded);
        }
    }
}
