//! Limits on file descriptors and memory: the bridge stays within them or waits, and survives. A limit on file sizes simulates
//! a failing disk. The spool may be removed while the bridge runs, and the reader of its log lines may hang.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics},
    cmc::{delivery, message, webhook},
    http::{Client, EVENTS, JSON},
    kafka,
    load::{Load, Outcome, Shape, Target},
    metrics::Scrape,
    oracle,
    process::Process,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Sets a limit of the running process with an option of `prlimit`.
fn limit(bridge: &Bridge, option: &str) {
    let mut command = Command::new("prlimit");
    let status = command.args(["--pid", &bridge.id().to_string(), option]).status();
    assert!(status.unwrap().success());
}

fn open_files(bridge: &Bridge) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", bridge.id())).unwrap();
    files.count()
}

#[test]
fn few_descriptors_at_the_start_lower_the_connection_limit() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    // 256 are reserved for the bridge itself.
    let setup = Setup::new(kafka).topics(&topics);
    let bridge = setup.through(&["prlimit", "--nofile=300"]).start();
    let mut client = bridge.client();
    assert_eq!(client.post(delivery("first@test")).status, 200);
    let idle: Vec<TcpStream> = (0..400)
        .map(|_| TcpStream::connect(bridge.ingest).unwrap())
        .collect();
    bridge.wait_for(LIMIT, "recycled connections", |scrape| {
        scrape.get("cmc_bridge_connections_recycled_total", &[]) >= 350.0
    });
    assert_eq!(client.post(delivery("second@test")).status, 200);
    bridge.wait_drained(LIMIT);
    assert!(bridge.running.stderr().contains("ulimit -n"));
    drop(idle);
    wait::until(LIMIT, "room for another connection", || {
        (bridge.client().post(delivery("third@test")).status == 200).then_some(())
    });
    bridge.stop();
}

#[test]
fn idle_connections_that_use_up_the_descriptors_break_nothing() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("spool.segment_bytes", "256KiB");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let shape = Shape {
        events: 20,
        ..Shape::default()
    };
    let load = Load::start(&target, shape);
    load.wait_acknowledged(100, LIMIT);
    limit(&bridge, &format!("--nofile={}", open_files(&bridge) + 10));
    let idle: Vec<TcpStream> = (0..60)
        .map(|_| TcpStream::connect(bridge.ingest).unwrap())
        .collect();
    wait::until(LIMIT, "a failed accept", || {
        let log = bridge.running.stderr();
        log.contains("could not be accepted").then_some(())
    });
    // A segment needs a descriptor, so webhooks may wait, but every answer must be 200 or 503.
    thread::sleep(Duration::from_secs(3));
    drop(idle);
    load.wait_acknowledged(300, LIMIT);
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
    let posted = load.stop();
    let expected = |outcome| matches!(outcome, Outcome::Acknowledged(_) | Outcome::Refused(503));
    assert!(posted.iter().all(|webhook| expected(webhook.outcome)));
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);
    bridge.stop();
}

#[test]
fn large_bodies_beyond_the_budget_are_refused_within_little_memory() {
    const CLIENTS: usize = 48;
    const FIT: usize = 4;
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let bridge = Setup::new(kafka)
        .topics(&topics)
        .set("ingest.max_bytes_in_flight", "32MiB")
        .set("ingest.body_timeout", "120s")
        .start();
    assert_eq!(bridge.client().post(delivery("a@test")).status, 200);
    bridge.wait_drained(LIMIT);
    // All bodies together would take far more.
    let most = bridge.memory("VmSize:") + (256 << 20);
    limit(&bridge, &format!("--as={most}"));

    let element = message("large@test", &"x".repeat(700));
    let count = (7 << 20) / element.len();
    let body = webhook("deliveries", "pro", &vec![element.as_str(); count]);
    assert!(body.len() * (FIT + 1) > 32 << 20 && body.len() * FIT <= 32 << 20);
    let request = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut accepted = 0;
    for _ in 0..2 {
        let half_sent = Arc::new(Barrier::new(CLIENTS));
        let statuses: Vec<u16> = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (half_sent, request) = (Arc::clone(&half_sent), &request);
                    let mut wire = bridge.wire();
                    scope.spawn(move || {
                        let (begin, end) = request.as_bytes().split_at(request.len() / 2);
                        wire.send(begin);
                        half_sent.wait();
                        let response = wire.send(end).answer();
                        assert!(response.status == 200 || response.header("retry-after").is_some());
                        response.status
                    })
                })
                .collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let with = |status| statuses.iter().filter(|s| **s == status).count();
        println!("{} × 200, {} × 503", with(200), with(503));
        assert_eq!(with(200) + with(503), CLIENTS, "{statuses:?}");
        assert!((1..=FIT).contains(&with(200)), "{statuses:?}");
        accepted += with(200) * count;
        // The memory of requests in flight is released.
        assert_eq!(bridge.client().post(&body).status, 200);
        accepted += count;
    }
    let scrape = bridge.wait_drained(LIMIT);
    let delivered = scrape.stream("cmc_bridge_delivered_events_total", "deliveries");
    assert_eq!(delivered, (accepted + 1) as f64);
    println!(
        "at most {} MiB more",
        (bridge.memory("VmPeak:") - (most - (256 << 20))) >> 20
    );
    bridge.stop();
}

