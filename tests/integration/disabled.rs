//! Streams that are switched off while their events wait: the events stay visible and reach Kafka.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics, run},
    cmc::webhook,
    html,
    http::Client,
    kafka,
    metrics::Scrape,
    topics::Reader,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

fn page(bridge: &Bridge) -> String {
    let text = html::text(Client::new(bridge.admin).get("/status").text());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn status(bridge: &Bridge) -> Value {
    serde_json::from_slice(&Client::new(bridge.admin).get("/status.json").body).unwrap()
}

fn of_blocks(status: &Value) -> Option<&Value> {
    let mut streams = status["streams"].as_array().unwrap().iter();
    streams.find(|stream| stream["stream"] == "blocks")
}

fn has_blocks(scrape: &Scrape) -> bool {
    let streams = scrape.label_values("cmc_bridge_backlog_events", "stream");
    streams.contains(&"blocks")
}

/// A spool in which this many events of blocks wait, with the setup in which blocks is disabled.
fn left_behind(topics: &Topics, events: usize) -> Setup {
    // A stop can't deliver anything, so it need not wait.
    let away = Setup::new(NO_KAFKA).topics(topics).set("shutdown.grace", "1s");
    let bridge = away.clone().set("streams.blocks.enabled", "true").start();
    let mut client = bridge.client();
    for number in 0..events {
        let element = format!(r#"{{"messageId":"b-{number}","created":"2026-10-01 09:15:02"}}"#);
        assert_eq!(client.post(webhook("blocks", "pro", &[&element])).status, 200);
    }
    bridge.stop();
    away
}

#[test]
fn events_of_a_disabled_stream_are_shown_everywhere_and_delivered() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let away = left_behind(&topics, 2);
    let warning = "warning: streams.blocks.enabled: it is false, but the stream's log holds 2 events";
    run(&away, &["check"]).has(0, &[warning, "what its log holds -> topic", "is valid"]);

    let bridge = away.start();
    assert!(
        bridge
            .running
            .stderr()
            .contains("the stream is disabled: what its log still holds is delivered")
    );
    let scrape = bridge.scrape();
    assert_eq!(scrape.stream("cmc_bridge_backlog_events", "blocks"), 2.0);
    assert_eq!(scrape.stream("cmc_bridge_stream_enabled", "blocks"), 0.0);
    assert_eq!(scrape.stream("cmc_bridge_stream_enabled", "bounces"), 1.0);
    wait::until(LIMIT, "a blocked lane", || {
        let scrape = bridge.scrape();
        (scrape.sum("cmc_bridge_lane_blocked", &[("stream", "blocks")]) == 1.0).then_some(())
    });
    let shown = page(&bridge);
    for text in ["2 events are not in Kafka yet.", "Disabled: it takes no webhooks"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let json = status(&bridge);
    let blocks = of_blocks(&json).unwrap();
    assert_eq!(
        (&blocks["log"], &blocks["backlog"]),
        (&"disabled".into(), &2.into())
    );
    // Webhooks for the stream become dead letters, as without a log.
    assert_eq!(
        bridge.client().post(webhook("blocks", "pro", &["{}"])).status,
        200
    );
    let scrape = bridge.scrape();
    assert_eq!(scrape.stream("cmc_bridge_events_total", "blocks"), 0.0);
    assert_eq!(scrape.stream("cmc_bridge_events_total", "dead_letters"), 1.0);
    run(&away, &["check"]).has(
        0,
        &[
            "it is false, but the stream's log holds an unknown number",
            "has the spool open",
        ],
    );
    bridge.stop();

    let there = away.set("kafka.bootstrap_servers", kafka);
    let bridge = there.start();
    bridge.wait_for(LIMIT, "delivered blocks", |scrape| {
        scrape.stream("cmc_bridge_backlog_events", "blocks") == 0.0
            && scrape.sum("cmc_bridge_lane_blocked", &[("stream", "blocks")]) == 0.0
    });
    let mut reader = Reader::new(kafka, &topics.blocks);
    assert_eq!(reader.read_count(2, LIMIT).len(), 2);
    bridge.wait_drained(LIMIT);
    assert!(page(&bridge).contains("All events are in Kafka."));
    assert_eq!(bridge.probe("/readyz"), 200);
    bridge.stop();

    // An empty log is not opened again and causes no warning.
    let bridge = there.start();
    assert!(!has_blocks(&bridge.scrape()));
    assert!(of_blocks(&status(&bridge)).is_none());
    bridge.stop();
    let checked = run(&there, &["check"]);
    checked.has(0, &["blocks is disabled\n"]);
    assert!(
        !checked.stdout.contains("streams.blocks.enabled"),
        "{}",
        checked.stdout
    );
}

#[test]
fn an_unreadable_log_of_a_disabled_stream_is_reported_and_does_not_prevent_a_start() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = left_behind(&topics, 1).set("kafka.bootstrap_servers", kafka);
    let files = ["manifest.copy", "manifest"].map(|name| setup.spool_dir().join("blocks").join(name));
    let whole = files.each_ref().map(|file| fs::read(file).unwrap());
    files.iter().for_each(|file| fs::write(file, "?").unwrap());
    let bridge = setup.start();
    assert!(bridge.running.stderr().contains("its log can't be opened"));
    assert_eq!(
        bridge.client().post(webhook("bounces", "pro", &["{}"])).status,
        200
    );
    let scrape = bridge.wait_drained(LIMIT);
    let damage = [("stream", "blocks"), ("reason", "damage")];
    assert_eq!(scrape.get("cmc_bridge_lane_blocked", &damage), 1.0);
    // The number is unknown, so none is shown.
    assert!(!has_blocks(&scrape));
    let shown = page(&bridge);
    for text in [
        "Ready, with trouble",
        "Not being delivered: blocks. All events are in Kafka, except for what the log of blocks holds.",
        "its log can't be opened",
        "the manifest is damaged",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert_eq!(of_blocks(&status(&bridge)).unwrap()["log"], "unreadable");
    assert_eq!(bridge.probe("/readyz"), 200);

    // The bridge tries again without a restart.
    for (file, bytes) in files.iter().zip(whole) {
        fs::write(file, bytes).unwrap();
    }
    assert_eq!(Reader::new(kafka, &topics.blocks).read_count(1, LIMIT).len(), 1);
    bridge.wait_for(LIMIT, "blocks that are delivered", |scrape| {
        has_blocks(scrape)
            && scrape.stream("cmc_bridge_backlog_events", "blocks") == 0.0
            && scrape.sum("cmc_bridge_lane_blocked", &[("stream", "blocks")]) == 0.0
    });
    assert_eq!(of_blocks(&status(&bridge)).unwrap()["log"], "disabled");
    bridge.stop();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_log_of_an_unknown_stream_is_reported_everywhere() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = left_behind(&topics, 1).set("kafka.bootstrap_servers", kafka);
    let dir = setup.spool_dir();
    copy(&dir.join("blocks"), &dir.join("openings"));
    let what = "the log of a stream that this version doesn't know";
    run(&setup, &["check"]).has(0, &["warning: spool.dir: ", "openings", what, "holds 1 event:"]);
    run(&setup, &["spool", "ls"]).has(0, &["\nopenings  ", what]);
    run(&setup, &["spool", "verify"]).has(0, &["openings: ", what]);
    let listing: Value = serde_json::from_str(&run(&setup, &["spool", "ls", "--json"]).stdout).unwrap();
    assert_eq!(listing["unknown"], serde_json::json!(["openings"]));

    let bridge = setup.start();
    assert!(bridge.running.stderr().contains(what));
    assert_eq!(bridge.scrape().get("cmc_bridge_spool_unknown_logs", &[]), 1.0);
    bridge.wait_drained(LIMIT);
    wait::until(LIMIT, "the page to name the log", || {
        page(&bridge)
            .contains("except for what the log of openings (unknown to this version) holds.")
            .then_some(())
    });
    assert_eq!(status(&bridge)["unknown_logs"], serde_json::json!(["openings"]));
    bridge.stop();
    // Everything deliverable is delivered, but deleting the volume would still lose something.
    run(&setup, &["spool", "drain"]).has(65, &["0 left", "openings is", "with 1 event:"]);
}
