//! Accepting connections, up to a limit, until the server stops.
//!
//! A connection over the limit takes the place of the oldest stranger: a connection on which no request has been
//! admitted yet, whatever it is doing (a handshake, a slow header, a body, or resting after a 401, 404 or 405). That
//! one is closed silently; a request that has begun on it is counted as overloaded. So clients without a credential
//! can't keep out those that have one, and a client that shows its credential in time is never closed for another.
//! Places are taken no faster than connections are accepted, so a new client has as long as it takes to fill the
//! whole table anew.
//!
//! If all are known, a further one gets a 503 that was made beforehand, written at once or not at all. It has no
//! task. Its socket is kept half open in a short list for a moment, since closing it with the client's request unread
//! would take the answer back. Over TLS there would have to be a handshake first, so it is simply closed.

use std::{
    collections::{HashSet, VecDeque},
    future::ready,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http1;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{self, AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    answer::Answer, connection::Connection, credential_reload, intake::Intake, limits::LogLimiter, serve,
    stop::StopHandle, tls::TlsContext,
};
use crate::metrics::{Outcome, Shortage};

/// Connections that wait in the kernel's queue; the kernel may lower it (`net.core.somaxconn`). A connection that
/// finds it full waits a second or more, so it should hold a burst.
const QUEUE: u32 = 4096;
/// Wait after a failed accept, which would fail again at once while file descriptors are missing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of connections that have lost their place but whose tasks have not ended yet; beyond it, others wait
/// in the queue.
const LEAVING: usize = 64;
/// Refused connections kept half open.
const REFUSED_KEPT: usize = 64;
/// How long each is kept.
const REFUSED_TIME: Duration = Duration::from_secs(1);

/// The webhooks' port, bound but not yet served.
pub struct WebhookServer {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: Acceptor,
}

impl WebhookServer {
    /// Binds the port. Connections wait in the kernel's queue until [`WebhookServer::run`]. Without `tls` it serves
    /// plain HTTP.
    ///
    /// # Errors
    /// The address can't be bound.
    pub async fn bind(
        listen: SocketAddr,
        intake: Intake,
        tls: Option<TlsContext>,
    ) -> io::Result<WebhookServer> {
        let socket = match listen {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // tokio and the standard library do the same: a restart must not wait for the TIME_WAIT of old connections.
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(QUEUE)?;
        let address = listener.local_addr()?;
        let detail = "There are too many connections.";
        let answer = Answer::unavailable(Outcome::Overloaded, detail, &intake.retry_after).into_wire();
        let acceptor = Acceptor {
            intake: Arc::new(intake),
            tls: tls.map(Arc::new),
            http: serve::http(),
            connections: JoinSet::new(),
            strangers: VecDeque::new(),
            leaving: HashSet::new(),
            accepted: 0,
            recycled_lines: LogLimiter::new(),
            overflow: Overflow {
                answer,
                kept: VecDeque::new(),
                lines: LogLimiter::new(),
            },
        };
        Ok(WebhookServer {
            listener,
            address,
            acceptor,
        })
    }

    /// The address that it listens on, with the actual port if port 0 was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A handle that stops it.
    pub fn stop_handle(&self) -> StopHandle {
        self.acceptor.intake.stop.clone()
    }

    /// Serves until it is stopped and the last connection has ended. Dropping the future cuts all connections.
    pub async fn run(self) {
        let WebhookServer {
            listener,
            address,
            mut acceptor,
        } = self;
        info!(%address, tls = acceptor.tls.is_some(), "webhooks are served");
        // Ends with this function.
        let mut reloading = JoinSet::new();
        if let Some(tls) = &acceptor.tls {
            reloading.spawn(Arc::clone(tls).keep_fresh());
        }
        reloading.spawn(credential_reload::keep_fresh(Arc::clone(&acceptor.intake)));
        reloading.spawn(Arc::clone(&acceptor.intake.zones).report_unseen());
        let stop = acceptor.intake.stop.clone();
        let errors = LogLimiter::new();
        while !stop.is_stopping() {
            tokio::select! {
                () = stop.stopping() => {}
                Some(end) = acceptor.connections.join_next_with_id() => acceptor.ended(end),
                () = acceptor.overflow.oldest_is_due() => acceptor.overflow.close_oldest(),
                accepted = listener.accept(), if acceptor.may_take() => match accepted {
                    Ok((stream, _)) => acceptor.take(stream),
                    Err(error) => {
                        if let Some(suppressed) = errors.pass() {
                            warn!(%error, suppressed, "a connection could not be accepted");
                        }
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Connections that still wait in the queue are answered.
        for _ in 0..QUEUE {
            tokio::select! {
                biased;
                Ok((stream, _)) = listener.accept() => acceptor.take(stream),
                () = ready(()) => break,
            }
        }
        drop(listener);
        while let Some(end) = acceptor.connections.join_next_with_id().await {
            acceptor.ended(end);
        }
    }
}

struct Acceptor {
    intake: Arc<Intake>,
    tls: Option<Arc<TlsContext>>,
    http: http1::Builder,
    connections: JoinSet<()>,
    /// The oldest first. Those that are known or gone by now are removed when they are met.
    strangers: VecDeque<(Arc<Connection>, AbortHandle)>,
    /// Members of `connections` that have lost their place.
    leaving: HashSet<task::Id>,
    accepted: u64,
    recycled_lines: LogLimiter,
    overflow: Overflow,
}

impl Acceptor {
    fn may_take(&self) -> bool {
        self.leaving.len() < LEAVING
    }

    /// Notes the end of a connection. A task leaves `leaving` only here, together with `connections`: a task counted as
    /// leaving after its end would make room for a connection over the limit.
    fn ended(&mut self, end: Result<(task::Id, ()), JoinError>) {
        let id = match end {
            Ok((id, ())) => id,
            Err(error) => {
                if !error.is_cancelled() {
                    error!(%error, "a connection's task failed");
                }
                error.id()
            }
        };
        self.leaving.remove(&id);
    }

    fn take(&mut self, stream: TcpStream) {
        let limit = self.intake.max_connections;
        while let Some(end) = self.connections.try_join_next_with_id() {
            self.ended(end);
        }
        let places_taken = self.connections.len() - self.leaving.len();
        if places_taken >= limit && !self.recycle() {
            self.intake.metrics.webhook(Outcome::Overloaded);
            self.intake.metrics.short_of(Shortage::Connections);
            self.overflow.note(limit);
            if self.tls.is_none() {
                self.overflow.take(stream);
            }
            return;
        }
        // Without it an answer may wait for the client's delayed acknowledgement; its failure is no reason to refuse.
        let _ = stream.set_nodelay(true);
        self.accepted += 1;
        let connection = Arc::new(Connection::new(Arc::clone(&self.intake), self.accepted));
        let http = self.http.clone();
        let served = Arc::clone(&connection);
        let task = match &self.tls {
            None => self.connections.spawn(serve::serve(stream, served, http)),
            Some(tls) => {
                let tls = Arc::clone(tls);
                self.connections
                    .spawn(serve::serve_tls(stream, tls, served, http))
            }
        };
        if self.strangers.len() > 2 * limit {
            self.strangers
                .retain(|(connection, task)| connection.is_stranger() && !task.is_finished());
        }
        self.strangers.push_back((connection, task));
    }

    /// Makes room by closing the oldest stranger's connection; false if there is none.
    fn recycle(&mut self) -> bool {
        while let Some((connection, task)) = self.strangers.pop_front() {
            if !task.is_finished() && connection.recycle() {
                task.abort();
                self.leaving.insert(task.id());
                self.intake.metrics.connection_recycled();
                if let Some(suppressed) = self.recycled_lines.pass() {
                    let limit = self.intake.max_connections;
                    warn!(
                        limit,
                        suppressed,
                        "a connection without a credential was closed to make room for another one"
                    );
                }
                return true;
            }
        }
        false
    }
}

/// Connections over the limit.
struct Overflow {
    answer: Vec<u8>,
    /// The oldest first, and when each is closed.
    kept: VecDeque<(std::net::TcpStream, Instant)>,
    lines: LogLimiter,
}

impl Overflow {
    fn note(&self, limit: usize) {
        if let Some(suppressed) = self.lines.pass() {
            warn!(
                cause = Shortage::Connections.cause(),
                limit, suppressed, "a connection over the limit was refused"
            );
        }
    }

    fn take(&mut self, stream: TcpStream) {
        // The standard library's socket writes at once; tokio's would first wait until it is writable.
        if let Ok(mut stream) = stream.into_std()
            && stream.write(&self.answer).is_ok()
            && stream.shutdown(Shutdown::Write).is_ok()
        {
            self.kept.push_back((stream, Instant::now() + REFUSED_TIME));
        }
        if self.kept.len() > REFUSED_KEPT {
            self.close_oldest();
        }
    }

    /// Ends when the oldest one is due to be closed; never without one.
    async fn oldest_is_due(&self) {
        match self.kept.front() {
            Some((_, end)) => sleep_until(*end).await,
            None => std::future::pending().await,
        }
    }

    fn close_oldest(&mut self) {
        if let Some((mut stream, _)) = self.kept.pop_front() {
            // Reads what the client sent, since a socket that is closed with unread bytes is reset. The result shows
            // only whether there was something.
            let _ = stream.read(&mut [0; 16 * 1024]);
        }
    }
}
