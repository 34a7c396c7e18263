//! `tap`, `dead-letters ls` and `replay` on topics that can't be read: they say why, and either end soon or go on. They
//! keep waiting on a topic that is merely quiet.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use rustix::process::Signal;

use crate::{
    bridge::{Setup, Started, Topics, run},
    cluster::Cluster,
    cmc::{message, webhook},
    commands::check_live,
    kafka::{self, Broker},
    process::Ended,
    topics::{self, client_config},
    wait::{self, unique},
};

const LIMIT: Duration = Duration::from_secs(180);
/// The time a command has to find out, plus a margin for a busy machine.
const SOON: Duration = Duration::from_secs(10 + 20);

/// Every command that reads the dead-letter topic.
const READERS: [&[&str]; 4] = [
    &["tap", "--stream", "dead-letters", "--from-beginning"],
    &["dead-letters", "ls"],
    &["dead-letters", "replay", "--dry-run", "--from-beginning"],
    &["dead-letters", "replay", "--from-beginning"],
];

/// Runs each command. It must end soon and print all `parts`.
fn all_end_with(setup: &Setup, parts: &[&str]) {
    for args in READERS {
        let begun = Instant::now();
        let ended = run(setup, args);
        assert!(begun.elapsed() < SOON, "{args:?} took {:?}", begun.elapsed());
        ended.has(69, parts);
    }
}

/// Topics whose dead-letter topic has these settings and holds one letter.
fn with_a_letter(kafka: &str, settings: &[(&str, &str)]) -> (Setup, Topics) {
    let topics = Topics {
        dead_letters: topics::create(kafka, "dead-letters", 1, settings),
        ..Topics::create(kafka)
    };
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.id_prefix", &unique("test"))
        .set("ingest.max_events", "1");
    let bridge = setup.start();
    let event = message("letter@test", &"s".repeat(1000));
    let body = webhook("deliveries", "pro", &[&event, &event]);
    assert_eq!(bridge.client().post(&body).status, 400);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    (setup.unset("ingest.max_events"), topics)
}

#[test]
fn every_codec_is_read() {
    let kafka = kafka::shared();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let (setup, topics) = with_a_letter(kafka, &[("compression.type", codec)]);
        let read = |args: &[&str], parts: &[&str]| run(&setup, args).has(0, parts);
        let tap = [READERS[0], &["--count", "1"]].concat();
        read(&tap, &["reason too_many_events"]);
        read(READERS[1], &["too_many_events: 1"]);
        read(READERS[2], &["would be replayed: 1"]);
        read(READERS[3], &["letters replayed: 1"]);
        let ended = check_live(&setup, 0, &[&format!("READ on topic {}", topics.dead_letters)]);
        let warnings = ended.verdicts("warn").join("\n");
        assert!(!warnings.contains(&topics.dead_letters), "{warnings}");
    }
}

/// The first segment of a topic's only partition.
fn segment(broker: &Broker, topic: &str) -> PathBuf {
    let partition = broker.dir().join("broker-data").join(format!("{topic}-0"));
    partition.join("00000000000000000000.log")
}

/// Changes the first batch of a segment, and its checksum if that must stay valid.
fn change_batch(segment: &PathBuf, right: bool, change: impl FnOnce(&mut [u8])) {
    const CRC: usize = 17;
    const ATTRIBUTES: usize = 21;
    let bytes = fs::read(segment).unwrap();
    let length = u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let mut batch = bytes[..12 + length].to_vec();
    change(&mut batch);
    if right {
        let crc = crc32c::crc32c(&batch[ATTRIBUTES..]).to_be_bytes();
        batch[CRC..CRC + 4].copy_from_slice(&crc);
    }
    let file = File::options().write(true).open(segment).unwrap();
    file.write_all_at(&batch, 0).unwrap();
}

#[test]
fn a_batch_that_cannot_be_decoded_ends_every_reader() {
    let broker = Broker::own();
    let kafka = &broker.bootstrap();
    let (unknown, topics) = with_a_letter(kafka, &[]);
    // The lowest three bits of the attributes are the codec, and none has the number 5.
    change_batch(&segment(&broker, &topics.dead_letters), true, |batch| {
        batch[22] = batch[22] & !7 | 5;
    });
    all_end_with(
        &unknown,
        &[
            "compressed by codec 5",
            &topics.dead_letters,
            "of message at 0",
            "compression.type",
        ],
    );
    let ended = check_live(&unknown, 0, &["compressed by codec 5"]);
    let warnings = ended.verdicts("warn").join("\n");
    assert!(warnings.contains("granted, but"), "{warnings}");

    let (damaged, topics) = with_a_letter(kafka, &[]);
    change_batch(&segment(&broker, &topics.dead_letters), false, |batch| {
        *batch.last_mut().unwrap() ^= 1;
    });
    all_end_with(
        &damaged,
        &[
            "CRC32C",
            &topics.dead_letters,
            "is damaged",
            "kafka-delete-records.sh",
        ],
    );
}

