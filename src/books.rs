//! The books of one stream: `recovered + accepted = delivered + diverted + backlog`, true at every instant.
//!
//! The two sides come from different sources, so the identity is a check and not a definition: `accepted` is counted when the
//! spool's writer has made a batch durable, `delivered` and `diverted` when Kafka has committed a transaction, and the
//! backlog is the difference of two running totals in the spool's records. Writer and lane each make one change under the
//! lock per commit; a scrape copies everything at once.

use parking_lot::Mutex;

use crate::stream::Tally;

/// The books of one stream. Totals count the events of the log's whole life, the other counts those of this process.
#[derive(Debug, Default)]
pub struct Books(Mutex<Balance>);

/// A consistent copy of a stream's books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Events found in the log at start and not known to be in Kafka.
    pub recovered: u64,
    /// Events made durable since, by status, in the order of [`crate::stream::Stream::statuses`].
    pub accepted: [u64; 13],
    /// Events that Kafka has committed since.
    pub delivered: u64,
    /// Events that Kafka refused individually and that went to the dead-letter topic instead.
    pub diverted: u64,
    /// All events ever made durable in this log.
    pub durable_total: u64,
    /// All events of this log before the lane's position.
    pub position_total: u64,
    /// When the first event after the position was received, microseconds since the Unix epoch; `None` without backlog.
    pub oldest_micros: Option<i64>,
}

impl Balance {
    /// Durable events that are not known to be in Kafka.
    pub fn backlog(&self) -> u64 {
        self.durable_total.saturating_sub(self.position_total)
    }

    /// All accepted events, whatever their status.
    pub fn accepted_total(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// Whether the books agree.
    pub fn balanced(&self) -> bool {
        self.recovered + self.accepted_total() == self.delivered + self.diverted + self.backlog()
    }
}

impl Books {
    /// The books at this instant.
    pub fn snapshot(&self) -> Balance {
        self.0.lock().clone()
    }

    /// The log was opened: `durable_total` events were ever made durable in it, and those before `position_total` are known to
    /// be in Kafka.
    pub fn opened(&self, durable_total: u64, position_total: u64, oldest_micros: Option<i64>) {
        *self.0.lock() = Balance {
            recovered: durable_total.saturating_sub(position_total),
            durable_total,
            position_total,
            oldest_micros,
            ..Balance::default()
        };
    }

    /// A commit with the events of `tally` is durable; the first of them was received at this time.
    pub fn accepted(&self, tally: &Tally, received_micros: i64) {
        let mut books = self.0.lock();
        for (sum, n) in books.accepted.iter_mut().zip(tally.counts()) {
            *sum += u64::from(*n);
        }
        if books.backlog() == 0 {
            books.oldest_micros = Some(received_micros);
        }
        books.durable_total += tally.total();
    }

    /// The lane learnt that a previous process had delivered everything before `position_total`.
    pub fn found_delivered(&self, position_total: u64, oldest_micros: Option<i64>) {
        let mut books = self.0.lock();
        let step = position_total.saturating_sub(books.position_total);
        let before = step.min(books.recovered);
        books.recovered -= before;
        books.delivered += step - before;
        books.move_to(position_total, oldest_micros);
    }

    /// Kafka committed a transaction that moves the position to `position_total`.
    pub fn advanced(&self, position_total: u64, delivered: u64, diverted: u64, oldest_micros: Option<i64>) {
        let mut books = self.0.lock();
        books.delivered += delivered;
        books.diverted += diverted;
        books.move_to(position_total, oldest_micros);
        debug_assert!(books.balanced(), "{books:?}");
    }
}

impl Balance {
    fn move_to(&mut self, position_total: u64, oldest_micros: Option<i64>) {
        self.position_total = position_total;
        // If the next batch was not looked at, the old time stays: for an alert, too old is the safe direction.
        self.oldest_micros = match (self.backlog(), oldest_micros) {
            (0, _) => None,
            (_, Some(oldest)) => Some(oldest),
            (_, None) => self.oldest_micros,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Stream;

    fn tally(events: u32) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..events {
            tally.count(Stream::Deliveries, Some("queued"));
        }
        tally
    }

    #[test]
    fn balanced_through_a_life() {
        let books = Books::default();
        books.opened(100, 90, Some(5));
        assert_eq!(books.snapshot().recovered, 10);
        books.accepted(&tally(4), 7);
        assert_eq!(books.snapshot().oldest_micros, Some(5));
        // The lane finds four of the recovered ones already in Kafka.
        books.found_delivered(94, None);
        books.advanced(100, 5, 1, Some(7));
        books.advanced(104, 4, 0, None);
        let books = books.snapshot();
        assert!(books.balanced());
        assert_eq!((books.recovered, books.backlog()), (6, 0));
        assert_eq!((books.delivered, books.diverted), (9, 1));
        assert_eq!(books.oldest_micros, None);
    }

    #[test]
    fn what_another_process_delivered_of_this_ones_events_counts_as_delivered() {
        let books = Books::default();
        books.opened(10, 8, None);
        books.accepted(&tally(3), 1);
        books.found_delivered(12, Some(1));
        let books = books.snapshot();
        assert!(books.balanced());
        assert_eq!((books.recovered, books.delivered, books.backlog()), (0, 2, 1));
    }
}
