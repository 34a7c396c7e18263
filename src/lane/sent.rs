//! What a lane has sent and not yet seen committed or delivered.

use std::time::Instant;

use crate::{
    clock,
    dead_letter::Failure,
    spool::{Position, Seq},
};

/// A record that was sent.
#[derive(Clone, Copy, Debug)]
pub struct SentRecord {
    pub batch: Seq,
    /// Its number in the batch.
    pub number: usize,
    /// Whether it is a part of a dead letter.
    pub dead_letter: bool,
    /// Whether its key is null.
    pub keyless: bool,
}

/// What a transaction holds, or with at-least-once delivery a window.
#[derive(Debug)]
pub struct Sent {
    pub begun: Instant,
    /// The broker's number of its first record.
    pub first: usize,
    /// The position behind it.
    pub end: Position,
    pub events: usize,
    pub bytes: usize,
    pub diverted: Vec<Failure>,
    pub records: Vec<SentRecord>,
    /// When the webhooks arrived, with the number of events of each.
    pub received: Vec<(i64, usize)>,
}

impl Sent {
    /// Nothing yet; time runs.
    pub fn begin(first: usize) -> Sent {
        Sent {
            begun: clock::now(),
            first,
            end: Position::default(),
            events: 0,
            bytes: 0,
            diverted: Vec::new(),
            records: Vec::new(),
            received: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// The broker's number of the record behind its last one.
    pub fn behind(&self) -> usize {
        self.first + self.records.len()
    }

    /// The position behind every batch of which a record was sent.
    pub fn touched(&self) -> Seq {
        let last = self
            .records
            .last()
            .map_or(Seq(0), |record| Seq(record.batch.0 + 1));
        last.max(self.end.seq)
    }
}