/// A running tap on the dead-letter topic.
fn tap(setup: &Setup) -> Started {
    let mut tap = Started::new(setup, &["tap", "--stream", "dead-letters"], &[]);
    tap.says("Ctrl-C ends it");
    tap
}

fn interrupted(mut tap: Started) -> Ended {
    tap.process.signal(Signal::INT);
    tap.end()
}

#[test]
fn a_repeatedly_failing_fetch_ends_every_reader() {
    let mock = MockCluster::new(1).unwrap();
    for topic in ["cmc.deliveries", "cmc.bounces", "cmc.dead-letters"] {
        mock.create_topic(topic, 1, 1).unwrap();
    }
    let kafka = &mock.bootstrap_servers();
    let setup = Setup::new(kafka);
    let producer: rdkafka::producer::BaseProducer = client_config(kafka).create().unwrap();
    let record = rdkafka::producer::BaseRecord::<[u8], [u8]>::to("cmc.dead-letters").payload(b"x");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    rdkafka::producer::Producer::flush(&producer, LIMIT).unwrap();
    let refused = |error| mock.request_errors(RDKafkaApiKey::Fetch, &[error; 1000]);
    refused(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN);
    for args in &READERS[..3] {
        let begun = Instant::now();
        let ended = run(&setup, args);
        assert!(begun.elapsed() < SOON, "{args:?} took {:?}", begun.elapsed());
        ended.has(
            69,
            &["cmc.dead-letters", "Unknown broker error", "Look at the log"],
        );
    }
}

#[test]
fn a_partition_without_a_leader_is_named() {
    let mut cluster = Cluster::start(Duration::from_secs(4));
    let kafka = &cluster.bootstrap();
    let topic = unique("one-replica");
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let options = AdminOptions::new();
    wait::until(LIMIT, "a topic with one replica", || {
        let made = runtime.block_on(admin.create_topics([&new], &options)).ok()?;
        made.iter().all(Result::is_ok).then_some(())
    });
    let setup = Setup::new(kafka).set("streams.dead_letters.topic", &topic);
    let leader = cluster.leader(&topic, None);
    let mut tap = tap(&setup);
    cluster.kill(leader);
    let missing = "1 of 1 partitions have no leader";
    tap.says(missing);
    for args in &READERS[..3] {
        let begun = Instant::now();
        let ended = run(&setup, args);
        assert!(begun.elapsed() < SOON, "{args:?} took {:?}", begun.elapsed());
        ended.has(69, &[&topic, missing]);
    }
    interrupted(tap).has(0, &[]);
}

#[test]
fn a_tap_on_a_quiet_topic_goes_on_silently() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let tap = tap(&setup);
    // Long enough for the tap to look at the topic twice.
    thread::sleep(Duration::from_secs(12));
    let ended = interrupted(tap);
    ended.has(0, &[]);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}

#[test]
fn a_tap_ends_when_its_topic_is_deleted() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let tap = tap(&setup);
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let deleted = admin.delete_topics(&[&topics.dead_letters], &AdminOptions::new());
    runtime.block_on(deleted).unwrap();
    let begun = Instant::now();
    tap.end().has(69, &["Create topic", &topics.dead_letters]);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_tap_says_that_the_broker_is_away_and_goes_on_when_it_is_back() {
    let mut broker = Broker::own();
    let kafka = &broker.bootstrap();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics).set("ingest.max_events", "1");
    let mut tap = Started::new(&setup, &["tap", "--stream", "dead-letters", "-n", "1"], &[]);
    tap.says("Ctrl-C ends it");
    broker.kill();
    tap.says("Reading continues");
    assert!(
        tap.text("stderr").contains("Connection refused"),
        "{}",
        tap.text("stderr")
    );
    broker.start_again();
    tap.says("can be read again");
    let bridge = setup.start();
    assert_eq!(bridge.client().post("[]").status, 400);
    tap.end().has(0, &["body_not_object"]);
    bridge.stop();
}
