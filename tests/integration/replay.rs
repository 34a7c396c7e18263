//! `dead-letters ls` and `replay` on letters that the real bridge made: what is understood by now arrives once, despite kills
//! and two replays at a time. The rest is left.

use std::{
    collections::HashMap,
    process::Stdio,
    thread,
    time::{Duration, SystemTime},
};

use cmc_bridge::dead_letter::{DeadLetter, Reason};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::Value;

use crate::{
    bridge::{NO_KAFKA, Setup, Topics, run},
    cmc::{self, message, webhook},
    http::FORM,
    kafka,
    process::{Ended, Process},
    topics::{self, Reader, Record},
    wait::{self, Random, unique},
};

const LIMIT: Duration = Duration::from_secs(180);

fn replay(setup: &Setup, args: &[&str]) -> Ended {
    run(setup, &[&["dead-letters", "replay"], args].concat())
}

/// The sums that a replay prints: letters replayed, events, new dead letters, letters still dead.
fn sums(ended: &Ended) -> [u64; 4] {
    let line = ended
        .stdout
        .lines()
        .find(|line| line.starts_with("letters ") && line.contains("replayed:"));
    let line = line.unwrap_or_else(|| panic!("no sums in {}", ended.stdout));
    let numbers: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|text| text.parse().ok())
        .collect();
    numbers.try_into().unwrap()
}

fn read(kafka: &str, topic: &str) -> Vec<Record> {
    Reader::new(kafka, topic).read_to_end(LIMIT).to_vec()
}

/// Runs the setup's bridge until it has taken and delivered these webhooks.
fn take(setup: &Setup, bodies: &[String]) {
    let bridge = setup.start();
    let mut client = bridge.client();
    for body in bodies {
        let status = client.post(body).status;
        assert!([200, 400].contains(&status), "{status}");
    }
    bridge.wait_drained(LIMIT);
    bridge.stop();
}

/// An id prefix of its own: tests share the cluster, and a replay shuts out others with the same prefix.
fn setup(kafka: &str, topics: &Topics) -> Setup {
    Setup::new(kafka)
        .topics(topics)
        .set("kafka.id_prefix", &unique("test"))
}

/// Checks a replayed record: its timestamp is the time of the replay, and the rest is as if the bridge had understood it at
/// once.
fn check(record: &Record, since_ms: i64, event_type: &str, element: &str) {
    assert!(record.timestamp_ms >= since_ms, "the time of the replay");
    let received: jiff::Timestamp = record.header("cmc-received-at").unwrap().parse().unwrap();
    assert!(received.as_millisecond() <= since_ms, "received before");
    cmc::check(record, event_type, "pro", element);
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_millis() as i64
}

