//! Received mail, from the webhook to the topic: whole and once across kills, refused as a whole, replayed; and the parts of a
//! multipart body as another parser finds them.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    bridge::{Setup, Topics, run},
    http::{Client, JSON},
    kafka::{self, new_dir},
    topics::{self, Reader, Record},
    wait::Random,
};

const LIMIT: Duration = Duration::from_secs(240);
const PATH: &str = "/webhooks/inbound";
const BOUNDARY: &str = "----=_Part_9_1";
const TYPE: (&str, &str) = ("content-type", "multipart/form-data; boundary=\"----=_Part_9_1\"");

/// File names in three encodings, and what they mean.
const NAMES: [(&str, &str); 5] = [
    ("filename=\"plain.bin\"", "plain.bin"),
    ("filename=\"見積書.pdf\"", "見積書.pdf"),
    ("filename=\"=?UTF-8?B?6KaL56mNLmNzdg==?=\"", "見積.csv"),
    ("filename=\"=?ISO-2022-JP?B?GyRCOCtAURsoQg==?=\"", "見積"),
    ("filename*=UTF-8''%E8%A6%8B%E7%A9%8D.csv", "見積.csv"),
];

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn bytes(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.below(256) as u8).collect()
}

/// A multipart body with these fields and files, each with its own disposition.
fn multipart(fields: &[(&str, &[u8])], files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let named = fields
        .iter()
        .map(|(name, value)| (format!("name=\"{name}\""), *value));
    let files = files
        .iter()
        .map(|(disposition, content)| (disposition.clone(), content.as_slice()));
    let mut body = Vec::new();
    for (disposition, content) in named.chain(files) {
        body.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// A mail and what must come of it: name and hash of each attachment.
struct Sent {
    body: Vec<u8>,
    content_type: (&'static str, &'static str),
    attachments: Vec<(String, String)>,
}

fn key(number: u64) -> String {
    format!("<{number}@inbound.test>")
}

fn mail(number: u64, random: &mut Random) -> Sent {
    let headers = format!(r#"[{{"name":"Message-ID","value":"\u003C{number}@inbound.test\u003E"}}]"#);
    let sizes: Vec<usize> = match number % 6 {
        0 => {
            let body = format!(
                r#"{{"server_composition":"pro","headers":{headers},"subject":"件名","text":"{number}"}}"#
            );
            return Sent {
                body: body.into_bytes(),
                content_type: JSON,
                attachments: Vec::new(),
            };
        }
        1 => Vec::new(),
        2 => vec![0, 1, 1000],
        3 => vec![2_500_000],
        4 => (0..30).map(|_| random.below(5000) as usize).collect(),
        _ => vec![1_200_000, 10],
    };
    let mut attachments = Vec::new();
    let mut files = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let (disposition, name) = NAMES[(number as usize + index) % NAMES.len()];
        let content = bytes(random, *size);
        attachments.push((name.to_owned(), sha256(&content)));
        files.push((
            format!("name=\"attachment{}\"; {disposition}", index + 1),
            content,
        ));
    }
    let count = files.len().to_string();
    let fields: [(&str, &[u8]); 4] = [
        ("server_composition", b"pro"),
        ("headers", headers.as_bytes()),
        ("text", "本文\r\n".as_bytes()),
        ("attachments", count.as_bytes()),
    ];
    Sent {
        body: multipart(&fields, &files),
        content_type: TYPE,
        attachments,
    }
}

/// The attachments of mails, by name and hash, by the mails' keys.
type Groups = BTreeMap<String, Vec<(String, String)>>;

/// The groups on a topic by key. Panics if one is not whole, or there twice.
fn groups(records: &[Record]) -> Groups {
    let mut by_key: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_key
            .entry(record.key_text().unwrap().to_owned())
            .or_default()
            .push(record);
    }
    let mut groups = BTreeMap::new();
    for (key, records) in by_key {
        let mail: Value = serde_json::from_slice(&records[0].value).unwrap();
        assert_eq!(
            records[0].header("ce_type"),
            Some("jp.smtps.cmc.inbound"),
            "{key}"
        );
        let mut parts = records[1..].iter();
        let mut found = Vec::new();
        for attachment in mail["attachments"].as_array().unwrap() {
            let count = attachment["parts"].as_u64().unwrap();
            let mut content = Vec::new();
            for number in 1..=count {
                let part = parts.next().unwrap_or_else(|| panic!("{key} lacks a part"));
                assert_eq!(
                    part.header("cmc-attachment-part"),
                    Some(&*number.to_string()),
                    "{key}"
                );
                assert_eq!(part.header("cmc-mail-id"), records[0].header("ce_id"), "{key}");
                assert_eq!(part.partition, records[0].partition);
                content.extend_from_slice(&part.value);
            }
            assert_eq!(sha256(&content), attachment["sha256"], "{key}");
            let name = attachment["name"].as_str().unwrap_or_default();
            found.push((name.to_owned(), sha256(&content)));
        }
        assert!(
            parts.next().is_none(),
            "{key} has more records than its mail says"
        );
        groups.insert(key, found);
    }
    groups
}

fn setup(kafka: &str, topic: &str) -> Setup {
    Setup::new(kafka)
        .topics(&Topics::create(kafka))
        .set("streams.inbound.enabled", "true")
        .set("streams.inbound.topic", topic)
}

#[test]
fn mails_are_whole_and_once_across_kills() {
    let kills: u64 = std::env::var("CMC_BRIDGE_TEST_KILLS").map_or(6, |text| text.parse().unwrap());
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "inbound", 3, &[]);
    let setup = setup(kafka, &topic);
    let target: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
    let stopped = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let acknowledged: Arc<Mutex<Groups>> = Arc::default();
    let senders: Vec<_> = (0..2)
        .map(|sender| {
            let (target, stopped, next) = (Arc::clone(&target), Arc::clone(&stopped), Arc::clone(&next));
            let acknowledged = Arc::clone(&acknowledged);
            thread::spawn(move || {
                let mut random = Random::from_seed(sender);
                while !stopped.load(Ordering::Relaxed) {
                    let Some(address) = *target.lock() else {
                        thread::sleep(Duration::from_millis(20));
                        continue;
                    };
                    // A mail that is not acknowledged is not sent again: it may be there, once.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let sent = mail(number, &mut random);
                    let answer = Client::new(address).request("POST", PATH, &[sent.content_type], &sent.body);
                    match answer {
                        Ok(answer) if answer.status == 200 => {
                            acknowledged.lock().insert(key(number), sent.attachments);
                        }
                        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
                        Err(_) => thread::sleep(Duration::from_millis(20)),
                    }
                }
            })
        })
        .collect();
    let mut random = Random::new("inbound kills");
    let wait_for_more = |more: usize| {
        let before = acknowledged.lock().len();
        crate::wait::until(LIMIT, "acknowledged mails", || {
            (acknowledged.lock().len() >= before + more).then_some(())
        });
    };
    for _ in 0..kills {
        let bridge = setup.start();
        *target.lock() = Some(bridge.ingest);
        wait_for_more(3);
        thread::sleep(Duration::from_millis(random.below(1500)));
        bridge.kill();
    }
    let bridge = setup.start();
    *target.lock() = Some(bridge.ingest);
    wait_for_more(12);
    stopped.store(true, Ordering::Relaxed);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let scrape = bridge.wait_drained(LIMIT);
    assert!(
        scrape.sum(
            "cmc_bridge_events_total",
            &[("stream", "inbound"), ("status", "mail")]
        ) >= 12.0
    );
    let mut reader = Reader::new(kafka, &topic);
    let found = groups(reader.read_to_end(LIMIT));
    for (key, attachments) in acknowledged.lock().iter() {
        assert_eq!(found.get(key), Some(attachments), "{key}");
    }
    bridge.stop();
}

