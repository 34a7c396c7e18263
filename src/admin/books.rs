//! The streams' books as metrics.
//!
//! A scrape takes one [`Books::snapshot`] of each stream and derives every number from it, so that
//! `recovered + accepted = delivered + diverted + backlog` holds in each scrape and not only on average.

use std::sync::Arc;

use prometheus::{
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{books::Books, leftover::Service, spool::LogState, stream::Stream};

/// One stream: its books, its topic, and the state and size of its log.
pub struct StreamBooks {
    pub stream: Stream,
    pub topic: String,
    pub service: Service,
    /// Empty while the log is not open: nobody knows them yet.
    pub books: Arc<Books>,
    pub log_state: Box<dyn Fn() -> LogState + Send + Sync>,
    /// Written and not yet trimmed bytes of the log.
    pub spool_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
    /// `spool.max_bytes`
    pub spool_limit_bytes: u64,
}

/// The families, in the order of [`FAMILIES`].
#[derive(Clone, Copy)]
enum Family {
    Events,
    Recovered,
    Backlog,
    Delivered,
    Diverted,
    Oldest,
    Bytes,
    Limit,
}

const FAMILIES: [(&str, &str, MetricType); 8] = [
    (
        "cmc_bridge_events_total",
        "Events made durable, by status",
        MetricType::COUNTER,
    ),
    (
        "cmc_bridge_recovered_events",
        "Events found in the spool at start and not known to be in Kafka",
        MetricType::GAUGE,
    ),
    (
        "cmc_bridge_backlog_events",
        "Durable events that are not known to be in Kafka",
        MetricType::GAUGE,
    ),
    (
        "cmc_bridge_delivered_events_total",
        "Events committed in Kafka",
        MetricType::COUNTER,
    ),
    (
        "cmc_bridge_diverted_events_total",
        "Events that Kafka refused and that stand in the dead-letter topic instead",
        MetricType::COUNTER,
    ),
    (
        "cmc_bridge_oldest_event_timestamp_seconds",
        "When the oldest event of the backlog was received, Unix time; 0 without a backlog",
        MetricType::GAUGE,
    ),
    (
        "cmc_bridge_spool_bytes",
        "Written and not yet trimmed bytes of the spool",
        MetricType::GAUGE,
    ),
    (
        "cmc_bridge_spool_limit_bytes",
        "Bytes of the spool beyond which the stream's webhooks are refused",
        MetricType::GAUGE,
    ),
];

/// Collects the books of all streams that are served.
pub struct BooksCollector {
    streams: Arc<[StreamBooks]>,
    descriptions: Vec<Desc>,
}

impl BooksCollector {
    /// A collector to be registered once, with every stream that is served.
    ///
    /// # Errors
    /// Never: the names are constants that Prometheus accepts.
    pub fn new(streams: Arc<[StreamBooks]>) -> prometheus::Result<BooksCollector> {
        let descriptions = FAMILIES
            .iter()
            .map(|(name, help, _)| {
                let labels = match *name {
                    "cmc_bridge_events_total" => vec!["stream".to_owned(), "status".to_owned()],
                    _ => vec!["stream".to_owned()],
                };
                Desc::new((*name).to_owned(), (*help).to_owned(), labels, Default::default())
            })
            .collect::<prometheus::Result<_>>()?;
        Ok(BooksCollector {
            streams,
            descriptions,
        })
    }
}

impl Collector for BooksCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = FAMILIES.map(|(name, help, kind)| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        // No number is better than a wrong one: a log that is not open has none.
        let known = |entry: &&StreamBooks| (entry.log_state)() != LogState::NotOpen;
        for entry in self.streams.iter().filter(known) {
            let books = entry.books.snapshot();
            let stream = label("stream", entry.stream.name());
            // The label of `events_total` comes sorted by name, as the text format wants it.
            for (status, events) in entry.stream.statuses().iter().zip(books.accepted) {
                let labels = vec![label("status", status), stream.clone()];
                push(&mut families, Family::Events, labels, events as f64);
            }
            let oldest = books.oldest_micros.map_or(0.0, |micros| micros as f64 / 1e6);
            for (family, value) in [
                (Family::Recovered, books.recovered as f64),
                (Family::Backlog, books.backlog() as f64),
                (Family::Delivered, books.delivered as f64),
                (Family::Diverted, books.diverted as f64),
                (Family::Oldest, oldest),
                (Family::Bytes, (entry.spool_bytes)() as f64),
                (Family::Limit, entry.spool_limit_bytes as f64),
            ] {
                push(&mut families, family, vec![stream.clone()], value);
            }
        }
        families.into()
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn push(families: &mut [MetricFamily; 8], family: Family, labels: Vec<LabelPair>, value: f64) {
    let mut metric = Metric::from_label(labels);
    match FAMILIES[family as usize].2 {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        _ => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    families[family as usize].mut_metric().push(metric);
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::stream::Tally;

    fn collected(books: Arc<Books>, log_state: LogState) -> String {
        let registry = Registry::new();
        let books = StreamBooks {
            stream: Stream::Bounces,
            topic: "t".into(),
            service: Service::Enabled,
            books,
            log_state: Box::new(move || log_state),
            spool_bytes: Box::new(|| 4096),
            spool_limit_bytes: 1 << 32,
        };
        registry
            .register(Box::new(BooksCollector::new([books].into()).unwrap()))
            .unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn every_number_comes_from_one_snapshot() {
        let books = Arc::new(Books::default());
        books.opened(100, 90, Some(5_000_000));
        let mut tally = Tally::default();
        tally.count(Stream::Bounces, Some("2"));
        tally.count(Stream::Bounces, None);
        books.accepted(&tally, 7_000_000);
        books.advanced(95, 4, 1, Some(6_500_000));
        let text = collected(books, LogState::Full);
        for line in [
            "# TYPE cmc_bridge_events_total counter",
            "cmc_bridge_events_total{status=\"2\",stream=\"bounces\"} 1",
            "cmc_bridge_events_total{status=\"1\",stream=\"bounces\"} 0",
            "cmc_bridge_events_total{status=\"other\",stream=\"bounces\"} 1",
            "cmc_bridge_recovered_events{stream=\"bounces\"} 10",
            "cmc_bridge_delivered_events_total{stream=\"bounces\"} 4",
            "cmc_bridge_diverted_events_total{stream=\"bounces\"} 1",
            "cmc_bridge_backlog_events{stream=\"bounces\"} 7",
            "cmc_bridge_oldest_event_timestamp_seconds{stream=\"bounces\"} 6.5",
            "cmc_bridge_spool_bytes{stream=\"bounces\"} 4096",
            "cmc_bridge_spool_limit_bytes{stream=\"bounces\"} 4294967296",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn of_a_log_that_is_not_open_there_is_no_number() {
        let text = collected(Arc::default(), LogState::NotOpen);
        assert!(!text.contains("bounces"), "{text}");
    }
}
