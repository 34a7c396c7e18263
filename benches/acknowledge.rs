//! Durable answers per second, compared with a bare hyper server that only reads the body.
//!
//! Both run as separate processes and take turns on the same machine, so the ratio is meaningful even if absolute figures are
//! not. Kafka is away: this measures only the way to the 200. With `live`, Kafka runs on the same machine, and the bridge delivers
//! meanwhile (Java 17, Maven).
//! `cargo bench --bench acknowledge -- [seconds per round, default 3] [rounds, default 5] [live]`.

// A benchmark that can't continue panics.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

// This benchmark needs only a part of each.
#[allow(dead_code)]
mod harness;
#[allow(dead_code)]
mod support;

use std::{env, process::Command, thread, time::Duration};

use bytes::Bytes;
use harness::{jars, kafka, process, topics, wait};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use support::{Seen, Server, load, machine, median};
use tokio::net::TcpListener;

const ONE: &[u8] = include_bytes!("../tests/samples/deliveries-succeeded.json");
const PARTITIONS: i32 = 3;
const HUNDRED: &[u8] = include_bytes!("../tests/samples/deliveries-batch-100.json");

fn main() {
    let numbers: Vec<u64> = env::args().filter_map(|arg| arg.parse().ok()).collect();
    if env::args().any(|arg| arg == "--bare-server") {
        return bare_server();
    }
    let seconds = Duration::from_secs(numbers.first().copied().unwrap_or(3));
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let broker = env::args().any(|arg| arg == "live").then(kafka::Broker::own);
    println!(
        "{}\n{rounds} rounds of {} s, bridge and bare server in turn, Kafka {}\n",
        machine(),
        seconds.as_secs(),
        if broker.is_some() { "live" } else { "away" }
    );
    println!(
        "| events | connections | answers/s | events/s | p50 | p99 | CPU µs per webhook | a bare server's | ratio | p50 ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    // One thread, like `wrk -t1`, because the load should use as little of the machine as possible.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for (events, body) in [(1u32, ONE.trim_ascii_end()), (100, HUNDRED.trim_ascii_end())] {
        for connections in [1, 64] {
            runtime.block_on(compare(
                broker.as_ref(),
                events,
                body,
                connections,
                seconds,
                rounds,
            ));
        }
    }
}

async fn compare(
    broker: Option<&kafka::Broker>,
    events: u32,
    body: &'static [u8],
    connections: usize,
    time: Duration,
    rounds: u64,
) {
    let mut bridge: Vec<(Seen, f64)> = Vec::new();
    let mut bare: Vec<(Seen, f64)> = Vec::new();
    for _ in 0..rounds {
        for (is_bridge, seen) in [(true, &mut bridge), (false, &mut bare)] {
            let (server, _spool) = match is_bridge {
                true => bridge_server(broker),
                false => bare_process(),
            };
            load(server.address, &[body], connections, Duration::from_millis(300)).await;
            let before = server.cpu();
            let found = load(server.address, &[body], connections, time).await;
            let micros = (server.cpu() - before).as_secs_f64() * 1e6 / found.answers as f64;
            seen.push((found, micros));
        }
    }
    let of = |seen: &[(Seen, f64)], figure: fn(&Seen) -> f64| {
        median(seen.iter().map(|(s, _)| figure(s)).collect())
    };
    let ratio = |figure: fn(&Seen) -> f64| {
        median(
            bridge
                .iter()
                .zip(&bare)
                .map(|((ours, _), (theirs, _))| figure(ours) / figure(theirs))
                .collect(),
        )
    };
    let p50 = |seen: &Seen| seen.p50.as_secs_f64() * 1e3;
    let p99 = |seen: &Seen| seen.p99.as_secs_f64() * 1e3;
    println!(
        "| {events} | {connections} | {:.0} | {:.0} | {:.2} ms | {:.2} ms | {:.1} | {:.1} | {:.2} | {:.2} |",
        of(&bridge, Seen::per_second),
        of(&bridge, Seen::per_second) * f64::from(events),
        of(&bridge, p50),
        of(&bridge, p99),
        median(bridge.iter().map(|(_, micros)| *micros).collect()),
        median(bare.iter().map(|(_, micros)| *micros).collect()),
        ratio(Seen::per_second),
        ratio(p50),
    );
}

fn bridge_server(broker: Option<&kafka::Broker>) -> (Server, Option<tempfile::TempDir>) {
    // Nobody listens on this port.
    let away = || ("127.0.0.1:1".to_owned(), "cmc.deliveries".to_owned());
    let (bootstrap, topic) = broker.map_or_else(away, |broker| {
        let bootstrap = broker.bootstrap();
        // In a thread without a runtime, because it brings its own.
        let create = || topics::create(&bootstrap, "acknowledge", PARTITIONS, &[]);
        let topic = thread::scope(|scope| scope.spawn(create).join().expect("a topic"));
        (bootstrap, topic)
    });
    let spool = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmc-bridge"));
    command.arg("serve").envs([
        ("CMC_BRIDGE__INGEST__LISTEN", "127.0.0.1:0"),
        ("CMC_BRIDGE__ADMIN__LISTEN", "127.0.0.1:0"),
        ("CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
        ("CMC_BRIDGE__LOG__FORMAT", "json"),
        ("CMC_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", bootstrap.as_str()),
        ("CMC_BRIDGE__STREAMS__DELIVERIES__TOPIC", topic.as_str()),
        ("CMC_BRIDGE__SPOOL__MAX_BYTES", "64GiB"),
        ("CMC_BRIDGE__SPOOL__DIR", spool.path().to_str().expect("UTF-8")),
    ]);
    (Server::start(&mut command, &["webhooks are served"]), Some(spool))
}

fn bare_process() -> (Server, Option<tempfile::TempDir>) {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.arg("--bare-server");
    (Server::start(&mut command, &["address"]), None)
}

/// The floor: reads the body and answers.
fn bare_server() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        eprintln!("{{\"address\":\"{}\"}}", listener.local_addr().expect("bound"));
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            stream.set_nodelay(true).expect("nodelay");
            let answer = |request: Request<Incoming>| async {
                request.into_body().collect().await?;
                Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            };
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
}
