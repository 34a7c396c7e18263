use std::time::Instant;

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, style::Color};
use serde_json::{Value, json};

use super::{screen::Shown, *};
use crate::cli::bridge_status::BridgeStatus;

fn stream(name: &str, lane: Value, backlog: u64) -> Value {
    json!({
        "stream": name, "topic": format!("cmc.{name}"), "lane": lane, "log": "accepting",
        "recovered": 0, "accepted": 1, "delivered": 1, "diverted": 0, "backlog": backlog,
        "oldest": (backlog > 0).then_some("2026-10-01T09:00:00.000000Z"),
        "spool_bytes": 123_456_789, "spool_limit_bytes": 1_000_000_000, "full_in_seconds": 25_300,
        "rates": {"accepted": 12.34, "delivered": 0.0},
        "sync_seconds": {"count": 100, "p50": 0.00123, "p99": 0.0456},
    })
}

fn problem(severity: &str, what: &str, action: &str) -> Value {
    json!({
        "kind": "x", "severity": severity, "streams": [], "what": what, "since": "2026-10-01T09:00:00Z", "costs": "c",
        "action": action, "runbook": "docs/operations.md#x",
    })
}

fn well() -> Value {
    let idle = || json!({"state": "idle"});
    json!({
        "at": "2026-10-01T09:03:05.500000Z", "version": "9.9.9", "uptime_seconds": 3720, "state": "ready",
        "summary": "Webhooks are taken. All events are in Kafka.",
        "problems": [],
        "rates": [{"seconds_ago": 1.0, "accepted": 12.3, "refused": 0.0, "delivered": 1234.5}],
        "acknowledgement_seconds": {"count": 7, "p50": 0.0021, "p99": 0.0123},
        "streams": [stream("deliveries", idle(), 0), stream("bounces", idle(), 0), stream("dead_letters", idle(), 0)],
        "disk": {"free_bytes": 12_345_678_901_u64, "total_bytes": 40_000_000_000_u64},
        "dead_letters": [], "refusals": [],
    })
}

fn in_trouble() -> Value {
    let mut status = well();
    let blocked =
        json!({"state": "blocked", "reason": "topic_missing", "cause": "c", "cure": "d", "message": "c. d"});
    status["state"] = json!("impaired");
    status["summary"] =
        json!("Webhooks are taken. Not being delivered: bounces. 1,234,567 events are not in Kafka yet.");
    status["streams"][1] = stream("bounces", blocked, 1_234_567);
    status["streams"][2]["log"] = json!("not_open");
    status["problems"] = json!([
        problem(
            "critical",
            "The spool of bounces is full: spool.max_bytes is used up",
            "Raise spool.max_bytes"
        ),
        problem(
            "warning",
            &format!(
                "Bounces are not being delivered: topic_missing: cannot look up the topic: \u{1b}[31m{}",
                "Unknown, and so on ".repeat(50)
            ),
            "Create topic cmc.bounces, or set kafka.create_topics = true",
        ),
    ]);
    status["refusals"] = json!([
        {"outcome": "overloaded", "cause": "spool full", "count": 1234, "last": "2026-10-01T09:03:01Z"},
        {"outcome": "unauthorized", "cause": null, "count": 2, "last": "2026-10-01T08:03:01Z"},
    ]);
    status["dead_letters"] = json!([
        {"at": "2026-10-01T09:02:00Z", "reason": "element_not_object", "scope": "element", "stream": "bounces", "index": 1, "count": 3},
    ]);
    status
}

fn shown(url: &str, status: Value) -> Shown {
    Shown {
        url: url.to_owned(),
        status: Some(serde_json::from_value::<BridgeStatus>(status).unwrap()),
        gone: None,
    }
}

fn screen(bridges: Vec<Shown>) -> Screen {
    Screen {
        bridges,
        ..Screen::default()
    }
}

fn buffer(screen: &Screen, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    terminal.backend().buffer().clone()
}

