//! Tests of the rules of a lane, turn by turn, with a log on disk and a simulated cluster.

mod at_least_once;
mod groups;
mod random;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::Mutex,
};

use prometheus::Registry;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::{
    batch::{Batch, BatchBuilder},
    books::Books,
    lane::{LaneThread, options::Timing},
    metrics::Metrics,
    simulation::broker::{BrokerFault, COMPRESSIBLE, Cluster, Crash, Crashed, Topic},
    spool::{
        Appender, Durability, Log, LogMetrics, LogOptions, Manifest,
        storage::{FileSystem, ReadFile, ReadStorage, Storage, StorageFile},
    },
    stream::Tally,
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const TOPIC: &str = "cmc.deliveries";
const LETTERS: &str = "cmc.dead-letters";

/// The file system. Once armed, the process "dies" when it replaces the manifest.
#[derive(Default)]
struct Disk {
    dies_at_manifest: Mutex<bool>,
    /// There is no room for another manifest.
    full: AtomicBool,
}

impl ReadStorage for Disk {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        FileSystem.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        FileSystem.open(path)
    }
}

impl Storage for Disk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        FileSystem.create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        FileSystem.create(path)
    }

    fn open_for_writing(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        FileSystem.open_for_writing(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.ends_with("manifest") && std::mem::take(&mut *self.dies_at_manifest.lock().unwrap()) {
            resume_unwind(Box::new(Crashed));
        }
        if to.ends_with("manifest") && self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        FileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        FileSystem.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        FileSystem.sync_dir(dir)
    }
}

/// One spool directory, and the log and lane of the "process" that uses it.
struct Bench {
    dir: TempDir,
    disk: Arc<Disk>,
    cluster: Cluster,
    options: LaneOptions,
    registry: Registry,
    running: Option<Running>,
    /// The values appended, in order.
    appended: Vec<String>,
}

struct Running {
    lane: Lane<Cluster>,
    appender: Appender,
    books: Arc<Books>,
    log: Log,
}

/// A record to append.
struct Event<'a> {
    key: Option<&'a str>,
    value: &'a str,
}

