//! Tries dead letters again, and delivers those that are now understood, exactly once.
//!
//! 1. The group's [`ToolProducer`] begins. It shuts out every other replay of the group and ends its open transaction.
//! 2. Only then does the replay read the group's positions, and the ends of the topic. New dead letters that this replay makes
//!    lie beyond those ends and are left to the next one.
//! 3. It gathers letters in each partition's order and [reprocesses](reprocess) each. What a letter becomes, and the positions
//!    that settle it, go into one transaction. So whenever the replay is killed, a letter's records are written once or not yet.
//! 4. Letters that stay dead are not written again. The [position] leaves them for the next replay, like letters that were
//!    not selected or that lack parts at the end of the topic.
//! 5. When Kafka refuses a record, its letter stays dead as a whole. Any other error ends the replay, which can be run again.
//!
//! As in a lane, a record's timestamp is the time it is sent; `cmc-received-at` is unchanged. A body that is understood except
//! for some of its pieces leaves new dead letters, as it does in the server.
//!
//! Kafka forgets the position of a group that commits nothing for `offsets.retention.minutes` (7 days). A replay that finds no
//! position continues only if all letters arrived on the topic later than that, because then no forgotten replay can have had
//! them, or if the operator says that there was none. Every transaction commits the positions of all partitions, and a replay that
//! finds nothing to do commits them too.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`options`] | which letters are replayed, and how |
//! | [`source`] | the read side: reads letters from the group's positions on, and tracks which are settled |
//! | [`assembly`] | puts the records of a letter together |
//! | [`position`] | how far a group has come in a partition, and what it left |
//! | [`attempt`] | a reprocessed letter, and the records that it became |
//! | [`reprocess`] | what a letter becomes, by the server's own code |
//! | [`sink`] | the write side: makes transactions, and handles refusals |
//! | [`updates`] | what a replay reports |
//! | [`error`] | why it ends early |

pub mod assembly;
mod attempt;
mod error;
mod options;
pub mod position;
pub mod reprocess;
mod sink;
mod source;
mod updates;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::runtime::Handle;

use self::{attempt::Attempt, sink::Sink, source::Source};
pub use self::{
    error::ReplayError,
    options::{LetterFilter, ReplayOptions},
    updates::{Fate, Summary, Update},
};
use crate::{
    cmc::Rules,
    config::Config,
    kafka::{range_reader::RangeReader, tool_producer::ToolProducer},
    stream::Stream,
};

/// A transaction ends after this many records, even if few of them are selected letters.
const MOST_LOOKED_AT: u64 = 50_000;

/// A replay under way.
pub struct Replay<'r> {
    config: &'r Config,
    options: &'r ReplayOptions,
    rules: Rules,
    source: Source<'r>,
    /// `None` in a dry run.
    sink: Option<Sink<'r>>,
    tried: u64,
    summary: Summary,
}

impl<'r> Replay<'r> {
    /// Connects, and shuts out other replays of the group, unless this is a dry run.
    ///
    /// # Errors
    /// Kafka is not available, or the group's position may have been forgotten.
    pub fn begin(
        config: &'r Config,
        options: &'r ReplayOptions,
        runtime: &Handle,
    ) -> Result<Replay<'r>, ReplayError> {
        let dead_letters = &config.stream(Stream::DeadLetters).topic;
        let reader = RangeReader::open(
            &config.kafka,
            Stream::DeadLetters,
            "replay",
            &options.group,
            dead_letters,
        )?;
        let enabled = config.streams.iter().filter(|stream| stream.enabled);
        let topics: Vec<&str> = enabled.map(|stream| stream.topic.as_str()).collect();
        let id = format!("{}.replay.{}", config.kafka.id_prefix, options.group);
        let sink = match options.dry_run {
            true => None,
            false => Some(Sink::new(
                config,
                ToolProducer::begin(&reader, id, &topics, runtime)?,
            )),
        };
        Ok(Replay {
            config,
            options,
            rules: config.rules(),
            source: Source::begin(options, reader)?,
            sink,
            tried: 0,
            summary: Summary::default(),
        })
    }

    /// Replays up to the ends that the topic had at the beginning. `stop` ends it after the current transaction.
    ///
    /// # Errors
    /// See [`ReplayError`]; and those of `report`.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Update<'_>) -> io::Result<()>,
    ) -> Result<Summary, ReplayError> {
        loop {
            let mut batch = self.gather(stop)?;
            match &mut self.sink {
                Some(sink) => sink.write(&mut batch, &mut self.source)?,
                // A dry run fails when the positions could not be committed.
                None => drop(self.source.to_commit()?),
            }
            self.source.collapse();
            for attempt in &batch {
                self.report(attempt, report)?;
            }
            let (done, total) = (self.source.done(), self.source.total());
            report(Update::Progress {
                done: done.min(total),
                total,
            })?;
            let early = stop.load(Ordering::Relaxed) || self.limit_reached();
            if self.source.at_end() || early {
                self.summary.ended_early = !self.source.at_end();
                self.summary.incomplete = self.source.incomplete();
                return Ok(self.summary);
            }
        }
    }

    fn limit_reached(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.tried >= limit)
    }

    /// Attempts the next letters.
    fn gather(&mut self, stop: &AtomicBool) -> Result<Vec<Attempt>, ReplayError> {
        let kafka = &self.config.kafka;
        let mut batch = Vec::new();
        let (mut bytes, mut events) = (0, 0);
        let most = self.source.done() + MOST_LOOKED_AT;
        while !self.source.at_end()
            // Records that are no letters, or not selected, add nothing to the batch, but the position must move on.
            && self.source.done() < most
            && !self.limit_reached()
            && !stop.load(Ordering::Relaxed)
            && batch.len() < self.options.batch
            && bytes < kafka.transaction_bytes
            && events < kafka.transaction_events
        {
            let Some(read) = self.source.next()? else {
                continue;
            };
            if let Ok(letter) = &*read.letter
                && !self.options.filter.passes(letter)
            {
                self.summary.passed_over += 1;
                self.source.leave(&read.places);
                continue;
            }
            let attempt = Attempt::new(read, &self.rules);
            self.source.settle(&attempt);
            self.tried += 1;
            bytes += attempt.bytes();
            events += attempt.events();
            batch.push(attempt);
        }
        Ok(batch)
    }

    fn report(
        &mut self,
        attempt: &Attempt,
        report: &mut dyn FnMut(Update<'_>) -> io::Result<()>,
    ) -> Result<(), ReplayError> {
        let fate = attempt.fate(self.config);
        self.summary.count(&fate);
        if let Some(place) = attempt.places.first() {
            report(Update::Tried {
                place: *place,
                letter: attempt.letter.as_ref(),
                fate: &fate,
            })?;
        }
        Ok(())
    }
}
