//! One client connection to its end: hyper on the socket, and a timer for its limits.
//!
//! hyper's own header timer closes without an answer, counts a quiet kept-alive connection as a slow header, and sets a
//! timer for each request. Here every connection has one timer for its whole life. At intervals it looks at what the
//! connection is doing ([`Phase`]) and for how long, and acts if that is too long:
//!
//! ```text
//! Handshake  negotiating TLS             header_timeout   closed silently; at the next look when stopping
//! Fresh      no byte has arrived yet     header_timeout   closed silently; at the next look when stopping
//! Idle       between two requests        header_timeout   looked inside: 408 if a request has begun, otherwise Quiet
//! Quiet      … and none has begun        idle_timeout     closed silently; at the next look when stopping
//! Head       a request has begun         header_timeout   408, closed
//! Body       its body is being read      body_timeout     Expired; the handler sees that and answers 408
//! Expired    … and it must answer        LINGER           closed
//! Answer     it waits for the disk       none             the spool has its own limit
//! Writing    the answer is being sent    header_timeout   closed
//! Draining   … and the rest is read      body_timeout     closed; after LINGER when stopping
//! Closing    the last answer was given   LINGER           closed
//! ```
//!
//! Over TLS everything after the handshake is the same; bytes then means bytes of requests, not bytes on the wire.
//!
//! An expired limit is noticed at the next look: at most a quarter of the shortest limit later, and at most half a second
//! later. A request whose first bytes arrived together with the end of the previous request is invisible from outside
//! hyper. That is why an idle connection is taken apart once and put together again: hyper then shows what it holds.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::{
    answer::Answer,
    body::{DRAIN_BYTES, DRAIN_TIME},
    connection::{Connection, CountOnDrop},
    handler,
    intake::Intake,
    phase::Phase,
    socket::{Socket, WatchedSocket},
    tls::TlsContext,
};
use crate::metrics::Outcome;

/// Time to write the last answer, and for the client to read it.
const LINGER: Duration = Duration::from_secs(5);
/// Longest time between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Maximum size of a request's header in bytes. A larger one, or one with more than hyper's 100 fields, is answered 431.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Maximum number of bytes that hyper buffers per connection, and so the largest frame of a body. They are not charged to the
/// budget of bytes in flight, but are part of the 64 KiB per connection that docs/operations.md reckons with.
const MAX_BUFFER_BYTES: usize = MAX_HEADER_BYTES;

/// The answer to a PROXY protocol header.
const PROXY_HEADER: &str =
    "The connection begins with a PROXY protocol header: switch that protocol off in the load balancer.";

/// hyper's settings, the same for each connection.
pub(super) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.header_read_timeout(None)
        .half_close(true)
        .max_buf_size(MAX_BUFFER_BYTES)
        .max_header_size(MAX_HEADER_BYTES);
    http
}

/// Why hyper no longer serves the connection.
enum ServeEnd {
    /// hyper is done with it.
    Served(hyper::Result<()>),
    /// A request may have begun, and its header took too long.
    HeaderTimeout,
    /// Nothing arrived for a while, unless hyper holds it.
    LookInside,
    TooLong,
}

/// Negotiates TLS, then serves the connection to its end.
pub(super) async fn serve_tls(
    stream: TcpStream,
    tls: Arc<TlsContext>,
    connection: Arc<Connection>,
    http: http1::Builder,
) {
    if let Some(stream) = handshake(stream, &tls, &connection).await {
        drop(tls);
        connection.phase.enter(Phase::Fresh, Instant::now());
        serve(stream, connection, http).await;
    }
}

/// The stream over TLS; `None` if the handshake failed or took too long.
async fn handshake(
    stream: TcpStream,
    tls: &TlsContext,
    connection: &Connection,
) -> Option<TlsStream<TcpStream>> {
    let intake = &connection.intake;
    let limits = Limits::of(intake);
    connection.phase.enter(Phase::Handshake, Instant::now());
    let mut agreed = pin!(async {
        let hint = other_than_tls(&stream).await;
        let agreed = tls.acceptor().accept(stream).await;
        agreed.map_err(|error| (error, hint))
    });
    let mut next = limits.between_looks();
    loop {
        match timeout(next, &mut agreed).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err((error, hint))) => {
                tls.handshake_failed(&error, hint);
                return None;
            }
            Err(_) => {
                let (phase, since) = connection.phase.look(Instant::now());
                let stopping = intake.stop.is_stopping();
                match limits.judge(phase, since, stopping) {
                    Judgement::LookAgain(soon) => next = soon,
                    _ if stopping => return None,
                    _ => {
                        tls.handshake_failed(&io::ErrorKind::TimedOut.into(), None);
                        return None;
                    }
                }
            }
        }
    }
}

