//! Webhooks over HTTP: who may post, how much, and when a 200 is given.
//!
//! | case | answer |
//! |---|---|
//! | the health path (`ingest.health_path`) | 200 while webhooks can be made durable, else 503: as `/readyz` |
//! | understood | 200 `ok`, after its events are durable |
//! | not parseable | `ingest.malformed_status` (400), after the body is durable as a dead letter |
//! | understood in parts | 200 `ok`, after the dead letters and then the events are durable |
//! | a credential that is not valid | 401 + `WWW-Authenticate`; nothing is stored |
//! | no credential | the same as a challenge: after the body, up to a size, and the connection is kept |
//! | another content type, or a content encoding | 415 + `Accept-Post`; dead-lettered when the header authenticates |
//! | body over `ingest.max_body_bytes` | 413, then a bounded part of the rest is read: much of a client that is admitted |
//! | slow header, slow body | 408, closed |
//! | too many connections | the oldest one without an admitted request is closed for it; without such a one, 503 + `Retry-After` |
//! | too many bytes in flight, spool full, failed, slow or not open, stopping | 503 + `Retry-After` |
//! | another path, another method | 404, 405 + `Allow` |
//! | header too large (bytes or fields) | 431, closed |
//! | not HTTP/1.1, wrong length or chunks | 400, closed |
//! | no `Host`, or several | 400 |
//! | a transfer coding besides `chunked` | 415 |
//! | `Content-Length` beside `Transfer-Encoding` | by the chunks; then closed, so that nothing can be smuggled in behind |
//! | `Expect: 100-continue` | the first of 401, 404, 405, 413, 415, 503 that is known without the body, else 100; 100 also before a challenge if the body is small |
//! | the client closes its side after the request | its answer |
//! | the client goes away, or closes its side in the middle of a request | nobody to answer; what was whole is stored |
//!
//! With `ingest.tls` ([`tls`]) the answers are the same, but for what can't be answered:
//!
//! | case | what happens |
//! |---|---|
//! | plain HTTP, TLS below 1.2, nothing in common | a TLS alert, closed |
//! | slow handshake | closed after `ingest.header_timeout` |
//! | too many connections, all of them known | closed, without the 503: it would cost a handshake |
//!
//! Errors have `application/problem+json` bodies ([`problem`]), also where hyper would answer by itself ([`watched`]). What
//! hyper does not tell apart we can't either: a length from 2^64 - 2 up is 431 as well. Every request but those of the health
//! path is counted once in `cmc_bridge_webhooks_total`, and so is a connection that was refused.
//!
//! [`Server`] accepts and bounds connections; [`connection`] serves one and watches its time; [`handler`] takes a
//! request to its answer; [`webhook`] is where the sender's formats and the spool come in. Ingest knows nothing of Kafka.
//!
//! Stopping has two steps, both the caller's ([`Control`]): a lame duck serves on and closes each connection with its
//! next answer, so that clients move to another replica; a stopping server accepts none, finishes what it has begun,
//! answers 503 to what still comes in, and closes connections that are idle.
//!
//! What a request costs is bounded: no timer, no lock that another request could hold for long, no allocation that
//! hyper does not make except for its body's frames and its batch.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`auth`] | credentials, compared in constant time |
//! | [`body`] | content types; reading a body within its limits |
//! | [`certificate`] | certificate and key from their files, checked |
//! | [`connection`] | one connection: its time limits, its last answer, what is counted |
//! | [`handler`] | one request to its answer |
//! | [`limits`] | the budget of bytes in flight; rates of log lines |
//! | [`problem`] | answers, problem+json |
//! | [`progress`] | what a connection is doing, and since when |
//! | [`rotation`] | credential files read again: new credentials without a restart |
//! | [`server`] | accepts and bounds connections, stops in two steps |
//! | [`tls`] | TLS: handshakes, and a new certificate without a restart |
//! | [`watched`] | the socket under hyper, watched |
//! | [`webhook`] | where formats and spool come in: split, append, answer |
//! | [`zones`] | names under ingest.time_zones that no webhook has |

mod auth;
mod body;
mod certificate;
mod connection;
mod handler;
mod limits;
mod problem;
mod progress;
mod rotation;
mod server;
mod tls;
mod watched;
mod webhook;
mod zones;

use std::{sync::Arc, time::Duration};

use hyper::{StatusCode, header::HeaderValue};
use parking_lot::RwLock;
use tokio::sync::Semaphore;

use self::{
    auth::Guard,
    limits::{Budget, LogLimiter},
    problem::{RefusalLines, RetryAfter},
    zones::ZoneNames,
};
pub use self::{
    certificate::{Pair, PairError},
    server::{Control, Server},
    tls::Tls,
};
use crate::{admin::health::Health, cmc::Rules, config, metrics::Metrics, spool::Appender};

/// What all connections share.
pub struct Intake {
    path: String,
    health_path: Option<String>,
    health: Arc<Health>,
    guard: Guard,
    /// Replaced when credentials change, for dead letters must have none.
    rules: RwLock<Arc<Rules>>,
    /// The credentials at the start, and the files to look at for new ones.
    auth: config::Auth,
    credential_files: Vec<config::CredentialFile>,
    /// One for each enabled stream, at [`crate::stream::Stream::index`].
    logs: [Option<Appender>; 4],
    budget: Budget,
    /// A place for each large body that is being understood.
    understanding: Semaphore,
    metrics: Arc<Metrics>,
    control: Control,
    malformed_status: StatusCode,
    max_body_bytes: usize,
    max_connections: usize,
    header_timeout: Duration,
    body_timeout: Duration,
    idle_timeout: Duration,
    keep_alive: Option<HeaderValue>,
    append_timeout: Duration,
    retry_after: RetryAfter,
    zones: ZoneNames,
    refusal_lines: RefusalLines,
    dead_letter_lines: LogLimiter,
}

impl Intake {
    /// Puts together what requests need. `logs` has the appender of each enabled stream at its index.
    pub fn new(
        config: &config::Ingest,
        rules: Rules,
        logs: [Option<Appender>; 4],
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Intake {
        Intake {
            path: config.path.trim_end_matches('/').to_owned(),
            health_path: config.health_path.clone(),
            health,
            guard: Guard::new(&config.auth, &metrics),
            rules: RwLock::new(Arc::new(rules)),
            auth: config.auth.clone(),
            credential_files: config.credential_files.clone(),
            logs,
            budget: Budget::new(config.max_bytes_in_flight),
            understanding: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
            metrics,
            control: Control::new(),
            malformed_status: StatusCode::from_u16(config.malformed_status)
                .unwrap_or(StatusCode::BAD_REQUEST),
            max_body_bytes: config.max_body_bytes,
            max_connections: config.max_connections,
            header_timeout: config.header_timeout,
            body_timeout: config.body_timeout,
            idle_timeout: config.idle_timeout,
            keep_alive: problem::keep_alive(config.idle_timeout),
            append_timeout: config.append_timeout,
            retry_after: RetryAfter::new(config.retry_after),
            zones: ZoneNames::new(config.time_zones.keys()),
            refusal_lines: RefusalLines::new(),
            dead_letter_lines: LogLimiter::new(),
        }
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read())
    }
}

#[cfg(test)]
mod tests;
