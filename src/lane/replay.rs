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
    producer::{Producer, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;

use super::{
    broker::{BlockReason, Broker, BrokerError, DeliveryError, Mode, Outgoing},
    cause::{Names, ends_reading, explain},
    client::{self, Context},
    kafka::{KafkaBroker, listen, passing},
    probe::{describe, reach},
    topics::{self, Limits},
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
        let mut config = client::consumer(kafka, Stream::DeadLetters, group);
        config.set("enable.partition.eof", "true");
        config.set("enable.auto.offset.store", "false");
        // Of a position that retention has passed. What lies below the position stays settled whatever is read.
        config.set("auto.offset.reset", "earliest");
        if !kafka.properties.contains_key("client.id") {
            config.set("client.id", "cmc-bridge-replay");
        }
        let consumer = BaseConsumer::from_config_and_context(&config, context.clone())
            .map_err(|error| fail("make a Kafka client", error))?;
        reach(&consumer, topic).map_err(|error| fail("reach a broker", error))?;
        let found = describe(&consumer, topic).map_err(|error| fail("read the topic", error))?;
        if found.partitions.is_empty() {
            let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
            return Err(fail("read the topic", missing));
        }
        Ok(Source {
            partitions: found.partitions,
            consumer,
            context,
            kafka: kafka.clone(),
            names,
            ends: BTreeMap::new(),
            silence: Duration::ZERO,
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
    pub fn poll(&mut self) -> Result<Option<BorrowedMessage<'_>>, BrokerError> {
        let begun = Instant::now();
        let polled = self.consumer.poll(ASK_AGAIN);
        self.silence += begun.elapsed();
        let silent = self.silence > SILENCE;
        let error = match polled {
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
                return Ok(None);
            }
            Some(Err(error)) => error,
            None if silent => KafkaError::MetadataFetch(Code::OperationTimedOut),
            None => return Ok(None),
        };
        match silent || ends_reading(&error) {
            true => Err(self.explain("read the topic", &error)),
            false => Ok(None),
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
    sent: usize,
    topics: Topics,
}

/// What topics take, asked for once each.
struct Topics {
    admin: AdminClient<Context>,
    runtime: Handle,
    /// `None`: there is no such topic.
    known: BTreeMap<String, Option<Limits>>,
}

/// Whether a topic is there, and its `max.message.bytes` where the broker tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Missing,
    Takes(Option<usize>),
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
            sent: 0,
            topics: topics_known,
        })
    }

    /// Gives up the open transaction and begins with a new producer. Another writer may have been at work before: compare
    /// the positions.
    pub fn begin_anew(&mut self, source: &Source, mode: Mode) -> Result<(), BrokerError> {
        (self.broker, self.context, self.names) = connect(source, &self.topics, mode)?;
        self.mode = mode;
        Ok(())
    }

    /// How records are sent.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What a topic takes.
    pub fn topic(&mut self, source: &Source, topic: &str) -> Result<Topic, BrokerError> {
        let compressed = ["compression.type", "compression.codec"]
            .iter()
            .any(|name| self.kafka.properties.contains_key(*name));
        Ok(match self.topics.look_up(source, topic)? {
            None => Topic::Missing,
            // Sizes of compressed records can't be foretold.
            Some(limits) => Topic::Takes(limits.of(topic).filter(|_| !compressed)),
        })
    }

    /// When a transaction that begins now must be over.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.mode.time(self.kafka.transaction_timeout * 2 / 3)
    }

    /// Begins a transaction.
    pub fn begin_transaction(&mut self) -> Result<(), BrokerError> {
        self.sent = 0;
        self.broker.begin().map_err(|error| self.judge(error))
    }

    /// Sends a record; they are numbered from 0 in their transaction.
    pub fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        let sent = self.broker.send(record, deadline);
        sent.map_err(|error| self.judge_delivery(error))?;
        self.sent += 1;
        Ok(())
    }

    /// Waits until all is delivered, and commits it with the positions.
    pub fn commit(&mut self, positions: &Committed, deadline: Instant) -> Result<(), DeliveryError> {
        let delivered = self.broker.delivered(self.sent, deadline);
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
    let fail = |doing: &str, error: KafkaError| explain(&error, doing, &names, &context.last_error);
    let limits: Vec<&Limits> = topics.known.values().flatten().collect();
    let smallest = limits.iter().filter_map(|limits| limits.smallest()).min();
    let mut config = client::producer(kafka, Stream::DeadLetters, &names.group, mode, smallest);
    if !kafka.properties.contains_key("client.id") {
        config.set("client.id", "cmc-bridge-replay");
    }
    let producer: ThreadedProducer<Context> = config
        .create_with_context(context.clone())
        .map_err(|error| fail("make a Kafka client", error))?;
    producer
        .init_transactions(COORDINATOR)
        .map_err(|error| fail("begin as a transactional producer", error))?;
    let group = source.consumer.group_metadata();
    let broker = KafkaBroker::new(
        producer,
        group,
        kafka,
        context.clone(),
        Limits::default(),
        names.clone(),
    )?;
    Ok((broker, context, names))
}

impl Topics {
    fn look_up(&mut self, source: &Source, topic: &str) -> Result<Option<&Limits>, BrokerError> {
        if !self.known.contains_key(topic) {
            let exists = topics::exists(source.consumer.client(), topic);
            let exists = exists.map_err(|error| {
                let names = Names {
                    topic: topic.to_owned(),
                    ..source.names.clone()
                };
                explain(&error, "look up the topic", &names, &source.context.last_error)
            })?;
            let limits = exists.then(|| topics::limits(&self.admin, &self.runtime, &[topic]));
            self.known.insert(topic.to_owned(), limits);
        }
        Ok(self.known.get(topic).and_then(Option::as_ref))
    }
}
