//! `dead-letters replay`: [`crate::replay`] explains what it does and guarantees.

use std::io::Write;

use clap::Args;
use tokio::runtime::Runtime;

use super::{
    filter::FilterArgs,
    line::{line, unreadable},
};
use crate::{
    cli::{
        config_args::ConfigArgs, exit::Exit, output::Output, progress_bar::ProgressBar, signals::stop_flag,
    },
    config::Delivery,
    replay::{Fate, Replay, ReplayError, ReplayOptions, Summary, Update, reprocess::Dead},
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge dead-letters replay --dry-run
  cmc-bridge dead-letters replay
  cmc-bridge dead-letters replay --reason unknown_event_type --since 2026-10-01

Each letter is read with this command's configuration (--config, environment), as the bridge would read it today. What is
understood is delivered exactly once, however often the command is run, killed or run twice at a time: the position of the
consumer group is committed in the same Kafka transaction as the events. Letters that are still dead are listed and left for
the next replay, as are letters that the options exclude. Letters that arrive during a replay also wait for the next one.

The position belongs to --group: another group begins anew and delivers again what this one has delivered. A dry run can't
tell what Kafka would refuse. With ACLs the user needs the bridge's rights, also for --group and for the transactional id
<kafka.id_prefix>.replay.<group>.

Exit codes: 0 none of the letters tried is dead any more, 64 a choice is needed, 65 something is still dead, 69 Kafka is
unavailable or another replay has begun.";

/// The arguments of `dead-letters replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Try at most this many letters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Show what would become of each letter; deliver nothing and move no position
    #[arg(long)]
    dry_run: bool,
    /// Consumer group that holds the position [default: <kafka.id_prefix>.replay]
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Begin at the oldest letter if the position is lost; none of these letters may have been replayed before
    #[arg(long)]
    from_beginning: bool,
    /// Never try again the letters that are still dead now
    #[arg(long, conflicts_with = "dry_run")]
    give_up: bool,
    /// Maximum number of letters per transaction
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
}

/// Replays.
///
/// # Errors
/// 64, 65, 69: as the help says. 78: the configuration is refused.
pub fn run(args: &ReplayArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    if config.kafka.delivery == Delivery::AtLeastOnce && !args.dry_run {
        return Err(Exit::Usage(
            "replay needs transactions, but kafka.delivery is at-least-once. If the brokers support them, set \
             CMC_BRIDGE__KAFKA__DELIVERY=exactly-once for this command"
                .to_owned(),
        ));
    }
    let group = args.group.clone();
    let options = ReplayOptions {
        group: group.unwrap_or_else(|| ReplayOptions::default_group(&config.kafka)),
        filter: args.filter.filter(),
        limit: args.limit,
        batch: args.batch as usize,
        dry_run: args.dry_run,
        from_beginning: args.from_beginning,
        give_up: args.give_up,
    };
    let stop = stop_flag()?;
    let runtime = Runtime::new()?;
    let replay = Replay::begin(&config, &options, runtime.handle())?;
    let progress = ProgressBar::start();
    let summary = replay.run(&stop, &mut |update| match update {
        Update::Progress { done, total } => {
            progress.draw(done, total);
            Ok(())
        }
        Update::Tried { place, letter, fate } => {
            let fate = match fate {
                Fate::Dead(Dead { reason, detail }) if detail.is_empty() => format!("still dead: {reason}"),
                Fate::Dead(Dead { reason, detail }) => format!("still dead: {reason}: {detail}"),
                // Successes are many.
                Fate::Replayed { .. } if !args.dry_run => return Ok(()),
                Fate::Replayed {
                    topic,
                    events,
                    letters,
                } => {
                    let letters = match letters {
                        0 => String::new(),
                        n => format!(", dead letters: {n}"),
                    };
                    match events {
                        0 => format!("would be understood, events: 0{letters}"),
                        n => format!("would go to {topic}, events: {n}{letters}"),
                    }
                }
            };
            progress.clear();
            let letter = letter.map_or_else(|| unreadable(place), |letter| line(place, letter));
            writeln!(out, "{letter}\n  {fate}")
        }
    });
    drop(progress);
    runtime.shutdown_background();
    let summary = summary?;
    sum_up(&summary, args.dry_run, out)?;
    match summary.dead.values().sum::<u64>() + summary.incomplete {
        0 => Ok(()),
        dead => Err(Exit::Data(format!("letters still dead: {dead}"))),
    }
}

fn sum_up(summary: &Summary, dry_run: bool, out: &mut Output) -> std::io::Result<()> {
    let Summary {
        replayed,
        events,
        new_letters,
        dead,
        passed_over,
        incomplete,
        ended_early,
    } = summary;
    let replayed_word = if dry_run { "would be replayed" } else { "replayed" };
    writeln!(
        out,
        "letters {replayed_word}: {replayed} (events: {events}, new dead letters: {new_letters}), still dead: {}",
        dead.values().sum::<u64>()
    )?;
    for (reason, count) in dead {
        writeln!(out, "  {reason}: {count}")?;
    }
    for (count, what) in [
        (passed_over, "letters passed over"),
        (incomplete, "letters without all their parts"),
    ] {
        if *count > 0 {
            writeln!(out, "{what}: {count}")?;
        }
    }
    if *ended_early {
        writeln!(
            out,
            "stopped before the end of the topic; the next replay continues there"
        )?;
    }
    out.flush()
}

impl From<ReplayError> for Exit {
    fn from(error: ReplayError) -> Exit {
        match error {
            ReplayError::Broker(error) => Exit::Unavailable(error.to_string()),
            ReplayError::Forgotten { .. } => Exit::Usage(error.to_string()),
            ReplayError::TooScattered(_) => Exit::Data(error.to_string()),
            ReplayError::Output(error) => error.into(),
        }
    }
}
