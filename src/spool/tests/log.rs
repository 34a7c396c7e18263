//! A log with its threads, on the simulated disk.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{books::Books, clock};

use super::harness::{
    DIR, LogLife, batch, expect_batches, log_id, metrics, options, permit, segment_path, segments,
};
use crate::{
    simulation::disk::{Op, SimDisk},
    spool::{
        AppendError, Appender, Backlog, Log, LogOptions, LogState, ReadError, SegmentId, Seq, SpoolError,
        next_segment::{Blocks, Preparer, SPARE, Taken, Trimmed, Wanted},
        record, segment,
        storage::{FileSystem, ReadFile, ReadStorage, Storage, StorageFile},
    },
};

const SEGMENT: u64 = 8 << 10;
/// Only one batch of this length fits in a segment.
const BIG: usize = 2500;
const LONG: Duration = Duration::from_secs(20);

struct Opened {
    log: Log,
    backlog: Backlog,
    appender: Appender,
    failure: mpsc::Receiver<SpoolError>,
}

fn open(disk: &SimDisk, options: &LogOptions) -> Opened {
    let (failed, failure) = mpsc::channel();
    let (log, backlog) = Log::open(
        disk.mount(),
        options,
        Arc::new(Books::default()),
        metrics(),
        move |error| failed.send(error).unwrap(),
    )
    .unwrap();
    Opened {
        appender: log.appender(),
        log,
        backlog,
        failure,
    }
}

async fn append(appender: &Appender, number: u64, len: usize) -> Result<(), AppendError> {
    let (batch, tally) = batch(number, len);
    appender
        .append(batch, tally, permit(), Instant::now() + LONG)
        .await
}

fn read(backlog: &mut Backlog, n: usize) -> Vec<crate::spool::StoredBatch> {
    let deadline = Instant::now() + LONG;
    let mut found = Vec::new();
    while found.len() < n {
        assert!(Instant::now() < deadline, "only {} of {n}", found.len());
        match backlog.take().unwrap() {
            Some(batch) => found.push(batch),
            None => backlog.wait(LONG),
        }
    }
    found
}

