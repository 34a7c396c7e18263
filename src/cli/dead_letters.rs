//! `cmc-bridge dead-letters`: lists dead letters and replays them.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`filter`] | the options that choose letters |
//! | [`line`](mod@line) | a letter on one line |
//! | [`ls`] | dead-letters ls |
//! | [`replay`] | dead-letters replay |

mod filter;
mod line;
mod ls;
mod replay;

use clap::Subcommand;

use super::output::Output;
use crate::cli::exit::Exit;

#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List the dead letters on their topic, with totals by reason
    #[command(after_help = ls::AFTER_HELP)]
    Ls(ls::LetterLsArgs),
    /// Try dead letters again and deliver what is understood now, exactly once
    #[command(after_help = replay::AFTER_HELP)]
    Replay(replay::ReplayArgs),
}

/// Runs the subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(command: DeadLettersCommand, out: &mut Output) -> Result<(), Exit> {
    match command {
        DeadLettersCommand::Ls(args) => ls::run(&args, out),
        DeadLettersCommand::Replay(args) => replay::run(&args, out),
    }
}
