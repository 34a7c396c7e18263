//! The options that choose dead letters.

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::{dead_letter::Reason, replay::LetterFilter};

/// Chooses dead letters.
#[derive(Args, Clone, Debug)]
pub struct FilterArgs {
    /// Only letters with this reason; may be repeated
    #[arg(long, value_delimiter = ',', hide_possible_values = true, value_parser = reason())]
    reason: Vec<Reason>,
    /// Only letters received since then: an RFC 3339 time, a date (UTC), or an age such as 90m, 36h or 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
}

impl FilterArgs {
    /// The filter that the options describe.
    pub fn filter(&self) -> LetterFilter {
        LetterFilter {
            reasons: self.reason.clone(),
            since_micros: self.since.map(Timestamp::as_microsecond),
        }
    }
}

fn reason() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::name))
        .try_map(|name| Reason::from_name(&name).ok_or("not a reason of dead letters"))
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<Date>()
        && let Ok(time) = TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0))
    {
        return Ok(time);
    }
    let seconds = |text: &str| -> Option<i64> {
        let (at, unit) = text.char_indices().next_back()?;
        let unit = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        i64::from(text[..at].parse::<u32>().ok()?).checked_mul(unit)
    };
    seconds(text)
        .and_then(|seconds| Timestamp::from_second(Timestamp::now().as_second() - seconds).ok())
        .ok_or_else(|| "give a time such as 2026-10-01T00:15:02Z, 2026-10-01 or 36h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |text| since(text).unwrap().to_string();
        assert_eq!(at("2026-10-01T09:15:02+09:00"), "2026-10-01T00:15:02Z");
        assert_eq!(at("2026-10-01"), "2026-10-01T00:00:00Z");
        let now = Timestamp::now().as_second();
        for (text, seconds) in [("5s", 5), ("90m", 5400), ("36h", 129_600), ("7d", 604_800)] {
            let ago = now - since(text).unwrap().as_second();
            assert!((seconds - 5..=seconds).contains(&ago), "{text}: {ago}");
        }
        for text in ["", "d", "7", "-7d", "7x", "yesterday", "十"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
