//! Opening a log: what is there, where it ends, and whether anything is damaged.
//!
//! See the module head of [`super`] for the rules. The steps:
//!
//! 1. Manifest and checkpoint; a directory without a manifest begins a new log.
//! 2. The segment headers, from the newest back to the one that holds the checkpoint's position, chained by id and by the
//!    predecessor's end. Older segments are done with and not looked at. A missing segment, a header that can't be read, nor
//!    its copy, and a broken chain are damage.
//! 3. The records of the last segment, which alone may have a torn tail.
//! 4. The last valid commit is written again and synced, and the directory is synced.
//!
//! Nothing is deleted or cut here but a spare segment, that is the caller's; the next open would find the same end either
//! way.
//!
//! Manifest, checkpoint and headers are stored twice. Where one copy is damaged and the other is whole, that is reported and
//! costs nothing. Where the newest position is damaged as a whole, the one before it counts, and the segments that are gone
//! were trimmed after it: nothing that was delivered is called lost.
//!
//! A survey ([`super::survey`]) goes the same way around what can't be read, and makes a damaged header anew from the
//! records behind it (rebuild.rs).
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`rebuild`] | damaged segment headers, for a survey |

mod rebuild;

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::config::Durability;

use super::{
    CommitNo, Damage, Manifest, Position, SegmentId, Seq, SpoolError,
    checkpoint::{Checkpoint, Wrong},
    manifest,
    prepare::SPARE,
    read_only::{ReadOnly, is_refused, touch},
    record::{self, Checksum},
    scan::{Scan, scan, valid_records},
    segment::{self, History},
    storage::{Access, Storage, StorageFile},
};

/// A segment as a reader needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub id: SegmentId,
    /// The first sequence in it. For one that can't be used: the first sequence behind it.
    pub first_seq: Seq,
    /// What is missing before `first_seq` is known to be lost.
    pub after_loss: bool,
    pub end: End,
    /// Bytes that count against the budget.
    pub bytes: u64,
}

/// Where a segment's records end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At this offset of the file.
    At(u64),
    /// At the log's durable end: the segment is being written.
    Durable,
    /// Before the first invalid record: the segment behind it, which would say more, is damaged.
    FirstInvalid,
    /// The whole segment is unusable.
    Damaged(Damage),
}

/// What opening a log found.
pub struct Recovered {
    pub manifest: Manifest,
    /// `None` when it can't be read, which is damage.
    pub checkpoint: Option<Checkpoint>,
    /// The position to go on from, as far as the disk knows.
    pub position: Position,
    /// The segments from the position on.
    pub segments: Vec<SegmentInfo>,
    /// Segments wholly before the position: to be removed.
    pub obsolete: Vec<SegmentId>,
    /// The newest segment and its exact end.
    pub last: Option<(SegmentId, u64)>,
    /// Whether what is behind that end may be cut off the file: it is a torn tail or was never written.
    pub cut: bool,
    pub next_seq: Seq,
    pub next_commit: CommitNo,
    /// Events in all batches of the log.
    pub events: u64,
    pub history: History,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// Damage that no reader would meet by itself: the lane must not begin at all.
    pub blocking: Option<Damage>,
    /// Further damage that no reader would meet. In the bridge it costs nothing.
    pub unmet: Vec<Damage>,
}

impl Recovered {
    /// Segments before a position that may not be on the disk are trimmed when it is.
    pub fn keep_what_is_not_done_with(&mut self) {
        let stored = |checkpoint: &Checkpoint| checkpoint.holds(checkpoint.position());
        if !self.checkpoint.as_ref().is_some_and(stored) {
            let keep = std::mem::take(&mut self.obsolete)
                .into_iter()
                .map(|id| SegmentInfo {
                    id,
                    first_seq: Seq(0),
                    after_loss: false,
                    end: End::At(0),
                    bytes: 0,
                });
            self.segments.splice(0..0, keep);
        }
    }
}

/// Opens the log in `dir`, which is created when missing.
pub fn recover(storage: &dyn Storage, dir: &Path) -> Result<Recovered, SpoolError> {
    recover_from(storage, None, dir)
}

/// What [`recover`] would find in `dir`, and around what the disk can't read.
pub fn recover_around(storage: &ReadOnly, dir: &Path) -> Result<Recovered, SpoolError> {
    recover_from(storage, Some(storage), dir)
}

