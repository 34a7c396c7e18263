//! `reconcile`: what the sender has and the topics lack is added, once, whatever the sender, the replicas and the operator do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, DateTime, Time},
    tz::TimeZone,
};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Started, Topics, run},
    cmc::{value_of, webhook},
    commands::check_live,
    kafka,
    process::Ended,
    sender::{Body, KEY, Listed, Sender, UNKNOWN, USER, Unkind},
    tls::Authority,
    topics::{self, Reader, Record},
    wait::{Random, unique, until},
};

const LIMIT: Duration = Duration::from_secs(180);

/// The last day in the console's zone that had been over for the default of `--settle` when the tests began. They name it, since the
/// default may become the next day at any time.
static DAY: LazyLock<Date> = LazyLock::new(|| {
    let zone = TimeZone::get("Asia/Tokyo").unwrap();
    zone.to_datetime(Timestamp::now() - 1.hour()).date() - 1.day()
});

/// At this second of that day.
fn created(second: i64) -> DateTime {
    DAY.to_datetime(Time::midnight()) + second.seconds()
}

/// A delivery as the API lists it, and as a webhook posts it: the same values, written differently.
fn delivery(n: i64, status: &str) -> (Listed, String) {
    delivery_at(created(n * 37 % 86_400), n, status)
}

fn delivery_at(created: DateTime, n: i64, status: &str) -> (Listed, String) {
    let created = created.strftime("%Y-%m-%d %H:%M:%S").to_string();
    let row = format!(
        r#"{{"created":"{created}","returnPath":"b@test","from":"f@test","to":"t{n}@test","messageId":"<{n}@test>","reason":"","senderIp":"","sourceIp":"192.0.2.1","status":"{status}","subject":"十月 {n}","apiData":""}}"#
    );
    let posted = format!(
        r#"{{"status":"{status}","messageId":"\u003C{n}@test\u003E", "subject":"\u5341\u6708 {n}","reason":"","sourceIp":"192.0.2.1","created":"{created}","returnPath":"b@test","from":"f@test","to":"t{n}@test","senderIp":""}}"#
    );
    let listed = Listed {
        stream: "deliveries",
        composition: "pro",
        row,
    };
    (listed, posted)
}

fn bounce(n: i64) -> (Listed, String) {
    let (listed, _) = delivery(n, "2");
    let posted = listed.row.clone();
    let listed = Listed {
        stream: "bounces",
        ..listed
    };
    (listed, posted)
}

fn setup(kafka: &str, topics: &Topics, sender: &Sender) -> Setup {
    Setup::new(kafka)
        .topics(topics)
        .set("kafka.id_prefix", &unique("test"))
        .set("sender_api.url", &sender.url())
        .set("sender_api.user", USER)
        .set("sender_api.key", KEY)
        .set("sender_api.server_compositions", "pro")
        .set("sender_api.pause", "0")
}

fn post(setup: &Setup, event_type: &str, elements: &[String]) {
    let bridge = setup.start();
    let mut client = bridge.client();
    for chunk in elements.chunks(500) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        assert_eq!(client.post(webhook(event_type, "pro", &chunk)).status, 200);
    }
    bridge.wait_drained(LIMIT);
    bridge.stop();
}

/// Begins to reconcile that day, or the days that `args` name.
fn start(setup: &Setup, args: &[&str]) -> Started {
    let day = DAY.to_string();
    let days: &[&str] = match args.contains(&"--from") {
        true => &[],
        false => &["--from", &day],
    };
    Started::new(setup, &[&["reconcile"], days, args].concat(), &[])
}

fn reconcile(setup: &Setup, args: &[&str]) -> Ended {
    start(setup, args).end()
}

/// The report of a run with `--json`, and its exit code.
fn report(setup: &Setup, args: &[&str]) -> (i32, Value) {
    let ended = reconcile(setup, &[&["--json"], args].concat());
    let report = serde_json::from_str(&ended.stdout);
    (
        ended.code,
        report.unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr)),
    )
}

fn sum(report: &Value, name: &str) -> u64 {
    let days = report["days"].as_array().unwrap();
    days.iter().map(|day| day[name].as_u64().unwrap()).sum()
}

fn read(kafka: &str, topic: &str) -> Vec<Record> {
    Reader::new(kafka, topic).read_to_end(LIMIT).to_vec()
}

