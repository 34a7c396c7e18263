//! The status page of the real process, from its start to its end.

use std::time::Duration;

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{message, webhook},
    html,
    http::{Client, JSON},
    kafka::Broker,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// The text of the page on one line. The page must be well-formed and load nothing from elsewhere.
fn page(bridge: &Bridge) -> String {
    let response = Client::new(bridge.admin).get("/status");
    assert_eq!((response.status, response.media_type()), (200, "text/html"));
    let policy = response.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(response.header(name), Some(value));
    }
    let source = response.text();
    assert!(source.contains("<meta http-equiv=\"refresh\" content=\"5\"/>"));
    for absent in ["<script", "src=", "url(", "http://", "https://", "@import"] {
        assert!(!source.contains(absent), "{absent} in {source}");
    }
    let text = html::text(source);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn json(bridge: &Bridge) -> serde_json::Value {
    let response = Client::new(bridge.admin).get("/status.json");
    assert_eq!(
        (response.status, response.media_type()),
        (200, "application/json")
    );
    let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    for stream in json["streams"].as_array().unwrap() {
        let of = |name: &str| stream[name].as_u64().unwrap();
        assert_eq!(
            of("recovered") + of("accepted"),
            of("delivered") + of("diverted") + of("backlog"),
            "{stream}"
        );
    }
    json
}

/// Loads the page until it contains all these texts.
fn wait_for(bridge: &Bridge, texts: &[&str]) {
    wait::until(LIMIT, &format!("a page with {texts:?}"), || {
        let page = page(bridge);
        texts.iter().all(|text| page.contains(text)).then_some(())
    });
}

#[test]
fn the_page_shows_the_state_of_the_bridge() {
    let mut broker = Broker::own();
    let kafka = broker.bootstrap();
    let topics = Topics::create(&kafka);
    broker.kill();
    let mut bridge = Setup::new(&kafka)
        .topics(&topics)
        .set("shutdown.lame_duck", "60s")
        .start();
    let fresh = page(&bridge);
    assert!(fresh.contains("0 B of") || fresh.contains("KiB of"), "{fresh}");
    assert!(fresh.contains("None since the start."), "{fresh}");
    assert_eq!(
        Client::new(bridge.admin).get("/").header("location"),
        Some("status")
    );

    // Kafka is away: the events wait, and the page says why and what to do.
    let good = message("taro@customer.example", "Your invoice");
    let mut client = bridge.client();
    assert_eq!(client.post(webhook("deliveries", "pro", &[&good])).status, 200);
    let deliveries = format!("deliveries {} blocked 1", topics.deliveries);
    wait_for(
        &bridge,
        &[
            "Ready, with trouble Webhooks are taken. Not being delivered: ",
            "1 event is not in Kafka yet.",
            &deliveries,
            "Blocked: connect for",
            &format!("Check that the brokers at {kafka} run"),
        ],
    );
    let lane = &json(&bridge)["streams"][0]["lane"];
    assert_eq!(
        (&lane["state"], &lane["reason"]),
        (&"blocked".into(), &"connect".into())
    );

    broker.start_again();
    wait_for(
        &bridge,
        &[
            "Ready Webhooks are taken. All events are in Kafka.",
            &format!("deliveries {} idle 0 – 1 0", topics.deliveries),
            &format!("bounces {} idle", topics.bounces),
        ],
    );

    // Dead letters: their reasons and places, but none of their contents.
    let bad = [&good, "\"hanako@customer.example\"", "7"];
    assert_eq!(client.post(webhook("deliveries", "pro", &bad)).status, 200);
    assert_eq!(client.post(format!("{{{good}")).status, 400);
    let type_with_address = ("content-type", "text/hanako@customer.example");
    assert_eq!(client.post_with(&[type_with_address], &good).status, 415);
    let unknown = webhook("hanako@customer.example", "Your invoice", &[&good]);
    assert_eq!(client.post_with(&[JSON], &unknown).status, 200);
    wait_for(
        &bridge,
        &[
            "unsupported_ media_ type whole body 1",
            "invalid_ json whole body 1",
            "element_ not_ object element 1 of deliveries 2",
            "unknown_ event_ type whole body 1",
        ],
    );
    wait_for(&bridge, &["All events are in Kafka."]);
    // A sample is taken every five seconds, so the first rate that includes these webhooks appears soon.
    wait::until(LIMIT, "the rates", || {
        let json = json(&bridge);
        let rates = json["rates"].as_array()?;
        let some = |name: &str| rates.iter().any(|rate| rate[name].as_f64() > Some(0.0));
        (some("accepted") && some("refused") && some("delivered")).then_some(())
    });
    let letters = json(&bridge);
    assert_eq!(letters["dead_letters"].as_array().unwrap().len(), 4);
    for shown in [page(&bridge), letters.to_string()] {
        for personal in ["customer.example", "taro", "hanako", "invoice", "messageId"] {
            assert!(!shown.contains(personal), "{personal} in {shown}");
        }
    }

    bridge.terminate();
    wait_for(&bridge, &["Draining The bridge is stopping."]);
    assert_eq!(json(&bridge)["state"], "draining");
    // The second signal ends it at once.
    bridge.terminate();
    assert_eq!(bridge.running.wait_exit(Duration::from_secs(30)), 0);
}