fn recover_from(
    storage: &dyn Storage,
    around: Option<&ReadOnly>,
    dir: &Path,
) -> Result<Recovered, SpoolError> {
    storage
        .create_dir_all(dir)
        .and_then(|()| match dir.parent() {
            Some(parent) => storage.sync_dir(parent),
            None => Ok(()),
        })
        .map_err(SpoolError::io("create the directory", dir))?;
    // First: it may hold the room that the rest needs.
    storage
        .remove(&dir.join(SPARE))
        .map_err(SpoolError::io("remove the spare segment in", dir))?;
    let names = storage.list(dir).map_err(SpoolError::io("list", dir))?;
    let mut ids: Vec<SegmentId> = names
        .iter()
        .filter_map(|name| segment::parse_file_name(name))
        .collect();
    ids.sort_unstable();

    let mut unmet = Vec::new();
    let manifest = match Manifest::read(storage, dir)? {
        Some(manifest) => {
            let [first, copy] = manifest.is_in(storage, dir);
            if !first {
                unmet.push(Damage::beside_the_segments(
                    Damage::MANIFEST_COPIED,
                    Position::default(),
                ));
            }
            if !(first && copy) {
                match manifest.write(storage, dir) {
                    Err(error) if !error.is_no_space() => return Err(error),
                    _ => {}
                }
            }
            manifest
        }
        None if ids.is_empty() => {
            let manifest = Manifest::begin();
            // The checkpoint first: a manifest then always has one beside it.
            Checkpoint::create(storage, dir, manifest.log_id.into_bytes(), Position::default())?;
            manifest.write(storage, dir)?;
            manifest
        }
        None => {
            return Err(SpoolError::Unusable {
                path: dir.to_path_buf(),
                what: "it has segments but no manifest; restore the manifest from a copy of the spool".into(),
            });
        }
    };
    let mut recovery = Recovery {
        storage,
        around,
        dir,
        log_id: manifest.log_id.into_bytes(),
        marked: names.iter().any(|name| name == MARK),
        rebuilt: Vec::new(),
        unmet,
    };
    recovery.run(manifest, &ids)
}

struct Recovery<'a> {
    storage: &'a dyn Storage,
    /// The same, when nothing is to be written and what can't be read is no error.
    around: Option<&'a ReadOnly>,
    dir: &'a Path,
    log_id: [u8; 16],
    /// Whether an earlier open found blocking damage.
    marked: bool,
    /// The damage of each header that was made anew.
    rebuilt: Vec<Damage>,
    /// Other damage that no reader would meet, and that costs nothing.
    unmet: Vec<Damage>,
}

/// The headers of segments, where they can be read.
type Headers = Vec<(SegmentId, Option<segment::Header>)>;

/// The file that keeps blocking damage in mind over later opens, until an operator removes it.
const MARK: &str = "damage";

