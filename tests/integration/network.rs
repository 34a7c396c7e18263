//! Connections to Kafka break, hang or fall silent, at chosen requests or at random: each event arrives once.

use std::{
    iter, thread,
    time::{Duration, Instant},
};

use crate::{
    bridge::{Bridge, Setup, Topics},
    load::{Load, Outcome, Posted, Shape, Target},
    oracle,
    proxy::{
        ADD_OFFSETS, ADD_PARTITIONS, Api, END_TXN,
        Fault::{self, CutBefore, CutReply, Hold, Mute},
        INIT_PRODUCER_ID, OFFSET_FETCH, PRODUCE, Proxy, TXN_OFFSET_COMMIT,
    },
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);

/// A small load, just enough that there is always a transaction.
const SHAPE: Shape = Shape {
    clients: 4,
    events: 5,
    pause: Duration::from_millis(10),
};

/// A bridge under load that reaches Kafka through a proxy.
struct Faulty {
    proxy: Proxy,
    topics: Topics,
    bridge: Bridge,
    load: Load,
}

impl Faulty {
    fn start(delivery: &str, transaction_timeout: &str) -> Self {
        let proxy = Proxy::start();
        let topics = Topics::create(&proxy.kafka);
        let bridge = Setup::new(&proxy.bootstrap())
            .topics(&topics)
            .set("kafka.delivery", delivery)
            .set("kafka.transaction_timeout", transaction_timeout)
            .property("socket.timeout.ms", "3000")
            .start();
        let target = Target::default();
        target.set(bridge.ingest);
        let load = Load::start(&target, SHAPE);
        let faulty = Faulty {
            proxy,
            topics,
            bridge,
            load,
        };
        faulty.wait_delivered(50.0);
        faulty
    }

    fn delivered(&self) -> f64 {
        let scrape = self.bridge.scrape();
        scrape.sum("cmc_bridge_delivered_events_total", &[])
    }

    fn wait_delivered(&self, more: f64) {
        let goal = self.delivered() + more;
        self.bridge.wait_for(LIMIT, "more deliveries", |scrape| {
            scrape.sum("cmc_bridge_delivered_events_total", &[]) >= goal
        });
    }

    /// How many transactions failed, as far as the bridge knows.
    fn given_up(&self) -> f64 {
        let scrape = self.bridge.scrape();
        ["failed", "aborted"]
            .iter()
            .map(|outcome| scrape.sum("cmc_bridge_transactions_total", &[("outcome", outcome)]))
            .sum()
    }

    /// Waits until these faults have happened and a transaction has been given up.
    fn give_up_by(&self, faults: impl IntoIterator<Item = (Api, Fault)>) {
        let before = self.given_up();
        for (api, fault) in faults {
            self.proxy.arm(api, fault);
        }
        self.proxy.wait_struck(LIMIT);
        self.bridge
            .wait_for(LIMIT, "a transaction given up", |_| self.given_up() > before);
    }

    fn cut_at_random(&self, random: &mut Random, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            // Random on purpose: in a handshake, a request or a reply.
            thread::sleep(Duration::from_millis(random.below(300)));
            self.proxy.cut();
        }
    }

    /// Stops the load, waits until everything is delivered, and returns what was posted.
    fn finish(self) -> (String, Topics, Vec<Posted>) {
        self.load.wait_acknowledged(50, LIMIT);
        let posted = self.load.stop();
        let acknowledged = |posted: &Posted| matches!(posted.outcome, Outcome::Acknowledged(_));
        assert!(
            posted.iter().all(acknowledged),
            "trouble with Kafka must not reach the sender"
        );
        self.bridge.wait_drained(LIMIT);
        self.bridge.stop();
        (self.proxy.kafka.clone(), self.topics, posted)
    }
}

