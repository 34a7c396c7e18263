//! What a replay tells: news while it goes on, and what it came to.

use std::collections::BTreeMap;

use super::{joining::Place, verdict::Dead};
use crate::dead_letter::Letter;

/// What happens, as it happens.
pub enum News<'n> {
    /// So many offsets of so many are behind.
    Progress { done: u64, total: u64 },
    /// What a letter became, or of a dry run would become. `None`: one that could not be read.
    Tried {
        place: Place,
        letter: Option<&'n Letter>,
        fate: &'n Fate,
    },
}

/// What a letter became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Replayed {
        /// Where its records went.
        topic: String,
        events: usize,
        /// New dead letters of pieces that are not understood.
        letters: usize,
    },
    Dead(Dead),
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub replayed: u64,
    pub events: u64,
    pub new_letters: u64,
    /// By reason.
    pub dead: BTreeMap<&'static str, u64>,
    /// Letters that the filter does not mean.
    pub passed_over: u64,
    /// Letters without all their parts.
    pub incomplete: u64,
    /// It was stopped before the end of the topic, or came to its limit.
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
