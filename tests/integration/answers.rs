//! The webhook contract: each case and its answer. No Kafka is needed, and none is there.

use std::time::Duration;

use base64::Engine;

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup},
    cmc::{delivery, message, sample, webhook},
    http::{Client, EVENTS, FORM, JSON, Response},
};

const LIMIT: Duration = Duration::from_secs(20);

fn bridge(settings: &[(&str, &str)]) -> Bridge {
    let setup = settings
        .iter()
        .fold(Setup::new(NO_KAFKA), |setup, (key, value)| setup.set(key, value));
    setup.start()
}

fn events(bridge: &Bridge, stream: &str) -> f64 {
    bridge.scrape().stream("cmc_bridge_events_total", stream)
}

/// The requests with this outcome. A count may follow its answer, so wait for it.
fn expect_outcome(bridge: &Bridge, outcome: &str, count: f64) {
    bridge.wait_for(LIMIT, &format!("{count} × {outcome}"), |scrape| {
        scrape.sum("cmc_bridge_webhooks_total", &[("outcome", outcome)]) == count
    });
}

fn expect_problem(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.media_type(), "application/problem+json", "{response:?}");
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["status"], status);
    assert!(
        problem["title"].as_str().is_some_and(|title| !title.is_empty()),
        "{problem}"
    );
}

#[test]
fn understood() {
    let bridge = bridge(&[]);
    let mut client = bridge.client();
    for name in [
        "deliveries-queued.json",
        "deliveries-batch-100.json",
        "bounces-unknown-user.json",
    ] {
        let response = client.post(sample(name));
        assert_eq!((response.status, response.text()), (200, "ok"), "{name}");
        assert_eq!(response.media_type(), "text/plain");
    }
    assert_eq!(
        client.post_with(&[FORM], sample("deliveries-form.txt")).status,
        200
    );
    assert_eq!(
        client
            .post_with(
                &[("Content-Type", "application/json; charset=utf-8")],
                delivery("a")
            )
            .status,
        200
    );
    // A missing type is told from the body.
    assert_eq!(client.post_with(&[], delivery("b")).status, 200);
    assert_eq!(client.post_with(&[], sample("deliveries-form.txt")).status, 200);
    let slash = client
        .request("POST", "/webhooks/events/", &[JSON], delivery("c").as_bytes())
        .unwrap();
    assert_eq!(slash.status, 200);
    assert_eq!(
        events(&bridge, "deliveries"),
        1.0 + 100.0 + 2.0 + 1.0 + 1.0 + 2.0 + 1.0
    );
    assert_eq!(events(&bridge, "bounces"), 1.0);
    expect_outcome(&bridge, "accepted", 8.0);
}

#[test]
fn an_empty_list_is_fine_and_makes_no_event() {
    let bridge = bridge(&[]);
    assert_eq!(
        bridge.client().post(webhook("deliveries", "pro", &[])).status,
        200
    );
    for stream in ["deliveries", "bounces", "dead_letters"] {
        assert_eq!(events(&bridge, stream), 0.0);
    }
}

#[test]
fn not_parseable() {
    let bridge = bridge(&[("ingest.max_events", "10")]);
    let mut client = bridge.client();
    let element = message("a", "b");
    let eleven = webhook("deliveries", "pro", &[element.as_str(); 11]);
    let deep = webhook(
        "deliveries",
        "pro",
        &[&format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000))],
    );
    let bodies = [
        "not json",
        "{",
        "[]",
        "7",
        "{}",
        r#"{"event_type":5,"server_composition":"pro","event":{"deliveries":[]}}"#,
        r#"{"event_type":"deliveries","server_composition":"pro"}"#,
        r#"{"event_type":"deliveries","server_composition":"pro","event":[]}"#,
        r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":{}}}"#,
        &format!("{}x", delivery("trailing")),
        &eleven,
        &deep,
    ];
    for body in bodies {
        let response = client.post(body);
        expect_problem(&response, 400);
        let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(
            problem["title"],
            "Invalid request",
            "{}",
            &body[..body.len().min(200)]
        );
    }
    expect_problem(&client.post_with(&[FORM], "event_type=deliveries&event=%7B"), 400);
    // An empty body leaves nothing to keep, but is answered all the same.
    expect_problem(&client.post(""), 400);
    let kept = events(&bridge, "dead_letters");
    assert!(kept >= bodies.len() as f64 + 1.0, "{kept} dead letters");
    assert_eq!(events(&bridge, "deliveries"), 0.0);
    expect_outcome(&bridge, "malformed", bodies.len() as f64 + 2.0);
}

#[test]
fn the_status_of_a_malformed_body_can_be_set() {
    let bridge = bridge(&[("ingest.malformed_status", "202")]);
    assert_eq!(bridge.client().post("not json").status, 202);
    assert_eq!(events(&bridge, "dead_letters"), 1.0);
}

