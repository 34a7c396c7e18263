//! librdkafka's callbacks: log lines, errors, statistics and delivery reports.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::KafkaError,
    producer::{DeliveryResult, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use secrecy::SecretString;
use tracing::{debug, info, warn};

use super::{
    deliveries::{Deliveries, UndeliveredRecord},
    explain::{LastError, redact},
    statistics::Statistics,
};
use crate::{config, metrics::KafkaSums, stream::Stream};

/// The callbacks of the clients of one lane or tool, and what they have collected.
#[derive(Clone)]
pub struct Callbacks {
    stream: Stream,
    pub last_error: Arc<LastError>,
    pub deliveries: Arc<Deliveries>,
    /// `None` for a tool.
    statistics: Option<Arc<Statistics>>,
    heard: Arc<AtomicU64>,
    /// Values of properties that no log line may show. librdkafka shows URLs and the answers to its requests as they are.
    unshown: Arc<[SecretString]>,
}

impl Callbacks {
    /// Callbacks of a lane's clients, whose statistics are added to these sums.
    pub fn of_lane(stream: Stream, kafka: &config::Kafka, sums: KafkaSums) -> Callbacks {
        Callbacks {
            statistics: Some(Arc::new(Statistics::new(sums))),
            ..Callbacks::uncounted(stream, kafka)
        }
    }

    /// Callbacks of a tool's clients, which no metric counts.
    pub fn uncounted(stream: Stream, kafka: &config::Kafka) -> Callbacks {
        Callbacks {
            stream,
            last_error: Arc::default(),
            deliveries: Arc::default(),
            statistics: None,
            heard: Arc::default(),
            unshown: kafka.unshown().into(),
        }
    }

    /// The stream of the lane or tool.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// How many log lines and errors there have been.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, text: &str) {
        let stream = self.stream;
        self.heard.fetch_add(1, Ordering::Relaxed);
        let text = redact(text, &self.unshown);
        let said = text
            .split_once("]: ")
            .map_or(text.as_str(), |(_thread, said)| said);
        // librdkafka does not treat it as an error when a broker hangs up. A broker that does so at the first request may want TLS.
        if fac == "FAIL" && text.contains("Disconnected") && text.contains("APIVERSION_QUERY") {
            let said = format!("{said} (does this port want TLS?)");
            self.last_error.set(Code::BrokerTransportFailure, &said);
        }
        // An answer that librdkafka can't parse is no error to it either: it asks again.
        if fac == "PROTOERR" {
            self.last_error.set(Code::BadMessage, said);
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                // An error that matters blocks the lane, which logs its cause and cure. These lines repeat every second.
                info!(target: "librdkafka", %stream, fac, "{text}");
            }
            _ => debug!(target: "librdkafka", %stream, fac, "{text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let reason = &redact(reason, &self.unshown);
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

impl ConsumerContext for Callbacks {}

impl ProducerContext for Callbacks {
    /// The record's number in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(message) => {
                debug_assert!(message.offset() >= 0);
                self.deliveries.delivered(number);
            }
            Err((error, message)) => self.deliveries.failed(UndeliveredRecord {
                number,
                partition: (message.topic().to_owned(), message.partition()),
                error: error.clone(),
            }),
        }
    }
}