/// The lines of the screen, without white space at their ends.
fn lines(screen: &Screen, width: u16, height: u16) -> Vec<String> {
    let buffer = buffer(screen, width, height);
    let rows = buffer.content.chunks(width.into());
    let lines: Vec<String> = rows
        .map(|row| {
            row.iter()
                .map(|cell| cell.symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect();
    println!("{}\n{}", "-".repeat(width.into()), lines.join("\n"));
    lines
}

/// Asserts that a line begins with each of these texts, in this order.
fn assert_in_order(lines: &[String], texts: &[&str]) {
    let mut rest = lines.iter();
    for text in texts {
        assert!(
            rest.any(|line| line.starts_with(text)),
            "no {text:?} at its place in\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn a_bridge_that_is_well() {
    let screen = screen(vec![shown("http://127.0.0.1:9464", well())]);
    assert_in_order(
        &lines(&screen, 80, 24),
        &[
            "cmc-bridge top  http://127.0.0.1:9464  version 9.9.9, up 1 h        09:03:05 UTC",
            "ok  Webhooks are taken. All events are in Kafka.",
            "STREAM       LANE/BLOCKED BY   BACKLOG OLDEST   IN/S  OUT/S SPOOL   SYNC P50/P99",
            "deliveries   idle                    0      -     12      0  12 %   1.2 ms/45 ms",
            "dead_letters idle",
            "Webhooks 12/s taken, 0/s refused",
            "answers p50/p99 2.1 ms/12 ms | disk 11.5 GiB of 37.3 GiB free",
            "Nothing is wrong.",
            "No refusal and no dead letter since the start.",
            "q: end",
        ],
    );
    assert_in_order(
        &lines(&screen, 40, 12),
        &[
            "cmc-bridge top  http://127.",
            "ok  Webhooks are taken.",
            "STREAM       LANE/BLOCKED BY   BACKLOG",
            "Webhooks 12/s taken, 0/s refused",
            "answers p50/p99 2.1 ms/12 ms",
            "Nothing is wrong.",
            "q: end",
        ],
    );
    let wide = lines(&screen, 200, 60);
    assert!(
        wide.iter()
            .any(|line| line.starts_with("STREAM") && line.ends_with("FULL TOPIC")),
        "{wide:?}"
    );
    assert!(
        wide.iter()
            .any(|line| line.starts_with("bounces") && line.ends_with("   7 h cmc.bounces"))
    );
}

#[test]
fn a_bridge_in_trouble() {
    let screen = screen(vec![shown("http://127.0.0.1:9464", in_trouble())]);
    assert_in_order(
        &lines(&screen, 80, 24),
        &[
            "CRITICAL  Webhooks are taken. Not being delivered: bounces. 1,234,567 events are",
            "not in Kafka yet.",
            "bounces      topic_missing   1,234,567  3 min",
            "dead_letters not open",
            "critical  The spool of bounces is full: spool.max_bytes is used up (3 min 5 s)",
            "  do  Raise spool.max_bytes",
            "warning  Bounces are not being delivered: topic_missing:",
            "topic: \u{fffd}[31m",
            "  do  Create topic cmc.bounces",
            "LAST REFUSALS AND DEAD LETTERS",
            "09:03:01     4 s ago    1,234  overloaded: spool full",
            "09:02:00   1 min ago        3  dead letter of bounces: element_not_object",
            "08:03:01     1 h ago        2  unauthorized",
            "q: end",
        ],
    );
    let small = lines(&screen, 40, 12);
    assert_in_order(
        &small,
        &[
            "CRITICAL  Webhooks",
            "STREAM",
            "bounces      topic_missing",
            "critical  The",
            "q: end",
        ],
    );
    for (width, height) in [(80, 24), (40, 12), (200, 60)] {
        let text = lines(&screen, width, height).join("\n");
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("critical"));
    }
}

#[test]
fn several_bridges_have_a_line_each_and_one_is_chosen() {
    let mut gone = shown("http://10.0.0.3:9464", well());
    gone.gone = Some(("Connection refused (os error 111)".to_owned(), 75));
    let asked = Shown {
        url: "http://10.0.0.4:9464".to_owned(),
        status: None,
        gone: None,
    };
    let bridges = vec![
        shown("http://10.0.0.1:9464", well()),
        shown("http://10.0.0.2:9464", in_trouble()),
        gone,
        asked,
    ];
    let mut screen = screen(bridges);
    choose(&mut screen, 1);
    choose(&mut screen, 1);
    assert_in_order(
        &lines(&screen, 80, 24),
        &[
            "cmc-bridge top  http://10.0.0.3:9464",
            "  BRIDGE                    STATE       BACKLOG OLDEST TAKEN/S REFUSED/S  SENT/S",
            "  10.0.0.1:9464             ok                0      -      12         0   1,23",
            "  10.0.0.2:9464             CRITICAL  1,234,567  3 min",
            "> 10.0.0.3:9464             GONE",
            "  10.0.0.4:9464             asking",
            "GONE  No status for 1 min 15 s: Connection refused (os error 111). Below is what",
            "it said last.",
            "STREAM",
            "q: end   up, down: choose one of 4 bridges",
        ],
    );
    // The chosen one stays in view.
    choose(&mut screen, 9);
    assert_eq!(screen.selected, 3);
    let small = lines(&screen, 40, 12);
    assert_in_order(&small, &["  BRIDGE", "> 10.0.0.4:9464", "asking", "q: end"]);
    choose(&mut screen, -9);
    assert_eq!(screen.selected, 0);
}

#[test]
fn a_rate_that_is_not_zero_does_not_look_like_it() {
    assert_eq!(
        [0.0, 0.004, 0.05, 9.94].map(screen::short_rate),
        ["0", "<0.1", "0.1", "9.9"]
    );
}

#[test]
fn no_column_cuts_a_number() {
    for number in [0, 9, 9_999_999, 10_000_000, 9_999_999_999] {
        let mut status = well();
        status["streams"][0]["backlog"] = json!(number);
        status["streams"][0]["rates"] =
            json!({"accepted": number.min(999_000_000), "delivered": number.min(999_000_000)});
        let of_bridge: BridgeStatus = serde_json::from_value(status.clone()).unwrap();
        let lines = lines(&screen(vec![shown("http://h:1", status)]), 80, 24);
        let line = lines.iter().find(|line| line.starts_with("deliveries")).unwrap();
        let rate = screen::short_rate(of_bridge.streams[0].rates.accepted);
        let expected = format!(" {:>9}      - {rate:>6} {rate:>6} ", screen::short_count(number));
        assert!(line.contains(&expected), "{expected:?} in {line}");
    }
}

#[test]
fn no_size_is_too_small() {
    let mut screens = vec![
        screen(Vec::new()),
        screen(vec![shown("http://h:1", in_trouble())]),
    ];
    screens.push(screen(
        (0..50).map(|_| shown("http://h:1", in_trouble())).collect(),
    ));
    for screen in &screens {
        for width in [1, 2, 7, 39, 80, 300] {
            for height in [1, 2, 3, 5, 11, 24, 70] {
                buffer(screen, width, height);
            }
        }
    }
    // The state and the way out are the last to go.
    assert_in_order(&lines(&screens[1], 40, 3), &["CRITICAL", "q: end"]);
}

#[test]
fn colours_only_repeat_words() {
    let mut screen = screen(vec![
        shown("http://h:1", in_trouble()),
        shown("http://h:2", well()),
    ]);
    let plain = buffer(&screen, 80, 24);
    assert!(
        plain
            .content
            .iter()
            .all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset)
    );
    screen.colours = true;
    let coloured = buffer(&screen, 80, 24);
    assert!(coloured.content.iter().any(|cell| cell.fg == Color::Red));
    let symbols = |buffer: &Buffer| {
        buffer
            .content
            .iter()
            .map(|cell| cell.symbol().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(symbols(&plain), symbols(&coloured));
}

#[test]
fn an_older_bridge_is_shown_as_far_as_it_goes() {
    let status = json!({
        "at": "2026-10-01T09:03:05Z", "version": "0.0.1", "uptime_seconds": 1, "state": "draining",
        "summary": "The bridge is stopping.", "rates": [], "streams": [], "disk": null, "dead_letters": [],
    });
    let screen = screen(vec![shown("http://h:1", status)]);
    assert_in_order(
        &lines(&screen, 80, 24),
        &[
            "draining  The bridge is stopping.",
            "This version of the bridge does not say",
        ],
    );
}

#[test]
fn a_status_of_this_version_is_understood() {
    let sources = crate::admin::tests::sources();
    let report = serde_json::to_value(crate::admin::tests::status(sources).report()).unwrap();
    let status: BridgeStatus = serde_json::from_value(report).unwrap();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (
            status.streams.len(),
            status.problems.map(|problems| problems.len())
        ),
        (2, Some(0))
    );
}

#[tokio::test]
async fn a_service_lists_its_bridges() {
    let given = BridgeClient::new("http://127.0.0.9:1").unwrap();
    let hour = Duration::from_secs(3600);
    let mut polling = Polling::start(vec![given], None, hour);
    let mut screen = Screen::default();
    let urls = |screen: &Screen| {
        screen
            .bridges
            .iter()
            .map(|shown| shown.url.clone())
            .collect::<Vec<_>>()
    };
    let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
    let (first, second) = (address("127.0.0.7:1"), address("[::1]:1"));
    polling.listed(Ok([first, second].into()));
    polling.update(&mut screen);
    assert_eq!(
        urls(&screen),
        ["http://127.0.0.9:1", "http://127.0.0.7:1", "http://[::1]:1"]
    );
    choose(&mut screen, 9);

    // One that is no longer listed stays for a while; the chosen one stays chosen when another goes.
    polling.listed(Ok([second].into()));
    polling.update(&mut screen);
    assert_eq!(urls(&screen).len(), 3);
    let long_ago = Instant::now() - Duration::from_secs(61);
    polling.answered_last(long_ago);
    polling.update(&mut screen);
    assert_eq!(urls(&screen), ["http://127.0.0.9:1", "http://[::1]:1"]);
    assert_eq!(screen.selected, 1);

    polling.listed(Err("no such name".into()));
    polling.update(&mut screen);
    assert_eq!(screen.trouble.as_deref(), Some("no such name"));
    assert_eq!(urls(&screen).len(), 2);
}

#[test]
fn a_service_has_a_name_and_a_port() {
    assert!(polling::check_service("cmc-bridge-headless:9464").is_ok());
    for wrong in ["cmc-bridge", ":1", "http://h:1", "h:x", "h:70000"] {
        assert!(
            matches!(polling::check_service(wrong), Err(Exit::Usage(_))),
            "{wrong}"
        );
    }
}
