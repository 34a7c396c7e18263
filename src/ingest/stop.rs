//! Stopping the server in two steps.

use std::sync::Arc;

use tokio::sync::watch;

/// Stops a server, in two steps. Clones stop the same server.
#[derive(Clone)]
pub struct StopHandle(Arc<watch::Sender<Stage>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    LameDuck,
    Stopping,
}

impl StopHandle {
    pub(super) fn new() -> StopHandle {
        StopHandle(Arc::new(watch::Sender::new(Stage::Serving)))
    }

    /// Keeps serving, but closes each connection with its next answer.
    pub fn lame_duck(&self) {
        self.advance(Stage::LameDuck);
    }

    /// Accepts no more connections, finishes the requests that have begun, and ends the server.
    pub fn stop(&self) {
        self.advance(Stage::Stopping);
    }

    fn advance(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let advances = to > *stage;
            *stage = to.max(*stage);
            advances
        });
    }

    pub(super) fn is_serving(&self) -> bool {
        *self.0.borrow() == Stage::Serving
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.0.borrow() == Stage::Stopping
    }

    /// Ends once the server has been asked to stop.
    pub(super) async fn stopping(&self) {
        // The sender lives as long as `self`, so there is always a stage to wait for.
        let _ = self
            .0
            .subscribe()
            .wait_for(|stage| *stage == Stage::Stopping)
            .await;
    }
}
