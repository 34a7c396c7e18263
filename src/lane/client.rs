//! The librdkafka clients of a lane: their properties, and a context that counts deliveries and takes logs and errors.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message,
    config::{ClientConfig, RDKafkaLogLevel},
    consumer::ConsumerContext,
    error::KafkaError,
    producer::{DeliveryResult, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use secrecy::ExposeSecret;
use tracing::{debug, info, warn};

use crate::{
    admin::metrics::KafkaSums,
    config::{self, Delivery},
    stream::Stream,
};

use super::{broker::Mode, cause::LastError, statistics::Statistics};

/// Room in `message.max.bytes` beyond `kafka.max_record_bytes`: the latter counts a whole batch, librdkafka less.
const SLACK: usize = 64 << 10;
/// Without news of a delivery, a full queue is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The properties that every client of a lane has: the operator's, and on top what the bridge owns.
pub fn base(kafka: &config::Kafka, stream: Stream) -> ClientConfig {
    let mut client = ClientConfig::new();
    let tls = |name: &str| name == "security.protocol";
    for (name, value) in &kafka.properties {
        client.set(name, value.expose_secret());
        // The vendored OpenSSL knows no distribution's CA directory; librdkafka looks for it then.
        if tls(name)
            && value.expose_secret().to_ascii_lowercase().contains("ssl")
            && !kafka.properties.contains_key("ssl.ca.location")
            && !kafka.properties.contains_key("ssl.ca.pem")
        {
            client.set("ssl.ca.location", "probe");
        }
    }
    client
        .set("bootstrap.servers", &kafka.bootstrap_servers)
        .set("allow.auto.create.topics", "false")
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    if !kafka.properties.contains_key("client.id") {
        client.set("client.id", format!("cmc-bridge-{stream}"));
    }
    client
}

/// The transactional producer's properties. `batch_limit` is the smallest `max.message.bytes` of the topics.
pub fn producer(
    kafka: &config::Kafka,
    stream: Stream,
    group: &str,
    mode: Mode,
    batch_limit: Option<usize>,
) -> ClientConfig {
    let mut client = base(kafka, stream);
    let timeout = mode.time(kafka.transaction_timeout).as_millis().to_string();
    let default = |client: &mut ClientConfig, name: &str, value: &str| {
        if !kafka.properties.contains_key(name) {
            client.set(name, value);
        }
    };
    match kafka.delivery {
        Delivery::ExactlyOnce => {
            client
                .set("transactional.id", group)
                .set("transaction.timeout.ms", timeout);
        }
        // The spool is the retry buffer: nothing expires.
        Delivery::AtLeastOnce => {
            client.set("message.timeout.ms", "0");
        }
    }
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", (kafka.max_record_bytes + SLACK).to_string());
    // After the end of a transaction the broker is still busy with it for some milliseconds; the default of 100 would
    // be felt in each.
    default(&mut client, "retry.backoff.ms", "10");
    default(&mut client, "linger.ms", "1");
    default(&mut client, "topic.metadata.propagation.max.ms", "5000");
    default(&mut client, "statistics.interval.ms", "5000");
    // Room for all that may be in flight, so that a broker that is away is met by waiting and not by a full queue.
    let queue = (kafka.transaction_events * 2).clamp(100_000, 10_000_000);
    default(&mut client, "queue.buffering.max.messages", &queue.to_string());
    match mode {
        Mode::Batched => {
            // The broker refuses a batch as a whole, so none may be larger than the topic allows.
            let wanted = kafka.properties.get("batch.size");
            let wanted = wanted.and_then(|size| size.expose_secret().parse().ok());
            let most = wanted.unwrap_or(1_000_000);
            let most = batch_limit.map_or(most, |limit| (limit * 9 / 10).clamp(1, most.max(1)));
            client.set("batch.size", most.to_string());
        }
        // Several requests are in flight, as in the other mode: answers come in the order of the requests, so the first
        // error still names its record, and a large webhook gets through within the time of a transaction.
        Mode::OneByOne => {
            client.set("batch.num.messages", "1");
        }
    }
    client
}

/// The properties of the consumer that reads the committed position, and reads nothing else.
pub fn consumer(kafka: &config::Kafka, stream: Stream, group: &str) -> ClientConfig {
    let mut client = base(kafka, stream);
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        // It looks up topics first; see Context::log for what this line is good for.
        .set("log.connection.close", "true")
        // The broker then answers only once no transaction of a former producer is open.
        .set("isolation.level", "read_committed");
    client
}

/// The properties of a consumer that reads records, for tools beside the lanes.
pub fn reader(kafka: &config::Kafka, stream: Stream, group: &str, id: &str) -> ClientConfig {
    let mut client = consumer(kafka, stream, group);
    client
        .set("enable.auto.offset.store", "false")
        // Of a position that retention has passed: nothing that is still there is skipped.
        .set("auto.offset.reset", "earliest");
    for (name, value) in [
        ("client.id", id),
        // A damaged batch is an error, and no wrong record.
        ("check.crcs", "true"),
    ] {
        if !kafka.properties.contains_key(name) {
            client.set(name, value);
        }
    }
    client
}

/// The codecs that the librdkafka of this build knows.
pub fn codecs() -> Vec<&'static str> {
    let features = ClientConfig::new()
        .create_native_config()
        .and_then(|config| config.get("builtin.features"))
        .unwrap_or_default();
    let known = ["gzip", "snappy", "lz4", "zstd"].into_iter();
    known
        .filter(|codec| features.split(',').any(|feature| feature.trim() == *codec))
        .collect()
}

