//! Limits on sizes, times, connections, bytes in flight and bytes on disk: each has its answer.

use super::{LIMIT, bridge, events, expect_logged, expect_outcome, expect_problem};
use crate::{
    cmc::{delivery, message, sample, webhook},
    http::{Client, EVENTS, JSON},
};

/// A head that ends before the empty line.
fn head() -> String {
    format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
}

#[test]
fn too_large() {
    let bridge = bridge(&[("ingest.max_body_bytes", "100000")]);
    let body = webhook("deliveries", "pro", &[&message("a", &"x".repeat(100_000))]);
    expect_problem(&bridge.client().post(&body), 413);
    // Without a length, the limit applies to the bytes read.
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let mut chunked = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    chunked.extend(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes());
    expect_problem(&bridge.client().raw(&chunked).unwrap(), 413);
    // A client that announces too much and waits is refused for the announcement.
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
fn a_slow_header_and_a_slow_body() {
    let bridge = bridge(&[("ingest.header_timeout", "3s"), ("ingest.body_timeout", "3s")]);
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let response = bridge.client().raw(head.as_bytes()).unwrap();
    expect_problem(&response, 408);
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
    let bridge = bridge(&[
        ("ingest.max_body_bytes", "262144"),
        ("spool.segment_bytes", "262144"),
        ("spool.max_bytes", "2097152"),
    ]);
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
    // Bounces can still be made durable: taking the replica out of service would break the isolation of the streams.
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
    expect_outcome(&bridge, "overloaded", 1.0);
    let line = ["a request was refused", "\"cause\":\"spool full\""];
    expect_logged(&bridge, &[line[0], line[1], "\"stream\":\"deliveries\""]);
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
    expect_logged(&bridge, &["refused", "\"cause\":\"too many connections\""]);
    held.pop();
    crate::wait::until(LIMIT, "a place for another connection", || {
        (bridge.client().post(delivery("c")).status == 200).then_some(())
    });
    // The first ones are still served.
    assert_eq!(held[0].post(delivery("d")).status, 200);
}

#[test]
fn refused_clients_that_stay_keep_nobody_out() {
    let bridge = bridge(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.bearer_tokens", "a-good-token"),
        ("ingest.max_connections", "50"),
    ]);
    let good = |client: &mut Client| {
        let token = ("authorization", "Bearer a-good-token");
        client.post_with(&[JSON, token], delivery("a")).status
    };
    let mut early = bridge.client();
    assert_eq!(good(&mut early), 200);
    let mut strangers = Vec::new();
    for index in 0..200 {
        let mut client = bridge.client();
        let (method, path, expected) = [
            ("POST", EVENTS, 401),
            ("GET", EVENTS, 405),
            ("GET", "/", 404),
            ("POST", "/x", 404),
        ][index % 4];
        assert_eq!(client.request(method, path, &[], b"").unwrap().status, expected);
        strangers.push(client);
        if index % 20 == 0 {
            assert_eq!(good(&mut bridge.client()), 200, "after {index}");
        }
    }
    assert_eq!(good(&mut early), 200);
    bridge.wait_for(LIMIT, "recycled connections", |scrape| {
        scrape.get("cmc_bridge_connections_recycled_total", &[]) >= 150.0
    });
    expect_outcome(&bridge, "overloaded", 0.0);
    drop(strangers);
}

#[test]
fn a_draining_bridge_serves_during_the_lame_duck_time_but_is_not_ready() {
    let mut bridge = bridge(&[("shutdown.lame_duck", "15s"), ("shutdown.grace", "1s")]);
    let mut client = bridge.client();
    assert_eq!(client.post(delivery("a")).status, 200);
    bridge.terminate();
    crate::wait::until(LIMIT, "/readyz 503", || {
        (bridge.probe("/readyz") == 503).then_some(())
    });
    assert_eq!(bridge.client().post(delivery("b")).status, 200);
    // The backlog can't be delivered, but that is not an error.
    assert_eq!(bridge.running.wait_exit(LIMIT), 0);
}

#[test]
fn bytes_in_flight() {
    let bridge = bridge(&[
        ("ingest.max_body_bytes", "1MiB"),
        ("ingest.max_bytes_in_flight", "3MiB"),
    ]);
    let waiting = |length| {
        format!(
            "{}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n",
            head()
        )
    };
    let mut holders: Vec<_> = (0..3).map(|_| bridge.wire()).collect();
    for holder in &mut holders {
        assert_eq!(holder.send(waiting(1_000_000)).answer().status, 100);
    }
    let response = bridge.wire().send(waiting(200_000)).answer();
    expect_problem(&response, 503);
    assert_eq!(response.header("retry-after"), Some("5"));
    expect_outcome(&bridge, "overloaded", 1.0);
    expect_logged(&bridge, &["refused", "\"cause\":\"too many bytes in flight\""]);
    // A small one still has room.
    assert_eq!(bridge.client().post(delivery("a")).status, 200);
    drop(holders);
    expect_outcome(&bridge, "disconnected", 3.0);
    assert_eq!(bridge.wire().send(waiting(200_000)).answer().status, 100);
}

