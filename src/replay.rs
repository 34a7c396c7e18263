//! Dead letters tried again, and what is understood by now delivered exactly once.
//!
//! 1. The group's [`ReplayProducer`] begins: every other replay of the group is shut out, and its open transaction ended.
//! 2. Only then the positions are read, and the ends of the topic as it is now: new dead letters that this replay makes lie
//!    beyond them and are the next one's.
//! 3. Letters are gathered in each partition's order, and each is [tried](verdict). What it becomes and the positions that have
//!    it settled go into one transaction. So a letter's records are there once or not yet, whenever the replay is killed.
//! 4. What is still dead is written nowhere and is left in the [position], for the next replay. So are letters that
//!    were not asked for, or of which parts are missing at the end of the topic.
//! 5. A record that Kafka refuses leaves its letter dead as a whole. Any other error ends the replay; it can be run again.
//!
//! Records have the time of their sending, as those of a lane; `cmc-received-at` stays as it was. New dead
//! letters are made where a body is understood and some of its pieces are not, as by the server.
//!
//! Kafka forgets the position of a group that commits nothing for `offsets.retention.minutes` (7 days). A replay that finds no
//! position therefore goes on only when all letters came to the topic later than that, for no forgotten replay can have had them,
//! or when it is told that there was none. Every transaction commits the positions of all partitions, and an idle replay commits them
//! too.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`joining`] | letters with the places of their records |
//! | [`news`] | what it tells |
//! | [`options`] | what a replay is told |
//! | [`position`] | how far a group has come, and what it left |
//! | [`reading`] | its read side: letters from the group's positions on, and what is settled |
//! | [`tried`] | a letter that was tried, and the records that it became |
//! | [`verdict`] | what one becomes, by ingest's own code |
//! | [`writing`] | its write side: transactions, and what follows a refusal |

pub mod joining;
mod news;
mod options;
pub mod position;
mod reading;
mod tried;
pub mod verdict;
mod writing;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use thiserror::Error;
use tokio::runtime::Handle;

pub use self::{
    news::{Fate, News, Summary},
    options::{Filter, Options},
};
use self::{reading::Reading, tried::Tried, writing::Writing};
use crate::{
    cmc::Rules,
    config::Config,
    kafka::{broker::BrokerError, letter_reader::LetterReader, replay_producer::ReplayProducer},
    stream::Stream,
};

/// A transaction ends after so many records, also when few of them are letters that are asked for.
const MOST_LOOKED_AT: u64 = 50_000;

/// Why a replay ended before its time. What was committed stays.
#[derive(Debug, Error)]
pub enum ReplayError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(
        "group {group} has no position in partition {partition}, which has letters that have been there for 7 days. Kafka forgets \
         the position of a group that was idle for so long, and a replay before may have delivered them. If there was none, add \
         --from-beginning"
    )]
    Forgotten { group: String, partition: i32 },
    #[error(
        "in partition {0} letters that are left and letters that are replayed alternate more often than a position can tell. \
         Choose other letters, or leave dead for good what is dead now with --give-up"
    )]
    TooScattered(i32),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// A replay under way.
pub struct Replay<'r> {
    config: &'r Config,
    options: &'r Options,
    rules: Rules,
    reading: Reading<'r>,
    /// `None` of a dry run.
    writing: Option<Writing<'r>>,
    tried: u64,
    summary: Summary,
}

impl<'r> Replay<'r> {
    /// Connects. Other replays of the group are shut out, unless this is a dry run.
    pub fn begin(
        config: &'r Config,
        options: &'r Options,
        runtime: &Handle,
    ) -> Result<Replay<'r>, ReplayError> {
        let dead_letters = &config.stream(Stream::DeadLetters).topic;
        let source = LetterReader::open(&config.kafka, &options.group, dead_letters)?;
        let enabled = config.streams.iter().filter(|stream| stream.enabled);
        let topics: Vec<&str> = enabled.map(|stream| stream.topic.as_str()).collect();
        let writing = match options.dry_run {
            true => None,
            false => Some(Writing::new(
                config,
                ReplayProducer::begin(&source, &topics, runtime)?,
            )),
        };
        Ok(Replay {
            config,
            options,
            rules: Rules::new(&config.ingest, &config.kafka, &config.streams),
            reading: Reading::begin(options, source)?,
            writing,
            tried: 0,
            summary: Summary::default(),
        })
    }

    /// Replays up to the ends that the topic had at the beginning. `stop` ends it after the transaction under way.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        news: &mut dyn FnMut(News<'_>) -> io::Result<()>,
    ) -> Result<Summary, ReplayError> {
        loop {
            let mut batch = self.gather(stop)?;
            match &mut self.writing {
                Some(writing) => writing.write(&mut batch, &mut self.reading)?,
                // A dry run fails where the positions could not be committed.
                None => drop(self.reading.to_commit()?),
            }
            self.reading.collapse();
            for tried in &batch {
                self.report(tried, news)?;
            }
            let (done, total) = (self.reading.done(), self.reading.total());
            news(News::Progress {
                done: done.min(total),
                total,
            })?;
            let early = stop.load(Ordering::Relaxed) || self.limit_reached();
            if self.reading.at_end() || early {
                self.summary.ended_early = !self.reading.at_end();
                self.summary.incomplete = self.reading.incomplete();
                return Ok(self.summary);
            }
        }
    }

    fn limit_reached(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.tried >= limit)
    }

    /// The next letters to try, tried.
    fn gather(&mut self, stop: &AtomicBool) -> Result<Vec<Tried>, ReplayError> {
        let kafka = &self.config.kafka;
        let mut batch = Vec::new();
        let (mut bytes, mut events) = (0, 0);
        let most = self.reading.done() + MOST_LOOKED_AT;
        while !self.reading.at_end()
            // What is no letter, or not one of those asked for, makes no batch; the position must move on all the same.
            && self.reading.done() < most
            && !self.limit_reached()
            && !stop.load(Ordering::Relaxed)
            && batch.len() < self.options.batch
            && bytes < kafka.transaction_bytes
            && events < kafka.transaction_events
        {
            let Some(read) = self.reading.next()? else {
                continue;
            };
            if let Ok(letter) = &*read.letter
                && !self.options.filter.passes(letter)
            {
                self.summary.passed_over += 1;
                self.reading.leave(&read.places);
                continue;
            }
            let tried = Tried::new(read, &self.rules);
            self.reading.settle(&tried);
            self.tried += 1;
            bytes += tried.bytes();
            events += tried.events();
            batch.push(tried);
        }
        Ok(batch)
    }

    fn report(
        &mut self,
        tried: &Tried,
        news: &mut dyn FnMut(News<'_>) -> io::Result<()>,
    ) -> Result<(), ReplayError> {
        let fate = tried.fate(self.config);
        self.summary.count(&fate);
        if let Some(place) = tried.places.first() {
            news(News::Tried {
                place: *place,
                letter: tried.letter.as_ref(),
                fate: &fate,
            })?;
        }
        Ok(())
    }
}
