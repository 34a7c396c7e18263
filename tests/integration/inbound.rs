//! Received mail, from the webhook to the topic: whole and once across kills, refused as a whole, replayed; and the parts of a
//! multipart body as another parser finds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    bridge::{Setup, Topics, run},
    cmc::delivery,
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
    let block: Vec<u8> = (0..length.min(1 << 16))
        .map(|_| random.below(256) as u8)
        .collect();
    // Each further block differs from the one before.
    let blocks =
        (0..length.div_ceil(1 << 16)).flat_map(|n| block.iter().map(move |byte| byte.wrapping_add(n as u8)));
    blocks.take(length).collect()
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
        3 if number % 12 == 3 => vec![2_500_000],
        // As large as mails of this kind become.
        3 => vec![25_000_000],
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
    wait_for_more(24);
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
    let acknowledged = acknowledged.lock();
    for (key, attachments) in acknowledged.iter() {
        assert_eq!(found.get(key), Some(attachments), "{key}");
    }
    // Each kind of mail was among them, the one of 25 MB and the one with 30 attachments too.
    let numbers = acknowledged
        .keys()
        .filter_map(|key| key[1..].split('@').next()?.parse::<u64>().ok());
    let kinds: BTreeSet<u64> = numbers.map(|number| number % 12).collect();
    assert!(
        kinds.contains(&9) && (kinds.contains(&4) || kinds.contains(&10)),
        "{kinds:?}"
    );
    bridge.stop();
}

/// A mail with an attachment of this many bytes.
fn large_mail(number: u64, size: usize) -> Vec<u8> {
    let headers = format!(r#"[{{"name":"Message-ID","value":"{}"}}]"#, key(number));
    let content = bytes(&mut Random::from_seed(number), size);
    multipart(
        &[("server_composition", b"pro"), ("headers", headers.as_bytes())],
        &[("name=\"attachment1\"; filename=\"large.bin\"".to_owned(), content)],
    )
}

/// Posts a mail until it is taken; returns how often it was refused for lack of room.
fn post_until_taken(address: SocketAddr, body: &[u8]) -> usize {
    let mut refusals = 0;
    loop {
        match Client::new(address).request("POST", PATH, &[TYPE], body) {
            Ok(answer) if answer.status == 200 => return refusals,
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
            // The answer to a body that is not read may be lost.
            Err(_) => {}
        }
        refusals += 1;
        thread::sleep(Duration::from_millis(100));
    }
}

/// The memory that docs/operations.md says to allow for ten mails of 25 MB at once, on two processors: an idle bridge, the budget
/// for bodies and batches, and what is calculated beyond it.
const MOST_RESIDENT: u64 = (80 << 20) + (256 << 20) + (192 << 20);

#[test]
fn ten_large_mails_at_once_stay_within_the_documented_memory() {
    const MAILS: u64 = 10;
    const SIZE: usize = 25_000_000;
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "inbound", 3, &[]);
    let bridge = setup(kafka, &topic).start();
    let bodies: Vec<Vec<u8>> = (0..MAILS).map(|number| large_mail(number, SIZE)).collect();
    let idle = bridge.memory("VmHWM:");
    let together = Barrier::new(bodies.len());
    let refusals: usize = thread::scope(|scope| {
        let posting: Vec<_> = bodies
            .iter()
            .map(|body| {
                scope.spawn(|| {
                    together.wait();
                    post_until_taken(bridge.ingest, body)
                })
            })
            .collect();
        posting.into_iter().map(|posting| posting.join().unwrap()).sum()
    });
    bridge.wait_drained(LIMIT);
    let most = bridge.memory("VmHWM:");
    println!(
        "{} MiB, idle {} MiB; {refusals} answers 503",
        most >> 20,
        idle >> 20
    );
    assert!(most < MOST_RESIDENT, "{} MiB", most >> 20);
    let mut reader = Reader::new(kafka, &topic);
    assert_eq!(groups(reader.read_to_end(LIMIT)).len() as u64, MAILS);
    bridge.stop();
}

/// Posts deliveries one after another until `ended`; returns how long each answer took.
fn latencies(address: SocketAddr, mut ended: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let mut client = Client::new(address);
    let mut times = Vec::new();
    while !ended(times.len()) {
        let begun = Instant::now();
        assert_eq!(client.post(delivery("latency@test")).status, 200);
        times.push(begun.elapsed());
        thread::sleep(Duration::from_millis(5));
    }
    times
}

