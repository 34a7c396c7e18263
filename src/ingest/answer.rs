//! Answers: `ok`, and errors as RFC 9457 problem details.
//!
//! The log gives the cause of each refusal ([`Answer::log`]): at most one line a second for each outcome and, where a
//! 503 has several causes, for each cause.
//!
//! An answer says what the sender can change. It never repeats a credential, an address or a part of the body. The
//! `type` of a problem is `urn:cmc-bridge:problem:` followed by the outcome's label; `reason` and `offset` are
//! present if a body was not understood.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
};
use jiff::{Timestamp, fmt::rfc2822};
use serde::Serialize;
use tracing::warn;

use super::{limits::LogLimiter, phase::Phase};
use crate::{
    cmc::{Endpoint, Malformed},
    metrics::{Outcome, Shortage},
    stream::Stream,
};

/// Rate limits for the log lines about refusals, one for each cause.
pub(super) struct RefusalLines {
    outcomes: [LogLimiter; Outcome::ALL.len()],
    shortages: [LogLimiter; Shortage::ALL.len()],
}

impl RefusalLines {
    pub(super) fn new() -> RefusalLines {
        RefusalLines {
            outcomes: std::array::from_fn(|_| LogLimiter::new()),
            shortages: std::array::from_fn(|_| LogLimiter::new()),
        }
    }
}

/// The response type that hyper sends.
pub(super) type HttpResponse = Response<Full<Bytes>>;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// With the stream concerned, if there is one.
    shortage: Option<(Shortage, Option<Stream>)>,
    content: Content,
    header: Option<(HeaderName, HeaderValue)>,
}

#[derive(Debug)]
enum Content {
    Ok,
    Problem(ProblemDetails),
}

#[derive(Debug)]
struct ProblemDetails {
    status: StatusCode,
    title: &'static str,
    detail: Cow<'static, str>,
    reason: Option<&'static str>,
    offset: Option<usize>,
}

impl Answer {
    /// All events of the webhook are durable.
    pub(super) fn accepted() -> Answer {
        Answer {
            outcome: Outcome::Accepted,
            shortage: None,
            content: Content::Ok,
            header: None,
        }
    }

    /// The body was not understood and is stored as a dead letter. The status is `ingest.malformed_status`; if that
    /// means success, the sender gets `ok`.
    pub(super) fn malformed(status: StatusCode, malformed: Malformed) -> Answer {
        let content = Content::Problem(ProblemDetails {
            status,
            title: "Invalid request",
            detail: malformed.detail,
            reason: Some(malformed.reason.name()),
            offset: malformed.offset,
        });
        Answer {
            outcome: Outcome::Malformed,
            shortage: None,
            content,
            header: None,
        }
    }

    pub(super) fn unauthorized(challenge: HeaderValue) -> Answer {
        Answer::problem(
            Outcome::Unauthorized,
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "The credential of the request is invalid.",
        )
        .with(WWW_AUTHENTICATE, challenge)
    }

    /// 401 for a request without a credential.
    pub(super) fn challenged(challenge: HeaderValue) -> Answer {
        Answer::problem(
            Outcome::Challenged,
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "The request has no credential.",
        )
        .with(WWW_AUTHENTICATE, challenge)
    }

    pub(super) fn not_found() -> Answer {
        Answer::problem(
            Outcome::NotFound,
            StatusCode::NOT_FOUND,
            "Not found",
            "Webhooks are accepted on another path.",
        )
    }

    pub(super) fn method_not_allowed() -> Answer {
        Answer::problem(
            Outcome::MethodNotAllowed,
            StatusCode::METHOD_NOT_ALLOWED,
            "Method not allowed",
            "Webhooks must be sent with POST.",
        )
        .with(ALLOW, HeaderValue::from_static("POST"))
    }

    pub(super) fn body_timeout() -> Answer {
        Answer::problem(
            Outcome::Timeout,
            StatusCode::REQUEST_TIMEOUT,
            "Request timeout",
            "The body did not arrive in time.",
        )
    }

    pub(super) fn header_timeout() -> Answer {
        Answer::problem(
            Outcome::Timeout,
            StatusCode::REQUEST_TIMEOUT,
            "Request timeout",
            "The header did not arrive in time.",
        )
    }

