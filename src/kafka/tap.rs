//! Watching topics from outside, for `tap`: the client properties of the configuration, committed records only, no
//! position of its own.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode as Code,
};

use crate::{config, stream::Stream};

use super::{
    broker::BrokerError,
    client::{self, Context},
    explain::explain,
    probe::{PATIENCE, describe, names, reach},
    reader_health::{Errors, LOOK_AFTER, Look, leaderless, look},
};

/// How long a poll waits for a record.
const WAIT: Duration = Duration::from_millis(200);
/// So many looks in a row must find trouble before it is told: a busy cluster may be late once.
const TOLD_AFTER: u32 = 2;

/// A consumer of whole topics that is in nobody's way.
pub struct Watcher {
    consumer: BaseConsumer<Context>,
    context: Context,
    kafka: config::Kafka,
    group: String,
    topics: Vec<String>,
    errors: Errors,
    /// When the topics were looked at.
    looked: Instant,
    /// How many looks in a row found a topic that can't be read.
    troubles: u32,
}

/// What came of a poll.
pub enum Polled<'w> {
    Record(BorrowedMessage<'w>),
    /// Nothing can be read of some topic now, for this reason; it may pass, and reading goes on.
    Trouble(BrokerError),
    /// The trouble is over.
    Well,
    Nothing,
}

impl Watcher {
    /// A client with the configuration's properties. Its group's name begins as the lanes' do, so that their rights cover
    /// it; it never joins or commits anything.
    pub fn new(kafka: &config::Kafka) -> Result<Watcher, BrokerError> {
        let context = Context::uncounted(Stream::Deliveries);
        let group = format!("{}.tap", kafka.id_prefix);
        let mut config = client::reader(kafka, Stream::Deliveries, &group, "cmc-bridge-tap");
        if !kafka.properties.contains_key("fetch.wait.max.ms") {
            config.set("fetch.wait.max.ms", "50");
        }
        let consumer = BaseConsumer::from_config_and_context(&config, context.clone());
        let consumer = consumer.map_err(|error| {
            let names = names(kafka, &group, "");
            explain(&error, "make a Kafka client", &names, &context.last_error)
        })?;
        Ok(Watcher {
            consumer,
            context,
            kafka: kafka.clone(),
            group,
            topics: Vec::new(),
            errors: Errors::default(),
            looked: Instant::now(),
            troubles: 0,
        })
    }

    /// Reads the topics from now on: from their beginning, or from what comes after this call. Gives the number of
    /// partitions.
    pub fn assign(&mut self, topics: &[&str], from: From) -> Result<usize, BrokerError> {
        let mut list = TopicPartitionList::new();
        if let Some(topic) = topics.first() {
            reach(&self.consumer, topic).map_err(|error| self.explain(&error, "reach a broker", topic))?;
        }
        for topic in topics {
            let fail = |error| self.explain(&error, "read the topic", topic);
            let found = describe(&self.consumer, topic).map_err(fail)?;
            if found.partitions.is_empty() {
                return Err(fail(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)));
            }
            if let Some(error) = leaderless(topic, &found) {
                return Err(error);
            }
            for partition in found.partitions {
                let offset = match from {
                    From::Beginning => Offset::Beginning,
                    // Asked for here, so that nothing is missed between this call and the first fetch.
                    From::End => {
                        let ends = self.consumer.fetch_watermarks(topic, partition, PATIENCE);
                        Offset::Offset(ends.map_err(fail)?.1)
                    }
                };
                list.add_partition_offset(topic, partition, offset)
                    .map_err(fail)?;
            }
        }
        let fail = |error| self.explain(&error, "read the topics", &topics.join(", "));
        self.consumer.assign(&list).map_err(fail)?;
        self.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        self.looked = Instant::now();
        Ok(list.count())
    }

    /// The next record, if one comes within a moment. Now and then the topics are looked at, which takes seconds when the
    /// cluster doesn't answer.
    ///
    /// # Errors
    /// What won't pass by itself: see [`super::reader_health`].
    pub fn poll(&mut self) -> Result<Polled<'_>, BrokerError> {
        match self.consumer.poll(WAIT) {
            Some(Ok(record)) => return Ok(Polled::Record(record)),
            Some(Err(error)) if self.errors.end_reading(&error, Instant::now()) => {
                return Err(self.explain(&error, "read the topics", &self.topics.join(", ")));
            }
            _ if self.looked.elapsed() < LOOK_AFTER => return Ok(Polled::Nothing),
            _ => {}
        }
        let trouble = self.look()?;
        self.looked = Instant::now();
        let before = self.troubles;
        self.troubles = if trouble.is_some() { before + 1 } else { 0 };
        Ok(match trouble {
            Some(error) if self.troubles == TOLD_AFTER => Polled::Trouble(error),
            None if before >= TOLD_AFTER => Polled::Well,
            _ => Polled::Nothing,
        })
    }

    /// What keeps a topic from being read now.
    fn look(&self) -> Result<Option<BrokerError>, BrokerError> {
        for topic in &self.topics {
            match look(&self.consumer, topic) {
                Look::Well => {}
                Look::Leaderless(error) => return Ok(Some(error)),
                Look::Away(error) => return Ok(Some(self.explain(&error, "read the topic", topic))),
                Look::Lost(error) => return Err(self.explain(&error, "read the topic", topic)),
            }
        }
        Ok(None)
    }

    fn explain(&self, error: &KafkaError, doing: &str, topic: &str) -> BrokerError {
        let names = names(&self.kafka, &self.group, topic);
        explain(error, doing, &names, &self.context.last_error)
    }
}

/// Where a [`Watcher`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Beginning,
    End,
}
