//! The lane's side of a log: what is not yet in Kafka, and where the lane stands.

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

/// Reads a log in order and keeps its checkpoint. There is one for each log.
pub struct Backlog {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    manifest: Manifest,
    history: History,
    checkpoint: Option<Checkpoint>,
    blocking: Option<Damage>,
    /// The position that is known, which the checkpoint may lag behind.
    position: Position,
    reader: Reader,
    /// A batch that was read ahead.
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
        history: History,
        mut reader: Reader,
        trimmer: Trimmer,
        books: Arc<Books>,
    ) -> Backlog {
        reader.seek(found.position.seq);
        Backlog {
            storage,
            dir,
            manifest: found.manifest,
            history,
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

    /// Names the log in Kafka.
    pub fn group_id(&self) -> Uuid {
        self.manifest.group_id
    }

    /// Who wrote which sequences.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The position that is known: the checkpoint's at first.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The durable end.
    pub fn end(&self) -> Position {
        self.trimmer.tail.lock().end
    }

    /// Damage because of which no position can be trusted: nothing may be delivered.
    pub fn blocking_damage(&self) -> Option<&Damage> {
        self.blocking.as_ref()
    }

    /// The stream's books.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The next batch from the reading place on, without moving behind it; `None` at the durable end.
    pub fn peek(&mut self) -> Result<Option<&StoredBatch>, ReadError> {
        if self.peeked.is_none() {
            self.peeked = self.reader.next()?;
        }
        Ok(self.peeked.as_ref())
    }

    /// The next batch, and moves behind it; `None` at the durable end.
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

    /// Reads from the known position again.
    pub fn rewind(&mut self) {
        self.peeked = None;
        self.reader.seek(self.position.seq);
    }

    /// Moves reading place and known position to a batch, which must not lie beyond the durable end.
    pub fn seek(&mut self, seq: Seq) -> Result<Position, ReadError> {
        self.peeked = None;
        self.reader.seek(seq);
        let end = self.end();
        let events = match self.peek()? {
            Some(batch) => batch.events_before,
            None => end.events,
        };
        self.position = Position { seq, events };
        Ok(self.position)
    }

    /// Kafka has everything before this position.
    pub fn advance(&mut self, position: Position) {
        self.position = position;
    }

    /// Waits until there is something to read, at most this long.
    pub fn wait(&self, limit: Duration) {
        if self.peeked.is_none() {
            self.trimmer.tail.wait_beyond(self.reader.place(), limit);
        }
    }

    /// Ends [`Backlog::wait`], whatever thread calls it; when nobody waits now, the next one ends at once.
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

    /// Stores the known position durably, then trims the segments that are wholly before it. A disk without room, where even
    /// overwriting may take some, is no error: the position stays due.
    pub fn store_checkpoint(&mut self) -> Result<(), SpoolError> {
        match self.store_position() {
            Err(error) if error.is_no_space() => {
                // What waits to be used again is room.
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

    /// Gives the log a new name in Kafka, for the position stored there under the old one belongs to another life of
    /// this directory. The own position is stored first, so that nothing is skipped or sent again.
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
