//! Creates topics and reads them with a `read_committed` consumer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Headers, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};

use crate::wait::{self, unique};

/// The header of a sentinel, the harness's own record at the end of a partition.
const SENTINEL: &str = "cmc-test-sentinel";

/// How long any operation on topics may take.
const LIMIT: Duration = Duration::from_secs(180);

/// The settings of every client of the harness.
pub fn client_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("reconnect.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "200")
        .set("allow.auto.create.topics", "false")
        // Tests kill brokers; nobody needs to read about it.
        .set("log_level", "0");
    config
}

/// Tries once to create a topic of this name; `Ok` if it already exists.
pub fn try_create_topic(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    config: &[(&str, &str)],
) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> = client_config(bootstrap).create().unwrap();
    // The cluster's default number of replicas.
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    for (key, value) in config {
        topic = topic.set(key, value);
    }
    let options = AdminOptions::new()
        .request_timeout(Some(Duration::from_secs(5)))
        .operation_timeout(Some(Duration::from_secs(5)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let results = runtime
        .block_on(admin.create_topics([&topic], &options))
        .map_err(|error| error.to_string())?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(format!("{topic}: {code}")),
        }
    }
    Ok(())
}

/// Creates a topic of this name and waits until its partitions have leaders.
pub fn create_named(bootstrap: &str, name: &str, partitions: i32, config: &[(&str, &str)]) {
    let mut last = String::new();
    wait::until(LIMIT, &format!("topic {name}"), || {
        try_create_topic(bootstrap, name, partitions, config)
            .inspect_err(|error| last.clone_from(error))
            .ok()
    });
    let probe: BaseConsumer = client_config(bootstrap).create().unwrap();
    wait::until(LIMIT, &format!("leaders of {name} {last}"), || {
        let metadata = probe.fetch_metadata(Some(name), Duration::from_secs(1)).ok()?;
        let parts = metadata.topics().first()?.partitions();
        (parts.len() == partitions as usize && parts.iter().all(|p| p.error().is_none() && p.leader() >= 0))
            .then_some(())
    });
}

/// Changes one setting of a topic, and waits until the broker knows it.
pub fn configure(bootstrap: &str, topic: &str, name: &str, value: &str) {
    let admin: AdminClient<DefaultClientContext> = client_config(bootstrap).create().unwrap();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let results = runtime.block_on(admin.alter_configs([&change], &AdminOptions::new()));
    for result in results.unwrap() {
        result.unwrap();
    }
    // The controller answers before the brokers know the change.
    let resource = ResourceSpecifier::Topic(topic);
    wait::until(LIMIT, "the topic's new setting", || {
        let described = runtime.block_on(admin.describe_configs([&resource], &AdminOptions::new()));
        let entries = described.unwrap().remove(0).unwrap();
        (entries.get(name).unwrap().value.as_deref() == Some(value)).then_some(())
    });
}

/// Deletes the records of partition 0 below this offset.
pub fn delete_records(bootstrap: &str, topic: &str, before: i64) {
    let admin: AdminClient<DefaultClientContext> = client_config(bootstrap).create().unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset(topic, 0, Offset::Offset(before))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let deleted = runtime.block_on(admin.delete_records(&offsets, &AdminOptions::new()));
    for element in deleted.unwrap().elements() {
        element.error().unwrap();
    }
}

/// Creates a topic with a unique name that begins with `what`.
pub fn create(bootstrap: &str, what: &str, partitions: i32, config: &[(&str, &str)]) -> String {
    let name = unique(what);
    create_named(bootstrap, &name, partitions, config);
    name
}

/// A record as a consumer reads it.
#[derive(Clone, Debug)]
pub struct Record {
    pub partition: i32,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    /// In their order in the record.
    pub headers: Vec<(String, Vec<u8>)>,
    pub value: Vec<u8>,
}

impl Record {
    /// The value of the only header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(key, _)| key == name);
        let first = all.next();
        assert!(
            all.next().is_none(),
            "header {name} is repeated: {:?}",
            self.headers
        );
        first.map(|(_, value)| std::str::from_utf8(value).unwrap())
    }

    /// The key as text.
    pub fn key_text(&self) -> Option<&str> {
        self.key.as_deref().map(|key| std::str::from_utf8(key).unwrap())
    }

    /// The value as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.value).unwrap()
    }
}

/// A `read_committed` consumer of all partitions of a topic, from the beginning.
pub struct Reader {
    bootstrap: String,
    topic: String,
    partitions: Vec<i32>,
    consumer: BaseConsumer,
    /// Everything read so far, in reading order, without the sentinels.
    pub records: Vec<Record>,
    /// By partition, the offsets of the last record and of the last sentinel.
    last: BTreeMap<i32, i64>,
    sentinels: BTreeMap<i32, i64>,
}

