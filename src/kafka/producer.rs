//! Implements [`Broker`] with librdkafka.
//!
//! The order of the calls decides the speed: first everything is sent, then the producer's own counter of deliveries is
//! awaited, and only then offsets and commit are sent. `flush` would wait in steps of 100 ms.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::AdminClient,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use tracing::debug;
use uuid::Uuid;

use super::{
    broker::{
        BlockReason, Broker, BrokerError, CommittedPosition, Connect, DeliveryError, Mode, Outgoing, Refusal,
        RefusedRecords, TopicRules,
    },
    callbacks::Callbacks,
    commit::{Committer, Failed},
    deliveries::{UndeliveredRecord, Waited},
    explain::{is_consequence, refusal},
    polled::PolledProducer,
    properties,
    session::{PATIENCE, Session},
    topics::{self, RulesByTopic},
};
use crate::{
    config::{self, Delivery},
    metrics::KafkaSums,
    spool::Seq,
    stream::Stream,
};

/// How long to wait for the report that names the cause of a failure: the answer to a request that is in flight.
const REPORTS: Duration = Duration::from_secs(2);
/// The least time for a transaction of one record per request, where the broker allows it (`transaction.max.timeout.ms`,
/// 15 minutes by default).
const ONE_BY_ONE: Duration = Duration::from_secs(60);
/// The timestamp of a record without one. The broker takes it whatever its clock says.
const NO_TIMESTAMP: i64 = -1;

/// Half of what librdkafka holds of a transaction. Two halves keep a broker busy, and larger transactions take no more memory.
const HALF_RECORDS: usize = 2_500;
/// The same in bytes of keys, headers and values.
const HALF_BYTES: usize = 2 << 20;

/// Connects one lane to a Kafka cluster.
#[derive(Clone)]
pub struct KafkaConnect {
    pub kafka: Arc<config::Kafka>,
    pub stream: Stream,
    pub topic: String,
    pub dead_letter_topic: String,
    /// Awaits the admin client's answers.
    pub runtime: Handle,
    pub sums: KafkaSums,
}

/// A producer; with at-least-once delivery, one without transactions.
pub struct KafkaBroker {
    pub(super) session: Session,
    producer: Arc<PolledProducer>,
    /// Reads the position and is then dropped: nobody would poll it, and it would hold on to connections and threads.
    consumer: Option<BaseConsumer<Callbacks>>,
    /// Set with transactions.
    committer: Option<Committer>,
    /// Rules by which a refusal can be foreseen.
    rules: RulesByTopic,
    mode: Mode,
    /// A transaction may take this many times the usual time.
    stretch: u32,
    /// Timestamp of every record; `None` for the time of sending.
    timestamp: Option<i64>,
    /// Records since `begin`.
    sent: usize,
    half: Half,
}

/// The records that are handed to librdkafka while those before them are on their way: see [`HALF_RECORDS`].
#[derive(Default)]
struct Half {
    /// How many records of the transaction precede it.
    first: usize,
    bytes: usize,
}

impl Connect for KafkaConnect {
    type Broker = KafkaBroker;

    fn connect(&self, group: Uuid, mode: Mode) -> Result<KafkaBroker, BrokerError> {
        let session = Session {
            kafka: Arc::clone(&self.kafka),
            client_id: format!("cmc-bridge-{}", self.stream),
            group: format!("{}.{}.{group}", self.kafka.id_prefix, self.stream),
            topic: self.topic.clone(),
            callbacks: Callbacks::of_lane(self.stream, &self.kafka, self.sums.clone()),
        };
        // It looks up topics and reads the position.
        let consumer: BaseConsumer<Callbacks> = session.client(&properties::consumer(&session))?;
        let rules = self.check_topics(&session, &consumer)?;
        let position = (self.kafka.delivery == Delivery::ExactlyOnce)
            .then(|| consumer.group_metadata().map(|group| (consumer, group)))
            .flatten();
        let (consumer, group_metadata) = position.unzip();
        let broker = KafkaBroker::start(session, rules, mode, group_metadata)?;
        Ok(KafkaBroker { consumer, ..broker })
    }
}

