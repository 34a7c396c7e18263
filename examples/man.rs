//! Writes the man pages of all commands into a directory: `cargo run --example man -- DIRECTORY`.

use std::{env, fs, io, path::Path, process::ExitCode};

use clap::CommandFactory;
use cmc_bridge::cli::Cli;

fn main() -> ExitCode {
    let Some(directory) = env::args_os().nth(1) else {
        eprintln!("usage: man DIRECTORY");
        return ExitCode::from(64);
    };
    match write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", directory.display());
            ExitCode::from(74)
        }
    }
}

pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}
