//! What a replay reports: updates while it runs, and a summary.

use std::collections::BTreeMap;

use super::{assembly::RecordPlace, reprocess::Dead};
use crate::dead_letter::Letter;

/// Something that a replay has done.
pub enum Update<'u> {
    /// It has read `done` offsets of `total`.
    Progress { done: u64, total: u64 },
    /// A letter became this, or would in a dry run. `letter` is `None` if it could not be read.
    Tried {
        place: RecordPlace,
        letter: Option<&'u Letter>,
        fate: &'u Fate,
    },
}

/// What a letter became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Replayed {
        /// Where its records went.
        topic: String,
        events: usize,
        /// New dead letters, for pieces that are not understood.
        letters: usize,
    },
    Dead(Dead),
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub replayed: u64,
    pub events: u64,
    pub new_letters: u64,
    /// Letters that stay dead, by reason.
    pub dead: BTreeMap<&'static str, u64>,
    /// Letters that do not pass the filter.
    pub passed_over: u64,
    /// Letters that lack parts.
    pub incomplete: u64,
    /// It was stopped or reached its limit before the end of the topic.
    pub ended_early: bool,
}

impl Summary {
    /// Counts a letter that was tried.
    pub(super) fn count(&mut self, fate: &Fate) {
        match fate {
            Fate::Dead(dead) => *self.dead.entry(dead.reason).or_default() += 1,
            Fate::Replayed { events, letters, .. } => {
                self.replayed += 1;
                self.events += *events as u64;
                self.new_letters += *letters as u64;
            }
        }
    }
}