/// What a client speaks, if its first bytes are known not to be TLS. They are left for the handshake, which fails.
async fn other_than_tls(stream: &TcpStream) -> Option<&'static str> {
    let mut first = [0; 16];
    let count = stream.peek(&mut first).await.ok()?;
    let first = first.get(..count)?;
    if is_proxy_header(first) {
        return Some(PROXY_HEADER);
    }
    let is_http = [&b"POST "[..], b"GET ", b"HEAD ", b"PUT ", b"OPTIONS "]
        .iter()
        .any(|method| first.starts_with(method));
    is_http.then_some("It is plain HTTP: the client should use https.")
}

/// Serves a connection to its end.
pub(super) async fn serve<S: Socket>(stream: S, connection: Arc<Connection>, http: http1::Builder) {
    let _served = CountOnDrop(&connection);
    let intake = &connection.intake;
    let tracker = &connection.phase;
    let limits = Limits::of(intake);
    let mut alarm = pin!(sleep(limits.between_looks()));
    let mut io = TokioIo::new(WatchedSocket::new(stream, Arc::clone(&connection)));
    let (mut stream, last_answer) = loop {
        let mut served = http.serve_connection(
            io,
            service_fn(|request| handler::serve(Arc::clone(&connection), request)),
        );
        let end = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = Pin::new(&mut served).poll(cx) {
                    return Poll::Ready(ServeEnd::Served(result));
                }
                if alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = Instant::now();
                let (phase, since) = tracker.look(now);
                let next = match limits.judge(phase, since, intake.stop.is_stopping()) {
                    Judgement::LookAgain(next) => next,
                    Judgement::ExpireBody => {
                        tracker.enter(Phase::Expired, now);
                        limits.between_looks()
                    }
                    Judgement::AnswerHeaderTimeout => return Poll::Ready(ServeEnd::HeaderTimeout),
                    Judgement::LookInside => return Poll::Ready(ServeEnd::LookInside),
                    Judgement::Close => return Poll::Ready(ServeEnd::TooLong),
                };
                alarm.as_mut().reset((now + next).into());
            }
        })
        .await;
        let parts = served.into_parts();
        // Empty lines before a request are not part of it.
        let has_begun = parts.read_buf.iter().any(|byte| !b"\r\n".contains(byte));
        let answer = match end {
            ServeEnd::Served(Err(error)) => refusal(intake, tracker.current(), &error, &parts.read_buf),
            ServeEnd::LookInside if has_begun && intake.stop.is_stopping() => {
                Some(Answer::stopping(&intake.retry_after))
            }
            ServeEnd::HeaderTimeout | ServeEnd::LookInside if has_begun => Some(Answer::header_timeout()),
            ServeEnd::LookInside if limits.idle > limits.header && !intake.stop.is_stopping() => {
                tracker.enter(Phase::Quiet, Instant::now());
                alarm
                    .as_mut()
                    .reset((Instant::now() + limits.between_looks()).into());
                io = parts.io;
                continue;
            }
            _ => None,
        };
        break (parts.io.into_inner().stream, answer);
    };
    tracker.enter(Phase::Closing, Instant::now());
    match last_answer {
        Some(answer) => {
            intake.metrics.webhook(answer.outcome);
            answer.log(&intake.refusal_lines, &format_args!("{:x}", connection.id), 0);
            // Best effort: the socket accepts so few bytes at once, or its client isn't reading.
            let _ = timeout(LINGER, last_words(&mut stream, answer)).await;
        }
        // Over TLS the end must be announced; only once, since this client may not be reading.
        None => {
            poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_shutdown(cx).is_ready())).await;
        }
    }
    connection.settle(stream.tcp()).await;
}

/// The answer to input that hyper refused. Also counts a client that disappeared in the middle of a header.
fn refusal(intake: &Intake, phase: Phase, error: &hyper::Error, unread: &[u8]) -> Option<Answer> {
    debug!(%error, "a connection ended with an error");
    if error.is_parse_too_large() {
        return Some(Answer::header_too_large());
    }
    if error.is_parse() {
        let detail = match is_proxy_header(unread) {
            true => PROXY_HEADER,
            false => "The request is not valid HTTP/1.1.",
        };
        return Some(Answer::invalid_http(detail));
    }
    if phase == Phase::Head {
        intake.metrics.webhook(Outcome::Disconnected);
    }
    None
}

/// Whether bytes begin with a PROXY protocol header, version 1 or 2. hyper may have skipped the empty lines with
/// which version 2 begins.
fn is_proxy_header(bytes: &[u8]) -> bool {
    let begin = bytes.iter().position(|byte| !b"\r\n".contains(byte));
    let bytes = &bytes[begin.unwrap_or(bytes.len())..];
    [&b"PROXY "[..], b"\0\r\nQUIT\n"]
        .iter()
        .any(|header| bytes.starts_with(header))
}

