//! Bit rot in the spools of bridges killed under load, and logs that can't be opened.

use std::{fs, path::PathBuf, thread, time::Duration};

use serde_json::Value;

use crate::{
    bridge::{NO_KAFKA, Setup, Topics, run},
    cmc,
    http::Client,
    kafka,
    load::{Load, Shape, Target},
    oracle,
    topics::Reader,
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(180);
const HEADER: u64 = 4096;
/// The offsets of the copies in the checkpoint's two slots.
const COPIES: [u64; 2] = [0, 4096];

/// One stream's log, left behind by a bridge.
struct Log(PathBuf);

impl Log {
    fn flip(&self, name: &str, at: u64, random: &mut Random) {
        let path = self.0.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at as usize] ^= 1 << random.below(8);
        fs::write(path, bytes).unwrap();
    }

    fn segments(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".segment"))
            .collect();
        names.sort();
        names
    }

    /// The offset of the newest position in the checkpoint.
    fn newest_slot(&self) -> u64 {
        let bytes = fs::read(self.0.join("checkpoint")).unwrap();
        let generation = |at: u64| u64::from_le_bytes(bytes[at as usize + 16..][..8].try_into().unwrap());
        if generation(512) > generation(0) { 512 } else { 0 }
    }

    fn rot_newest_header(&self, random: &mut Random) {
        let segments = self.segments();
        self.flip(segments.last().unwrap(), random.below(HEADER), random);
    }

    fn rot_newest_position(&self, copies: &[u64], random: &mut Random) {
        let slot = self.newest_slot();
        for copy in copies {
            self.flip("checkpoint", slot + copy + random.below(40), random);
        }
    }
}

