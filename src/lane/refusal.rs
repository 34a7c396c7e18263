//! Keeps track of refused records while their range is sent again: which of them go to the dead-letter topic instead, and
//! which batches go one record per request to find out.

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
    /// Batches that go one record per request, because the broker did not name what it refused.
    one_by_one: Range<Seq>,
    /// The records that the broker refused.
    refused: BTreeMap<(Seq, usize), Refusal>,
    /// A record without a key was refused as invalid: the topic is compacted and refuses every record without a key.
    keyless: bool,
    /// Without transactions: records that are delivered and must not be sent again.
    delivered: BTreeSet<SentRecord>,
    /// With transactions: records of the batches that go one record per request which the broker took, in a transaction that ran
    /// out of time.
    taken: BTreeSet<SentRecord>,
}

impl Refusals {
    /// A range of which only the end is known.
    pub fn until(seq: Seq) -> Refusals {
        Refusals {
            until: seq,
            one_by_one: Seq(0)..Seq(0),
            refused: BTreeMap::new(),
            keyless: false,
            delivered: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    /// Takes note that the broker refused this record.
    pub fn refuse(&mut self, record: SentRecord, refusal: Refusal) {
        self.refused.insert((record.batch, record.number), refusal);
        self.keyless |= record.keyless && refusal == Refusal::Invalid;
    }

    /// Sends these batches one record per request from now on.
    pub fn ask_one_by_one(&mut self, batches: Range<Seq>) {
        let known = &self.one_by_one;
        self.one_by_one = match known.is_empty() {
            true => batches,
            false => known.start.min(batches.start)..known.end.max(batches.end),
        };
        self.taken.clear();
    }

    /// Takes note that the broker took this record, although its transaction ended without a commit.
    pub fn take(&mut self, record: SentRecord) {
        self.taken.insert(record);
    }

    /// Whether the broker is known to take a record of a batch that goes one record per request.
    pub fn is_taken(&self, record: &SentRecord) -> bool {
        self.taken.contains(record)
    }

    /// Sends the batches before this one many records per request: the broker has been asked about each of their records.
    pub fn asked_until(&mut self, seq: Seq) {
        self.one_by_one.start = seq.max(self.one_by_one.start);
        self.taken.clear();
    }

    /// Takes note that this record is delivered.
    pub fn deliver(&mut self, record: SentRecord) {
        self.delivered.insert(record);
    }

    /// Why a record is known to be refused, if it is.
    pub fn known(&self, batch: Seq, number: usize, keyless: bool) -> Option<Refusal> {
        let keyless = (self.keyless && keyless).then_some(Refusal::Invalid);
        self.refused.get(&(batch, number)).copied().or(keyless)
    }

    /// Why a record of this batch is known to be refused, if one is.
    pub fn known_in(&self, batch: Seq) -> Option<Refusal> {
        let mut known = self.refused.range((batch, 0)..=(batch, usize::MAX));
        known.next().map(|(_, refusal)| *refusal)
    }

    /// Whether a record need not be sent again.
    pub fn is_delivered(&self, record: &SentRecord) -> bool {
        self.delivered.contains(record)
    }
}

/// How to send a batch.
pub fn mode_of(refusals: Option<&Refusals>, batch: Seq) -> Mode {
    match refusals.is_some_and(|refusals| refusals.one_by_one.contains(&batch)) {
        true => Mode::OneByOne,
        false => Mode::Batched,
    }
}

/// Limits how often a lane connects again after refusals that it could not foresee: at once while they are few, and no faster
/// than a broker can bear when they are many.
#[derive(Debug)]
pub struct Pace {
    /// The time up to which the refusals so far are paid for.
    paid_until: Instant,
}

impl Pace {
    /// The wait that each refusal costs in the long run.
    const EACH: Duration = Duration::from_millis(500);
    /// How many refusals need no wait.
    const AT_ONCE: u32 = 8;

    /// No refusals so far.
    pub fn new() -> Pace {
        Pace {
            paid_until: clock::now(),
        }
    }

    /// How long to wait after another refusal.
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
