//! HTTP byte by byte, with details that a client library would hide.

use super::{bridge, events, expect_logged, expect_outcome, expect_problem};
use crate::{bridge::Bridge, cmc::delivery, http::EVENTS};

/// A request whose header ends with `fields`.
fn request(fields: &str, body: &str) -> String {
    format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{fields}\r\n\r\n{body}")
}

fn with_length(body: &str) -> String {
    request(&format!("content-length: {}", body.len()), body)
}

/// A body in two chunks, with these trailer lines.
fn chunked(body: &str, trailers: &str) -> String {
    let (first, second) = body.split_at(body.len() / 2);
    format!(
        "{:x};some=extension\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\n{trailers}\r\n",
        first.len(),
        second.len()
    )
}

#[test]
fn a_request_may_arrive_one_byte_at_a_time() {
    let bridge = bridge(&[]);
    let mut wire = bridge.wire();
    let body = delivery("a");
    for request in [
        with_length(&body),
        request("transfer-encoding: chunked", &chunked(&body, "x: y\r\n")),
    ] {
        for byte in request.as_bytes() {
            wire.send([*byte]);
        }
        assert_eq!(wire.answer().status, 200);
    }
    assert_eq!(events(&bridge, "deliveries"), 2.0);
    expect_outcome(&bridge, "accepted", 2.0);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let bridge = bridge(&[]);
    let good = with_length(&delivery("a"));
    let chunked = request("transfer-encoding: chunked", &chunked(&delivery("b"), ""));
    let elsewhere = "POST /elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let parts = [
        (good.as_str(), 200),
        (&with_length("not json"), 400),
        (&chunked, 200),
        (elsewhere, 404),
        (&good, 200),
    ];
    let (all, statuses): (String, Vec<u16>) = parts.repeat(20).into_iter().unzip();
    let mut wire = bridge.wire();
    wire.send(&all);
    let answers: Vec<u16> = statuses.iter().map(|_| wire.answer().status).collect();
    assert_eq!(answers, statuses);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (60.0, 20.0)
    );
    expect_outcome(&bridge, "accepted", 60.0);
    expect_outcome(&bridge, "malformed", 20.0);
    expect_outcome(&bridge, "not_found", 20.0);
}

/// Sends these bytes on a new connection. Expects an answer with a problem body, then the end of the connection.
fn expect_refusal(bridge: &Bridge, bytes: &str, status: u16) {
    println!("{status}: {:?}", &bytes[..bytes.len().min(300)]);
    let mut wire = bridge.wire();
    let response = wire.send(bytes).answer();
    expect_problem(&response, status);
    assert_eq!(response.header("connection"), Some("close"));
    wire.expect_closed();
}

#[test]
fn bytes_that_are_not_http_are_answered_as_such() {
    let bridge = bridge(&[]);
    let line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n");
    let field = |field: &str| format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\n{field}\r\n\r\n");
    let refused = [
        // A TLS client, HTTP/2, and other traffic that reaches open ports.
        "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "EHLO mail\r\n\r\n".to_owned(),
        line("POST"),
        line("POST  /webhooks/events HTTP/1.1"),
        line("POST /webhooks/events"),
        line("POST /webhooks/events HTTP/3.0"),
        line("POST /webhooks/events http/1.1"),
        line("POST /web hooks HTTP/1.1"),
        line("P@ST /webhooks/events HTTP/1.1"),
        field("no colon"),
        field("space : before the colon"),
        field(": no name"),
        field("a: folded\r\n value"),
        field("a: \0"),
    ];
    for bytes in &refused {
        expect_refusal(&bridge, bytes, 400);
    }
    expect_outcome(&bridge, "invalid_http", refused.len() as f64);
    assert_eq!(bridge.client().post(delivery("a")).status, 200);
}