/// After a kill, Kafka is ahead of the checkpoint, and the history decides which batches are delivered again.
#[test]
fn rotten_headers_positions_and_manifests_cost_nothing() {
    type Harm = fn(&Log, &mut Random);
    let harms: [(&str, Harm); 7] = [
        ("the newest header", Log::rot_newest_header),
        ("all headers", |log, random| {
            for name in log.segments() {
                log.flip(&name, random.below(HEADER), random);
            }
        }),
        ("the newest position", |log, random| {
            log.rot_newest_position(&COPIES[..1], random)
        }),
        ("its copy", |log, random| {
            log.rot_newest_position(&COPIES[1..], random)
        }),
        ("both", |log, random| log.rot_newest_position(&COPIES, random)),
        ("the manifest", |log, random| {
            log.flip("manifest", random.below(60), random)
        }),
        ("header and position", |log, random| {
            log.rot_newest_header(random);
            log.rot_newest_position(&COPIES[..1], random);
        }),
    ];
    let mut random = Random::new("rot");
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    // Small segments, so that some are trimmed between two positions.
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("spool.segment_bytes", "64KiB");
    let target = Target::default();
    let load = Load::start(&target, Shape::default());
    for (what, harm) in harms {
        for repaired in [false, true] {
            println!("{what}, repaired: {repaired}");
            let bridge = setup.start();
            target.set(bridge.ingest);
            load.wait_acknowledged(50, LIMIT);
            bridge.wait_for(LIMIT, "deliveries", |scrape| {
                scrape.sum("cmc_bridge_delivered_events_total", &[]) > 0.0
            });
            // At a random time between two stores of the checkpoint.
            thread::sleep(Duration::from_millis(random.below(1000)));
            bridge.kill();
            for stream in ["deliveries", "bounces"] {
                harm(&Log(setup.spool_dir().join(stream)), &mut random);
            }
            let verified = run(&setup, &["spool", "verify"]);
            for line in verified.stdout.lines().filter(|line| line.starts_with("  ")) {
                assert!(line.contains("no batch is lost"), "{what}: {line}");
            }
            assert!(
                !verified.stderr.contains("can't be read"),
                "{what}: {}",
                verified.stderr
            );
            if repaired {
                let repaired = run(&setup, &["spool", "repair", "--accept-loss"]);
                assert_eq!(repaired.code, 0);
                for word in ["lost:", "possibly lost"] {
                    assert!(!repaired.stdout.contains(word), "{what}");
                }
            }
        }
    }
    let bridge = setup.start();
    target.set(bridge.ingest);
    load.wait_acknowledged(50, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    let said = bridge.running.stderr();
    assert!(!said.contains("another life"), "{said}");
    oracle::check(kafka, &topics, &posted);
    bridge.stop();
}

#[test]
fn a_log_that_cannot_be_opened_stops_no_other_stream() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let away = setup.clone().set("kafka.bootstrap_servers", NO_KAFKA);
    let post = |client: &mut Client, stream: &str, id: &str| {
        client
            .post(cmc::webhook(stream, "pro", &[&cmc::message(id, "")]))
            .status
    };
    let bridge = away.start();
    for stream in ["deliveries", "bounces"] {
        assert_eq!(post(&mut bridge.client(), stream, "first@test"), 200);
    }
    bridge.kill();
    let manifests = ["manifest", "manifest.copy"].map(|name| setup.spool_dir().join("bounces").join(name));
    let whole = fs::read(&manifests[0]).unwrap();
    for path in &manifests {
        fs::write(path, &whole[..50]).unwrap();
    }

    let bridge = setup.start();
    let mut client = bridge.client();
    assert_eq!(post(&mut client, "deliveries", "second@test"), 200);
    assert_eq!(post(&mut client, "bounces", "refused@test"), 503);
    assert_eq!(bridge.probe("/readyz"), 200);
    let blocked = [("stream", "bounces"), ("reason", "damage")];
    bridge.wait_for(LIMIT, "a blocked lane and two deliveries", |scrape| {
        scrape.get("cmc_bridge_lane_blocked", &blocked) == 1.0
            && scrape.stream("cmc_bridge_delivered_events_total", "deliveries") == 2.0
    });
    let status: Value = serde_json::from_str(Client::new(bridge.admin).get("/status.json").text()).unwrap();
    let streams = status["streams"].as_array().unwrap();
    let bounces = streams
        .iter()
        .find(|stream| stream["stream"] == "bounces")
        .unwrap();
    assert_eq!(
        (&bounces["log"], &status["state"]),
        (&"not_open".into(), &"impaired".into())
    );
    let message = bounces["lane"]["message"].as_str().unwrap();
    assert!(message.contains("the manifest is damaged"), "{message}");
    let said = bridge.running.stderr();
    assert!(said.contains("the log can't be opened"), "{said}");

    // Once an operator has restored it, delivery continues without a restart.
    fs::write(&manifests[0], &whole).unwrap();
    bridge.wait_for(LIMIT, "the bounces", |scrape| {
        scrape.get("cmc_bridge_lane_blocked", &blocked) == 0.0
            && scrape.stream("cmc_bridge_delivered_events_total", "bounces") == 1.0
    });
    assert_eq!(post(&mut bridge.client(), "bounces", "last@test"), 200);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    for topic in [&topics.deliveries, &topics.bounces] {
        assert_eq!(Reader::new(kafka, topic).read_to_end(LIMIT).len(), 2);
    }
}

#[test]
fn a_drain_delivers_the_other_streams_when_one_log_cannot_be_opened() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let away = Setup::new(NO_KAFKA).topics(&topics);
    let bridge = away.start();
    for stream in ["deliveries", "bounces"] {
        let webhook = cmc::webhook(stream, "pro", &[&cmc::message("a@test", "")]);
        assert_eq!(bridge.client().post(webhook).status, 200);
    }
    bridge.kill();
    for name in ["manifest", "manifest.copy"] {
        fs::write(away.spool_dir().join("deliveries").join(name), "?").unwrap();
    }
    let drained = run(&away.set("kafka.bootstrap_servers", kafka), &["spool", "drain"]);
    drained.has(74, &["deliveries", "the manifest is damaged"]);
    assert_eq!(Reader::new(kafka, &topics.bounces).read_to_end(LIMIT).len(), 1);
}

#[test]
fn the_bridge_does_not_start_without_any_event_log() {
    let setup = Setup::new(NO_KAFKA);
    setup.start().stop();
    for stream in ["deliveries", "bounces"] {
        for name in ["manifest", "manifest.copy"] {
            fs::write(setup.spool_dir().join(stream).join(name), "?").unwrap();
        }
    }
    let mut refused = setup.spawn();
    assert_eq!(refused.wait_exit(LIMIT), 74);
    assert!(
        refused.stderr().contains("the manifest is damaged"),
        "{}",
        refused.stderr()
    );
}
