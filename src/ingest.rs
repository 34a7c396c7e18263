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
//! Errors have `application/problem+json` bodies ([`answer`]), also where hyper would answer by itself ([`socket`]). What
//! hyper does not tell apart we can't either: a length from 2^64 - 2 up is 431 as well. Every request but those of the health
//! path is counted once in `cmc_bridge_webhooks_total`, and so is a connection that was refused.
//!
//! [`server`] accepts and bounds connections; [`serve`] serves one and watches its time; [`handler`] takes a
//! request to its answer; [`webhook`] is where the sender's formats and the spool come in. Ingest knows nothing of Kafka.
//!
//! Stopping has two steps, both the caller's ([`StopHandle`]): a lame duck serves on and closes each connection with its
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
//! | [`answer`] | answers: `ok`, and errors as problem+json |
//! | [`auth`] | credentials, compared in constant time |
//! | [`body`] | reading a body within its limits |
//! | [`certificate`] | certificate and key from their files, checked |
//! | [`connection`] | a connection as its requests see it; what it still owes |
//! | [`credential_reload`] | credential files read again: new credentials without a restart |
//! | [`handler`] | one request to its answer |
//! | [`intake`] | what all connections share |
//! | [`limits`] | the budget of bytes in flight; rates of log lines |
//! | [`phase`] | what a connection is doing, and since when |
//! | [`serve`] | one connection to its end: hyper and the time limits |
//! | [`server`] | accepts and bounds connections |
//! | [`socket`] | the socket under hyper, watched |
//! | [`stop`] | stopping the server in two steps |
//! | [`tls`] | TLS: handshakes, and a new certificate without a restart |
//! | [`webhook`] | where formats and spool meet: understand, append, answer |
//! | [`zones`] | names under ingest.time_zones that no webhook has |

mod answer;
mod auth;
mod body;
mod certificate;
mod connection;
mod credential_reload;
mod handler;
mod intake;
mod limits;
mod phase;
mod serve;
mod server;
mod socket;
mod stop;
mod tls;
mod webhook;
mod zones;

pub use self::{
    certificate::{Pair, PairError},
    intake::Intake,
    server::WebhookServer,
    stop::StopHandle,
    tls::TlsContext,
};

#[cfg(test)]
mod tests;
