//! One client connection: hyper on the socket, and a watch over its time limits.
//!
//! hyper's own header timer closes without an answer, counts a quiet kept-alive connection as a slow header, and sets a
//! timer for each request. Here every connection has one timer for its whole life. It looks now and then at what the
//! connection is doing ([`Phase`]) and for how long, and acts when that is too long:
//!
//! ```text
//! Handshake  TLS is being agreed on      header_timeout   closed without a word; at the next look when stopping
//! Fresh      no byte came yet            header_timeout   closed without a word; at the next look when stopping
//! Idle       between two requests        IDLE_TIMEOUT     closed without a word; at the next look when stopping
//! Head       a request has begun         header_timeout   408, closed
//! Body       its body is read            body_timeout     Expired; the handler sees that and answers 408
//! Expired    … and it must answer        LINGER           closed
//! Answer     it waits for the disk       none             the spool has its own limit
//! Closing    the last answer was given   LINGER           closed
//! ```
//!
//! Over TLS everything after the handshake is the same; bytes are then those of requests, not those of the wire.
//!
//! So a limit is noticed late by at most the time between two looks: a quarter of the shortest limit, half a second at
//! most. All of it happens in the connection's own task; [`Progress`] is atomic only because the task moves between
//! threads. A request whose first bytes came together with the end of the request before is seen as Idle until it goes on.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::{Intake, handler, problem::Answer, tls::Tls};
use crate::admin::metrics::Outcome;

/// A kept-alive connection may be quiet for so long. Longer than the usual 60 s of proxies: the side that posts should be
/// the one that closes, else it posts into a closing connection, and the sender may not try again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Time to give, and to take, the last answer.
const LINGER: Duration = Duration::from_secs(5);
/// Most time between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Most bytes of a request's header; more is answered 431 by hyper.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Most bytes that hyper buffers of a connection, and so the largest frame of a body.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Fresh,
    Idle,
    Head,
    Body,
    Expired,
    Answer,
    Closing,
    Handshake,
}

const PHASES: [Phase; 8] = [
    Phase::Fresh,
    Phase::Idle,
    Phase::Head,
    Phase::Body,
    Phase::Expired,
    Phase::Answer,
    Phase::Closing,
    Phase::Handshake,
];
const PHASE_BITS: u32 = 3;

/// The phase and when it began.
pub(super) struct Progress {
    start: Instant,
    /// Microseconds from `start` to the begin of the phase, then [`PHASE_BITS`] bits of the phase.
    packed: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            start: Instant::now(),
            packed: AtomicU64::new(Phase::Fresh as u64),
        }
    }

    pub(super) fn enter(&self, phase: Phase, now: Instant) {
        let micros = now.duration_since(self.start).as_micros() as u64;
        self.packed
            .store(micros << PHASE_BITS | phase as u64, Ordering::Relaxed);
    }

    /// The body's deadline has passed.
    pub(super) fn body_expired(&self) -> bool {
        self.phase() == Phase::Expired
    }

    fn phase(&self) -> Phase {
        self.read().0
    }

    /// The phase, and the time since its begin.
    fn look(&self, now: Instant) -> (Phase, Duration) {
        let (phase, began) = self.read();
        (phase, now.duration_since(self.start).saturating_sub(began))
    }

    fn read(&self) -> (Phase, Duration) {
        let packed = self.packed.load(Ordering::Relaxed);
        let phase = PHASES[(packed & ((1 << PHASE_BITS) - 1)) as usize % PHASES.len()];
        (phase, Duration::from_micros(packed >> PHASE_BITS))
    }

    /// Bytes came in.
    fn received(&self) {
        if matches!(self.phase(), Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Head, Instant::now());
        }
    }
}

/// A connection, as its requests see it.
pub(super) struct Connection {
    pub(super) intake: Arc<Intake>,
    pub(super) progress: Progress,
    id: u64,
    requests: AtomicU64,
}

impl Connection {
    pub(super) fn new(intake: Arc<Intake>, id: u64) -> Connection {
        Connection {
            intake,
            progress: Progress::new(),
            id,
            requests: AtomicU64::new(0),
        }
    }

