//! A rate over the last quarter of an hour, as an SVG.

use std::fmt::{self, Write};

use super::escaped::Escaped;
use crate::{
    admin::rates::{EVERY, MOST_SAMPLES},
    human,
};

/// Where the curve is, in the units of the view box; left of it and below it stand the axes' labels.
const LEFT: f64 = 38.0;
const RIGHT: f64 = 338.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 74.0;

/// Writes the chart of (seconds ago, value) pairs, oldest first. `what` is said to those who can't see it.
pub fn write(out: &mut String, what: &str, points: &[(f64, f64)]) -> fmt::Result {
    let span = (EVERY * MOST_SAMPLES as u32).as_secs_f64();
    let most = points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let now = points.last().map_or(0.0, |(_, value)| *value);
    let top = round_up(most);
    write!(
        out,
        r#"<svg class="chart" role="img" viewBox="0 0 340 92"><title>{}: {} a second now, {} at most in the last 15 minutes</title>"#,
        Escaped(what),
        human::rate(now),
        human::rate(most)
    )?;
    let middle = (TOP + BOTTOM) / 2.0;
    write!(
        out,
        r#"<path class="grid" d="M{LEFT} {TOP}H{RIGHT}M{LEFT} {middle}H{RIGHT}"/><path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>"#
    )?;
    let spots: Vec<_> = points
        .iter()
        .map(|(ago, value)| {
            let x = RIGHT - (RIGHT - LEFT) * (ago / span).min(1.0);
            (x, BOTTOM - (BOTTOM - TOP) * value / top)
        })
        .collect();
    if let (Some(first), Some(last)) = (spots.first(), spots.last()) {
        let mut line = String::new();
        for (x, y) in &spots {
            write!(line, "{x:.1} {y:.1} ")?;
        }
        let line = line.trim_end();
        write!(
            out,
            r#"<path class="area" d="M{:.1} {BOTTOM}L{line} {:.1} {BOTTOM}Z"/><polyline class="line" points="{line}"/><circle class="now" cx="{:.1}" cy="{:.1}" r="2.5"/>"#,
            first.0, last.0, last.0, last.1
        )?;
    }
    let label = LEFT - 6.0;
    write!(
        out,
        r#"<text x="{label}" y="{}" text-anchor="end">{}</text><text x="{label}" y="{}" text-anchor="end">0</text>"#,
        TOP + 4.0,
        short(top),
        BOTTOM + 1.0
    )?;
    write!(
        out,
        r#"<text x="{LEFT}" y="89">15 min ago</text><text x="{RIGHT}" y="89" text-anchor="end">now</text></svg>"#
    )
}

/// The next round number, 1, 2 or 5 times a power of ten; 1 at least.
fn round_up(value: f64) -> f64 {
    let mut power = 1.0;
    loop {
        for digit in [1.0, 2.0, 5.0] {
            if digit * power >= value || !value.is_finite() {
                return digit * power;
            }
        }
        power *= 10.0;
    }
}

/// A round number in few characters.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e3 => format!("{}k", n / 1e3),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (most, top, label) in [
            (0.0, 1.0, "1"),
            (1.2, 2.0, "2"),
            (50.0, 50.0, "50"),
            (51.0, 100.0, "100"),
            (12_345.0, 20_000.0, "20k"),
            (1.1e6, 2e6, "2M"),
        ] {
            assert_eq!(round_up(most), top);
            assert_eq!(short(top), label);
        }
    }

    #[test]
    fn the_curve_stays_within_its_axes() {
        let mut svg = String::new();
        write(&mut svg, "a<b", &[(2000.0, 0.0), (450.0, 100.0), (0.0, 50.0)]).unwrap();
        assert!(
            svg.contains(r#"points="38.0 74.0 188.0 10.0 338.0 42.0""#),
            "{svg}"
        );
        assert!(
            svg.contains("<title>a&lt;b: 50 a second now, 100 at most"),
            "{svg}"
        );
        let mut empty = String::new();
        write(&mut empty, "nothing yet", &[]).unwrap();
        assert!(!empty.contains("polyline") && empty.contains("15 min ago"));
    }
}
