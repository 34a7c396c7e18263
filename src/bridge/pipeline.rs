//! A stream of this process: its log and its lane, opened by a thread of its own.
//!
//! Streams don't wait for each other: if a disk hangs under a log, or the log can't be opened, only its own webhooks are refused.
//! Opening is tried again, with growing waits, for as long as the bridge runs. Each try starts like a new process, so it trusts
//! nothing that an earlier try left. Meanwhile the lane counts as blocked, with the reason.
//!
//! A stream that takes no webhooks (a disabled one, or any while a spool is drained) has the same pipeline. As soon as its log is
//! open, it is closed to batches, and the lane ends when it has delivered the backlog.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::{runtime::Handle, sync::mpsc};
use tracing::{error, info, warn};

use crate::{
    books::Books,
    config::Config,
    human,
    kafka::producer::KafkaConnect,
    lane::{
        LaneThread,
        delivery::Lane,
        options::{LaneOptions, Timing},
    },
    metrics::{BlockReason, Metrics},
    priority,
    repeats::Repeats,
    spool::{Appender, Backlog, Log, LogMetrics, LogOptions, SpoolError, storage::FileSystem},
    stream::Stream,
};

/// The wait between two tries to open a log, at first and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The state that the streams of a process share.
pub(super) struct PipelineContext {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    pub failed: mpsc::UnboundedSender<SpoolError>,
    pub runtime: Handle,
    pub purpose: Purpose,
    /// What is to know the events that the logs hold.
    pub repeats: Option<Arc<Repeats>>,
}

impl PipelineContext {
    fn takes_webhooks(&self, stream: Stream) -> bool {
        self.purpose == Purpose::Serve && self.config.stream(stream).enabled
    }
}

/// Why streams are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To take the webhooks of enabled streams and deliver. Opening a log is tried until it succeeds.
    Serve,
    /// To deliver what the logs hold, and nothing else.
    Drain,
}

/// One stream.
pub(super) struct Pipeline {
    pub stream: Stream,
    pub takes_webhooks: bool,
    pub books: Arc<Books>,
    pub appender: Appender,
    slot: Arc<Slot>,
}

/// An open log and its lane.
pub(super) struct OpenPipeline {
    pub log: Log,
    pub lane: LaneThread,
}

/// Where the opening thread leaves the open log and its lane.
struct Slot {
    phase: Mutex<Phase>,
    changed: Condvar,
}

enum Phase {
    Opening,
    /// The last try has failed.
    Failed(SpoolError),
    Open(OpenPipeline),
    /// Taken: a log that is opened now is not wanted any more.
    Over,
}

impl Pipeline {
    /// Begins to open a stream's log.
    ///
    /// # Errors
    /// The log's thread can't be started.
    pub fn start(context: &Arc<PipelineContext>, stream: Stream) -> io::Result<Pipeline> {
        let pipeline = Pipeline {
            stream,
            takes_webhooks: context.takes_webhooks(stream),
            books: Arc::default(),
            appender: Appender::of_closed_log(context.config.spool.max_bytes),
            slot: Arc::new(Slot {
                phase: Mutex::new(Phase::Opening),
                changed: Condvar::new(),
            }),
        };
        let opening = Opening {
            context: Arc::clone(context),
            stream,
            books: Arc::clone(&pipeline.books),
            appender: pipeline.appender.clone(),
        };
        let slot = Arc::clone(&pipeline.slot);
        thread::Builder::new()
            .name(format!("open-{stream}"))
            .spawn(move || {
                if stream.is_grouped() {
                    // The threads of its log, its lane and its Kafka clients inherit this.
                    priority::lower();
                }
                slot.run(&opening);
            })?;
        Ok(pipeline)
    }

    /// Waits until the first try has ended, at most until this time. Returns whether it has.
    pub fn wait(&self, until: Instant) -> bool {
        let limit = until.saturating_duration_since(Instant::now());
        let opening = |phase: &mut Phase| matches!(phase, Phase::Opening);
        let mut phase = self.slot.lock();
        self.slot.changed.wait_while_for(&mut phase, opening, limit);
        !matches!(*phase, Phase::Opening)
    }

