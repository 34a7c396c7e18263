//! `spool ls`, `verify`, `export`, `drain` and `repair` on spools that a real bridge left behind.

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    bridge::{NO_KAFKA, Setup, Topics, run},
    cmc,
    kafka::{self, new_dir},
    load::{Load, Shape, Target},
    oracle,
    topics::Reader,
};

const LIMIT: Duration = Duration::from_secs(180);

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_tools_list_verify_export_and_drain_a_spool() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let away = Setup::new(NO_KAFKA).topics(&topics);
    let bridge = away.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(200, LIMIT);
    let posted = load.stop();
    assert_eq!(bridge.client().post("not JSON").status, 400);
    let events: u64 = posted.iter().map(|webhook| u64::from(webhook.events)).sum();
    // While the bridge runs, ls shows what it can and the others refuse.
    let ls = run(&away, &["spool", "ls", "--json"]);
    let listing: Value = serde_json::from_str(&ls.stdout).unwrap();
    assert_eq!((ls.code, &listing["open"]), (0, &Value::Bool(true)));
    for command in ["verify", "export", "drain", "repair"] {
        let ended = run(&away, &["spool", command]);
        assert_eq!(ended.code, 69, "{command}");
        assert!(ended.stderr.contains("another cmc-bridge has this spool open"));
    }
    // A drain that may wait gets the spool when the bridge ends. Kafka is still unreachable, so nothing is delivered.
    let waiting = thread::spawn({
        let away = away.clone();
        move || run(&away, &["spool", "drain", "--wait", "300", "--patience", "2"])
    });
    let briefly = run(&away, &["spool", "drain", "--wait", "1"]);
    assert_eq!(briefly.code, 69, "{}", briefly.stderr);
    assert!(
        briefly.stderr.contains("another cmc-bridge has this spool open"),
        "{}",
        briefly.stderr
    );
    assert!(!waiting.is_finished(), "the drain did not wait");
    bridge.kill();
    let waited = waiting.join().unwrap();
    assert_eq!(waited.code, 69, "{}", waited.stderr);
    assert!(
        waited.stderr.contains("they are still in the spool"),
        "{}",
        waited.stderr
    );

    let listing: Value = serde_json::from_str(&run(&away, &["spool", "ls", "--json"]).stdout).unwrap();
    assert_eq!(listing["open"], false);
    let streams = listing["streams"].as_array().unwrap();
    let waiting: HashMap<&str, u64> = streams
        .iter()
        .map(|s| {
            (
                s["stream"].as_str().unwrap(),
                s["waiting"]["events"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(waiting["deliveries"] + waiting["bounces"], events);
    assert_eq!(waiting["dead_letters"], 1);
    assert!(run(&away, &["spool", "ls"]).stdout.contains("events wait in"));
    let verified = run(&away, &["spool", "verify"]);
    assert_eq!(verified.code, 0);
    assert_eq!(
        verified
            .stdout
            .lines()
            .filter(|line| line.starts_with("ok "))
            .count(),
        3
    );

    let exported = run(&away, &["spool", "export"]);
    assert_eq!(exported.code, 0);
    let batches = lines(&exported.stdout);
    let records = |stream: &str| -> usize {
        let of = batches.iter().filter(|batch| batch["stream"] == stream);
        of.map(|batch| batch["records"].as_array().unwrap().len()).sum()
    };
    assert_eq!((records("deliveries") + records("bounces")) as u64, events);
    let letter = batches
        .iter()
        .find(|batch| batch["stream"] == "dead_letters")
        .unwrap();
    assert_eq!(letter["records"][0]["value"], "not JSON");
    assert_eq!(
        letter["records"][0]["headers"]["cmc-dead-letter-reason"],
        "invalid_json"
    );

    // Kafka is still unreachable: drain says so and exits, and nothing is lost.
    let ended = run(&away, &["spool", "drain", "--patience", "2"]);
    assert_eq!(ended.code, 69, "{}", ended.stderr);
    assert!(ended.stderr.contains("were not delivered"));

    // With another configuration and --dir.
    let elsewhere = Setup::new(kafka).topics(&topics);
    let dir = away.spool_dir().to_str().unwrap();
    let drained = run(&elsewhere, &["spool", "drain", "--dir", dir]);
    assert_eq!(drained.code, 0, "{}", drained.stderr);
    oracle::check(kafka, &topics, &posted);
    let again = run(&elsewhere, &["spool", "drain", "--dir", dir]);
    assert_eq!(again.code, 0);
    assert!(
        again
            .stdout
            .contains("deliveries: 0 events delivered, 0 diverted to the dead-letter topic, 0 left")
    );
    oracle::check(kafka, &topics, &posted);
}

#[test]
fn damage_is_reported_skipped_by_export_and_repaired() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let away = Setup::new(NO_KAFKA).topics(&topics);
    let setup = Setup::new(kafka).topics(&topics).spool(away.spool_dir());
    let bridge = away.start();
    let mut client = bridge.client();
    let ids: Vec<String> = (0..30).map(|n| format!("{n:02}@test")).collect();
    for id in &ids {
        assert_eq!(client.post(cmc::delivery(id)).status, 200);
    }
    client.post(cmc::webhook("bounces", "pro", &[&cmc::message("b@test", "")]));
    bridge.kill();
    let segment = first_segment(&away);
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(7).position(|w| w == b"17@test").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let verified = run(&setup, &["spool", "verify", "--json"]);
    assert_eq!(verified.code, 65);
    let verdicts = lines(&verified.stdout);
    let damage = |stream: &str| verdicts.iter().find(|v| v["stream"] == stream).unwrap()["damage"].clone();
    assert_eq!(damage("bounces").as_array().unwrap().len(), 0);
    let range = &damage("deliveries")[0];
    assert_eq!(
        (&range["from_batch"], &range["to_batch"]),
        (&17.into(), &18.into())
    );
    assert_eq!(range["segment"], 1);

    let exported = run(&setup, &["spool", "export", "--stream", "deliveries"]);
    assert_eq!(exported.code, 65);
    let exported = lines(&exported.stdout);
    assert_eq!(exported.len(), 30);
    assert_eq!(exported[17]["missing"]["from_batch"], 17);
    let keys: Vec<&str> = exported
        .iter()
        .filter_map(|batch| batch["records"][0]["key"].as_str())
        .collect();
    assert_eq!(keys.len(), 29);

    // Drain delivers the batches before the damage and the other streams, and says what to do.
    let drained = run(&setup, &["spool", "drain"]);
    assert_eq!(drained.code, 65, "{}", drained.stderr);
    assert!(drained.stderr.contains("spool repair"), "{}", drained.stderr);
    assert_eq!(Reader::new(kafka, &topics.bounces).read_to_end(LIMIT).len(), 1);
    assert_eq!(delivered(kafka, &topics), ids[..17]);

    let asked = run(&setup, &["spool", "repair"]);
    assert_eq!(asked.code, 65);
    assert!(asked.stderr.contains("nothing was changed"));
    let repaired = run(&setup, &["spool", "repair", "--accept-loss"]);
    assert_eq!(repaired.code, 0);
    assert!(
        repaired.stdout.contains("lost: batch 17, 1 events"),
        "{}",
        repaired.stdout
    );
    assert_eq!(run(&setup, &["spool", "verify"]).code, 0);
    let listing = run(&setup, &["spool", "ls"]).stdout;
    assert!(listing.contains("beside it: deliveries.damaged-"), "{listing}");

    // New and old webhooks arrive once each, except the lost one.
    let bridge = setup.start();
    assert_eq!(bridge.client().post(cmc::delivery("new@test")).status, 200);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let mut wanted = ids.clone();
    wanted.remove(17);
    wanted.push("new@test".into());
    assert_eq!(delivered(kafka, &topics), wanted);
}

/// The sorted keys on the topic of deliveries.
fn delivered(kafka: &str, topics: &Topics) -> Vec<String> {
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let records = reader.read_to_end(LIMIT);
    let mut keys: Vec<String> = records
        .iter()
        .map(|record| record.key_text().unwrap().trim_matches(['<', '>']).to_owned())
        .collect();
    keys.sort();
    keys
}

fn first_segment(setup: &Setup) -> PathBuf {
    setup.spool_dir().join("deliveries/00000000000000000001.segment")
}

/// Such a batch is intact: it is not reported as damage, and a repair keeps it.
#[test]
fn a_batch_of_a_later_version_is_exported_unchanged_and_kept_by_a_repair() {
    let setup = Setup::new(NO_KAFKA);
    let bridge = setup.start();
    for id in ["0@test", "1@test", "2@test"] {
        assert_eq!(bridge.client().post(cmc::delivery(id)).status, 200);
    }
    bridge.kill();
    let verdict = || {
        let verified = run(&setup, &["spool", "verify", "--stream", "deliveries", "--json"]);
        assert_eq!(verified.code, 65);
        let verdict = lines(&verified.stdout).remove(0);
        assert_eq!(verdict["undecodable_batches"], 1);
        (
            verdict["batches"].clone(),
            verdict["damage"].as_array().unwrap().len(),
        )
    };
    let segment = first_segment(&setup);
    let mut bytes = fs::read(&segment).unwrap();
    let batches = with_layout(&mut bytes, 1, 9);
    fs::write(&segment, &bytes).unwrap();
    assert_eq!(verdict(), (3.into(), 0));
    let exported = run(&setup, &["spool", "export", "--stream", "deliveries"]);
    assert_eq!(exported.code, 65);
    let exported = lines(&exported.stdout);
    assert_eq!(exported.len(), 3);
    assert_eq!(exported[1]["missing"]["from_batch"], 1);
    let payload = exported[1]["missing"]["payload"].clone();
    assert!(!payload.is_null());

    let repair = ["spool", "repair", "--accept-loss", "--stream", "deliveries"];
    let repaired = run(&setup, &repair);
    assert_eq!(repaired.code, 65);
    assert!(
        repaired.stderr.contains("nothing to repair"),
        "{}",
        repaired.stderr
    );
    assert!(fs::read(&segment).unwrap() == bytes);

    bytes[batches[0] + 60] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let repaired = run(&setup, &repair);
    assert_eq!(repaired.code, 65);
    assert!(
        repaired.stdout.contains("lost: batch 0, 1 events"),
        "{}",
        repaired.stdout
    );
    assert_eq!(verdict(), (2.into(), 0));
    let exported = lines(&run(&setup, &["spool", "export", "--stream", "deliveries"]).stdout);
    assert_eq!(exported[0]["missing"]["payload"], payload);
    assert_eq!(exported[1]["records"][0]["key"], "<2@test>");
}

/// Changes the layout number of one batch in a segment, with valid checksums. Returns where the batches' records begin.
pub fn with_layout(bytes: &mut [u8], batch: usize, layout: u8) -> Vec<usize> {
    let mut places = Vec::new();
    let payload_len = |bytes: &[u8], at: usize| {
        let len = bytes[at + 12..at + 16].try_into().unwrap();
        u32::from_le_bytes(len) as usize
    };
    // The first record is a copy of the header.
    let mut at = 4096 + (48 + payload_len(bytes, 4096)).next_multiple_of(16);
    while bytes[at..].starts_with(b"CMCb") {
        places.push(at);
        let len = payload_len(bytes, at);
        if places.len() == batch + 1 {
            bytes[at + 48] = layout;
            let crc = crc32c::crc32c(&bytes[at + 48..at + 48 + len]);
            bytes[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
            // The ids of the log and the segment are in the segment's header.
            let covered = [&bytes[16..40], &bytes[at..at + 4], &bytes[at + 8..at + 48]].concat();
            let crc = crc32c::crc32c(&covered);
            bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        }
        at += (48 + len).next_multiple_of(16);
    }
    places
}

/// Only root can start processes as others.
fn as_user(setup: &Setup, user: u32, group: u32) -> Setup {
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    setup
        .clone()
        .through(&["setpriv", &user, &group, "--clear-groups"])
}

#[test]
fn another_user_of_the_same_group_takes_a_spool_over() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can start the bridge as other users");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let spool = dir.path().join("spool");
    let setup = Setup::new(NO_KAFKA).spool(&spool).set("shutdown.grace", "1s");
    let serve = |user, group| {
        let bridge = as_user(&setup, user, group).start();
        assert_eq!(
            bridge
                .client()
                .post(cmc::sample("deliveries-succeeded.json"))
                .status,
            200
        );
        bridge.stop();
    };
    serve(4321, 4300);
    serve(4322, 4300);
    // A spool of an earlier version.
    let modes = |file: u32, directory: u32| {
        for path in [&spool, &spool.join("deliveries")] {
            for entry in fs::read_dir(path).unwrap().flatten() {
                let mode = if entry.path().is_dir() { directory } else { file };
                fs::set_permissions(entry.path(), Permissions::from_mode(mode)).unwrap();
                chown(entry.path(), Some(4321), Some(4300)).unwrap();
            }
        }
    };
    modes(0o644, 0o755);
    let denied = |user, group, cure: &str| {
        let setup = as_user(&setup, user, group);
        let mut running = setup.spawn();
        assert_eq!(running.wait_exit(LIMIT), 74, "{}", running.stderr());
        let check = run(&setup, &["check"]);
        for text in [running.stderr(), check.stdout + &check.stderr] {
            let process = format!("this process is user {user} of group {group}");
            for part in ["belongs to user 4321 and group 4300", &process, cure] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    };
    denied(4322, 4300, "Start this version once as user 4321");
    serve(4321, 4300);
    serve(4322, 4300);
    denied(4323, 4999, "Run it with group 4300");
}

#[test]
fn the_tools_refuse_a_directory_that_is_not_a_spool() {
    let setup = Setup::new(NO_KAFKA);
    for command in ["ls", "verify", "export", "drain", "repair"] {
        let ended = run(&setup, &["spool", command, "--dir", "/no/such/place"]);
        assert_eq!(ended.code, 64, "{command}");
        assert!(
            ended.stderr.contains("/no/such/place"),
            "{command}: {}",
            ended.stderr
        );
    }
    let empty = new_dir("empty");
    // In particular, drain must not say that nothing is left.
    for command in ["ls", "verify", "export", "drain", "repair"] {
        let ended = run(&setup, &["spool", command, "--dir", empty.to_str().unwrap()]);
        assert_eq!(ended.code, 64, "{command}");
        assert!(ended.stderr.contains("holds no stream's log"), "{command}");
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "{command} wrote a file");
    }
}