fn none_trimmed() -> Arc<Trimmed> {
    Arc::new(Trimmed::new(0, SEGMENT))
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_wait_together_share_a_sync() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, &options(1 << 20));
    append(&opened.appender, 0, 40).await.unwrap();
    let syncs = disk.count(Op::SyncData, ".segment");
    disk.hold_syncs(true);
    let tasks: Vec<_> = (1..200)
        .map(|n| {
            let appender = opened.appender.clone();
            tokio::spawn(async move { append(&appender, n, 40).await })
        })
        .collect();
    let queue = Arc::clone(&opened.appender.queue);
    let bytes: u64 = (1..200).map(|n| batch(n, 40).0.bytes().len() as u64).sum();
    until("all appends to wait", || queue.lock().bytes == bytes);
    assert_eq!(opened.backlog.end().seq, Seq(1), "read before the sync");
    assert!(tasks.iter().all(|task| !task.is_finished()));
    disk.hold_syncs(false);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    // At most the sync already begun, one for all others, and a seal before, between and after them.
    assert!(disk.count(Op::SyncData, ".segment") - syncs <= 5);
    assert_eq!(read(&mut opened.backlog, 200).len(), 200);
    assert_eq!(queue.lock().bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_batch_is_read_once_and_in_order_while_others_append_and_trim() {
    let disk = SimDisk::new(1);
    let roomy = LogOptions {
        // All batches fit, however late the reader comes.
        max_bytes: 256 * SEGMENT,
        ..options(SEGMENT)
    };
    let mut opened = open(&disk, &roomy);
    let acknowledged = Arc::new(AtomicUsize::new(0));
    for writer in 0..8 {
        let appender = opened.appender.clone();
        let acknowledged = Arc::clone(&acknowledged);
        tokio::spawn(async move {
            for n in 0..100 {
                append(&appender, writer * 1000 + n, 300).await.unwrap();
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let lane = thread::spawn(move || {
        let mut next = [0; 8];
        for seq in 0..800 {
            let found = read(&mut opened.backlog, 1).remove(0);
            assert_eq!(found.seq, Seq(seq));
            let writer = (0..8)
                .find(|w| found.payload == batch(w * 1000 + next[*w as usize], 300).0.bytes())
                .expect("a batch out of order or read twice");
            next[writer as usize] += 1;
            if seq % 13 == 0 {
                opened.backlog.advance(found.end());
                opened.backlog.store_checkpoint().unwrap();
            }
        }
        opened
    });
    let opened = lane.join().unwrap();
    until("all appends to be answered", || {
        acknowledged.load(Ordering::Relaxed) == 800
    });
    assert!(segments(&disk).len() < 20 && segments(&disk)[0] > 20);
    assert!(opened.failure.try_recv().is_err());
}

#[tokio::test]
async fn a_deleted_segment_takes_no_more_batches() {
    let disk = SimDisk::new(1);
    let opened = open(&disk, &options(SEGMENT));
    append(&opened.appender, 0, 40).await.unwrap();
    disk.delete(&segment_path(1));
    assert_eq!(append(&opened.appender, 1, 40).await, Err(AppendError::Failed));
    let error = opened.failure.recv_timeout(LONG).unwrap();
    assert!(error.to_string().contains("somebody deleted"), "{error}");
}

#[tokio::test]
async fn a_failed_sync_ends_the_log() {
    for op in [Op::SyncData, Op::Write] {
        let disk = SimDisk::new(1);
        let mut opened = open(&disk, &options(SEGMENT));
        append(&opened.appender, 0, 40).await.unwrap();
        disk.fail(op, ".segment", u64::from(op == Op::Write));
        disk.hold_syncs(true);
        let (first, second, third) = tokio::join!(
            append(&opened.appender, 1, 40),
            append(&opened.appender, 2, 40),
            async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                disk.hold_syncs(false);
                append(&opened.appender, 3, 40).await
            }
        );
        // Every batch in the failed commit or after it fails, and none is reported as successful later.
        let answers = [first, second, third, append(&opened.appender, 4, 40).await];
        let good = answers.iter().take_while(|answer| answer.is_ok()).count();
        // The first three may share a commit; the one after the failed call can't succeed.
        assert!(good < 4, "{answers:?}");
        assert!(
            answers[good..].iter().all(|a| *a == Err(AppendError::Failed)),
            "{answers:?}"
        );
        opened.failure.recv_timeout(LONG).unwrap();
        assert_eq!(opened.appender.state(), LogState::Failed);
        assert_eq!(read(&mut opened.backlog, 1 + good).len(), 1 + good);
        assert!(opened.backlog.take().unwrap().is_none(), "a failed batch is read");
        opened.log.close();
        assert!(opened.failure.recv().is_err(), "the callback is called twice");
        assert_eq!(append(&opened.appender, 5, 40).await, Err(AppendError::Failed));
    }
}

/// Otherwise a failure of another log, or a second signal, would wait for it.
#[tokio::test]
async fn a_log_whose_disk_hangs_can_be_dropped() {
    let disk = SimDisk::new(1);
    let opened = open(&disk, &options(SEGMENT));
    disk.hold_syncs(true);
    let appender = opened.appender.clone();
    let waiting = tokio::spawn(async move { append(&appender, 0, 40).await });
    while disk.count(Op::Write, ".segment") < 1 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || drop(opened)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(!waiting.is_finished());
    disk.hold_syncs(false);
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn closing_makes_waiting_batches_durable_and_seals() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, &options(SEGMENT));
    disk.hold_syncs(true);
    let appender = opened.appender.clone();
    let waiting = tokio::spawn(async move {
        let one = append(&appender, 0, 40);
        let two = append(&appender, 1, 40);
        tokio::join!(one, two)
    });
    while opened.appender.queue.lock().bytes < 2 * 40 {
        tokio::task::yield_now().await;
    }
    let closing = tokio::task::spawn_blocking(move || {
        opened.log.close();
        opened
    });
    let appender = loop {
        disk.hold_syncs(false);
        if closing.is_finished() {
            break closing.await.unwrap();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(waiting.await.unwrap(), (Ok(()), Ok(())));
    assert_eq!(append(&appender.appender, 2, 40).await, Err(AppendError::Closed));
    let bytes = disk.read(&segment_path(1));
    let records = [0, 1].map(|n| record::record_len(batch(n, 40).0.bytes().len()));
    let seal = segment::first_batch_at(1) + records.iter().sum::<usize>();
    let checksum = record::Checksum::new(&log_id(&disk), SegmentId(1));
    let seals = [seal, seal + record::HEADER].map(|at| checksum.header(&bytes[at..]));
    assert!(seals.iter().flatten().any(|h| h.kind == record::RecordKind::Seal));
    drop(appender);
    // The seal is durable too.
    disk.crash(3);
    let mut opened = open(&disk, &options(SEGMENT));
    expect_batches(&read(&mut opened.backlog, 2), 0, [0, 1], 40);
}

#[tokio::test]
async fn a_full_budget_refuses_until_a_trim() {
    let disk = SimDisk::new(1);
    let options = LogOptions {
        max_bytes: 20_000,
        ..options(SEGMENT)
    };
    let mut opened = open(&disk, &options);
    let mut taken = 0;
    let refusal = loop {
        match append(&opened.appender, taken, BIG).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refusal, AppendError::Full);
    // On top of the payloads come at most a header and seals.
    assert!(opened.appender.used_bytes() <= 20_000 + 4096 + 1000);
    assert!((2..8).contains(&taken), "{taken}");
    let found = read(&mut opened.backlog, taken as usize);
    opened.backlog.advance(found[0].end());
    opened.backlog.store_checkpoint().unwrap();
    append(&opened.appender, taken, BIG).await.unwrap();
    assert_eq!(append(&opened.appender, 9, BIG).await, Err(AppendError::Full));
    // After the next open, the bytes already on the disk count as well.
    opened.log.close();
    let opened = open(&disk, &options);
    assert_eq!(append(&opened.appender, 9, BIG).await, Err(AppendError::Full));
    assert_eq!(
        append(&opened.appender, 9, 30_000).await,
        Err(AppendError::Full),
        "it can never fit"
    );
}

#[tokio::test]
async fn a_batch_that_waits_too_long_is_withdrawn() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, &options(SEGMENT));
    append(&opened.appender, 0, 40).await.unwrap();
    disk.hold_syncs(true);
    let slots = Arc::new(Semaphore::new(10));
    let slot = || -> OwnedSemaphorePermit { Arc::clone(&slots).try_acquire_owned().unwrap() };
    let short = Duration::from_millis(30);
    for n in 1..4 {
        let (batch, tally) = batch(n, 40);
        let answer = opened
            .appender
            .append(batch, tally, slot(), Instant::now() + short)
            .await;
        assert_eq!(answer, Err(AppendError::TooSlow));
    }
    assert!(slots.available_permits() < 10, "its memory is still in use");
    disk.hold_syncs(false);
    append(&opened.appender, 4, 40).await.unwrap();
    assert_eq!(slots.available_permits(), 10);
    assert_eq!(opened.appender.queue.lock().bytes, 0);
    // At most the batch that was being written is in the log.
    let (end, found) = (
        opened.backlog.end().seq.0,
        opened.backlog.take().unwrap().unwrap(),
    );
    assert_eq!(found.seq, Seq(0));
    assert!(end <= 3, "{end}");
}

#[tokio::test]
async fn an_empty_log_is_not_full_after_a_refusal() {
    let disk = SimDisk::new(1);
    let options = LogOptions {
        max_bytes: 20_000,
        ..options(SEGMENT)
    };
    let opened = open(&disk, &options);
    assert_eq!(append(&opened.appender, 0, 30_000).await, Err(AppendError::Full));
    assert_eq!(
        opened.appender.state(),
        LogState::Accepting,
        "it has room for other batches"
    );
    // Nor does it stay full of batches that gave up waiting for the disk.
    disk.hold_syncs(true);
    let short = Duration::from_millis(10);
    let refusal = loop {
        let (batch, tally) = batch(0, BIG);
        match opened
            .appender
            .append(batch, tally, permit(), Instant::now() + short)
            .await
        {
            Err(AppendError::TooSlow) => {}
            refusal => break refusal,
        }
    };
    assert_eq!(refusal, Err(AppendError::Full));
    assert_eq!(opened.appender.state(), LogState::Full);
    disk.hold_syncs(false);
    until("the log to take batches again", || {
        opened.appender.state() == LogState::Accepting
    });
}

#[tokio::test]
async fn an_open_log_waits_until_a_full_disk_has_room() {
    let disk = SimDisk::new(1);
    drop(open(&disk, &options(SEGMENT)));
    disk.set_capacity(Some(10_000));
    let opened = open(&disk, &options(SEGMENT));
    assert_eq!(opened.appender.state(), LogState::Full);
    assert_eq!(append(&opened.appender, 0, 40).await, Err(AppendError::Full));
    disk.set_capacity(None);
    until("the log to recover without a call", || {
        opened.appender.state() == LogState::Accepting
    });
    append(&opened.appender, 0, 40).await.unwrap();
    assert!(opened.failure.try_recv().is_err());
}

#[tokio::test]
async fn a_batch_too_large_for_the_disk_keeps_no_other_out() {
    let disk = SimDisk::new(1);
    let opened = open(&disk, &options(SEGMENT));
    disk.set_capacity(Some(40_000));
    assert_eq!(append(&opened.appender, 0, 100_000).await, Err(AppendError::Full));
    append(&opened.appender, 1, 40).await.unwrap();
    // The writer says so once it has answered; without a batch it would check only a second later.
    until("the log to take batches again", || {
        opened.appender.state() == LogState::Accepting
    });
    // Nor does it keep batches out of the next segment.
    assert_eq!(append(&opened.appender, 0, 100_000).await, Err(AppendError::Full));
    for n in 2..5 {
        append(&opened.appender, n, BIG).await.unwrap();
    }
}

#[tokio::test]
async fn a_lane_waits_for_unread_batches_and_can_be_woken() {
    let disk = SimDisk::new(1);
    let mut opened = open(&disk, &options(SEGMENT));
    append(&opened.appender, 0, 40).await.unwrap();
    let took = |backlog: &Backlog, limit| {
        let start = Instant::now();
        backlog.wait(limit);
        start.elapsed()
    };
    let short = Duration::from_millis(50);
    assert!(
        took(&opened.backlog, LONG) < LONG / 2,
        "it waits although a batch is there"
    );
    opened.backlog.take().unwrap().unwrap();
    // The batch has been read but is not in Kafka yet.
    assert!(took(&opened.backlog, short) >= short);
    let waker = opened.backlog.waker();
    waker();
    assert!(
        took(&opened.backlog, LONG) < LONG / 2,
        "it misses a wake-up before the wait"
    );
    assert!(
        took(&opened.backlog, short) >= short,
        "one wake-up ends two waits"
    );
    let backlog = opened.backlog;
    let waiting = thread::spawn(move || {
        let first = took(&backlog, LONG);
        let second = took(&backlog, LONG);
        (first, second, backlog)
    });
    thread::sleep(Duration::from_millis(20));
    waker();
    thread::sleep(Duration::from_millis(20));
    append(&opened.appender, 1, 40).await.unwrap();
    let (first, second, mut backlog) = waiting.join().unwrap();
    assert!(first < LONG / 2 && second < LONG / 2, "{first:?} {second:?}");
    backlog.take().unwrap().unwrap();
    opened.log.close();
    assert!(took(&backlog, short) >= short, "closing the log wakes the lane");
}

/// A reader may have a trimmed segment open, before its seal, while that segment is rewritten.
#[test]
fn a_reader_survives_the_reuse_of_a_segment() {
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(SEGMENT)).unwrap();
    for n in (0..30).step_by(3) {
        // More than the reader reads at once, so it has not read the seal.
        life.append([n], 300_000);
        life.rest();
        let batch = life.backlog.take().unwrap().unwrap();
        life.backlog.advance(batch.end());
        life.append([n + 1], BIG);
        life.backlog.store_checkpoint().unwrap();
        life.append([n + 2], BIG);
        assert_eq!(life.backlog.take().unwrap().unwrap().seq, Seq(n + 1));
        life.expect(n + 2, [n + 2], BIG);
        life.deliver_to(n + 3);
    }
    assert!(disk.count(Op::Rename, ".segment") > 10, "segments are not reused");
}

#[test]
fn few_segments_are_kept_for_reuse() {
    let disk = SimDisk::new(1);
    let options = LogOptions {
        max_bytes: 100 * SEGMENT,
        ..options(SEGMENT)
    };
    let mut life = LogLife::open(&disk, &options).unwrap();
    life.append(0..12, BIG);
    assert_eq!(segments(&disk).len(), 12);
    life.deliver_to(11);
    assert_eq!(segments(&disk).len(), 4, "the active one and three for reuse");
    drop(life);
    disk.kill();
    LogLife::open(&disk, &options).unwrap();
    assert_eq!(
        segments(&disk).len(),
        2,
        "the former active one and the fresh one"
    );
}

/// The syncs of other logs wait for what the disk is doing.
#[test]
fn a_giant_batch_leaves_the_disk_to_others_again_and_again() {
    const MIB: usize = 1 << 20;
    let begun = Instant::now();
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(64 << 20)).unwrap();
    let mut syncs_and_time = |numbers: std::ops::Range<u64>, len, sync_time| {
        disk.set_sync_time(sync_time);
        clock::simulate(Some(begun));
        let syncs = disk.count(Op::SyncData, ".segment");
        life.append(numbers, len);
        (disk.count(Op::SyncData, ".segment") - syncs, clock::since(begun))
    };
    let millis = Duration::from_millis;
    assert_eq!(syncs_and_time(0..1, 3 * MIB, millis(1)), (13, millis(13 + 12)));
    // Where a sync takes long, the next piece is larger.
    assert_eq!(syncs_and_time(1..2, 3 * MIB, millis(10)), (4, millis(40 + 30)));
    assert_eq!(syncs_and_time(2..3, 3 * MIB, millis(50)), (4, millis(200 + 60)));
    // Many small ones are worth one sync.
    assert_eq!(syncs_and_time(3..7, MIB - 4096, millis(10)), (1, millis(10)));
    assert_eq!(syncs_and_time(7..8, MIB + 4096, millis(1)).0, 5);
    clock::simulate(None);
    // Pauses are not the disk's time.
    let disk_time = life.writer.metrics.sync_seconds.get_sample_sum();
    assert!((disk_time - 0.268).abs() < 1e-6, "{disk_time}");
}

/// A backlog must not fill the page cache with data that nobody reads soon.
#[test]
fn segments_far_ahead_of_the_reader_leave_the_cache() {
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(SEGMENT)).unwrap();
    // One batch per segment. The reader stays in the first one.
    life.backlog.peek().unwrap();
    life.append(0..8, BIG);
    let uncached = |disk: &SimDisk| -> Vec<u64> {
        let all = 1..=segments(disk).len() as u64;
        all.filter(|id| disk.count(Op::Uncache, &segment::file_name(SegmentId(*id))) > 0)
            .collect()
    };
    assert_eq!(segments(&disk).len(), 8);
    assert_eq!(uncached(&disk), [5, 6, 7]);
    // The reader has caught up and reads from memory.
    life.expect(0, 0..8, BIG);
    life.append(8..12, BIG);
    assert_eq!(uncached(&disk), [5, 6, 7]);
    life.append([12], BIG);
    assert_eq!(uncached(&disk), [5, 6, 7, 12]);
}

