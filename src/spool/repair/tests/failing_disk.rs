//! Logs on a disk with unreadable sectors.

use std::{collections::BTreeSet, io};

use super::*;
use crate::spool::{
    Manifest,
    record::{self, Checksum, RecordKind},
    recovery::inspect,
    scan::valid_records,
    storage::ReadFile,
};

const SECTOR: u64 = 4096;
/// Eleven batches per segment, three segments.
const LONG: u64 = 32 << 10;
const BATCHES: u64 = 30;

/// A disk on which reads of these bytes fail.
#[derive(Clone, Default)]
struct Failing {
    bad: Vec<(PathBuf, Range<u64>)>,
    errno: i32,
}

struct FailingFile {
    file: Box<dyn ReadFile>,
    bad: Vec<Range<u64>>,
    errno: i32,
}

impl Failing {
    fn at(spool: &Spool, bad: impl IntoIterator<Item = (u64, Range<u64>)>) -> Failing {
        let bad = bad
            .into_iter()
            .map(|(id, range)| (spool.segment(id), range))
            .collect();
        Failing { bad, errno: 5 }
    }
}

impl ReadStorage for Failing {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        FileSystem.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let bad = self.bad.iter().filter(|(name, _)| name == path);
        Ok(Box::new(FailingFile {
            file: FileSystem.open(path)?,
            bad: bad.map(|(_, range)| range.clone()).collect(),
            errno: self.errno,
        }))
    }
}

impl ReadFile for FailingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = (offset + buf.len() as u64).min(self.size()?);
        match self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            true => Err(io::Error::from_raw_os_error(self.errno)),
            false => self.file.read_at(buf, offset),
        }
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

/// The batches of a segment and their places.
fn places(spool: &Spool, id: u64) -> Vec<(u64, Range<u64>)> {
    let bytes = fs::read(spool.segment(id)).unwrap();
    let manifest = Manifest::read(&FileSystem, &spool.dir()).unwrap().unwrap();
    let checksum = Checksum::new(manifest.log_id.as_bytes(), super::super::super::SegmentId(id));
    valid_records(&bytes, &checksum, segment::HEADER)
        .filter(|found| found.header.kind == RecordKind::Batch)
        .map(|found| {
            let end = found.at + record::HEADER + found.header.payload_len;
            (found.header.seq.0, found.at as u64..end as u64)
        })
        .collect()
}

/// The undelivered batches within these bytes.
fn hit(spool: &Spool, id: u64, bad: &Range<u64>) -> BTreeSet<u64> {
    let places = places(spool, id).into_iter();
    places
        .filter(|(seq, at)| *seq > 0 && at.start < bad.end && bad.start < at.end)
        .map(|(seq, _)| seq)
        .collect()
}

/// With these bytes unreadable, everything else is found, and the lost batches are reported, also by a repair.
fn check(spool: &Spool, bad: &[(u64, Range<u64>)], sealed: bool) {
    println!("{bad:?}, sealed: {sealed}");
    let disk: Arc<dyn ReadStorage> = Arc::new(Failing::at(spool, bad.iter().cloned()));
    let missing: BTreeSet<u64> = bad
        .iter()
        .flat_map(|(id, range)| hit(spool, *id, range))
        .collect();
    let kept: Vec<u64> = (1..BATCHES).filter(|seq| !missing.contains(seq)).collect();
    let (batches, survey) = spool.survey_on(Arc::clone(&disk));
    assert_eq!(batches.iter().map(|b| b.seq.0).collect::<Vec<_>>(), kept);
    let mut named = BTreeSet::new();
    for damage in survey.damage() {
        assert!(damage.is_refused(), "{damage}");
        let (from, to) = damage.bytes.unwrap_or((0, u64::MAX));
        assert!(
            bad.iter()
                .any(|(id, bad)| *id == damage.segment.0 && from < bad.end && bad.start < to),
            "{damage}"
        );
        named.extend(damage.from.0..damage.to.map_or(BATCHES, |to| to.0));
    }
    assert_eq!(named, missing);
    if let [damage] = survey.damage()
        && missing.is_empty()
    {
        assert_eq!(damage.bytes, Some((bad[0].1.start, bad[0].1.end)));
    }
    // The log may have held more batches than these; new ones must not reuse their sequences.
    let hidden = survey.damage().iter().any(|damage| damage.to.is_none());
    assert!(!hidden || missing.contains(&(BATCHES - 1)));
    let survey = || Survey::open_on(Arc::clone(&disk), &spool.dir());
    let repaired = repair_from(&survey, &spool.dir(), "damaged-1", SEGMENT, Durability::Fsync).unwrap();
    let Some(repaired) = repaired else {
        assert_eq!(missing, BTreeSet::new());
        spool.check_repaired(&kept, BATCHES);
        return;
    };
    let lost: BTreeSet<u64> = repaired
        .lost
        .iter()
        .flat_map(|lost| lost.from.0..lost.to.0.min(BATCHES))
        .collect();
    assert_eq!(lost, missing);
    assert_eq!(repaired.batches, kept.len() as u64);
    let next = repaired
        .lost
        .last()
        .map_or(BATCHES, |lost| lost.to.0.max(BATCHES));
    assert_eq!(next > BATCHES, hidden, "{:?}", repaired.lost);
    spool.check_repaired(&kept, next);
}

#[test]
fn each_sector_of_each_segment() {
    for (id, sealed) in [(1, true), (2, true), (3, true), (3, false)] {
        let sectors = LONG / SECTOR;
        for sector in 0..sectors {
            let spool = Spool::of(BATCHES, LONG);
            assert_eq!(places(&spool, 3).last().unwrap().0, BATCHES - 1);
            if !sealed {
                unseal(&spool);
            }
            check(&spool, &[(id, sector * SECTOR..(sector + 1) * SECTOR)], sealed);
        }
    }
}

