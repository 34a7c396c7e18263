//! Parses single values of files and variables into Rust types, and shows values in messages.
//!
//! Values from the environment are always text, so each parser accepts text as well as the file's own type.

use std::{net::SocketAddr, time::Duration};

use ::config::{Value, ValueKind};
use jiff::tz::TimeZone;

/// The longest value that a message quotes.
const MAX_SHOWN: usize = 60;

pub(super) fn text(kind: &ValueKind) -> Option<&str> {
    match kind {
        ValueKind::String(text) => Some(text),
        _ => None,
    }
}

pub(super) fn boolean(kind: &ValueKind) -> Option<bool> {
    match kind {
        ValueKind::Boolean(value) => Some(*value),
        ValueKind::String(text) => match text.trim() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn number(kind: &ValueKind) -> Option<u64> {
    match kind {
        ValueKind::I64(value) => u64::try_from(*value).ok(),
        ValueKind::String(text) => digits(text.trim()),
        _ => None,
    }
}

/// Bytes: a number, or a number with a unit in any case: `KiB`, `MiB`, `GiB`, `TiB` by 1024, `k`, `M`, `G`, `T` (with
/// or without `B`) by 1000.
pub(super) fn size(kind: &ValueKind) -> Option<u64> {
    let ValueKind::String(text) = kind else {
        return number(kind);
    };
    let (count, unit) = split_unit(text)?;
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "t" | "tb" => 1000 * 1000 * 1000 * 1000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return None,
    };
    digits(count)?.checked_mul(unit)
}

/// A duration: a number of seconds, whole or not, or a whole number with `ms`, `s`, `m` or `h`.
pub(super) fn duration(kind: &ValueKind) -> Option<Duration> {
    match kind {
        ValueKind::I64(seconds) => Some(Duration::from_secs(u64::try_from(*seconds).ok()?)),
        ValueKind::Float(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
        ValueKind::String(text) => {
            let (count, unit) = split_unit(text)?;
            if unit.is_empty() && count.contains('.') {
                return Duration::try_from_secs_f64(count.parse().ok()?).ok();
            }
            let count = digits(count)?;
            match unit {
                "ms" => Some(Duration::from_millis(count)),
                "" | "s" => Some(Duration::from_secs(count)),
                "m" => Some(Duration::from_secs(count.checked_mul(60)?)),
                "h" => Some(Duration::from_secs(count.checked_mul(3600)?)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The HTTP status of malformed webhooks: a success that may have a body, or a client error.
pub(super) fn status(kind: &ValueKind) -> Option<u16> {
    let status = number(kind)?;
    let is_fitting = matches!(status, 200..=202 | 400..=499);
    u16::try_from(status).ok().filter(|_| is_fitting)
}

/// An IP address and a port.
pub(super) fn address(kind: &ValueKind) -> Option<SocketAddr> {
    text(kind)?.trim().parse().ok()
}

/// A time zone by its IANA name.
pub(super) fn time_zone(kind: &ValueKind) -> Option<TimeZone> {
    TimeZone::get(text(kind)?.trim()).ok()
}

/// A list: an array of texts, or one text with commas.
pub(super) fn list(kind: &ValueKind) -> Option<Vec<String>> {
    match kind {
        ValueKind::String(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(items.map(str::to_owned).collect())
        }
        ValueKind::Array(items) => items
            .iter()
            .map(|item| text(&item.kind).map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// `"8 MiB"` → `("8", "MiB")`.
fn split_unit(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim_start()))
}

/// Digits only: no sign, no white space.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// A value as a message quotes it, on one line.
pub(super) fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => quoted(text),
        ValueKind::Array(_) => "a list".to_owned(),
        ValueKind::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// Text as a message quotes it, on one line.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let accepted = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("8MiB", 8 << 20),
            ("8 mib", 8 << 20),
            ("512KiB", 512 << 10),
            ("512Ki", 512 << 10),
            ("4GiB", 4 << 30),
            ("1TiB", 1 << 40),
            ("10k", 10_000),
            ("10kB", 10_000),
            ("3M", 3_000_000),
            ("2G", 2_000_000_000),
        ];
        for (text, bytes) in accepted {
            assert_eq!(size(&text.into()), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "+1",
            "1.5MiB",
            "8 Mb!",
            "1 1",
            "99999999999TiB",
            "1e3",
        ] {
            assert_eq!(size(&text.into()), None, "{text}");
        }
        assert_eq!(size(&ValueKind::I64(7)), Some(7));
        assert_eq!(size(&ValueKind::I64(-7)), None);
        assert_eq!(size(&ValueKind::Float(1.5)), None);
    }

    #[test]
    fn durations() {
        let accepted = [
            ("0", 0),
            ("5", 5000),
            ("0.5", 500),
            ("500ms", 500),
            ("5s", 5000),
            ("5 s", 5000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ];
        for (text, millis) in accepted {
            assert_eq!(
                duration(&text.into()),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1s",
            "5S",
            "5d",
            "1m30s",
            "0.5m",
            "1.2.3",
            "99999999999999999999h",
        ] {
            assert_eq!(duration(&text.into()), None, "{text}");
        }
        assert_eq!(duration(&ValueKind::I64(3)), Some(Duration::from_secs(3)));
        assert_eq!(
            duration(&ValueKind::Float(0.25)),
            Some(Duration::from_millis(250))
        );
        for seconds in [-1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(duration(&ValueKind::Float(seconds)), None, "{seconds}");
        }
    }

    #[test]
    fn quotes_fit_on_a_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert!(quoted(&"é".repeat(100)).ends_with('…'));
    }
}
