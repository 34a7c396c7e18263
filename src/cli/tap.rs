//! `cmc-bridge tap`: prints the events of the topics as they come.
//!
//! It is in nobody's way: a consumer of its own that joins no group and commits nothing, with the Kafka settings of the
//! configuration. Only committed records are printed, as a consumer should see them.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Args, ValueEnum};
use rdkafka::{Message, message::BorrowedMessage};
use serde_json::{Map, Value};
use tokio::runtime::Runtime;

use super::{
    ConfigArgs,
    output::Output,
    records::{self, Form},
    serve::stop_signals,
};
use crate::{
    config::Config,
    exit::Exit,
    kafka::{
        broker::BrokerError,
        tap::{Polled, ReadFrom, TapReader},
    },
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge tap                                          all enabled streams, from now on
  cmc-bridge tap --stream bounces --to @example.net
  cmc-bridge tap --from-beginning --key '<1@example.co.jp>' --json | jq .value.status
  cmc-bridge tap --stream dead-letters --from-beginning --count 1

A record is printed when all conditions hold. Partitions that are added later are not noticed. While a topic can't be read for
something that may pass (a broker is away), that is said on standard error; what won't pass ends it with 69. Which topics, and how to
reach Kafka, the configuration says (--config, environment). With ACLs it needs READ and DESCRIBE on the topics.";

/// The arguments of `tap`.
#[derive(Args, Clone, Debug)]
pub struct TapArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Only these streams; may be repeated [default: all enabled ones]
    #[arg(long, value_name = "STREAM", value_enum, value_delimiter = ',')]
    pub stream: Vec<StreamName>,
    /// Begin with the oldest record instead of the next one
    #[arg(long)]
    pub from_beginning: bool,
    /// End after so many records
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// One JSON object a line: topic, partition, offset, timestamp (ms), key, headers, value
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub filter: Filter,
}

/// A stream on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StreamName {
    Deliveries,
    Bounces,
    Blocks,
    #[value(alias = "dead_letters")]
    DeadLetters,
}

impl StreamName {
    pub fn stream(self) -> Stream {
        match self {
            StreamName::Deliveries => Stream::Deliveries,
            StreamName::Bounces => Stream::Bounces,
            StreamName::Blocks => Stream::Blocks,
            StreamName::DeadLetters => Stream::DeadLetters,
        }
    }
}

/// What a record must have to be printed.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// This key: a messageId, with or without < >
    #[arg(long, value_name = "MESSAGE_ID")]
    pub key: Option<String>,
    /// This status, such as failed, or 2 of a bounce
    #[arg(long)]
    pub status: Option<String>,
    /// A recipient that contains this text
    #[arg(long, value_name = "TEXT")]
    pub to: Option<String>,
    /// A value that contains this text, as it stands there or inside a decoded member
    #[arg(long, value_name = "TEXT")]
    pub contains: Option<String>,
}

impl Filter {
    fn passes(&self, record: &impl Message) -> bool {
        let value = record.payload().unwrap_or_default();
        let needs_members = self.status.is_some() || self.to.is_some() || self.contains.is_some();
        let members: Map<String, Value> = match needs_members {
            true => serde_json::from_slice(value).unwrap_or_default(),
            false => Map::new(),
        };
        let member = |name: &str| members.get(name).and_then(Value::as_str);
        let recipient = || member("to").or(member("envelopeTo")).unwrap_or_default();
        holds(&self.key, |key| is_key(record.key(), key))
            && holds(&self.status, |status| member("status") == Some(status))
            && holds(&self.to, |text| recipient().contains(text))
            && holds(&self.contains, |text| {
                String::from_utf8_lossy(value).contains(text)
                    || members
                        .values()
                        .any(|value| value.as_str().is_some_and(|value| value.contains(text)))
            })
    }
}

fn holds(wanted: &Option<String>, condition: impl FnOnce(&str) -> bool) -> bool {
    wanted.as_deref().is_none_or(condition)
}

fn is_key(key: Option<&[u8]>, wanted: &str) -> bool {
    let bare = |key| -> Option<&[u8]> { <[u8]>::strip_prefix(key, b"<")?.strip_suffix(b">") };
    key.is_some_and(|key| key == wanted.as_bytes() || bare(key) == Some(wanted.as_bytes()))
}

