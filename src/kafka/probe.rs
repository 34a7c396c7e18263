//! Questions to a cluster that change nothing in it, with the very client properties of the lanes: for `check --live`.
//!
//! What librdkafka gives no way to ask, and what only a write would tell, is not asked: WRITE on a topic, READ on a group.
//! WRITE on a transactional id *can* be asked: Kafka looks at the rights first and then at the transaction time-out, and
//! keeps nothing of a request with one above its limit. A probe therefore asks for the longest that the protocol has.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ConfigEntry, ResourceSpecifier},
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::Metadata,
    producer::{BaseProducer, Producer},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use uuid::Uuid;

pub use super::client::codecs;
use crate::{config, stream::Stream};

use super::{
    broker::{BrokerError, Mode},
    client::{self, Context},
    explain::{Names, explain},
    reader_health::Errors,
};

/// Most time for one question to the cluster.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Kafka takes a while to find the coordinator of a group or transactional id that is asked for the first time.
const COORDINATOR: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Above every `transaction.max.timeout.ms` but one: the largest that the protocol has.
const TOO_LONG: &str = "2147483647";

/// Makes the clients of a lane without asking any broker.
///
/// # Errors
/// What librdkafka has against the properties together, or against a file that one names. The lane would be blocked by it.
pub fn make_clients(kafka: &config::Kafka, stream: Stream) -> Result<(), BrokerError> {
    let id = lane_id(kafka, stream);
    let context = Context::uncounted(stream);
    let mut producer = client::producer(kafka, stream, &id, Mode::Batched, kafka.transaction_timeout, None);
    let mut consumer = client::consumer(kafka, stream, &id);
    for config in [&mut producer, &mut consumer] {
        config.remove("bootstrap.servers");
    }
    let made = BaseProducer::from_config_and_context(&producer, context.clone())
        .map(|_: BaseProducer<Context>| ())
        .and_then(|()| BaseConsumer::from_config_and_context(&consumer, context.clone()))
        .map(|_: BaseConsumer<Context>| ());
    let names = names(kafka, &id, "");
    made.map_err(|error| explain(&error, "make a Kafka client", &names, &context.last_error))
}

/// A cluster that answered.
pub struct Probe {
    admin: AdminClient<Context>,
    consumer: BaseConsumer<Context>,
    context: Context,
    kafka: config::Kafka,
    runtime: Handle,
    stream: Stream,
    pub brokers: Vec<(i32, String)>,
    pub cluster_id: Option<String>,
}

/// A topic as the cluster describes it.
#[derive(Debug)]
pub struct Topic {
    /// Ids of its partitions; none when there is no such topic.
    pub partitions: Vec<i32>,
    /// Partitions that can't be written now.
    pub without_leader: usize,
    /// The fewest replicas that a partition has.
    pub replicas: usize,
}

/// The settings of a topic that matter here, where the cluster tells them.
#[derive(Debug, Default)]
pub struct TopicSettings {
    pub max_message_bytes: Option<usize>,
    pub cleanup_policy: Option<String>,
    pub compression_type: Option<String>,
}

/// The settings of a broker that matter here, where the cluster tells them.
#[derive(Debug, Default)]
pub struct BrokerSettings {
    pub transaction_max_timeout: Option<Duration>,
    /// `inter.broker.protocol.version`, which Kafka had before 4.0.
    pub protocol_version: Option<String>,
}

/// What asking for a right came to.
#[derive(Debug)]
pub enum Answer {
    Granted,
    /// With what to grant.
    Refused(BrokerError),
    /// It is there, but what it is for fails.
    Useless(BrokerError),
    /// Nothing came, or something else than an answer.
    Unknown(BrokerError),
}

