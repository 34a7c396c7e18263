//! `cmc-bridge spool`: works on a spool without its bridge, for the day it goes wrong.
//!
//! `ls` works at any time. `verify` and `export` change nothing but need a spool that nothing writes: a stopped bridge's, or
//! a copy. `drain` and `repair` hold the spool's lock, as the bridge does.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`drain`] | spool drain |
//! | [`export`] | spool export |
//! | [`ls`] | spool ls |
//! | [`repair`] | spool repair |
//! | [`selection`] | the options that choose a spool and its streams |
//! | [`verify`] | spool verify |

mod drain;
mod export;
mod ls;
mod repair;
mod selection;
mod verify;

use clap::Subcommand;

use super::output::Output;
use crate::cli::exit::Exit;

#[derive(Debug, Subcommand)]
pub enum SpoolCommand {
    /// List each stream's segments and the events that wait in them
    Ls(ls::SpoolLsArgs),
    /// Read everything that waits and report damage; exits with 65 if there is any
    Verify(verify::VerifyArgs),
    /// Print the batches that wait as JSON lines, even from a damaged spool; exits with 65 if any is missing
    #[command(after_help = export::AFTER_HELP)]
    Export(export::ExportArgs),
    /// Deliver the events of a spool whose bridge is gone, and exit when it is empty
    #[command(after_help = drain::AFTER_HELP)]
    Drain(drain::DrainArgs),
    /// Set damaged parts of a spool aside so that delivery can go on without them
    #[command(after_help = repair::AFTER_HELP)]
    Repair(repair::RepairArgs),
}

/// Runs the subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(command: SpoolCommand, out: &mut Output) -> Result<(), Exit> {
    match command {
        SpoolCommand::Ls(args) => ls::run(&args, out),
        SpoolCommand::Verify(args) => verify::run(&args, out),
        SpoolCommand::Export(args) => export::run(&args, out),
        SpoolCommand::Drain(args) => drain::run(&args, out),
        SpoolCommand::Repair(args) => repair::run(&args, out),
    }
}
