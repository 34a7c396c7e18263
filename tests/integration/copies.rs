//! A spool directory and its copy: both in use at once, and an old copy started while Kafka is away.

use std::{collections::HashSet, fs, time::Duration};

use crate::{
    bridge::{NO_KAFKA, Setup, Topics},
    history::{copy_dir, post},
    kafka::{self, new_dir},
    load::{Load, Shape, Target},
    oracle::{self, event_id},
};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn two_bridges_on_copies_of_one_spool_lose_nothing_and_repeat_only_shared_events() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let first = Setup::new(kafka).topics(&topics);
    // Both share events, some delivered and some not.
    let bridge = first.start();
    let mut posted = post(&bridge, 100);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let bridge = first.clone().set("kafka.bootstrap_servers", NO_KAFKA).start();
    posted.extend(post(&bridge, 300));
    bridge.kill();
    let copy = new_dir("spool-copy");
    copy_dir(first.spool_dir(), &copy);
    let second = first.clone().spool(&copy);
    let shared: HashSet<u64> = posted.iter().map(|webhook| webhook.run).collect();

    let bridges = [first.start(), second.start()];
    let loads: Vec<Load> = bridges
        .iter()
        .map(|bridge| {
            let target = Target::default();
            target.set(bridge.ingest);
            Load::start(&target, Shape::default())
        })
        .collect();
    // They fence each other until one renames itself in Kafka; then both deliver.
    for (bridge, load) in bridges.iter().zip(&loads) {
        load.wait_acknowledged(300, LIMIT);
        let goal = bridge.scrape().sum("cmc_bridge_delivered_events_total", &[]) + 500.0;
        bridge.wait_for(LIMIT, "deliveries of both", |scrape| {
            scrape.sum("cmc_bridge_delivered_events_total", &[]) >= goal
        });
    }
    posted.extend(loads.into_iter().flat_map(Load::stop));
    for bridge in bridges {
        bridge.wait_drained(LIMIT);
        bridge.stop();
    }
    let manifest = |setup: &Setup| fs::read_to_string(setup.spool_dir().join("deliveries/manifest")).unwrap();
    assert_ne!(
        manifest(&first),
        manifest(&second),
        "neither of them has renamed its log in Kafka"
    );
    let again = oracle::check_at_least_once(kafka, &topics, &posted);
    println!("{} events arrived twice", again.len());
    for record in again {
        assert!(shared.contains(&event_id(&record).0), "{}", record.text());
    }
}

#[test]
fn an_older_copy_does_not_repeat_what_the_original_delivered_since() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let bridge = setup.start();
    let mut posted = post(&bridge, 100);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let away = setup.clone().set("kafka.bootstrap_servers", NO_KAFKA);
    let bridge = away.start();
    posted.extend(post(&bridge, 200));
    bridge.kill();
    let copy = new_dir("spool-copy");
    copy_dir(setup.spool_dir(), &copy);
    let bridge = setup.start();
    posted.extend(post(&bridge, 100));
    bridge.wait_drained(LIMIT);
    bridge.stop();

    // In two lives, the copy takes more webhooks than the original has since, so that its sequences pass the position in Kafka.
    let (setup, away) = (setup.spool(&copy), away.spool(&copy));
    for _ in 0..2 {
        let bridge = away.start();
        posted.extend(post(&bridge, 100));
        bridge.kill();
    }
    let bridge = setup.start();
    posted.extend(post(&bridge, 50));
    bridge.wait_drained(LIMIT);
    bridge.stop();
    // Every event arrives once, including those that only the original had delivered.
    oracle::check(kafka, &topics, &posted);
}
