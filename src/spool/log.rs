//! One open log and its writer thread.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use prometheus::Histogram;
use uuid::Uuid;

use crate::{books::Books, clock, stream::Tally};

use super::{
    appender::{AppendError, Appender, Pending, Queue},
    backlog::Backlog,
    checkpoint::Checkpoint,
    damage::Damage,
    error::SpoolError,
    next_segment::{Blocks, Preparer, Spare, Taken, Trimmed, Wanted},
    position::{Position, SegmentId, Seq},
    reader::Reader,
    recovery::{Inspection, recover},
    segment::{self, Durability, Incarnation, SegmentEnd, SegmentInfo},
    shared_end::{SharedEnd, Trimmer},
    storage::Storage,
    writer::{NewSegment, Writer},
};

/// A commit holds no more bytes than this, unless one batch alone does.
const COMMIT_BYTES: usize = 4 << 20;
/// The log is sealed when no batch has arrived for this long.
const SEAL_AFTER: Duration = Duration::from_millis(100);
/// How long the writer waits before it looks for room on a full disk again.
const ROOM_CHECK: Duration = Duration::from_secs(1);
/// How long a dropped log waits for its writer, and how often it checks.
const LAST_WRITES: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);
/// Bytes per second. While a log grows faster, its new segments are not filled with zeros first.
const FAST: u64 = 160 << 20;

/// Configuration of a log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The log's directory.
    pub dir: PathBuf,
    /// Names the log's threads.
    pub name: &'static str,
    /// Written and not yet trimmed bytes beyond which appends are refused.
    pub max_bytes: u64,
    pub segment_bytes: u64,
    pub durability: Durability,
}

/// What the writer measures.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    /// Seconds that the disk took to write and sync a commit.
    pub sync_seconds: Histogram,
    /// Webhooks in a commit.
    pub commit_webhooks: Histogram,
}

/// An open log.
pub struct Log {
    queue: Arc<Queue>,
    writer: Option<thread::JoinHandle<()>>,
    damage: Vec<Damage>,
}

impl Log {
    /// [`Log::open_for`] with an appender of its own.
    ///
    /// # Errors
    /// The log can't be opened.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        books: Arc<Books>,
        metrics: LogMetrics,
        on_failure: impl FnOnce(SpoolError) + Send + 'static,
    ) -> Result<(Log, Backlog), SpoolError> {
        let appender = Appender::of_closed_log(options.max_bytes);
        Log::open_for(&appender, storage, options, books, metrics, on_failure)
    }

    /// Opens the log, begins a new segment and starts the writer, which takes the batches of `appender`.
    ///
    /// `on_failure` is called once, on the writer's thread, when the log can't go on. The process must end then.
    ///
    /// # Errors
    /// The log can't be opened. It may be tried again.
    pub fn open_for(
        appender: &Appender,
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        books: Arc<Books>,
        metrics: LogMetrics,
        on_failure: impl FnOnce(SpoolError) + Send + 'static,
    ) -> Result<(Log, Backlog), SpoolError> {
        let queue = Arc::clone(&appender.queue);
        let (mut writer, backlog, damage) =
            LogWriter::open(Arc::clone(&storage), options, queue, books, metrics)?;
        writer.preparer = Some(
            Preparer::start(
                storage,
                options.dir.clone(),
                Arc::clone(&writer.trimmed),
                format!("prepare-{}", options.name),
            )
            .map_err(SpoolError::io("start a thread for", &options.dir))?,
        );
        let queue = Arc::clone(&writer.queue);
        let handle = thread::Builder::new()
            .name(format!("write-{}", options.name))
            .spawn(move || writer.run(on_failure))
            .map_err(SpoolError::io("start a thread for", &options.dir))?;
        queue.open();
        let log = Log {
            queue,
            writer: Some(handle),
            damage,
        };
        Ok((log, backlog))
    }

    /// An appender for this log.
    pub fn appender(&self) -> Appender {
        Appender {
            queue: Arc::clone(&self.queue),
        }
    }

    /// The damage found when the log was opened.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Refuses further batches, makes the waiting ones durable, seals the log and ends its writer.
    pub fn close(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take() {
            // After a panic, which the hook has reported, there is nothing left to close.
            let _ = writer.join();
        }
    }
}

impl Drop for Log {
    /// Like [`Log::close`], but a disk that hangs must not keep the process from ending.
    fn drop(&mut self) {
        self.queue.close();
        let until = Instant::now() + LAST_WRITES;
        while self.writer.as_ref().is_some_and(|writer| !writer.is_finished()) {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(LOOK);
        }
        self.close();
    }
}

/// What the writer's thread does; tests call it without the thread.
pub(super) struct LogWriter {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    segment_bytes: u64,
    writer: Writer,
    /// `None` until the thread starts: segments are prepared in place then.
    pub(super) preparer: Option<Preparer>,
    pub(super) trimmed: Arc<Trimmed>,
    pub(super) queue: Arc<Queue>,
    tail: Arc<SharedEnd>,
    books: Arc<Books>,
    pub(super) metrics: LogMetrics,
    /// The batches being written; empty between two turns.
    group: Vec<Pending>,
    /// Whether something was written since the last seal.
    unsealed: bool,
    /// When the active segment was begun.
    rolled: Instant,
}

