//! Dead letters tried again, and what is understood by now delivered exactly once.
//!
//! 1. The group's [`Writer`] begins: every other replay of the group is shut out, and its open transaction ended.
//! 2. Only then the positions are read, and the ends of the topic as it is now: new dead letters that this replay makes lie
//!    beyond them and are the next one's.
//! 3. Letters are gathered in each partition's order, and each is [tried](verdict). What it becomes and the positions that have
//!    it settled go into one transaction. So a letter's records are there once or not yet, whenever the replay is killed.
//! 4. What is still dead is written nowhere and is left in the [position], for the next replay. So are letters that
//!    were not asked for, or of which parts are missing at the end of the topic.
//! 5. A record that Kafka refuses leaves its letter dead as a whole. Any other error ends the replay; it can be run again.
//!
//! Records are given the time of the replay, for retention counts from there; `cmc-received-at` stays as it was. New dead
//! letters are made where a body is understood and some of its pieces are not, as by the server.
//!
//! Kafka forgets the position of a group that commits nothing for `offsets.retention.minutes` (7 days). A replay that finds no
//! position therefore goes on only when all letters are younger than that, for no forgotten replay can have had them, or when
//! it is told that there was none. Every transaction commits the positions of all partitions, and an idle replay commits them
//! too.

pub mod joining;
pub mod position;
pub mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rdkafka::{Message, message::Headers};
use thiserror::Error;
use tokio::runtime::Handle;

use self::{
    joining::{Found, Joining, Place, Read},
    position::{Position, State},
    verdict::{Dead, Verdict, again},
};
use crate::{
    batch::{Batch, BatchView, alone_in_batch},
    cmc::Rules,
    config::{Config, Kafka},
    dead_letter::{Letter, Reason},
    lane::{
        broker::{BrokerError, DeliveryError, Mode, Outgoing, Refusal},
        replay::{Committed, Source, Topic, Writer, another_replay},
    },
    stream::Stream,
};

/// The default of `offsets.retention.minutes`.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// A transaction ends after so many records, also when few of them are letters that are asked for.
const MOST_LOOKED_AT: u64 = 50_000;

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

/// What a replay is told.
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

