//! The reading half of opening a log. The steps:
//!
//! 1. Manifest and checkpoint.
//! 2. The segment headers, from the newest back to the one that holds the position, chained by id and by the predecessor's
//!    end. Older segments are delivered and not looked at. A missing segment, a header that is unreadable along with its
//!    copy, and a broken chain are damage.
//! 3. The records of the last segment, which alone may have a torn tail.
//!
//! Manifest, checkpoint and headers are stored twice. When one copy is damaged and the other is whole, that is reported and
//! costs nothing. When the newest position is damaged in both copies, the one before it counts; segments that are gone were
//! trimmed after it, so nothing that was delivered is called lost.
//!
//! For a survey the same code reads around what the disk can't read ([`Salvage`]), and rebuilds a damaged header from the
//! records after it (rebuild.rs).

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::spool::{
    checkpoint::{self, StoredPosition, Wrong},
    damage::{Damage, DamageKind},
    error::SpoolError,
    manifest::Manifest,
    position::{CommitNo, Position, SegmentId, Seq},
    record::{self, Checksum},
    salvage::{Salvage, is_refused, touch},
    scan::{Scan, scan, valid_records},
    segment::{self, Durability, History, SegmentEnd, SegmentHeader, SegmentInfo},
    storage::{ReadStorage, read_up_to},
};

/// The file that records blocking damage for later starts, until an operator removes it.
pub(super) const MARK: &str = "damage";

/// The result of an inspection.
pub struct Inspection {
    pub manifest: Manifest,
    /// Whether both copies of the manifest say this.
    pub manifest_whole: bool,
    /// What the checkpoint holds; `None` when it can't be read, which is damage.
    pub stored: Option<StoredPosition>,
    /// The position to go on from, as far as the disk knows.
    pub position: Position,
    /// The segments from the position on.
    pub segments: Vec<SegmentInfo>,
    /// Segments wholly before the position: to be removed.
    pub obsolete: Vec<SegmentId>,
    /// The newest segment and its exact end.
    pub last: Option<(SegmentId, u64)>,
    /// The last valid commit, unless the newest segment has no header.
    pub last_commit: Option<LastCommit>,
    /// Whether the bytes after that end may be cut off the file: they are a torn tail or were never written.
    pub cut: bool,
    pub next_seq: Seq,
    pub next_commit: CommitNo,
    /// Events in all batches of the log.
    pub events: u64,
    pub history: History,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// Damage that no reader would meet: the lane must not begin at all.
    pub blocking: Option<Damage>,
    /// Further damage that no reader would meet. In the bridge it costs nothing.
    pub unmet: Vec<Damage>,
}

/// The bytes of the last valid commit. They are kept because a second read may return something else.
pub struct LastCommit {
    pub at: u64,
    pub bytes: Vec<u8>,
}

impl Inspection {
    /// The log's end.
    pub fn end(&self) -> Position {
        Position {
            seq: self.next_seq,
            events: self.events,
        }
    }
}

/// Which log `dir` holds; `None` when it holds none.
///
/// # Errors
/// The disk fails, or the directory holds segments without a manifest.
pub fn manifest_of(disk: &dyn ReadStorage, dir: &Path) -> Result<Option<Manifest>, SpoolError> {
    let manifest = Manifest::read(disk, dir)?;
    if manifest.is_none() && !segment_ids(disk, dir)?.is_empty() {
        return Err(SpoolError::Unusable {
            path: dir.to_path_buf(),
            what: "it has segments but no manifest; restore the manifest from a copy of the spool".into(),
        });
    }
    Ok(manifest)
}

/// The segments in `dir`, the oldest first; none when the directory is missing.
///
/// # Errors
/// The directory can't be listed.
pub fn segment_ids(disk: &dyn ReadStorage, dir: &Path) -> Result<Vec<SegmentId>, SpoolError> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(SpoolError::io("list", dir))?,
    };
    let ids = names.iter().filter_map(|name| segment::parse_file_name(name));
    let mut ids: Vec<SegmentId> = ids.collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Looks at the log in `dir`, which this manifest names.
///
/// # Errors
/// The disk fails, or the log was written by a later version. Damage is no error.
pub fn inspect(disk: &dyn ReadStorage, dir: &Path, manifest: Manifest) -> Result<Inspection, SpoolError> {
    Inspector::new(disk, None, dir, manifest).run()
}

