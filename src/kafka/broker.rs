//! What a lane needs of Kafka: a narrow trait, with librdkafka behind it ([`super::producer`]) and in tests a simulated
//! broker.

use std::time::{Duration, Instant};

use thiserror::Error;
use uuid::Uuid;

use crate::dead_letter::Reason;

pub use crate::metrics::BlockReason;
pub use crate::spool::Seq;

/// How records go to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many in a request.
    Batched,
    /// One in a request, so that a refusal names its record.
    OneByOne,
}

/// A record on its way to Kafka. Its timestamp is the time at which it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a [u8])],
    pub value: &'a [u8],
}

/// A position as Kafka has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedPosition {
    pub seq: Seq,
    /// What was committed with it: see [`crate::lane::position`].
    pub metadata: String,
}

/// Why a record can't be in a topic. The same record will be refused again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Larger than the topic's `max.message.bytes`.
    TooLarge,
    /// `INVALID_RECORD`, for example a null key in a compacted topic.
    Invalid,
}

impl Refusal {
    /// The reason that the dead letter of such a record has.
    pub fn reason(self) -> Reason {
        match self {
            Refusal::TooLarge => Reason::RefusedTooLarge,
            Refusal::Invalid => Reason::RefusedInvalid,
        }
    }
}

/// What a topic's configuration says of records, as far as the broker tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicRules {
    /// The size that a record may have, alone in an uncompressed batch.
    pub max_bytes: Option<usize>,
    /// `cleanup.policy` has `compact`: a null key is refused.
    pub compacted: bool,
}

impl TopicRules {
    /// Why the topic is sure to refuse a record; `size` is its size, alone in a batch.
    pub fn refuse(&self, keyless: bool, size: impl FnOnce() -> usize) -> Option<Refusal> {
        if self.max_bytes.is_some_and(|most| size() > most) {
            return Some(Refusal::TooLarge);
        }
        (self.compacted && keyless).then_some(Refusal::Invalid)
    }
}

/// Records that the broker refused, by their number since `begin`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedRecords {
    /// In the order of their numbers; empty when only the refusal is known.
    pub records: Vec<(usize, Refusal)>,
    /// Whether the broker named these records. Otherwise one or more of them were refused, and the others were sent in the
    /// same request.
    pub named: bool,
    /// Without transactions: the other records that are known to be delivered.
    pub delivered: Vec<usize>,
}

/// A failure that blocks the lane for now.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct BrokerError {
    pub reason: BlockReason,
    /// The cause, and what to do about it.
    pub message: String,
}

impl BrokerError {
    /// One record was sent per request, one was refused, and no report says which. It happens when librdkafka gives up
    /// waiting for the answer to a request.
    pub fn unnamed_refusal() -> BrokerError {
        BrokerError {
            reason: BlockReason::Other,
            message: "the broker refused a record, and librdkafka does not say which one; it is sent again"
                .into(),
        }
    }
}

/// Why a record could not be sent or delivered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeliveryError {
    /// The client itself refuses the record being sent. It was not queued, and the transaction is not harmed.
    #[error("the record is larger than kafka.max_record_bytes")]
    TooLarge,
    /// The broker refused records.
    #[error("the broker refused records: {0:?}")]
    Refused(RefusedRecords),
    /// The broker refused the timestamps: its clock and this machine's differ by more than the topic allows.
    #[error(transparent)]
    Untimely(BrokerError),
    /// The deadline came first.
    #[error(transparent)]
    Late(BrokerError),
    #[error(transparent)]
    Failed(#[from] BrokerError),
}

/// Makes connections for one lane.
pub trait Connect {
    type Broker: Broker;

    /// Makes a producer that fences every former one of this group, checks the topics, and reads their rules.
    fn connect(&self, group: Uuid, mode: Mode) -> Result<Self::Broker, BrokerError>;
}

/// One producer's life. After any error it must be dropped, but for a record that is too large for the client, and a late
/// delivery outside transactions.
///
/// An error names the first cause, whichever call meets it: `send` fails for a record that was queued long before.
///
/// With at-least-once delivery there are no transactions, and `committed` and `commit` are not called. Records of a
/// partition are delivered in order then, too: nothing behind a refused record is.
pub trait Broker {
    /// The position that Kafka has, once no transaction of a former producer is open. Asked once, before all else.
    fn committed(&mut self) -> Result<Option<CommittedPosition>, BrokerError>;

    /// A topic's rules, as they were when this producer connected.
    fn rules(&self, topic: &str) -> TopicRules;

    /// What a time that is meant for a transaction of many records in a request becomes with this producer. With one in a
    /// request it is longer, as far as the broker allows, for a webhook of 10,000 events goes whole in either mode.
    fn stretch(&self, time: Duration) -> Duration;

    /// From now on records have no timestamp. The broker takes them whatever the clocks say.
    fn omit_timestamps(&mut self);

    /// Begins a transaction, or without transactions a new count of records. All before must be delivered.
    fn begin(&mut self) -> Result<(), BrokerError>;

    /// Queues a record; records are numbered from 0 since `begin`. May wait for room, not beyond `deadline`.
    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError>;

    /// Waits until all records since `begin` are delivered. The first failure, of whichever record, ends the wait.
    fn delivered(&mut self, deadline: Instant) -> Result<(), DeliveryError>;

    /// Commits the transaction, and with it the position and its metadata.
    fn commit(&mut self, position: Seq, metadata: &str, deadline: Instant) -> Result<(), BrokerError>;
}
