//! How an open deals with everything that can be wrong with a log.

use std::path::{Path, PathBuf};

use super::harness::{DIR, LogLife, batch, expect_batches, log_id, options, segment_path, segments};
use crate::{
    simulation::disk::{Op, SimDisk},
    spool::{
        AppendError, Damage, DamageKind, Durability, LogOptions, Position, SegmentId, Seq, SpoolError,
        checkpoint::{self, Checkpoint},
        next_segment::SPARE,
        record,
        segment::{self, SegmentHeader},
    },
};

const SEGMENT: u64 = 8 << 10;
const HEADER: u64 = segment::HEADER as u64;
/// The offset of the first batch of a log's first life.
const FIRST: u64 = segment::first_batch_at(1) as u64;
const LEN: usize = 300;
/// Only one batch of this length fits in a segment.
const BIG: usize = 2500;

fn open(disk: &SimDisk) -> LogLife {
    LogLife::open(disk, &options(SEGMENT)).unwrap()
}

/// Opens a log in which nothing may be wrong.
fn open_clean(disk: &SimDisk) -> LogLife {
    let life = open(disk);
    assert_eq!(life.damage, []);
    life
}

/// Length of a batch's record in bytes.
fn record_len(number: u64, len: usize) -> u64 {
    record::record_len(batch(number, len).0.bytes().len()) as u64
}

fn header(disk: &SimDisk, id: u64) -> SegmentHeader {
    SegmentHeader::decode(&disk.read(&segment_path(id))).unwrap()
}

/// Damages a header and its copy.
fn rot_header(disk: &SimDisk, id: u64) {
    disk.rot(&segment_path(id), 45);
    disk.rot(&segment_path(id), HEADER + 60);
}

fn checkpoint_path() -> PathBuf {
    Path::new(DIR).join("checkpoint")
}

fn manifest_path() -> PathBuf {
    Path::new(DIR).join("manifest")
}

fn damage(segment: u64, bytes: Option<(u64, u64)>, from: u64, to: Option<u64>, kind: DamageKind) -> Damage {
    Damage {
        segment: SegmentId(segment),
        bytes,
        from: Seq(from),
        to: to.map(Seq),
        kind,
    }
}

/// A log of several segments, each filled by one batch: segment n holds batch n - 1. The last one is open.
fn one_batch_each(n: u64) -> SimDisk {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append(0..n, BIG);
    assert_eq!(segments(&disk), (1..=n).collect::<Vec<_>>());
    disk.kill();
    disk
}

// The torn tail.

#[test]
fn a_tail_torn_at_any_byte_loses_no_acknowledged_batch() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0, 1], 40);
    life.rest();
    life.append([2, 3, 4], 40);
    disk.kill();
    let path = segment_path(1);
    let bytes = disk.read(&path);
    let ends: Vec<u64> = (0..5)
        .scan(FIRST, |at, n| {
            // A seal follows the first commit.
            *at += record_len(n, 40) + if n == 2 { 48 } else { 0 };
            Some(*at)
        })
        .collect();
    let torn_commit = ends[1] + 48;
    for cut in torn_commit..=ends[4] {
        // The bytes after the cut never reached the disk; or the file ends there; or other bytes follow.
        for tail in 0..3 {
            let disk = disk.fork();
            let mut torn = bytes.clone();
            match tail {
                0 => torn[cut as usize..].fill(0),
                1 => torn.truncate(cut as usize),
                _ => torn[cut as usize..ends[4] as usize].fill(0xA5),
            }
            let is_whole = |n: &u64| {
                let start = (ends[*n as usize] - record_len(*n, 40)) as usize;
                let end = start + 48 + batch(*n, 40).0.bytes().len();
                torn.get(start..end) == Some(&bytes[start..end])
            };
            let whole = 2 + (2..5).take_while(is_whole).count() as u64;
            disk.put(&path, torn);
            let mut life = open_clean(&disk);
            life.expect(0, 0..whole, 40);
            life.append([whole], 40);
            disk.kill();
            open_clean(&disk).expect(0, 0..=whole, 40);
        }
    }
}

#[test]
fn a_gap_within_the_last_commit_is_a_torn_write() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.append([1, 2, 3], 40);
    disk.kill();
    let gap = FIRST + record_len(0, 40) + record_len(1, 40);
    disk.rot(&segment_path(1), gap + 20);
    let mut life = open_clean(&disk);
    life.expect(0, [0, 1], 40);
    // The sequence of a lost batch is reused, and its record doesn't come back.
    life.append([7], 40);
    life.rest();
    disk.kill();
    let mut life = open_clean(&disk);
    life.expect(0, [0, 1, 7], 40);
    assert_eq!(
        disk.read(&segment_path(1)).len() as u64,
        gap,
        "the segment is not cut at the gap"
    );
}

