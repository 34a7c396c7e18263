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
//! | [`reconcile`] | adds to the topics what the sender has and they lack |
//! | [`send_sample`] | posts many webhooks and sums up the answers |
//! | [`serve`] | runs the bridge until SIGTERM |
//! | [`spool`] | lists, verifies, exports, drains and repairs a spool |
//! | [`tap`] | prints the records of the topics as they arrive |
//! | [`top`] | shows running bridges in a terminal |
//! | [`why`] | says what is wrong with a running bridge |
//!
//! | what they share | what it is |
//! |---|---|
//! | [`bridge_status`] | the status of a running bridge, from its admin port |
//! | [`config_args`] | `--config` and `CMC_BRIDGE_CONFIG` |
//! | [`exit`] | exit codes: how each error ends the process |
//! | [`output`] | standard output that may be closed, and lines on standard error |
//! | [`percentile`](mod@percentile) | percentiles |
//! | [`progress_bar`] | a progress bar on standard error |
//! | [`records`] | prints Kafka records as text or JSON |
//! | [`signals`] | SIGINT and SIGTERM |
//! | `stream_name` | streams by name on the command line |

mod bridge_status;
pub mod check;
pub mod completions;
mod config_args;
pub mod config_show;
pub mod dead_letters;
pub mod dev;
pub mod exit;
pub mod explain;
pub mod output;
mod percentile;
mod progress_bar;
pub mod reconcile;
mod records;
pub mod send_sample;
pub mod serve;
mod signals;
pub mod spool;
mod stream_name;
pub mod tap;
pub mod top;
pub mod why;

use clap::{Parser, Subcommand};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "cmc-bridge", version, about = ABOUT, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const ABOUT: &str = "\
Receives the webhooks of Customers Mail Cloud, a mail delivery service, and delivers each mail's event to Apache Kafka
exactly once. A webhook is answered with 200 only when its events are on disk, so they survive crashes and outages of Kafka.";

const AFTER_HELP: &str = "\
Try it without Kafka: cmc-bridge dev --sample

Configuration comes from the built-in defaults, then the files given with --config in order (without it, those in
CMC_BRIDGE_CONFIG, separated by colons), then environment variables.
A variable is CMC_BRIDGE__ and the key in upper case, with __ for each dot: CMC_BRIDGE__INGEST__LISTEN sets ingest.listen.
config/default.toml lists and explains every key.

Exit codes: 0 success, 1 and 2 what `why` found, 64 wrong command line, 65 wrong or damaged data, 69 something needed is
unavailable, 74 disk or file error, 75 undecided as yet, 78 configuration refused.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Receive webhooks and deliver their events to Kafka until SIGTERM
    #[command(after_help = serve::AFTER_HELP)]
    Serve(serve::ServeArgs),
    /// Try the bridge on this machine, without Kafka or credentials
    #[command(after_help = dev::AFTER_HELP)]
    Dev(dev::DevArgs),
    /// Check the configuration and show what would run, without starting anything
    ///
    /// Opens no port and writes nothing. Exits with 0 if `serve` would accept the configuration, otherwise with 78.
    #[command(after_help = check::AFTER_HELP)]
    Check(check::CheckArgs),
    /// Show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Post sample webhooks to a bridge, as Customers Mail Cloud does
    #[command(after_help = send_sample::AFTER_HELP)]
    SendSample(send_sample::SendSampleArgs),
    /// Ask a running bridge what is wrong, since when, what it costs and what to do
    #[command(after_help = why::AFTER_HELP)]
    Why(why::WhyArgs),
    /// Show running bridges in a terminal: state, rates, backlog, lanes, problems, refusals
    #[command(after_help = top::AFTER_HELP)]
    Top(top::TopArgs),
    /// Print the events on the topics as they arrive
    #[command(after_help = tap::AFTER_HELP)]
    Tap(tap::TapArgs),
    /// Show what a webhook's body would become, or what is wrong with it and where
    #[command(after_help = explain::AFTER_HELP)]
    Explain(explain::ExplainArgs),
    /// List, verify, export, deliver or repair the contents of a spool
    #[command(subcommand)]
    Spool(spool::SpoolCommand),
    /// List dead letters, or replay them and deliver what is understood now
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Add to the topics what Customers Mail Cloud has and they lack, after an outage
    #[command(after_help = reconcile::AFTER_HELP)]
    Reconcile(reconcile::ReconcileArgs),
    /// Print a shell completion script
    #[command(after_help = completions::AFTER_HELP)]
    Completions(completions::CompletionsArgs),
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its value and origin, as TOML; secrets are redacted
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
        assert_eq!(args.config.files(), [PathBuf::from("a"), PathBuf::from("b")]);
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
