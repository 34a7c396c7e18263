//! Reads a log's batches in order, up to its durable end.

use std::{path::PathBuf, sync::Arc};

use thiserror::Error;

use super::{
    damage::{Damage, DamageKind},
    error::SpoolError,
    position::{Position, SegmentId, Seq},
    record::{self, Checksum, RecordHeader, RecordKind},
    scan::valid_records,
    segment::{self, SegmentEnd},
    shared_end::SharedEnd,
    storage::{ReadFile, ReadStorage},
};

/// Bytes read from a file at once.
const CHUNK: usize = 256 << 10;

/// A batch as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBatch {
    pub seq: Seq,
    /// Events in all batches before this one.
    pub events_before: u64,
    pub events: u32,
    /// The encoded batch: see [`crate::batch`].
    pub payload: Vec<u8>,
}

impl StoredBatch {
    /// The position after this batch.
    pub fn end(&self) -> Position {
        Position {
            seq: Seq(self.seq.0 + 1),
            events: self.events_before + u64::from(self.events),
        }
    }
}

/// Why nothing could be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Bytes that should be there are missing or wrong. Trying again doesn't help.
    #[error("the spool is damaged: {0}")]
    Damaged(Damage),
    /// A system call failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Reads one log in order.
pub struct Reader {
    disk: Arc<dyn ReadStorage>,
    dir: PathBuf,
    log_id: [u8; 16],
    tail: Arc<SharedEnd>,
    next: Seq,
    /// Events in all batches before `next`, when known.
    events: Option<u64>,
    open: Option<OpenSegment>,
}

struct OpenSegment {
    id: SegmentId,
    file: Box<dyn ReadFile>,
    checksum: Checksum,
    offset: u64,
    limit: Limit,
    buffer: Vec<u8>,
    /// The file offset of the buffer's first byte.
    buffer_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// The segment ends at this offset.
    End(u64),
    /// The segment is durable up to this offset, and may grow.
    SoFar(u64),
    /// The segment ends at the first invalid record.
    FirstInvalid,
}

impl Reader {
    pub(super) fn new(
        disk: Arc<dyn ReadStorage>,
        dir: PathBuf,
        log_id: [u8; 16],
        tail: Arc<SharedEnd>,
    ) -> Reader {
        Reader {
            disk,
            dir,
            log_id,
            tail,
            next: Seq(0),
            events: None,
            open: None,
        }
    }

    /// Moves to a batch: the next one read is the first at or after `seq`. `events` is how many lie before it, if known.
    pub fn seek(&mut self, seq: Seq, events: Option<u64>) {
        self.next = seq;
        self.events = events;
        self.open = None;
    }

    /// Closes the open segment if it was trimmed: its file may be reused.
    pub fn let_go_of_trimmed(&mut self) {
        self.open.take_if(|open| limit_of(&self.tail, open.id).is_none());
    }

    /// The sequence that is read next.
    pub fn place(&self) -> Seq {
        self.next
    }

    /// The next batch, and moves past it; `None` at the durable end.
    ///
    /// # Errors
    /// The batch is damaged, or the disk failed.
    pub fn next(&mut self) -> Result<Option<StoredBatch>, ReadError> {
        loop {
            if self.open.is_none() && !self.open_segment(None)? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else {
                return Ok(None);
            };
            let (limit, ends_unsaid) = match open.limit {
                Limit::End(end) | Limit::SoFar(end) => (end, false),
                Limit::FirstInvalid => (u64::MAX, true),
            };
            if open.offset >= limit {
                let (id, offset) = (open.id, open.offset);
                let refreshed = limit_of(&self.tail, id);
                match refreshed {
                    Some(Limit::SoFar(end)) if end <= offset => return Ok(None),
                    Some(Limit::End(end)) if end <= offset => {
                        if !self.open_segment(Some(id))? {
                            return Ok(None);
                        }
                    }
                    Some(limit) => open.limit = limit,
                    None => self.open = None,
                }
                continue;
            }
            match open.record(limit)? {
                Some((header, _)) if header.kind == RecordKind::Seal || header.seq < self.next => {
                    if header.next_seq() == self.next {
                        self.events = Some(header.events_after());
                    }
                    open.offset += header.record_len() as u64;
                }
                Some((header, payload)) if header.seq == self.next => {
                    let batch = StoredBatch {
                        seq: header.seq,
                        events_before: header.events_before,
                        events: header.events,
                        payload: payload.to_vec(),
                    };
                    open.offset += header.record_len() as u64;
                    self.next = Seq(header.seq.0 + 1);
                    self.events = Some(header.events_after());
                    return Ok(Some(batch));
                }
                _ if ends_unsaid => {
                    let id = open.id;
                    if !self.open_segment(Some(id))? {
                        return Ok(None);
                    }
                }
                _ => match open.damage(&self.tail, limit, self.next, self.events)? {
                    // What is damaged is delivered, or holds no batch.
                    Damage {
                        to: Some(to),
                        bytes: Some((_, behind)),
                        ..
                    } if to <= self.next => open.offset = behind,
                    damage => return Err(ReadError::Damaged(damage)),
                },
            }
        }
    }

