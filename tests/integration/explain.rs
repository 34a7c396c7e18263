//! `explain` compared with the server: it must predict what the server does, and cope with any input.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    bridge::{NO_KAFKA, Setup, Topics},
    cmc::{delivery, message, sample, webhook},
    http::{FORM, JSON},
    kafka::{new_dir, shared},
    process::Ended,
    topics::{Reader, Record},
};

const LIMIT: Duration = Duration::from_secs(180);

impl Ended {
    fn lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The last line; checks that the others are records.
    fn answer(&self) -> Value {
        let mut lines = self.lines();
        let answer = lines.pop().unwrap();
        assert_eq!(answer["kind"], "answer");
        assert!(lines.iter().all(|line| line["kind"] != "answer"));
        answer
    }
}

fn command(setup: &Setup, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"));
    command.arg("explain").args(args).env_clear();
    for (name, value) in setup.command(&[]).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

fn explain_by(mut command: Command, stdin: &[u8]) -> Ended {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // It may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Its output for this body, without any configuration.
fn explain(args: &[&str], body: impl AsRef<[u8]>) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"));
    command.arg("explain").args(args).env_clear();
    explain_by(command, body.as_ref())
}

fn samples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples");
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// A record from Kafka as `explain` would print it, without the time of receipt.
fn expected(topic: &str, record: &Record) -> String {
    let text = record.text();
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let headers: serde_json::Map<String, Value> = record
        .headers
        .iter()
        .filter(|(name, _)| !name.ends_with("received-at"))
        .map(|(name, _)| (name.clone(), record.header(name).into()))
        .collect();
    serde_json::json!([topic, record.key_text(), headers, value]).to_string()
}

fn foretold(mut line: Value) -> String {
    let headers = line["headers"].as_object_mut().unwrap();
    headers.retain(|name, _| !name.ends_with("received-at"));
    serde_json::json!([line["topic"], line["key"], line["headers"], line["value"]]).to_string()
}

#[test]
fn it_foretells_what_the_server_does() {
    let topics = Topics::create(shared());
    let setup = Setup::new(shared())
        .topics(&topics)
        .set("streams.blocks.enabled", "true")
        .set("ingest.time_zones.sandbox", "America/New_York")
        .set("kafka.max_record_bytes", "5000")
        .set("ingest.max_events", "200");
    let bridge = setup.start();
    let mut client = bridge.client();
    let (m, long) = (message("m@test", "s"), message("m@test", &"x".repeat(6000)));
    let reserved = r#"{"event_type":"x"}"#;
    let mut bodies: Vec<(Option<(&str, &str)>, String)> = Vec::new();
    for path in samples() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let content_type = if name.ends_with(".txt") { FORM } else { JSON };
        bodies.push((Some(content_type), sample(name)));
    }
    for body in [
        webhook("deliveries", "sandbox", &[&m, "3", reserved, &long, &m]),
        webhook("clicks", "pro", &[&m]),
        webhook("deliveries", "pro", &[]),
        webhook("deliveries", "pro", &vec![m.as_str(); 201]),
        delivery("a").replace(":[", ":{["),
        r#"{"api_key":"abcdef","event_type":"deliveries"}"#.to_owned(),
        "x".repeat(12_000),
        String::new(),
    ] {
        bodies.push((Some(JSON), body));
    }
    bodies.push((None, delivery("b")));
    bodies.push((None, "event_type=deliveries&api_key=abcdef&event=%7".to_owned()));
    bodies.push((Some(("content-type", "text/plain")), delivery("c")));

    let dir = new_dir("explain");
    let mut all_foretold = Vec::new();
    for (content_type, body) in bodies {
        let file = dir.join("body");
        fs::write(&file, &body).unwrap();
        let mut args = vec!["--json", file.to_str().unwrap()];
        let headers = content_type.as_slice();
        if let Some((_, value)) = content_type {
            args.extend(["--content-type", value]);
        }
        let explained = explain_by(command(&setup, &args), b"");
        let mut lines = explained.lines();
        let answer = lines.pop().unwrap();
        let status = client.post_with(headers, &body).status;
        assert_eq!(answer["status"], status, "{answer} for {body:.300}");
        assert_eq!(answer["bytes"], body.len());
        let events = lines.iter().filter(|line| line["kind"] == "event").count();
        assert_eq!(answer["events"], events);
        let is_fine = answer["dead_letters"] == 0;
        assert_eq!(explained.code, if is_fine { 0 } else { 65 }, "{answer}");
        all_foretold.extend(lines.into_iter().map(foretold));
    }

    bridge.wait_drained(LIMIT);
    let mut found = Vec::new();
    for topic in [
        &topics.deliveries,
        &topics.bounces,
        &topics.blocks,
        &topics.dead_letters,
    ] {
        let mut reader = Reader::new(shared(), topic);
        found.extend(
            reader
                .read_to_end(LIMIT)
                .iter()
                .map(|record| expected(topic, record)),
        );
    }
    // The id of a letter in parts is random.
    let without_ids = |lines: Vec<String>| {
        let mut lines: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for line in &mut lines {
            if line[2]
                .as_object_mut()
                .unwrap()
                .remove("cmc-dead-letter-id")
                .is_some()
            {
                line[1] = "id".into();
            }
        }
        let mut lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        lines.sort();
        lines
    };
    let (found, foretold) = (without_ids(found), without_ids(all_foretold));
    assert!(found.len() > 120, "{}", found.len());
    assert_eq!(found, foretold);
}