impl LogWriter {
    /// Recovers the log and begins a new segment.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        options: &LogOptions,
        queue: Arc<Queue>,
        books: Arc<Books>,
        metrics: LogMetrics,
    ) -> Result<(LogWriter, Backlog, Vec<Damage>), SpoolError> {
        let (mut found, checkpoint) = recover(&*storage, &options.dir)?;
        let incarnation = Incarnation(Uuid::new_v4().as_u64_pair().0);
        let writer = Writer::new(
            Arc::clone(&storage),
            &options.dir,
            options.durability,
            incarnation,
            &found,
        );
        books.opened(found.events, found.position.events, None);
        if !checkpoint.as_ref().is_some_and(Checkpoint::is_stored) {
            keep_obsolete(&mut found);
        }
        let tail = Arc::new(SharedEnd::new(std::mem::take(&mut found.segments), found.end()));
        let trimmed = Arc::new(Trimmed::new(options.max_bytes, options.segment_bytes));
        found.history = writer.history().clone();
        let mut writer = LogWriter {
            storage: Arc::clone(&storage),
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            writer,
            preparer: None,
            trimmed: Arc::clone(&trimmed),
            queue: Arc::clone(&queue),
            tail: Arc::clone(&tail),
            books: Arc::clone(&books),
            metrics,
            group: Vec::new(),
            unsealed: false,
            rolled: clock::now(),
        };
        writer.begin(&found)?;

        let reader = Reader::new(
            Arc::clone(&storage) as _,
            options.dir.clone(),
            found.manifest.log_id.into_bytes(),
            Arc::clone(&tail),
        );
        let damage = std::mem::take(&mut found.damage);
        let trimmer = Trimmer {
            tail,
            queue,
            trimmed,
            reuse_from: options.segment_bytes / 2,
        };
        let dir = options.dir.clone();
        let backlog = Backlog::new(storage, dir, found, checkpoint, reader, trimmer, books);
        Ok((writer, backlog, damage))
    }

    /// Begins the new segment and removes obsolete ones, which on a full disk may make the room for it. A full disk doesn't
    /// prevent a start: appends are refused until there is room.
    fn begin(&mut self, found: &Inspection) -> Result<(), SpoolError> {
        self.ensure_room(0)?;
        if let (true, Some((id, end))) = (found.cut, found.last) {
            let path = self.dir.join(segment::file_name(id));
            self.storage
                .open_for_writing(&path)
                .and_then(|file| file.set_len(end))
                .map_err(SpoolError::io("cut", &path))?;
        }
        for id in &found.obsolete {
            let path = self.dir.join(segment::file_name(*id));
            self.storage
                .remove(&path)
                .map_err(SpoolError::io("remove", &path))?;
        }
        self.ensure_room(0)?;
        self.queue.set_used(self.tail.lock().used());
        Ok(())
    }

    fn run(mut self, on_failure: impl FnOnce(SpoolError)) {
        // A panic is a bug; it must not leave webhooks waiting for a writer that is gone.
        let served = catch_unwind(AssertUnwindSafe(|| self.serve())).unwrap_or_else(|_| {
            let bug = io::Error::other("the writer panicked; its message stands above");
            Err(SpoolError::io("go on writing to", &self.dir)(bug))
        });
        if let Err(error) = served {
            self.queue.fail();
            on_failure(error);
        }
    }

    fn serve(&mut self) -> Result<(), SpoolError> {
        loop {
            let limit = match (self.queue.no_room(), self.unsealed) {
                (true, _) => Some(ROOM_CHECK),
                (_, true) => Some(SEAL_AFTER),
                _ => None,
            };
            drop(self.queue.wait(limit));
            // Lets webhooks that are ready now join this commit even when all cores are busy. Without others, yielding costs
            // nothing.
            thread::yield_now();
            if !self.turn()? {
                return Ok(());
            }
        }
    }

    /// Writes the waiting batches; when there are none, seals the log. False once the log is closed and sealed.
    pub(super) fn turn(&mut self) -> Result<bool, SpoolError> {
        let mut group = std::mem::take(&mut self.group);
        let closed = {
            let mut state = self.queue.lock();
            let mut bytes = 0;
            while let Some(next) = state.waiting.front()
                && (group.is_empty() || bytes + next.batch.bytes().len() <= COMMIT_BYTES)
            {
                bytes += next.batch.bytes().len();
                group.extend(state.waiting.pop_front());
            }
            state.closed
        };
        if group.is_empty() {
            if self.queue.no_room() {
                self.ensure_room(0)?;
            }
            self.rest()?;
            self.writer.check_in_place()?;
            self.unsealed = false;
            return Ok(!closed);
        }
        let room = self.write(&mut group)?;
        // Batches that fit in the remaining room cause no roll, and only a roll would reset this otherwise.
        self.queue.set_no_room(!room);
        self.unsealed = true;
        self.group = group;
        Ok(true)
    }

    /// Seals the log, after a while without batches.
    pub(super) fn rest(&mut self) -> Result<(), SpoolError> {
        self.writer.seal()?;
        self.publish();
        Ok(())
    }

    /// Writes the group in as few commits as the segments allow; false if the disk had no room for all of it.
    pub(super) fn write(&mut self, group: &mut Vec<Pending>) -> Result<bool, SpoolError> {
        let mut written: Vec<Pending> = Vec::with_capacity(group.len());
        let mut room = true;
        for pending in group.drain(..) {
            let len = pending.batch.bytes().len();
            if pending.withdrawn.load(Ordering::Relaxed) {
                self.queue.give_back(&pending.batch);
                continue;
            }
            if !self.writer.fits(len) {
                self.commit(&mut written)?;
                if !self.ensure_room(len)? {
                    self.queue.give_back(&pending.batch);
                    room = false;
                    let _ = pending.done.send(Err(AppendError::Full));
                    continue;
                }
            }
            self.writer.add(pending.batch.bytes(), pending.batch.events());
            written.push(pending);
        }
        self.commit(&mut written)?;
        Ok(room)
    }

    /// Commits the batches that were added to the writer, and answers their webhooks.
    fn commit(&mut self, written: &mut Vec<Pending>) -> Result<(), SpoolError> {
        let Some(first) = written.first() else {
            return Ok(());
        };
        let received_micros = first.batch.received_at_micros();
        let took = match self.writer.commit() {
            Ok(took) => took,
            Err(error) => {
                for pending in written.drain(..) {
                    let _ = pending.done.send(Err(AppendError::Failed));
                }
                return Err(error);
            }
        };
        self.metrics.sync_seconds.observe(took.as_secs_f64());
        self.metrics.commit_webhooks.observe(written.len() as f64);
        let mut tally = Tally::default();
        let mut bytes = 0;
        for pending in written.iter() {
            tally.add(&pending.tally);
            bytes += pending.batch.bytes().len() as u64;
        }
        // The books come first: the lane may deliver a batch as soon as the end is published.
        self.books.accepted(&tally, received_micros);
        self.publish();
        self.queue.lock().bytes -= bytes;
        for pending in written.drain(..) {
            let _ = pending.done.send(Ok(()));
        }
        if self.writer.half_full()
            && let Some(preparer) = &self.preparer
        {
            preparer.want(Wanted {
                len: self.segment_bytes,
                blocks: self.blocks(),
            });
        }
        Ok(())
    }

    /// How to allocate the next segment, now that the active one is half full.
    fn blocks(&self) -> Blocks {
        if self.writer.offset() as f64 > FAST as f64 * clock::since(self.rolled).as_secs_f64() {
            Blocks::Reserved
        } else {
            Blocks::Zeroed
        }
    }

    /// Makes sure that the active segment has room for a batch of this length; false if the disk has no room for that.
    fn ensure_room(&mut self, payload_len: usize) -> Result<bool, SpoolError> {
        if self.writer.fits(payload_len) {
            self.queue.set_no_room(false);
            return Ok(true);
        }
        let len = self.segment_bytes.max(self.writer.segment_len_for(payload_len));
        let taken = match &self.preparer {
            Some(preparer) => preparer.take(len),
            None => {
                let wanted = Wanted {
                    len,
                    blocks: Blocks::Zeroed,
                };
                Taken::from(Spare::prepare(&*self.storage, &self.dir, &self.trimmed, wanted))
            }
        };
        match taken {
            Taken::Spare(spare) => {
                self.roll(spare)?;
                self.queue.set_no_room(false);
                Ok(true)
            }
            Taken::NoSpace => {
                self.queue.set_no_room(true);
                Ok(false)
            }
            Taken::Failed(error) => Err(error),
        }
    }

    fn roll(&mut self, spare: Spare) -> Result<(), SpoolError> {
        let NewSegment { id, begin, left } = self.writer.roll(spare, clock::unix_micros())?;
        self.tail.roll(id, begin, self.writer.offset());
        self.rolled = clock::now();
        // A backlog must not fill the page cache with what nobody reads soon: allocating new pages costs more time than the
        // disk does.
        if let Some(left) = left
            && self.tail.is_far_from(SegmentId(id.0 - 1))
        {
            left.uncache();
        }
        Ok(())
    }

    /// Publishes the new durable end to readers.
    fn publish(&self) {
        let (seq, events) = self.writer.end();
        let offset = Some(self.writer.offset()).filter(|offset| *offset > 0);
        self.tail.publish(Position { seq, events }, offset, &self.queue);
    }
}

/// Keeps obsolete segments while the position that makes them obsolete may not be on the disk. They are trimmed once it is.
fn keep_obsolete(found: &mut Inspection) {
    let kept = std::mem::take(&mut found.obsolete)
        .into_iter()
        .map(|id| SegmentInfo {
            id,
            first_seq: Seq(0),
            events_before: 0,
            after_loss: false,
            end: SegmentEnd::At(0),
            bytes: 0,
        });
    found.segments.splice(0..0, kept);
}
