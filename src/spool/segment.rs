//! Segment headers and file names.
//!
//! A segment's first [`HEADER`] bytes:
//!
//! ```text
//! offset size
//!   0     8   magic "CMCspool"
//!   8     4   CRC-32C of bytes 12 to 4096
//!  12     4   format, 1
//!  16    16   log id
//!  32     8   segment id
//!  40     8   first sequence
//!  48     8   first commit number
//!  56     8   events in all batches before this segment
//!  64     8   id of the previous segment, 0 for none
//!  72     8   its exact end, as an offset in its file
//!  80     8   created at, microseconds since the Unix epoch
//!  88     1   durability: 1 fsync, 2 page-cache
//!  89     1   1 if batches right before this segment are lost and an operator has accepted that, else 0 (repair.rs)
//!  90     4   zero
//!  94     2   number of history entries
//!  96         history: (incarnation u64, first sequence u64) for each, the oldest first; the last is this segment's
//! ```
//!
//! The first record after the header is a seal whose payload is a copy of the header, without the zeros at its end. Both are
//! written and synced together. If the header is damaged, the copy is used, so that one damaged place can't hide where the
//! segment begins or who wrote it. Segments written by earlier versions have no copy.
//!
//! The *history* records which process life (incarnation) wrote which sequences. It is stored in Kafka along with the
//! position; at the next start it shows whether log and position belong together.

use super::{
    damage::Damage,
    numbers::{array_at, put, u16_at, u64_at},
    position::{CommitNo, Position, SegmentId, Seq},
    record::{self, Checksum, RecordHeader, RecordKind},
};

pub const HEADER: usize = 4096;
pub const FORMAT: u32 = 1;
/// The largest size of the record with the header's copy, in bytes.
pub const MAX_COPY: usize = record::record_len(HEADER);
const MAGIC: &[u8; 8] = b"CMCspool";
/// Offsets of a header's fields.
mod at {
    pub const CRC: usize = 8;
    pub const FORMAT: usize = 12;
    pub const LOG_ID: usize = 16;
    pub const ID: usize = 32;
    pub const FIRST_SEQ: usize = 40;
    pub const FIRST_COMMIT: usize = 48;
    pub const EVENTS_BEFORE: usize = 56;
    pub const PREDECESSOR: usize = 64;
    pub const PREDECESSOR_END: usize = 72;
    pub const CREATED: usize = 80;
    pub const DURABILITY: usize = 88;
    pub const AFTER_LOSS: usize = 89;
    pub const ENTRIES: usize = 94;
    pub const HISTORY: usize = 96;
}
/// Bytes of a history entry: an incarnation and its first sequence.
const ENTRY: usize = 16;
/// Maximum number of history entries: as many as the header has room for.
const MAX_HISTORY: usize = (HEADER - at::HISTORY) / ENTRY;

/// What must have happened to a batch before its webhook is answered 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fsync`: it is on the device (`fdatasync` returned).
    Fsync,
    /// `page-cache`: the kernel has it; it survives the process, not the machine.
    PageCache,
}

/// A random number, chosen anew each time a log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub u64);

/// Who wrote which sequences: each incarnation wrote those from its first one up to the next incarnation's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(Vec<(Incarnation, Seq)>);

impl History {
    /// The entries, the oldest first; sequences strictly rise.
    pub fn entries(&self) -> &[(Incarnation, Seq)] {
        &self.0
    }

    /// Whether one incarnation wrote both batches, the earlier one first.
    pub fn is_one_incarnation(&self, earlier: Seq, later: Seq) -> bool {
        !self
            .0
            .iter()
            .any(|(_, first)| earlier < *first && *first <= later)
    }

    /// This history with one more incarnation, from sequence `first` on. Entries that would cover no sequence are dropped, and
    /// the oldest ones beyond 250.
    pub fn then(mut self, incarnation: Incarnation, first: Seq) -> History {
        while self.0.last().is_some_and(|(_, seq)| *seq >= first) {
            self.0.pop();
        }
        self.0.push((incarnation, first));
        if self.0.len() > MAX_HISTORY {
            self.0.drain(..self.0.len() - MAX_HISTORY);
        }
        self
    }
}

/// The header of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub log_id: [u8; 16],
    pub id: SegmentId,
    pub first_seq: Seq,
    pub first_commit: CommitNo,
    pub events_before: u64,
    /// The previous segment and its exact end; `None` for a log's first one.
    pub predecessor: Option<(SegmentId, u64)>,
    pub created_micros: i64,
    pub durability: Durability,
    /// Batches right before the first one are lost, and an operator has accepted that.
    pub after_loss: bool,
    pub history: History,
}

impl SegmentHeader {
    /// The position at the segment's beginning.
    pub fn begin(&self) -> Position {
        Position {
            seq: self.first_seq,
            events: self.events_before,
        }
    }

