//! What the spool needs of a disk: narrow traits, implemented by the file system and, in tests, by a simulated disk.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate},
    io::Errno,
};

use super::{access, error::SpoolError};

/// The reading half of a disk. Paths are those of the file system.
pub trait ReadStorage: Send + Sync {
    /// The names of a directory's files, in no particular order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
}

/// A disk.
pub trait Storage: ReadStorage {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Creates an empty file, or empties the one of that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Opens an existing file for reading and writing.
    fn open_for_writing(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;
    /// Atomic; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Durable after [`Storage::sync_dir`]. A missing file is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file open for reading.
pub trait ReadFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    fn size(&self) -> io::Result<u64>;
}

/// Reads up to `len` bytes from `offset` on.
///
/// # Errors
/// The read failed.
pub fn read_up_to(file: &dyn ReadFile, len: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let n = file.read_at(&mut bytes, offset)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// A file open for reading and writing.
pub trait StorageFile: ReadFile {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// `fdatasync`: data and length are durable when it returns.
    fn sync_data(&self) -> io::Result<()>;
    /// Whether the file, opened by this name, was deleted or moved, so that the next start won't find what is written to it. A
    /// file system that doesn't count links may report this for every file.
    fn is_gone_from(&self, path: &Path) -> io::Result<bool>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Allocates room for these bytes (at least one), which become zeros, without writing them. False on a file system that
    /// can't do that; only a write then shows whether there is room.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool>;
    /// Drops the file's synced bytes from the page cache.
    fn uncache(&self);
}

/// Replaces a file, or creates it, atomically and durably.
///
/// # Errors
/// The disk failed; the file may have either content.
pub fn replace(storage: &dyn Storage, dir: &Path, name: &str, content: &[u8]) -> Result<(), SpoolError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let write = || -> io::Result<()> {
        let file = storage.create(&temporary)?;
        file.write_all_at(content, 0)?;
        file.sync_data()?;
        storage.rename(&temporary, &path)?;
        storage.sync_dir(dir)
    };
    write().map_err(SpoolError::io("write", &path))
}

/// How long to wait for a file descriptor, and how long between two tries.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(30);
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(50);

/// Opens something. While file descriptors are used up, tries again: connections take them and release them when they time out.
fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::MFILE | Errno::NFILE)
                ) && begun.elapsed() < DESCRIPTOR_WAIT =>
            {
                thread::sleep(DESCRIPTOR_RETRY);
            }
            result => return result,
        }
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl ReadStorage for FileSystem {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        patiently(|| fs::read_dir(dir))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(patiently(|| File::open(path))?))
    }
}

impl Storage for FileSystem {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        access::create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(patiently(|| access::open(&mut options, path))?))
    }

    fn open_for_writing(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Ok(Box::new(patiently(|| options.open(path))?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        patiently(|| File::open(dir))?.sync_all()
    }
}

impl ReadFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl StorageFile for File {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn is_gone_from(&self, path: &Path) -> io::Result<bool> {
        // Inode numbers are not compared: on some file systems they change.
        let moved = fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        Ok(moved || self.metadata()?.nlink() == 0)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            match fallocate(self, FallocateFlags::empty(), offset, len) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
                result => return Ok(result.map(|()| true)?),
            }
        }
    }

    fn uncache(&self) {
        // This is only advice: it affects nothing but speed.
        let _ = fadvise(self, 0, None, Advice::DontNeed);
    }
}
