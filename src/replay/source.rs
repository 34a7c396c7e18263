//! The read side of a replay: reads the dead-letter topic from the group's positions up to the ends that it had at the
//! beginning, and keeps the positions to be committed.
//!
//! It begins only after the group's [`ToolProducer`](crate::kafka::tool_producer::ToolProducer), so no other replay
//! moves the positions that are read.

use std::{collections::BTreeMap, time::Duration};

use super::{
    assembly::{Assembled, Assembly, ReadLetter, RecordPlace},
    attempt::Attempt,
    error::ReplayError,
    options::ReplayOptions,
    position::{PartitionPosition, RecordState},
};
use crate::kafka::{range_reader::RangeReader, session::CommittedOffsets, tool_producer::another_run};

/// The default of `offsets.retention.minutes`, less the hour by which Kafka lets a record's timestamp be ahead.
const FORGOTTEN_AFTER: Duration = Duration::from_secs((7 * 24 - 1) * 3600);

/// A group's way through the dead-letter topic.
pub struct Source<'r> {
    options: &'r ReplayOptions,
    reader: RangeReader,
    positions: BTreeMap<i32, PartitionPosition>,
    /// The positions that were committed last.
    committed: CommittedOffsets,
    assembly: Assembly,
    /// Letters whose missing parts are not waited for any more.
    given_up: u64,
    done: u64,
    total: u64,
}

impl<'r> Source<'r> {
    /// Reads the positions and the ends of the topic.
    ///
    /// # Errors
    /// Kafka is not available, or the position may have been forgotten.
    pub fn begin(options: &'r ReplayOptions, reader: RangeReader) -> Result<Source<'r>, ReplayError> {
        let mut source = Source {
            options,
            committed: reader.committed()?,
            reader,
            positions: BTreeMap::new(),
            assembly: Assembly::default(),
            given_up: 0,
            done: 0,
            total: 0,
        };
        source.find_positions()?;
        Ok(source)
    }

    fn find_positions(&mut self) -> Result<(), ReplayError> {
        let bounds = self.reader.bounds()?;
        let mut unknown = BTreeMap::new();
        let mut ranges = BTreeMap::new();
        for (partition, (first, end)) in bounds {
            let position = match self.committed.get(&partition) {
                Some((offset, metadata)) => PartitionPosition::committed(*offset, metadata),
                None => {
                    if first < end {
                        unknown.insert(partition, first);
                    }
                    PartitionPosition::committed(first, "")
                }
            };
            let start = position.start().max(first);
            if start < end {
                ranges.insert(partition, (start, end));
                self.total += (end - start) as u64;
            }
            self.positions.insert(partition, position);
        }
        if !unknown.is_empty() && !self.options.from_beginning {
            // A record's timestamp says when it came to the topic. No replay can have had it before.
            let then = jiff::Timestamp::now().as_millisecond() - FORGOTTEN_AFTER.as_millis() as i64;
            if let Some(partition) = self.reader.any_older(&unknown, then)? {
                let group = self.options.group.clone();
                return Err(ReplayError::Forgotten { group, partition });
            }
        }
        Ok(self.reader.assign(&ranges)?)
    }

    /// The reader of the topic.
    pub fn reader(&self) -> &RangeReader {
        &self.reader
    }

    /// Whether the ends have been reached.
    pub fn at_end(&self) -> bool {
        self.reader.at_end()
    }

    /// How many records have been read.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The number of offsets to read.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Letters that lack parts; those whose parts may still come are counted only at the end.
    pub fn incomplete(&self) -> u64 {
        match self.at_end() {
            true => self.given_up + self.assembly.incomplete() as u64,
            false => self.given_up,
        }
    }

    /// The next letter that is not settled, or a record that can't be read as one.
    ///
    /// # Errors
    /// The topic can't be read.
    pub fn next(&mut self) -> Result<Option<ReadLetter>, ReplayError> {
        let Some(record) = self.reader.poll()? else {
            return Ok(None);
        };
        let place = RecordPlace::of(&record);
        self.done += 1;
        let Some(position) = self.positions.get_mut(&place.partition) else {
            return Ok(None);
        };
        if !position.read(place.offset) {
            return Ok(None);
        }
        let (found, given_up) = self.assembly.take(&record);
        for places in given_up {
            self.given_up += 1;
            self.leave(&places);
        }
        match found {
            // Streams may share a topic.
            Assembled::Foreign => {
                self.set(&[place], RecordState::Settled);
                Ok(None)
            }
            Assembled::Part => Ok(None),
            Assembled::Letter(read) => Ok(Some(read)),
        }
    }

    /// Leaves a letter for the next replay.
    pub fn leave(&mut self, places: &[RecordPlace]) {
        self.set(places, RecordState::Left);
    }

    /// Settles the letter of an attempt, or leaves it when it stays dead.
    pub fn settle(&mut self, attempt: &Attempt) {
        let state = match attempt.is_dead() && !self.options.give_up {
            true => RecordState::Left,
            false => RecordState::Settled,
        };
        self.set(&attempt.places, state);
    }

    fn set(&mut self, places: &[RecordPlace], state: RecordState) {
        for place in places {
            if let Some(position) = self.positions.get_mut(&place.partition) {
                position.set(place.offset, state);
            }
        }
    }

    /// The positions to be committed now.
    ///
    /// # Errors
    /// A position would be longer than Kafka keeps.
    pub fn to_commit(&self) -> Result<CommittedOffsets, ReplayError> {
        let positions = self.positions.iter().map(|(partition, position)| {
            let position = position.to_commit();
            let position = position.map_err(|_| ReplayError::TooScattered(*partition))?;
            Ok((*partition, position))
        });
        positions.collect()
    }

    /// Takes note that these positions were committed.
    pub fn committed(&mut self, positions: CommittedOffsets) {
        self.committed = positions;
    }

    /// Checks that no other replay of the group has committed anything since this one did.
    ///
    /// # Errors
    /// One has, or the positions can't be read.
    pub fn check_alone(&self) -> Result<(), ReplayError> {
        if self.reader.committed()? != self.committed {
            return Err(another_run(&self.options.group).into());
        }
        Ok(())
    }

    /// Forgets what the positions no longer need, once every attempt is settled or left.
    pub fn collapse(&mut self) {
        for position in self.positions.values_mut() {
            position.collapse();
        }
    }
}
