//! `cmc-bridge tap`: prints the events on the topics as they arrive.
//!
//! It disturbs nobody: its consumer joins no group and commits nothing. It uses the Kafka settings of the configuration
//! and prints only committed records, as any consumer should see them.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use clap::Args;
use rdkafka::{Message, message::BorrowedMessage};
use serde_json::{Map, Value};

use super::{
    config_args::ConfigArgs,
    output::{Output, say},
    records::{self, PrintFormat},
    signals::stop_flag,
};
use crate::{
    cli::exit::Exit,
    config::Config,
    kafka::{
        broker::BrokerError,
        tap::{Polled, ReadFrom, TapReader},
    },
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge tap                                   # all enabled streams, from now on
  cmc-bridge tap --stream bounces --to @example.net
  cmc-bridge tap --from-beginning --key '<1@example.co.jp>' --json | jq .value.status
  cmc-bridge tap --stream dead-letters --from-beginning --count 1

The topics and the Kafka cluster are those of the configuration (--config, environment). A record is printed if all
conditions hold. Partitions that are added later are not read. Temporary trouble, such as an unreachable broker, is
reported on standard error; permanent trouble ends the command with 69. With ACLs it needs READ and DESCRIBE on the topics.";

/// The arguments of `tap`.
#[derive(Args, Clone, Debug)]
pub struct TapArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Only these streams; may be repeated [default: all enabled streams]
    #[arg(long, value_name = "STREAM", value_enum, value_delimiter = ',')]
    pub stream: Vec<Stream>,
    /// Begin with the oldest record instead of the next
    #[arg(long)]
    pub from_beginning: bool,
    /// Stop after this many records
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print one JSON object per line: topic, partition, offset, timestamp (ms), key, headers, value
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub filter: RecordFilter,
}

/// The conditions that a record must meet to be printed.
#[derive(Args, Clone, Debug, Default)]
pub struct RecordFilter {
    /// Only records with this key: a messageId, with or without < >
    #[arg(long, value_name = "MESSAGE_ID")]
    pub key: Option<String>,
    /// Only events with this status, such as failed, or 2 for a bounce
    #[arg(long)]
    pub status: Option<String>,
    /// Only events whose recipient contains this text
    #[arg(long, value_name = "TEXT")]
    pub to: Option<String>,
    /// Only records whose value contains this text, as written or in a decoded member
    #[arg(long, value_name = "TEXT")]
    pub contains: Option<String>,
}

impl RecordFilter {
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

/// Prints until SIGINT or SIGTERM, until enough is printed, or until the reader of the output is gone.
///
/// # Errors
/// 64: a chosen stream is disabled. 69: a topic can't be read. 78: the configuration is refused.
pub fn run(args: &TapArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    let streams = streams(args, &config)?;
    // Streams may share a topic.
    let topics: BTreeSet<&str> = streams
        .iter()
        .map(|stream| config.stream(*stream).topic.as_str())
        .collect();
    let topics = Vec::from_iter(topics);
    let from = match args.from_beginning {
        true => ReadFrom::Beginning,
        false => ReadFrom::End,
    };
    let stop = stop_flag()?;
    let mut reader = TapReader::new(&config.kafka).map_err(unavailable)?;
    let partitions = reader.assign(&topics, from).map_err(unavailable)?;
    // Scripts wait for this line before they post.
    say(format_args!(
        "reading {} ({partitions} partitions) from {}; Ctrl-C ends it",
        topics.join(", "),
        if args.from_beginning {
            "the beginning"
        } else {
            "now on"
        }
    ));
    let wanted = |record: &BorrowedMessage<'_>| {
        // A record without a stream is not the bridge's and is shown.
        records::stream(record).is_none_or(|stream| streams.contains(&stream)) && args.filter.passes(record)
    };
    let format = if args.json {
        PrintFormat::Json
    } else {
        PrintFormat::Text
    };
    let mut printed = 0;
    while !stop.load(Ordering::Relaxed) && !out.closed() {
        match reader.poll().map_err(unavailable)? {
            Polled::Record(record) if wanted(&record) => {
                records::print(&record, format, out)?;
                printed += 1;
                if args.count == Some(printed) {
                    break;
                }
            }
            Polled::Record(_) | Polled::Nothing => {}
            Polled::Trouble(error) => say(format_args!("{error}. Reading continues once that is over")),
            Polled::Well => say("all topics can be read again"),
        }
    }
    Ok(())
}

/// The streams to read: the chosen ones, or all enabled ones.
fn streams(args: &TapArgs, config: &Config) -> Result<Vec<Stream>, Exit> {
    if args.stream.is_empty() {
        let enabled = Stream::ALL.into_iter();
        return Ok(enabled.filter(|stream| config.stream(*stream).enabled).collect());
    }
    match args.stream.iter().find(|stream| !config.stream(**stream).enabled) {
        Some(stream) => Err(Exit::Usage(format!(
            "stream {stream} is disabled in this configuration; set streams.{stream}.enabled = true to read its topic"
        ))),
        None => Ok(args.stream.clone()),
    }
}

fn unavailable(error: BrokerError) -> Exit {
    Exit::Unavailable(error.to_string())
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
        let filter = |change: &dyn Fn(&mut RecordFilter)| {
            let mut filter = RecordFilter::default();
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
        let filter = |status: &str, contains: &str| RecordFilter {
            status: (!status.is_empty()).then(|| status.to_owned()),
            contains: Some(contains.to_owned()),
            ..RecordFilter::default()
        };
        assert!(filter("", "broken").passes(&record));
        assert!(!filter("2", "broken").passes(&record));
        let version_1 = self::record(None, r#"{"envelopeTo":"a@example.net"}"#);
        let to = RecordFilter {
            to: Some("a@".to_owned()),
            ..RecordFilter::default()
        };
        assert!(to.passes(&version_1));
    }
}