/// What librdkafka tells a client of a lane.
#[derive(Clone)]
pub struct Context {
    stream: Stream,
    pub last_error: Arc<LastError>,
    pub deliveries: Arc<Deliveries>,
    /// None of a client that is no lane's.
    statistics: Option<Arc<Statistics>>,
    heard: Arc<AtomicU64>,
}

impl Context {
    pub fn new(stream: Stream, sums: KafkaSums) -> Context {
        Context {
            statistics: Some(Arc::new(Statistics::new(sums))),
            ..Context::uncounted(stream)
        }
    }

    /// Of a client beside the lanes, which no metric counts.
    pub fn uncounted(stream: Stream) -> Context {
        Context {
            stream,
            last_error: Arc::default(),
            deliveries: Arc::default(),
            statistics: None,
            heard: Arc::default(),
        }
    }

    /// How many log lines and errors there were.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        let stream = self.stream;
        self.heard.fetch_add(1, Ordering::Relaxed);
        let said = text.split_once("]: ").map_or(text, |(_thread, said)| said);
        // A broker that hangs up is no error to librdkafka. One that does so at the first request may want TLS.
        if fac == "FAIL" && text.contains("Disconnected") && text.contains("APIVERSION_QUERY") {
            let said = format!("{said} (does this port want TLS?)");
            self.last_error.set(Code::BrokerTransportFailure, &said);
        }
        // Nor is an answer that it can't parse: it asks again.
        if fac == "PROTOERR" {
            self.last_error.set(Code::BadMessage, said);
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                // Errors that matter block the lane, which says so with cause and cure; these repeat each second.
                info!(target: "librdkafka", %stream, fac, "{text}");
            }
            _ => debug!(target: "librdkafka", %stream, fac, "{text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        debug!(target: "librdkafka", stream = %self.stream, %error, "{reason}");
        if let Some(code) = error.rdkafka_error_code() {
            self.last_error.set(code, reason);
        }
        if matches!(error, KafkaError::Global(Code::Fatal)) {
            warn!(stream = %self.stream, "the producer has failed for good and is replaced: {reason}");
            self.deliveries.fail(error);
        }
    }