/// Bit rot in the copy of the header does not make a torn first commit look durable, nor a lost one torn.
#[test]
fn damage_to_the_copy_of_a_header_proves_nothing_about_the_first_commit() {
    let rotten = |commits: &[&[u64]], at: &[u64]| {
        let disk = SimDisk::new(1);
        let mut life = open_clean(&disk);
        for commit in commits {
            life.append(commit.iter().copied(), 40);
        }
        disk.kill();
        disk.rot(&segment_path(1), HEADER + 60);
        for at in at {
            disk.rot(&segment_path(1), *at);
        }
        disk
    };
    let first = FIRST + 20;
    let second = first + record_len(0, 40);

    // The first commit is torn, and its end survived.
    let disk = rotten(&[&[0, 1, 2]], &[first]);
    let mut life = open_clean(&disk);
    life.append([7], 40);
    life.rest();
    disk.kill();
    open_clean(&disk).expect(0, [7], 40);

    // It is torn further behind.
    let disk = rotten(&[&[0, 1, 2]], &[second]);
    open(&disk).expect(0, [0], 40);

    // It is whole.
    let disk = rotten(&[&[0, 1, 2]], &[]);
    let mut life = open(&disk);
    assert!(life.damage.iter().all(Damage::costs_nothing), "{:?}", life.damage);
    life.expect(0, [0, 1, 2], 40);

    // A later commit proves that it was durable.
    let disk = rotten(&[&[0], &[1]], &[first]);
    let range = Some((HEADER, FIRST + record_len(0, 40)));
    let life = open(&disk);
    assert_eq!(life.damage, [damage(1, range, 0, Some(1), DamageKind::Records)]);
}

#[test]
fn nothing_after_a_cut_comes_back_even_if_the_cut_is_lost() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0, 1, 2], 40);
    disk.kill();
    let gap = FIRST + record_len(0, 40);
    let before = disk.read(&segment_path(1));
    disk.rot(&segment_path(1), gap + 20);
    let torn = disk.read(&segment_path(1));
    open_clean(&disk).append([8], 40);
    for content in [torn, before] {
        disk.put(&segment_path(1), content);
        disk.kill();
        open_clean(&disk).expect(0, [0, 8], 40);
    }
}

#[test]
fn the_last_commit_is_made_durable_before_it_is_served() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    disk.fail(Op::SyncData, ".segment", 0);
    let (answers, result) = life.try_append(&[batch(0, 1000).0]);
    assert!(result.is_err());
    assert_eq!(answers, [Err(AppendError::Failed)]);
    disk.kill();
    // It is in the page cache and is served now, so it must survive from now on.
    open_clean(&disk).expect(0, [0], 1000);
    for seed in 0..20 {
        let disk = disk.fork();
        disk.crash(seed);
        open_clean(&disk).expect(0, [0], 1000);
    }
}

// Damage.

#[test]
fn a_gap_before_a_later_commit_is_damage_with_its_exact_range() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.append([1, 2], 40);
    life.append([3], 40);
    disk.kill();
    let at = FIRST + record_len(0, 40);
    disk.rot(&segment_path(1), at + 30);
    let expected = damage(
        1,
        Some((at, at + record_len(1, 40))),
        1,
        Some(2),
        DamageKind::Records,
    );
    for _ in 0..2 {
        let mut life = open(&disk);
        assert!(
            life.backlog.blocking_damage().is_none(),
            "the lane is blocked before the reader gets there"
        );
        let (before, found) = life.read();
        expect_batches(&before, 0, [0], 40);
        assert_eq!(found, Some(expected.clone()));
        assert_eq!(life.read().1, Some(expected.clone()), "it is reported once only");
        // Intake continues.
        let next = life.backlog.end().seq.0;
        life.append([next], 40);
        // Everything after the damage is there.
        life.backlog.seek(Seq(2)).unwrap();
        life.expect(2, 2..=next, 40);
        disk.kill();
    }
    assert_eq!(
        disk.read(&segment_path(1)).len() as u64,
        SEGMENT,
        "evidence is cut off"
    );
}

#[test]
fn the_reader_reports_rot_in_earlier_segments() {
    let disk = SimDisk::new(1);
    open_clean(&disk).append([0, 1], 40);
    let mut life = {
        disk.kill();
        open_clean(&disk)
    };
    life.append([2], 40);
    disk.kill();
    // Rot in a segment other than the last one is found when it is read.
    disk.rot(&segment_path(1), FIRST + 60);
    let mut life = open_clean(&disk);
    let (before, found) = life.read();
    assert_eq!(before, []);
    let end = FIRST + record_len(0, 40);
    assert_eq!(
        found,
        Some(damage(1, Some((FIRST, end)), 0, Some(1), DamageKind::Records))
    );
    // Now its end is rotten, with nothing valid after it.
    disk.rot(&segment_path(1), FIRST + 60);
    disk.rot(&segment_path(1), end + 60);
    let (before, found) = {
        life.backlog.rewind();
        life.read()
    };
    expect_batches(&before, 0, [0], 40);
    let file_end = end + record_len(1, 40);
    assert_eq!(
        found,
        Some(damage(1, Some((end, file_end)), 1, Some(2), DamageKind::Records))
    );
}

#[test]
fn a_seal_makes_rot_in_the_last_commit_detectable() {
    for (sealed, whole_damage) in [(false, false), (true, true)] {
        let disk = SimDisk::new(1);
        let mut life = open_clean(&disk);
        life.append([0], 40);
        life.append([1], 40);
        if sealed {
            life.rest();
            life.rest();
        }
        disk.kill();
        let at = FIRST + record_len(0, 40);
        disk.rot(&segment_path(1), at + 50);
        let life = open(&disk);
        let expected = damage(
            1,
            Some((at, at + record_len(1, 40))),
            1,
            Some(2),
            DamageKind::Records,
        );
        assert_eq!(life.damage, if whole_damage { vec![expected] } else { vec![] });
        assert_eq!(life.backlog.end().seq.0, if sealed { 2 } else { 1 });
    }
}

