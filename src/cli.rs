//! The command line: one file for each command, with a folder when it has parts of its own.
//!
//! # Files
//!
//! | command | what it does |
//! |---|---|
//! | [`check`] | checks the configuration and says what would run |
//! | [`completions`] | prints a shell's completion script |
//! | [`config_show`] | `config show`: prints every key with its value and origin |
//! | [`dead_letters`] | lists and replays dead letters |
//! | [`dev`] | runs the bridge with an embedded broker and prints the events |
//! | [`explain`] | says what a webhook's body would become |
//! | [`send_sample`] | posts many webhooks and sums up the answers |
//! | [`serve`] | runs the bridge until SIGTERM |
//! | [`spool`] | lists, verifies, exports, drains and repairs a spool |
//! | [`tap`] | prints the records of the topics as they arrive |
//!
//! | what they share | what it is |
//! |---|---|
//! | [`config_args`] | `--config` |
//! | [`excerpt`] | a place in a text, with the text around it |
//! | [`exit`] | exit codes: how each error ends the process |
//! | [`output`] | standard output that may be closed, and lines on standard error |
//! | [`percentile`](mod@percentile) | percentiles |
//! | [`progress_bar`] | a progress bar on standard error |
//! | [`records`] | prints Kafka records as text or JSON |
//! | [`signals`] | SIGINT and SIGTERM |
//! | `stream_name` | streams by name on the command line |

pub mod check;
pub mod completions;
mod config_args;
pub mod config_show;
pub mod dead_letters;
pub mod dev;
mod excerpt;
pub mod exit;
pub mod explain;
pub mod output;
mod percentile;
mod progress_bar;
mod records;
pub mod send_sample;
pub mod serve;
mod signals;
pub mod spool;
mod stream_name;
pub mod tap;

use clap::{Parser, Subcommand};

/// Takes the webhooks of Customers Mail Cloud and puts each mail's event into Apache Kafka, once.
#[derive(Debug, Parser)]
#[command(name = "cmc-bridge", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Configuration: built-in defaults, then the files named by --config in their order, then environment variables:
CMC_BRIDGE__ and the key in upper case, __ for each dot (CMC_BRIDGE__INGEST__LISTEN is ingest.listen).
config/default.toml shows and explains every key.

Exit codes: 0 success, 64 wrong command line, 65 wrong or damaged data, 69 something needed is unavailable, 74 disk or file error,
78 configuration refused.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive webhooks and deliver their events to Kafka, until SIGTERM
    Serve(serve::ServeArgs),
    /// Try it out on this machine: no Kafka and no credentials needed
    Dev(dev::DevArgs),
    /// Validate the configuration and show what would run, without starting anything
    ///
    /// Opens no port and writes nothing. Exits with 0 if `serve` would accept the configuration, with 78 if not.
    Check(check::CheckArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Post sample webhooks to a bridge, as Customers Mail Cloud would
    #[command(after_help = send_sample::AFTER_HELP)]
    SendSample(send_sample::SendSampleArgs),
    /// Print the events of the topics as they come
    #[command(after_help = tap::AFTER_HELP)]
    Tap(tap::TapArgs),
    /// Say what a webhook's body would become, or what is wrong with it and where
    #[command(after_help = explain::AFTER_HELP)]
    Explain(explain::ExplainArgs),
    /// Look into a spool, save, deliver or repair what is in it
    #[command(subcommand)]
    Spool(spool::SpoolCommand),
    /// List dead letters, and deliver those that are understood by now
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Print a completion script for a shell
    #[command(after_help = completions::AFTER_HELP)]
    Completions(completions::CompletionsArgs),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its value and where that came from, as TOML; secrets are redacted
    Show(config_show::ShowArgs),
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{CommandFactory, ValueEnum};
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_may_be_repeated() {
        let cli = Cli::try_parse_from(["cmc-bridge", "config", "show", "--config", "a", "-c", "b"]).unwrap();
        let Command::Config(ConfigCommand::Show(args)) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.config.files, [PathBuf::from("a"), PathBuf::from("b")]);
    }

    #[test]
    fn dev_listens_on_loopback() {
        let cli = Cli::try_parse_from(["cmc-bridge", "dev", "--sample"]).unwrap();
        let Command::Dev(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert!(args.listen.ip().is_loopback() && args.admin_listen.ip().is_loopback());
        assert!(args.sample);
    }

    #[test]
    fn every_shell_learns_the_commands() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            let args = completions::CompletionsArgs { shell: *shell };
            completions::run(&args, Cli::command(), &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            for word in ["serve", "send-sample", "tap", "explain", "from-beginning"] {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
    }

    #[test]
    fn streams_have_both_spellings() {
        for name in ["dead-letters", "dead_letters"] {
            let cli = Cli::try_parse_from(["cmc-bridge", "tap", "--stream", name]).unwrap();
            let Command::Tap(args) = cli.command else {
                panic!("{cli:?}")
            };
            assert_eq!(args.stream, [crate::stream::Stream::DeadLetters]);
        }
    }
}