fn options() -> LaneOptions {
    LaneOptions {
        stream: Stream::Deliveries,
        delivery: Delivery::ExactlyOnce,
        topic: TOPIC.into(),
        dead_letter_topic: LETTERS.into(),
        max_record_bytes: 100_000,
        transaction_events: 1000,
        transaction_bytes: 1 << 20,
        transaction_limit: Duration::from_secs(10),
        timing: Timing {
            checkpoint_every: Duration::from_secs(3600),
            quick: Duration::from_secs(3600),
            ..Timing::default()
        },
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::with(options())
    }

    /// With this `commit_interval`.
    fn paced(interval: Duration, options: LaneOptions) -> Bench {
        Bench::with(LaneOptions {
            timing: Timing {
                commit_interval: interval,
                ..options.timing
            },
            ..options
        })
    }

    fn with(options: LaneOptions) -> Bench {
        Bench::on(Cluster::new(&[TOPIC, LETTERS]), options)
    }

    fn on(cluster: Cluster, options: LaneOptions) -> Bench {
        let mut bench = Bench {
            dir: tempfile::tempdir().unwrap(),
            disk: Arc::default(),
            cluster,
            options,
            registry: Registry::new(),
            running: None,
            appended: Vec::new(),
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.registry = Registry::new();
        let metrics = Metrics::new(&self.registry, &[self.options.stream], []).unwrap();
        let metrics = metrics.for_stream(self.options.stream);
        let log_options = LogOptions {
            dir: self.dir.path().join("log"),
            name: "test",
            max_bytes: 1 << 30,
            segment_bytes: 64 << 10,
            durability: Durability::PageCache,
        };
        let log_metrics = LogMetrics {
            sync_seconds: metrics.sync_seconds.clone(),
            commit_webhooks: metrics.commit_webhooks.clone(),
        };
        let books = Arc::new(Books::default());
        let storage: Arc<dyn Storage> = Arc::clone(&self.disk) as _;
        let failure = |error| panic!("the log has failed: {error}");
        let (log, backlog) =
            Log::open(storage, &log_options, Arc::clone(&books), log_metrics, failure).unwrap();
        self.running = Some(Running {
            lane: Lane::new(self.options.clone(), backlog, self.cluster.clone(), metrics),
            appender: log.appender(),
            books,
            log,
        });
    }

    /// Kills the process: the lane does not finish.
    fn crash(&mut self) {
        self.running = None;
    }

    fn restart(&mut self) {
        self.crash();
        self.start();
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().unwrap()
    }

    fn lane(&mut self) -> &mut Lane<Cluster> {
        &mut self.running().lane
    }

    fn append_batch(&mut self, batch: Batch) {
        let mut tally = Tally::default();
        for _ in 0..batch.events() {
            tally.count(Stream::Deliveries, Some("queued"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let appender = self.running().appender.clone();
        runtime.block_on(async move {
            let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            let limit = Duration::from_secs(60);
            appender
                .append(batch, tally, permit, Instant::now() + limit)
                .await
                .unwrap();
        });
    }

    fn append_events(&mut self, events: &[Event<'_>]) {
        let mut batch = BatchBuilder::new(1_700_000_000_000_000, &[("ce_specversion", b"1.0")], b"", 100);
        for event in events {
            batch.push(
                event.key.map(str::as_bytes),
                &[("ce_id", event.value.get(..1).unwrap_or_default().as_bytes())],
                &[event.value.as_bytes()],
            );
            self.appended.push(event.value.to_owned());
        }
        self.append_batch(batch.finish());
    }

    /// Appends batches with this many events each. The values tell their places.
    fn append(&mut self, batches: &[usize]) {
        for events in batches {
            let first = self.appended.len();
            let values: Vec<String> = (first..first + events).map(|n| n.to_string()).collect();
            self.append_values(&values);
        }
    }

    /// Appends a batch with these values, all with the same key.
    fn append_values(&mut self, values: &[String]) {
        let event = |value| Event {
            key: Some("key"),
            value,
        };
        let events: Vec<_> = values.iter().map(|value| event(value)).collect();
        self.append_events(&events);
    }

    /// One turn, and a check of the books.
    fn turn(&mut self) -> Turn {
        let turn = self.lane().turn().unwrap();
        let books = self.books();
        assert!(books.balanced(), "{books:?}");
        turn
    }

    /// Turns until the lane is idle. Waits are skipped.
    fn settle(&mut self) {
        for _ in 0..2000 {
            if self.turn() == Turn::Idle {
                let books = self.books();
                assert_eq!(books.backlog(), 0);
                return;
            }
        }
        panic!(
            "the lane does not come to rest; blocked: {:?}",
            self.lane().blocked
        );
    }

    /// Turns until the lane is blocked for this reason, and three times more: it must stay blocked.
    fn settle_blocked(&mut self, reason: BlockReason) {
        for turns in 0..2000 {
            let turn = self.turn();
            assert_ne!(turn, Turn::Idle, "after {turns} turns");
            if matches!(turn, Turn::Blocked(_)) {
                assert_eq!(self.lane().blocked, Some(reason));
                assert_eq!(self.metric("cmc_bridge_lane_blocked", reason.label()), 1.0);
                return;
            }
        }
        panic!("the lane is not blocked");
    }

    /// Checks that everything appended is in the topic, once and in order.
    fn check_delivered(&self) {
        assert_eq!(self.cluster.values(TOPIC), self.appended);
    }

    fn books(&mut self) -> crate::books::Balance {
        self.running().books.snapshot()
    }

    fn group(&self) -> uuid::Uuid {
        let dir = self.dir.path().join("log");
        Manifest::read(&FileSystem, &dir).unwrap().unwrap().group_id
    }

    fn committed(&self) -> Option<Seq> {
        self.cluster.committed(self.group()).map(|c| c.seq)
    }

    /// The value of a gauge, or the count of a histogram, with a label of this value.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|f| f.name() == name).unwrap();
        let found = family
            .get_metric()
            .iter()
            .find(|m| m.get_label().iter().any(|l| l.value() == label));
        let metric = found.unwrap();
        metric.get_gauge().get_value()
            + metric.get_counter().get_value()
            + metric.get_histogram().get_sample_count() as f64
    }

    fn copy_dir(&self, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(self.dir.path().join("log")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    /// Turns until the process dies or the lane is idle. Gives whether it died.
    fn dies(&mut self) -> bool {
        let settled = catch_unwind(AssertUnwindSafe(|| self.settle()));
        match settled {
            Ok(()) => false,
            Err(panic) if panic.is::<Crashed>() => {
                self.crash();
                true
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[test]
fn events_arrive_once_in_order_with_the_position() {
    let mut bench = Bench::new();
    bench.append(&[3, 1, 7]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().transactions, [11]);
    assert_eq!(bench.committed(), Some(Seq(3)));
    let record = &bench.cluster.read(TOPIC)[0];
    assert_eq!(record.key.as_deref(), Some(&b"key"[..]));
    assert_eq!(record.header("ce_specversion"), Some("1.0"));
    assert_eq!(record.header("ce_id"), Some("0"));
    assert_eq!(bench.books().delivered, 11);
    assert_eq!(bench.metric("cmc_bridge_delivery_seconds", "deliveries"), 11.0);
    assert_eq!(bench.metric("cmc_bridge_transaction_seconds", "committed"), 1.0);
    bench.append(&[2]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched]);
}

#[test]
fn transactions_are_bounded_and_batches_whole() {
    let mut bench = Bench::with(LaneOptions {
        transaction_events: 10,
        ..options()
    });
    bench.append(&[4, 4, 4, 25, 1, 9]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().transactions, [8, 4, 25, 10]);

    let mut bench = Bench::with(LaneOptions {
        transaction_bytes: 350,
        ..options()
    });
    let large = "x".repeat(300);
    for value in ["1", "2", &large, &large, "3"] {
        bench.append_events(&[Event { key: None, value }]);
    }
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().transactions, [2, 1, 1, 1]);
}

#[test]
fn a_commit_whose_answer_was_lost_is_discovered() {
    let mut bench = Bench::new();
    bench.append(&[3]);
    bench.cluster.fault(BrokerFault::ReplyLost);
    bench.settle_blocked(BlockReason::Transaction);
    assert_eq!(bench.books().backlog(), 3);
    bench.append(&[2]);
    bench.settle();
    bench.check_delivered();
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted, books.recovered), (5, 0, 0));
    assert_eq!(bench.cluster.lock().transactions, [3, 2]);
    assert_eq!(bench.metric("cmc_bridge_delivery_seconds", "deliveries"), 5.0);
    assert_eq!(bench.metric("cmc_bridge_transactions_total", "failed"), 1.0);
    assert_eq!(bench.metric("cmc_bridge_transaction_seconds", "failed"), 1.0);
    assert_eq!(bench.metric("cmc_bridge_transactions_total", "committed"), 1.0);
}

#[test]
fn a_lost_answer_keeps_delivered_and_diverted_apart() {
    let mut bench = Bench::new();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
    bench.append_events(&[
        Event {
            key: Some("a"),
            value: "1",
        },
        Event {
            key: None,
            value: "2",
        },
        Event {
            key: Some("a"),
            value: "3",
        },
    ]);
    // The position can't be read at first, so the record of the transaction must outlive a failed connection.
    for fault in [
        BrokerFault::ReplyLost,
        BrokerFault::NoCoordinator,
        BrokerFault::Connect(BlockReason::Connect),
    ] {
        bench.cluster.fault(fault);
    }
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), ["1", "3"]);
    assert_eq!(bench.cluster.values(LETTERS), ["2"]);
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted), (2, 1));
}

#[test]
fn a_lost_answer_is_discovered_by_the_next_process() {
    let mut bench = Bench::new();
    bench.append(&[3, 2]);
    bench.cluster.fault(BrokerFault::ReplyLost);
    bench.settle_blocked(BlockReason::Transaction);
    bench.restart();
    assert_eq!(bench.books().recovered, 5);
    bench.append(&[1]);
    bench.settle();
    bench.check_delivered();
    let books = bench.books();
    assert_eq!((books.recovered, books.delivered), (0, 1));
}

#[test]
fn whatever_fails_is_sent_again_once_by_a_new_producer() {
    // The simulated producer panics if it is used after an error.
    for (fault, reason) in [
        (
            BrokerFault::Connect(BlockReason::Authentication),
            BlockReason::Authentication,
        ),
        (BrokerFault::NoCoordinator, BlockReason::Connect),
        (BrokerFault::Begin, BlockReason::Transaction),
        (BrokerFault::Send, BlockReason::Connect),
        (BrokerFault::Delivery, BlockReason::Transaction),
        (BrokerFault::Slow, BlockReason::Connect),
        (BrokerFault::CommitFails, BlockReason::Transaction),
        (BrokerFault::Fence, BlockReason::Fenced),
    ] {
        let mut bench = Bench::new();
        bench.append(&[5, 5]);
        bench.cluster.fault(fault);
        bench.settle_blocked(reason);
        assert_eq!(bench.books().delivered, 0, "{fault:?}");
        bench.settle();
        bench.check_delivered();
        assert_eq!(bench.books().delivered, 10, "{fault:?}");
        assert_eq!(bench.cluster.lock().connects.len(), 2, "{fault:?}");
        assert_eq!(bench.metric("cmc_bridge_lane_blocked", reason.label()), 0.0);
        let failed = bench.metric("cmc_bridge_transaction_seconds", "failed");
        let aborted = bench.metric("cmc_bridge_transaction_seconds", "aborted");
        let expected = match fault {
            BrokerFault::Connect(_) | BrokerFault::NoCoordinator => (0.0, 0.0),
            BrokerFault::CommitFails | BrokerFault::Fence => (1.0, 0.0),
            _ => (0.0, 1.0),
        };
        assert_eq!((failed, aborted), expected, "{fault:?}");
    }
}

#[test]
fn waits_grow_up_to_a_limit_and_begin_again_after_success() {
    let mut bench = Bench::new();
    bench.append(&[1]);
    for _ in 0..8 {
        bench.cluster.fault(BrokerFault::Connect(BlockReason::Connect));
    }
    let waits: Vec<_> = (0..8).map(|_| bench.turn()).collect();
    let expected = [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000];
    assert_eq!(waits, expected.map(|ms| Turn::Blocked(Duration::from_millis(ms))));
    bench.settle();
    bench.append(&[1]);
    bench.cluster.fault(BrokerFault::CommitFails);
    assert_eq!(bench.turn(), Turn::Blocked(Duration::from_millis(250)));
}

#[test]
fn transactions_begin_an_interval_apart_unless_they_are_full() {
    let interval = Duration::from_millis(50);
    let begun = Instant::now();
    let at = |millis| clock::simulate(Some(begun + Duration::from_millis(millis)));
    at(0);
    let mut bench = Bench::paced(
        interval,
        LaneOptions {
            transaction_events: 10,
            ..options()
        },
    );
    // After a pause two transactions may begin at once, the next one when the interval is over.
    for _ in 0..2 {
        bench.append(&[1]);
        bench.settle();
    }
    bench.append(&[1]);
    assert_eq!(bench.turn(), Turn::Paused(interval));
    at(20);
    bench.append(&[1]);
    assert_eq!(bench.turn(), Turn::Paused(Duration::from_millis(30)));
    at(50);
    bench.settle();
    // A full transaction does not wait, and neither does what it leaves behind.
    bench.append(&[9, 3]);
    bench.settle();
    bench.append(&[1]);
    bench.settle();
    bench.append(&[1]);
    assert_eq!(bench.turn(), Turn::Paused(interval));
    // Neither does a lane that is to end.
    bench.lane().hurry();
    bench.settle();
    assert_eq!(bench.cluster.lock().transactions, [1, 1, 2, 9, 3, 1, 1]);
    clock::simulate(None);
}

#[test]
fn events_that_come_as_often_as_transactions_may_begin_do_not_wait() {
    let interval = Duration::from_millis(50);
    let begun = Instant::now();
    clock::simulate(Some(begun));
    let mut bench = Bench::paced(interval, options());
    for number in 0..20 {
        // Half of them come late, by up to half an interval.
        let late = interval / 2 * (number % 2) * number / 20;
        clock::simulate(Some(begun + interval * number + late));
        bench.append(&[1]);
        bench.settle();
    }
    assert_eq!(bench.cluster.lock().transactions, [1; 20]);
    clock::simulate(None);
}

#[test]
fn transactions_that_need_not_wait_do_not_make_later_ones_wait_longer() {
    let interval = Duration::from_secs(1);
    let begun = Instant::now();
    clock::simulate(Some(begun));
    let mut bench = Bench::paced(
        interval,
        LaneOptions {
            transaction_events: 1,
            ..options()
        },
    );
    // Each is full, and leaves nothing behind.
    for _ in 0..20 {
        bench.append(&[1]);
        bench.settle();
    }
    bench.lane().most_events = 2;
    bench.append(&[1]);
    assert_eq!(bench.turn(), Turn::Paused(interval));
    clock::simulate(None);
}

#[test]
fn a_backlog_of_large_events_is_not_paced() {
    clock::simulate(Some(Instant::now()));
    let mut bench = Bench::paced(
        Duration::from_secs(1),
        LaneOptions {
            transaction_bytes: 1,
            ..options()
        },
    );
    bench.append(&[1, 1, 1]);
    bench.settle();
    assert_eq!(bench.cluster.lock().transactions, [1, 1, 1]);
    clock::simulate(None);
}

#[test]
fn missing_topics_and_rights_block_and_never_divert() {
    let mut bench = Bench::new();
    bench.cluster.delete_topic(TOPIC);
    bench.append(&[2]);
    bench.settle_blocked(BlockReason::TopicMissing);
    let mut topic = Topic::default();
    topic.forbidden = true;
    bench.cluster.lock().topics.insert(TOPIC.into(), topic);
    bench.settle_blocked(BlockReason::Authorization);
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().forbidden = false;
    assert_eq!(bench.turn(), Turn::Progress);
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().forbidden = true;
    bench.settle_blocked(BlockReason::Authorization);
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().forbidden = false;
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.books().diverted, 0);
    assert_eq!(bench.cluster.values(LETTERS), [""; 0]);
}

// Positions: rules 2 and 3.

#[test]
fn a_missing_committed_offset_is_never_zero() {
    let mut bench = Bench::new();
    bench.append(&[3, 2]);
    bench.settle();
    // The position in memory counts after an error.
    bench.cluster.set_committed(bench.group(), None);
    bench.append(&[1]);
    bench.cluster.fault(BrokerFault::CommitFails);
    bench.settle();
    bench.check_delivered();
    // The checkpoint counts after a crash.
    bench.cluster.set_committed(bench.group(), None);
    bench.restart();
    bench.append(&[1]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.books().recovered, 0);
}

#[test]
fn a_lost_offset_is_committed_again_as_soon_as_the_lane_is_idle() {
    let mut bench = Bench::new();
    bench.append(&[3]);
    bench.settle();
    bench.cluster.set_committed(bench.group(), None);
    bench.restart();
    bench.settle();
    assert_eq!(bench.committed(), Some(Seq(1)));
    assert_eq!(bench.cluster.lock().transactions, [3, 0]);
    // A log that never delivered anything has no position to keep.
    let mut empty = Bench::new();
    empty.settle();
    assert_eq!(empty.cluster.lock().transactions, [0; 0]);
}

#[test]
fn the_largest_position_counts() {
    // Kafka is ahead of the checkpoint after a crash before the checkpoint was stored.
    let mut bench = Bench::new();
    bench.append(&[3, 2]);
    bench.turn();
    bench.turn();
    assert!(bench.lane().backlog.checkpoint_due());
    bench.restart();
    bench.append(&[1]);
    bench.settle();
    bench.check_delivered();
    // Kafka is behind the checkpoint, for example after the cluster was restored from an older state.
    let group = bench.group();
    let older = CommittedPosition {
        seq: Seq(1),
        metadata: position::metadata(bench.lane().backlog.history(), Seq(1)),
    };
    bench.cluster.set_committed(group, Some(older));
    bench.restart();
    bench.append(&[1]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.group(), group);
}

/// A spool whose directory is an older copy of itself: Kafka has positions of batches that the log does not know.
fn restored_copy() -> Bench {
    let mut bench = Bench::new();
    bench.append(&[1, 1, 1]);
    bench.settle();
    bench.append(&[1, 1]);
    let copy = bench.dir.path().join("copy");
    bench.copy_dir(&copy);
    bench.append(&[2, 2, 2]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.committed(), Some(Seq(8)));
    bench.crash();
    fs::remove_dir_all(bench.dir.path().join("log")).unwrap();
    fs::rename(&copy, bench.dir.path().join("log")).unwrap();
    bench
}

#[test]
fn a_restored_older_copy_skips_no_new_event() {
    let mut bench = restored_copy();
    let group = bench.group();
    bench.start();
    bench.append(&[1, 1, 1, 1, 1]);
    bench.settle();
    // What the log had when it was copied is known to be delivered. What came afterwards is new.
    bench.check_delivered();
    assert_ne!(bench.group(), group);
    assert_eq!(bench.committed(), Some(Seq(10)));
    let books = bench.books();
    assert_eq!((books.recovered, books.delivered), (0, 5));
    // And that does not change.
    let renewed = bench.group();
    bench.restart();
    bench.append(&[1]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.group(), renewed);
}

#[test]
fn a_restored_copy_without_new_events_is_noticed_too() {
    let mut bench = restored_copy();
    let group = bench.group();
    bench.start();
    bench.settle();
    assert_ne!(bench.group(), group);
    bench.append(&[4, 4, 4, 4, 4, 4]);
    bench.settle();
    bench.check_delivered();
}

#[test]
fn the_agreed_position_is_durable_before_the_group_is_renewed() {
    let mut bench = restored_copy();
    let group = bench.group();
    bench.start();
    bench.append(&[1, 1, 1, 1]);
    *bench.disk.dies_at_manifest.lock().unwrap() = true;
    assert!(bench.dies());
    assert_eq!(bench.group(), group);
    bench.start();
    assert!(!bench.lane().backlog.checkpoint_due());
    assert_eq!(bench.lane().backlog.position().seq, Seq(5));
    bench.settle();
    bench.check_delivered();
    assert_ne!(bench.group(), group);
}

#[test]
fn a_full_disk_delays_the_renewal_of_the_group() {
    let mut bench = restored_copy();
    let group = bench.group();
    bench.disk.full.store(true, Ordering::Relaxed);
    bench.start();
    bench.append(&[1, 1, 1, 1]);
    bench.settle_blocked(BlockReason::Other);
    assert_eq!(bench.group(), group);
    bench.disk.full.store(false, Ordering::Relaxed);
    bench.settle();
    bench.check_delivered();
    assert_ne!(bench.group(), group);
}

#[test]
fn two_live_copies_lose_nothing() {
    let mut first = Bench::new();
    first.append(&[1, 1]);
    first.settle();
    first.append(&[1, 1]);
    let mut second = Bench::on(first.cluster.clone(), options());
    second.crash();
    let log = second.dir.path().join("log");
    fs::remove_dir_all(&log).unwrap();
    first.copy_dir(&log);
    second.appended = first.appended.clone();
    second.start();
    for round in 0..4 {
        for bench in [&mut first, &mut second] {
            let value = format!("{round} of {}", bench.dir.path().display());
            bench.append_events(&[Event {
                key: None,
                value: &value,
            }]);
            bench.settle();
        }
    }
    assert_ne!(first.group(), second.group());
    let delivered = first.cluster.values(TOPIC);
    for bench in [&first, &second] {
        let own: Vec<_> = bench.appended.iter().skip(4).collect();
        let seen: Vec<_> = delivered.iter().filter(|v| own.contains(v)).collect();
        assert_eq!(seen, own, "the own ones once, in order");
        assert!(bench.appended.iter().all(|value| delivered.contains(value)));
    }
}

// Refusals: rule 4.

fn with_limit(limit: usize, told: bool, options: LaneOptions) -> Bench {
    let bench = Bench::with(options);
    let mut inner = bench.cluster.lock();
    let topic = inner.topics.get_mut(TOPIC).unwrap();
    (topic.limit, topic.told) = (Some(limit), told);
    drop(inner);
    bench
}

/// Appends batches of five with a large record in every `nth` place. Gives the small and the large values.
fn append_mixed(bench: &mut Bench, batches: usize, nth: usize, bytes: usize) -> (Vec<String>, Vec<String>) {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        let values: Vec<String> = (batch * 5..batch * 5 + 5)
            .map(|n| match n % nth {
                1 => format!("{n:x<bytes$}"),
                _ => n.to_string(),
            })
            .collect();
        for value in &values {
            let list = if value.len() >= bytes {
                &mut large
            } else {
                &mut small
            };
            list.push(value.clone());
        }
        let events: Vec<_> = values
            .iter()
            .map(|value| Event {
                key: Some("key"),
                value,
            })
            .collect();
        bench.append_events(&events);
    }
    (small, large)
}

