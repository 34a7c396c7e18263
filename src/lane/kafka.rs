//! [`Broker`] by librdkafka.
//!
//! The order of the calls decides the speed: everything is sent, then the own delivery counter is awaited, and only then
//! offsets and commit are sent. `flush` would wait in steps of 100 ms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::AdminClient,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;
use tracing::debug;
use uuid::Uuid;

use crate::{
    admin::metrics::KafkaSums,
    config::{self, Delivery},
    spool::Seq,
    stream::Stream,
};

use super::{
    broker::{BlockReason, Broker, BrokerError, Committed, Connect, DeliveryError, Mode, Outgoing},
    cause::{Names, explain, explain_creation, refusal},
    client::{self, Context, Waited},
    commit::{Committer, Failed},
    topics::{self, Limits},
};

/// Most time for one question to the cluster.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most time for what a consumer has to say; the producer may talk in between.
const LISTEN: Duration = Duration::from_millis(500);
/// A coordinator that is still loading is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_millis(200);

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

/// A producer, with at-least-once delivery one without transactions.
pub struct KafkaBroker {
    producer: Arc<ThreadedProducer<Context>>,
    /// Reads the position, then goes: nobody would take its events, and it keeps connections and threads.
    consumer: Option<BaseConsumer<Context>>,
    /// Set with transactions.
    committer: Option<Committer>,
    context: Context,
    limits: Limits,
    /// Whether the operator configured a compression: sizes of records can't be foretold then.
    compressed: bool,
    names: Names,
    sent: usize,
}

impl Connect for KafkaConnect {
    type Broker = KafkaBroker;

    fn connect(&self, group: Uuid, mode: Mode) -> Result<KafkaBroker, BrokerError> {
        let group = format!("{}.{}.{group}", self.kafka.id_prefix, self.stream);
        let names = Names {
            topic: self.topic.clone(),
            group: group.clone(),
            bootstrap_servers: self.kafka.bootstrap_servers.clone(),
            unshown: self.kafka.unshown(),
        };
        let context = Context::new(self.stream, self.sums.clone());
        let fail = |doing: &'static str| {
            let (names, last) = (names.clone(), Arc::clone(&context.last_error));
            move |error: KafkaError| explain(&error, doing, &names, &last)
        };
        // It looks up topics and reads the position.
        let consumer_config = client::consumer(&self.kafka, self.stream, &group);
        let consumer: BaseConsumer<Context> =
            BaseConsumer::from_config_and_context(&consumer_config, context.clone())
                .map_err(fail("make a Kafka client"))?;
        let limits = self.check_topics(&consumer, &context, &names)?;
        let config = client::producer(&self.kafka, self.stream, &group, mode, limits.smallest());
        let producer: ThreadedProducer<Context> = config
            .create_with_context(context.clone())
            .map_err(fail("make a Kafka client"))?;
        let mut position = None;
        if self.kafka.delivery == Delivery::ExactlyOnce {
            producer
                .init_transactions(PATIENCE)
                .map_err(fail("begin as a transactional producer"))?;
            position = consumer.group_metadata().map(|group| (consumer, group));
        }
        let (consumer, group_metadata) = position.unzip();
        Ok(KafkaBroker {
            consumer,
            ..KafkaBroker::new(producer, group_metadata, &self.kafka, context, limits, names)?
        })
    }
}

