//! Why the spool can't go on.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::access::Explained;

/// The spool can't go on. The process should end with 74, or with 69 when another one holds the lock.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}{}", path.display(), Explained(path, source))]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The directory's manifest or format can't be used.
    #[error("{} can't be used as a spool: {what}", path.display())]
    Unusable { path: PathBuf, what: String },
    /// Another process has the spool open.
    #[error(
        "{} is locked: another cmc-bridge has this spool open. Stop it first, or give each its own spool.dir",
        path.display()
    )]
    Locked { path: PathBuf },
}

impl SpoolError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
        move |source| SpoolError::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether the disk has no room: it may have again later.
    pub fn is_no_space(&self) -> bool {
        matches!(self, SpoolError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
