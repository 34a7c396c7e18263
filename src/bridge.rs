//! A whole bridge: spool, lanes, the webhooks' port and the admin port, put together and taken apart again.
//!
//! Order of the start: the certificate, the spool's lock, the logs, both ports, the lanes, and only then requests. A lane's connection to
//! Kafka is awaited by nobody.
//!
//! Order of the stop ([`Bridge::run`]): not ready; `shutdown.lame_duck` of serving on; no more requests; the logs are
//! sealed; the lanes deliver what is left until `shutdown.grace` ends. What is not delivered by then stays on disk and is
//! no error.
//!
//! After a failure of a log or a lane: no more requests, and up to [`LAST_ANSWERS`] for those that are open, for their senders
//! shall hear of a 503 rather than of nothing. Then the end, with an exit code. A port whose task is gone ends it at once.
//!
//! What the logs of disabled streams still hold is delivered, too ([`crate::leftover`]).

mod drain;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout, timeout_at},
};
use tracing::{error, info, warn};

use crate::{
    accounts::Accounts,
    admin::{
        self,
        books::{BooksCollector, StreamBooks},
        health::Health,
        metrics::{BlockReason, Metrics, TlsMetrics},
    },
    cmc::Rules,
    config::{Auth, Config, pem_faults},
    exit::Exit,
    ingest::{self, Control, Intake, Tls},
    lane::{
        LaneThread,
        kafka::KafkaConnect,
        options::{LaneOptions, Timing},
        steps::Lane,
    },
    leftover::{Leftovers, Service},
    logging::DroppedLines,
    spool::{Backlog, Log, LogMetrics, LogOptions, SpoolError, SpoolLock, storage::FileSystem},
    stream::Stream,
};

pub use drain::{Drained, drain};

/// After a failure, most time for the requests that were open to get their answer.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How often the end of the lanes is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Of the grace time, what is kept for logs and lanes to end in good order when requests or the backlog take the rest.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running bridge.
pub struct Bridge {
    config: Config,
    ingest_address: SocketAddr,
    admin_address: SocketAddr,
    control: Control,
    health: Arc<Health>,
    ingest: JoinHandle<()>,
    admin: admin::Serving,
    streams: Vec<Running>,
    failures: mpsc::UnboundedReceiver<SpoolError>,
    _lock: SpoolLock,
}

/// One stream's log and lane.
struct Running {
    stream: Stream,
    log: Log,
    lane: LaneThread,
    accounts: Arc<Accounts>,
}

/// A log that is open, and what else its lane needs.
struct Opened {
    stream: Stream,
    log: Log,
    backlog: Backlog,
    accounts: Arc<Accounts>,
}