#[test]
fn a_bridge_at_rest_takes_little_memory() {
    /// Without the program itself. Huge pages would take twice as much.
    const MOST: u64 = 24 << 20;
    let bridge = Setup::new(NO_KAFKA).start();
    assert_eq!(bridge.client().post(delivery("rest@test")).status, 200);
    let anonymous = bridge.memory("RssAnon:");
    println!("{} KiB", anonymous >> 10);
    assert!(anonymous < MOST, "{} KiB", anonymous >> 10);
}

/// The memory that docs/operations.md says to allow for with default limits, without Kafka: a budget of 256 MiB for bodies
/// and batches, 64 KiB for each of 4,096 connections, and 80 MiB for the rest.
const MOST_RESIDENT: u64 = (256 << 20) + 4096 * (64 << 10) + (80 << 20);

/// Holds as many connections as the bridge allows and sends these parts on each in turn. Returns the peak memory of the
/// bridge.
fn flood(with: &[(&str, &str)], parts: &[String]) -> u64 {
    const CONNECTIONS: usize = 4080;
    // For the test process and for the bridge that it starts.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let setup = with
        .iter()
        .fold(Setup::new(NO_KAFKA), |setup, (key, value)| setup.set(key, value));
    let bridge = setup.set("ingest.auth.allow_anonymous", "false").start();
    let mut clients: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let client = TcpStream::connect(bridge.ingest).unwrap();
            client.set_write_timeout(Some(LIMIT)).unwrap();
            client
        })
        .collect();
    for part in parts {
        for client in &mut clients {
            // The bridge may already have refused it.
            let _ = client.write_all(part.as_bytes());
        }
    }
    // Once the memory stops growing, everything has been read.
    let mut most = 0;
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = bridge.memory("VmHWM:");
        if now == most {
            break;
        }
        most = now;
    }
    assert_eq!(bridge.probe("/livez"), 200);
    let token = ("authorization", "Bearer a-good-token");
    let answer = bridge.client().post_with(&[JSON, token], delivery("good@test"));
    assert_eq!(answer.status, 200);
    most
}

#[test]
fn floods_of_held_connections_stay_within_the_documented_memory() {
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let good = "authorization: Bearer a-good-token\r\n";
    let long = format!("content-length: 1000000\r\n\r\n{}", "{".repeat(1000));
    let more = "x".repeat(64_600);
    let fields: String = (0..96)
        .map(|n| format!("x-field-{n}: {}\r\n", "y".repeat(140)))
        .collect();
    let floods = [
        (
            "bodies without a credential",
            vec![format!("{head}{long}"), more.clone()],
        ),
        (
            "bodies with a credential",
            vec![format!("{head}{good}{fields}{long}"), more.clone()],
        ),
        ("headers without an end", vec![format!("{head}{fields}")]),
        (
            "single bytes",
            vec![
                format!("{head}transfer-encoding: chunked\r\n\r\n"),
                "1\r\nx\r\n".repeat(10_000),
            ],
        ),
        (
            "pipelined requests",
            vec![
                format!("{head}{good}content-length: 2\r\n\r\n{{"),
                format!("}}{head}{good}{fields}{long}"),
                more,
            ],
        ),
    ];
    let keys = [
        ("ingest.auth.api_keys", "a-good-key"),
        ("ingest.auth.bearer_tokens", "a-good-token"),
        // Long enough to hold all connections at the same time.
        ("ingest.header_timeout", "600s"),
        ("ingest.body_timeout", "600s"),
        ("ingest.idle_timeout", "600s"),
        ("spool.durability", "page-cache"),
    ];
    for (name, parts) in floods {
        let most = flood(&keys, &parts);
        println!("{name}: {} MiB", most >> 20);
        assert!(
            most < MOST_RESIDENT,
            "{name} took {} of {} MiB",
            most >> 20,
            MOST_RESIDENT >> 20
        );
    }
}

