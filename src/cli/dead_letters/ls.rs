//! `dead-letters ls`: reads the whole topic with a consumer that commits nothing.

use std::{collections::BTreeMap, io::Write, sync::atomic::Ordering};

use clap::Args;
use serde_json::json;

use super::{
    filter::FilterArgs,
    line::{line, unreadable},
};
use crate::{
    cli::{config_args::ConfigArgs, exit::Exit, output::Output, records::push_value, signals::stop_flag},
    dead_letter::{Letter, rfc3339_micros},
    kafka::{broker::BrokerError, range_reader::RangeReader},
    plain::visible,
    replay::{
        ReplayOptions,
        assembly::{Assembled, Assembly, ReadLetter, RecordPlace},
    },
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge dead-letters ls
  cmc-bridge dead-letters ls --since 24h --reason too_many_events --show
  cmc-bridge dead-letters ls --json | jq -r 'select(.kind == \"letter\") | .reason' | sort | uniq -c

A line has partition/offset, the time of receipt, the reason, what the letter is, and its size. Contents, which include
addresses and subjects, are printed only with --show. Replayed letters stay on the topic, so they are listed too. With ACLs
it needs READ on the dead-letter topic.";

/// The arguments of `dead-letters ls`.
#[derive(Args, Clone, Debug)]
pub struct LetterLsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Also print the contents of the letters
    #[arg(long)]
    show: bool,
    /// Print one JSON object per line: each letter, then the totals
    #[arg(long)]
    json: bool,
}

/// Lists the letters.
///
/// # Errors
/// 69: Kafka can't be read. 78: the configuration is refused.
pub fn run(args: &LetterLsArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    let topic = &config.stream(Stream::DeadLetters).topic;
    let filter = args.filter.filter();
    let stop = stop_flag()?;
    let unavailable = |error: BrokerError| Exit::Unavailable(error.to_string());
    let group = ReplayOptions::default_group(&config.kafka);
    let mut source = RangeReader::open(&config.kafka, Stream::DeadLetters, "replay", &group, topic)
        .map_err(unavailable)?;
    let mut ranges = source.bounds().map_err(unavailable)?;
    ranges.retain(|_, (first, end)| first < end);
    source.assign(&ranges).map_err(unavailable)?;
    let mut assembly = Assembly::default();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut incomplete = 0;
    while !source.at_end() && !stop.load(Ordering::Relaxed) && !out.closed() {
        let Some(record) = source.poll().map_err(unavailable)? else {
            continue;
        };
        let place = RecordPlace::of(&record);
        let (found, given_up) = assembly.take(&record);
        incomplete += given_up.len();
        let Assembled::Letter(ReadLetter { places, letter }) = found else {
            continue;
        };
        let place = places.first().copied().unwrap_or(place);
        match *letter {
            Ok(letter) if filter.passes(&letter) => {
                *sums.entry(letter.reason.name()).or_default() += 1;
                print(args, place, &letter, out)?;
            }
            Ok(_) => {}
            Err(error) => {
                *sums.entry("unreadable").or_default() += 1;
                match args.json {
                    true => writeln!(
                        out,
                        "{}",
                        json!({ "kind": "unreadable", "partition": place.partition, "offset": place.offset,
                            "problem": error.to_string() })
                    )?,
                    false => writeln!(out, "{}  unreadable  {error}", unreadable(place))?,
                }
            }
        }
    }
    incomplete += assembly.incomplete();
    let letters: u64 = sums.values().sum();
    if args.json {
        let sums = json!({ "kind": "sums", "letters": letters, "reasons": sums, "incomplete": incomplete });
        writeln!(out, "{sums}")?;
    } else {
        writeln!(out, "letters on {topic}: {letters}")?;
        for (reason, count) in sums {
            writeln!(out, "  {reason}: {count}")?;
        }
        if incomplete > 0 {
            writeln!(out, "letters without all their parts: {incomplete}")?;
        }
    }
    Ok(out.flush()?)
}

fn print(args: &LetterLsArgs, place: RecordPlace, letter: &Letter, out: &mut Output) -> Result<(), Exit> {
    if !args.json {
        writeln!(out, "{}", line(place, letter))?;
        if args.show {
            writeln!(out, "  {}", visible(&String::from_utf8_lossy(&letter.value)))?;
        }
        return Ok(());
    }
    let fields = json!({
        "kind": "letter",
        "partition": place.partition,
        "offset": place.offset,
        "received_at": rfc3339_micros(letter.received_at_micros),
        "reason": letter.reason.name(),
        "scope": letter.reason.scope().name(),
        "at_byte": letter.offset,
        "event_type": letter.event_type,
        "server_composition": letter.server_composition,
        "member": letter.member,
        "index": letter.index,
        "path": letter.path,
        "content_type": letter.content_type,
        "topic": letter.topic,
        "masked": letter.masked,
        "bytes": letter.value.len(),
    });
    let mut text = fields.to_string().into_bytes();
    if args.show {
        // Inserted before the closing brace as it is: a JSON value must not be parsed and written again.
        text.pop();
        text.extend_from_slice(b",\"value\":");
        push_value(Some(&letter.value), &mut text);
        text.push(b'}');
    }
    text.push(b'\n');
    Ok(out.write_all(&text)?)
}