impl Bridge {
    /// Opens the spool, binds the ports and begins to serve and deliver.
    pub async fn start(config: Config) -> Result<Bridge, Exit> {
        let registry = Registry::new();
        // Before anything is written: a pair that is refused is a matter of the configuration.
        let tls = match &config.ingest.tls {
            Some(files) => {
                let metrics = TlsMetrics::new(&registry).map_err(internal)?;
                Some(Tls::open(files.clone(), metrics)?)
            }
            None => None,
        };
        for fault in pem_faults(&config.kafka.properties) {
            warn!("{fault}");
        }
        let lock = SpoolLock::acquire(&config.spool.dir)?;
        let enabled = |stream: Stream| config.stream(stream).enabled;
        let leftovers = Leftovers::look(&config.spool.dir, enabled)?;
        let streams: Vec<Stream> = Stream::ALL
            .into_iter()
            .filter(|stream| enabled(*stream) || leftovers.has(*stream))
            .collect();
        let metrics =
            Arc::new(Metrics::new(&registry, &streams, credential_names(&config)).map_err(internal)?);
        for stream in Stream::ALL {
            metrics.set_enabled(stream, enabled(stream));
        }
        let unknown_logs = tell_unknown(&config, &leftovers, &metrics);
        let (failed, failures) = mpsc::unbounded_channel();
        let (opened, unreadable) = open_all(&config, &streams, &metrics, &failed)?;

        let appender = |stream: Stream| {
            opened
                .iter()
                .find(|o| o.stream == stream && enabled(stream))
                .map(|o| o.log.appender())
        };
        let logs = Stream::ALL.map(appender);
        let of_enabled = Stream::ALL.map(|stream| Some((stream, appender(stream)?)));
        let health = Arc::new(Health::new(of_enabled.into_iter().flatten().collect()));
        let books = books(&config, &opened, &unreadable);
        BooksCollector::new(Arc::clone(&books))
            .and_then(|collector| registry.register(Box::new(collector)))
            .map_err(internal)?;
        DroppedLines::new()
            .and_then(|collector| registry.register(Box::new(collector)))
            .map_err(internal)?;

        let rules = Rules::new(&config.ingest, &config.kafka, &config.streams);
        let intake = Intake::new(
            &config.ingest,
            rules,
            logs,
            Arc::clone(&metrics),
            Arc::clone(&health),
        );
        let ingest = ingest::Server::bind(config.ingest.listen, intake, tls)
            .await
            .map_err(|error| port_exit("ingest.listen", config.ingest.listen, &error))?;
        let sources = admin::Sources {
            registry,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            books,
            spool_dir: config.spool.dir.clone(),
            unknown_logs,
        };
        let admin = admin::Server::bind(config.admin.listen, sources)
            .map_err(|error| port_exit("admin.listen", config.admin.listen, &error))?;

        let streams = opened
            .into_iter()
            .map(|opened| start_lane(&config, opened, &metrics, &failed))
            .collect::<io::Result<Vec<_>>>()?;
        metrics.set_ready(health.readiness().is_ready());
        let admin_address = admin.local_addr();
        Ok(Bridge {
            ingest_address: ingest.local_addr(),
            admin_address,
            control: ingest.control(),
            health,
            ingest: tokio::spawn(ingest.run()),
            admin: admin.start()?,
            streams,
            failures,
            config,
            _lock: lock,
        })
    }

    /// Where webhooks are taken.
    pub fn ingest_address(&self) -> SocketAddr {
        self.ingest_address
    }

    /// Where metrics and probes are served.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until `stop` gives its first word, then stops in good order. The second word ends it at once.
    pub async fn run(mut self, mut stop: mpsc::Receiver<()>) -> Result<(), Exit> {
        tokio::select! {
            Some(error) = self.failures.recv() => {
                self.control.stop();
                let _ = timeout(LAST_ANSWERS, self.ingest).await;
                return Err(error.into());
            }
            _ = &mut self.ingest => return Err(panicked("the webhooks' port")),
            () = self.admin.ended() => return Err(panicked("the admin port")),
            _ = stop.recv() => {}
        }
        let failures = std::mem::replace(&mut self.failures, mpsc::unbounded_channel().1);
        see_through(self.stop(), stop, failures).await
    }

    async fn stop(self) {
        let shutdown = self.config.shutdown;
        info!(lame_duck = ?shutdown.lame_duck, grace = ?shutdown.grace, "stopping");
        self.health.drain();
        self.control.lame_duck();
        sleep(shutdown.lame_duck).await;

        let deadline = Instant::now() + shutdown.grace;
        let last_words = deadline - LAST_WORDS.min(shutdown.grace / 5);
        self.control.stop();
        if timeout_at(last_words.into(), self.ingest).await.is_err() {
            warn!("requests were still open when the grace time ended");
        }
        let (logs, lanes): (Vec<_>, Vec<_>) = self
            .streams
            .into_iter()
            .map(|running| (running.log, (running.stream, running.lane, running.accounts)))
            .unzip();
        let sealed = tokio::task::spawn_blocking(|| logs.into_iter().for_each(|mut log| log.close()));
        if timeout_at(deadline.into(), sealed).await.is_err() {
            warn!("the disk was still busy when the grace time ended");
        }
        for (_, lane, _) in &lanes {
            lane.drain();
        }
        let all_ended = || lanes.iter().all(|(_, lane, _)| lane.is_finished());
        while !all_ended() && Instant::now() < deadline {
            if Instant::now() >= last_words {
                lanes.iter().for_each(|(_, lane, _)| lane.stop());
            }
            sleep(LOOK).await;
        }
        for (stream, _, accounts) in &lanes {
            let books = accounts.snapshot();
            let backlog = books.backlog();
            info!(%stream, delivered = books.delivered, diverted = books.diverted, backlog, "the stream has stopped");
        }
        drop(self.admin);
        info!("stopped");
    }
}

