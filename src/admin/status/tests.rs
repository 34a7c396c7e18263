use super::{
    page::{Refresh, content_security_policy, html},
    *,
};
use crate::{
    books::Books,
    dead_letter::{Failure, Reason},
    stream::{Stream, Tally},
};

/// The strict reader of the integration tests.
#[path = "../../../tests/integration/html.rs"]
mod reader;

fn status(topic: &str) -> Status {
    let streams = [Stream::Deliveries, Stream::Bounces, Stream::DeadLetters];
    let metrics = Metrics::new(&prometheus::Registry::new(), &streams, []).unwrap();
    let books = streams.map(|stream| StreamBooks {
        stream,
        topic: topic.to_owned(),
        service: Service::Enabled,
        books: Arc::new(Books::default()),
        log_state: Box::new(|| LogState::Accepting),
        spool_bytes: Box::new(|| 3 << 20),
        spool_limit_bytes: 4 << 20,
    });
    Status::new(
        Arc::new(metrics),
        Arc::new(Health::new(Vec::new())),
        books.into(),
        "/".into(),
    )
}

/// The text of the report's page, on one line.
fn shown(report: &StatusReport) -> String {
    let text = reader::text(&html(report, Refresh::On));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The report of a status as if every log accepted webhooks.
fn ready(status: &Status) -> StatusReport {
    let mut report = status.report();
    (report.state, report.summary) = sum_up(Readiness::Ready, &report.streams, &report.unknown_logs);
    report
}

fn accept(status: &Status, stream: usize, events: u32) {
    let mut tally = Tally::default();
    for _ in 0..events {
        tally.count(status.books[stream].stream, None);
    }
    status.books[stream].books.accepted(&tally, 1_000_000);
}

#[test]
fn a_fresh_bridge_has_nothing_to_show_and_says_so() {
    let page = shown(&ready(&status("cmc.topic")));
    for text in [
        "Ready Webhooks are taken. All events are in Kafka.",
        "bounces cmc.topic idle 0 – 0 0",
        "3.0 MiB of 4.0 MiB",
        "None since the start.",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
}

#[test]
fn topics_and_errors_are_never_markup() {
    let status = status("<script>alert('1')</script>&\"");
    let bounces = status.metrics.for_stream(Stream::Bounces);
    bounces.lane_blocked(
        BlockReason::Other,
        "<img src=x onerror=\"y\"> & \u{1b}[31m]]>",
        "",
    );
    let report = ready(&status);
    let page = html(&report, Refresh::On);
    assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
    let text = shown(&report);
    assert!(text.contains("<script>alert('1')</script>&\""), "{text}");
    assert!(
        text.contains("<img src=x onerror=\"y\"> & \u{fffd}[31m]]>"),
        "{text}"
    );
}

#[test]
fn a_blocked_lane_shows_cause_and_cure_and_is_named_in_the_state() {
    let status = status("t");
    accept(&status, 0, 1200);
    for stream in [Stream::Deliveries, Stream::Bounces] {
        let metrics = status.metrics.for_stream(stream);
        metrics.lane_blocked(
            BlockReason::Connect,
            "cannot connect: refused",
            "Start the broker",
        );
    }
    let report = ready(&status);
    assert_eq!(report.state, BridgeState::Impaired);
    let page = shown(&report);
    for text in [
        "Ready, with trouble Webhooks are taken. Not being delivered: deliveries, bounces. 1,200 events are not in Kafka yet.",
        "Blocked: connect for 0 s, since",
        "cannot connect: refused. Start the broker",
        "The same as for deliveries.",
        "dead_letters t idle",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert_eq!(page.matches("Start the broker").count(), 1, "{page}");

    for stream in [Stream::Deliveries, Stream::Bounces] {
        status.metrics.for_stream(stream).lane_free();
    }
    let report = ready(&status);
    assert_eq!(report.state, BridgeState::Ready);
    assert!(shown(&report).contains("deliveries t running 1,200"));
}

#[test]
fn the_state_says_why_no_webhook_is_taken() {
    let mut report = status("t").report();
    report.streams[1].log = LogIntake::Full;
    let cases = [
        (Readiness::Draining, "Draining The bridge is stopping. All events"),
        (
            Readiness::LogFailed(Stream::Bounces),
            "Not ready The log of bounces can't be written",
        ),
        (
            Readiness::LogsFull,
            "Not ready The spools of all event streams are full",
        ),
        (
            Readiness::Ready,
            "Ready, with trouble Webhooks are taken, but what needs the full spool of bounces is refused.",
        ),
    ];
    for (readiness, text) in cases {
        (report.state, report.summary) = sum_up(readiness, &report.streams, &report.unknown_logs);
        let page = shown(&report);
        assert!(page.contains(text), "{text}: {page}");
        assert!(page.contains("bounces t full 0"), "{page}");
    }
    report.streams[1].log = LogIntake::NotOpen;
    for (readiness, text) in [
        (
            Readiness::LogsNotOpen,
            "Not ready No event stream's log takes webhooks",
        ),
        (
            Readiness::Ready,
            "Ready, with trouble Webhooks are taken, but what needs the log that is not open, of bounces is refused. \
             All events are in Kafka, except for what the log of bounces holds.",
        ),
    ] {
        (report.state, report.summary) = sum_up(readiness, &report.streams, &report.unknown_logs);
        let page = shown(&report);
        assert!(page.contains(text), "{text}: {page}");
        assert!(page.contains("bounces t not open 0"), "{page}");
    }
    report.streams[1].log = LogIntake::Failed;
    let page = shown(&report);
    assert!(page.contains("bounces t failed 0") && page.contains("its log can't be written"));
}

#[test]
fn events_of_streams_that_take_no_webhooks_are_shown() {
    let mut report = ready(&status("t"));
    let mut summary = |log, backlog, unknown: &[&str]| {
        report.streams[1].log = log;
        report.streams[1].backlog = backlog;
        report.unknown_logs = unknown.iter().map(|name| (*name).to_owned()).collect();
        (report.state, report.summary) = sum_up(Readiness::Ready, &report.streams, &report.unknown_logs);
        (report.state, shown(&report))
    };
    let (state, page) = summary(LogIntake::Disabled, 2, &[]);
    assert_eq!(state, BridgeState::Ready);
    for text in ["2 events are not in Kafka yet.", "Disabled: it takes no webhooks"] {
        assert!(page.contains(text), "{text}: {page}");
    }
    for (log, backlog, unknown, text) in [
        (
            LogIntake::Unreadable,
            0,
            &[][..],
            "All events are in Kafka, except for what the log of bounces holds.",
        ),
        (
            LogIntake::Unreadable,
            1,
            &["openings"],
            "1 event is not in Kafka yet, and neither is what the log of bounces, openings (unknown to this version) holds.",
        ),
        (
            LogIntake::Accepting,
            0,
            &["<openings>"],
            "except for what the log of <openings> (unknown to this version) holds.",
        ),
    ] {
        let (state, page) = summary(log, backlog, unknown);
        assert_eq!(state, BridgeState::Impaired);
        assert!(page.contains(text), "{text}: {page}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["unknown_logs"][0], "<openings>");
}

#[test]
fn dead_letters_show_reason_and_place() {
    let status = status("t");
    let failure = |reason, index| Failure {
        reason,
        index: Some(index),
    };
    status
        .metrics
        .parse_failures(None, &[Failure::whole(Reason::InvalidJson)]);
    let two = [5, 6].map(|index| failure(Reason::ElementNotObject, index));
    status.metrics.parse_failures(Some(Stream::Bounces), &two);
    let deliveries = status.metrics.for_stream(Stream::Deliveries);
    deliveries.diverted(&[failure(Reason::RefusedTooLarge, 3)]);
    let report = ready(&status);
    let page = shown(&report).replace("_ ", "_");
    let places = [
        "refused_too_large record 3 of deliveries 1",
        "element_not_object element 5 of bounces 2",
        "invalid_json whole body 1",
    ];
    let found: Vec<_> = places.map(|place| page.find(place)).into_iter().collect();
    assert!(found.iter().all(Option::is_some), "{page}");
    assert!(found.is_sorted(), "not newest first: {page}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["dead_letters"][0]["scope"], "broker");
    assert_eq!(json["dead_letters"][1]["count"], 2);
}

#[test]
fn rates_become_charts() {
    let status = status("t");
    let now = Instant::now();
    for (ago, count) in [(10, 0), (5, 50), (0, 61)] {
        let mut sample = CounterSample::empty(now - Duration::from_secs(ago));
        sample.outcomes[Outcome::Accepted.index()] = count;
        sample.streams.push(StreamSample {
            delivered: count * 1000,
            ..StreamSample::default()
        });
        status.history.push(sample);
    }
    let page = shown(&ready(&status));
    for text in [
        "answered with 200 2.2 /s at most 10/s",
        "any other answer 0 /s",
        "committed in Kafka 2,200 /s at most 10,000/s",
        "Webhooks accepted: 2.2 a second now, 10 at most in the last 15 minutes",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
}

#[tokio::test]
async fn samples_are_taken() {
    let status = status("t");
    accept(&status, 0, 5);
    tokio::select! {
        () = status.watch() => {}
        () = async {
            while status.disk.lock().is_none() {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let disk = status.report().disk.unwrap();
    assert!(disk.total_bytes > disk.free_bytes && disk.total_bytes > 0);
    let page = shown(&ready(&status));
    assert!(
        page.contains("Disk of the spool") && page.contains(" free of "),
        "{page}"
    );
}

#[test]
fn the_page_refreshes_only_when_asked() {
    let report = status("t").report();
    assert!(html(&report, Refresh::On).contains("http-equiv=\"refresh\""));
    assert!(!html(&report, Refresh::Off).contains("http-equiv"));
}

#[test]
fn the_policy_admits_the_style_and_nothing_else() {
    let policy = content_security_policy();
    let (_, hash) = policy.split_once("style-src 'sha256-").unwrap();
    assert_eq!(hash.find('\''), Some(44), "{policy}");
    assert!(
        policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
        "{policy}"
    );
}

#[test]
fn books_in_json_balance() {
    let status = status("t");
    status.books[1].books.opened(10, 4, None);
    accept(&status, 1, 3);
    status.books[1].books.advanced(8, 3, 1, None);
    let json = serde_json::to_value(ready(&status)).unwrap();
    let of = |name: &str| json["streams"][1][name].as_u64().unwrap();
    assert_eq!(
        (of("recovered") + of("accepted"), of("backlog")),
        (of("delivered") + of("diverted") + of("backlog"), 5)
    );
    assert_eq!(json["state"], "ready");
    assert_eq!(json["streams"][1]["lane"]["state"], "running");
    assert!(json["at"].as_str().unwrap().ends_with('Z'));
}