impl KafkaConnect {
    /// Checks the lane's topic, creates missing topics when configured, and reads the topics' rules.
    fn check_topics(
        &self,
        session: &Session,
        consumer: &BaseConsumer<Callbacks>,
    ) -> Result<RulesByTopic, BrokerError> {
        let exists = topics::exists(session, consumer, &self.topic)?;
        let admin: AdminClient<Callbacks> = session.client(&properties::base(session))?;
        let create = |topic: &str| topics::create(session, &admin, &self.runtime, topic);
        match (exists, self.kafka.create_topics) {
            (true, _) => {}
            (false, true) => create(&self.topic)?,
            (false, false) => {
                let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
                return Err(session.explain("find the topic", &missing));
            }
        }
        let mut topics = vec![self.topic.as_str()];
        if self.dead_letter_topic != self.topic {
            topics.push(&self.dead_letter_topic);
            // This lane needs it only when a record is refused. The topic's own lane reports any fault of it.
            let usable = topics::exists(session, consumer, &self.dead_letter_topic).and_then(|exists| {
                match !exists && self.kafka.create_topics {
                    true => create(&self.dead_letter_topic),
                    false => Ok(()),
                }
            });
            if let Err(error) = usable {
                debug!(stream = %self.stream, %error, "the dead-letter topic can't be used yet");
            }
        }
        Ok(topics::rules(session, &admin, &self.runtime, &topics))
    }
}

impl KafkaBroker {
    /// Starts a producer, which can't read a position yet. `group` is the group whose position it commits; without one, it
    /// has no transactions.
    ///
    /// # Errors
    /// librdkafka refuses the properties, or the cluster gives the producer no transactions.
    pub(super) fn start(
        session: Session,
        rules: RulesByTopic,
        mode: Mode,
        group: Option<ConsumerGroupMetadata>,
    ) -> Result<KafkaBroker, BrokerError> {
        let usual = session.kafka.transaction_timeout;
        let mut stretch = match mode {
            Mode::Batched => 1,
            Mode::OneByOne => (ONE_BY_ONE.as_secs_f64() / usual.as_secs_f64())
                .ceil()
                .clamp(1.0, 4.0) as u32,
        };
        let producer = loop {
            let config = properties::producer(&session, mode, usual * stretch, rules.smallest());
            let producer = PolledProducer::start(session.client(&config)?).map_err(no_thread)?;
            if session.kafka.delivery == Delivery::AtLeastOnce {
                break producer;
            }
            match producer.init_transactions(PATIENCE) {
                Ok(()) => break producer,
                Err(error)
                    if error.rdkafka_error_code() == Some(Code::InvalidTransactionTimeout) && stretch > 1 =>
                {
                    debug!(
                        group = session.group,
                        "the broker allows transactions no more than the usual time"
                    );
                    session.callbacks.last_error.forget();
                    stretch = 1;
                }
                Err(error) => return Err(session.explain("begin as a transactional producer", &error)),
            }
        };
        let producer = Arc::new(producer);
        let committer = group
            .map(|group| Committer::start(Arc::clone(&producer), group))
            .transpose()
            .map_err(no_thread)?;
        Ok(KafkaBroker {
            producer,
            consumer: None,
            committer,
            rules,
            mode,
            stretch,
            timestamp: None,
            sent: 0,
            half: Half::default(),
            session,
        })
    }

    /// Commits the transaction, and with it these offsets of the group, if there are any.
    ///
    /// # Errors
    /// The transaction may be committed or not.
    pub(super) fn commit_offsets(
        &mut self,
        offsets: TopicPartitionList,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let committer = self.committer.as_ref().ok_or_else(|| BrokerError {
            reason: BlockReason::Other,
            cause: "librdkafka gave no group metadata".into(),
            cure: String::new(),
        })?;
        committer
            .commit(offsets, deadline)
            .map_err(|failed| match failed {
                Failed::Error(doing, error) => self.explain(doing, &error),
                Failed::Late => self.too_slow("commit the transaction in time"),
            })
    }

    fn explain(&self, doing: &str, error: &KafkaError) -> BrokerError {
        // After a fatal error every call says only that there was one. If it was a gap, its cause says more.
        let fatal = self.producer.client().fatal_error();
        let fatal = fatal.filter(|(code, _)| *code != Code::GaplessGuarantee);
        let fatal = fatal.map(|(code, _)| KafkaError::Global(code));
        let error = fatal.as_ref().unwrap_or(error);
        self.session.explain(doing, error)
    }

