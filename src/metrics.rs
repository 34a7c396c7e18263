//! All metrics: one struct, registered in the given registry.
//!
//! Names and labels are part of the public contract and do not change. Units are base units. Label sets are closed
//! (the enums of [`labels`], [`crate::stream::Stream::statuses`], [`Reason::ALL`], the configured credentials), and every series
//! exists before its first event, so that a rate never misses the first one.
//!
//! Each counting part holds a handle of its own: ingest the fields of [`Metrics`], a log and a lane their [`StreamMetrics`]. No label
//! is looked up while a webhook is handled. Events counted by the books are not counted here again; see
//! [`crate::admin::books`].
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`labels`] | closed label sets |
//! | [`recent`] | why lanes are blocked; refused files; the reasons for the last refusals and dead letters |
//! | [`register`] | makes metrics and registers them |
//! | [`stream`] | the metrics of one stream's log and lane |
//! | [`tls`] | the metrics of TLS on the webhooks' port |

mod labels;
mod recent;
mod register;
mod stream;
mod tls;

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    process_collector::ProcessCollector,
};

pub use self::{
    labels::{BlockReason, HandshakeFailure, Outcome, Shortage, TransactionOutcome},
    recent::{Blocked, RecentLetter, Refused, RefusedFile},
    stream::{KafkaSums, StreamMetrics},
    tls::{CertificateState, TlsMetrics},
};
use self::{
    recent::{Blockade, CountedWithTime, RecentLetters},
    register::Register,
};
use crate::{
    clock,
    dead_letter::{Failure, Reason, Scope},
    stream::Stream,
};

