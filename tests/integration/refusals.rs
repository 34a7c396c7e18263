//! What Kafka refuses: single records go to the dead-letter topic, and a topic that can't be written blocks only its own lane.

use std::{collections::HashSet, time::Duration};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{self, message, sample, webhook},
    http::Client,
    kafka,
    topics::{self, Reader},
    wait::{self, unique},
};

const LIMIT: Duration = Duration::from_secs(180);

/// Posts good elements and one that the topic refuses, and checks where each record is, with and without transactions.
fn one_refused_among_good_ones(topic_config: &[(&str, &str)], refused: &str, codec: &str) {
    for delivery in ["exactly-once", "at-least-once"] {
        one_refused(topic_config, refused, codec, delivery);
    }
}

fn one_refused(topic_config: &[(&str, &str)], refused: &str, codec: &str, delivery: &str) {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "refusing", 1, topic_config);
    let bridge = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.delivery", delivery)
        .property("compression.type", codec)
        .start();
    let mut client = bridge.client();
    let good: Vec<String> = (0..20).map(|n| message("same@test", &format!("{n}"))).collect();
    // Good elements before, around and after the refused one, in the same webhook and in others.
    for elements in [
        good[..5].iter().map(String::as_str).collect::<Vec<_>>(),
        good[5..10]
            .iter()
            .map(String::as_str)
            .chain([refused])
            .chain(good[10..15].iter().map(String::as_str))
            .collect(),
        good[15..].iter().map(String::as_str).collect(),
    ] {
        assert_eq!(client.post(webhook("deliveries", "pro", &elements)).status, 200);
    }
    let scrape = bridge.wait_drained(LIMIT);
    assert_eq!(
        scrape.stream("cmc_bridge_diverted_events_total", "deliveries"),
        1.0
    );
    assert_eq!(
        scrape.stream("cmc_bridge_delivered_events_total", "deliveries"),
        20.0
    );

    let noted = wait::until(LIMIT, "the note", || {
        let status = Client::new(bridge.admin).get("/status.json");
        let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
        status["dead_letters"].get(0).cloned()
    });
    assert_eq!(
        (
            &noted["scope"],
            &noted["stream"],
            &noted["index"],
            &noted["count"]
        ),
        (&"broker".into(), &"deliveries".into(), &5.into(), &1.into())
    );

    let mut reader = Reader::new(kafka, &topics.deliveries);
    let mut records = reader.read_to_end(LIMIT).to_vec();
    if delivery == "at-least-once" {
        // What was sent together with the refused record comes again, in order.
        let mut seen = HashSet::new();
        records.retain(|record| seen.insert(record.value.clone()));
    }
    assert_eq!(records.len(), good.len());
    for (record, element) in records.iter().zip(&good) {
        cmc::check(record, "deliveries", "pro", element);
    }
    let mut reader = Reader::new(kafka, &topics.dead_letters);
    let letters = reader.read_to_end(LIMIT);
    assert_eq!(letters.len(), 1);
    let mut letter = letters[0].clone();
    assert!(
        letter
            .header("cmc-dead-letter-reason")
            .is_some_and(|reason| !reason.is_empty())
    );
    assert_eq!(
        letter.header("cmc-dead-letter-topic"),
        Some(topics.deliveries.as_str())
    );
    // The dead letter has its own key, headers and value.
    letter
        .headers
        .retain(|(name, _)| !name.starts_with("cmc-dead-letter-"));
    cmc::check(&letter, "deliveries", "pro", refused);
}

const SMALL: (&str, &str) = ("max.message.bytes", "20000");

/// Without a codec, the topic's configuration tells in advance that any record of this size is too large.
#[test]
fn a_record_too_large_for_the_topic() {
    let large = message("large@test", &"x".repeat(30_000));
    one_refused_among_good_ones(&[SMALL], &large, "none");
}

#[test]
fn a_record_too_large_for_the_topic_although_compressed() {
    let large = message("large@test", &cmc::incompressible(30_000));
    one_refused_among_good_ones(&[SMALL], &large, "lz4");
}