#[test]
fn what_is_refused_alone_is_diverted_in_the_same_transaction() {
    for (told, seed) in [(false, 1), (false, 2), (false, 3), (true, 1)] {
        let mut bench = with_limit(1000, told, options());
        bench.cluster.lock().seed = seed;
        let (small, large) = append_mixed(&mut bench, 4, 7, 1500);
        bench.settle();
        assert_eq!(bench.cluster.values(TOPIC), small);
        assert_eq!(bench.cluster.values(LETTERS), large);
        let letter = &bench.cluster.read(LETTERS)[0];
        assert_eq!(letter.key.as_deref(), Some(&b"key"[..]));
        assert_eq!(letter.header("ce_specversion"), Some("1.0"));
        assert_eq!(letter.header("cmc-dead-letter-topic"), Some(TOPIC));
        assert_eq!(letter.header("cmc-dead-letter-reason"), Some("refused_too_large"));
        let books = bench.books();
        assert_eq!((books.delivered, books.diverted), (17, 3));
        assert_eq!(bench.cluster.lock().transactions, [20]);
        // Many in a request again, with no more reconnects than refused records, and none for a foreseen refusal.
        let connects = bench.cluster.lock().connects.clone();
        match told {
            true => assert_eq!(connects, [Mode::Batched]),
            false => {
                assert_eq!(connects.len(), 6, "{connects:?}");
                assert_eq!(connects[1..5], [Mode::OneByOne; 4]);
                assert_eq!(connects[5], Mode::Batched);
            }
        }
        bench.append(&[5]);
        bench.settle();
        assert_eq!(bench.cluster.lock().connects.len(), connects.len());
    }
}

