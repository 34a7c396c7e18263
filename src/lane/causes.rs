//! A lane's own failures, with reason, cause and cure. Those of the broker are explained in [`crate::kafka`].

use std::path::Path;

use crate::{
    batch::DecodeError,
    kafka::broker::{BlockReason, BrokerError, Refusal},
    spool::{Damage, ReadError, SegmentId, SpoolError, StoredBatch},
    stream::Stream,
};

/// The lane can't read its log.
pub fn unreadable(error: ReadError) -> BrokerError {
    match error {
        ReadError::Damaged(damage) => damaged(&damage),
        ReadError::Spool(error) => BrokerError {
            reason: BlockReason::DiskError,
            cause: format!("the spool can't be read: {error}"),
            cure: "New webhooks are still taken, and delivery continues when the disk can be read again. If it stays \
                   unreadable, stop the bridge and copy the disk; `cmc-bridge spool verify` says what is lost"
                .into(),
        },
    }
}

/// A batch is whole but has an unknown format.
pub fn undecodable(batch: &StoredBatch, error: DecodeError) -> BrokerError {
    BrokerError {
        reason: BlockReason::Damage,
        cause: format!("batch {} can't be decoded ({error})", batch.seq),
        cure: "It was probably written by a newer version of cmc-bridge: start that one".into(),
    }
}

/// Damage found at the start, which keeps the lane from delivering anything.
pub fn blocked_by(damage: &Damage, dir: &Path) -> BrokerError {
    let mut error = damaged(damage);
    // Damage to the checkpoint names no segment. Then there is no position to continue from.
    if damage.segment != SegmentId(0) {
        let file = dir.join("damage");
        error.cure.push_str(&format!(
            ". When the loss is understood, stop the bridge and remove {}: delivery then continues from the checkpoint",
            file.display()
        ));
    }
    error
}

/// Damage that the lane has read.
pub fn damaged(damage: &Damage) -> BrokerError {
    BrokerError {
        reason: BlockReason::Damage,
        cause: format!("the spool is damaged: {damage}"),
        cure: "New webhooks are still taken; nothing after the damage is delivered. Stop the bridge and keep a copy of the \
               spool directory; `cmc-bridge spool verify` then says what is lost, and `cmc-bridge spool repair` sets it aside"
            .into(),
    }
}

/// The dead-letter topic refuses a dead letter of this lane.
pub fn dead_letter_refused(stream: Stream, topic: &str, refusal: Refusal) -> BrokerError {
    let (fault, cure) = match refusal {
        Refusal::TooLarge => {
            let cure = match stream {
                Stream::DeadLetters => {
                    "Raise its max.message.bytes above the value that kafka.max_record_bytes had when they were received. They \
                     were cut to that size then, and are not cut again"
                }
                _ => "Raise its max.message.bytes above kafka.max_record_bytes, or lower the latter",
            };
            ("too large", cure)
        }
        Refusal::Invalid => (
            "invalid",
            "Set its cleanup.policy to delete: a compacted topic refuses records without a key, and dead letters have none",
        ),
    };
    BrokerError {
        reason: BlockReason::DeadLetterRefused,
        cause: format!("topic {topic} refuses dead letters as {fault}"),
        cure: cure.into(),
    }
}

/// The disk has no room for what must be stored before delivery can continue.
pub fn no_room(error: &SpoolError) -> BrokerError {
    BrokerError {
        reason: BlockReason::Other,
        cause: error.to_string(),
        cure: "Make room on the disk of spool.dir; delivery then continues".into(),
    }
}

/// The lane has no producer, which is a bug.
pub fn not_connected() -> BrokerError {
    BrokerError {
        reason: BlockReason::Other,
        cause: "the lane has no producer".into(),
        cure: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_cut_already_are_not_cut_again() {
        let cure = |stream| dead_letter_refused(stream, "letters", Refusal::TooLarge).cure;
        assert!(cure(Stream::Bounces).contains("lower the latter"));
        assert!(!cure(Stream::DeadLetters).contains("lower"));
        assert!(cure(Stream::DeadLetters).contains("Raise its max.message.bytes"));
    }
}
