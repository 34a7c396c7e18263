//! Options of a replay.

use crate::{
    config::Kafka,
    dead_letter::{Letter, Reason},
};

/// Which letters are replayed, for which group, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// The consumer group that has the position.
    pub group: String,
    pub filter: LetterFilter,
    /// Maximum number of letters to try.
    pub limit: Option<u64>,
    /// Maximum number of letters in a transaction.
    pub batch: usize,
    /// Writes nothing and moves no position.
    pub dry_run: bool,
    /// Where the group has no position, the operator says that nothing was replayed before.
    pub from_beginning: bool,
    /// Settles letters that stay dead, too.
    pub give_up: bool,
}

impl ReplayOptions {
    /// The group of a replay that names none.
    pub fn default_group(kafka: &Kafka) -> String {
        format!("{}.replay", kafka.id_prefix)
    }
}

/// Selects letters.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    /// These reasons; when empty, any.
    pub reasons: Vec<Reason>,
    /// Received at this time or later, in microseconds since the Unix epoch.
    pub since_micros: Option<i64>,
}

impl LetterFilter {
    /// Whether a letter is selected.
    pub fn passes(&self, letter: &Letter) -> bool {
        (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && self
                .since_micros
                .is_none_or(|since| letter.received_at_micros >= since)
    }
}