    pub fn encode(&self) -> Box<[u8; HEADER]> {
        let mut bytes = Box::new([0u8; HEADER]);
        let mut put = |at: usize, value: &[u8]| put(&mut bytes[..], at, value);
        let (before, before_end) = self.predecessor.unwrap_or_default();
        put(0, MAGIC);
        put(at::FORMAT, &FORMAT.to_le_bytes());
        put(at::LOG_ID, &self.log_id);
        put(at::ID, &self.id.0.to_le_bytes());
        put(at::FIRST_SEQ, &self.first_seq.0.to_le_bytes());
        put(at::FIRST_COMMIT, &self.first_commit.0.to_le_bytes());
        put(at::EVENTS_BEFORE, &self.events_before.to_le_bytes());
        put(at::PREDECESSOR, &before.0.to_le_bytes());
        put(at::PREDECESSOR_END, &before_end.to_le_bytes());
        put(at::CREATED, &self.created_micros.to_le_bytes());
        let durability = match self.durability {
            Durability::Fsync => 1,
            Durability::PageCache => 2,
        };
        put(at::DURABILITY, &[durability]);
        put(at::AFTER_LOSS, &[u8::from(self.after_loss)]);
        put(at::ENTRIES, &(self.history.0.len() as u16).to_le_bytes());
        for (i, (incarnation, seq)) in self.history.0.iter().enumerate() {
            put(used(i), &incarnation.0.to_le_bytes());
            put(used(i) + 8, &seq.0.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[at::FORMAT..]);
        bytes[at::CRC..at::FORMAT].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The beginning of a segment: the header and the record with its copy.
    pub fn encode_with_copy(&self) -> Vec<u8> {
        let header = self.encode();
        let copy = &header[..used(self.history.0.len())];
        let seal = RecordHeader {
            kind: RecordKind::Seal,
            payload_len: copy.len(),
            seq: self.first_seq,
            commit: self.first_commit,
            events_before: self.events_before,
            events: 0,
            in_commit: 0,
        };
        let mut bytes = header.to_vec();
        Checksum::new(&self.log_id, self.id).encode(&seal, copy, &mut bytes);
        bytes
    }

    /// Where the first commit begins in a segment with these bytes: after the header's copy, even if that is damaged, or right
    /// after the header if an earlier version wrote the segment.
    pub fn first_commit_at(&self, bytes: &[u8]) -> usize {
        let beginning = self.encode_with_copy();
        let (_, copy) = beginning.split_at(HEADER);
        let found = bytes.get(HEADER..beginning.len()).unwrap_or_default();
        let same = copy
            .iter()
            .zip(found)
            .filter(|(copy, found)| copy == found)
            .count();
        // A batch in this place has hardly more in common with the copy than some zeros.
        match same * 4 > copy.len() * 3 {
            true => beginning.len(),
            false => HEADER,
        }
    }

    /// The header whose copy is the record at the beginning of `bytes`, if that is a valid copy.
    pub fn decode_copy(bytes: &[u8], checksum: Checksum) -> Option<SegmentHeader> {
        let (record, copy) = checksum.verify(bytes)?;
        if record.kind != RecordKind::Seal || copy.len() > HEADER {
            return None;
        }
        let mut header = copy.to_vec();
        header.resize(HEADER, 0);
        SegmentHeader::decode(&header)
    }

    /// The header at the beginning of `bytes`, if it has this format and its checksum is right.
    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let u64_at = |at: usize| u64_at(bytes, at);
        let crc_ok = bytes[at::CRC..at::FORMAT] == crc32c::crc32c(&bytes[at::FORMAT..]).to_le_bytes();
        let format_ok = bytes[at::FORMAT..at::LOG_ID] == FORMAT.to_le_bytes();
        if bytes[..at::CRC] != *MAGIC || !crc_ok || !format_ok {
            return None;
        }
        let entries = usize::from(u16_at(bytes, at::ENTRIES));
        if entries > MAX_HISTORY {
            return None;
        }
        let history = (0..entries)
            .map(used)
            .map(|at| (Incarnation(u64_at(at)), Seq(u64_at(at + 8))))
            .collect();
        Some(SegmentHeader {
            log_id: array_at(bytes, at::LOG_ID),
            id: SegmentId(u64_at(at::ID)),
            first_seq: Seq(u64_at(at::FIRST_SEQ)),
            first_commit: CommitNo(u64_at(at::FIRST_COMMIT)),
            events_before: u64_at(at::EVENTS_BEFORE),
            predecessor: match u64_at(at::PREDECESSOR) {
                0 => None,
                id => Some((SegmentId(id), u64_at(at::PREDECESSOR_END))),
            },
            created_micros: u64_at(at::CREATED) as i64,
            durability: match bytes[at::DURABILITY] {
                1 => Durability::Fsync,
                2 => Durability::PageCache,
                _ => return None,
            },
            after_loss: bytes[at::AFTER_LOSS] == 1,
            history: History(history),
        })
    }
}

/// A segment as a reader needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub id: SegmentId,
    /// The first sequence in it, or after it if the segment is unusable.
    pub first_seq: Seq,
    /// Events in all batches before it; 0 when the segment is unusable.
    pub events_before: u64,
    /// Whether the batches missing before `first_seq` are known to be lost.
    pub after_loss: bool,
    pub end: SegmentEnd,
    /// Bytes that count against the budget.
    pub bytes: u64,
}

