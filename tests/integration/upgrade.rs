//! Spools that an earlier version left, and such as a later version will leave.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    bridge::{NO_KAFKA, Setup, Topics, run},
    cmc::{delivery, message},
    kafka::{new_dir, shared},
    spool_tools::with_layout,
    topics::{Reader, Record},
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// A copy of the spool that a build of version 0.1.0 left when it was killed for the second time: format 1, nothing delivered.
fn left_by_0_1_0() -> PathBuf {
    let spool = new_dir("upgrade");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spools/0.1.0");
    for file in files(&fixture).keys() {
        let copy = spool.join(file);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(fixture.join(file), copy).unwrap();
    }
    spool
}

/// All files of a spool with their contents, without the lock.
fn files(spool: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let streams = fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().path());
    let of_stream = |stream: PathBuf| fs::read_dir(stream).unwrap().map(|entry| entry.unwrap().path());
    let files = streams.filter(|path| path.is_dir()).flat_map(of_stream);
    files
        .map(|file| {
            (
                file.strip_prefix(spool).unwrap().to_owned(),
                fs::read(&file).unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_spool_of_the_previous_release_is_delivered_once() {
    let kafka = shared();
    let topics = Topics::create(kafka);
    let setup = Setup::new(kafka).topics(&topics).spool(&left_by_0_1_0());
    assert_eq!(run(&setup, &["spool", "verify"]).code, 0);
    let bridge = setup.start();
    assert_eq!(bridge.client().post(delivery("new@test")).status, 200);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    // What is delivered is not delivered again.
    let bridge = setup.start();
    bridge.wait_drained(LIMIT);
    bridge.stop();

    let read = |topic: &str| Reader::new(kafka, topic).read_to_end(LIMIT).to_vec();
    for (topic, ids) in [
        (
            &topics.deliveries,
            &["up-1", "up-2", "up-3", "up-6", "up-7", "new"][..],
        ),
        (&topics.bounces, &["up-4", "up-5", "up-8"]),
    ] {
        let records = read(topic);
        let mut expected: Vec<_> = ids.iter().map(|id| format!("<{id}@test>")).collect();
        expected.sort_unstable();
        assert_eq!(keys(&records), expected);
        for id in ids {
            let value = message(&format!("{id}@test"), "s");
            assert!(
                records
                    .iter()
                    .any(|record| contains(&record.value, value.trim_start_matches('{'))),
                "{id}"
            );
        }
    }
    assert_eq!(read(&topics.dead_letters).len(), 2);
}

/// The sorted keys of records.
fn keys(records: &[Record]) -> Vec<String> {
    let mut keys: Vec<_> = records
        .iter()
        .map(|record| record.key_text().unwrap().to_owned())
        .collect();
    keys.sort_unstable();
    keys
}

fn contains(value: &[u8], text: &str) -> bool {
    value.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_spool_of_a_later_format_is_refused_and_not_touched() {
    let spool = left_by_0_1_0();
    for stream in ["deliveries", "bounces", "dead_letters"] {
        for name in ["manifest", "manifest.copy"] {
            let file = spool.join(stream).join(name);
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains("\"format\":1,"));
            fs::write(&file, text.replace("\"format\":1,", "\"format\":2,")).unwrap();
        }
    }
    let before = files(&spool);
    let ended = run(&Setup::new(NO_KAFKA).spool(&spool), &["serve"]);
    assert_eq!(ended.code, 74, "{}", ended.stderr);
    let cause = "its format is 2, this version knows 1; use the version of cmc-bridge that wrote it";
    assert!(ended.stderr.contains(cause), "{}", ended.stderr);
    assert!(files(&spool) == before, "files were changed");
}

/// A later version may write batches in a new layout without a new format. This version keeps them for it.
#[test]
fn a_batch_of_a_later_layout_waits_for_the_later_release() {
    let kafka = shared();
    let topics = Topics::create(kafka);
    let spool = left_by_0_1_0();
    let segment = spool.join("deliveries/00000000000000000001.segment");
    let known = fs::read(&segment).unwrap();
    let mut later = known.clone();
    with_layout(&mut later, 1, 9);
    fs::write(&segment, &later).unwrap();

    let setup = Setup::new(kafka).topics(&topics).spool(&spool);
    let bridge = setup.start();
    let asked = ["why", "--url", &format!("http://{}", bridge.admin)];
    wait::until(LIMIT, "the lane of deliveries is blocked", || {
        let answer = run(&setup, &asked).stdout;
        let cure = "It was probably written by a newer version of cmc-bridge: start that one";
        (answer.contains("can't be decoded") && answer.contains(cure)).then_some(())
    });
    assert_eq!(bridge.client().post(delivery("new@test")).status, 200);
    bridge.stop();
    let mut reader = Reader::new(kafka, &topics.deliveries);
    assert_eq!(keys(reader.read_to_end(LIMIT)), ["<up-1@test>"]);

    // The later release, which knows the layout.
    assert!(fs::read(&segment).unwrap() == later, "the segment was changed");
    fs::write(&segment, &known).unwrap();
    let bridge = setup.start();
    bridge.wait_drained(LIMIT);
    bridge.stop();
    let delivered = keys(reader.read_to_end(LIMIT));
    assert_eq!(
        delivered,
        ["new", "up-1", "up-2", "up-3", "up-6", "up-7"].map(|id| format!("<{id}@test>"))
    );
}
