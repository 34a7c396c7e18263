//! The server over loopback sockets, without a spool: everything up to the append. The integration tests cover what
//! becomes durable.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use prometheus::{Registry, TextEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    cmc::{InboundRules, MailContent, Rules},
    config::{self, Auth, Credential, CredentialKind},
    metrics::{Metrics, Outcome},
    stream::Stream,
};

const DEADLINE: Duration = Duration::from_secs(20);
/// An understood webhook that has nothing to make durable.
const EMPTY: &str = r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[]}}"#;

fn config() -> config::Ingest {
    let credential = |name: &str, kind, secret: &str| Credential {
        name: name.to_owned(),
        kind,
        secret: secret.into(),
    };
    config::Ingest {
        listen: "127.0.0.1:0".parse().unwrap(),
        path: "/webhooks/events".to_owned(),
        inbound_path: "/webhooks/inbound".to_owned(),
        inbound_max_body_bytes: 100_000,
        health_path: Some("/healthz".to_owned()),
        auth: Auth::Credentials(vec![
            credential("bearer-1", CredentialKind::Bearer, "token"),
            credential("api-key-1", CredentialKind::ApiKey, "secret-key"),
        ]),
        credential_files: Vec::new(),
        max_body_bytes: 100_000,
        max_events: 100,
        time_zone: jiff::tz::TimeZone::UTC,
        time_zones: BTreeMap::new(),
        malformed_status: 400,
        repeat_window: None,
        max_connections: 8,
        max_bytes_in_flight: 150_000,
        header_timeout: Duration::from_secs(60),
        body_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(75),
        append_timeout: Duration::from_secs(60),
        retry_after: Duration::from_secs(3),
        tls: None,
    }
}

struct Running {
    address: SocketAddr,
    stop: StopHandle,
    task: JoinHandle<()>,
    registry: Registry,
}

async fn start(config: config::Ingest) -> Running {
    start_with(config, None).await
}

async fn start_with(config: config::Ingest, inbound: Option<InboundRules>) -> Running {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::new(&registry, &[], []).unwrap());
    let rules = Rules {
        enabled: [true; Stream::ALL.len()],
        max_events: config.max_events,
        max_record_bytes: 1_000_000,
        time_zone: config.time_zone.clone(),
        time_zones: BTreeMap::new(),
        secrets: config::secrets(config.auth.credentials()),
        inbound,
        repeats: None,
    };
    let intake = Intake::new(
        &config,
        rules,
        [const { None }; Stream::ALL.len()],
        metrics,
        || false,
    );
    let server = WebhookServer::bind(config.listen, intake, None).await.unwrap();
    Running {
        address: server.local_addr(),
        stop: server.stop_handle(),
        task: tokio::spawn(server.run()),
        registry,
    }
}

impl Running {
    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own.
    async fn ask(&self, request: &str) -> Answered {
        let mut client = self.connect().await;
        client.send(request).await;
        client.answer().await
    }

    fn count(&self, outcome: Outcome) -> u64 {
        let text = TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        let start = format!("cmc_bridge_webhooks_total{{outcome=\"{}\"}} ", outcome.label());
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap().parse().unwrap()
    }

    async fn wait_for_count(&self, outcome: Outcome, count: u64) {
        let waiting = async {
            while self.count(outcome) != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, waiting).await.unwrap();
    }
}

struct Client(TcpStream);

#[derive(Debug)]
struct Answered {
    status: u16,
    head: String,
    body: String,
}

impl Client {
    /// Ignores errors: if the server has closed its side, its answer shows that.
    async fn send(&mut self, bytes: &str) {
        let _ = self.0.write_all(bytes.as_bytes()).await;
    }

    /// Reads one answer and not a byte more.
    async fn answer(&mut self) -> Answered {
        timeout(DEADLINE, self.read_answer()).await.unwrap()
    }

    async fn read_answer(&mut self) -> Answered {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        let answered = Answered {
            status: head[9..12].parse().unwrap(),
            body: String::from_utf8(body).unwrap(),
            head,
        };
        assert!(!answered.head.contains("\r\nserver:"), "{answered:?}");
        answered
    }