    /// The header exceeds a limit, in bytes or fields.
    pub(super) fn header_too_large() -> Answer {
        Answer::problem(
            Outcome::HeaderTooLarge,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Header too large",
            "The header has too many bytes or fields.",
        )
    }

    /// A request that breaks the rules of HTTP.
    pub(super) fn invalid_http(detail: &'static str) -> Answer {
        Answer::problem(
            Outcome::InvalidHttp,
            StatusCode::BAD_REQUEST,
            "Invalid HTTP",
            detail,
        )
    }

    pub(super) fn too_large(max_body_bytes: usize) -> Answer {
        Answer::problem(
            Outcome::TooLarge,
            StatusCode::PAYLOAD_TOO_LARGE,
            "Content too large",
            format!("The body is larger than {max_body_bytes} bytes."),
        )
    }

    pub(super) fn unsupported(endpoint: Endpoint) -> Answer {
        let (detail, accepted) = match endpoint {
            Endpoint::Events => (
                "The content type is neither JSON nor a URL-encoded form, or the body has a content encoding.",
                "application/json, application/x-www-form-urlencoded",
            ),
            Endpoint::Inbound => (
                "The content type is neither JSON nor multipart/form-data, or the body has a content encoding.",
                "application/json, multipart/form-data",
            ),
        };
        Answer::problem(
            Outcome::Unsupported,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported media type",
            detail,
        )
        .with(ACCEPT_POST, HeaderValue::from_static(accepted))
    }

    pub(super) fn stopping(retry_after: &RetryAfter) -> Answer {
        Answer::unavailable(Outcome::Draining, "The bridge is stopping.", retry_after)
    }

    /// 503 for a shortage, of this stream if it concerns one.
    pub(super) fn short_of(
        shortage: Shortage,
        stream: Option<Stream>,
        detail: &'static str,
        retry_after: &RetryAfter,
    ) -> Answer {
        Answer {
            shortage: Some((shortage, stream)),
            ..Answer::unavailable(shortage.outcome(), detail, retry_after)
        }
    }

    /// 503: try again later.
    pub(super) fn unavailable(outcome: Outcome, detail: &'static str, retry_after: &RetryAfter) -> Answer {
        Answer::problem(
            outcome,
            StatusCode::SERVICE_UNAVAILABLE,
            "Service unavailable",
            detail,
        )
        .with(RETRY_AFTER, retry_after.0.clone())
    }

