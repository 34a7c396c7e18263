use std::{io, process::ExitCode};

use clap::Parser;
use cmc_bridge::{
    cli::{Cli, Command, ConfigCommand, check, config_show},
    exit::{self, Exit},
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::command_line(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("cmc-bridge: {exit}");
            ExitCode::from(&exit)
        }
    }
}

fn run(cli: Cli) -> Result<(), Exit> {
    let out = &mut io::stdout().lock();
    match cli.command {
        Command::Check(args) => check::run(&args.load()?, out),
        Command::Config(ConfigCommand::Show(args)) => config_show::run(&args.load()?, out),
        Command::Serve(_) | Command::Dev(_) => Err(Exit::Unavailable(
            "serve and dev are not part of this build".to_owned(),
        )),
    }
}