/// How often each event is on a topic: by its values, with empty ones left out.
fn events(records: &[Record]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for record in records {
        let value: BTreeMap<String, Value> = serde_json::from_str(record.text()).unwrap();
        let members = value.into_iter().filter(|(_, value)| *value != json!(""));
        let value: BTreeMap<_, _> = members.collect();
        *found.entry(json!(value).to_string()).or_default() += 1;
    }
    found
}

/// What the topic of a stream must hold.
fn expected(listed: &[Listed], stream: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for event in listed.iter().filter(|event| event.stream == stream) {
        let mut value: BTreeMap<String, Value> = serde_json::from_str(&event.row).unwrap();
        value.insert("event_type".to_owned(), json!(stream));
        value.insert("server_composition".to_owned(), json!(event.composition));
        value.retain(|_, value| *value != json!(""));
        *found.entry(json!(value).to_string()).or_default() += 1;
    }
    found
}

/// Checks that a topic holds each of these events so often. A failure shows some of the differences, not thousands of events.
#[track_caller]
fn holds(kafka: &str, topic: &str, wanted: &BTreeMap<String, u64>) {
    let found = events(&read(kafka, topic));
    let events: BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
    let differ = events
        .into_iter()
        .filter(|event| found.get(*event) != wanted.get(*event));
    let differences: Vec<String> = differ
        .map(|event| format!("{:?} for {:?}: {event}", found.get(event), wanted.get(event)))
        .collect();
    let some = &differences[..differences.len().min(5)];
    assert!(some.is_empty(), "{} events differ: {some:#?}", differences.len());
}

#[test]
fn exactly_the_holes_are_filled() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (mut listed, mut posted, mut bounces): (Vec<Listed>, Vec<String>, Vec<String>) = Default::default();
    let mut lost = 0;
    for n in 0..2000 {
        let (event, body) = delivery(n, "succeeded");
        // The sender has some events twice, and of some of those a webhook got through once.
        let times = if n % 50 == 7 { 2 } else { 1 };
        for _ in 0..times {
            listed.push(event.clone());
        }
        match n % 13 {
            0 => lost += times,
            7 if times == 2 => {
                posted.push(body);
                lost += 1;
            }
            _ => (0..times).for_each(|_| posted.push(body.clone())),
        }
    }
    for n in 0..300 {
        let (event, body) = bounce(n);
        listed.push(event);
        if n % 10 == 3 {
            lost += 1;
        } else {
            bounces.push(body);
        }
    }
    // In version 1, and of another composition.
    let (old, _) = delivery(5000, "failed");
    let day = created(5000 * 37 % 86_400)
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string();
    posted.push(format!(
        r#"{{"reason":"","sourceIp":"192.0.2.1","created":"{day}","subject":"十月 5000","messageId":"<5000@test>","senderIp":"","status":"failed","envelopeFrom":"b@test","envelopeTo":"t5000@test"}}"#
    ));
    let exact = listed.clone();
    listed.push(old);
    // Near misses: the webhook said something else.
    for n in 6000..6003 {
        let (event, body) = delivery(n, "failed");
        listed.push(event);
        posted.push(body.replace("192.0.2.1", "192.0.2.2"));
    }
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    post(&setup, "deliveries", &posted);
    post(&setup, "bounces", &bounces);

    let (code, dry) = report(&setup, &["--dry-run"]);
    assert_eq!(
        (code, sum(&dry, "missing"), sum(&dry, "added")),
        (65, lost + 3, 0),
        "{dry}"
    );
    assert_eq!(read(kafka, &topics.deliveries).len(), posted.len());

    sender.be(Unkind {
        busy: Some(41),
        cut: Some(29),
        shuffled: true,
        ..Unkind::default()
    });
    let (code, first) = report(&setup, &[]);
    assert_eq!(
        (code, sum(&first, "added"), sum(&first, "near_misses")),
        (65, lost, 3),
        "{first}"
    );
    assert_eq!(
        (sum(&first, "sender"), sum(&first, "unknown_to_sender")),
        (listed.len() as u64, 3)
    );
    assert_eq!(sender.early_calls(), 0);
    let near: Vec<&str> = first["left"]
        .as_array()
        .unwrap()
        .iter()
        .map(|left| left["why"].as_str().unwrap())
        .collect();
    assert_eq!(near, ["near_miss"; 3]);

    let records = read(kafka, &topics.deliveries);
    let added: Vec<&Record> = records
        .iter()
        .filter(|record| record.header("cmc-origin") == Some("api"))
        .collect();
    let found = events(&records);
    for (event, times) in expected(&exact, "deliveries") {
        assert_eq!(found.get(&event), Some(&times), "{event}");
    }
    assert_eq!(records.len(), posted.len() + added.len());
    holds(kafka, &topics.bounces, &expected(&exact, "bounces"));
    for record in added {
        let value: Value = serde_json::from_str(record.text()).unwrap();
        assert_eq!(record.key_text(), value["messageId"].as_str());
        assert_eq!(record.header("ce_subject"), value["messageId"].as_str());
        assert_eq!(record.header("ce_type"), Some("jp.smtps.cmc.deliveries"));
        assert_eq!(record.header("ce_source"), Some("/cmc/pro"));
        assert!(record.header("cmc-received-at").is_some() && record.header("ce_time").is_some());
        assert!(
            record
                .text()
                .starts_with(r#"{"event_type":"deliveries","server_composition":"pro","created":"#)
        );
    }

    sender.be(Unkind::default());
    let (code, second) = report(&setup, &["--thorough"]);
    assert_eq!(
        (code, sum(&second, "added"), sum(&second, "near_misses")),
        (65, 0, 3),
        "{second}"
    );
    let (code, third) = report(&setup, &["--add-near", "--thorough"]);
    assert_eq!((code, sum(&third, "added")), (0, 3), "{third}");
    let ended = reconcile(&setup, &[]);
    ended.has(0, &["ALL IS WELL"]);
}

