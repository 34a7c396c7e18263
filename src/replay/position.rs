//! How far a group has come in a partition of the dead-letter topic, and which letters it has left for later.
//!
//! The committed offset is the first one that no replay has looked at. Its metadata lists the runs of records below it whose
//! letters are left: still dead, not selected, or incomplete. Everything else below it is settled and never looked at again.
//! So a letter is delivered once, however often it is tried. If the metadata were lost, letters that are left would be
//! forgotten, but nothing would be delivered twice.
//!
//! ```text
//! metadata = "left " run *( "," run )      empty when nothing is left
//! run      = gap "+" length                gap: offsets from the end of the run before (or from 0), both decimal
//! ```
//!
//! A run also covers offsets between its letters that are transaction markers or other records.

use std::collections::{BTreeMap, btree_map::Entry};

/// Maximum length of the metadata in bytes. The broker's `offset.metadata.max.bytes` is 4,096 by default.
const MOST: usize = 4000;

const LEFT: &str = "left ";

/// A run of offsets: the first, and the one after the last.
type Run = (i64, i64);

/// What became of a record's letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// Never to be looked at again.
    Settled,
    Left,
    /// Part of a letter whose other parts may still come. Counts as left.
    Open,
}

/// A partition's position, as it was committed and as it moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionPosition {
    /// As committed: offsets below are settled, except those in `left`.
    next: i64,
    left: Vec<Run>,
    /// Offsets below this have been read, from [`PartitionPosition::start`] on.
    read: i64,
    /// The states of those records. Of equal states in a row, only the first and the last need be here.
    found: BTreeMap<i64, RecordState>,
}

/// The metadata would be longer than Kafka keeps.
#[derive(Debug, PartialEq, Eq)]
pub struct TooScattered;

impl PartitionPosition {
    /// The position that Kafka has. Metadata in another format counts as none.
    pub fn committed(offset: i64, metadata: &str) -> PartitionPosition {
        PartitionPosition {
            next: offset,
            left: decode(metadata).unwrap_or_default(),
            ..PartitionPosition::default()
        }
    }

    /// Where reading begins.
    pub fn start(&self) -> i64 {
        self.left.first().map_or(self.next, |run| run.0.min(self.next))
    }

    /// Takes the next record of the partition. Returns whether its letter must still be tried; it is open until it is set.
    pub fn read(&mut self, offset: i64) -> bool {
        let left = self.left.partition_point(|run| run.1 <= offset);
        let wanted = offset >= self.next || self.left.get(left).is_some_and(|run| run.0 <= offset);
        self.read = offset + 1;
        let state = if wanted {
            RecordState::Open
        } else {
            RecordState::Settled
        };
        self.found.insert(offset, state);
        wanted
    }

    /// Sets the state of a record that was read.
    pub fn set(&mut self, offset: i64, state: RecordState) {
        if let Entry::Occupied(mut found) = self.found.entry(offset) {
            found.insert(state);
        }
    }

    /// Offset and metadata to commit.
    ///
    /// # Errors
    /// The metadata would be longer than Kafka keeps.
    pub fn to_commit(&self) -> Result<(i64, String), TooScattered> {
        let mut runs: Vec<Run> = Vec::new();
        let mut joins = false;
        for (offset, state) in &self.found {
            let left = *state != RecordState::Settled;
            match runs.last_mut() {
                Some(run) if left && joins => run.1 = offset + 1,
                _ if left => runs.push((*offset, offset + 1)),
                _ => {}
            }
            joins = left;
        }
        // Left by an earlier replay, and not read again yet.
        for run in &self.left {
            let from = run.0.max(self.read);
            if from < run.1 {
                runs.push((from, run.1));
            }
        }
        let metadata = encode(&runs);
        match metadata.len() <= MOST {
            true => Ok((self.next.max(self.read), metadata)),
            false => Err(TooScattered),
        }
    }

    /// Forgets records between two of the same state, which add nothing to a run. Afterwards only open ones can be set.
    pub fn collapse(&mut self) {
        let states: Vec<(i64, RecordState)> = self
            .found
            .iter()
            .map(|(offset, state)| (*offset, *state))
            .collect();
        for three in states.windows(3) {
            let [(_, before), (offset, state), (_, after)] = three else {
                continue;
            };
            if *state != RecordState::Open && before == state && state == after {
                self.found.remove(offset);
            }
        }
    }
}

fn encode(runs: &[Run]) -> String {
    let mut text = String::new();
    let mut end = 0;
    for (first, last) in runs {
        text += if text.is_empty() { LEFT } else { "," };
        text += &format!("{}+{}", first - end, last - first);
        end = *last;
    }
    text
}