#[test]
fn a_disk_that_fails_writes_ends_the_process_and_loses_nothing_acknowledged() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    // With SIGXFSZ ignored, a write beyond the limit fails with EFBIG instead of killing the process.
    let breaking = setup.clone().through(&["env", "--ignore-signal=XFSZ"]);
    let mut bridge = breaking.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(100, LIMIT);
    limit(&bridge, "--fsize=0");
    assert_eq!(bridge.running.wait_exit(LIMIT), 74);
    let said = bridge.running.stderr();
    for part in ["File too large", "spool"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }

    let bridge = setup.start();
    target.set(bridge.ingest);
    load.wait_acknowledged(100, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);
    bridge.stop();
}

#[test]
fn a_removed_spool_acknowledges_nothing_more() {
    let delete = |dir: &Path| fs::remove_dir_all(dir.join("deliveries")).unwrap();
    let replace = |dir: &Path| {
        let segment = dir.join("deliveries/00000000000000000001.segment");
        let bytes = fs::read(&segment).unwrap();
        fs::remove_file(&segment).unwrap();
        fs::write(&segment, bytes).unwrap();
    };
    let rename = |dir: &Path| fs::rename(dir, dir.with_extension("moved")).unwrap();
    for take_away in [&delete as &dyn Fn(&Path), &replace, &rename] {
        let setup = Setup::new(NO_KAFKA);
        let mut bridge = setup.start();
        let mut client = bridge.client();
        assert_eq!(client.post(delivery("kept@test")).status, 200);
        take_away(setup.spool_dir());
        // There is no answer if the process has noticed and ended first.
        let refused = delivery("refused@test");
        if let Ok(answer) = client.request("POST", EVENTS, &[JSON], refused.as_bytes()) {
            assert_eq!(answer.status, 503);
        }
        assert_eq!(bridge.running.wait_exit(LIMIT), 74);
        let said = bridge.running.stderr();
        assert!(said.contains("somebody deleted or moved it"), "{said}");

        // Without a webhook, the bridge notices when it stops.
        let setup = Setup::new(NO_KAFKA);
        let mut bridge = setup.start();
        take_away(setup.spool_dir());
        bridge.terminate();
        assert_eq!(bridge.running.wait_exit(LIMIT), 74);
    }
}

#[test]
fn unread_log_lines_delay_neither_webhooks_nor_a_stop() {
    bridge_without_a_reader("1s", 0, |_, process| process.signal(Signal::TERM));
}

#[test]
fn unread_log_lines_do_not_delay_a_failure() {
    bridge_without_a_reader("30s", 74, |setup, process| {
        fs::remove_dir_all(setup.spool_dir().join("deliveries")).unwrap();
        process.signal(Signal::TERM);
    });
}

/// Runs a bridge whose log lines nobody reads, until `end` makes it exit with this code.
fn bridge_without_a_reader(grace: &str, code: i32, end: impl FnOnce(&Setup, &mut Process)) {
    let setup = Setup::new(NO_KAFKA)
        .set("log.level", "debug")
        .set("spool.durability", "page-cache")
        .set("shutdown.grace", grace);
    let mut command = setup.command(&["serve"]);
    // The same pipe for both, as with `2>&1 |` in a shell.
    let (unread, pipe) = std::io::pipe().unwrap();
    command.stdout(pipe.try_clone().unwrap()).stderr(pipe);
    let mut process = Process::spawn(&mut command).unwrap();
    drop(command);
    let mut lines = BufReader::new(unread).lines();
    // The two servers start in either order.
    let mut addresses = BTreeMap::<String, SocketAddr>::new();
    while addresses.len() < 2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if let Some(address) = line["address"].as_str() {
            addresses.insert(line["target"].to_string(), address.parse().unwrap());
        }
    }
    let [admin, ingest] =
        ["admin", "ingest"].map(|part| addresses[&format!("\"cmc_bridge::{part}::server\"")]);

    // Each webhook logs a line; together they exceed the pipe and the queue.
    let mut client = Client::new(ingest);
    wait::until(LIMIT, "dropped lines", || {
        for _ in 0..50 {
            assert_eq!(client.post(delivery("a@test")).status, 200);
        }
        let scrape = Scrape::parse(Client::new(admin).get("/metrics").text());
        (scrape.get("cmc_bridge_log_lines_dropped_total", &[]) > 0.0).then_some(())
    });
    assert_eq!(Client::new(admin).get("/livez").status, 200);
    end(&setup, &mut process);
    assert_eq!(process.wait(LIMIT).and_then(|status| status.code()), Some(code));
    drop(lines);
}