    fn stats_raw(&self, json: &[u8]) {
        if let Some(statistics) = &self.statistics {
            statistics.take(json);
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    /// The record's number in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let outcome = match result {
            Ok(message) => {
                debug_assert!(message.offset() >= 0);
                Ok(())
            }
            Err((error, _)) => Err(error.clone()),
        };
        self.deliveries.done(number, outcome);
    }
}

/// Counts one producer's deliveries, which come in any order of partitions.
#[derive(Default)]
pub struct Deliveries {
    state: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    /// Records that are delivered or have failed.
    done: usize,
    /// All records with numbers below this are delivered.
    below: usize,
    /// Whether it is, of each record from there on.
    beyond: VecDeque<bool>,
    /// What the waiting side waits for.
    wanted: Wanted,
    first_error: Option<(usize, KafkaError)>,
}

/// Counted from 0.
#[derive(Clone, Copy)]
enum Wanted {
    Below(usize),
    Done(usize),
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted::Below(0)
    }
}

impl Counts {
    fn delivered(&mut self, number: usize) {
        // What lies below can't come again.
        let at = number.saturating_sub(self.below);
        if self.beyond.len() <= at {
            self.beyond.resize(at + 1, false);
        }
        self.beyond[at] = true;
        while self.beyond.front() == Some(&true) {
            self.beyond.pop_front();
            self.below += 1;
        }
    }

    /// Whether all that is waited for is delivered, without a gap.
    fn delivered_below(&self) -> bool {
        matches!(self.wanted, Wanted::Below(below) if self.below >= below)
    }

    fn fulfilled(&self) -> bool {
        self.delivered_below() || matches!(self.wanted, Wanted::Done(done) if self.done >= done)
    }
}

/// How a wait for deliveries ended.
pub enum Waited {
    Delivered,
    /// The first record that failed, by its number; of an error of the whole producer the number says nothing.
    Failed(usize, KafkaError),
    TimedOut,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new transaction's count.
    pub fn reset(&self) {
        *self.lock() = Counts::default();
    }

    fn done(&self, number: usize, outcome: Result<(), KafkaError>) {
        let mut counts = self.lock();
        counts.done += 1;
        match outcome {
            Ok(()) => counts.delivered(number),
            Err(error) => {
                counts.first_error.get_or_insert((number, error));
            }
        }
        if counts.first_error.is_some() || counts.fulfilled() {
            self.changed.notify_all();
        }
    }

    /// The producer can't go on: nothing more will be delivered, perhaps without any further callback.
    fn fail(&self, error: KafkaError) {
        self.lock().first_error.get_or_insert((usize::MAX, error));
        self.changed.notify_all();
    }

    /// Waits until all records with numbers below `behind` are delivered, one has failed, or the deadline has come.
    pub fn wait(&self, behind: usize, deadline: Instant) -> Waited {
        self.wait_for(Wanted::Below(behind), deadline)
    }