fn decode(metadata: &str) -> Option<Vec<Run>> {
    let mut end: i64 = 0;
    let mut runs = Vec::new();
    for run in metadata.strip_prefix(LEFT)?.split(',') {
        let (gap, length) = run.split_once('+')?;
        let (gap, length): (u64, u64) = (gap.parse().ok()?, length.parse().ok()?);
        let first = end.checked_add_unsigned(gap)?;
        end = first.checked_add_unsigned(length)?;
        runs.push((first, end));
    }
    Some(runs)
}

#[cfg(test)]
mod tests {
    use super::{RecordState::*, *};

    /// Reads these records, and gives what is to be committed then.
    fn committed(position: &mut PartitionPosition, records: &[(i64, RecordState)]) -> (i64, String) {
        for (offset, state) in records {
            assert!(position.read(*offset), "{offset}");
            position.set(*offset, *state);
        }
        position.to_commit().unwrap()
    }

    #[test]
    fn what_is_left_comes_again_and_the_rest_does_not() {
        let mut position = PartitionPosition::committed(3, "");
        assert_eq!(position.start(), 3);
        // 6 is a transaction marker, between two that are left.
        let records = [
            (3, Settled),
            (4, Left),
            (5, Left),
            (7, Left),
            (8, Settled),
            (9, Open),
        ];
        let (offset, metadata) = committed(&mut position, &records);
        assert_eq!((offset, &*metadata), (10, "left 4+4,1+1"));

        let mut again = PartitionPosition::committed(offset, &metadata);
        assert_eq!(again.start(), 4);
        for (offset, wanted) in [(4, true), (5, true), (7, true), (8, false), (9, true), (11, true)] {
            assert_eq!(again.read(offset), wanted, "{offset}");
            if wanted {
                again.set(offset, Settled);
            }
        }
        assert_eq!(again.to_commit(), Ok((12, String::new())));
    }

    #[test]
    fn what_was_left_stays_so_until_it_is_read_again() {
        let mut position = PartitionPosition::committed(100, "left 10+1,5+20");
        assert_eq!(position.to_commit(), Ok((100, "left 10+1,5+20".to_owned())));
        assert!(position.read(10));
        position.set(10, Settled);
        assert_eq!(position.to_commit(), Ok((100, "left 16+20".to_owned())));
        assert!(position.read(16));
        position.set(16, Left);
        assert!(position.read(17));
        position.set(17, Settled);
        let (offset, metadata) = position.to_commit().unwrap();
        assert_eq!((offset, &*metadata), (100, "left 16+1,1+18"));
        // What retention has deleted meanwhile is gone from the metadata as well.
        let mut later = PartitionPosition::committed(offset, &metadata);
        assert!(later.read(30));
        later.set(30, Left);
        assert_eq!(later.to_commit(), Ok((100, "left 30+1,0+5".to_owned())));
    }

    #[test]
    fn a_part_is_settled_when_its_letter_is() {
        let mut position = PartitionPosition::default();
        let records: Vec<(i64, RecordState)> = (0..100).map(|offset| (offset, Left)).collect();
        committed(&mut position, &records);
        assert!(position.read(100));
        assert!(position.read(101));
        position.set(101, Left);
        position.collapse();
        assert_eq!(position.to_commit(), Ok((102, "left 0+102".to_owned())));
        position.set(100, Settled);
        assert_eq!(position.to_commit(), Ok((102, "left 0+100,1+1".to_owned())));
        position.collapse();
        assert_eq!(position.to_commit(), Ok((102, "left 0+100,1+1".to_owned())));
        assert!(position.found.len() < 6, "{:?}", position.found);
    }

    #[test]
    fn metadata_has_a_limit() {
        let mut position = PartitionPosition::default();
        for offset in 0..3000 {
            position.read(offset);
            position.set(offset, if offset % 2 == 0 { Left } else { Settled });
        }
        assert_eq!(position.to_commit(), Err(TooScattered));
        let mut position = PartitionPosition::default();
        for offset in 0..1800 {
            position.read(offset);
            position.set(offset, if offset % 2 == 0 { Left } else { Settled });
        }
        let (offset, metadata) = position.to_commit().unwrap();
        let mut again = PartitionPosition::committed(offset, &metadata);
        assert!((0..1800).all(|offset| again.read(offset) == (offset % 2 == 0)));
    }

    #[test]
    fn foreign_metadata_is_none() {
        for text in [
            "",
            "left ",
            "left x",
            "left 1",
            "left 1+-2",
            "left 9223372036854775807+1",
            "1+1",
        ] {
            assert_eq!(PartitionPosition::committed(7, text).start(), 7, "{text}");
        }
    }
}
