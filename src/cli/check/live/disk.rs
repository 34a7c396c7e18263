//! Measures the spool's disk: time of a sync, kind of file system, bytes used.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::cli::percentile::percentile;

/// About one webhook's worth.
const WRITE: usize = 4096;
/// Filled first, like the spool's segments, so that a sync writes no file metadata.
const FILE: usize = 1 << 20;
const SYNCS: usize = 100;
/// Enough time to see that a disk is slow.
const LIMIT: Duration = Duration::from_secs(10);

/// How long `fdatasync` took after small writes.
#[derive(Debug, PartialEq, Eq)]
pub struct SyncTimes {
    pub count: usize,
    pub p50: Duration,
    pub p99: Duration,
}

/// Writes and syncs a file without a name, which disappears with this process however it ends.
///
/// # Errors
/// The directory can't be written, or a sync fails.
pub fn sync_times(dir: &Path) -> io::Result<SyncTimes> {
    let file = tempfile::tempfile_in(dir)?;
    file.write_all_at(&vec![0; FILE], 0)?;
    file.sync_all()?;
    let start = Instant::now();
    let mut times = Vec::with_capacity(SYNCS);
    while times.len() < SYNCS && (times.is_empty() || start.elapsed() < LIMIT) {
        times.push(write_and_sync(&file, times.len())?);
    }
    times.sort_unstable();
    Ok(SyncTimes {
        count: times.len(),
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
    })
}

fn write_and_sync(file: &File, number: usize) -> io::Result<Duration> {
    let start = Instant::now();
    let offset = (number * WRITE % FILE) as u64;
    file.write_all_at(&[b'x'; WRITE], offset)?;
    file.sync_data()?;
    Ok(start.elapsed())
}

/// Why this kind of file system is unfit for a spool; `None` if it is fit.
pub fn doubtful_kind(dir: &Path) -> Option<&'static str> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const OVERLAYFS: u64 = 0x794c_7630;
    const NFS: u64 = 0x6969;
    let kind = rustix::fs::statfs(dir).ok()?.f_type as u64;
    match kind & 0xffff_ffff {
        TMPFS | RAMFS => {
            Some("is in memory: acknowledged events are lost when this machine stops. Put it on a disk")
        }
        OVERLAYFS => {
            Some("is in the container's own layer, which is lost with the container. Mount a volume there")
        }
        NFS => {
            Some("is on NFS: durability and locks depend on the server. Use a local disk or a block volume")
        }
        _ => None,
    }
}

/// The total size of the files below a directory, in bytes.
pub fn used(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => used(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let times = sync_times(dir.path()).unwrap();
        assert!(times.count > 0 && times.p50 <= times.p99, "{times:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn used_counts_all_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), [0; 300]).unwrap();
        std::fs::write(dir.path().join("c"), [0; 5]).unwrap();
        assert_eq!(used(dir.path()), 305);
        assert_eq!(used(&dir.path().join("nowhere")), 0);
    }
}