#[test]
fn killed_at_any_time_it_adds_each_event_once() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let listed: Vec<Listed> = (0..1500).map(|n| delivery(n, "queued").0).collect();
    let sender = Sender::start(listed.clone());
    // Many transactions, so that kills fall between and into them.
    let setup = setup(kafka, &topics, &sender).set("kafka.transaction_events", "20");
    post(&setup, "deliveries", &[delivery(3, "queued").1]);
    let mut random = Random::new("reconcile");
    for _ in 0..10 {
        let mut run = start(&setup, &[]);
        let left = Duration::from_millis(300 + random.below(4000));
        if run.process.wait(left).is_none() {
            run.process.kill();
        }
    }
    // Two at once: the later one shuts out the other.
    let runs: Vec<Started> = (0..2).map(|_| start(&setup, &[])).collect();
    for run in runs {
        let ended = run.end();
        assert!([0, 69].contains(&ended.code), "{}{}", ended.stdout, ended.stderr);
    }
    let (code, last) = report(&setup, &[]);
    assert_eq!(code, 0, "{last}");
    holds(kafka, &topics.deliveries, &expected(&listed, "deliveries"));
}

#[test]
fn hours_that_do_not_settle_add_nothing_and_rows_that_come_meanwhile_are_found() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let listed: Vec<Listed> = (0..30).map(|n| delivery(n, "queued").0).collect();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    sender.be(Unkind {
        growing: true,
        ..Unkind::default()
    });
    let (code, report_of_growing) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!(
        (code, sum(&report_of_growing, "added")),
        (75, 0),
        "{report_of_growing}"
    );
    assert_eq!(sum(&report_of_growing, "unsettled_hours"), 24);

    // A page of the first hour shifts between two calls.
    let more: Vec<Listed> = (0..150).map(|n| delivery(n * 86_400, "queued").0).collect();
    let mut all = listed;
    all.extend(more.iter().cloned());
    sender.be(Unkind {
        added_at: Some((2, more)),
        ..Unkind::default()
    });
    let (code, found) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!(code, 0, "{found}");
    holds(kafka, &topics.deliveries, &expected(&all, "deliveries"));
}

#[test]
fn a_row_counts_only_in_the_hour_that_it_names() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (mut listed, posted): (Vec<Listed>, Vec<String>) =
        (0..20).map(|n| delivery(n * 100, "queued")).unzip();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    post(&setup, "deliveries", &posted[3..]);
    sender.be(Unkind {
        hourless: true,
        ..Unkind::default()
    });
    let (code, found) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!((code, sum(&found, "added")), (75, 3), "{found}");
    assert_eq!(found["rows_elsewhere"], 20 * 23);
    let on_topic = expected(&listed, "deliveries");
    holds(kafka, &topics.deliveries, &on_topic);

    // The sender's clock is not the one of `ingest.time_zone`, so nothing can be compared.
    listed.push(delivery(7, "failed").0);
    let sender = Sender::start(listed);
    let setup = setup.set("sender_api.url", &sender.url());
    sender.be(Unkind {
        shifted: true,
        ..Unkind::default()
    });
    let (code, found) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!((code, sum(&found, "added")), (75, 0), "{found}");
    holds(kafka, &topics.deliveries, &on_topic);
}

