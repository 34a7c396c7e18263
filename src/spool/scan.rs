//! Scans one segment's records: where they end, and whether what follows was ever durable.

use super::{
    damage::{Damage, DamageKind},
    position::{CommitNo, Position, SegmentId, Seq},
    record::{self, ALIGN, Checksum, RecordHeader},
    salvage::touch,
    segment::{self, Durability, SegmentHeader},
};

/// The result of a scan.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// The offset after the last valid record.
    pub end: u64,
    /// The offset of the last commit; `end` when there is none.
    pub last_commit_at: u64,
    pub next_seq: Seq,
    /// The last commit.
    pub commit: CommitNo,
    pub events: u64,
    pub damage: Vec<Damage>,
    /// Damage after the end.
    pub unread: Option<Damage>,
}

/// Reads a segment's records to its end and tells a torn tail from damage. Everything before `delivered` was once durable,
/// as the checkpoint proves. `refused` are ranges that the disk can't read; they are zeros in `bytes`.
pub fn scan(
    bytes: &[u8],
    log_id: &[u8; 16],
    header: &SegmentHeader,
    delivered: Seq,
    refused: &[(u64, u64)],
) -> Scan {
    let checksum = Checksum::new(log_id, header.id);
    let mut at = segment::HEADER.min(bytes.len());
    let mut scan = Scan {
        end: at as u64,
        last_commit_at: at as u64,
        commit: CommitNo(header.first_commit.0.saturating_sub(1)),
        ..Scan::nothing(header.begin())
    };
    loop {
        if let Some((record, _)) = bytes.get(at..).and_then(|rest| checksum.verify(rest))
            && scan.follows(&record, at)
        {
            scan.take(&record, at, bytes.len());
            at = scan.end as usize;
            continue;
        }
        // A commit that begins after the invalid place proves that the place was once durable, and so does a checkpoint
        // beyond it. Without such a proof, valid records after it belong to the same commit, which was never acknowledged.
        let behind = (at + ALIGN).min(bytes.len());
        let hidden = is_hidden(bytes, at, checksum, refused);
        // Damage to the header's copy proves nothing about the first commit, which begins after it.
        let copy_end = match at == segment::HEADER {
            true => header.first_commit_at(bytes),
            false => at,
        };
        let proves =
            |record: FoundRecord| record.commit_at() > copy_end || copy_end > at && record.at == copy_end;
        let proven = hidden
            || header.durability == Durability::Fsync
                && (scan.next_seq < delivered || valid_records(bytes, &checksum, behind).any(proves));
        let next = valid_records(bytes, &checksum, behind).next();
        let Some(next) = next.filter(|_| proven) else {
            scan.end_before(refused, hidden, header.id, bytes.len());
            return scan;
        };
        let range = (at as u64, next.at as u64);
        scan.damage.push(Damage {
            segment: header.id,
            bytes: Some(range),
            from: scan.next_seq,
            to: Some(next.header.seq),
            kind: match touch(refused, range.0, range.1) {
                true => DamageKind::Refused,
                false => DamageKind::Records,
            },
        });
        // The next valid record is accepted as it is.
        scan.take(&next.header, next.at, bytes.len());
        at = scan.end as usize;
    }
}

impl Scan {
    /// The scan of a segment without records, at this position.
    pub fn nothing(position: Position) -> Scan {
        Scan {
            end: 0,
            last_commit_at: 0,
            next_seq: position.seq,
            commit: CommitNo(0),
            events: position.events,
            damage: Vec::new(),
            unread: None,
        }
    }

    /// Whether the writer would have written this record here.
    fn follows(&self, record: &RecordHeader, at: usize) -> bool {
        let commit_at = (at as u64).checked_sub(u64::from(record.in_commit));
        let in_order = if record.commit == self.commit {
            commit_at == Some(self.last_commit_at) && self.last_commit_at < self.end
        } else {
            record.commit.0 == self.commit.0 + 1 && record.in_commit == 0
        };
        in_order && record.seq == self.next_seq && record.events_before == self.events
    }

    /// Notes the damage after the last readable record. If the disk hides the next record, new sequences must be higher
    /// than any that may be there.
    fn end_before(&mut self, refused: &[(u64, u64)], hidden: bool, segment: SegmentId, file_len: usize) {
        let mut ranges = refused.iter().filter(|(_, end)| *end > self.end);
        let (Some((first, _)), Some((_, behind))) = (ranges.next(), refused.last()) else {
            return;
        };
        let behind = (*behind).min(file_len as u64);
        let from = match hidden {
            true => self.end,
            false => self.end.max(*first),
        };
        self.unread = Some(Damage {
            segment,
            bytes: Some((from, behind)),
            from: self.next_seq,
            to: (!hidden).then_some(self.next_seq),
            kind: DamageKind::Refused,
        });
        if hidden {
            self.next_seq.0 += (behind - self.end) / record::HEADER as u64;
        }
    }

    fn take(&mut self, record: &RecordHeader, at: usize, file_len: usize) {
        self.next_seq = record.next_seq();
        self.commit = record.commit;
        self.events = record.events_after();
        self.last_commit_at = (at as u64).saturating_sub(u64::from(record.in_commit));
        // The padding of a file's last record may be missing.
        self.end = (at + record.record_len()).min(file_len) as u64;
    }
}

/// Whether the disk refuses part of the record at `at`, so that it can't be told from a torn one.
fn is_hidden(bytes: &[u8], at: usize, checksum: Checksum, refused: &[(u64, u64)]) -> bool {
    let header = bytes.get(at..).and_then(|rest| checksum.header(rest));
    let len = header.map_or(record::HEADER, |header| header.record_len());
    touch(refused, at as u64, (at + len) as u64)
}

/// A valid record and its offset.
pub struct FoundRecord {
    pub at: usize,
    pub header: RecordHeader,
}

impl FoundRecord {
    /// Where its commit begins.
    fn commit_at(&self) -> usize {
        self.at.saturating_sub(self.header.in_commit as usize)
    }
}

/// The valid records at or after `from`, wherever they begin.
pub fn valid_records<'a>(
    bytes: &'a [u8],
    checksum: &'a Checksum,
    from: usize,
) -> impl Iterator<Item = FoundRecord> + 'a {
    let mut at = from.next_multiple_of(ALIGN);
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let here = at;
            if let Some((header, _)) = checksum.verify(&bytes[here..]) {
                at += header.record_len();
                return Some(FoundRecord { at: here, header });
            }
            at += ALIGN;
        }
        None
    })
}
