//! The HTTP server of the admin port. It has its own thread and runtime, so that probes are answered however busy the others
//! are.

use std::{
    collections::VecDeque, convert::Infallible, io, net::SocketAddr, sync::Arc, thread, time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{error, info, warn};

use super::answers::{Desk, Sources};

/// Scrapers and probes are few. A further connection replaces the oldest one, so that idle connections can't lock out the probes.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's header, or the pause between two requests, may take: longer than a scrape interval.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// The wait after a failed accept, which fails again at once while there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The admin port, bound and not yet served.
pub struct AdminServer {
    listener: std::net::TcpListener,
    address: SocketAddr,
    desk: Arc<Desk>,
}

/// The admin port while it is served. Dropping it closes the port.
pub struct RunningAdminServer {
    ended: oneshot::Receiver<Infallible>,
    _stop: oneshot::Sender<Infallible>,
}

impl RunningAdminServer {
    /// Breaks it, as a panic would.
    #[cfg(test)]
    pub fn break_off(&mut self) {
        self._stop = oneshot::channel().0;
    }

    /// Returns when the port is no longer served: its thread has panicked, or its setup has failed.
    pub async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl AdminServer {
    /// Binds the port.
    ///
    /// # Errors
    /// The address can't be bound.
    pub fn bind(listen: SocketAddr, sources: Sources) -> io::Result<AdminServer> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk::new(sources));
        Ok(AdminServer {
            listener,
            address,
            desk,
        })
    }

    /// The address it listens on; if port 0 was asked for, with the actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(self) -> io::Result<RunningAdminServer> {
        let (_stop, stopped) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        thread::Builder::new().name("admin".to_owned()).spawn(move || {
            // Dropped with the thread, however it ends.
            let _alive = alive;
            if let Err(error) = self.run(stopped) {
                error!(%error, "the admin port can't be served");
            }
        })?;
        Ok(RunningAdminServer { ended, _stop })
    }

    fn run(self, stopped: oneshot::Receiver<Infallible>) -> io::Result<()> {
        let AdminServer {
            listener,
            address,
            desk,
        } = self;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            info!(%address, "metrics and probes are served");
            tokio::select! {
                () = accept(listener, &desk) => {}
                () = desk.status.watch() => {}
                _ = stopped => {}
            }
            Ok(())
        });
        // A disk that hangs must not delay the end of the process.
        runtime.shutdown_background();
        result
    }
}

async fn accept(listener: TcpListener, desk: &Arc<Desk>) {
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::<AbortHandle>::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    oldest_first.retain(|connection| !connection.is_finished());
                    if oldest_first.len() >= MAX_CONNECTIONS
                        && let Some(oldest) = oldest_first.pop_front()
                    {
                        oldest.abort();
                    }
                    oldest_first.push_back(connections.spawn(serve(stream, Arc::clone(desk))));
                }
                Err(error) => {
                    warn!(%error, "a connection to the admin port could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn serve(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = desk.answer(request.method(), request.uri().path(), request.uri().query());
        async move { Ok::<_, Infallible>(answer) }
    });
    // A connection ends with an error if its client goes away, and nobody could act on that.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;
    use crate::admin::answers::tests::sources;

    async fn expect_alive(client: &mut TcpStream) {
        client
            .write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("alive\n"), "{answer}");
    }

    #[tokio::test]
    async fn serves_a_socket_whoever_holds_others() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let server = AdminServer::bind(listen, sources()).unwrap();
        let address = server.local_addr();
        let server = server.start().unwrap();
        let mut held = VecDeque::new();
        for _ in 0..MAX_CONNECTIONS + 3 {
            held.push_back(TcpStream::connect(address).await.unwrap());
        }
        let mut last = held.pop_back().unwrap();
        expect_alive(&mut last).await;
        for oldest in held.drain(..3) {
            timeout(Duration::from_secs(60), oldest.readable())
                .await
                .expect("its place is taken")
                .unwrap();
            assert_eq!(oldest.try_read(&mut [0]).unwrap(), 0, "closed");
        }
        expect_alive(&mut held[0]).await;
        drop(server);
    }

    #[tokio::test]
    async fn the_port_is_served_while_all_other_threads_are_busy_until_it_is_told_to_end() {
        let server = AdminServer::bind("127.0.0.1:0".parse().unwrap(), sources()).unwrap();
        let address = server.local_addr();
        let mut server = server.start().unwrap();
        // This thread is the only one of this test's runtime, and it does not give way.
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        io::Write::write_all(&mut client, b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        io::Read::read_to_string(&mut client, &mut answer).unwrap();
        assert!(answer.ends_with("alive\n"), "{answer}");
        server.break_off();
        timeout(Duration::from_secs(60), server.ended())
            .await
            .expect("the end of the thread");
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
