//! One missing right of one stream.

use super::*;
use crate::bridge::Started;

const PREFIXED: [&str; 2] = ["--resource-pattern-type", "prefixed"];

/// The resource on which a user lacks a right. It has all other rights.
#[derive(Clone, Copy, PartialEq)]
enum On {
    /// The topic of bounces.
    Topic,
    /// The topic of bounces, which the bridge should create because it does not exist.
    NewTopic,
    DeadLetterTopic,
    /// The groups of the bounces lane.
    Group,
    /// The transactional ids of the bounces lane.
    TransactionalId,
}

struct Case {
    user: &'static str,
    on: On,
    has: &'static [&'static str],
    lacks: &'static [&'static str],
    /// Words of the warning; `TOPIC` stands for the topic's name.
    words: &'static [&'static str],
}

const CASES: [Case; 8] = [
    Case {
        user: "no-write",
        on: On::Topic,
        has: &["Read"],
        lacks: &["Write"],
        words: &["WRITE and READ on topic TOPIC"],
    },
    Case {
        user: "no-read",
        on: On::Topic,
        has: &["Write"],
        lacks: &["Read"],
        words: &["WRITE and READ on topic TOPIC"],
    },
    // Each of these includes DESCRIBE.
    Case {
        user: "no-describe",
        on: On::Topic,
        has: &[],
        lacks: &["Write", "Read"],
        words: &["WRITE and READ on topic TOPIC"],
    },
    Case {
        user: "no-dead-letters",
        on: On::DeadLetterTopic,
        has: &[],
        lacks: &["Write", "Read"],
        words: &["WRITE and READ on topic TOPIC"],
    },
    Case {
        user: "no-create",
        on: On::NewTopic,
        has: &["Write", "Read"],
        lacks: &["Create"],
        words: &["create topic TOPIC", "CREATE", "kafka.create_topics"],
    },
    Case {
        user: "no-group",
        on: On::Group,
        has: &[],
        lacks: &["Read"],
        words: &["READ on consumer group cmc-bridge.bounces."],
    },
    Case {
        user: "no-group-read",
        on: On::Group,
        has: &["Describe"],
        lacks: &["Read"],
        words: &["READ on consumer group cmc-bridge.bounces."],
    },
    Case {
        user: "no-transactional-id",
        on: On::TransactionalId,
        has: &[],
        lacks: &["Write"],
        words: &["WRITE on transactional id cmc-bridge.bounces."],
    },
];

impl Case {
    /// The stream whose lane lacks the right.
    fn stream(&self) -> &'static str {
        match self.on {
            On::DeadLetterTopic => "dead_letters",
            _ => "bounces",
        }
    }

    /// The case's topics: its own topic for that stream, and topics on which the user has all rights.
    fn topics(&self, own: &str, whole: &str) -> Topics {
        let dead_letters = self.on == On::DeadLetterTopic;
        let (bounces, dead_letters) = if dead_letters { (whole, own) } else { (own, whole) };
        Topics {
            deliveries: whole.to_owned(),
            bounces: bounces.to_owned(),
            blocks: "whole.blocks".to_owned(),
            dead_letters: dead_letters.to_owned(),
        }
    }

    /// The command that grants these operations on the case's resource.
    fn grant(&self, operations: &[&str], topic: &str) -> Vec<String> {
        let prefixed = |kind| [&[kind, "cmc-bridge.bounces"][..], &PREFIXED].concat();
        let resource = match self.on {
            On::Group => prefixed("--group"),
            On::TransactionalId => prefixed("--transactional-id"),
            On::Topic | On::NewTopic | On::DeadLetterTopic => vec!["--topic", topic],
        };
        grant(&[self.user], operations, &resource)
    }

    /// The rights that differ between users.
    fn grants(&self, topic: &str) -> Vec<Vec<String>> {
        let mut grants = Vec::new();
        if !self.has.is_empty() {
            grants.push(self.grant(self.has, topic));
        }
        if matches!(self.on, On::Group | On::TransactionalId) {
            grants.push(grant(&[self.user], &["Write", "Read"], &["--topic", topic]));
        }
        grants
    }
}