/// A reconciliation of deliveries that has read the topics and waits for the sender's answer to its tenth call.
fn held(setup: &Setup, sender: &Sender) -> Started {
    sender.be(Unkind {
        held_at: Some(10),
        ..Unkind::default()
    });
    let run = start(setup, &["--stream", "deliveries"]);
    until(LIMIT, "the tenth call", || (sender.calls() >= 10).then_some(()));
    run
}

#[test]
fn a_webhook_that_arrives_while_the_sender_is_read_fills_its_hole() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (listed, posted): (Vec<Listed>, Vec<String>) = (0..20).map(|n| delivery(n, "queued")).unzip();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    post(&setup, "deliveries", &posted[1..]);
    let run = held(&setup, &sender);
    post(&setup, "deliveries", &posted[..1]);
    sender.release();
    run.end().has(0, &["missing 0, added 0", "ALL IS WELL"]);
    holds(kafka, &topics.deliveries, &expected(&listed, "deliveries"));
}

#[test]
fn a_later_run_shuts_out_an_earlier_one_from_its_beginning() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let listed: Vec<Listed> = (0..20).map(|n| delivery(n, "queued").0).collect();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    let earlier = held(&setup, &sender);
    let (code, later) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!((code, sum(&later, "added")), (0, 20), "{later}");
    // In an hour that the earlier run has not read, so that it has something to add.
    sender.be(Unkind {
        added_at: Some((1, vec![delivery(1946, "queued").0])),
        ..Unkind::default()
    });
    sender.release();
    earlier.end().has(69, &["another run"]);
    holds(kafka, &topics.deliveries, &expected(&listed, "deliveries"));
}

#[test]
fn what_a_replica_holds_is_not_missing() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (event, body) = delivery(1, "queued");
    let sender = Sender::start(vec![event.clone()]);
    let setup = setup(kafka, &topics, &sender);
    let away = setup.clone().set("kafka.bootstrap_servers", NO_KAFKA);
    let bridge = away.start();
    assert_eq!(
        bridge
            .client()
            .post(webhook("deliveries", "pro", &[&body]))
            .status,
        200
    );
    let replica = format!("http://{}", bridge.admin);
    let args = ["--replica", &replica, "--wait", "1"];
    reconcile(&setup, &args).has(69, &["holds 1 events of deliveries"]);
    bridge.kill();
    reconcile(&setup, &args).has(69, &["can't be asked"]);
    assert_eq!(read(kafka, &topics.deliveries).len(), 0);

    let bridge = setup.start();
    let replica = format!("http://{}", bridge.admin);
    reconcile(&setup, &["--replica", &replica]).has(0, &["ALL IS WELL", "missing 0"]);
    bridge.stop();
    holds(kafka, &topics.deliveries, &expected(&[event], "deliveries"));
}

#[test]
fn what_can_not_be_compared_is_refused() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    let sender = Sender::start(vec![delivery(1, "queued").0]);
    let base = setup(kafka, &topics, &sender);
    let wrong = base.clone().set("sender_api.key", "wr0ng-key");
    let ended = reconcile(&wrong, &[]);
    ended.has(69, &["01-002", "field api_key", "wrong key ***"]);
    assert!(!ended.stderr.contains("wr0ng"), "{}", ended.stderr);
    reconcile(
        &base.clone().unset("sender_api.user").unset("sender_api.key"),
        &[],
    )
    .has(64, &["sender_api.user"]);
    reconcile(&base.clone().unset("sender_api.server_compositions"), &[]).has(64, &["--server-composition"]);
    reconcile(&base, &["--from", "2020-01-01", "--to", "2020-01-02"]).has(64, &["40 days"]);
    reconcile(&base, &["--to", "2020-01-02"]).has(64, &["is after --to"]);
    let future = (*DAY + 4.days()).to_string();
    reconcile(&base, &["--to", &future]).has(64, &["is in the future"]);
    reconcile(&base, &["--settle", "5760"]).has(64, &["over for long enough"]);
    reconcile(&base, &["--server-composition", ""]).has(64, &["--server-composition"]);
    reconcile(&base, &["--most", "1", "--stream", "bounces"]).has(0, &["ALL IS WELL"]);
    run(&base, &["reconcile", "--stream", "bounces"]).has(0, &["ALL IS WELL"]);
    reconcile(&base.clone().set("kafka.delivery", "at-least-once"), &[]).has(64, &["transactions"]);

    topics.deliveries = topics::create(kafka, "compacted", 1, &[("cleanup.policy", "compact")]);
    reconcile(&base.clone().topics(&topics), &[]).has(64, &["is compacted", "Nothing was added"]);

    // Its retention has removed what came before.
    topics.deliveries = topics::create(kafka, "short", 1, &[("retention.ms", "3600000")]);
    let short = base.topics(&topics);
    post(&short, "deliveries", &[delivery(2, "queued").1]);
    topics::delete_records(kafka, &topics.deliveries, 1);
    reconcile(&short, &[]).has(64, &["has deleted records", "1 h", "Nothing was added"]);
    assert!(sender.calls() > 0);
}

