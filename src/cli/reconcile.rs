//! `cmc-bridge reconcile`: [`crate::reconcile`] explains what it does and guarantees.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`report`] | what was found and done, for people and for scripts |

mod report;

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use tokio::runtime::Runtime;

use self::report::{print_json, print_text};
use super::{
    config_args::ConfigArgs,
    exit::Exit,
    output::{Output, say},
    progress_bar::ProgressBar,
    signals::stop_flag,
};
use crate::{
    config::{Config, Delivery},
    http_client::Target,
    reconcile::{Outcome, ReconcileError, ReconcileOptions, Scope, Step, reconcile},
    sender_api::ApiError,
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge reconcile --dry-run
  cmc-bridge reconcile --from 2026-10-01 --to 2026-10-03 --replica http://cmc-bridge-0:9464 --replica http://cmc-bridge-1:9464
  cmc-bridge reconcile --server-composition pro --stream bounces --json

It asks the sender's Web API ([sender_api] in the configuration) for the events of the days, reads the topics, and adds the
events that they lack, each once, however often the command is run, killed or run twice at a time. Added events have the
header cmc-origin: api. Blocks are left out: the API gives them other members than the webhooks.

Give the admin port of every replica with --replica, so that events that still wait in a spool are not taken for missing. A
name with several addresses stands for all of them. Replay dead letters first: what waits there is missing on its topic.

An event of the same mail and status that differs otherwise is a near miss. It is listed and not added without --add-near.

With ACLs the user needs READ and WRITE on the topics, DESCRIBE_CONFIGS on them, and the transactional id
<kafka.id_prefix>.reconcile.

Exit codes: 0 the topics have all that the sender has, 64 these days can't be compared, 65 something is still missing (holes of
a dry run, near misses, events that don't fit), 69 the sender, Kafka or a replica is unavailable, or another run has begun,
75 some hours did not settle, 78 the configuration is refused.";

/// A stream that can be reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum ListedStream {
    Deliveries,
    Bounces,
}

/// The arguments of `reconcile`.
#[derive(Args, Clone, Debug)]
pub struct ReconcileArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// First day, in the time zone of the console (ingest.time_zone) [default: the last day that has been over for --settle]
    #[arg(long, value_name = "DATE")]
    from: Option<Date>,
    /// Last day [default: --from]
    #[arg(long, value_name = "DATE")]
    to: Option<Date>,
    /// Server compositions to ask for [default: sender_api.server_compositions]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    server_composition: Vec<String>,
    /// Streams to compare
    #[arg(long, value_enum, value_delimiter = ',', default_value = "deliveries,bounces")]
    stream: Vec<ListedStream>,
    /// Find what is missing, and add nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read every event from the sender, even on days whose counts agree
    ///
    /// Without it, the sender's counts of a day's deliveries by status are compared first. Where they agree, only its deferred ones
    /// and its bounces are read one by one. A missing event goes unnoticed there if another one of its status is on the topic and
    /// unknown to the sender.
    #[arg(long)]
    thorough: bool,
    /// Add near misses, too
    #[arg(long)]
    add_near: bool,
    /// Compare only hours that ended at least this long ago, in minutes: their webhooks must have arrived
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=40 * 24 * 60))]
    settle: u32,
    /// Admin port of a replica, as a URL; give all of them
    #[arg(long, value_name = "URL", value_parser = replica)]
    replica: Vec<Target>,
    /// How long to wait for replicas that hold older events or don't answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait: u32,
    /// Maximum number of missing events; more are taken for a mistake
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    most: u32,
    /// Read the topics from their beginning, not from the first day on
    #[arg(long)]
    read_all: bool,
}

/// The admin port of a replica.
fn replica(url: &str) -> Result<Target, String> {
    Target::parse(url, "/", "http://cmc-bridge-0:9464")
}