#[test]
fn places_are_those_of_the_text_that_is_wrong() {
    // For a form, the offset counts within the decoded field, before what is missing.
    let event = r#"{"deliveries":[{"subject":"十月" "x":1}]}"#;
    let at = event.find("\"x\"").unwrap();
    let percent: String = event.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = format!("api_key=abcdef&event_type=deliveries&server_composition=pro&event={percent}");
    let place = &explain(&["--json"], &form).answer()["problem"]["place"];
    assert_eq!((&place["within"], &place["line"]), (&"event".into(), &1.into()));
    assert_eq!(place["offset"], at);
    assert_eq!(place["column"], event[..at].chars().count() + 1);
    assert_eq!(place["excerpt"], event);
    explain(&[], &form).has(
        65,
        &[
            "invalid_json: expected `,` or `}`",
            &format!("  {event}\n  {}^\n", " ".repeat(at - "十月".len() + 4)),
            "what to do",
            "answer 400;",
        ],
    );

    // If the form itself is at fault, it counts within the body.
    let broken = "api_key=abcdef&event_type=deliveries&server_composition=%zz";
    let answer = explain(&["--json"], broken).answer();
    assert_eq!(answer["problem"]["reason"], "invalid_form");
    let place = &answer["problem"]["place"];
    assert_eq!(place["within"], "body");
    assert_eq!(place["offset"], broken.find("%zz").unwrap());
    assert!(!answer.to_string().contains("abcdef"), "{answer}");

    let twice = "event_type=deliveries&server_composition=pro&event_type=bounces";
    let answer = explain(&["--json"], twice).answer();
    assert_eq!(answer["problem"]["reason"], "duplicate_member");
    assert_eq!(
        answer["problem"]["place"]["offset"],
        twice.find("bounces").unwrap()
    );
    assert_eq!(answer["problem"]["place"]["within"], "body");

    let lines = "{\n  \"event_type\": \"deliveries\",\n  \"api_key\": \"abcdef\" 1\n}";
    let explained = explain(&[], lines);
    explained.has(65, &["line 3, column 23", "\n    \"api_key\": \"******\" 1\n"]);
    assert!(!explained.stdout.contains("abcdef"), "{}", explained.stdout);
}

#[test]
fn configured_credentials_are_overwritten_in_the_excerpt() {
    let setup = Setup::new(NO_KAFKA)
        .unset("ingest.auth.allow_anonymous")
        .set("ingest.auth.bearer_tokens", "configured-token");
    let event = "%7B%22deliveries%22%3A%5B%7B%22a%22%3A%22configured%2Dtoken%22+1";
    let form = format!("event_type=deliveries&server_composition=pro&event={event}");
    for args in [&["--json"][..], &[]] {
        let explained = explain_by(command(&setup, args), form.as_bytes());
        explained.has(65, &["****************"]);
        let whole = explained.stdout + &explained.stderr;
        assert!(!whole.contains("configured"), "{whole}");
    }
}

