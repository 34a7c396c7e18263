//! A crowd of slow clients costs little memory and slows the others down little.

use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{LIMIT, bridge};
use crate::{bridge::Bridge, cmc::delivery, http::EVENTS, wait};

/// The number of slow clients, if the limit of open files allows.
const CROWD: usize = 10_000;
/// Open files of this process reserved for the other tests.
const OTHERS: usize = 2_000;
/// Bytes per second that the whole crowd sends.
const DRIBBLE: usize = 5_000;
const ROUND: Duration = Duration::from_millis(1500);
const FEWEST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 11;
/// Hyper's first buffer of 8 KiB, the connection's task and timer, and as much again for memory that the allocator keeps
/// from earlier connections.
const BYTES_EACH: u64 = 40 * 1024;

/// The number of possible slow clients. Raises the limit of open files; each client needs one file on either side.
fn crowd() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let files = limit.maximum.map_or(usize::MAX, |files| files as usize);
    CROWD.min(files.saturating_sub(OTHERS))
}

/// Connections that send a header one byte at a time, until dropped.
struct Crowd {
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Crowd {
    /// Connects all clients and sends the start of a request on each.
    fn gather(bridge: &Bridge, clients: usize) -> Crowd {
        let begin = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\nx-slow: ");
        let mut streams: Vec<TcpStream> = (0..clients)
            .map(|_| {
                let mut stream = TcpStream::connect(bridge.ingest).unwrap();
                stream.write_all(begin.as_bytes()).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            })
            .collect();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                let (start, mut sent) = (Instant::now(), 0);
                while !ended.load(Ordering::Relaxed) {
                    let due = (start.elapsed().as_secs_f64() * DRIBBLE as f64) as usize;
                    while sent < due {
                        let index = sent % streams.len();
                        match streams[index].write(b"x") {
                            Ok(_) => {}
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::WouldBlock, "client {index}: {error}")
                            }
                        }
                        sent += 1;
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Crowd {
            ended,
            thread: Some(thread),
        }
    }

    fn leave(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Sends good requests one after another for a while; returns how many per second.
fn good_requests(bridge: &Bridge) -> f64 {
    let mut client = bridge.client();
    let body = delivery("good");
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < ROUND {
        assert_eq!(client.post(&body).status, 200);
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

#[test]
fn ten_thousand_slow_clients() {
    let clients = crowd();
    let places = clients + 4;
    // So few places are spare that a place not given back would be missing in the next round.
    let bridge = bridge(&[
        ("ingest.max_connections", &places.to_string()),
        ("ingest.header_timeout", "10m"),
        ("spool.durability", "page-cache"),
    ]);
    let mut ratios = Vec::new();
    let mut before = 0;
    while ratios.len() < FEWEST_ROUNDS || ratios[ratios.len() / 2] <= 0.5 {
        let alone = good_requests(&bridge);
        if before == 0 {
            before = bridge.resident_bytes();
        }
        let crowd = Crowd::gather(&bridge, clients);
        let beside = good_requests(&bridge);
        let each = bridge.resident_bytes().saturating_sub(before) / clients as u64;
        println!(
            "{clients} slow clients, {each} bytes each; {alone:.0} good requests/s, {beside:.0} beside them"
        );
        assert!(each <= BYTES_EACH, "{each} bytes each");
        crowd.leave();
        ratios.push(beside / alone);
        let gone = (clients * ratios.len()) as f64;
        bridge.wait_for(LIMIT, "the slow clients' ends", |scrape| {
            scrape.sum("cmc_bridge_webhooks_total", &[("outcome", "disconnected")]) == gone
        });
        // Because other tests run at the same time, one bad round proves nothing, but a majority of many does.
        ratios.sort_by(f64::total_cmp);
        assert!(
            ratios.len() < MOST_ROUNDS || ratios[ratios.len() / 2] > 0.5,
            "rates of good requests beside {clients} slow clients, relative to alone: {ratios:.2?}"
        );
    }
}

#[test]
fn slow_clients_all_get_408_at_once_and_free_their_places() {
    let clients = 300;
    let bridge = bridge(&[
        ("ingest.max_connections", "300"),
        ("ingest.header_timeout", "10s"),
    ]);
    let mut wires: Vec<_> = (0..clients)
        .map(|_| {
            let mut wire = bridge.wire();
            wire.send("POST / HTTP/1.1\r\nx: ");
            wire
        })
        .collect();
    // One more takes the place of the oldest.
    let mut further = bridge.client();
    assert_eq!(further.post(delivery("over")).status, 200);
    wires.remove(0).expect_closed();
    for wire in &mut wires {
        super::expect_problem(&wire.answer(), 408);
        wire.expect_closed();
    }
    super::expect_outcome(&bridge, "timeout", f64::from(clients - 1));
    super::expect_outcome(&bridge, "overloaded", 1.0);
    drop(wires);
    wait::until(LIMIT, "places", || {
        (bridge.client().post(delivery("a")).status == 200).then_some(())
    });
}
