//! What was found and done, by day, composition and stream.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;

use super::{
    hour::{Fate, Hole},
    ledger::Ledger,
    scope::{Hour, Scope},
};
use crate::stream::Stream;

/// A day of one composition and stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CellKey {
    pub day: Date,
    /// The index of its composition.
    pub composition: u8,
    pub stream: Stream,
}

impl CellKey {
    /// The day of an hour.
    pub fn of(hour: &Hour) -> CellKey {
        CellKey {
            day: hour.begin.date(),
            composition: hour.composition,
            stream: hour.stream,
        }
    }
}

/// Numbers of events, in the hours that were read whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// The sender has them.
    pub sender: u64,
    /// Those among them that were compared by the sender's counts alone.
    pub counted: u64,
    /// The topics held them, before any was added.
    pub topics: u64,
    /// The sender has them and the topics lacked them, near misses included.
    pub missing: u64,
    pub added: u64,
    /// Not added, because a topic has an event of the same mail and status that the sender doesn't know.
    pub near: u64,
    /// They can't become events.
    pub unfit: u64,
    /// The topics have them and the sender doesn't know them.
    pub unknown: u64,
    /// Hours whose reads did not agree. Nothing was added for them.
    pub unsettled: u64,
}

/// The result of a reconciliation.
#[derive(Debug)]
pub struct Outcome {
    pub cells: BTreeMap<CellKey, Cell>,
    /// Why the sender's counts were not used.
    pub no_counts: Option<String>,
    /// Hours that are not over for long enough, of all compositions and streams.
    pub too_early: usize,
    /// Rows whose `created` names another hour than the one that was asked for, or no time. They were not compared there.
    pub elsewhere: u64,
    /// The holes that are left: near misses, and what can't become an event. In a dry run also those to be added.
    pub left: Vec<Hole>,
}

impl Outcome {
    pub(super) fn new(scope: &Scope) -> Outcome {
        Outcome {
            cells: BTreeMap::new(),
            no_counts: None,
            too_early: scope.too_early(),
            elsewhere: 0,
            left: Vec::new(),
        }
    }

    pub(super) fn cell(&mut self, key: CellKey) -> &mut Cell {
        self.cells.entry(key).or_default()
    }

    /// Counts what the topics hold in the hours that were examined: composition, stream, slot.
    pub(super) fn count_topics(
        &mut self,
        scope: &Scope,
        ledger: &Ledger,
        examined: &BTreeSet<(u8, Stream, u16)>,
    ) {
        for event in ledger.counted() {
            let (composition, stream) = (event.composition, event.stream);
            if !examined.contains(&(composition, stream, event.slot)) {
                continue;
            }
            let Some(day) = scope.day(event.slot) else {
                continue;
            };
            let cell = self.cell(CellKey {
                day,
                composition,
                stream,
            });
            cell.topics += 1;
            cell.unknown += u64::from(!event.taken);
        }
    }

    /// Counts the holes by what became of them, and keeps those that are left.
    pub(super) fn count_holes(&mut self, holes: Vec<Hole>) {
        for hole in holes {
            let cell = self.cell(hole.key);
            cell.missing += 1;
            match hole.fate {
                Fate::Added => {
                    cell.added += 1;
                    continue;
                }
                Fate::Near => cell.near += 1,
                Fate::Unfit(_) => cell.unfit += 1,
                Fate::ToAdd | Fate::NearToAdd => {}
            }
            self.left.push(hole);
        }
    }

    /// The sum of one number over all days.
    pub fn sum(&self, number: impl Fn(&Cell) -> u64) -> u64 {
        self.cells.values().map(number).sum()
    }
}