impl Probe {
    /// Connects as the lane of this stream would.
    pub fn connect(
        kafka: &config::Kafka,
        stream: Stream,
        topic: &str,
        runtime: &Handle,
    ) -> Result<Probe, BrokerError> {
        make_clients(kafka, stream)?;
        let context = Context::uncounted(stream);
        let group = lane_id(kafka, stream);
        let names = names(kafka, &group, topic);
        let fail = |doing: &str, error: KafkaError| explain(&error, doing, &names, &context.last_error);
        let admin = AdminClient::from_config_and_context(&client::base(kafka, stream), context.clone())
            .map_err(|error| fail("make a Kafka client", error))?;
        let mut config = client::consumer(kafka, stream, &group);
        config.set("enable.partition.eof", "true");
        let consumer = BaseConsumer::from_config_and_context(&config, context.clone())
            .map_err(|error| fail("make a Kafka client", error))?;
        let metadata = reach(&consumer, topic).map_err(|error| fail("reach a broker", error))?;
        let mut brokers: Vec<(i32, String)> = metadata
            .brokers()
            .iter()
            .map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port())))
            .collect();
        brokers.sort();
        let cluster_id = admin.inner().fetch_cluster_id(PATIENCE);
        Ok(Probe {
            admin,
            consumer,
            context,
            kafka: kafka.clone(),
            runtime: runtime.clone(),
            stream,
            brokers,
            cluster_id,
        })
    }

    fn explain(&self, error: &KafkaError, doing: &str, topic: &str) -> BrokerError {
        let any_log = format!("{}.{}.*", self.kafka.id_prefix, self.stream);
        let names = names(&self.kafka, &any_log, topic);
        explain(error, doing, &names, &self.context.last_error)
    }

    /// A topic's partitions. Needs DESCRIBE on it.
    pub fn topic(&self, name: &str) -> Result<Topic, BrokerError> {
        describe(&self.consumer, name).map_err(|error| self.explain(&error, "look up the topic", name))
    }

    /// A topic's settings; `None` when the cluster doesn't tell. Needs DESCRIBE_CONFIGS on the topic, which the bridge
    /// itself can do without.
    pub fn topic_settings(&self, name: &str) -> Option<TopicSettings> {
        let entries = self.settings(ResourceSpecifier::Topic(name))?;
        Some(TopicSettings {
            max_message_bytes: value(&entries, "max.message.bytes").and_then(|value| value.parse().ok()),
            cleanup_policy: value(&entries, "cleanup.policy"),
            compression_type: value(&entries, "compression.type"),
        })
    }

    /// The settings of one of the brokers; `None` when it doesn't tell. Needs DESCRIBE_CONFIGS on the cluster.
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
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let asked = self.admin.describe_configs([&resource], &options);
        let answers = self.runtime.block_on(asked).ok()?;
        // Without the right the answer is an empty list, and no error.
        let resource = answers.into_iter().next()?.ok()?;
        (!resource.entries.is_empty()).then_some(resource.entries)
    }

    /// READ on a topic, by fetching its last record: one that can't be decoded is found, too. Nothing is taken away from
    /// anybody.
    pub fn may_read(&self, topic: &str) -> Answer {
        let doing = "read the topic";
        let mut errors = Errors::default();
        let mut partitions = TopicPartitionList::new();
        let assigned = partitions
            // The last offset may be a transaction's marker.
            .add_partition_offset(topic, 0, Offset::OffsetTail(2))
            .and_then(|()| self.consumer.assign(&partitions));
        if let Err(error) = assigned {
            return Answer::Unknown(self.explain(&error, doing, topic));
        }
        let answer = self.within(PATIENCE, || {
            match self.consumer.poll(ASK_AGAIN)? {
                Ok(_) | Err(KafkaError::PartitionEOF(_)) => Some(Ok(())),
                Err(error) if errors.end_reading(&error, Instant::now()) => Some(Err(error)),
                // Of the group, or of a connection: others ask for those.
                Err(_) => None,
            }
        });
        let _ = self.consumer.unassign();
        match answer {
            Some(Err(error)) if error.rdkafka_error_code() != Some(Code::TopicAuthorizationFailed) => {
                Answer::Useless(self.explain(&error, doing, topic))
            }
            answer => self.answer(answer, doing, topic),
        }
    }

    /// DESCRIBE on a lane's group, by reading its position.
    pub fn may_describe_group(&self, topic: &str) -> Answer {
        let answer = self.within(COORDINATOR, || {
            let mut partitions = TopicPartitionList::new();
            partitions.add_partition(topic, 0);
            let asked = self
                .consumer
                .committed_offsets(partitions, Duration::from_secs(1));
            let asked = asked.and_then(|list| list.elements().iter().try_for_each(|found| found.error()));
            // A coordinator that may not be asked for is reported to the client, and the call only times out.
            let mut reports =
                std::iter::from_fn(|| self.consumer.poll(Duration::ZERO)).filter_map(Result::err);
            let refused =
                reports.find(|report| report.rdkafka_error_code() == Some(Code::GroupAuthorizationFailed));
            match (asked, refused) {
                (Err(_), Some(refused)) => Some(Err(refused)),
                (Err(error), None) if passing(&error) => {
                    std::thread::sleep(ASK_AGAIN);
                    None
                }
                (other, _) => Some(other),
            }
        });
        self.answer(answer, "look up the consumer group", topic)
    }

    /// DESCRIBE and WRITE on a lane's transactional id; see the head of this module.
    pub fn may_begin_transactions(&self, topic: &str) -> Answer {
        let doing = "ask for a transactional id";
        let id = lane_id(&self.kafka, self.stream);
        let mut config = client::producer(
            &self.kafka,
            self.stream,
            &id,
            Mode::Batched,
            self.kafka.transaction_timeout,
            None,
        );
        config.set("transaction.timeout.ms", TOO_LONG);
        let producer: Result<BaseProducer<Context>, _> =
            BaseProducer::from_config_and_context(&config, self.context.clone());
        match producer.and_then(|producer| producer.init_transactions(COORDINATOR)) {
            Err(error) if error.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout) => {
                Answer::Granted
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

    fn answer(&self, answer: Option<Result<(), KafkaError>>, doing: &str, topic: &str) -> Answer {
        let answer = answer.unwrap_or(Err(KafkaError::MetadataFetch(Code::OperationTimedOut)));
        let Err(error) = answer else {
            return Answer::Granted;
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
            true => Answer::Refused(error),
            false => Answer::Unknown(error),
        }
    }
}

/// An id with the name that a lane's own begins with; no log has this UUID.
fn lane_id(kafka: &config::Kafka, stream: Stream) -> String {
    format!("{}.{stream}.{}", kafka.id_prefix, Uuid::nil())
}

pub(super) fn names(kafka: &config::Kafka, group: &str, topic: &str) -> Names {
    Names {
        topic: topic.to_owned(),
        group: group.to_owned(),
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        unshown: kafka.unshown(),
    }
}

fn value(entries: &[ConfigEntry], name: &str) -> Option<String> {
    let entry = entries.iter().find(|entry| entry.name == name)?;
    entry.value.clone()
}

fn passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::WaitingForCoordinator
                | Code::OperationTimedOut
        )
    )
}

