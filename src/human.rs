//! Sizes, durations, times and counts as people read them.

use std::time::Duration;

use jiff::Timestamp;

/// A size in bytes to one decimal: `512 B`, `4.0 KiB`, `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1023.95 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

/// A size in bytes, not rounded, in the largest unit that divides it: `8 MiB`, `1000001 bytes`.
pub fn exact_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (name, unit) in units {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

/// A duration in whole milliseconds, in the largest unit that divides it: `15 min`, `1500 ms`.
pub fn exact_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0 s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{} h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{} min", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{} s", millis / 1000),
        _ => format!("{millis} ms"),
    }
}

/// A measured duration to two or three digits: `1.5 ms`, `23 ms`.
pub fn latency(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// An age in two units: `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 2 h`.
pub fn age(seconds: u64) -> String {
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// An age in its largest unit: `3 min`.
pub fn rough_age(seconds: u64) -> String {
    let text = age(seconds);
    text.split_inclusive(' ')
        .take(2)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// `1,234,567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What is wrong and what to do, as sentences without the last full stop.
pub fn with_cure(cause: &str, cure: &str) -> String {
    match cure {
        "" => cause.to_owned(),
        _ => format!("{cause}. {cure}"),
    }
}

/// `0.2`, `12`, `1,234`
pub fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        count(rate.round() as u64)
    }
}

/// A time in microseconds since the Unix epoch as RFC 3339, UTC, whole seconds. A time beyond the year 9999 stays a number of
/// seconds.
pub fn time(unix_micros: i64) -> String {
    Timestamp::from_microsecond(unix_micros).map_or_else(
        |_| (unix_micros / 1_000_000).to_string(),
        |time| format!("{time:.0}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(
            [0, 1023, 1024, 1 << 32, u64::MAX].map(size),
            ["0 B", "1023 B", "1.0 KiB", "4.0 GiB", "16777216.0 TiB"]
        );
        assert_eq!([8 << 20, 1_000_000].map(exact_size), ["8 MiB", "1000000 bytes"]);
    }

    #[test]
    fn durations() {
        let exact = [0, 900_000, 1500].map(|millis| exact_duration(Duration::from_millis(millis)));
        assert_eq!(exact, ["0 s", "15 min", "1500 ms"]);
        let latencies = [7, 1_540, 23_400, 2_340_000].map(|micros| latency(Duration::from_micros(micros)));
        assert_eq!(latencies, ["7 µs", "1.5 ms", "23 ms", "2.3 s"]);
        assert_eq!(
            [0, 59, 60, 185, 3600, 7830, 86_400, 360_000].map(age),
            [
                "0 s",
                "59 s",
                "1 min",
                "3 min 5 s",
                "1 h",
                "2 h 10 min",
                "1 d",
                "4 d 4 h"
            ]
        );
        assert_eq!([7, 185, 360_000].map(rough_age), ["7 s", "3 min", "4 d"]);
    }

    #[test]
    fn counts_and_rates() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.2, 9.94, 9.96, 1234.4].map(rate),
            ["0", "0.2", "9.9", "10", "1,234"]
        );
    }

    #[test]
    fn times() {
        assert_eq!(time(1_760_000_000_999_999), "2025-10-09T08:53:20Z");
        assert_eq!(time(253_402_300_799_000_000), "253402300799");
    }
}
