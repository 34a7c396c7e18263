//! The writing side of a log, without threads: adds records, commits them, and replaces a full segment with a prepared one.
//! The writer thread ([`super::log`]) calls it, and so do tests on the simulated disk.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::clock;

use super::{
    error::SpoolError,
    next_segment::Spare,
    position::{CommitNo, Position, SegmentId, Seq},
    record::{self, Checksum, RecordHeader, RecordKind},
    recovery::Inspection,
    segment::{self, Durability, History, Incarnation, SegmentHeader},
    storage::{Storage, StorageFile},
};

/// A batch is giant beyond this many bytes, or beyond a quarter of its segment. The first piece of its commit has a quarter of that.
const GIANT: usize = 1 << 20;
/// A piece that takes longer than this is followed by one of twice its size, because a sync takes long on this disk whatever it writes.
const SLOW_PIECE: Duration = Duration::from_millis(2);
/// The longest pause between two pieces.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Bytes kept free at a segment's end for the seal.
const SEAL: u64 = record::HEADER as u64;

/// Appends to one log. It must not be used after an error.
pub struct Writer {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    log_id: [u8; 16],
    durability: Durability,
    history: History,
    /// The segment being written; `None` until the first roll.
    active: Option<Active>,
    /// The newest segment and its end, which the next segment's header states.
    last: Option<(SegmentId, u64)>,
    next_seq: Seq,
    next_commit: CommitNo,
    events: u64,
    /// Whether the last commit has batches, so that a seal is due.
    unsealed: bool,
    /// The records of the commit being built.
    buffer: Vec<u8>,
    /// Bytes of the largest of them.
    largest: usize,
    /// Whether batches right before the next one are lost.
    after_loss: bool,
}

struct Active {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    len: u64,
    offset: u64,
    checksum: Checksum,
    /// Whether the file system shows that a file is deleted.
    detects_deletion: bool,
}

impl Active {
    /// Adds bytes at the end. Returns how long the disk took.
    fn write(&mut self, bytes: &[u8], durability: Durability) -> Result<Duration, SpoolError> {
        let begun = clock::now();
        self.file
            .write_all_at(bytes, self.offset)
            .map_err(SpoolError::io("write", &self.path))?;
        self.offset += bytes.len() as u64;
        if durability == Durability::Fsync {
            self.sync()?;
        }
        Ok(clock::since(begun))
    }

    /// Writes and syncs piece by piece, and leaves the disk to other logs for as long as it took before each further piece. Returns
    /// how long the disk took.
    fn write_in_pieces(&mut self, bytes: &[u8], first: usize) -> Result<Duration, SpoolError> {
        let (mut size, mut rest) = (first.max(1), bytes);
        let mut all = Duration::ZERO;
        loop {
            let (piece, further) = rest.split_at(size.min(rest.len()));
            let took = self.write(piece, Durability::Fsync)?;
            all += took;
            if further.is_empty() {
                return Ok(all);
            }
            rest = further;
            if took > SLOW_PIECE {
                size *= 2;
            }
            clock::sleep(took.min(LONGEST_PAUSE));
        }
    }

    fn sync(&self) -> Result<(), SpoolError> {
        self.file.sync_data().map_err(SpoolError::io("sync", &self.path))
    }

    /// An error if the next start wouldn't find the segment: what is written to it would be acknowledged and lost.
    fn check_in_place(&self) -> Result<(), SpoolError> {
        let gone = self.detects_deletion
            && self
                .file
                .is_gone_from(&self.path)
                .map_err(SpoolError::io("look at", &self.path))?;
        match gone {
            false => Ok(()),
            true => Err(SpoolError::io("go on writing to", &self.path)(io::Error::other(
                "somebody deleted or moved it; if it was moved, move it back before the next start",
            ))),
        }
    }
}

/// A segment that was just begun.
pub struct NewSegment {
    pub id: SegmentId,
    /// The position of its first batch.
    pub begin: Position,
    /// The previous segment's file, which is durable.
    pub left: Option<Box<dyn StorageFile>>,
}

