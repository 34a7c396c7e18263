//! One request, from the end of its header to its answer.
//!
//! The checks run cheapest first, each with an answer of its own: stopping, Host, path, method, credential in the
//! header, content type and encoding, announced size. Then the body is read and handed to [`super::webhook`]. So
//! nothing is read from a client that can't be admitted, and nothing is parsed that can't be understood.
//!
//! A challenge (401 for a request without a credential) is sent once the body has been read and discarded, so that
//! the client can repeat the request on the same connection. The exceptions are a body of more than
//! [`body::DRAIN_BYTES`], and one of more than [`body::SMALL_BYTES`] that waits for `100 Continue`: sending it twice
//! would cost more than a new connection.
//!
//! While a body is read, only a few facts of the header are kept: the header itself would keep the buffer alive in
//! which it arrived.
//!
//! An answer that leaves part of the body unread closes the connection, after a bounded part of the rest has been
//! read. Otherwise a client that is still writing would be cut off before it reads the answer. For an admitted
//! client, that part may be as large as [`body::DRAIN_BODIES`] bodies, and has the time limit of a body.
//!
//! An answer on a connection that is kept says for how long (`Keep-Alive`), so that no webhook is posted into a
//! connection that is about to close.
//!
//! The health path is served first and is no webhook: it is neither counted nor logged, and needs no credential.

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
    answer::{Answer, Ending, HealthAnswer, HttpResponse},
    auth::Admission,
    body::{self, BodyError},
    connection::Connection,
    intake::Intake,
    limits::Whose,
    phase::Phase,
    webhook::Webhook,
};
use crate::{
    cmc::Media,
    metrics::{Outcome, Shortage},
};

/// The client is gone, so there is nobody to answer.
#[derive(Debug, Error)]
#[error("the client went away before its answer")]
pub(super) struct Gone;

