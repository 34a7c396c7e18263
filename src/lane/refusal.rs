//! Which records go to the dead-letter topic instead: those that the broker refused when each was sent alone, and those
//! that are sure to be.

use std::collections::BTreeMap;

use crate::{
    batch::{BatchView, RecordView, alone_in_batch},
    dead_letter::{DeadLetter, Reason},
    spool::Seq,
};

use super::{
    broker::{Mode, Refusal},
    sent::SentRecord,
};

/// A range that is being sent again, after a refusal somewhere in it.
#[derive(Debug)]
pub struct Refusals {
    /// The range ends before this batch.
    pub until: Seq,
    /// How it is sent. Batched is enough when the topic's limit tells which records are too large.
    pub mode: Mode,
    /// The records refused alone, by batch and number in it.
    refused: BTreeMap<(Seq, usize), Refusal>,
    /// One without a key was refused as invalid: the topic is compacted, and refuses all without a key.
    keyless: bool,
}

impl Refusals {
    /// A range of which no record is known to be refused yet.
    pub fn until(seq: Seq, mode: Mode) -> Refusals {
        Refusals {
            until: seq,
            mode,
            refused: BTreeMap::new(),
            keyless: false,
        }
    }

    /// The broker refused this record alone.
    pub fn add(&mut self, record: &SentRecord, refusal: Refusal) {
        self.refused.insert((record.batch, record.number), refusal);
        self.keyless |= record.keyless && refusal == Refusal::Invalid;
    }

    /// Whether a record was refused, or is sure to be: `limit` is the topic's own, read from the broker after the
    /// refusal that began this range, so asking again would give the same answer.
    pub fn verdict(
        &self,
        seq: Seq,
        index: usize,
        view: &BatchView<'_>,
        record: &RecordView<'_>,
        limit: Option<usize>,
    ) -> Option<Refusal> {
        let too_large = || {
            let size = alone_in_batch(record.key, view.headers(record), record.value_len());
            limit
                .is_some_and(|limit| size > limit)
                .then_some(Refusal::TooLarge)
        };
        let keyless = (self.keyless && record.key.is_none()).then_some(Refusal::Invalid);
        self.refused
            .get(&(seq, index))
            .copied()
            .or(keyless)
            .or_else(too_large)
    }
}

/// Why there is a dead letter of a record that was refused so.
pub fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::TooLarge => Reason::RefusedTooLarge,
        Refusal::Invalid => Reason::RefusedInvalid,
    }
}

/// The dead letter of a refused record.
pub fn dead_letter<'a>(
    refusal: Refusal,
    topic: &'a str,
    headers: &'a [(&'a str, &'a [u8])],
    view: &BatchView<'a>,
    key: Option<&'a [u8]>,
    value: &'a [u8],
) -> DeadLetter<'a> {
    DeadLetter {
        topic: Some(topic),
        key,
        headers,
        ..DeadLetter::new(reason(refusal), view.received_at_micros, value)
    }
}
