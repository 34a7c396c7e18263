//! One request, from the end of its header to its answer.
//!
//! The checks, cheapest first, each with an answer of its own: stopping, Host, path, method, credential in the header,
//! content type and encoding, announced size; then the body is read, and [`super::webhook`] has it. So nothing is read
//! from whoever can't be let in, and nothing is parsed that can't be understood.
//!
//! While a body is read nothing is kept of the header but its few facts: the header would hold the buffer that it came in.
//!
//! An answer that leaves a part of the body unread closes the connection, after a bounded part of the rest has been read:
//! a client that still writes would else be cut off before it reads the answer.

use std::{mem, sync::Arc, time::Instant};

use hyper::{
    HeaderMap, Method, Request, Uri, Version,
    body::{Body, Incoming},
    header::{CONTENT_TYPE, EXPECT, HOST},
    http::request::Parts,
};
use thiserror::Error;
use tracing::{debug, warn};

use super::{
    auth::Verdict,
    body::{self, Media, ReadError},
    connection::Connection,
    limits::Whose,
    problem::{Answer, Ending, HttpResponse},
    progress::Phase,
    webhook::Webhook,
};
use crate::admin::metrics::Outcome;

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
    let unanswered = Unanswered(&connection);
    let (number, on_connection) = connection.next_request();
    let (mut head, body) = request.into_parts();
    let awaits_continue = head.headers.contains_key(EXPECT);
    let mut reading = Reading {
        unread: !body.is_end_stream(),
        bytes: 0,
        body,
    };

    let answer = decide(&connection, &mut head, &mut reading).await?;

    let ending = if reading.unread || !intake.control.is_serving() {
        Ending::Close
    } else {
        Ending::KeepAlive
    };
    let outcome = answer.outcome;
    let status = answer.status().as_u16();
    if outcome == Outcome::Accepted {
        debug!(request = %format_args!("{number:x}-{on_connection}"), status, bytes = reading.bytes, "answered");
    } else if let Some(suppressed) = intake.refusal_lines[outcome.index()].pass() {
        let (reason, offset) = answer.cause();
        warn!(
            request = %format_args!("{number:x}-{on_connection}"),
            outcome = outcome.label(),
            status,
            bytes = reading.bytes,
            reason,
            offset,
            suppressed,
            "a request was refused"
        );
    }
    // A client that waits for `100 Continue` sends no body that would have to be drained.
    if reading.unread && outcome != Outcome::Timeout && !awaits_continue {
        tokio::spawn(body::drain(reading.body));
    }
    release(&mut head);
    let response = answer.into_response(head.headers, ending);

    let now = Instant::now();
    mem::forget(unanswered);
    connection.owes(outcome);
    intake.metrics.acknowledged((now - began).as_secs_f64());
    connection.progress.enter(
        match ending {
            Ending::KeepAlive => Phase::Writing,
            Ending::Close => Phase::Closing,
        },
        now,
    );
    Ok(response)
}

/// A body and what is known of it.
struct Reading {
    body: Incoming,
    /// Whether some of it has not been read.
    unread: bool,
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
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let trailing_slash = trimmed.len() < path.len();
    if trimmed != intake.path {
        return Ok(Answer::not_found());
    }
    if head.method != Method::POST {
        return Ok(Answer::method_not_allowed());
    }
    let verdict = intake.guard.judge(&head.headers);
    if verdict == Verdict::Refused {
        return Ok(Answer::unauthorized(intake.guard.challenge()));
    }
    if verdict == Verdict::Admitted && !connection.admit() {
        return Err(Gone);
    }
    let media = Media::of(&head.headers);
    if matches!(media, Media::Unsupported(_)) && verdict == Verdict::AskBody {
        return Ok(Answer::unsupported());
    }
    let content_type = head.headers.get(CONTENT_TYPE).map(body::own);
    release(head);
    let whose = match verdict {
        Verdict::Admitted => Whose::Known,
        _ => Whose::Stranger,
    };
    let read = body::read(
        &mut reading.body,
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
            return Ok(Answer::unavailable(
                Outcome::Overloaded,
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