impl Recovery<'_> {
    fn run(&mut self, manifest: Manifest, ids: &[SegmentId]) -> Result<Recovered, SpoolError> {
        let checkpoint = Checkpoint::open(self.storage, self.dir, self.log_id)?;
        let mut headers = self.headers(ids, checkpoint.as_ref().map(Checkpoint::position))?;
        if self.around.is_some() {
            self.rebuild(&mut headers, checkpoint.as_ref().map(Checkpoint::position))?;
        }
        let mut damage = Vec::new();
        let mut blocking = None;
        let first_known = headers.iter().find_map(|(_, header)| header.as_ref());
        let position = match &checkpoint {
            Some(checkpoint) => self.position(checkpoint, &headers),
            None => {
                let position = first_known.map(begin_of).unwrap_or_default();
                blocking = Some(Damage {
                    to: None,
                    ..Damage::beside_the_segments(Damage::NO_POSITION, position)
                });
                position
            }
        };

        // From the last segment that begins at or before the position; what is before it is done with. Of an unknown
        // position nothing can be said.
        let start = headers
            .iter()
            .rposition(|(_, header)| begins_by(header.as_ref(), position.seq))
            .filter(|_| checkpoint.is_some())
            .unwrap_or(0);
        let headers = &headers[start..];
        let (obsolete, ids) = ids.split_at(ids.len() - headers.len());
        let mut segments = self.chain(headers, position, &mut damage)?;
        if self.around.is_some() {
            self.find_ends(&mut segments, headers, position)?;
        }

        let mut recovered = Recovered {
            manifest,
            checkpoint,
            position,
            obsolete: obsolete.to_vec(),
            last: None,
            cut: false,
            next_seq: Seq(0),
            next_commit: CommitNo(1),
            events: 0,
            history: headers
                .iter()
                .rev()
                .find_map(|(_, h)| Some(h.as_ref()?.history.clone()))
                .unwrap_or_default(),
            segments: Vec::new(),
            damage: Vec::new(),
            blocking: None,
            unmet: self
                .rebuilt
                .iter()
                .chain(&self.unmet)
                .filter(|damage| ids.contains(&damage.segment) || damage.segment == SegmentId(0))
                .cloned()
                .collect(),
        };
        if let Some((id, header)) = headers.last() {
            let scan = self.last_segment(*id, header.as_ref(), &headers[..headers.len() - 1], position)?;
            recovered.last = Some((*id, scan.end));
            recovered.cut = header.is_some() && scan.damage.is_empty();
            recovered.next_seq = scan.next_seq;
            recovered.next_commit = CommitNo(scan.commit.0 + 1);
            // What is before the position may have become unreadable since.
            recovered.events = scan.events.max(position.events);
            damage.extend(scan.damage);
            recovered.unmet.extend(scan.unread);
            if let Some(info) = segments.last_mut() {
                info.bytes = scan.end;
                match header {
                    Some(_) => info.end = End::At(scan.end),
                    None => info.first_seq = scan.next_seq,
                }
            }
        }
        if position.seq > recovered.next_seq {
            // What was before the position is delivered. What was behind it may have been acknowledged.
            let lost = Damage {
                segment: recovered.last.unwrap_or_default().0,
                bytes: None,
                from: position.seq,
                to: None,
                what: Damage::TAIL,
            };
            let last = headers.last().and_then(|(_, header)| header.as_ref());
            if last.is_some_and(|header| header.durability == Durability::PageCache) {
                // As promised: with the machine the page cache is lost.
                damage.push(Damage {
                    to: Some(position.seq),
                    what: Damage::TAIL_DELIVERED,
                    ..lost
                });
            } else {
                blocking.get_or_insert(lost);
            }
            // What looks like a torn tail may be what is left of the lost one.
            recovered.cut = false;
            recovered.next_seq = position.seq;
            recovered.events = recovered.events.max(position.events);
        }
        if let Some(found) = &blocking {
            // The fresh segment will hide it from the next open.
            manifest::replace(self.storage, self.dir, MARK, found.to_string().as_bytes())?;
        } else if self.marked {
            blocking = Some(Damage {
                segment: recovered.last.unwrap_or_default().0,
                bytes: None,
                from: position.seq,
                to: None,
                what: "an earlier start found damage, which the file `damage` beside the segments describes",
            });
        }
        let behind = |damage: Vec<Damage>| {
            damage
                .into_iter()
                .map(|found| found.behind(position.seq))
                .collect()
        };
        recovered.unmet = behind(recovered.unmet);
        damage.extend(recovered.unmet.clone());
        damage.extend(blocking.clone());
        recovered.segments = segments;
        recovered.damage = behind(damage);
        recovered.blocking = blocking;
        self.storage
            .sync_dir(self.dir)
            .map_err(SpoolError::io("sync", self.dir))?;
        Ok(recovered)
    }

    /// The headers from the one that holds the position on, the oldest first; all without a position.
    fn headers(&mut self, ids: &[SegmentId], position: Option<Position>) -> Result<Headers, SpoolError> {
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
        Ok(headers)
    }

    /// The position that the checkpoint tells.
    fn position(&mut self, checkpoint: &Checkpoint, headers: &Headers) -> Position {
        let mut position = checkpoint.position();
        let what = match checkpoint.wrong() {
            None => return position,
            Some(Wrong::Copy) => Damage::POSITION_COPIED,
            Some(Wrong::Newest) => {
                // What is gone was trimmed by a newer position, which is not before the segment behind it. Not all goes at once:
                // some segments wait to be used again.
                let is_gap = |i: &usize| headers[*i].0.0 != headers[i - 1].0.0 + 1;
                let behind = (1..headers.len()).rev().find(is_gap).unwrap_or(0);
                if let Some((_, Some(first))) = headers.get(behind)
                    && first.first_seq > position.seq
                {
                    position = begin_of(first);
                }
                Damage::POSITION_OLDER
            }
        };
        self.unmet.push(Damage::beside_the_segments(what, position));
        position
    }

    /// The segments from the position on, each with its end as its successor tells it.
    fn chain(
        &self,
        headers: &[(SegmentId, Option<segment::Header>)],
        position: Position,
        damage: &mut Vec<Damage>,
    ) -> Result<Vec<SegmentInfo>, SpoolError> {
        let mut segments: Vec<SegmentInfo> = Vec::with_capacity(headers.len());
        let first_behind = |i: usize| {
            headers[i..]
                .iter()
                .find_map(|(_, h)| h.as_ref().map(|h| h.first_seq))
        };
        let mut report = |id: SegmentId, from: Seq, to: Option<Seq>, what: &'static str| {
            let found = Damage {
                segment: id,
                bytes: None,
                from,
                to,
                what,
            };
            damage.push(found.clone());
            SegmentInfo {
                id,
                first_seq: to.unwrap_or(from),
                after_loss: false,
                end: End::Damaged(found),
                bytes: 0,
            }
        };
        for (i, (id, header)) in headers.iter().enumerate() {
            let before = segments.last().map(|s| s.id);
            let known_from = segments.last().map_or(position.seq, |s| s.first_seq);
            let Some(header) = header else {
                segments.push(report(*id, known_from, first_behind(i), self.header_damage(*id)));
                continue;
            };
            let linked = match (before, header.predecessor) {
                // The first one of the chain: nothing before it matters, when it begins at or before the position.
                (None, _) => header.first_seq <= position.seq,
                (Some(before), Some((named, _))) => named == before && before.0 + 1 == id.0,
                (Some(_), None) => false,
            };
            if !linked
                && !matches!(segments.last(), Some(s) if matches!(s.end, End::Damaged(_)) && s.id.0 + 1 == id.0)
            {
                segments.push(report(
                    SegmentId(id.0 - 1),
                    known_from,
                    Some(header.first_seq),
                    "a segment is missing",
                ));
            } else if let (Some(previous), Some((_, end))) = (segments.last_mut(), header.predecessor)
                && previous.end == End::FirstInvalid
            {
                previous.end = End::At(end);
                previous.bytes = end;
            }
            segments.push(SegmentInfo {
                id: *id,
                first_seq: header.first_seq,
                after_loss: header.after_loss,
                end: End::FirstInvalid,
                bytes: segment::HEADER as u64,
            });
        }
        Ok(segments)
    }

    fn scan(&self, bytes: &[u8], header: &segment::Header, position: Position) -> Scan {
        // Behind a damaged header every record counts whose checksum is right.
        let delivered = match self.rebuilt.iter().any(|rebuilt| rebuilt.segment == header.id) {
            true => Seq(u64::MAX),
            false => position.seq,
        };
        scan(bytes, &self.log_id, header, delivered, &self.refused(header.id))
    }

    fn header_damage(&self, id: SegmentId) -> &'static str {
        match touch(&self.refused(id), 0, segment::HEADER as u64) {
            true => Damage::REFUSED,
            false => Damage::HEADER,
        }
    }

    /// Where the last segment ends, and so the log.
    fn last_segment(
        &self,
        id: SegmentId,
        header: Option<&segment::Header>,
        before: &[(SegmentId, Option<segment::Header>)],
        position: Position,
    ) -> Result<Scan, SpoolError> {
        if let Some(header) = header {
            let (bytes, file) = self.read(id, Access::Write)?;
            let scan = self.scan(&bytes, header, position);
            // What was read may be in the page cache only: after a crash between write and sync, or a failed sync.
            let commit = &bytes[scan.last_commit_at as usize..scan.end as usize];
            file.write_all_at(commit, scan.last_commit_at)
                .and_then(|()| file.sync_data())
                .map_err(SpoolError::io("write again the end of", &self.path(id)))?;
            return Ok(scan);
        }
        // The header is unreadable. New sequences must lie above every one that the segment may hold.
        let mut floor = match before.iter().rev().find_map(|(_, h)| h.as_ref()) {
            Some(header) => self.scan(&self.read(header.id, Access::Read)?.0, header, position),
            None => Scan {
                end: 0,
                last_commit_at: 0,
                next_seq: position.seq,
                commit: CommitNo(0),
                events: position.events,
                damage: Vec::new(),
                unread: None,
            },
        };
        let bytes = self.read(id, Access::Read)?.0;
        let checksum = Checksum::new(&self.log_id, id);
        let mut found = false;
        for record in valid_records(&bytes, &checksum, segment::HEADER) {
            found = true;
            floor.next_seq = floor.next_seq.max(record.header.next_seq());
            floor.commit = floor.commit.max(record.header.commit);
            floor.events = floor.events.max(record.header.events_after());
        }
        if !found {
            let most = (bytes.len() / record::HEADER) as u64;
            floor.next_seq.0 += most;
            floor.commit.0 += most;
        }
        Ok(Scan {
            end: bytes.len() as u64,
            damage: Vec::new(),
            unread: None,
            ..floor
        })
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(segment::file_name(id))
    }

    fn refused(&self, id: SegmentId) -> Vec<(u64, u64)> {
        self.around
            .map(|disk| disk.refused(&self.path(id)))
            .unwrap_or_default()
    }

    fn header(&mut self, id: SegmentId) -> Result<Option<segment::Header>, SpoolError> {
        let found = read_header(self.storage, self.dir, &self.log_id, id)?;
        if let Some(FoundHeader {
            header,
            from_copy: true,
        }) = &found
        {
            self.unmet.push(Damage {
                segment: id,
                bytes: Some((0, segment::HEADER as u64)),
                from: header.first_seq,
                to: Some(header.first_seq),
                what: match self.header_damage(id) {
                    Damage::REFUSED => Damage::REFUSED,
                    _ => Damage::HEADER_COPIED,
                },
            });
        }
        Ok(found.map(|found| found.header))
    }

    fn read(&self, id: SegmentId, access: Access) -> Result<(Vec<u8>, Box<dyn StorageFile>), SpoolError> {
        let path = self.path(id);
        let read = || {
            let file = self.storage.open(&path, access)?;
            let mut bytes = vec![0; file.size()? as usize];
            let n = file.read_at(&mut bytes, 0)?;
            bytes.truncate(n);
            Ok((bytes, file))
        };
        read().map_err(SpoolError::io("read", &path))
    }
}

