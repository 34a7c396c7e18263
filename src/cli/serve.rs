//! `cmc-bridge serve`: the bridge itself.

use clap::Args;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::info;

use super::ConfigArgs;
use crate::{bridge::Bridge, config::Loaded, exit::Exit, logging};

/// The arguments of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Serves until SIGTERM or SIGINT; a second one ends it at once.
pub fn run(loaded: Loaded) -> Result<(), Exit> {
    loaded.require_credentials()?;
    logging::init(&loaded.config.log)?;
    info!(version = env!("CARGO_PKG_VERSION"), "cmc-bridge begins");
    let runtime = Runtime::new()?;
    let result = runtime.block_on(async {
        let stop = stop_signals()?;
        Bridge::start(loaded.config).await?.run(stop).await
    });
    // Lanes that still wait for Kafka must not hold up the end: their events are on disk.
    runtime.shutdown_background();
    result
}

/// A word for each SIGTERM or SIGINT of this process.
pub fn stop_signals() -> Result<mpsc::Receiver<()>, Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (words, stop) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if words.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(stop)
}
