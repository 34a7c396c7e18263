//! `dead-letters ls`: reads the whole topic, as a consumer of its own that commits nothing.

use std::{collections::BTreeMap, io::Write, sync::atomic::Ordering};

use clap::Args;
use serde_json::json;

use super::{FilterArgs, line, unreadable};
use crate::{
    cli::{ConfigArgs, output::Output, records::push_value, tap::stop_flag},
    dead_letter::{Letter, rfc3339_micros},
    exit::Exit,
    kafka::{broker::BrokerError, letter_reader::LetterReader},
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

A line has: partition/offset, when it was received, the reason, what it is of, its bytes. What the letters hold is shown with
--show only: it has addresses and subjects. Letters that were replayed are listed, too, for they stay on the topic. With ACLs
it needs READ on the dead-letter topic.";

/// The arguments of `dead-letters ls`.
#[derive(Args, Clone, Debug)]
pub struct LsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Print what the letters hold, too
    #[arg(long)]
    show: bool,
    /// One JSON object a line: each letter, and at last the sums
    #[arg(long)]
    json: bool,
}

/// Lists the letters.
///
/// # Errors
/// 69: Kafka can't be read.
pub fn run(args: &LsArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    let topic = &config.stream(Stream::DeadLetters).topic;
    let filter = args.filter.filter();
    let stop = stop_flag()?;
    let unavailable = |error: BrokerError| Exit::Unavailable(error.message);
    let group = ReplayOptions::default_group(&config.kafka);
    let mut source = LetterReader::open(&config.kafka, &group, topic).map_err(unavailable)?;
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

fn print(args: &LsArgs, place: RecordPlace, letter: &Letter, out: &mut Output) -> Result<(), Exit> {
    if !args.json {
        writeln!(out, "{}", line(place, letter))?;
        if args.show {
            writeln!(out, "  {}", visible(&String::from_utf8_lossy(&letter.value)))?;
        }
        return Ok(());
    }
    let told = json!({
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
    let mut text = told.to_string().into_bytes();
    if args.show {
        // Before the closing brace, for a value that is JSON stays as it is.
        text.pop();
        text.extend_from_slice(b",\"value\":");
        push_value(Some(&letter.value), &mut text);
        text.push(b'}');
    }
    text.push(b'\n');
    Ok(out.write_all(&text)?)
}