/// Measures the latency of deliveries while mails of 25 MB come in one after another, and between them. The figure depends on what
/// else the machine does, so only a gross slowdown fails.
#[test]
fn deliveries_keep_their_latency_while_large_mails_come() {
    const ROUNDS: u64 = 3;
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "inbound", 3, &[]);
    let bridge = setup(kafka, &topic).start();
    let bodies: Vec<Vec<u8>> = (0..4).map(|number| large_mail(number, 25_000_000)).collect();
    let address = bridge.ingest;
    let (mut quiet, mut busy) = (latencies(address, |count| count == 150), Vec::new());
    // The nice values of the threads that understand the mails; just after its start, one still has the usual one.
    let mut understanding = BTreeSet::new();
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            let posting = scope.spawn(|| {
                for body in &bodies {
                    post_until_taken(address, body);
                }
            });
            busy.extend(latencies(address, |_| {
                let threads = bridge.nice_values().into_iter();
                understanding.extend(threads.filter(|(name, _)| name == "mail").map(|(_, nice)| nice));
                posting.is_finished()
            }));
        });
        bridge.wait_drained(LIMIT);
        quiet.extend(latencies(address, |count| count == 150));
    }
    let p50 = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (count, quiet, busy) = (busy.len(), p50(&mut quiet), p50(&mut busy));
    let ratio = busy.as_secs_f64() / quiet.as_secs_f64();
    println!("p50 {quiet:?} without and {busy:?} with mails ({count} deliveries): {ratio:.2} times");
    assert!(ratio < 20.0, "{ratio}");
    assert!(understanding.contains(&10), "{understanding:?}");
    let threads = bridge.nice_values();
    for (prefix, nice) in [
        ("write-inbound", 10),
        ("lane-inbound", 10),
        ("poll-inbound", 10),
        ("write-deliverie", 0),
        ("lane-deliveries", 0),
        ("tokio", 0),
    ] {
        let found: Vec<_> = threads
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .collect();
        let all = !found.is_empty() && found.iter().all(|(_, of_thread)| *of_thread == nice);
        assert!(all, "{prefix}: {nice} wanted, {threads:?}");
    }
    bridge.stop();
}

#[test]
fn samples_go_through_the_bridge_and_are_saved() {
    let kafka = kafka::shared();
    let topic = topics::create(kafka, "inbound", 3, &[]);
    let setup = setup(kafka, &topic);
    let bridge = setup.start();
    let dir = new_dir("saved");
    let file = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let large = bytes(&mut Random::new("saved"), 2_500_000);
    let files = [
        file("見積.csv", b"item,price\r\n"),
        file("empty", b""),
        file("large.bin", &large),
    ];
    let url = format!("http://{}", bridge.ingest);
    let mut send = vec!["send-sample", &url, "--kind", "inbound", "--count", "2"];
    run(&setup, &send).has(0, &["answer 200   2\n", PATH]);
    for file in &files {
        send.extend(["--attach", file]);
    }
    run(&setup, &send).has(0, &["answer 200   2\n"]);
    let refused = run(
        &setup,
        &[
            "send-sample",
            &format!("{url}/webhooks/events"),
            "--kind",
            "inbound",
        ],
    );
    refused.has(69, &["answer 400"]);
    bridge.wait_drained(LIMIT);
    // Four mails, and for two of them a part of each small file and three of the large one.
    let saved = dir.join("out");
    let tap = [
        "tap",
        "--stream",
        "inbound",
        "--from-beginning",
        "-n",
        "14",
        "--save",
        saved.to_str().unwrap(),
    ];
    for _ in 0..2 {
        let ended = run(&setup, &tap);
        ended.has(0, &["attachment 1 見積.csv", "part 3 of 3"]);
        assert!(ended.stderr.contains("見積.csv (12 B)"), "{}", ended.stderr);
        let mut names: Vec<String> = fs::read_dir(&saved)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        // Both mails have the same files.
        assert_eq!(names, ["empty", "large.bin", "見積.csv"]);
        assert!(fs::read(saved.join("large.bin")).unwrap() == large);
    }
    bridge.stop();
}

#[test]
fn every_way_to_send_a_body_is_taken_and_no_other() {
    let setup = Setup::new(crate::bridge::NO_KAFKA).set("streams.inbound.enabled", "true");
    let bridge = setup.start();
    let sent = mail(2, &mut Random::new("ways"));
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\n", TYPE.1);
    let body = &sent.body[..];
    let length = format!("content-length: {}\r\n", body.len());
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(7) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(bridge.wire().send(&chunked).answer().status, 200);
    let mut wire = bridge.wire();
    wire.send(format!("{head}expect: 100-continue\r\n{length}\r\n"));
    assert_eq!(wire.answer().status, 100);
    assert_eq!(wire.send(body).answer().status, 200);
    let packed = [
        format!("{head}content-encoding: gzip\r\n{length}\r\n").as_bytes(),
        body,
    ]
    .concat();
    assert_eq!(bridge.wire().send(&packed).answer().status, 415);
    // Announced or not, a body beyond the limit is refused.
    let much = format!("{head}content-length: {}\r\n\r\n", (32 << 20) + 1);
    assert_eq!(bridge.wire().send(much).answer().status, 413);
    let scrape = bridge.scrape();
    assert_eq!(
        scrape.sum(
            "cmc_bridge_events_total",
            &[("stream", "inbound"), ("status", "mail")]
        ),
        2.0
    );
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
