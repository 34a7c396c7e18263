//! What a survey makes of a segment whose header is damaged and has no whole copy: the records behind it say which they are,
//! and their checksums that they are of this log and segment. The bridge itself does not do that: there the segment is damage
//! as a whole.
//!
//! The first valid record gives the header's figures. If it is not the first one of the segment, those before it are lost:
//! the segment begins where the one before it ends. A segment without a valid record stays damaged as a whole.

use crate::config::Durability;

use super::*;

impl Recovery<'_> {
    /// Makes headers that are damaged anew, as far as the records behind them tell.
    pub(super) fn rebuild(
        &mut self,
        headers: &mut [(SegmentId, Option<segment::Header>)],
        position: Option<Position>,
    ) -> Result<(), SpoolError> {
        for i in 0..headers.len() {
            let (before, rest) = headers.split_at_mut(i);
            let (id, None) = rest[0] else {
                continue;
            };
            let bytes = self.read(id, Access::Read)?.0;
            let checksum = Checksum::new(&self.log_id, id);
            let Some(first) = valid_records(&bytes, &checksum, segment::HEADER).next() else {
                continue;
            };
            let (first_seq, end) = match before.last() {
                Some((_, Some(before))) => self.end_of(before, position.unwrap_or_default())?,
                Some((_, None)) => (first.header.seq, 0),
                None => (position.map_or(first.header.seq, |position| position.seq), 0),
            };
            let known = before.iter().rev().find_map(|(_, header)| header.as_ref());
            let header = segment::Header {
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
                history: known.map(|header| header.history.clone()).unwrap_or_default(),
            };
            self.rebuilt.push(Damage {
                segment: id,
                bytes: Some((0, segment::HEADER as u64)),
                from: header.first_seq,
                to: Some(header.first_seq),
                what: self.header_damage(id),
            });
            rest[0].1 = Some(header);
        }
        Ok(())
    }

    /// Finds where segments end whose successor can't tell.
    pub(super) fn find_ends(
        &self,
        segments: &mut [SegmentInfo],
        headers: &[(SegmentId, Option<segment::Header>)],
        position: Position,
    ) -> Result<(), SpoolError> {
        for (_, header) in headers.iter().rev().skip(1) {
            let Some(header) = header else {
                continue;
            };
            let unsaid = |info: &&mut SegmentInfo| info.id == header.id && info.end == End::FirstInvalid;
            if let Some(info) = segments.iter_mut().find(unsaid) {
                info.end = End::At(self.end_of(header, position)?.1);
            }
        }
        Ok(())
    }

    /// The sequence behind a segment's last record, and where a reader comes to its end.
    fn end_of(&self, header: &segment::Header, position: Position) -> Result<(Seq, u64), SpoolError> {
        let scan = self.scan(&self.read(header.id, Access::Read)?.0, header, position);
        let unread = scan.unread.and_then(|unread| unread.bytes);
        Ok((scan.next_seq, unread.map_or(scan.end, |(_, behind)| behind)))
    }
}