#[test]
fn a_single_failed_read_is_not_damage() {
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(1 << 20)).unwrap();
    life.append(0..5, 100_000);
    // The reader holds two batches and the beginning of the third.
    life.backlog.take().unwrap();
    disk.fail(Op::Read, ".segment", 0);
    life.backlog.take().unwrap();
    assert!(matches!(life.backlog.take(), Err(ReadError::Spool(_))));
    life.expect(2, 2..5, 100_000);
}

/// Writing zeros is worthwhile only if there is time for it.
#[test]
fn segments_that_fill_fast_are_not_filled_with_zeros_first() {
    clock::simulate(Some(Instant::now()));
    let disk = SimDisk::new(1);
    let mut life = LogLife::open(&disk, &options(64 << 10)).unwrap();
    let preparer = Preparer::stepped(disk.mount(), DIR.into(), none_trimmed());
    let prepare = preparer.by_hand().unwrap();
    life.writer.preparer = Some(preparer);
    let mut writes_of_a_segment_after = |between: Duration| {
        let (begun, written) = (segments(&disk).len(), disk.count(Op::Write, SPARE));
        while segments(&disk).len() == begun {
            clock::simulate(Some(clock::now() + between));
            life.append([0], 10_000);
            prepare();
        }
        disk.count(Op::Write, SPARE) - written
    };
    // Only the header.
    assert_eq!(writes_of_a_segment_after(Duration::ZERO), 1);
    assert_eq!(writes_of_a_segment_after(Duration::from_millis(100)), 2);
    assert_eq!(writes_of_a_segment_after(Duration::ZERO), 1);
    clock::simulate(None);
}