/// A webhook that has too many records for one transaction of one record per request is asked about in several, and delivered
/// in one. So a slow broker can't keep it from being delivered.
#[test]
fn refused_records_are_found_even_if_one_by_one_takes_longer_than_a_transaction() {
    for (in_time, seed) in [(1, 1), (1, 2), (4, 3), (4, 4), (15, 5), (39, 6), (40, 7), (41, 8)] {
        let mut bench = with_limit(1000, false, options());
        {
            let mut inner = bench.cluster.lock();
            (inner.one_by_one_in_time, inner.seed, inner.hasty) = (Some(in_time), seed, 10);
            inner.topics.get_mut(TOPIC).unwrap().more_partitions = 2;
        }
        bench.append(&[3]);
        let large = |n: usize| format!("{}{n}", "x".repeat(1500));
        let value = |n| match n {
            3 | 14 | 42 => large(n),
            _ => n.to_string(),
        };
        bench.append_values(&(3..43).map(value).collect::<Vec<_>>());
        bench.append(&[3]);
        bench.settle();
        bench.appended.retain(|value| value.len() < 1000);
        bench.check_delivered();
        assert_eq!(bench.cluster.values(LETTERS), [3, 14, 42].map(large));
        let books = bench.books();
        assert_eq!((books.delivered, books.diverted), (43, 3), "{in_time}");
    }
}