const ACKNOWLEDGEMENT_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const SYNC_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];
const COMMIT_WEBHOOKS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0,
];
const DELIVERY_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];
const TRANSACTION_SECONDS: &[f64] = &[
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

/// Every metric that is counted where it happens.
pub struct Metrics {
    webhooks: [IntCounter; Outcome::ALL.len()],
    parse_failures: IntCounterVec,
    repeated_events: IntCounterVec,
    acknowledgement_seconds: Histogram,
    connections_recycled: IntCounter,
    credential_uses: IntCounterVec,
    credential_last_use: IntGaugeVec,
    credential_reload_failures: IntCounter,
    ready: IntGauge,
    stream_enabled: IntGaugeVec,
    unknown_logs: IntGauge,
    sync_seconds: HistogramVec,
    commit_webhooks: HistogramVec,
    delivery_seconds: HistogramVec,
    lane_blocked: IntGaugeVec,
    transactions: IntCounterVec,
    transaction_seconds: HistogramVec,
    kafka_requests: IntCounterVec,
    kafka_bytes: IntCounterVec,
    kafka_request_errors: IntCounterVec,
    /// At [`Stream::index`].
    blockades: [Arc<Blockade>; Stream::ALL.len()],
    letters: Arc<RecentLetters>,
    /// At [`Outcome::index`]; those of [`Shortage`]s are at the shortage as well.
    outcomes: [CountedWithTime; Outcome::ALL.len()],
    shortages: [CountedWithTime; Shortage::ALL.len()],
    credential_files: Refused,
}

impl Metrics {
    /// Makes all metrics, with the series of these streams and credentials, and registers them.
    ///
    /// # Errors
    /// The registry holds one of the names already.
    pub fn new<'c>(
        registry: &Registry,
        streams: &[Stream],
        credentials: impl IntoIterator<Item = &'c str>,
    ) -> prometheus::Result<Metrics> {
        let register = Register(registry);
        let webhooks = register.counters(
            "cmc_bridge_webhooks_total",
            "Requests on the ingest port, by what became of them",
            &["outcome"],
        )?;
        let metrics = Metrics {
            webhooks: Outcome::ALL.map(|outcome| webhooks.with_label_values(&[outcome.label()])),
            parse_failures: register.counters(
                "cmc_bridge_parse_failures_total",
                "Bodies and elements that could not be understood",
                &["scope", "reason"],
            )?,
            repeated_events: register.counters(
                "cmc_bridge_repeated_events_total",
                "Events of answered webhooks that were not stored again, because they were known to be durable (ingest.repeats)",
                &["stream"],
            )?,
            acknowledgement_seconds: register.histogram(
                "cmc_bridge_acknowledgement_seconds",
                "From the end of a request's header to its answer",
                ACKNOWLEDGEMENT_SECONDS,
            )?,
            connections_recycled: register.counter(
                "cmc_bridge_connections_recycled_total",
                "Connections without an admitted request that were closed to make room for others",
            )?,
            credential_uses: register.counters(
                "cmc_bridge_credential_uses_total",
                "Requests that this credential admitted",
                &["credential"],
            )?,
            credential_last_use: register.gauges(
                "cmc_bridge_credential_last_use_timestamp_seconds",
                "When this credential last admitted a request, in seconds since the Unix epoch; 0 before that",
                &["credential"],
            )?,
            credential_reload_failures: register.counter(
                "cmc_bridge_credential_reload_failures_total",
                "Looks at a file of credentials that found something that can't be used",
            )?,
            ready: register.gauge("cmc_bridge_ready", "1 when a webhook can be made durable, else 0")?,
            stream_enabled: register.gauges(
                "cmc_bridge_stream_enabled",
                "1 when the stream takes webhooks; 0 when it is disabled, and what its log still holds is delivered",
                &["stream"],
            )?,
            unknown_logs: register.gauge(
                "cmc_bridge_spool_unknown_logs",
                "Logs in the spool that hold events of streams that this version doesn't know, and that nobody delivers",
            )?,
            sync_seconds: register.histograms(
                "cmc_bridge_spool_sync_seconds",
                "Making one commit of the spool durable",
                &["stream"],
                SYNC_SECONDS,
            )?,
            commit_webhooks: register.histograms(
                "cmc_bridge_spool_commit_webhooks",
                "Webhooks that shared one commit of the spool",
                &["stream"],
                COMMIT_WEBHOOKS,
            )?,
            delivery_seconds: register.histograms(
                "cmc_bridge_delivery_seconds",
                "From the receipt of a webhook to its events' commit in Kafka",
                &["stream"],
                DELIVERY_SECONDS,
            )?,
            lane_blocked: register.gauges(
                "cmc_bridge_lane_blocked",
                "1 for the reason why a stream is not being delivered, else 0",
                &["stream", "reason"],
            )?,
            transactions: register.counters(
                "cmc_bridge_transactions_total",
                "Kafka transactions, by how they ended",
                &["stream", "outcome"],
            )?,
            transaction_seconds: register.histograms(
                "cmc_bridge_transaction_seconds",
                "From the begin of a Kafka transaction to its end, by how it ended",
                &["stream", "outcome"],
                TRANSACTION_SECONDS,
            )?,
            kafka_requests: register.counters(
                "cmc_bridge_kafka_requests_total",
                "Requests that the stream's producers sent to Kafka, as of librdkafka's last statistics",
                &["stream"],
            )?,
            kafka_bytes: register.counters(
                "cmc_bridge_kafka_bytes_total",
                "Bytes that the stream's producers sent to Kafka, as of librdkafka's last statistics",
                &["stream"],
            )?,
            kafka_request_errors: register.counters(
                "cmc_bridge_kafka_request_errors_total",
                "Requests to Kafka that failed, timed out or were sent again, as of librdkafka's last statistics",
                &["stream"],
            )?,
            blockades: Default::default(),
            letters: Arc::default(),
            outcomes: Default::default(),
            shortages: Default::default(),
            credential_files: Refused::default(),
        };
        register
            .gauges(
                "cmc_bridge_build_info",
                "1; the label says what is running",
                &["version"],
            )?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;

        for reason in Reason::ALL
            .into_iter()
            .filter(|reason| reason.scope() != Scope::Broker)
        {
            metrics
                .parse_failures
                .with_label_values(&[reason.scope().name(), reason.name()]);
        }
        for credential in credentials {
            metrics.credential(credential);
        }
        for stream in streams {
            metrics.for_stream(*stream);
            if Stream::EVENTS.contains(stream) {
                metrics.repeated_events(*stream, 0);
            }
        }
        Ok(metrics)
    }

    /// Counts a request by its outcome.
    pub fn webhook(&self, outcome: Outcome) {
        self.webhooks[outcome.index()].inc();
        if outcome != Outcome::Accepted {
            self.outcomes[outcome.index()].count();
        }
    }

    /// Notes the shortage behind a refusal; [`Metrics::webhook`] counts the request itself.
    pub fn short_of(&self, shortage: Shortage) {
        self.shortages[shortage as usize].count();
    }

    /// How many requests had this outcome, and when the last one did. Accepted ones have no time.
    pub(super) fn refusals(&self, outcome: Outcome) -> (u64, i64) {
        self.outcomes[outcome.index()].get()
    }

    /// How many requests this shortage refused, and when the last one.
    pub(super) fn shortages(&self, shortage: Shortage) -> (u64, i64) {
        self.shortages[shortage as usize].get()
    }

    /// The times from the end of a request's header to its answer.
    pub(super) fn acknowledgements(&self) -> &Histogram {
        &self.acknowledgement_seconds
    }

    /// The files of credentials that are refused now.
    pub fn credential_files(&self) -> &Refused {
        &self.credential_files
    }

    /// Counts what could not be understood in a webhook; `stream` is its stream, if known.
    pub fn parse_failures(&self, stream: Option<Stream>, failures: &[Failure]) {
        for Failure { reason, .. } in failures {
            self.parse_failures
                .with_label_values(&[reason.scope().name(), reason.name()])
                .inc();
        }
        self.letters.note(stream, failures);
    }

    /// Counts events of a stream that were not stored again.
    pub fn repeated_events(&self, stream: Stream, count: u64) {
        self.repeated_events
            .with_label_values(&[stream.name()])
            .inc_by(count);
    }

    /// How many requests had each outcome, at [`Outcome::index`].
    pub(super) fn outcomes(&self) -> [u64; Outcome::ALL.len()] {
        Outcome::ALL.map(|outcome| self.webhooks[outcome.index()].get())
    }

    /// Why a stream is blocked, if it is.
    pub(super) fn blockade(&self, stream: Stream) -> &Blockade {
        &self.blockades[stream.index()]
    }

    /// The last dead letters.
    pub(super) fn letters(&self) -> &RecentLetters {
        &self.letters
    }

    /// Counts a connection that was closed to make room for another one.
    pub fn connection_recycled(&self) {
        self.connections_recycled.inc();
    }

    /// Observes the time from the end of a request's header to its answer.
    pub fn acknowledged(&self, seconds: f64) {
        self.acknowledgement_seconds.observe(seconds);
    }

    /// The handle for one credential's uses; its series exist from then on.
    pub fn credential(&self, name: &str) -> CredentialUses {
        CredentialUses {
            count: self.credential_uses.with_label_values(&[name]),
            last: self.credential_last_use.with_label_values(&[name]),
        }
    }

    /// Counts a check that found a file of credentials unusable.
    pub fn credential_reload_failed(&self) {
        self.credential_reload_failures.inc();
    }

    /// Sets whether a webhook can be made durable now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Sets whether a stream takes webhooks.
    pub fn set_enabled(&self, stream: Stream, enabled: bool) {
        let gauge = self.stream_enabled.with_label_values(&[stream.name()]);
        gauge.set(i64::from(enabled));
    }

    /// Sets how many logs of unknown streams the spool holds.
    pub fn set_unknown_logs(&self, count: usize) {
        self.unknown_logs.set(count as i64);
    }

    /// The handles for one stream's log and lane.
    pub fn for_stream(&self, stream: Stream) -> StreamMetrics {
        let name = stream.name();
        StreamMetrics {
            sync_seconds: self.sync_seconds.with_label_values(&[name]),
            commit_webhooks: self.commit_webhooks.with_label_values(&[name]),
            delivery_seconds: self.delivery_seconds.with_label_values(&[name]),
            blocked: BlockReason::ALL
                .map(|reason| self.lane_blocked.with_label_values(&[name, reason.label()])),
            transactions: TransactionOutcome::ALL
                .map(|outcome| self.transactions.with_label_values(&[name, outcome.label()])),
            transaction_seconds: TransactionOutcome::ALL.map(|outcome| {
                self.transaction_seconds
                    .with_label_values(&[name, outcome.label()])
            }),
            kafka: KafkaSums {
                requests: self.kafka_requests.with_label_values(&[name]),
                bytes: self.kafka_bytes.with_label_values(&[name]),
                request_errors: self.kafka_request_errors.with_label_values(&[name]),
            },
            stream,
            blockade: Arc::clone(&self.blockades[stream.index()]),
            letters: Arc::clone(&self.letters),
        }
    }
}