/// Prints until Ctrl-C, until enough is printed, or until nobody reads it any more.
pub fn run(args: &TapArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    let streams = streams(args, &config)?;
    let mut topics: Vec<&str> = streams
        .iter()
        .map(|stream| config.stream(*stream).topic.as_str())
        .collect();
    topics.sort_unstable();
    topics.dedup();
    let from = match args.from_beginning {
        true => ReadFrom::Beginning,
        false => ReadFrom::End,
    };
    let stop = stop_flag()?;
    let mut reader = TapReader::new(&config.kafka).map_err(unavailable)?;
    let partitions = reader.assign(&topics, from).map_err(unavailable)?;
    // Scripts wait for this line before they post.
    say(&format!(
        "reading {} ({partitions} partitions) from {}; Ctrl-C ends it",
        topics.join(", "),
        if args.from_beginning {
            "the beginning"
        } else {
            "now on"
        }
    ));
    let wanted = |record: &BorrowedMessage<'_>| {
        // Streams may share a topic. What is not the bridge's has no stream and is shown.
        records::stream(record).is_none_or(|stream| streams.contains(&stream)) && args.filter.passes(record)
    };
    let form = if args.json { Form::Json } else { Form::Text };
    let mut printed = 0;
    while !stop.load(Ordering::Relaxed) && !out.closed() {
        match reader.poll().map_err(unavailable)? {
            Polled::Record(record) if wanted(&record) => {
                records::print(&record, form, out)?;
                printed += 1;
                if args.count == Some(printed) {
                    break;
                }
            }
            Polled::Record(_) | Polled::Nothing => {}
            Polled::Trouble(error) => say(&format!("{error}. Reading goes on when that has passed")),
            Polled::Well => say("all topics can be read again"),
        }
    }
    Ok(())
}

/// The streams to read: those that are named, or all that are enabled.
fn streams(args: &TapArgs, config: &Config) -> Result<Vec<Stream>, Exit> {
    if args.stream.is_empty() {
        let enabled = Stream::ALL.into_iter();
        return Ok(enabled.filter(|stream| config.stream(*stream).enabled).collect());
    }
    let streams: Vec<Stream> = args.stream.iter().map(|name| name.stream()).collect();
    match streams.iter().find(|stream| !config.stream(**stream).enabled) {
        Some(stream) => Err(Exit::Usage(format!(
            "--stream {stream} is not enabled in this configuration; set streams.{stream}.enabled = true to read its topic"
        ))),
        None => Ok(streams),
    }
}

/// Becomes true at SIGINT or SIGTERM; a second one ends the process at once.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>, Exit> {
    let flag = Arc::new(AtomicBool::new(false));
    let (set, runtime) = (Arc::clone(&flag), Runtime::new()?);
    let mut stop = runtime.block_on(async { stop_signals() })?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                stop.recv().await;
                set.store(true, Ordering::Relaxed);
                stop.recv().await;
                std::process::exit(130);
            });
        })?;
    Ok(flag)
}

/// Beside the records. Where nobody can be told, reading goes on.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "cmc-bridge: {text}");
}

fn unavailable(error: BrokerError) -> Exit {
    Exit::Unavailable(error.message)
}

#[cfg(test)]
mod tests {
    use rdkafka::{Timestamp, message::OwnedMessage};

    use super::*;

    const VALUE: &str =
        r#"{"event_type":"bounces","subject":"\u5341月のお知らせ","to":"a@example.net","status":"2"}"#;

    fn record(key: Option<&str>, value: &str) -> OwnedMessage {
        let (key, value) = (key.map(|key| key.as_bytes().to_vec()), value.as_bytes().to_vec());
        let topic = "cmc.bounces".to_owned();
        OwnedMessage::new(Some(value), key, topic, Timestamp::NotAvailable, 0, 0, None)
    }

    #[test]
    fn all_conditions_must_hold() {
        let filter = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter
        };
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (filter(&|_| {}), true),
            (filter(&|f| f.key = text("<1@example.co.jp>")), true),
            (filter(&|f| f.key = text("1@example.co.jp")), true),
            (filter(&|f| f.key = text("1@example.co")), false),
            (filter(&|f| f.status = text("2")), true),
            (filter(&|f| f.status = text("failed")), false),
            (filter(&|f| f.to = text("@example.net")), true),
            (filter(&|f| f.to = text("@example.org")), false),
            (filter(&|f| f.contains = text("十月")), true),
            (filter(&|f| f.contains = text("\\u5341月")), true),
            (filter(&|f| f.contains = text("九月")), false),
            (
                filter(&|f| (f.status, f.to) = (text("2"), text("@example.org"))),
                false,
            ),
        ];
        for (filter, passes) in cases {
            let record = record(Some("<1@example.co.jp>"), VALUE);
            assert_eq!(filter.passes(&record), passes, "{filter:?}");
        }
    }

    #[test]
    fn what_is_no_event_has_no_members() {
        let record = record(None, "{\"broken");
        let filter = |status: &str, contains: &str| Filter {
            status: (!status.is_empty()).then(|| status.to_owned()),
            contains: Some(contains.to_owned()),
            ..Filter::default()
        };
        assert!(filter("", "broken").passes(&record));
        assert!(!filter("2", "broken").passes(&record));
        let version_1 = self::record(None, r#"{"envelopeTo":"a@example.net"}"#);
        let to = Filter {
            to: Some("a@".to_owned()),
            ..Filter::default()
        };
        assert!(to.passes(&version_1));
    }
}
