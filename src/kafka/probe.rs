//! Questions to a cluster that change nothing in it, asked with the client properties of the lanes: for `check --live`.
//!
//! Two rights are not asked for, because librdkafka has no way to ask or only a write would show it: WRITE on a topic and READ
//! on a group. WRITE on a transactional id *can* be asked for: Kafka checks the rights before the transaction time-out, and
//! keeps nothing of a request whose time-out is above its limit. So a probe requests the longest time-out of the protocol.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ConfigEntry, ResourceSpecifier},
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::{BaseProducer, Producer},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    broker::{BrokerError, Mode},
    callbacks::Callbacks,
    properties,
    reader_health::ReadErrors,
    session::{ASK_AGAIN, COORDINATOR, Session, TOOL_PATIENCE, is_transient, listen},
    topics::describe,
};
pub use super::{explain::codecs, topics::TopicDescription};
use crate::{config, stream::Stream};

/// The longest transaction time-out of the protocol, above every `transaction.max.timeout.ms` but this one.
const TOO_LONG: &str = "2147483647";

/// Makes the clients of a lane without asking any broker.
///
/// # Errors
/// librdkafka refuses the combination of properties, or a file that one names. That would block the lane.
pub fn make_clients(kafka: &config::Kafka, stream: Stream) -> Result<(), BrokerError> {
    let session = session(kafka, stream);
    let mut producer = properties::producer(&session, Mode::Batched, kafka.transaction_timeout, None);
    let mut consumer = properties::consumer(&session);
    for config in [&mut producer, &mut consumer] {
        config.remove("bootstrap.servers");
    }
    let _: BaseProducer<Callbacks> = session.client(&producer)?;
    let _: BaseConsumer<Callbacks> = session.client(&consumer)?;
    Ok(())
}

/// The session of a lane whose group no log has: its UUID is nil.
fn session(kafka: &config::Kafka, stream: Stream) -> Session {
    let group = format!("{}.{stream}.{}", kafka.id_prefix, Uuid::nil());
    Session::of_tool(kafka, stream, &format!("cmc-bridge-{stream}"), group)
}

/// A cluster that answered.
pub struct Probe {
    session: Session,
    /// What error messages call the groups and transactional ids of the stream.
    any_group: String,
    admin: AdminClient<Callbacks>,
    consumer: BaseConsumer<Callbacks>,
    runtime: Handle,
    pub brokers: Vec<(i32, String)>,
    pub cluster_id: Option<String>,
}

/// The settings of a topic that matter to the bridge, where the cluster shows them.
#[derive(Debug, Default)]
pub struct TopicSettings {
    pub max_message_bytes: Option<usize>,
    pub cleanup_policy: Option<String>,
    pub compression_type: Option<String>,
}

/// The settings of a broker that matter to the bridge, where the cluster shows them.
#[derive(Debug, Default)]
pub struct BrokerSettings {
    pub transaction_max_timeout: Option<Duration>,
    /// `inter.broker.protocol.version`, which Kafka had before 4.0.
    pub protocol_version: Option<String>,
}

/// Whether the bridge has a right.
#[derive(Debug)]
pub enum Permission {
    Granted,
    /// The error says what to grant.
    Refused(BrokerError),
    /// The right is granted, but using it fails.
    Useless(BrokerError),
    /// The cluster gave no answer, or an inconclusive one.
    Unknown(BrokerError),
}

