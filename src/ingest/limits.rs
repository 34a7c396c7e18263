//! What ingest bounds besides time: bytes in flight, and log lines about refusals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes of bodies being read and of batches waiting for the disk, all together.
///
/// Nobody waits for bytes: used up means 503, for a sender that waits holds its own bytes and a connection meanwhile.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Budget {
    pub(super) fn new(bytes: usize) -> Budget {
        Budget(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Takes so many bytes out of the budget, until the permit is dropped.
    pub(super) fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Exhausted> {
        let bytes = u32::try_from(bytes).map_err(|_| Exhausted)?;
        Arc::clone(&self.0)
            .try_acquire_many_owned(bytes)
            .map_err(|_| Exhausted)
    }

    /// Makes the permit cover at least so many bytes.
    pub(super) fn grow(&self, permit: &mut OwnedSemaphorePermit, bytes: usize) -> Result<(), Exhausted> {
        let missing = bytes.saturating_sub(permit.num_permits());
        if missing > 0 {
            permit.merge(self.reserve(missing)?);
        }
        Ok(())
    }
}

/// Lets one line a second pass and counts the rest, so that a flood of refused requests is no flood of log lines.
pub(super) struct LogLimiter {
    start: Instant,
    /// The second, counted from `start`, in which the next line may pass.
    next: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimiter {
    pub(super) fn new() -> LogLimiter {
        LogLimiter {
            start: Instant::now(),
            next: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether a line may be written, and how many were suppressed since the last one.
    pub(super) fn pass(&self) -> Option<u64> {
        self.pass_at(self.start.elapsed().as_secs())
    }

    fn pass_at(&self, second: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let passes = second >= next
            && self
                .next
                .compare_exchange(next, second + 1, Ordering::Relaxed, Ordering::Relaxed)
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
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert_eq!(budget.reserve(50).err(), Some(Exhausted));
        budget.grow(&mut first, 90).unwrap();
        budget.grow(&mut first, 10).unwrap();
        assert_eq!(first.num_permits(), 90);
        assert_eq!(budget.grow(&mut first, 101).err(), Some(Exhausted));
        drop(first);
        assert!(budget.reserve(100).is_ok());
        assert!(budget.reserve(0).is_ok());
        assert!(budget.reserve(usize::MAX).is_err());
    }

    #[test]
    fn one_line_a_second() {
        let limiter = LogLimiter::new();
        let passed: Vec<_> = [0, 0, 0, 1, 1, 5].map(|second| limiter.pass_at(second)).into();
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
