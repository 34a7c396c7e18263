//! The Kafka side of replaying dead letters: their topic is read from a group's positions, and records are written together
//! with new positions in one transaction.
//!
//! The transactional id is `<kafka.id_prefix>.replay.<group>`. A writer that begins ends the open transaction of every other
//! one of its group and shuts it out; the positions are read only after that. So two replays of one group never deliver
//! the same letter, and one that is killed leaves all or nothing of its last transaction.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::AdminClient,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;

use super::{
    broker::{BlockReason, Broker, BrokerError, DeliveryError, Mode, Outgoing, TopicRules},
    client::{self, Context},
    explain::{Names, explain},
    probe::{describe, reach},
    producer::{KafkaBroker, Start, foreseen, listen, passing},
    reader_health::{Errors, LOOK_AFTER, Look, leaderless, look},
    topics::{self, Rules},
};
use crate::{config, stream::Stream};

/// Most time for one question to the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Kafka takes a while to find the coordinator of a group that is asked for the first time.
const COORDINATOR: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Without news of any partition for so long, reading is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Reads the dead-letter topic, committed records only.
pub struct Source {
    consumer: BaseConsumer<Context>,
    context: Context,
    kafka: config::Kafka,
    names: Names,
    partitions: Vec<i32>,
    /// Where each partition that is still read ends.
    ends: BTreeMap<i32, i64>,
    /// How long polls have had no news.
    silence: Duration,
    errors: Errors,
}

/// A group's committed offset with its metadata, for each partition that has one.
pub type Committed = BTreeMap<i32, (i64, String)>;

impl Source {
    /// Connects, and looks up the topic's partitions.
    pub fn open(kafka: &config::Kafka, group: &str, topic: &str) -> Result<Source, BrokerError> {
        let context = Context::uncounted(Stream::DeadLetters);
        let names = Names {
            topic: topic.to_owned(),
            group: group.to_owned(),
            bootstrap_servers: kafka.bootstrap_servers.clone(),
            unshown: kafka.unshown(),
        };
        let fail = |doing: &str, error: KafkaError| explain(&error, doing, &names, &context.last_error);
        // What lies below the position stays settled whatever is read.
        let mut config = client::reader(kafka, Stream::DeadLetters, group, "cmc-bridge-replay");
        config.set("enable.partition.eof", "true");
        let consumer = BaseConsumer::from_config_and_context(&config, context.clone())
            .map_err(|error| fail("make a Kafka client", error))?;
        reach(&consumer, topic).map_err(|error| fail("reach a broker", error))?;
        let found = describe(&consumer, topic).map_err(|error| fail("read the topic", error))?;
        if found.partitions.is_empty() {
            let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
            return Err(fail("read the topic", missing));
        }
        if let Some(error) = leaderless(topic, &found) {
            return Err(error);
        }
        Ok(Source {
            partitions: found.partitions,
            consumer,
            context,
            kafka: kafka.clone(),
            names,
            ends: BTreeMap::new(),
            silence: Duration::ZERO,
            errors: Errors::default(),
        })
    }

    fn explain(&self, doing: &str, error: &KafkaError) -> BrokerError {
        explain(error, doing, &self.names, &self.context.last_error)
    }

    /// The offset of the oldest record of each partition, and the one behind the newest.
    pub fn bounds(&self) -> Result<BTreeMap<i32, (i64, i64)>, BrokerError> {
        let bounds = self.partitions.iter().map(|partition| {
            let bounds = self
                .consumer
                .fetch_watermarks(&self.names.topic, *partition, PATIENCE)
                .map_err(|error| self.explain("read the topic", &error))?;
            Ok((*partition, bounds))
        });
        bounds.collect()
    }

    /// The group's positions, once no transaction of a former writer is open.
    pub fn committed(&self) -> Result<Committed, BrokerError> {
        let deadline = Instant::now() + COORDINATOR;
        loop {
            let mut wanted = TopicPartitionList::new();
            for partition in &self.partitions {
                wanted.add_partition(&self.names.topic, *partition);
            }
            let answer = self
                .consumer
                .committed_offsets(wanted, PATIENCE)
                .and_then(|list| {
                    let mut committed = Committed::new();
                    for found in list.elements() {
                        found.error()?;
                        if let Offset::Offset(offset) = found.offset() {
                            committed.insert(found.partition(), (offset, found.metadata().to_owned()));
                        }
                    }
                    Ok(committed)
                });
            match answer {
                Ok(committed) => return Ok(committed),
                Err(error) if passing(&error) && Instant::now() < deadline => {
                    std::thread::sleep(ASK_AGAIN);
                }
                Err(error) => {
                    listen(&self.consumer);
                    return Err(self.explain("read the group's position", &error));
                }
            }
        }
    }

