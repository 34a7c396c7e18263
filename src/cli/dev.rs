//! `cmc-bridge dev`: the bridge on one machine, to try it out.

use std::net::SocketAddr;

use clap::Args;

use super::ConfigArgs;

/// The arguments of `dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Where to receive webhooks; anonymous ones only on a loopback address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where to serve metrics and probes
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub admin_listen: SocketAddr,
    /// Post a few sample webhooks, as the sender would, once it is ready
    #[arg(long)]
    pub sample: bool,
}
