//! The metrics of one stream's log and lane.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::{
    labels::{BlockReason, TransactionOutcome},
    recent::{Blockade, RecentLetters},
};
use crate::{dead_letter::Failure, stream::Stream};

/// One stream's metrics; clones count into the same series.
#[derive(Clone)]
pub struct StreamMetrics {
    /// Seconds of one `fdatasync`.
    pub sync_seconds: Histogram,
    /// Webhooks in one commit of the log.
    pub commit_webhooks: Histogram,
    /// Seconds from the receipt of a batch to its commit in Kafka.
    pub delivery_seconds: Histogram,
    /// Statistics that the stream's Kafka clients report about themselves.
    pub kafka: KafkaSums,
    pub(super) stream: Stream,
    pub(super) blockade: Arc<Blockade>,
    pub(super) letters: Arc<RecentLetters>,
    pub(super) blocked: [IntGauge; BlockReason::ALL.len()],
    pub(super) transactions: [IntCounter; TransactionOutcome::ALL.len()],
    pub(super) transaction_seconds: [Histogram; TransactionOutcome::ALL.len()],
}

/// Some of librdkafka's own sums, over all producers of a stream.
#[derive(Clone, Debug)]
pub struct KafkaSums {
    /// Requests sent.
    pub requests: IntCounter,
    /// Bytes sent.
    pub bytes: IntCounter,
    /// Requests that failed, timed out or were sent again.
    pub request_errors: IntCounter,
}

impl StreamMetrics {
    /// The lane is blocked. A lane has one reason at a time.
    pub fn lane_blocked(&self, reason: BlockReason, cause: &str, cure: &str) {
        self.set_blocked(Some(reason));
        self.blockade.blocked(reason, cause, cure);
    }

    /// The lane is not blocked.
    pub fn lane_free(&self) {
        self.set_blocked(None);
        self.blockade.free();
    }

    /// Notes records that Kafka refused and that were diverted to the dead-letter topic.
    pub fn diverted(&self, failures: &[Failure]) {
        self.letters.note(Some(self.stream), failures);
    }

    fn set_blocked(&self, reason: Option<BlockReason>) {
        for (candidate, gauge) in BlockReason::ALL.iter().zip(&self.blocked) {
            gauge.set(i64::from(Some(*candidate) == reason));
        }
    }

    /// Why the lane is blocked.
    pub fn blocked(&self) -> Option<BlockReason> {
        let mut reasons = BlockReason::ALL.into_iter().zip(&self.blocked);
        reasons
            .find(|(_, gauge)| gauge.get() == 1)
            .map(|(reason, _)| reason)
    }

    /// Counts a transaction by how it ended, with the seconds that it took until then.
    pub fn transaction(&self, outcome: TransactionOutcome, seconds: f64) {
        self.transactions[outcome as usize].inc();
        self.transaction_seconds[outcome as usize].observe(seconds);
    }
}