/// Waits for the end of a stop, which a failure cuts short and a further word ends at once.
async fn see_through(
    stopping: impl Future<Output = ()>,
    mut stop: mpsc::Receiver<()>,
    mut failures: mpsc::UnboundedReceiver<SpoolError>,
) -> Result<(), Exit> {
    {
        let mut stopping = pin!(stopping);
        tokio::select! {
            Some(error) = failures.recv() => {
                let _ = timeout(LAST_ANSWERS, stopping).await;
                return Err(error.into());
            }
            Some(()) = stop.recv() => warn!("stopped at once; what is not delivered stays in the spool"),
            () = &mut stopping => {}
        }
    }
    // Logs and lanes have their last words, too: while this ended, or when it was cut short and dropped.
    failures.try_recv().map_or(Ok(()), |error| Err(error.into()))
}

/// Says which logs this version can't deliver; gives their names.
fn tell_unknown(config: &Config, leftovers: &Leftovers, metrics: &Metrics) -> Vec<String> {
    for (name, left) in &leftovers.unknown {
        error!(
            log = %config.spool.dir.join(name).display(),
            "the spool holds the log of a stream that this version doesn't know, with {left}: the newer version that wrote it \
             can deliver that; a copy under another name belongs elsewhere"
        );
    }
    metrics.set_unknown_logs(leftovers.unknown.len());
    leftovers.unknown.iter().map(|(name, _)| name.clone()).collect()
}