#[test]
fn a_header_has_a_limit_of_bytes_and_of_fields() {
    let bridge = bridge(&[]);
    let field = |name: &str, len| format!("{name}: {}\r\n", "x".repeat(len));
    let good = |fields: &str| {
        let body = delivery("a");
        request(&format!("{fields}content-length: {}", body.len()), &body)
    };
    for fields in [field("a", 15_000), field("a", 1).repeat(90)] {
        assert_eq!(bridge.wire().send(good(&fields)).answer().status, 200);
    }
    let refused = [
        good(&field("a", 17_000)),
        good(&field("a", 1).repeat(101)),
        good(&field("a", 500_000)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(17_000)),
        // A header without an end.
        format!("GET / HTTP/1.1\r\n{}", field("a", 17_000)),
        "x".repeat(20_000),
    ];
    for bytes in &refused {
        expect_refusal(&bridge, bytes, 431);
    }
    expect_outcome(&bridge, "header_too_large", refused.len() as f64);
}

#[test]
fn a_request_has_one_host() {
    let bridge = bridge(&[]);
    let body = delivery("a");
    let rest = format!(
        "content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n"] {
        expect_refusal(&bridge, &format!("POST {EVENTS} HTTP/1.1\r\n{hosts}{rest}"), 400);
    }
    expect_outcome(&bridge, "invalid_http", 3.0);
    // HTTP/1.0 needs no host, and an absolute target is as good as a path.
    for start in [
        format!("POST {EVENTS} HTTP/1.0\r\n"),
        format!("POST http://a{EVENTS} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"),
    ] {
        let mut wire = bridge.wire();
        assert_eq!(wire.send(format!("{start}{rest}")).answer().status, 200);
        wire.expect_closed();
    }
}

#[test]
fn a_body_has_one_length() {
    let bridge = bridge(&[]);
    let body = delivery("a");
    let length = body.len();
    let same = format!("content-length: {length}\r\ncontent-length: {length}");
    assert_eq!(bridge.wire().send(request(&same, &body)).answer().status, 200);
    let chunks = chunked(&body, "");
    for both in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
    ] {
        // The chunks determine the length (RFC 9112, 6.3), and anything after them on the connection is ignored.
        let mut wire = bridge.wire();
        wire.send(request(&both, &chunks)).send(with_length(&body));
        let response = wire.answer();
        assert_eq!(response.status, 200);
        assert_eq!(response.header("connection"), Some("close"));
        wire.expect_closed();
    }
    assert_eq!(events(&bridge, "deliveries"), 3.0);

    let lengths = [
        format!("content-length: {length}\r\ncontent-length: {}", length - 1),
        format!("content-length: {length}, {length}"),
        format!("content-length: +{length}"),
        "content-length: -1".to_owned(),
        "content-length: 0x10".to_owned(),
        "content-length:".to_owned(),
        "content-length: 99999999999999999999".to_owned(),
        "transfer-encoding: gzip".to_owned(),
        "transfer-encoding: chunked, gzip".to_owned(),
    ];
    for fields in &lengths {
        expect_refusal(&bridge, &request(fields, &body), 400);
    }
    let old = request("transfer-encoding: chunked", &chunks).replacen("HTTP/1.1", "HTTP/1.0", 1);
    expect_refusal(&bridge, &old, 400);
    expect_outcome(&bridge, "invalid_http", lengths.len() as f64 + 1.0);
    expect_refusal(&bridge, &request("content-length: 18446744073709551614", ""), 431);
    expect_refusal(&bridge, &request("content-length: 18446744073709551613", ""), 413);
    // A coding inside the chunks is treated like any other encoding.
    let zipped = request("transfer-encoding: gzip, chunked", &chunks);
    expect_problem(&bridge.wire().send(zipped).answer(), 415);
    expect_outcome(&bridge, "unsupported", 1.0);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (3.0, 1.0)
    );
}

