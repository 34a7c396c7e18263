//! The timestamp of a record is the time of sending: events that waited long outlive the topic's retention, and events that
//! were received by a wrong clock are delivered at once.

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use cmc_bridge::{
    batch::Batch,
    books::Books,
    cmc::{BodyEncoding, Request, open, split},
    config::{self, Config},
    spool::{Log, LogMetrics, LogOptions, storage::FileSystem},
    stream::{Stream, Tally},
};
use jiff::{SignedDuration, Timestamp};
use prometheus::{Histogram, HistogramOpts};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};
use tokio::sync::Semaphore;

use crate::{
    bridge::{Setup, Topics},
    cmc::{message, webhook},
    kafka::{self, Broker},
    topics::{self, Reader, Record, client_config},
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

fn config() -> Config {
    let all = [
        ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
        ("STREAMS__BLOCKS__ENABLED", "true"),
    ];
    let variables = all.map(|(name, value)| (format!("CMC_BRIDGE__{name}"), value.to_owned()));
    config::load(&[], variables.into_iter()).unwrap().config
}

/// Puts webhooks into a spool, like a bridge that receives them at this time.
fn receive_at(setup: &Setup, received: Timestamp, bodies: &[String]) {
    let config = config();
    let rules = config.rules();
    let mut batches: Vec<(Stream, Batch, Tally)> = Vec::new();
    for body in bodies {
        let request = Request {
            received_at_micros: received.as_microsecond(),
            path: "/webhooks/events",
            content_type: Some("application/json"),
            body: body.as_bytes(),
        };
        let split = split(&open(request.body, BodyEncoding::Json, &rules), &rules, &request);
        let letters = split.dead_letters;
        batches.extend(letters.map(|(batch, tally)| (Stream::DeadLetters, batch, tally)));
        batches.extend(split.events);
    }
    let histogram = || Histogram::with_opts(HistogramOpts::new("h", "h")).unwrap();
    for stream in Stream::ALL {
        let options = LogOptions {
            dir: setup.spool_dir().join(stream.name()),
            name: stream.name(),
            max_bytes: config.spool.max_bytes,
            segment_bytes: config.spool.segment_bytes,
            durability: config.spool.durability,
        };
        fs::create_dir_all(&options.dir).unwrap();
        let metrics = LogMetrics {
            sync_seconds: histogram(),
            commit_webhooks: histogram(),
        };
        let (log, _backlog) = Log::open(
            Arc::new(FileSystem),
            &options,
            Arc::new(Books::default()),
            metrics,
            |error| panic!("{error}"),
        )
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let permits = Arc::new(Semaphore::new(batches.len()));
        runtime.block_on(async {
            for (_, batch, tally) in batches.extract_if(.., |(of, ..)| *of == stream) {
                let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
                let deadline = Instant::now() + LIMIT;
                log.appender()
                    .append(batch, tally, permit, deadline)
                    .await
                    .unwrap();
            }
        });
    }
}

/// The time in whole microseconds, as the bridge counts it.
fn hours_from_now(hours: i64) -> Timestamp {
    let now = Timestamp::now() + SignedDuration::from_hours(hours);
    Timestamp::from_microsecond(now.as_microsecond()).unwrap()
}

/// Checks that the records were received at one time and sent since the other.
fn check(records: &[Record], header: &str, received: Timestamp, since: Timestamp) {
    let sent = since.as_millisecond()..=Timestamp::now().as_millisecond();
    for record in records {
        let of_record: Timestamp = record.header(header).unwrap().parse().unwrap();
        assert_eq!(of_record, received);
        assert!(
            sent.contains(&record.timestamp_ms),
            "{} {sent:?}",
            record.timestamp_ms
        );
    }
}

/// Waits until the broker has deleted what is older than the retention, which a record of this test shows.
fn wait_for_retention(kafka: &str, settings: &[(&str, &str)], old: Timestamp) {
    let topic = topics::create(kafka, "old", 1, settings);
    let producer: BaseProducer = client_config(kafka).create().unwrap();
    let record = BaseRecord::<[u8], [u8]>::to(&topic)
        .payload(b"old")
        .timestamp(old.as_millisecond());
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(LIMIT).unwrap();
    let consumer: BaseConsumer = client_config(kafka).create().unwrap();
    wait::until(LIMIT, "the broker to delete an old record", || {
        let bounds = consumer.fetch_watermarks(&topic, 0, Duration::from_secs(5));
        bounds.is_ok_and(|bounds| bounds == (1, 1)).then_some(())
    });
}

#[test]
fn a_backlog_older_than_the_retention_is_read_whole() {
    let broker = Broker::own_with("log.retention.check.interval.ms=500\nlog.initial.task.delay.ms=500\n");
    let kafka = &broker.bootstrap();
    let short = [
        ("retention.ms", "86400000"),
        ("segment.ms", "1000"),
        ("segment.bytes", "1048576"),
    ];
    let topics = Topics {
        deliveries: topics::create(kafka, "deliveries", 3, &short),
        // The topic refuses records without a key.
        bounces: topics::create(kafka, "bounces", 1, &[("cleanup.policy", "compact")]),
        dead_letters: topics::create(kafka, "dead-letters", 1, &short),
        ..Topics::create(kafka)
    };
    // Uncompressed, so that segments fill.
    let setup = Setup::new(kafka)
        .topics(&topics)
        .property("compression.type", "none");
    let received = hours_from_now(-10 * 24);
    let events: Vec<String> = (0..3000)
        .map(|n| message(&format!("{n}@old"), &"s".repeat(1000)))
        .collect();
    let mut bodies: Vec<String> = events
        .chunks(100)
        .map(|events| {
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            webhook("deliveries", "pro", &events)
        })
        .collect();
    bodies.push(webhook("bounces", "pro", &[r#"{"status":"1"}"#]));
    bodies.push("[]".to_owned());
    receive_at(&setup, received, &bodies);

    let since = Timestamp::now();
    let bridge = setup.start();
    bridge.wait_drained(LIMIT);
    wait_for_retention(kafka, &short, received);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let records = reader.read_to_end(LIMIT);
    let keys: BTreeSet<&str> = records.iter().filter_map(Record::key_text).collect();
    assert_eq!((records.len(), keys.len()), (events.len(), events.len()));
    check(records, "cmc-received-at", received, since);
    let mut reader = Reader::new(kafka, &topics.dead_letters);
    let letters = reader.read_to_end(LIMIT);
    let reasons: BTreeSet<&str> = letters
        .iter()
        .filter_map(|letter| letter.header("cmc-dead-letter-reason"))
        .collect();
    assert_eq!(reasons, BTreeSet::from(["body_not_object", "refused_invalid"]));
    check(letters, "cmc-dead-letter-received-at", received, since);
    bridge.stop();
}

#[test]
fn what_was_received_by_a_clock_far_ahead_is_delivered_at_once() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let received = hours_from_now(30 * 24);
    let bodies: Vec<String> = (0..20)
        .map(|n| webhook("deliveries", "pro", &[&message(&format!("{n}@ahead"), "s")]))
        .chain(["[]".to_owned()])
        .collect();
    receive_at(&setup, received, &bodies);
    let since = Timestamp::now();
    let bridge = setup.start();
    let scrape = bridge.wait_drained(Duration::from_secs(60));
    assert_eq!(scrape.sum("cmc_bridge_diverted_events_total", &[]), 0.0);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let records = reader.read_to_end(LIMIT);
    assert_eq!(records.len(), 20);
    check(records, "cmc-received-at", received, since);
    let mut reader = Reader::new(kafka, &topics.dead_letters);
    let letters = reader.read_to_end(LIMIT);
    assert_eq!(letters.len(), 1);
    check(letters, "cmc-dead-letter-received-at", received, since);
    bridge.stop();
}
