//! One process of the bridge: the intake, and each stream's log, preparer and lane, as steps without threads.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use prometheus::Registry;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    plan::Plan,
    webhook::{MadeWebhook, content_type},
};
use crate::{
    books::Books,
    cmc::{InboundRules, MailContent, Rules, Secrets},
    config::{self, Auth},
    ingest::Intake,
    lane::delivery::Lane,
    metrics::{Metrics, Outcome},
    repeats::Repeats,
    simulation::{
        broker::Cluster,
        disk::{Pause, SimDisk},
    },
    spool::{
        Appender, Damage, LogMetrics, SpoolError,
        tests::harness::{OpenedLog, SteppedLog, ThreadStep, fail},
    },
    stream::Stream,
};

/// Longer than any run.
const LONG: Duration = Duration::from_secs(3600);

/// Created only once per thread of the simulation, because it costs more than a run.
pub struct PerThread {
    runtime: Runtime,
    metrics: Arc<Metrics>,
    ingest: config::Ingest,
    rules: Rules,
}

impl PerThread {
    pub fn new() -> PerThread {
        let metrics = Metrics::new(&Registry::new(), &Stream::ALL, []).unwrap();
        let (ingest, rules) = configuration();
        PerThread {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap(),
            metrics: Arc::new(metrics),
            ingest,
            rules,
        }
    }