/// Makes the log look as if the process died before it wrote the last seal.
fn unseal(spool: &Spool) {
    let last = places(spool, 3).pop().unwrap().1.end;
    let mut bytes = fs::read(spool.segment(3)).unwrap();
    bytes[last as usize..].fill(0);
    fs::write(spool.segment(3), bytes).unwrap();
}

#[test]
fn several_places_and_whole_files() {
    let cases: [&[(u64, Range<u64>)]; 8] = [
        // Part of a sector fails as a whole: a record's header, its payload, and both in the next segment.
        &[
            (1, 5000..5001),
            (1, 16384..16400),
            (1, 28672..32768),
            (2, 4096..4097),
        ],
        &[(2, 0..LONG)],
        &[(3, 4096..LONG)],
        &[
            (1, 24576..LONG),
            (2, 4096..8192),
            (2, 20480..LONG),
            (3, 4096..12288),
        ],
        // Headers, and the bytes before and after them.
        &[(1, 0..8192), (2, 0..1), (3, 0..1)],
        &[(1, 8192..12288), (2, 0..LONG)],
        &[(1, 8192..12288), (1, 28672..LONG), (2, 0..12288), (3, 0..8192)],
        &[(1, 8192..12288), (2, 0..LONG), (3, 0..8192)],
    ];
    for bad in cases {
        let spool = Spool::of(BATCHES, LONG);
        let whole = |at: &Range<u64>| at.start / SECTOR * SECTOR..at.end.next_multiple_of(SECTOR);
        let bad: Vec<_> = bad.iter().map(|(id, at)| (*id, whole(at))).collect();
        check(&spool, &bad, true);
    }
}

/// The last segment's header and first record are rotten, and no later commit shows that this one was durable.
#[test]
fn valid_batches_after_a_rotten_header_are_kept() {
    let spool = Spool::of(BATCHES, LONG);
    unseal(&spool);
    let first = places(&spool, 3)[0].0;
    spool.flip(3, 100);
    spool.flip(3, segment::HEADER + 60);
    spool.flip(3, 5000);
    let repaired = spool.repair().unwrap();
    assert_eq!(repaired.lost, [lost(first..first + 1, Some(events(first)))]);
    let kept: Vec<u64> = (1..BATCHES).filter(|seq| *seq != first).collect();
    spool.check_repaired(&kept, BATCHES);
}

#[test]
fn an_unreadable_last_segment_costs_all_batches_it_may_have_held() {
    let spool = Spool::of(BATCHES, LONG);
    let disk: Arc<dyn ReadStorage> = Arc::new(Failing::at(&spool, [(3, 0..LONG)]));
    let first = places(&spool, 3)[0].0;
    let survey = || Survey::open_on(Arc::clone(&disk), &spool.dir());
    let repaired = repair_from(&survey, &spool.dir(), "damaged-1", SEGMENT, Durability::Fsync)
        .unwrap()
        .unwrap();
    let [lost] = &repaired.lost[..] else {
        panic!("{:?}", repaired.lost)
    };
    assert_eq!(lost.from, Seq(first));
    assert!(lost.to >= Seq(BATCHES));
    spool.check_repaired(&(1..first).collect::<Vec<_>>(), lost.to.0);
}

#[test]
fn an_unreadable_checkpoint_is_skipped_and_an_unreadable_manifest_is_not() {
    let spool = Spool::new();
    let mut disk = Failing::at(&spool, []);
    // One copy of the position is enough; without both, it is unknown.
    for (to, batches) in [(SECTOR, 5), (2 * SECTOR, 6)] {
        disk.bad.push((spool.dir().join("checkpoint"), 0..to));
        let (found, survey) = spool.survey_on(Arc::new(disk.clone()));
        assert_eq!((found.len(), survey.damage().len()), (batches, 1));
        assert_eq!(survey.damage()[0].is_of_position(), batches == 6);
    }
    for name in ["manifest", "manifest.copy"] {
        assert!(Survey::open_on(Arc::new(disk.clone()), &spool.dir()).is_ok());
        disk.bad.push((spool.dir().join(name), 0..SECTOR));
    }
    assert!(Survey::open_on(Arc::new(disk), &spool.dir()).is_err());
}

/// An error other than a bad sector, such as a file of another user, is not damage.
#[test]
fn other_errors_end_the_survey() {
    let spool = Spool::new();
    for bad in [0..SECTOR, SECTOR..2 * SECTOR] {
        let mut disk = Failing::at(&spool, [(4, bad)]);
        disk.errno = 13;
        let survey = Survey::open_on(Arc::new(disk), &spool.dir());
        let read = survey.and_then(|survey| {
            let mut survey = survey.unwrap();
            while survey.next_batch()?.is_some() {}
            Ok(())
        });
        assert!(matches!(read, Err(SpoolError::Io { source, .. }) if source.raw_os_error() == Some(13)));
    }
}

/// The bridge itself stops at an unreadable sector and skips nothing.
#[test]
fn the_bridge_skips_no_unreadable_sector() {
    let spool = Spool::new();
    let disk = Failing::at(&spool, [(6, SECTOR..2 * SECTOR)]);
    let manifest = Manifest::read(&disk, &spool.dir()).unwrap().unwrap();
    let found = inspect(&disk, &spool.dir(), manifest);
    assert!(matches!(found, Err(SpoolError::Io { action: "read", .. })));
}
