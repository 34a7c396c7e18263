//! Clients that post webhooks and keep a ledger of the answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    balancer::Routes,
    http::{Client, EVENTS, Failure, JSON},
    wait::{self, Random},
};

/// Identifies an event of the load: run, client, webhook, index in the webhook.
pub type EventId = (u64, u64, u64, u32);

/// The outcome of a webhook, as the sender knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered 200 at this instant: each of its events must arrive exactly once.
    Acknowledged(Instant),
    /// Another status: its events may have arrived (a 503 does not always undo the append).
    Refused(u16),
    /// The connection broke: its events may have arrived.
    Unanswered,
}

/// A webhook that was sent.
#[derive(Clone, Debug)]
pub struct Posted {
    pub run: u64,
    pub client: u64,
    pub n: u64,
    pub stream: &'static str,
    pub events: u32,
    pub sent: Instant,
    pub outcome: Outcome,
    /// The replica that took it, if there is a balancer.
    pub replica: Option<usize>,
}

impl Posted {
    /// How long the 200 took.
    pub fn latency(&self) -> Option<Duration> {
        match self.outcome {
            Outcome::Acknowledged(at) => Some(at - self.sent),
            _ => None,
        }
    }

    /// The webhook's body.
    pub fn body(&self) -> String {
        let status = if self.stream == "bounces" { "2" } else { "queued" };
        let mut body = format!(
            r#"{{"event_type":"{0}","server_composition":"pro","event":{{"{0}":["#,
            self.stream
        );
        for index in 0..self.events {
            if index > 0 {
                body.push(',');
            }
            let id = (self.run, self.client, self.n, index);
            let (run, client, n, _) = id;
            let key = key_of(id);
            let key = key.trim_matches(['<', '>']);
            body.push_str(&format!(
                r#"{{"reason":"","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:02","subject":"十月のお知らせ","apiData":"{run}/{client}/{n}/{index}","messageId":"\u003C{key}\u003E","from":"news@example.co.jp","to":"hanako@example.net","status":"{status}"}}"#
            ));
        }
        body.push_str("]}}");
        body
    }
}

/// The key of an event. A third of the events share four hot keys, the others have unique ones.
pub fn key_of(id: EventId) -> String {
    let (run, client, n, index) = id;
    let mut random = Random::from_seed(run ^ (client << 48) ^ (n << 8) ^ (u64::from(index) + 1));
    match random.below(12) {
        hot @ 0..4 => format!("<hot-{run}-{hot}@load>"),
        _ => format!("<{run}-{client}-{n}-{index}@load>"),
    }
}

/// The address that the load goes to; changes when a bridge restarts.
#[derive(Clone, Default)]
pub struct Target {
    address: Arc<Mutex<Option<SocketAddr>>>,
    routes: Option<Routes>,
}

impl Target {
    /// The balancer, which knows the replica of each connection.
    pub fn balanced(address: SocketAddr, routes: Routes) -> Self {
        Target {
            address: Arc::new(Mutex::new(Some(address))),
            routes: Some(routes),
        }
    }

    /// Changes the address.
    pub fn set(&self, address: SocketAddr) {
        *self.address.lock().unwrap() = Some(address);
    }

    fn get(&self) -> Option<SocketAddr> {
        *self.address.lock().unwrap()
    }
}

/// The amount of load.
#[derive(Clone, Copy)]
pub struct Shape {
    pub clients: u64,
    /// The maximum number of events in a webhook.
    pub events: u64,
    /// Each client's pause after an answer.
    pub pause: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            clients: 4,
            events: 5,
            pause: Duration::from_millis(2),
        }
    }
}

struct Control {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Running clients. Each posts a webhook, waits for the answer, posts the next, and never repeats one.
pub struct Load {
    control: Arc<Control>,
    threads: Vec<JoinHandle<Vec<Posted>>>,
}

impl Load {
    /// Starts the clients.
    pub fn start(target: &Target, shape: Shape) -> Self {
        static RUN: AtomicU64 = AtomicU64::new(1);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        });
        let threads = (0..shape.clients)
            .map(|client| {
                let control = Arc::clone(&control);
                let target = target.clone();
                thread::spawn(move || client_loop(&control, &target, shape, run, client))
            })
            .collect();
        Load { control, threads }
    }

    /// The number of webhooks answered 200 so far.
    pub fn acknowledged(&self) -> u64 {
        self.control.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until this many more webhooks are answered 200.
    pub fn wait_acknowledged(&self, more: u64, limit: Duration) {
        let goal = self.acknowledged() + more;
        wait::until(limit, &format!("{goal} acknowledged webhooks"), || {
            (self.acknowledged() >= goal).then_some(())
        });
    }

    /// Stops the clients and returns everything they sent.
    pub fn stop(mut self) -> Vec<Posted> {
        self.control.stop.store(true, Ordering::Relaxed);
        self.threads
            .drain(..)
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
    }
}

fn client_loop(control: &Control, target: &Target, shape: Shape, run: u64, client: u64) -> Vec<Posted> {
    let mut random = Random::from_seed(run ^ (client << 32));
    let mut ledger = Vec::new();
    let mut connection: Option<(SocketAddr, Client)> = None;
    let mut n = 0;
    while !control.stop.load(Ordering::Relaxed) {
        let Some(address) = target.get() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        if connection.as_ref().is_none_or(|(old, _)| *old != address) {
            connection = Some((address, Client::new(address)));
        }
        let Some((_, http)) = &mut connection else {
            continue;
        };
        let Ok(stream) = http.connect() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let local = stream.get_ref().local_addr().unwrap();
        let mut posted = Posted {
            run,
            client,
            n,
            stream: if random.below(3) == 0 {
                "bounces"
            } else {
                "deliveries"
            },
            events: 1 + random.below(shape.events) as u32,
            sent: Instant::now(),
            outcome: Outcome::Unanswered,
            replica: None,
        };
        let body = posted.body();
        posted.sent = Instant::now();
        posted.outcome = match http.request("POST", EVENTS, &[JSON], body.as_bytes()) {
            Ok(response) if response.status == 200 => {
                control.acknowledged.fetch_add(1, Ordering::Relaxed);
                Outcome::Acknowledged(Instant::now())
            }
            Ok(response) => Outcome::Refused(response.status),
            Err(Failure::NotSent) => continue,
            Err(Failure::NoAnswer(_)) => Outcome::Unanswered,
        };
        posted.replica = target.routes.as_ref().and_then(|routes| routes.of(local));
        ledger.push(posted);
        n += 1;
        thread::sleep(shape.pause);
    }
    ledger
}

/// The median latency of answers with status 200.
pub fn median_latency(posted: &[Posted]) -> Duration {
    let mut all: Vec<Duration> = posted.iter().filter_map(Posted::latency).collect();
    assert!(!all.is_empty(), "no webhook was acknowledged");
    all.sort();
    all[all.len() / 2]
}
