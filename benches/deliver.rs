//! Events per second from a full spool into real Kafka, compared with a bare rdkafka producer of records of the same size.
//!
//! They take turns with the same broker: a plain idempotent producer, which sends from memory and waits for every delivery,
//! and the bridge, which reads its spool, in both delivery modes. Kafka is started as in the tests (Java 17, Maven).
//! `cargo bench --bench deliver -- [events per round, default 500000] [rounds, default 3]`.

// A benchmark that can't continue panics.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

// This benchmark needs only a part of each.
#[allow(dead_code)]
mod harness;
#[allow(dead_code)]
mod support;

use std::{
    env,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{jars, kafka, process, topics, wait};
use rdkafka::{
    ClientContext,
    error::RDKafkaErrorCode,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer},
};
use support::{Server, cpu_of, figure, load, machine, median, scrape};

const HUNDRED: &[u8] = include_bytes!("../tests/samples/deliveries-batch-100.json");
const PARTITIONS: i32 = 3;

fn main() {
    let numbers: Vec<u64> = env::args().filter_map(|arg| arg.parse().ok()).collect();
    let events = numbers.first().copied().unwrap_or(500_000);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    println!(
        "{}\n{rounds} rounds of {events} events, a bare producer and the bridge in turn\n",
        machine()
    );
    let broker = kafka::Broker::own();
    let bootstrap = broker.bootstrap();
    let modes = ["exactly-once", "at-least-once"];
    let mut bridge = modes.map(|_| Vec::new());
    let mut bare = Vec::new();
    let topic = || topics::create(&bootstrap, "deliver", PARTITIONS, &[]);
    for _ in 0..rounds {
        bare.push(bare_producer(&bootstrap, &topic(), events));
        for (mode, runs) in modes.iter().zip(&mut bridge) {
            runs.push(through_bridge(&bootstrap, &topic(), mode, events));
        }
    }
    println!("| | events/s | CPU µs per event | ratio | peak memory |\n|---|---|---|---|---|");
    let row = |what: &str, runs: &[Run]| {
        println!(
            "| {what} | {:.0} | {:.1} | {:.2} | {} |",
            median(runs.iter().map(|run| run.rate).collect()),
            median(runs.iter().map(|run| run.micros).collect()),
            median(runs.iter().zip(&bare).map(|(a, b)| a.rate / b.rate).collect()),
            match runs.iter().filter_map(|run| run.peak).max() {
                Some(mebibytes) => format!("{mebibytes} MiB"),
                None => "–".to_owned(),
            },
        );
    };
    for (mode, runs) in modes.iter().zip(&bridge) {
        row(mode, runs);
    }
    row("bare producer", &bare);
}

/// From the first delivery to the last.
struct Run {
    /// Events a second.
    rate: f64,
    /// CPU µs an event.
    micros: f64,
    /// The process's peak memory in MiB.
    peak: Option<u64>,
}

/// Fills a spool without Kafka, then starts a bridge on it with Kafka.
fn through_bridge(bootstrap: &str, topic: &str, mode: &str, events: u64) -> Run {
    let spool = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let server = bridge("127.0.0.1:1", topic, mode, spool.path());
    let mut filled = 0;
    while filled < events {
        let body = HUNDRED.trim_ascii_end();
        filled += 100
            * runtime
                .block_on(load(server.address, &[body], 8, Duration::from_millis(200)))
                .answers;
    }
    drop(server);
    let server = bridge(bootstrap, topic, mode, spool.path());
    let admin = server.admin.expect("an admin port");
    let begun = until(admin, |delivered, _| delivered > 0);
    let cpu = server.cpu();
    let ended = until(admin, |_, backlog| backlog == 0);
    let done = ended.1 - begun.1;
    let seconds = (ended.0 - begun.0).as_secs_f64();
    Run {
        rate: done as f64 / seconds,
        micros: (server.cpu() - cpu).as_secs_f64() * 1e6 / done as f64,
        peak: Some(server.peak_memory()),
    }
}

fn bridge(bootstrap: &str, topic: &str, mode: &str, spool: &Path) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"));
    command.arg("serve").envs([
        ("CMC_BRIDGE__INGEST__LISTEN", "127.0.0.1:0"),
        ("CMC_BRIDGE__ADMIN__LISTEN", "127.0.0.1:0"),
        ("CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
        ("CMC_BRIDGE__LOG__FORMAT", "json"),
        ("CMC_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", bootstrap),
        ("CMC_BRIDGE__KAFKA__DELIVERY", mode),
        ("CMC_BRIDGE__SPOOL__MAX_BYTES", "64GiB"),
        ("CMC_BRIDGE__SPOOL__DIR", spool.to_str().expect("UTF-8")),
        ("CMC_BRIDGE__STREAMS__DELIVERIES__TOPIC", topic),
        // As in the image.
        ("MIMALLOC_PURGE_DELAY", "25"),
    ]);
    Server::start(
        &mut command,
        &["webhooks are served", "metrics and probes are served"],
    )
}

/// Polls the books until they satisfy a condition. Returns the time and the number of events delivered by then.
fn until(admin: SocketAddr, wanted: impl Fn(u64, u64) -> bool) -> (Instant, u64) {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let text = scrape(admin);
        let figure = |name| figure(&text, &format!("{name}{{stream=\"deliveries\"}}"));
        let delivered = figure("cmc_bridge_delivered_events_total");
        if wanted(delivered, figure("cmc_bridge_backlog_events")) {
            return (Instant::now(), delivered);
        }
        assert!(Instant::now() < deadline, "nothing moves: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Counter(Arc<AtomicU64>);

impl ClientContext for Counter {}

impl ProducerContext for Counter {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record was not delivered");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The floor: sends records of the same size with the same codec and as many headers from memory, and awaits each delivery.
fn bare_producer(bootstrap: &str, topic: &str, events: u64) -> Run {
    let done = Arc::new(AtomicU64::new(0));
    let producer: ThreadedProducer<Counter> = topics::client_config(bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .create_with_context(Counter(Arc::clone(&done)))
        .expect("a producer");
    let value = &HUNDRED[..HUNDRED.len() / 100];
    let headers = [3usize, 23, 8, 16, 27, 36, 60, 25];
    let send = |n: u64| {
        let key = format!("<{n:08}-0000-4000-8000-000000001eef@mail.example.co.jp>");
        loop {
            let mut own = OwnedHeaders::new_with_capacity(headers.len());
            for length in headers {
                own = own.insert(Header {
                    key: "ce_specversion",
                    value: Some(&value[..length]),
                });
            }
            let record = BaseRecord::to(topic).key(&key).payload(value).headers(own);
            match producer.send(record) {
                Ok(()) => return,
                Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    };
    // Keeps connections and metadata out of the measurement.
    send(0);
    while done.load(Ordering::Relaxed) < 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (begun, cpu) = (Instant::now(), cpu_of("self"));
    (1..=events).for_each(send);
    while done.load(Ordering::Relaxed) <= events {
        std::thread::sleep(Duration::from_millis(1));
    }
    Run {
        rate: events as f64 / begun.elapsed().as_secs_f64(),
        micros: (cpu_of("self") - cpu).as_secs_f64() * 1e6 / events as f64,
        peak: None,
    }
}