    /// The first of these partitions that has a record older than this, in milliseconds since the Unix epoch; `from` has
    /// their oldest offsets.
    pub fn any_older(&self, from: &BTreeMap<i32, i64>, millis: i64) -> Result<Option<i32>, BrokerError> {
        let fail = |error| self.explain("read the topic", &error);
        let mut wanted = TopicPartitionList::new();
        for partition in from.keys() {
            wanted
                .add_partition_offset(&self.names.topic, *partition, Offset::Offset(millis))
                .map_err(fail)?;
        }
        let found = self.consumer.offsets_for_times(wanted, PATIENCE).map_err(fail)?;
        let older = found.elements().into_iter().find(|found| match found.offset() {
            Offset::Offset(offset) => from.get(&found.partition()).is_some_and(|first| *first < offset),
            // No record is as young.
            _ => true,
        });
        Ok(older.map(|found| found.partition()))
    }

    /// Reads these partitions, each from the first offset up to the second.
    pub fn assign(&mut self, ranges: &BTreeMap<i32, (i64, i64)>) -> Result<(), BrokerError> {
        let mut list = TopicPartitionList::new();
        let assigned = ranges.iter().try_for_each(|(partition, (start, _))| {
            list.add_partition_offset(&self.names.topic, *partition, Offset::Offset(*start))
        });
        assigned
            .and_then(|()| self.consumer.assign(&list))
            .map_err(|error| self.explain("read the topic", &error))?;
        self.ends = ranges
            .iter()
            .map(|(partition, (_, end))| (*partition, *end))
            .collect();
        Ok(())
    }

    /// Whether all that was assigned has been read.
    pub fn at_end(&self) -> bool {
        self.ends.is_empty()
    }

    /// The next record of what was assigned, if one comes within a moment.
    ///
    /// # Errors
    /// What won't pass by itself, a partition that has no leader, and silence: see [`super::reader_health`].
    pub fn poll(&mut self) -> Result<Option<BorrowedMessage<'_>>, BrokerError> {
        let begun = Instant::now();
        let polled = self.consumer.poll(ASK_AGAIN);
        self.silence += begun.elapsed();
        match polled {
            Some(Ok(record)) => {
                self.silence = Duration::ZERO;
                let end = self.ends.get(&record.partition()).copied().unwrap_or_default();
                if record.offset() + 1 >= end {
                    self.ends.remove(&record.partition());
                }
                return Ok((record.offset() < end).then_some(record));
            }
            // Behind its last record a partition may have transaction markers only, or what is not committed.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.silence = Duration::ZERO;
                self.ends.remove(&partition);
            }
            Some(Err(error)) if self.errors.end_reading(&error, Instant::now()) => {
                return Err(self.explain("read the topic", &error));
            }
            _ => {}
        }
        if self.silence > LOOK_AFTER {
            let begun = Instant::now();
            self.look()?;
            self.silence += begun.elapsed();
        }
        Ok(None)
    }

    /// Why there are no news.
    fn look(&self) -> Result<(), BrokerError> {
        let silent = self.silence > SILENCE;
        match look(&self.consumer, &self.names.topic) {
            Look::Leaderless(error) => Err(error),
            Look::Lost(error) => Err(self.explain("read the topic", &error)),
            Look::Away(error) if silent => Err(self.explain("read the topic", &error)),
            Look::Well if silent => Err(BrokerError {
                reason: BlockReason::Connect,
                message: format!(
                    "cannot read topic {}: its partitions have leaders, but nothing came of them for {} s. Look at the brokers' \
                     logs",
                    self.names.topic,
                    SILENCE.as_secs()
                ),
            }),
            Look::Well | Look::Away(_) => Ok(()),
        }
    }
}

/// Writes transactions with positions of a [`Source`]'s group. After an error it can't go on until [`Writer::begin_anew`].
pub struct Writer {
    broker: KafkaBroker,
    context: Context,
    names: Names,
    kafka: config::Kafka,
    mode: Mode,
    topics: Topics,
}

/// What topics take, asked for once each.
struct Topics {
    admin: AdminClient<Context>,
    runtime: Handle,
    /// `None`: there is no such topic.
    known: BTreeMap<String, Option<TopicRules>>,
}

impl Writer {
    /// A writer of the source's group. Every other one of that group is shut out from now on.
    pub fn begin(source: &Source, topics: &[&str], runtime: &Handle) -> Result<Writer, BrokerError> {
        let kafka = &source.kafka;
        let config = client::base(kafka, Stream::DeadLetters);
        let context = Context::uncounted(Stream::DeadLetters);
        let admin = AdminClient::from_config_and_context(&config, context)
            .map_err(|error| source.explain("make a Kafka client", &error))?;
        let mut topics_known = Topics {
            admin,
            runtime: runtime.clone(),
            known: BTreeMap::new(),
        };
        for topic in topics {
            topics_known.look_up(source, topic)?;
        }
        let (broker, context, names) = connect(source, &topics_known, Mode::Batched)?;
        Ok(Writer {
            broker,
            context,
            names,
            kafka: kafka.clone(),
            mode: Mode::Batched,
            topics: topics_known,
        })
    }

