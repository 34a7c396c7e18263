//! One request, from the end of its header to its answer.
//!
//! The checks, cheapest first, each with an answer of its own: stopping, Host, path, method, credential in the header,
//! content type and encoding, announced size; then the body is read, and [`super::webhook`] has it. So nothing is read
//! from whoever can't be let in, and nothing is parsed that can't be understood.
//!
//! A challenge (401 to a request without a credential) is answered when its body has been read and thrown away, so that the
//! request comes again on the same connection. The exceptions are a body of more than [`body::DRAIN_BYTES`], and one of more
//! than [`body::SMALL_BYTES`] that waits for `100 Continue`: sending it twice would cost more than a connection.
//!
//! While a body is read nothing is kept of the header but its few facts: the header would hold the buffer that it came in.
//!
//! An answer that leaves a part of the body unread closes the connection, after a bounded part of the rest has been read:
//! a client that still writes would else be cut off before it reads the answer. Of a client that is admitted, that part is
//! as large as [`body::DRAIN_BODIES`] bodies may be, and it has the time that a body has.
//!
//! An answer on a connection that is kept says for how long (`Keep-Alive`), so that no webhook is posted into one that is
//! about to be closed.
//!
//! The health path is served before all else and is no webhook: it is neither counted nor logged, and needs no credential.

use std::{mem, sync::Arc, time::Instant};

use hyper::{
    HeaderMap, Method, Request, Uri, Version,
    body::{Body, Incoming},
    header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, EXPECT, HOST, HeaderValue},
    http::request::Parts,
};
use thiserror::Error;
use tracing::debug;

use super::{
    Intake,
    auth::Verdict,
    body::{self, ReadError},
    connection::Connection,
    limits::Whose,
    problem::{Answer, Ending, Health, HttpResponse, Shortage},
    progress::Phase,
    webhook::Webhook,
};
use crate::{cmc::Media, metrics::Outcome};

/// The client is gone, and nobody is left to be answered.
#[derive(Debug, Error)]
#[error("the client went away before its answer")]
pub(super) struct Gone;