#[test]
fn a_checkpoint_beyond_a_gap_makes_it_damage_too() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.append([1, 2, 3], 40);
    life.deliver_to(2);
    disk.kill();
    let at = FIRST + record_len(0, 40);
    disk.rot(&segment_path(1), at + 50);
    let range = Some((at, at + record_len(1, 40)));
    let mut life = open(&disk);
    // The damaged batch is already delivered.
    assert_eq!(life.damage, [damage(1, range, 2, Some(2), DamageKind::Records)]);
    assert!(life.damage[0].is_harmless());
    assert!(life.backlog.blocking_damage().is_none());
    // The batches that the lane still needs are there, because they were acknowledged.
    life.expect(2, [2, 3], 40);
    disk.kill();
    open_clean(&disk).expect(2, [2, 3], 40);

    // With nothing readable after it, the tail is lost, and the rest of it is not cut off.
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0, 1], 40);
    life.deliver_to(2);
    disk.kill();
    disk.rot(&segment_path(1), at + 50);
    assert!(open(&disk).backlog.blocking_damage().is_some());
    assert_eq!(disk.read(&segment_path(1)).len() as u64, SEGMENT);
}

#[test]
fn without_a_position_nothing_is_removed() {
    let disk = one_batch_each(3);
    rot_header(&disk, 1);
    disk.delete(&checkpoint_path());
    let mut life = open(&disk);
    assert!(life.backlog.blocking_damage().is_some());
    assert!(segments(&disk).contains(&1));
    life.expect(1, [1, 2], BIG);
}

#[test]
fn several_damaged_places_are_all_reported() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    (0..6).for_each(|n| life.append([n], 0));
    disk.kill();
    let at = |n: u64| FIRST + (0..n).map(|n| record_len(n, 0)).sum::<u64>();
    disk.rot(&segment_path(1), at(1) + 9);
    disk.rot(&segment_path(1), at(2));
    disk.rot(&segment_path(1), at(4) + 50);
    let life = open(&disk);
    assert_eq!(
        life.damage,
        [
            damage(1, Some((at(1), at(3))), 1, Some(3), DamageKind::Records),
            damage(1, Some((at(4), at(5))), 4, Some(5), DamageKind::Records),
        ]
    );
    assert_eq!(life.backlog.end().seq.0, 6);
}

/// Whichever byte of whichever header is wrong, the copy restores all of it, including the history.
#[test]
fn a_damaged_header_costs_nothing() {
    let disk = SimDisk::new(1);
    for life in 0..3 {
        let mut opened = open_clean(&disk);
        opened.append([2 * life, 2 * life + 1], BIG);
        disk.kill();
    }
    let whole = disk.fork();
    let whole = open_clean(&whole);
    for id in segments(&disk) {
        for at in [0, 9, 12, 17, 33, 41, 65, 73, 88, 94, 97, 104, HEADER - 1] {
            let disk = disk.fork();
            disk.rot(&segment_path(id), at);
            let first = header(&one_segment(&disk, id), id).first_seq.0;
            for _ in 0..2 {
                let mut life = open(&disk);
                let kind = DamageKind::HeaderCopied;
                assert_eq!(
                    life.damage,
                    [damage(id, Some((0, HEADER)), first, Some(first), kind)]
                );
                assert!(life.backlog.blocking_damage().is_none());
                assert_eq!(life.backlog.end(), whole.backlog.end());
                let [theirs @ .., _] = whole.backlog.history().entries() else {
                    panic!("no history")
                };
                assert!(
                    life.backlog.history().entries().starts_with(theirs),
                    "the history differs"
                );
                life.expect(0, 0..6, BIG);
                disk.kill();
            }
        }
    }
}

/// The same segment, with its header restored from the copy.
fn one_segment(disk: &SimDisk, id: u64) -> SimDisk {
    let disk = disk.fork();
    let bytes = disk.read(&segment_path(id));
    let checksum = record::Checksum::new(&log_id(&disk), SegmentId(id));
    let copy = SegmentHeader::decode_copy(&bytes[HEADER as usize..], checksum).unwrap();
    disk.put(&segment_path(id), copy.encode_with_copy());
    disk
}

#[test]
fn the_header_of_a_delivered_segment_is_not_read() {
    let disk = one_batch_each(4);
    let done = disk.read(&segment_path(1));
    open_clean(&disk).deliver_to(3);
    disk.kill();
    disk.put(&segment_path(1), done);
    disk.fail(Op::Read, "1.segment", 0);
    open_clean(&disk).expect(3, [3], BIG);
    assert!(!segments(&disk).contains(&1));
    assert_eq!(disk.failed(), 0);
}

#[test]
fn a_bad_header_of_a_middle_segment() {
    for content in [
        None,
        Some(Vec::new()),
        Some(vec![0; 100]),
        Some(vec![0; SEGMENT as usize]),
    ] {
        let disk = one_batch_each(4);
        match content {
            None => rot_header(&disk, 2),
            Some(bytes) => disk.put(&segment_path(2), bytes),
        }
        for _ in 0..2 {
            let mut life = open(&disk);
            let kind = DamageKind::Header;
            assert_eq!(life.damage, [damage(2, None, 0, Some(2), kind)]);
            let (before, found) = life.read();
            expect_batches(&before, 0, [0], BIG);
            assert_eq!(found, Some(damage(2, None, 1, Some(2), kind)));
            life.backlog.seek(Seq(2)).unwrap();
            life.expect(2, [2, 3], BIG);
            disk.kill();
        }
    }
}