#[test]
fn what_the_topics_rules_foresee_costs_no_reconnect() {
    let mut bench = with_limit(1000, true, options());
    let (small, large) = append_mixed(&mut bench, 60, 2, 1200);
    bench.settle();
    assert_eq!(large.len(), 150);
    assert_eq!(bench.cluster.values(TOPIC), small);
    assert_eq!(bench.cluster.values(LETTERS), large);
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched]);
}

#[test]
fn the_topics_rules_explain_no_other_refusal() {
    let mut bench = with_limit(1000, true, options());
    {
        let mut inner = bench.cluster.lock();
        let topic = inner.topics.get_mut(TOPIC).unwrap();
        (topic.compacted, topic.refuses) = (true, Some("odd"));
    }
    let large = "x".repeat(1500);
    for (key, value) in [
        (Some("k"), "1"),
        (None, "2"),
        (Some("k"), &large),
        (Some("k"), "odd"),
        (Some("k"), "3"),
    ] {
        bench.append_events(&[Event { key, value }]);
    }
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), ["1", "3"]);
    assert_eq!(bench.cluster.values(LETTERS), ["2", &large, "odd"]);
    assert_eq!(bench.books().diverted, 3);
}

/// Rules that were read long ago may have changed, so they are read again before they divert anything.
#[test]
fn a_record_is_not_diverted_for_rules_of_the_past() {
    let mut bench = with_limit(1000, true, options());
    bench.append(&[1]);
    bench.settle();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().limit = Some(5000);
    bench.lane().connected_at = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    bench.append_events(&[Event {
        key: Some("k"),
        value: &"x".repeat(1500),
    }]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched; 2]);
}

/// Rules that became stricter show in a refusal. They are read again before records are sent one by one.
#[test]
fn rules_that_became_stricter_are_read_again() {
    let mut bench = with_limit(5000, true, options());
    bench.append(&[1]);
    bench.settle();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().limit = Some(1000);
    bench.lane().connected_at = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    let (_, large) = append_mixed(&mut bench, 10, 3, 1500);
    bench.settle();
    assert_eq!(bench.cluster.values(LETTERS), large);
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched; 2]);
}

#[test]
fn records_that_the_broker_names_are_diverted_at_once() {
    let mut bench = Bench::new();
    {
        let mut inner = bench.cluster.lock();
        inner.names_records = true;
        inner.request = Some(300);
        inner.topics.get_mut(TOPIC).unwrap().refuses = Some("odd");
    }
    let mut odd = Vec::new();
    for batch in 0..30 {
        bench.append(&[20]);
        if batch % 3 == 0 {
            let value = format!("odd {batch}");
            bench.append_events(&[Event {
                key: Some("k"),
                value: &value,
            }]);
            odd.extend(bench.appended.pop());
        }
    }
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.values(LETTERS), odd);
    let connects = bench.cluster.lock().connects.clone();
    assert!(connects.iter().all(|mode| *mode == Mode::Batched));
    assert!(connects.len() <= 1 + odd.len(), "{}", connects.len());
}