impl Writer {
    /// A writer that continues a log as a new incarnation.
    pub fn new(
        storage: Arc<dyn Storage>,
        dir: &Path,
        durability: Durability,
        incarnation: Incarnation,
        found: &Inspection,
    ) -> Writer {
        Writer {
            history: found.history.clone().then(incarnation, found.next_seq),
            next_seq: found.next_seq,
            next_commit: found.next_commit,
            events: found.events,
            ..Writer::in_place_of(storage, dir, durability, found)
        }
    }

    /// A writer of a log that replaces another one and continues its history and sequences.
    pub fn in_place_of(
        storage: Arc<dyn Storage>,
        dir: &Path,
        durability: Durability,
        found: &Inspection,
    ) -> Writer {
        Writer {
            storage,
            dir: dir.to_path_buf(),
            log_id: found.manifest.log_id.into_bytes(),
            durability,
            history: found.history.clone(),
            active: None,
            // Ids are never reused.
            last: found.last,
            next_seq: found.position.seq,
            next_commit: CommitNo(1),
            events: found.position.events,
            unsealed: false,
            buffer: Vec::new(),
            largest: 0,
            after_loss: false,
        }
    }

    /// Skips to `seq`: the batches before it are lost. A roll must follow.
    pub fn lose_to(&mut self, seq: Seq) {
        self.after_loss |= seq > self.next_seq;
        self.next_seq = self.next_seq.max(seq);
    }

    /// Who wrote which sequences, this incarnation included.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The durable end: next sequence, and events before it.
    pub fn end(&self) -> (Seq, u64) {
        (self.next_seq, self.events)
    }

