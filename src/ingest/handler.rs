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
//! An answer that leaves a part of the body unread closes the connection, after a bounded part of the rest has been read:
//! a client that still writes would else be cut off before it reads the answer.

use std::{mem, sync::Arc, time::Instant};

use hyper::{
    Method, Request, Version,
    body::{Body, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, EXPECT, HOST},
    http::request::Parts,
};
use thiserror::Error;
use tracing::debug;

use super::{
    auth::Verdict,
    body::{self, Media, ReadError},
    connection::Connection,
    problem::{Answer, Ending, HttpResponse, Shortage},
    progress::Phase,
    webhook::Webhook,
};
use crate::admin::metrics::{Metrics, Outcome};

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
    let unanswered = Unanswered(&intake.metrics);
    let (number, on_connection) = connection.next_request();
    let (head, body) = request.into_parts();
    let mut reading = Reading {
        unread: !body.is_end_stream(),
        bytes: 0,
        body,
    };

    let answer = decide(&connection, &head, &mut reading).await?;

    let ending = if reading.unread || !intake.control.is_serving() {
        Ending::Close
    } else {
        Ending::KeepAlive
    };
    let outcome = answer.outcome;
    let status = answer.status().as_u16();
    // A challenge is no refusal, and as frequent as webhooks where clients ask first.
    if matches!(outcome, Outcome::Accepted | Outcome::Challenged) {
        debug!(request = %format_args!("{number:x}-{on_connection}"), status, bytes = reading.bytes, "answered");
    } else {
        let request = format_args!("{number:x}-{on_connection}");
        answer.log(&intake.refusal_lines, &request, reading.bytes);
    }
    // A client that waits for `100 Continue` sends no body that would have to be drained.
    if reading.unread && outcome != Outcome::Timeout && !head.headers.contains_key(EXPECT) {
        tokio::spawn(body::drain(reading.body));
    }
    let mut headers = head.headers;
    headers.clear();
    let response = answer.into_response(headers, ending);

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

async fn decide(connection: &Connection, head: &Parts, reading: &mut Reading) -> Result<Answer, Gone> {
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
    if path.strip_suffix('/').unwrap_or(path) != intake.path {
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
            reading.unread = !body::skip(&mut reading.body, most, &connection.progress).await;
            return Ok(Answer::challenged(intake.guard.challenge()));
        }
        Verdict::Admitted | Verdict::AskBody => {}
    }
    let media = Media::of(&head.headers);
    if matches!(media, Media::Unsupported(_)) && verdict == Verdict::AskBody {
        return Ok(Answer::unsupported());
    }
    let read = body::read(
        &mut reading.body,
        intake.max_body_bytes,
        &intake.budget,
        verdict == Verdict::Admitted,
        &connection.progress,
    );
    let (body, permit) = match read.await {
        Ok(read) => read,
        Err(ReadError::TooLarge(bytes)) => {
            reading.bytes = bytes;
            return Ok(Answer::too_large(intake.max_body_bytes));
        }
        Err(ReadError::Overloaded) => {
            let detail = "Too many webhooks are being read.";
            return Ok(Answer::overloaded(
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
        authorization: head.headers.contains_key(AUTHORIZATION),
        media,
        path,
        content_type: head.headers.get(CONTENT_TYPE),
        body,
        permit,
    };
    Ok(webhook.take(intake).await)
}

/// Counts a request that comes to no answer: hyper drops its future when the connection breaks.
struct Unanswered<'m>(&'m Metrics);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.webhook(Outcome::Disconnected);
    }
}