/// Gets a first answer from the cluster.
pub(super) fn reach(consumer: &BaseConsumer<Context>, topic: &str) -> Result<Metadata, KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match consumer.fetch_metadata(Some(topic), Duration::from_secs(1)) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        // Only a poll hands the client's own errors to the context, which then knows why.
        let mut reports = std::iter::from_fn(|| consumer.poll(Duration::ZERO)).filter_map(Result::err);
        let hopeless = reports.any(|report| {
            matches!(
                report.rdkafka_error_code(),
                Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL)
            )
        });
        if hopeless || Instant::now() >= deadline {
            return Err(error);
        }
    }
}

/// A topic's partitions; none when there is no such topic.
pub(super) fn describe(consumer: &BaseConsumer<Context>, name: &str) -> Result<Topic, KafkaError> {
    describe_within(consumer, name, PATIENCE)
}

pub(super) fn describe_within(
    consumer: &BaseConsumer<Context>,
    name: &str,
    patience: Duration,
) -> Result<Topic, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(name), patience)?;
    let mut topic = Topic {
        partitions: Vec::new(),
        without_leader: 0,
        replicas: 0,
    };
    let Some(found) = metadata.topics().iter().find(|found| found.name() == name) else {
        return Ok(topic);
    };
    match found.error().map(Code::from) {
        None => {}
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(topic),
        Some(code) => return Err(KafkaError::MetadataFetch(code)),
    }
    let partitions = found.partitions();
    topic.partitions = partitions.iter().map(|partition| partition.id()).collect();
    topic.without_leader = partitions
        .iter()
        .filter(|partition| partition.leader() < 0)
        .count();
    topic.replicas = partitions
        .iter()
        .map(|partition| partition.replicas().len())
        .min()
        .unwrap_or(0);
    Ok(topic)
}
