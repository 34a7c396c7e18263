//! SIGINT and SIGTERM, for commands that end when asked.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::cli::exit::Exit;

/// Receives one message for each SIGINT or SIGTERM. Call it within a runtime.
///
/// # Errors
/// The system refuses a signal handler.
pub fn stop_signals() -> Result<mpsc::Receiver<()>, Exit> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, stop) = mpsc::channel(4);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(stop)
}

/// A flag that the first signal sets; the second one ends the process. For commands without a runtime.
///
/// # Errors
/// The system refuses a signal handler or a thread.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Exit> {
    let flag = Arc::new(AtomicBool::new(false));
    let (set, runtime) = (Arc::clone(&flag), Runtime::new()?);
    let mut stop = runtime.block_on(async { stop_signals() })?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                stop.recv().await;
                set.store(true, Ordering::Relaxed);
                stop.recv().await;
                std::process::exit(130);
            });
        })?;
    Ok(flag)
}