    /// Waits for the end of the connection, which must come with no further byte.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset also counts as the end.
        let _ = timeout(DEADLINE, self.0.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
}

fn post(headers: &str, body: &str) -> String {
    format!(
        "POST /webhooks/events HTTP/1.1\r\nHost: bridge\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

const AUTHORIZED: &str = "Authorization: Bearer token\r\nContent-Type: application/json\r\n";

#[tokio::test]
async fn understood_webhooks_share_a_connection() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.send(&post(AUTHORIZED, EMPTY)).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
        assert!(answer.head.contains("\r\ncontent-type: text/plain\r\n"));
        assert!(!answer.head.contains("\r\nconnection:"));
    }
    server.wait_for_count(Outcome::Accepted, 3).await;
}

#[tokio::test]
async fn a_body_may_arrive_in_pieces_chunked_and_without_a_type() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    let request = post(AUTHORIZED, EMPTY);
    for piece in request.as_bytes().chunks(40) {
        client.send(std::str::from_utf8(piece).unwrap()).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.answer().await.status, 200);
    client
        .send("POST /webhooks/events/ HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer token\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let (first, second) = EMPTY.split_at(20);
    for piece in [first, second] {
        client.send(&format!("{:x}\r\n{piece}\r\n", piece.len())).await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    // The chunked body was read to its end, so the connection stays open.
    client.send(&request).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn refusals() {
    let server = start(config()).await;
    let json = "Content-Type: application/json\r\n";
    let wrong = "Authorization: Bearer wrong\r\nContent-Type: application/json\r\n";
    let gzip = "Authorization: Bearer token\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\n";
    let multipart = "Authorization: Bearer token\r\nContent-Type: multipart/form-data\r\n";
    let key = |key: &str| EMPTY.replacen('{', &format!("{{\"api_key\":\"{key}\","), 1);
    let large = "x".repeat(100_001);
    for (request, status, header) in [
        (post(wrong, EMPTY), 401, "www-authenticate: bearer"),
        (post(json, EMPTY), 401, "www-authenticate: bearer"),
        (post(json, &key("secret")), 401, "www-authenticate: bearer"),
        (post(json, "{"), 401, "www-authenticate: bearer"),
        (post(json, &key("secret-key")), 200, "content-type: text/plain"),
        (post(wrong, &key("secret-key")), 401, "www-authenticate: bearer"),
        (post(gzip, EMPTY), 415, "accept-post: application/json, "),
        (post(multipart, EMPTY), 415, "accept-post: application/json, "),
        (post("Content-Type: text/plain\r\n", EMPTY), 415, "accept-post: "),
        (
            post(AUTHORIZED, "{"),
            400,
            "content-type: application/problem+json",
        ),
        (
            post(AUTHORIZED, &large),
            413,
            "content-type: application/problem+json",
        ),
        (
            "GET /webhooks/events HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            405,
            "allow: post",
        ),
        (
            "POST /webhooks/inbound HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            404,
            "content-type: ",
        ),
        (
            "POST / HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
            404,
            "content-type: ",
        ),
    ] {
        let answer = server.ask(&request).await;
        let shown = request.get(..200).unwrap_or(&request);
        assert_eq!(answer.status, status, "{shown}\n{answer:?}");
        assert!(
            answer.head.contains(&format!("\r\n{header}")),
            "{shown}\n{answer:?}"
        );
        if status != 200 {
            let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(body["status"], status);
            assert!(!answer.body.contains("secret"), "{answer:?}");
        }
    }
    server.wait_for_count(Outcome::Unauthorized, 3).await;
    server.wait_for_count(Outcome::Challenged, 2).await;
    server.wait_for_count(Outcome::Unsupported, 3).await;
    server.wait_for_count(Outcome::Malformed, 1).await;
    server.wait_for_count(Outcome::TooLarge, 1).await;
    server.wait_for_count(Outcome::MethodNotAllowed, 1).await;
    server.wait_for_count(Outcome::NotFound, 2).await;
}

/// A server without API keys, which can therefore send a challenge before it reads a body.
async fn with_header_credentials() -> Running {
    let mut config = config();
    if let Auth::Credentials(credentials) = &mut config.auth {
        credentials.retain(|one| one.kind != CredentialKind::ApiKey);
    }
    start(config).await
}

#[tokio::test]
async fn a_client_that_first_posts_without_a_credential_keeps_its_connection() {
    let server = with_header_credentials().await;
    let mut client = server.connect().await;
    let json = "Content-Type: application/json\r\n";
    let chunked = format!("{:x}\r\n{EMPTY}\r\n0\r\n\r\n", EMPTY.len());
    let head = "POST /webhooks/events HTTP/1.1\r\nHost: bridge\r\n";
    let asks = [
        post(json, EMPTY),
        post(json, ""),
        post("", &"x".repeat(body::DRAIN_BYTES)),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunked}"),
    ];
    for ask in &asks {
        client.send(ask).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.head.contains("\r\nwww-authenticate: bearer"), "{answer:?}");
        assert!(!answer.head.contains("\r\nconnection:"), "{answer:?}");
        client.send(&post(AUTHORIZED, EMPTY)).await;
        assert_eq!(client.answer().await.status, 200);
    }
    // A client that waits for 100 Continue is told to send its body if it is small enough to skip.
    let length = EMPTY.len();
    client
        .send(&format!(
            "{head}Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert_eq!(client.answer().await.status, 100);
    client.send(EMPTY).await;
    assert_eq!(client.answer().await.status, 401);
    client.send(&post(AUTHORIZED, EMPTY)).await;
    assert_eq!(client.answer().await.status, 200);
    server
        .wait_for_count(Outcome::Challenged, asks.len() as u64 + 1)
        .await;
    server.wait_for_count(Outcome::Unauthorized, 0).await;
}

#[tokio::test]
async fn a_challenge_closes_the_connection_if_the_body_is_too_large_to_skip() {
    let server = with_header_credentials().await;
    let large = format!("Content-Length: {}\r\n", body::DRAIN_BYTES + 1);
    let waits = format!(
        "Content-Length: {}\r\nExpect: 100-continue\r\n",
        body::SMALL_BYTES + 1
    );
    let endless = format!(
        "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n",
        body::DRAIN_BYTES + 1,
        "x".repeat(body::DRAIN_BYTES + 1)
    );
    // The answer comes long before the body timeout, which is longer than this test may take.
    let begun = "Content-Length: 1000\r\n\r\n{".to_owned();
    for rest in [large, waits, endless, begun] {
        let mut client = server.connect().await;
        let end = if rest.contains("\r\n\r\n") { "" } else { "\r\n" };
        client
            .send(&format!(
                "POST /webhooks/events HTTP/1.1\r\nHost: bridge\r\n{rest}{end}"
            ))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(answer.head.contains("\r\nconnection: close"), "{answer:?}");
    }
    server.wait_for_count(Outcome::Challenged, 4).await;
    // A wrong credential is refused, not challenged: the server closes the connection without waiting for the body.
    let wrong = "Authorization: Bearer wrong\r\n";
    let mut client = server.connect().await;
    client
        .send(&format!(
            "POST /webhooks/events HTTP/1.1\r\nHost: b\r\n{wrong}Content-Length: 9\r\n\r\n"
        ))
        .await;
    let answer = client.answer().await;
    assert!(
        answer.status == 401 && answer.head.contains("\r\nconnection: close"),
        "{answer:?}"
    );
    server.wait_for_count(Outcome::Unauthorized, 1).await;
}

#[tokio::test]
async fn malformed_bodies_may_be_answered_with_200() {
    let server = start(config::Ingest {
        malformed_status: 200,
        ..config()
    })
    .await;
    let answer = server.ask(&post(AUTHORIZED, "{")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    server.wait_for_count(Outcome::Malformed, 1).await;
}

#[tokio::test]
async fn events_are_refused_when_their_log_is_closed() {
    let server = start(config()).await;
    let events = EMPTY.replace("[]", "[{\"status\":\"queued\"}]");
    let answer = server.ask(&post(AUTHORIZED, &events)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("\r\nretry-after: 3"));
    server.wait_for_count(Outcome::Draining, 1).await;
}

#[tokio::test]
async fn a_client_that_is_still_writing_sees_the_413() {
    let server = start(config()).await;
    for announced in ["Content-Length: 700000", "Transfer-Encoding: chunked"] {
        let mut client = server.connect().await;
        client
            .send(&format!(
                "POST /webhooks/events HTTP/1.1\r\nHost: b\r\n{AUTHORIZED}{announced}\r\n\r\n"
            ))
            .await;
        let chunked = announced.starts_with('T');
        let piece = "x".repeat(100_000);
        for _ in 0..7 {
            if chunked {
                client.send("186a0\r\n").await;
            }
            client.send(&piece).await;
            if chunked {
                client.send("\r\n").await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let answer = client.answer().await;
        assert_eq!(answer.status, 413);
        assert!(answer.head.contains("\r\nconnection: close"));
    }
}

/// An admitted client may send up to 8 bodies before it reads an answer; a stranger is cut off.
#[tokio::test]
async fn an_admitted_client_that_writes_all_before_it_reads_sees_the_413() {
    // Several exceed the buffers between the two ends.
    let limit = 2_000_000;
    let server = start(config::Ingest {
        max_body_bytes: limit,
        max_bytes_in_flight: 2 * limit,
        ..config()
    })
    .await;
    for (credential, bodies, is_read) in [("token", 7, true), ("token", 20, false), ("wrong", 10, false)] {
        let length = bodies * limit;
        let head = format!(
            "POST /webhooks/events HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {credential}\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut client = server.connect().await;
        client.send(&head).await;
        // Refused because of its announced length, long before the end.
        let body = vec![b'x'; length];
        let written = timeout(DEADLINE, client.0.write_all(&body)).await.unwrap();
        assert_eq!(
            written.is_ok(),
            is_read,
            "{credential}, {bodies} bodies: {written:?}"
        );
        if is_read {
            let answer = client.answer().await;
            assert_eq!(answer.status, 413);
            assert!(answer.head.contains("\r\nconnection: close"));
            client.closed().await;
        }
    }
}

#[tokio::test]
async fn keep_alive_is_announced_only_on_kept_connections() {
    let server = start(config()).await;
    let with = |headers: &str| post(&format!("{AUTHORIZED}{headers}"), EMPTY);
    let old = |headers: &str| with(headers).replacen("HTTP/1.1", "HTTP/1.0", 1);
    let refused = post("", "{}").replacen("Content-Length: 2", "Content-Length: 200000", 1);
    for (request, kept) in [
        (with(""), true),
        (with("Connection: keep-alive\r\n"), true),
        (with("Connection: TE, Close\r\n"), false),
        (old(""), false),
        (old("Connection: Keep-Alive\r\n"), true),
        (post("Authorization: Bearer token\r\n", "{"), true),
        ("GET / HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(), true),
        ("GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(), true),
        (refused, false),
    ] {
        let mut client = server.connect().await;
        client.send(&request).await;
        let head = client.answer().await.head;
        assert_eq!(
            head.contains("\r\nkeep-alive: timeout=70\r\n"),
            kept,
            "{request}{head}"
        );
        assert_eq!(head.contains("\r\nkeep-alive:"), kept, "{request}{head}");
        if kept {
            client.send(&with("")).await;
            assert_eq!(client.answer().await.status, 200);
        } else {
            client.closed().await;
        }
    }
}

#[tokio::test]
async fn the_health_path_informs_balancers_and_counts_nothing() {
    let server = start(config()).await;
    // No log exists to make a webhook durable.
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\nHost: b\r\n\r\n", 503),
        ("GET /healthz/?x=y HTTP/1.1\r\nHost: b\r\n\r\n", 503),
        ("GET /healthz HTTP/1.0\r\n\r\n", 503),
        (
            "POST /healthz HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}",
            405,
        ),
    ] {
        let answer = server.ask(request).await;
        assert_eq!(answer.status, status, "{request}");
        assert!(!answer.body.contains("log"), "{answer:?}");
    }
    assert_eq!(
        server
            .ask("GET /healthy HTTP/1.1\r\nHost: b\r\n\r\n")
            .await
            .status,
        404
    );
    server.wait_for_count(Outcome::NotFound, 1).await;
    let others = Outcome::ALL
        .into_iter()
        .filter(|outcome| *outcome != Outcome::NotFound);
    assert_eq!(others.map(|outcome| server.count(outcome)).sum::<u64>(), 0);
}

#[tokio::test]
async fn a_refused_client_gets_no_100_continue() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    client
        .send("POST /webhooks/events HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer x\r\nExpect: 100-continue\r\nContent-Length: 80\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status, 401);
    client.closed().await;
    let mut client = server.connect().await;
    client
        .send(&format!(
            "POST /webhooks/events HTTP/1.1\r\nHost: b\r\n{AUTHORIZED}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            EMPTY.len()
        ))
        .await;
    assert_eq!(client.answer().await.status, 100);
    client.send(EMPTY).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn slow_headers_and_slow_bodies_get_408() {
    let server = start(config::Ingest {
        header_timeout: Duration::from_millis(100),
        body_timeout: Duration::from_millis(150),
        ..config()
    })
    .await;
    let mut header = server.connect().await;
    header.send("POST /webhooks/events HTTP/1.1\r\nHo").await;
    let mut body = server.connect().await;
    let request = post(AUTHORIZED, EMPTY);
    body.send(&request[..request.len() - 10]).await;
    // A request after another one on the same connection.
    let mut second = server.connect().await;
    second.send(&request).await;
    assert_eq!(second.answer().await.status, 200);
    second.send("POST").await;
    for client in [&mut header, &mut body, &mut second] {
        let answer = client.answer().await;
        assert_eq!(answer.status, 408);
        assert!(answer.head.contains("\r\nconnection: close"));
        assert!(answer.head.contains("\r\ncontent-type: application/problem+json"));
        client.closed().await;
    }
    server.wait_for_count(Outcome::Timeout, 3).await;
    let mut silent = server.connect().await;
    silent.closed().await;
    server.wait_for_count(Outcome::Timeout, 3).await;
}

#[tokio::test]
async fn bytes_in_flight_are_bounded() {
    let server = start(config()).await;
    let head = |length: usize| {
        format!(
            "POST /webhooks/events HTTP/1.1\r\nHost: b\r\n{AUTHORIZED}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut holder = server.connect().await;
    holder.send(&head(90_000)).await;
    assert_eq!(holder.answer().await.status, 100);
    let answer = server.ask(&head(80_000)).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("\r\nretry-after: 3"));
    assert_eq!(server.ask(&post(AUTHORIZED, EMPTY)).await.status, 200);
    drop(holder);
    server.wait_for_count(Outcome::Disconnected, 1).await;
    let body = "x".repeat(80_000);
    assert_eq!(server.ask(&post(AUTHORIZED, &body)).await.status, 400);
}

#[tokio::test]
async fn a_connection_over_the_limit_is_answered_503() {
    let server = start(config::Ingest {
        max_connections: 2,
        ..config()
    })
    .await;
    let request = post(AUTHORIZED, EMPTY);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.send(&request).await;
        assert_eq!(client.answer().await.status, 200);
        held.push(client);
    }
    for refused in 1..=100 {
        let mut client = server.connect().await;
        client.send(&request).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 503);
        assert!(answer.head.contains("\r\nretry-after: 3"));
        assert!(answer.head.contains("\r\nconnection: close"));
        assert_eq!(server.count(Outcome::Overloaded), refused);
    }
    held.pop();
    let again = async {
        while server.ask(&request).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, again).await.unwrap();
}

/// Possible states of a connection without a credential.
const STRANGERS: [&str; 7] = [
    "",
    "POST /web",
    "POST /webhooks/events HTTP/1.1\r\nHost: b\r\nContent-Length: 90000\r\n\r\n{",
    "POST /webhooks/events HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer x\r\nContent-Length: 0\r\n\r\n",
    "POST /webhooks/events HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: b\r\n\r\n",
    "GET /webhooks/events HTTP/1.1\r\nHost: b\r\n\r\n",
];

#[tokio::test]
async fn strangers_give_up_their_places_to_later_clients() {
    for stranger in STRANGERS {
        let server = start(config()).await;
        let mut good = server.connect().await;
        good.send(&post(AUTHORIZED, EMPTY)).await;
        assert_eq!(good.answer().await.status, 200);
        let mut strangers = VecDeque::new();
        for _ in 0..40 {
            let mut client = server.connect().await;
            client.send(stranger).await;
            strangers.push_back(client);
            // The limit is 8.
            if strangers.len() > 8 {
                let mut oldest = strangers.pop_front().unwrap();
                let _ = timeout(DEADLINE, oldest.0.read_to_end(&mut Vec::new()))
                    .await
                    .unwrap();
            }
            let answer = server.ask(&post(AUTHORIZED, EMPTY)).await;
            assert_eq!(answer.status, 200, "{stranger:?}");
            // The authenticated connection keeps its place.
            good.send(&post(AUTHORIZED, EMPTY)).await;
            assert_eq!(good.answer().await.status, 200, "{stranger:?}");
        }
        assert_eq!(
            server.count(Outcome::Overloaded) > 0,
            stranger.ends_with(['b', '{']),
            "{stranger:?}"
        );
    }
}

#[tokio::test]
async fn bytes_that_are_not_http_are_answered_as_such() {
    let server = start(config()).await;
    let large = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(101));
    let hello = "\x16\x03\x01 hello\r\n\r\n".to_owned();
    for (request, status) in [(large, 431), (many, 431), (hello, 400)] {
        let answer = server.ask(&request).await;
        assert_eq!(answer.status, status);
        assert!(
            answer
                .head
                .contains("\r\ncontent-type: application/problem+json\r\n"),
            "{answer:?}"
        );
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["status"], status);
    }
    server.wait_for_count(Outcome::HeaderTooLarge, 2).await;
    server.wait_for_count(Outcome::InvalidHttp, 1).await;
}

#[tokio::test]
async fn a_client_may_close_its_side_before_its_answer() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    client.send(&post(AUTHORIZED, EMPTY)).await;
    client.0.shutdown().await.unwrap();
    assert_eq!(client.answer().await.status, 200);
    client.closed().await;
    server.wait_for_count(Outcome::Accepted, 1).await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    let request = post(AUTHORIZED, EMPTY);
    client.send(&request[..request.len() - 1]).await;
    drop(client);
    server.wait_for_count(Outcome::Disconnected, 1).await;
}

#[tokio::test]
async fn a_lame_duck_serves_and_closes() {
    let server = start(config()).await;
    let mut client = server.connect().await;
    let request = post(AUTHORIZED, EMPTY);
    client.send(&request).await;
    assert_eq!(client.answer().await.status, 200);
    server.stop.lame_duck();
    client.send(&request).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\nconnection: close"));
    client.closed().await;
    assert_eq!(server.ask(&request).await.status, 200);
}

#[tokio::test]
async fn a_stopping_server_finishes_started_requests() {
    let server = start(config()).await;
    let request = post(AUTHORIZED, EMPTY);
    let mut kept = server.connect().await;
    kept.send(&request).await;
    assert_eq!(kept.answer().await.status, 200);
    let mut idle = server.connect().await;
    idle.send(&request).await;
    assert_eq!(idle.answer().await.status, 200);
    let mut begun = server.connect().await;
    begun
        .send(&format!(
            "{}Expect: 100-continue\r\n\r\n",
            request.split_once("\r\n\r\n").unwrap().0.to_owned() + "\r\n"
        ))
        .await;
    assert_eq!(begun.answer().await.status, 100);

    server.stop.stop();
    kept.send(&request).await;
    let answer = kept.answer().await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("\r\nretry-after: 3"));
    assert!(answer.head.contains("\r\nconnection: close"));
    idle.closed().await;
    begun.send(EMPTY).await;
    let answer = begun.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\nconnection: close"));
    timeout(DEADLINE, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn received_mail_has_a_path_and_limits_of_its_own() {
    const BASIC: &str = "Authorization: Bearer token\r\n";
    const PARTS: &str = "Content-Type: multipart/form-data; boundary=b\r\n";
    let mail =
        |headers: &str, body: &str| post(headers, body).replacen("/webhooks/events", "/webhooks/inbound", 1);
    let config = config::Ingest {
        max_body_bytes: 1000,
        inbound_max_body_bytes: 2000,
        ..config()
    };
    let disabled = start(config.clone()).await;
    assert_eq!(disabled.ask(&mail(AUTHORIZED, "{}")).await.status, 404);
    let inbound = InboundRules {
        path: "/webhooks/inbound".to_owned(),
        content: MailContent::All,
    };
    let server = start_with(config, Some(inbound)).await;
    let key = |key: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"api_key\"\r\nContent-Type: text/plain\r\n\r\n{key}\r\n--b--\r\n"
        )
    };
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for (request, status, head) in [
        (mail(AUTHORIZED, &"x".repeat(2001)), 413, ""),
        (mail(AUTHORIZED, &"x".repeat(2000)), 400, ""),
        (post(AUTHORIZED, &"x".repeat(1001)), 413, ""),
        (
            mail(&format!("{BASIC}{form}"), "a=b"),
            415,
            "accept-post: application/json, multipart/form-data\r\n",
        ),
        (
            post(&format!("{BASIC}{PARTS}"), "--b--"),
            415,
            "accept-post: application/json, application/x-www-form",
        ),
        (mail(&format!("{BASIC}{PARTS}"), "--b--"), 400, ""),
        // The key is a part of the body; the mail itself lacks everything else.
        (mail(PARTS, &key("secret-key")), 400, ""),
        (mail(PARTS, &key("secret-kez")), 401, "www-authenticate"),
        (mail(PARTS, "--b--"), 401, "www-authenticate"),
        (
            mail(&AUTHORIZED.replace("token", "wrong"), "{}"),
            401,
            "www-authenticate",
        ),
        (
            mail(AUTHORIZED, "{}").replacen("POST", "GET", 1),
            405,
            "allow: post",
        ),
        (mail(AUTHORIZED, "{}").replacen("inbound", "inbound/", 1), 400, ""),
    ] {
        let answer = server.ask(&request).await;
        assert_eq!(answer.status, status, "{request:.200} {answer:?}");
        assert!(answer.head.contains(head), "{answer:?}");
    }
}
