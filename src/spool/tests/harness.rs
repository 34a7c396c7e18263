//! Harness of the spool's tests: one life of a log on a simulated disk, without threads. The simulation of the whole uses
//! [`SteppedLog`]; the rest is for the spool's own tests.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use prometheus::{Histogram, HistogramOpts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    batch::{Batch, BatchBuilder},
    books::Books,
    stream::{Stream, Tally},
};

use crate::simulation::disk::SimDisk;

use crate::spool::{
    AppendError, Appender, Backlog, Damage, Durability, LogMetrics, LogOptions, Manifest, ReadError,
    SegmentId, Seq, SpoolError, StoredBatch,
    appender::Pending,
    checkpoint::{self, StoredPosition},
    log::LogWriter,
    next_segment::Preparer,
    record::{self, Checksum, RecordKind},
    repair::{Repaired, rewrite},
    scan::valid_records,
    segment,
    storage::Storage,
    survey::Survey,
};

pub const DIR: &str = "/spool/deliveries";

pub fn options(segment_bytes: u64) -> LogOptions {
    LogOptions {
        dir: PathBuf::from(DIR),
        name: "deliveries",
        // So few that only two trimmed segments of the tests' length are kept.
        max_bytes: 64 * segment_bytes,
        segment_bytes,
        durability: Durability::Fsync,
    }
}

pub fn metrics() -> LogMetrics {
    let histogram = |name: &str| Histogram::with_opts(HistogramOpts::new(name, name)).unwrap();
    LogMetrics {
        sync_seconds: histogram("sync"),
        commit_webhooks: histogram("webhooks"),
    }
}

/// A batch identified by its number: its content depends on it, and it is at least `len` bytes long.
pub fn batch(number: u64, len: usize) -> (Batch, Tally) {
    let mut builder = BatchBuilder::new(number as i64, &[("n", &number.to_le_bytes())], b"", len);
    let mut tally = Tally::default();
    for record in 0..=number % 3 {
        let len = if record == 0 { len } else { 0 };
        builder.push(None, &[], &[&vec![number as u8 | 1; len]]);
        tally.count(Stream::Deliveries, None);
    }
    (builder.finish(), tally)
}

pub fn permit() -> OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
}

/// Length of a segment's header in bytes.
pub const HEADER: u64 = segment::HEADER as u64;

pub fn segment_path(id: u64) -> PathBuf {
    Path::new(DIR).join(segment::file_name(SegmentId(id)))
}

/// An appender that takes batches at once: without threads, nothing opens it.
pub fn open_appender(options: &LogOptions) -> Appender {
    let appender = Appender::of_closed_log(options.max_bytes);
    appender.queue.open();
    appender
}

/// From now on every append fails, including those that wait.
pub fn fail(appender: &Appender) {
    appender.queue.fail();
}

/// One run of a thread.
pub type ThreadStep = Arc<dyn Fn() + Send + Sync>;

/// An open log whose threads are steps. Between their waits they run the same code as [`super::Log`]'s.
pub struct SteppedLog(LogWriter);

/// The result of [`SteppedLog::open`].
pub struct OpenedLog {
    pub log: SteppedLog,
    pub backlog: Backlog,
    pub appender: Appender,
    pub damage: Vec<Damage>,
    /// The thread that prepares segments. The writer must not run meanwhile, because it would wait for it.
    pub prepare: ThreadStep,
}

impl SteppedLog {
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        books: Arc<Books>,
        metrics: LogMetrics,
    ) -> Result<OpenedLog, SpoolError> {
        let appender = open_appender(options);
        let queue = Arc::clone(&appender.queue);
        let (mut writer, backlog, damage) =
            LogWriter::open(Arc::clone(&storage), options, queue, books, metrics)?;
        let preparer = Preparer::stepped(storage, options.dir.clone(), Arc::clone(&writer.trimmed));
        let prepare = preparer.by_hand().unwrap();
        writer.preparer = Some(preparer);
        Ok(OpenedLog {
            log: SteppedLog(writer),
            backlog,
            appender,
            damage,
            prepare,
        })
    }

    /// The writer's thread wakes up. Returns false when the log is closed and everything is written.
    pub fn turn(&mut self) -> Result<bool, SpoolError> {
        let turn = self.0.turn();
        if turn.is_err() {
            self.0.queue.fail();
        }
        turn
    }

    /// Takes no more batches.
    pub fn close(&self) {
        self.0.queue.close();
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.0.queue.lock().waiting.is_empty()
    }
}

/// A log whose appends call the writer's own functions, in groups, and are answered at once.
pub struct LogLife {
    pub(in crate::spool) writer: LogWriter,
    pub backlog: Backlog,
    pub damage: Vec<Damage>,
    pub books: Arc<Books>,
}

impl LogLife {
    pub fn open(disk: &SimDisk, options: &LogOptions) -> Result<LogLife, SpoolError> {
        let books = Arc::new(Books::default());
        let queue = open_appender(options).queue;
        let (writer, backlog, damage) =
            LogWriter::open(disk.mount(), options, queue, Arc::clone(&books), metrics())?;
        Ok(LogLife {
            writer,
            backlog,
            damage,
            books,
        })
    }