    /// Gives up the open transaction and begins with a new producer, and with the topics' rules as they are now. Another
    /// writer may have been at work before: compare the positions.
    pub fn begin_anew(&mut self, source: &Source, mode: Mode) -> Result<(), BrokerError> {
        for topic in std::mem::take(&mut self.topics.known).into_keys() {
            self.topics.look_up(source, &topic)?;
        }
        (self.broker, self.context, self.names) = connect(source, &self.topics, mode)?;
        self.mode = mode;
        Ok(())
    }

    /// How records are sent.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A topic's rules; `None` when there is no such topic.
    pub fn topic(&mut self, source: &Source, topic: &str) -> Result<Option<TopicRules>, BrokerError> {
        let rules = self.topics.look_up(source, topic)?;
        Ok(rules.map(|rules| foreseen(rules, &self.kafka)))
    }

    /// From now on records have no timestamp.
    pub fn omit_timestamps(&mut self) {
        self.broker.omit_timestamps();
    }

    /// When a transaction that begins now must be over.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.broker.stretch(self.kafka.transaction_timeout * 2 / 3)
    }

    /// Begins a transaction.
    pub fn begin_transaction(&mut self) -> Result<(), BrokerError> {
        self.broker.begin().map_err(|error| self.judge(error))
    }

    /// Sends a record; they are numbered from 0 in their transaction.
    pub fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        let sent = self.broker.send(record, deadline);
        sent.map_err(|error| self.judge_delivery(error))
    }

    /// Waits until all is delivered, and commits it with the positions.
    pub fn commit(&mut self, positions: &Committed, deadline: Instant) -> Result<(), DeliveryError> {
        let delivered = self.broker.delivered(deadline);
        delivered.map_err(|error| self.judge_delivery(error))?;
        let mut offsets = TopicPartitionList::new();
        for (partition, (offset, metadata)) in positions {
            offsets
                .add_partition_offset(&self.names.topic, *partition, Offset::Offset(*offset))
                .map_err(|error| {
                    explain(&error, "name the position", &self.names, &self.context.last_error)
                })?;
            if let Some(mut found) = offsets.find_partition(&self.names.topic, *partition) {
                found.set_metadata(metadata);
            }
        }
        let committed = self.broker.commit_offsets(offsets, deadline);
        Ok(committed.map_err(|error| self.judge(error))?)
    }

    fn judge_delivery(&self, error: DeliveryError) -> DeliveryError {
        match error {
            DeliveryError::Failed(error) => self.judge(error).into(),
            other => other,
        }
    }

    /// What the explanation for lanes says of spools would be wrong here.
    fn judge(&self, error: BrokerError) -> BrokerError {
        match error.reason {
            BlockReason::Fenced => another_replay(&self.names.group),
            _ => error,
        }
    }
}

/// Another writer of the group has begun.
pub fn another_replay(group: &str) -> BrokerError {
    BrokerError {
        reason: BlockReason::Fenced,
        message: format!(
            "another replay with {group} has begun, or a transaction took longer than kafka.transaction_timeout. Nothing was \
             delivered twice; what is not replayed is left to the other one, or to the next"
        ),
    }
}

fn connect(
    source: &Source,
    topics: &Topics,
    mode: Mode,
) -> Result<(KafkaBroker, Context, Names), BrokerError> {
    let kafka = &source.kafka;
    let context = Context::uncounted(Stream::DeadLetters);
    let names = Names {
        group: format!("{}.replay.{}", kafka.id_prefix, source.names.group),
        ..source.names.clone()
    };
    let start = Start {
        kafka,
        stream: Stream::DeadLetters,
        context: context.clone(),
        names: names.clone(),
        rules: topics.rules(),
        client_id: Some("cmc-bridge-replay"),
    };
    let broker = start.producer(mode, source.consumer.group_metadata())?;
    Ok((broker, context, names))
}

impl Topics {
    fn rules(&self) -> Rules {
        let known = self.known.iter();
        known
            .filter_map(|(topic, rules)| Some((topic.clone(), (*rules)?)))
            .collect()
    }

    fn look_up(&mut self, source: &Source, topic: &str) -> Result<Option<TopicRules>, BrokerError> {
        if let Some(known) = self.known.get(topic) {
            return Ok(*known);
        }
        let exists = topics::exists(source.consumer.client(), topic);
        let exists = exists.map_err(|error| {
            let names = Names {
                topic: topic.to_owned(),
                ..source.names.clone()
            };
            explain(&error, "look up the topic", &names, &source.context.last_error)
        })?;
        let rules = exists.then(|| topics::rules(&self.admin, &self.runtime, &[topic]).of(topic));
        self.known.insert(topic.to_owned(), rules);
        Ok(rules)
    }
}