    /// An id for the log, unique in this process: the connection's number and the request's number on it.
    pub(super) fn next_request(&self) -> (u64, u64) {
        (self.id, self.requests.fetch_add(1, Ordering::Relaxed))
    }
}

/// The settings of hyper, the same for each connection.
pub(super) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.header_read_timeout(None)
        .max_buf_size(MAX_BUFFER_BYTES)
        .max_header_size(MAX_HEADER_BYTES);
    http
}

/// Why a connection ends.
enum End {
    /// hyper is done with it.
    Served(hyper::Result<()>),
    HeaderTimeout,
    Quiet,
}

/// Agrees on TLS, then serves the connection to its end.
pub(super) async fn serve_tls(
    stream: TcpStream,
    tls: Arc<Tls>,
    connection: Arc<Connection>,
    http: http1::Builder,
) {
    if let Some(stream) = handshake(stream, &tls, &connection).await {
        drop(tls);
        connection.progress.enter(Phase::Fresh, Instant::now());
        serve(stream, connection, http).await;
    }
}

/// The stream over TLS; `None` when it did not come about in time or at all.
async fn handshake(stream: TcpStream, tls: &Tls, connection: &Connection) -> Option<TlsStream<TcpStream>> {
    let intake = &connection.intake;
    let limits = Limits::of(intake);
    connection.progress.enter(Phase::Handshake, Instant::now());
    let mut agreed = pin!(tls.acceptor().accept(stream));
    let mut next = limits.between_looks();
    loop {
        match timeout(next, &mut agreed).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                tls.handshake_failed(&error);
                return None;
            }
            Err(_) => {
                let (phase, since) = connection.progress.look(Instant::now());
                let stopping = intake.control.is_stopping();
                match limits.judge(phase, since, stopping) {
                    Judgement::LookAgain(soon) => next = soon,
                    _ if stopping => return None,
                    _ => {
                        tls.handshake_failed(&io::ErrorKind::TimedOut.into());
                        return None;
                    }
                }
            }
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<S>(stream: S, connection: Arc<Connection>, http: http1::Builder)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let intake = &connection.intake;
    let progress = &connection.progress;
    let io = TokioIo::new(Watched {
        stream,
        connection: Arc::clone(&connection),
    });
    let mut served = http.serve_connection(
        io,
        service_fn(|request| handler::serve(Arc::clone(&connection), request)),
    );
    let limits = Limits::of(intake);
    let mut alarm = pin!(sleep(limits.between_looks()));
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut served).poll(cx) {
                return Poll::Ready(End::Served(result));
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            let (phase, since) = progress.look(now);
            let next = match limits.judge(phase, since, intake.control.is_stopping()) {
                Judgement::LookAgain(next) => next,
                Judgement::ExpireBody => {
                    progress.enter(Phase::Expired, now);
                    limits.between_looks()
                }
                Judgement::AnswerHeaderTimeout => return Poll::Ready(End::HeaderTimeout),
                Judgement::Close => return Poll::Ready(End::Quiet),
            };
            alarm.as_mut().reset((now + next).into());
        }
    })
    .await;
    match end {
        End::Served(result) => {
            if let Err(error) = result {
                note(intake, &error);
            }
        }
        End::HeaderTimeout => {
            intake.metrics.webhook(Outcome::Timeout);
            let mut stream = served.into_parts().io.into_inner().stream;
            // Best effort: the socket takes so few bytes at once, or its client isn't reading.
            let _ = timeout(LINGER, async {
                stream.write_all(&Answer::header_timeout().into_wire()).await?;
                stream.shutdown().await
            })
            .await;
        }
        End::Quiet => {
            // Over TLS an end has to be said; once, for this client may not be reading.
            let mut stream = served.into_parts().io.into_inner().stream;
            poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_shutdown(cx).is_ready())).await;
        }
    }
}

