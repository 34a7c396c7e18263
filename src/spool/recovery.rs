//! Opening a log: what is there, where it ends, and whether anything is damaged.
//!
//! The module head of [`super`] has the rules. An open has two halves:
//!
//! - [`inspect`] only reads, and so a survey ([`super::survey`]) comes to the same verdict.
//! - [`settle`] makes what was found durable: what was read may stand in the page cache only.
//!
//! An open removes the spare segment and nothing else. It cuts nothing either: that is the caller's, and the next open
//! would find the same end either way.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`inspect`] | the reading half: position, segments, end, damage |
//! | [`rebuild`] | damaged segment headers, for a survey |
//! | [`settle`] | the writing half: a new log, and what was found made durable |

mod inspect;
mod rebuild;
mod settle;

use std::path::Path;

use super::{checkpoint::Checkpoint, error::SpoolError, storage::Storage};

pub use inspect::{Inspection, inspect, inspect_salvaged, manifest_of, read_header, segment_ids};

/// Opens the log in `dir`, which is created when missing. The checkpoint is `None` when it has no readable position, which
/// is damage.
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
