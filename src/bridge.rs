//! A whole bridge: spool, lanes, the webhooks' port and the admin port, put together and taken apart again.
//!
//! Order of the start: the certificate, the spool's lock, the logs with their lanes, both ports, and only then requests. A lane's
//! connection to Kafka is awaited by nobody, and a log for [`PATIENCE`] at most: one that hangs or can't be opened keeps its own
//! webhooks waiting, and no other stream ([`pipe`]). Only when no enabled event stream's log can be opened the process ends.
//!
//! Order of the stop ([`Bridge::run`]): not ready; `shutdown.lame_duck` of serving on; no more requests; the logs are
//! sealed; the lanes deliver what is left until `shutdown.grace` ends. What is not delivered by then stays on disk and is
//! no error.
//!
//! After a failure of a log or a lane: no more requests, and up to [`LAST_ANSWERS`] for those that are open, for their senders
//! shall hear of a 503 rather than of nothing. Then the end, with an exit code. A port whose task is gone ends it at once.
//!
//! What the logs of disabled streams still hold is delivered, too ([`crate::leftover`]).
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`drain`](mod@drain) | a spool without its bridge, delivered |
//! | [`error`](mod@error) | why a bridge did not start, or ended |
//! | [`pipe`] | one stream's log and lane, opened on their own |

mod drain;
mod error;
mod pipe;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{sleep, timeout, timeout_at},
};
use tracing::{error, info, warn};

use self::pipe::{Context, Pipe, Purpose, Running};
use crate::{
    admin::{
        self,
        books::{BooksCollector, StreamBooks},
        health::Health,
    },
    config::{Auth, Config, pem_faults},
    ingest::{Intake, StopHandle, TlsContext, WebhookServer},
    leftover::{Leftovers, Service},
    logging::DroppedLines,
    metrics::{Metrics, TlsMetrics},
    spool::{SpoolError, SpoolLock},
    stream::Stream,
};

pub use self::{
    drain::{Drained, drain},
    error::BridgeError,
};

/// How long the start waits for the logs.
const PATIENCE: Duration = Duration::from_secs(5);
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
    stop: StopHandle,
    health: Arc<Health>,
    ingest: JoinHandle<()>,
    admin: admin::Serving,
    streams: Vec<Pipe>,
    failures: mpsc::UnboundedReceiver<SpoolError>,
}