#[test]
fn wrong_chunks_are_refused_and_nothing_is_stored() {
    let bridge = bridge(&[]);
    let body = delivery("a");
    let length = body.len();
    let bodies = [
        format!("nonsense\r\n{body}\r\n0\r\n\r\n"),
        format!("-5\r\n{body}\r\n0\r\n\r\n"),
        format!("\r\n{body}\r\n0\r\n\r\n"),
        format!("{length:x}\n{body}\n0\n\n"),
        format!("11111111111111111\r\n{body}\r\n0\r\n\r\n"),
        // A chunk longer than announced, then a shorter one.
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", length - 1),
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", length + 1),
        format!("{length:x}\r\n{body}\r\n"),
        format!("{length:x}\r\n{body}\r\nnonsense\r\n\r\n"),
        format!("{length:x};{}\r\n{body}\r\n0\r\n\r\n", "x".repeat(20_000)),
        format!("{length:x}\r\n{body}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(200)),
        format!("{length:x}\r\n{body}\r\n0\r\nx: {}\r\n\r\n", "y".repeat(20_000)),
    ];
    let unfinished = 7;
    for (index, chunks) in bodies.iter().enumerate() {
        let request = request("transfer-encoding: chunked", chunks);
        if index == unfinished {
            // A body that ends too early may still continue; only the end of the connection shows that it won't.
            let mut wire = bridge.wire();
            wire.send(request).end().expect_closed();
        } else {
            expect_refusal(&bridge, &request, 400);
        }
    }
    expect_outcome(&bridge, "invalid_http", bodies.len() as f64 - 1.0);
    expect_outcome(&bridge, "disconnected", 1.0);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (0.0, 0.0)
    );
}

#[test]
fn a_client_that_waits_gets_its_answer_before_it_sends_the_body() {
    let bridge = bridge(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.bearer_tokens", "good-token"),
        ("ingest.auth.api_keys", "good-key"),
        ("ingest.max_body_bytes", "10000"),
    ]);
    let body = delivery("a");
    let waiting = |method: &str, path: &str, fields: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{fields}content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let good = "authorization: Bearer good-token\r\ncontent-type: application/json\r\n";
    let wrong = "authorization: Bearer bad-token\r\ncontent-type: application/json\r\n";
    let text = "content-type: text/plain\r\n";
    for (request, status, outcome) in [
        (waiting("POST", EVENTS, wrong, 100), 401, "unauthorized"),
        (waiting("POST", EVENTS, good, 10_001), 413, "too_large"),
        (waiting("POST", EVENTS, text, 100), 415, "unsupported"),
        (waiting("POST", "/elsewhere", good, 100), 404, "not_found"),
        (waiting("PUT", EVENTS, good, 100), 405, "method_not_allowed"),
    ] {
        expect_refusal(&bridge, &request, status);
        expect_outcome(&bridge, outcome, 1.0);
    }
    let mut wire = bridge.wire();
    for _ in 0..2 {
        let response = wire.send(waiting("POST", EVENTS, good, body.len())).answer();
        assert_eq!(response.status, 100);
        assert_eq!(wire.send(&body).answer().status, 200);
    }
    expect_outcome(&bridge, "accepted", 2.0);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (2.0, 0.0)
    );
}

#[test]
fn the_proxy_protocol_in_front_of_a_request_is_named() {
    let bridge = bridge(&[]);
    let request = with_length(&delivery("a"));
    let v1 = format!("PROXY TCP4 192.0.2.1 192.0.2.2 50000 80\r\n{request}");
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xc3\x50\0\x50".to_vec();
    v2.extend(request.as_bytes());
    for bytes in [v1.as_bytes(), &v2, b"PROXY UNKNOWN\r\n"] {
        let response = bridge.client().raw(bytes).unwrap();
        expect_problem(&response, 400);
        assert!(response.text().contains("PROXY protocol"), "{response:?}");
    }
    expect_outcome(&bridge, "invalid_http", 3.0);
    expect_logged(
        &bridge,
        &["a request was refused", "PROXY protocol", "load balancer"],
    );
    let response = bridge.client().raw(b"GET\r\n\r\n").unwrap();
    assert!(!response.text().contains("PROXY"), "{response:?}");
}
