//! The scenes of [`conformance`] with the simulated broker, and with librdkafka's mock cluster.

mod conformance;

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    mocking::{MockCluster, MockCoordinator},
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use self::conformance::{SceneTopic, Temper, World, play};
use super::{
    broker::{self, Broker, Connect, Mode, Outgoing},
    deliveries::Waited,
    producer,
};
use crate::{
    config::{self, Delivery},
    metrics,
    simulation::broker::{Cluster, Topic},
    spool::Seq,
    stream,
};

const NAME: &str = "topic";
/// Brokers of the mock cluster.
const BROKERS: i32 = 3;

struct Simulated {
    transactional: bool,
    seed: Cell<u64>,
}

impl World for Simulated {
    type Connect = Cluster;

    fn can(&self, _: Temper, _: &[usize]) -> bool {
        true
    }

    fn make_topic(&self, temper: Temper) -> SceneTopic<Cluster> {
        let seed = self.seed.get();
        self.seed.set(seed + 1);
        let cluster = Cluster::new(&[NAME]);
        let mut inner = cluster.lock();
        inner.plain = !self.transactional;
        inner.seed = seed;
        inner.client_limit = Some(1_000_000);
        inner.names_records = seed.is_multiple_of(2);
        inner.request = Some(3000);
        inner.hasty = 4000;
        let mut made = Topic::default();
        made.refuses = (temper == Temper::Refusing).then_some("odd");
        made.clock_differs = temper == Temper::Untimely;
        inner.topics.insert(NAME.to_owned(), made);
        drop(inner);
        SceneTopic {
            name: NAME.to_owned(),
            connect: cluster,
        }
    }

    fn forbid(&self, topic: &SceneTopic<Cluster>) {
        topic.connect.lock().topics.get_mut(NAME).unwrap().forbidden = true;
    }

    /// The simulated cluster's markers have no timestamps.
    fn take_timestamps(&self, _: &SceneTopic<Cluster>) {}

    /// librdkafka finds the new ones, and the lane sees nothing of it.
    fn move_coordinators(&self, _: Uuid) {}

    fn read(&self, topic: &SceneTopic<Cluster>) -> Vec<String> {
        topic.connect.values(NAME)
    }
}

#[test]
fn the_simulated_broker_plays_its_part() {
    for transactional in [true, false] {
        for seed in 0..6 {
            let world = Simulated {
                transactional,
                seed: Cell::new(seed * 1000),
            };
            assert_eq!(play(&world, transactional), 11);
        }
    }
}

/// The mock cluster fails requests on demand, writes no transaction markers, and forgets positions.
struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
    runtime: Runtime,
    delivery: Delivery,
    topics: Cell<u32>,
    /// The broker that coordinators moved to last.
    coordinator: Cell<i32>,
}

impl World for Mock {
    type Connect = producer::KafkaConnect;

    fn can(&self, temper: Temper, odd: &[usize]) -> bool {
        match temper {
            Temper::Kind => false,
            // The first request is refused.
            Temper::Refusing => odd == [0],
            Temper::Forbidden | Temper::Moving => true,
            Temper::Untimely => false,
        }
    }

    fn make_topic(&self, temper: Temper) -> SceneTopic<producer::KafkaConnect> {
        self.topics.set(self.topics.get() + 1);
        let name = format!("{NAME}-{}", self.topics.get());
        self.cluster.create_topic(&name, 1, 1).unwrap();
        self.cluster.clear_request_errors(RDKafkaApiKey::Produce);
        if temper == Temper::Refusing {
            self.fail_next(RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD);
        }
        let bootstrap = self.cluster.bootstrap_servers();
        SceneTopic::of_cluster(name, &bootstrap, self.delivery, self.runtime.handle())
    }

    fn forbid(&self, _: &SceneTopic<producer::KafkaConnect>) {
        self.fail_next(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    }

    fn take_timestamps(&self, _: &SceneTopic<producer::KafkaConnect>) {}

    fn move_coordinators(&self, group: Uuid) {
        let broker = self.coordinator.get() % BROKERS + 1;
        self.coordinator.set(broker);
        let name = format!("cmc-bridge.bounces.{group}");
        let kinds = [
            MockCoordinator::Transaction(name.clone()),
            MockCoordinator::Group(name),
        ];
        for kind in kinds {
            self.cluster.coordinator(kind, broker).unwrap();
        }
    }

    /// A reader of the mock cluster also sees what is not committed, so with transactions this reads nothing.
    fn read(&self, topic: &SceneTopic<producer::KafkaConnect>) -> Vec<String> {
        if self.delivery == Delivery::ExactlyOnce {
            return Vec::new();
        }
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.cluster.bootstrap_servers())
            .set("group.id", "reader")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&topic.name, 0, Offset::Beginning)
            .unwrap();
        consumer.assign(&all).unwrap();
        let mut values = Vec::new();
        loop {
            match consumer.poll(Duration::from_secs(60)).unwrap() {
                Ok(record) => values.push(String::from_utf8(record.payload().unwrap().to_vec()).unwrap()),
                Err(KafkaError::PartitionEOF(_)) => return values,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Mock {
    /// Fails the next produce request.
    fn fail_next(&self, error: RDKafkaRespErr) {
        self.cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    }
}

#[test]
fn the_mock_cluster_plays_its_part() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let world = Mock {
            cluster: MockCluster::new(BROKERS).unwrap(),
            runtime: Runtime::new().unwrap(),
            delivery,
            topics: Cell::new(0),
            coordinator: Cell::new(1),
        };
        assert_eq!(play(&world, delivery == Delivery::ExactlyOnce), 4);
    }
}

#[test]
fn librdkafka_holds_two_halves_of_a_transaction_of_any_size() {
    const BIG: usize = 400 << 10;
    let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).unwrap();
    cluster.create_topic(NAME, 3, 1).unwrap();
    let runtime = Runtime::new().unwrap();
    let servers = cluster.bootstrap_servers();
    let topic: SceneTopic<producer::KafkaConnect> =
        SceneTopic::of_cluster(NAME.to_owned(), &servers, Delivery::ExactlyOnce, runtime.handle());
    let mut broker = topic.connect.connect(Uuid::new_v4(), Mode::Batched).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for (records, bytes, most) in [(20_000_usize, 10, 5_000), (40, BIG, 12)] {
        broker.begin().unwrap();
        let value = vec![b'x'; bytes];
        for sent in 1..=records {
            let key = sent.to_string();
            let record = Outgoing {
                topic: NAME,
                key: Some(key.as_bytes()),
                headers: &[("header", b"value")],
                value: &value,
            };
            broker.send(record, deadline).unwrap();
            let reported = sent.saturating_sub(most);
            let waited = broker.session.callbacks.deliveries.wait(reported, Instant::now());
            assert_eq!(waited, Waited::Delivered, "after {sent}");
        }
        broker.delivered(deadline).unwrap();
        broker.commit(Seq(records as u64), "", deadline).unwrap();
    }
}
