//! The bridge is paused (SIGSTOP) for longer than `kafka.transaction_timeout` during a transaction: the broker aborts it,
//! and the bridge must not treat it as committed.

use std::time::Duration;

use crate::{
    bridge::{Setup, Topics},
    load::{Load, Outcome, Shape, Target},
    oracle,
    proxy::{ADD_OFFSETS, END_TXN, Fault::Hold, Proxy},
    topics::Reader,
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_pause_longer_than_the_transaction_timeout() {
    let proxy = Proxy::start();
    let topics = Topics::create(&proxy.kafka);
    let mut bridge = Setup::new(&proxy.bootstrap())
        .topics(&topics)
        .set("kafka.transaction_timeout", "3s")
        .start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(200, LIMIT);
    for api in [ADD_OFFSETS, END_TXN] {
        let failed = |bridge: &crate::bridge::Bridge| {
            let scrape = bridge.scrape();
            scrape.sum("cmc_bridge_transactions_total", &[("outcome", "failed")])
        };
        let before = failed(&bridge);
        // Its events are on the topic, and the proxy holds its commit back.
        proxy.arm(api, Hold);
        proxy.wait_struck(LIMIT);
        bridge.pause();
        // Only the broker can end the transaction; a reader reaches the end once it has.
        for topic in [&topics.deliveries, &topics.bounces] {
            Reader::new(&proxy.kafka, topic).read_to_end(LIMIT);
        }
        proxy.release();
        bridge.resume();
        bridge.wait_for(LIMIT, "the failed commit", |_| failed(&bridge) > before);
        load.wait_acknowledged(200, LIMIT);
    }
    let posted = load.stop();
    assert!(
        posted
            .iter()
            .all(|webhook| matches!(webhook.outcome, Outcome::Acknowledged(_)))
    );
    bridge.wait_drained(LIMIT);
    oracle::check(&proxy.kafka, &topics, &posted);
    bridge.stop();
}