#[test]
fn what_is_understood_by_now_is_delivered_once_and_the_rest_is_left() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "refusing", 3, &[("max.message.bytes", "10000")]);
    let later = setup(kafka, &topics).set("streams.blocks.enabled", "true");
    let first = later
        .clone()
        .unset("streams.blocks.enabled")
        .set("ingest.max_events", "1")
        .set("kafka.max_record_bytes", "20000");

    let good: Vec<String> = (0..150)
        .map(|n| message(&format!("good-{n}@test"), &"g".repeat(300)))
        .collect();
    let reserved = r#"{"messageId":"<r@test>","event_type":"x"}"#;
    let of_topic = message("refused@test", &cmc::incompressible(15_000));
    let too_large = message("large@test", &cmc::incompressible(30_000));
    let all = |elements: &[&str]| webhook("deliveries", "pro", elements);
    let in_parts: Vec<&str> = good[2..].iter().map(String::as_str).collect();
    let with_key = all(&[&good[0], reserved, &good[1]]).replacen('{', r#"{"api_key":"0123456789","#, 1);
    let block = r#"{"messageId":"<b@test>","created":"2026-10-01 09:15:02"}"#;
    take(
        &first,
        &[
            with_key,
            all(&in_parts),
            webhook("blocks", "pro", &[block]),
            all(&[reserved]),
            all(&[&of_topic]),
            all(&[&too_large]),
            "no webhook".to_owned(),
        ],
    );
    // The list names the letters, and shows what they hold only on demand.
    let listed = run(&later, &["dead-letters", "ls", "--json"]);
    assert_eq!(listed.code, 0);
    let lines: Vec<Value> = listed
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[7]["letters"], 7);
    assert_eq!(lines[7]["reasons"]["too_many_events"], 2);
    assert!(!listed.stdout.contains("good-0"));
    let shown = run(
        &later,
        &["dead-letters", "ls", "--show", "--reason", "too_many_events"],
    );
    assert!(shown.stdout.contains("good-0") && !shown.stdout.contains("0123456789"));
    assert!(shown.stdout.contains("too_many_events: 2") && !shown.stdout.contains("reserved_member"));
    let none = run(&later, &["dead-letters", "ls", "--since", "2100-01-01"]);
    assert!(none.stdout.contains(": 0\n"), "{}", none.stdout);

    let dry = replay(&later, &["--dry-run"]);
    assert_eq!((dry.code, sums(&dry)), (65, [5, 153, 1, 2]));
    assert_eq!(read(kafka, &topics.deliveries).len(), 0);

    // The topic still refuses two of the letters.
    let since = now_ms();
    let ended = replay(&later, &[]);
    assert_eq!((ended.code, sums(&ended)), (65, [3, 151, 1, 4]));
    for line in ["refused_too_large: 2", "reserved_member: 1", "invalid_json: 1"] {
        assert!(ended.stdout.contains(line), "{line}");
    }
    let records = read(kafka, &topics.deliveries);
    assert_eq!(records.len(), good.len());
    for element in &good {
        let key = cmc::key_of(element);
        let record = records.iter().find(|record| record.key_text() == key.as_deref());
        check(record.unwrap(), since, "deliveries", element);
    }
    check(&read(kafka, &topics.blocks)[0], since, "blocks", block);
    // Read only now: the reader's own records have no timestamp, so a first replay would not know how old they are.
    let records = read(kafka, &topics.dead_letters);
    let (new, old): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.timestamp_ms >= since);
    assert!(old.len() > 7 + 2, "two letters are in parts: {}", old.len());
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].text(), reserved);
    assert_eq!(new[0].header("cmc-dead-letter-index"), Some("1"));

    topics::configure(kafka, &topics.deliveries, "max.message.bytes", "100000");
    let since = now_ms();
    let ended = replay(&later, &[]);
    assert_eq!((ended.code, sums(&ended)), (65, [2, 2, 0, 3]));
    let records = read(kafka, &topics.deliveries);
    assert_eq!(records.len(), good.len() + 2);
    for element in [&of_topic, &too_large] {
        let key = cmc::key_of(element);
        let record = records.iter().find(|record| record.key_text() == key.as_deref());
        check(record.unwrap(), since, "deliveries", element);
    }

    // Each replay tries what is left, until it is given up.
    assert_eq!(sums(&replay(&later, &[])), [0, 0, 0, 3]);
    assert_eq!(sums(&replay(&later, &["--give-up"])), [0, 0, 0, 3]);
    let ended = replay(&later, &[]);
    assert_eq!((ended.code, sums(&ended)), (0, [0; 4]));
    assert_eq!(read(kafka, &topics.deliveries).len(), good.len() + 2);
}

#[test]
fn a_form_and_what_the_options_leave_out() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let later = setup(kafka, &topics);
    let first = later.clone().set("ingest.max_events", "1");
    let bridge = first.start();
    let event = r#"{"deliveries":[{"messageId":"a"},{"messageId":"b"}]}"#;
    let encoded = percent_encoding::utf8_percent_encode(event, percent_encoding::NON_ALPHANUMERIC);
    let form = format!("event_type=deliveries&server_composition=pro&event={encoded}");
    let mut client = bridge.client();
    for _ in 0..4 {
        assert_eq!(client.post_with(&[FORM], &form).status, 400);
        assert_eq!(client.post("{").status, 400);
    }
    bridge.wait_drained(LIMIT);
    bridge.stop();

    let ended = replay(
        &later,
        &["--reason", "too_many_events", "--since", "1h", "--limit", "3"],
    );
    assert_eq!((ended.code, sums(&ended)), (0, [3, 6, 0, 0]));
    assert!(
        ended.stdout.contains("before the end of the topic"),
        "{}",
        ended.stdout
    );
    let none = replay(&later, &["--reason", "too_many_events", "--since", "2100-01-01"]);
    assert_eq!((none.code, sums(&none)), (0, [0; 4]));
    assert!(none.stdout.contains("letters passed over: 5"), "{}", none.stdout);
    let ended = replay(&later, &["--reason=invalid_json,too_many_events"]);
    assert_eq!((ended.code, sums(&ended)), (65, [1, 2, 0, 4]));
    assert_eq!(sums(&replay(&later, &[])), [0, 0, 0, 4]);
    assert_eq!(read(kafka, &topics.deliveries).len(), 8);
}

