//! Inspects a log without changing it: finds what opening it would find, and reads every batch that can be read.
//!
//! A survey uses the inspection that opens a log ([`super::recovery`]) and the reader, so it comes to the same verdict as the
//! bridge. One thing differs: where the disk can't read, the bridge would stop; a survey notes damage and reads what follows
//! ([`super::salvage`]). Nobody may write the log meanwhile: hold the spool's lock, or use a copy. Only [`segments`] may be
//! called at any time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    damage::{Damage, DamageKind},
    error::SpoolError,
    manifest::Manifest,
    position::{Position, SegmentId, Seq},
    reader::{ReadError, Reader, StoredBatch},
    recovery::{Inspection, inspect_salvaged, manifest_of, read_header, segment_ids},
    salvage::{Salvage, touch},
    segment::{self, SegmentHeader},
    shared_end::SharedEnd,
    storage::{FileSystem, ReadStorage},
};

/// A survey of one log.
pub struct Survey {
    disk: Arc<Salvage>,
    dir: PathBuf,
    found: Inspection,
    tail: Arc<SharedEnd>,
    reader: Reader,
    damage: Vec<Damage>,
}

impl Survey {
    /// Opens the log in `dir` for reading; `None` if there is none.
    ///
    /// # Errors
    /// The manifest can't be used, or the disk failed other than by refusing to read.
    pub fn open(dir: &Path) -> Result<Option<Survey>, SpoolError> {
        Survey::open_on(Arc::new(FileSystem), dir)
    }

    pub(super) fn open_on(disk: Arc<dyn ReadStorage>, dir: &Path) -> Result<Option<Survey>, SpoolError> {
        let disk = Arc::new(Salvage::new(disk));
        let Some(manifest) = manifest_of(&*disk, dir)? else {
            return Ok(None);
        };
        let mut found = inspect_salvaged(&disk, dir, manifest)?;
        let tail = Arc::new(SharedEnd::new(std::mem::take(&mut found.segments), found.end()));
        let log_id = manifest.log_id.into_bytes();
        let mut reader = Reader::new(
            Arc::clone(&disk) as _,
            dir.to_path_buf(),
            log_id,
            Arc::clone(&tail),
        );
        reader.seek(found.position.seq, Some(found.position.events));
        Ok(Some(Survey {
            disk,
            dir: dir.to_path_buf(),
            damage: found.blocking.iter().chain(&found.unmet).cloned().collect(),
            found,
            tail,
            reader,
        }))
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where delivery would resume, as far as the disk knows; Kafka may be further.
    pub fn position(&self) -> Position {
        self.found.position
    }

    /// The log's end.
    pub fn end(&self) -> Position {
        self.tail.lock().end
    }

    /// Whether all batches missing before `seq` were lost earlier, given the events before the missing ones.
    pub(super) fn follows_known_loss(&self, seq: Seq, events: u64) -> bool {
        let state = self.tail.lock();
        let mut segments = state.segments.iter().filter(|segment| segment.first_seq == seq);
        segments.any(|segment| segment.follows_known_loss(Some(events)))
    }

    /// The next readable batch, skipping damage; `None` at the end.
    ///
    /// # Errors
    /// The disk failed other than by refusing to read.
    pub fn next_batch(&mut self) -> Result<Option<StoredBatch>, SpoolError> {
        loop {
            match self.reader.next() {
                Ok(batch) => return Ok(batch),
                Err(ReadError::Spool(error)) => return Err(error),
                Err(ReadError::Damaged(mut damage)) => {
                    let path = self.dir.join(segment::file_name(damage.segment));
                    if damage
                        .bytes
                        .is_some_and(|(from, to)| touch(&self.disk.refused(&path), from, to))
                    {
                        damage.kind = DamageKind::Refused;
                    }
                    // A damaged segment may have held nothing; when it is met again, it is the end.
                    let again = self.damage.last() == Some(&damage);
                    let behind = damage.to.filter(|to| *to >= self.reader.place() && !again);
                    if !again {
                        self.damage.push(damage);
                    }
                    match behind {
                        Some(behind) => self.reader.seek(behind, None),
                        // Nothing after it can be read.
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// The damage that opening the log would find, which doesn't read all records.
    pub fn found_at_open(&self) -> &[Damage] {
        &self.found.damage
    }

    /// The damage found so far.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    pub(super) fn inspection(&self) -> &Inspection {
        &self.found
    }
}

/// A segment's file and its header.
pub struct SegmentFile {
    pub id: SegmentId,
    /// Length of the file.
    pub bytes: u64,
    /// `None` when it can't be read.
    pub header: Option<SegmentHeader>,
}

/// The segment files of the log in `dir`, the oldest first. The bridge may be running.
///
/// # Errors
/// The disk failed, or the manifest can't be used.
pub fn segments(dir: &Path) -> Result<Vec<SegmentFile>, SpoolError> {
    let disk = Salvage::new(Arc::new(FileSystem));
    let ids = segment_ids(&disk, dir)?;
    let log_id = Manifest::read(&disk, dir)?.map(|manifest| manifest.log_id.into_bytes());
    let mut found = Vec::new();
    for id in ids {
        let path = dir.join(segment::file_name(id));
        let bytes = match disk.open(&path).and_then(|file| file.size()) {
            Ok(bytes) => bytes,
            // It was trimmed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SpoolError::io("open", &path)(error)),
        };
        let header = match log_id {
            Some(log_id) => match read_header(&disk, dir, &log_id, id) {
                Ok(header) => header,
                Err(SpoolError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
            None => None,
        };
        found.push(SegmentFile {
            id,
            bytes,
            header: header.map(|found| found.header),
        });
    }
    Ok(found)
}
