//! `cmc-bridge serve`: the bridge itself.

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tracing::{info, warn};

use super::{config_args::ConfigArgs, signals::stop_signals};
use crate::{bridge::Bridge, cli::exit::Exit, config::Loaded, logging};

pub const AFTER_HELP: &str = "\
SIGTERM or SIGINT stops it: requests in flight are answered, and events that Kafka doesn't have yet stay in the spool for
the next start. A second signal stops it at once, which loses nothing either.

Example:
  cmc-bridge serve --config /etc/cmc-bridge/cmc-bridge.toml";

/// The arguments of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Serves until SIGTERM or SIGINT; a second one ends it at once.
///
/// # Errors
/// What keeps the bridge from starting, or a failure that ends it.
pub fn run(loaded: Loaded) -> Result<(), Exit> {
    loaded.require_credentials()?;
    let _logging = logging::init(&loaded.config.log)?;
    info!(version = env!("CARGO_PKG_VERSION"), "cmc-bridge starts");
    let mut config = loaded.config;
    config.ingest.max_connections = within_descriptors(config.ingest.max_connections);
    let runtime = Runtime::new()?;
    let result: Result<(), Exit> = runtime.block_on(async {
        let stop = stop_signals()?;
        Ok(Bridge::start(config).await?.run(stop).await?)
    });
    // Lanes that still wait for Kafka don't delay the end: their events are on disk.
    runtime.shutdown_background();
    result
}

/// File descriptors reserved for the spool, Kafka and the admin port.
const OWN_DESCRIPTORS: u64 = 256;

/// Raises the limit of open files as far as allowed, and returns how many of the wanted connections fit.
fn within_descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let room = now.map_or(u64::MAX, |now| now.saturating_sub(OWN_DESCRIPTORS).max(16));
    if (wanted as u64) <= room {
        return wanted;
    }
    warn!(
        max_connections = wanted,
        possible = room,
        "fewer connections than configured: raise the limit of open files (ulimit -n)"
    );
    room as usize
}
