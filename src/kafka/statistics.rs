//! librdkafka's statistics, which it reports every few seconds, added up over all producers that a lane has had.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::Deserialize;
use tracing::debug;

use crate::metrics::KafkaSums;

/// Adds one client's totals to the stream's counters.
pub struct Statistics {
    sums: KafkaSums,
    /// The client's totals in the last report.
    seen: Mutex<Totals>,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    requests: u64,
    bytes: u64,
    request_errors: u64,
}

/// The part of librdkafka's statistics that is used.
#[derive(Deserialize)]
struct Report {
    tx: u64,
    tx_bytes: u64,
    #[serde(default)]
    brokers: BTreeMap<String, BrokerReport>,
}

#[derive(Deserialize)]
struct BrokerReport {
    txerrs: u64,
    txretries: u64,
    req_timeouts: u64,
}

impl Statistics {
    /// Statistics of a new client.
    pub fn new(sums: KafkaSums) -> Statistics {
        Statistics {
            sums,
            seen: Mutex::default(),
        }
    }

    /// Takes a report, as librdkafka's JSON.
    pub fn take(&self, json: &[u8]) {
        let report: Report = match serde_json::from_slice(json) {
            Ok(report) => report,
            Err(error) => return debug!(%error, "librdkafka's statistics can't be read"),
        };
        let now = Totals {
            requests: report.tx,
            bytes: report.tx_bytes,
            request_errors: report
                .brokers
                .values()
                .map(|broker| broker.txerrs + broker.txretries + broker.req_timeouts)
                .sum(),
        };
        let mut seen = self.seen.lock();
        let before = std::mem::replace(&mut *seen, now);
        // A broker that leaves the cluster takes its totals with it.
        self.sums
            .requests
            .inc_by(now.requests.saturating_sub(before.requests));
        self.sums.bytes.inc_by(now.bytes.saturating_sub(before.bytes));
        self.sums
            .request_errors
            .inc_by(now.request_errors.saturating_sub(before.request_errors));
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::{metrics::Metrics, stream::Stream};

    pub fn sums() -> KafkaSums {
        let metrics = Metrics::new(&prometheus::Registry::new(), &[], []).unwrap();
        metrics.for_stream(Stream::Bounces).kafka
    }

    #[test]
    fn totals_are_added_up_over_clients() {
        let sums = sums();
        let report = |tx: u64, errors: u64| {
            format!(
                r#"{{"name":"x","tx":{tx},"tx_bytes":{},"brokers":{{"a":{{"txerrs":{errors},"txretries":1,"req_timeouts":0,"rtt":{{}}}}}}}}"#,
                tx * 100
            )
        };
        for client in 1..=2u64 {
            let statistics = Statistics::new(sums.clone());
            statistics.take(report(3, 0).as_bytes());
            statistics.take(report(5, 2).as_bytes());
            statistics.take(b"not JSON");
            assert_eq!(sums.requests.get(), client * 5);
            assert_eq!(sums.bytes.get(), client * 500);
            assert_eq!(sums.request_errors.get(), client * 3);
        }
    }
}
