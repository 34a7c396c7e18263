//! The rates of the last minutes: a ring of samples of the counters, and the rates between them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_secs(5);
/// The samples that are kept: a quarter of an hour.
pub const MOST_SAMPLES: usize = 180;

/// Counters of the process at one instant. None of them ever falls.
#[derive(Clone, Copy, Debug)]
pub struct CounterSample {
    pub at: Instant,
    /// Webhooks answered with 200.
    pub accepted: u64,
    /// Webhooks with another outcome.
    pub refused: u64,
    /// Events committed in Kafka.
    pub delivered: u64,
}

/// Averages per second between two samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// How long ago the time between the two ended.
    pub seconds_ago: f64,
    pub accepted: f64,
    pub refused: f64,
    pub delivered: f64,
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub struct RateHistory(Mutex<VecDeque<CounterSample>>);

impl RateHistory {
    /// Adds a sample; the oldest goes when there are too many.
    pub fn push(&self, sample: CounterSample) {
        let mut samples = self.0.lock();
        if samples.len() == MOST_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The rates between each two samples, oldest first.
    pub fn rates(&self, now: Instant) -> Vec<Rates> {
        let samples = self.0.lock();
        samples
            .iter()
            .zip(samples.iter().skip(1))
            .map(|(from, to)| {
                let seconds = to.at.duration_since(from.at).as_secs_f64().max(0.001);
                let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
                Rates {
                    seconds_ago: now.saturating_duration_since(to.at).as_secs_f64(),
                    accepted: rate(from.accepted, to.accepted),
                    refused: rate(from.refused, to.refused),
                    delivered: rate(from.delivered, to.delivered),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_by_the_time_that_passed() {
        let history = RateHistory::default();
        let start = Instant::now();
        let sample = |seconds, accepted| CounterSample {
            at: start + Duration::from_secs(seconds),
            accepted,
            refused: 0,
            delivered: accepted * 10,
        };
        assert!(history.rates(start).is_empty());
        history.push(sample(0, 100));
        assert!(history.rates(start).is_empty());
        // The process was paused before the second one.
        history.push(sample(50, 200));
        history.push(sample(55, 200));
        let rates = history.rates(start + Duration::from_secs(56));
        let found: Vec<_> = rates
            .iter()
            .map(|r| (r.seconds_ago, r.accepted, r.refused, r.delivered))
            .collect();
        assert_eq!(found, [(6.0, 2.0, 0.0, 20.0), (1.0, 0.0, 0.0, 0.0)]);
        for second in 0..1000 {
            history.push(sample(60 + second, 200));
        }
        assert_eq!(history.rates(start).len(), MOST_SAMPLES - 1);
    }
}
