//! Durations and times as people read them, and percentiles.

use std::time::Duration;

use jiff::Timestamp;

/// The value that `percent` of the durations don't exceed; `sorted` is in ascending order.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// A duration with two or three digits.
pub fn short(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// A time in RFC 3339, UTC, whole seconds; `?` when there is none.
pub fn time(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"))
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

    #[test]
    fn durations_are_short() {
        let cases = [
            (7, "7 µs"),
            (1_540, "1.5 ms"),
            (23_400, "23 ms"),
            (2_340_000, "2.3 s"),
        ];
        for (micros, text) in cases {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(time(1_760_000_000_999_999), "2025-10-09T08:53:20Z");
        assert_eq!(time(i64::MIN), "?");
    }
}
