//! Three brokers with replicas are killed in turn under load: nothing is lost or duplicated.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    bridge::{Setup, Topics},
    cluster::{COORDINATORS, Cluster},
    load::{Load, Outcome, Posted, Shape, Target},
    oracle,
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);

/// A broker is considered dead after this time without a heartbeat.
const SESSION_TIMEOUT: Duration = Duration::from_secs(4);

#[test]
fn brokers_killed_one_after_another_lose_no_event() {
    let kills: usize = std::env::var("CMC_BRIDGE_TEST_BROKER_KILLS")
        .map(|text| text.parse().expect("CMC_BRIDGE_TEST_BROKER_KILLS is a number"))
        .unwrap_or(3);
    let mut random = Random::new("broker kills");
    let mut cluster = Cluster::start(SESSION_TIMEOUT);
    let kafka = cluster.bootstrap();
    let topics = Topics::create(&kafka);
    // The longest wait for a transaction that a kill has hit.
    let setup = Setup::new(&kafka)
        .topics(&topics)
        .set("kafka.transaction_timeout", "6s");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let shape = Shape {
        pause: Duration::from_millis(10),
        ..Shape::default()
    };
    let load = Load::start(&target, shape);
    let delivered = |stream: &str, more: f64| {
        let count = "cmc_bridge_delivered_events_total";
        let now = bridge.scrape().stream(count, stream);
        bridge.wait_for(LIMIT, "more deliveries", |scrape| {
            scrape.stream(count, stream) >= now + more
        });
    };
    delivered("deliveries", 200.0);
    delivered("bounces", 100.0);
    let [transactions, positions] = COORDINATORS;
    for kill in 0..kills {
        let led = [transactions, &topics.deliveries, positions][kill % 3];
        let victim = cluster.leader(led, None);
        // At a random time, within a transaction or between two.
        thread::sleep(Duration::from_millis(random.below(500)));
        cluster.kill(victim);
        let killed = Instant::now();
        let successor = cluster.leader(led, Some(victim));
        // More than can have been in flight at the kill.
        delivered("deliveries", 200.0);
        delivered("bounces", 100.0);
        println!(
            "broker {victim}, the leader of {led}, was killed; {successor} took over, and deliveries continued after {:.1?}",
            killed.elapsed()
        );
        cluster.start_again(victim);
        println!("all in sync again after {:.1?}", killed.elapsed());
    }
    delivered("deliveries", 200.0);
    let posted = load.stop();
    let refused = |webhook: &&Posted| !matches!(webhook.outcome, Outcome::Acknowledged(_));
    assert_eq!(posted.iter().find(refused).map(|webhook| webhook.outcome), None);
    let scrape = bridge.wait_drained(LIMIT);
    for outcome in ["committed", "aborted", "failed"] {
        let count = scrape.sum("cmc_bridge_transactions_total", &[("outcome", outcome)]);
        println!("transactions {outcome}: {count}");
    }
    oracle::check(&kafka, &topics, &posted);
    bridge.stop();
}
