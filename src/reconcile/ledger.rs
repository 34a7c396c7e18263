//! Fingerprints of the events on the topics: 28 bytes for each, found by binary search in sorted chunks.
//!
//! An event is *taken* when a row of the sender has it. What is left at the end is unknown to the sender.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
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

    fn is_delivery(&self) -> bool {
        usize::from(self.flags & STREAM_BITS) == Stream::Deliveries.index()
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

    /// The deliveries by status, for each composition and slot. `None` if an event is there twice.
    pub fn tallies(&self) -> BTreeMap<(u8, u16), Option<Tally>> {
        let mut tallies = BTreeMap::new();
        let mut last = None;
        for entry in self.in_order().filter(|entry| entry.is_delivery()) {
            let tally = tallies
                .entry((entry.composition, entry.slot))
                .or_insert_with(|| Some(Tally::default()));
            match tally {
                _ if last == Some(entry.id) => *tally = None,
                Some(tally) => tally.count_at(entry.status()),
                None => {}
            }
            last = Some(entry.id);
        }
        tallies
    }

    /// All sealed events in the order of their ids. This takes no memory for each of them.
    fn in_order(&self) -> impl Iterator<Item = &Entry> {
        let head = |chunk: usize, at: usize| {
            let entry = self.sorted.get(chunk)?.get(at)?;
            Some(Reverse((entry.id, chunk, at)))
        };
        let mut heads: BinaryHeap<_> = (0..self.sorted.len())
            .filter_map(|chunk| head(chunk, 0))
            .collect();
        std::iter::from_fn(move || {
            let Reverse((_, chunk, at)) = heads.pop()?;
            heads.extend(head(chunk, at + 1));
            self.sorted.get(chunk)?.get(at)
        })
    }

    /// Takes the deliveries of a composition in these slots whose statuses the sender counts.
    pub fn take_counted(&mut self, composition: u8, slots: &Range<u16>) {
        for entry in self.sorted.iter_mut().flatten() {
            let is_of_day = entry.composition == composition && slots.contains(&entry.slot);
            if is_of_day && entry.is_delivery() && entry.status() < COUNTED.len() {
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
        let counts = |ledger: &Ledger, slot| {
            let tally = ledger.tallies().remove(&(0, slot)).unwrap();
            tally.map(|tally| tally.counts()[..5].to_vec())
        };
        assert_eq!(counts(&ledger, 5).unwrap(), [2, 1, 1, 1, 1]);
        assert_eq!(counts(&ledger, 6).unwrap(), [1, 0, 0, 0, 0]);
        assert_eq!(ledger.tallies().len(), 3);
        ledger.take_counted(0, &(5..6));
        let left = ledger.counted().filter(|event| !event.taken).count();
        assert_eq!(left, 5);
        ledger.add(
            &event(Uuid::from_u128(3), 0, Stream::Deliveries, "succeeded"),
            0,
            5,
        );
        ledger.seal();
        // In another chunk.
        assert_eq!(counts(&ledger, 5), None);
        assert!(counts(&ledger, 6).is_some());
    }

    #[test]
    fn ten_million_events_take_less_than_400_mib() {
        let events = 1_000_000;
        let mut ledger = Ledger::default();
        for n in 0..events as u128 {
            // In no order.
            let id = Uuid::from_u128(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
            ledger.add(&event(id, n as u64, Stream::Deliveries, "queued"), 0, 1);
        }
        ledger.seal();
        let entries: usize = ledger.sorted.iter().map(Vec::capacity).sum();
        let bytes = entries * size_of::<Entry>();
        assert!(bytes <= 28 * events, "{} bytes an event", bytes / events);
        assert_eq!(ledger.tallies().len(), 1);
        let most = 10_000_000 * 28 + CHUNK * size_of::<Entry>();
        assert!(most < 300 << 20);
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
