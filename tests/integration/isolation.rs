//! A stream that may not write to its topic fills its own log up to its budget: only its webhooks are refused.

use std::time::{Duration, Instant};

use crate::{
    bridge::Topics,
    load::{Load, Outcome, Shape, Target},
    metrics::STREAMS,
    oracle,
    secure::{grant, scram},
    secured_broker::secured,
    topics::create,
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_stream_without_write_permission_fills_only_its_own_budget() {
    let broker = secured();
    let kafka = broker.bootstrap();
    let user = "loses-write";
    let topic = |what| create(&kafka, what, 3, &[]);
    let topics = Topics {
        deliveries: topic("isolated-deliveries"),
        bounces: topic("loses-bounces"),
        blocks: "not-used".to_owned(),
        dead_letters: topic("isolated-dead-letters"),
    };
    let prefixed = |kind, name| [kind, name, "--resource-pattern-type", "prefixed"];
    let rights = ["Write", "Read"];
    let on_bounces = grant(&[user], &rights, &["--topic", &topics.bounces]);
    broker.acls(&[
        grant(&[user], &rights, &prefixed("--topic", "isolated-")),
        grant(&[user], &["Read"], &prefixed("--group", user)),
        grant(&[user], &["Write"], &prefixed("--transactional-id", user)),
        on_bounces.clone(),
    ]);
    let bridge = scram(broker, user)
        .topics(&topics)
        .set("kafka.id_prefix", user)
        .set("ingest.max_body_bytes", "512KiB")
        .set("spool.segment_bytes", "256KiB")
        .set("spool.max_bytes", "3MiB")
        .start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(
        &target,
        Shape {
            clients: 4,
            events: 10,
            pause: Duration::from_millis(20),
        },
    );
    let delivered = |stream: &str, more: f64| {
        let goal = bridge
            .scrape()
            .stream("cmc_bridge_delivered_events_total", stream)
            + more;
        bridge.wait_for(LIMIT, &format!("deliveries of {stream}"), |scrape| {
            scrape.stream("cmc_bridge_delivered_events_total", stream) >= goal
        });
    };
    delivered("bounces", 100.0);

    // The permission is removed under load.
    let mut removal = on_bounces.clone();
    "--remove".clone_into(&mut removal[0]);
    removal.push("--force".to_owned());
    broker.acls(&[removal]);
    bridge.wait_for(LIMIT, "the bounces' lane to be blocked", |scrape| {
        let labels = [("stream", "bounces"), ("reason", "authorization")];
        scrape.get("cmc_bridge_lane_blocked", &labels) == 1.0
    });
    let overloaded = [("outcome", "overloaded")];
    assert_eq!(bridge.scrape().sum("cmc_bridge_webhooks_total", &overloaded), 0.0);
    bridge.wait_for(LIMIT, "refused webhooks", |scrape| {
        scrape.sum("cmc_bridge_webhooks_total", &overloaded) >= 20.0
    });
    let full = Instant::now();
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
    let refused = bridge.client().post(crate::cmc::webhook(
        "bounces",
        "pro",
        &[&crate::cmc::message("a", &"x".repeat(300_000))],
    ));
    assert_eq!(refused.status, 503);
    let seconds: u64 = refused
        .header("retry-after")
        .expect("Retry-After")
        .parse()
        .unwrap();
    assert!((1..600).contains(&seconds));
    // The other streams are accepted and delivered as before.
    delivered("deliveries", 1000.0);
    let scrape = bridge.wait_for(LIMIT, "the other lanes not to be blocked", |scrape| {
        let mut others = STREAMS.into_iter().filter(|other| *other != "bounces");
        others.all(|other| scrape.sum("cmc_bridge_lane_blocked", &[("stream", other)]) == 0.0)
    });
    let limit = scrape.stream("cmc_bridge_spool_limit_bytes", "bounces");
    let used = scrape.stream("cmc_bridge_spool_bytes", "bounces");
    // The budget covers the batches; the log's overhead for the last one comes on top.
    assert!(used <= limit + 16_384.0, "{used} bytes of {limit}");
    let granted = Instant::now();

    broker.acls(&[on_bounces]);
    delivered("bounces", 1000.0);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    let mut while_full = [0, 0];
    for webhook in &posted {
        let refused = matches!(webhook.outcome, Outcome::Refused(503));
        let acknowledged = matches!(webhook.outcome, Outcome::Acknowledged(_));
        assert!(
            acknowledged || refused && webhook.stream == "bounces",
            "{webhook:?}"
        );
        if refused {
            while_full[0] += 1;
        } else if webhook.stream == "deliveries" && webhook.sent > full && webhook.sent < granted {
            while_full[1] += 1;
        }
    }
    println!("bounces refused, deliveries taken meanwhile: {while_full:?}");
    assert!(while_full.iter().all(|n| *n > 0), "{while_full:?}");
    oracle::check(&kafka, &topics, &posted);
    bridge.stop();
}
