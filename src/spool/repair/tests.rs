//! Damaged logs on a real file system, surveyed and repaired.

use std::ops::Range;

use super::*;
use crate::{
    books::Books,
    spool::{
        Backlog, LogOptions, StoredBatch,
        log::LogWriter,
        segment,
        storage::ReadStorage,
        tests::harness::{LogLife, batch, expect_batches, metrics, open_appender, options},
    },
};

mod failing_disk;

const SEGMENT: u64 = 8 << 10;
/// Only one batch of this length fits in a segment.
const BIG: usize = 2500;

struct Spool {
    root: tempfile::TempDir,
    segment_bytes: u64,
}

impl Spool {
    /// Batches 0 to 5, each in its own segment, the first one delivered.
    fn new() -> Spool {
        Spool::of(6, SEGMENT)
    }

    fn of(batches: u64, segment_bytes: u64) -> Spool {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool { root, segment_bytes };
        let mut life = spool.open();
        life.append(0..batches, BIG);
        life.rest();
        life.deliver_to(1);
        spool
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("deliveries")
    }

    fn options(&self) -> LogOptions {
        LogOptions {
            dir: self.dir(),
            ..options(self.segment_bytes)
        }
    }

    fn open(&self) -> LogLife {
        let books = Arc::new(Books::default());
        let (writer, backlog, damage) = LogWriter::open(
            Arc::new(FileSystem),
            &self.options(),
            open_appender(&self.options()).queue,
            Arc::clone(&books),
            metrics(),
        )
        .unwrap();
        LogLife {
            writer,
            backlog,
            damage,
            books,
        }
    }

    fn segment(&self, id: u64) -> PathBuf {
        self.dir().join(segment::file_name(super::super::SegmentId(id)))
    }

    fn flip(&self, id: u64, at: usize) {
        self.flip_in(&segment::file_name(super::super::SegmentId(id)), at);
    }

