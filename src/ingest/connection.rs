//! A connection as its requests see it: what it is doing, whether it may be closed for another, and which answer it
//! still owes.
//!
//! A client may close its side after its request and still get its answer. A client that is gone looks the same
//! until the answer reaches it and comes back as a reset. So a request is counted when its answer has been written.
//! If the client's side was closed by then, the request is counted after [`HALF_CLOSED_GRACE`], by its own outcome,
//! or at that reset, as `disconnected`. Its events are durable and counted either way.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{io::Interest, net::TcpStream, time::timeout};

use super::{
    intake::Intake,
    phase::{Phase, PhaseTracker},
};
use crate::metrics::Outcome;

/// How long a client that closed its side may take to reject an answer.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(1);

/// An answer on its way; it is counted once written.
#[derive(Clone, Copy)]
struct OwedAnswer {
    outcome: Outcome,
    /// Whether it was written, though perhaps to a client that is gone.
    is_written: bool,
}

/// The fate of a connection, decided only once; until then it is a stranger.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// One of its requests has been admitted.
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
    owed: Mutex<Option<OwedAnswer>>,
    standing: OnceLock<Standing>,
}

impl Connection {
    pub(super) fn new(intake: Arc<Intake>, id: u64) -> Connection {
        Connection {
            intake,
            phase: PhaseTracker::new(),
            id,
            requests: AtomicU64::new(0),
            owed: Mutex::new(None),
            standing: OnceLock::new(),
        }
    }

    /// Marks the connection as known, since one of its requests is admitted: from now on no other takes its place.
    /// False if another already has.
    pub(super) fn admit(&self) -> bool {
        *self.standing.get_or_init(|| Standing::Known) == Standing::Known
    }

    /// Takes its place, which only a stranger gives up. The connection's task must then be ended.
    pub(super) fn recycle(&self) -> bool {
        self.standing.set(Standing::Recycled).is_ok()
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.standing.get().is_none()
    }

    pub(super) fn is_recycled(&self) -> bool {
        self.standing.get() == Some(&Standing::Recycled)
    }

    /// An id for the log, unique within this process: the number of the connection, and of the request on it.
    pub(super) fn next_request(&self) -> (u64, u64) {
        (self.id, self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Notes an answer on its way, to be counted once written.
    pub(super) fn owes(&self, outcome: Outcome) {
        let answer = OwedAnswer {
            outcome,
            is_written: false,
        };
        if let Some(former) = self.owed.lock().replace(answer) {
            // The client sent another request, so it was there, whatever its side of the connection looked like.
            self.count(former.outcome);
        }
    }

    /// Notes that everything has been written. The answer is counted now, unless the client's side has ended.
    pub(super) fn flushed(&self, has_ended: impl FnOnce() -> bool) {
        if self.phase.current() == Phase::Writing {
            self.phase.enter(Phase::Idle, Instant::now());
        }
        let settled = self.owed.lock().take_if(|answer| {
            answer.is_written = has_ended();
            !answer.is_written
        });
        if let Some(answer) = settled {
            self.count(answer.outcome);
        }
    }

    /// Counts the answer that is still owed at the end of the connection.
    pub(super) async fn settle(&self, tcp: &TcpStream) {
        let Some(answer) = self.take_owed() else {
            return;
        };
        let reset = tcp.ready(Interest::ERROR);
        if answer.is_written && timeout(HALF_CLOSED_GRACE, reset).await.is_err() {
            self.count(answer.outcome);
        } else {
            self.count(Outcome::Disconnected);
        }
    }

    fn take_owed(&self) -> Option<OwedAnswer> {
        self.owed.lock().take()
    }

    fn count(&self, outcome: Outcome) {
        self.intake.metrics.webhook(outcome);
    }
}

/// Counts the last request of a connection whose task may be ended at any moment, to give its place to another.
pub(super) struct CountOnDrop<'c>(pub(super) &'c Connection);

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        let CountOnDrop(connection) = self;
        // A request that is being handled counts itself.
        if connection.take_owed().is_some() {
            connection.count(Outcome::Disconnected);
        } else if connection.is_recycled() && connection.phase.current() == Phase::Head {
            connection.count(Outcome::Overloaded);
        }
    }
}
