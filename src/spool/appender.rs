//! The queue between webhooks and the writer thread: webhooks add batches and wait until they are durable.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use thiserror::Error;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::timeout_at,
};

use crate::{batch::Batch, stream::Tally};

/// Why a batch was not made durable. After `TooSlow` and `Failed` it may still become durable, so the webhook gets no 200 but
/// may be delivered.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AppendError {
    /// The byte budget is used up, or the disk has no room.
    #[error("the spool is full")]
    Full,
    /// The disk took longer than the limit.
    #[error("the spool is too slow")]
    TooSlow,
    /// Writing failed; the process is about to end.
    #[error("the spool has failed")]
    Failed,
    /// The log is being closed.
    #[error("the spool is closed")]
    Closed,
    /// The log is not open yet, or can't be opened now.
    #[error("the spool is not open")]
    NotOpen,
}

/// Whether a log takes batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    Accepting,
    /// The byte budget is used up, or the disk has no room. This recovers without intervention.
    Full,
    /// Writing failed; the process is about to end.
    Failed,
    /// It is not open yet, or can't be opened now.
    NotOpen,
}

/// A batch on its way to the disk.
pub(super) struct Pending {
    pub batch: Batch,
    pub tally: Tally,
    /// Set when the webhook was answered before the batch was durable.
    pub withdrawn: Arc<AtomicBool>,
    pub done: oneshot::Sender<Result<(), AppendError>>,
    /// Its share of the budget for bytes in flight, released when this is dropped.
    pub _permit: OwnedSemaphorePermit,
}

/// The queue between webhooks and writer.
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
    max_bytes: u64,
    /// Written and not yet trimmed bytes of the log.
    used: AtomicU64,
    no_room: AtomicBool,
    /// The budget refused a batch, and nothing has been trimmed since.
    refused: AtomicBool,
    failed: AtomicBool,
    /// Whether the log is open.
    open: AtomicBool,
}

pub(super) struct QueueState {
    pub waiting: VecDeque<Pending>,
    /// Bytes waiting or being written.
    pub bytes: u64,
    pub closed: bool,
    writer_sleeps: bool,
}

impl Queue {
    pub fn new(max_bytes: u64) -> Queue {
        Queue {
            state: Mutex::new(QueueState {
                waiting: VecDeque::new(),
                bytes: 0,
                closed: false,
                writer_sleeps: false,
            }),
            changed: Condvar::new(),
            max_bytes,
            used: AtomicU64::new(0),
            no_room: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            open: AtomicBool::new(false),
        }
    }

    /// Accepts batches from now on.
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    pub fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    /// Waits until a batch is waiting or the queue is closed, for at most `limit`.
    pub fn wait(&self, limit: Option<Duration>) -> MutexGuard<'_, QueueState> {
        let mut state = self.lock();
        if state.waiting.is_empty() && !state.closed {
            state.writer_sleeps = true;
            match limit {
                Some(limit) => {
                    self.changed.wait_for(&mut state, limit);
                }
                None => self.changed.wait(&mut state),
            }
            state.writer_sleeps = false;
        }
        state
    }

    /// Refuses further batches; those that wait are still written.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn set_used(&self, bytes: u64) {
        // This happens under the lock that admits batches. Otherwise a refusal based on the old number could be noted after
        // the new one is set, and a log with room would report for ever that it is full.
        let _admission = self.lock();
        if self.used.swap(bytes, Ordering::Relaxed) > bytes {
            self.refused.store(false, Ordering::Relaxed);
        }
    }

    /// Whether the disk has no room for another segment.
    pub fn set_no_room(&self, no_room: bool) {
        self.no_room.store(no_room, Ordering::Relaxed);
    }

    pub fn no_room(&self) -> bool {
        self.no_room.load(Ordering::Relaxed)
    }

    /// Releases the bytes of a batch that will not be written.
    pub fn give_back(&self, batch: &Batch) {
        let mut state = self.lock();
        state.bytes -= batch.bytes().len() as u64;
        self.refused.store(false, Ordering::Relaxed);
    }

    /// Fails every append from now on, including those that wait.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        let mut state = self.lock();
        state.closed = true;
        for pending in state.waiting.drain(..) {
            let _ = pending.done.send(Err(AppendError::Failed));
        }
    }

    fn state(&self) -> LogState {
        if self.failed.load(Ordering::SeqCst) {
            LogState::Failed
        } else if !self.open.load(Ordering::SeqCst) {
            LogState::NotOpen
        } else if self.no_room() || self.refused.load(Ordering::Relaxed) {
            LogState::Full
        } else {
            LogState::Accepting
        }
    }
}

/// Appends batches to one log. Cheap to clone.
#[derive(Clone)]
pub struct Appender {
    pub(super) queue: Arc<Queue>,
}

impl Appender {
    /// An appender for a log that will be opened by [`super::Log::open_for`] and holds up to `max_bytes`. Until then it refuses
    /// batches.
    pub fn of_closed_log(max_bytes: u64) -> Appender {
        Appender {
            queue: Arc::new(Queue::new(max_bytes)),
        }
    }

    /// Makes a batch durable; returns when it is, or at the deadline.
    ///
    /// Dropping the future does not withdraw the batch. `permit` is the batch's share of the bytes in flight; it is
    /// released when the batch has been written or withdrawn.
    ///
    /// # Errors
    /// The batch is not known to be durable; the error says why.
    pub async fn append(
        &self,
        batch: Batch,
        tally: Tally,
        permit: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let withdrawn = Arc::new(AtomicBool::new(false));
        let (done, durable) = oneshot::channel();
        {
            let bytes = batch.bytes().len() as u64;
            let mut state = self.queue.lock();
            if self.queue.failed.load(Ordering::SeqCst) {
                return Err(AppendError::Failed);
            }
            if state.closed {
                return Err(AppendError::Closed);
            }
            if !self.queue.open.load(Ordering::SeqCst) {
                return Err(AppendError::NotOpen);
            }
            if self.queue.used() + state.bytes + bytes > self.queue.max_bytes {
                // A batch larger than half of the budget may not fit in an empty log either, so it says nothing about fullness.
                if bytes <= self.queue.max_bytes / 2 {
                    self.queue.refused.store(true, Ordering::Relaxed);
                }
                return Err(AppendError::Full);
            }
            state.bytes += bytes;
            state.waiting.push_back(Pending {
                batch,
                tally,
                withdrawn: Arc::clone(&withdrawn),
                done,
                _permit: permit,
            });
            if state.writer_sleeps {
                self.queue.changed.notify_one();
            }
        }
        match timeout_at(deadline.into(), durable).await {
            Ok(Ok(result)) => result,
            // The writer ended without an answer, so it failed.
            Ok(Err(_)) => Err(AppendError::Failed),
            Err(_) => {
                withdrawn.store(true, Ordering::Relaxed);
                Err(AppendError::TooSlow)
            }
        }
    }

    /// Whether batches are accepted now.
    pub fn state(&self) -> LogState {
        self.queue.state()
    }

    /// Written and not yet trimmed bytes.
    pub fn used_bytes(&self) -> u64 {
        self.queue.used()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_bytes_in_use_do_not_change_while_a_batch_is_admitted() {
        let queue = Queue::new(1);
        thread::scope(|scope| {
            let trims = scope.spawn(|| (0..200_000).for_each(|bytes| queue.set_used(bytes)));
            while !trims.is_finished() {
                let _admission = queue.lock();
                let used = queue.used();
                thread::yield_now();
                assert_eq!(queue.used(), used);
            }
        });
    }
}
