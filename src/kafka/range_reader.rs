//! Reads a topic from given offsets to given ends, for commands. Only committed records are seen.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::KafkaError,
    message::BorrowedMessage,
};
use tokio::runtime::Handle;

use super::{
    broker::{BlockReason, BrokerError, TopicRules},
    callbacks::Callbacks,
    properties,
    reader_health::{LOOK_AFTER, Look, ReadErrors, look},
    session::{ASK_AGAIN, COORDINATOR, CommittedOffsets, PATIENCE, Session},
    topics,
};
use crate::{config, stream::Stream};

/// How long a transaction may stay open: the brokers' `transaction.max.timeout.ms` is 15 minutes by default.
const OPEN_TRANSACTIONS: Duration = Duration::from_secs(16 * 60);
/// Reading ends when no partition has had any news for this long.
const SILENCE: Duration = Duration::from_secs(30);

/// A reader of one topic.
pub struct RangeReader {
    pub(super) session: Session,
    consumer: BaseConsumer<Callbacks>,
    partitions: Vec<i32>,
    /// The end of each partition that is still being read.
    ends: BTreeMap<i32, i64>,
    /// How long polls have brought no news.
    silence: Duration,
    errors: ReadErrors,
}

impl RangeReader {
    /// Connects a command (`tool`), and looks up the topic's partitions. The group may have positions in it.
    ///
    /// # Errors
    /// The cluster can't be reached, or the topic can't be read.
    pub fn open(
        kafka: &config::Kafka,
        stream: Stream,
        tool: &str,
        group: &str,
        topic: &str,
    ) -> Result<RangeReader, BrokerError> {
        let client_id = format!("cmc-bridge-{tool}");
        let session = Session::of_tool(kafka, stream, &client_id, group.to_owned()).about(topic);
        let mut config = properties::reader(&session);
        config.set("enable.partition.eof", "true");
        let consumer = session.client(&config)?;
        session.reach(&consumer)?;
        let partitions = topics::readable(&session, &consumer)?;
        Ok(RangeReader {
            session,
            consumer,
            partitions,
            ends: BTreeMap::new(),
            silence: Duration::ZERO,
            errors: ReadErrors::default(),
        })
    }

    /// The offset of each partition's oldest record, and the offset after its newest one.
    ///
    /// # Errors
    /// The cluster does not provide them.
    pub fn bounds(&self) -> Result<BTreeMap<i32, (i64, i64)>, BrokerError> {
        let bounds = self.partitions.iter().map(|partition| {
            let bounds = self
                .consumer
                .fetch_watermarks(&self.session.topic, *partition, PATIENCE)
                .map_err(self.session.failed("read the topic"))?;
            Ok((*partition, bounds))
        });
        bounds.collect()
    }

    /// The offset of each partition's oldest record, and the offset after its newest one now, once every transaction that had
    /// records below that end is over. So all that was sent before this call and counts is read below the end.
    ///
    /// # Errors
    /// The cluster does not provide them, or a transaction is still open after [`OPEN_TRANSACTIONS`].
    pub fn settled_bounds(&self) -> Result<BTreeMap<i32, (i64, i64)>, BrokerError> {
        let mut config = properties::reader(&self.session);
        config.set("isolation.level", "read_uncommitted");
        let uncommitted: BaseConsumer<Callbacks> = self.session.client(&config)?;
        let deadline = Instant::now() + OPEN_TRANSACTIONS;
        let mut bounds = BTreeMap::new();
        for partition in &self.partitions {
            let (first, end) = uncommitted
                .fetch_watermarks(&self.session.topic, *partition, PATIENCE)
                .map_err(self.session.failed("read the topic"))?;
            bounds.insert(*partition, (first, end));
        }
        while self
            .bounds()?
            .iter()
            .any(|(partition, (_, stable))| bounds.get(partition).is_some_and(|(_, end)| stable < end))
        {
            if Instant::now() > deadline {
                return Err(BrokerError {
                    reason: BlockReason::Other,
                    cause: format!(
                        "a transaction on topic {} has been open for {} s, so what is on the topic is not known",
                        self.session.topic,
                        OPEN_TRANSACTIONS.as_secs()
                    ),
                    cure: "Find its producer with kafka-transactions.sh".to_owned(),
                });
            }
            std::thread::sleep(ASK_AGAIN);
        }
        Ok(bounds)
    }

