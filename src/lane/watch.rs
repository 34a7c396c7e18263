//! Watching topics from outside, for `tap`: the client properties of the configuration, committed records only, no
//! position of its own.

use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use crate::{config, stream::Stream};

use super::{
    broker::BrokerError,
    cause::{ends_reading, explain},
    client::{self, Context},
    probe::{PATIENCE, describe, names, reach},
};

/// A consumer of whole topics that is in nobody's way.
pub struct Watcher {
    pub consumer: BaseConsumer<Context>,
    context: Context,
    kafka: config::Kafka,
    group: String,
}

impl Watcher {
    /// A client with the configuration's properties. Its group's name begins as the lanes' do, so that their rights cover
    /// it; it never joins or commits anything.
    pub fn new(kafka: &config::Kafka) -> Result<Watcher, BrokerError> {
        let context = Context::uncounted(Stream::Deliveries);
        let group = format!("{}.tap", kafka.id_prefix);
        let mut config = client::consumer(kafka, Stream::Deliveries, &group);
        for (name, value) in [
            ("client.id", "cmc-bridge-tap"),
            ("fetch.wait.max.ms", "50"),
            ("enable.auto.offset.store", "false"),
        ] {
            if !kafka.properties.contains_key(name) {
                config.set(name, value);
            }
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
        })
    }

    /// Reads the topics from now on: from their beginning, or from what comes after this call. Gives the number of
    /// partitions.
    pub fn assign(&self, topics: &[&str], from: From) -> Result<usize, BrokerError> {
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
        let fail = |error| self.explain(&error, "read the topics", topics.first().unwrap_or(&""));
        self.consumer.assign(&list).map_err(fail)?;
        Ok(list.count())
    }

    /// What an error met while reading means; `None` when reading goes on by itself.
    pub fn judge(&self, error: &KafkaError, topics: &[&str]) -> Option<BrokerError> {
        ends_reading(error).then(|| self.explain(error, "read the topics", &topics.join(", ")))
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