    fn wait_for(&self, wanted: Wanted, deadline: Instant) -> Waited {
        let mut counts = self.lock();
        counts.wanted = wanted;
        loop {
            // What is delivered without a gap stays so, whatever fails behind it. A failed record is done, too.
            match &counts.first_error {
                Some((number, error)) if !counts.delivered_below() => {
                    return Waited::Failed(*number, error.clone());
                }
                _ if counts.fulfilled() => return Waited::Delivered,
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            counts = self
                .changed
                .wait_timeout(counts, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for room in a full queue: until one more record is done, or for a moment. For librdkafka frees the room of
    /// records only after the callbacks of all that it reports together, so the last callback may be over already.
    pub fn wait_for_room(&self, deadline: Instant) -> Waited {
        let next = self.lock().done + 1;
        match self.wait_for(Wanted::Done(next), deadline.min(Instant::now() + TRY_AGAIN)) {
            Waited::TimedOut if Instant::now() < deadline => Waited::Delivered,
            waited => waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_full_queue_whose_callbacks_are_all_over_is_tried_again() {
        let deliveries = Deliveries::default();
        deliveries.done(0, Ok(()));
        let begun = Instant::now();
        assert!(matches!(deliveries.wait_for_room(soon()), Waited::Delivered));
        assert!(begun.elapsed() < Duration::from_secs(10));
        let past = Instant::now();
        assert!(matches!(deliveries.wait_for_room(past), Waited::TimedOut));
    }

    #[test]
    fn the_first_error_ends_the_wait_and_stays() {
        let deliveries = Deliveries::default();
        let error = |code| KafkaError::MessageProduction(code);
        deliveries.done(3, Err(error(Code::InvalidRecord)));
        deliveries.done(4, Err(error(Code::PurgeInflight)));
        for _ in 0..2 {
            let waited = deliveries.wait(9, soon());
            assert!(matches!(
                waited,
                Waited::Failed(3, KafkaError::MessageProduction(Code::InvalidRecord))
            ),);
        }
        deliveries.reset();
        deliveries.done(0, Ok(()));
        assert!(matches!(deliveries.wait(1, soon()), Waited::Delivered));
    }

    #[test]
    fn what_is_delivered_without_a_gap_stays_so() {
        let deliveries = Deliveries::default();
        for number in [2, 0, 4, 1] {
            deliveries.done(number, Ok(()));
        }
        let wait = |behind| deliveries.wait(behind, Instant::now());
        assert!(matches!(wait(3), Waited::Delivered));
        assert!(matches!(wait(4), Waited::TimedOut));
        deliveries.done(5, Err(KafkaError::MessageProduction(Code::InvalidRecord)));
        assert!(matches!(wait(3), Waited::Delivered));
        assert!(matches!(wait(4), Waited::Failed(5, _)));
        deliveries.done(3, Ok(()));
        assert!(matches!(wait(5), Waited::Delivered));
        assert!(matches!(wait(6), Waited::Failed(5, _)));
    }

    #[test]
    fn a_producer_that_fails_for_good_ends_the_wait_of_another_thread() {
        let deliveries = Arc::new(Deliveries::default());
        let theirs = Arc::clone(&deliveries);
        let waiting = std::thread::spawn(move || matches!(theirs.wait(1, soon()), Waited::Failed(..)));
        deliveries.fail(KafkaError::Global(Code::Fatal));
        assert!(waiting.join().unwrap());
    }

    fn kafka(properties: &[(&str, &str)]) -> config::Kafka {
        let variable = (
            "CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS".to_owned(),
            "true".to_owned(),
        );
        let mut kafka = config::load(&[], std::iter::once(variable)).unwrap().config.kafka;
        for (name, value) in properties {
            kafka.properties.insert((*name).into(), (*value).into());
        }
        kafka
    }

    #[test]
    fn librdkafka_takes_the_properties_of_both_modes() {
        let context = || Context::new(Stream::Bounces, crate::lane::statistics::tests::sums());
        for (mode, properties, limit, batch) in [
            (Mode::Batched, &[][..], None, Some("1000000")),
            (Mode::Batched, &[], Some(20_000), Some("18000")),
            (
                Mode::Batched,
                &[("batch.size", "5000")],
                Some(20_000),
                Some("5000"),
            ),
            (Mode::OneByOne, &[], Some(20_000), None),
        ] {
            let config = producer(&kafka(properties), Stream::Bounces, "group", mode, limit);
            assert_eq!(config.get("batch.size"), batch);
            let seconds = if mode == Mode::OneByOne { 60 } else { 15 };
            let timeout = format!("{seconds}000");
            assert_eq!(config.get("transaction.timeout.ms"), Some(&timeout[..]));
            let made: Result<rdkafka::producer::ThreadedProducer<Context>, _> =
                config.create_with_context(context());
            assert!(made.is_ok(), "{:?}", made.err());
        }
    }
}