    fn too_slow(&self, doing: &str) -> BrokerError {
        let timed_out = KafkaError::Flush(Code::OperationTimedOut);
        let mut error = self.explain(doing, &timed_out);
        if self.committer.is_some() && self.session.callbacks.last_error.get().is_none() {
            error
                .cure
                .push_str(". If Kafka is only slow, raise kafka.transaction_timeout");
        }
        error
    }

    /// Whether refusals do not affect other records, so that all of them are collected.
    fn hears_all(&self) -> bool {
        self.committer.is_none() && self.mode == Mode::OneByOne
    }

    /// Waits until the half before this one is delivered, if this one is full. Not without transactions: a late delivery would end
    /// the producer, and a new one would send everything a second time.
    fn make_room(&mut self, record: &Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        if self.committer.is_none() {
            return Ok(());
        }
        if self.sent - self.half.first >= HALF_RECORDS || self.half.bytes >= HALF_BYTES {
            self.waited(self.session.callbacks.deliveries.wait(self.half.first, deadline))?;
            self.half = Half {
                first: self.sent,
                bytes: 0,
            };
        }
        let headers: usize = record
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.half.bytes += record.key.map_or(0, <[u8]>::len) + headers + record.value.len();
        Ok(())
    }

    fn waited(&self, waited: Waited) -> Result<(), DeliveryError> {
        match waited {
            Waited::Delivered => Ok(()),
            Waited::Failed => Err(self.failure("deliver events", None)),
            Waited::TimedOut => Err(DeliveryError::Late(self.too_slow("deliver events in time"))),
        }
    }

    /// The first cause of a failure that a call or a report announced. `said` is the error of the call, which often says only
    /// that there was an earlier one.
    ///
    /// The broker may refuse a request while later records are still being queued. librdkafka then fails every further call,
    /// gives up what is queued, and reports all of it in any order. So this awaits all reports and looks for the cause among
    /// them first.
    fn failure(&self, doing: &str, said: Option<KafkaError>) -> DeliveryError {
        let transactional = self.committer.is_some();
        let deliveries = &self.session.callbacks.deliveries;
        let cause = |code: Option<Code>| code.is_none_or(|code| !is_consequence(code));
        let is_cause = |failure: &UndeliveredRecord| cause(failure.code());
        let all_reported = deliveries.wait_for_reports(self.sent, is_cause, Instant::now() + REPORTS);
        let failures = deliveries.failures();
        // A call that is not allowed in a failed transaction returns the error that made the transaction fail.
        let failed = transactional
            .then(|| self.producer.begin_transaction().err())
            .flatten();
        let code = failed.as_ref().and_then(KafkaError::rdkafka_error_code);
        let untimely = |code| code == Some(Code::InvalidTimestamp);
        if untimely(code) || failures.iter().any(|failure| untimely(failure.code())) {
            // librdkafka reports records as invalid when several of a request have bad timestamps.
            let error = KafkaError::MessageProduction(Code::InvalidTimestamp);
            return DeliveryError::Untimely(self.explain(doing, &error));
        }
        if let Some(refused) = self.refused(&failures, code, transactional || !all_reported) {
            return DeliveryError::Refused(refused);
        }
        let reports = failures.into_iter().map(|failure| failure.error);
        let errors: Vec<KafkaError> = reports.chain(failed).chain(said).collect();
        let error = errors.iter().find(|error| cause(error.rdkafka_error_code()));
        let error = error.or(errors.first());
        let unknown = KafkaError::Global(Code::Fatal);
        self.explain(doing, error.unwrap_or(&unknown)).into()
    }

