//! What a lane has sent and not yet seen committed or delivered.

use std::time::Instant;

use crate::spool::{Position, Seq};

/// What a transaction holds.
#[derive(Debug)]
pub struct Sent {
    pub begun: Instant,
    /// The position behind it.
    pub end: Position,
    pub events: usize,
    pub bytes: usize,
    pub diverted: usize,
    /// For each record sent: its batch, its number in it, and whether it is a part of a dead letter.
    pub records: Vec<(Seq, usize, bool)>,
    /// When the webhooks arrived, with the number of events of each.
    pub received: Vec<(i64, usize)>,
    /// A batch that can't be decoded was taken and is not part of it.
    pub cut: bool,
}

impl Sent {
    /// Nothing yet; time runs.
    pub fn begin() -> Sent {
        Sent {
            begun: Instant::now(),
            end: Position::default(),
            events: 0,
            bytes: 0,
            diverted: 0,
            records: Vec::new(),
            received: Vec::new(),
            cut: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// The position behind every batch of which a record was sent.
    pub fn touched(&self) -> Seq {
        let last = self.records.last().map_or(Seq(0), |(seq, ..)| Seq(seq.0 + 1));
        last.max(self.end.seq)
    }
}
