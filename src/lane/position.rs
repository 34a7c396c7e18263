//! How far a position in Kafka can be trusted: the history committed with it is compared with the log's own.
//!
//! The metadata of a committed offset is text: `v1`, and then for each of the last incarnations that wrote sequences below
//! the position a space and `<incarnation, 16 hex digits>:<first sequence>`. The oldest comes first; there are at most 16.
//!
//! An incarnation is a random number that belongs to one opening of one log. Everything before its first sequence is fixed at
//! that moment. So two histories that agree on who wrote a sequence agree on everything before it.

use crate::spool::{History, Incarnation, Seq};

const VERSION: &str = "v1";
const MAX_ENTRIES: usize = 16;

/// The metadata for a position of a log with this history.
pub fn metadata(history: &History, position: Seq) -> String {
    let below = history.entries().partition_point(|(_, first)| *first < position);
    let entries = &history.entries()[below.saturating_sub(MAX_ENTRIES)..below];
    let mut text = String::from(VERSION);
    for (incarnation, first) in entries {
        text.push_str(&format!(" {:016x}:{first}", incarnation.0));
    }
    text
}

/// The largest position up to which log and metadata attribute every sequence to the same incarnation; at most `committed`
/// and the log's `end`. `Seq(0)` when they have nothing in common.
pub fn agreed(history: &History, end: Seq, committed: Seq, metadata: &str) -> Seq {
    let ours = history.entries();
    let theirs = parse(metadata);
    let end = end.min(committed);
    let (Some((_, our_first)), Some((_, their_first))) = (ours.first(), theirs.first()) else {
        return Seq(0);
    };
    let known_from = (*our_first).max(*their_first);
    if known_from >= end {
        return Seq(0);
    }
    let writer = |entries: &[(Incarnation, Seq)], seq: Seq| {
        let index = entries.partition_point(|(_, first)| *first <= seq);
        entries[index - 1].0
    };
    // The writer changes only where an entry of either history begins.
    let mut changes: Vec<Seq> = ours
        .iter()
        .chain(&theirs)
        .map(|(_, first)| *first)
        .filter(|first| *first > known_from && *first < end)
        .collect();
    changes.push(known_from);
    changes.sort_unstable();
    match changes
        .into_iter()
        .find(|seq| writer(ours, *seq) != writer(&theirs, *seq))
    {
        Some(differs) if differs == known_from => Seq(0),
        Some(differs) => differs,
        None => end,
    }
}

/// The entries of a metadata text; none when it has another format.
fn parse(metadata: &str) -> Vec<(Incarnation, Seq)> {
    let mut words = metadata.split(' ');
    if words.next() != Some(VERSION) {
        return Vec::new();
    }
    let entries: Option<Vec<_>> = words
        .map(|word| {
            let (incarnation, first) = word.split_once(':')?;
            let incarnation = u64::from_str_radix(incarnation, 16).ok()?;
            Some((Incarnation(incarnation), Seq(first.parse().ok()?)))
        })
        .collect();
    entries
        .filter(|entries| entries.is_sorted_by(|a, b| a.1 < b.1))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(u64, u64)]) -> History {
        entries.iter().fold(History::default(), |history, (who, first)| {
            history.then(Incarnation(*who), Seq(*first))
        })
    }

    #[test]
    fn a_position_of_this_log_is_worth_all_of_it() {
        let log = history(&[(1, 0), (2, 10), (3, 20)]);
        for committed in [0, 1, 10, 11, 20, 25] {
            let text = metadata(&log, Seq(committed));
            let worth = agreed(&log, Seq(25), Seq(committed), &text);
            assert_eq!(worth, Seq(committed), "{text}");
        }
    }

    #[test]
    fn later_opens_change_nothing() {
        let text = metadata(&history(&[(1, 0), (2, 10)]), Seq(15));
        let later = history(&[(1, 0), (2, 10), (3, 15), (4, 18)]);
        assert_eq!(agreed(&later, Seq(30), Seq(15), &text), Seq(15));
    }

    #[test]
    fn other_lives_of_the_directory() {
        // The original went on as incarnation 2 from 10 and as 3 from 30, and Kafka has 40.
        let original = metadata(&history(&[(1, 0), (2, 10), (3, 30)]), Seq(40));
        for (what, log, end, worth) in [
            (
                "a copy taken at 20, opened as 9",
                history(&[(1, 0), (2, 10), (9, 20)]),
                60,
                20,
            ),
            ("a snapshot taken at 5", history(&[(1, 0), (9, 5)]), 60, 5),
            (
                "a lost tail: the end was 35",
                history(&[(1, 0), (2, 10), (3, 30), (9, 35)]),
                35,
                35,
            ),
            ("another log altogether", history(&[(8, 0), (9, 5)]), 60, 0),
            (
                "old enough to share nothing that is known",
                history(&[(9, 50)]),
                60,
                0,
            ),
            ("an empty history", History::default(), 60, 0),
        ] {
            assert_eq!(agreed(&log, Seq(end), Seq(40), &original), Seq(worth), "{what}");
        }
    }

    #[test]
    fn a_foreign_or_broken_metadata_is_worth_nothing() {
        let log = history(&[(1, 0)]);
        for text in [
            "",
            "v2 0000000000000001:0",
            "v1 1",
            "v1 x:0",
            "v1 1:5 1:5",
            "hello",
        ] {
            assert_eq!(agreed(&log, Seq(9), Seq(5), text), Seq(0), "{text:?}");
        }
    }

    #[test]
    fn metadata_stays_small_and_still_worth_the_position() {
        let long = history(&(0..100).map(|n| (n + 1, n * 3)).collect::<Vec<_>>());
        let text = metadata(&long, Seq(299));
        assert!(text.len() < 1024, "{}", text.len());
        assert_eq!(agreed(&long, Seq(400), Seq(299), &text), Seq(299));
    }
}