impl Bridge {
    /// Opens the spool, binds the ports and begins to serve and deliver.
    pub async fn start(config: Config) -> Result<Bridge, BridgeError> {
        let registry = Registry::new();
        // Before anything is written: a pair that is refused is a matter of the configuration.
        let tls = match &config.ingest.tls {
            Some(files) => {
                let metrics = TlsMetrics::new(&registry)?;
                Some(TlsContext::open(files.clone(), metrics)?)
            }
            None => None,
        };
        for fault in pem_faults(&config.kafka.properties) {
            warn!("{fault}");
        }
        SpoolLock::acquire(&config.spool.dir)?.until_the_process_ends();
        let leftovers = look_for_leftovers(&config).await?;
        let enabled = |stream: Stream| config.stream(stream).enabled;
        let streams: Vec<Stream> = Stream::ALL
            .into_iter()
            .filter(|stream| enabled(*stream) || leftovers.has(*stream))
            .collect();
        let metrics = Arc::new(Metrics::new(&registry, &streams, credential_names(&config))?);
        for stream in Stream::ALL {
            metrics.set_enabled(stream, enabled(stream));
        }
        let unknown_logs = tell_unknown(&config, &leftovers, &metrics);
        let (failed, failures) = mpsc::unbounded_channel();
        let context = Context {
            config: config.clone(),
            metrics: Arc::clone(&metrics),
            failed,
            runtime: Handle::current(),
            purpose: Purpose::Serve,
        };
        let streams = open(context, &streams).await?;

        let appender = |stream: Stream| {
            let mut streams = streams.iter();
            streams
                .find(|pipe| pipe.stream == stream && pipe.takes_webhooks)
                .map(|pipe| pipe.appender.clone())
        };
        let logs = Stream::ALL.map(appender);
        let of_enabled = Stream::ALL.map(|stream| Some((stream, appender(stream)?)));
        let health = Arc::new(Health::new(of_enabled.into_iter().flatten().collect()));
        let books = books(&config, &streams);
        registry.register(Box::new(BooksCollector::new(Arc::clone(&books))?))?;
        registry.register(Box::new(DroppedLines::new()?))?;

        let readiness = Arc::clone(&health);
        let is_ready = move || readiness.readiness().is_ready();
        let intake = Intake::new(
            &config.ingest,
            config.rules(),
            logs,
            Arc::clone(&metrics),
            is_ready,
        );
        let ingest = WebhookServer::bind(config.ingest.listen, intake, tls)
            .await
            .map_err(not_bound("ingest.listen", config.ingest.listen))?;
        let sources = admin::Sources {
            registry,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            books,
            spool_dir: config.spool.dir.clone(),
            unknown_logs,
        };
        let admin = admin::Server::bind(config.admin.listen, sources)
            .map_err(not_bound("admin.listen", config.admin.listen))?;

        metrics.set_ready(health.readiness().is_ready());
        let admin_address = admin.local_addr();
        Ok(Bridge {
            ingest_address: ingest.local_addr(),
            admin_address,
            stop: ingest.stop_handle(),
            health,
            ingest: tokio::spawn(ingest.run()),
            admin: admin.start()?,
            streams,
            failures,
            config,
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
    pub async fn run(mut self, mut stop: mpsc::Receiver<()>) -> Result<(), BridgeError> {
        tokio::select! {
            Some(error) = self.failures.recv() => {
                self.stop.stop();
                let _ = timeout(LAST_ANSWERS, self.ingest).await;
                return Err(error.into());
            }
            _ = &mut self.ingest => return Err(BridgeError::PortLost("the webhooks' port")),
            () = self.admin.ended() => return Err(BridgeError::PortLost("the admin port")),
            _ = stop.recv() => {}
        }
        let failures = std::mem::replace(&mut self.failures, mpsc::unbounded_channel().1);
        see_through(self.stop(), stop, failures).await
    }

    async fn stop(self) {
        let shutdown = self.config.shutdown;
        info!(lame_duck = ?shutdown.lame_duck, grace = ?shutdown.grace, "stopping");
        self.health.drain();
        self.stop.lame_duck();
        sleep(shutdown.lame_duck).await;

        let deadline = Instant::now() + shutdown.grace;
        let last_words = deadline - LAST_WORDS.min(shutdown.grace / 5);
        self.stop.stop();
        if timeout_at(last_words.into(), self.ingest).await.is_err() {
            warn!("requests were still open when the grace time ended");
        }
        let (logs, lanes): (Vec<_>, Vec<_>) = self
            .streams
            .into_iter()
            .filter_map(|pipe| {
                let Running { log, lane } = pipe.take()?;
                Some((log, (pipe.stream, lane, Arc::clone(&pipe.books))))
            })
            .unzip();
        // Side by side: a disk that hangs under one keeps no other from its end.
        let mut closing = JoinSet::new();
        for (i, mut log) in logs.into_iter().enumerate() {
            closing.spawn_blocking(move || {
                log.close();
                i
            });
        }
        let sealed = async {
            while let Some(closed) = closing.join_next().await {
                if let Ok((_, lane, _)) = closed.map(|i| &lanes[i]) {
                    lane.drain();
                }
            }
        };
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
        for (stream, _, books) in &lanes {
            let books = books.snapshot();
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
) -> Result<(), BridgeError> {
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

/// What the spool holds that no webhook goes to. Where a disk hangs nobody waits for it: then each disabled stream counts, and
/// the state of its pipe says the rest.
async fn look_for_leftovers(config: &Config) -> Result<Leftovers, SpoolError> {
    let (dir, streams) = (config.spool.dir.clone(), config.streams.clone());
    let enabled = move |stream: Stream| streams[stream.index()].enabled;
    let unseen = Leftovers::unseen(&enabled);
    let looking = spawn_blocking(move || Leftovers::look(&dir, enabled));
    match timeout(PATIENCE, looking).await {
        Ok(looked) => looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
        Err(_) => Ok(unseen),
    }
}

/// Opens these streams side by side; an error when no event stream that takes webhooks can be opened.
async fn open(context: Context, streams: &[Stream]) -> Result<Vec<Pipe>, SpoolError> {
    let context = Arc::new(context);
    let pipes = streams
        .iter()
        .map(|stream| Pipe::start(&context, *stream))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|source| SpoolError::Io {
            action: "start threads for",
            path: context.config.spool.dir.clone(),
            source,
        })?;
    let until = Instant::now() + PATIENCE;
    let waiting = spawn_blocking(move || {
        for pipe in &pipes {
            if !pipe.wait(until) {
                let meanwhile = match pipe.takes_webhooks {
                    true => "its webhooks are answered 503",
                    false => "nothing of it is delivered",
                };
                warn!(stream = %pipe.stream, "the log is not open yet: {meanwhile} until it is");
            }
        }
        pipes
    });
    let pipes = waiting
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let mut of_events = pipes
        .iter()
        .filter(|pipe| pipe.takes_webhooks && pipe.stream != Stream::DeadLetters);
    let error = match of_events.clone().all(Pipe::has_failed) {
        true => of_events.find_map(Pipe::take_error),
        false => None,
    };
    error.map_or(Ok(pipes), Err)
}

fn books(config: &Config, streams: &[Pipe]) -> Arc<[StreamBooks]> {
    streams
        .iter()
        .map(|pipe| {
            let (sized, watched) = (pipe.appender.clone(), pipe.appender.clone());
            StreamBooks {
                stream: pipe.stream,
                topic: config.stream(pipe.stream).topic.clone(),
                service: match pipe.takes_webhooks {
                    true => Service::Enabled,
                    false => Service::Leftover,
                },
                books: Arc::clone(&pipe.books),
                log_state: Box::new(move || watched.state()),
                spool_bytes: Box::new(move || sized.used_bytes()),
                spool_limit_bytes: config.spool.max_bytes,
            }
        })
        .collect()
}

fn credential_names(config: &Config) -> Vec<&str> {
    match &config.ingest.auth {
        Auth::Anonymous => Vec::new(),
        Auth::Credentials(credentials) => credentials.iter().map(|c| c.name.as_str()).collect(),
    }
}

fn not_bound(key: &'static str, address: SocketAddr) -> impl FnOnce(io::Error) -> BridgeError {
    move |source| BridgeError::Listen { key, address, source }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::spool::LogState;

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
        assert!(matches!(ended, Err(BridgeError::Spool(_))), "{ended:?}");
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
        assert!(matches!(ended, Err(BridgeError::Spool(_))), "{ended:?}");
    }

    /// A bridge whose lanes are blocked from the first moment on, and wait for nobody.
    async fn start(dir: &Path) -> Bridge {
        try_start(dir).await.unwrap()
    }

    async fn try_start(dir: &Path) -> Result<Bridge, BridgeError> {
        try_start_with(dir, |_| {}).await
    }

    async fn try_start_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Bridge, BridgeError> {
        let variable = (
            "CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS".to_owned(),
            "true".to_owned(),
        );
        let mut config = crate::config::load(&[], std::iter::once(variable))
            .unwrap()
            .config;
        change(&mut config);
        config.spool.dir = dir.to_path_buf();
        config.ingest.listen = "127.0.0.1:0".parse().unwrap();
        config.admin.listen = config.ingest.listen;
        config.shutdown.lame_duck = Duration::ZERO;
        config.shutdown.grace = Duration::from_secs(5);
        config
            .kafka
            .properties
            .insert("no.such.property".into(), "x".into());
        Bridge::start(config).await
    }

    #[tokio::test]
    async fn a_server_that_is_gone_ends_the_process() {
        let ends: [fn(&mut Bridge); 2] = [|bridge| bridge.ingest.abort(), |bridge| bridge.admin.break_off()];
        for end in ends {
            let dir = tempfile::tempdir().unwrap();
            let mut bridge = start(dir.path()).await;
            end(&mut bridge);
            let (_words, stop) = mpsc::channel(1);
            assert!(matches!(bridge.run(stop).await, Err(BridgeError::PortLost(_))));
        }
    }

    /// Its threads may still write and deliver when it has ended, however that came.
    #[tokio::test]
    async fn the_spool_stays_locked_behind_the_end() {
        type End = fn(&mut Bridge, &mpsc::Sender<()>);
        let ends: [(&str, End); 4] = [
            ("a failure", |bridge, _| {
                let (failed, failures) = mpsc::unbounded_channel();
                bridge.failures = failures;
                failed.send(failure()).unwrap();
            }),
            ("a panic of a port's task", |bridge, _| bridge.ingest.abort()),
            ("a stop", |_, words| words.try_send(()).unwrap()),
            ("a second word", |bridge, words| {
                bridge.config.shutdown.lame_duck = Duration::from_secs(3600);
                (0..2).for_each(|_| words.try_send(()).unwrap());
            }),
        ];
        for (what, end) in ends {
            let dir = tempfile::tempdir().unwrap();
            let mut bridge = start(dir.path()).await;
            let (words, stop) = mpsc::channel(2);
            end(&mut bridge, &words);
            let _ = bridge.run(stop).await;
            let second = SpoolLock::acquire(dir.path());
            assert!(matches!(second, Err(SpoolError::Locked { .. })), "{what}");
        }
    }

    async fn post(bridge: &Bridge, stream: &str) -> String {
        let body = format!(
            r#"{{"event_type":"{stream}","server_composition":"pro","event":{{"{stream}":[{{"messageId":"a"}}]}}}}"#
        );
        let head = format!(
            "POST /webhooks/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
        client.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn away(file: &Path) -> std::path::PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(".away");
        name.into()
    }

    type Step = fn(&Path);

    /// How a file is broken and mended: its contents are damaged.
    const DAMAGED: (Step, Step) = (
        |file| {
            std::fs::rename(file, away(file)).unwrap();
            std::fs::write(file, "?").unwrap();
        },
        |file| std::fs::rename(away(file), file).unwrap(),
    );

    /// It hangs: to open a pipe takes as long as nobody opens its other end.
    const HANGS: (Step, Step) = (
        |file| {
            std::fs::rename(file, away(file)).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        },
        |file| {
            let mut both = std::fs::OpenOptions::new();
            let other_end = both.read(true).write(true).open(file).unwrap();
            std::fs::rename(away(file), file).unwrap();
            drop(other_end);
        },
    );

    /// A stopped bridge's files that a log can't be opened without, broken.
    async fn broken_log(dir: &Path, stream: Stream, break_it: Step) -> [std::path::PathBuf; 2] {
        let bridge = try_start_with(dir, |config| config.streams[stream.index()].enabled = true).await;
        bridge.unwrap().stop().await;
        // As when the process has ended.
        std::fs::remove_file(dir.join("lock")).unwrap();
        let files = ["manifest.copy", "manifest"].map(|name| dir.join(stream.name()).join(name));
        files.iter().for_each(|file| break_it(file));
        files
    }

    /// A disabled stream has a log like any other one: its trouble holds up nobody, is shown, and passes by itself.
    #[tokio::test]
    async fn a_disabled_streams_log_that_is_not_open_keeps_nobody_from_starting() {
        for (break_it, mend) in [DAMAGED, HANGS] {
            let dir = tempfile::tempdir().unwrap();
            let files = broken_log(dir.path(), Stream::Blocks, break_it).await;
            let disable = |config: &mut Config| config.streams[Stream::Blocks.index()].enabled = false;
            let bridge = try_start_with(dir.path(), disable).await.unwrap();
            assert!(bridge.health.readiness().is_ready());
            assert!(post(&bridge, "deliveries").await.starts_with("HTTP/1.1 200"));
            let blocks = bridge.streams.iter().find(|pipe| pipe.stream == Stream::Blocks);
            let blocks = blocks.unwrap();
            assert_eq!(blocks.appender.state(), LogState::NotOpen);
            files.iter().for_each(|file| mend(file));
            let begun = Instant::now();
            while !blocks.look(|running| running.lane.is_finished()).unwrap_or(false) {
                assert!(begun.elapsed() < Duration::from_secs(100));
                sleep(LOOK).await;
            }
            bridge.stop().await;
        }
    }

    /// A log that can't be opened, and one whose opening hangs: the others start, and it comes back by itself.
    #[tokio::test]
    async fn a_log_that_is_not_open_concerns_its_own_webhooks_alone() {
        for (break_it, mend) in [DAMAGED, HANGS] {
            let dir = tempfile::tempdir().unwrap();
            let files = broken_log(dir.path(), Stream::Bounces, break_it).await;
            let bridge = try_start(dir.path()).await.unwrap();
            assert!(bridge.health.readiness().is_ready());
            let refused = post(&bridge, "bounces").await;
            assert!(
                refused.starts_with("HTTP/1.1 503") && refused.contains("can't be opened"),
                "{refused}"
            );
            assert!(refused.to_ascii_lowercase().contains("retry-after"), "{refused}");
            assert!(post(&bridge, "deliveries").await.starts_with("HTTP/1.1 200"));
            files.iter().for_each(|file| mend(file));
            let begun = Instant::now();
            while !post(&bridge, "bounces").await.starts_with("HTTP/1.1 200") {
                assert!(begun.elapsed() < Duration::from_secs(100));
                sleep(LOOK).await;
            }
            bridge.stop().await;
        }
    }

    #[tokio::test]
    async fn without_any_log_for_events_there_is_no_start() {
        let dir = tempfile::tempdir().unwrap();
        for stream in ["deliveries", "bounces"] {
            std::fs::create_dir(dir.path().join(stream)).unwrap();
            std::fs::write(dir.path().join(stream).join("manifest"), "?").unwrap();
        }
        let refused = try_start(dir.path()).await.map(drop).unwrap_err();
        assert!(
            matches!(&refused, BridgeError::Spool(why) if why.to_string().contains("manifest")),
            "{refused}"
        );
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
        assert!(matches!(ending.await.unwrap(), Err(BridgeError::Spool(_))));
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
