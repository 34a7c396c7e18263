//! The webhook contract: each case and its answer. Kafka runs only for tests that also check what arrives there.

use std::time::Duration;

mod clients;
mod cost;
mod limits;
mod slow;
mod table;
mod wire;

use base64::Engine;

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup},
    cmc::{delivery, message, sample, webhook},
    http::{EVENTS, FORM, JSON, Response},
};

const LIMIT: Duration = Duration::from_secs(180);

fn bridge(settings: &[(&str, &str)]) -> Bridge {
    let setup = settings
        .iter()
        .fold(Setup::new(NO_KAFKA), |setup, (key, value)| setup.set(key, value));
    setup.start()
}

fn events(bridge: &Bridge, stream: &str) -> f64 {
    bridge.scrape().stream("cmc_bridge_events_total", stream)
}

/// Waits for this number of requests with this outcome, because the count may follow the answer.
fn expect_outcome(bridge: &Bridge, outcome: &str, count: f64) {
    bridge.wait_for(LIMIT, &format!("{count} × {outcome}"), |scrape| {
        scrape.sum("cmc_bridge_webhooks_total", &[("outcome", outcome)]) == count
    });
}

/// Waits for a log line that contains all of these parts.
fn expect_logged(bridge: &Bridge, parts: &[&str]) {
    crate::wait::until(LIMIT, &format!("a log line with {parts:?}"), || {
        let log = bridge.running.stderr();
        let found = log
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        found.then_some(())
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
    // Without a content type, the body decides.
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
fn an_empty_list_is_accepted_and_makes_no_event() {
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
    // An empty body leaves nothing to keep, but still gets an answer.
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
    // This stream is not enabled by default.
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
    // Possibly in parts, because the dead letter may exceed the limit, too.
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
    // The first and the third request had no credential at all.
    expect_outcome(&bridge, "unauthorized", refused.len() as f64 - 2.0);
    expect_outcome(&bridge, "challenged", 2.0);
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