/// A bridge's transaction is open while the topics are read: its events are on their way, and not missing.
#[test]
fn an_open_transaction_is_waited_for() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (event, body) = delivery(1, "queued");
    let sender = Sender::start(vec![event.clone()]);
    let setup = setup(kafka, &topics, &sender);
    let producer: BaseProducer = topics::client_config(kafka)
        .set("transactional.id", unique("open"))
        .create()
        .unwrap();
    producer.init_transactions(LIMIT).unwrap();
    producer.begin_transaction().unwrap();
    let value = value_of("deliveries", "pro", &body);
    let record: BaseRecord<'_, str, str> = BaseRecord::to(&topics.deliveries).key("k").payload(&value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(LIMIT).unwrap();
    let mut run = start(&setup, &[]);
    let early = run.process.wait(Duration::from_secs(5));
    assert!(early.is_none(), "it did not wait: {}", run.text("stdout"));
    producer.commit_transaction(LIMIT).unwrap();
    run.end().has(0, &["ALL IS WELL", "missing 0"]);
    holds(kafka, &topics.deliveries, &expected(&[event], "deliveries"));
}

#[test]
fn rows_and_compositions_of_any_kind() {
    const NAME: &str = "本番 & \"100%\"/=";
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let row = |n: i64, more: &str| {
        let (listed, _) = delivery(n, "queued");
        Listed {
            composition: NAME,
            row: format!("{},{more}}}", listed.row.strip_suffix('}').unwrap()),
            ..listed
        }
    };
    let large = format!("\"later\":\"{}\"", "x".repeat(1_200_000));
    let odd = "\"later\":{\"a\":[1,null,\"\\u001b[31m\"]}";
    let sender = Sender::start(vec![
        row(1, odd),
        row(2, "\"event_type\":\"bounces\""),
        row(3, &large),
    ]);
    let setup = setup(kafka, &topics, &sender);
    let args = ["--server-composition", NAME, "--stream", "deliveries"];
    for added in [1, 0] {
        let (code, found) = report(&setup, &args);
        assert_eq!(
            (code, sum(&found, "added"), sum(&found, "unfit")),
            (65, added, 2),
            "{found}"
        );
        let left = found["left"].as_array().unwrap();
        let mut reasons: Vec<&str> = left.iter().map(|left| left["reason"].as_str().unwrap()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["record_too_large", "reserved_member"]);
    }
    let records = read(kafka, &topics.deliveries);
    assert_eq!(records.len(), 1);
    let value: Value = serde_json::from_str(records[0].text()).unwrap();
    assert_eq!(value["server_composition"], NAME);
    assert!(records[0].text().contains(odd), "{}", records[0].text());
}

