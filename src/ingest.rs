//! Webhooks over HTTP: who may post, how much, and when a webhook is answered 200.
//!
//! | case | answer |
//! |---|---|
//! | the health path (`ingest.health_path`) | 200 while webhooks can be made durable, otherwise 503; the same as `/readyz` |
//! | understood | 200 `ok`, once its events are durable |
//! | partly understood | 200 `ok`, once first the dead letters and then the events are durable |
//! | understood, with events that are known to be durable (`ingest.repeats`) | 200 `ok`, once the others are durable |
//! | malformed | `ingest.malformed_status` (400), once the body is durable as a dead letter |
//! | an invalid credential | 401 + `WWW-Authenticate`; nothing is stored |
//! | no credential | 401 as a challenge: sent once the body, up to a size, has been read; the connection is kept |
//! | another content type, or a content encoding | 415 + `Accept-Post`; dead-lettered if the header authenticates the sender |
//! | a body over `ingest.max_body_bytes` (received mail: `ingest.inbound_max_body_bytes`) | 413; then a bounded part of the rest is read, a larger one from an admitted client |
//! | a slow header or body | 408, closed |
//! | too many connections | the oldest one without an admitted request is closed to make room; if there is none, 503 + `Retry-After` |
//! | too many bytes in flight; spool full, failed, slow or not open; stopping | 503 + `Retry-After` |
//! | another path, another method | 404, 405 + `Allow` |
//! | a header too large (bytes or fields) | 431, closed |
//! | not HTTP/1.1, an invalid length or invalid chunks | 400, closed |
//! | no `Host`, or several | 400 |
//! | a transfer coding other than `chunked` | 415 |
//! | both `Content-Length` and `Transfer-Encoding` | read by its chunks, then closed, so that no request can be smuggled in after it |
//! | `Expect: 100-continue` | the first of 401, 404, 405, 413, 415 and 503 that is known without the body, otherwise 100; also 100 before a challenge if the body is small |
//! | the client closes its side after the request | the request's answer |
//! | the client disappears, or closes its side in the middle of a request | none; a webhook that arrived whole is stored |
//!
//! With `ingest.tls` ([`tls`]) the answers are the same, except where no answer is possible:
//!
//! | case | what happens |
//! |---|---|
//! | plain HTTP, TLS below 1.2, no common cipher suite | a TLS alert, closed |
//! | a slow handshake | closed after `ingest.header_timeout` |
//! | too many connections, all of them known | closed without the 503, which would cost a handshake |
//!
//! Errors have `application/problem+json` bodies ([`answer`]), even where hyper would write an answer of its own ([`socket`]).
//! Errors that hyper does not distinguish can't be distinguished here: a length of 2^64 - 2 or more is also answered 431. Every
//! request except those for the health path is counted once in `cmc_bridge_webhooks_total`, and so is every refused connection.
//!
//! [`server`] accepts and bounds connections; [`serve`] serves one and watches its time limits; [`handler`] takes a request to
//! its answer; in [`webhook`] the sender's formats meet the spool. Ingest knows nothing of Kafka.
//!
//! The caller stops the server in two steps ([`StopHandle`]). A lame duck keeps serving but closes each connection with its
//! next answer, so that clients move to another replica. A stopping server accepts no connections, finishes the requests that
//! have begun, answers later ones 503, and closes idle connections.
//!
//! The cost of a request is bounded: it sets no timer, takes no lock that another request could hold for long, and beyond
//! hyper's own allocations it allocates only its body's frames and its batch.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`answer`] | answers: `ok`, and errors as problem+json |
//! | [`auth`] | credentials, compared in constant time |
//! | [`body`] | reading a body within its limits |
//! | [`certificate`] | certificate and key from their files, checked |
//! | [`connection`] | a connection as its requests see it; the answer it still owes |
//! | [`credential_reload`] | credential files read again: new credentials without a restart |
//! | [`handler`] | takes one request to its answer |
//! | [`intake`] | the state that all connections share |
//! | [`limits`] | the budget of bytes in flight; rates of log lines |
//! | [`phase`] | what a connection is doing, and since when |
//! | [`serve`] | serves one connection to its end: hyper and the time limits |
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