impl Reader {
    /// Opens an existing topic.
    pub fn new(bootstrap: &str, topic: &str) -> Self {
        let consumer: BaseConsumer = client_config(bootstrap)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "50")
            .set("check.crcs", "true")
            .create()
            .unwrap();
        let partitions: Vec<i32> = wait::until(LIMIT, &format!("partitions of {topic}"), || {
            let metadata = consumer
                .fetch_metadata(Some(topic), Duration::from_secs(2))
                .ok()?;
            let partitions = metadata.topics().first()?.partitions();
            (!partitions.is_empty()).then(|| partitions.iter().map(|p| p.id()).collect())
        });
        let mut list = TopicPartitionList::new();
        for partition in &partitions {
            list.add_partition_offset(topic, *partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&list).unwrap();
        Reader {
            bootstrap: bootstrap.to_owned(),
            topic: topic.to_owned(),
            partitions,
            consumer,
            records: Vec::new(),
            last: BTreeMap::new(),
            sentinels: BTreeMap::new(),
        }
    }

    /// Reads until `condition` holds; panics if the deadline passes first.
    pub fn read_until(&mut self, limit: Duration, what: &str, mut condition: impl FnMut(&[Record]) -> bool) {
        let deadline = Instant::now() + limit;
        while !condition(&self.records) {
            assert!(
                Instant::now() < deadline,
                "waited {limit:?} for {what} in {}; {} records so far, the last: {:?}",
                self.topic,
                self.records.len(),
                self.records.last()
            );
            self.poll();
        }
    }

    /// Reads until there are this many records.
    pub fn read_count(&mut self, count: usize, limit: Duration) -> &[Record] {
        self.read_until(limit, &format!("{count} records"), |records| {
            records.len() >= count
        });
        &self.records
    }

    /// Reads exactly what the topic holds now: sentinels mark the end of each partition. A transaction that is open now
    /// holds the reader until it ends, as it holds any consumer.
    pub fn read_to_end(&mut self, limit: Duration) -> &[Record] {
        let ends = append_sentinels(&self.bootstrap, &self.topic, &self.partitions);
        let deadline = Instant::now() + limit;
        while !ends
            .iter()
            .all(|(partition, end)| self.sentinels.get(partition) >= Some(end))
        {
            assert!(
                Instant::now() < deadline,
                "waited {limit:?} for the end of {}: wanted {ends:?}, passed {:?}",
                self.topic,
                self.sentinels
            );
            self.poll();
        }
        &self.records
    }

    /// How many transactions have ended in a topic of one partition that has been read once to its end: each left a control
    /// record, which takes an offset.
    pub fn transactions(&self) -> usize {
        assert_eq!(self.partitions, [0], "one partition");
        let end = self.sentinels[&0] as usize;
        end - self.records.len()
    }

    fn poll(&mut self) {
        match self.consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => {
                let headers: Vec<(String, Vec<u8>)> = message
                    .headers()
                    .map(|headers| {
                        headers
                            .iter()
                            .map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()))
                            .collect()
                    })
                    .unwrap_or_default();
                if headers.first().is_some_and(|(name, _)| name == SENTINEL) {
                    self.sentinels.insert(message.partition(), message.offset());
                    return;
                }
                let before = self.last.insert(message.partition(), message.offset());
                assert!(before < Some(message.offset()), "read backwards");
                self.records.push(Record {
                    partition: message.partition(),
                    timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
                    key: message.key().map(<[u8]>::to_vec),
                    headers,
                    value: message.payload().unwrap_or_default().to_vec(),
                });
            }
            // A broker that is down comes back, or the deadline passes.
            Some(Err(KafkaError::MessageConsumption(_))) => {}
            Some(Err(error)) => panic!("reading {}: {error}", self.topic),
        }
    }
}

struct Ends(std::sync::Mutex<BTreeMap<i32, i64>>);

impl rdkafka::ClientContext for Ends {}

impl ProducerContext for Ends {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        let message = result
            .as_ref()
            .unwrap_or_else(|(error, _)| panic!("sentinel: {error}"));
        self.0
            .lock()
            .unwrap()
            .insert(message.partition(), message.offset());
    }
}

fn append_sentinels(bootstrap: &str, topic: &str, partitions: &[i32]) -> BTreeMap<i32, i64> {
    let producer: ThreadedProducer<Ends> = client_config(bootstrap)
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Ends(Default::default()))
        .unwrap();
    for partition in partitions {
        let headers = OwnedHeaders::new().insert(Header {
            key: SENTINEL,
            value: Some("end"),
        });
        producer
            .send(
                BaseRecord::to(topic)
                    .partition(*partition)
                    // With a key, because compacted topics require one.
                    .key(SENTINEL)
                    // Without a timestamp, because some topics refuse today's.
                    .timestamp(-1)
                    .payload("end")
                    .headers(headers),
            )
            .map_err(|(error, _)| error)
            .unwrap();
    }
    wait::until(LIMIT, "the sentinels' acknowledgement", || {
        let ends = producer.context().0.lock().unwrap();
        (ends.len() == partitions.len()).then(|| ends.clone())
    })
}

/// A transactional producer for the tests of the harness.
pub fn transactional_producer(bootstrap: &str, id: &str, timeout_ms: u32) -> BaseProducer {
    let producer: BaseProducer = client_config(bootstrap)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout_ms.to_string())
        .create()
        .unwrap();
    wait::until(LIMIT, "init_transactions", || {
        producer.init_transactions(Duration::from_secs(10)).ok()
    });
    producer
}
