//! What happened in the last minutes: a ring of samples of the counters, and the differences between them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{Histogram, core::Metric};
use serde::Serialize;

use crate::metrics::{Outcome, Shortage};

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_secs(5);
/// The samples that are kept: a quarter of an hour.
pub const MOST_SAMPLES: usize = 180;

/// Counters of the process at one instant. None of them ever falls, except for `spool_bytes`.
#[derive(Clone, Debug)]
pub struct CounterSample {
    pub at: Instant,
    /// Requests, at [`Outcome::index`].
    pub outcomes: [u64; Outcome::ALL.len()],
    /// Requests refused for want of something, at the [`Shortage`].
    pub shortages: [u64; Shortage::ALL.len()],
    pub acknowledgements: Buckets,
    pub log_lines_dropped: u64,
    /// In the order of the books.
    pub streams: Vec<StreamSample>,
}

/// One stream's part of a sample.
#[derive(Clone, Debug, Default)]
pub struct StreamSample {
    /// Events made durable.
    pub accepted: u64,
    /// Events committed in Kafka.
    pub delivered: u64,
    /// Events that Kafka refused.
    pub diverted: u64,
    pub spool_bytes: u64,
    pub syncs: Buckets,
}

impl CounterSample {
    /// Without a single event.
    pub fn empty(at: Instant) -> CounterSample {
        CounterSample {
            at,
            outcomes: Default::default(),
            shortages: Default::default(),
            acknowledgements: Buckets::default(),
            log_lines_dropped: 0,
            streams: Vec::new(),
        }
    }

    /// Requests with this outcome since an earlier sample.
    pub fn requests(&self, outcome: Outcome, since: &CounterSample) -> u64 {
        let at = outcome.index();
        self.outcomes[at].saturating_sub(since.outcomes[at])
    }

    /// Requests that this shortage refused since an earlier sample.
    pub fn short_of(&self, shortage: Shortage, since: &CounterSample) -> u64 {
        let at = shortage as usize;
        self.shortages[at].saturating_sub(since.shortages[at])
    }

    fn accepted(&self) -> u64 {
        self.outcomes[Outcome::Accepted.index()]
    }

    fn refused(&self) -> u64 {
        self.outcomes.iter().sum::<u64>() - self.accepted()
    }

    fn delivered(&self) -> u64 {
        self.streams.iter().map(|stream| stream.delivered).sum()
    }
}

/// The counts of a histogram: for each upper bound, the observations up to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, u64)>, u64);

/// The median and the 99th percentile, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
}

impl Buckets {
    pub fn of(histogram: &Histogram) -> Buckets {
        let metric = histogram.metric();
        let counts = metric.get_histogram();
        let bucket = counts.get_bucket().iter();
        Buckets(
            bucket
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .collect(),
            counts.get_sample_count(),
        )
    }

    /// The observations since an earlier sample.
    pub fn since(&self, earlier: &Buckets) -> Buckets {
        let before = |at: usize| earlier.0.get(at).map_or(0, |(_, count)| *count);
        let bucket = self.0.iter().enumerate();
        let bucket = bucket.map(|(at, (bound, count))| (*bound, count.saturating_sub(before(at))));
        Buckets(bucket.collect(), self.1.saturating_sub(earlier.1))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.1
    }

    /// How many are above a bound of the histogram.
    pub fn above(&self, bound: f64) -> u64 {
        let up_to = self.0.iter().find(|(upper, _)| *upper >= bound);
        up_to.map_or(0, |(_, count)| self.1.saturating_sub(*count))
    }

    /// The quantiles, interpolated as Prometheus does; `None` without an observation.
    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.1 > 0).then(|| Quantiles {
            count: self.1,
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
        })
    }

    fn quantile(&self, quantile: f64) -> f64 {
        let rank = self.1 as f64 * quantile;
        let (mut lower, mut below) = (0.0, 0);
        for (upper, count) in &self.0 {
            if *count as f64 >= rank {
                let inside = (count - below).max(1) as f64;
                return lower + (upper - lower) * (rank - below as f64) / inside;
            }
            (lower, below) = (*upper, *count);
        }
        lower
    }
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

    /// The newest sample that is at least so old, or the oldest one.
    pub fn before(&self, now: Instant, window: Duration) -> Option<CounterSample> {
        let samples = self.0.lock();
        let old = |sample: &&CounterSample| now.saturating_duration_since(sample.at) >= window;
        samples.iter().rev().find(old).or(samples.front()).cloned()
    }

    /// The rates between each two samples, oldest first.
    pub fn rates(&self, now: Instant) -> Vec<Rates> {
        let samples = self.0.lock();
        samples
            .iter()
            .zip(samples.iter().skip(1))
            .map(|(from, to)| {
                let rate = |of: fn(&CounterSample) -> u64| per_second(of(from), of(to), to.at - from.at);
                Rates {
                    seconds_ago: now.saturating_duration_since(to.at).as_secs_f64(),
                    accepted: rate(CounterSample::accepted),
                    refused: rate(CounterSample::refused),
                    delivered: rate(CounterSample::delivered),
                }
            })
            .collect()
    }
}

/// The rate at which a counter rose.
pub fn per_second(from: u64, to: u64, time: Duration) -> f64 {
    to.saturating_sub(from) as f64 / time.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    fn sample(at: Instant, accepted: u64) -> CounterSample {
        let mut sample = CounterSample::empty(at);
        sample.outcomes[Outcome::Accepted.index()] = accepted;
        sample.streams.push(StreamSample {
            delivered: accepted * 10,
            ..StreamSample::default()
        });
        sample
    }

    #[test]
    fn rates_count_by_the_time_that_passed() {
        let history = RateHistory::default();
        let start = Instant::now();
        let sample = |seconds, accepted| sample(start + Duration::from_secs(seconds), accepted);
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

    #[test]
    fn a_window_begins_at_the_newest_sample_that_is_old_enough() {
        let history = RateHistory::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let minute = |now| Some(history.before(at(now), Duration::from_secs(60))?.outcomes[0]);
        assert_eq!(minute(0), None);
        for seconds in [0, 5, 10, 15] {
            history.push(sample(at(seconds), seconds));
        }
        assert_eq!([minute(20), minute(64), minute(71)], [Some(0), Some(0), Some(10)]);
    }

    #[test]
    fn quantiles_and_what_is_above_a_bound() {
        let histogram = |values: &[f64]| {
            let options = HistogramOpts::new("h", "h").buckets(vec![0.1, 0.25, 1.0]);
            let histogram = Histogram::with_opts(options).unwrap();
            values.iter().for_each(|value| histogram.observe(*value));
            Buckets::of(&histogram)
        };
        let before = histogram(&[9.0; 50]);
        assert_eq!(Buckets::default().quantiles(), None);
        assert_eq!(before.since(&before).quantiles(), None);
        let mut values = vec![9.0; 50];
        values.extend([0.05; 90]);
        values.extend([0.5; 9]);
        values.push(20.0);
        let new = histogram(&values).since(&before);
        assert_eq!((new.count(), new.above(0.25), new.above(1.0)), (100, 10, 1));
        let found = new.quantiles().unwrap();
        assert!((found.p50 - 0.1 * 50.0 / 90.0).abs() < 1e-9, "{found:?}");
        assert!((found.p99 - 1.0).abs() < 1e-9, "{found:?}");
        // Beyond the last bound, only that bound is known.
        assert_eq!(before.quantiles().unwrap().p50, 1.0);
    }
}
