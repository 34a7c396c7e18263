//! The sender's bodies, and the records that they must become on the real topics.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{self, elements, sample, webhook},
    http::{EVENTS, FORM, JSON},
    kafka,
    topics::{Reader, Record},
};

const LIMIT: Duration = Duration::from_secs(180);

struct Scene {
    kafka: &'static str,
    topics: Topics,
    bridge: Bridge,
}

fn scene(settings: &[(&str, &str)]) -> Scene {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = settings
        .iter()
        .fold(Setup::new(kafka).topics(&topics), |setup, (key, value)| {
            setup.set(key, value)
        });
    Scene {
        kafka,
        bridge: setup.start(),
        topics,
    }
}

impl Scene {
    /// All records of a topic, once everything is delivered. There must be exactly `count`.
    fn records(&self, topic: &str, count: usize) -> Vec<Record> {
        self.bridge.wait_drained(LIMIT);
        let mut reader = Reader::new(self.kafka, topic);
        reader.read_count(count, LIMIT);
        reader.read_to_end(LIMIT);
        assert_eq!(reader.records.len(), count, "{:?}", reader.records);
        reader.records
    }

    /// Checks that exactly these elements are on the topic, in this order per key.
    fn expect(&self, topic: &str, event_type: &str, composition: &str, raw: &[String]) {
        let mut records = by_key(self.records(topic, raw.len()));
        for element in raw {
            let key = cmc::key_of(element).map(String::into_bytes);
            let queue = records
                .get_mut(&key)
                .unwrap_or_else(|| panic!("no record with the key {key:?}"));
            assert!(!queue.is_empty(), "too few records with the key {key:?}");
            cmc::check(&queue.remove(0), event_type, composition, element);
        }
    }
}

/// The records of each key, in order. A key must stay on one partition.
fn by_key(records: Vec<Record>) -> BTreeMap<Option<Vec<u8>>, Vec<Record>> {
    let mut keys: BTreeMap<Option<Vec<u8>>, Vec<Record>> = BTreeMap::new();
    for record in records {
        let queue = keys.entry(record.key.clone()).or_default();
        if let (Some(first), true) = (queue.first(), record.key.is_some()) {
            assert_eq!(first.partition, record.partition);
        }
        queue.push(record);
    }
    keys
}

#[test]
fn every_deliveries_sample_arrives_verbatim() {
    let scene = scene(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.bearer_tokens", "secret-token"),
        ("ingest.auth.api_keys", "0123456789abcdef0123456789abcdef"),
    ]);
    let mut client = scene.bridge.client();
    let mut sent = Vec::new();
    for name in [
        "deliveries-queued.json",
        "deliveries-deferred.json",
        "deliveries-failed.json",
        "deliveries-succeeded.json",
        "deliveries-version1.json",
        "deliveries-batch-100.json",
    ] {
        let body = sample(name);
        let response = client.post_with(&[JSON, ("authorization", "Bearer secret-token")], &body);
        assert_eq!((response.status, response.text()), (200, "ok"), "{name}");
        sent.extend(elements(&body, "deliveries"));
    }
    // The key in the body authorises these two, and is removed.
    let body = sample("deliveries-api-key.json");
    assert_eq!(client.post(&body).status, 200);
    sent.extend(elements(&body, "deliveries"));
    let body = sample("deliveries-form.txt");
    assert_eq!(client.post_with(&[FORM], &body).status, 200);
    sent.extend(elements(&form_event(&body), "deliveries"));

    assert_eq!(sent.len(), 108);
    scene.expect(&scene.topics.deliveries, "deliveries", "pro", &sent);
}

/// The decoded `event` of a form body.
fn form_event(body: &str) -> String {
    let field = body
        .split('&')
        .find_map(|pair| pair.strip_prefix("event="))
        .unwrap();
    let spaces = field.replace('+', " ");
    percent_encoding::percent_decode_str(&spaces)
        .decode_utf8()
        .unwrap()
        .into_owned()
}

