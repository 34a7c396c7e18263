//! The scenes of the simulated broker, played with Kafka.

#[path = "../../src/kafka/tests/conformance.rs"]
mod scenes;

use std::time::Duration;

use cmc_bridge::{
    config::{self, Delivery},
    kafka::{
        broker,
        producer::{self, KafkaConnect},
    },
    metrics, stream,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use self::scenes::{SceneTopic, Temper, World, play};
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

    /// A withdrawn right has a test of its own, because it takes a broker with users; coordinators move among several brokers.
    fn can(&self, temper: Temper, _: &[usize]) -> bool {
        !matches!(temper, Temper::Forbidden | Temper::Moving)
    }

    fn make_topic(&self, temper: Temper) -> SceneTopic<KafkaConnect> {
        let name = unique("scene");
        let config: &[(&str, &str)] = match temper {
            Temper::Refusing => &[("cleanup.policy", "compact")],
            // The time of sending is always before the broker's time.
            Temper::Untimely => &[("message.timestamp.before.max.ms", "0")],
            Temper::Kind | Temper::Forbidden | Temper::Moving => &[],
        };
        topics::create_named(self.bootstrap, &name, 1, config);
        SceneTopic::of_cluster(name, self.bootstrap, self.delivery, self.runtime.handle())
    }

    fn forbid(&self, _: &SceneTopic<KafkaConnect>) {}

    fn move_coordinators(&self, _: Uuid) {}

    fn take_timestamps(&self, topic: &SceneTopic<KafkaConnect>) {
        topics::configure(
            self.bootstrap,
            &topic.name,
            "message.timestamp.before.max.ms",
            "86400000",
        );
    }

    fn read(&self, topic: &SceneTopic<KafkaConnect>) -> Vec<String> {
        // On a compacted topic the harness's own records at the end need keys, and have them.
        let mut reader = Reader::new(self.bootstrap, &topic.name);
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
        assert_eq!(play(&world, delivery == Delivery::ExactlyOnce), 9);
    }
}
