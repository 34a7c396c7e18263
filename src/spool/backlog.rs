//! A lane's view of its log: the batches that are not yet in Kafka, and the lane's position.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::warn;
use uuid::Uuid;

use crate::books::Books;

use super::{
    checkpoint::Checkpoint,
    damage::Damage,
    error::SpoolError,
    manifest::Manifest,
    position::{Position, Seq},
    reader::{ReadError, Reader, StoredBatch},
    recovery::Inspection,
    segment::History,
    shared_end::Trimmer,
    storage::Storage,
};

/// Reads a log in order and keeps its checkpoint. Each log has one.
pub struct Backlog {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    manifest: Manifest,
    history: History,
    checkpoint: Option<Checkpoint>,
    blocking: Option<Damage>,
    /// The known position; the checkpoint may lag behind it.
    position: Position,
    reader: Reader,
    /// The next batch, if it was read ahead.
    peeked: Option<StoredBatch>,
    trimmer: Trimmer,
    books: Arc<Books>,
}

impl Backlog {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        dir: PathBuf,
        found: Inspection,
        checkpoint: Option<Checkpoint>,
        mut reader: Reader,
        trimmer: Trimmer,
        books: Arc<Books>,
    ) -> Backlog {
        reader.seek(found.position.seq, Some(found.position.events));
        Backlog {
            storage,
            dir,
            manifest: found.manifest,
            history: found.history,
            checkpoint,
            blocking: found.blocking,
            position: found.position,
            reader,
            peeked: None,
            trimmer,
            books,
        }
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log's name in Kafka.
    pub fn group_id(&self) -> Uuid {
        self.manifest.group_id
    }

    /// Who wrote which sequences.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The known position, at first the checkpoint's.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The durable end.
    pub fn end(&self) -> Position {
        self.trimmer.tail.lock().end
    }

    /// Damage that makes every position doubtful: nothing may be delivered.
    pub fn blocking_damage(&self) -> Option<&Damage> {
        self.blocking.as_ref()
    }

    /// The stream's books.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The next batch, without moving past it; `None` at the durable end.
    ///
    /// # Errors
    /// The batch is damaged, or the disk failed.
    pub fn peek(&mut self) -> Result<Option<&StoredBatch>, ReadError> {
        if self.peeked.is_none() {
            self.peeked = self.reader.next()?;
        }
        Ok(self.peeked.as_ref())
    }

    /// The next batch, and moves past it; `None` at the durable end.
    ///
    /// # Errors
    /// The batch is damaged, or the disk failed.
    pub fn take(&mut self) -> Result<Option<StoredBatch>, ReadError> {
        match self.peeked.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.reader.next(),
        }
    }

    /// Undoes the last [`Backlog::take`].
    pub fn put_back(&mut self, batch: StoredBatch) {
        self.peeked = Some(batch);
    }

    /// Goes back to the known position.
    pub fn rewind(&mut self) {
        self.peeked = None;
        self.reader.seek(self.position.seq, Some(self.position.events));
    }

    /// Goes to a batch, which must not lie beyond the durable end, and makes it the known position.
    ///
    /// # Errors
    /// The batch is damaged, or the disk failed.
    pub fn seek(&mut self, seq: Seq) -> Result<Position, ReadError> {
        self.peeked = None;
        self.reader.seek(seq, None);
        let end = self.end();
        let events = match self.peek()? {
            Some(batch) => batch.events_before,
            None => end.events,
        };
        self.position = Position { seq, events };
        Ok(self.position)
    }

    /// Reads every batch that the log holds now, delivered ones included, and goes back to the known position.
    ///
    /// # Errors
    /// A batch is damaged, or the disk failed. The batches before it were seen.
    pub fn each_held(&mut self, mut see: impl FnMut(&[u8])) -> Result<(), ReadError> {
        let (first, end) = {
            let tail = self.trimmer.tail.lock();
            // Segments that are only waiting to be removed come first.
            let held = tail.segments.iter().find(|segment| segment.bytes > 0);
            (
                held.map_or(self.position.seq, |segment| segment.first_seq),
                tail.end.seq,
            )
        };
        self.reader.seek(first, None);
        let read = loop {
            match self.reader.next() {
                Ok(Some(batch)) if batch.seq < end => see(&batch.payload),
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.rewind();
        read
    }

    /// Sets the known position: Kafka has everything before it.
    pub fn advance(&mut self, position: Position) {
        self.position = position;
    }

    /// Waits until there is something to read, for at most `limit`.
    pub fn wait(&self, limit: Duration) {
        if self.peeked.is_none() {
            self.trimmer.tail.wait_beyond(self.reader.place(), limit);
        }
    }

    /// A function for any thread that ends [`Backlog::wait`], or the next wait if there is none now.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<> {
        let tail = Arc::clone(&self.trimmer.tail);
        move || tail.wake()
    }

    /// Whether the stored checkpoint lags behind the known position.
    pub fn checkpoint_due(&self) -> bool {
        self.checkpoint
            .as_ref()
            .is_some_and(|checkpoint| !checkpoint.holds(self.position))
    }

    /// Stores the known position durably, then trims the segments wholly before it. A full disk is no error (overwriting may
    /// take room, too): the position stays due.
    ///
    /// # Errors
    /// The disk failed.
    pub fn store_checkpoint(&mut self) -> Result<(), SpoolError> {
        match self.store_position() {
            Err(error) if error.is_no_space() => {
                // Segments kept for reuse take room.
                self.trimmer.let_go_of_trimmed(&*self.storage)?;
                match self.store_position() {
                    Err(error) if error.is_no_space() => {
                        warn!("the position can't be stored, and nothing is trimmed until it is: {error}");
                        Ok(())
                    }
                    stored => stored,
                }
            }
            stored => stored,
        }
    }

    fn store_position(&mut self) -> Result<(), SpoolError> {
        let Some(checkpoint) = &mut self.checkpoint else {
            return Ok(());
        };
        if !checkpoint.holds(self.position) {
            checkpoint.store(self.position)?;
        }
        self.trimmer.trim(&*self.storage, &self.dir, self.position)?;
        self.reader.let_go_of_trimmed();
        Ok(())
    }

    /// The segments from the one that holds the position on.
    #[cfg(test)]
    pub(super) fn segment_ids(&self) -> Vec<super::SegmentId> {
        let state = self.trimmer.tail.lock();
        state.segments.iter().map(|s| s.id).collect()
    }

    /// Gives the log a new name in Kafka, because the position stored there under the old one belongs to another life of this
    /// directory. Stores the log's own position first, so that nothing is skipped or sent again.
    ///
    /// # Errors
    /// The disk failed.
    pub fn renew_group(&mut self) -> Result<Uuid, SpoolError> {
        self.store_position()?;
        let manifest = Manifest {
            group_id: Uuid::new_v4(),
            ..self.manifest
        };
        manifest.write(&*self.storage, &self.dir)?;
        self.manifest = manifest;
        Ok(manifest.group_id)
    }
}