/// Counts the uses of one credential.
pub struct CredentialUses {
    count: IntCounter,
    last: IntGauge,
}

impl CredentialUses {
    /// Counts a request that it admitted.
    pub fn admitted(&self) {
        self.count.inc();
        self.last.set(clock::unix_micros() / 1_000_000);
    }

    /// How many requests it admitted.
    pub fn count(&self) -> u64 {
        self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_reason_at_a_time() {
        let metrics = Metrics::new(&Registry::new(), &[Stream::Bounces], []).unwrap();
        let bounces = metrics.for_stream(Stream::Bounces);
        let sum = || bounces.blocked.iter().map(IntGauge::get).sum::<i64>();
        bounces.lane_blocked(BlockReason::Connect, "c", "");
        bounces.lane_blocked(BlockReason::Damage, "d", "");
        assert_eq!(
            (sum(), bounces.blocked[BlockReason::Damage as usize].get()),
            (1, 1)
        );
        assert_eq!(metrics.blockade(Stream::Bounces).get().unwrap().cause, "d");
        bounces.lane_free();
        assert_eq!(sum(), 0);
        assert!(metrics.blockade(Stream::Bounces).get().is_none());
    }

    #[test]
    fn names_are_registered_once() {
        let registry = Registry::new();
        assert!(Metrics::new(&registry, &[], []).is_ok());
        assert!(Metrics::new(&registry, &[], []).is_err());
    }
}
