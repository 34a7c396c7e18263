//! A scan of one segment's records: where they end, and whether what is behind the end was ever durable.

use crate::config::Durability;

use super::{
    CommitNo, Damage, Seq,
    record::{self, ALIGN, Checksum},
    segment,
};

/// What a scan of a segment's records found.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Offset behind the last valid record.
    pub end: u64,
    /// Offset of the first record of the last commit; `end` when there is none.
    pub last_commit_at: u64,
    pub next_seq: Seq,
    /// The last commit.
    pub commit: CommitNo,
    pub events: u64,
    pub damage: Vec<Damage>,
}

/// Reads a segment's records to its end and tells a torn tail from damage. Everything before `delivered` was durable
/// once, by the checkpoint's word.
pub fn scan(bytes: &[u8], log_id: &[u8; 16], header: &segment::Header, delivered: Seq) -> Scan {
    let checksum = Checksum::new(log_id, header.id);
    let mut at = segment::HEADER.min(bytes.len());
    let mut scan = Scan {
        end: at as u64,
        last_commit_at: at as u64,
        next_seq: header.first_seq,
        commit: CommitNo(header.first_commit.0.saturating_sub(1)),
        events: header.events_before,
        damage: Vec::new(),
    };
    loop {
        if let Some((record, _)) = bytes.get(at..).and_then(|rest| checksum.verify(rest))
            && scan.follows(&record, at)
        {
            scan.take(&record, at, bytes.len());
            at = scan.end as usize;
            continue;
        }
        // A commit that begins behind the invalid place proves that the place was durable once, and so does a
        // checkpoint beyond it. Without them, valid records behind it are of the same, never acknowledged commit.
        let behind = (at + ALIGN).min(bytes.len());
        let proven = header.durability == Durability::Fsync
            && (scan.next_seq < delivered
                || valid_records(bytes, &checksum, behind).any(|record| record.commit_at() > at));
        let next = valid_records(bytes, &checksum, behind).next();
        let Some(next) = next.filter(|_| proven) else {
            return scan;
        };
        scan.damage.push(Damage {
            segment: header.id,
            bytes: Some((at as u64, next.at as u64)),
            from: scan.next_seq,
            to: Some(next.header.seq),
            what: "records are damaged",
        });
        // The next valid record is taken as it stands.
        scan.take(&next.header, next.at, bytes.len());
        at = scan.end as usize;
    }
}

impl Scan {
    /// Whether a record is the one that the writer would have written here.
    fn follows(&self, record: &record::Header, at: usize) -> bool {
        let commit_at = (at as u64).checked_sub(u64::from(record.in_commit));
        let in_order = if record.commit == self.commit {
            commit_at == Some(self.last_commit_at) && self.last_commit_at < self.end
        } else {
            record.commit.0 == self.commit.0 + 1 && record.in_commit == 0
        };
        in_order && record.seq == self.next_seq && record.events_before == self.events
    }

    fn take(&mut self, record: &record::Header, at: usize, file_len: usize) {
        self.next_seq = record.next_seq();
        self.commit = record.commit;
        self.events = record.events_after();
        self.last_commit_at = (at as u64).saturating_sub(u64::from(record.in_commit));
        // The padding of a file's very last record may be missing.
        self.end = (at + record.record_len()).min(file_len) as u64;
    }
}

/// A record whose checksum is right.
pub struct Found {
    pub at: usize,
    pub header: record::Header,
}

impl Found {
    /// Where its commit begins.
    fn commit_at(&self) -> usize {
        self.at.saturating_sub(self.header.in_commit as usize)
    }
}

/// The valid records at or behind `from`, wherever they begin.
pub fn valid_records<'a>(
    bytes: &'a [u8],
    checksum: &'a Checksum,
    from: usize,
) -> impl Iterator<Item = Found> + 'a {
    let mut at = from.next_multiple_of(ALIGN);
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let here = at;
            if let Some((header, _)) = checksum.verify(&bytes[here..]) {
                at += header.record_len();
                return Some(Found { at: here, header });
            }
            at += ALIGN;
        }
        None
    })
}