#[test]
fn a_bad_header_of_the_last_segment() {
    for (content, sequences) in [
        (None, 1),
        (Some(Vec::new()), 0),
        (Some(vec![0; SEGMENT as usize]), 170),
    ] {
        let disk = one_batch_each(3);
        match content {
            None => rot_header(&disk, 3),
            Some(bytes) => disk.put(&segment_path(3), bytes),
        }
        let kind = DamageKind::Header;
        let mut life = open(&disk);
        assert_eq!(life.damage, [damage(3, None, 1, None, kind)]);
        // No sequence that the segment may hold is reused.
        assert_eq!(life.backlog.end().seq.0, 2 + sequences);
        life.append([9], 40);
        let (before, found) = life.read();
        expect_batches(&before, 0, [0, 1], BIG);
        assert_eq!(found, Some(damage(3, None, 2, None, kind)));
        disk.kill();
        let mut life = open(&disk);
        assert_eq!(life.damage, [damage(3, None, 1, Some(2 + sequences), kind)]);
        life.backlog.seek(Seq(2 + sequences)).unwrap();
        life.expect(2 + sequences, [9], 40);
        // Once Kafka is past it, it is trimmed like any other.
        life.deliver_to(3 + sequences);
        disk.kill();
        open_clean(&disk).expect(3 + sequences, [], 40);
        assert!(!segments(&disk).contains(&3));
    }
}

/// Found by the simulation: the books did not balance.
#[test]
fn the_log_counts_at_least_the_events_before_its_position() {
    let disk = SimDisk::new(1);
    open_clean(&disk).append([2], LEN);
    disk.kill();
    open_clean(&disk).deliver_to(1);
    disk.kill();
    // The first segment is still there, kept for reuse.
    disk.rot(&segment_path(1), FIRST + 60);
    rot_header(&disk, 2);
    let life = open(&disk);
    assert_ne!(life.damage, []);
    let books = life.books.snapshot();
    assert_eq!((books.durable_total, books.position_total), (3, 3));
}

#[test]
fn a_single_segment_with_a_bad_header() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0, 1], 40);
    life.deliver_to(1);
    disk.kill();
    rot_header(&disk, 1);
    let mut life = open(&disk);
    assert_eq!(life.backlog.position().seq, Seq(1));
    assert_eq!(life.damage.len(), 1);
    assert_eq!(life.backlog.end().seq, Seq(2));
    assert_eq!(life.read().1.unwrap().from, Seq(1));
}

#[test]
fn a_missing_segment() {
    let kind = DamageKind::SegmentMissing;
    for (missing, before) in [(1, 0), (2, 1), (3, 2)] {
        let disk = one_batch_each(4);
        disk.delete(&segment_path(missing));
        for _ in 0..2 {
            let mut life = open(&disk);
            let from = missing.saturating_sub(2);
            assert_eq!(life.damage, [damage(missing, None, from, Some(missing), kind)]);
            let (batches, found) = life.read();
            expect_batches(&batches, 0, 0..before, BIG);
            assert_eq!(
                found,
                Some(damage(missing, None, missing - 1, Some(missing), kind))
            );
            life.backlog.seek(Seq(missing)).unwrap();
            life.expect(missing, missing..4, BIG);
            disk.kill();
        }
    }
}

#[test]
fn a_missing_segment_before_the_position_does_not_matter() {
    let disk = one_batch_each(4);
    let mut life = open_clean(&disk);
    // The position lies in segment 3; a crash brings back segment 1 only.
    let first = disk.read(&segment_path(1));
    life.deliver_to(2);
    disk.kill();
    disk.put(&segment_path(1), first);
    open_clean(&disk).expect(2, [2, 3], BIG);
    assert_eq!(segments(&disk)[0], 3);
}

#[test]
fn a_checkpoint_beyond_the_end_shows_a_lost_tail() {
    let disk = one_batch_each(3);
    let mut life = open_clean(&disk);
    life.append([3, 4], 40);
    life.deliver_to(5);
    disk.kill();
    let events = life.backlog.position().events;
    // Only the log's checkpoint is left.
    for id in segments(&disk) {
        disk.delete(&segment_path(id));
    }
    for attempt in 0..3 {
        let mut life = open(&disk);
        let found = life.backlog.blocking_damage();
        match attempt {
            0 => {
                let found = found.unwrap();
                assert_eq!(found.kind, DamageKind::Tail);
                // Everything before the position is delivered, so it is not lost.
                assert_eq!((found.from, found.to), (Seq(5), None));
                assert!(life.damage.contains(found));
            }
            // It is still reported although the fresh segment begins at the position, until an operator removes the mark.
            1 => {
                assert!(found.unwrap().to_string().contains("the file `damage`"));
                disk.delete(&Path::new(DIR).join("damage"));
            }
            _ => assert_eq!(found, None),
        }
        let end = Position { seq: Seq(5), events };
        assert_eq!((life.backlog.position(), life.backlog.end()), (end, end));
        life.expect(5, [], 40);
        disk.kill();
    }
}

// Checkpoint and manifest.

/// A log of four segments, whose position was stored at 1, 2 and 3 without trimming.
fn positions_1_to_3() -> SimDisk {
    let disk = one_batch_each(4);
    let mut life = open_clean(&disk);
    for seq in 1..=3 {
        let position = life.backlog.seek(Seq(seq)).unwrap();
        life.backlog.advance(position);
        let (disk, dir, log_id) = (disk.mount(), Path::new(DIR), log_id(&disk));
        let stored = checkpoint::read(&*disk, dir, log_id).unwrap().unwrap();
        let mut checkpoint = Checkpoint::open(&*disk, dir, log_id, stored).unwrap();
        checkpoint.store(position).unwrap();
    }
    disk.kill();
    disk
}

