//! Opens a log: finds its contents, its end and its damage.
//!
//! The rules are in the module head of [`super`]. Opening a log has two halves:
//!
//! - [`inspect`](mod@inspect) only reads. A survey ([`super::survey`]) uses it, too, and so comes to the same verdict.
//! - [`settle`] makes durable what was found, because what was read may exist only in the page cache.
//!
//! Only the spare segment is removed here, and nothing is cut. The caller does that ([`super::log`]); if it doesn't, the next
//! start finds the same end.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`inspect`](mod@inspect) | the reading half: position, segments, end, damage |
//! | [`rebuild`] | damaged segment headers, for a survey |
//! | [`settle`] | the writing half: a new log, and what was found made durable |

mod inspect;
mod rebuild;
mod settle;

use std::path::Path;

use super::{checkpoint::Checkpoint, error::SpoolError, storage::Storage};

pub use inspect::{Inspection, inspect, inspect_salvaged, manifest_of, read_header, segment_ids};

/// Opens the log in `dir`, which is created if missing. The checkpoint is `None` if it has no readable position, which is
/// damage.
///
/// # Errors
/// The disk failed, or the manifest can't be used.
pub fn recover(storage: &dyn Storage, dir: &Path) -> Result<(Inspection, Option<Checkpoint>), SpoolError> {
    settle::clear(storage, dir)?;
    let manifest = match manifest_of(storage, dir)? {
        Some(manifest) => manifest,
        None => settle::begin(storage, dir)?,
    };
    let found = inspect(storage, dir, manifest)?;
    let checkpoint = settle::settle(storage, dir, &found)?;
    Ok((found, checkpoint))
}