    /// Bytes written to the active segment, its header included.
    pub fn offset(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.offset)
    }

    /// Whether more than half of the active segment is used, so that the next one should be prepared.
    pub fn half_full(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.offset > active.len / 2)
    }

    /// The length of a segment with room for one batch of this many bytes.
    pub fn segment_len_for(&self, payload_len: usize) -> u64 {
        let first = segment::first_batch_at(self.history.entries().len());
        (first + record::record_len(payload_len)) as u64 + SEAL
    }

    /// Whether a batch of this many bytes fits in addition to the commit being built.
    pub fn fits(&self, payload_len: usize) -> bool {
        let needed = (self.buffer.len() + record::record_len(payload_len)) as u64 + SEAL;
        self.active
            .as_ref()
            .is_some_and(|active| active.offset + needed <= active.len)
    }

    /// Adds a batch to the commit being built. It must fit.
    pub fn add(&mut self, payload: &[u8], events: u32) {
        debug_assert!(self.fits(payload.len()));
        self.push(RecordKind::Batch, payload, events);
        self.next_seq.0 += 1;
        self.events += u64::from(events);
        self.unsealed = true;
    }

    /// Writes the commit being built and makes it as durable as configured. One with a giant batch goes piece by piece, because the
    /// syncs of other logs on the same disk wait for what is under way. What is left of it after a crash is a torn tail, as of any
    /// commit. Returns how long the disk took.
    ///
    /// # Errors
    /// The disk failed, or the segment was deleted or moved; the writer must not be used any more.
    pub fn commit(&mut self) -> Result<Duration, SpoolError> {
        let Some(active) = &mut self.active else {
            return Ok(Duration::ZERO);
        };
        if self.buffer.is_empty() {
            return Ok(Duration::ZERO);
        }
        let giant = GIANT.min(active.len as usize / 4);
        let took = match self.durability {
            Durability::Fsync if self.largest > giant => active.write_in_pieces(&self.buffer, giant / 4)?,
            durability => active.write(&self.buffer, durability)?,
        };
        active.check_in_place()?;
        if let Some((_, end)) = &mut self.last {
            *end = active.offset;
        }
        self.next_commit.0 += 1;
        self.buffer.clear();
        self.largest = 0;
        // The memory of a giant batch must not be kept for ever.
        self.buffer.shrink_to(8 << 20);
        Ok(took)
    }

    /// Checks that the next start would find the active segment.
    ///
    /// # Errors
    /// It was deleted or moved.
    pub fn check_in_place(&self) -> Result<(), SpoolError> {
        self.active.as_ref().map_or(Ok(()), Active::check_in_place)
    }

    /// Makes the active segment durable, regardless of the configuration.
    ///
    /// # Errors
    /// The disk failed; the writer must not be used any more.
    pub fn sync(&self) -> Result<(), SpoolError> {
        self.active.as_ref().map_or(Ok(()), Active::sync)
    }

    /// Writes a seal after the last commit, unless there is one.
    ///
    /// # Errors
    /// The disk failed; the writer must not be used any more.
    pub fn seal(&mut self) -> Result<(), SpoolError> {
        if !self.unsealed || self.active.is_none() {
            return Ok(());
        }
        self.push(RecordKind::Seal, &[], 0);
        self.commit()?;
        self.unsealed = false;
        Ok(())
    }

    /// Replaces the active segment with a prepared one. Nothing may be pending.
    ///
    /// Header and copy are durable before the rename, and the rename before the first batch. So a named segment always has a
    /// complete header, and the predecessor's end that it states is durable.
    ///
    /// # Errors
    /// The disk failed; the writer must not be used any more.
    pub fn roll(&mut self, spare: Spare, now_micros: i64) -> Result<NewSegment, SpoolError> {
        debug_assert!(self.buffer.is_empty());
        if let Some(active) = &self.active
            && self.durability == Durability::PageCache
        {
            active.sync()?;
        }
        let id = SegmentId(self.last.map_or(1, |(id, _)| id.0 + 1));
        let header = SegmentHeader {
            log_id: self.log_id,
            id,
            first_seq: self.next_seq,
            first_commit: self.next_commit,
            events_before: self.events,
            predecessor: self.last,
            created_micros: now_micros,
            durability: self.durability,
            after_loss: self.after_loss,
            history: self.history.clone(),
        };
        let path = self.dir.join(segment::file_name(id));
        let beginning = header.encode_with_copy();
        spare
            .file
            .write_all_at(&beginning, 0)
            .and_then(|()| spare.file.sync_data())
            .and_then(|()| self.storage.rename(&spare.path, &path))
            .and_then(|()| self.storage.sync_dir(&self.dir))
            .map_err(SpoolError::io("begin", &path))?;
        // The zeros at the end of the previous segment are not counted against the budget, so they must not take room either.
        if let Some(left) = &self.active {
            left.file
                .set_len(left.offset)
                .map_err(SpoolError::io("cut", &left.path))?;
        }
        let detects_deletion = !spare
            .file
            .is_gone_from(&path)
            .map_err(SpoolError::io("look at", &path))?;
        let offset = beginning.len() as u64;
        self.last = Some((id, offset));
        // The header's copy is a commit of its own.
        self.next_commit.0 += 1;
        let left = self.active.replace(Active {
            file: spare.file,
            path,
            len: spare.len,
            offset,
            checksum: Checksum::new(&self.log_id, id),
            detects_deletion,
        });
        self.unsealed = false;
        self.after_loss = false;
        Ok(NewSegment {
            id,
            begin: Position {
                seq: self.next_seq,
                events: self.events,
            },
            left: left.map(|left| left.file),
        })
    }

    fn push(&mut self, kind: RecordKind, payload: &[u8], events: u32) {
        if let Some(active) = &self.active {
            let header = RecordHeader {
                kind,
                payload_len: payload.len(),
                seq: self.next_seq,
                commit: self.next_commit,
                events_before: self.events,
                events,
                in_commit: self.buffer.len() as u32,
            };
            active.checksum.encode(&header, payload, &mut self.buffer);
            self.largest = self.largest.max(payload.len());
        }
    }
}
