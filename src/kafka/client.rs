//! The librdkafka clients of a lane: their properties, and a context that counts deliveries and takes logs and errors.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
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
    config::{self, Delivery},
    metrics::KafkaSums,
    stream::Stream,
};

use super::{broker::Mode, explain::LastError, statistics::Statistics};

/// Room in `message.max.bytes` beyond `kafka.max_record_bytes`: the latter counts a whole batch, librdkafka less.
const SLACK: usize = 64 << 10;
/// The reports of one request come together.
const MOMENT: Duration = Duration::from_millis(100);
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

/// The producer's properties. `timeout` is that of its transactions, `batch_limit` the smallest `max.message.bytes` of the
/// topics.
pub fn producer(
    kafka: &config::Kafka,
    stream: Stream,
    group: &str,
    mode: Mode,
    timeout: Duration,
    batch_limit: Option<usize>,
) -> ClientConfig {
    let mut client = base(kafka, stream);
    let default = |client: &mut ClientConfig, name: &str, value: &str| {
        if !kafka.properties.contains_key(name) {
            client.set(name, value);
        }
    };
    match kafka.delivery {
        Delivery::ExactlyOnce => {
            client
                .set("transactional.id", group)
                .set("transaction.timeout.ms", timeout.as_millis().to_string());
        }
        Delivery::AtLeastOnce => {
            client
                // The spool is the retry buffer: nothing expires.
                .set("message.timeout.ms", "0")
                // The broker may accept a request behind a refused one, and a key's events would change places.
                .set("max.in.flight.requests.per.connection", "1");
            if mode == Mode::Batched {
                // So does librdkafka with what is still queued, unless a refusal is the producer's end. One record a
                // request is sent to hear of each refusal.
                client.set("enable.gapless.guarantee", "true");
            }
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
        // With transactions several requests are in flight, as in the other mode: each answer names its record, and a large
        // webhook gets through within the time of a transaction.
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
            self.deliveries.fail();
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
        match result {
            Ok(message) => {
                debug_assert!(message.offset() >= 0);
                self.deliveries.delivered();
            }
            Err((error, message)) => self.deliveries.failed(Failure {
                number,
                partition: (message.topic().to_owned(), message.partition()),
                error: error.clone(),
            }),
        }
    }
}

/// A record that was not delivered.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its number in its transaction.
    pub number: usize,
    pub partition: (String, i32),
    pub error: KafkaError,
}

impl Failure {
    pub fn code(&self) -> Option<Code> {
        self.error.rdkafka_error_code()
    }
}

/// Counts the deliveries of one transaction, or without transactions of one window. They come in any order of partitions.
#[derive(Default)]
pub struct Deliveries {
    state: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    delivered: usize,
    /// In the order of their reports, which is not that of their causes: what librdkafka gave up for an earlier error may
    /// be reported before it.
    failures: Vec<Failure>,
    /// The producer can't go on: nothing more will be delivered, perhaps without any further report.
    fatal: bool,
    /// How many reports the waiting side waits for.
    wanted: usize,
}

impl Counts {
    fn done(&self) -> usize {
        self.delivered + self.failures.len()
    }

    fn has_failed(&self) -> bool {
        self.fatal || !self.failures.is_empty()
    }
}