/// Answers and closes; then reads a bounded part of whatever still arrives. A socket that is closed with unread bytes is
/// reset, and the answer is lost with it.
async fn last_words<S: Socket>(stream: &mut S, answer: Answer) -> io::Result<()> {
    stream.write_all(&answer.into_wire()).await?;
    stream.shutdown().await?;
    let mut rest = stream.take(DRAIN_BYTES as u64);
    let mut nowhere = tokio::io::sink();
    timeout(DRAIN_TIME, tokio::io::copy(&mut rest, &mut nowhere)).await??;
    Ok(())
}

struct Limits {
    header: Duration,
    body: Duration,
    idle: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    LookAgain(Duration),
    LookInside,
    ExpireBody,
    AnswerHeaderTimeout,
    Close,
}

impl Limits {
    fn of(intake: &Intake) -> Limits {
        Limits {
            header: intake.header_timeout,
            body: intake.body_timeout,
            idle: intake.idle_timeout,
        }
    }

    fn between_looks(&self) -> Duration {
        (self.header.min(self.body).min(self.idle) / 4).clamp(Duration::from_millis(1), LOOK)
    }

    fn judge(&self, phase: Phase, since: Duration, stopping: bool) -> Judgement {
        let (limit, then) = match phase {
            Phase::Handshake | Phase::Fresh | Phase::Quiet if stopping => return Judgement::Close,
            Phase::Idle if stopping => return Judgement::LookInside,
            Phase::Handshake | Phase::Fresh => (self.header, Judgement::Close),
            Phase::Idle => (self.idle.min(self.header), Judgement::LookInside),
            Phase::Quiet => (self.idle.saturating_sub(self.header), Judgement::Close),
            Phase::Head => (self.header, Judgement::AnswerHeaderTimeout),
            Phase::Body => (self.body, Judgement::ExpireBody),
            Phase::Writing => (self.header, Judgement::Close),
            Phase::Draining if !stopping => (self.body.max(LINGER), Judgement::Close),
            Phase::Draining | Phase::Expired | Phase::Closing => (LINGER, Judgement::Close),
            Phase::Answer => return Judgement::LookAgain(self.between_looks()),
        };
        if since >= limit {
            then
        } else {
            Judgement::LookAgain(self.between_looks().min(limit - since))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers() {
        for (bytes, expected) in [
            (
                &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nPOST / HTTP/1.1\r\n"[..],
                true,
            ),
            (b"PROXY UNKNOWN\r\n", true),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", true),
            (b"\0\r\nQUIT\n", true),
            (b"PROXYX / HTTP/1.1\r\n", false),
            (b"\r\n\r\n", false),
            (b"", false),
        ] {
            assert_eq!(is_proxy_header(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn judgements() {
        use Judgement::{AnswerHeaderTimeout, Close, ExpireBody, LookAgain, LookInside};
        let limits = Limits {
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(75),
        };
        let seconds = Duration::from_secs;
        for (phase, since, stopping, expected) in [
            (Phase::Handshake, seconds(9), false, LookAgain(LOOK)),
            (Phase::Handshake, seconds(10), false, Close),
            (Phase::Handshake, seconds(0), true, Close),
            (Phase::Fresh, seconds(1), false, LookAgain(LOOK)),
            (Phase::Fresh, seconds(10), false, Close),
            (Phase::Fresh, seconds(0), true, Close),
            (Phase::Idle, seconds(9), false, LookAgain(LOOK)),
            (Phase::Idle, seconds(10), false, LookInside),
            (Phase::Idle, seconds(0), true, LookInside),
            (Phase::Quiet, seconds(64), false, LookAgain(LOOK)),
            (Phase::Quiet, seconds(65), false, Close),
            (Phase::Quiet, seconds(0), true, Close),
            (Phase::Head, seconds(9), true, LookAgain(LOOK)),
            (Phase::Head, seconds(10), false, AnswerHeaderTimeout),
            (Phase::Body, seconds(29), true, LookAgain(LOOK)),
            (Phase::Body, seconds(30), false, ExpireBody),
            (Phase::Expired, seconds(5), false, Close),
            (Phase::Answer, seconds(1000), true, LookAgain(LOOK)),
            (Phase::Writing, seconds(9), true, LookAgain(LOOK)),
            (Phase::Writing, seconds(10), false, Close),
            (Phase::Draining, seconds(29), false, LookAgain(LOOK)),
            (Phase::Draining, seconds(30), false, Close),
            (Phase::Draining, seconds(5), true, Close),
            (Phase::Closing, seconds(5), false, Close),
        ] {
            assert_eq!(
                limits.judge(phase, since, stopping),
                expected,
                "{phase:?} {since:?}"
            );
        }
        let nearly = Duration::from_millis(9_990);
        let soon = LookAgain(Duration::from_millis(10));
        assert_eq!(limits.judge(Phase::Head, nearly, false), soon);
    }
}
