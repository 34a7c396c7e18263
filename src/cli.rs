//! The command line.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`check`] | check: is the configuration right, what would run |
//! | [`completions`] | completions |
//! | [`config_show`] | config show |
//! | [`credentials`] | what it presents |
//! | [`dead_letters`] | dead-letters: its subcommands |
//! | [`dev`] | dev: with an embedded broker, printing events |
//! | [`excerpt`] | a place in a text, with the text around it |
//! | [`exit`] | sysexits codes: how each error ends the process |
//! | [`explain`] | explain: what a body would become, by ingest's own code |
//! | [`output`] | standard output that may be closed |
//! | [`post`] | posts webhooks on a connection |
//! | [`progress`] | a progress bar |
//! | [`recipe`] | webhooks made to order |
//! | [`records`] | records in print, text or JSON; of dev, too |
//! | [`samples`] | the webhooks that dev posts |
//! | [`send_sample`] | send-sample: posts many webhooks, sums up the answers |
//! | [`serve`] | serve: the bridge until SIGTERM |
//! | [`spool`] | spool: its subcommands |
//! | [`tap`] | tap: prints the topics' events as they come |

pub mod check;
pub mod completions;
pub mod config_show;
mod credentials;
pub mod dead_letters;
pub mod dev;
mod excerpt;
pub mod exit;
pub mod explain;
pub mod output;
mod post;
mod progress;
mod recipe;
mod records;
mod samples;
pub mod send_sample;
pub mod serve;
pub mod spool;
pub mod tap;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, ConfigError, Loaded};

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

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file (TOML); may be repeated, later files win key by key
    #[arg(long = "config", short = 'c', value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl ConfigArgs {
    /// Loads the files and this process's environment.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(&self.files, config::environment()?.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
}