impl Probe {
    /// Connects as the lane of this stream would.
    ///
    /// # Errors
    /// librdkafka refuses the properties, or no broker can be reached.
    pub fn connect(
        kafka: &config::Kafka,
        stream: Stream,
        topic: &str,
        runtime: &Handle,
    ) -> Result<Probe, BrokerError> {
        make_clients(kafka, stream)?;
        let session = session(kafka, stream).about(topic);
        let admin: AdminClient<Callbacks> = session.client(&properties::base(&session))?;
        let mut config = properties::consumer(&session);
        config.set("enable.partition.eof", "true");
        let consumer = session.client(&config)?;
        let metadata = session.reach(&consumer)?;
        let mut brokers: Vec<(i32, String)> = metadata
            .brokers()
            .iter()
            .map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port())))
            .collect();
        brokers.sort();
        let cluster_id = admin.inner().fetch_cluster_id(TOOL_PATIENCE);
        Ok(Probe {
            any_group: format!("{}.{stream}.*", kafka.id_prefix),
            session,
            admin,
            consumer,
            runtime: runtime.clone(),
            brokers,
            cluster_id,
        })
    }

    fn explain(&self, error: &KafkaError, doing: &str, topic: &str) -> BrokerError {
        let named = Session {
            group: self.any_group.clone(),
            ..self.session.about(topic)
        };
        named.explain(doing, error)
    }

    /// Describes a topic. Needs DESCRIBE on it.
    ///
    /// # Errors
    /// The cluster gives no answer, or refuses one.
    pub fn topic(&self, name: &str) -> Result<TopicDescription, BrokerError> {
        describe(&self.consumer, name, TOOL_PATIENCE)
            .map_err(|error| self.explain(&error, "look up the topic", name))
    }

    /// A topic's settings; `None` when the cluster doesn't show them. Needs DESCRIBE_CONFIGS on the topic, which the bridge
    /// itself can do without.
    pub fn topic_settings(&self, name: &str) -> Option<TopicSettings> {
        let entries = self.settings(ResourceSpecifier::Topic(name))?;
        Some(TopicSettings {
            max_message_bytes: value(&entries, "max.message.bytes").and_then(|value| value.parse().ok()),
            cleanup_policy: value(&entries, "cleanup.policy"),
            compression_type: value(&entries, "compression.type"),
        })
    }

    /// The settings of one broker; `None` when it doesn't show them. Needs DESCRIBE_CONFIGS on the cluster.
    pub fn broker_settings(&self) -> Option<BrokerSettings> {
        let (id, _) = self.brokers.first()?;
        let entries = self.settings(ResourceSpecifier::Broker(*id))?;
        let timeout = value(&entries, "transaction.max.timeout.ms").and_then(|value| value.parse().ok());
        Some(BrokerSettings {
            transaction_max_timeout: timeout.map(Duration::from_millis),
            protocol_version: value(&entries, "inter.broker.protocol.version"),
        })
    }

    fn settings(&self, resource: ResourceSpecifier<'_>) -> Option<Vec<ConfigEntry>> {
        let options = AdminOptions::new().request_timeout(Some(TOOL_PATIENCE));
        let asked = self.admin.describe_configs([&resource], &options);
        let answers = self.runtime.block_on(asked).ok()?;
        // Without the right, the answer is an empty list and not an error.
        let resource = answers.into_iter().next()?.ok()?;
        (!resource.entries.is_empty()).then_some(resource.entries)
    }

    /// Asks for READ on a topic by fetching its last record, which also finds one that can't be decoded. No other reader
    /// misses a record because of it.
    pub fn may_read(&self, topic: &str) -> Permission {
        let doing = "read the topic";
        let mut errors = ReadErrors::default();
        let mut partitions = TopicPartitionList::new();
        let assigned = partitions
            // The last offset may be a transaction's marker.
            .add_partition_offset(topic, 0, Offset::OffsetTail(2))
            .and_then(|()| self.consumer.assign(&partitions));
        if let Err(error) = assigned {
            return Permission::Unknown(self.explain(&error, doing, topic));
        }
        let answer = self.within(TOOL_PATIENCE, || {
            match self.consumer.poll(ASK_AGAIN)? {
                Ok(_) | Err(KafkaError::PartitionEOF(_)) => Some(Ok(())),
                Err(error) if errors.end_reading(&error, Instant::now()) => Some(Err(error)),
                // This is about the group or a connection, which other questions cover.
                Err(_) => None,
            }
        });
        let _ = self.consumer.unassign();
        match answer {
            Some(Err(error)) if error.rdkafka_error_code() != Some(Code::TopicAuthorizationFailed) => {
                Permission::Useless(self.explain(&error, doing, topic))
            }
            answer => self.answer(answer, doing, topic),
        }
    }

    /// Asks for DESCRIBE on a lane's group by reading its position.
    pub fn may_describe_group(&self, topic: &str) -> Permission {
        let answer = self.within(COORDINATOR, || {
            let mut partitions = TopicPartitionList::new();
            partitions.add_partition(topic, 0);
            let asked = self
                .consumer
                .committed_offsets(partitions, Duration::from_secs(1));
            let asked = asked.and_then(|list| list.elements().iter().try_for_each(|found| found.error()));
            // When the right to find the coordinator is missing, the call only times out, and the client reports why.
            let refused = listen(&self.consumer)
                .into_iter()
                .find(|report| report.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed));
            match (asked, refused) {
                (Err(_), Some(refused)) => Some(Err(refused)),
                (Err(error), None) if is_transient(&error) => {
                    std::thread::sleep(ASK_AGAIN);
                    None
                }
                (other, _) => Some(other),
            }
        });
        self.answer(answer, "look up the consumer group", topic)
    }

    /// Asks for DESCRIBE and WRITE on a lane's transactional id: see the head of this module.
    pub fn may_begin_transactions(&self, topic: &str) -> Permission {
        let doing = "ask for a transactional id";
        let timeout = self.session.kafka.transaction_timeout;
        let mut config = properties::producer(&self.session, Mode::Batched, timeout, None);
        config.set("transaction.timeout.ms", TOO_LONG);
        let producer: BaseProducer<Callbacks> = match self.session.client(&config) {
            Ok(producer) => producer,
            Err(error) => return Permission::Unknown(error),
        };
        match producer.init_transactions(COORDINATOR) {
            Err(error) if error.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout) => {
                Permission::Granted
            }
            answer => self.answer(Some(answer), doing, topic),
        }
    }

    fn within<T>(&self, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = ask() {
                return Some(answer);
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }

    fn answer(&self, answer: Option<Result<(), KafkaError>>, doing: &str, topic: &str) -> Permission {
        let answer = answer.unwrap_or(Err(KafkaError::MetadataFetch(Code::OperationTimedOut)));
        let Err(error) = answer else {
            return Permission::Granted;
        };
        let refused = matches!(
            error.rdkafka_error_code(),
            Some(
                Code::TopicAuthorizationFailed
                    | Code::GroupAuthorizationFailed
                    | Code::TransactionalIdAuthorizationFailed
                    | Code::ClusterAuthorizationFailed
            )
        );
        let error = self.explain(&error, doing, topic);
        match refused {
            true => Permission::Refused(error),
            false => Permission::Unknown(error),
        }
    }
}

fn value(entries: &[ConfigEntry], name: &str) -> Option<String> {
    let entry = entries.iter().find(|entry| entry.name == name)?;
    entry.value.clone()
}