    /// The first offset in each partition whose record has this timestamp or a later one, in milliseconds since the Unix epoch;
    /// `None` if no record has.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub fn offsets_at(&self, millis: i64) -> Result<BTreeMap<i32, Option<i64>>, BrokerError> {
        let failed = self.session.failed("read the topic");
        let mut wanted = TopicPartitionList::new();
        for partition in &self.partitions {
            wanted
                .add_partition_offset(&self.session.topic, *partition, Offset::Offset(millis))
                .map_err(&failed)?;
        }
        let found = self
            .consumer
            .offsets_for_times(wanted, PATIENCE)
            .map_err(&failed)?;
        found
            .elements()
            .into_iter()
            .map(|found| {
                found.error().map_err(&failed)?;
                let offset = match found.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                };
                Ok((found.partition(), offset))
            })
            .collect()
    }

    /// The topic's rules, as far as the cluster shows them.
    ///
    /// # Errors
    /// The client can't be made.
    pub fn rules(&self, runtime: &Handle) -> Result<TopicRules, BrokerError> {
        let admin = self.session.client(&properties::base(&self.session))?;
        let topic = self.session.topic.as_str();
        Ok(topics::rules(&self.session, &admin, runtime, &[topic]).of(topic))
    }

    /// The group's positions. Kafka provides them only once no transaction of a former producer is open.
    ///
    /// # Errors
    /// Kafka does not provide them.
    pub fn committed(&self) -> Result<CommittedOffsets, BrokerError> {
        self.session
            .committed(&self.consumer, &self.partitions, COORDINATOR)
    }

    /// Whether the cluster has this topic.
    ///
    /// # Errors
    /// The cluster gives no answer.
    pub(super) fn exists(&self, topic: &str) -> Result<bool, BrokerError> {
        topics::exists(&self.session, &self.consumer, topic)
    }

    pub(super) fn group_metadata(&self) -> Option<ConsumerGroupMetadata> {
        self.consumer.group_metadata()
    }

    /// The first of these partitions that has a record older than `millis`, in milliseconds since the Unix epoch. A record
    /// without a timestamp counts as older. `from` has their oldest offsets.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub fn any_older(&self, from: &BTreeMap<i32, i64>, millis: i64) -> Result<Option<i32>, BrokerError> {
        let failed = self.session.failed("read the topic");
        let mut wanted = TopicPartitionList::new();
        for partition in from.keys() {
            wanted
                .add_partition_offset(&self.session.topic, *partition, Offset::Offset(millis))
                .map_err(&failed)?;
        }
        let found = self
            .consumer
            .offsets_for_times(wanted, PATIENCE)
            .map_err(&failed)?;
        let older = found.elements().into_iter().find(|found| match found.offset() {
            Offset::Offset(offset) => from.get(&found.partition()).is_some_and(|first| *first < offset),
            // All records are older.
            _ => true,
        });
        Ok(older.map(|found| found.partition()))
    }

    /// Reads these partitions, each from the first offset to before the second.
    ///
    /// # Errors
    /// librdkafka refuses the assignment.
    pub fn assign(&mut self, ranges: &BTreeMap<i32, (i64, i64)>) -> Result<(), BrokerError> {
        let mut list = TopicPartitionList::new();
        let assigned = ranges.iter().try_for_each(|(partition, (start, _))| {
            list.add_partition_offset(&self.session.topic, *partition, Offset::Offset(*start))
        });
        assigned
            .and_then(|()| self.consumer.assign(&list))
            .map_err(self.session.failed("read the topic"))?;
        self.ends = ranges
            .iter()
            .map(|(partition, (_, end))| (*partition, *end))
            .collect();
        Ok(())
    }

    /// Whether everything assigned has been read.
    pub fn at_end(&self) -> bool {
        self.ends.is_empty()
    }

    /// The next record of the assigned partitions, if one arrives within a moment.
    ///
    /// # Errors
    /// A lasting fault, a partition without a leader, or silence: see [`super::reader_health`].
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
            // After its last record a partition may have only transaction markers, or records that are not committed.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.silence = Duration::ZERO;
                self.ends.remove(&partition);
            }
            Some(Err(error)) if self.errors.end_reading(&error, Instant::now()) => {
                return Err(self.session.explain("read the topic", &error));
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

    /// Looks for the reason of the silence.
    fn look(&self) -> Result<(), BrokerError> {
        let silent = self.silence > SILENCE;
        match look(&self.session, &self.consumer) {
            Look::Lost(error) | Look::Leaderless(error) => Err(error),
            Look::Away(error) if silent => Err(error),
            Look::Well if silent => Err(BrokerError {
                reason: BlockReason::Connect,
                cause: format!(
                    "cannot read topic {}: its partitions have leaders, but nothing came from them for {} s",
                    self.session.topic,
                    SILENCE.as_secs()
                ),
                cure: "Look at the brokers' logs".into(),
            }),
            Look::Well | Look::Away(_) => Ok(()),
        }
    }
}
