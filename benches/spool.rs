//! Compares the spool with other stores as a durable queue: 64 waiting clients, and the same group-commit writer on each.
//!
//! Our own log is measured through its public interface, with its writer thread: once as if Kafka were away, and once read and
//! trimmed continuously, so that segments are reused. SQLite (WAL, `synchronous=FULL`), fjall and redb have a writer thread of the
//! same kind: it takes everything that waits (at most 4 MiB), writes it in one transaction under rising keys, makes it durable, and
//! wakes the clients. Device bytes are those of the disk that holds the target directory (`/proc/diskstats`), so they include other
//! programs' writes. `cargo bench --bench spool -- [seconds per round, default 3] [rounds, default 3]`.

// A benchmark that can't continue panics.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

#[allow(dead_code)] // All benchmarks share the module; this one needs only a part.
mod support;

use std::{
    env, fs,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use cmc_bridge::{
    batch::{Batch, BatchBuilder},
    books::Books,
    spool::{Backlog, Durability, Log, LogMetrics, LogOptions, storage::FileSystem},
    stream::{Stream, Tally},
};
use prometheus::{Histogram, HistogramOpts};
use support::{cpu_of, machine, median};
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
};

const CLIENTS: usize = 64;
const COMMIT_BYTES: usize = 4 << 20;

fn main() {
    let numbers: Vec<u64> = env::args().filter_map(|arg| arg.parse().ok()).collect();
    let time = Duration::from_secs(numbers.first().copied().unwrap_or(3));
    let rounds = numbers.get(1).copied().unwrap_or(3);
    println!(
        "{}\n{rounds} rounds of {} s, {CLIENTS} clients, the stores in turn\n",
        machine(),
        time.as_secs()
    );
    println!("| store | body | durable acks/s | p50 | p99 | CPU µs each | device bytes per payload byte |");
    println!("|---|---|---|---|---|---|---|");
    for len in [600, 30_000] {
        let stores: [(&str, Open); 5] = [
            ("own log", |dir| own_log(dir, false)),
            ("own log, trimmed", |dir| own_log(dir, true)),
            ("SQLite", |dir| grouped(Sqlite::open(dir))),
            ("fjall", |dir| grouped(Fjall::open(dir))),
            ("redb", |dir| grouped(Redb::open(dir))),
        ];
        let mut runs: Vec<Vec<Run>> = stores.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for ((_, open), runs) in stores.iter().zip(&mut runs) {
                runs.push(run(*open, len, time));
            }
        }
        for ((name, _), runs) in stores.iter().zip(&runs) {
            let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
            println!(
                "| {name} | {len} | {:.0} | {:.2} ms | {:.2} ms | {:.1} | {:.2} |",
                of(|r| r.per_second),
                of(|r| r.p50),
                of(|r| r.p99),
                of(|r| r.cpu),
                of(|r| r.amplification),
            );
        }
    }
}

struct Run {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    amplification: f64,
}

/// A client's way to append a payload to a store and wait until it is durable.
enum Client {
    Own {
        appender: cmc_bridge::spool::Appender,
        budget: Arc<Semaphore>,
        /// Dropping it would close it.
        _log: Box<Log>,
        /// `None` if a thread trims the log, which goes on as long as `_trimming` is held.
        _backlog: Option<Box<Backlog>>,
        _trimming: Arc<()>,
    },
    Grouped(mpsc::Sender<Waiting>),
}

/// Opens a store in a directory.
type Open = fn(&Path) -> Client;

type Waiting = (Vec<u8>, oneshot::Sender<()>);

fn run(open: Open, len: usize, time: Duration) -> Run {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let client = open(dir.path());
    let payload = vec![b'x'; len];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (device, cpu, begun) = (device_bytes(dir.path()), cpu_of("self"), Instant::now());
    let mut times = runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            match &client {
                Client::Own { appender, budget, .. } => {
                    let (appender, budget, batch) = (appender.clone(), Arc::clone(budget), batch(&payload));
                    clients.spawn(async move {
                        let mut times = Vec::new();
                        while begun.elapsed() < time {
                            let sent = Instant::now();
                            let permit = Arc::clone(&budget).acquire_owned().await.expect("open");
                            let mut tally = Tally::default();
                            tally.count(Stream::Deliveries, None);
                            appender
                                .append(batch.clone(), tally, permit, sent + Duration::from_secs(60))
                                .await
                                .expect("appends");
                            times.push(sent.elapsed());
                        }
                        times
                    });
                }
                Client::Grouped(queue) => {
                    let (queue, payload) = (queue.clone(), payload.clone());
                    clients.spawn(async move {
                        let mut times = Vec::new();
                        while begun.elapsed() < time {
                            let sent = Instant::now();
                            let (done, durable) = oneshot::channel();
                            queue.send((payload.clone(), done)).expect("a writer");
                            durable.await.expect("durable");
                            times.push(sent.elapsed());
                        }
                        times
                    });
                }
            }
        }
        let mut times = Vec::new();
        while let Some(more) = clients.join_next().await {
            times.extend(more.expect("no panic"));
        }
        times
    });
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (cpu_of("self") - cpu).as_secs_f64();
    drop(client);
    let device = device_bytes(dir.path()) - device;
    times.sort_unstable();
    let n = times.len();
    Run {
        per_second: n as f64 / seconds,
        p50: times[n / 2].as_secs_f64() * 1e3,
        p99: times[n * 99 / 100].as_secs_f64() * 1e3,
        cpu: cpu * 1e6 / n as f64,
        amplification: device as f64 / (n * len) as f64,
    }
}

