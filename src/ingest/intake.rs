//! The state that all connections share: settings, credentials, logs, budgets, metrics.

use std::{sync::Arc, thread, time::Duration};

use hyper::{StatusCode, header::HeaderValue};
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use super::{
    answer::{RefusalLines, RetryAfter, keep_alive},
    auth::Guard,
    limits::{Budget, LogLimiter},
    stop::StopHandle,
    zones::ZoneNames,
};
use crate::{
    cmc::{Endpoint, Rules},
    config,
    metrics::Metrics,
    spool::Appender,
    stream::Stream,
};

type ReadyCheck = Box<dyn Fn() -> bool + Send + Sync>;

/// The state that all connections share.
pub struct Intake {
    pub(super) path: String,
    /// The path of webhooks of received mail; `None` if the stream is not enabled.
    pub(super) inbound_path: Option<String>,
    pub(super) health_path: Option<String>,
    /// Whether webhooks can be made durable: the answer of the health path.
    pub(super) is_ready: ReadyCheck,
    pub(super) guard: Guard,
    /// Replaced when credentials change, since they say what to mask in dead letters.
    pub(super) rules: RwLock<Arc<Rules>>,
    /// The credentials at the start, and the files to watch for new ones.
    pub(super) auth: config::Auth,
    pub(super) credential_files: Vec<config::CredentialFile>,
    /// The log of each enabled stream, at [`crate::stream::Stream::index`].
    pub(super) logs: [Option<Appender>; Stream::ALL.len()],
    pub(super) budget: Budget,
    /// A permit for each large body that is being understood.
    pub(super) understanding: Semaphore,
    /// The same for received mails. They get half of the processors: they are large, come in bursts, and can wait.
    pub(super) understanding_mail: Semaphore,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: StopHandle,
    pub(super) malformed_status: StatusCode,
    pub(super) max_body_bytes: usize,
    pub(super) inbound_max_body_bytes: usize,
    pub(super) max_connections: usize,
    pub(super) header_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) keep_alive: Option<HeaderValue>,
    pub(super) append_timeout: Duration,
    pub(super) retry_after: RetryAfter,
    pub(super) zones: Arc<ZoneNames>,
    pub(super) refusal_lines: RefusalLines,
    pub(super) dead_letter_lines: LogLimiter,
}

impl Intake {
    /// Puts together what requests need. `logs` holds the appender of each enabled stream at its index; `is_ready`
    /// says whether webhooks can be made durable, which is the answer of the health path.
    pub fn new(
        config: &config::Ingest,
        rules: Rules,
        logs: [Option<Appender>; Stream::ALL.len()],
        metrics: Arc<Metrics>,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Intake {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Intake {
            path: config.path.trim_end_matches('/').to_owned(),
            inbound_path: rules.inbound.as_ref().map(|inbound| inbound.path.clone()),
            health_path: config.health_path.clone(),
            is_ready: Box::new(is_ready),
            guard: Guard::new(&config.auth, &metrics),
            rules: RwLock::new(Arc::new(rules)),
            auth: config.auth.clone(),
            credential_files: config.credential_files.clone(),
            logs,
            budget: Budget::new(config.max_bytes_in_flight),
            understanding: Semaphore::new(processors),
            understanding_mail: Semaphore::new((processors / 2).max(1)),
            metrics,
            stop: StopHandle::default(),
            malformed_status: StatusCode::from_u16(config.malformed_status)
                .unwrap_or(StatusCode::BAD_REQUEST),
            max_body_bytes: config.max_body_bytes,
            inbound_max_body_bytes: config.inbound_max_body_bytes,
            max_connections: config.max_connections,
            header_timeout: config.header_timeout,
            body_timeout: config.body_timeout,
            idle_timeout: config.idle_timeout,
            keep_alive: keep_alive(config.idle_timeout),
            append_timeout: config.append_timeout,
            retry_after: RetryAfter::new(config.retry_after),
            zones: Arc::new(ZoneNames::new(config.time_zones.keys())),
            refusal_lines: RefusalLines::new(),
            dead_letter_lines: LogLimiter::new(),
        }
    }

    /// What webhooks on this path bring, which has no trailing slash; `None` if it is no path of webhooks.
    pub(super) fn endpoint(&self, path: &str) -> Option<Endpoint> {
        match path {
            _ if path == self.path => Some(Endpoint::Events),
            _ if self.inbound_path.as_deref() == Some(path) => Some(Endpoint::Inbound),
            _ => None,
        }
    }

    /// The path of an endpoint, without a trailing slash.
    pub(super) fn path_of(&self, endpoint: Endpoint) -> &str {
        match endpoint {
            Endpoint::Events => &self.path,
            Endpoint::Inbound => self.inbound_path.as_deref().unwrap_or_default(),
        }
    }

    /// Maximum size of a body for this endpoint, in bytes.
    pub(super) fn most_body_bytes(&self, endpoint: Endpoint) -> usize {
        match endpoint {
            Endpoint::Events => self.max_body_bytes,
            Endpoint::Inbound => self.inbound_max_body_bytes,
        }
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read())
    }
}
