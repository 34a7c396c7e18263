//! Reads topics for `tap`: with the client properties of the configuration, committed records only, and no position of its
//! own.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::BorrowedMessage,
};

use super::{
    broker::BrokerError,
    callbacks::Callbacks,
    properties,
    reader_health::{LOOK_AFTER, Look, ReadErrors, look},
    session::{Session, TOOL_PATIENCE},
    topics,
};
use crate::{config, stream::Stream};

/// How long a poll waits for a record.
const WAIT: Duration = Duration::from_millis(200);
/// This many looks in a row must find trouble before it is reported: a busy cluster may be late once.
const REPORTED_AFTER: u32 = 2;

/// A consumer of whole topics that disturbs nobody.
pub struct TapReader {
    session: Session,
    consumer: BaseConsumer<Callbacks>,
    topics: Vec<String>,
    errors: ReadErrors,
    /// When the topics were last looked at.
    looked: Instant,
    /// How many looks in a row found a topic that can't be read.
    troubles: u32,
}

/// The result of a poll.
pub enum Polled<'t> {
    Record(BorrowedMessage<'t>),
    /// A topic can't be read now, for this reason. It may pass, and reading goes on.
    Trouble(BrokerError),
    /// The trouble is over.
    Well,
    Nothing,
}

/// Where a [`TapReader`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    Beginning,
    End,
}

impl TapReader {
    /// A client with the configuration's properties. Its group's name begins like the lanes' group names, so their rights
    /// cover it. It never joins the group or commits anything.
    ///
    /// # Errors
    /// librdkafka refuses the properties.
    pub fn new(kafka: &config::Kafka) -> Result<TapReader, BrokerError> {
        let group = format!("{}.tap", kafka.id_prefix);
        let session = Session::of_tool(kafka, Stream::Deliveries, "cmc-bridge-tap", group);
        let mut config = properties::reader(&session);
        if !kafka.properties.contains_key("fetch.wait.max.ms") {
            config.set("fetch.wait.max.ms", "50");
        }
        Ok(TapReader {
            consumer: session.client(&config)?,
            session,
            topics: Vec::new(),
            errors: ReadErrors::default(),
            looked: Instant::now(),
            troubles: 0,
        })
    }

    /// Reads the topics from their beginning, or from what arrives after this call. Returns the number of partitions.
    ///
    /// # Errors
    /// The cluster can't be reached, or a topic can't be read.
    pub fn assign(&mut self, topics: &[&str], from: ReadFrom) -> Result<usize, BrokerError> {
        let mut list = TopicPartitionList::new();
        if let Some(topic) = topics.first() {
            self.session.about(topic).reach(&self.consumer)?;
        }
        for topic in topics {
            let session = self.session.about(topic);
            let failed = session.failed("read the topic");
            for partition in topics::readable(&session, &self.consumer)? {
                let offset = match from {
                    ReadFrom::Beginning => Offset::Beginning,
                    // Asked for here, so that nothing is missed between this call and the first fetch.
                    ReadFrom::End => {
                        let ends = self.consumer.fetch_watermarks(topic, partition, TOOL_PATIENCE);
                        Offset::Offset(ends.map_err(&failed)?.1)
                    }
                };
                list.add_partition_offset(topic, partition, offset)
                    .map_err(&failed)?;
            }
        }
        self.session.topic = topics.join(", ");
        self.consumer
            .assign(&list)
            .map_err(self.session.failed("read the topics"))?;
        self.topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        self.looked = Instant::now();
        Ok(list.count())
    }

    /// The next record, if one arrives within a moment. Now and then it looks at the topics, which takes seconds when the
    /// cluster doesn't answer.
    ///
    /// # Errors
    /// A lasting fault: see [`super::reader_health`].
    pub fn poll(&mut self) -> Result<Polled<'_>, BrokerError> {
        match self.consumer.poll(WAIT) {
            Some(Ok(record)) => return Ok(Polled::Record(record)),
            Some(Err(error)) if self.errors.end_reading(&error, Instant::now()) => {
                return Err(self.session.explain("read the topics", &error));
            }
            _ if self.looked.elapsed() < LOOK_AFTER => return Ok(Polled::Nothing),
            _ => {}
        }
        let trouble = self.look()?;
        self.looked = Instant::now();
        let before = self.troubles;
        self.troubles = if trouble.is_some() { before + 1 } else { 0 };
        Ok(match trouble {
            Some(error) if self.troubles == REPORTED_AFTER => Polled::Trouble(error),
            None if before >= REPORTED_AFTER => Polled::Well,
            _ => Polled::Nothing,
        })
    }

    /// Why a topic can't be read now, if one can't.
    fn look(&self) -> Result<Option<BrokerError>, BrokerError> {
        for topic in &self.topics {
            match look(&self.session.about(topic), &self.consumer) {
                Look::Well => {}
                Look::Leaderless(error) | Look::Away(error) => return Ok(Some(error)),
                Look::Lost(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
