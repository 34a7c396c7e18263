//! Limits other than time: bytes in flight, and log lines about refusals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The memory of all bodies being read and all batches waiting for the disk, as allocated.
///
/// Clients that have not shown a credential yet ("strangers") get at most half of it, so that they can't shut out the
/// others. Nobody waits for bytes: if they are used up, the answer is 503, since a waiting sender would meanwhile
/// hold its own bytes and a connection.
#[derive(Clone)]
pub(super) struct Budget {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// The kind of client for which bytes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// A client that has shown a credential, or needs none.
    Known,
    Stranger,
}

/// Bytes taken from the budget until this is dropped.
pub(super) struct Share {
    all: OwnedSemaphorePermit,
    /// The same number of bytes, while they belong to a stranger.
    stranger: Option<OwnedSemaphorePermit>,
}

/// The budget is exhausted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Budget {
    pub(super) fn new(bytes: usize) -> Budget {
        let bytes = bytes.min(Semaphore::MAX_PERMITS);
        Budget {
            all: Arc::new(Semaphore::new(bytes)),
            strangers: Arc::new(Semaphore::new(bytes / 2)),
        }
    }

    /// Takes this many bytes.
    pub(super) fn reserve(&self, bytes: usize, whose: Whose) -> Result<Share, Exhausted> {
        let stranger = match whose {
            Whose::Known => None,
            Whose::Stranger => Some(take(&self.strangers, bytes)?),
        };
        Ok(Share {
            all: take(&self.all, bytes)?,
            stranger,
        })
    }

    /// Grows the share to at least this many bytes.
    pub(super) fn grow(&self, share: &mut Share, bytes: usize) -> Result<(), Exhausted> {
        let missing = bytes.saturating_sub(share.all.num_permits());
        if missing > 0 {
            // If the second one fails, nothing stays taken.
            let stranger = match &share.stranger {
                Some(_) => Some(take(&self.strangers, missing)?),
                None => None,
            };
            share.all.merge(take(&self.all, missing)?);
            if let (Some(share), Some(more)) = (&mut share.stranger, stranger) {
                share.merge(more);
            }
        }
        Ok(())
    }
}

fn take(from: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Exhausted> {
    let bytes = u32::try_from(bytes).map_err(|_| Exhausted)?;
    Arc::clone(from)
        .try_acquire_many_owned(bytes)
        .map_err(|_| Exhausted)
}

impl Share {
    /// Its client is no longer a stranger.
    pub(super) fn admit(&mut self) {
        self.stranger = None;
    }

    /// How many bytes it covers.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.all.num_permits()
    }

    /// Splits off this many bytes; `None` if it covers fewer.
    pub(super) fn split(&mut self, bytes: usize) -> Option<Share> {
        let all = self.all.split(bytes)?;
        let stranger = self.stranger.as_mut().and_then(|stranger| stranger.split(bytes));
        Some(Share { all, stranger })
    }

    /// The permit alone, for the spool, which knows no strangers.
    pub(super) fn into_permit(self) -> OwnedSemaphorePermit {
        self.all
    }
}

/// Lets one line pass per second, or per longer period, and counts the rest, so that a flood of refused requests does
/// not become a flood of log lines.
pub(super) struct LogLimiter {
    start: Instant,
    /// Minimum number of seconds between two lines.
    every: u64,
    /// The second after `start` from which the next line may pass.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimiter {
    pub(super) fn new() -> LogLimiter {
        LogLimiter::every(1)
    }

    pub(super) fn every(seconds: u64) -> LogLimiter {
        LogLimiter {
            start: Instant::now(),
            every: seconds,
            next: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// The number of lines suppressed since the last one, if a line may be written now.
    pub(super) fn pass(&self) -> Option<u64> {
        self.pass_at(self.start.elapsed().as_secs())
    }

    fn pass_at(&self, second: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let passes = second >= next
            && self
                .next
                .compare_exchange(next, second + self.every, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if passes {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_taken_and_given_back() {
        use Whose::Known;
        let budget = Budget::new(100);
        let mut first = budget.reserve(60, Known).unwrap();
        assert_eq!(budget.reserve(50, Known).err(), Some(Exhausted));
        budget.grow(&mut first, 90).unwrap();
        budget.grow(&mut first, 10).unwrap();
        assert_eq!(first.bytes(), 90);
        assert_eq!(budget.grow(&mut first, 101).err(), Some(Exhausted));
        drop(first);
        assert!(budget.reserve(100, Known).is_ok());
        assert!(budget.reserve(0, Known).is_ok());
        assert!(budget.reserve(usize::MAX, Known).is_err());
    }

    #[test]
    fn strangers_leave_half_of_the_budget_to_the_others() {
        let budget = Budget::new(100);
        let mut stranger = budget.reserve(30, Whose::Stranger).unwrap();
        assert!(budget.reserve(21, Whose::Stranger).is_err());
        assert_eq!(budget.grow(&mut stranger, 51), Err(Exhausted));
        budget.grow(&mut stranger, 50).unwrap();
        let known = budget.reserve(50, Whose::Known).unwrap();
        assert!(budget.reserve(1, Whose::Known).is_err());
        drop(known);
        // Once admitted it counts as known, and leaves its place to other strangers.
        stranger.admit();
        assert!(budget.reserve(50, Whose::Stranger).is_ok());
        budget.grow(&mut stranger, 100).unwrap();
        // A reservation that failed halfway has taken nothing.
        assert!(budget.reserve(50, Whose::Stranger).is_err());
        drop(stranger);
        let mut stranger = budget.reserve(50, Whose::Stranger).unwrap();
        drop(stranger.split(20).unwrap());
        assert!(stranger.split(31).is_none());
        assert!(budget.reserve(20, Whose::Stranger).is_ok());
    }

    #[test]
    fn one_line_a_second() {
        let limiter = LogLimiter::new();
        let passed: Vec<_> = [0, 0, 0, 1, 1, 5].map(|second| limiter.pass_at(second)).into();
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
        let limiter = LogLimiter::every(3600);
        let passed: Vec<_> = [7, 3606, 3607].map(|second| limiter.pass_at(second)).into();
        assert_eq!(passed, [Some(0), None, Some(1)]);
    }
}