#[test]
fn inputs_of_all_kinds() {
    let dir = new_dir("explain");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let file = |name: &str, contents: &[u8]| {
        fs::write(dir.join(name), contents).unwrap();
        path(name)
    };
    explain(&[], delivery("a")).has(
        0,
        &[
            "→ cmc.deliveries  stream deliveries  key <a>\n",
            "ce_subject  <a>",
        ],
    );
    explain(&["-"], delivery("a")).has(0, &["answer 200;"]);
    explain(&[], webhook("bounces", "pro", &[])).has(0, &["events: 0, dead letters: 0"]);
    explain(&[&path("missing")], "").has(74, &["missing: No such file"]);
    explain(&[dir.to_str().unwrap()], "").has(74, &["Is a directory"]);
    explain(&[], "").has(65, &["missing_event_type"]);
    explain(&[&file("binary", &[0xff, 0, 0x1b, 0x80, b'\n'])], "").has(65, &["answer 400;"]);
    explain(&["--content-type", "application/json"], b"\xff\x1b[2J")
        .has(65, &["invalid_utf8", "line 1, column 1"]);
    explain(&["--path", "/other"], delivery("a")).has(65, &["answer 404;", "ingest.path"]);
    explain(&["--path", "/webhooks/events/"], delivery("a")).has(0, &["answer 200;"]);
    explain(&["--content-type", "a\nb"], "").has(64, &["header can't carry"]);
    explain(&["--content-type", "text/plain"], delivery("a"))
        .has(65, &["answer 415;", "unsupported_media_type"]);
    let form = "application/x-www-form-urlencoded";
    let like_json = "this looks like JSON: the content type should be application/json";
    explain(&["--content-type", form], delivery("a")).has(65, &["missing_event_type", like_json]);
    explain(&["--content-type", form], format!(" \u{FEFF}{}", delivery("a")))
        .has(65, &["missing_event_type"]);
    explain(&["--content-type", "text/json"], delivery("a")).has(65, &["answer 415;", like_json]);
    let marked = format!("\u{FEFF}{}", delivery("a"));
    for args in [&["--content-type", "application/json; charset=utf-8"][..], &[]] {
        explain(args, &marked).has(
            65,
            &["invalid_json", "this looks like JSON after a byte order mark"],
        );
    }
    explain(&["--content-type", form], &marked).has(65, &[like_json]);
    let like_a_form = "this looks like a form: the content type should be application/x-www-form-urlencoded";
    explain(
        &["--content-type", "application/json"],
        sample("deliveries-form.txt"),
    )
    .has(65, &[like_a_form]);
    explain(&["--content-type", "application/json"], "no form").has(65, &["invalid_json"]);
    explain(&["--no-such"], "").has(64, &["--no-such"]);
    explain(&["--config", &path("missing")], "").has(78, &["missing"]);

    let config = file(
        "bridge.toml",
        b"[ingest]\nmalformed_status = 202\nmax_body_bytes = \"1KiB\"\n[streams.deliveries]\ntopic = \"mail\"\n",
    );
    explain(&["--config", &config], delivery("a")).has(0, &["→ mail  "]);
    explain(&["--config", &config], "{").has(65, &["answer 202;", "invalid_json"]);
    explain(&["--config", &config], "x".repeat(1025))
        .has(65, &["answer 413; nothing is stored", "more than 1 KiB"]);
    let one = explain(&["--config", &config, "--json"], "x".repeat(1025)).lines();
    assert_eq!(
        (one.len(), &one[0]["status"], &one[0]["problem"]["reason"]),
        (1, &413.into(), &Value::Null)
    );
}

#[test]
fn the_largest_body_and_a_reader_that_goes_away() {
    let limit = 8 << 20;
    let subject = "x".repeat(700);
    let messages: Vec<String> = (0..9_500)
        .map(|n| message(&format!("{n}@test"), &subject))
        .collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    let mut body = webhook("deliveries", "pro", &messages);
    body.push_str(&" ".repeat(limit - body.len()));
    let explained = explain(&["--json"], &body);
    assert_eq!(explained.stdout.lines().count(), 9_501);
    explained.has(0, &[]);
    body.push(' ');
    explain(&[], &body).has(65, &["answer 413;", "8 MiB"]);

    let path = new_dir("explain").join("body");
    fs::write(&path, &body[..limit]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"));
    command.arg("explain").arg(&path).env_clear();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
