//! How long a `read_committed` consumer stalls when a replica is lost during a transaction, and what ends the stall.

use std::{
    thread,
    time::{Duration, Instant},
};

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::{
    bridge::{Bridge, Setup, Topics, run},
    cluster, cmc,
    load::{Load, Posted, Shape, Target},
    oracle,
    topics::{self, Reader, Record, client_config},
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// The default of `kafka.transaction_timeout`.
const DEFAULT: Duration = Duration::from_secs(15);
/// Kafka's default of `transaction.abort.timed.out.transaction.cleanup.interval.ms`.
const LOOKS_FOR_TIMED_OUT: Duration = Duration::from_secs(10);
/// Time allowed for Kafka to end the transaction on a busy machine.
const MARGIN: Duration = Duration::from_secs(30);
/// A timeout so long that only the return of the spool can end the transaction, and the time allowed for that.
const LONG: Duration = Duration::from_secs(120);
const BACK: Duration = Duration::from_secs(60);

/// What happens to the lost replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    StaysAway,
    StartsAgain,
    IsDrained,
}

#[test]
fn a_lost_replica_stalls_consumers_until_its_transaction_times_out_or_its_spool_is_back() {
    let cluster = cluster::shared().read().unwrap();
    let kafka = &cluster.bootstrap();
    thread::scope(|scope| {
        scope.spawn(|| lose_a_replica(kafka, DEFAULT, Then::StaysAway));
        scope.spawn(|| lose_a_replica(kafka, Duration::from_secs(25), Then::StaysAway));
        scope.spawn(|| lose_a_replica(kafka, LONG, Then::StartsAgain));
        scope.spawn(|| lose_a_replica(kafka, LONG, Then::IsDrained));
    });
}

fn lose_a_replica(kafka: &str, transaction_timeout: Duration, then: Then) {
    let topics = Topics {
        // A single partition, which stalls.
        deliveries: topics::create(kafka, "deliveries", 1, &[]),
        ..Topics::create(kafka)
    };
    let setup = || Setup::new(kafka).topics(&topics);
    let lost_setup = match transaction_timeout {
        DEFAULT => setup(),
        other => setup().set("kafka.transaction_timeout", &format!("{}s", other.as_secs())),
    };
    let other = setup().start();
    post(&other, "before@test");
    let mut lost = lost_setup.start();
    let target = Target::default();
    target.set(lost.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(50, LIMIT);
    let ends = Ends::new(kafka, &topics.deliveries);
    let lost_at = wait::until(LIMIT, "a transaction with delivered records", || {
        lost.pause();
        let paused = Instant::now();
        if ends.stay_open() {
            return Some(paused);
        }
        lost.resume();
        None
    });
    lost.kill();
    let posted = load.stop();

    post(&other, "behind@test");
    assert!(
        ends.is_open(),
        "the lost replica's transaction does not hold back the other replica's event"
    );
    let since = Instant::now();
    let back = match then {
        Then::StaysAway => None,
        Then::StartsAgain => Some(lost_setup.start()),
        Then::IsDrained => {
            assert_eq!(run(&lost_setup, &["spool", "drain"]).code, 0);
            None
        }
    };
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let behind = |record: &Record| record.key_text() == Some("<behind@test>");
    reader.read_until(LIMIT, "the event after the transaction", |records| {
        records.iter().any(behind)
    });
    let (stall, took) = (lost_at.elapsed(), since.elapsed());
    println!(
        "{transaction_timeout:?}, {then:?}: the consumer stalled for {stall:.1?}, {took:.1?} of it since then"
    );
    if then == Then::StaysAway {
        assert!(stall < transaction_timeout + LOOKS_FOR_TIMED_OUT + MARGIN);
    } else {
        assert!(took < BACK);
    }
    back.unwrap_or_else(|| lost_setup.start()).wait_drained(LIMIT);
    let (others, loaded): (Vec<Record>, Vec<Record>) = reader
        .read_to_end(LIMIT)
        .iter()
        .cloned()
        .partition(|record| record.key_text().is_some_and(|key| key.ends_with("@test>")));
    assert_eq!(others.len(), 2);
    let posted: Vec<&Posted> = posted.iter().filter(|p| p.stream == "deliveries").collect();
    assert_eq!(oracle::judge("deliveries", &posted, &loaded), [""; 0]);
}

/// Posts an event and waits until its transaction is committed.
fn post(bridge: &Bridge, id: &str) {
    assert_eq!(bridge.client().post(cmc::delivery(id)).status, 200);
    bridge.wait_drained(LIMIT);
}

/// The two ends of a topic's partition 0: for `read_committed` and for `read_uncommitted` consumers.
struct Ends<'a> {
    topic: &'a str,
    stable: BaseConsumer,
    last: BaseConsumer,
}

impl<'a> Ends<'a> {
    fn new(kafka: &str, topic: &'a str) -> Self {
        let consumer = |level| {
            let mut config = client_config(kafka);
            config.set("isolation.level", level).create().unwrap()
        };
        Ends {
            topic,
            stable: consumer("read_committed"),
            last: consumer("read_uncommitted"),
        }
    }

    /// Whether an open transaction has delivered records.
    fn is_open(&self) -> bool {
        let end = |consumer: &BaseConsumer| consumer.fetch_watermarks(self.topic, 0, LIMIT).unwrap().1;
        end(&self.stable) < end(&self.last)
    }

    /// Whether one is open and stays open, because no commit in flight ends it.
    fn stay_open(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(3);
        while self.is_open() {
            if Instant::now() >= until {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }
}