/// Reconciles and prints what was found.
///
/// # Errors
/// 64, 65, 69, 75, 78: as the help says.
pub fn run(args: &ReconcileArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    if config.kafka.delivery == Delivery::AtLeastOnce && !args.dry_run {
        return Err(Exit::Usage(
            "reconcile needs transactions, but kafka.delivery is at-least-once. If the brokers support them, set \
             CMC_BRIDGE__KAFKA__DELIVERY=exactly-once for this command"
                .to_owned(),
        ));
    }
    let scope = scope(args, &config)?;
    let options = ReconcileOptions {
        dry_run: args.dry_run,
        add_near: args.add_near,
        thorough: args.thorough,
        read_all: args.read_all,
        replicas: args.replica.clone(),
        wait: Duration::from_secs(args.wait.into()),
        most: args.most as usize,
    };
    if args.replica.is_empty() && !args.dry_run {
        say(format_args!(
            "warning: no --replica is given. An event that still waits in a spool would be added, and be on its topic twice"
        ));
    }
    let stop = stop_flag()?;
    let runtime = Runtime::new()?;
    let progress = ProgressBar::start();
    let mut waited = String::new();
    let result = reconcile(
        &config,
        &scope,
        &options,
        &runtime,
        &stop,
        &mut |step| match step {
            Step::Topics { done, total } | Step::Hours { done, total } => progress.draw(done, total),
            Step::Waiting(why) if waited != why => {
                progress.clear();
                say(format_args!("waiting: {why}"));
                why.clone_into(&mut waited);
            }
            Step::Waiting(_) => {}
        },
    );
    drop(progress);
    runtime.shutdown_background();
    let outcome = result?;
    let verdict = Verdict::of(&outcome, args.dry_run);
    match args.json {
        true => print_json(&outcome, &scope, &verdict, out)?,
        false => print_text(&outcome, &scope, &verdict, out)?,
    }
    verdict.into_exit()
}

fn scope(args: &ReconcileArgs, config: &Config) -> Result<Scope, Exit> {
    let zone = &config.ingest.time_zone;
    let settle = SignedDuration::from_mins(args.settle.into());
    let names = match args.server_composition.as_slice() {
        [] => &config.sender_api.server_compositions,
        given => given,
    };
    let zone_of = |name: &String| config.ingest.time_zones.get(name).unwrap_or(zone).clone();
    let compositions: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), zone_of(name))).collect();
    let from = args
        .from
        .or(args.to)
        .unwrap_or_else(|| last_day(Timestamp::now(), settle, compositions.values()));
    let to = args.to.unwrap_or(from);
    let mut streams: Vec<Stream> = Vec::new();
    for stream in &args.stream {
        let stream = match stream {
            ListedStream::Deliveries => Stream::Deliveries,
            ListedStream::Bounces => Stream::Bounces,
        };
        if !config.stream(stream).enabled {
            let text = format!("streams.{stream}.enabled is false; choose other streams with --stream");
            return Err(Exit::Usage(text));
        }
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }
    Scope::new(from, to, compositions, streams, settle).map_err(|error| Exit::Usage(error.to_string()))
}

/// The last day that has been over for `settle` in all these zones. With a zone behind the others, a day that is over only in some
/// would lose its last hours: the next day's run doesn't come back to them.
fn last_day<'z>(now: Timestamp, settle: SignedDuration, zones: impl Iterator<Item = &'z TimeZone>) -> Date {
    let settled = now.checked_sub(settle).unwrap_or(now);
    let days = zones.map(|zone| zone.to_datetime(settled).date());
    let earliest = days
        .min()
        .unwrap_or_else(|| TimeZone::UTC.to_datetime(settled).date());
    earliest.yesterday().unwrap_or(earliest)
}

/// Whether all is well.
#[derive(Debug)]
struct Verdict {
    code: u8,
    sentence: String,
}