/// The refusal of an early request shows while the rest is still being sent. One record is diverted, whichever it is, and
/// everything else arrives once and in order.
#[test]
fn a_refused_record_in_a_large_backlog_is_diverted_alone() {
    const BATCH: usize = 500;
    for (number, delivery) in [Delivery::ExactlyOnce, Delivery::AtLeastOnce]
        .into_iter()
        .enumerate()
    {
        for (place, partitions) in [(0, 1), (9, 1), (19, 1), (0, 6), (9, 6), (19, 6)] {
            let mut bench = Bench::with(LaneOptions {
                delivery,
                transaction_events: 8000,
                transaction_bytes: 32 << 20,
                ..options()
            });
            {
                let mut inner = bench.cluster.lock();
                inner.plain = delivery == Delivery::AtLeastOnce;
                (inner.request, inner.hasty) = (Some(100), 300);
                inner.seed = (number * 100 + place) as u64;
                let topic = inner.topics.get_mut(TOPIC).unwrap();
                topic.more_partitions = partitions - 1;
                topic.refuses = Some("odd");
            }
            for batch in 0..20 {
                let first = bench.appended.len();
                let values: Vec<_> = (0..BATCH)
                    .map(|n| match (batch == place, n) {
                        (true, 250) => "odd".to_owned(),
                        _ => (first + n).to_string(),
                    })
                    .collect();
                let key = format!("key {batch}");
                let events = values.iter().map(|value| Event {
                    key: Some(&key),
                    value,
                });
                bench.append_events(&events.collect::<Vec<_>>());
            }
            bench.settle();
            let found = bench.cluster.values(TOPIC);
            // Each batch has one key, so it is in one partition, in order.
            for batch in bench.appended.chunks(BATCH) {
                let wanted: Vec<_> = batch.iter().filter(|value| *value != "odd").collect();
                let seen: Vec<_> = found.iter().filter(|value| batch.contains(value)).collect();
                match delivery {
                    Delivery::ExactlyOnce => assert_eq!(seen, wanted),
                    Delivery::AtLeastOnce => {
                        let mut first = Vec::new();
                        for value in seen {
                            if !first.contains(&value) {
                                first.push(value);
                            }
                        }
                        assert_eq!(first, wanted);
                    }
                }
            }
            let letters = bench.cluster.values(LETTERS);
            assert_eq!(letters, ["odd"]);
            assert_eq!(bench.books().diverted, 1);
            let connects = bench.cluster.lock().connects.len();
            assert!(connects <= 5, "{connects} producers");
        }
    }
}

#[test]
fn a_broker_that_refuses_much_is_not_overrun() {
    let mut bench = Bench::new();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().refuses = Some("odd");
    for n in 0..40 {
        bench.append_events(&[Event {
            key: Some("k"),
            value: &format!("odd {n}"),
        }]);
        bench.append(&[10]);
    }
    bench.appended.retain(|value| !value.starts_with("odd"));
    let mut waits = Vec::new();
    loop {
        match bench.turn() {
            Turn::Idle => break,
            Turn::Blocked(wait) | Turn::Paused(wait) => waits.push(wait),
            Turn::Progress => {}
        }
    }
    bench.check_delivered();
    assert_eq!(bench.cluster.values(LETTERS).len(), 40);
    let connects = bench.cluster.lock().connects.len();
    assert!(
        waits.len() + 10 >= connects.saturating_sub(10),
        "{connects}: {waits:?}"
    );
    assert!(waits.iter().any(|wait| *wait > Duration::from_secs(1)));
    assert_eq!(
        bench.metric("cmc_bridge_lane_blocked", "other"),
        0.0,
        "it goes on"
    );
}

#[test]
fn records_go_without_timestamps_when_the_broker_refuses_them() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let mut bench = Bench::with(LaneOptions {
            delivery,
            ..options()
        });
        {
            let mut inner = bench.cluster.lock();
            inner.plain = delivery == Delivery::AtLeastOnce;
            inner.topics.get_mut(TOPIC).unwrap().clock_differs = true;
        }
        bench.append(&[3, 3]);
        bench.settle();
        bench.check_delivered();
        // Without transactions, only one record a request shows it.
        let connects = bench.cluster.lock().connects.len();
        assert_eq!(connects, if delivery == Delivery::ExactlyOnce { 2 } else { 4 });
        // Timestamps are tried again later, because the clock may have been corrected.
        bench.cluster.lock().topics.get_mut(TOPIC).unwrap().clock_differs = false;
        bench.lane().untimely_at = Instant::now().checked_sub(UNTIMED);
        bench.append(&[1]);
        bench.cluster.fault(BrokerFault::Send);
        bench.settle();
        bench.check_delivered();
        assert_eq!(bench.lane().untimely_at, None);
    }
}

#[test]
fn one_by_one_transactions_are_small_and_the_range_ends() {
    let mut bench = Bench::with(LaneOptions {
        transaction_events: 2000,
        ..options()
    });
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
    bench.append(&[200, 200, 200]);
    bench.append_events(&[Event {
        key: None,
        value: "refused",
    }]);
    bench.appended.pop();
    bench.append(&[200, 700, 200]);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.values(LETTERS), ["refused"]);
    assert_eq!(bench.cluster.lock().transactions, [400, 401, 900]);
    assert_eq!(bench.books().diverted, 1);
}

#[test]
fn large_dead_letters_go_in_parts_compressed_or_not() {
    for compressed in [false, true] {
        large_dead_letters_go_in_parts(compressed);
    }
}

fn large_dead_letters_go_in_parts(compressed: bool) {
    let mut bench = with_limit(3000, false, options());
    let mut inner = bench.cluster.lock();
    let letters = inner.topics.get_mut(LETTERS).unwrap();
    (letters.limit, letters.told, letters.compressed) = (Some(2500), true, compressed);
    drop(inner);
    let large = "large".repeat(2000);
    bench.append_events(&[
        Event {
            key: Some("k"),
            value: &large,
        },
        Event {
            key: Some("k"),
            value: "1",
        },
    ]);
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), ["1"]);
    assert_eq!(bench.cluster.values(LETTERS).concat(), large);
    let parts = bench.cluster.read(LETTERS);
    assert!(parts.len() >= 5);
    let number = |n: usize| parts[n].header("cmc-dead-letter-part").unwrap().to_owned();
    assert_eq!((number(0), number(1)), ("1".into(), "2".into()));
    assert!(parts.iter().all(|part| part.key.as_deref() == Some(b"k")));
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted), (1, 1));
}

