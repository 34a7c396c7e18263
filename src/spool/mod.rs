//! Stand-in: the interface of the spool that ingest and admin use.

use std::time::Duration;

use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;

use crate::{batch::Batch, stream::Tally};

#[derive(Clone)]
pub struct Appender;

impl Appender {
    pub async fn append(
        &self,
        _batch: Batch,
        _tally: Tally,
        _permit: OwnedSemaphorePermit,
        _limit: Duration,
    ) -> Result<(), AppendError> {
        Ok(())
    }

    pub fn state(&self) -> LogState {
        LogState::Accepting
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AppendError {
    #[error("full")]
    Full,
    #[error("failed")]
    Failed,
    #[error("closed")]
    Closed,
    #[error("too slow")]
    TooSlow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    Accepting,
    Full,
    Failed,
}
