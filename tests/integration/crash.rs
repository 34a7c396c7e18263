//! The bridge is killed and stopped under load, repeatedly: nothing is lost or duplicated.

use std::{thread, time::Duration};

use crate::{
    bridge::{Setup, Topics},
    kafka,
    load::{Load, Shape, Target},
    oracle,
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn killed_under_load_again_and_again() {
    let kills: u64 = std::env::var("CMC_BRIDGE_TEST_KILLS")
        .map(|text| text.parse().expect("CMC_BRIDGE_TEST_KILLS is a number"))
        .unwrap_or(12);
    let mut random = Random::new("kills");
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let target = Target::default();
    let load = Load::start(&target, Shape::default());
    for _ in 0..kills {
        let bridge = setup.start();
        target.set(bridge.ingest);
        load.wait_acknowledged(1, LIMIT);
        // Random on purpose: during init_transactions, within a transaction, or between two.
        thread::sleep(Duration::from_millis(random.below(2000)));
        bridge.scrape();
        bridge.kill();
    }
    let bridge = setup.start();
    target.set(bridge.ingest);
    load.wait_acknowledged(100, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(Duration::from_secs(120));
    oracle::check(kafka, &topics, &posted);
    bridge.stop();
}

#[test]
fn a_second_bridge_on_the_same_directory_is_refused() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let bridge = setup.start();
    let mut second = setup.spawn();
    assert_eq!(second.wait_exit(LIMIT), 69);
    let log = second.stderr();
    assert!(log.to_lowercase().contains("lock"), "{log}");
    assert!(log.contains(setup.spool_dir().to_str().unwrap()), "{log}");
    // The first bridge is not disturbed.
    assert_eq!(bridge.client().post(crate::cmc::delivery("a@test")).status, 200);
    bridge.wait_drained(LIMIT);
}

#[test]
fn stopped_under_load() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics).set("shutdown.grace", "60s");
    let target = Target::default();
    let mut bridge = setup.start();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(300, LIMIT);
    bridge.terminate();
    assert_eq!(
        bridge.running.wait_exit(Duration::from_secs(65)),
        0,
        "the stop took longer than the grace period"
    );
    let posted = load.stop();
    // Kafka is up, so the grace period is long enough to deliver everything.
    oracle::check(kafka, &topics, &posted);
    let bridge = setup.start();
    assert_eq!(
        bridge
            .wait_drained(LIMIT)
            .sum("cmc_bridge_delivered_events_total", &[]),
        0.0
    );
    oracle::check(kafka, &topics, &posted);
}