#[test]
fn one_damaged_copy_of_a_position_costs_nothing() {
    let disk = positions_1_to_3();
    // Generation 4 is in the first slot, generation 3 in the second.
    for (rotten, reported) in [
        (None, false),
        (Some(0), true),
        (Some(512), true),
        (Some(530), true),
        (Some(551), true),
        (Some(4096), true),
        (Some(4096 + 512), true),
        (Some(4096 + 551), true),
        // Unused bytes.
        (Some(552), false),
        (Some(2000), false),
    ] {
        let disk = disk.fork();
        if let Some(at) = rotten {
            disk.rot(&checkpoint_path(), at);
        }
        let mut life = open(&disk);
        let copied = damage(0, None, 3, Some(3), DamageKind::PositionCopied);
        let expected = if reported { vec![copied] } else { vec![] };
        assert_eq!(life.damage, expected, "{rotten:?}");
        assert!(life.backlog.blocking_damage().is_none());
        assert_eq!(life.backlog.position().seq.0, 3);
        life.expect(3, [3], BIG);
        life.deliver_to(4);
        disk.kill();
        // Storing a position has repaired the copy.
        assert_eq!(open_clean(&disk).backlog.position().seq.0, 4);
    }
}

#[test]
fn without_the_newest_position_the_previous_one_counts_and_trimmed_batches_are_not_lost() {
    // Position 2 is the beginning of segment 3. Segments not deleted here wait for reuse.
    for (trimmed, position) in [
        (&[] as &[u64], 2),
        (&[1, 2, 3], 3),
        (&[3], 3),
        (&[1], 2),
        (&[1, 3], 3),
    ] {
        let disk = positions_1_to_3();
        disk.rot(&checkpoint_path(), 18);
        disk.rot(&checkpoint_path(), 4096 + 18);
        trimmed.iter().for_each(|id| disk.delete(&segment_path(*id)));
        let mut life = open(&disk);
        let [found] = &life.damage[..] else {
            panic!("{:?}", life.damage)
        };
        assert!(
            found.to_string().contains("newest position is damaged"),
            "{found}"
        );
        assert!(found.is_harmless());
        assert!(found.to_string().contains("no batch is lost"), "{found}");
        assert!(life.backlog.blocking_damage().is_none());
        assert_eq!(life.backlog.position().seq.0, position);
        let books = life.books.snapshot();
        assert!(books.balanced() && books.backlog() > 0, "{books:?}");
        life.expect(position, position..4, BIG);
        life.deliver_to(4);
        disk.kill();
        assert_eq!(open_clean(&disk).backlog.position().seq.0, 4);
    }
}

#[test]
fn without_both_positions_the_position_is_unknown() {
    let disk = positions_1_to_3();
    let bytes = disk.read(&checkpoint_path());
    for content in [vec![0; 1024], Vec::new(), bytes[..30].to_vec()] {
        let disk = disk.fork();
        disk.put(&checkpoint_path(), content);
        unknown_position(&disk);
    }
    disk.delete(&checkpoint_path());
    unknown_position(&disk);
}

#[test]
fn a_position_in_the_page_cache_is_made_durable_before_it_counts() {
    let disk = one_batch_each(4);
    let mut life = open_clean(&disk);
    let position = life.backlog.seek(Seq(3)).unwrap();
    life.backlog.advance(position);
    disk.fail(Op::SyncData, "checkpoint", 0);
    assert!(life.backlog.store_checkpoint().is_err());
    disk.kill();
    // This open trims up to it.
    assert_eq!(open_clean(&disk).backlog.position(), position);
    for seed in 0..20 {
        let disk = disk.fork();
        disk.crash(seed);
        open_clean(&disk).expect(3, [3], BIG);
    }
}

/// Without a position nothing may be delivered, removed or forgotten; intake continues.
fn unknown_position(disk: &SimDisk) {
    for _ in 0..2 {
        let mut life = open(disk);
        let found = life.backlog.blocking_damage().unwrap();
        assert_eq!(found.kind, DamageKind::Position);
        assert_eq!(life.damage.as_slice(), std::slice::from_ref(found));
        assert!(!life.backlog.checkpoint_due());
        life.backlog.store_checkpoint().unwrap();
        let next = life.backlog.end().seq.0;
        life.append([next], BIG);
        life.expect(0, 0..=next, BIG);
        disk.kill();
    }
    assert_eq!(segments(disk)[0], 1);
}

