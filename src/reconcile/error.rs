//! Why a reconciliation ends early.

use thiserror::Error;

use crate::{kafka::broker::BrokerError, sender_api::ApiError};

/// Why a reconciliation ended early. Nothing was added, unless the error says so; run it again.
#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The topics may have forgotten events, which would look missing.
    #[error("{0}. Nothing was added, because what the topic has forgotten would look missing")]
    Forgotten(String),
    /// Replicas hold events, or can't be asked.
    #[error(
        "{0}. Nothing was added, because what a replica still holds would look missing. Wait until the replica has delivered it, \
         or wait longer with --wait"
    )]
    Replica(String),
    #[error(
        "more than {0} events seem to be missing. Nothing was added. If an outage explains that many, raise --most or choose \
         fewer days"
    )]
    TooMany(usize),
    #[error("stopped before anything was added")]
    Stopped,
    #[error(
        "{added} events were added before this failed: {error}. Run it again: what is on the topic is not added twice"
    )]
    Adding { added: u64, error: String },
}