/// Answers one request and logs it; the connection counts it when the answer is written.
pub(super) async fn serve(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<HttpResponse, Gone> {
    let began = Instant::now();
    connection.progress.enter(Phase::Body, began);
    let intake = &connection.intake;
    let (mut head, body) = request.into_parts();
    let awaits_continue = head.headers.contains_key(EXPECT);
    let keep_alive = intake
        .keep_alive
        .as_ref()
        .filter(|_| asks_to_keep(&head))
        .cloned();
    let mut reading = Reading {
        unread: !body.is_end_stream(),
        begun: false,
        admitted: false,
        bytes: 0,
        body,
    };
    if intake.health_path.as_deref() == Some(without_slash(head.uri.path())) {
        let ending = intake.ending(reading.unread, keep_alive);
        connection.progress.enter(ending.phase(), Instant::now());
        let health = Health::of(&head.method, intake.health.readiness().is_ready());
        return Ok(health.into_response(ending));
    }
    let unanswered = Unanswered(&connection);
    let (number, on_connection) = connection.next_request();

    let answer = decide(&connection, &mut head, &mut reading).await?;

    let ending = intake.ending(reading.unread, keep_alive);
    let outcome = answer.outcome;
    let status = answer.status().as_u16();
    // A challenge is no refusal, and as frequent as webhooks where clients ask first.
    if matches!(outcome, Outcome::Accepted | Outcome::Challenged) {
        debug!(request = %format_args!("{number:x}-{on_connection}"), status, bytes = reading.bytes, "answered");
    } else {
        let request = format_args!("{number:x}-{on_connection}");
        answer.log(&intake.refusal_lines, &request, reading.bytes);
    }
    let mut phase = ending.phase();
    // A client that waits for `100 Continue` sends no body that would have to be drained.
    if reading.unread && outcome != Outcome::Timeout && (reading.begun || !awaits_continue) {
        let (bytes, time) = match reading.admitted {
            true => (
                intake.max_body_bytes.saturating_mul(body::DRAIN_BODIES),
                intake.body_timeout,
            ),
            false => (body::DRAIN_BYTES, body::DRAIN_TIME),
        };
        if reading.admitted {
            phase = Phase::Draining;
        }
        tokio::spawn(body::drain(reading.body, bytes, time));
    }
    release(&mut head);
    let response = answer.into_response(head.headers, ending);

    let now = Instant::now();
    mem::forget(unanswered);
    connection.owes(outcome);
    intake.metrics.acknowledged((now - began).as_secs_f64());
    connection.progress.enter(phase, now);
    Ok(response)
}

impl Intake {
    fn ending(&self, unread: bool, keep_alive: Option<HeaderValue>) -> Ending {
        match unread || !self.control.is_serving() {
            true => Ending::Close,
            false => Ending::KeepAlive(keep_alive),
        }
    }
}

/// Whether hyper will keep the connection, as far as the client is concerned.
fn asks_to_keep(head: &Parts) -> bool {
    let says = |token: &[u8]| {
        let values = head.headers.get_all(CONNECTION).iter();
        values
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
    };
    match head.version {
        Version::HTTP_11 => !says(b"close"),
        _ => says(b"keep-alive"),
    }
}

/// The path without a slash at its end.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// A body and what is known of it.
struct Reading {
    body: Incoming,
    /// Whether some of it has not been read.
    unread: bool,
    /// Whether the client has been let send it.
    begun: bool,
    /// Whether its sender is known.
    admitted: bool,
    /// Its size as far as known.
    bytes: u64,
}

/// Lets go of all that holds the buffer which the header came in, and of a large map.
fn release(head: &mut Parts) {
    /// More than any proxy in front adds.
    const FIELDS: usize = 48;
    head.uri = Uri::default();
    head.headers.clear();
    if head.headers.capacity() > FIELDS {
        head.headers = HeaderMap::new();
    }
}

async fn decide(
    connection: &Arc<Connection>,
    head: &mut Parts,
    reading: &mut Reading,
) -> Result<Answer, Gone> {
    let intake = &connection.intake;
    reading.bytes = body::announced(&reading.body).unwrap_or(0);
    if intake.control.is_stopping() {
        return Ok(Answer::stopping(&intake.retry_after));
    }
    // RFC 9112, 3.2; hyper leaves it to us.
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && head.version == Version::HTTP_11 {
        return Ok(Answer::invalid_http("A request has exactly one Host."));
    }
    let path = head.uri.path();
    let trimmed = without_slash(path);
    let trailing_slash = trimmed.len() < path.len();
    if trimmed != intake.path {
        return Ok(Answer::not_found());
    }
    if head.method != Method::POST {
        return Ok(Answer::method_not_allowed());
    }
    let verdict = intake.guard.judge(&head.headers);
    match verdict {
        Verdict::Refused => return Ok(Answer::unauthorized(intake.guard.challenge())),
        Verdict::Missing => {
            let most = match head.headers.contains_key(EXPECT) {
                true => body::SMALL_BYTES,
                false => body::DRAIN_BYTES,
            };
            release(head);
            let skipped = body::skip(&mut reading.body, &mut reading.begun, most, &connection.progress);
            reading.unread = !skipped.await;
            return Ok(Answer::challenged(intake.guard.challenge()));
        }
        Verdict::Admitted | Verdict::AskBody => {}
    }
    reading.admitted = verdict == Verdict::Admitted;
    if reading.admitted && !connection.admit() {
        return Err(Gone);
    }
    let media = body::media(&head.headers);
    if matches!(media, Media::Unsupported(_)) && verdict == Verdict::AskBody {
        return Ok(Answer::unsupported());
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(body::own);
    let authorization = head.headers.contains_key(AUTHORIZATION);
    release(head);
    let whose = match reading.admitted {
        true => Whose::Known,
        false => Whose::Stranger,
    };
    let read = body::read(
        &mut reading.body,
        &mut reading.begun,
        intake.max_body_bytes,
        &intake.budget,
        whose,
        &connection.progress,
    );
    let (body, share) = match read.await {
        Ok(read) => read,
        Err(ReadError::TooLarge(bytes)) => {
            reading.bytes = bytes;
            return Ok(Answer::too_large(intake.max_body_bytes));
        }
        Err(ReadError::Overloaded) => {
            let detail = "Too many webhooks are being read.";
            return Ok(Answer::short_of(
                Shortage::Flight,
                None,
                detail,
                &intake.retry_after,
            ));
        }
        Err(ReadError::TimedOut) => return Ok(Answer::body_timeout()),
        Err(ReadError::Invalid) => return Ok(Answer::invalid_http("The body is not chunked correctly.")),
        Err(ReadError::Disconnected) => return Err(Gone),
    };
    reading.unread = false;
    reading.bytes = body.len() as u64;
    connection.progress.enter(Phase::Answer, Instant::now());
    let webhook = Webhook {
        verdict,
        authorization,
        media,
        trailing_slash,
        content_type,
        body,
        share,
    };
    Ok(webhook.take(connection).await)
}

/// Counts a request that comes to no answer: its future is dropped when the connection breaks, or is recycled.
struct Unanswered<'c>(&'c Connection);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let Unanswered(connection) = self;
        let outcome = match connection.is_recycled() {
            false => Outcome::Disconnected,
            true => Outcome::Overloaded,
        };
        connection.intake.metrics.webhook(outcome);
    }
}