#[test]
fn unknown_types_and_bad_elements_are_kept_as_dead_letters() {
    let bridge = bridge(&[]);
    let mut client = bridge.client();
    assert_eq!(client.post(webhook("clicks", "pro", &["{}"])).status, 200);
    // Not enabled by default.
    assert_eq!(client.post(sample("blocks.json")).status, 200);
    assert_eq!(events(&bridge, "dead_letters"), 2.0);
    let good = message("a", "b");
    let reserved = r#"{"messageId":"x","server_composition":"y"}"#;
    assert_eq!(
        client
            .post(webhook("deliveries", "pro", &["7", &good, "null", reserved]))
            .status,
        200
    );
    assert_eq!(events(&bridge, "dead_letters"), 5.0);
    assert_eq!(events(&bridge, "deliveries"), 1.0);
}

#[test]
fn a_record_over_the_limit_is_a_dead_letter() {
    let bridge = bridge(&[("kafka.max_record_bytes", "20000")]);
    let (large, small) = (message("a", &"x".repeat(20_000)), message("a", "b"));
    assert_eq!(
        bridge
            .client()
            .post(webhook("deliveries", "pro", &[&small, &large, &small]))
            .status,
        200
    );
    assert_eq!(events(&bridge, "deliveries"), 2.0);
    // Perhaps in parts, for the dead letter may be over the limit as well.
    let letters = events(&bridge, "dead_letters");
    assert!(letters >= 1.0, "{letters}");
}

#[test]
fn unauthorised() {
    let bridge = bridge(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.bearer_tokens", "first-token,second-token"),
        ("ingest.auth.basic", "cmc:pass:word"),
        ("ingest.auth.api_keys", "0123456789abcdef0123456789abcdef"),
    ]);
    let mut client = bridge.client();
    let basic = |user: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user));
    for good in [
        "Bearer first-token",
        "Bearer second-token",
        "bearer first-token",
        &basic("cmc:pass:word"),
    ] {
        let response = client.post_with(&[JSON, ("authorization", good)], delivery("a"));
        assert_eq!(response.status, 200, "{good}");
    }
    assert_eq!(client.post(sample("deliveries-api-key.json")).status, 200);
    assert_eq!(
        client.post_with(&[FORM], sample("deliveries-form.txt")).status,
        200
    );
    let stored = events(&bridge, "deliveries");

    let wrong_key =
        sample("deliveries-api-key.json").replace("0123456789abcdef0123456789abcdef", "0123456789abcdef");
    let mut refused = vec![
        client.post(delivery("a")),
        client.post(wrong_key),
        client.post("not json"),
    ];
    for bad in [
        "Bearer third-token",
        "Bearer ",
        "Bearer first-token2",
        &basic("cmc:pass"),
        "Digest x",
        "first-token",
    ] {
        refused.push(client.post_with(&[JSON, ("authorization", bad)], delivery("a")));
    }
    for response in &refused {
        expect_problem(response, 401);
        assert!(response.header("www-authenticate").is_some(), "{response:?}");
    }
    assert_eq!(events(&bridge, "deliveries"), stored);
    assert_eq!(events(&bridge, "dead_letters"), 0.0);
    expect_outcome(&bridge, "unauthorized", refused.len() as f64);
    let log = bridge.running.stderr();
    for secret in ["first-token", "third-token", "pass:word", "0123456789abcdef"] {
        assert!(!log.contains(secret), "{secret} was logged");
    }
}

#[test]
fn serve_without_credentials_refuses_to_start() {
    let mut running = Setup::new(NO_KAFKA).unset("ingest.auth.allow_anonymous").spawn();
    assert_ne!(running.wait_exit(LIMIT), 0);
    let log = running.stderr();
    assert!(log.contains("allow_anonymous"), "{log}");
}

#[test]
fn too_large() {
    let bridge = bridge(&[("ingest.max_body_bytes", "100000")]);
    let body = webhook("deliveries", "pro", &[&message("a", &"x".repeat(100_000))]);
    expect_problem(&bridge.client().post(&body), 413);
    // Without a length the limit holds for what is read.
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    chunked.extend(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes());
    expect_problem(&bridge.client().raw(&chunked).unwrap(), 413);
    // One that announces a lot and waits is refused by the announcement.
    let announced = format!("{head}content-length: 100001\r\n\r\n");
    expect_problem(&bridge.client().raw(announced.as_bytes()).unwrap(), 413);
    let just_fits = webhook("deliveries", "pro", &[&message("a", &"x".repeat(99_000))]);
    assert_eq!(bridge.client().post(just_fits).status, 200);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (1.0, 0.0)
    );
    expect_outcome(&bridge, "too_large", 3.0);
}