/// One replica goes away, so that webhooks are refused connections; another one, without Kafka, keeps what fits into its spool and
/// answers 503 to the rest. Then both come back, and webhooks go on while the day is reconciled.
#[test]
fn after_an_outage_under_load_every_event_is_there_once() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (listed, posted): (Vec<Listed>, Vec<String>) = (0..2000).map(|n| delivery(n, "queued")).unzip();
    let sender = Sender::start(listed.clone());
    let one = setup(kafka, &topics, &sender);
    let small = [
        ("ingest.max_body_bytes", "16KiB"),
        ("ingest.max_events", "100"),
        ("spool.max_bytes", "256KiB"),
        ("spool.segment_bytes", "64KiB"),
    ];
    let other = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.id_prefix", &unique("other"));
    let other = small
        .iter()
        .fold(other, |setup, (key, value)| setup.set(key, value));
    post(&one, "deliveries", &posted[..700]);
    let away = other.clone().set("kafka.bootstrap_servers", NO_KAFKA);
    let full = away.start();
    let mut client = full.client();
    let (mut kept, mut refused) = (0, 0);
    for chunk in posted[700..].chunks(10) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        match client.post(webhook("deliveries", "pro", &chunk)).status {
            200 => kept += chunk.len() as u64,
            503 => refused += chunk.len() as u64,
            status => panic!("{status}"),
        }
    }
    assert!(kept > 0 && refused > 0, "kept {kept}, refused {refused}");

    let bridge = one.start();
    let over = AtomicBool::new(false);
    let today = created(86_400);
    let (ended, today) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client = bridge.client();
            let mut events = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let (event, body) = delivery_at(today, 10_000 + events.len() as i64, "queued");
                assert_eq!(client.post(webhook("deliveries", "pro", &[&body])).status, 200);
                events.push(event);
                std::thread::sleep(Duration::from_millis(2));
            }
            events
        });
        let urls = |bridges: [&Bridge; 2]| bridges.map(|bridge| format!("http://{}", bridge.admin));
        let [first, second] = urls([&bridge, &full]);
        reconcile(&one, &["--replica", &first, "--replica", &second, "--wait", "1"])
            .has(69, &["of deliveries that are not in Kafka", &second]);
        full.kill();
        let full = other.start();
        let [first, second] = urls([&bridge, &full]);
        let ended = reconcile(
            &one,
            &["--replica", &first, "--replica", &second, "--wait", "120"],
        );
        over.store(true, Ordering::Relaxed);
        full.stop();
        (ended, load.join().unwrap())
    });
    bridge.wait_drained(LIMIT);
    bridge.stop();
    ended.has(0, &[&format!("added {}", human(refused)), "ALL IS WELL"]);
    assert!(today.len() > 50, "{}", today.len());
    holds(
        kafka,
        &topics.deliveries,
        &expected(&[listed, today].concat(), "deliveries"),
    );
}

/// A count as the summary has it.
fn human(count: u64) -> String {
    match count {
        1000.. => format!("{},{:03}", count / 1000, count % 1000),
        _ => count.to_string(),
    }
}

#[test]
fn deliveries_whose_counts_agree_are_not_read() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let statuses = ["queued", "succeeded", "failed", "deferred"];
    let (listed, posted): (Vec<Listed>, Vec<String>) =
        (0..400).map(|n| delivery(n, statuses[n as usize % 4])).unzip();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    let args = ["--stream", "deliveries"];
    let thorough = ["--stream", "deliveries", "--thorough"];

    // Of what is missing, the counts have only the second one.
    let (deferred, failed) = (3, 2);
    post(&setup, "deliveries", &posted[4..]);
    post(&setup, "deliveries", &posted[..2]);
    let (code, dry) = report(&setup, &["--stream", "deliveries", "--dry-run"]);
    assert_eq!(
        (code, sum(&dry, "missing"), sum(&dry, "counted_only")),
        (65, 2, 0),
        "{dry}"
    );
    post(&setup, "deliveries", &posted[failed..=failed]);
    sender.be(Unkind::default());
    let (code, found) = report(&setup, &args);
    assert_eq!(
        (code, sum(&found, "added"), sum(&found, "counted_only")),
        (0, 1, 300),
        "{found}"
    );
    assert_eq!(
        (sum(&found, "sender"), sum(&found, "topic")),
        (400, 399),
        "{found}"
    );
    assert!(found["left"].as_array().unwrap().is_empty());
    assert!(
        found["verdict"].as_str().unwrap().contains("--thorough"),
        "{found}"
    );
    assert!(sender.calls() < 8, "{} calls", sender.calls());
    let complete = expected(&listed, "deliveries");
    holds(kafka, &topics.deliveries, &complete);
    assert!(
        complete
            .keys()
            .any(|event| event.contains(&format!("<{deferred}@test>")))
    );

    // A sender that ignores the status: all rows are read.
    sender.be(Unkind {
        statusless: true,
        ..Unkind::default()
    });
    let (code, found) = report(&setup, &args);
    assert_eq!(
        (code, sum(&found, "added"), sum(&found, "counted_only")),
        (0, 0, 0),
        "{found}"
    );
    assert_eq!(sum(&found, "sender"), 400, "{found}");

    // One that is missing, and another that came twice: the counts agree, but don't count.
    let (another, _) = delivery(1000, "queued");
    let more = Sender::start([&listed[..], std::slice::from_ref(&another)].concat());
    let setup = setup.set("sender_api.url", &more.url());
    post(&setup, "deliveries", &posted[..1]);
    let (code, found) = report(&setup, &args);
    assert_eq!(
        (code, sum(&found, "added"), sum(&found, "counted_only")),
        (0, 1, 0),
        "{found}"
    );
    assert_eq!(sum(&found, "unknown_to_sender"), 1, "{found}");

    // One that is missing, and another that the sender doesn't know: only the rows tell.
    let swapped = Topics::create(kafka);
    let setup = setup.topics(&swapped).set("sender_api.url", &sender.url());
    let (_, unknown) = delivery(2000, "queued");
    post(&setup, "deliveries", &[&posted[1..], &[unknown]].concat());
    sender.be(Unkind::default());
    let (code, found) = report(&setup, &args);
    assert_eq!(
        (code, sum(&found, "added"), sum(&found, "counted_only")),
        (0, 0, 300),
        "{found}"
    );
    let (code, found) = report(&setup, &thorough);
    assert_eq!(
        (code, sum(&found, "added"), sum(&found, "counted_only")),
        (0, 1, 0),
        "{found}"
    );
}

