//! Records: how a batch or a seal is stored in a segment.
//!
//! ```text
//! offset size
//!  0     4    magic: "CMCb" batch, "CMCs" seal (takes no sequence; empty, or a header's copy: segment.rs)
//!  4     4    CRC-32C of: log id (16 bytes), segment id (8), bytes 0 to 4 and 8 to 48
//!  8     4    CRC-32C of the payload
//! 12     4    payload length in bytes
//! 16     8    sequence: this batch's, or for a seal the next batch's
//! 24     8    commit number
//! 32     8    events in all batches before this record
//! 40     4    events in this batch
//! 44     4    bytes from the start of this record's commit to this record
//! 48          payload, then zeros up to a multiple of 16
//! ```
//!
//! The last field tells which of the preceding bytes belong to the same commit: invalid bytes within that commit are a torn
//! tail, invalid bytes before it are damage.
//!
//! Records start at multiples of 16 in the segment's file, so a scan can find the next valid one after damage. The header
//! has its own checksum, which covers a log id that no webhook knows. A payload therefore can't fake a header with a length,
//! and a scan takes linear time whatever was posted.

use super::{
    numbers::{array_at, put, u32_at, u64_at},
    position::{CommitNo, SegmentId, Seq},
};

/// Offsets of a header's fields.
mod at {
    pub const HEADER_CRC: usize = 4;
    pub const PAYLOAD_CRC: usize = 8;
    pub const PAYLOAD_LEN: usize = 12;
    pub const SEQ: usize = 16;
    pub const COMMIT: usize = 24;
    pub const EVENTS_BEFORE: usize = 32;
    pub const EVENTS: usize = 40;
    pub const IN_COMMIT: usize = 44;
}

pub const HEADER: usize = 48;
pub const ALIGN: usize = 16;
const BATCH: [u8; 4] = *b"CMCb";
const SEAL: [u8; 4] = *b"CMCs";

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Batch,
    Seal,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub payload_len: usize,
    pub seq: Seq,
    pub commit: CommitNo,
    pub events_before: u64,
    pub events: u32,
    /// Bytes from the start of the commit to this record.
    pub in_commit: u32,
}

impl RecordHeader {
    /// Bytes of the whole record in the segment.
    pub fn record_len(&self) -> usize {
        record_len(self.payload_len)
    }

    /// The sequence of the next batch.
    pub fn next_seq(&self) -> Seq {
        match self.kind {
            RecordKind::Batch => Seq(self.seq.0 + 1),
            RecordKind::Seal => self.seq,
        }
    }

    /// Events in all batches up to and including this record.
    pub fn events_after(&self) -> u64 {
        self.events_before + u64::from(self.events)
    }
}

/// Bytes of a record with a payload of this length.
pub const fn record_len(payload_len: usize) -> usize {
    (HEADER + payload_len).next_multiple_of(ALIGN)
}

/// The checksum of the records of one segment of one log.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(u32);

impl Checksum {
    pub fn new(log_id: &[u8; 16], segment: SegmentId) -> Checksum {
        Checksum(crc32c::crc32c_append(
            crc32c::crc32c(log_id),
            &segment.0.to_le_bytes(),
        ))
    }

    fn of_header(self, bytes: &[u8; HEADER]) -> u32 {
        let magic = crc32c::crc32c_append(self.0, &bytes[..at::HEADER_CRC]);
        crc32c::crc32c_append(magic, &bytes[at::PAYLOAD_CRC..])
    }

    /// Appends a record to `out`. The payload's length must fit in a u32.
    pub fn encode(self, header: &RecordHeader, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert_eq!(header.payload_len, payload.len());
        let start = out.len();
        let mut bytes = [0u8; HEADER];
        let magic = match header.kind {
            RecordKind::Batch => &BATCH,
            RecordKind::Seal => &SEAL,
        };
        put(&mut bytes, 0, magic);
        put(
            &mut bytes,
            at::PAYLOAD_CRC,
            &crc32c::crc32c(payload).to_le_bytes(),
        );
        put(
            &mut bytes,
            at::PAYLOAD_LEN,
            &(header.payload_len as u32).to_le_bytes(),
        );
        put(&mut bytes, at::SEQ, &header.seq.0.to_le_bytes());
        put(&mut bytes, at::COMMIT, &header.commit.0.to_le_bytes());
        put(&mut bytes, at::EVENTS_BEFORE, &header.events_before.to_le_bytes());
        put(&mut bytes, at::EVENTS, &header.events.to_le_bytes());
        put(&mut bytes, at::IN_COMMIT, &header.in_commit.to_le_bytes());
        let crc = self.of_header(&bytes);
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        out.extend_from_slice(&bytes);
        out.extend_from_slice(payload);
        out.resize(start + header.record_len(), 0);
    }

    /// The header at the beginning of `bytes`, if its checksum is right. The payload is not checked.
    pub fn header(self, bytes: &[u8]) -> Option<RecordHeader> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let kind = match array_at(header, 0) {
            BATCH => RecordKind::Batch,
            SEAL => RecordKind::Seal,
            _ => return None,
        };
        if u32_at(header, at::HEADER_CRC) != self.of_header(header) {
            return None;
        }
        Some(RecordHeader {
            kind,
            payload_len: u32_at(header, at::PAYLOAD_LEN) as usize,
            seq: Seq(u64_at(header, at::SEQ)),
            commit: CommitNo(u64_at(header, at::COMMIT)),
            events_before: u64_at(header, at::EVENTS_BEFORE),
            events: u32_at(header, at::EVENTS),
            in_commit: u32_at(header, at::IN_COMMIT),
        })
    }

    /// The record at the beginning of `bytes`, if it is complete and its checksums are right.
    pub fn verify(self, bytes: &[u8]) -> Option<(RecordHeader, &[u8])> {
        let header = self.header(bytes)?;
        let payload = bytes.get(HEADER..HEADER + header.payload_len)?;
        (u32_at(bytes, at::PAYLOAD_CRC) == crc32c::crc32c(payload)).then_some((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(payload_len: usize) -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Batch,
            payload_len,
            seq: Seq(7),
            commit: CommitNo(3),
            events_before: 20,
            events: 2,
            in_commit: 64,
        }
    }

    #[test]
    fn verifies_what_it_encodes_and_nothing_else() {
        let checksum = Checksum::new(&[1; 16], SegmentId(4));
        let mut bytes = Vec::new();
        checksum.encode(&header(5), b"hello", &mut bytes);
        assert_eq!(bytes.len(), 64);
        assert_eq!(checksum.verify(&bytes), Some((header(5), &b"hello"[..])));

        assert_eq!(
            Checksum::new(&[2; 16], SegmentId(4)).verify(&bytes),
            None,
            "another log"
        );
        assert_eq!(
            Checksum::new(&[1; 16], SegmentId(5)).verify(&bytes),
            None,
            "another segment"
        );
        for end in 0..HEADER + 5 {
            assert_eq!(checksum.verify(&bytes[..end]), None, "cut at {end}");
        }
        for bit in 0..(HEADER + 5) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(checksum.verify(&flipped), None, "bit {bit}");
        }
    }
}
