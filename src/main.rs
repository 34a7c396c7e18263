#![warn(clippy::print_stdout, clippy::print_stderr)] // See lib.rs.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cmc_bridge::{
    cli::{
        Cli, Command, ConfigCommand, check, completions, config_show, dead_letters, dev,
        exit::{self, Exit},
        explain,
        output::{Output, say},
        reconcile, send_sample, serve, spool, tap, top, why,
    },
    logging,
};
use mimalloc::MiMalloc;

/// It also serves librdkafka, which makes a dozen allocations per record in one thread and frees them in another.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // mimalloc asks for huge pages, and most of each would stay unused: twice the memory at rest, and no speed. Not every kernel has
    // them.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::command_line(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            let code = ExitCode::from(&exit);
            if !matches!(exit, Exit::Answered(_)) {
                logging::last_lines(move || say(&exit));
            }
            code
        }
    }
}

fn run(cli: Cli) -> Result<(), Exit> {
    match cli.command {
        Command::Serve(args) => serve::run(args.config.load()?),
        Command::Dev(args) => dev::run(&args),
        Command::Check(args) => check::command(&args, &mut Output::new()),
        Command::Config(ConfigCommand::Show(args)) => config_show::run(&args, &mut Output::new()),
        Command::SendSample(args) => send_sample::run(&args, &mut Output::new()),
        Command::Tap(args) => tap::run(&args, &mut Output::new()),
        Command::Top(args) => top::run(&args),
        Command::Why(args) => why::run(&args, &mut Output::new()),
        Command::Explain(args) => explain::run(&args, &mut Output::new()),
        Command::Spool(command) => spool::run(command, &mut Output::new()),
        Command::DeadLetters(command) => dead_letters::run(command, &mut Output::new()),
        Command::Reconcile(args) => reconcile::run(&args, &mut Output::new()),
        Command::Completions(args) => completions::run(&args, Cli::command(), &mut Output::new()),
    }
}
