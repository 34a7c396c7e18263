//! One refused record somewhere in a large backlog: the broker refuses its request while the rest is still being sent.
//!
//! Whether or not the topic's configuration foretells the refusal, this one record goes to the dead-letter topic, and
//! everything else is delivered in order and soon.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    bridge::{Setup, Topics},
    cmc::{self, message, webhook},
    kafka,
    secure::{grant, scram},
    secured_broker::secured,
    topics::{self, Reader},
    wait::unique,
};

const LIMIT: Duration = Duration::from_secs(300);

/// What the topic refuses, and whether the bridge can know that in advance.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refused {
    /// A missing key, on a topic that is compacted by its configuration.
    Keyless,
    /// The same, but the bridge's user may not read configurations.
    KeylessUntold,
    /// A record above the topic's limit. It is compressed, so its size can't be foretold.
    Large,
}

struct Case {
    refused: Refused,
    delivery: &'static str,
    partitions: i32,
    /// Number of webhooks, and of events in each.
    webhooks: usize,
    events: usize,
    /// The numbers of the refused events.
    places: &'static [usize],
}

/// One of several keys. Each is in one partition.
const KEYS: usize = 50;

impl Case {
    fn element(&self, n: usize, large: &str) -> String {
        match (self.places.contains(&n), self.refused) {
            (false, _) => message(&format!("key {}", n % KEYS), &n.to_string()),
            (true, Refused::Large) => message("large", &format!("{n} {large}")),
            (true, _) => {
                format!(r#"{{"created":"2026-10-01 09:15:02","subject":"{n}","status":"queued"}}"#)
            }
        }
    }

    fn setup(&self) -> (String, Setup, Topics) {
        let secured = secured();
        let (kafka, setup) = match self.refused {
            Refused::KeylessUntold => (secured.bootstrap(), scram(secured, "is-refused")),
            _ => (kafka::shared().to_owned(), Setup::new(kafka::shared())),
        };
        let mut topics = Topics::create(&kafka);
        // The topic is missing at first, so that all webhooks wait.
        topics.deliveries = unique("refusing");
        let setup = setup
            .topics(&topics)
            .set("kafka.delivery", self.delivery)
            .set("ingest.max_body_bytes", "16MiB")
            .set("ingest.max_events", "25000");
        let setup = match self.refused {
            Refused::KeylessUntold => {
                grant_all(&topics);
                setup
            }
            Refused::Large | Refused::Keyless => setup,
        };
        (kafka, setup, topics)
    }

    fn run(&self) {
        let what = format!(
            "{:?}, {}, {} partitions, {} x {}, {:?}",
            self.refused, self.delivery, self.partitions, self.webhooks, self.events, self.places
        );
        let (kafka, setup, topics) = self.setup();
        let bridge = setup.start();
        let large = cmc::incompressible(60_000);
        let mut client = bridge.client();
        for webhook_number in 0..self.webhooks {
            let numbers = webhook_number * self.events..(webhook_number + 1) * self.events;
            let elements: Vec<String> = numbers.map(|n| self.element(n, &large)).collect();
            let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
            assert_eq!(client.post(webhook("deliveries", "pro", &elements)).status, 200);
        }
        let begun = Instant::now();
        let config = match self.refused {
            Refused::Large => [("max.message.bytes", "50000")],
            _ => [("cleanup.policy", "compact")],
        };
        topics::create_named(&kafka, &topics.deliveries, self.partitions, &config);
        let scrape = bridge.wait_drained(LIMIT);
        println!("{what}: delivered after {:?}", begun.elapsed());
        let sum = |name| scrape.stream(name, "deliveries") as usize;
        assert_eq!(
            sum("cmc_bridge_diverted_events_total"),
            self.places.len(),
            "{what}"
        );
        let all = self.webhooks * self.events;
        assert_eq!(
            sum("cmc_bridge_delivered_events_total"),
            all - self.places.len(),
            "{what}"
        );

        let mut by_key: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
        let mut reader = Reader::new(&kafka, &topics.deliveries);
        let mut seen = HashSet::new();
        let mut doubles = 0;
        for record in reader.read_to_end(LIMIT) {
            let value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            let n: usize = value["subject"].as_str().unwrap().parse().unwrap();
            if !seen.insert(n) {
                doubles += 1;
                continue;
            }
            by_key.entry(record.key.clone().unwrap()).or_default().push(n);
        }
        println!("{what}: {doubles} doubles");
        if self.delivery == "exactly-once" {
            assert_eq!(doubles, 0, "{what}");
        }
        assert_eq!(seen.len(), all - self.places.len(), "{what}");
        for (key, numbers) in by_key {
            let key = String::from_utf8_lossy(&key).into_owned();
            assert!(numbers.is_sorted(), "{what}: {key} is out of order: {numbers:?}");
        }
        let mut letters = Reader::new(&kafka, &topics.dead_letters);
        let letters = letters.read_to_end(LIMIT);
        let letters: Vec<&str> = letters.iter().map(|letter| letter.text()).collect();
        assert_eq!(letters.len(), self.places.len(), "{what}");
        for place in self.places {
            let subject = match self.refused {
                Refused::Large => format!("\"subject\":\"{place} "),
                _ => format!("\"subject\":\"{place}\""),
            };
            assert!(
                letters.iter().any(|letter| letter.contains(&subject)),
                "{what}: {place}"
            );
        }
        bridge.stop();
    }
}

/// Gives the user all rights that the bridge needs, and no more.
fn grant_all(topics: &Topics) {
    let prefixed = ["--resource-pattern-type", "prefixed"];
    let on = |resource: &[&'static str]| [resource, &prefixed].concat();
    let user = ["is-refused"];
    let topics = [&topics.deliveries, &topics.bounces, &topics.dead_letters];
    let mut grants: Vec<_> = topics
        .map(|topic| grant(&user, &["Write", "Read"], &["--topic", topic]))
        .into();
    grants.push(grant(&user, &["Read"], &on(&["--group", "cmc-bridge."])));
    grants.push(grant(
        &user,
        &["Write"],
        &on(&["--transactional-id", "cmc-bridge."]),
    ));
    secured().acls(&grants);
}

const BOTH: [&str; 2] = ["exactly-once", "at-least-once"];

fn run(refused: Refused, partitions: i32, (webhooks, events): (usize, usize), places: &'static [usize]) {
    for delivery in BOTH {
        Case {
            refused,
            delivery,
            partitions,
            webhooks,
            events,
            places,
        }
        .run();
    }
}

#[test]
fn a_keyless_record_that_the_configuration_foretells() {
    run(Refused::Keyless, 1, (70, 1000), &[31_200]);
    run(Refused::Keyless, 6, (1, 10_000), &[0]);
}

#[test]
fn a_keyless_record_that_nothing_foretells() {
    run(Refused::KeylessUntold, 1, (70, 1000), &[31_200]);
    run(Refused::KeylessUntold, 6, (1, 10_000), &[9999]);
    run(Refused::KeylessUntold, 1, (1, 10_000), &[0, 300, 5000]);
}

/// One record per request, the webhook takes longer than its transaction may.
#[test]
fn a_keyless_record_in_a_webhook_for_which_one_transaction_is_too_short() {
    Case {
        refused: Refused::KeylessUntold,
        delivery: "exactly-once",
        partitions: 1,
        webhooks: 1,
        events: 25_000,
        places: &[24_999],
    }
    .run();
}

#[test]
fn a_large_record_whose_size_cannot_be_foretold() {
    run(Refused::Large, 6, (70, 1000), &[69_999]);
    run(Refused::Large, 1, (10, 1000), &[0, 5000, 9999]);
}

/// A right that is withdrawn shows while much is being sent, and is named all the same.
#[test]
fn a_withdrawn_right_is_named_with_many_records_in_flight() {
    let secured = secured();
    let kafka = secured.bootstrap();
    let mut topics = Topics::create(&kafka);
    topics.deliveries = topics::create(&kafka, "withdrawn", 1, &[]);
    grant_all(&topics);
    let bridge = scram(secured, "is-refused").topics(&topics).start();
    let mut client = bridge.client();
    assert_eq!(client.post(cmc::delivery("first@test")).status, 200);
    bridge.wait_drained(LIMIT);
    let mut withdrawn = grant(&["is-refused"], &["Write"], &["--topic", &topics.deliveries]);
    "--remove".clone_into(&mut withdrawn[0]);
    withdrawn.push("--force".to_owned());
    secured.acls(&[withdrawn]);
    // One after another, so that some transaction has many events.
    for webhook_number in 0..40 {
        let elements = (0..1000).map(|n| message("key", &format!("{webhook_number} {n}")));
        let elements: Vec<String> = elements.collect();
        let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
        assert_eq!(client.post(webhook("deliveries", "pro", &elements)).status, 200);
    }
    bridge.wait_for(LIMIT, "the lane to be blocked", |scrape| {
        let labels = [("stream", "deliveries"), ("reason", "authorization")];
        scrape.get("cmc_bridge_lane_blocked", &labels) == 1.0
    });
    let log = bridge.running.stderr();
    let blocked = log.lines().filter(|line| line.contains("the lane is blocked"));
    for line in blocked.filter(|line| line.contains("\"deliveries\"")) {
        assert!(line.contains("WRITE and READ on topic"), "{line}");
    }
    secured.acls(&[grant(
        &["is-refused"],
        &["Write"],
        &["--topic", &topics.deliveries],
    )]);
    let scrape = bridge.wait_drained(LIMIT);
    assert_eq!(
        scrape.stream("cmc_bridge_delivered_events_total", "deliveries"),
        40_001.0
    );
    bridge.stop();
}
