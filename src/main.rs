use std::{io, process::ExitCode};

use clap::Parser;
use cmc_bridge::{
    cli::{Cli, Command, ConfigCommand, check, config_show},
    exit::Exit,
};

fn main() -> ExitCode {
    let result = parse().and_then(run);
    match &result {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            let message = exit.to_string();
            if !message.is_empty() {
                eprintln!("cmc-bridge: {message}");
            }
            exit.into()
        }
    }
}

/// Parses the command line; help and version are printed here and end the process well.
fn parse() -> Result<Cli, Exit> {
    Cli::try_parse().map_err(|error| match error.exit_code() {
        0 => {
            error.exit();
        }
        _ => {
            let text = error.render().to_string();
            Exit::Usage(text)
        }
    })
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