    fn flip_in(&self, name: &str, at: usize) {
        let path = self.dir().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    fn survey(&self) -> (Vec<StoredBatch>, Survey) {
        self.survey_on(Arc::new(FileSystem))
    }

    fn survey_on(&self, disk: Arc<dyn ReadStorage>) -> (Vec<StoredBatch>, Survey) {
        let mut survey = Survey::open_on(disk, &self.dir()).unwrap().unwrap();
        let mut batches = Vec::new();
        while let Some(batch) = survey.next_batch().unwrap() {
            batches.push(batch);
        }
        (batches, survey)
    }

    fn repair(&self) -> Option<Repaired> {
        repair(&self.dir(), "damaged-1", SEGMENT, Durability::Fsync).unwrap()
    }

    /// Every file with its bytes.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    }

    /// Checks that the repaired log is whole, continues where the old one ended, and that its books balance.
    fn check_repaired(&self, kept: &[u64], next: u64) {
        let numbers: Vec<u64> = kept.to_vec();
        let mut life = self.open();
        assert_eq!(life.damage, []);
        assert!(life.backlog.blocking_damage().is_none());
        let (batches, damage) = life.read();
        assert_eq!(damage, None);
        assert_eq!(batches.iter().map(|b| b.seq.0).collect::<Vec<_>>(), numbers);
        for (found, number) in batches.iter().zip(&numbers) {
            expect_batches(std::slice::from_ref(found), *number, [*number], BIG);
        }
        let events: u64 = batches.iter().map(|b| u64::from(b.events)).sum();
        let books = life.books.snapshot();
        assert!(books.balanced(), "{books:?}");
        assert_eq!(books.backlog(), events);
        assert_eq!(life.backlog.end().seq, Seq(next));
        life.append([next], BIG);
        deliver_all(&mut life.backlog);
        drop(life);
        let mut life = self.open();
        assert_eq!(life.damage, []);
        life.expect(next + 1, [], BIG);
    }
}

fn deliver_all(backlog: &mut Backlog) {
    backlog.rewind();
    while let Some(batch) = backlog.take().unwrap() {
        backlog.advance(batch.end());
    }
    backlog.store_checkpoint().unwrap();
}

fn lost(range: Range<u64>, events: Option<u64>) -> Lost {
    Lost {
        from: Seq(range.start),
        to: Seq(range.end),
        events,
    }
}

fn events(number: u64) -> u64 {
    u64::from(batch(number, 0).0.events())
}

#[test]
fn an_undamaged_log_is_not_changed() {
    let spool = Spool::new();
    let before = spool.files();
    let (batches, survey) = spool.survey();
    expect_batches(&batches, 1, 1..6, BIG);
    assert!(survey.damage().is_empty());
    assert_eq!((survey.position().seq, survey.end().seq), (Seq(1), Seq(6)));
    assert!(spool.repair().is_none());
    assert!(spool.files() == before, "a file was changed");
    assert!(
        Survey::open(&spool.root.path().join("bounces"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_torn_tail_is_not_damage() {
    let spool = Spool::new();
    spool.open().append([6], BIG);
    // No seal follows: the process died.
    let last = spool
        .files()
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "segment"))
        .count();
    spool.flip(last as u64 + 1, 5000);
    assert_eq!(spool.survey().0.len(), 5);
    assert!(spool.repair().is_none());
}

#[test]
fn one_flipped_byte_costs_one_batch_which_is_reported() {
    let spool = Spool::new();
    // Batch 3 is in segment 4.
    spool.flip(4, 5000);
    let (batches, survey) = spool.survey();
    assert_eq!(batches.len(), 4);
    let [damage] = survey.damage() else {
        panic!("{:?}", survey.damage())
    };
    assert_eq!(
        (damage.segment.0, damage.from, damage.to),
        (4, Seq(3), Some(Seq(4)))
    );
    let damaged = spool.files();
    let repaired = spool.repair().unwrap();
    assert_eq!(repaired.lost, [lost(3..4, Some(events(3)))]);
    assert_eq!(repaired.batches, 4);
    // The damaged log is kept unchanged.
    for (path, bytes) in damaged {
        let name = path.file_name().unwrap();
        assert!(fs::read(repaired.aside.join(name)).unwrap() == bytes, "{name:?}");
    }
    spool.check_repaired(&[1, 2, 4, 5], 6);
    assert!(spool.repair().is_none(), "the repaired log needs another repair");
}

#[test]
fn delivery_from_a_position_inside_the_loss_continues_after_it() {
    for seq in 1..6 {
        let spool = Spool::new();
        spool.flip(3, 5000);
        spool.flip(4, 5000);
        spool.repair().unwrap();
        let mut life = spool.open();
        // The position that Kafka may give at the start.
        life.backlog.seek(Seq(seq)).unwrap();
        let wanted: Vec<u64> = (seq..6).filter(|n| !(2..4).contains(n)).collect();
        let found: Vec<u64> = life.read().0.iter().map(|b| b.seq.0).collect();
        assert_eq!(found, wanted);
    }
}

/// Whatever breaks after a repair: what the repair gave up is not lost again.
#[test]
fn a_loss_is_reported_once() {
    // Batches 1 and 3 are lost, so that a segment without batches follows the beginning, and one with a batch the other loss.
    let repaired = || {
        let spool = Spool::new();
        spool.flip(2, 5000);
        spool.flip(4, 5000);
        spool.repair().unwrap();
        spool
    };
    for delivered in [1, 2, 3, 4] {
        let spool = repaired();
        spool.open().deliver_to(delivered);
        let kept: Vec<u64> = [2, 4, 5].into_iter().filter(|n| *n >= delivered).collect();
        for (path, bytes) in spool.files() {
            if path.extension().is_none_or(|extension| extension != "segment") {
                continue;
            }
            for at in (0..bytes.len()).step_by(53) {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1;
                fs::write(&path, wrong).unwrap();
                let (batches, survey) = spool.survey();
                let found: Vec<u64> = batches.iter().map(|batch| batch.seq.0).collect();
                let costs_nothing = survey.damage().iter().all(Damage::costs_nothing);
                assert_eq!(
                    found == kept,
                    costs_nothing,
                    "byte {at} of {path:?}: {found:?}, {:?}",
                    survey.damage()
                );
            }
            fs::write(&path, bytes).unwrap();
        }
    }

    // Both copies of the header of the segment without batches.
    let spool = repaired();
    let empty = spool
        .files()
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|e| e == "segment"));
    let (path, mut bytes) = empty.unwrap();
    bytes.fill(0xff);
    fs::write(path, bytes).unwrap();
    let again = spool.repair().unwrap();
    assert_eq!((again.lost, again.batches), (vec![], 3));
}

#[test]
fn headers_segments_checkpoint_and_tail() {
    type Harm = fn(&Spool);
    let cases: [(&str, Harm, &[u64], u64); 14] = [
        ("a header", |s| s.flip(4, 100), &[1, 2, 3, 4, 5], 6),
        (
            "a header and its copy",
            |s| (s.flip(4, 100), s.flip(4, segment::HEADER + 60)).1,
            &[1, 2, 3, 4, 5],
            6,
        ),
        (
            "a copy of the position",
            |s| s.flip_in("checkpoint", 1),
            &[1, 2, 3, 4, 5],
            6,
        ),
        (
            "the newest position",
            |s| (s.flip_in("checkpoint", 1), s.flip_in("checkpoint", 4096 + 1)).1,
            // The previous position was 0. Kafka's own position says what Kafka has after that.
            &[0, 1, 2, 3, 4, 5],
            6,
        ),
        ("the manifest", |s| s.flip_in("manifest", 20), &[1, 2, 3, 4, 5], 6),
        (
            "a header and the batch after it",
            |s| (s.flip(4, 100), s.flip(4, 5000)).1,
            &[1, 2, 4, 5],
            6,
        ),
        ("the first header", |s| s.flip(2, 100), &[1, 2, 3, 4, 5], 6),
        (
            "the last header and the last batch, before a seal",
            |s| (s.flip(6, 100), s.flip(6, 5000)).1,
            &[1, 2, 3, 4],
            6,
        ),
        (
            "the header of an empty segment",
            |s| {
                drop(s.open());
                s.open().append([6], BIG);
                s.flip(7, 100);
            },
            &[1, 2, 3, 4, 5, 6],
            7,
        ),
        (
            "a segment",
            |s| fs::remove_file(s.segment(4)).unwrap(),
            &[1, 2, 4, 5],
            6,
        ),
        (
            "the first segment",
            |s| fs::remove_file(s.segment(2)).unwrap(),
            &[2, 3, 4, 5],
            6,
        ),
        (
            "the checkpoint",
            |s| fs::remove_file(s.dir().join("checkpoint")).unwrap(),
            // Delivery continues with what is there; Kafka's own position says what Kafka already has.
            &[0, 1, 2, 3, 4, 5],
            6,
        ),
        (
            "a marked log",
            |s| fs::write(s.dir().join("damage"), "once").unwrap(),
            &[1, 2, 3, 4, 5],
            6,
        ),
        (
            "the last batches",
            |s| {
                deliver_all(&mut s.open().backlog);
                (1..9).for_each(|id| drop(fs::remove_file(s.segment(id))));
            },
            &[],
            6,
        ),
    ];
    for (what, harm, kept, next) in cases {
        println!("{what}");
        let spool = Spool::new();
        harm(&spool);
        fs::create_dir(spool.root.path().join("deliveries.repairing")).unwrap();
        let repaired = spool.repair().unwrap();
        assert_eq!(repaired.batches, kept.len() as u64);
        spool.check_repaired(kept, next);
        assert!(repaired.aside.is_dir());
        assert!(!spool.root.path().join("deliveries.repairing").exists());
    }
}

/// After a kill, the checkpoint is older than Kafka's position. Whichever single place is damaged then, the repaired log keeps
/// the history: without it, Kafka's position would not count, and batches would be delivered twice.
#[test]
fn a_repaired_log_keeps_its_history() {
    let harms: [fn(&Spool); 5] = [
        |s| s.flip(7, 100),
        |s| s.flip(7, 4000),
        |s| s.flip(7, segment::HEADER + 20),
        |s| s.flip_in("checkpoint", 8),
        |s| s.flip_in("manifest", 20),
    ];
    for harm in harms {
        let spool = Spool::new();
        let mut life = spool.open();
        // Batch 6 is the first one of this life and is in segment 7.
        life.append(6..9, BIG);
        life.rest();
        let history = life.backlog.history().clone();
        assert_eq!(history.entries().len(), 2);
        drop(life);
        harm(&spool);
        // If only the copy of a header is damaged, there is nothing to repair.
        if let Some(repaired) = spool.repair() {
            assert_eq!((repaired.lost, repaired.unknown.len()), (vec![], 0));
        }
        let life = spool.open();
        assert!(life.backlog.history().entries().starts_with(history.entries()));
        assert_eq!(life.backlog.end().seq, Seq(9));
    }
}

/// A spool that an earlier version left after two lives of three webhooks each, with only one copy of headers, positions and
/// manifest.
#[test]
fn a_spool_of_an_earlier_version_still_works() {
    let root = tempfile::tempdir().unwrap();
    let spool = Spool {
        root,
        segment_bytes: SEGMENT,
    };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/spools/single-copies");
    fs::create_dir(spool.dir()).unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, spool.dir().join(path.file_name().unwrap())).unwrap();
    }
    assert!(spool.survey().1.damage().is_empty());
    let mut life = spool.open();
    assert_eq!(life.damage, []);
    assert_eq!(life.backlog.history().entries().len(), 3);
    let (batches, damage) = life.read();
    assert_eq!((batches.len(), damage), (6, None));
    assert!(batches[5].payload.windows(8).any(|bytes| bytes == b"2.3@test"));
    life.append([6], BIG);
    life.deliver_to(4);
    drop(life);
    // From now on there are two copies of each.
    spool.flip_in("manifest", 20);
    spool.flip_in("checkpoint", 16);
    spool.flip(3, 100);
    let mut life = spool.open();
    assert!(
        life.damage.iter().all(super::Damage::is_harmless),
        "{:?}",
        life.damage
    );
    assert_eq!(life.damage.len(), 3);
    assert_eq!(life.read().0.len(), 3);
    drop(life);
    // Damage without a copy is damage as before, repaired as far as the records allow.
    spool.flip(2, 100);
    let repaired = spool.repair().unwrap();
    assert_eq!((repaired.lost, repaired.batches), (vec![], 3));
}

