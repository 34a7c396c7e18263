//! While Kafka is down, webhooks are answered as before. Everything arrives once it is back.

use std::{thread, time::Duration};

use crate::{
    bridge::{NO_KAFKA, Setup, Topics},
    kafka::Broker,
    load::{Load, Outcome, Shape, Target, median_latency},
    oracle,
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn webhooks_are_answered_as_fast_while_kafka_is_down() {
    let mut broker = Broker::own();
    let kafka = broker.bootstrap();
    let topics = Topics::create(&kafka);
    let setup = Setup::new(&kafka).topics(&topics);
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let run = |webhooks: u64| {
        let load = Load::start(&target, Shape::default());
        load.wait_acknowledged(webhooks, LIMIT);
        load.stop()
    };
    // The first deliveries are a warm-up and count only for the oracle.
    let mut posted = run(200);
    bridge.wait_for(LIMIT, "a first delivery", |scrape| {
        scrape.sum("cmc_bridge_delivered_events_total", &[]) > 0.0
    });
    let before = run(2000);
    let p50 = median_latency(&before);
    // A loose limit and several rounds, because other tests share the processor. A bridge that waited for Kafka would be slow in
    // each round.
    let run_as_fast = |when| {
        let mut posted = Vec::new();
        for _ in 0..5 {
            let round = run(2000);
            let ratio = median_latency(&round).as_secs_f64() / p50.as_secs_f64();
            println!("p50 {when}: {ratio:.2} of {p50:?}");
            posted.extend(round);
            if ratio <= 3.0 {
                return posted;
            }
        }
        panic!("webhooks are slow during the outage");
    };

    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(200, LIMIT);
    broker.kill();
    posted.extend(load.stop());
    let during = run_as_fast("during the outage");
    assert!(bridge.scrape().backlog() > 0.0);
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));

    bridge.kill();
    let bridge = setup.start();
    target.set(bridge.ingest);
    let restarted = run_as_fast("after a restart during the outage");
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
    assert!(bridge.scrape().sum("cmc_bridge_recovered_events", &[]) > 0.0);

    broker.start_again();
    bridge.wait_drained(LIMIT);
    posted.extend(before.into_iter().chain(during).chain(restarted));
    assert!(
        posted
            .iter()
            .all(|webhook| matches!(webhook.outcome, Outcome::Acknowledged(_)))
    );
    oracle::check(&kafka, &topics, &posted);
}

#[test]
fn a_broker_that_restarts_hangs_and_is_killed_under_load_loses_no_event() {
    let mut broker = Broker::own_that_may_hang();
    let kafka = broker.bootstrap();
    let topics = Topics::create(&kafka);
    let setup = Setup::new(&kafka)
        .topics(&topics)
        .set("kafka.transaction_timeout", "3s");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    let delivered = |more: f64| {
        let now = bridge.scrape().sum("cmc_bridge_delivered_events_total", &[]);
        bridge.wait_for(LIMIT, "more deliveries", |scrape| {
            scrape.sum("cmc_bridge_delivered_events_total", &[]) >= now + more
        });
    };
    delivered(200.0);
    broker.kill();
    load.wait_acknowledged(200, LIMIT);
    broker.start_again();
    delivered(200.0);
    broker.pause();
    load.wait_acknowledged(200, LIMIT);
    // Longer than the transaction's timeout, with connections that stay open.
    thread::sleep(Duration::from_secs(5));
    broker.resume();
    delivered(200.0);
    broker.stop();
    load.wait_acknowledged(200, LIMIT);
    broker.start_again();
    delivered(200.0);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    oracle::check(&kafka, &topics, &posted);
}

#[test]
fn a_bridge_without_a_backlog_stops_without_waiting_for_kafka() {
    let setup = Setup::new(NO_KAFKA).set("shutdown.grace", "10m");
    let mut bridge = setup.start();
    bridge.terminate();
    assert_eq!(bridge.running.wait_exit(LIMIT), 0);
}
