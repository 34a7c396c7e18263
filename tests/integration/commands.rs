//! The commands other than `serve` as a user sees them: output, exit codes, wrong input.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    process::Command,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    bridge::{NO_KAFKA, Setup, Started, Topics, run},
    http::EVENTS,
    kafka::{new_dir, shared},
    process::{Ended, Process},
    topics, wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Runs `check --live`, again while Kafka is too busy to answer in time.
pub fn check_live(setup: &Setup, code: i32, parts: &[&str]) -> Ended {
    let deadline = Instant::now() + LIMIT;
    loop {
        let ended = run(setup, &["check", "--live"]);
        let all = format!("{}\n{}", ended.stdout, ended.stderr);
        if ended.code == code && parts.iter().all(|part| all.contains(part)) || Instant::now() > deadline {
            ended.has(code, parts);
            return ended;
        }
    }
}

impl Ended {
    /// The lines of `check --live` with this level.
    pub fn verdicts(&self, word: &str) -> Vec<&str> {
        let lines = self.stdout.lines();
        lines
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
            .map(str::trim_start)
            .collect()
    }
}

#[test]
fn check_live_finds_everything_in_order() {
    let topics = Topics::create(shared());
    let setup = Setup::new(shared())
        .topics(&topics)
        .set("spool.max_bytes", "64MiB");
    let parts = [
        "free",
        "kafka: cluster",
        &format!("topic {} (deliveries): partitions: 3", topics.deliveries),
        "max.message.bytes 1048588",
        "cleanup.policy delete",
        &format!("READ on topic {}", topics.dead_letters),
        "WRITE on transactional id cmc-bridge.bounces.*",
        "not asked: WRITE on topics",
    ];
    let ended = check_live(&setup, 0, &parts);
    // On a busy disk the last one is a warning.
    ended.has(
        0,
        &["the configuration is valid", "ready to serve", "fdatasync p50"],
    );
    assert_eq!(ended.verdicts("FAIL"), [""; 0]);
    let ok = ended.verdicts("ok").join("\n");
    for part in parts {
        assert!(ok.contains(part), "no {part:?} in\n{ok}");
    }
    assert_eq!(fs::read_dir(setup.spool_dir()).unwrap().count(), 0);
}

#[test]
fn check_live_without_a_broker() {
    let ended = run(&Setup::new(NO_KAFKA), &["check", "--live"]);
    ended.has(69, &["Connection refused", "kafka.bootstrap_servers"]);
    let failures = ended.verdicts("FAIL");
    assert!(
        failures.len() == 1 && failures[0].starts_with("kafka: cannot reach a broker"),
        "{failures:?}"
    );
}

#[test]
fn check_live_without_a_topic() {
    let missing = wait::unique("missing");
    let setup = Setup::new(shared())
        .topics(&Topics::create(shared()))
        .set("streams.bounces.topic", &missing);
    let ended = check_live(&setup, 69, &["kafka.create_topics = true"]);
    let failures = ended.verdicts("FAIL");
    assert!(
        failures.len() == 1 && failures[0].starts_with(&format!("topic {missing} (bounces): does not exist")),
        "{failures:?}"
    );
    // Asking did not create it.
    check_live(&setup, 69, &["kafka.create_topics = true"]);
}

#[test]
fn check_live_of_topics_that_do_not_suit() {
    let topics = Topics::create(shared());
    let odd = |what| {
        let settings = [("cleanup.policy", "compact"), ("max.message.bytes", "50000")];
        topics::create(shared(), what, 1, &settings)
    };
    let setup = Setup::new(shared())
        .topics(&topics)
        .set("streams.deliveries.topic", &odd("compacted"));
    let parts = ["max.message.bytes 50000", "cleanup.policy compact"];
    let ended = check_live(&setup, 0, &parts);
    let warnings = ended.verdicts("warn").join("\n");
    assert!(parts.iter().all(|part| warnings.contains(part)), "{warnings}");

    let setup = setup.set("streams.dead_letters.topic", &odd("compacted-letters"));
    check_live(&setup, 69, &["FAIL", "its lane would stand still"]);
}

