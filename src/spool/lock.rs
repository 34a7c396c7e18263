//! One process per spool: an advisory lock (`flock`) on `<spool.dir>/lock`.
//!
//! A process that writes or delivers a log holds the lock until it ends ([`SpoolLock::until_the_process_ends`]). After a failure,
//! a panic or a second signal it doesn't wait for its writer and lane threads, which may run until the kernel ends them. The kernel
//! releases the lock after the last system call of the last of them.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io, mem,
    path::{Path, PathBuf},
};

use super::{access, error::SpoolError};

/// Holds the spool's lock for as long as it lives.
#[derive(Debug)]
pub struct SpoolLock {
    _file: File,
}

impl SpoolLock {
    /// Locks the spool in `dir`, which is created if missing, and closes its files to other users.
    ///
    /// # Errors
    /// Another process holds the lock, or the disk failed.
    pub fn acquire(dir: &Path) -> Result<SpoolLock, SpoolError> {
        create_durably(dir).map_err(SpoolError::io("create the directory", dir))?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = access::open(&mut options, &path).map_err(SpoolError::io("open", &path))?;
        let lock = lock(file, path)?;
        access::restrict(dir);
        Ok(lock)
    }

    /// Holds the lock until the process ends: nothing drops it.
    pub fn until_the_process_ends(self) {
        mem::forget(self);
    }

    /// Locks the spool in `dir` without writing anything; `None` if it has no lock file, as a copy may, because then nobody has
    /// it open.
    ///
    /// # Errors
    /// Another process holds the lock, or the disk failed.
    pub fn of_existing(dir: &Path) -> Result<Option<SpoolLock>, SpoolError> {
        let path = dir.join("lock");
        match File::open(&path) {
            Ok(file) => lock(file, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SpoolError::io("open", &path)(error)),
        }
    }
}

fn lock(file: File, path: PathBuf) -> Result<SpoolLock, SpoolError> {
    match file.try_lock() {
        Ok(()) => Ok(SpoolLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(SpoolError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(SpoolError::io("lock", &path)(source)),
    }
}

/// Creates a directory and those above it that are missing, and makes the new names durable: without them nothing
/// below would survive a power loss.
fn create_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    access::create_dir_all(dir)?;
    for created in missing {
        let parent = match created.parent() {
            // A relative path has an empty parent.
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => continue,
        };
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_created() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/spool");
        drop(SpoolLock::acquire(&deep).unwrap());
        SpoolLock::acquire(&deep).unwrap();
    }

    #[test]
    fn the_second_one_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = SpoolLock::acquire(dir.path()).unwrap();
        let refusal = SpoolLock::acquire(dir.path()).unwrap_err();
        assert!(matches!(refusal, SpoolError::Locked { .. }));
        assert!(refusal.to_string().contains("another cmc-bridge"));
        drop(first);
        SpoolLock::acquire(dir.path()).unwrap();
    }
}