/// A client without a credential takes up room only with bytes, not with an announcement.
#[test]
fn announcements_of_strangers_take_no_room() {
    let bridge = bridge(&[
        ("ingest.auth.allow_anonymous", "false"),
        ("ingest.auth.api_keys", "the-key"),
        ("ingest.max_body_bytes", "1MiB"),
        ("ingest.max_bytes_in_flight", "3MiB"),
    ]);
    let strangers: Vec<_> = (0..8)
        .map(|_| {
            let mut stranger = bridge.wire();
            let promise = format!("{}expect: 100-continue\r\ncontent-length: 900000\r\n\r\n", head());
            assert_eq!(stranger.send(promise).answer().status, 100);
            stranger
        })
        .collect();
    let body = delivery("a").replacen('{', r#"{"api_key":"the-key","#, 1);
    assert_eq!(bridge.client().post(body).status, 200);
    drop(strangers);
}

/// Even the smallest settings accept every webhook within the limits, good or not, and count it once it is stored.
#[test]
fn webhooks_within_the_limits_are_accepted() {
    let bridge = bridge(&[
        ("ingest.max_body_bytes", "1MiB"),
        ("ingest.max_bytes_in_flight", "3MiB"),
        ("spool.segment_bytes", "1MiB"),
        ("spool.max_bytes", "64MiB"),
    ]);
    let mut client = bridge.client();
    let element = message("a@test", &"x".repeat(100));
    let full = webhook(
        "deliveries",
        "pro",
        &vec![element.as_str(); (1 << 20) / (element.len() + 2)],
    );
    assert_eq!(client.post(&full).status, 200);
    for element in [
        "1",
        "{}",
        "[1,1,1]",
        r#"{"event_type":1}"#,
        r#"{"messageId":"x"}"#,
    ] {
        let many = webhook("deliveries", "pro", &vec![element; 10_000]);
        assert_eq!(client.post(&many).status, 200, "{element}");
    }
    let keys = message(&"k".repeat(500), "");
    let full = webhook(
        "deliveries",
        "pro",
        &vec![keys.as_str(); (1 << 20) / (keys.len() + 2)],
    );
    assert_eq!(client.post(&full).status, 200);
    let failures = |scrape: &crate::metrics::Scrape| scrape.sum("cmc_bridge_parse_failures_total", &[]);
    assert_eq!(failures(&bridge.scrape()), 30_000.0);
    expect_outcome(&bridge, "overloaded", 0.0);
}

/// A webhook refused for lack of room is not stored, so it is not counted as a parse failure.
#[test]
fn failures_that_were_not_stored_are_not_counted() {
    let bridge = bridge(&[
        ("ingest.max_body_bytes", "262144"),
        ("spool.segment_bytes", "262144"),
        ("spool.max_bytes", "2097152"),
    ]);
    let mut client = bridge.client();
    let bad = "x".repeat(100_000);
    let mut stored = 0.0;
    while client.post(&bad).status == 400 {
        stored += 1.0;
    }
    for _ in 0..5 {
        expect_problem(&client.post(&bad), 503);
    }
    let scrape = bridge.scrape();
    assert_eq!(scrape.sum("cmc_bridge_parse_failures_total", &[]), stored);
    assert_eq!(events(&bridge, "dead_letters"), stored);
}

#[test]
fn a_quiet_connection_is_closed_silently_after_the_idle_timeout() {
    let bridge = bridge(&[("ingest.header_timeout", "2s"), ("ingest.idle_timeout", "10s")]);
    let body = delivery("a");
    let request = format!("{}content-length: {}\r\n\r\n{body}", head(), body.len());
    let mut wire = bridge.wire();
    assert_eq!(wire.send(&request).answer().status, 200);
    // Quiet for longer than a header may take, then used again. An empty line after a body is not a request.
    std::thread::sleep(std::time::Duration::from_secs(3));
    // Measured from before the answer, which may be read late.
    let quiet = std::time::Instant::now();
    assert_eq!(wire.send(format!("{request}\r\n")).answer().status, 200);
    wire.expect_closed();
    assert!(
        quiet.elapsed() > std::time::Duration::from_secs(9),
        "{:?}",
        quiet.elapsed()
    );
    // Before its first request, a connection has only the header timeout.
    bridge.wire().expect_closed();
    expect_outcome(&bridge, "accepted", 2.0);
    expect_outcome(&bridge, "timeout", 0.0);
}

#[test]
fn a_request_that_began_with_the_previous_one_has_the_header_timeout() {
    let bridge = bridge(&[("ingest.header_timeout", "3s")]);
    let body = delivery("a");
    let request = format!("{}content-length: {}\r\n\r\n{body}", head(), body.len());
    let mut wire = bridge.wire();
    wire.send(format!("{request}POST /webhooks"));
    assert_eq!(wire.answer().status, 200);
    expect_problem(&wire.answer(), 408);
    wire.expect_closed();
    expect_outcome(&bridge, "timeout", 1.0);
}

#[test]
fn a_client_that_does_not_read_its_answers_is_closed() {
    let bridge = bridge(&[("ingest.header_timeout", "3s"), ("ingest.max_connections", "1")]);
    let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut wire = bridge.wire();
    wire.send(&request);
    // Sends until the answers fill the buffers on both sides and the server stops reading.
    let sender = std::thread::spawn(move || {
        for _ in 0..2000 {
            wire.send(&request);
        }
    });
    expect_outcome(&bridge, "disconnected", 1.0);
    assert_eq!(bridge.client().post(delivery("a")).status, 200);
    sender.join().unwrap();
}
