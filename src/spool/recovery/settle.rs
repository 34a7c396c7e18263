//! The writing half of opening a log: makes durable what the inspection relied on.

use std::path::Path;

use super::inspect::{Inspection, MARK};
use crate::spool::{
    DamageKind, Manifest, Position, SpoolError,
    checkpoint::Checkpoint,
    next_segment::SPARE,
    segment,
    storage::{Storage, replace},
};

/// Creates the directory when it is missing, and removes the spare segment, which may take the room that the rest needs.
///
/// # Errors
/// The disk fails; the log can't be opened.
pub fn clear(storage: &dyn Storage, dir: &Path) -> Result<(), SpoolError> {
    storage
        .create_dir_all(dir)
        .and_then(|()| match dir.parent() {
            Some(parent) => storage.sync_dir(parent),
            None => Ok(()),
        })
        .map_err(SpoolError::io("create the directory", dir))?;
    storage
        .remove(&dir.join(SPARE))
        .map_err(SpoolError::io("remove the spare segment in", dir))
}

/// Begins a new log.
///
/// # Errors
/// The disk fails; the log can't be opened.
pub fn begin(storage: &dyn Storage, dir: &Path) -> Result<Manifest, SpoolError> {
    let manifest = Manifest::begin();
    // The checkpoint first: a manifest then always has one beside it.
    Checkpoint::create(storage, dir, manifest.log_id.into_bytes(), Position::default())?;
    manifest.write(storage, dir)?;
    Ok(manifest)
}

/// Makes manifest, position and last commit durable, and notes damage that the next start would not see.
///
/// # Errors
/// The disk fails; the log can't be opened.
pub fn settle(
    storage: &dyn Storage,
    dir: &Path,
    found: &Inspection,
) -> Result<Option<Checkpoint>, SpoolError> {
    settle_manifest(storage, dir, found)?;
    let log_id = found.manifest.log_id.into_bytes();
    let open = |stored| Checkpoint::open(storage, dir, log_id, stored);
    let checkpoint = found.stored.map(open).transpose()?;
    write_end_again(storage, dir, found)?;
    if let Some(blocking) = &found.blocking
        && blocking.kind != DamageKind::Earlier
    {
        // The fresh segment will hide it from the next start.
        replace(storage, dir, MARK, blocking.to_string().as_bytes())?;
    }
    storage.sync_dir(dir).map_err(SpoolError::io("sync", dir))?;
    Ok(checkpoint)
}

/// Makes both copies of the manifest whole, if the disk has room for that.
fn settle_manifest(storage: &dyn Storage, dir: &Path, found: &Inspection) -> Result<(), SpoolError> {
    if found.manifest_whole {
        return Ok(());
    }
    match found.manifest.write(storage, dir) {
        Err(error) if !error.is_no_space() => Err(error),
        _ => Ok(()),
    }
}

/// Writes the last commit again and syncs it: after a crash between write and sync, or after a failed sync, it is only in
/// the page cache.
fn write_end_again(storage: &dyn Storage, dir: &Path, found: &Inspection) -> Result<(), SpoolError> {
    let (Some((id, _)), Some(commit)) = (found.last, &found.last_commit) else {
        return Ok(());
    };
    let path = dir.join(segment::file_name(id));
    let file = storage
        .open_for_writing(&path)
        .map_err(SpoolError::io("open", &path))?;
    file.write_all_at(&commit.bytes, commit.at)
        .and_then(|()| file.sync_data())
        .map_err(SpoolError::io("write again the end of", &path))
}