/// Counts what hyper answered by itself.
fn note(intake: &Intake, error: &hyper::Error) {
    if error.is_parse_too_large() {
        intake.metrics.webhook(Outcome::HeaderTooLarge);
    } else if error.is_parse() {
        intake.metrics.webhook(Outcome::InvalidHttp);
    }
    debug!(%error, "a connection ended with an error");
}

struct Limits {
    header: Duration,
    body: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    LookAgain(Duration),
    ExpireBody,
    AnswerHeaderTimeout,
    Close,
}

impl Limits {
    fn of(intake: &Intake) -> Limits {
        Limits {
            header: intake.header_timeout,
            body: intake.body_timeout,
        }
    }

    fn between_looks(&self) -> Duration {
        (self.header.min(self.body) / 4).clamp(Duration::from_millis(1), LOOK)
    }

    fn judge(&self, phase: Phase, since: Duration, stopping: bool) -> Judgement {
        let (limit, then) = match phase {
            Phase::Handshake | Phase::Fresh | Phase::Idle if stopping => return Judgement::Close,
            Phase::Handshake | Phase::Fresh => (self.header, Judgement::Close),
            Phase::Idle => (IDLE_TIMEOUT.max(self.header), Judgement::Close),
            Phase::Head => (self.header, Judgement::AnswerHeaderTimeout),
            Phase::Body => (self.body, Judgement::ExpireBody),
            Phase::Expired | Phase::Closing => (LINGER, Judgement::Close),
            Phase::Answer => return Judgement::LookAgain(self.between_looks()),
        };
        if since >= limit {
            then
        } else {
            Judgement::LookAgain(self.between_looks().min(limit - since))
        }
    }
}

/// The socket, or TLS on it, which tells [`Progress`] when bytes came in.
struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.connection.progress.received();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_keep_their_begin() {
        let progress = Progress::new();
        assert_eq!(progress.phase(), Phase::Fresh);
        for (index, phase) in PHASES.into_iter().enumerate() {
            let now = progress.start + Duration::from_secs(index as u64);
            progress.enter(phase, now);
            let later = now + Duration::from_millis(3);
            assert_eq!(progress.look(later), (phase, Duration::from_millis(3)));
        }
    }

    #[test]
    fn bytes_begin_a_head_only_between_requests() {
        for (before, after) in [
            (Phase::Fresh, Phase::Head),
            (Phase::Idle, Phase::Head),
            (Phase::Body, Phase::Body),
            (Phase::Answer, Phase::Answer),
            (Phase::Closing, Phase::Closing),
            (Phase::Handshake, Phase::Handshake),
        ] {
            let progress = Progress::new();
            progress.enter(before, Instant::now());
            progress.received();
            assert_eq!(progress.phase(), after);
        }
    }

    #[test]
    fn judgements() {
        use Judgement::{AnswerHeaderTimeout, Close, ExpireBody, LookAgain};
        let limits = Limits {
            header: Duration::from_secs(10),
            body: Duration::from_secs(30),
        };
        let seconds = Duration::from_secs;
        for (phase, since, stopping, expected) in [
            (Phase::Handshake, seconds(9), false, LookAgain(LOOK)),
            (Phase::Handshake, seconds(10), false, Close),
            (Phase::Handshake, seconds(0), true, Close),
            (Phase::Fresh, seconds(1), false, LookAgain(LOOK)),
            (Phase::Fresh, seconds(10), false, Close),
            (Phase::Fresh, seconds(0), true, Close),
            (Phase::Idle, seconds(74), false, LookAgain(LOOK)),
            (Phase::Idle, seconds(75), false, Close),
            (Phase::Idle, seconds(0), true, Close),
            (Phase::Head, seconds(9), true, LookAgain(LOOK)),
            (Phase::Head, seconds(10), false, AnswerHeaderTimeout),
            (Phase::Body, seconds(29), true, LookAgain(LOOK)),
            (Phase::Body, seconds(30), false, ExpireBody),
            (Phase::Expired, seconds(5), false, Close),
            (Phase::Answer, seconds(1000), true, LookAgain(LOOK)),
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