fn batch(payload: &[u8]) -> Batch {
    let mut builder = BatchBuilder::new(0, &[], b"", payload.len() + 64);
    builder.push(None, &[], &[payload]);
    builder.finish()
}

/// The interval between checkpoints. The bridge stores one every second, which is too rare for a short round.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);

fn own_log(dir: &Path, trimmed: bool) -> Client {
    let histogram = |name: &str| Histogram::with_opts(HistogramOpts::new(name, name)).expect("a histogram");
    let options = LogOptions {
        dir: dir.join("log"),
        name: "bench",
        max_bytes: 1 << 40,
        segment_bytes: 16 << 20,
        durability: Durability::Fsync,
    };
    let metrics = LogMetrics {
        sync_seconds: histogram("sync"),
        commit_webhooks: histogram("webhooks"),
    };
    let (log, mut backlog) = Log::open(
        Arc::new(FileSystem),
        &options,
        Arc::new(Books::default()),
        metrics,
        |error| {
            panic!("{error}");
        },
    )
    .expect("opens");
    let trimming = Arc::new(());
    let held = Arc::clone(&trimming);
    Client::Own {
        _trimming: trimming,
        appender: log.appender(),
        budget: Arc::new(Semaphore::new(2 * CLIENTS)),
        _log: Box::new(log),
        _backlog: if trimmed {
            thread::spawn(move || {
                let mut stored = Instant::now();
                loop {
                    match backlog.take().expect("reads") {
                        Some(batch) => backlog.advance(batch.end()),
                        None if Arc::strong_count(&held) == 1 => return,
                        None => backlog.wait(CHECKPOINT_EVERY),
                    }
                    if stored.elapsed() >= CHECKPOINT_EVERY {
                        backlog.store_checkpoint().expect("stores");
                        stored = Instant::now();
                    }
                }
            });
            None
        } else {
            Some(Box::new(backlog))
        },
    }
}

/// A store that keeps payloads under rising keys.
trait Store: Send + 'static {
    /// All payloads are durable when it returns.
    fn commit(&mut self, first_key: u64, payloads: &[Waiting]);
}

fn grouped(mut store: impl Store) -> Client {
    let (queue, waiting) = mpsc::channel::<Waiting>();
    thread::spawn(move || {
        let mut key = 0;
        while let Ok(first) = waiting.recv() {
            let mut bytes = first.0.len();
            let mut group = vec![first];
            while bytes < COMMIT_BYTES
                && let Ok(next) = waiting.try_recv()
            {
                bytes += next.0.len();
                group.push(next);
            }
            store.commit(key, &group);
            key += group.len() as u64;
            for (_, done) in group {
                let _ = done.send(());
            }
        }
    });
    Client::Grouped(queue)
}

struct Sqlite(rusqlite::Connection);

impl Sqlite {
    fn open(dir: &Path) -> Sqlite {
        let connection = rusqlite::Connection::open(dir.join("queue.db")).expect("opens");
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE queue (key INTEGER PRIMARY KEY, value BLOB);",
            )
            .expect("set up");
        Sqlite(connection)
    }
}

impl Store for Sqlite {
    fn commit(&mut self, first_key: u64, payloads: &[Waiting]) {
        let transaction = self.0.transaction().expect("begins");
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO queue (key, value) VALUES (?1, ?2)")
                .expect("a statement");
            for (key, (payload, _)) in (first_key..).zip(payloads) {
                insert.execute((key as i64, payload)).expect("inserts");
            }
        }
        transaction.commit().expect("commits");
    }
}

struct Fjall(fjall::Keyspace, fjall::Partition);

impl Fjall {
    fn open(dir: &Path) -> Fjall {
        let keyspace = fjall::Config::new(dir.join("fjall")).open().expect("opens");
        let queue = keyspace
            .open_partition("queue", Default::default())
            .expect("a partition");
        Fjall(keyspace, queue)
    }
}

impl Store for Fjall {
    fn commit(&mut self, first_key: u64, payloads: &[Waiting]) {
        let mut batch = self.0.batch();
        for (key, (payload, _)) in (first_key..).zip(payloads) {
            batch.insert(&self.1, key.to_be_bytes(), payload);
        }
        batch.commit().expect("commits");
        self.0.persist(fjall::PersistMode::SyncData).expect("syncs");
    }
}

struct Redb(redb::Database);

const QUEUE: redb::TableDefinition<u64, &[u8]> = redb::TableDefinition::new("queue");

impl Redb {
    fn open(dir: &Path) -> Redb {
        Redb(redb::Database::create(dir.join("queue.redb")).expect("opens"))
    }
}

impl Store for Redb {
    fn commit(&mut self, first_key: u64, payloads: &[Waiting]) {
        let transaction = self.0.begin_write().expect("begins");
        {
            let mut queue = transaction.open_table(QUEUE).expect("a table");
            for (key, (payload, _)) in (first_key..).zip(payloads) {
                queue.insert(key, payload.as_slice()).expect("inserts");
            }
        }
        transaction.commit().expect("commits");
    }
}

/// Bytes written so far to the device that holds a path; 0 if `/proc/diskstats` doesn't list it.
fn device_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path).expect("metadata").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stats = fs::read_to_string("/proc/diskstats").expect("procfs");
    let sectors = stats.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[0] == major.to_string() && fields[1] == minor.to_string())
            .then(|| fields[9].parse::<u64>().ok())?
    });
    sectors.unwrap_or(0) * 512
}