impl KafkaConnect {
    /// Checks the lane's topic, creates what is missing when configured, and reads the topics' limits.
    fn check_topics(
        &self,
        consumer: &BaseConsumer<Context>,
        context: &Context,
        names: &Names,
    ) -> Result<Limits, BrokerError> {
        let fail = |doing: &str, error: KafkaError| explain(&error, doing, names, &context.last_error);
        // Topics are looked up by the consumer, for an admin client never tells why it can't connect.
        let look_up = |topic: &str| {
            topics::exists(consumer.client(), topic).map_err(|error| {
                listen(consumer);
                fail("look up the topic", error)
            })
        };
        let exists = look_up(&self.topic)?;
        let config = client::base(&self.kafka, self.stream);
        let admin = AdminClient::from_config_and_context(&config, context.clone())
            .map_err(|error| fail("make a Kafka client", error))?;
        let create = |topic: &str| {
            topics::create(&admin, &self.runtime, &self.kafka, topic)
                .map_err(|error| explain_creation(&error, topic, names, &context.last_error))
        };
        match (exists, self.kafka.create_topics) {
            (true, _) => {}
            (false, true) => create(&self.topic)?,
            (false, false) => {
                let missing = KafkaError::MetadataFetch(Code::UnknownTopicOrPartition);
                return Err(fail("find the topic", missing));
            }
        }
        let mut topics = vec![self.topic.as_str()];
        if self.dead_letter_topic != self.topic {
            topics.push(&self.dead_letter_topic);
            // It matters to this lane only when something is refused; its own lane watches over it.
            let made = look_up(&self.dead_letter_topic).and_then(|exists| {
                let missing = !exists && self.kafka.create_topics;
                if missing {
                    create(&self.dead_letter_topic)
                } else {
                    Ok(())
                }
            });
            if let Err(error) = made {
                debug!(stream = %self.stream, %error, "the dead-letter topic can't be used yet");
            }
        }
        Ok(topics::limits(&admin, &self.runtime, &topics))
    }
}

impl KafkaBroker {
    /// A broker of a producer that has begun; without a consumer it can't read a position.
    pub(super) fn new(
        producer: ThreadedProducer<Context>,
        group: Option<ConsumerGroupMetadata>,
        kafka: &config::Kafka,
        context: Context,
        limits: Limits,
        names: Names,
    ) -> Result<KafkaBroker, BrokerError> {
        let producer = Arc::new(producer);
        let committer = group
            .map(|group| Committer::start(Arc::clone(&producer), group))
            .transpose()
            .map_err(|error| BrokerError {
                reason: BlockReason::Other,
                message: format!("cannot start a thread for commits: {error}"),
            })?;
        Ok(KafkaBroker {
            producer,
            consumer: None,
            committer,
            limits,
            compressed: ["compression.type", "compression.codec"]
                .iter()
                .any(|name| kafka.properties.contains_key(*name)),
            names,
            sent: 0,
            context,
        })
    }

    /// Commits the transaction, and with it these offsets of the group.
    pub(super) fn commit_offsets(
        &mut self,
        offsets: TopicPartitionList,
        deadline: Instant,
    ) -> Result<(), BrokerError> {
        let committer = self.committer.as_ref().ok_or_else(|| BrokerError {
            reason: BlockReason::Other,
            message: "librdkafka gave no group metadata".into(),
        })?;
        committer
            .commit(offsets, deadline)
            .map_err(|failed| match failed {
                Failed::Error(doing, error) => self.explain(doing, &error),
                Failed::Late => self.too_slow("commit the transaction in time"),
            })
    }

    fn explain(&self, doing: &str, error: &KafkaError) -> BrokerError {
        // After a fatal error the calls say no more than that there was one.
        let fatal = self.producer.client().fatal_error();
        let fatal = fatal.map(|(code, _)| KafkaError::Global(code));
        let error = fatal.as_ref().unwrap_or(error);
        explain(error, doing, &self.names, &self.context.last_error)
    }

    fn too_slow(&self, doing: &str) -> BrokerError {
        let timed_out = KafkaError::Flush(Code::OperationTimedOut);
        self.explain(doing, &timed_out)
    }

    /// Why the transaction failed, when a delivery's error is only that it was given up for that.
    fn failure(&self, error: KafkaError) -> KafkaError {
        if !matches!(
            error.rdkafka_error_code(),
            Some(Code::PurgeQueue | Code::PurgeInflight)
        ) {
            return error;
        }
        // A call that is not allowed in a failed transaction answers with the error that made it fail.
        self.producer.begin_transaction().err().unwrap_or(error)
    }

