//! Percentiles.

use std::time::Duration;

/// The value that `percent` of the durations don't exceed; `sorted` is in ascending order.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        for (percent, millis) in [(50, 100), (99, 198), (100, 200), (0, 1)] {
            assert_eq!(percentile(&times, percent), Duration::from_millis(millis));
        }
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