#[test]
fn a_refused_part_takes_its_mail_along_and_a_replay_brings_all_of_it() {
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "inbound", 1, &[("max.message.bytes", "500000")]);
    let setup = setup(kafka, &topic);
    let bridge = setup.start();
    let mut random = Random::new("inbound refusals");
    let mut expected = BTreeMap::new();
    for number in [2, 3, 8] {
        let sent = mail(number, &mut random);
        let answer = bridge
            .client()
            .request("POST", PATH, &[sent.content_type], &sent.body)
            .unwrap();
        assert_eq!(answer.status, 200);
        expected.insert(key(number), sent.attachments);
    }
    // A body that can't be understood.
    let broken = bridge.client().request("POST", PATH, &[TYPE], b"--x").unwrap();
    assert_eq!(broken.status, 400);
    let scrape = bridge.wait_drained(LIMIT);
    // The mail and its three parts, although only the parts are too large.
    assert_eq!(scrape.stream("cmc_bridge_diverted_events_total", "inbound"), 4.0);
    let mut reader = Reader::new(kafka, &topic);
    let found = groups(reader.read_to_end(LIMIT));
    assert_eq!(found.keys().collect::<Vec<_>>(), [&key(2), &key(8)]);
    topics::configure(kafka, &topic, "max.message.bytes", "2000000");
    let replayed = run(&setup, &["dead-letters", "replay"]);
    let printed = format!("{}{}", replayed.stdout, replayed.stderr);
    let mut reader = Reader::new(kafka, &topic);
    assert_eq!(groups(reader.read_to_end(LIMIT)), expected, "{printed}");
    bridge.stop();
}