/// A position at a segment's beginning.
fn begin_of(header: &segment::Header) -> Position {
    Position {
        seq: header.first_seq,
        events: header.events_before,
    }
}

/// Whether a segment begins at or before `seq`, as far as can be read.
fn begins_by(header: Option<&segment::Header>, seq: Seq) -> bool {
    header.is_some_and(|header| header.first_seq <= seq)
}

/// The header of a segment.
pub struct FoundHeader {
    pub header: segment::Header,
    /// The header itself is damaged or can't be read.
    pub from_copy: bool,
}

/// The header of a segment or its copy; `None` when neither is one of this log and this id.
pub fn read_header(
    storage: &dyn Storage,
    dir: &Path,
    log_id: &[u8; 16],
    id: SegmentId,
) -> Result<Option<FoundHeader>, SpoolError> {
    let path = dir.join(segment::file_name(id));
    let file = storage
        .open(&path, Access::Read)
        .map_err(SpoolError::io("read", &path))?;
    let read = |len: usize, at: usize| {
        let mut bytes = vec![0; len];
        let n = file.read_at(&mut bytes, at as u64)?;
        bytes.truncate(n);
        Ok(bytes)
    };
    let ours = |header: &segment::Header| header.log_id == *log_id && header.id == id;
    let first: io::Result<Vec<u8>> = read(segment::HEADER, 0);
    if let Err(error) = &first
        && !is_refused(error)
    {
        return first.map(|_| None).map_err(SpoolError::io("read", &path));
    }
    if let Some(header) = first
        .as_deref()
        .ok()
        .and_then(segment::Header::decode)
        .filter(ours)
    {
        return Ok(Some(FoundHeader {
            header,
            from_copy: false,
        }));
    }
    let copy: io::Result<Vec<u8>> = read(segment::MAX_COPY, segment::HEADER);
    let checksum = Checksum::new(log_id, id);
    let decode = |bytes: &[u8]| segment::Header::decode_copy(bytes, checksum);
    match copy.as_deref().ok().and_then(decode).filter(ours) {
        Some(header) => Ok(Some(FoundHeader {
            header,
            from_copy: true,
        })),
        None => first.map(|_| None).map_err(SpoolError::io("read", &path)),
    }
}