/// Opens the logs of these streams. A disabled one's takes no batches, and one of those that can't be opened is given
/// apart: it keeps nobody from starting.
fn open_all(
    config: &Config,
    streams: &[Stream],
    metrics: &Metrics,
    failed: &mpsc::UnboundedSender<SpoolError>,
) -> Result<(Vec<Opened>, Vec<Stream>), SpoolError> {
    let (mut all, mut unreadable) = (Vec::new(), Vec::new());
    for (stream, opened) in open_logs(config, streams, metrics, failed) {
        let enabled = config.stream(stream).enabled;
        match opened {
            Ok(mut opened) => {
                if !enabled {
                    opened.log.close();
                    let (events, topic) =
                        (opened.accounts.snapshot().backlog(), &config.stream(stream).topic);
                    warn!(%stream, events, topic, "the stream is disabled: what its log still holds is delivered, and no webhook is taken");
                }
                all.push(opened);
            }
            Err(error) if !enabled => {
                let message = format!(
                    "the stream is disabled, and its log can't be opened, so its events are not delivered: {error}"
                );
                error!(%stream, "{message}");
                let reason = match error {
                    SpoolError::Io { .. } => BlockReason::DiskError,
                    SpoolError::Unusable { .. } | SpoolError::Locked { .. } => BlockReason::Damage,
                };
                metrics.for_stream(stream).lane_blocked(reason, &message);
                unreadable.push(stream);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((all, unreadable))
}

fn open_logs(
    config: &Config,
    streams: &[Stream],
    metrics: &Metrics,
    failed: &mpsc::UnboundedSender<SpoolError>,
) -> Vec<(Stream, Result<Opened, SpoolError>)> {
    // Side by side: each makes and syncs a fresh segment.
    thread::scope(|scope| {
        let open = |stream| open_log(config, stream, metrics, failed.clone());
        let threads: Vec<_> = streams
            .iter()
            .map(|stream| (*stream, scope.spawn(move || open(*stream))))
            .collect();
        threads
            .into_iter()
            .map(|(stream, thread)| {
                let opened = thread.join();
                (
                    stream,
                    opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                )
            })
            .collect()
    })
}

fn open_log(
    config: &Config,
    stream: Stream,
    metrics: &Metrics,
    failed: mpsc::UnboundedSender<SpoolError>,
) -> Result<Opened, SpoolError> {
    let accounts = Arc::new(Accounts::default());
    let options = LogOptions {
        dir: config.spool.dir.join(stream.name()),
        name: stream.name(),
        max_bytes: config.spool.max_bytes,
        segment_bytes: config.spool.segment_bytes,
        durability: config.spool.durability,
    };
    let of_stream = metrics.for_stream(stream);
    let log_metrics = LogMetrics {
        sync_seconds: of_stream.sync_seconds.clone(),
        commit_webhooks: of_stream.commit_webhooks.clone(),
    };
    let on_failure = move |error| {
        // Nobody receives any more when the process is ending already.
        let _ = failed.send(error);
    };
    let (log, backlog) = Log::open(
        Arc::new(FileSystem),
        &options,
        Arc::clone(&accounts),
        log_metrics,
        on_failure,
    )?;
    for damage in log.damage() {
        error!(%stream, "the spool is damaged: {damage}");
    }
    let backlog_events = accounts.snapshot().backlog();
    info!(%stream, backlog_events, "the log is open");
    Ok(Opened {
        stream,
        log,
        backlog,
        accounts,
    })
}

fn start_lane(
    config: &Config,
    opened: Opened,
    metrics: &Metrics,
    failed: &mpsc::UnboundedSender<SpoolError>,
) -> io::Result<Running> {
    let Opened {
        stream,
        log,
        backlog,
        accounts,
    } = opened;
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
        timing: Timing::default(),
    };
    let of_stream = metrics.for_stream(stream);
    let connect = KafkaConnect {
        kafka,
        stream,
        topic,
        dead_letter_topic,
        runtime: Handle::current(),
        sums: of_stream.kafka.clone(),
    };
    let lane = Lane::new(options, backlog, connect, of_stream);
    let failed = failed.clone();
    let lane = LaneThread::start(lane, move |error| {
        let _ = failed.send(error);
    })?;
    if !config.stream(stream).enabled {
        lane.drain();
    }
    Ok(Running {
        stream,
        log,
        lane,
        accounts,
    })
}

fn books(config: &Config, opened: &[Opened], unreadable: &[Stream]) -> Arc<[StreamBooks]> {
    let of = |stream: Stream, service, accounts, spool_bytes| StreamBooks {
        stream,
        topic: config.stream(stream).topic.clone(),
        service,
        accounts,
        spool_bytes,
        spool_limit_bytes: config.spool.max_bytes,
    };
    let mut books: Vec<StreamBooks> = opened
        .iter()
        .map(|opened| {
            let appender = opened.log.appender();
            let service = match config.stream(opened.stream).enabled {
                true => Service::Enabled,
                false => Service::Leftover,
            };
            let used = Box::new(move || appender.used_bytes());
            of(opened.stream, service, Arc::clone(&opened.accounts), used)
        })
        .collect();
    books.extend(
        unreadable
            .iter()
            .map(|stream| of(*stream, Service::Unreadable, Arc::default(), Box::new(|| 0))),
    );
    books.sort_by_key(|books| books.stream);
    books.into()
}

fn credential_names(config: &Config) -> Vec<&str> {
    match &config.ingest.auth {
        Auth::Anonymous => Vec::new(),
        Auth::Credentials(credentials) => credentials.iter().map(|c| c.name.as_str()).collect(),
    }
}

fn port_exit(key: &str, address: SocketAddr, error: &io::Error) -> Exit {
    Exit::Unavailable(format!("cannot listen on {address} ({key}): {error}"))
}

/// A panic is a bug, and must not leave a process that runs and does nothing.
fn panicked(what: &str) -> Exit {
    Exit::Unavailable(format!("{what} is served no more; why stands in the log above"))
}

fn internal(error: prometheus::Error) -> Exit {
    Exit::Unavailable(format!("metrics could not be registered: {error}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    const HEAD: &[u8] =
        b"POST /webhooks/events HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";

    fn failure() -> SpoolError {
        SpoolError::Io {
            action: "sync",
            path: "x".into(),
            source: io::Error::other("broken"),
        }
    }

    #[tokio::test]
    async fn what_fails_at_the_very_end_of_a_stop_is_told() {
        let (failed, failures) = mpsc::unbounded_channel();
        let (_words, stop) = mpsc::channel(1);
        let stopping = async move { failed.send(failure()).unwrap() };
        let ended = see_through(stopping, stop, failures).await;
        assert!(matches!(ended, Err(Exit::Io(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn what_fails_when_a_second_word_cuts_a_stop_short_is_told() {
        struct Log(mpsc::UnboundedSender<SpoolError>);
        impl Drop for Log {
            fn drop(&mut self) {
                self.0.send(failure()).unwrap();
            }
        }
        let (failed, failures) = mpsc::unbounded_channel();
        let (words, stop) = mpsc::channel(1);
        words.send(()).await.unwrap();
        let log = Log(failed);
        let stopping = async move {
            let _log = log;
            std::future::pending().await
        };
        let ended = see_through(stopping, stop, failures).await;
        assert!(matches!(ended, Err(Exit::Io(_))), "{ended:?}");
    }

    /// A bridge whose lanes are blocked from the first moment on, and wait for nobody.
    async fn start(dir: &Path) -> Bridge {
        let variable = (
            "CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS".to_owned(),
            "true".to_owned(),
        );
        let mut config = crate::config::load(&[], std::iter::once(variable))
            .unwrap()
            .config;
        config.spool.dir = dir.to_path_buf();
        config.ingest.listen = "127.0.0.1:0".parse().unwrap();
        config.admin.listen = config.ingest.listen;
        config.shutdown.lame_duck = Duration::ZERO;
        config.shutdown.grace = Duration::from_secs(5);
        config
            .kafka
            .properties
            .insert("no.such.property".into(), "x".into());
        Bridge::start(config).await.unwrap()
    }

    #[tokio::test]
    async fn a_server_that_is_gone_ends_the_process() {
        let ends: [fn(&mut Bridge); 2] = [|bridge| bridge.ingest.abort(), |bridge| bridge.admin.break_off()];
        for end in ends {
            let dir = tempfile::tempdir().unwrap();
            let mut bridge = start(dir.path()).await;
            end(&mut bridge);
            let (_words, stop) = mpsc::channel(1);
            assert!(matches!(bridge.run(stop).await, Err(Exit::Unavailable(_))));
        }
    }

    #[tokio::test]
    async fn a_failure_leaves_those_who_wait_their_answers() {
        let dir = tempfile::tempdir().unwrap();
        let mut bridge = start(dir.path()).await;
        let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
        client.write_all(HEAD).await.unwrap();
        client.readable().await.unwrap();
        let (failed, failures) = mpsc::unbounded_channel();
        bridge.failures = failures;
        failed.send(failure()).unwrap();
        let (_words, stop) = mpsc::channel(1);
        let ingest = bridge.ingest.abort_handle();
        let ending = tokio::spawn(bridge.run(stop));
        client.write_all(b"something").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("HTTP/1.1 400"), "{answer}");
        assert!(matches!(ending.await.unwrap(), Err(Exit::Io(_))));
        assert!(ingest.is_finished());
    }

    #[tokio::test]
    async fn a_client_that_takes_its_time_leaves_logs_and_lanes_theirs() {
        // A machine that stalls may take their second; a stop that leaves them none takes it each time.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let mut bridge = start(dir.path()).await;
            let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
            client.write_all(HEAD).await.unwrap();
            // Its answer says that the body is being read.
            client.readable().await.unwrap();
            let mut failures = std::mem::replace(&mut bridge.failures, mpsc::unbounded_channel().1);
            bridge.stop().await;
            // All that could fail has ended.
            if matches!(failures.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
                return;
            }
        }
        panic!("logs and lanes had no time left");
    }
}
