//! Fingerprints of the events on the topics: 28 bytes for each, found by binary search in sorted chunks.
//!
//! An event is *taken* when a row of the sender has it. What is left at the end is unknown to the sender.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use uuid::Uuid;

use crate::{
    cmc::OnTopic,
    sender_api::COUNTED,
    stream::{Stream, Tally},
};

/// Entries of a chunk. Chunks never move, so memory never doubles.
const CHUNK: usize = 1 << 18;
/// The slot of an event whose `created` is not a time.
pub const NO_SLOT: u16 = u16::MAX;

/// An event on a topic. Byte arrays keep it at 28 bytes.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: [u8; 16],
    kin: [u8; 8],
    slot: u16,
    composition: u8,
    /// The stream's index, where the status stands among [`Stream::statuses`], and [`TAKEN`].
    flags: u8,
}

const TAKEN: u8 = 0x80;
const STATUS_SHIFT: u32 = 3;
const STREAM_BITS: u8 = 0b111;

impl Entry {
    fn stream(&self) -> Option<Stream> {
        Stream::ALL.get(usize::from(self.flags & STREAM_BITS)).copied()
    }

    fn status(&self) -> usize {
        usize::from((self.flags & !TAKEN) >> STATUS_SHIFT)
    }

    fn is_delivery(&self, composition: u8, slots: &Range<u16>) -> bool {
        let stream = usize::from(self.flags & STREAM_BITS);
        self.composition == composition && slots.contains(&self.slot) && stream == Stream::Deliveries.index()
    }

    fn is_taken(&self) -> bool {
        self.flags & TAKEN != 0
    }
}

/// All events on the topics.
#[derive(Debug, Default)]
pub struct Ledger {
    sorted: Vec<Vec<Entry>>,
    /// Not sorted yet.
    open: Vec<Entry>,
}

/// The place of an event that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Place(u32, u32);

/// An event, for counting.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub stream: Stream,
    pub composition: u8,
    pub slot: u16,
    pub taken: bool,
}

impl Ledger {
    /// Adds an event of a composition and slot.
    pub fn add(&mut self, event: &OnTopic, composition: u8, slot: u16) {
        if self.open.capacity() == 0 {
            self.open.reserve_exact(CHUNK);
        }
        self.open.push(Entry {
            id: event.id.into_bytes(),
            kin: event.kin.to_ne_bytes(),
            slot,
            composition,
            flags: event.stream.index() as u8 | (event.status as u8) << STATUS_SHIFT,
        });
        if self.open.len() == CHUNK {
            self.seal();
        }
    }

    /// Makes what was added findable.
    pub fn seal(&mut self) {
        let mut chunk = std::mem::take(&mut self.open);
        if !chunk.is_empty() {
            chunk.sort_unstable_by_key(|entry| entry.id);
            chunk.shrink_to_fit();
            self.sorted.push(chunk);
        }
    }

    /// Takes an event with this id that is not taken.
    pub fn take(&mut self, id: Uuid) -> Option<Place> {
        let id = id.into_bytes();
        for (number, chunk) in self.sorted.iter_mut().enumerate() {
            let first = chunk.partition_point(|entry| entry.id < id);
            let same = chunk[first..].iter_mut().take_while(|entry| entry.id == id);
            for (at, entry) in same.enumerate() {
                if !entry.is_taken() {
                    entry.flags |= TAKEN;
                    return Some(Place(number as u32, (first + at) as u32));
                }
            }
        }
        None
    }

    /// Puts an event back.
    pub fn give_back(&mut self, Place(chunk, at): Place) {
        let chunk = self.sorted.get_mut(chunk as usize);
        if let Some(entry) = chunk.and_then(|chunk| chunk.get_mut(at as usize)) {
            entry.flags &= !TAKEN;
        }
    }