/// Why a replay ended before its time. What was committed stays.
#[derive(Debug, Error)]
pub enum ReplayError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(
        "group {group} has no position in partition {partition}, which has letters older than 7 days. Kafka forgets the position \
         of a group that was idle for so long, and a replay before may have delivered them. If there was none, add \
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

/// A letter that was tried.
struct Tried {
    places: Vec<Place>,
    /// `None` when it could not be read. Held until it is reported.
    letter: Option<Letter>,
    verdict: Verdict,
}

/// A replay under way.
pub struct Replay<'r> {
    config: &'r Config,
    options: &'r Options,
    rules: Rules,
    source: Source,
    /// `None` of a dry run.
    writer: Option<Writer>,
    positions: BTreeMap<i32, Position>,
    /// What was committed last.
    committed: Committed,
    joining: Joining,
    /// Topics that refuse records without a key: they are compacted.
    keyed: BTreeSet<String>,
    tried: u64,
    done: u64,
    total: u64,
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
        let source = Source::open(&config.kafka, &options.group, dead_letters)?;
        let enabled = config.streams.iter().filter(|stream| stream.enabled);
        let topics: Vec<&str> = enabled.map(|stream| stream.topic.as_str()).collect();
        let writer = match options.dry_run {
            true => None,
            false => Some(Writer::begin(&source, &topics, runtime)?),
        };
        let committed = source.committed()?;
        let mut replay = Replay {
            config,
            options,
            rules: Rules::new(&config.ingest, &config.kafka, &config.streams),
            source,
            writer,
            positions: BTreeMap::new(),
            committed,
            joining: Joining::default(),
            keyed: BTreeSet::new(),
            tried: 0,
            done: 0,
            total: 0,
            summary: Summary::default(),
        };
        replay.find_positions()?;
        Ok(replay)
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
            let then = SystemTime::now() - FORGOTTEN_AFTER;
            let then = then.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
            if let Some(partition) = self.source.any_older(&unknown, then)? {
                let group = self.options.group.clone();
                return Err(ReplayError::Forgotten { group, partition });
            }
        }
        Ok(self.source.assign(&ranges)?)
    }

    /// Replays up to the ends that the topic had at the beginning. `stop` ends it after the transaction under way.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        news: &mut dyn FnMut(News<'_>) -> io::Result<()>,
    ) -> Result<Summary, ReplayError> {
        loop {
            let mut batch = self.gather(stop)?;
            self.write(&mut batch)?;
            for position in self.positions.values_mut() {
                position.collapse();
            }
            for tried in &batch {
                self.report(tried, news)?;
            }
            news(News::Progress {
                done: self.done.min(self.total),
                total: self.total,
            })?;
            let early = stop.load(Ordering::Relaxed) || self.limit_reached();
            if self.source.at_end() || early {
                self.summary.ended_early = !self.source.at_end();
                if self.source.at_end() {
                    self.summary.incomplete += self.joining.incomplete() as u64;
                }
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
        let most = self.done + MOST_LOOKED_AT;
        while !self.source.at_end()
            // What is no letter, or not one of those asked for, makes no batch; the position must move on all the same.
            && self.done < most
            && !self.limit_reached()
            && !stop.load(Ordering::Relaxed)
            && batch.len() < self.options.batch
            && bytes < kafka.transaction_bytes
            && events < kafka.transaction_events
        {
            let Some(Read { places, letter }) = self.next()? else {
                continue;
            };
            let (letter, verdict) = match *letter {
                Ok(letter) if !self.options.filter.passes(&letter) => {
                    self.summary.passed_over += 1;
                    self.set(&places, State::Left);
                    continue;
                }
                Ok(letter) => {
                    let verdict = again(&letter, &self.rules);
                    (Some(letter), verdict)
                }
                Err(error) => (None, Verdict::Dead(Dead::new("unreadable", error.to_string()))),
            };
            self.tried += 1;
            bytes += letter.as_ref().map_or(0, |letter| letter.value.len());
            if let Verdict::Understood {
                events: Some((_, made)),
                ..
            } = &verdict
            {
                events += made.events() as usize;
                bytes += made.bytes().len();
            }
            batch.push(Tried {
                places,
                letter,
                verdict,
            });
        }
        for tried in &batch {
            self.settle(tried);
        }
        Ok(batch)
    }

    /// The next letter that is not settled, or what can't be read as one.
    fn next(&mut self) -> Result<Option<Read>, ReplayError> {
        let Some(record) = self.source.poll()? else {
            return Ok(None);
        };
        let place = Place {
            partition: record.partition(),
            offset: record.offset(),
        };
        self.done += 1;
        let Some(position) = self.positions.get_mut(&place.partition) else {
            return Ok(None);
        };
        if !position.read(place.offset) {
            return Ok(None);
        }
        let headers: Vec<(&str, &[u8])> = record
            .headers()
            .into_iter()
            .flat_map(Headers::iter)
            .map(|header| (header.key, header.value.unwrap_or_default()))
            .collect();
        let value = record.payload().unwrap_or_default();
        let (found, given_up) = self.joining.add(place, record.key(), &headers, value);
        for places in given_up {
            self.summary.incomplete += 1;
            self.set(&places, State::Left);
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

    fn set(&mut self, places: &[Place], state: State) {
        for place in places {
            if let Some(position) = self.positions.get_mut(&place.partition) {
                position.set(place.offset, state);
            }
        }
    }

    fn settle(&mut self, tried: &Tried) {
        let dead = matches!(tried.verdict, Verdict::Dead(_));
        let state = match dead && !self.options.give_up {
            true => State::Left,
            false => State::Settled,
        };
        self.set(&tried.places, state);
    }

    /// Delivers what the letters became, together with the positions. Letters of which Kafka refuses something are dead
    /// then.
    fn write(&mut self, batch: &mut [Tried]) -> Result<(), ReplayError> {
        loop {
            self.refuse_beforehand(batch)?;
            let mut positions = Committed::new();
            for (partition, position) in &self.positions {
                let position = position.to_commit();
                let position = position.map_err(|_| ReplayError::TooScattered(*partition))?;
                positions.insert(*partition, position);
            }
            let Some(writer) = &mut self.writer else {
                return Ok(());
            };
            // For each record that is sent, its letter.
            let mut owners = Vec::new();
            match transact(writer, self.config, batch, &positions, &mut owners) {
                Ok(()) => {
                    self.committed = positions;
                    return Ok(());
                }
                Err(DeliveryError::Late(error) | DeliveryError::Failed(error)) => return Err(error.into()),
                Err(DeliveryError::Refused { index, refusal }) => {
                    // Of records that were sent together the wrong one may be named.
                    if writer.mode() == Mode::OneByOne
                        && let Some((letter, topic, keyed)) = owners.get(index)
                    {
                        if refusal == Refusal::Invalid && !keyed {
                            self.keyed.insert(topic.clone());
                        }
                        let letter = *letter;
                        self.refuse(&mut batch[letter], refusal);
                    }
                    self.begin_anew()?;
                }
            }
        }
    }

    /// Goes on with a new producer, one record a request.
    fn begin_anew(&mut self) -> Result<(), ReplayError> {
        if let Some(writer) = &mut self.writer {
            writer.begin_anew(&self.source, Mode::OneByOne)?;
        }
        // The new producer shut out whoever came in between, and what that one did is done.
        if self.source.committed()? != self.committed {
            return Err(another_replay(&self.options.group).into());
        }
        Ok(())
    }

    fn refuse(&mut self, tried: &mut Tried, refusal: Refusal) {
        let reason = match refusal {
            Refusal::TooLarge => Reason::RefusedTooLarge,
            Refusal::Invalid => Reason::RefusedInvalid,
        };
        tried.verdict = Verdict::Dead(Dead::new(reason.name(), "Kafka refuses a record of it"));
        self.settle(tried);
    }

    /// Leaves dead what is sure to be refused.
    fn refuse_beforehand(&mut self, batch: &mut [Tried]) -> Result<(), ReplayError> {
        for tried in batch {
            let mut refused = None;
            let mut missing = None;
            let Some(writer) = &mut self.writer else {
                return Ok(());
            };
            each_record::<BrokerError>(self.config, tried, &mut |record| {
                let limit = match writer.topic(&self.source, record.topic)? {
                    Topic::Missing => {
                        missing.get_or_insert_with(|| record.topic.to_owned());
                        return Ok(());
                    }
                    Topic::Takes(limit) => limit,
                };
                let size = alone_in_batch(record.key, record.headers.iter().copied(), record.value.len());
                if limit.is_some_and(|limit| size > limit) {
                    refused = Some(Refusal::TooLarge);
                } else if record.key.is_none() && self.keyed.contains(record.topic) {
                    refused = Some(Refusal::Invalid);
                }
                Ok(())
            })?;
            if let Some(topic) = missing {
                tried.verdict = Verdict::Dead(Dead::new("no_topic", format!("there is no topic {topic}")));
                self.settle(tried);
            } else if let Some(refusal) = refused {
                self.refuse(tried, refusal);
            }
        }
        Ok(())
    }

    fn report(
        &mut self,
        tried: &Tried,
        news: &mut dyn FnMut(News<'_>) -> io::Result<()>,
    ) -> Result<(), ReplayError> {
        let fate = match &tried.verdict {
            Verdict::Dead(dead) => {
                *self.summary.dead.entry(dead.reason).or_default() += 1;
                Fate::Dead(dead.clone())
            }
            Verdict::Record => Fate::Replayed {
                topic: tried.topic().unwrap_or_default().to_owned(),
                events: 1,
                letters: 0,
            },
            Verdict::Understood { events, letters, .. } => Fate::Replayed {
                topic: events.as_ref().map_or_else(String::new, |(stream, _)| {
                    self.config.stream(*stream).topic.clone()
                }),
                events: events.as_ref().map_or(0, |(_, batch)| batch.events() as usize),
                letters: *letters,
            },
        };
        if let Fate::Replayed { events, letters, .. } = &fate {
            self.summary.replayed += 1;
            self.summary.events += *events as u64;
            self.summary.new_letters += *letters as u64;
        }
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

impl Tried {
    /// The topic of a refused record.
    fn topic(&self) -> Option<&str> {
        self.letter.as_ref()?.topic.as_deref()
    }
}

/// One transaction: what the letters became, and the positions. `owners`: for each record its letter, its topic, and whether
/// it has a key.
fn transact(
    writer: &mut Writer,
    config: &Config,
    batch: &[Tried],
    positions: &Committed,
    owners: &mut Vec<(usize, String, bool)>,
) -> Result<(), DeliveryError> {
    let deadline = writer.deadline();
    writer.begin_transaction()?;
    for (letter, tried) in batch.iter().enumerate() {
        each_record(config, tried, &mut |record| {
            owners.push((letter, record.topic.to_owned(), record.key.is_some()));
            writer.send(record, deadline)
        })?;
    }
    writer.commit(positions, deadline)
}

/// Gives each record that a letter became, in order.
fn each_record<E>(
    config: &Config,
    tried: &Tried,
    each: &mut dyn FnMut(Outgoing<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let timestamp_micros = now.as_micros() as i64;
    let topic = |stream| config.stream(stream).topic.as_str();
    let mut of_batch = |topic: &str, batch: &Batch| {
        // Just made by the same process, so it can be decoded.
        let Ok(view) = BatchView::decode(batch.bytes()) else {
            return Ok(());
        };
        for record in &view.records {
            let headers: Vec<_> = view.headers(record).collect();
            each(Outgoing {
                topic,
                key: record.key,
                headers: &headers,
                value: &record.value(),
                timestamp_micros,
            })?;
        }
        Ok(())
    };
    match (&tried.verdict, &tried.letter) {
        (Verdict::Dead(_), _) => Ok(()),
        (
            Verdict::Understood {
                events, dead_letters, ..
            },
            _,
        ) => {
            if let Some((stream, batch)) = events {
                of_batch(topic(*stream), batch)?;
            }
            match dead_letters {
                Some(batch) => of_batch(topic(Stream::DeadLetters), batch),
                None => Ok(()),
            }
        }
        (Verdict::Record, letter) => {
            let Some((letter, topic)) = letter.as_ref().zip(tried.topic()) else {
                return Ok(());
            };
            let headers: Vec<(&str, &[u8])> = letter
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice()))
                .collect();
            each(Outgoing {
                topic,
                key: letter.key.as_deref(),
                headers: &headers,
                value: &letter.value,
                timestamp_micros,
            })
        }
    }
}
