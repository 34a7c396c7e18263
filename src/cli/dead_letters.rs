//! `cmc-bridge dead-letters`: what could not go on, listed and tried again.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`ls`] | dead-letters ls |
//! | [`replay`] | dead-letters replay |

mod ls;
mod replay;

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use super::output::Output;
use crate::{
    dead_letter::{Letter, Reason, Scope},
    exit::Exit,
    plain::visible,
    replay::{LetterFilter, assembly::RecordPlace},
};

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List what is on the dead-letter topic, with a sum by reason
    #[command(after_help = ls::AFTER_HELP)]
    Ls(ls::LsArgs),
    /// Try dead letters again, and deliver what is understood by now, exactly once
    #[command(after_help = replay::AFTER_HELP)]
    Replay(replay::ReplayArgs),
}

/// Runs the command.
pub fn run(command: DeadLettersCommand, out: &mut Output) -> Result<(), Exit> {
    match command {
        DeadLettersCommand::Ls(args) => ls::run(&args, out),
        DeadLettersCommand::Replay(args) => replay::run(&args, out),
    }
}

/// Which letters.
#[derive(Args, Clone, Debug)]
pub struct FilterArgs {
    /// Only letters of this reason; may be repeated
    #[arg(long, value_delimiter = ',', hide_possible_values = true, value_parser = reason())]
    reason: Vec<Reason>,
    /// Only letters received since: RFC 3339, a date (UTC), or so long ago, as 90m, 36h, 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
}

impl FilterArgs {
    fn filter(&self) -> LetterFilter {
        LetterFilter {
            reasons: self.reason.clone(),
            since_micros: self.since.map(Timestamp::as_microsecond),
        }
    }
}

fn reason() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::name))
        .try_map(|name| Reason::from_name(&name).ok_or("no reason of a dead letter"))
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
        .ok_or_else(|| "no time like 2026-10-01T00:15:02Z, 2026-10-01 or 36h".to_owned())
}

/// A letter in a line: where, when, why, of what.
fn line(place: RecordPlace, letter: &Letter) -> String {
    let RecordPlace { partition, offset } = place;
    let received = Timestamp::from_microsecond(letter.received_at_micros);
    let received = received.map_or_else(|_| "?".to_owned(), |time| format!("{time:.0}"));
    let text = |text: &Option<String>| visible(text.as_deref().unwrap_or("-"));
    let (event_type, composition) = (text(&letter.event_type), text(&letter.server_composition));
    let what = match letter.reason.scope() {
        Scope::Broker => format!("a record of {}", text(&letter.topic)),
        Scope::Body => format!("{event_type} of {composition}"),
        Scope::Element => {
            let index = letter
                .index
                .map_or_else(String::new, |index| format!("[{index}]"));
            format!("{event_type} of {composition}: {}{index}", text(&letter.member))
        }
    };
    let (reason, bytes) = (letter.reason, letter.value.len());
    format!("{partition}/{offset}  {received}  {reason}  {what}  {bytes} bytes")
}

/// The name of a letter's place where the letter itself can't be read.
fn unreadable(place: RecordPlace) -> String {
    format!("{}/{}", place.partition, place.offset)
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