#[test]
fn check_live_of_a_spool_that_can_not_be_written() {
    let file = new_dir("no-spool").join("file");
    fs::write(&file, "").unwrap();
    let ended = run(&Setup::new(NO_KAFKA).spool(&file), &["check", "--live"]);
    ended.has(69, &["is not a directory", "set spool.dir"]);
    assert_eq!(ended.verdicts("FAIL").len(), 2, "{}", ended.stdout);
}

#[test]
fn check_of_a_refused_configuration() {
    let setup = Setup::new(shared()).unset("ingest.auth.allow_anonymous");
    let ended = run(&setup, &["check", "--live"]);
    ended.has(78, &["ingest.auth.bearer_tokens"]);
    assert_eq!(ended.verdicts("ok"), [""; 0]);
}

#[test]
fn samples_go_through_the_bridge_and_out_of_the_tap() {
    let setup = Setup::new(shared())
        .topics(&Topics::create(shared()))
        .unset("ingest.auth.allow_anonymous")
        .set("ingest.auth.bearer_tokens", "s3cr3t-token")
        .set("ingest.auth.api_keys", "s3cr3t-key");
    let bridge = setup.start();
    let url = format!("http://{}{EVENTS}", bridge.ingest);
    let mut tap = Started::new(&setup, &["tap", "--json", "--count", "30"], &[]);
    tap.says("from now on");

    // As a form with an api_key, and as JSON with a token from the environment.
    let form = [
        "send-sample",
        &url,
        "--kind",
        "mixed",
        "--format",
        "form",
        "--events",
        "5",
        "--count",
        "4",
        "--concurrency",
        "2",
        "--api-key",
        "s3cr3t-key",
    ];
    run(&setup, &form).has(0, &["answer 200   4\n", "latency", "rate"]);
    let json = ["send-sample", &url, "--events", "10", "--rate", "100"];
    let token = [("CMC_BRIDGE_SEND_BEARER", "s3cr3t-token")];
    Started::new(&setup, &json, &token)
        .end()
        .has(0, &["answer 200   1\n"]);

    let tapped = tap.end();
    tapped.has(0, &[]);
    let records: Vec<Value> = tapped
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.len(), 30);
    let mut keys = BTreeSet::new();
    for record in &records {
        let value = &record["value"];
        assert_eq!(record["key"], value["messageId"], "{record}");
        assert_eq!(record["headers"]["ce_subject"], value["messageId"], "{record}");
        assert!(record["partition"].is_u64() && record["offset"].is_u64() && record["timestamp"].is_u64());
        let subject = value["subject"].as_str().unwrap();
        assert!(!subject.is_empty() && !subject.is_ascii(), "{subject}");
        keys.insert(record["key"].as_str().unwrap());
    }
    assert_eq!(keys.len(), 30);

    // Filters: the bounces of the mixed webhooks, and the record with a given key.
    let bounce = [
        "tap",
        "--stream",
        "bounces",
        "--from-beginning",
        "--to",
        "@example.net",
        "-n",
        "5",
    ];
    let bounces = run(&setup, &bounce);
    bounces.has(0, &[]);
    assert_eq!(bounces.stdout.matches("→ ").count(), 5, "{}", bounces.stdout);
    let key = records[7]["key"].as_str().unwrap().trim_matches(['<', '>']);
    let found = run(
        &setup,
        &["tap", "--from-beginning", "--key", key, "--count", "1", "--json"],
    );
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found, records[7]);

    // Refusals and their reasons.
    run(&setup, &["send-sample", &url]).has(69, &["answer 401   1", "--bearer-file"]);
    let malformed = [
        "send-sample",
        &url,
        "--kind",
        "malformed",
        "--bearer",
        "s3cr3t-token",
    ];
    run(&setup, &malformed).has(69, &["answer 400   1", "Invalid request"]);
    let letters = ["tap", "--stream", "dead-letters", "--from-beginning", "-n", "1"];
    run(&setup, &letters).has(0, &["reason invalid_json"]);
    let wrong_path = format!("http://{}/nowhere", bridge.ingest);
    let wrong = ["send-sample", &wrong_path, "--bearer", "s3cr3t-token"];
    run(&setup, &wrong).has(69, &["answer 404   1", "ingest.path"]);
    bridge.stop();
}

