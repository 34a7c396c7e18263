//! Topics: whether they exist, how to create them, whether they can be read, and which records they take.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use tracing::{debug, info};

use super::{
    broker::{BlockReason, BrokerError, TopicRules},
    callbacks::Callbacks,
    properties,
    session::{PATIENCE, Session, TOOL_PATIENCE, listen},
};

/// Longest wait for the rules. A lane can do without them.
const RULES_PATIENCE: Duration = Duration::from_secs(2);

/// The known rules of topics, by name.
#[derive(Clone, Debug, Default)]
pub struct RulesByTopic(BTreeMap<String, TopicRules>);

impl FromIterator<(String, TopicRules)> for RulesByTopic {
    fn from_iter<I: IntoIterator<Item = (String, TopicRules)>>(rules: I) -> RulesByTopic {
        RulesByTopic(rules.into_iter().collect())
    }
}

impl RulesByTopic {
    /// A topic's rules; without any limit where they are unknown.
    pub fn of(&self, topic: &str) -> TopicRules {
        self.0.get(topic).copied().unwrap_or_default()
    }

    /// The smallest `max.message.bytes`.
    pub fn smallest(&self) -> Option<usize> {
        self.0.values().filter_map(|rules| rules.max_bytes).min()
    }
}

/// A topic as the cluster describes it.
#[derive(Debug, Default)]
pub struct TopicDescription {
    /// Ids of its partitions; none when the topic does not exist.
    pub partitions: Vec<i32>,
    /// Partitions without a leader, which can't be read or written now.
    pub without_leader: usize,
    /// The fewest replicas that a partition has.
    pub replicas: usize,
}

impl TopicDescription {
    /// Why the topic can't be read now, if partitions have no leader.
    pub fn leaderless(&self, topic: &str) -> Option<BrokerError> {
        (self.without_leader > 0).then(|| BrokerError {
            reason: BlockReason::Connect,
            cause: format!(
                "cannot read topic {topic}: {} of {} partitions have no leader",
                self.without_leader,
                self.partitions.len()
            ),
            cure: "Look at the brokers that hold their replicas".into(),
        })
    }
}

/// Describes a topic.
///
/// # Errors
/// The cluster gives no answer within `limit`, or an error.
pub fn describe(
    consumer: &BaseConsumer<Callbacks>,
    topic: &str,
    limit: Duration,
) -> Result<TopicDescription, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), limit)?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return Ok(TopicDescription::default());
    };
    match found.error().map(Code::from) {
        None => {}
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(TopicDescription::default()),
        Some(code) => return Err(KafkaError::MetadataFetch(code)),
    }
    let partitions = found.partitions().iter();
    Ok(TopicDescription {
        partitions: partitions.clone().map(|partition| partition.id()).collect(),
        without_leader: partitions
            .clone()
            .filter(|partition| partition.leader() < 0)
            .count(),
        replicas: partitions
            .map(|partition| partition.replicas().len())
            .min()
            .unwrap_or(0),
    })
}

/// Whether a topic exists. A consumer asks, because an admin client never says why it can't connect.
///
/// # Errors
/// The cluster gives no answer, or an error.
pub fn exists(
    session: &Session,
    consumer: &BaseConsumer<Callbacks>,
    topic: &str,
) -> Result<bool, BrokerError> {
    let described = describe(consumer, topic, PATIENCE).map_err(|error| {
        listen(consumer);
        session.about(topic).explain("look up the topic", &error)
    })?;
    Ok(!described.partitions.is_empty())
}

/// The partitions of a topic that is about to be read.
///
/// # Errors
/// The topic does not exist, a partition has no leader, or the cluster gives no answer.
pub fn readable(session: &Session, consumer: &BaseConsumer<Callbacks>) -> Result<Vec<i32>, BrokerError> {
    let topic = &session.topic;
    let described = describe(consumer, topic, TOOL_PATIENCE).map_err(session.failed("read the topic"))?;
    if described.partitions.is_empty() {
        let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
        return Err(session.explain("read the topic", &missing));
    }
    match described.leaderless(topic) {
        Some(error) => Err(error),
        None => Ok(described.partitions),
    }
}

/// Creates a topic as configured. One that exists by now is no error.
///
/// # Errors
/// The cluster refuses to create it, or gives no answer.
pub fn create(
    session: &Session,
    admin: &AdminClient<Callbacks>,
    runtime: &Handle,
    topic: &str,
) -> Result<(), BrokerError> {
    let kafka = &session.kafka;
    let partitions = kafka.topic_partitions.map_or(-1, |n| n as i32);
    let replication = kafka.topic_replication.map_or(-1, i32::from);
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let failed = |error| session.about(topic).explain_creation(&error);
    let results = runtime
        .block_on(admin.create_topics([&new], &options))
        .map_err(failed)?;
    for result in results {
        match result {
            Ok(topic) => info!(topic, "the topic has been created"),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

/// Asks for the rules of topics. It is no error if the cluster doesn't show them (no right to describe configurations, not
/// supported): it will take records or refuse them.
pub fn rules(
    session: &Session,
    admin: &AdminClient<Callbacks>,
    runtime: &Handle,
    topics: &[&str],
) -> RulesByTopic {
    let compressed = properties::compresses(&session.kafka);
    let options = AdminOptions::new().request_timeout(Some(RULES_PATIENCE));
    let resources: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    match runtime.block_on(admin.describe_configs(&resources, &options)) {
        Err(error) => {
            debug!(%error, "the topics' configuration can't be read");
            RulesByTopic::default()
        }
        Ok(answers) => {
            let answers = topics.iter().zip(answers);
            answers
                .filter_map(|(topic, answer)| {
                    Some(((*topic).to_owned(), rules_of(&answer.ok()?, compressed)))
                })
                .collect()
        }
    }
}

fn rules_of(topic: &ConfigResource, compressed: bool) -> TopicRules {
    let value = |name: &str| topic.get(name)?.value.as_deref();
    TopicRules {
        max_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
        compressed,
        // A list: `compact`, `delete`, or both.
        compacted: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        retention_ms: value("retention.ms").and_then(|millis| millis.parse().ok()),
        retention_bytes: value("retention.bytes").and_then(|bytes| bytes.parse().ok()),
    }
}