/// Like [`inspect`], but reads around what the disk can't read, and rebuilds damaged headers.
///
/// # Errors
/// Those of [`inspect`], except unreadable sectors.
pub fn inspect_salvaged(disk: &Salvage, dir: &Path, manifest: Manifest) -> Result<Inspection, SpoolError> {
    Inspector::new(disk, Some(disk), dir, manifest).run()
}

pub(super) struct Inspector<'a> {
    disk: &'a dyn ReadStorage,
    /// The same disk, if unreadable sectors are no error.
    salvage: Option<&'a Salvage>,
    dir: &'a Path,
    manifest: Manifest,
    pub(super) log_id: [u8; 16],
    /// The damage of each header that was rebuilt.
    pub(super) rebuilt: Vec<Damage>,
    /// Other damage that no reader would meet, and that costs nothing.
    unmet: Vec<Damage>,
}

/// A segment with its header, if that can be read.
pub(super) type Headed = (SegmentId, Option<SegmentHeader>);

impl<'a> Inspector<'a> {
    fn new(
        disk: &'a dyn ReadStorage,
        salvage: Option<&'a Salvage>,
        dir: &'a Path,
        manifest: Manifest,
    ) -> Inspector<'a> {
        Inspector {
            disk,
            salvage,
            dir,
            log_id: manifest.log_id.into_bytes(),
            manifest,
            rebuilt: Vec::new(),
            unmet: Vec::new(),
        }
    }

    fn run(mut self) -> Result<Inspection, SpoolError> {
        let manifest_whole = self.is_manifest_whole();
        let stored = checkpoint::read(self.disk, self.dir, self.log_id)?;
        let ids = segment_ids(self.disk, self.dir)?;
        let headers = self.headers(&ids, stored.map(|stored| stored.position))?;
        let (position, blocking) = match stored {
            Some(stored) => (self.position(stored, &headers), None),
            None => unknown_position(&headers),
        };
        // Everything before the position is delivered. With an unknown position, nothing counts as delivered.
        let start = headers
            .iter()
            .rposition(|(_, header)| begins_by(header.as_ref(), position.seq))
            .filter(|_| stored.is_some())
            .unwrap_or(0);
        let headers = &headers[start..];
        let segments = self.segments(headers, position)?;
        let mut found = Inspection {
            manifest: self.manifest,
            manifest_whole,
            stored,
            position,
            damage: segments.iter().filter_map(damage_of).collect(),
            segments,
            obsolete: ids[..ids.len() - headers.len()].to_vec(),
            last: None,
            last_commit: None,
            cut: false,
            next_seq: Seq(0),
            next_commit: CommitNo(1),
            events: 0,
            history: newest(headers).map_or_else(History::default, |header| header.history.clone()),
            blocking,
            unmet: self.unmet_in(headers),
        };
        self.find_end(headers, &mut found)?;
        if position.seq > found.next_seq {
            let header = headers.last().and_then(|(_, header)| header.as_ref());
            found.lose_tail(header.map(|header| header.durability));
        }
        if found.blocking.is_none() && self.is_marked()? {
            found.blocking = Some(found.damage_to_the_end(DamageKind::Earlier));
        }
        found.sum_up();
        Ok(found)
    }

    fn is_manifest_whole(&mut self) -> bool {
        let [first, copy] = self.manifest.is_in(self.disk, self.dir);
        if !first {
            let kind = DamageKind::ManifestCopied;
            self.unmet
                .push(Damage::beside_the_segments(kind, Position::default()));
        }
        first && copy
    }

    /// Whether an earlier start found blocking damage.
    fn is_marked(&self) -> Result<bool, SpoolError> {
        let names = self
            .disk
            .list(self.dir)
            .map_err(SpoolError::io("list", self.dir))?;
        Ok(names.iter().any(|name| name == MARK))
    }

    /// The headers from the one that holds the position on, the oldest first; all of them if there is no position.
    fn headers(&mut self, ids: &[SegmentId], position: Option<Position>) -> Result<Vec<Headed>, SpoolError> {
        let mut headers = Vec::new();
        for id in ids.iter().rev() {
            let header = self.header(*id)?;
            let done = position.is_some_and(|position| begins_by(header.as_ref(), position.seq));
            headers.push((*id, header));
            if done {
                break;
            }
        }
        headers.reverse();
        if self.salvage.is_some() {
            self.rebuild(&mut headers, position)?;
        }
        Ok(headers)
    }

    fn header(&mut self, id: SegmentId) -> Result<Option<SegmentHeader>, SpoolError> {
        let found = read_header(self.disk, self.dir, &self.log_id, id)?;
        if let Some(FoundHeader {
            header,
            from_copy: true,
        }) = &found
        {
            let kind = match self.header_damage(id) {
                DamageKind::Header => DamageKind::HeaderCopied,
                refused => refused,
            };
            self.unmet.push(harmless_header_damage(header, kind));
        }
        Ok(found.map(|found| found.header))
    }

    /// The position to go on from, given what the checkpoint holds.
    fn position(&mut self, stored: StoredPosition, headers: &[Headed]) -> Position {
        let mut position = stored.position;
        let kind = match stored.wrong {
            None => return position,
            Some(Wrong::Copy) => DamageKind::PositionCopied,
            Some(Wrong::Newest) => {
                // The missing segments were trimmed by a newer position, at or after the segment that follows the gap. Some
                // segments before a gap may be left: they wait for reuse.
                let is_gap = |i: &usize| headers[*i].0.0 != headers[i - 1].0.0 + 1;
                let behind = (1..headers.len()).rev().find(is_gap).unwrap_or(0);
                if let Some((_, Some(first))) = headers.get(behind)
                    && first.first_seq > position.seq
                {
                    position = first.begin();
                }
                DamageKind::PositionOlder
            }
        };
        self.unmet.push(Damage::beside_the_segments(kind, position));
        position
    }

    /// The segments from the position on, each with its end.
    fn segments(&self, headers: &[Headed], position: Position) -> Result<Vec<SegmentInfo>, SpoolError> {
        let mut segments = Vec::with_capacity(headers.len());
        for (i, (id, header)) in headers.iter().enumerate() {
            match header {
                Some(header) => chain(&mut segments, header, position.seq),
                None => {
                    let from = segments
                        .last()
                        .map_or(position.seq, |s: &SegmentInfo| s.first_seq);
                    let to = headers[i..].iter().find_map(|(_, header)| header.as_ref());
                    let to = to.map(|header| header.first_seq);
                    segments.push(damaged_segment(*id, from, to, self.header_damage(*id)));
                }
            }
        }
        if self.salvage.is_some() {
            self.find_ends(&mut segments, headers, position)?;
        }
        Ok(segments)
    }

    /// Damage of these segments, or of other files, that no reader would meet.
    fn unmet_in(&self, headers: &[Headed]) -> Vec<Damage> {
        let counts = |found: &&Damage| {
            found.segment == SegmentId(0) || headers.iter().any(|(id, _)| *id == found.segment)
        };
        let unmet = self.rebuilt.iter().chain(&self.unmet);
        unmet.filter(counts).cloned().collect()
    }

    /// Where the last segment ends, and so the log.
    fn find_end(&self, headers: &[Headed], found: &mut Inspection) -> Result<(), SpoolError> {
        let Some(((id, header), before)) = headers.split_last() else {
            return Ok(());
        };
        let scan = match header {
            Some(header) => {
                let bytes = self.read(*id)?;
                let scan = self.scan(&bytes, header, found.position);
                found.last_commit = Some(LastCommit {
                    at: scan.last_commit_at,
                    bytes: bytes[scan.last_commit_at as usize..scan.end as usize].to_vec(),
                });
                scan
            }
            None => self.scan_without_header(*id, before, found.position)?,
        };
        found.last = Some((*id, scan.end));
        found.cut = header.is_some() && scan.damage.is_empty();
        found.next_seq = scan.next_seq;
        found.next_commit = CommitNo(scan.commit.0 + 1);
        // Delivered records may have become unreadable since.
        found.events = scan.events.max(found.position.events);
        if let Some(info) = found.segments.last_mut() {
            info.bytes = scan.end;
            match header {
                Some(_) => info.end = SegmentEnd::At(scan.end),
                None => info.first_seq = scan.next_seq,
            }
        }
        found.damage.extend(scan.damage);
        found.unmet.extend(scan.unread);
        Ok(())
    }

    pub(super) fn scan(&self, bytes: &[u8], header: &SegmentHeader, position: Position) -> Scan {
        // After a rebuilt header, every record with a valid checksum counts.
        let delivered = match self.rebuilt.iter().any(|rebuilt| rebuilt.segment == header.id) {
            true => Seq(u64::MAX),
            false => position.seq,
        };
        scan(bytes, &self.log_id, header, delivered, &self.refused(header.id))
    }

    /// The end of a log whose last segment has no readable header: new sequences must lie above every one that the segment
    /// may hold.
    fn scan_without_header(
        &self,
        id: SegmentId,
        before: &[Headed],
        position: Position,
    ) -> Result<Scan, SpoolError> {
        let mut scan = match newest(before) {
            Some(header) => self.scan(&self.read(header.id)?, header, position),
            None => Scan::nothing(position),
        };
        let bytes = self.read(id)?;
        let checksum = Checksum::new(&self.log_id, id);
        let mut found = false;
        for record in valid_records(&bytes, &checksum, segment::HEADER) {
            found = true;
            scan.next_seq = scan.next_seq.max(record.header.next_seq());
            scan.commit = scan.commit.max(record.header.commit);
            scan.events = scan.events.max(record.header.events_after());
        }
        if !found {
            let most = (bytes.len() / record::HEADER) as u64;
            scan.next_seq.0 += most;
            scan.commit.0 += most;
        }
        Ok(Scan {
            end: bytes.len() as u64,
            damage: Vec::new(),
            unread: None,
            ..scan
        })
    }

    pub(super) fn header_damage(&self, id: SegmentId) -> DamageKind {
        match touch(&self.refused(id), 0, segment::HEADER as u64) {
            true => DamageKind::Refused,
            false => DamageKind::Header,
        }
    }

    fn refused(&self, id: SegmentId) -> Vec<(u64, u64)> {
        self.salvage
            .map(|disk| disk.refused(&self.path(id)))
            .unwrap_or_default()
    }

    /// A segment's bytes.
    pub(super) fn read(&self, id: SegmentId) -> Result<Vec<u8>, SpoolError> {
        let path = self.path(id);
        self.disk
            .open(&path)
            .and_then(|file| read_up_to(&*file, file.size()? as usize, 0))
            .map_err(SpoolError::io("read", &path))
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(segment::file_name(id))
    }
}

