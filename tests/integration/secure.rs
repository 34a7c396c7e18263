//! TLS, SASL and ACLs: everything is delivered once, and each wrong or missing setting or right blocks only the lanes that
//! need it, with an error that names cause and cure.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    bridge::{Bridge, Setup, Topics, run},
    cmc::{self, message, webhook},
    kafka::new_dir,
    load::{Load, Outcome, Shape, Target},
    metrics::STREAMS,
    oracle,
    secured_broker::{CERTIFIED_USER, PASSWORD, PLAIN_USER, Secured, secured},
    token_server::{CLIENT, URL_SECRET},
    topics::{self, Reader},
    wait::{self, unique},
};

mod login;
mod rights;
mod tokens;

const LIMIT: Duration = Duration::from_secs(180);
const TOKEN_URL: &str = "sasl.oauthbearer.token.endpoint.url";

/// The blocks of settings in docs/kafka-security.md, and its ACL commands without the tool's own options.
struct Documented {
    settings: Vec<BTreeMap<String, String>>,
    acls: Vec<Vec<String>>,
}

impl Documented {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kafka-security.md");
        let text = fs::read_to_string(path).unwrap();
        let settings = text.split("```toml\n").skip(1).map(|block| {
            let block = block.split("```").next().unwrap();
            block
                .lines()
                .filter_map(|line| line.strip_prefix('"')?.strip_suffix('"')?.split_once("\" = \""))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        });
        let acls = text
            .lines()
            .filter_map(|line| line.strip_prefix("$ kafka-acls.sh "))
            .map(|line| {
                let (_, wanted) = line.split_once("admin.properties ").unwrap();
                wanted.split(' ').map(str::to_owned).collect()
            });
        Documented {
            settings: settings.collect(),
            acls: acls.collect(),
        }
    }

    /// The block of settings that has this value, with the test's files.
    fn with(&self, value: &str, broker: &Secured) -> BTreeMap<String, String> {
        let mut found = self
            .settings
            .iter()
            .filter(|block| block.values().any(|v| v == value));
        let mut settings = found
            .next()
            .unwrap_or_else(|| panic!("no block with {value}"))
            .clone();
        settings
            .entry(TOKEN_URL.to_owned())
            .and_modify(|url| *url = broker.tokens.url("token"));
        for (name, file) in [
            ("ssl.ca.location", "ca.pem"),
            ("ssl.certificate.location", "client.pem"),
            ("ssl.key.location", "client.key"),
            ("sasl.password_file", "password"),
            ("https.ca.location", "other-ca.pem"),
            ("sasl.oauthbearer.client.secret_file", "password"),
        ] {
            settings
                .entry(name.to_owned())
                .and_modify(|path| *path = broker.file(file));
        }
        settings
    }
}

fn with_properties(setup: Setup, properties: &BTreeMap<String, String>) -> Setup {
    properties
        .iter()
        .fold(setup, |setup, (name, value)| setup.property(name, value))
}

/// The settings of a SCRAM user.
pub fn scram(broker: &Secured, user: &str) -> Setup {
    Setup::new(&broker.sasl_ssl())
        .property("security.protocol", "SASL_SSL")
        .property("ssl.ca.location", &broker.file("ca.pem"))
        .property("sasl.mechanism", "SCRAM-SHA-512")
        .property("sasl.username", user)
        .property("sasl.password_file", &broker.file("password"))
        .set("kafka.transaction_timeout", "10s")
}

fn assert_no_secret(what: &str, text: &str) {
    assert!(!text.contains(PASSWORD), "{what} shows the password:\n{text}");
    assert!(!text.contains("PRIVATE KEY"), "{what} shows a key:\n{text}");
    assert!(
        !text.contains(URL_SECRET),
        "{what} shows a part of the URL:\n{text}"
    );
    // What each JSON Web Token begins with.
    assert!(!text.contains("eyJ"), "{what} shows a token:\n{text}");
}

type Change<'a> = Box<dyn Fn(Setup) -> Setup + 'a>;

/// A wrong login: its name, what is wrong, the reason that blocks the lanes, and words of the warning.
type Case<'a> = (&'a str, Change<'a>, &'a str, &'a [&'a str]);

