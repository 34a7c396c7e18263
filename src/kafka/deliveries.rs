//! Counts the delivery reports of a producer.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// The reports of one request arrive together, within this time.
const MOMENT: Duration = Duration::from_millis(100);
/// Pause before a full queue is tried again, unless a report comes first.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A record that was not delivered.
#[derive(Clone, Debug)]
pub struct UndeliveredRecord {
    /// Its number in its transaction.
    pub number: usize,
    pub partition: (String, i32),
    pub error: KafkaError,
}

impl UndeliveredRecord {
    /// The code of its error.
    pub fn code(&self) -> Option<Code> {
        self.error.rdkafka_error_code()
    }
}

/// Counts the deliveries of one transaction (without transactions: of one window). Partitions report in any order.
#[derive(Default)]
pub struct Deliveries {
    state: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    delivered: usize,
    /// The numbers of the delivered records, if they are kept.
    numbers: Option<Vec<usize>>,
    /// In the order of their reports, which is not the order of their causes: librdkafka may report a record that it gave up
    /// because of an error before that error.
    failures: Vec<UndeliveredRecord>,
    /// The producer has failed for good: nothing more will be delivered, perhaps without any further report.
    fatal: bool,
    /// How many reports are being waited for.
    wanted: usize,
}

impl Counts {
    fn done(&self) -> usize {
        self.delivered + self.failures.len()
    }

    fn has_failed(&self) -> bool {
        self.fatal || !self.failures.is_empty()
    }
}