/// The rights of all users, including rights that each user has unless its case is to lack them.
fn common_grants() -> [Vec<String>; 5] {
    let users = |but: Option<On>| -> Vec<&str> {
        let cases = CASES.iter().filter(|case| Some(case.on) != but);
        cases.map(|case| case.user).collect()
    };
    let prefixed = |resource: &[&'static str]| [resource, &PREFIXED].concat();
    let others = |kind| prefixed(&[kind, "cmc-bridge.deliveries", kind, "cmc-bridge.dead_letters"]);
    let bounces = |kind| prefixed(&[kind, "cmc-bridge.bounces"]);
    let (group, id) = ("--group", "--transactional-id");
    [
        grant(
            &users(None),
            &["Write", "Read"],
            &prefixed(&["--topic", "whole."]),
        ),
        grant(&users(None), &["Read"], &others(group)),
        grant(&users(None), &["Write"], &others(id)),
        grant(&users(Some(On::Group)), &["Read"], &bounces(group)),
        grant(&users(Some(On::TransactionalId)), &["Write"], &bounces(id)),
    ]
}

#[test]
fn a_missing_right_blocks_its_own_lane_until_it_is_granted() {
    let broker = secured();
    let kafka = broker.bootstrap();
    let whole = topics::create(&kafka, "whole", 1, &[]);
    let cases: Vec<(&Case, String)> = CASES
        .iter()
        .map(|case| match case.on {
            On::NewTopic => (case, unique("own")),
            _ => (case, topics::create(&kafka, "own", 1, &[])),
        })
        .collect();
    let grants = cases.iter().flat_map(|(case, topic)| case.grants(topic));
    broker.acls(&common_grants().into_iter().chain(grants).collect::<Vec<_>>());

    let bridges: Vec<(Setup, Bridge)> = cases
        .iter()
        .map(|(case, topic)| {
            let create = (case.on == On::NewTopic).to_string();
            let setup = scram(broker, case.user)
                .topics(&case.topics(topic, &whole))
                .set("kafka.create_topics", &create);
            let bridge = setup.start();
            let mut client = bridge.client();
            let element = message(&format!("{}@test", case.user), "s");
            for event_type in ["deliveries", "bounces"] {
                let body = webhook(event_type, "pro", &[&element]);
                assert_eq!(client.post(body).status, 200);
            }
            assert_eq!(client.post("{").status, 400);
            (setup, bridge)
        })
        .collect();
    for ((case, topic), (setup, bridge)) in cases.iter().zip(&bridges) {
        let (user, stream) = (case.user, case.stream());
        let words: Vec<String> = case.words.iter().map(|w| w.replace("TOPIC", topic)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        wait_blocked(user, bridge, stream, "authorization", &words);
        for other in STREAMS.into_iter().filter(|other| *other != stream) {
            bridge.wait_for(LIMIT, &format!("{user}: {other} delivered"), |scrape| {
                scrape.stream("cmc_bridge_delivered_events_total", other) == 1.0
                    && scrape.sum("cmc_bridge_lane_blocked", &[("stream", other)]) == 0.0
            });
        }
        let backlog = bridge.scrape().stream("cmc_bridge_backlog_events", stream);
        assert_eq!(backlog, 1.0, "{user}");
        assert_eq!(bridge.client().post(cmc::delivery("later@test")).status, 200);
        assert_no_secrets(setup, bridge);
    }
    let cures = cases.iter().map(|(case, topic)| case.grant(case.lacks, topic));
    broker.acls(&cures.collect::<Vec<_>>());
    for ((case, topic), (_, bridge)) in cases.iter().zip(bridges) {
        bridge.wait_drained(LIMIT);
        bridge.wait_for(LIMIT, &format!("{}: a free lane", case.user), |scrape| {
            scrape.sum("cmc_bridge_lane_blocked", &[]) == 0.0
        });
        let mut reader = Reader::new(&kafka, topic);
        assert_eq!(reader.read_to_end(LIMIT).len(), 1, "{}", case.user);
        bridge.stop();
    }
}

#[test]
fn a_tap_ends_when_its_right_is_revoked() {
    let broker = secured();
    let topic = topics::create(&broker.bootstrap(), "withdrawn", 1, &[]);
    let user = CASES[0].user;
    let mut right = grant(&[user], &["Read"], &["--topic", &topic]);
    broker.acls(&[right.clone()]);
    let setup = scram(broker, user).set("streams.dead_letters.topic", &topic);
    let mut tap = Started::new(&setup, &["tap", "--stream", "dead-letters"], &[]);
    tap.says("Ctrl-C ends it");
    right[0] = "--remove".to_owned();
    right.push("--force".to_owned());
    broker.acls(&[right]);
    tap.end().has(69, &["READ on topic", &topic]);
}
