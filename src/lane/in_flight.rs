//! The records that a lane has sent and that are not yet committed (without transactions: not yet delivered).

use std::time::Instant;

use crate::{
    clock,
    dead_letter::Failure,
    spool::{Position, Seq},
};

/// A record that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SentRecord {
    pub batch: Seq,
    /// Its number in the batch.
    pub number: usize,
    /// The number of this part of its dead letter; `None` for the record itself.
    pub part: Option<usize>,
    /// Whether its key is null.
    pub keyless: bool,
}

/// The content of a transaction (without transactions: of a window).
#[derive(Debug)]
pub struct InFlight {
    pub begun: Instant,
    /// The position after it.
    pub end: Position,
    pub events: usize,
    pub bytes: usize,
    /// Whether it left batches behind that would not fit.
    pub full: bool,
    /// Whether records were left out because the broker has taken them before: it only asks about the others, and is not committed.
    pub only_asks: bool,
    pub diverted: Vec<Failure>,
    pub records: Vec<SentRecord>,
    /// When the webhooks arrived, with the number of events of each.
    pub received: Vec<(i64, usize)>,
}

impl InFlight {
    /// Empty. The clock starts now.
    pub fn begin() -> InFlight {
        InFlight {
            begun: clock::now(),
            end: Position::default(),
            events: 0,
            bytes: 0,
            full: false,
            only_asks: false,
            diverted: Vec::new(),
            records: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Whether no batch was sent.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// The first batch with a record that was sent.
    pub fn first(&self) -> Seq {
        self.records.first().map_or(self.end.seq, |record| record.batch)
    }

    /// The position after the last batch with a record that was sent.
    pub fn touched(&self) -> Seq {
        let last = self
            .records
            .last()
            .map_or(Seq(0), |record| Seq(record.batch.0 + 1));
        last.max(self.end.seq)
    }
}
