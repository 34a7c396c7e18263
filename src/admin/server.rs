//! The HTTP server of the admin port. It has a thread and a runtime of its own: whatever webhooks do to the others, a probe
//! is answered. Nothing in it waits for a disk or for Kafka.

use std::{
    collections::VecDeque, convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{error, info, warn};

use super::{
    books::StreamBooks,
    health::Health,
    status::{
        Status,
        page::{self, Refresh},
    },
};
use crate::metrics::Metrics;

/// Scrapers and probes are few. A further connection takes the place of the oldest one: whoever holds connections without
/// use must not keep the probes out.
const MAX_CONNECTIONS: usize = 64;
/// Time for a request's header, and for a kept-alive connection between two requests: above a scrape interval.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// Wait after a failed accept, which fails again at once while file descriptors are missing.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The admin port, bound and not yet served.
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    desk: Arc<Desk>,
}

/// The admin port while it is served; it is closed when this is dropped.
pub struct Serving {
    ended: oneshot::Receiver<Infallible>,
    _stop: oneshot::Sender<Infallible>,
}

impl Serving {
    /// Breaks it, as a panic would.
    #[cfg(test)]
    pub fn break_off(&mut self) {
        self._stop = oneshot::channel().0;
    }

    /// Returns when the port is served no more: its thread has panicked, or could not be set up.
    pub async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

/// What answers are made of.
pub struct Sources {
    /// The one that `metrics` is registered in.
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    /// Every stream that is served.
    pub books: Arc<[StreamBooks]>,
    pub spool_dir: PathBuf,
    /// Directories in the spool with events of streams that this version doesn't know.
    pub unknown_logs: Vec<String>,
}

/// What answers need.
struct Desk {
    registry: Registry,
    status: Status,
}

impl Server {
    /// Binds the port.
    ///
    /// # Errors
    /// The address can't be bound.
    pub fn bind(listen: SocketAddr, sources: Sources) -> io::Result<Server> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk::new(sources));
        Ok(Server {
            listener,
            address,
            desk,
        })
    }

    /// The address that it listens on, with the port that was given for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// There can be no further thread.
    pub fn start(self) -> io::Result<Serving> {
        let (_stop, stopped) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        thread::Builder::new().name("admin".to_owned()).spawn(move || {
            // Dropped with the thread, however it ends.
            let _alive = alive;
            if let Err(error) = self.run(stopped) {
                error!(%error, "the admin port can't be served");
            }
        })?;
        Ok(Serving { ended, _stop })
    }

    fn run(self, stopped: oneshot::Receiver<Infallible>) -> io::Result<()> {
        let Server {
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
        // A look at a disk that hangs must not hold up the end.
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
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let answer = desk.answer(request.method(), request.uri().path(), request.uri().query());
        async move { Ok::<_, Infallible>(answer) }
    });
    // A connection ends in an error when its client goes away: nothing that anybody could act on.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Desk {
    fn new(sources: Sources) -> Desk {
        Desk {
            registry: sources.registry,
            status: Status::new(sources.metrics, sources.health, sources.books, sources.spool_dir)
                .with_unknown_logs(sources.unknown_logs),
        }
    }

    fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        let answer: fn(&Desk) -> Response<Full<Bytes>> = match path {
            "/livez" => |_| text(StatusCode::OK, "alive\n"),
            "/readyz" => Desk::readyz,
            "/metrics" => Desk::metrics,
            "/status" if query == Some("refresh=off") => |desk| desk.page(Refresh::Off),
            "/status" => |desk| desk.page(Refresh::On),
            "/status.json" => Desk::json,
            "/" => |_| to_status(),
            _ => return text(StatusCode::NOT_FOUND, "not found\n"),
        };
        if method == Method::GET || method == Method::HEAD {
            return answer(self);
        }
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        let readiness = self.status.health.readiness();
        let status = if readiness.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(status, readiness.text())
    }

    fn page(&self, refresh: Refresh) -> Response<Full<Bytes>> {
        let page = page::html(&self.status.report(), refresh);
        let mut response = momentary(page, "text/html; charset=utf-8");
        let policy = HeaderValue::from_static(page::content_security_policy());
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        response
    }

    fn json(&self) -> Response<Full<Bytes>> {
        match serde_json::to_string_pretty(&self.status.report()) {
            Ok(body) => momentary(body + "\n", "application/json"),
            Err(error) => {
                error!(%error, "the status could not be encoded");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the status could not be encoded\n",
                )
            }
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        self.status
            .metrics
            .set_ready(self.status.health.readiness().is_ready());
        let encoder = TextEncoder::new();
        let mut body = Vec::with_capacity(64 * 1024);
        if let Err(error) = encoder.encode(&self.registry.gather(), &mut body) {
            error!(%error, "the metrics could not be encoded");
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics could not be encoded\n",
            );
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }
}