/// Starts a bridge with each wrong login, and checks that the warnings name cause and cure. With the right login, each event then
/// arrives once.
fn wrong_logins(broker: &Secured, right: &Setup, prefix: &str, cases: Vec<Case<'_>>) {
    let kafka = broker.bootstrap();
    let prefixed = |kind: &str, prefix: &str, operations: &[&str]| {
        let resource = [kind, prefix, "--resource-pattern-type", "prefixed"];
        grant(&["cmc-bridge"], operations, &resource)
    };
    broker.acls(&[
        prefixed("--topic", &format!("{prefix}."), &["Write", "Read"]),
        prefixed("--transactional-id", "cmc-bridge", &["Write"]),
        prefixed("--group", "cmc-bridge", &["Read"]),
    ]);
    let started: Vec<_> = cases
        .into_iter()
        .map(|(case, change, reason, words)| {
            let topic = |stream: &str| topics::create(&kafka, &format!("{prefix}.{stream}"), 1, &[]);
            let topics = Topics {
                deliveries: topic("deliveries"),
                bounces: topic("bounces"),
                blocks: format!("{prefix}.blocks"),
                dead_letters: topic("dead-letters"),
            };
            let right = right.clone().spool(&new_dir("spool")).topics(&topics);
            let wrong = change(right.clone());
            let bridge = wrong.start();
            (case, reason, words, wrong, right, bridge, topics)
        })
        .collect();
    for (case, reason, words, wrong, right, bridge, topics) in started {
        let element = message(&format!("{case}@test").replace(' ', "-"), case);
        let body = webhook("deliveries", "pro", &[&element]);
        assert_eq!(bridge.client().post(&body).status, 200, "{case}");
        for stream in STREAMS {
            wait_blocked(case, &bridge, stream, reason, words);
        }
        if case == "no CA" {
            let log = bridge.running.stderr();
            let looked = [
                "Setting default CA certificate location",
                "Unable to find any standard CA",
            ];
            assert!(
                looked.iter().any(|line| log.contains(line)),
                "librdkafka did not look for the system's CA bundle"
            );
        }
        assert_no_secrets(&wrong, &bridge);
        bridge.kill();
        let bridge = right.start();
        bridge.wait_drained(LIMIT);
        let mut reader = Reader::new(&kafka, &topics.deliveries);
        let records = reader.read_to_end(LIMIT);
        assert_eq!(records.len(), 1, "{case}");
        cmc::check(&records[0], "deliveries", "pro", &element);
    }
}

/// Searches all output of a bridge.
fn assert_no_secrets(setup: &Setup, bridge: &Bridge) {
    assert_no_secret("the log", &bridge.running.stderr());
    for page in ["/metrics", "/status", "/status.json"] {
        let answer = crate::http::Client::new(bridge.admin).get(page);
        assert_eq!(answer.status, 200, "{page}");
        assert_no_secret(page, answer.text());
    }
    for command in [&["config", "show"][..], &["check"]] {
        let ended = run(setup, command);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_no_secret(&command.join(" "), &(ended.stdout + &ended.stderr));
    }
}

/// The warning of a stream's lane that has this reason and all these words.
fn warning(bridge: &Bridge, stream: &str, reason: &str, words: &[&str]) -> Option<String> {
    bridge.running.stderr().lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let message = line["message"].as_str()?;
        let is_of = line["level"] == "WARN" && line["stream"] == stream && line["reason"] == reason;
        (is_of && words.iter().all(|word| message.contains(word))).then(|| message.to_owned())
    })
}

/// Waits until a stream's lane is blocked for this reason, with a warning that has these words.
fn wait_blocked(case: &str, bridge: &Bridge, stream: &str, reason: &str, words: &[&str]) {
    let labels = [("stream", stream), ("reason", reason)];
    bridge.wait_for(
        LIMIT,
        &format!("{case}: {stream} to be blocked by {reason}"),
        |scrape| scrape.get("cmc_bridge_lane_blocked", &labels) == 1.0,
    );
    // The first warning may differ, if the broker was too busy to answer.
    let message = wait::until(LIMIT, &format!("{case}: a warning with {words:?}"), || {
        warning(bridge, stream, reason, words)
    });
    println!("{case}, {stream}, {reason}: {message}");
    assert_eq!(
        (bridge.probe("/readyz"), bridge.probe("/livez")),
        (200, 200),
        "{case}"
    );
}