    /// The refused records among the failures, if there are any. `failed` is why the transaction failed; `partly` says that
    /// the reports do not show what was delivered.
    fn refused(
        &self,
        failures: &[UndeliveredRecord],
        failed: Option<Code>,
        partly: bool,
    ) -> Option<RefusedRecords> {
        let refusal_of = |failure: &UndeliveredRecord| failure.code().and_then(refusal);
        let mut records: Vec<(usize, Refusal)> = failures
            .iter()
            .filter_map(|failure| Some((failure.number, refusal_of(failure)?)))
            .collect();
        records.sort_unstable_by_key(|(number, _)| *number);
        if records.is_empty() && failed.and_then(refusal).is_none() {
            return None;
        }
        // If librdkafka reports other records of the request as not invalid, the broker has named the invalid ones.
        let spared: BTreeSet<_> = failures
            .iter()
            .filter(|failure| failure.code() == Some(Code::InvalidDifferentRecord))
            .map(|failure| &failure.partition)
            .collect();
        let told = |failure: &UndeliveredRecord| spared.contains(&failure.partition);
        let named = match self.mode {
            Mode::OneByOne => true,
            // Without transactions, a bad timestamp can't be told from a bad record here.
            Mode::Batched => {
                failed == Some(Code::InvalidRecord)
                    && failures.iter().filter(|f| refusal_of(f).is_some()).all(told)
            }
        };
        let delivered = match partly {
            true => Vec::new(),
            false => {
                let failed: BTreeSet<usize> = failures.iter().map(|failure| failure.number).collect();
                (0..self.sent).filter(|number| !failed.contains(number)).collect()
            }
        };
        Some(RefusedRecords {
            named: named && !records.is_empty(),
            records,
            delivered,
        })
    }
}

fn no_thread(error: io::Error) -> BrokerError {
    BrokerError {
        reason: BlockReason::Other,
        cause: format!("cannot start a thread of the producer: {error}"),
        cure: String::new(),
    }
}

impl Broker for KafkaBroker {
    fn committed(&mut self) -> Result<Option<CommittedPosition>, BrokerError> {
        let Some(consumer) = self.consumer.take() else {
            return Err(BrokerError {
                reason: BlockReason::Other,
                cause: "the position has been read already".into(),
                cure: String::new(),
            });
        };
        let mut committed = self.session.committed(&consumer, &[0], PATIENCE)?;
        Ok(committed.remove(&0).map(|(offset, metadata)| CommittedPosition {
            seq: Seq(offset as u64),
            metadata,
        }))
    }

    fn rules(&self, topic: &str) -> TopicRules {
        self.rules.of(topic)
    }

    fn stretch(&self, time: Duration) -> Duration {
        time * self.stretch
    }

    fn omit_timestamps(&mut self) {
        self.timestamp = Some(NO_TIMESTAMP);
    }

    fn begin(&mut self) -> Result<(), BrokerError> {
        let in_transaction = self.committer.is_some();
        let numbered = in_transaction && self.mode == Mode::OneByOne;
        self.session.callbacks.deliveries.reset(numbered);
        self.sent = 0;
        self.half = Half::default();
        match in_transaction {
            true => self
                .producer
                .begin_transaction()
                .map_err(|error| self.explain("begin a transaction", &error)),
            false => Ok(()),
        }
    }

    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        self.make_room(&record, deadline)?;
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(*value),
            });
        }
        // Without a timestamp here, librdkafka takes the current time.
        let mut base = BaseRecord::with_opaque_to(record.topic, self.sent)
            .payload(record.value)
            .headers(headers);
        base.timestamp = self.timestamp;
        if let Some(key) = record.key {
            base = base.key(key);
        }
        loop {
            let (error, unsent) = match self.producer.send(base) {
                Ok(()) => {
                    self.sent += 1;
                    return Ok(());
                }
                Err(refused) => refused,
            };
            base = unsent;
            let code = error.rdkafka_error_code();
            if code == Some(Code::QueueFull) {
                let heed = !self.hears_all();
                self.waited(self.session.callbacks.deliveries.wait_for_room(heed, deadline))?;
                continue;
            }
            return Err(match code.and_then(refusal) {
                Some(_) => DeliveryError::TooLarge,
                None => self.failure("send an event", Some(error)),
            });
        }
    }

    fn delivered(&mut self, deadline: Instant) -> Result<(), DeliveryError> {
        let deliveries = &self.session.callbacks.deliveries;
        let waited = match self.hears_all() {
            true => deliveries.wait_for_all(self.sent, deadline),
            false => deliveries.wait(self.sent, deadline),
        };
        self.waited(waited)
    }

    fn taken(&self) -> Vec<usize> {
        self.session.callbacks.deliveries.numbers()
    }

    fn commit(&mut self, position: Seq, metadata: &str, deadline: Instant) -> Result<(), BrokerError> {
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&self.session.topic, 0, Offset::Offset(position.0 as i64))
            .map_err(|error| self.explain("name the position", &error))?;
        if let Some(mut partition) = offsets.find_partition(&self.session.topic, 0) {
            partition.set_metadata(metadata);
        }
        self.commit_offsets(offsets, deadline)
    }
}
