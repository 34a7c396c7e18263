//! Stopping the server in two steps.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::sync::Notify;

const SERVING: u8 = 0;
const LAME_DUCK: u8 = 1;
const STOPPING: u8 = 2;

/// Stops a server, in two steps. Clones stop the same server.
#[derive(Clone, Default)]
pub struct StopHandle(Arc<Stop>);

#[derive(Default)]
struct Stop {
    /// Each request reads it. It only grows.
    step: AtomicU8,
    stopping: Notify,
}

impl StopHandle {
    /// Keeps serving, but closes each connection with its next answer.
    pub fn lame_duck(&self) {
        self.0.step.fetch_max(LAME_DUCK, Ordering::SeqCst);
    }

    /// Accepts no more connections, finishes the requests that have begun, and ends the server.
    pub fn stop(&self) {
        self.0.step.fetch_max(STOPPING, Ordering::SeqCst);
        self.0.stopping.notify_waiters();
    }

    pub(super) fn is_serving(&self) -> bool {
        self.0.step.load(Ordering::SeqCst) == SERVING
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.step.load(Ordering::SeqCst) == STOPPING
    }

    /// Ends once the server has been asked to stop.
    pub(super) async fn stopping(&self) {
        // Made before the step is read, so that no stop between the two is missed.
        let notified = self.0.stopping.notified();
        if !self.is_stopping() {
            notified.await;
        }
    }
}
