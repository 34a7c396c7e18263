//! `spool drain`: delivers the backlog that a bridge has left.

use std::{io::Write, time::Duration};

use clap::Args;
use tokio::runtime::Runtime;

use super::selection::{SpoolArgs, UNKNOWN_LOG};
use crate::{
    bridge::{Drained, Patience, drain},
    cli::{exit::Exit, output::Output, progress_bar::ProgressBar, signals::stop_signals},
    config::Config,
    leftover::Leftovers,
    logging,
    metrics::BlockReason,
};

pub const AFTER_HELP: &str = "\
Takes no webhooks. Use the configuration of the bridge that wrote the spool, so that each event is delivered exactly once.

Example:
  cmc-bridge spool drain --config /etc/cmc-bridge/cmc-bridge.toml --dir /mnt/old-volume";

/// The arguments of `spool drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    #[command(flatten)]
    spool: SpoolArgs,
    /// Give up if nothing is delivered for this many seconds [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    patience: Option<u64>,
    /// Wait this many seconds for a bridge that still has the spool open, because it is about to end
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
}

/// Drains the spool.
///
/// # Errors
/// 64: there is no spool. 65: part of it can't be read. 69: events are left. 78: the configuration is refused.
pub fn run(args: &DrainArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.spool.config()?;
    let _logging = logging::init(&config.log)?;
    let runtime = Runtime::new()?;
    let result = runtime.block_on(deliver(&config, args));
    runtime.shutdown_background();
    let drained = result?;
    for stream in &drained {
        let books = &stream.books;
        writeln!(
            out,
            "{}: {} events delivered, {} diverted to the dead-letter topic, {} left",
            stream.stream,
            books.delivered,
            books.diverted,
            books.backlog()
        )?;
    }
    out.flush()?;
    verdict(&config, &drained)
}

async fn deliver(config: &Config, args: &DrainArgs) -> Result<Vec<Drained>, Exit> {
    let stop = stop_signals()?;
    let patience = Patience {
        lock: Duration::from_secs(args.wait),
        progress: args.patience.map(Duration::from_secs),
    };
    let progress = ProgressBar::start();
    let drained = drain(config, patience, stop, |streams| {
        let sum = |figure: fn(&Drained) -> u64| streams.iter().map(figure).sum::<u64>();
        let done = sum(|d| d.books.delivered + d.books.diverted);
        let total = done + sum(|d| d.books.backlog());
        progress.draw(done, total);
    });
    Ok(drained.await?)
}

fn verdict(config: &Config, drained: &[Drained]) -> Result<(), Exit> {
    let left: Vec<&Drained> = drained.iter().filter(|d| d.books.backlog() > 0).collect();
    let damaged = |d: &&Drained| d.blocked.is_some_and(BlockReason::is_of_the_spool);
    if let Some(stream) = drained.iter().find(damaged) {
        return Err(Exit::Data(format!(
            "{} is damaged or can't be read: `cmc-bridge spool verify` says where, `cmc-bridge spool repair` sets the damage aside",
            config.spool.dir.join(stream.stream.name()).display()
        )));
    }
    let unknown = Leftovers::look(&config.spool.dir, |_| true)?.unknown;
    match left.first() {
        None => match unknown.first() {
            None => Ok(()),
            Some((name, left)) => Err(Exit::Data(format!(
                "{} is {UNKNOWN_LOG}, with {left}: drain it with the version that wrote it",
                config.spool.dir.join(name).display()
            ))),
        },
        Some(stream) => Err(Exit::Unavailable(format!(
            "{} events of {} were not delivered ({}); they are still in the spool: drain it again",
            stream.books.backlog(),
            stream.stream,
            stream.blocked.map_or("stopped", |reason| reason.label()),
        ))),
    }
}