    fn problem(
        outcome: Outcome,
        status: StatusCode,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Answer {
        let problem = ProblemDetails {
            status,
            title,
            detail: detail.into(),
            reason: None,
            offset: None,
        };
        Answer {
            outcome,
            shortage: None,
            content: Content::Problem(problem),
            header: None,
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Answer {
        self.header = Some((name, value));
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        match &self.content {
            Content::Ok => StatusCode::OK,
            Content::Problem(problem) => problem.status,
        }
    }

    fn render(&self) -> (HeaderValue, Bytes) {
        match &self.content {
            Content::Problem(problem) if !problem.status.is_success() => {
                (PROBLEM_JSON, problem.body(self.outcome))
            }
            _ => (TEXT, Bytes::from_static(b"ok")),
        }
    }

    /// The shortage behind a 503.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.shortage.map(|(shortage, _)| shortage)
    }

    /// Logs why the request was refused, unless this cause was logged a moment ago.
    pub(super) fn log(&self, lines: &RefusalLines, request: &dyn fmt::Display, bytes: u64) {
        let (limiter, cause, stream) = match (self.shortage, &self.content) {
            (Some((shortage, stream)), _) => (&lines.shortages[shortage as usize], shortage.cause(), stream),
            (None, Content::Problem(problem)) => {
                (&lines.outcomes[self.outcome.index()], &*problem.detail, None)
            }
            (None, Content::Ok) => return,
        };
        let Some(suppressed) = limiter.pass() else {
            return;
        };
        let (reason, offset) = match &self.content {
            Content::Ok => (None, None),
            Content::Problem(problem) => (problem.reason, problem.offset),
        };
        warn!(
            %request,
            outcome = self.outcome.label(),
            status = self.status().as_u16(),
            bytes,
            cause,
            stream = stream.map(Stream::name),
            reason,
            offset,
            suppressed,
            "a request was refused"
        );
    }

    /// The HTTP response. `headers` is an empty map to fill: the request's own, to reuse its allocation.
    pub(super) fn into_response(self, mut headers: HeaderMap, ending: Ending) -> HttpResponse {
        let status = self.status();
        let (content_type, body) = self.render();
        headers.insert(CONTENT_TYPE, content_type);
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        ending.announce(&mut headers);
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The answer as bytes on the wire, for a connection that hyper does not serve (any more). It closes the
    /// connection.
    pub(super) fn into_wire(self) -> Vec<u8> {
        let status = self.status();
        let (content_type, body) = self.render();
        let mut wire = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len()).into_bytes();
        let fixed = [
            (CONTENT_TYPE, content_type),
            (CONNECTION, HeaderValue::from_static("close")),
        ];
        if status.is_client_error() {
            // RFC 9110, 6.6.1. The 503 for a refused connection needs no date, and was made long before.
            wire.extend_from_slice(format!("date: {}\r\n", http_date()).as_bytes());
        }
        for (name, value) in fixed.into_iter().chain(self.header) {
            wire.extend_from_slice(name.as_str().as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&body);
        wire
    }
}

/// The current time in HTTP's format.
fn http_date() -> String {
    // Fails only for years without four digits.
    rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&Timestamp::now())
        .unwrap_or_default()
}

impl ProblemDetails {
    fn body(&self, outcome: Outcome) -> Bytes {
        #[derive(Serialize)]
        struct Body<'p> {
            r#type: String,
            title: &'p str,
            status: u16,
            detail: &'p str,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'p str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            offset: Option<usize>,
        }
        let body = Body {
            r#type: format!("urn:cmc-bridge:problem:{}", outcome.label()),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            reason: self.reason,
            offset: self.offset,
        };
        // Strings and numbers always serialize; an empty object is still a valid problem.
        serde_json::to_vec(&body)
            .unwrap_or_else(|_| b"{}".to_vec())
            .into()
    }
}

/// What happens to the connection after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is kept, and the client learns for how long.
    KeepAlive(Option<HeaderValue>),
    Close,
}

impl Ending {
    /// What the connection does while the answer is sent.
    pub(super) fn phase(&self) -> Phase {
        match self {
            Ending::KeepAlive(_) => Phase::Writing,
            Ending::Close => Phase::Closing,
        }
    }

    fn announce(self, headers: &mut HeaderMap) {
        match self {
            Ending::KeepAlive(None) => None,
            Ending::KeepAlive(Some(time)) => headers.insert(KEEP_ALIVE, time),
            Ending::Close => headers.insert(CONNECTION, HeaderValue::from_static("close")),
        };
    }
}

/// The value of `Keep-Alive` for a server that closes a connection after `idle_timeout` without a request. It
/// promises a little less: the client counts from the arrival of the answer, and its next request takes a while to
/// arrive. `None` if less than a second is left.
pub(super) fn keep_alive(idle_timeout: Duration) -> Option<HeaderValue> {
    let margin = (idle_timeout / 10).clamp(Duration::from_secs(1), Duration::from_secs(5));
    let seconds = idle_timeout.saturating_sub(margin).as_secs();
    // Some clients take 0 for "forever".
    let value = (seconds > 0).then(|| format!("timeout={seconds}"))?;
    HeaderValue::try_from(value).ok()
}

/// The answer on the health path: whether a load balancer should send webhooks here, and nothing else.
pub(super) enum HealthAnswer {
    Ready,
    NotReady,
    MethodNotAllowed,
}

impl HealthAnswer {
    pub(super) fn of(method: &Method, ready: bool) -> HealthAnswer {
        match (method, ready) {
            (&Method::GET | &Method::HEAD, true) => HealthAnswer::Ready,
            (&Method::GET | &Method::HEAD, false) => HealthAnswer::NotReady,
            _ => HealthAnswer::MethodNotAllowed,
        }
    }

    pub(super) fn into_response(self, ending: Ending) -> HttpResponse {
        let (status, text) = match self {
            HealthAnswer::Ready => (StatusCode::OK, "ready\n"),
            HealthAnswer::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            HealthAnswer::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        };
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, TEXT);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        ending.announce(headers);
        response
    }
}

/// The value of `Retry-After`: whole seconds, at least one.
#[derive(Clone, Debug)]
pub(super) struct RetryAfter(HeaderValue);

