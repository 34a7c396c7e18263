//! A whole bridge: starts and stops the spool, the lanes, the webhooks' port and the admin port.
//!
//! Start: the certificate, the spool's lock, the logs with their lanes, both ports, and only then requests. The start doesn't wait
//! for a lane's connection to Kafka, and waits for the logs no longer than [`PATIENCE`]. A log that hangs or can't be opened holds
//! up its own webhooks and no other stream ([`pipeline`]). The process ends only if no enabled event stream's log can be opened.
//!
//! Stop ([`Bridge::run`]): the bridge reports that it is not ready; it goes on serving for `shutdown.lame_duck`; it takes no more
//! requests; the logs are sealed; the lanes deliver the backlog until `shutdown.grace` ends. Events not delivered by then stay on
//! disk, which is no error.
//!
//! After a failure of a log or a lane, the bridge takes no more requests, and waits up to [`LAST_ANSWERS`] so that the senders of
//! open ones get a 503 and not a closed connection. Then it ends with an error. If a port's task is gone, it ends at once.
//!
//! The bridge also delivers what the logs of disabled streams still hold ([`crate::leftover`]).
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`drain`](mod@drain) | delivers a spool whose bridge is gone |
//! | [`error`](mod@error) | why a bridge did not start, or ended |
//! | [`pipeline`] | one stream's log and lane, opened by a thread of their own |
//! | [`streams`] | the pipelines of a process, opened and stopped side by side |

mod drain;
mod error;
mod pipeline;
mod streams;
#[cfg(test)]
mod tests;

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
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout, timeout_at},
};
use tracing::{error, info, warn};

use self::pipeline::{Pipeline, PipelineContext, Purpose};
use crate::{
    admin::{self, books::BooksCollector, health::Health},
    cmc::Rules,
    config::{Config, pem_faults},
    ingest::{Intake, StopHandle, TlsContext, WebhookServer},
    leftover::Leftovers,
    logging::DroppedLines,
    metrics::{Metrics, TlsMetrics},
    repeats::Repeats,
    spool::{SpoolError, SpoolLock},
    stream::Stream,
};

pub use self::{
    drain::{Drained, Patience, drain},
    error::BridgeError,
};

/// How long the start waits for the logs.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the requests that are open at a failure may take to be answered.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// The part of the grace time that logs and lanes keep for an orderly end when requests or the backlog take the rest.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running bridge.
pub struct Bridge {
    config: Config,
    ingest_address: SocketAddr,
    admin_address: SocketAddr,
    stop: StopHandle,
    health: Arc<Health>,
    ingest: JoinHandle<()>,
    admin: admin::RunningAdminServer,
    streams: Vec<Pipeline>,
    failures: mpsc::UnboundedReceiver<SpoolError>,
}

impl Bridge {
    /// Opens the spool, binds the ports, and begins to serve and deliver.
    ///
    /// # Errors
    /// The certificate is refused, the spool is locked, no event stream's log can be opened, or a port is taken.
    pub async fn start(config: Config) -> Result<Bridge, BridgeError> {
        let registry = Registry::new();
        // This comes before anything is written: a refused pair is a fault of the configuration.
        let (tls, certificate) = match &config.ingest.tls {
            Some(files) => {
                let metrics = TlsMetrics::new(&registry)?;
                let certificate = metrics.certificate();
                (Some(TlsContext::open(files.clone(), metrics)?), Some(certificate))
            }
            None => (None, None),
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
        let unknown_logs = report_unknown_logs(&config, &leftovers, &metrics);
        let repeats = config.ingest.repeat_window.map(Repeats::new).map(Arc::new);
        let (failed, failures) = mpsc::unbounded_channel();
        let context = PipelineContext {
            config: config.clone(),
            metrics: Arc::clone(&metrics),
            failed,
            runtime: Handle::current(),
            purpose: Purpose::Serve,
            repeats: repeats.clone(),
        };
        let streams = streams::open(context, &streams, PATIENCE).await?;

        let appender = |stream: Stream| {
            let mut streams = streams.iter();
            streams
                .find(|pipeline| pipeline.stream == stream && pipeline.takes_webhooks)
                .map(|pipeline| pipeline.appender.clone())
        };
        let logs = Stream::ALL.map(appender);
        let of_enabled = Stream::ALL.map(|stream| Some((stream, appender(stream)?)));
        let health = Arc::new(Health::new(of_enabled.into_iter().flatten().collect()));
        let books = streams::books(&config, &streams);
        registry.register(Box::new(BooksCollector::new(Arc::clone(&books))?))?;
        registry.register(Box::new(DroppedLines::new()?))?;

        let readiness = Arc::clone(&health);
        let is_ready = move || readiness.readiness().is_ready();
        let intake = Intake::new(
            &config.ingest,
            Rules {
                repeats,
                ..config.rules()
            },
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
            certificate,
        };
        let admin = admin::AdminServer::bind(config.admin.listen, sources)
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

    /// The address of the webhooks' port.
    pub fn ingest_address(&self) -> SocketAddr {
        self.ingest_address
    }

    /// The address of the admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Serves until the first message on `stop`, then stops in good order. A second message ends the bridge at once.
    ///
    /// # Errors
    /// A log or lane failed, or a port is no longer served.
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
        finish_stop(self.stop(), stop, failures).await
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
        streams::stop(self.streams, last_words, deadline).await;
        drop(self.admin);
        info!("stopped");
    }
}

/// Waits for the end of a stop. A failure cuts it short, and another message on `stop` ends it at once.
async fn finish_stop(
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
    // Logs and lanes may also fail at the very end, or when the stop is cut short and they are dropped.
    failures.try_recv().map_or(Ok(()), |error| Err(error.into()))
}

/// Reports the logs that this version can't deliver, and returns their names.
fn report_unknown_logs(config: &Config, leftovers: &Leftovers, metrics: &Metrics) -> Vec<String> {
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

/// Finds the logs that hold something and take no webhooks. A disk that hangs is not waited for: then every disabled
/// stream counts as one of them, and its pipeline finds out the rest.
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

fn credential_names(config: &Config) -> impl Iterator<Item = &str> {
    let credentials = config.ingest.auth.credentials().iter();
    credentials.map(|credential| credential.name.as_str())
}

fn not_bound(key: &'static str, address: SocketAddr) -> impl FnOnce(io::Error) -> BridgeError {
    move |source| BridgeError::Listen { key, address, source }
}