    /// Appends these batches as one group. Returns each one's answer and the writer's result for the group.
    pub fn try_append(
        &mut self,
        batches: &[Batch],
    ) -> (Vec<Result<(), AppendError>>, Result<bool, SpoolError>) {
        let mut answers = Vec::new();
        let mut group = Vec::new();
        for batch in batches {
            let (done, answer) = oneshot::channel();
            let mut tally = Tally::default();
            (0..batch.events()).for_each(|_| tally.count(Stream::Deliveries, None));
            self.writer.queue.lock().bytes += batch.bytes().len() as u64;
            answers.push(answer);
            group.push(Pending {
                batch: batch.clone(),
                tally,
                withdrawn: Arc::new(AtomicBool::new(false)),
                done,
                _permit: permit(),
            });
        }
        let result = self.writer.write(&mut group);
        drop(group);
        let answers = answers
            .into_iter()
            .map(|mut answer| answer.try_recv().unwrap_or(Err(AppendError::Failed)))
            .collect();
        (answers, result)
    }

    /// Appends the batches with these numbers as one group; all must become durable.
    pub fn append(&mut self, numbers: impl IntoIterator<Item = u64>, len: usize) {
        let batches: Vec<Batch> = numbers.into_iter().map(|n| batch(n, len).0).collect();
        let (answers, result) = self.try_append(&batches);
        assert!(
            result.unwrap() && answers.iter().all(Result::is_ok),
            "{answers:?}"
        );
    }

    /// Seals the log.
    pub fn rest(&mut self) {
        self.writer.rest().unwrap();
    }

    /// Reads to the end or to the first error.
    pub fn read(&mut self) -> (Vec<StoredBatch>, Option<Damage>) {
        let mut batches = Vec::new();
        loop {
            match self.backlog.take() {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => return (batches, None),
                Err(ReadError::Damaged(damage)) => return (batches, Some(damage)),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads to the end: exactly these numbers must follow, in order, from sequence `first` on.
    pub fn expect(&mut self, first: u64, numbers: impl IntoIterator<Item = u64>, len: usize) {
        let (batches, damage) = self.read();
        assert_eq!(damage, None);
        expect_batches(&batches, first, numbers, len);
        assert_eq!(self.backlog.end().seq.0, first + batches.len() as u64);
    }

    /// Marks everything before `seq` as delivered.
    pub fn deliver_to(&mut self, seq: u64) {
        let position = self.backlog.seek(Seq(seq)).unwrap();
        self.backlog.advance(position);
        self.backlog.store_checkpoint().unwrap();
    }
}

pub fn expect_batches(
    batches: &[StoredBatch],
    first: u64,
    numbers: impl IntoIterator<Item = u64>,
    len: usize,
) {
    let found: Vec<(u64, &[u8])> = batches.iter().map(|b| (b.seq.0, &b.payload[..])).collect();
    let wanted: Vec<Batch> = numbers.into_iter().map(|n| batch(n, len).0).collect();
    let wanted: Vec<(u64, &[u8])> = (first..).zip(wanted.iter().map(Batch::bytes)).collect();
    assert!(
        found == wanted,
        "found sequences {:?}, wanted {:?} (or the content differs)",
        found.iter().map(|f| f.0).collect::<Vec<_>>(),
        wanted.iter().map(|w| w.0).collect::<Vec<_>>()
    );
}

/// Does what `spool repair --accept-loss` does, to a closed log on a simulated disk, without crashes in between.
pub fn repair(disk: &SimDisk, options: &LogOptions) -> Result<Option<Repaired>, SpoolError> {
    let storage = disk.mount();
    let work = options.dir.with_extension("repairing");
    let survey = || Survey::open_on(Arc::clone(&storage) as _, &options.dir);
    let begin = || {
        storage
            .create_dir_all(&work)
            .map_err(SpoolError::io("create the directory", &work))
    };
    let repaired = rewrite(
        &survey,
        &storage,
        &work,
        begin,
        options.segment_bytes,
        options.durability,
    )?;
    if repaired.is_some() {
        disk.settle();
        disk.put_in_place(&work, &options.dir);
    }
    Ok(repaired)
}

/// The position stored in the checkpoint of the log in `dir`.
pub fn stored_position(disk: &SimDisk, dir: &Path) -> Option<StoredPosition> {
    let log_id = Manifest::read(&*disk.mount(), dir).unwrap()?.log_id.into_bytes();
    checkpoint::read(&*disk.mount(), dir, log_id).unwrap()
}

/// The place of a valid record in its segment.
pub struct RecordPlace {
    pub at: usize,
    /// Without padding.
    pub len: usize,
    pub commit: u64,
    pub is_batch: bool,
}

/// The valid records of a segment.
pub fn records(disk: &SimDisk, path: &Path) -> Vec<RecordPlace> {
    let dir = path.parent().unwrap();
    let manifest = Manifest::read(&*disk.mount(), dir).unwrap().unwrap();
    let id = segment::parse_file_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let checksum = Checksum::new(manifest.log_id.as_bytes(), id);
    valid_records(&disk.read(path), &checksum, segment::HEADER)
        .map(|found| RecordPlace {
            at: found.at,
            len: record::HEADER + found.header.payload_len,
            commit: found.header.commit.0,
            is_batch: found.header.kind == RecordKind::Batch,
        })
        .collect()
}

/// The id of the log, which every checksum covers.
pub fn log_id(disk: &SimDisk) -> [u8; 16] {
    let manifest = Manifest::read(&*disk.mount(), Path::new(DIR)).unwrap().unwrap();
    manifest.log_id.into_bytes()
}

/// The existing segments, oldest first.
pub fn segments(disk: &SimDisk) -> Vec<u64> {
    let names = disk.names();
    let mut ids: Vec<u64> = names
        .iter()
        .filter_map(|name| segment::parse_file_name(name).map(|id| id.0))
        .collect();
    ids.sort_unstable();
    ids
}
