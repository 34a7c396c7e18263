//! Why a bridge did not start, or ended.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

use crate::{ingest::PairError, spool::SpoolError};

/// Why a bridge did not start, or ended.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// The certificate or key that the configuration names can't be used.
    #[error(transparent)]
    Certificate(#[from] PairError),
    /// The spool can't be opened, or a log or lane failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A thread can't be started.
    #[error(transparent)]
    Thread(#[from] io::Error),
    /// An address can't be bound.
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen {
        /// The configuration key that names the address.
        key: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    /// A port's task or thread panicked: a bug. A process that runs and does nothing would hide it.
    #[error("{0} is no longer served: the log above says why")]
    PortLost(&'static str),
    /// Two metrics have the same name: a bug.
    #[error("metrics could not be registered: {0}")]
    Metrics(#[from] prometheus::Error),
    /// There is no log to drain in this directory.
    #[error("{} holds no stream's log of a spool", .0.display())]
    NoLogs(PathBuf),
}
