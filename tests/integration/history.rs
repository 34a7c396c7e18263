//! A bridge starts on an old copy of a spool directory. The position in Kafka belongs to another history, so the bridge must
//! not skip new events as delivered.

use std::{fs, path::Path, time::Duration};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics},
    kafka::{self, new_dir},
    load::{Load, Outcome, Posted, Shape, Target},
    oracle,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Posts about this many webhooks, all acknowledged.
pub fn post(bridge: &Bridge, webhooks: u64) -> Vec<Posted> {
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    load.wait_acknowledged(webhooks, LIMIT);
    let posted = load.stop();
    assert!(
        posted
            .iter()
            .all(|webhook| matches!(webhook.outcome, Outcome::Acknowledged(_)))
    );
    posted
}

/// Copies a directory and its contents.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The original delivers `original` webhooks after the copy is made; then the copy accepts `copied` new ones.
fn an_old_copy_comes_back(original: u64, copied: u64) {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics);
    let bridge = setup.start();
    let mut posted = post(&bridge, 200);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let copy = new_dir("spool-copy");
    copy_dir(setup.spool_dir(), &copy);

    let bridge = setup.start();
    posted.extend(post(&bridge, original));
    bridge.wait_drained(LIMIT);
    bridge.stop();

    // Without Kafka the copy can't know yet that its history is old.
    let setup = setup.spool(&copy);
    let bridge = setup.clone().set("kafka.bootstrap_servers", NO_KAFKA).start();
    posted.extend(post(&bridge, copied));
    bridge.kill();
    let bridge = setup.start();
    posted.extend(post(&bridge, 50));
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);

    // The next start continues with the copy's new history.
    bridge.stop();
    let bridge = setup.start();
    posted.extend(post(&bridge, 50));
    bridge.wait_drained(LIMIT);
    oracle::check(kafka, &topics, &posted);
}

#[test]
fn an_old_copy_that_grows_past_the_delivered_position() {
    an_old_copy_comes_back(100, 300);
}

#[test]
fn an_old_copy_that_stays_behind_the_delivered_position() {
    an_old_copy_comes_back(300, 20);
}