impl Inspection {
    /// The log ends before the checkpoint's position. Everything before the position is delivered; batches after it may have
    /// been acknowledged.
    fn lose_tail(&mut self, durability: Option<Durability>) {
        if durability == Some(Durability::PageCache) {
            // As documented: a crash of the machine loses the page cache.
            self.damage.push(Damage {
                to: Some(self.position.seq),
                ..self.damage_to_the_end(DamageKind::TailDelivered)
            });
        } else if self.blocking.is_none() {
            self.blocking = Some(self.damage_to_the_end(DamageKind::Tail));
        }
        // An apparent torn tail may be the rest of the lost tail.
        self.cut = false;
        self.next_seq = self.position.seq;
        self.events = self.events.max(self.position.events);
    }

    fn damage_to_the_end(&self, kind: DamageKind) -> Damage {
        Damage {
            segment: self.last.unwrap_or_default().0,
            bytes: None,
            from: self.position.seq,
            to: None,
            kind,
        }
    }

    /// Collects all damage to undelivered batches.
    fn sum_up(&mut self) {
        let position = self.position.seq;
        let behind = |damage: &Damage| damage.clone().behind(position);
        self.unmet = self.unmet.iter().map(behind).collect();
        let all = self.damage.iter().chain(&self.unmet).chain(&self.blocking);
        self.damage = all.map(behind).collect();
    }
}