fn zeroed(len: u64) -> Wanted {
    Wanted {
        len,
        blocks: Blocks::Zeroed,
    }
}

#[test]
fn a_dropped_preparer_makes_no_more_calls() {
    let disk = SimDisk::new(1);
    disk.mount().create_dir_all(DIR.as_ref()).unwrap();
    for _ in 0..20 {
        let preparer = Preparer::start(disk.mount(), DIR.into(), none_trimmed(), "prepare".into()).unwrap();
        preparer.want(zeroed(4 << 20));
        until("the preparer to begin", || {
            disk.names().contains(&SPARE.to_owned())
        });
        drop(preparer);
        let calls = || disk.count(Op::Write, "") + disk.count(Op::SyncData, "");
        let before = calls();
        disk.mount().remove(format!("{DIR}/{SPARE}").as_ref()).unwrap();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(calls(), before);
    }
}

#[test]
fn a_preparer_provides_spares_of_the_requested_length() {
    let disk = SimDisk::new(1);
    disk.mount().create_dir_all(DIR.as_ref()).unwrap();
    let preparer = Preparer::start(disk.mount(), DIR.into(), none_trimmed(), "prepare".into()).unwrap();
    preparer.want(zeroed(1000));
    for len in [1000, 5000, 10] {
        match preparer.take(len) {
            Taken::Spare(spare) => assert!(spare.len >= len && spare.file.size().unwrap() == spare.len),
            _ => panic!("no spare"),
        }
    }
    disk.set_capacity(Some(100_000));
    let written = disk.count(Op::Write, SPARE);
    assert!(written > 0);
    assert!(matches!(preparer.take(200_000), Taken::NoSpace));
    assert!(matches!(preparer.take(200_000), Taken::NoSpace));
    // A disk without enough room is not filled to find that out, nor while somebody waits.
    assert_eq!(disk.count(Op::Write, SPARE), written);
    assert!(matches!(preparer.take(1000), Taken::Spare(_)));
    disk.fail(Op::SyncData, SPARE, 0);
    assert!(matches!(preparer.take(1000), Taken::Failed(_)));
}

