//! What a replay is told.

use crate::{
    config::Kafka,
    dead_letter::{Letter, Reason},
};

/// Which letters are replayed, by whom, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The consumer group with the position.
    pub group: String,
    pub filter: Filter,
    /// Most letters to try.
    pub limit: Option<u64>,
    /// Most letters in a transaction.
    pub batch: usize,
    /// Writes nothing and moves no position.
    pub dry_run: bool,
    /// Without a position, old letters were certainly not replayed before.
    pub from_beginning: bool,
    /// What stays dead is settled, too.
    pub give_up: bool,
}

impl Options {
    /// The group of replays that name none.
    pub fn default_group(kafka: &Kafka) -> String {
        format!("{}.replay", kafka.id_prefix)
    }
}

/// Which letters are meant.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of these reasons; of any when there is none.
    pub reasons: Vec<Reason>,
    /// Received then or later, in microseconds since the Unix epoch.
    pub since_micros: Option<i64>,
}

impl Filter {
    /// Whether a letter is meant.
    pub fn passes(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && self
                .since_micros
                .is_none_or(|since| letter.received_at_micros >= since)
    }
}
