//! `cmc-bridge tap`: prints the events on the topics as they arrive.
//!
//! It disturbs nobody: its consumer joins no group and commits nothing. It uses the Kafka settings of the configuration
//! and prints only committed records, as any consumer should see them.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`safe_name`] | names of attachments as names of files |
//! | [`save`] | writes attachments of received mail into a directory |

mod safe_name;
mod save;

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::atomic::Ordering,
};

use clap::Args;
use rdkafka::{Message, message::BorrowedMessage};
use serde_json::{Map, Value};

use self::save::AttachmentSaver;
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
  cmc-bridge tap --stream inbound --from-beginning --key '<in-1@example.net>' --save attachments

--save writes each attachment of received mail once all its parts have been read and its SHA-256 agrees. File names are made safe, and
no file is overwritten: a second one is called \"name (2)\". Parts of attachments are printed, and saved, if their mail is printed.

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
    /// Save attachments of received mail into this directory
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
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
    fn is_empty(&self) -> bool {
        [&self.key, &self.status, &self.to, &self.contains]
            .into_iter()
            .all(Option::is_none)
    }

    fn passes(&self, record: &impl Message) -> bool {
        let value = record.payload().unwrap_or_default();
        let needs_members = self.status.is_some() || self.to.is_some() || self.contains.is_some();
        let members: Map<String, Value> = match needs_members {
            true => serde_json::from_slice(value).unwrap_or_default(),
            false => Map::new(),
        };
        let member = |name: &str| members.get(name).and_then(Value::as_str);
        let recipient = || {
            let names = ["to", "envelopeTo", "envelope-to"];
            names.into_iter().find_map(member).unwrap_or_default()
        };
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

/// Which mails were printed lately, because parts of attachments go with their mail whatever they hold.
#[derive(Default)]
struct PrintedMails(VecDeque<Vec<u8>>);

impl PrintedMails {
    /// Maximum number of mails to remember. Parts follow their mail closely.
    const MOST: usize = 1000;

    /// Whether a record is to be printed, by the conditions or because its mail was.
    fn passes(&mut self, record: &impl Message, filter: &RecordFilter) -> bool {
        if records::stream(record) != Some(Stream::Inbound) {
            return filter.passes(record);
        }
        if let Some(mail) = records::header(record, "cmc-mail-id") {
            return filter.is_empty() || self.0.iter().any(|known| known == mail);
        }
        let passes = filter.passes(record);
        if let Some(id) = records::header(record, "ce_id").filter(|_| passes) {
            if self.0.len() == PrintedMails::MOST {
                self.0.pop_front();
            }
            self.0.push_back(id.to_vec());
        }
        passes
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
/// 64: a chosen stream is disabled. 69: a topic can't be read. 74: the directory for attachments can't be written. 78: the
/// configuration is refused.
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
    let mut saver = match &args.save {
        Some(_) if !streams.contains(&Stream::Inbound) => {
            return Err(Exit::Usage(
                "--save needs received mail: add --stream inbound, and set streams.inbound.enabled = true"
                    .to_owned(),
            ));
        }
        Some(dir) => Some(AttachmentSaver::new(dir).map_err(not_saved(dir))?),
        None => None,
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
    let mut mails = PrintedMails::default();
    let mut wanted = |record: &BorrowedMessage<'_>| {
        // A record without a stream is not the bridge's and is shown.
        records::stream(record).is_none_or(|stream| streams.contains(&stream))
            && mails.passes(record, &args.filter)
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
                if let (Some(saver), Some(dir)) = (&mut saver, &args.save)
                    && let Some(said) = saver.take(&record).map_err(not_saved(dir))?
                {
                    say(said);
                }
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
    let incomplete = saver.map_or(0, |saver| saver.incomplete());
    if incomplete > 0 {
        say(format_args!(
            "attachments that are not saved, because parts were not read: {incomplete}"
        ));
    }
    Ok(())
}

fn not_saved(dir: &std::path::Path) -> impl Fn(std::io::Error) -> Exit {
    let dir = dir.display().to_string();
    move |error| Exit::Io(format!("attachments can't be saved in {dir}: {error}"))
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
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders, OwnedMessage},
    };

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
    fn parts_of_attachments_go_with_their_mail() {
        let mail = |headers: &[(&str, &str)], value: &str| {
            let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(*value),
                })
            });
            let topic = "cmc.inbound".to_owned();
            OwnedMessage::new(
                Some(value.into()),
                None,
                topic,
                Timestamp::NotAvailable,
                0,
                0,
                Some(headers),
            )
        };
        let of = |id: &str, to: &str| {
            let headers = [("ce_type", "jp.smtps.cmc.inbound"), ("ce_id", id)];
            mail(&headers, &format!(r#"{{"envelope-to":"{to}"}}"#))
        };
        let part = |id: &str| {
            let headers = [
                ("ce_type", "jp.smtps.cmc.inbound.attachment"),
                ("ce_id", "p"),
                ("cmc-mail-id", id),
            ];
            mail(&headers, "\0")
        };
        let filter = RecordFilter {
            to: Some("@example.net".to_owned()),
            ..RecordFilter::default()
        };
        let mut mails = PrintedMails::default();
        assert!(!mails.passes(&part("1"), &filter));
        assert!(mails.passes(&of("1", "a@example.net"), &filter));
        assert!(!mails.passes(&of("2", "a@example.org"), &filter));
        assert!(mails.passes(&part("1"), &filter) && !mails.passes(&part("2"), &filter));
        assert!(mails.passes(&part("2"), &RecordFilter::default()));
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
