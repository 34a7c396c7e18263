//! What a lane needs from Kafka: a narrow trait, implemented with librdkafka in [`super::producer`] and, in the tests, by a
//! simulated broker.

use std::time::{Duration, Instant};

use thiserror::Error;
use uuid::Uuid;

use crate::{
    batch::{Batch, BatchView},
    dead_letter::Reason,
    human,
};

pub use crate::metrics::BlockReason;
pub use crate::spool::Seq;

/// How many records go into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many.
    Batched,
    /// One, so that a refusal names its record.
    OneByOne,
}

/// A record to be sent. Its timestamp will be the time of sending.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a [u8])],
    pub value: &'a [u8],
}

impl Outgoing<'_> {
    /// Calls `each` with each record of a batch that this process has made, in order.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn each_in<E>(
        batch: &Batch,
        topic: &str,
        mut each: impl FnMut(Outgoing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        // A batch that has just been made can be decoded.
        let Ok(view) = BatchView::decode(batch.bytes()) else {
            return Ok(());
        };
        for record in &view.records {
            let headers: Vec<_> = view.headers(record).collect();
            each(Outgoing {
                topic,
                key: record.key,
                headers: &headers,
                value: &record.value(),
            })?;
        }
        Ok(())
    }
}

/// The position that Kafka has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedPosition {
    pub seq: Seq,
    /// The text committed with it: see [`crate::lane::position`].
    pub metadata: String,
}

/// Why a topic can't take a record. The same record will be refused again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Larger than the topic's `max.message.bytes`.
    TooLarge,
    /// `INVALID_RECORD`, for example a null key in a compacted topic.
    Invalid,
}

impl Refusal {
    /// The reason in the dead letter of such a record.
    pub fn reason(self) -> Reason {
        match self {
            Refusal::TooLarge => Reason::RefusedTooLarge,
            Refusal::Invalid => Reason::RefusedInvalid,
        }
    }
}

/// What a topic's configuration demands of records, as far as the broker shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicRules {
    /// The largest size of a batch, in bytes as it is sent.
    pub max_bytes: Option<usize>,
    /// Batches are compressed. So a record above `max_bytes` may fit, and one below it fits all the same.
    pub compressed: bool,
    /// `cleanup.policy` includes `compact`, so a null key is refused.
    pub compacted: bool,
    /// `retention.ms`; -1 keeps records for ever.
    pub retention_ms: Option<i64>,
    /// `retention.bytes` of a partition; -1 is no limit.
    pub retention_bytes: Option<i64>,
}

impl TopicRules {
    /// Why the topic is sure to refuse a record, if it is. `size` gives the record's size, alone in an uncompressed batch.
    pub fn refuse(&self, keyless: bool, size: impl FnOnce() -> usize) -> Option<Refusal> {
        if !self.compressed && self.max_bytes.is_some_and(|most| size() > most) {
            return Some(Refusal::TooLarge);
        }
        (self.compacted && keyless).then_some(Refusal::Invalid)
    }
}

/// Records that the broker refused. They are numbered since `begin`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRecords {
    /// In the order of their numbers. Empty if only the refusal is known.
    pub records: Vec<(usize, Refusal)>,
    /// Whether the broker named exactly these records. If not, at least one of them was refused, and the others were in the
    /// same request.
    pub named: bool,
    /// Without transactions: other records that are known to be delivered.
    pub delivered: Vec<usize>,
}

/// A failure that blocks the lane until it passes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", human::with_cure(cause, cure))]
pub struct BrokerError {
    pub reason: BlockReason,
    /// What is wrong, without a full stop.
    pub cause: String,
    /// What to do, in sentences without the last full stop; empty if there is nothing to do.
    pub cure: String,
}

impl BrokerError {
    /// One record was sent per request, one was refused, and no report says which. It happens when librdkafka gives up
    /// waiting for the answer to a request.
    pub fn unnamed_refusal() -> BrokerError {
        BrokerError {
            reason: BlockReason::Other,
            cause: "the broker refused a record, and librdkafka does not say which one; it is sent again"
                .into(),
            cure: String::new(),
        }
    }
}

/// Why a record could not be sent or delivered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeliveryError {
    /// The client itself refuses the record. It is not queued, and the transaction can continue.
    #[error("the record is larger than kafka.max_record_bytes")]
    TooLarge,
    /// The broker refused records.
    #[error("the broker refused records: {0:?}")]
    Refused(RefusedRecords),
    /// The broker refused timestamps: its clock and this machine's differ by more than the topic allows.
    #[error(transparent)]
    Untimely(BrokerError),
    /// The deadline passed first.
    #[error(transparent)]
    Late(BrokerError),
    #[error(transparent)]
    Failed(#[from] BrokerError),
}

/// Connects one lane.
pub trait Connect {
    type Broker: Broker;

    /// Makes a producer that fences every former one of this group, checks the topics, and reads their rules.
    ///
    /// # Errors
    /// The cluster can't be reached, or a topic or a right is missing.
    fn connect(&self, group: Uuid, mode: Mode) -> Result<Self::Broker, BrokerError>;
}

/// One producer, which must be dropped after any error. There are two exceptions: a record that is too large for the client,
/// and a late delivery without transactions.
///
/// An error names the first cause, whichever call meets it: `send` may fail because of a record that was queued long before.
///
/// With at-least-once delivery there are no transactions, and `committed` and `commit` are not called. The records of a
/// partition are still delivered in order: nothing after a refused record is delivered.
pub trait Broker {
    /// The position that Kafka has, once no transaction of a former producer is open. Called once, before anything else.
    ///
    /// # Errors
    /// Kafka does not provide it.
    fn committed(&mut self) -> Result<Option<CommittedPosition>, BrokerError>;

    /// A topic's rules, as of when this producer connected.
    fn rules(&self, topic: &str) -> TopicRules;

    /// Converts the time limit of a transaction with many records per request into this producer's. With one record per
    /// request it is longer, as far as the broker allows, because a webhook of 10,000 events goes whole in either mode.
    fn stretch(&self, time: Duration) -> Duration;

    /// Sends records without a timestamp from now on. The broker takes them whatever the clocks say.
    fn omit_timestamps(&mut self);

    /// Begins a transaction, or without transactions a new count of records. Everything sent before must be delivered.
    ///
    /// # Errors
    /// The producer has failed.
    fn begin(&mut self) -> Result<(), BrokerError>;

    /// Queues a record. Records are numbered from 0 since `begin`. Waits for room if it must, until `deadline`.
    ///
    /// # Errors
    /// This record is too large for the client, or an earlier one could not be delivered.
    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError>;

    /// Waits until all records since `begin` are delivered.
    ///
    /// # Errors
    /// The first failure of any record ends the wait.
    fn delivered(&mut self, deadline: Instant) -> Result<(), DeliveryError>;

    /// The numbers of the records since `begin` that the broker is known to have taken, with transactions and one record per
    /// request; otherwise none. It may also be called after an error.
    fn taken(&self) -> Vec<usize>;

    /// Commits the transaction, and with it the position and its metadata.
    ///
    /// # Errors
    /// The transaction may be committed or not.
    fn commit(&mut self, position: Seq, metadata: &str, deadline: Instant) -> Result<(), BrokerError>;
}