impl SegmentInfo {
    /// Whether the batches missing before it were lost earlier and no others are, given the events before the missing ones.
    /// Every batch has events, so none is missing if no event is.
    pub fn follows_known_loss(&self, events: Option<u64>) -> bool {
        self.after_loss && events == Some(self.events_before)
    }
}

/// Where a segment's records end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// At this offset of the file.
    At(u64),
    /// At the log's durable end: the segment is being written.
    Durable,
    /// At the first invalid record: the next segment, which would state the end, is damaged.
    FirstInvalid,
    /// The whole segment is unusable.
    Damaged(Damage),
}

/// Bytes used by a header with this many history entries, without the zeros at its end.
const fn used(entries: usize) -> usize {
    at::HISTORY + entries * ENTRY
}

/// The offset of the first batch in a segment with this many history entries.
pub const fn first_batch_at(entries: usize) -> usize {
    HEADER + record::record_len(used(entries))
}

/// The file name of a segment.
pub fn file_name(id: SegmentId) -> String {
    format!("{:020}.segment", id.0)
}

/// The segment with this file name.
pub fn parse_file_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_suffix(".segment")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|id| *id > 0).map(SegmentId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_encodes_and_nothing_else() {
        let header = SegmentHeader {
            log_id: [9; 16],
            id: SegmentId(3),
            first_seq: Seq(10),
            first_commit: CommitNo(8),
            events_before: 99,
            predecessor: Some((SegmentId(2), 4160)),
            created_micros: 1_700_000_000_000_000,
            durability: Durability::PageCache,
            after_loss: true,
            history: History::default()
                .then(Incarnation(1), Seq(0))
                .then(Incarnation(2), Seq(10)),
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes[..]), Some(header));
        for at in (0..HEADER).step_by(7) {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&wrong[..]), None, "byte {at}");
        }
        assert_eq!(SegmentHeader::decode(&bytes[..HEADER - 1]), None);
        assert_eq!(SegmentHeader::decode(&[0; HEADER]), None);
    }

    #[test]
    fn the_copy_says_the_same() {
        let header = |lives| SegmentHeader {
            log_id: [9; 16],
            id: SegmentId(3),
            first_seq: Seq(10),
            first_commit: CommitNo(8),
            events_before: 99,
            predecessor: None,
            created_micros: 5,
            durability: Durability::Fsync,
            after_loss: false,
            history: (0..lives).fold(History::default(), |h, n| h.then(Incarnation(n), Seq(n))),
        };
        for lives in [0, 1, 2, MAX_HISTORY as u64] {
            let header = header(lives);
            let mut bytes = header.encode_with_copy();
            assert_eq!(bytes.len(), first_batch_at(lives as usize));
            assert!(bytes.len() <= HEADER + MAX_COPY);
            assert_eq!(SegmentHeader::decode(&bytes), Some(header.clone()));
            let decode = |bytes: &[u8], id| {
                let checksum = Checksum::new(&[9; 16], SegmentId(id));
                SegmentHeader::decode_copy(&bytes[HEADER..], checksum)
            };
            assert_eq!(decode(&bytes, 3), Some(header));
            assert_eq!(decode(&bytes, 4), None, "of another segment");
            bytes[HEADER + 60] ^= 1;
            assert_eq!(decode(&bytes, 3), None);
        }
        // A seal at that place in a segment of an earlier version.
        let mut bytes = Vec::new();
        let seal = RecordHeader {
            kind: RecordKind::Seal,
            payload_len: 0,
            seq: Seq(0),
            commit: CommitNo(1),
            events_before: 0,
            events: 0,
            in_commit: 0,
        };
        let checksum = Checksum::new(&[9; 16], SegmentId(1));
        checksum.encode(&seal, &[], &mut bytes);
        assert_eq!(SegmentHeader::decode_copy(&bytes, checksum), None);
    }

    #[test]
    fn a_history_keeps_no_empty_ranges_and_no_more_than_fit() {
        let history = History::default()
            .then(Incarnation(1), Seq(0))
            .then(Incarnation(2), Seq(0))
            .then(Incarnation(3), Seq(5))
            .then(Incarnation(4), Seq(5));
        assert_eq!(
            history.entries(),
            [(Incarnation(2), Seq(0)), (Incarnation(4), Seq(5))]
        );
        let long = (0..500).fold(History::default(), |h, n| h.then(Incarnation(n), Seq(n)));
        assert_eq!(long.entries().len(), MAX_HISTORY);
        assert_eq!(long.entries().last(), Some(&(Incarnation(499), Seq(499))));
    }

    #[test]
    fn file_names() {
        assert_eq!(parse_file_name(&file_name(SegmentId(42))), Some(SegmentId(42)));
        for name in [
            "next.spare",
            "1.segment",
            "00000000000000000000.segment",
            "0000000000000000000x.segment",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
