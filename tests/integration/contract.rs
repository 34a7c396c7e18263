//! The contract for consumers: docs/events.md, docs/schemas and the actual contents of the topics agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use cmc_bridge::{cmc::MAX_DEPTH, dead_letter::Reason};
use jsonschema::{Registry, Validator};
use rusqlite::Connection;
use serde_json::{Map, Value, json};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{incompressible, message, sample, webhook},
    http::{Client, FORM, JSON},
    kafka::{self, new_dir},
    topics::{self, Reader, Record},
};

// The example runs in this process.
#[path = "../../examples/consumers/delivery_state/main.rs"]
#[allow(dead_code, reason = "its main")]
mod delivery_state;

const LIMIT: Duration = Duration::from_secs(180);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The schema files by their names.
fn schemas() -> BTreeMap<String, Value> {
    let files = fs::read_dir(root().join("docs/schemas")).unwrap();
    files
        .map(|entry| {
            let path = entry.unwrap().path();
            let schema = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), schema)
        })
        .collect()
}

/// Validators of the schema files, which refer to each other by name.
struct Schemas(BTreeMap<String, Validator>);

impl Schemas {
    fn load() -> Self {
        let files = schemas();
        let uri = |name: &str| format!("file:///schemas/{name}");
        let resources = files.iter().map(|(name, schema)| (uri(name), schema));
        let registry = Registry::new().extend(resources).unwrap().prepare().unwrap();
        let validator = |name: &String| {
            jsonschema::options()
                .with_registry(&registry)
                .build(&json!({"$ref": uri(name)}))
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        Schemas(files.keys().map(|name| (name.clone(), validator(name))).collect())
    }

    fn check(&self, name: &str, instance: &Value) {
        let errors: Vec<String> = self.0[&format!("{name}.schema.json")]
            .iter_errors(instance)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{instance}\ndoes not match {name}: {errors:?}");
    }
}

/// The headers in the form that the schemas describe.
fn headers(record: &Record) -> Value {
    let headers = record.headers.iter().map(|(name, _)| {
        let value = record.header(name).unwrap();
        (name.clone(), Value::from(value))
    });
    Value::Object(headers.collect::<Map<_, _>>())
}

/// The names under `properties`.
fn properties(schema: &Value) -> BTreeSet<String> {
    schema["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

/// The names in backticks in the first cells of the tables between two headings; `-part` continues the previous name.
fn documented(from: &str, to: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/events.md")).unwrap();
    let section = text.split_once(&format!("\n{from}\n")).unwrap().1;
    let section = section.split_once(&format!("\n{to}")).unwrap().0;
    let mut names = Vec::new();
    for cell in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let cell = cell.split(" | ").next().unwrap();
        for name in cell.split('`').filter(|name| !name.is_empty() && *name != ", ") {
            match name.strip_prefix('-') {
                Some(end) => names.push(format!("cmc-dead-letter-{end}")),
                None => names.push(name.to_owned()),
            }
        }
    }
    names
}

#[test]
fn the_schemas_are_valid_and_open() {
    fn check_open(name: &str, schema: &Value) {
        match schema {
            Value::Object(members) => {
                for (key, value) in members {
                    // The sender may add members, and a later version may add headers and reasons.
                    assert!(
                        !["additionalProperties", "unevaluatedProperties", "enum"].contains(&key.as_str()),
                        "{name} has {key}"
                    );
                    check_open(name, value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| check_open(name, item)),
            _ => {}
        }
    }
    for (name, schema) in schemas() {
        jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_open(&name, &schema);
    }
}

#[test]
fn documents_schemas_and_code_name_the_same_headers_and_reasons() {
    let files = schemas();
    let events = &files["event-headers.schema.json"];
    let letters = &files["dead-letter-headers.schema.json"];
    let set = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(set(documented("## Headers", "## Timestamps")), properties(events));
    assert_eq!(
        set(documented("## Dead letters", "### Reasons")),
        properties(letters)
    );

    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(documented("### Reasons", "## "), reasons);
    assert_eq!(
        letters["properties"]["cmc-dead-letter-reason"]["examples"],
        json!(reasons)
    );
}

/// Everything that the bridge can write: each sample, odd events, and a dead letter for each reason.
#[test]
fn the_records_on_the_topics_match_the_schemas() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    // Two topics cause the two refusals: one has a small limit, the other is compacted and so requires keys.
    topics.blocks = topics::create(kafka, "small", 3, &[("max.message.bytes", "5000")]);
    topics.bounces = topics::create(kafka, "compacted", 3, &[("cleanup.policy", "compact")]);
    let inbound = topics::create(kafka, "inbound", 3, &[]);
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("streams.blocks.enabled", "true")
        .set("streams.inbound.enabled", "true")
        .set("streams.inbound.topic", &inbound)
        .set("kafka.max_record_bytes", "20000")
        .set("ingest.max_events", "150");
    let bridge = setup.start();
    let mut client = bridge.client();
    post_samples(&mut client);
    post_mails(&mut client);
    let odd = [
        "{}",
        r#"{"messageId":7,"status":null,"created":{"no":"text"},"n":1e400}"#,
        r#"{"messageId":"a\u0000b","created":"2026-02-30 00:00:00","status":"brand-new"}"#,
    ];
    assert_eq!(client.post(webhook("deliveries", "本番 a/b", &odd)).status, 200);
    post_bad_ones(&mut client);

    // With blocks disabled, their event type is unknown.
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let bridge = setup.unset("streams.blocks.enabled").start();
    assert_eq!(bridge.client().post(sample("blocks.json")).status, 200);
    bridge.wait_drained(LIMIT);

    let schemas = Schemas::load();
    let read = |topic: &str| Reader::new(kafka, topic).read_to_end(LIMIT).to_vec();
    let mut names = BTreeSet::new();
    for (topic, stream, count) in [
        (
            &topics.deliveries,
            "deliveries",
            108 + odd.len() + GOOD_BESIDE_BAD,
        ),
        (&topics.bounces, "bounces", 2),
        (&topics.blocks, "blocks", 2),
    ] {
        let records = read(topic);
        assert_eq!(records.len(), count, "{stream}");
        for record in &records {
            check_event(&schemas, stream, record);
            names.extend(record.headers.iter().map(|(name, _)| name.clone()));
        }
    }
    check_mails(&schemas, &read(&inbound));
    // Only events from the Web API have it.
    names.insert("cmc-origin".to_owned());
    assert_eq!(names, properties(&self::schemas()["event-headers.schema.json"]));

    let mut reasons = BTreeSet::new();
    let mut letter_names = BTreeSet::new();
    for letter in read(&topics.dead_letters) {
        schemas.check("dead-letter-headers", &headers(&letter));
        let reason = letter.header("cmc-dead-letter-reason").unwrap();
        let has = |name| letter.header(name).is_some();
        assert_eq!(
            letter.key.is_some(),
            reason == "refused_too_large" || has("cmc-dead-letter-part")
        );
        reasons.insert(reason.to_owned());
        letter_names.extend(letter.headers.iter().map(|(name, _)| name.clone()));
    }
    // Everything documented is written, and everything written is documented.
    let all = Reason::ALL.iter().map(|reason| reason.name().to_owned());
    assert_eq!(reasons, all.collect());
    letter_names.retain(|name| !names.contains(name));
    assert_eq!(
        letter_names,
        properties(&self::schemas()["dead-letter-headers.schema.json"])
    );
}

fn check_event(schemas: &Schemas, stream: &str, record: &Record) {
    // Odd events have members unlike those that the sender documents, but the bridge still keeps its promises.
    let value: Value = serde_json::from_str(&record.text().replace("1e400", "1e40")).unwrap();
    let odd = record.header("ce_source") != Some("/cmc/pro");
    schemas.check(if odd { "event" } else { stream }, &value);
    assert_eq!(value["event_type"], stream);
    schemas.check("event-headers", &headers(record));
    assert_eq!(record.header("ce_type"), Some(&*format!("jp.smtps.cmc.{stream}")));
    let subject = record.key_text().filter(|key| !key.contains(char::is_control));
    assert_eq!(record.header("ce_subject"), subject);
}

fn post_samples(client: &mut Client) {
    for entry in fs::read_dir(root().join("tests/samples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // Received mail has a path of its own.
        if name.starts_with("inbound") {
            continue;
        }
        let encoding = if name.ends_with(".txt") { FORM } else { JSON };
        let answer = client.post_with(&[encoding], sample(&name));
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{name}");
    }
}

/// Received mails: both samples, and one for each reason why a mail is not understood.
fn post_mails(client: &mut Client) {
    let mut post = |content_type: &str, body: &str| {
        let headers = [("content-type", content_type)];
        let answer = client.request("POST", "/webhooks/inbound", &headers, body.as_bytes());
        answer.unwrap().status
    };
    let multipart = "multipart/form-data; boundary=\"----=_Part_7_1\"";
    assert_eq!(post(JSON.1, &sample("inbound.json")), 200);
    assert_eq!(post(multipart, &sample("inbound-multipart.txt")), 200);
    assert_eq!(post(multipart, "--no such boundary"), 400);
    assert_eq!(post(JSON.1, r#"{"server_composition":"pro","more":1}"#), 400);
    let part = |disposition: String| {
        format!("------=_Part_7_1\r\nContent-Disposition: form-data; {disposition}\r\n\r\npro\r\n")
    };
    // Their list doesn't fit into a record.
    let files = (0..200).map(|n| part(format!("name=\"attachment{n}\"; filename=\"{n}\"")));
    let parts = ["server_composition", "subject"]
        .map(|name| part(format!("name=\"{name}\"")))
        .into_iter()
        .chain(files);
    let body = format!("{}------=_Part_7_1--\r\n", parts.collect::<String>());
    assert_eq!(post(multipart, &body), 400);
}

fn check_mails(schemas: &Schemas, records: &[Record]) {
    let (mails, parts): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| record.header("ce_type") == Some("jp.smtps.cmc.inbound"));
    assert_eq!(mails.len(), 2);
    assert!(!parts.is_empty());
    for mail in mails {
        schemas.check("inbound", &serde_json::from_str(mail.text()).unwrap());
        schemas.check("event-headers", &headers(mail));
    }
    for part in parts {
        schemas.check("inbound-attachment-headers", &headers(part));
    }
}

/// Number of events in the webhooks of [`post_bad_ones`].
const GOOD_BESIDE_BAD: usize = 1;

/// Bodies and elements for each reason except an unknown event type.
fn post_bad_ones(client: &mut Client) {
    let good = message("good@test", "beside bad ones");
    let list = |elements: &str| {
        format!(
            r#"{{"event_type":"deliveries","server_composition":"pro","event":{{"deliveries":[{elements}]}}}}"#
        )
    };
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    let many_lists: Vec<String> = (0..100).map(|n| format!("\"l{n}\":[]")).collect();
    let head = r#""event_type":"deliveries","server_composition":"pro""#;
    let bodies = [
        "not JSON".to_owned(),
        // Too large for one record: parts.
        format!("{{{}", " ".repeat(50_000)),
        // A masked credential.
        r#"{"api_key":"0123456789","event_type":"deliveries"}"#.to_owned(),
        "[]".to_owned(),
        format!(r#"{{{head},"event_type":"bounces","event":{{"deliveries":[]}}}}"#),
        format!(
            r#"{{{head},"event":{{"deliveries":[],{}}}}}"#,
            many_lists.join(",")
        ),
        r#"{"server_composition":"pro","event":{"deliveries":[]}}"#.to_owned(),
        r#"{"event_type":1,"server_composition":"pro","event":{"deliveries":[]}}"#.to_owned(),
        r#"{"event_type":"deliveries","event":{"deliveries":[]}}"#.to_owned(),
        r#"{"event_type":"deliveries","server_composition":1,"event":{"deliveries":[]}}"#.to_owned(),
        format!("{{{head}}}"),
        format!(r#"{{{head},"event":[]}}"#),
        format!(r#"{{{head},"event":{{}}}}"#),
        format!(r#"{{{head},"event":{{"deliveries":{{}}}}}}"#),
        list(&vec!["{}"; 151].join(",")),
        list(&deep),
    ];
    for body in bodies {
        assert_eq!(client.post(&body).status, 400, "{body:.100}");
    }
    assert_eq!(client.post(b"\"\xff\"").status, 400);
    assert_eq!(client.post_with(&[FORM], "event=%zz").status, 400);
    assert_eq!(
        client.post_with(&[("content-type", "text/csv")], "a,b").status,
        415
    );
    assert_eq!(
        client
            .post_with(&[JSON, ("content-encoding", "gzip")], "\u{1f}")
            .status,
        415
    );
    let large = message("large@test", &"x".repeat(20_000));
    let pieces = format!(
        r#"{{{head},"more":{{}},"event":{{"others":[{{}}],"n":1,"deliveries":[7,{{"event_type":"x"}},{large},{good}]}}}}"#
    );
    for body in [
        pieces,
        webhook(
            "blocks",
            "pro",
            &[&message("refused@test", &incompressible(6000)), "{}"],
        ),
        webhook("bounces", "pro", &[r#"{"messageId":""}"#]),
    ] {
        assert_eq!(client.post(&body).status, 200, "{body:.100}");
    }
}

/// Runs the example to the end of the topic; returns the rows of the table.
fn run_delivery_state(kafka: &str, topic: &str, db: &Path, counts: (u64, u64)) -> Vec<[String; 4]> {
    let args = delivery_state::Args {
        brokers: kafka.to_owned(),
        topic: topic.to_owned(),
        db: db.to_owned(),
        once: true,
    };
    assert_eq!(delivery_state::run(&args).unwrap(), counts);
    let db = Connection::open(db).unwrap();
    let mut query = db
        .prepare("SELECT message_id, recipient, status, created FROM mail ORDER BY message_id, recipient")
        .unwrap();
    let rows = query.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]));
    rows.unwrap().map(Result::unwrap).collect()
}

#[test]
fn the_delivery_state_example_keeps_final_states_whatever_the_order() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let bridge = Setup::new(kafka).topics(&topics).start();
    let event = |id: &str, second: u32, status: &str| {
        format!(
            r#"{{"messageId":"<{id}@test>","to":"a@test","created":"2026-10-01 09:15:{second:02}","status":"{status}"}}"#
        )
    };
    let version_1 = r#"{"messageId":"<v1@test>","envelopeTo":"b@test","created":"2026-10-01 09:15:09","status":"failed"}"#;
    let post = |bridge: &Bridge, elements: &[&str]| {
        let answer = bridge.client().post(webhook("deliveries", "pro", elements));
        assert_eq!(answer.status, 200);
    };
    post(
        &bridge,
        &[
            &event("late", 5, "succeeded"),
            &event("late", 7, "queued"),
            &event("late", 8, "deferred"),
            &event("going", 1, "queued"),
            &event("going", 2, "deferred"),
            &event("going", 1, "queued"),
            &event("odd", 1, "brand-new"),
            version_1,
            r#"{"status":"queued"}"#,
        ],
    );
    bridge.wait_drained(LIMIT);
    let db = new_dir("delivery-state").join("state.db");
    let mut reader = Reader::new(kafka, &topics.deliveries);
    reader.read_count(9, LIMIT);
    let run = |counts| run_delivery_state(kafka, &topics.deliveries, &db, counts);
    let row = |id: &str, to: &str, status: &str, second: u32| {
        [
            format!("<{id}@test>"),
            to.to_owned(),
            status.to_owned(),
            format!("2026-10-01 09:15:{second:02}"),
        ]
    };
    let late = row("late", "a@test", "succeeded", 5);
    let version_1 = row("v1", "b@test", "failed", 9);
    let first = [
        row("going", "a@test", "deferred", 2),
        late.clone(),
        version_1.clone(),
    ];
    assert_eq!(run((7, 2)), first);

    // It resumes where it stopped and rereads nothing, so rows deleted by hand don't come back.
    Connection::open(&db)
        .unwrap()
        .execute("DELETE FROM mail WHERE message_id = '<v1@test>'", [])
        .unwrap();
    post(
        &bridge,
        &[&event("going", 9, "succeeded"), &event("going", 9, "succeeded")],
    );
    bridge.wait_drained(LIMIT);
    // Readers see them only once Kafka has written the end of the transaction.
    reader.read_count(11, LIMIT);
    let going = row("going", "a@test", "succeeded", 9);
    assert_eq!(run((2, 0)), [going.clone(), late.clone()]);

    // A new table gets everything from the beginning.
    let again = run_delivery_state(kafka, &topics.deliveries, &db.with_extension("2"), (9, 2));
    assert_eq!(again, [going, late, version_1]);
}
