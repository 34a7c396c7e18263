//! A lane's topics: whether they are there, and what they take.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::Client,
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use tracing::{debug, info};

use crate::config;

use super::{broker::TopicRules, client::Context};

/// Most time for one question to the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most time for the rules, without which a lane can do.
const RULES_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of topics' rules, by name.
#[derive(Clone, Debug, Default)]
pub struct Rules(BTreeMap<String, TopicRules>);

impl FromIterator<(String, TopicRules)> for Rules {
    fn from_iter<I: IntoIterator<Item = (String, TopicRules)>>(rules: I) -> Rules {
        Rules(rules.into_iter().collect())
    }
}

impl Rules {
    /// A topic's rules; none of what the broker doesn't tell.
    pub fn of(&self, topic: &str) -> TopicRules {
        self.0.get(topic).copied().unwrap_or_default()
    }

    /// Other rules for each topic.
    pub fn map(self, other: impl Fn(TopicRules) -> TopicRules) -> Rules {
        let rules = self.0.into_iter();
        rules.map(|(topic, rules)| (topic, other(rules))).collect()
    }

    /// The smallest `max.message.bytes`.
    pub fn smallest(&self) -> Option<usize> {
        self.0.values().filter_map(|rules| rules.max_bytes).min()
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

/// Asks for the topics' rules. A broker that doesn't tell them (no right to describe configurations, not supported) is no
/// error: it then refuses records or not.
pub fn rules(admin: &AdminClient<Context>, runtime: &Handle, topics: &[&str]) -> Rules {
    let options = AdminOptions::new().request_timeout(Some(RULES_PATIENCE));
    let resources: Vec<_> = topics
        .iter()
        .map(|topic| ResourceSpecifier::Topic(topic))
        .collect();
    match runtime.block_on(admin.describe_configs(&resources, &options)) {
        Err(error) => {
            debug!(%error, "the topics' configuration can't be read");
            Rules::default()
        }
        Ok(answers) => {
            let told = topics.iter().zip(answers);
            let told =
                told.filter_map(|(topic, answer)| Some(((*topic).to_owned(), rules_of(&answer.ok()?))));
            told.collect()
        }
    }
}

fn rules_of(topic: &ConfigResource) -> TopicRules {
    let value = |name: &str| topic.get(name)?.value.as_deref();
    TopicRules {
        max_bytes: value("max.message.bytes").and_then(|bytes| bytes.parse().ok()),
        // A list: `compact`, `delete`, or both.
        compacted: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
    }
}
