//! `cmc-bridge completions`: a shell completion script, generated from the command line's definition.

use std::io::Write;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::cli::exit::Exit;

pub const AFTER_HELP: &str = "\
Where to put the script:
  bash  cmc-bridge completions bash > ~/.local/share/bash-completion/completions/cmc-bridge
  zsh   cmc-bridge completions zsh > \"${fpath[1]}/_cmc-bridge\"
  fish  cmc-bridge completions fish > ~/.config/fish/completions/cmc-bridge.fish";

/// The arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell that will use the script
    pub shell: Shell,
}

/// Prints the script for this command line.
///
/// # Errors
/// 74: the output can't be written.
pub fn run(args: &CompletionsArgs, mut command: Command, out: &mut impl Write) -> Result<(), Exit> {
    // Into memory first: the generator panics if it can't write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "cmc-bridge", &mut script);
    out.write_all(&script)?;
    Ok(out.flush()?)
}