/// A record above the limit fits if it compresses well, so only the broker decides.
#[test]
fn compressed_records_are_refused_by_the_broker_alone() {
    let mut bench = with_limit(1000, true, options());
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compressed = true;
    let fits = char::from(COMPRESSIBLE).to_string().repeat(2000);
    let large = "x".repeat(2000);
    bench.append_events(&["1", &fits, &large, "2"].map(|value| Event {
        key: Some("k"),
        value,
    }));
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), ["1", &fits, "2"]);
    assert_eq!(bench.cluster.values(LETTERS), [large]);
    let books = bench.books();
    assert_eq!((books.delivered, books.diverted), (3, 1));
}

#[test]
fn a_refused_dead_letter_blocks() {
    for told in [false, true] {
        let mut bench = with_limit(1000, told, options());
        bench.append_events(&[Event {
            key: None,
            value: &"x".repeat(1500),
        }]);
        bench.cluster.lock().topics.get_mut(LETTERS).unwrap().limit = Some(10);
        bench.settle_blocked(BlockReason::DeadLetterRefused);
        assert_eq!(bench.cluster.values(TOPIC), [""; 0]);
        bench.cluster.lock().topics.get_mut(LETTERS).unwrap().limit = None;
        bench.settle();
        assert_eq!(bench.cluster.values(LETTERS), bench.appended);
    }
}

#[test]
fn the_dead_letters_own_lane_diverts_nothing() {
    let mut bench = Bench::with(LaneOptions {
        stream: Stream::DeadLetters,
        dead_letter_topic: TOPIC.into(),
        ..options()
    });
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().limit = Some(1000);
    bench.append_events(&[Event {
        key: None,
        value: &"x".repeat(1500),
    }]);
    bench.settle_blocked(BlockReason::DeadLetterRefused);
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().limit = None;
    bench.settle();
    bench.check_delivered();
}

#[test]
fn a_record_refused_before_it_is_queued_does_no_harm() {
    let mut bench = Bench::with(LaneOptions {
        max_record_bytes: 2000,
        ..options()
    });
    bench.cluster.lock().client_limit = Some(2000);
    let (small, large) = append_mixed(&mut bench, 2, 7, 2500);
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), small);
    assert_eq!(bench.cluster.values(LETTERS).concat(), large.concat());
    assert_eq!(bench.cluster.lock().connects, [Mode::Batched]);
    assert_eq!(bench.books().diverted, large.len() as u64);
}

/// A refusal that shows while a record waits for room is about an earlier record, in a batch that is not yet sent whole.
#[test]
fn a_refusal_that_shows_during_sending_is_no_refusal_of_the_record_being_sent() {
    for (queue, seed) in [(1, 1), (3, 1), (3, 2), (7, 3), (12, 4)] {
        for told in [false, true] {
            let mut bench = with_limit(1000, told, options());
            let mut inner = bench.cluster.lock();
            (inner.queue, inner.seed) = (Some(queue), seed);
            drop(inner);
            let (small, large) = append_mixed(&mut bench, 6, 9, 1500);
            bench.settle();
            assert_eq!(bench.cluster.values(TOPIC), small, "queue {queue}");
            assert_eq!(bench.cluster.values(LETTERS), large, "queue {queue}");
            assert_eq!(bench.books().diverted, large.len() as u64);
        }
    }
}

#[test]
fn a_shared_topic_for_events_and_dead_letters() {
    // The record is invalid because of its null key, and so would be its dead letter.
    let mut bench = Bench::with(LaneOptions {
        dead_letter_topic: TOPIC.into(),
        ..options()
    });
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().limit = Some(3000);
    let large = "x".repeat(4000);
    bench.append_events(&[
        Event {
            key: Some("k"),
            value: &large,
        },
        Event {
            key: Some("k"),
            value: "1",
        },
    ]);
    bench.settle_blocked(BlockReason::DeadLetterRefused);
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().told = true;
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC).concat(), format!("{large}1"));
    assert_eq!(bench.books().diverted, 1);
}

// Damage, checkpoint, the clock.

#[test]
fn what_is_before_damage_is_delivered_and_nothing_behind_it() {
    let mut bench = Bench::new();
    bench.append(&[2, 2]);
    bench.append_events(&[Event {
        key: None,
        value: "to be damaged",
    }]);
    bench.append(&[2]);
    bench.crash();
    let path = bench.dir.path().join("log/00000000000000000001.segment");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(6).position(|w| w == b"to be ").unwrap();
    bytes[at] ^= 1;
    // In a segment of the page cache the first invalid record is the end. So pretend that it was synced.
    bytes[88] = 1;
    let crc = crc32c::crc32c(&bytes[12..4096]).to_le_bytes();
    bytes[8..12].copy_from_slice(&crc);
    fs::write(&path, bytes).unwrap();
    bench.start();
    bench.append(&[3]);
    bench.settle_blocked(BlockReason::Damage);
    assert_eq!(bench.cluster.values(TOPIC), bench.appended[..4]);
    assert!(!bench.lane().backlog.checkpoint_due());
    bench.settle_blocked(BlockReason::Damage);
    assert_eq!(bench.cluster.values(TOPIC), bench.appended[..4]);
    assert_eq!((bench.books().delivered, bench.books().recovered), (4, 7));
    bench.restart();
    assert!(
        bench.books().oldest_micros.is_some(),
        "events wait, though none can be read"
    );
}

#[test]
fn an_unreadable_segment_is_tried_again() {
    let mut bench = Bench::new();
    bench.append(&[2]);
    bench.restart();
    bench.append(&[2]);
    let path = bench.dir.path().join("log/00000000000000000002.segment");
    let away = bench.dir.path().join("away");
    fs::rename(&path, &away).unwrap();
    bench.settle_blocked(BlockReason::DiskError);
    assert_eq!(bench.cluster.values(TOPIC), bench.appended[..2]);
    fs::rename(&away, &path).unwrap();
    bench.settle();
    assert_eq!(bench.cluster.values(TOPIC), bench.appended);
}