    /// Runs the webhooks' tasks until they wait for something.
    pub fn drive(&self) {
        self.runtime.block_on(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// A running process. A step takes its part out, so that no other step can run it meanwhile.
pub struct Process {
    intake: Arc<Intake>,
    pub pipes: Vec<StreamParts>,
    /// Unanswered webhooks, by the oracle's number.
    webhooks: RefCell<Vec<(usize, Arc<OnceLock<Outcome>>)>>,
    /// Those that this process has acknowledged.
    acknowledged: RefCell<BTreeSet<usize>>,
    /// End with the process.
    tasks: RefCell<JoinSet<()>>,
    /// Something has failed for good, and the process ends after this many more steps.
    pub ends_in: Cell<Option<u64>>,
    pub gone: Cell<bool>,
}

pub struct StreamParts {
    pub stream: Stream,
    pub log: RefCell<Option<SteppedLog>>,
    pub lane: RefCell<Option<Lane<Cluster>>>,
    appender: Appender,
    pub prepare: ThreadStep,
    /// Whether the preparer is at work.
    pub preparing: Cell<bool>,
    pub books: Arc<Books>,
    pub damage: Vec<Damage>,
}

impl Process {
    /// Opens the logs and assembles the process, as `Bridge::start` does.
    pub fn start(
        shared: &PerThread,
        plan: &Plan,
        disk: &SimDisk,
        cluster: &Cluster,
        pause: &Pause,
    ) -> Result<Process, SpoolError> {
        let mut logs = [const { None }; Stream::ALL.len()];
        let mut pipes = Vec::new();
        let repeats = plan.repeats.then(|| Arc::new(Repeats::new(LONG * 1000)));
        for stream in plan.streams() {
            let books = Arc::new(Books::default());
            let metrics = shared.metrics.for_stream(*stream);
            let log_metrics = LogMetrics {
                sync_seconds: metrics.sync_seconds.clone(),
                commit_webhooks: metrics.commit_webhooks.clone(),
            };
            let storage = disk.mount_with(Some(Arc::clone(pause)));
            let OpenedLog {
                log,
                mut backlog,
                appender,
                damage,
                prepare,
            } = SteppedLog::open(storage, &plan.log(*stream), Arc::clone(&books), log_metrics)?;
            if let Some(repeats) = repeats.as_ref().filter(|_| Stream::EVENTS.contains(stream)) {
                // What can't be read is not known.
                let _ = backlog.each_held(|payload| repeats.note_batch(*stream, payload));
            }
            logs[stream.index()] = Some(appender.clone());
            let connect = cluster.for_lane(plan.topic(*stream), Arc::clone(pause));
            let lane = Lane::new(plan.lane(*stream), backlog, connect, metrics);
            pipes.push(StreamParts {
                stream: *stream,
                log: RefCell::new(Some(log)),
                lane: RefCell::new(Some(lane)),
                appender,
                prepare,
                preparing: Cell::new(false),
                books,
                damage,
            });
        }
        let intake = Intake::new(
            &shared.ingest,
            Rules {
                repeats,
                ..shared.rules.clone()
            },
            logs,
            Arc::clone(&shared.metrics),
            || true,
        );
        Ok(Process {
            intake: Arc::new(intake),
            pipes,
            webhooks: RefCell::default(),
            acknowledged: RefCell::default(),
            tasks: RefCell::default(),
            ends_in: Cell::new(None),
            gone: Cell::new(false),
        })
    }

    /// Posts a webhook; `number` is the oracle's.
    pub fn post(&self, shared: &PerThread, number: usize, webhook: &MadeWebhook) {
        let answer = Arc::new(OnceLock::new());
        self.webhooks.borrow_mut().push((number, Arc::clone(&answer)));
        let intake = Arc::clone(&self.intake);
        let (endpoint, body) = (webhook.endpoint, Bytes::clone(&webhook.body));
        let task = async move {
            let outcome = intake.take_body(endpoint, content_type(endpoint), body).await;
            let _ = answer.set(outcome);
        };
        self.tasks.borrow_mut().spawn_on(task, shared.runtime.handle());
        shared.drive();
    }

    /// The answers since the last call.
    pub fn answers(&self) -> Vec<(usize, Outcome)> {
        let mut answers = Vec::new();
        self.webhooks.borrow_mut().retain(|(number, answer)| {
            answers.extend(answer.get().map(|outcome| (*number, *outcome)));
            answer.get().is_none()
        });
        answers
    }

    /// A webhook was acknowledged.
    pub fn has_acknowledged(&self, number: usize) {
        self.acknowledged.borrow_mut().insert(number);
    }

    /// Whether it must know the events of this webhook, if it drops repeats.
    pub fn knows(&self, number: usize) -> bool {
        self.acknowledged.borrow().contains(&number)
    }

    /// Whether a webhook waits for its answer.
    pub fn is_busy(&self) -> bool {
        !self.webhooks.borrow().is_empty()
    }
}

impl Drop for StreamParts {
    /// Answers the webhooks that still wait. They own the queue that they wait for, and would never be freed.
    fn drop(&mut self) {
        fail(&self.appender);
    }
}

fn configuration() -> (config::Ingest, Rules) {
    let ingest = config::Ingest {
        listen: ([127, 0, 0, 1], 0).into(),
        path: "/webhooks/events".to_owned(),
        inbound_path: "/webhooks/inbound".to_owned(),
        inbound_max_body_bytes: 1 << 20,
        health_path: None,
        auth: Auth::Anonymous,
        credential_files: Vec::new(),
        max_body_bytes: 1 << 20,
        max_events: 100,
        time_zone: jiff::tz::TimeZone::UTC,
        time_zones: Default::default(),
        malformed_status: 400,
        repeat_window: None,
        max_connections: 1,
        max_bytes_in_flight: 1 << 20,
        header_timeout: LONG,
        body_timeout: LONG,
        idle_timeout: LONG,
        append_timeout: LONG,
        retry_after: LONG,
        tls: None,
    };
    let rules = Rules {
        enabled: Stream::ALL.map(|stream| stream != Stream::Blocks),
        max_events: ingest.max_events,
        max_record_bytes: config::Kafka::for_tests().max_record_bytes,
        time_zone: ingest.time_zone.clone(),
        time_zones: ingest.time_zones.clone(),
        secrets: Secrets::new([]),
        inbound: Some(InboundRules {
            path: ingest.inbound_path.clone(),
            content: MailContent::All,
        }),
        repeats: None,
    };
    (ingest, rules)
}