/// Adds a segment to those before it, and takes the end of the one before it from its header.
fn chain(segments: &mut Vec<SegmentInfo>, header: &SegmentHeader, position: Seq) {
    let id = header.id;
    let is_next = |before: SegmentId| before.0 + 1 == id.0;
    let linked = match (segments.last(), header.predecessor) {
        // Nothing before the first one matters when it begins at or before the position.
        (None, _) => header.first_seq <= position,
        (Some(before), Some((named, _))) => named == before.id && is_next(before.id),
        (Some(_), None) => false,
    };
    let behind_damaged = segments
        .last()
        .is_some_and(|before| is_next(before.id) && matches!(before.end, SegmentEnd::Damaged(_)));
    if !linked && !behind_damaged {
        let missing = SegmentId(id.0 - 1);
        let from = segments.last().map_or(position, |before| before.first_seq);
        let to = Some(header.first_seq);
        segments.push(damaged_segment(missing, from, to, DamageKind::SegmentMissing));
    } else if let (Some(before), Some((_, end))) = (segments.last_mut(), header.predecessor)
        && before.end == SegmentEnd::FirstInvalid
    {
        before.end = SegmentEnd::At(end);
        before.bytes = end;
    }
    segments.push(SegmentInfo {
        id,
        first_seq: header.first_seq,
        events_before: header.events_before,
        after_loss: header.after_loss,
        end: SegmentEnd::FirstInvalid,
        bytes: segment::HEADER as u64,
    });
}