    /// Opens the segment that holds the next batch, or the one after `after`; false if there is none yet.
    fn open_segment(&mut self, after: Option<SegmentId>) -> Result<bool, ReadError> {
        let found = {
            let mut state = self.tail.lock();
            let index = match after {
                Some(id) => state.segments.iter().position(|s| s.id > id),
                None => state
                    .segments
                    .iter()
                    .rposition(|s| s.first_seq <= self.next)
                    .or((!state.segments.is_empty()).then_some(0)),
            };
            let info = index.map(|index| state.segments[index].clone());
            state.reading = info.as_ref().map(|info| info.id).or(state.reading);
            info
        };
        let Some(info) = found else {
            return Ok(false);
        };
        if let SegmentEnd::Damaged(damage) = info.end {
            // Everything readable before it has been read, so the loss begins exactly here.
            let from = damage.from.max(self.next);
            return Err(ReadError::Damaged(Damage { from, ..damage }));
        }
        if info.first_seq > self.next && info.after_loss {
            self.next = info.first_seq;
        }
        if info.first_seq == self.next {
            self.events = Some(info.events_before);
        }
        if info.first_seq > self.next {
            return Err(ReadError::Damaged(Damage {
                segment: info.id,
                bytes: None,
                from: self.next,
                to: Some(info.first_seq),
                kind: DamageKind::BatchesMissing,
            }));
        }
        let path = self.dir.join(segment::file_name(info.id));
        let file = self.disk.open(&path).map_err(SpoolError::io("open", &path))?;
        self.open = Some(OpenSegment {
            id: info.id,
            file,
            checksum: Checksum::new(&self.log_id, info.id),
            offset: segment::HEADER as u64,
            limit: Limit::SoFar(0),
            buffer: Vec::new(),
            buffer_at: 0,
        });
        Ok(true)
    }
}

/// How far a segment may be read now; `None` when it is no longer part of the log.
fn limit_of(tail: &SharedEnd, id: SegmentId) -> Option<Limit> {
    let state = tail.lock();
    let info = state.segments.iter().find(|s| s.id == id)?;
    Some(match info.end {
        SegmentEnd::At(end) => Limit::End(end),
        SegmentEnd::Durable => Limit::SoFar(state.durable_offset),
        SegmentEnd::FirstInvalid => Limit::FirstInvalid,
        SegmentEnd::Damaged(_) => return None,
    })
}

impl OpenSegment {
    /// The record at the offset, if it is valid and ends at or before `limit`.
    fn record(&mut self, limit: u64) -> Result<Option<(RecordHeader, &[u8])>, SpoolError> {
        if self.fill(record::HEADER, limit)? < record::HEADER {
            return Ok(None);
        }
        let start = (self.offset - self.buffer_at) as usize;
        let Some(header) = self.checksum.header(&self.buffer[start..]) else {
            return Ok(None);
        };
        let needed = record::HEADER + header.payload_len;
        if self.fill(needed, limit)? < needed {
            return Ok(None);
        }
        let start = (self.offset - self.buffer_at) as usize;
        Ok(self.checksum.verify(&self.buffer[start..]))
    }

    /// Buffers `wanted` bytes from the offset on, as far as `limit` and the file allow; returns how many there are.
    fn fill(&mut self, wanted: usize, limit: u64) -> Result<usize, SpoolError> {
        let have = (self.buffer_at + self.buffer.len() as u64)
            .saturating_sub(self.offset)
            .min(self.buffer.len() as u64) as usize;
        if have < wanted {
            let failed = |source| SpoolError::Io {
                action: "read",
                path: segment::file_name(self.id).into(),
                source,
            };
            // A corrupt length must not allocate more memory than the file is long.
            let limit = limit.min(self.file.size().map_err(failed)?);
            let room = limit.saturating_sub(self.offset).min(wanted.max(CHUNK) as u64) as usize;
            self.buffer.resize(room, 0);
            self.buffer_at = self.offset;
            let read = self.file.read_at(&mut self.buffer, self.offset);
            // After an error the buffer must be empty, or it would look like damage.
            self.buffer.truncate(read.as_ref().map_or(0, |n| *n));
            return Ok(read.map_err(failed)?.min(wanted));
        }
        Ok(wanted)
    }

    /// The damage at the offset, up to the next valid record. The next batch is `from`, with `events` before it.
    fn damage(
        &self,
        tail: &SharedEnd,
        limit: u64,
        from: Seq,
        events: Option<u64>,
    ) -> Result<Damage, SpoolError> {
        let mut bytes = vec![0; limit.saturating_sub(self.offset) as usize];
        let n = self
            .file
            .read_at(&mut bytes, self.offset)
            .map_err(|source| SpoolError::Io {
                action: "read",
                path: segment::file_name(self.id).into(),
                source,
            })?;
        let next = valid_records(&bytes[..n], &self.checksum, record::ALIGN).next();
        Ok(Damage {
            segment: self.id,
            bytes: Some((
                self.offset,
                next.as_ref().map_or(limit, |found| self.offset + found.at as u64),
            )),
            from,
            to: next
                .map(|found| found.header.seq)
                .or_else(|| first_behind(tail, self.id, from, events)),
            kind: DamageKind::Records,
        })
    }
}

/// The first batch after damage at the end of this segment; `from` if the damage costs none.
fn first_behind(tail: &SharedEnd, id: SegmentId, from: Seq, events: Option<u64>) -> Option<Seq> {
    let state = tail.lock();
    let behind = state.segments.iter().find(|s| s.id > id)?;
    Some(match behind.follows_known_loss(events) {
        true => from,
        false => behind.first_seq,
    })
}
