//! A guard against creep: how many allocations an event costs in each part of its way, against committed figures.
//!
//! Unlike CPU time, they don't depend on the machine. Only those of Rust code in the measured thread are counted, not those of
//! librdkafka. If a figure falls, commit the lower one. If it rises, the change should be worth it.

// Test code outside of test functions may unwrap, too.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cmc_bridge::{
    batch::Batch,
    books::Books,
    cmc::{Request, explain},
    config::{self, Config},
    kafka::producer::KafkaConnect,
    lane::{
        delivery::{Lane, Turn},
        options::{LaneOptions, Timing},
    },
    metrics::Metrics,
    spool::{Appender, Durability, Log, LogMetrics, LogOptions, storage::FileSystem},
    stream::{Stream, Tally},
};
use prometheus::{Histogram, HistogramOpts, Registry};
use rdkafka::mocking::MockCluster;
use tokio::{runtime::Runtime, sync::Semaphore};

const ONE: &[u8] = include_bytes!("samples/deliveries-succeeded.json");
const HUNDRED: &[u8] = include_bytes!("samples/deliveries-batch-100.json");
const TOPIC: &str = "cmc.deliveries";
const LIMIT: Duration = Duration::from_secs(180);

/// How far a figure may be from the committed one.
const TOLERANCE: f64 = 0.05;

/// Compares figures, in allocations an event, with the committed ones.
#[track_caller]
fn compare<const N: usize>(figures: [(&str, f64, f64); N]) {
    let far = figures.iter().filter(|(what, found, committed)| {
        println!("{what}: {found:.3}, committed {committed}");
        (found / committed - 1.0).abs() > TOLERANCE
    });
    let far: Vec<_> = far.collect();
    assert!(
        far.is_empty(),
        "allocations an event, found and committed: {far:?}"
    );
}

fn configured(bootstrap: &str) -> Config {
    let settings = [
        ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
        ("KAFKA__BOOTSTRAP_SERVERS", bootstrap),
    ];
    let settings = settings.map(|(key, value)| (format!("CMC_BRIDGE__{key}"), value.to_owned()));
    config::load(&[], settings.into_iter()).unwrap().config
}

/// Makes a webhook's batch, as ingest does, and counts the allocations.
fn understand(config: &Config, body: &[u8]) -> (Batch, Tally, u64) {
    let rules = config.rules();
    let request = Request {
        body: body.trim_ascii_end(),
        content_type: Some("application/json"),
        path: "/webhooks/events",
        received_at_micros: 1_790_000_000_000_000,
    };
    let mut understood = None;
    let counted = allocation_counter::measure(|| understood = Some(explain(&request, &rules)));
    let (_, batch, tally) = understood.unwrap().split.events.unwrap();
    (batch, tally, counted.count_total)
}

#[test]
fn understanding_a_webhook() {
    let config = configured("127.0.0.1:1");
    // Caches that are made once don't count.
    understand(&config, ONE);
    let (.., one) = understand(&config, ONE);
    let (.., hundred) = understand(&config, HUNDRED);
    compare([
        ("1 event", one as f64, 14.0),
        ("100 events", hundred as f64 / 100.0, 0.19),
    ]);
}

/// A lane with a real producer and librdkafka's own simulated cluster.
struct Scene {
    config: Config,
    runtime: Runtime,
    lane: Lane<KafkaConnect>,
    appender: Appender,
    _cluster: MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
    _log: Log,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 3, 1).unwrap();
        let config = configured(&cluster.bootstrap_servers());
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            dir: dir.path().join("log"),
            name: "deliveries",
            max_bytes: 1 << 30,
            segment_bytes: 16 << 20,
            durability: Durability::PageCache,
        };
        let histogram = |name: &str| Histogram::with_opts(HistogramOpts::new(name, name)).unwrap();
        let metrics = LogMetrics {
            sync_seconds: histogram("sync"),
            commit_webhooks: histogram("webhooks"),
        };
        let failed = |error| panic!("{error}");
        let books = Arc::new(Books::default());
        let (log, backlog) = Log::open(Arc::new(FileSystem), &options, books, metrics, failed).unwrap();
        let metrics = Metrics::new(&Registry::new(), &[Stream::Deliveries], []).unwrap();
        let metrics = metrics.for_stream(Stream::Deliveries);
        let kafka = &config.kafka;
        let options = LaneOptions {
            stream: Stream::Deliveries,
            delivery: kafka.delivery,
            topic: TOPIC.to_owned(),
            dead_letter_topic: TOPIC.to_owned(),
            max_record_bytes: kafka.max_record_bytes,
            transaction_events: kafka.transaction_events,
            transaction_bytes: kafka.transaction_bytes,
            transaction_limit: LIMIT,
            timing: Timing::default(),
        };
        let connect = KafkaConnect {
            kafka: Arc::new(kafka.clone()),
            stream: Stream::Deliveries,
            topic: TOPIC.to_owned(),
            dead_letter_topic: TOPIC.to_owned(),
            runtime: runtime.handle().clone(),
            sums: metrics.kafka.clone(),
        };
        Scene {
            lane: Lane::new(options, backlog, connect, metrics),
            appender: log.appender(),
            config,
            runtime,
            _cluster: cluster,
            _log: log,
            _dir: dir,
        }
    }

    /// Stores webhooks, then has the lane deliver them. Returns its allocations for each event.
    fn deliver(&mut self, body: &[u8], webhooks: u64) -> f64 {
        let mut events = 0;
        for _ in 0..webhooks {
            let (batch, tally, _) = understand(&self.config, body);
            events += u64::from(batch.events());
            let budget = Arc::new(Semaphore::new(1));
            let permit = budget.try_acquire_owned().unwrap();
            let append = self.appender.append(batch, tally, permit, Instant::now() + LIMIT);
            self.runtime.block_on(append).unwrap();
        }
        let deadline = Instant::now() + LIMIT;
        let counted = allocation_counter::measure(|| {
            while self.lane.turn().unwrap() != Turn::Idle {
                assert!(Instant::now() < deadline);
            }
        });
        counted.count_total as f64 / events as f64
    }
}

#[test]
fn delivering_events() {
    let mut scene = Scene::new();
    // Connects.
    scene.deliver(ONE, 1);
    let hundred = scene.deliver(HUNDRED, 200);
    let one = scene.deliver(ONE, 2000);
    compare([
        ("1 event a webhook", one, 9.0),
        ("100 events a webhook", hundred, 1.16),
    ]);
}