#[test]
fn an_unusable_manifest_is_refused() {
    let disk = one_batch_each(2);
    let text = String::from_utf8(disk.read(&manifest_path())).unwrap();
    let newer = text.replace("\"format\":1", "\"format\":2,\"more\":[]");
    let rotten = text.replace("\"crc32c\":", "\"crc32c\":1");
    let damaged = "the manifest is damaged; restore it from a copy of the spool";
    for (content, wanted) in [
        (
            newer.into_bytes(),
            "its format is 2, this version knows 1; use the version of cmc-bridge that wrote it",
        ),
        (rotten.into_bytes(), "the manifest"),
        (text.as_bytes()[..40].to_vec(), damaged),
        (Vec::new(), damaged),
        (vec![b' '; 10_000], damaged),
        (vec![0xFF; 100], damaged),
    ] {
        let disk = disk.fork();
        disk.put(&manifest_path(), content);
        disk.delete(&Path::new(DIR).join("manifest.copy"));
        let before = disk.names();
        match LogLife::open(&disk, &options(SEGMENT)).map(|_| ()).unwrap_err() {
            SpoolError::Unusable { what, .. } => assert!(what.starts_with(wanted), "{what}"),
            error => panic!("{error}"),
        }
        assert_eq!(disk.names(), before, "a file was touched");
    }
    disk.delete(&manifest_path());
    disk.delete(&Path::new(DIR).join("manifest.copy"));
    let error = LogLife::open(&disk, &options(SEGMENT)).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("it has segments but no manifest"),
        "{error}"
    );
}

#[test]
fn the_manifest_or_its_copy_is_enough() {
    let disk = one_batch_each(2);
    let copy_path = Path::new(DIR).join("manifest.copy");
    let text = disk.read(&manifest_path());
    assert_eq!(disk.read(&copy_path), text);
    let harms: [fn(&SimDisk, &Path); 4] = [
        |disk, path| disk.rot(path, 3),
        // This looks like another format.
        |disk, path| disk.rot(path, 10),
        |disk, path| disk.put(path, Vec::new()),
        |disk, path| disk.delete(path),
    ];
    for harm in harms {
        for path in [manifest_path(), copy_path.clone()] {
            let disk = disk.fork();
            harm(&disk, &path);
            let mut life = open(&disk);
            let copied = damage(0, None, 0, Some(0), DamageKind::ManifestCopied);
            let expected = if path == copy_path { vec![] } else { vec![copied] };
            assert_eq!(life.damage, expected);
            life.expect(0, [0, 1], BIG);
            disk.kill();
            open_clean(&disk);
            assert_eq!(disk.read(&manifest_path()), text);
            assert_eq!(disk.read(&copy_path), text);
        }
    }
}

#[test]
fn on_a_full_disk_a_log_opens_and_trims_only_up_to_a_stored_position() {
    let disk = positions_1_to_3();
    // As on a file system where overwriting takes space.
    disk.fail_for_want_of_room(Op::Write, "checkpoint");
    let mut life = open_clean(&disk);
    assert_eq!(life.backlog.position().seq.0, 3);
    assert!(life.backlog.checkpoint_due());
    life.expect(3, [3], BIG);
    life.backlog.rewind();
    let position = life.backlog.seek(Seq(4)).unwrap();
    life.backlog.advance(position);
    life.backlog.store_checkpoint().unwrap();
    assert!(life.backlog.checkpoint_due(), "the position is not stored");
    assert_eq!(segments(&disk)[0], 1, "a segment was trimmed");
    // Nor may the log be renamed in Kafka, because its position can't be stored first.
    assert!(life.backlog.renew_group().unwrap_err().is_no_space());
    disk.heal();
    life.backlog.store_checkpoint().unwrap();
    assert!(!life.backlog.checkpoint_due());
    disk.kill();
    assert_eq!(open_clean(&disk).backlog.position().seq.0, 4);
    assert!(segments(&disk)[0] > 3);
}

#[test]
fn a_new_group_keeps_log_and_position() {
    let disk = one_batch_each(3);
    let mut life = open_clean(&disk);
    let (log, group) = (log_id(&disk), life.backlog.group_id());
    let position = life.backlog.seek(Seq(2)).unwrap();
    life.backlog.advance(position);
    let renewed = life.backlog.renew_group().unwrap();
    assert_ne!(renewed, group);
    disk.crash(5);
    let mut life = open_clean(&disk);
    assert_eq!((log_id(&disk), life.backlog.group_id()), (log, renewed));
    life.expect(2, [2], BIG);
}

// Durability `page-cache`.

#[test]
fn with_durability_page_cache_the_first_invalid_record_is_the_end() {
    let disk = SimDisk::new(1);
    let page_cache = LogOptions {
        durability: Durability::PageCache,
        ..options(SEGMENT)
    };
    let mut life = LogLife::open(&disk, &page_cache).unwrap();
    let syncs = disk.count(Op::SyncData, ".segment");
    (0..4).for_each(|n| life.append([n], 40));
    assert_eq!(disk.count(Op::SyncData, ".segment"), syncs);
    disk.kill();
    disk.rot(&segment_path(1), FIRST + record_len(0, 40) + 50);
    // The next process's durability makes no difference.
    let mut life = open_clean(&disk);
    life.expect(0, [0], 40);
    life.append([1], BIG);
    disk.kill();
    let mut life = LogLife::open(&disk, &page_cache).unwrap();
    assert_eq!(life.damage, []);
    life.append([2, 3, 4], BIG);
    let last = *segments(&disk).last().unwrap();
    // A finished segment is durable.
    for seed in 0..20 {
        let disk = disk.fork();
        disk.crash(seed);
        let mut life = open_clean(&disk);
        let (found, _) = life.read();
        assert!(found.len() as u64 >= header(&disk, last).first_seq.0);
        let numbers = [0, 1, 2, 3, 4];
        assert_eq!(found[0].payload, batch(0, 40).0.bytes());
        expect_batches(&found[1..], 1, numbers[1..found.len()].to_vec(), BIG);
    }
}

// Opening.