    /// Of the wanted kin, those that events have which are not taken, and how many.
    pub fn left_kin(&self, wanted: &BTreeSet<u64>) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        for entry in self.entries().filter(|entry| !entry.is_taken()) {
            let kin = u64::from_ne_bytes(entry.kin);
            if wanted.contains(&kin) {
                *found.entry(kin).or_default() += 1;
            }
        }
        found
    }

    /// All events, for counting.
    pub fn counted(&self) -> impl Iterator<Item = Counted> + '_ {
        self.entries().filter_map(|entry| {
            Some(Counted {
                stream: entry.stream()?,
                composition: entry.composition,
                slot: entry.slot,
                taken: entry.is_taken(),
            })
        })
    }

    /// How many deliveries of a composition in these slots have which status, in the order of [`Stream::statuses`]. `None` if one
    /// event is there twice.
    pub fn tally(&self, composition: u8, slots: &Range<u16>) -> Option<Tally> {
        let mut tally = Tally::default();
        // Half an id is enough: if two events share it, the rows are read.
        let mut ids: Vec<[u8; 8]> = Vec::new();
        for entry in self
            .entries()
            .filter(|entry| entry.is_delivery(composition, slots))
        {
            tally.count_at(entry.status());
            ids.extend(entry.id.last_chunk());
        }
        ids.sort_unstable();
        ids.is_sorted_by(|a, b| a < b).then_some(tally)
    }

    /// Takes the deliveries of a composition in these slots whose statuses the sender counts.
    pub fn take_counted(&mut self, composition: u8, slots: &Range<u16>) {
        for entry in self.sorted.iter_mut().flatten() {
            if entry.is_delivery(composition, slots) && entry.status() < COUNTED.len() {
                entry.flags |= TAKEN;
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.sorted.iter().flatten().chain(&self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: Uuid, kin: u64, stream: Stream, status: &str) -> OnTopic {
        OnTopic {
            stream,
            composition: String::new(),
            id,
            kin,
            status: stream.status_index(Some(status)),
            created: None,
        }
    }

    #[test]
    fn statuses_are_counted_by_day_unless_an_event_is_there_twice() {
        let mut ledger = Ledger::default();
        let statuses = ["queued", "queued", "succeeded", "failed", "deferred", "lost"];
        for (n, status) in (1..).zip(statuses) {
            ledger.add(&event(Uuid::from_u128(n), 0, Stream::Deliveries, status), 0, 5);
        }
        // Of another stream, composition and slot.
        ledger.add(&event(Uuid::from_u128(7), 0, Stream::Bounces, "1"), 0, 5);
        ledger.add(&event(Uuid::from_u128(8), 0, Stream::Deliveries, "queued"), 1, 5);
        ledger.add(&event(Uuid::from_u128(9), 0, Stream::Deliveries, "queued"), 0, 6);
        ledger.seal();
        assert_eq!(ledger.tally(0, &(5..6)).unwrap().counts()[..5], [2, 1, 1, 1, 1]);
        assert_eq!(ledger.tally(0, &(5..7)).unwrap().counts()[..5], [3, 1, 1, 1, 1]);
        ledger.take_counted(0, &(5..6));
        let left = ledger.counted().filter(|event| !event.taken).count();
        assert_eq!(left, 5);
        ledger.add(
            &event(Uuid::from_u128(3), 0, Stream::Deliveries, "succeeded"),
            0,
            5,
        );
        ledger.seal();
        assert!(ledger.tally(0, &(5..6)).is_none());
        assert!(ledger.tally(0, &(6..7)).is_some());
    }

    #[test]
    fn a_multiset_of_events() {
        assert_eq!(size_of::<Entry>(), 28);
        let mut ledger = Ledger::default();
        let id = |n: u128| Uuid::from_u128(n);
        for n in 0..1000 {
            ledger.add(&event(id(n % 500), n as u64 % 500, Stream::Bounces, "1"), 0, 1);
            if n == 700 {
                ledger.seal();
            }
        }
        ledger.seal();
        let first = ledger.take(id(7)).unwrap();
        ledger.take(id(7)).unwrap();
        assert!(ledger.take(id(7)).is_none());
        assert!(ledger.take(id(500)).is_none());
        assert!(ledger.left_kin(&BTreeSet::from([7, 500])).is_empty());
        ledger.give_back(first);
        assert_eq!(
            ledger.left_kin(&BTreeSet::from([7, 500])),
            BTreeMap::from([(7, 1)])
        );
        ledger.take(id(7)).unwrap();
        assert_eq!(ledger.counted().filter(|event| event.taken).count(), 2);
        assert_eq!(ledger.counted().count(), 1000);
    }
}