/// By default, records are compressed, and the limit is that of their compressed size.
#[test]
fn a_record_that_fits_the_topic_compressed_is_delivered() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "fits", 1, &[SMALL]);
    let bridge = Setup::new(kafka).topics(&topics).start();
    let large = message("large@test", &"x".repeat(100_000));
    let body = webhook("deliveries", "pro", &[&large]);
    assert_eq!(bridge.client().post(body).status, 200);
    let scrape = bridge.wait_drained(LIMIT);
    assert_eq!(
        scrape.stream("cmc_bridge_diverted_events_total", "deliveries"),
        0.0
    );
    let mut reader = Reader::new(kafka, &topics.deliveries);
    cmc::check(&reader.read_to_end(LIMIT)[0], "deliveries", "pro", &large);
}

#[test]
fn a_record_without_key_on_a_compacted_topic() {
    let keyless = r#"{"created":"2026-10-01 09:15:02","subject":"no id","status":"queued"}"#;
    one_refused_among_good_ones(&[("cleanup.policy", "compact")], keyless, "lz4");
}

#[test]
fn good_records_that_are_too_large_together_are_not_diverted() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "small-batches", 1, &[("max.message.bytes", "20000")]);
    let bridge = Setup::new(kafka).topics(&topics).start();
    let good: Vec<String> = (0..200)
        .map(|n| message("same@test", &format!("{n} {}", "x".repeat(300))))
        .collect();
    let elements: Vec<&str> = good.iter().map(String::as_str).collect();
    assert_eq!(
        bridge
            .client()
            .post(webhook("deliveries", "pro", &elements))
            .status,
        200
    );
    let scrape = bridge.wait_drained(LIMIT);
    assert_eq!(
        scrape.stream("cmc_bridge_diverted_events_total", "deliveries"),
        0.0
    );
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let values: Vec<&str> = reader
        .read_to_end(LIMIT)
        .iter()
        .map(|record| record.text())
        .collect();
    let want: Vec<String> = good
        .iter()
        .map(|element| cmc::value_of("deliveries", "pro", element))
        .collect();
    assert_eq!(values, want);
}

fn blocked(bridge: &Bridge, stream: &str) -> f64 {
    bridge
        .scrape()
        .sum("cmc_bridge_lane_blocked", &[("stream", stream)])
}

#[test]
fn a_missing_topic_blocks_its_own_lane_until_it_is_there() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.bounces = unique("missing");
    let bridge = Setup::new(kafka).topics(&topics).start();
    let mut client = bridge.client();
    let bounce = sample("bounces-unknown-user.json");
    assert_eq!(client.post(&bounce).status, 200);
    bridge.wait_for(LIMIT, "the bounces' lane to be blocked", |scrape| {
        scrape.sum("cmc_bridge_lane_blocked", &[("stream", "bounces")]) == 1.0
    });
    assert_eq!(bridge.probe("/readyz"), 200);

    assert_eq!(client.post(sample("deliveries-batch-100.json")).status, 200);
    assert_eq!(client.post(&bounce).status, 200);
    let scrape = bridge.wait_for(LIMIT, "the deliveries", |scrape| {
        scrape.stream("cmc_bridge_delivered_events_total", "deliveries") == 100.0
    });
    assert_eq!(scrape.stream("cmc_bridge_backlog_events", "bounces"), 2.0);
    assert_eq!(
        (blocked(&bridge, "bounces"), blocked(&bridge, "deliveries")),
        (1.0, 0.0)
    );

    topics::create_named(kafka, &topics.bounces, 3, &[]);
    bridge.wait_drained(LIMIT);
    let mut reader = Reader::new(kafka, &topics.bounces);
    let element = &cmc::elements(&bounce, "bounces")[0];
    let records = reader.read_to_end(LIMIT);
    assert_eq!(records.len(), 2);
    for record in records {
        cmc::check(record, "bounces", "pro", element);
    }
    bridge.wait_for(LIMIT, "the lane to be free", |scrape| {
        scrape.sum("cmc_bridge_lane_blocked", &[("stream", "bounces")]) == 0.0
    });
}
