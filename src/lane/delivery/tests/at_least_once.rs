//! Tests of a lane without transactions: nothing is lost, each key keeps its order, and the only duplicates are what a failure
//! or a crash made the lane send again.

use super::*;

fn bench() -> Bench {
    let cluster = Cluster::new(&[TOPIC, LETTERS]);
    cluster.lock().plain = true;
    let options = LaneOptions {
        delivery: Delivery::AtLeastOnce,
        ..options()
    };
    Bench::on(cluster, options)
}

impl Bench {
    /// Checks that everything appended is in the topic, and that first appearances are in order. Gives the number of duplicates.
    fn doubles(&self) -> usize {
        let found = self.cluster.values(TOPIC);
        let mut seen = Vec::new();
        for value in &found {
            if !seen.contains(value) {
                seen.push(value.clone());
            }
        }
        assert_eq!(seen, self.appended);
        found.len() - seen.len()
    }
}

#[test]
fn without_faults_once() {
    let mut bench = bench();
    bench.append(&[3, 1, 7]);
    bench.settle();
    bench.append(&[2]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.books().delivered, 13);
    assert_eq!(bench.committed(), None, "the position is the checkpoint's alone");
    assert_eq!(bench.metric("cmc_bridge_transactions_total", "committed"), 0.0);
    bench.lane().finish().unwrap();
    bench.restart();
    bench.settle();
    bench.check_delivered();
}

#[test]
fn a_late_delivery_blocks_and_keeps_the_producer() {
    let mut bench = bench();
    bench.options.transaction_limit = Duration::ZERO;
    bench.restart();
    bench.append(&[5]);
    for _ in 0..4 {
        bench.cluster.fault(BrokerFault::Slow);
    }
    bench.settle_blocked(BlockReason::Connect);
    assert_eq!(bench.books().backlog(), 5);
    bench.settle();
    assert_eq!(bench.doubles(), 0);
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched]);
    assert_eq!(bench.metric("cmc_bridge_lane_blocked", "connect"), 0.0);
}

#[test]
fn a_failure_sends_the_window_again() {
    let mut bench = bench();
    bench.append(&[4, 4]);
    bench.cluster.fault(BrokerFault::Delivery);
    bench.settle();
    assert_eq!(bench.doubles(), 4, "half of the window had been delivered");
    let books = bench.books();
    assert_eq!((books.delivered, books.backlog()), (8, 0));
}

#[test]
fn a_crash_sends_again_from_the_checkpoint() {
    let mut bench = bench();
    bench.append(&[3]);
    bench.settle();
    bench.lane().finish().unwrap();
    bench.restart();
    bench.append(&[2, 2]);
    // The lane stores the checkpoint when it rests, so the process must die after the delivery and before that.
    while bench.cluster.values(TOPIC).len() < 7 {
        bench.turn();
    }
    bench.restart();
    bench.settle();
    assert_eq!(bench.doubles(), 4);
    assert_eq!(bench.books().recovered, 4);
}

#[test]
fn what_is_refused_alone_is_diverted() {
    let mut bench = bench();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
    for (key, value) in [(Some("a"), "1"), (None, "2"), (Some("a"), "3")] {
        bench.append_events(&[Event { key, value }]);
    }
    bench.settle();
    let letters = bench.cluster.values(LETTERS);
    assert!(letters.iter().all(|letter| letter == "2") && !letters.is_empty());
    let values = bench.cluster.values(TOPIC);
    assert!(values.contains(&"1".to_owned()) && values.last() == Some(&"3".to_owned()));
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted), (2, 1));
}

/// A window is one batch of these.
const WINDOW: usize = 600;

#[test]
fn a_failure_sends_what_is_in_flight_again_and_nothing_before_it() {
    let mut bench = bench();
    bench.append(&[WINDOW; 4]);
    bench.turn();
    bench.turn();
    assert_eq!(bench.books().delivered, WINDOW as u64);
    bench.cluster.fault(BrokerFault::Slow);
    bench.cluster.fault(BrokerFault::Delivery);
    bench.settle();
    assert!(bench.doubles() <= WINDOW);
    assert_eq!(bench.books().delivered, 4 * WINDOW as u64);
}

#[test]
fn what_waits_for_an_hour_is_sent_anew() {
    let mut bench = bench();
    bench.append(&[5]);
    bench.cluster.fault(BrokerFault::Slow);
    bench.cluster.fault(BrokerFault::Slow);
    bench.turn();
    bench.turn();
    assert_eq!(bench.cluster.lock().connects.len(), 1);
    bench.lane().in_flight.as_mut().unwrap().begun = Instant::now().checked_sub(STALE).unwrap();
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().connects.len(), 2);
}

/// Records delivered beside a refused one are not sent again.
#[test]
fn a_refusal_duplicates_nothing_that_is_known_to_be_delivered() {
    let mut bench = bench();
    {
        let mut inner = bench.cluster.lock();
        (inner.request, inner.hasty) = (Some(10), 50);
        inner.topics.get_mut(TOPIC).unwrap().refuses = Some("odd");
    }
    bench.append(&[300]);
    bench.append_events(&[Event {
        key: Some("key"),
        value: "odd",
    }]);
    bench.append(&[300]);
    bench.settle();
    bench.appended.retain(|value| value != "odd");
    // When librdkafka does not report a refusal in time, everything is sent again. The simulation does that now and then.
    assert!(bench.doubles() <= 600);
    assert_eq!(bench.cluster.values(LETTERS), ["odd"]);
}

#[test]
fn a_refusal_in_a_later_window_diverts_one_record_and_keeps_the_order() {
    let mut bench = bench();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
    bench.append(&[WINDOW, WINDOW]);
    let refused = Event {
        key: None,
        value: "refused",
    };
    bench.append_events(&[refused]);
    bench.append(&[WINDOW]);
    bench.cluster.fault(BrokerFault::Slow);
    bench.cluster.lock().request = Some(100);
    bench.settle();
    let letters = bench.cluster.values(LETTERS);
    assert!(letters.iter().all(|letter| letter == "refused") && !letters.is_empty());
    bench.appended.retain(|value| value != "refused");
    bench.doubles();
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted), (3 * WINDOW as u64, 1));
}

#[test]
fn what_cannot_be_decoded_waits_for_what_is_in_flight() {
    let mut bench = bench();
    bench.append(&[2, 2]);
    bench.append_batch(Batch::of_bytes(b"\x02 of a later version".to_vec(), 1));
    bench.append(&[2]);
    for _ in 0..4 {
        bench.cluster.fault(BrokerFault::Slow);
    }
    while bench.books().delivered < 4 {
        assert_eq!(bench.lane().blocked, None);
        bench.turn();
    }
    for _ in 0..3 {
        bench.settle_blocked(BlockReason::Damage);
        assert_eq!(bench.cluster.values(TOPIC), bench.appended[..4]);
    }
}