/// Arguments that grant users operations on resources.
pub fn grant(users: &[&str], operations: &[&str], resources: &[&str]) -> Vec<String> {
    let mut args = vec!["--add".to_owned()];
    for user in users {
        args.extend(["--allow-principal".to_owned(), format!("User:{user}")]);
    }
    for operation in operations {
        args.extend(["--operation", operation].map(str::to_owned));
    }
    args.extend(resources.iter().map(|&resource| resource.to_owned()));
    args
}

#[test]
fn the_documented_features_are_those_of_this_build() {
    let config = rdkafka::ClientConfig::new().create_native_config().unwrap();
    let features = config.get("builtin.features").unwrap().replace(',', ", ");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kafka-security.md");
    let text = fs::read_to_string(path).unwrap();
    assert!(
        text.contains(&features),
        "librdkafka's builtin.features: {features}"
    );
}

#[test]
fn each_event_arrives_once_with_each_documented_login_and_its_rights() {
    let broker = secured();
    let kafka = broker.bootstrap();
    let documented = Documented::read();
    let topics = Topics {
        deliveries: "cmc.deliveries".into(),
        bounces: "cmc.bounces".into(),
        blocks: "cmc.blocks".into(),
        dead_letters: "cmc.dead-letters".into(),
    };
    for topic in [&topics.deliveries, &topics.bounces, &topics.dead_letters] {
        topics::create_named(&kafka, topic, 3, &[]);
    }
    assert_eq!(documented.acls.len(), 3);
    let others = [PLAIN_USER.to_owned(), format!("CN={CERTIFIED_USER}")];
    let acls: Vec<Vec<String>> = documented
        .acls
        .iter()
        .map(|args| {
            assert!(args.contains(&"User:cmc-bridge".to_owned()), "{args:?}");
            let others = others
                .iter()
                .flat_map(|user| ["--allow-principal".to_owned(), format!("User:{user}")]);
            args.iter().cloned().chain(others).collect()
        })
        .collect();
    broker.acls(&acls);

    let target = Target::default();
    let mut posted = Vec::new();
    for (value, bootstrap, user) in [
        ("SCRAM-SHA-512", broker.sasl_ssl(), "cmc-bridge"),
        ("PLAIN", broker.sasl_ssl(), PLAIN_USER),
        ("SSL", broker.ssl(), CERTIFIED_USER),
        ("OAUTHBEARER", broker.sasl_ssl(), CLIENT),
    ] {
        let mut properties = documented.with(value, broker);
        properties
            .entry("sasl.username".into())
            .and_modify(|name| *name = user.to_owned());
        // Includes everything that librdkafka logs.
        let setup = with_properties(Setup::new(&bootstrap), &properties)
            .property("debug", "conf,security,broker,eos")
            .set("log.level", "trace");
        let bridge = setup.start();
        target.set(bridge.ingest);
        let load = Load::start(&target, Shape::default());
        bridge.wait_for(LIMIT, &format!("deliveries by {value}"), |scrape| {
            scrape.sum("cmc_bridge_delivered_events_total", &[]) >= 100.0
        });
        bridge.kill();
        let bridge = setup.start();
        target.set(bridge.ingest);
        load.wait_acknowledged(100, LIMIT);
        posted.extend(load.stop());
        // A dead letter uses the rights of its lane.
        assert_eq!(bridge.client().post("{").status, 400);
        bridge.wait_drained(LIMIT);
        let replayed = run(&setup, &["dead-letters", "replay"]);
        // If a right were missing, the code would be 69.
        assert_eq!(replayed.code, 65, "{value}: {}", replayed.stderr);
        assert_no_secrets(&setup, &bridge);
        bridge.stop();
    }
    assert!(
        posted
            .iter()
            .any(|webhook| matches!(webhook.outcome, Outcome::Acknowledged(_)))
    );
    oracle::check(&kafka, &topics, &posted);
    let mut reader = Reader::new(&kafka, &topics.dead_letters);
    assert_eq!(reader.read_to_end(LIMIT).len(), 4);
    for topic in [&topics.deliveries, &topics.bounces, &topics.dead_letters] {
        for record in Reader::new(&kafka, topic).read_to_end(LIMIT) {
            assert_no_secret("a record", &format!("{:?} {}", record.headers, record.text()));
        }
    }
}