impl RetryAfter {
    pub(super) fn new(after: Duration) -> RetryAfter {
        RetryAfter(HeaderValue::from(after.as_secs().max(1)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::dead_letter::Reason;

    async fn rendered(answer: Answer) -> (u16, HeaderMap, String) {
        let (head, body) = answer
            .into_response(HeaderMap::new(), Ending::KeepAlive(None))
            .into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (
            head.status.as_u16(),
            head.headers,
            String::from_utf8(body.into()).unwrap(),
        )
    }

    #[tokio::test]
    async fn problem_table() {
        let retry_after = RetryAfter::new(Duration::from_secs(7));
        let busy = Answer::unavailable(Outcome::Overloaded, "Busy.", &retry_after);
        let challenge = HeaderValue::from_static("Bearer");
        let table = [
            (
                Answer::unauthorized(challenge.clone()),
                401,
                "www-authenticate",
                "Bearer",
            ),
            (Answer::challenged(challenge), 401, "www-authenticate", "Bearer"),
            (
                Answer::not_found(),
                404,
                "content-type",
                "application/problem+json",
            ),
            (Answer::method_not_allowed(), 405, "allow", "POST"),
            (
                Answer::body_timeout(),
                408,
                "content-type",
                "application/problem+json",
            ),
            (
                Answer::too_large(5),
                413,
                "content-type",
                "application/problem+json",
            ),
            (
                Answer::header_too_large(),
                431,
                "content-type",
                "application/problem+json",
            ),
            (
                Answer::invalid_http("No."),
                400,
                "content-type",
                "application/problem+json",
            ),
            (
                Answer::unsupported(Endpoint::Events),
                415,
                "accept-post",
                "application/json, application/x-www-form-urlencoded",
            ),
            (busy, 503, "retry-after", "7"),
        ];
        for (answer, status, name, value) in table {
            let label = answer.outcome.label();
            let (found, headers, body) = rendered(answer).await;
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(found, status);
            assert_eq!(headers[name], value);
            assert_eq!(headers["content-type"], "application/problem+json");
            assert_eq!(body["status"], status);
            assert_eq!(body["type"], format!("urn:cmc-bridge:problem:{label}"));
            assert!(body["title"].is_string() && body["detail"].is_string());
        }
    }

    fn malformed() -> Malformed {
        Malformed::new(Reason::ALL[0], Some(17), "A comma is missing.")
    }

    #[test]
    fn connections_are_promised_for_less_than_they_are_kept() {
        for (idle, promised) in [
            (100, None),
            (1_999, None),
            (2_000, Some("timeout=1")),
            (10_000, Some("timeout=9")),
            (60_000, Some("timeout=55")),
            (75_000, Some("timeout=70")),
            (3_600_000, Some("timeout=3595")),
        ] {
            let value = keep_alive(Duration::from_millis(idle));
            assert_eq!(
                value.as_ref().map(|value| value.to_str().unwrap()),
                promised,
                "{idle}"
            );
        }
    }

    #[tokio::test]
    async fn malformed_says_where() {
        let (status, _, body) = rendered(Answer::malformed(StatusCode::BAD_REQUEST, malformed())).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 400);
        assert_eq!(body["title"], "Invalid request");
        assert_eq!(body["detail"], "A comma is missing.");
        assert_eq!(body["reason"], Reason::ALL[0].name());
        assert_eq!(body["offset"], 17);
    }

    #[tokio::test]
    async fn malformed_may_be_ok() {
        let (status, headers, body) = rendered(Answer::malformed(StatusCode::OK, malformed())).await;
        assert_eq!((status, body.as_str()), (200, "ok"));
        assert_eq!(headers["content-type"], "text/plain");
    }

    #[test]
    fn wire_form() {
        let retry_after = RetryAfter::new(Duration::from_millis(1));
        let slow = String::from_utf8(Answer::header_timeout().into_wire()).unwrap();
        assert!(slow.contains("\r\ndate: ") && slow.contains(" GMT\r\n"), "{slow}");
        let wire = Answer::unavailable(Outcome::Overloaded, "Busy.", &retry_after).into_wire();
        let wire = String::from_utf8(wire).unwrap();
        let (head, body) = wire.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: close"), "{head}");
        assert!(head.ends_with("\r\nretry-after: 1"), "{head}");
        assert!(
            head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())),
            "{head}"
        );
    }
}
