//! Without transactions, killed bridges and killed brokers lose nothing and keep each key's order. The only duplicates are
//! what a crash made the bridge send again.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use crate::{
    bridge::{Setup, Topics},
    kafka::{self, Broker},
    load::{Load, Shape, Target},
    oracle,
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn killed_under_load_it_loses_nothing() {
    let mut random = Random::new("kills at least once");
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.delivery", "at-least-once");
    let target = Target::default();
    let load = Load::start(&target, Shape::default());
    let mut kills = Vec::new();
    for _ in 0..3 {
        let bridge = setup.start();
        target.set(bridge.ingest);
        load.wait_acknowledged(1, LIMIT);
        // The instant is random on purpose. Lives are long, so that an old event that comes again stands out.
        thread::sleep(Duration::from_millis(10_000 + random.below(2000)));
        // Kafka keeps up, and so does the checkpoint.
        bridge.wait_for(LIMIT, "a short backlog", |scrape| {
            let oldest = scrape.stream("cmc_bridge_oldest_event_timestamp_seconds", "deliveries");
            oldest == 0.0 || oldest * 1000.0 > now_millis() as f64 - 1000.0
        });
        let before = now_millis();
        bridge.kill();
        kills.push((before, now_millis()));
    }
    let bridge = setup.start();
    target.set(bridge.ingest);
    load.wait_acknowledged(100, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(Duration::from_secs(120));
    let again = oracle::check_at_least_once(kafka, &topics, &posted);
    let events: u64 = posted.iter().map(|webhook| u64::from(webhook.events)).sum();
    println!("{} of {events} events came again", again.len());
    // The checkpoint is at most a second old, plus the time that a busy machine needs to store it.
    for record in again {
        let received: jiff::Timestamp = record.header("cmc-received-at").unwrap().parse().unwrap();
        let received = received.as_millisecond();
        assert!(
            kills
                .iter()
                .any(|(before, after)| before - 7000 < received && received <= *after),
            "received at {received}, killed at {kills:?}"
        );
    }
    bridge.stop();
}

fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_millis() as i64
}

#[test]
fn a_killed_broker_costs_no_event_and_no_double() {
    let mut broker = Broker::own();
    let kafka = broker.bootstrap();
    let topics = Topics::create(&kafka);
    let setup = Setup::new(&kafka)
        .topics(&topics)
        .set("kafka.delivery", "at-least-once")
        .set("kafka.transaction_timeout", "3s");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(200, LIMIT);
    broker.kill();
    load.wait_acknowledged(200, LIMIT);
    // Late deliveries are reported, and the lane keeps the producer that will complete them.
    bridge.wait_for(LIMIT, "a blocked lane", |scrape| {
        scrape.sum("cmc_bridge_lane_blocked", &[("reason", "connect")]) >= 1.0
    });
    broker.start_again();
    load.wait_acknowledged(200, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(Duration::from_secs(120));
    let again = oracle::check_at_least_once(&kafka, &topics, &posted);
    assert_eq!(
        again.len(),
        0,
        "an idempotent producer's own retries make no doubles"
    );
    bridge.stop();
}
