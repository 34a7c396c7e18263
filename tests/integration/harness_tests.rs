//! Tests of the harness itself, without the bridge.

use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer};

use crate::{
    kafka::{self, Broker},
    topics::{self, Reader, transactional_producer},
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);

fn send(producer: &rdkafka::producer::BaseProducer, topic: &str, value: &str) {
    producer
        .send(BaseRecord::to(topic).key("k").payload(value))
        .map_err(|(error, _)| error)
        .unwrap();
}

#[test]
fn a_reader_sees_committed_records_only_and_waits_for_open_transactions() {
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "harness", 3, &[("retention.ms", "-1")]);
    let producer = transactional_producer(kafka, &topic, 60_000);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, "aborted");
    producer.flush(LIMIT).unwrap();
    producer.abort_transaction(LIMIT).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, "committed");
    producer.commit_transaction(LIMIT).unwrap();

    let mut reader = Reader::new(kafka, &topic);
    assert_eq!(reader.read_count(1, LIMIT)[0].text(), "committed");
    assert_eq!(reader.read_to_end(LIMIT).len(), 1);

    // Left open: the broker aborts it after its time-out, and only then can readers reach the end.
    let producer = transactional_producer(kafka, &topic, 3000);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, "abandoned");
    producer.flush(LIMIT).unwrap();
    assert_eq!(reader.read_to_end(LIMIT).len(), 1);
}

#[test]
fn no_port_is_given_twice() {
    let ports = [7, 7].map(|seed| kafka::free_port(&mut Random::from_seed(seed)));
    assert_ne!(ports[0], ports[1]);
}

#[test]
fn a_broker_comes_back_with_its_data_after_a_kill_a_stop_and_a_pause() {
    let mut broker = Broker::own();
    let kafka = broker.bootstrap();
    let topic = topics::create(&kafka, "harness", 1, &[]);
    let mut reader = Reader::new(&kafka, &topic);
    for (round, end) in [Broker::kill, Broker::stop].into_iter().enumerate() {
        let producer = transactional_producer(&kafka, &topic, 60_000);
        producer.begin_transaction().unwrap();
        send(&producer, &topic, &format!("{round}"));
        producer.commit_transaction(LIMIT).unwrap();
        end(&mut broker);
        broker.start_again();
        assert_eq!(reader.read_to_end(LIMIT).len(), round + 1);
    }
    broker.pause();
    broker.resume();
    assert_eq!(reader.read_to_end(LIMIT).len(), 2);
}