/// How a wait for deliveries ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Delivered,
    /// Something failed: see [`Deliveries::failures`].
    Failed,
    TimedOut,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.state.lock()
    }

    /// Begins a new count, which also keeps the records' numbers if it is `numbered`.
    pub fn reset(&self, numbered: bool) {
        *self.lock() = Counts {
            numbers: numbered.then(Vec::new),
            ..Counts::default()
        };
    }

    /// Takes the report of a delivered record.
    pub fn delivered(&self, number: usize) {
        let mut counts = self.lock();
        counts.delivered += 1;
        if let Some(numbers) = &mut counts.numbers {
            numbers.push(number);
        }
        if counts.done() == counts.wanted {
            self.changed.notify_all();
        }
    }

    /// Takes the report of a record that was not delivered.
    pub fn failed(&self, failure: UndeliveredRecord) {
        let mut counts = self.lock();
        counts.failures.push(failure);
        if counts.failures.len() == 1 || counts.done() == counts.wanted {
            self.changed.notify_all();
        }
    }

    /// Ends all waits: the producer has failed for good.
    pub fn fail(&self) {
        self.lock().fatal = true;
        self.changed.notify_all();
    }

    /// Waits until this many records are delivered, one has failed, or the deadline has passed.
    pub fn wait(&self, records: usize, deadline: Instant) -> Waited {
        self.wait_until(records, deadline, |counts| {
            match (counts.has_failed(), counts.delivered >= records) {
                (true, _) => Some(Waited::Failed),
                (false, true) => Some(Waited::Delivered),
                (false, false) => None,
            }
        })
    }

    /// Waits until this many records are reported, whatever has failed.
    pub fn wait_for_all(&self, records: usize, deadline: Instant) -> Waited {
        self.wait_until(records, deadline, |counts| {
            match (counts.has_failed(), counts.delivered >= records) {
                (false, true) => Some(Waited::Delivered),
                (true, _) if counts.fatal || counts.done() >= records => Some(Waited::Failed),
                _ => None,
            }
        })
    }

    /// Waits for the reports that follow a failure: until this many records are reported, delivered or not; or, once a failure
    /// `is_cause`, until a moment has passed without a report; or until the deadline. Returns whether all are reported.
    pub fn wait_for_reports(
        &self,
        records: usize,
        is_cause: impl Fn(&UndeliveredRecord) -> bool,
        deadline: Instant,
    ) -> bool {
        let mut looked_at = 0;
        let mut known = false;
        loop {
            let done = {
                let counts = self.lock();
                known = known || counts.failures[looked_at..].iter().any(&is_cause);
                looked_at = counts.failures.len();
                counts.done()
            };
            if done >= records {
                return true;
            }
            // librdkafka may never report the records that it gave up.
            let until = match known {
                true => deadline.min(Instant::now() + MOMENT),
                false => deadline,
            };
            let more = |counts: &Counts| (counts.done() > done).then_some(Waited::Delivered);
            if self.wait_until(done + 1, until, more) == Waited::TimedOut {
                return false;
            }
        }
    }

    /// Waits for room in a full queue: until one more record is reported, or for a moment. The moment is needed because
    /// librdkafka frees the room of records only after the callbacks of all that it reports together, so the last callback may
    /// be over already. With `heed`, earlier failures end the wait.
    pub fn wait_for_room(&self, heed: bool, deadline: Instant) -> Waited {
        let next = self.lock().done() + 1;
        let moment = deadline.min(Instant::now() + TRY_AGAIN);
        let waited = self.wait_until(next, moment, |counts| {
            match counts.fatal || heed && counts.has_failed() {
                true => Some(Waited::Failed),
                false => (counts.done() >= next).then_some(Waited::Delivered),
            }
        });
        match waited {
            Waited::TimedOut if Instant::now() < deadline => Waited::Delivered,
            waited => waited,
        }
    }

    fn wait_until(
        &self,
        wanted: usize,
        deadline: Instant,
        over: impl Fn(&Counts) -> Option<Waited>,
    ) -> Waited {
        let mut counts = self.lock();
        counts.wanted = wanted;
        loop {
            if let Some(waited) = over(&counts) {
                return waited;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            self.changed.wait_for(&mut counts, left);
        }
    }

    /// The numbers of the records delivered so far, if they are kept.
    pub fn numbers(&self) -> Vec<usize> {
        self.lock().numbers.clone().unwrap_or_default()
    }

    /// The failures so far.
    pub fn failures(&self) -> Vec<UndeliveredRecord> {
        self.lock().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn failure(number: usize, code: Code) -> UndeliveredRecord {
        UndeliveredRecord {
            number,
            partition: ("topic".into(), 0),
            error: KafkaError::MessageProduction(code),
        }
    }

    #[test]
    fn a_full_queue_whose_callbacks_are_all_over_is_tried_again() {
        let deliveries = Deliveries::default();
        deliveries.delivered(0);
        let begun = Instant::now();
        assert_eq!(deliveries.wait_for_room(true, soon()), Waited::Delivered);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let past = Instant::now();
        assert_eq!(deliveries.wait_for_room(true, past), Waited::TimedOut);
    }

    #[test]
    fn a_failure_ends_the_wait_and_stays() {
        let deliveries = Deliveries::default();
        deliveries.failed(failure(4, Code::PurgeQueue));
        for _ in 0..2 {
            assert_eq!(deliveries.wait(1, soon()), Waited::Failed);
            assert_eq!(deliveries.wait_for_room(true, soon()), Waited::Failed);
        }
        // The cause may come later.
        let is_cause = |failure: &UndeliveredRecord| failure.code() == Some(Code::InvalidRecord);
        assert!(!deliveries.wait_for_reports(2, is_cause, Instant::now()));
        deliveries.failed(failure(3, Code::InvalidRecord));
        assert!(deliveries.wait_for_reports(2, is_cause, soon()));
        // And the rest never.
        assert!(!deliveries.wait_for_reports(3, is_cause, soon()));
        let codes: Vec<_> = deliveries
            .failures()
            .iter()
            .map(UndeliveredRecord::code)
            .collect();
        assert_eq!(codes, [Some(Code::PurgeQueue), Some(Code::InvalidRecord)]);
        deliveries.reset(true);
        deliveries.delivered(7);
        assert_eq!(deliveries.numbers(), [7]);
        assert_eq!(deliveries.wait(1, soon()), Waited::Delivered);
        assert_eq!(deliveries.wait(2, Instant::now()), Waited::TimedOut);
    }

    #[test]
    fn whoever_waits_is_woken_by_the_last_report_and_by_the_first_failure() {
        type End = fn(&Deliveries);
        let ends: [(End, Waited); 3] = [
            (|d| d.delivered(1), Waited::Delivered),
            (|d| d.failed(failure(0, Code::InvalidRecord)), Waited::Failed),
            (Deliveries::fail, Waited::Failed),
        ];
        for (end, expected) in ends {
            let deliveries = Arc::new(Deliveries::default());
            deliveries.delivered(0);
            let theirs = Arc::clone(&deliveries);
            let waiting = std::thread::spawn(move || theirs.wait(2, soon()));
            end(&deliveries);
            assert_eq!(waiting.join().unwrap(), expected);
        }
    }
}