    fn waited(&self, waited: Waited) -> Result<(), DeliveryError> {
        match waited {
            Waited::Delivered => Ok(()),
            Waited::Failed(index, error) => match error.rdkafka_error_code().and_then(refusal) {
                Some(refusal) => Err(DeliveryError::Refused { index, refusal }),
                None => Err(self.explain("deliver events", &self.failure(error)).into()),
            },
            Waited::TimedOut => Err(DeliveryError::Late(self.too_slow("deliver events in time"))),
        }
    }
}

impl Broker for KafkaBroker {
    fn committed(&mut self) -> Result<Option<Committed>, BrokerError> {
        let deadline = Instant::now() + PATIENCE;
        let Some(consumer) = self.consumer.take() else {
            return Err(BrokerError {
                reason: BlockReason::Other,
                message: "the position has been read already".into(),
            });
        };
        loop {
            let mut partitions = TopicPartitionList::new();
            partitions.add_partition(&self.names.topic, 0);
            let answer = consumer
                .committed_offsets(partitions, deadline.saturating_duration_since(Instant::now()))
                .and_then(|partitions| {
                    let Some(found) = partitions.find_partition(&self.names.topic, 0) else {
                        return Ok(None);
                    };
                    found.error()?;
                    Ok(match found.offset() {
                        Offset::Offset(offset) => Some(Committed {
                            seq: Seq(offset as u64),
                            metadata: found.metadata().to_owned(),
                        }),
                        _ => None,
                    })
                });
            match answer {
                Ok(committed) => return Ok(committed),
                Err(error) if Instant::now() + ASK_AGAIN < deadline && passing(&error) => {
                    debug!(%error, "the position can't be read yet");
                    std::thread::sleep(ASK_AGAIN);
                }
                Err(error) => {
                    listen(&consumer);
                    return Err(self.explain("read the position", &error));
                }
            }
        }
    }

    fn record_limit(&self, topic: &str) -> Option<usize> {
        self.limits.of(topic).filter(|_| !self.compressed)
    }

    fn begin(&mut self) -> Result<(), BrokerError> {
        self.context.deliveries.reset();
        self.sent = 0;
        match self.committer {
            Some(_) => self
                .producer
                .begin_transaction()
                .map_err(|error| self.explain("begin a transaction", &error)),
            None => Ok(()),
        }
    }

    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in record.headers {
            headers = headers.insert(Header {
                key,
                value: Some(*value),
            });
        }
        let mut base = BaseRecord::with_opaque_to(record.topic, self.sent)
            .payload(record.value)
            .headers(headers)
            .timestamp(record.timestamp_micros / 1000);
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
                self.waited(self.context.deliveries.wait_for_room(deadline))?;
                continue;
            }
            return Err(match code.and_then(refusal) {
                Some(refusal) => DeliveryError::Refused {
                    index: self.sent,
                    refusal,
                },
                None => self.explain("send an event", &error).into(),
            });
        }
    }

    fn delivered(&mut self, behind: usize, deadline: Instant) -> Result<(), DeliveryError> {
        self.waited(self.context.deliveries.wait(behind, deadline))
    }

    fn commit(&mut self, position: Seq, metadata: &str, deadline: Instant) -> Result<(), BrokerError> {
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&self.names.topic, 0, Offset::Offset(position.0 as i64))
            .map_err(|error| self.explain("name the position", &error))?;
        if let Some(mut partition) = offsets.find_partition(&self.names.topic, 0) {
            partition.set_metadata(metadata);
        }
        self.commit_offsets(offsets, deadline)
    }
}

/// Lets a consumer say what happened to it: its errors go to the context, and it has no other events.
pub(super) fn listen(consumer: &BaseConsumer<Context>) {
    let deadline = Instant::now() + LISTEN;
    loop {
        // A poll without a result may have taken a log line, with more behind it.
        let heard = consumer.context().heard();
        let event = consumer.poll(Duration::ZERO).is_some();
        let silent = !event && consumer.context().heard() == heard;
        if silent || Instant::now() > deadline {
            break;
        }
    }
}

/// Errors of a coordinator that is still getting ready.
pub(super) fn passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::UnstableOffsetCommit
                | Code::WaitingForCoordinator
        )
    )
}
