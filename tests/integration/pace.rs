//! Transactions begin `kafka.commit_interval` apart while events keep coming, and a drain does not wait for it. Transactions
//! are counted by the control records that they leave in their topics.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{delivery, message, webhook},
    kafka,
    topics::{self, Reader},
};

const LIMIT: Duration = Duration::from_secs(180);

/// Topics of one partition, in which transactions can be counted.
fn one_partition_each(kafka: &str) -> Topics {
    Topics {
        deliveries: topics::create(kafka, "deliveries", 1, &[]),
        bounces: topics::create(kafka, "bounces", 1, &[]),
        ..Topics::create(kafka)
    }
}

/// Posts a delivery event and a bounce event with this number.
fn post(bridge: &Bridge, number: usize) {
    let id = format!("{number}@test");
    for body in [
        delivery(&id),
        webhook("bounces", "pro", &[&message(&id, "s").replace("queued", "2")]),
    ] {
        assert_eq!(bridge.client().post(&body).status, 200);
    }
}

#[test]
fn a_steady_load_takes_few_transactions() {
    let kafka = kafka::shared();
    // Posts for a while, and returns the posted webhooks of each stream, the time they took, and the transactions of each.
    let run = |interval: Duration| {
        let topics = one_partition_each(kafka);
        let interval = format!("{}ms", interval.as_millis());
        let setup = Setup::new(kafka).topics(&topics);
        let bridge = setup.set("kafka.commit_interval", &interval).start();
        // Keeps the connection to Kafka out of the count.
        post(&bridge, 0);
        bridge.wait_drained(LIMIT);
        let begun = Instant::now();
        let mut posted = 1;
        while begun.elapsed() < Duration::from_secs(5) {
            post(&bridge, posted);
            posted += 1;
            thread::sleep(Duration::from_millis(10));
        }
        bridge.wait_drained(LIMIT);
        let took = begun.elapsed();
        bridge.stop();
        let counts = [&topics.deliveries, &topics.bounces].map(|topic| {
            let mut reader = Reader::new(kafka, topic);
            assert_eq!(reader.read_to_end(LIMIT).len(), posted);
            reader.transactions()
        });
        println!("{interval}: {posted} webhooks for each stream in {took:.1?}, {counts:?} transactions");
        (posted, took, counts)
    };
    let interval = Duration::from_millis(500);
    let (_, took, counts) = run(interval);
    // One before the time began, one for an interval in which none began, one at its beginning, and one in each interval.
    let most = 3 + (took.as_secs_f64() / interval.as_secs_f64()) as usize;
    for count in counts {
        assert!(
            (2..=most).contains(&count),
            "{count} transactions, at most {most}"
        );
    }
    // Without the pace there are many more, as far as the broker keeps up: the count can tell.
    let (posted, _, counts) = run(Duration::ZERO);
    assert!(counts.iter().all(|count| *count <= posted), "{counts:?}");
    assert!(counts.iter().any(|count| *count > most), "{counts:?}");
}

#[test]
fn a_drain_does_not_wait_for_the_pace() {
    let kafka = kafka::shared();
    // A stalled machine may delay a drain as much as the pace would. It does not do so each time.
    for attempt in 1.. {
        let topics = one_partition_each(kafka);
        let setup = Setup::new(kafka).topics(&topics);
        let bridge = setup.set("kafka.commit_interval", "1s").start();
        post(&bridge, 0);
        bridge.wait_drained(LIMIT);
        for number in 1..=5 {
            post(&bridge, number);
        }
        bridge.stop();
        // The times of sending.
        let waited = [&topics.deliveries, &topics.bounces].map(|topic| {
            let mut reader = Reader::new(kafka, topic);
            let records = reader.read_to_end(LIMIT);
            let keys: Vec<_> = records.iter().map(|record| record.key_text().unwrap()).collect();
            assert_eq!(keys, [0, 1, 2, 3, 4, 5].map(|number| format!("<{number}@test>")));
            records[5].timestamp_ms - records[0].timestamp_ms
        });
        println!("the last events went {waited:?} ms after the first");
        if waited.iter().all(|waited| *waited < 900) {
            return;
        }
        assert!(attempt < 10, "a drain waits for the pace");
    }
}
