//! What is known of refused records, while the range that they were sent in is sent again: which go to the dead-letter topic
//! instead, and which batches go one record a request to find out.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use crate::{
    batch::BatchView,
    clock,
    dead_letter::DeadLetter,
    kafka::broker::{Mode, Refusal},
    spool::Seq,
};

use super::in_flight::SentRecord;

/// A range that is being sent again, after a refusal somewhere in it.
#[derive(Debug)]
pub struct Refusals {
    /// The range ends before this batch.
    pub until: Seq,
    /// These batches are sent one record a request, for the broker did not name what it refused.
    one_by_one: Range<Seq>,
    /// The records that the broker refused.
    refused: BTreeMap<(Seq, usize), Refusal>,
    /// A record without a key was refused as invalid: the topic is compacted, and refuses all without a key.
    keyless: bool,
    /// Without transactions: what is delivered and not to be sent again.
    delivered: BTreeSet<SentRecord>,
}

impl Refusals {
    /// Of a range of which nothing is known yet but its end.
    pub fn until(seq: Seq) -> Refusals {
        Refusals {
            until: seq,
            one_by_one: Seq(0)..Seq(0),
            refused: BTreeMap::new(),
            keyless: false,
            delivered: BTreeSet::new(),
        }
    }

    /// The broker refused this record.
    pub fn refuse(&mut self, record: SentRecord, refusal: Refusal) {
        self.refused.insert((record.batch, record.number), refusal);
        self.keyless |= record.keyless && refusal == Refusal::Invalid;
    }

    /// These batches are to be sent one record a request.
    pub fn ask_one_by_one(&mut self, batches: Range<Seq>) {
        let known = &self.one_by_one;
        self.one_by_one = match known.is_empty() {
            true => batches,
            false => known.start.min(batches.start)..known.end.max(batches.end),
        };
    }

    /// This record is delivered.
    pub fn deliver(&mut self, record: SentRecord) {
        self.delivered.insert(record);
    }

    /// Why a record goes to the dead-letter topic, if it is known to be refused.
    pub fn verdict(&self, batch: Seq, number: usize, keyless: bool) -> Option<Refusal> {
        let keyless = (self.keyless && keyless).then_some(Refusal::Invalid);
        self.refused.get(&(batch, number)).copied().or(keyless)
    }

    /// Whether a record need not be sent again.
    pub fn is_delivered(&self, record: &SentRecord) -> bool {
        self.delivered.contains(record)
    }
}

/// How a batch is to be sent.
pub fn mode_of(refusals: Option<&Refusals>, batch: Seq) -> Mode {
    match refusals.is_some_and(|refusals| refusals.one_by_one.contains(&batch)) {
        true => Mode::OneByOne,
        false => Mode::Batched,
    }
}

/// How often a lane connects again because of refusals that it could not foresee: at once while they are few, else as
/// often as a broker that refuses many can bear.
#[derive(Debug)]
pub struct Pace {
    /// The time that the refusals so far are worth.
    paid_until: Instant,
}

impl Pace {
    /// So much time each is worth in the long run.
    const EACH: Duration = Duration::from_millis(500);
    /// So many go without a wait.
    const AT_ONCE: u32 = 8;

    /// None so far.
    pub fn new() -> Pace {
        Pace {
            paid_until: clock::now(),
        }
    }

    /// How long to wait after another one.
    pub fn wait(&mut self) -> Duration {
        let now = clock::now();
        self.paid_until = self.paid_until.max(now) + Pace::EACH;
        (self.paid_until - now).saturating_sub(Pace::EACH * Pace::AT_ONCE)
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
        ..DeadLetter::new(refusal.reason(), view.received_at_micros, value)
    }
}