#[test]
fn a_record_that_kafka_refuses_leaves_its_letter_dead_alone() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "compacted", 1, &[("cleanup.policy", "compact")]);
    let later = setup(kafka, &topics);
    let keyless = r#"{"subject":"no id"}"#;
    let bodies: Vec<String> = (0..20)
        .map(|n| {
            let id = message(&format!("{n}@test"), "s");
            webhook(
                "deliveries",
                "pro",
                &[&id, if n % 5 == 0 { keyless } else { &id }],
            )
        })
        .collect();
    take(&later.clone().set("ingest.max_events", "1"), &bodies);
    let id = message("good@test", "s");
    take(&later, &[webhook("deliveries", "pro", &[&id, keyless, keyless])]);
    let ended = replay(&later, &[]);
    assert_eq!((ended.code, sums(&ended)), (65, [16, 32, 0, 6]));
    assert!(ended.stdout.contains("refused_invalid: 6"), "{}", ended.stdout);
    assert_eq!(sums(&replay(&later, &[])), [0, 0, 0, 6]);
    assert_eq!(read(kafka, &topics.deliveries).len(), 33);
}

/// Makes letters of two events each, with a number in each event. Every fifth letter is in parts. Gives the number of events.
fn many(setup: &Setup, bodies: usize) -> usize {
    let first = setup
        .clone()
        .set("ingest.max_events", "1")
        .set("kafka.max_record_bytes", "2000");
    let bodies: Vec<String> = (0..bodies)
        .map(|n| {
            let text = "x".repeat(if n % 5 == 0 { 2500 } else { 10 });
            let element = |k: usize| format!(r#"{{"messageId":"{}","subject":"{text}"}}"#, 2 * n + k);
            webhook("deliveries", "pro", &[&element(0), &element(1)])
        })
        .collect();
    take(&first, &bodies);
    2 * bodies.len()
}

/// Checks that each of this many events is there once.
fn each_once(kafka: &str, topics: &Topics, events: usize) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for record in read(kafka, &topics.deliveries) {
        *seen.entry(record.key_text().unwrap().to_owned()).or_default() += 1;
    }
    let wrong: Vec<_> = (0..events)
        .map(|n| (n, seen.get(&n.to_string()).copied().unwrap_or(0)))
        .filter(|(_, times)| *times != 1)
        .collect();
    assert!(
        wrong.is_empty(),
        "of {events}: {:?}",
        &wrong[..wrong.len().min(20)]
    );
    assert_eq!(seen.len(), events);
}

fn spawn(setup: &Setup, args: &[&str]) -> Process {
    let mut command = setup.command(&[&["dead-letters", "replay"], args].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Process::spawn(&mut command).unwrap()
}

/// The sum of the group's offsets, whether or not they are committed for good.
fn position_of(kafka: &str, setup: &Setup, topics: &Topics) -> impl Fn() -> i64 {
    let consumer: BaseConsumer = topics::client_config(kafka)
        .set("group.id", format!("{}.replay", setup.value("kafka.id_prefix")))
        .set("isolation.level", "read_uncommitted")
        .create()
        .unwrap();
    let topic = topics.dead_letters.clone();
    move || {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, 2);
        wait::until(LIMIT, "the position", || {
            let offsets = consumer
                .committed_offsets(list.clone(), Duration::from_secs(5))
                .ok()?;
            let offsets = offsets
                .elements()
                .into_iter()
                .map(|found| found.offset().to_raw());
            Some(offsets.flatten().filter(|offset| *offset > 0).sum())
        })
    }
}

#[test]
fn killed_again_and_again_it_delivers_each_event_once() {
    let mut random = Random::new("kills of replays");
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = setup(kafka, &topics);
    let events = many(&setup, 2000);
    let position = position_of(kafka, &setup, &topics);
    let (mut kills, mut within) = (0, 0);
    while kills < 12 {
        let before = position();
        let mut process = spawn(&setup, &["--batch", "1"]);
        let mut ended = false;
        if kills % 4 > 0 {
            wait::until(LIMIT, "a transaction", || {
                ended = process.exited().is_some();
                (ended || position() > before).then_some(())
            });
        }
        // The instant is random on purpose: at the beginning, in a transaction, or between two.
        thread::sleep(Duration::from_millis(random.below(if kills % 4 > 0 {
            200
        } else {
            2000
        })));
        if ended || process.exited().is_some() {
            break;
        }
        process.kill();
        kills += 1;
        within += usize::from(position() > before);
    }
    println!("{kills} kills, {within} of them after transactions of that replay");
    assert!(within >= 3, "{within} of {kills} kills were in the middle");
    let ended = replay(&setup, &[]);
    assert_eq!(ended.code, 0);
    each_once(kafka, &topics, events);
    assert_eq!(sums(&replay(&setup, &[])), [0; 4]);
    each_once(kafka, &topics, events);
}

#[test]
fn two_replays_at_a_time_deliver_each_event_once() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = setup(kafka, &topics);
    let events = many(&setup, 600);
    let mut refused = 0;
    for _ in 0..3 {
        let mut both = [spawn(&setup, &["--batch", "1"]), spawn(&setup, &["--batch", "1"])];
        for process in &mut both {
            let code = process.wait(LIMIT).unwrap().code();
            assert!(matches!(code, Some(0 | 69)), "{code:?}");
            refused += usize::from(code == Some(69));
        }
    }
    assert!(refused > 0, "one is shut out");
    assert_eq!(replay(&setup, &[]).code, 0);
    each_once(kafka, &topics, events);
}