/// A storage that panics at every call.
struct Buggy;

impl ReadStorage for Buggy {
    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        panic!("a bug");
    }
    fn open(&self, _: &Path) -> io::Result<Box<dyn ReadFile>> {
        panic!("a bug");
    }
}

impl Storage for Buggy {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        panic!("a bug");
    }
    fn create(&self, _: &Path) -> io::Result<Box<dyn StorageFile>> {
        panic!("a bug");
    }
    fn open_for_writing(&self, _: &Path) -> io::Result<Box<dyn StorageFile>> {
        panic!("a bug");
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        panic!("a bug");
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        panic!("a bug");
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        panic!("a bug");
    }
}

#[test]
fn a_preparer_that_panics_leaves_nobody_waiting() {
    let buggy = Arc::new(Buggy);
    let preparer = Preparer::start(buggy, DIR.into(), none_trimmed(), "prepare".into()).unwrap();
    let (taker, taken) = mpsc::channel();
    thread::spawn(move || taker.send(preparer.take(1000)));
    assert!(matches!(taken.recv_timeout(LONG), Ok(Taken::Failed(_))));
}

/// The same on a real file system.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        dir: dir.path().join("deliveries"),
        ..options(SEGMENT)
    };
    let mut n = 0;
    for life in 0..3 {
        let (mut log, mut backlog) = Log::open(
            Arc::new(FileSystem),
            &options,
            Arc::new(Books::default()),
            metrics(),
            |error| panic!("{error}"),
        )
        .unwrap();
        assert_eq!(log.damage(), []);
        for _ in 0..20 {
            append(&log.appender(), n, 700).await.unwrap();
            n += 1;
        }
        let position = backlog.position();
        let wanted = position.seq.0..n;
        let found = read(&mut backlog, (n - position.seq.0) as usize);
        expect_batches(&found, position.seq.0, wanted, 700);
        if life == 1 {
            backlog.advance(found[30].end());
            backlog.store_checkpoint().unwrap();
        }
        log.close();
    }
    let file = FileSystem.open(&options.dir.join("manifest")).unwrap();
    assert!(file.size().unwrap() > 0);
}
