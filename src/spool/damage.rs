//! Damage: what the opening of a log, a reader or a survey found to be wrong.

use std::fmt;

use super::position::{Position, SegmentId, Seq};

/// Bytes of the spool that should be there and are not, or are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment with the wrong bytes, or the missing one. 0 when they are in another file, which `kind` names.
    pub segment: SegmentId,
    /// Byte range in the segment's file; `None` when it is the whole file.
    pub bytes: Option<(u64, u64)>,
    /// The first batch that can't be read.
    pub from: Seq,
    /// The first readable batch after it, when known.
    pub to: Option<Seq>,
    /// What was found.
    pub kind: DamageKind,
}

/// What kind of damage was found; displayed as a phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The disk refuses to read the bytes.
    Refused,
    Records,
    /// A segment's header and its copy are damaged.
    Header,
    /// A segment's header is damaged; its copy is used.
    HeaderCopied,
    SegmentMissing,
    /// Batches before a segment are missing, although no segment is.
    BatchesMissing,
    /// The checkpoint has no readable position.
    Position,
    /// One copy of the newest position is damaged; the other one is used.
    PositionCopied,
    /// Both copies of the newest position are damaged; the position before it is used.
    PositionOlder,
    /// The manifest is damaged; its copy is used.
    ManifestCopied,
    /// The bytes between the log's end and the checkpoint are gone, and perhaps more.
    Tail,
    /// The bytes between the log's end and the checkpoint are gone, as the durability allows.
    TailDelivered,
    /// An earlier start found damage and marked the log.
    Earlier,
}

impl fmt::Display for DamageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DamageKind::Refused => "can't be read: Input/output error (os error 5)",
            DamageKind::Records => "records are damaged",
            DamageKind::Header => "a segment header is unreadable",
            DamageKind::HeaderCopied => "a segment header is damaged and its copy is used",
            DamageKind::SegmentMissing => "a segment is missing",
            DamageKind::BatchesMissing => "batches are missing before the segment",
            DamageKind::Position => "the checkpoint is unreadable: the position is unknown",
            DamageKind::PositionCopied => {
                "a copy of the checkpoint's position is damaged and the other one is used"
            }
            DamageKind::PositionOlder => {
                "the checkpoint's newest position is damaged and the one before it is used: with at-least-once delivery \
                 what was delivered in between comes again, with exactly-once delivery Kafka's own position prevents that"
            }
            DamageKind::ManifestCopied => "the manifest is damaged and its copy is used",
            DamageKind::Tail => "the checkpoint lies beyond the log's end: the tail is lost",
            DamageKind::TailDelivered => {
                "the log ends before the checkpoint, as page-cache durability allows: what is gone was delivered"
            }
            DamageKind::Earlier => {
                "an earlier start found damage, which the file `damage` beside the segments describes"
            }
        })
    }
}

impl Damage {
    /// Damage of a file other than a segment.
    pub(super) fn beside_the_segments(kind: DamageKind, position: Position) -> Damage {
        Damage {
            segment: SegmentId(0),
            bytes: None,
            from: position.seq,
            to: Some(position.seq),
            kind,
        }
    }

    /// Whether it costs no batch and blocks no lane.
    pub fn is_harmless(&self) -> bool {
        self.to.is_some_and(|to| to <= self.from)
    }

    /// Whether the checkpoint has no position, so that only Kafka knows how far delivery has come.
    pub fn is_of_position(&self) -> bool {
        self.kind == DamageKind::Position
    }

    /// Whether everything acknowledged is there in spite of it.
    pub fn costs_nothing(&self) -> bool {
        self.is_harmless() || self.is_of_position()
    }

    /// This damage without the part before `position`, which is delivered, whatever became of its bytes.
    pub(super) fn behind(mut self, position: Seq) -> Damage {
        self.from = self.from.max(position);
        self.to = self.to.map(|to| to.max(self.from));
        self
    }

    /// Whether the disk refuses to read the bytes: a copy of the disk may hold more.
    pub fn is_refused(&self) -> bool {
        self.kind == DamageKind::Refused
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if self.segment != SegmentId(0) {
            write!(f, " in segment {}", self.segment)?;
        }
        if let Some((from, to)) = self.bytes {
            write!(f, ", bytes {from} to {to}")?;
        }
        if self.costs_nothing() {
            return f.write_str("; no batch is lost by that");
        }
        write!(f, ", batches from {}", self.from)?;
        self.to.map_or(Ok(()), |to| write!(f, " to before {to}"))
    }
}
