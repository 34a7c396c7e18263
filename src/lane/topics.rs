//! A lane's topics: whether they are there, and what they take.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::Client,
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use tracing::{debug, info};

use crate::config;

use super::client::Context;

/// Most time for one question to the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most time for the limits, without which a lane can do.
const LIMITS_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a lane's topics: `max.message.bytes` by name, where the broker tells it.
#[derive(Clone, Debug, Default)]
pub struct Limits(BTreeMap<String, usize>);

impl Limits {
    /// A topic's `max.message.bytes`.
    pub fn of(&self, topic: &str) -> Option<usize> {
        self.0.get(topic).copied()
    }

    /// The smallest one.
    pub fn smallest(&self) -> Option<usize> {
        self.0.values().min().copied()
    }
}

/// Whether a topic exists and has partitions.
pub fn exists(client: &Client<Context>, topic: &str) -> Result<bool, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
    let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
        return Ok(false);
    };
    match found.error().map(Code::from) {
        None => Ok(!found.partitions().is_empty()),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(false),
        Some(code) => Err(KafkaError::MetadataFetch(code)),
    }
}

/// Creates a topic as configured; that it exists by now is no error.
pub fn create(
    admin: &AdminClient<Context>,
    runtime: &Handle,
    kafka: &config::Kafka,
    topic: &str,
) -> Result<(), KafkaError> {
    let partitions = kafka.topic_partitions.map_or(-1, |n| n as i32);
    let replication = kafka.topic_replication.map_or(-1, i32::from);
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let results = runtime.block_on(admin.create_topics([&new], &options))?;
    for result in results {
        match result {
            Ok(topic) => info!(topic, "the topic has been created"),
            Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    Ok(())
}

/// Asks for the topics' `max.message.bytes`. A broker that doesn't tell (no right to describe configurations, not
/// supported) is no error: records are then refused by the broker or not.
pub fn limits(admin: &AdminClient<Context>, runtime: &Handle, topics: &[&str]) -> Limits {
    let options = AdminOptions::new().request_timeout(Some(LIMITS_PATIENCE));
    let resources: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    let mut limits = Limits::default();
    match runtime.block_on(admin.describe_configs(&resources, &options)) {
        Err(error) => debug!(%error, "the topics' configuration can't be read"),
        Ok(answers) => {
            for (topic, answer) in topics.iter().zip(answers) {
                let limit = answer
                    .ok()
                    .and_then(|resource| resource.get("max.message.bytes")?.value.clone())
                    .and_then(|value| value.parse().ok());
                if let Some(limit) = limit {
                    limits.0.insert((*topic).to_owned(), limit);
                }
            }
        }
    }
    limits
}
