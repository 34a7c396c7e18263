//! Texts of the page: escaped, and numbers as people read them.

use std::fmt::{self, Display, Write};

use crate::plain::steers;

/// A text from elsewhere, harmless in content and in attributes of HTML.
pub struct Escaped<'t>(pub &'t str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' => f.write_char(c)?,
                // Characters that no document may hold, or that change how others are shown.
                c if steers(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// `1,234,567`
pub fn grouped(number: u64) -> String {
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

/// `0.2`, `12`, `1,234`
pub fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 {
        format!("{rate:.1}")
    } else {
        grouped(rate.round() as u64)
    }
}

/// `512 B`, `4.0 KiB`, `1.2 GiB`
pub fn bytes(bytes: u64) -> String {
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

/// `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 2 h`
pub fn duration(seconds: u64) -> String {
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

/// A duration in its largest unit.
pub fn roughly(seconds: u64) -> String {
    let text = duration(seconds);
    text.split_inclusive(' ')
        .take(2)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_read_them() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0.0, 0.2, 9.94, 9.96, 1234.4].map(rate),
            ["0", "0.2", "9.9", "10", "1,234"]
        );
        assert_eq!(
            [0, 1023, 1024, 1 << 32, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "4.0 GiB", "16777216.0 TiB"]
        );
        assert_eq!(
            [0, 59, 60, 185, 3600, 7830, 86_400, 360_000].map(duration),
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
    }

    #[test]
    fn an_age_needs_one_unit() {
        assert_eq!([7, 185, 360_000].map(roughly), ["7 s", "3 min", "4 d"]);
    }

    #[test]
    fn nothing_gets_out_of_a_text() {
        assert_eq!(
            Escaped("<a href='x' id=\"y\">&amp;\0\u{1b}[31m\u{85}\u{ffff}\n").to_string(),
            "&lt;a href=&#39;x&#39; id=&quot;y&quot;&gt;&amp;amp;\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}\n"
        );
    }
}
