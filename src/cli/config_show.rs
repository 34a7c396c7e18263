//! `cmc-bridge config show`: every key with its value and origin, as TOML, secrets redacted.
//!
//! A refused configuration is shown too, because that is when one needs to see where a value comes from. Its problems
//! follow.

use std::io::Write;

use clap::Args;

use super::config_args::ConfigArgs;
use crate::{
    cli::exit::Exit,
    config::{self, Origin, to_toml},
};

/// The arguments of `config show`.
#[derive(Args, Clone, Debug, Default)]
pub struct ShowArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Leave out keys that have their default
    #[arg(long)]
    pub changed: bool,
}

/// Prints the configuration.
///
/// # Errors
/// 78: the configuration is refused; it is printed all the same.
pub fn run(args: &ShowArgs, out: &mut impl Write) -> Result<(), Exit> {
    let environment = config::environment()?.into_iter();
    let (mut settings, verdict) = config::settings(&args.config.files(), environment)?;
    if args.changed {
        settings.retain(|setting| setting.origin != Origin::Default);
        if settings.is_empty() {
            writeln!(out, "# every setting has its default")?;
        }
    }
    out.write_all(to_toml(&settings).as_bytes())?;
    out.flush()?;
    Ok(verdict?)
}