#[test]
fn samples_go_over_tls() {
    let dir = new_dir("sample-tls");
    let [certificate, key, other] = ["tls.crt", "tls.key", "other.crt"].map(|name| dir.join(name));
    let pair = rcgen::KeyPair::generate().unwrap();
    let signed = |pair| {
        let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.self_signed(pair).unwrap().pem()
    };
    fs::write(&certificate, signed(&pair)).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    fs::write(&other, signed(&rcgen::KeyPair::generate().unwrap())).unwrap();
    let setup = Setup::new(NO_KAFKA)
        .set("ingest.tls.certificate", certificate.to_str().unwrap())
        .set("ingest.tls.key", key.to_str().unwrap());
    let bridge = setup.start();
    let url = format!("https://{}", bridge.ingest);
    let send = |trusted: &std::path::Path| {
        let args = [
            "send-sample",
            &url,
            "--count",
            "3",
            "--ca-file",
            trusted.to_str().unwrap(),
        ];
        run(&setup, &args)
    };
    send(&certificate).has(0, &["answer 200   3\n", &url]);
    send(&other).has(69, &["no answer    3", "invalid peer certificate"]);
}

#[test]
fn a_tap_ends_when_it_is_asked_to_or_nobody_listens() {
    let topic = topics::create(shared(), "tapped", 1, &[]);
    let setup = Setup::new(shared())
        .topics(&Topics::create(shared()))
        .set("streams.deliveries.topic", &topic);
    for signal in [Signal::INT, Signal::TERM] {
        let mut tap = Started::new(&setup, &["tap"], &[]);
        tap.says("Ctrl-C ends it");
        tap.process.signal(signal);
        let ended = tap.end();
        ended.has(0, &[]);
        assert_eq!(ended.stdout, "");
    }

    let bridge = setup.start();
    let url = format!("http://{}{EVENTS}", bridge.ingest);
    run(&setup, &["send-sample", &url, "--events", "20"]).has(0, &[]);
    let mut command = setup.command(&["tap", "--from-beginning"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut tap = Process::spawn(&mut command).unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(tap.take_stdout().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with(&format!("→ {topic}")), "{line}");
    drop(stdout);
    // Only writing to a pipe shows that it is closed.
    run(&setup, &["send-sample", &url, "--events", "20"]).has(0, &[]);
    let status = tap.wait(LIMIT).expect("the tap ends");
    assert_eq!(status.code(), Some(0));
    bridge.stop();
}

#[test]
fn a_tap_without_kafka_or_topic_says_why() {
    run(&Setup::new(NO_KAFKA), &["tap"]).has(69, &["Connection refused", "kafka.bootstrap_servers"]);
    let missing = wait::unique("missing");
    let setup = Setup::new(shared()).set("streams.bounces.topic", &missing);
    run(&setup, &["tap", "--stream", "bounces"]).has(69, &["Create topic", &missing]);
}

#[test]
fn wrong_input_is_answered_with_help() {
    let setup = Setup::new(NO_KAFKA);
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage: cmc-bridge"),
        (&["serv"], "similar subcommand"),
        (&["check", "--lve"], "--live"),
        (&["config"], "show"),
        (&["config", "show", "--change"], "--changed"),
        (&["completions"], "<SHELL>"),
        (&["completions", "tcsh"], "possible values: bash"),
        (&["tap", "--stream", "bounce"], "possible values: deliveries"),
        (&["tap", "--stream", "blocks"], "streams.blocks.enabled"),
        (&["tap", "--count", "0"], "--count"),
        (
            &["send-sample", "localhost:8080"],
            "http://127.0.0.1:8080/webhooks/events",
        ),
        (
            &["send-sample", "https://a.example", "--ca-file", "/no/such"],
            "certificates as PEM",
        ),
        (&["send-sample", "http://u:p@a.example"], "--basic"),
        (
            &["send-sample", "--kind", "delivery"],
            "possible values: deliveries",
        ),
        (&["send-sample", "--events", "0"], "--events"),
        (&["send-sample", "--rate", "fast"], "webhooks per second"),
        (&["send-sample", "--basic", "nocolon"], "user:password"),
        (
            &["send-sample", "--bearer-file", "/s3cr3t"],
            "/<not there>: No such file",
        ),
        (
            &["send-sample", "--bearer", "a", "--basic", "b:c"],
            "cannot be used with",
        ),
    ];
    for (args, part) in cases {
        run(&setup, args).has(64, &[part]);
    }
    let nobody = ["send-sample", "http://127.0.0.1:1/", "--count", "3"];
    run(&setup, &nobody).has(69, &["no answer    3", "Connection refused", "cmc-bridge dev"]);
}

#[test]
fn check_tells_what_would_block_every_lane() {
    for (name, value, part) in [
        ("socket.timeout.ms", "60000", "`socket.timeout.ms` must be"),
        ("ssl.ca.location", "/no/such/s3cr3t.pem", "ssl.ca.location"),
        ("ssl.key.location", "s3cr3t-s3cr3t", "ssl.key.location"),
    ] {
        let setup = Setup::new(NO_KAFKA)
            .property("security.protocol", "SSL")
            .property(name, value);
        let warning = ["warning: kafka.properties: ", part, "nothing"];
        let check = run(&setup, &["check"]);
        check.has(0, &warning);
        let live = run(&setup, &["check", "--live"]);
        live.has(69, &["FAIL  kafka: ", part]);
        // A user may have put a key where its file's name belongs.
        let told = check.stdout + &check.stderr + &live.stdout + &live.stderr;
        assert!(!told.contains("s3cr3t"), "{told}");
    }
}

#[test]
fn config_show_shows_what_is_refused_too() {
    let setup = Setup::new(NO_KAFKA)
        .set("ingest.auth.bearer_tokens", "s3cr3t")
        .set("ingest.max_events", "many");
    let ended = run(&setup, &["config", "show", "--changed"]);
    ended.has(
        78,
        &[
            "# bearer_tokens = [\"<redacted>\"]  # environment variable CMC_BRIDGE__INGEST__AUTH__BEARER_TOKENS",
            "max_events = \"many\"",
            "the configuration is refused",
        ],
    );
    assert!(!ended.stdout.contains("# default"), "{}", ended.stdout);
    assert!(!(ended.stdout + &ended.stderr).contains("s3cr3t"));
}

#[test]
fn an_error_that_nobody_can_be_told_ends_in_the_same_way() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"))
        .args(["explain", "/no/such/file"])
        .stderr(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(74));
}

