//! The scenes that the simulated broker plays, with Kafka.

#[path = "../../src/kafka/conformance.rs"]
mod scenes;

use std::{sync::Arc, time::Duration};

use cmc_bridge::{
    config::{self, Delivery},
    kafka::{broker, producer::KafkaConnect},
    metrics::Metrics,
    stream::Stream,
};
use prometheus::Registry;
use tokio::runtime::Runtime;

use self::scenes::{Place, Topic, World, play};
use crate::{
    kafka,
    topics::{self, Reader},
    wait::unique,
};

struct Real {
    bootstrap: &'static str,
    runtime: Runtime,
    delivery: Delivery,
}

impl World for Real {
    type Connect = KafkaConnect;

    /// A withdrawn right has a test of its own, for it takes a broker with users.
    fn can(&self, topic: Topic, _: &[usize]) -> bool {
        topic != Topic::Forbidden
    }

    fn make(&self, topic: Topic) -> Place<KafkaConnect> {
        let name = unique("scene");
        let config: &[(&str, &str)] = match topic {
            Topic::Refusing => &[("cleanup.policy", "compact")],
            // The time of sending is always before the broker's.
            Topic::Untimely => &[("message.timestamp.before.max.ms", "0")],
            Topic::Kind | Topic::Forbidden => &[],
        };
        topics::create_named(self.bootstrap, &name, 1, config);
        let settings = [
            ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
            ("KAFKA__BOOTSTRAP_SERVERS", self.bootstrap),
        ];
        let settings = settings.map(|(key, value)| (format!("CMC_BRIDGE__{key}"), value.to_owned()));
        let loaded = config::load(&[], settings.into_iter()).unwrap();
        let kafka = config::Kafka {
            delivery: self.delivery,
            transaction_timeout: Duration::from_secs(60),
            ..loaded.config.kafka
        };
        let metrics = Metrics::new(&Registry::new(), &[], []).unwrap();
        Place {
            connect: KafkaConnect {
                kafka: Arc::new(kafka),
                stream: Stream::Bounces,
                topic: name.clone(),
                dead_letter_topic: name.clone(),
                runtime: self.runtime.handle().clone(),
                sums: metrics.for_stream(Stream::Bounces).kafka,
            },
            topic: name,
        }
    }

    fn forbid(&self, _: &Place<KafkaConnect>) {}

    fn read(&self, place: &Place<KafkaConnect>) -> Vec<String> {
        // On a compacted topic the harness's own records at the end need keys; it gives them some.
        let mut reader = Reader::new(self.bootstrap, &place.topic);
        let records = reader.read_to_end(Duration::from_secs(180));
        records.iter().map(|record| record.text().to_owned()).collect()
    }
}

#[test]
fn kafka_plays_its_part() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let world = Real {
            bootstrap: kafka::shared(),
            runtime: Runtime::new().unwrap(),
            delivery,
        };
        assert_eq!(play(&world, delivery == Delivery::ExactlyOnce), 7);
    }
}
