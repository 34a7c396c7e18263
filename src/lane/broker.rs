//! What a lane needs of Kafka: a narrow trait, with librdkafka behind it ([`super::kafka`]) and in tests a simulated
//! broker.

use std::time::{Duration, Instant};

use thiserror::Error;
use uuid::Uuid;

pub use crate::admin::metrics::BlockReason;
use crate::spool::Seq;

/// How records go to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Many in a request.
    Batched,
    /// One in a request, so that a refusal names its record.
    OneByOne,
}

impl Mode {
    /// What a time that is meant for a transaction of many in a request becomes in this mode. A webhook of 10,000 events
    /// goes whole in either.
    pub fn time(self, batched: Duration) -> Duration {
        /// Brokers whose `transaction.max.timeout.ms` was lowered hardly go below this.
        const MOST: Duration = Duration::from_secs(60);
        match self {
            Mode::Batched => batched,
            Mode::OneByOne => (batched * 4).min(batched.max(MOST)),
        }
    }
}

/// A record on its way to Kafka.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a [u8])],
    pub value: &'a [u8],
    /// When it is sent, in microseconds since the Unix epoch; Kafka keeps the milliseconds.
    pub timestamp_micros: i64,
}

/// A position as Kafka has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub seq: Seq,
    /// What was committed with it: see [`super::position`].
    pub metadata: String,
}

/// Why the broker refused a record. The same record will be refused again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Larger than the topic's `max.message.bytes`.
    TooLarge,
    /// `INVALID_RECORD`, for example a null key in a compacted topic.
    Invalid,
}

/// A failure that blocks the lane for now.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct BrokerError {
    pub reason: BlockReason,
    /// The cause, and what to do about it.
    pub message: String,
}

/// Why a record could not be sent or delivered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeliveryError {
    /// A record was refused: the one with this number in the transaction, or when batched one sent along with it. The
    /// number of the record being sent means that it was not queued, and that the transaction is not harmed.
    #[error("the broker refused record {index} of the transaction: {refusal:?}")]
    Refused { index: usize, refusal: Refusal },
    /// The deadline came first.
    #[error(transparent)]
    Late(BrokerError),
    #[error(transparent)]
    Failed(#[from] BrokerError),
}

/// Makes connections for one lane.
pub trait Connect {
    type Broker: Broker;

    /// Makes a producer that fences every former one of this group, and checks the topics.
    fn connect(&self, group: Uuid, mode: Mode) -> Result<Self::Broker, BrokerError>;
}

/// One producer's life. After any error it must be dropped, but for a late delivery outside transactions.
///
/// With at-least-once delivery there are no transactions: `begin` begins a new count of records when all before are
/// delivered, and `committed` and `commit` are not called.
pub trait Broker {
    /// The position that Kafka has, once no transaction of a former producer is open. Asked once, before all else.
    fn committed(&mut self) -> Result<Option<Committed>, BrokerError>;

    /// The size that a record may have for a topic, alone in an uncompressed batch, where that is known for sure.
    fn record_limit(&self, topic: &str) -> Option<usize>;

    fn begin(&mut self) -> Result<(), BrokerError>;

    /// Queues a record; records are numbered from 0 since `begin`. May wait for room, not beyond `deadline`.
    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError>;

    /// Waits until all records with numbers below `behind` are delivered. The first failure, of whichever record, ends
    /// the wait.
    fn delivered(&mut self, behind: usize, deadline: Instant) -> Result<(), DeliveryError>;

    /// Commits the transaction, and with it the position and its metadata.
    fn commit(&mut self, position: Seq, metadata: &str, deadline: Instant) -> Result<(), BrokerError>;
}
