//! Logs on a real file system, damaged, looked at, and repaired.

use std::ops::Range;

use super::*;
use crate::{
    accounts::Accounts,
    spool::{
        Backlog, LogOptions, StoredBatch,
        harness::{Life, batch, expect_batches, metrics, options},
        log::LogWriter,
        segment,
    },
};

#[path = "failing_disk_tests.rs"]
mod failing_disk;

const SEGMENT: u64 = 8 << 10;
/// One of these to a segment.
const BIG: usize = 2500;

struct Spool {
    root: tempfile::TempDir,
    segment_bytes: u64,
}

impl Spool {
    /// Batches 0 to 5, each in a segment of its own, and the first one delivered.
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

    fn open(&self) -> Life {
        let accounts = Arc::new(Accounts::default());
        let (writer, backlog, damage) = LogWriter::open(
            Arc::new(FileSystem),
            &self.options(),
            Arc::clone(&accounts),
            metrics(),
        )
        .unwrap();
        Life {
            writer,
            backlog,
            damage,
            accounts,
        }
    }

    fn segment(&self, id: u64) -> PathBuf {
        self.dir().join(segment::file_name(super::super::SegmentId(id)))
    }

    fn flip(&self, id: u64, at: usize) {
        let mut bytes = fs::read(self.segment(id)).unwrap();
        bytes[at] ^= 1;
        fs::write(self.segment(id), bytes).unwrap();
    }

    fn survey(&self) -> (Vec<StoredBatch>, Survey) {
        self.survey_on(Arc::new(FileSystem))
    }

    fn survey_on(&self, disk: Arc<dyn Storage>) -> (Vec<StoredBatch>, Survey) {
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

    /// The repaired log is whole, goes on where the old one ended, and its books balance.
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
        let books = life.accounts.snapshot();
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
fn a_log_that_is_whole_is_left_alone() {
    let spool = Spool::new();
    let before = spool.files();
    let (batches, survey) = spool.survey();
    expect_batches(&batches, 1, 1..6, BIG);
    assert!(survey.damage().is_empty());
    assert_eq!((survey.position().seq, survey.end().seq), (Seq(1), Seq(6)));
    assert!(spool.repair().is_none());
    assert!(spool.files() == before, "nothing is written");
    assert!(
        Survey::open(&spool.root.path().join("bounces"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_torn_tail_is_no_damage() {
    let spool = Spool::new();
    spool.open().append([6], BIG);
    // Without a seal behind it: the process died.
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
fn one_flipped_byte_costs_one_batch_and_is_named() {
    let spool = Spool::new();
    // Batch 3 stands in segment 4.
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
    // The damaged log is kept as it was.
    for (path, bytes) in damaged {
        let name = path.file_name().unwrap();
        assert!(fs::read(repaired.aside.join(name)).unwrap() == bytes, "{name:?}");
    }
    spool.check_repaired(&[1, 2, 4, 5], 6);
    assert!(spool.repair().is_none(), "once is enough");
}

#[test]
fn a_position_inside_the_loss_goes_on_behind_it() {
    for seq in 1..6 {
        let spool = Spool::new();
        spool.flip(3, 5000);
        spool.flip(4, 5000);
        spool.repair().unwrap();
        let mut life = spool.open();
        // As Kafka may tell at the start.
        life.backlog.seek(Seq(seq)).unwrap();
        let wanted: Vec<u64> = (seq..6).filter(|n| !(2..4).contains(n)).collect();
        let found: Vec<u64> = life.read().0.iter().map(|b| b.seq.0).collect();
        assert_eq!(found, wanted);
    }
}

#[test]
fn headers_segments_checkpoint_and_tail() {
    type Harm = fn(&Spool);
    let cases: [(&str, Harm, &[u64], u64); 10] = [
        ("a header", |s| s.flip(4, 100), &[1, 2, 3, 4, 5], 6),
        (
            "a header and what is behind it",
            |s| (s.flip(4, 100), s.flip(4, 5000)).1,
            &[1, 2, 4, 5],
            6,
        ),
        ("the first header", |s| s.flip(2, 100), &[1, 2, 3, 4, 5], 6),
        (
            "the last header and the last batch, of which the seal tells",
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
            "the first one",
            |s| fs::remove_file(s.segment(2)).unwrap(),
            &[2, 3, 4, 5],
            6,
        ),
        (
            "the checkpoint",
            |s| fs::remove_file(s.dir().join("checkpoint")).unwrap(),
            // Delivery goes on from what is there; what Kafka has of it, Kafka's position tells.
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

#[test]
fn the_last_segment_costs_what_it_may_have_held() {
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

/// Wherever a byte is wrong, what does not lie there is kept.
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
            // In the zeros, or before the first batch.
            spool.check_repaired(&[1, 2, 3, 4, 5], 6);
            continue;
        };
        let in_header = at < segment::HEADER as u64;
        let kept: Vec<u64> = (1..6).filter(|n| in_header || n + 1 != id).collect();
        assert_eq!(repaired.batches, kept.len() as u64);
        spool.check_repaired(&kept, 6);
    }
}