/// How a wait for deliveries ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Delivered,
    /// Something failed: see [`Deliveries::failures`].
    Failed,
    TimedOut,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.state.lock()
    }

    /// Begins a new count.
    pub fn reset(&self) {
        *self.lock() = Counts::default();
    }

    fn delivered(&self) {
        let mut counts = self.lock();
        counts.delivered += 1;
        if counts.done() == counts.wanted {
            self.changed.notify_all();
        }
    }

    fn failed(&self, failure: Failure) {
        let mut counts = self.lock();
        counts.failures.push(failure);
        if counts.failures.len() == 1 || counts.done() == counts.wanted {
            self.changed.notify_all();
        }
    }

    fn fail(&self) {
        self.lock().fatal = true;
        self.changed.notify_all();
    }

    /// Waits until so many records are delivered, one has failed, or the deadline has come.
    pub fn wait(&self, records: usize, deadline: Instant) -> Waited {
        self.wait_until(records, deadline, |counts| {
            match (counts.has_failed(), counts.delivered >= records) {
                (true, _) => Some(Waited::Failed),
                (false, true) => Some(Waited::Delivered),
                (false, false) => None,
            }
        })
    }

    /// Waits until so many records are reported, whatever has failed before.
    pub fn wait_for_all(&self, records: usize, deadline: Instant) -> Waited {
        self.wait_until(records, deadline, |counts| {
            match (counts.has_failed(), counts.delivered >= records) {
                (false, true) => Some(Waited::Delivered),
                (true, _) if counts.fatal || counts.done() >= records => Some(Waited::Failed),
                _ => None,
            }
        })
    }

    /// Waits for the reports that follow a failure: until so many records are reported, delivered or not; or for a moment
    /// after the last report once one of them `is_cause`; or until the deadline. Whether all are reported.
    pub fn wait_for_reports(
        &self,
        records: usize,
        is_cause: impl Fn(&Failure) -> bool,
        deadline: Instant,
    ) -> bool {
        let mut looked_at = 0;
        let mut known = false;
        loop {
            let done = {
                let counts = self.lock();
                known = known || counts.failures[looked_at..].iter().any(&is_cause);
                looked_at = counts.failures.len();
                counts.done()
            };
            if done >= records {
                return true;
            }
            // librdkafka may never report what it gave up.
            let until = match known {
                true => deadline.min(Instant::now() + MOMENT),
                false => deadline,
            };
            let more = |counts: &Counts| (counts.done() > done).then_some(Waited::Delivered);
            if self.wait_until(done + 1, until, more) == Waited::TimedOut {
                return false;
            }
        }
    }

    /// Waits for room in a full queue: until one more record is reported, or for a moment. For librdkafka frees the room of
    /// records only after the callbacks of all that it reports together, so the last callback may be over already. `heed`
    /// failures that there were before.
    pub fn wait_for_room(&self, heed: bool, deadline: Instant) -> Waited {
        let next = self.lock().done() + 1;
        let moment = deadline.min(Instant::now() + TRY_AGAIN);
        let waited = self.wait_until(next, moment, |counts| {
            match counts.fatal || heed && counts.has_failed() {
                true => Some(Waited::Failed),
                false => (counts.done() >= next).then_some(Waited::Delivered),
            }
        });
        match waited {
            Waited::TimedOut if Instant::now() < deadline => Waited::Delivered,
            waited => waited,
        }
    }

    fn wait_until(
        &self,
        wanted: usize,
        deadline: Instant,
        over: impl Fn(&Counts) -> Option<Waited>,
    ) -> Waited {
        let mut counts = self.lock();
        counts.wanted = wanted;
        loop {
            if let Some(waited) = over(&counts) {
                return waited;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            self.changed.wait_for(&mut counts, left);
        }
    }

    /// What has failed so far.
    pub fn failures(&self) -> Vec<Failure> {
        self.lock().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn failure(number: usize, code: Code) -> Failure {
        Failure {
            number,
            partition: ("topic".into(), 0),
            error: KafkaError::MessageProduction(code),
        }
    }

    #[test]
    fn a_full_queue_whose_callbacks_are_all_over_is_tried_again() {
        let deliveries = Deliveries::default();
        deliveries.delivered();
        let begun = Instant::now();
        assert_eq!(deliveries.wait_for_room(true, soon()), Waited::Delivered);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let past = Instant::now();
        assert_eq!(deliveries.wait_for_room(true, past), Waited::TimedOut);
    }

    #[test]
    fn a_failure_ends_the_wait_and_stays() {
        let deliveries = Deliveries::default();
        deliveries.failed(failure(4, Code::PurgeQueue));
        for _ in 0..2 {
            assert_eq!(deliveries.wait(1, soon()), Waited::Failed);
            assert_eq!(deliveries.wait_for_room(true, soon()), Waited::Failed);
        }
        // The cause may come later.
        let is_cause = |failure: &Failure| failure.code() == Some(Code::InvalidRecord);
        assert!(!deliveries.wait_for_reports(2, is_cause, Instant::now()));
        deliveries.failed(failure(3, Code::InvalidRecord));
        assert!(deliveries.wait_for_reports(2, is_cause, soon()));
        // And the rest never.
        assert!(!deliveries.wait_for_reports(3, is_cause, soon()));
        let codes: Vec<_> = deliveries.failures().iter().map(Failure::code).collect();
        assert_eq!(codes, [Some(Code::PurgeQueue), Some(Code::InvalidRecord)]);
        deliveries.reset();
        deliveries.delivered();
        assert_eq!(deliveries.wait(1, soon()), Waited::Delivered);
        assert_eq!(deliveries.wait(2, Instant::now()), Waited::TimedOut);
    }

    #[test]
    fn whoever_waits_is_woken_by_the_last_report_and_by_the_first_failure() {
        type End = fn(&Deliveries);
        let ends: [(End, Waited); 3] = [
            (Deliveries::delivered, Waited::Delivered),
            (|d| d.failed(failure(0, Code::InvalidRecord)), Waited::Failed),
            (Deliveries::fail, Waited::Failed),
        ];
        for (end, expected) in ends {
            let deliveries = Arc::new(Deliveries::default());
            deliveries.delivered();
            let theirs = Arc::clone(&deliveries);
            let waiting = std::thread::spawn(move || theirs.wait(2, soon()));
            end(&deliveries);
            assert_eq!(waiting.join().unwrap(), expected);
        }
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
        let context = || Context::new(Stream::Bounces, crate::kafka::statistics::tests::sums());
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
            for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
                let kafka = config::Kafka {
                    delivery,
                    ..kafka(properties)
                };
                let timeout = Duration::from_secs(15);
                let config = producer(&kafka, Stream::Bounces, "group", mode, timeout, limit);
                assert_eq!(config.get("batch.size"), batch);
                let made: Result<rdkafka::producer::ThreadedProducer<Context>, _> =
                    config.create_with_context(context());
                assert!(made.is_ok(), "{:?}", made.err());
            }
        }
    }
}