impl Verdict {
    fn of(outcome: &Outcome, dry_run: bool) -> Verdict {
        let sum = |number: fn(&crate::reconcile::Cell) -> u64| outcome.sum(number);
        let (unsettled, added) = (sum(|cell| cell.unsettled), sum(|cell| cell.added));
        let only_counted = sum(|cell| cell.counted) > 0;
        let left = outcome.left.len();
        let (code, sentence) = if unsettled > 0 {
            let text = "NOT DECIDED: the sender's answers for some hours never agreed, or repeated a page, so nothing was added for them. Run it \
                        again later";
            (75, text.to_owned())
        } else if outcome.elsewhere > 0 {
            let text = "NOT DECIDED: the sender lists rows under another hour than they name, and they were not compared there. Check \
                        that ingest.time_zone is the console's";
            (75, text.to_owned())
        } else if left > 0 && dry_run {
            (
                65,
                format!(
                    "INCOMPLETE: {left} events are missing on the topics. Run it without --dry-run to add those that are no near misses"
                ),
            )
        } else if left > 0 {
            (
                65,
                format!(
                    "INCOMPLETE: {left} events are still missing on the topics: near misses, or events that don't fit. See above"
                ),
            )
        } else if sum(|cell| cell.sender) == 0 {
            let text = "ALL IS WELL: the sender has no events of these days. If it should, check the names of the compositions";
            (0, text.to_owned())
        } else {
            let now = if added > 0 { "now " } else { "" };
            let by_counts = match only_counted {
                true => ", as far as its counts tell (--thorough compares each event)",
                false => "",
            };
            let hours = match outcome.too_early {
                0 => "",
                _ => " of the hours that are over for long enough",
            };
            let text = format!(
                "ALL IS WELL: the topics {now}have every event that the sender has{hours}{by_counts}"
            );
            (0, text)
        };
        Verdict { code, sentence }
    }

    fn into_exit(self) -> Result<(), Exit> {
        match self.code {
            0 => Ok(()),
            65 => Err(Exit::Data(self.sentence)),
            _ => Err(Exit::Undecided(self.sentence)),
        }
    }
}

impl From<ReconcileError> for Exit {
    fn from(error: ReconcileError) -> Exit {
        let text = error.to_string();
        match error {
            ReconcileError::Forgotten(_) | ReconcileError::TooMany(_) => Exit::Usage(text),
            ReconcileError::Api(ApiError::Configuration(_)) => Exit::Usage(text),
            ReconcileError::Broker(_)
            | ReconcileError::Api(_)
            | ReconcileError::Replica(_)
            | ReconcileError::Stopped
            | ReconcileError::Adding { .. } => Exit::Unavailable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_last_day_that_is_over_everywhere() {
        let zones = |names: &[&str]| -> Vec<TimeZone> {
            names.iter().map(|name| TimeZone::get(name).unwrap()).collect()
        };
        let day = |now: &str, minutes, names: &[&str]| {
            let settle = SignedDuration::from_mins(minutes);
            last_day(now.parse().unwrap(), settle, zones(names).iter()).to_string()
        };
        // 04:10 in Tokyo.
        let night = "2026-10-01T19:10:00Z";
        assert_eq!(day(night, 60, &["Asia/Tokyo"]), "2026-10-01");
        assert_eq!(day(night, 60, &["Asia/Tokyo", "UTC"]), "2026-09-30");
        assert_eq!(day(night, 60, &[]), "2026-09-30");
        // 00:30 in Tokyo: the last hour of yesterday has not been over for long enough.
        let midnight = "2026-10-01T15:30:00Z";
        assert_eq!(day(midnight, 60, &["Asia/Tokyo"]), "2026-09-30");
        assert_eq!(day(midnight, 29, &["Asia/Tokyo"]), "2026-10-01");
        // Clocks went back at 03:00 to 02:00.
        assert_eq!(day("2026-10-26T00:30:00Z", 60, &["Europe/Berlin"]), "2026-10-25");
    }
}
