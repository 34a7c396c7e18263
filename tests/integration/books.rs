//! `recovered + accepted = delivered + diverted + backlog` at every scrape.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics},
    cmc::{message, webhook},
    kafka,
    load::{Load, Outcome, Posted, Shape, Target},
};

const LIMIT: Duration = Duration::from_secs(180);

/// The number of events of these streams according to the ledger.
fn acknowledged(posted: &[Posted], stream: &str) -> f64 {
    let acknowledged = |p: &&Posted| p.stream == stream && matches!(p.outcome, Outcome::Acknowledged(_));
    posted
        .iter()
        .filter(acknowledged)
        .map(|p| f64::from(p.events))
        .sum()
}

/// Scrapes for a while, which checks the books; returns the number of scrapes.
fn scrape_under_load(bridge: &Bridge, target: &Target) -> (u32, Vec<Posted>) {
    target.set(bridge.ingest);
    let load = Load::start(target, Shape::default());
    let bad = thread::spawn({
        let mut client = bridge.client();
        move || {
            let good = message("a@test", "b");
            for _ in 0..100 {
                assert_eq!(client.post(webhook("clicks", "pro", &["{}"])).status, 200);
                assert_eq!(
                    client.post(webhook("deliveries", "pro", &["7", &good])).status,
                    200
                );
            }
        }
    });
    let end = Instant::now() + Duration::from_secs(5);
    let mut scrapes = 0;
    while Instant::now() < end || scrapes < 20 {
        bridge.scrape();
        scrapes += 1;
    }
    bad.join().unwrap();
    (scrapes, load.stop())
}

#[test]
fn the_books_balance_at_every_scrape() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let target = Target::default();
    let mut totals = [0.0; 2];

    // First without Kafka, so that the second life recovers what the first left.
    let lives = [setup.clone().set("kafka.bootstrap_servers", NO_KAFKA), setup];
    for (life, setup) in lives.iter().enumerate() {
        let bridge = setup.start();
        let (scrapes, posted) = scrape_under_load(&bridge, &target);
        println!("life {life}: {scrapes} scrapes");
        let scrape = bridge.scrape();
        let counted = |name, stream| scrape.stream(name, stream);
        // Each webhook of `bad` has one element for the dead letters; every other one also has a good element.
        assert_eq!(
            counted("cmc_bridge_events_total", "deliveries"),
            acknowledged(&posted, "deliveries") + 100.0
        );
        assert_eq!(
            counted("cmc_bridge_events_total", "bounces"),
            acknowledged(&posted, "bounces")
        );
        assert_eq!(counted("cmc_bridge_events_total", "dead_letters"), 200.0);
        for (total, stream) in totals.iter_mut().zip(["deliveries", "bounces"]) {
            assert_eq!(
                counted("cmc_bridge_recovered_events", stream),
                *total,
                "{stream} of the previous life"
            );
            *total += counted("cmc_bridge_events_total", stream);
        }
        if life == 0 {
            assert_eq!(scrape.sum("cmc_bridge_delivered_events_total", &[]), 0.0);
            bridge.kill();
        } else {
            let scrape = bridge.wait_drained(LIMIT);
            for (total, stream) in totals.iter().zip(["deliveries", "bounces"]) {
                assert_eq!(scrape.stream("cmc_bridge_delivered_events_total", stream), *total);
            }
        }
    }
}
