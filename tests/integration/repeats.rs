//! `ingest.repeats`: a webhook that the sender repeats is answered 200, and its events are stored once or as often as they come.

use std::time::Duration;

use crate::{
    bridge::{NO_KAFKA, Setup, Topics},
    cmc::{message, webhook},
    kafka,
    topics::Reader,
    wait::unique,
};

const LIMIT: Duration = Duration::from_secs(180);
const REPEATED: &str = "cmc_bridge_repeated_events_total";

fn setup(kafka: &str, topics: &Topics) -> Setup {
    Setup::new(kafka)
        .topics(topics)
        .set("kafka.id_prefix", &unique("test"))
        .set("ingest.repeats", "drop")
}

fn records(kafka: &str, topic: &str) -> Vec<String> {
    let mut reader = Reader::new(kafka, topic);
    let records = reader.read_to_end(LIMIT);
    records.iter().map(|record| record.text().to_owned()).collect()
}

#[test]
fn repeats_are_dropped_also_after_a_restart_if_the_log_holds_them() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = setup(kafka, &topics);
    let away = setup.clone().set("kafka.bootstrap_servers", NO_KAFKA);
    let [first, second, third] = [1, 2, 3].map(|n| message(&format!("<repeat-{n}@test>"), "x"));
    let both = webhook("deliveries", "pro", &[&first, &second]);
    // What a webhook holds twice is not a repeat.
    let twice = webhook("deliveries", "pro", &[&third, "7", &third]);

    let bridge = away.start();
    let mut client = bridge.client();
    for body in [&both, &both, &twice, &twice] {
        assert_eq!(client.post(body).status, 200);
    }
    let repeated = |bridge: &crate::bridge::Bridge| bridge.scrape().stream(REPEATED, "deliveries");
    assert_eq!(repeated(&bridge), 4.0);
    bridge.kill();

    let bridge = setup.start();
    bridge.wait_drained(LIMIT);
    // One of them is new, and the same event of another composition, too.
    let mut client = bridge.client();
    let fourth = message("<repeat-4@test>", "x");
    for body in [
        &both,
        &webhook("deliveries", "pro", &[&fourth, &first]),
        &webhook("deliveries", "sandbox", &[&first]),
    ] {
        assert_eq!(client.post(body).status, 200);
    }
    assert_eq!(repeated(&bridge), 3.0);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    assert_eq!(records(kafka, &topics.deliveries).len(), 6);
    assert_eq!(records(kafka, &topics.dead_letters).len(), 2);
}

#[test]
fn repeats_are_kept_unless_they_are_to_be_dropped_and_after_the_window() {
    let kafka = kafka::shared();
    for (key, value) in [("ingest.repeats", "keep"), ("ingest.repeat_window", "1s")] {
        let topics = Topics::create(kafka);
        let bridge = setup(kafka, &topics).set(key, value).start();
        let body = webhook("deliveries", "pro", &[&message("<kept@test>", "x")]);
        assert_eq!(bridge.client().post(&body).status, 200);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(bridge.client().post(&body).status, 200);
        bridge.wait_drained(LIMIT);
        bridge.stop();
        let records = records(kafka, &topics.deliveries);
        assert_eq!(records.len(), 2);
        assert_eq!(records[0], records[1]);
    }
}