#[test]
fn bounces_and_blocks_arrive_on_their_topics() {
    let scene = scene(&[("streams.blocks.enabled", "true")]);
    let mut client = scene.bridge.client();
    let mut bounces = Vec::new();
    for name in ["bounces-unknown-host.json", "bounces-unknown-user.json"] {
        let body = sample(name);
        assert_eq!(client.post(&body).status, 200);
        bounces.extend(elements(&body, "bounces"));
    }
    let body = sample("blocks.json");
    assert_eq!(client.post(&body).status, 200);
    scene.expect(&scene.topics.bounces, "bounces", "pro", &bounces);
    scene.expect(&scene.topics.blocks, "blocks", "pro", &elements(&body, "blocks"));
    let scrape = scene.bridge.scrape();
    let code = |code| {
        scrape.get(
            "cmc_bridge_events_total",
            &[("stream", "bounces"), ("status", code)],
        )
    };
    assert_eq!((code("1"), code("2"), code("3")), (1.0, 1.0, 0.0));
}

#[test]
fn odd_ids_times_and_compositions() {
    let scene = scene(&[]);
    let composition = "本番 a/b-c_d.e~f";
    let long = format!(r#"{{"messageId":"{}"}}"#, "x".repeat(513));
    let longest = format!(r#"{{"messageId":"{}"}}"#, "x".repeat(512));
    let sent: Vec<String> = [
        r#"{}"#,
        r#"{"messageId":""}"#,
        r#"{"messageId":7,"n":1000.0,"big":123456789012345678901234567890}"#,
        r#"{ "messageId" : "a b\u0026\u65E5" , "created":"2026-02-28 23:59:59", "nested":{"a":[1,{"b":null}]} }"#,
        r#"{"messageId":"same","created":"yesterday"}"#,
        r#"{"messageId":"same","created":""}"#,
        &long,
        &longest,
    ]
    .map(str::to_owned)
    .to_vec();
    let raw: Vec<&str> = sent.iter().map(String::as_str).collect();
    let response = scene
        .bridge
        .client()
        .post(webhook("deliveries", composition, &raw));
    assert_eq!(response.status, 200);

    let records = scene.records(&scene.topics.deliveries, sent.len());
    for element in &sent {
        // Null keys have no order; find the record by its value.
        let value = cmc::value_of("deliveries", composition, element);
        let record = records.iter().find(|record| record.text() == value);
        let record = record.unwrap_or_else(|| panic!("no record {value} in {records:?}"));
        check_odd(record, composition, element);
    }
}

fn check_odd(record: &Record, composition: &str, element: &str) {
    // The checker handles times that parse; the others must yield no ce_time.
    if element.contains("yesterday") || element.contains(r#""created":"""#) {
        assert_eq!(record.header("ce_time"), None);
        assert_eq!(record.key_text(), Some("same"));
    } else {
        cmc::check(record, "deliveries", composition, element);
    }
}

#[test]
fn equal_bytes_have_equal_ids_and_different_bytes_different_ids() {
    let scene = scene(&[]);
    let mut client = scene.bridge.client();
    let body = cmc::delivery("one@test");
    client.post(&body);
    client.post(&body);
    client.post(cmc::delivery("two@test"));
    let records = scene.records(&scene.topics.deliveries, 3);
    let ids: Vec<Vec<&str>> = ["<one@test>", "<two@test>"]
        .iter()
        .map(|key| {
            let of_key = records.iter().filter(|record| record.key_text() == Some(key));
            of_key.map(|record| record.header("ce_id").unwrap()).collect()
        })
        .collect();
    assert_eq!(ids[0][0], ids[0][1]);
    assert_ne!(ids[0][0], ids[1][0]);
}

#[test]
fn a_broken_body_is_answered_400_and_kept_as_a_dead_letter() {
    let scene = scene(&[]);
    let body = r#"{"event_type":"deliveries","event":{"deliveries":[{"messageId":"\u003Ca"#;
    let response = scene.bridge.client().post(body);
    assert_eq!(response.status, 400);
    assert_eq!(response.media_type(), "application/problem+json");
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["title"], "Invalid request");
    assert_eq!(problem["status"], 400);

    let letter = &scene.records(&scene.topics.dead_letters, 1)[0];
    assert_eq!(letter.text(), body);
    check_letter(letter);
    assert_eq!(
        letter.header("cmc-dead-letter-content-type"),
        Some("application/json")
    );
    assert_eq!(letter.header("cmc-dead-letter-index"), None);
    scene.records(&scene.topics.deliveries, 0);
}

#[test]
fn a_bad_element_is_kept_with_its_index_and_the_others_are_delivered() {
    let scene = scene(&[]);
    let good: Vec<String> = (0..3)
        .map(|n| cmc::message("same@test", &format!("{n}")))
        .collect();
    let taken = r#"{"messageId":"x","event_type":"bounces"}"#;
    let body = webhook(
        "deliveries",
        "pro",
        &[&good[0], "\"no object\"", &good[1], taken, &good[2]],
    );
    assert_eq!(scene.bridge.client().post(&body).status, 200);
    scene.expect(&scene.topics.deliveries, "deliveries", "pro", &good);

    let mut letters = scene.records(&scene.topics.dead_letters, 2);
    letters.sort_by_key(|letter| letter.header("cmc-dead-letter-index").map(str::to_owned));
    for (letter, (index, value)) in letters.iter().zip([("1", "\"no object\""), ("3", taken)]) {
        assert_eq!(letter.header("cmc-dead-letter-index"), Some(index));
        assert_eq!(letter.text(), value);
        check_letter(letter);
        assert_eq!(letter.header("cmc-dead-letter-event-type"), Some("deliveries"));
        assert_eq!(letter.header("cmc-dead-letter-server-composition"), Some("pro"));
    }
}

#[test]
fn webhooks_of_no_enabled_stream_become_dead_letters() {
    let scene = scene(&[]);
    let mut client = scene.bridge.client();
    let mut sent = Vec::new();
    for body in [webhook("clicks", "pro", &["{\"a\":1}"]), sample("blocks.json")] {
        assert_eq!(client.post(&body).status, 200);
        sent.push(body);
    }
    let letters = scene.records(&scene.topics.dead_letters, 2);
    for letter in &letters {
        check_letter(letter);
        // The contract allows one letter or one per element, but the bytes must be there.
        assert!(
            sent.iter().any(|body| body.contains(letter.text())),
            "{}",
            letter.text()
        );
    }
    scene.records(&scene.topics.deliveries, 0);
}

#[test]
fn a_configured_key_is_overwritten_in_a_dead_letter() {
    let key = "0123456789abcdef0123456789abcdef";
    let scene = scene(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.api_keys", key),
        ("ingest.auth.bearer_tokens", "secret-token"),
    ]);
    let body = format!(r#"{{"api_key":"{key}","event":broken {key}}}"#);
    let bearer = ("authorization", "Bearer secret-token");
    assert_eq!(
        scene.bridge.client().post_with(&[JSON, bearer], &body).status,
        400
    );
    let letter = &scene.records(&scene.topics.dead_letters, 1)[0];
    assert_eq!(letter.text(), body.replace(key, &"*".repeat(key.len())));
    assert!(letter.header("cmc-dead-letter-masked").is_some());
    assert!(!scene.bridge.running.stderr().contains(key));
}

fn check_letter(letter: &Record) {
    let reason = letter.header("cmc-dead-letter-reason").expect("a reason");
    assert!(
        !reason.is_empty()
            && reason
                .bytes()
                .all(|b| b.is_ascii_lowercase() || matches!(b, b'-' | b'_')),
        "not a reason from a closed list: {reason:?}"
    );
    assert_eq!(letter.header("cmc-dead-letter-path"), Some(EVENTS));
    let received = letter.header("cmc-dead-letter-received-at").expect("a time");
    received.parse::<jiff::Timestamp>().unwrap();
}