#[test]
fn wrong_type_or_encoding() {
    let bridge = bridge(&[]);
    let mut client = bridge.client();
    let gzip = [JSON, ("content-encoding", "gzip")];
    let types: [&[(&str, &str)]; 3] = [
        &[("content-type", "text/plain")],
        &[("content-type", "text/xml")],
        &gzip,
    ];
    for headers in types {
        let response = client.post_with(headers, delivery("a"));
        expect_problem(&response, 415);
        let accepted = response.header("accept-post").expect("Accept-Post");
        assert!(
            accepted.contains("application/json") && accepted.contains("application/x-www-form-urlencoded")
        );
    }
    assert_eq!(events(&bridge, "deliveries"), 0.0);
    expect_outcome(&bridge, "unsupported", 3.0);
}

#[test]
fn other_paths_and_methods() {
    let bridge = bridge(&[]);
    let mut client = bridge.client();
    for path in [
        "/",
        "/webhooks",
        "/webhooks/inbound",
        "/webhooks/events/x",
        "/metrics",
    ] {
        let response = client
            .request("POST", path, &[JSON], delivery("a").as_bytes())
            .unwrap();
        expect_problem(&response, 404);
    }
    for method in ["GET", "PUT", "DELETE"] {
        let response = client.request(method, EVENTS, &[], b"").unwrap();
        expect_problem(&response, 405);
        assert_eq!(response.header("allow"), Some("POST"));
    }
    expect_outcome(&bridge, "not_found", 5.0);
    assert_eq!(
        (
            bridge.probe("/livez"),
            bridge.probe("/readyz"),
            bridge.probe("/nowhere")
        ),
        (200, 200, 404)
    );
}

#[test]
fn a_slow_header_and_a_slow_body() {
    let bridge = bridge(&[
        ("ingest.header_timeout", "500ms"),
        ("ingest.body_timeout", "500ms"),
    ]);
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let response = bridge.client().raw(head.as_bytes()).unwrap();
    assert_eq!(response.status, 408, "a slow header");
    let begun = format!("{head}content-length: 1000\r\n\r\n{{");
    let response = bridge.client().raw(begun.as_bytes()).unwrap();
    expect_problem(&response, 408);
    assert_eq!(bridge.client().post(delivery("a")).status, 200);
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (1.0, 0.0)
    );
}

#[test]
fn a_full_spool_refuses_its_own_stream_and_no_other() {
    let bridge = bridge(&[("spool.segment_bytes", "262144"), ("spool.max_bytes", "1048576")]);
    let mut client = bridge.client();
    let body = webhook("deliveries", "pro", &[&message("a", &"x".repeat(50_000))]);
    let mut accepted = 0;
    let full = loop {
        let response = client.post(&body);
        if response.status != 200 {
            break response;
        }
        accepted += 1;
        assert!(accepted < 100, "no limit after {accepted} × 50 KB");
    };
    expect_problem(&full, 503);
    let seconds: u64 = full.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..600).contains(&seconds));
    assert!(accepted >= 5, "full after {accepted} × 50 KB");
    assert_eq!(
        events(&bridge, "deliveries"),
        f64::from(accepted),
        "nothing refused is stored"
    );
    assert_eq!(client.post(sample("bounces-unknown-user.json")).status, 200);
    // Bounces can still be made durable: taking the replica out would break the isolation of the streams.
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
    expect_outcome(&bridge, "overloaded", 1.0);
    let body = webhook("bounces", "pro", &[&message("a", &"x".repeat(50_000))]);
    while client.post(&body).status == 200 {}
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (503, 200));
}

#[test]
fn too_many_connections() {
    let bridge = bridge(&[("ingest.max_connections", "4")]);
    let mut held: Vec<Client> = (0..4).map(|_| bridge.client()).collect();
    for client in &mut held {
        assert_eq!(client.post(delivery("a")).status, 200);
    }
    let response = bridge.client().post(delivery("b"));
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some());
    held.pop();
    crate::wait::until(LIMIT, "a place for another connection", || {
        (bridge.client().post(delivery("c")).status == 200).then_some(())
    });
    // Those that were there first are served on.
    assert_eq!(held[0].post(delivery("d")).status, 200);
}

#[test]
fn draining_keeps_serving_in_the_lame_duck_time_but_is_not_ready() {
    let mut bridge = bridge(&[("shutdown.lame_duck", "2s"), ("shutdown.grace", "1s")]);
    let mut client = bridge.client();
    assert_eq!(client.post(delivery("a")).status, 200);
    bridge.terminate();
    crate::wait::until(LIMIT, "/readyz 503", || {
        (bridge.probe("/readyz") == 503).then_some(())
    });
    assert_eq!(bridge.client().post(delivery("b")).status, 200);
    // The backlog can't be delivered: that is no error.
    assert_eq!(bridge.running.wait_exit(LIMIT), 0);
}
