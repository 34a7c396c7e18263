//! A session: makes the clients of one lane or tool, explains their errors, and reads the group's committed offsets.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    config::{ClientConfig, FromClientConfigAndContext},
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::Metadata,
    types::RDKafkaErrorCode as Code,
};
use tracing::debug;

use super::{
    broker::BrokerError,
    callbacks::Callbacks,
    explain::{self, Names},
};
use crate::{config, stream::Stream};

/// Longest wait for one answer of the cluster.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a tool, which a person waits for.
pub const TOOL_PATIENCE: Duration = Duration::from_secs(5);
/// Kafka takes a while to find the coordinator of a group or transactional id that is new to it.
pub const COORDINATOR: Duration = Duration::from_secs(15);
/// Pause before a question is repeated.
pub const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for a consumer's reports. The producer's may come in between.
const LISTEN: Duration = Duration::from_millis(500);

/// A group's committed offset and its metadata, for each partition that has one.
pub type CommittedOffsets = BTreeMap<i32, (i64, String)>;

/// The state that the clients of one lane or tool share.
#[derive(Clone)]
pub struct Session {
    pub kafka: Arc<config::Kafka>,
    /// `client.id`, unless the operator sets one.
    pub client_id: String,
    /// The consumer group, which is also the transactional id.
    pub group: String,
    /// The topic that error messages name.
    pub topic: String,
    pub callbacks: Callbacks,
}

impl Session {
    /// A session of a tool, which no metric counts.
    pub fn of_tool(kafka: &config::Kafka, stream: Stream, client_id: &str, group: String) -> Session {
        Session {
            kafka: Arc::new(kafka.clone()),
            client_id: client_id.to_owned(),
            group,
            topic: String::new(),
            callbacks: Callbacks::uncounted(stream, kafka),
        }
    }

    /// The same session, with error messages about this topic.
    pub fn about(&self, topic: &str) -> Session {
        Session {
            topic: topic.to_owned(),
            ..self.clone()
        }
    }

    /// Makes a client. No broker needs to be reachable for that.
    ///
    /// # Errors
    /// librdkafka refuses a property, or a file that one names.
    pub fn client<T: FromClientConfigAndContext<Callbacks>>(
        &self,
        config: &ClientConfig,
    ) -> Result<T, BrokerError> {
        T::from_config_and_context(config, self.callbacks.clone()).map_err(self.failed("make a Kafka client"))
    }

    /// Explains an error that occurred while `doing` something.
    pub fn explain(&self, doing: &str, error: &KafkaError) -> BrokerError {
        explain::explain(error, doing, &self.names(), &self.callbacks.last_error)
    }

    /// [`Session::explain`] for `map_err`.
    pub fn failed(&self, doing: &'static str) -> impl Fn(KafkaError) -> BrokerError {
        move |error| self.explain(doing, &error)
    }

    /// Explains why the topic could not be created.
    pub fn explain_creation(&self, error: &KafkaError) -> BrokerError {
        explain::explain_creation(error, &self.names(), &self.callbacks.last_error)
    }

    fn names(&self) -> Names<'_> {
        Names {
            topic: &self.topic,
            group: &self.group,
            kafka: &self.kafka,
        }
    }

    /// Gets a first answer from the cluster.
    ///
    /// # Errors
    /// No broker answers within [`TOOL_PATIENCE`], or TLS or the credentials fail.
    pub fn reach(&self, consumer: &BaseConsumer<Callbacks>) -> Result<Metadata, BrokerError> {
        let deadline = Instant::now() + TOOL_PATIENCE;
        loop {
            let error = match consumer.fetch_metadata(Some(&self.topic), Duration::from_secs(1)) {
                Ok(metadata) => return Ok(metadata),
                Err(error) => error,
            };
            let hopeless = listen(consumer).iter().any(|report| {
                matches!(
                    report.rdkafka_error_code(),
                    Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL)
                )
            });
            if hopeless || Instant::now() >= deadline {
                return Err(self.explain("reach a broker", &error));
            }
        }
    }

    /// The offsets that the group has committed for these partitions of the topic. The broker answers only once no
    /// transaction of a former producer is open.
    ///
    /// # Errors
    /// No answer came within `limit`, or the broker refused one.
    pub fn committed(
        &self,
        consumer: &BaseConsumer<Callbacks>,
        partitions: &[i32],
        limit: Duration,
    ) -> Result<CommittedOffsets, BrokerError> {
        let deadline = Instant::now() + limit;
        loop {
            let mut wanted = TopicPartitionList::new();
            for partition in partitions {
                wanted.add_partition(&self.topic, *partition);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = consumer.committed_offsets(wanted, left);
            let error = match answer.and_then(|list| offsets(&list)) {
                Ok(offsets) => return Ok(offsets),
                Err(error) => error,
            };
            if !is_transient(&error) || Instant::now() + ASK_AGAIN >= deadline {
                listen(consumer);
                return Err(self.explain("read the position", &error));
            }
            debug!(%error, "the position can't be read yet");
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

fn offsets(list: &TopicPartitionList) -> Result<CommittedOffsets, KafkaError> {
    let mut committed = CommittedOffsets::new();
    for found in list.elements() {
        found.error()?;
        if let Offset::Offset(offset) = found.offset() {
            committed.insert(found.partition(), (offset, found.metadata().to_owned()));
        }
    }
    Ok(committed)
}

/// Whether a question to a group's coordinator is worth repeating: the coordinator is not ready, or an open transaction
/// holds the offset back. So is a question that timed out, as long as the caller's own limit lasts.
pub fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::UnstableOffsetCommit
                | Code::WaitingForCoordinator
                | Code::OperationTimedOut
        )
    )
}

/// Takes the reports of a consumer that reads no records. Only a poll hands its errors and log lines to the callbacks, and
/// an explanation needs those.
pub fn listen(consumer: &BaseConsumer<Callbacks>) -> Vec<KafkaError> {
    let deadline = Instant::now() + LISTEN;
    let mut reports = Vec::new();
    loop {
        // A poll without a result may have taken a log line, and more may follow.
        let heard = consumer.context().heard();
        let event = consumer.poll(Duration::ZERO);
        let silent = event.is_none() && consumer.context().heard() == heard;
        reports.extend(event.and_then(Result::err));
        if silent || Instant::now() > deadline {
            return reports;
        }
    }
}