#[test]
fn opens_without_data_leave_no_segments_and_keep_the_sequence() {
    let disk = SimDisk::new(1);
    for id in 1..5 {
        let life = open_clean(&disk);
        assert_eq!(life.backlog.end(), Position::default());
        assert_eq!(segments(&disk), [id - 1, id][usize::from(id == 1)..]);
        assert_eq!(
            life.backlog.history().entries().len(),
            1,
            "an empty range is kept"
        );
        disk.kill();
    }
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.rest();
    disk.kill();
    for id in 6..9 {
        open_clean(&disk).expect(0, [0], 40);
        // Unlike those that were empty before the position, these may hold batches that are not in Kafka.
        assert_eq!(segments(&disk), (5..=id).collect::<Vec<_>>());
        disk.kill();
    }
}

#[test]
fn the_history_names_the_incarnation_of_each_sequence() {
    let disk = SimDisk::new(1);
    let mut incarnations = Vec::new();
    for n in 0..4 {
        let mut life = open_clean(&disk);
        life.append([2 * n, 2 * n + 1], BIG);
        incarnations.push(*life.backlog.history().entries().last().unwrap());
        assert_eq!(life.backlog.history().entries(), incarnations);
        assert_eq!(incarnations[n as usize].1, Seq(2 * n));
        let last = *segments(&disk).last().unwrap();
        assert_eq!(
            header(&disk, last).history,
            *life.backlog.history(),
            "the header of a later segment has another history"
        );
        life.deliver_to(2 * n + 1);
        disk.kill();
    }
}

#[test]
fn a_fresh_segment_names_the_exact_end_of_the_one_before() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0, 1], LEN);
    life.rest();
    let end = FIRST + record_len(0, LEN) + record_len(1, LEN) + 48;
    disk.kill();
    open_clean(&disk);
    let fresh = header(&disk, 2);
    assert_eq!(fresh.predecessor, Some((SegmentId(1), end)));
    // One of the commits before it holds the copy of the header.
    assert_eq!((fresh.first_seq, fresh.first_commit.0), (Seq(2), 4));
    assert_eq!(fresh.events_before, 3);
    assert_eq!(
        disk.read(&segment_path(1)).len() as u64,
        end,
        "the rest is cut off"
    );
    assert_eq!(disk.read(&segment_path(2)).len() as u64, SEGMENT);
}

#[test]
fn leftovers_of_a_crash_do_no_harm() {
    let disk = one_batch_each(2);
    let dir = Path::new(DIR);
    for name in [
        SPARE,
        "manifest.tmp",
        "checkpoint.tmp",
        "lost+found",
        "1.segment",
        "x.segment",
    ] {
        disk.put(&dir.join(name), vec![7; 9000]);
    }
    let mut life = open_clean(&disk);
    life.expect(0, [0, 1], BIG);
    life.backlog.renew_group().unwrap();
    life.append(2..8, BIG);
    disk.kill();
    open_clean(&disk).expect(0, 0..8, BIG);
    assert!(!disk.names().contains(&SPARE.to_owned()));
    assert!(!disk.names().contains(&"manifest.tmp".to_owned()));
}

#[test]
fn an_interrupted_trim_is_finished_by_the_next_open() {
    let disk = one_batch_each(5);
    // Two of the four segments to be trimmed are kept for reuse.
    for removals in 0..2 {
        let disk = disk.fork();
        let mut life = open_clean(&disk);
        let position = life.backlog.seek(Seq(4)).unwrap();
        life.backlog.advance(position);
        disk.fail(Op::Remove, ".segment", removals);
        assert!(life.backlog.store_checkpoint().is_err());
        disk.crash(removals);
        open_clean(&disk).expect(4, [4], BIG);
        assert_eq!(segments(&disk)[0], 5);
    }
}

#[test]
fn a_trim_keeps_the_segment_of_the_position() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    // Two batches per segment: 0 1 | 2 3 | 4 5 | 6.
    life.append(0..7, 1500);
    assert_eq!(segments(&disk), [1, 2, 3, 4]);
    let used = life.writer.queue.used();
    for (seq, first) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (7, 4)] {
        life.deliver_to(seq);
        assert_eq!(life.backlog.segment_ids()[0].0, first, "at {seq}");
        life.expect(seq, seq..7, 1500);
        disk.fork().crash(seq);
    }
    assert!(life.writer.queue.used() < used / 3);
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.append([2], 100_000);
    life.append([3, 4], 40);
    disk.kill();
    let mut life = open_clean(&disk);
    let (found, damage) = life.read();
    assert_eq!(damage, None);
    let wanted = [
        batch(0, 40).0,
        batch(2, 100_000).0,
        batch(3, 40).0,
        batch(4, 40).0,
    ];
    assert!(
        found
            .iter()
            .map(|b| &b.payload[..])
            .eq(wanted.iter().map(|b| b.bytes()))
    );
    assert!(disk.read(&segment_path(2)).len() > 100_000);
}

#[test]
fn segments_are_filled_to_the_last_byte() {
    // Lengths around the one that leaves exactly the 48 bytes of a seal.
    let fill = (SEGMENT - FIRST - 48) as usize - 48;
    let overhead = batch(0, 0).0.bytes().len();
    for len in fill - overhead - 40..fill - overhead + 40 {
        let disk = SimDisk::new(1);
        let mut life = open_clean(&disk);
        life.append([0], len);
        life.rest();
        life.append([3], 0);
        life.rest();
        disk.kill();
        let size = disk.read(&segment_path(1)).len() as u64;
        // A finished segment is cut at its end: after the batch that filled it, or after its header if none fitted.
        let left = segments(&disk).len() > 1 && (size > SEGMENT - 128 || size == FIRST);
        assert!(size == SEGMENT || left, "{len}: {size}");
        let mut life = open_clean(&disk);
        assert_eq!(life.read().0.len(), 2, "{len}");
    }
}

