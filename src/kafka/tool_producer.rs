//! Writes the records of a command in transactions, together with new positions of its group if it has any.
//!
//! A producer that begins ends the open transaction of every other one with its transactional id and shuts it out. A command reads
//! what it depends on (the positions, the topics) only after that. So two runs never write the same records, and one that is killed
//! leaves all or nothing of its last transaction.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{Offset, TopicPartitionList, admin::AdminClient};
use tokio::runtime::Handle;

use super::{
    broker::{BlockReason, Broker, BrokerError, DeliveryError, Mode, Outgoing, TopicRules},
    callbacks::Callbacks,
    producer::KafkaBroker,
    properties,
    range_reader::RangeReader,
    session::{CommittedOffsets, Session},
    topics::{self, RulesByTopic},
};
use crate::stream::Stream;

/// Writes transactions, with positions of a [`RangeReader`]'s group in its topic. After an error it can't go on until
/// [`ToolProducer::begin_anew`].
pub struct ToolProducer {
    session: Session,
    broker: KafkaBroker,
    mode: Mode,
    topics: KnownTopics,
}

/// The topics' rules. Each topic is asked for once.
struct KnownTopics {
    admin: AdminClient<Callbacks>,
    runtime: Handle,
    /// `None`: the topic does not exist.
    rules: BTreeMap<String, Option<TopicRules>>,
}

impl ToolProducer {
    /// Begins as the producer with this transactional id, and shuts out every other one.
    ///
    /// # Errors
    /// The cluster can't be reached, or refuses a right.
    pub fn begin(
        reader: &RangeReader,
        id: String,
        topics: &[&str],
        runtime: &Handle,
    ) -> Result<ToolProducer, BrokerError> {
        let mut known = KnownTopics {
            admin: reader.session.client(&properties::base(&reader.session))?,
            runtime: runtime.clone(),
            rules: BTreeMap::new(),
        };
        for topic in topics {
            known.look_up(reader, topic)?;
        }
        let (session, broker) = start(reader, id, &known, Mode::Batched)?;
        Ok(ToolProducer {
            session,
            broker,
            mode: Mode::Batched,
            topics: known,
        })
    }

    /// Gives up the open transaction and begins again, with the topics' current rules. Another run may have come in
    /// between: compare the positions.
    ///
    /// # Errors
    /// Those of [`ToolProducer::begin`].
    pub fn begin_anew(&mut self, reader: &RangeReader, mode: Mode) -> Result<(), BrokerError> {
        for topic in std::mem::take(&mut self.topics.rules).into_keys() {
            self.topics.look_up(reader, &topic)?;
        }
        (self.session, self.broker) = start(reader, self.session.group.clone(), &self.topics, mode)?;
        self.mode = mode;
        Ok(())
    }

    /// How records are sent.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A topic's rules; `None` when the topic does not exist.
    ///
    /// # Errors
    /// The cluster gives no answer.
    pub fn topic(&mut self, reader: &RangeReader, topic: &str) -> Result<Option<TopicRules>, BrokerError> {
        self.topics.look_up(reader, topic)
    }

    /// Sends records without a timestamp from now on.
    pub fn omit_timestamps(&mut self) {
        self.broker.omit_timestamps();
    }

    /// When a transaction that begins now must be over.
    pub fn deadline(&self) -> Instant {
        let limit: Duration = self.session.kafka.transaction_timeout * 2 / 3;
        Instant::now() + self.broker.stretch(limit)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// This producer has failed, or another one with its transactional id has begun.
    pub fn begin_transaction(&mut self) -> Result<(), BrokerError> {
        self.broker.begin().map_err(judge(&self.session))
    }

    /// Sends a record. Records are numbered from 0 in their transaction.
    ///
    /// # Errors
    /// Those of [`Broker::send`].
    pub fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        let sent = self.broker.send(record, deadline);
        sent.map_err(judge_delivery(&self.session))
    }

    /// Waits until everything is delivered, and commits it with these positions, if there are any.
    ///
    /// # Errors
    /// Those of [`Broker::delivered`] and [`Broker::commit`].
    pub fn commit(&mut self, positions: &CommittedOffsets, deadline: Instant) -> Result<(), DeliveryError> {
        let delivered = self.broker.delivered(deadline);
        delivered.map_err(judge_delivery(&self.session))?;
        let mut offsets = TopicPartitionList::new();
        for (partition, (offset, metadata)) in positions {
            offsets
                .add_partition_offset(&self.session.topic, *partition, Offset::Offset(*offset))
                .map_err(self.session.failed("name the position"))?;
            if let Some(mut found) = offsets.find_partition(&self.session.topic, *partition) {
                found.set_metadata(metadata);
            }
        }
        let committed = self.broker.commit_offsets(offsets, deadline);
        Ok(committed.map_err(judge(&self.session))?)
    }
}

fn judge_delivery(session: &Session) -> impl Fn(DeliveryError) -> DeliveryError {
    move |error| match error {
        DeliveryError::Failed(error) => judge(session)(error).into(),
        other => other,
    }
}

/// Explains a fence for a command: the explanation for a lane speaks of copies of the spool.
fn judge(session: &Session) -> impl Fn(BrokerError) -> BrokerError {
    move |error| match error.reason {
        BlockReason::Fenced => another_run(&session.group),
        _ => error,
    }
}

/// The error when another run with this transactional id or group has begun.
pub fn another_run(id: &str) -> BrokerError {
    BrokerError {
        reason: BlockReason::Fenced,
        cause: format!(
            "another run with {id} has begun, or a transaction took longer than kafka.transaction_timeout"
        ),
        cure: "Nothing was delivered twice; what is not delivered is left to the other one, or to the next"
            .into(),
    }
}

fn start(
    reader: &RangeReader,
    id: String,
    topics: &KnownTopics,
    mode: Mode,
) -> Result<(Session, KafkaBroker), BrokerError> {
    let session = Session {
        group: id,
        callbacks: Callbacks::uncounted(Stream::DeadLetters, &reader.session.kafka),
        ..reader.session.clone()
    };
    let broker = KafkaBroker::start(session.clone(), topics.rules(), mode, reader.group_metadata())?;
    Ok((session, broker))
}

impl KnownTopics {
    fn rules(&self) -> RulesByTopic {
        let known = self.rules.iter();
        known
            .filter_map(|(topic, rules)| Some((topic.clone(), (*rules)?)))
            .collect()
    }

    fn look_up(&mut self, reader: &RangeReader, topic: &str) -> Result<Option<TopicRules>, BrokerError> {
        if let Some(known) = self.rules.get(topic) {
            return Ok(*known);
        }
        let exists = reader.exists(topic)?;
        let rules =
            exists.then(|| topics::rules(&reader.session, &self.admin, &self.runtime, &[topic]).of(topic));
        self.rules.insert(topic.to_owned(), rules);
        Ok(rules)
    }
}