#[test]
fn check_live_tries_the_sender_and_names_cause_and_cure() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let sender = Sender::start(Vec::new());
    let base = setup(kafka, &topics, &sender).set("sender_api.timeout", "1s");
    let url = format!("{}/deliveries/list.json", sender.url());
    check_live(&base, 0, &["sender API (pro)", &url, USER]);
    let none = base.clone().unset("sender_api.server_compositions");
    check_live(&none, 0, &["warn", "sender_api.server_compositions names none"]);

    let ended = check_live(
        &base.clone().set("sender_api.key", "wr0ng-key"),
        69,
        &["FAIL", "01-002", "Check sender_api.user and sender_api.key"],
    );
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("wr0ng"));
    check_live(
        &base
            .clone()
            .set("sender_api.server_compositions", &format!("pro,{UNKNOWN}")),
        69,
        &[
            "ok    sender API (pro)",
            "13-006",
            "Check the name of the composition",
        ],
    );
    check_live(
        &base
            .clone()
            .set("sender_api.url", &sender.url().replace("/transaction/v2", "")),
        69,
        &["404", "Check sender_api.url"],
    );
    check_live(
        &base
            .clone()
            .set("sender_api.url", "http://127.0.0.1:1/transaction/v2"),
        69,
        &["refused", "tries: 1", "Check sender_api.url, name resolution"],
    );
    let unreadable = base
        .clone()
        .set("sender_api.url", &sender.url().replace("http:", "https:"))
        .set("sender_api.ca_file", "/no/such/file.pem");
    check_live(&unreadable, 69, &["sender_api.ca_file", "/no/such/file.pem"]);

    for (body, why) in [
        (Body::Hangs, "no whole answer within 1 s (sender_api.timeout)"),
        (Body::Trickles, "no whole answer within 1 s (sender_api.timeout)"),
        (Body::Floods, "longer than 16 MiB"),
    ] {
        sender.be(Unkind {
            body,
            ..Unkind::default()
        });
        // A flood may take longer than a second.
        let limit = if body == Body::Floods { "60s" } else { "1s" };
        check_live(&base.clone().set("sender_api.timeout", limit), 69, &["FAIL", why]);
    }
}

#[test]
fn a_sender_with_an_authority_of_its_own() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (listed, _) = delivery(1, "queued");
    let authority = Authority::new();
    let issued = authority.issue(2100);
    let sender = Sender::start_tls(vec![listed.clone()], &issued.chain, &issued.key);
    let file = kafka::new_dir("ca").join("ca.pem");
    std::fs::write(&file, &authority.root_pem).unwrap();
    let untrusted = setup(kafka, &topics, &sender);
    let trusted = untrusted
        .clone()
        .set("sender_api.ca_file", file.to_str().unwrap());
    let refused = ["invalid peer certificate", "sender_api.ca_file"];
    check_live(&untrusted, 69, &refused);
    reconcile(&untrusted, &[]).has(69, &refused);
    // For another name, and expired.
    let elsewhere = sender.url().replace("127.0.0.1", "localhost");
    let misnamed = trusted.clone().set("sender_api.url", &elsewhere);
    reconcile(&misnamed, &[]).has(69, &["invalid peer certificate", "not valid for name"]);
    let old = authority.issue(2020);
    let expired = Sender::start_tls(Vec::new(), &old.chain, &old.key);
    let expired = trusted.clone().set("sender_api.url", &expired.url());
    reconcile(&expired, &[]).has(69, &["invalid peer certificate", "expired"]);

    check_live(&trusted, 0, &["sender API (pro)", "https://"]);
    reconcile(&trusted, &[]).has(0, &["added 1", "ALL IS WELL"]);
    holds(kafka, &topics.deliveries, &expected(&[listed], "deliveries"));
}