/// Answers one request and logs it; the connection counts it once the answer is written.
pub(super) async fn serve(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<HttpResponse, Gone> {
    let began = Instant::now();
    connection.phase.enter(Phase::Body, began);
    let intake = &connection.intake;
    let (mut head, body) = request.into_parts();
    let awaits_continue = head.headers.contains_key(EXPECT);
    let keep_alive = intake
        .keep_alive
        .as_ref()
        .filter(|_| asks_to_keep(&head))
        .cloned();
    let mut request_body = RequestBody {
        unread: !body.is_end_stream(),
        begun: false,
        admitted: false,
        bytes: 0,
        body,
    };
    if intake.health_path.as_deref() == Some(without_slash(head.uri.path())) {
        let ending = intake.ending(request_body.unread, keep_alive);
        connection.phase.enter(ending.phase(), Instant::now());
        let health = HealthAnswer::of(&head.method, (intake.is_ready)());
        return Ok(health.into_response(ending));
    }
    let unanswered = Unanswered(&connection);
    let (number, on_connection) = connection.next_request();

    let answer = decide(&connection, &mut head, &mut request_body).await?;

    let ending = intake.ending(request_body.unread, keep_alive);
    let outcome = answer.outcome;
    let status = answer.status().as_u16();
    // A challenge is no refusal, and is as frequent as webhooks if clients first ask without a credential.
    if matches!(outcome, Outcome::Accepted | Outcome::Challenged) {
        debug!(request = %format_args!("{number:x}-{on_connection}"), status, bytes = request_body.bytes, "answered");
    } else {
        let request = format_args!("{number:x}-{on_connection}");
        if let Some(shortage) = answer.shortage() {
            intake.metrics.short_of(shortage);
        }
        answer.log(&intake.refusal_lines, &request, request_body.bytes);
    }
    let mut phase = ending.phase();
    // A client that waits for `100 Continue` sends no body to drain.
    if request_body.unread && outcome != Outcome::Timeout && (request_body.begun || !awaits_continue) {
        let (bytes, time) = match request_body.admitted {
            true => (
                intake.max_body_bytes.saturating_mul(body::DRAIN_BODIES),
                intake.body_timeout,
            ),
            false => (body::DRAIN_BYTES, body::DRAIN_TIME),
        };
        if request_body.admitted {
            phase = Phase::Draining;
        }
        tokio::spawn(body::drain(request_body.body, bytes, time));
    }
    release(&mut head);
    let response = answer.into_response(head.headers, ending);

    let now = Instant::now();
    mem::forget(unanswered);
    connection.owes(outcome);
    intake.metrics.acknowledged((now - began).as_secs_f64());
    connection.phase.enter(phase, now);
    Ok(response)
}

impl Intake {
    fn ending(&self, unread: bool, keep_alive: Option<HeaderValue>) -> Ending {
        match unread || !self.stop.is_serving() {
            true => Ending::Close,
            false => Ending::KeepAlive(keep_alive),
        }
    }
}

/// Whether the client lets hyper keep the connection.
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

/// The path without a trailing slash.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// A body and what is known about it.
struct RequestBody {
    body: Incoming,
    /// Whether some of it has not been read.
    unread: bool,
    /// Whether the client has been allowed to send it.
    begun: bool,
    /// Whether its sender is known.
    admitted: bool,
    /// Its size, as far as known.
    bytes: u64,
}

/// Drops everything that keeps the header's buffer alive, and a large header map.
fn release(head: &mut Parts) {
    /// More than any proxy in front of the bridge adds.
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
    request_body: &mut RequestBody,
) -> Result<Answer, Gone> {
    let intake = &connection.intake;
    request_body.bytes = body::announced(&request_body.body).unwrap_or(0);
    if intake.stop.is_stopping() {
        return Ok(Answer::stopping(&intake.retry_after));
    }
    // RFC 9112, 3.2; hyper does not check it.
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && head.version == Version::HTTP_11 {
        return Ok(Answer::invalid_http(
            "A request must have exactly one Host header.",
        ));
    }
    let path = head.uri.path();
    let trimmed = without_slash(path);
    let trailing_slash = trimmed.len() < path.len();
    let Some(endpoint) = intake.endpoint(trimmed) else {
        return Ok(Answer::not_found());
    };
    if head.method != Method::POST {
        return Ok(Answer::method_not_allowed());
    }
    let admission = intake.guard.judge(&head.headers);
    match admission {
        Admission::Refused => return Ok(Answer::unauthorized(intake.guard.challenge())),
        Admission::Missing => {
            let most = match head.headers.contains_key(EXPECT) {
                true => body::SMALL_BYTES,
                false => body::DRAIN_BYTES,
            };
            release(head);
            let skipped = body::skip(
                &mut request_body.body,
                &mut request_body.begun,
                most,
                &connection.phase,
            );
            request_body.unread = !skipped.await;
            return Ok(Answer::challenged(intake.guard.challenge()));
        }
        Admission::Admitted | Admission::AskBody => {}
    }
    request_body.admitted = admission == Admission::Admitted;
    if request_body.admitted && !connection.admit() {
        return Err(Gone);
    }
    let media = body::media(endpoint, &head.headers);
    if matches!(media, Media::Unsupported(_)) && admission == Admission::AskBody {
        return Ok(Answer::unsupported(endpoint));
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(body::own);
    let authorization = head.headers.contains_key(AUTHORIZATION);
    release(head);
    let whose = match request_body.admitted {
        true => Whose::Known,
        false => Whose::Stranger,
    };
    let most = intake.most_body_bytes(endpoint);
    let read = body::read(
        &mut request_body.body,
        &mut request_body.begun,
        most,
        &intake.budget,
        whose,
        &connection.phase,
    );
    let (body, share) = match read.await {
        Ok(read) => read,
        Err(BodyError::TooLarge(bytes)) => {
            request_body.bytes = bytes;
            return Ok(Answer::too_large(most));
        }
        Err(BodyError::Overloaded) => {
            let detail = "Too many webhooks are being read.";
            return Ok(Answer::short_of(
                Shortage::Flight,
                None,
                detail,
                &intake.retry_after,
            ));
        }
        Err(BodyError::TimedOut) => return Ok(Answer::body_timeout()),
        Err(BodyError::Invalid) => return Ok(Answer::invalid_http("The chunks of the body are invalid.")),
        Err(BodyError::Disconnected) => return Err(Gone),
    };
    request_body.unread = false;
    request_body.bytes = body.len() as u64;
    connection.phase.enter(Phase::Answer, Instant::now());
    let webhook = Webhook {
        endpoint,
        admission,
        authorization,
        media,
        trailing_slash,
        content_type,
        body,
        share,
    };
    Ok(webhook.take(connection).await)
}

/// Counts a request that gets no answer: its future is dropped when the connection breaks or is recycled.
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