/// Lists the files of a multipart body as Python's own parser finds them: decoded name, size, SHA-256.
const PYTHON: &str = r#"
import email, email.header, email.message, hashlib, json, sys
for path in sys.argv[1:]:
    kind = b'Content-Type: multipart/form-data; boundary="----=_Part_9_1"\r\n\r\n'
    files = []
    for part in email.message_from_bytes(kind + open(path, "rb").read()).get_payload():
        # The parser keeps raw UTF-8 as surrogates, and get_filename would replace them.
        raw = dict(part.raw_items())["Content-Disposition"].encode("utf-8", "surrogateescape")
        head = email.message.Message()
        head["Content-Disposition"] = raw.decode("utf-8")
        name = head.get_filename()
        if name is None:
            continue
        if "=?" in name:
            name = str(email.header.make_header(email.header.decode_header(name)))
        content = part.get_payload(decode=True)
        files.append([name, len(content), hashlib.sha256(content).hexdigest()])
    print(json.dumps(files))
"#;

#[test]
fn pythons_parser_finds_the_same_files() {
    if Command::new("python3").arg("--version").output().is_err() {
        // `.ci/consumers` runs this test too, and needs Python.
        println!("skipped: there is no python3");
        return;
    }
    let setup = Setup::new(crate::bridge::NO_KAFKA).set("streams.inbound.enabled", "true");
    let mut random = Random::new("multipart");
    let dir = new_dir("multipart");
    let mut files = Vec::new();
    for number in 0..25u64 {
        let files_of_body: Vec<(String, Vec<u8>)> = (0..random.below(6) as usize)
            .map(|index| {
                let (disposition, _) = NAMES[random.below(NAMES.len() as u64) as usize];
                let mut content = Vec::new();
                for _ in 0..random.below(6) {
                    match random.below(6) {
                        0 => content.extend_from_slice(b"\r\n"),
                        1 => content.extend_from_slice(format!("x--{BOUNDARY}\r\n").as_bytes()),
                        2 => content.extend_from_slice(format!("\r\n--{BOUNDARY}x\r\n").as_bytes()),
                        3 => content.extend_from_slice(b"--\r\n\r\n"),
                        4 => content.extend_from_slice(b"\n\r"),
                        _ => content.extend(bytes(&mut random, 40)),
                    }
                }
                (
                    format!("name=\"attachment{}\"; {disposition}", index + 1),
                    content,
                )
            })
            .collect();
        let fields: [(&str, &[u8]); 2] = [("server_composition", b"pro"), ("subject", "件名".as_bytes())];
        let path = dir.join(number.to_string());
        fs::write(&path, multipart(&fields, &files_of_body)).unwrap();
        files.push(path);
    }
    let python = Command::new("python3")
        .arg("-c")
        .arg(PYTHON)
        .args(&files)
        .output()
        .unwrap();
    assert!(
        python.status.success(),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
    let theirs: Vec<Value> = String::from_utf8(python.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (path, theirs) in files.iter().zip(theirs) {
        let ended = run(
            &setup,
            &[
                "explain",
                "--json",
                "--path",
                PATH,
                "--content-type",
                TYPE.1,
                path.to_str().unwrap(),
            ],
        );
        assert_eq!(ended.code, 0, "{}: {}", path.display(), ended.stderr);
        let first: Value = serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
        let ours: Vec<Value> = first["value"]["attachments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| {
                Value::from(vec![
                    file["name"].clone(),
                    file["size"].clone(),
                    file["sha256"].clone(),
                ])
            })
            .collect();
        assert_eq!(Value::from(ours), theirs, "{}", path.display());
    }
}