#[test]
fn connections_cut_before_a_request_and_before_its_reply() {
    let mut random = Random::new("cut connections");
    let faulty = Faulty::start("exactly-once", "6s");
    for api in [PRODUCE, ADD_PARTITIONS, ADD_OFFSETS, TXN_OFFSET_COMMIT, END_TXN] {
        for fault in [CutBefore, CutReply] {
            faulty.proxy.arm(api, fault);
            faulty.proxy.wait_struck(LIMIT);
            faulty.wait_delivered(1.0);
        }
    }
    faulty.cut_at_random(&mut random, Duration::from_secs(6));
    let (kafka, topics, posted) = faulty.finish();
    oracle::check(&kafka, &topics, &posted);
}

#[test]
fn requests_that_arrive_after_their_transaction_was_given_up() {
    let faulty = Faulty::start("exactly-once", "3s");
    for (api, next) in [
        (PRODUCE, Some((INIT_PRODUCER_ID, CutReply))),
        (ADD_PARTITIONS, Some((INIT_PRODUCER_ID, CutBefore))),
        (ADD_OFFSETS, Some((OFFSET_FETCH, CutReply))),
        (TXN_OFFSET_COMMIT, None),
        (END_TXN, None),
    ] {
        // The producer that replaces the given-up one meets faults too.
        faulty.give_up_by(iter::once((api, Hold)).chain(next));
        // The old producer's request arrives after the new one has begun.
        faulty.wait_delivered(100.0);
        faulty.proxy.release();
        faulty.wait_delivered(20.0);
    }
    let (kafka, topics, posted) = faulty.finish();
    oracle::check(&kafka, &topics, &posted);
}

#[test]
fn connections_that_stay_open_and_say_nothing_more() {
    let faulty = Faulty::start("exactly-once", "3s");
    for api in [PRODUCE, END_TXN] {
        faulty.give_up_by([(api, Mute)]);
        faulty.wait_delivered(100.0);
    }
    let (kafka, topics, posted) = faulty.finish();
    oracle::check(&kafka, &topics, &posted);
}

#[test]
fn without_transactions_cut_connections_cost_no_event_and_no_double() {
    let mut random = Random::new("cut connections, at least once");
    let faulty = Faulty::start("at-least-once", "6s");
    for _ in 0..3 {
        for fault in [CutBefore, CutReply] {
            faulty.proxy.arm(PRODUCE, fault);
            faulty.proxy.wait_struck(LIMIT);
        }
    }
    faulty.proxy.arm(PRODUCE, Mute);
    faulty.proxy.wait_struck(LIMIT);
    faulty.wait_delivered(100.0);
    faulty.cut_at_random(&mut random, Duration::from_secs(4));
    let (kafka, topics, posted) = faulty.finish();
    // Exactly once even in this mode: the producer's retries make no duplicates.
    let again = oracle::check_at_least_once(&kafka, &topics, &posted);
    assert_eq!(again.len(), 0);
}

#[test]
fn killed_and_stopped_with_a_commit_on_its_way() {
    let proxy = Proxy::start();
    let topics = Topics::create(&proxy.kafka);
    let setup = Setup::new(&proxy.bootstrap())
        .topics(&topics)
        .set("shutdown.grace", "3s");
    let target = Target::default();
    let load = Load::start(&target, SHAPE);
    let start = || {
        let bridge = setup.start();
        target.set(bridge.ingest);
        bridge.wait_for(LIMIT, "deliveries", |scrape| {
            scrape.sum("cmc_bridge_delivered_events_total", &[]) >= 50.0
        });
        // A commit of the previous process arrives while this one is at work.
        proxy.release();
        bridge
    };
    let ends: [fn(Bridge); 2] = [Bridge::kill, Bridge::stop];
    for end in ends {
        // One that is refused, and one that succeeds unnoticed.
        for fault in [Hold, Mute] {
            let bridge = start();
            proxy.arm(END_TXN, fault);
            proxy.wait_struck(LIMIT);
            end(bridge);
        }
    }
    let bridge = start();
    load.wait_acknowledged(50, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    oracle::check(&proxy.kafka, &topics, &posted);
    bridge.stop();
}