#[test]
fn config_show_says_that_nothing_is_changed() {
    let shown = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"))
        .args(["config", "show", "--changed"])
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout),
        "# every setting has its default\n"
    );
}

#[test]
fn completions_are_scripts() {
    let ended = run(&Setup::new(NO_KAFKA), &["completions", "bash"]);
    ended.has(0, &["complete -F", "send-sample"]);
}

/// Each command that reads a configuration, with nothing but its name.
const CONFIGURED: [&[&str]; 13] = [
    &["serve"],
    &["dev"],
    &["check"],
    &["config", "show"],
    &["tap"],
    &["explain"],
    &["spool", "ls"],
    &["spool", "verify"],
    &["spool", "export"],
    &["spool", "drain"],
    &["spool", "repair"],
    &["dead-letters", "ls"],
    &["dead-letters", "replay"],
];

#[test]
fn one_variable_configures_every_command() {
    let setup = Setup::new(NO_KAFKA);
    let missing = [("CMC_BRIDGE_CONFIG", "/no/such.toml")];
    for args in CONFIGURED {
        let ended = Started::new(&setup, args, &missing).end();
        assert_eq!(ended.code, 78, "{args:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("/no/such.toml"),
            "{args:?}: {}",
            ended.stderr
        );
    }
    // The command line wins.
    let file = new_dir("config").join("own.toml");
    fs::write(&file, "[ingest]\nmax_events = 7\n").unwrap();
    let args = ["config", "show", "--changed", "--config", file.to_str().unwrap()];
    let ended = Started::new(&setup, &args, &missing).end();
    assert!(ended.stdout.contains("max_events = 7"), "{}", ended.stdout);
}
