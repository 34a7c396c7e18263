//! The read side of a replay: the dead-letter topic from the group's positions up to the ends that it had at the beginning, and
//! what became of the letters there, to be committed.
//!
//! It begins only after the group's [`ReplayProducer`](crate::kafka::replay_producer::ReplayProducer) has, so no other replay moves the positions that
//! are read.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Options, ReplayError,
    joining::{Found, Joining, Place, Read},
    position::{Position, State},
    tried::Tried,
};
use crate::kafka::{letter_reader::LetterReader, replay_producer::another_replay, session::CommittedOffsets};

/// The default of `offsets.retention.minutes`, but for the hour that Kafka lets a record's timestamp be ahead.
const FORGOTTEN_AFTER: Duration = Duration::from_secs((7 * 24 - 1) * 3600);

/// A group's way through the dead-letter topic.
pub struct Reading<'r> {
    options: &'r Options,
    source: LetterReader,
    positions: BTreeMap<i32, Position>,
    /// What was committed last.
    committed: CommittedOffsets,
    joining: Joining,
    /// Letters whose parts were no longer waited for.
    given_up: u64,
    done: u64,
    total: u64,
}

impl<'r> Reading<'r> {
    /// Reads the positions, and the ends of the topic.
    pub fn begin(options: &'r Options, source: LetterReader) -> Result<Reading<'r>, ReplayError> {
        let mut reading = Reading {
            options,
            committed: source.committed()?,
            source,
            positions: BTreeMap::new(),
            joining: Joining::default(),
            given_up: 0,
            done: 0,
            total: 0,
        };
        reading.find_positions()?;
        Ok(reading)
    }

    fn find_positions(&mut self) -> Result<(), ReplayError> {
        let bounds = self.source.bounds()?;
        let mut unknown = BTreeMap::new();
        let mut ranges = BTreeMap::new();
        for (partition, (first, end)) in bounds {
            let position = match self.committed.get(&partition) {
                Some((offset, metadata)) => Position::committed(*offset, metadata),
                None => {
                    if first < end {
                        unknown.insert(partition, first);
                    }
                    Position::committed(first, "")
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
            // A letter's timestamp says when it came to the topic; no replay can have had it before.
            let then = jiff::Timestamp::now().as_millisecond() - FORGOTTEN_AFTER.as_millis() as i64;
            if let Some(partition) = self.source.any_older(&unknown, then)? {
                let group = self.options.group.clone();
                return Err(ReplayError::Forgotten { group, partition });
            }
        }
        Ok(self.source.assign(&ranges)?)
    }

    /// Where it reads from.
    pub fn source(&self) -> &LetterReader {
        &self.source
    }

    /// Whether the ends have been reached.
    pub fn at_end(&self) -> bool {
        self.source.at_end()
    }

    /// How many records have been read.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// How many offsets there are to read.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Letters without all their parts: at the end also those whose parts might still have come.
    pub fn incomplete(&self) -> u64 {
        match self.at_end() {
            true => self.given_up + self.joining.incomplete() as u64,
            false => self.given_up,
        }
    }

    /// The next letter that is not settled, or what can't be read as one.
    pub fn next(&mut self) -> Result<Option<Read>, ReplayError> {
        let Some(record) = self.source.poll()? else {
            return Ok(None);
        };
        let place = Place::of(&record);
        self.done += 1;
        let Some(position) = self.positions.get_mut(&place.partition) else {
            return Ok(None);
        };
        if !position.read(place.offset) {
            return Ok(None);
        }
        let (found, given_up) = self.joining.take(&record);
        for places in given_up {
            self.given_up += 1;
            self.leave(&places);
        }
        match found {
            // Streams may share a topic.
            Found::Foreign => {
                self.set(&[place], State::Settled);
                Ok(None)
            }
            Found::Part => Ok(None),
            Found::Letter(read) => Ok(Some(read)),
        }
    }

    /// Leaves a letter for the next replay.
    pub fn leave(&mut self, places: &[Place]) {
        self.set(places, State::Left);
    }

    /// Settles a letter that was tried, or leaves it when it stays dead.
    pub fn settle(&mut self, tried: &Tried) {
        let state = match tried.is_dead() && !self.options.give_up {
            true => State::Left,
            false => State::Settled,
        };
        self.set(&tried.places, state);
    }

    fn set(&mut self, places: &[Place], state: State) {
        for place in places {
            if let Some(position) = self.positions.get_mut(&place.partition) {
                position.set(place.offset, state);
            }
        }
    }

    /// The positions as they are to be committed now.
    pub fn to_commit(&self) -> Result<CommittedOffsets, ReplayError> {
        let positions = self.positions.iter().map(|(partition, position)| {
            let position = position.to_commit();
            let position = position.map_err(|_| ReplayError::TooScattered(*partition))?;
            Ok((*partition, position))
        });
        positions.collect()
    }

    /// Says that these positions were committed.
    pub fn committed(&mut self, positions: CommittedOffsets) {
        self.committed = positions;
    }

    /// Fails when another replay of the group has committed something since this one did.
    pub fn check_alone(&self) -> Result<(), ReplayError> {
        if self.source.committed()? != self.committed {
            return Err(another_replay(&self.options.group).into());
        }
        Ok(())
    }

    /// Forgets what the positions need no longer: all that was tried is settled or left.
    pub fn collapse(&mut self) {
        for position in self.positions.values_mut() {
            position.collapse();
        }
    }
}