#[test]
fn a_full_disk_at_the_open_refuses_appends_and_recovers() {
    let disk = one_batch_each(2);
    disk.set_capacity(Some(24_500));
    let mut life = open_clean(&disk);
    assert!(
        !disk.names().contains(&SPARE.to_owned()),
        "a spare takes the last space"
    );
    life.expect(0, [0, 1], BIG);
    let (answers, result) = life.try_append(&[batch(2, 40).0, batch(3, 40).0]);
    assert!(matches!(result, Ok(false)));
    assert_eq!(answers, [Err(AppendError::Full); 2]);
    life.rest();
    // Trimming makes room.
    life.deliver_to(1);
    life.append([2], 40);
    disk.kill();
    disk.set_capacity(None);
    let mut life = open_clean(&disk);
    assert_eq!(life.read().0.len(), 2);
}

#[test]
fn an_open_can_use_the_space_that_it_frees() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    disk.kill();
    disk.set_capacity(Some(2 * SEGMENT as usize + 4096));
    let mut life = open_clean(&disk);
    assert_eq!(segments(&disk), [1, 2]);
    life.append([1], 40);
    disk.kill();
    open_clean(&disk).expect(0, [0, 1], 40);
}

#[test]
fn a_full_disk_at_a_roll_refuses_batches_that_do_not_fit() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], BIG);
    disk.set_capacity(Some(10_000));
    let (answers, result) = life.try_append(&[batch(1, BIG).0, batch(1, 0).0, batch(2, BIG).0]);
    assert!(matches!(result, Ok(false)));
    assert_eq!(answers, [Err(AppendError::Full), Ok(()), Err(AppendError::Full)]);
    assert_eq!(life.writer.queue.lock().bytes, 0);
    disk.set_capacity(None);
    life.append([2], BIG);
    disk.kill();
    let mut life = open_clean(&disk);
    assert_eq!(life.read().0.len(), 3);
}

#[test]
fn a_disk_error_at_any_call_loses_nothing() {
    for op in [Op::Create, Op::Write, Op::SyncData, Op::Rename, Op::SyncDir] {
        for skip in 0..12 {
            let disk = SimDisk::new(skip);
            disk.fail(op, "", skip);
            let mut acknowledged = 0;
            if let Ok(mut life) = LogLife::open(&disk, &options(SEGMENT)) {
                for n in 0..6 {
                    let (answers, result) = life.try_append(&[batch(n, BIG).0]);
                    if answers == [Ok(())] {
                        acknowledged = n + 1;
                    }
                    assert_eq!(result.is_ok(), answers[0].is_ok());
                    if result.is_err() {
                        break;
                    }
                }
            }
            disk.kill();
            let mut life = open_clean(&disk);
            let (found, damage) = life.read();
            assert_eq!(damage, None);
            assert!(found.len() as u64 >= acknowledged);
            expect_batches(&found, 0, 0..found.len() as u64, BIG);
        }
    }
}

#[test]
fn many_webhooks_share_a_sync() {
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(1 << 20)).unwrap();
    let syncs = || disk.count(Op::SyncData, "");
    let before = syncs();
    life.append(0..1000, 40);
    assert_eq!(syncs() - before, 1);
    life.rest();
    life.rest();
    assert_eq!(syncs() - before, 2, "more than one seal");
}

#[test]
fn a_reader_stops_at_the_durable_end() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.append([0], 40);
    life.expect(0, [0], 40);
    // The batch is written, but its sync fails: it is in the file but not in the log.
    disk.fail(Op::SyncData, ".segment", 0);
    assert!(life.try_append(&[batch(1, 40).0]).1.is_err());
    let file = disk.mount().open(&segment_path(1)).unwrap();
    let mut magic = [0; 4];
    file.read_at(&mut magic, FIRST + record_len(0, 40)).unwrap();
    assert_eq!(&magic, b"CMCb");
    assert_eq!(life.backlog.peek().unwrap(), None);
    life.backlog.rewind();
    life.expect(0, [0], 40);
}

#[test]
fn a_reader_follows_through_growth_seals_and_rolls() {
    let disk = SimDisk::new(1);
    let mut life = open_clean(&disk);
    life.expect(0, [], 40);
    let mut n = 0;
    for round in 0..60 {
        let group = 1 + round % 4;
        life.append(n..n + group, LEN);
        if round % 3 == 0 {
            life.rest();
        }
        life.expect(n, n..n + group, LEN);
        n += group;
        if round % 7 == 0 {
            life.deliver_to(n);
        }
    }
    assert!(*segments(&disk).last().unwrap() > 10);
    assert!(segments(&disk).len() < 5);
}

#[test]
fn batches_larger_than_the_readers_buffer() {
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(2 << 20)).unwrap();
    for n in 0..12 {
        life.append([n], 100_000 + n as usize);
    }
    let (found, damage) = life.read();
    assert_eq!((found.len(), damage), (12, None));
    for (n, found) in (0..).zip(&found) {
        assert!(found.payload == batch(n, 100_000 + n as usize).0.bytes());
    }
}
