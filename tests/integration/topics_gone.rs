//! Deletions in Kafka: the group with the position, and a topic that is then created again with lower limits.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode as Code,
};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{incompressible, message, webhook},
    history::post,
    kafka,
    load::{Load, Outcome, Shape, Target},
    metrics::STREAMS,
    oracle::{self, event_id},
    topics::{self, Reader, client_config},
    wait::{self, unique},
};

const LIMIT: Duration = Duration::from_secs(180);

fn admin(
    kafka: &str,
) -> (
    AdminClient<DefaultClientContext>,
    AdminOptions,
    tokio::runtime::Runtime,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let options = AdminOptions::new().request_timeout(Some(LIMIT));
    (client_config(kafka).create().unwrap(), options, runtime)
}

/// Deletes all groups of the bridge with this id prefix. Gives their number.
fn delete_groups(kafka: &str, prefix: &str) -> usize {
    let probe: BaseConsumer = client_config(kafka).create().unwrap();
    let list = probe.fetch_group_list(None, LIMIT).unwrap();
    let groups: Vec<&str> = list
        .groups()
        .iter()
        .map(|group| group.name())
        .filter(|name| name.starts_with(prefix))
        .collect();
    let (admin, options, runtime) = admin(kafka);
    for result in runtime.block_on(admin.delete_groups(&groups, &options)).unwrap() {
        result.unwrap();
    }
    groups.len()
}

fn delete_topic(kafka: &str, topic: &str) {
    let (admin, options, runtime) = admin(kafka);
    for result in runtime.block_on(admin.delete_topics(&[topic], &options)).unwrap() {
        result.unwrap();
    }
    let probe: BaseConsumer = client_config(kafka).create().unwrap();
    wait::until(LIMIT, &format!("the end of {topic}"), || {
        let metadata = probe.fetch_metadata(Some(topic), LIMIT).ok()?;
        let error = metadata.topics().first()?.error().map(Code::from);
        (error == Some(Code::UnknownTopicOrPartition)).then_some(())
    });
}

#[test]
fn deleted_groups_make_nothing_come_again() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let prefix = unique("deleted-groups");
    let setup = Setup::new(kafka).topics(&topics).set("kafka.id_prefix", &prefix);
    let bridge = setup.start();
    let mut posted = post(&bridge, 200);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    // While the bridge is stopped: its checkpoint counts.
    assert!(delete_groups(kafka, &prefix) >= 2);
    let bridge = setup.start();
    posted.extend(post(&bridge, 50));
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);

    // While the bridge runs, under load.
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    for _ in 0..5 {
        load.wait_acknowledged(100, LIMIT);
        delete_groups(kafka, &prefix);
    }
    load.wait_acknowledged(100, LIMIT);
    posted.extend(load.stop());
    bridge.wait_drained(LIMIT);
    // A kill afterwards, with a position that was committed since.
    bridge.kill();
    let bridge = setup.start();
    posted.extend(post(&bridge, 50));
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);
    bridge.stop();
}

fn wait_blocked(bridge: &Bridge, stream: &str, reason: &str) {
    let labels = [("stream", stream), ("reason", reason)];
    bridge.wait_for(LIMIT, &format!("{stream} blocked by {reason}"), |scrape| {
        scrape.get("cmc_bridge_lane_blocked", &labels) == 1.0
    });
    assert_eq!((bridge.probe("/readyz"), bridge.probe("/livez")), (200, 200));
}

/// The topic of the deliveries is deleted while the bridge runs, and created again with fewer partitions and a lower limit.
fn a_deleted_topic(delivery: &str) {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.delivery", delivery)
        .set("kafka.transaction_timeout", "6s");
    let bridge = setup.start();
    let mut posted = post(&bridge, 100);
    bridge.wait_drained(LIMIT);
    delete_topic(kafka, &topics.deliveries);
    // Deliveries that were already made are deleted with the topic.
    posted.retain(|webhook| webhook.stream != "deliveries");

    posted.extend(post(&bridge, 100));
    wait_blocked(&bridge, "deliveries", "topic_missing");
    posted.extend(post(&bridge, 100));
    let large = message("large@test", &incompressible(30_000));
    assert_eq!(
        bridge
            .client()
            .post(webhook("deliveries", "pro", &[&large]))
            .status,
        200
    );
    for other in STREAMS.into_iter().filter(|other| *other != "deliveries") {
        bridge.wait_for(LIMIT, &format!("{other} to be delivered"), |scrape| {
            scrape.stream("cmc_bridge_backlog_events", other) == 0.0
                && scrape.sum("cmc_bridge_lane_blocked", &[("stream", other)]) == 0.0
        });
    }
    topics::create_named(kafka, &topics.deliveries, 1, &[("max.message.bytes", "20000")]);
    let scrape = bridge.wait_drained(LIMIT);
    assert_eq!(
        scrape.stream("cmc_bridge_diverted_events_total", "deliveries"),
        1.0
    );
    let again = oracle::check_at_least_once(kafka, &topics, &posted);
    if delivery == "exactly-once" {
        assert_eq!(again.len(), 0);
    }
    let mut letters = Reader::new(kafka, &topics.dead_letters);
    let letters = letters.read_to_end(LIMIT);
    assert_eq!(letters.len(), 1);
    assert_eq!(
        letters[0].header("cmc-dead-letter-reason"),
        Some("refused_too_large")
    );
    bridge.wait_for(LIMIT, "the lane to be free", |scrape| {
        scrape.sum("cmc_bridge_lane_blocked", &[]) == 0.0
    });
    bridge.stop();
}

#[test]
fn a_topic_deleted_while_the_bridge_runs_and_made_again_with_less() {
    a_deleted_topic("exactly-once");
}

#[test]
fn a_topic_deleted_without_transactions() {
    a_deleted_topic("at-least-once");
}

#[test]
fn a_topic_replaced_under_load_gets_all_that_is_acknowledged_from_then_on() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka)
        .topics(&topics)
        .set("kafka.transaction_timeout", "6s");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(200, LIMIT);
    delete_topic(kafka, &topics.deliveries);
    topics::create_named(kafka, &topics.deliveries, 1, &[]);
    let replaced = Instant::now();
    load.wait_acknowledged(200, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let mut times: HashMap<_, u32> = HashMap::new();
    for record in reader.read_to_end(LIMIT) {
        *times.entry(event_id(record)).or_default() += 1;
    }
    assert!(times.values().all(|n| *n == 1), "an event came twice");
    for webhook in posted.iter().filter(|webhook| webhook.stream == "deliveries") {
        assert!(matches!(webhook.outcome, Outcome::Acknowledged(_)));
        for index in (0..webhook.events).filter(|_| webhook.sent > replaced) {
            let id = (webhook.run, webhook.client, webhook.n, index);
            assert!(times.contains_key(&id), "{id:?} is missing");
        }
    }
    bridge.stop();
}