    /// Takes the error of the last try to open the log, if it failed.
    pub fn take_error(&self) -> Option<SpoolError> {
        let mut phase = self.slot.lock();
        match std::mem::replace(&mut *phase, Phase::Over) {
            Phase::Failed(error) => Some(error),
            other => {
                *phase = other;
                None
            }
        }
    }

    /// Whether the last try to open the log has failed.
    pub fn has_failed(&self) -> bool {
        matches!(*self.slot.lock(), Phase::Failed(_))
    }

    /// Looks at the log and its lane, if they are open.
    pub fn look<T>(&self, look: impl FnOnce(&OpenPipeline) -> T) -> Option<T> {
        match &*self.slot.lock() {
            Phase::Open(open) => Some(look(open)),
            _ => None,
        }
    }

    /// Takes log and lane. A log that is not open yet is no longer opened.
    pub fn take(&self) -> Option<OpenPipeline> {
        let mut phase = self.slot.lock();
        let before = std::mem::replace(&mut *phase, Phase::Over);
        self.slot.changed.notify_all();
        match before {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.take();
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock()
    }

    /// Opens the log, repeatedly if necessary.
    fn run(&self, opening: &Opening) {
        let mut wait = FIRST_WAIT;
        loop {
            let opened = opening.try_once();
            let is_open = opened.is_ok();
            {
                let mut phase = self.lock();
                if matches!(*phase, Phase::Over) {
                    return;
                }
                *phase = opened.map_or_else(Phase::Failed, Phase::Open);
                self.changed.notify_all();
                if is_open || opening.context.purpose == Purpose::Drain {
                    return;
                }
                let failed = |phase: &mut Phase| matches!(phase, Phase::Failed(_));
                self.changed.wait_while_for(&mut phase, failed, wait);
                if matches!(*phase, Phase::Over) {
                    return;
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// What a stream's thread needs to open its log.
struct Opening {
    context: Arc<PipelineContext>,
    stream: Stream,
    books: Arc<Books>,
    appender: Appender,
}

impl Opening {
    fn try_once(&self) -> Result<OpenPipeline, SpoolError> {
        let stream = self.stream;
        let metrics = self.context.metrics.for_stream(stream);
        let mut opened = self.open_log().and_then(|(log, backlog)| {
            metrics.lane_free();
            let cannot_start = |source| SpoolError::Io {
                action: "start a thread for",
                path: self.options().dir,
                source,
            };
            let backlog = self.with_repeats(backlog);
            let lane = self.start_lane(backlog).map_err(|error| {
                // The log has taken webhooks, and closes for good: only a new process can open it again.
                let same = error.raw_os_error().map(io::Error::from_raw_os_error);
                let _ = self.context.failed.send(cannot_start(error));
                cannot_start(same.unwrap_or_else(|| io::ErrorKind::Other.into()))
            })?;
            Ok(OpenPipeline { log, lane })
        });
        if let Ok(running) = &mut opened
            && !self.context.takes_webhooks(stream)
        {
            // Done on this thread, where a disk that hangs delays no other stream.
            running.log.close();
            running.lane.drain();
            if self.context.purpose == Purpose::Serve {
                let (events, topic) = (
                    self.books.snapshot().backlog(),
                    &self.context.config.stream(stream).topic,
                );
                warn!(%stream, events, topic, "the stream is disabled: what its log still holds is delivered, and no webhook is taken");
            }
        }
        if let Err(failure) = &opened {
            let (reason, cause, cure) = cannot_open(failure, self.context.config.stream(stream).enabled);
            metrics.lane_blocked(reason, &cause, cure);
            error!(%stream, reason = reason.label(), "{}", human::with_cure(&cause, cure));
        }
        opened
    }

    fn options(&self) -> LogOptions {
        let spool = &self.context.config.spool;
        LogOptions {
            dir: spool.dir.join(self.stream.name()),
            name: self.stream.name(),
            max_bytes: spool.max_bytes,
            segment_bytes: spool.segment_bytes,
            durability: spool.durability,
        }
    }

    fn open_log(&self) -> Result<(Log, Backlog), SpoolError> {
        let stream = self.stream;
        let of_stream = self.context.metrics.for_stream(stream);
        let log_metrics = LogMetrics {
            sync_seconds: of_stream.sync_seconds.clone(),
            commit_webhooks: of_stream.commit_webhooks.clone(),
        };
        let failed = self.context.failed.clone();
        let on_failure = move |error| {
            // Nobody receives it if the process is already ending.
            let _ = failed.send(error);
        };
        let (log, backlog) = Log::open_for(
            &self.appender,
            Arc::new(FileSystem),
            &self.options(),
            Arc::clone(&self.books),
            log_metrics,
            on_failure,
        )?;
        for damage in log.damage() {
            match damage.is_harmless() {
                true => warn!(%stream, "the spool is damaged: {damage}"),
                false => error!(%stream, "the spool is damaged: {damage}"),
            }
        }
        let backlog_events = self.books.snapshot().backlog();
        info!(%stream, backlog_events, "the log is open");
        Ok((log, backlog))
    }

    /// Makes the events that the log holds known, before the lane begins to let go of them. It takes webhooks meanwhile.
    fn with_repeats(&self, mut backlog: Backlog) -> Backlog {
        if let Some(repeats) = &self.context.repeats
            && Stream::EVENTS.contains(&self.stream)
            && self.context.takes_webhooks(self.stream)
        {
            let stream = self.stream;
            let read = backlog.each_held(|payload| repeats.note_batch(stream, payload));
            if let Err(error) = read {
                warn!(%stream, %error, "repeats of events after this place in the log are not recognised");
            }
        }
        backlog
    }

    fn start_lane(&self, backlog: Backlog) -> io::Result<LaneThread> {
        let (config, stream) = (&self.context.config, self.stream);
        let kafka = Arc::new(config.kafka.clone());
        let topic = config.stream(stream).topic.clone();
        let dead_letter_topic = config.stream(Stream::DeadLetters).topic.clone();
        let options = LaneOptions {
            stream,
            delivery: kafka.delivery,
            topic: topic.clone(),
            dead_letter_topic: dead_letter_topic.clone(),
            max_record_bytes: kafka.max_record_bytes,
            transaction_events: kafka.transaction_events,
            transaction_bytes: kafka.transaction_bytes,
            transaction_limit: kafka.transaction_timeout * 2 / 3,
            timing: Timing {
                commit_interval: kafka.commit_interval,
                ..Timing::default()
            },
        };
        let of_stream = self.context.metrics.for_stream(stream);
        let connect = KafkaConnect {
            kafka,
            stream,
            topic,
            dead_letter_topic,
            runtime: self.context.runtime.clone(),
            sums: of_stream.kafka.clone(),
        };
        let lane = Lane::new(options, backlog, connect, of_stream);
        let failed = self.context.failed.clone();
        LaneThread::start(lane, move |error| {
            let _ = failed.send(error);
        })
    }
}

/// Reason, cause and cure for a stream whose log can't be opened.
fn cannot_open(error: &SpoolError, enabled: bool) -> (BlockReason, String, &'static str) {
    let reason = match error {
        SpoolError::Unusable { .. } => BlockReason::Damage,
        error if error.is_no_space() => BlockReason::Other,
        _ => BlockReason::DiskError,
    };
    match enabled {
        true => (
            reason,
            format!("the log can't be opened: {error}"),
            "Its webhooks are answered 503 and nothing of it is delivered until it can; the other streams go on",
        ),
        false => (
            reason,
            format!("the stream is disabled, and its log can't be opened: {error}"),
            "Nothing of it is delivered until it can; the other streams go on",
        ),
    }
}