/// A segment that can't be used as a whole.
fn damaged_segment(id: SegmentId, from: Seq, to: Option<Seq>, kind: DamageKind) -> SegmentInfo {
    SegmentInfo {
        id,
        first_seq: to.unwrap_or(from),
        events_before: 0,
        after_loss: false,
        end: SegmentEnd::Damaged(Damage {
            segment: id,
            bytes: None,
            from,
            to,
            kind,
        }),
        bytes: 0,
    }
}

fn damage_of(info: &SegmentInfo) -> Option<Damage> {
    match &info.end {
        SegmentEnd::Damaged(damage) => Some(damage.clone()),
        _ => None,
    }
}

/// Damage to a header whose contents are known all the same.
pub(super) fn harmless_header_damage(header: &SegmentHeader, kind: DamageKind) -> Damage {
    Damage {
        segment: header.id,
        bytes: Some((0, segment::HEADER as u64)),
        from: header.first_seq,
        to: Some(header.first_seq),
        kind,
    }
}

/// Damage of a log without a checkpoint: all its batches may be undelivered; only Kafka knows.
fn unknown_position(headers: &[Headed]) -> (Position, Option<Damage>) {
    let first = headers.iter().find_map(|(_, header)| header.as_ref());
    let position = first.map(SegmentHeader::begin).unwrap_or_default();
    let damage = Damage {
        to: None,
        ..Damage::beside_the_segments(DamageKind::Position, position)
    };
    (position, Some(damage))
}

/// The newest readable header.
pub(super) fn newest(headers: &[Headed]) -> Option<&SegmentHeader> {
    headers.iter().rev().find_map(|(_, header)| header.as_ref())
}

/// Whether a segment is known to begin at or before `seq`.
fn begins_by(header: Option<&SegmentHeader>, seq: Seq) -> bool {
    header.is_some_and(|header| header.first_seq <= seq)
}

/// The header of a segment.
pub struct FoundHeader {
    pub header: SegmentHeader,
    /// The header itself is damaged or can't be read.
    pub from_copy: bool,
}

/// The header of a segment or its copy; `None` when neither is one of this log and this id.
pub fn read_header(
    disk: &dyn ReadStorage,
    dir: &Path,
    log_id: &[u8; 16],
    id: SegmentId,
) -> Result<Option<FoundHeader>, SpoolError> {
    let path = dir.join(segment::file_name(id));
    let failed = || SpoolError::io("read", &path);
    let file = disk.open(&path).map_err(failed())?;
    let ours = |header: &SegmentHeader| header.log_id == *log_id && header.id == id;
    let found = |from_copy| move |header| FoundHeader { header, from_copy };
    let first = read_up_to(&*file, segment::HEADER, 0);
    match &first {
        Err(error) if !is_refused(error) => return first.map(|_| None).map_err(failed()),
        Ok(bytes) => {
            if let Some(header) = SegmentHeader::decode(bytes).filter(ours) {
                return Ok(Some(found(false)(header)));
            }
        }
        Err(_) => {}
    }
    let copy = read_up_to(&*file, segment::MAX_COPY, segment::HEADER as u64);
    let checksum = Checksum::new(log_id, id);
    let decode = |bytes: &[u8]| SegmentHeader::decode_copy(bytes, checksum);
    match copy.as_deref().ok().and_then(decode).filter(ours) {
        Some(header) => Ok(Some(found(true)(header))),
        None => first.map(|_| None).map_err(failed()),
    }
}