#[test]
fn repairs_leave_directories_with_distinct_names() {
    let spool = Spool::new();
    let left = spool.root.path().join("deliveries.repairing");
    let mut asides = Vec::new();
    for repair in 0..4 {
        // Each repair was interrupted once, all within the same second.
        fs::create_dir(&left).unwrap();
        fs::write(left.join("evidence"), [repair]).unwrap();
        fs::write(spool.dir().join("damage"), "once").unwrap();
        asides.push(spool.repair().unwrap().aside);
    }
    let mut names: Vec<_> = fs::read_dir(spool.root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let wanted = ["", ".damaged-1", ".damaged-1-2", ".damaged-1-3", ".damaged-1-4"];
    let mut wanted: Vec<String> = wanted
        .iter()
        .map(|suffix| format!("deliveries{suffix}"))
        .collect();
    wanted.extend(
        ["-left", "-left-2", "-left-3", "-left-4"].map(|suffix| format!("deliveries.damaged-1{suffix}")),
    );
    wanted.sort();
    assert_eq!(names, wanted);
    assert!(asides.iter().all(|aside| aside.join("damage").exists()));
    for (repair, suffix) in (0..).zip(["-left", "-left-2", "-left-3", "-left-4"]) {
        let evidence = spool
            .root
            .path()
            .join(format!("deliveries.damaged-1{suffix}/evidence"));
        assert_eq!(fs::read(evidence).unwrap(), [repair]);
    }
}

#[test]
fn the_last_segment_costs_all_batches_it_may_have_held() {
    let spool = Spool::new();
    fs::write(spool.segment(6), vec![0; SEGMENT as usize]).unwrap();
    let repaired = spool.repair().unwrap();
    assert_eq!(repaired.batches, 4);
    let [lost] = &repaired.lost[..] else {
        panic!("{:?}", repaired.lost)
    };
    assert_eq!((lost.from, lost.events), (Seq(5), None));
    assert!(lost.to > Seq(5));
    spool.check_repaired(&[1, 2, 3, 4], lost.to.0);
}

/// How many events an unreadable end of the log held is unknown, also when the bridge has gone on after it.
#[test]
fn batches_after_an_unreadable_end_do_not_tell_how_many_events_it_held() {
    let spool = Spool::new();
    fs::write(spool.segment(6), vec![0; SEGMENT as usize]).unwrap();
    spool.open().append([6, 7], BIG);
    let repaired = spool.repair().unwrap();
    assert_eq!(repaired.batches, 6);
    let [lost] = &repaired.lost[..] else {
        panic!("{:?}", repaired.lost)
    };
    assert_eq!((lost.from, lost.events), (Seq(5), None));
}

/// Whichever byte is wrong, every batch that does not contain it is kept.
#[test]
fn any_flipped_byte() {
    let mut random: u64 = 1;
    for _ in 0..60 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let spool = Spool::new();
        let id = 2 + (random >> 33) % 5;
        let len = fs::metadata(spool.segment(id)).unwrap().len();
        let at = (random >> 40) % len;
        spool.flip(id, at as usize);
        let Some(repaired) = spool.repair() else {
            // The byte is in the zeros or before the first batch.
            spool.check_repaired(&[1, 2, 3, 4, 5], 6);
            continue;
        };
        let in_header = at < segment::first_batch_at(1) as u64;
        let kept: Vec<u64> = (1..6).filter(|n| in_header || n + 1 != id).collect();
        assert_eq!(repaired.batches, kept.len() as u64);
        spool.check_repaired(&kept, 6);
    }
}