#[test]
fn a_sender_that_repeats_a_page_is_not_believed() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let sender = Sender::start((0..3).map(|n| delivery(n, "queued").0).collect());
    let setup = setup(kafka, &topics, &sender);
    sender.be(Unkind {
        pageless: true,
        ..Unkind::default()
    });
    let (code, found) = report(&setup, &["--stream", "deliveries"]);
    assert_eq!((code, sum(&found, "added")), (75, 0), "{found}");
    assert_eq!(read(kafka, &topics.deliveries).len(), 0);
}

/// 20,000 events and 1,500 holes; some events are repeated, some nearly there, and a page shifts.
#[test]
fn a_day_of_twenty_thousand_events() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let (mut listed, mut posted): (Vec<Listed>, Vec<String>) = Default::default();
    let (mut holes, mut near) = (0, 0);
    for n in 0..20_000 {
        let (event, body) = delivery(n, ["queued", "succeeded"][n as usize % 2]);
        listed.push(event.clone());
        match n {
            // The sender has it twice, and so has the topic, or the topic only once.
            _ if n % 1000 == 1 => {
                listed.push(event);
                posted.push(body.clone());
                match n % 2000 == 1 {
                    true => posted.push(body),
                    false => holes += 1,
                }
            }
            _ if n % 2000 == 2 => {
                posted.push(body.replace("192.0.2.1", "192.0.2.2"));
                near += 1;
            }
            _ if n % 13 == 5 && holes < 1500 => holes += 1,
            _ => posted.push(body),
        }
    }
    assert_eq!((holes, near), (1500, 10));
    // They come first on their pages while those are read.
    let shifting: Vec<Listed> = (0..40).map(|n| delivery(30_000 + n, "failed").0).collect();
    let sender = Sender::start(listed.clone());
    let setup = setup(kafka, &topics, &sender);
    post(&setup, "deliveries", &posted);
    sender.be(Unkind {
        added_at: Some((30, shifting.clone())),
        shuffled: true,
        ..Unkind::default()
    });
    let begun = std::time::Instant::now();
    let args = ["--json", "--thorough", "--stream", "deliveries"];
    let mut run = start(&setup, &args);
    let mut peak = 0;
    while run.process.exited().is_none() {
        peak = run.peak_bytes().unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let calls = sender.calls();
    let ended = run.end();
    let first: Value = serde_json::from_str(&ended.stdout).unwrap();
    let (megabytes, added) = (peak >> 20, sum(&first, "added"));
    println!("{calls} calls in {seconds:.1} s, peak {megabytes} MiB, {added} added");
    assert_eq!(ended.code, 65, "{first}");
    // What was added to an hour that had been read is for the next run.
    let late = 1500 + 40 - added;
    assert!(late < 40, "{first}");
    assert_eq!(sum(&first, "near_misses"), near, "{first}");
    assert!(megabytes < 256, "{megabytes} MiB");

    sender.be(Unkind::default());
    let (code, second) = report(&setup, &args[1..]);
    assert_eq!((code, sum(&second, "added")), (65, late), "{second}");
    let (code, third) = report(&setup, &args[1..]);
    assert_eq!(
        (code, sum(&third, "added"), sum(&third, "near_misses")),
        (65, 0, near),
        "{third}"
    );

    listed.extend(shifting);
    let mut wanted = expected(&listed, "deliveries");
    // The near misses are there in their other form alone.
    for n in (2..20_000).step_by(2000) {
        let (event, _) = delivery(n, ["queued", "succeeded"][n as usize % 2]);
        for key in expected(&[event], "deliveries").into_keys() {
            let times = wanted.remove(&key).unwrap();
            wanted.insert(key.replace("192.0.2.1", "192.0.2.2"), times);
        }
    }
    holds(kafka, &topics.deliveries, &wanted);
}
