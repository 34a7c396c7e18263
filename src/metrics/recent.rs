//! Answers that no number gives an operator: why a lane is blocked, and the reasons for the last dead letters.
//!
//! Both are bounded. The text is the one in the log: it names topics, groups, brokers, files and settings, but no credential.
//! Only the reason and the place of a dead letter are kept, never a byte of its contents.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::labels::BlockReason;
use crate::{
    clock,
    dead_letter::{Failure, Reason},
    stream::Stream,
};

/// The number of dead letters that are remembered.
const MOST_LETTERS: usize = 20;
/// A longer text is cut; the log has all of it.
const MOST_TEXT: usize = 2000;

/// Why a lane is blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub reason: BlockReason,
    /// What is wrong.
    pub cause: String,
    /// What to do; may be empty.
    pub cure: String,
    /// When it was blocked; times are microseconds since the Unix epoch.
    pub since_micros: i64,
    /// When it failed last.
    pub last_micros: i64,
}

/// Whether and why one lane is blocked.
#[derive(Debug, Default)]
pub struct Blockade(Mutex<Option<Blocked>>);

impl Blockade {
    /// The lane failed, perhaps once more while it was blocked.
    pub fn blocked(&self, reason: BlockReason, cause: &str, cure: &str) {
        let now = clock::unix_micros();
        let mut blocked = self.0.lock();
        let since_micros = blocked.as_ref().map_or(now, |before| before.since_micros);
        *blocked = Some(Blocked {
            reason,
            cause: cause.chars().take(MOST_TEXT).collect(),
            cure: cure.chars().take(MOST_TEXT).collect(),
            since_micros,
            last_micros: now,
        });
    }

    /// The lane continues.
    pub fn free(&self) {
        *self.0.lock() = None;
    }

    /// Why it is blocked now, if it is.
    pub fn get(&self) -> Option<Blocked> {
        self.0.lock().clone()
    }
}

/// Something that is refused until it is corrected: a file of credentials, or the TLS certificate with its key.
#[derive(Debug, Default)]
pub struct Refused(Mutex<Vec<RefusedFile>>);

/// One file, or pair of files, that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFile {
    pub file: String,
    /// As in the log; it names the file.
    pub cause: String,
    /// Microseconds since the Unix epoch.
    pub since_micros: i64,
}

impl Refused {
    /// The file is refused, perhaps once more.
    pub fn refuse(&self, file: &str, cause: &str) {
        let mut refused = self.0.lock();
        match refused.iter_mut().find(|one| one.file == file) {
            Some(one) => cause.clone_into(&mut one.cause),
            None => refused.push(RefusedFile {
                file: file.to_owned(),
                cause: cause.to_owned(),
                since_micros: clock::unix_micros(),
            }),
        }
    }

    /// The file is in use.
    pub fn accept(&self, file: &str) {
        self.0.lock().retain(|one| one.file != file);
    }

    /// What is refused now.
    pub fn get(&self) -> Vec<RefusedFile> {
        self.0.lock().clone()
    }
}

/// Counts what happens, and remembers when it happened last.
#[derive(Debug, Default)]
pub struct CountedWithTime {
    count: AtomicU64,
    last_micros: AtomicI64,
}

impl CountedWithTime {
    pub fn count(&self) {
        self.last_micros.store(clock::unix_micros(), Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often, and when last in microseconds since the Unix epoch.
    pub fn get(&self) -> (u64, i64) {
        let count = self.count.load(Ordering::Relaxed);
        (count, self.last_micros.load(Ordering::Relaxed))
    }
}

/// Dead letters of one webhook or transaction for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecentLetter {
    /// Microseconds since the Unix epoch.
    pub at_micros: i64,
    pub reason: Reason,
    /// The stream of the events beside it, where there is one.
    pub stream: Option<Stream>,
    /// The index of the first one.
    pub index: Option<usize>,
    pub count: usize,
}

/// The last dead letters.
#[derive(Debug, Default)]
pub struct RecentLetters(Mutex<VecDeque<RecentLetter>>);

impl RecentLetters {
    /// Notes the failures of one webhook or transaction, a line for each reason.
    pub fn note(&self, stream: Option<Stream>, failures: &[Failure]) {
        if failures.is_empty() {
            return;
        }
        let at_micros = clock::unix_micros();
        let mut lines: Vec<RecentLetter> = Vec::new();
        for Failure { reason, index } in failures {
            match lines.iter_mut().find(|line| line.reason == *reason) {
                Some(line) => line.count += 1,
                None => lines.push(RecentLetter {
                    at_micros,
                    reason: *reason,
                    stream,
                    index: *index,
                    count: 1,
                }),
            }
        }
        let mut letters = self.0.lock();
        letters.extend(lines);
        let surplus = letters.len().saturating_sub(MOST_LETTERS);
        letters.drain(..surplus);
    }

    /// The remembered ones, the newest first.
    pub fn get(&self) -> Vec<RecentLetter> {
        self.0.lock().iter().rev().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blockade_lasts_from_its_first_failure() {
        let blockade = Blockade::default();
        blockade.blocked(BlockReason::Connect, "first", "wait");
        let since = blockade.get().unwrap().since_micros;
        blockade.blocked(BlockReason::Authentication, &"é".repeat(MOST_TEXT + 1), "");
        let blocked = blockade.get().unwrap();
        assert_eq!(
            (blocked.reason, blocked.since_micros),
            (BlockReason::Authentication, since)
        );
        assert!(blocked.last_micros >= since);
        assert_eq!(blocked.cause.chars().count(), MOST_TEXT);
        blockade.free();
        assert_eq!(blockade.get(), None);
    }

    #[test]
    fn a_file_is_refused_from_its_first_fault_until_it_is_accepted() {
        let refused = Refused::default();
        refused.refuse("a", "empty");
        refused.refuse("b", "missing");
        let since = refused.get()[0].since_micros;
        refused.refuse("a", "a duplicate");
        let found = refused.get();
        assert_eq!((found.len(), found[0].since_micros), (2, since));
        assert_eq!(found[0].cause, "a duplicate");
        refused.accept("a");
        assert_eq!(refused.get()[0].file, "b");
    }

    #[test]
    fn one_bad_webhook_does_not_push_out_all_others() {
        let letters = RecentLetters::default();
        letters.note(None, &[Failure::whole(Reason::InvalidJson)]);
        let failure = |reason, index| Failure {
            reason,
            index: Some(index),
        };
        let mut many: Vec<_> = (7..5000)
            .map(|index| failure(Reason::ElementNotObject, index))
            .collect();
        many.push(failure(Reason::ReservedMember, 5000));
        letters.note(Some(Stream::Bounces), &many);
        let lines: Vec<_> = letters
            .get()
            .iter()
            .map(|l| (l.reason, l.stream, l.index, l.count))
            .collect();
        assert_eq!(
            lines,
            [
                (Reason::ReservedMember, Some(Stream::Bounces), Some(5000), 1),
                (Reason::ElementNotObject, Some(Stream::Bounces), Some(7), 4993),
                (Reason::InvalidJson, None, None, 1),
            ]
        );
        for _ in 0..100 {
            letters.note(None, &[Failure::whole(Reason::InvalidForm)]);
        }
        let kept = letters.get();
        assert_eq!(kept.len(), MOST_LETTERS);
        assert!(kept.iter().all(|letter| letter.reason == Reason::InvalidForm));
    }
}