#[test]
fn a_batch_that_cannot_be_decoded_holds_up_only_what_is_behind_it() {
    let mut bench = Bench::new();
    bench.append(&[2, 2]);
    bench.append_batch(Batch::of_bytes(b"\x02 of a later version".to_vec(), 1));
    bench.append(&[2]);
    bench.settle_blocked(BlockReason::Damage);
    assert_eq!(bench.cluster.values(TOPIC), bench.appended[..4]);
    assert_eq!(bench.committed(), Some(Seq(2)));
    bench.settle_blocked(BlockReason::Damage);
    assert_eq!(bench.cluster.values(TOPIC), bench.appended[..4]);
}

#[test]
fn the_checkpoint_is_stored_at_rest_at_the_end_and_by_the_clock() {
    let mut bench = Bench::new();
    let stored = |bench: &mut Bench| !bench.lane().backlog.checkpoint_due();
    bench.append(&[1]);
    assert_eq!((bench.turn(), bench.turn()), (Turn::Progress, Turn::Progress));
    assert!(!stored(&mut bench), "busy");
    assert_eq!(bench.turn(), Turn::Idle);
    assert!(stored(&mut bench), "idle");
    bench.append(&[1]);
    bench.turn();
    bench.lane().finish().unwrap();
    assert!(stored(&mut bench), "finished");
    bench.append(&[1]);
    bench.settle();
    bench.append(&[1]);
    bench.turn();
    bench.append(&[1]);
    bench.cluster.fault(BrokerFault::CommitFails);
    bench.turn();
    assert!(stored(&mut bench), "blocked");
    bench.lane().options.timing.checkpoint_every = Duration::ZERO;
    assert_eq!((bench.turn(), bench.turn()), (Turn::Progress, Turn::Progress));
    assert!(stored(&mut bench), "by the clock");
}

#[test]
fn an_idle_lane_commits_its_position_again() {
    let mut bench = Bench::new();
    bench.append(&[2]);
    bench.settle();
    let before = bench.cluster.committed(bench.group());
    bench.cluster.lock().transactions.clear();
    assert_eq!(bench.turn(), Turn::Idle);
    assert_eq!(bench.cluster.lock().transactions, [0; 0]);
    let every = bench.options.timing.recommit_every;
    bench.lane().committed_at = Instant::now().checked_sub(every);
    // It is still due after a failure.
    bench.cluster.fault(BrokerFault::CommitFails);
    assert!(matches!(bench.turn(), Turn::Blocked(_)));
    bench.settle();
    assert_eq!(bench.cluster.lock().transactions, [0]);
    assert_eq!(bench.cluster.committed(bench.group()), before);
}

#[test]
fn a_thread_drains_and_stops() {
    for (drain, blocked) in [(true, false), (false, false), (false, true)] {
        let mut bench = Bench::new();
        bench.append(&[5, 5]);
        if blocked {
            bench.cluster.delete_topic(TOPIC);
        }
        let Running { lane, log, .. } = bench.running.take().unwrap();
        let thread = LaneThread::start(lane, |error| panic!("{error}")).unwrap();
        match drain {
            true => thread.drain(),
            false => thread.stop(),
        }
        let begun = Instant::now();
        while !thread.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        if drain {
            bench.check_delivered();
        }
        drop(log);
    }
}

#[test]
fn a_panic_of_the_lane_is_a_failure_of_the_process() {
    let mut bench = Bench::new();
    bench.append(&[1]);
    bench.cluster.lock().crash = Some(Crash::Before(2));
    let Running { lane, log, .. } = bench.running.take().unwrap();
    let (failed, failure) = std::sync::mpsc::channel();
    let _thread = LaneThread::start(lane, move |error| failed.send(error).unwrap()).unwrap();
    let error = failure.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(error, SpoolError::Io { .. }), "{error}");
    drop(log);
}

/// The process dies before and after each call of a run with a bit of everything.
#[test]
fn a_crash_at_any_call_duplicates_and_loses_nothing() {
    for call in 1.. {
        let mut died = false;
        for crash in [Crash::Before(call), Crash::After(call)] {
            let mut bench = Bench::with(LaneOptions {
                transaction_events: 6,
                ..options()
            });
            bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
            bench.cluster.lock().crash = Some(crash);
            bench.append(&[2, 2, 2]);
            bench.append_events(&[Event {
                key: None,
                value: "refused",
            }]);
            bench.appended.pop();
            bench.append(&[2]);
            bench.cluster.fault(BrokerFault::ReplyLost);
            if bench.dies() {
                died = true;
                bench.start();
                bench.append(&[1]);
                bench.settle();
            }
            bench.check_delivered();
            assert_eq!(bench.cluster.values(LETTERS), ["refused"], "{crash:?}");
        }
        if !died {
            assert!(call > 30, "{call}");
            return;
        }
    }
}

#[test]
fn many_records_without_a_key_cost_few_producers() {
    let mut bench = Bench::new();
    bench.cluster.lock().topics.get_mut(TOPIC).unwrap().compacted = true;
    let values: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let events: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(n, value)| Event {
            key: (n % 10 == 0).then_some("key"),
            value,
        })
        .collect();
    bench.append_events(&events);
    bench.settle();
    let (keyed, keyless): (Vec<_>, Vec<_>) = values.iter().enumerate().partition(|(n, _)| n % 10 == 0);
    let text = |part: Vec<(usize, &String)>| {
        part.into_iter()
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(bench.cluster.values(TOPIC), text(keyed));
    assert_eq!(bench.cluster.values(LETTERS), text(keyless));
    let connects = bench.cluster.lock().connects.len();
    assert!(connects <= 4, "{connects} producers for one webhook");
}

#[test]
fn transactions_grow_with_the_backlog_and_shrink_when_they_take_too_long() {
    let mut bench = Bench::with(LaneOptions {
        transaction_events: 4000,
        ..options()
    });
    bench.append(&[250; 64]);
    bench.settle();
    assert_eq!(
        bench.cluster.lock().transactions,
        [1000, 2000, 4000, 4000, 4000, 1000]
    );
    bench.append(&[250; 16]);
    bench.cluster.lock().transactions.clear();
    bench.cluster.fault(BrokerFault::Slow);
    bench.settle();
    bench.check_delivered();
    assert_eq!(bench.cluster.lock().transactions, [1000, 2000, 1000]);
}
