//! `cmc-bridge completions`: a shell's completion script, made of the command line itself.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::cli::exit::Exit;

pub const AFTER_HELP: &str = "\
Where the script goes:
  bash  cmc-bridge completions bash > ~/.local/share/bash-completion/completions/cmc-bridge
  zsh   cmc-bridge completions zsh > \"${fpath[1]}/_cmc-bridge\"
  fish  cmc-bridge completions fish > ~/.config/fish/completions/cmc-bridge.fish";

/// The arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    pub shell: Shell,
}

/// Prints the script.
pub fn run(args: &CompletionsArgs, out: &mut impl Write) -> Result<(), Exit> {
    // Into memory first: the generator panics when it can't write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cmc-bridge", &mut script);
    out.write_all(&script)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_learns_the_commands() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            run(&CompletionsArgs { shell: *shell }, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for word in ["serve", "send-sample", "tap", "explain", "from-beginning"] {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
    }
}