/// Appends records of a letter to partition 0 of its topic, with this timestamp.
fn append(
    kafka: &str,
    topic: &str,
    letter: &DeadLetter<'_>,
    parts: std::ops::Range<usize>,
    timestamp_ms: i64,
) {
    let producer: BaseProducer = topics::client_config(kafka).create().unwrap();
    let records = letter.records(2000);
    let all: Vec<_> = records.iter().collect();
    for record in &all[parts] {
        let mut headers = OwnedHeaders::new();
        for (key, value) in record.headers() {
            let value = if key == "cmc-dead-letter-id" {
                b"the-id"
            } else {
                value
            };
            headers = headers.insert(Header {
                key,
                value: Some(value),
            });
        }
        let base = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(0)
            .payload(record.value)
            .headers(headers)
            .timestamp(timestamp_ms);
        producer.send(base).unwrap();
    }
    producer.flush(LIMIT).unwrap();
}

#[test]
fn a_letter_waits_for_its_parts() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = setup(kafka, &topics);
    let body = webhook("deliveries", "pro", &[&message("parts@test", &"p".repeat(2500))]);
    let letter = DeadLetter::new(Reason::TooManyEvents, now_ms() * 1000, body.as_bytes());
    let single = webhook("deliveries", "pro", &[&message("single@test", "s")]);
    let single = DeadLetter::new(Reason::TooManyEvents, now_ms() * 1000, single.as_bytes());
    append(kafka, &topics.dead_letters, &letter, 0..1, now_ms());
    append(kafka, &topics.dead_letters, &single, 0..1, now_ms());
    let ended = replay(&setup, &[]);
    assert_eq!((ended.code, sums(&ended)), (65, [1, 1, 0, 0]));
    assert!(
        ended.stdout.contains("without all their parts: 1"),
        "{}",
        ended.stdout
    );
    append(kafka, &topics.dead_letters, &letter, 1..2, now_ms());
    let ended = replay(&setup, &[]);
    assert_eq!((ended.code, sums(&ended)), (0, [1, 1, 0, 0]));
    assert_eq!(sums(&replay(&setup, &[])), [0; 4]);
    assert_eq!(read(kafka, &topics.deliveries).len(), 2);
}

#[test]
fn a_position_that_kafka_may_have_forgotten_is_asked_about() {
    let kafka = kafka::shared();
    let topics = Topics {
        // Kafka's default retention is shorter than the letter's age.
        dead_letters: topics::create(kafka, "dead-letters", 3, &[("retention.ms", "-1")]),
        ..Topics::create(kafka)
    };
    let setup = setup(kafka, &topics);
    let body = webhook("deliveries", "pro", &[&message("old@test", "s")]);
    let then = now_ms() - 8 * 24 * 3600 * 1000;
    let letter = DeadLetter::new(Reason::TooManyEvents, then * 1000, body.as_bytes());
    append(kafka, &topics.dead_letters, &letter, 0..1, then);
    let ended = replay(&setup, &[]);
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("--from-beginning"), "{}", ended.stderr);
    assert_eq!(replay(&setup, &["--from-beginning"]).code, 0);
    // From now on the group has a position.
    for args in [&[][..], &["--from-beginning"]] {
        let ended = replay(&setup, args);
        assert_eq!((ended.code, sums(&ended)), (0, [0; 4]));
    }
    let records = read(kafka, &topics.deliveries);
    assert_eq!(records.len(), 1);
    assert!(
        records[0].timestamp_ms > then + 1000,
        "retention would take it at once"
    );
}

#[test]
fn what_can_not_be_done_says_why() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let away = Setup::new(NO_KAFKA).topics(&topics);
    for command in ["ls", "replay"] {
        let ended = run(&away, &["dead-letters", command]);
        assert_eq!(ended.code, 69, "{command}");
        assert!(
            ended.stderr.contains("kafka.bootstrap_servers"),
            "{}",
            ended.stderr
        );
    }
    let without = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.delivery", "at-least-once");
    let ended = replay(&without, &[]);
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("transactions"), "{}", ended.stderr);
    let missing = Setup::new(kafka)
        .topics(&topics)
        .set("streams.dead_letters.topic", "no-such-topic");
    let ended = replay(&missing, &[]);
    assert_eq!(ended.code, 69);
    assert!(ended.stderr.contains("no-such-topic"), "{}", ended.stderr);
    let wrong = replay(&away, &["--reason", "too_many_event"]);
    assert_eq!(wrong.code, 64);
    assert!(wrong.stderr.contains("too_many_events"), "{}", wrong.stderr);
}
