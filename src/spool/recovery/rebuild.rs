//! Rebuilds, for a survey, a segment header that is damaged along with its copy. The records after it identify themselves,
//! and their checksums prove that they belong to this log and segment. The bridge does not do this: to it, the whole
//! segment is damaged.
//!
//! The first valid record gives the header's figures. If it is not the first one of the segment, those before it are lost:
//! the segment begins where the one before it ends. A segment without a valid record stays damaged as a whole.

use super::inspect::{Headed, Inspector, harmless_header_damage, newest};
use crate::spool::{
    error::SpoolError,
    position::{Position, SegmentId, Seq},
    record::Checksum,
    scan::{FoundRecord, valid_records},
    segment::{self, Durability, SegmentEnd, SegmentHeader, SegmentInfo},
};

impl Inspector<'_> {
    /// Rebuilds damaged headers, as far as the records after them allow.
    pub(super) fn rebuild(
        &mut self,
        headers: &mut [Headed],
        position: Option<Position>,
    ) -> Result<(), SpoolError> {
        for i in 0..headers.len() {
            let (before, rest) = headers.split_at_mut(i);
            let (id, None) = rest[0] else {
                continue;
            };
            let checksum = Checksum::new(&self.log_id, id);
            let bytes = self.read(id)?;
            let Some(first) = valid_records(&bytes, &checksum, segment::HEADER).next() else {
                continue;
            };
            let header = self.rebuilt_header(id, &first, before, position)?;
            self.rebuilt
                .push(harmless_header_damage(&header, self.header_damage(id)));
            rest[0].1 = Some(header);
        }
        Ok(())
    }

    fn rebuilt_header(
        &self,
        id: SegmentId,
        first: &FoundRecord,
        before: &[Headed],
        position: Option<Position>,
    ) -> Result<SegmentHeader, SpoolError> {
        let (first_seq, end) = match before.last() {
            Some((_, Some(before))) => self.end_of(before, position.unwrap_or_default())?,
            Some((_, None)) => (first.header.seq, 0),
            None => (position.map_or(first.header.seq, |position| position.seq), 0),
        };
        Ok(SegmentHeader {
            log_id: self.log_id,
            id,
            first_seq: match first.at {
                segment::HEADER => first.header.seq,
                // The records before it are damaged, too.
                _ => first_seq.min(first.header.seq),
            },
            first_commit: first.header.commit,
            events_before: first.header.events_before,
            predecessor: Some((SegmentId(id.0 - 1), end)),
            created_micros: 0,
            durability: Durability::Fsync,
            after_loss: false,
            history: newest(before)
                .map(|header| header.history.clone())
                .unwrap_or_default(),
        })
    }

    /// Finds the end of each segment whose successor doesn't state it.
    pub(super) fn find_ends(
        &self,
        segments: &mut [SegmentInfo],
        headers: &[Headed],
        position: Position,
    ) -> Result<(), SpoolError> {
        for (_, header) in headers.iter().rev().skip(1) {
            let Some(header) = header else {
                continue;
            };
            let unsaid =
                |info: &&mut SegmentInfo| info.id == header.id && info.end == SegmentEnd::FirstInvalid;
            if let Some(info) = segments.iter_mut().find(unsaid) {
                info.end = SegmentEnd::At(self.end_of(header, position)?.1);
            }
        }
        Ok(())
    }

    /// The sequence after a segment's last record, and the offset at which a reader reaches its end.
    fn end_of(&self, header: &SegmentHeader, position: Position) -> Result<(Seq, u64), SpoolError> {
        let scan = self.scan(&self.read(header.id)?, header, position);
        let unread = scan.unread.and_then(|unread| unread.bytes);
        Ok((scan.next_seq, unread.map_or(scan.end, |(_, behind)| behind)))
    }
}
