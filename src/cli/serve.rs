//! `cmc-bridge serve`: the bridge itself.

use clap::Args;

use super::ConfigArgs;

/// The arguments of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}