/// Relative, so that it holds behind a proxy that serves the port under a path.
fn to_status() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::FOUND, "see status\n");
    response
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static("status"));
    response
}

/// An answer of this moment, for nobody else to keep or to reinterpret.
fn momentary(body: String, content_type: &'static str) -> Response<Full<Bytes>> {
    const HEADERS: [(HeaderName, &str); 3] = [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;
    use crate::{
        admin::books::{BooksCollector, StreamBooks},
        books::Books,
        leftover::Service,
        spool::LogState,
        stream::Stream,
    };

    fn sources() -> Sources {
        let registry = Registry::new();
        let streams = [Stream::Deliveries, Stream::DeadLetters];
        let metrics = Metrics::new(&registry, &streams, ["bearer-1"]).unwrap();
        let books = streams.map(|stream| StreamBooks {
            stream,
            topic: "t".into(),
            service: Service::Enabled,
            books: Arc::new(Books::default()),
            log_state: Box::new(|| LogState::Accepting),
            spool_bytes: Box::new(|| 0),
            spool_limit_bytes: 1,
        });
        let books: Arc<[_]> = books.into();
        registry
            .register(Box::new(BooksCollector::new(Arc::clone(&books)).unwrap()))
            .unwrap();
        Sources {
            registry,
            metrics: Arc::new(metrics),
            health: Arc::new(Health::new(Vec::new())),
            books,
            spool_dir: "/".into(),
            unknown_logs: Vec::new(),
        }
    }

    #[tokio::test]
    async fn every_name_stands_in_the_first_scrape() {
        let body = Desk::new(sources())
            .metrics()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        let text = String::from_utf8(body.into()).unwrap();
        for start in [
            "cmc_bridge_webhooks_total{outcome=\"accepted\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"malformed\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"unauthorized\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"challenged\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"too_large\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"unsupported\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"overloaded\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"timeout\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"disconnected\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"not_found\"} 0",
            "cmc_bridge_parse_failures_total{reason=",
            "cmc_bridge_events_total{status=\"queued\",stream=\"deliveries\"} 0",
            "cmc_bridge_events_total{status=\"other\",stream=\"dead_letters\"} 0",
            "cmc_bridge_acknowledgement_seconds_bucket{le=\"0.0001\"} 0",
            "cmc_bridge_acknowledgement_seconds_bucket{le=\"10\"} 0",
            "cmc_bridge_spool_sync_seconds_count{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_commit_webhooks_count{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_bytes{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_limit_bytes{stream=\"deliveries\"} 1",
            "cmc_bridge_oldest_event_timestamp_seconds{stream=\"deliveries\"} 0",
            "cmc_bridge_recovered_events{stream=\"deliveries\"} 0",
            "cmc_bridge_backlog_events{stream=\"deliveries\"} 0",
            "cmc_bridge_delivered_events_total{stream=\"deliveries\"} 0",
            "cmc_bridge_diverted_events_total{stream=\"deliveries\"} 0",
            "cmc_bridge_delivery_seconds_count{stream=\"deliveries\"} 0",
            "cmc_bridge_lane_blocked{reason=\"topic_missing\",stream=\"deliveries\"} 0",
            "cmc_bridge_transactions_total{outcome=\"committed\",stream=\"deliveries\"} 0",
            "cmc_bridge_transaction_seconds_count{outcome=\"aborted\",stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_requests_total{stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_bytes_total{stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_request_errors_total{stream=\"deliveries\"} 0",
            "cmc_bridge_ready 0",
            "cmc_bridge_build_info{version=\"",
            "cmc_bridge_credential_uses_total{credential=\"bearer-1\"} 0",
            "process_resident_memory_bytes ",
        ] {
            assert!(
                text.lines().any(|l| l.starts_with(start)),
                "{start} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn paths_and_methods() {
        let desk = Desk::new(sources());
        for (method, path, status) in [
            (Method::GET, "/livez", 200),
            (Method::HEAD, "/livez", 200),
            (Method::POST, "/livez", 405),
            (Method::GET, "/metrics", 200),
            (Method::DELETE, "/metrics", 405),
            (Method::GET, "/readyz", 503),
            (Method::GET, "/", 302),
            (Method::GET, "/status", 200),
            (Method::HEAD, "/status", 200),
            (Method::POST, "/status", 405),
            (Method::GET, "/status.json", 200),
            (Method::GET, "/status/", 404),
            (Method::POST, "/webhooks/events", 404),
        ] {
            assert_eq!(
                desk.answer(&method, path, None).status(),
                status,
                "{method} {path}"
            );
        }
    }

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
        let server = Server::bind(listen, sources()).unwrap();
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
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), sources()).unwrap();
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
