//! What the spool needs of a disk: a narrow trait with the file system behind it, and in tests a simulated disk.

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

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A new, empty file, to read and write; one of that name is emptied.
    Create,
}

/// A disk. Paths are those of the file system.
pub trait Storage: Send + Sync {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names of a directory's files, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageFile>>;
    /// Atomic; durable after [`Storage::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Durable after [`Storage::sync_dir`]; a file that is not there is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file.
pub trait StorageFile: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// `fdatasync`: data and length are durable when it returns.
    fn sync_data(&self) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    /// Whether the file, opened by this name, was deleted or moved: what is written to it is not found by the next open,
    /// synced or not. A file system that doesn't count names may say so of every file.
    fn is_gone_from(&self, path: &Path) -> io::Result<bool>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes the room for these bytes, which must be some and become zeros, without writing them. False on a file system
    /// that can't do that: a write tells then whether there is room.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool>;
    /// Lets the memory go in which the file's synced bytes are cached. They are read from the disk then.
    fn uncache(&self);
}

/// Most time to wait for a file descriptor, and between two tries.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(30);
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(50);

/// Opens something; while descriptors are used up, which is the connections' doing and ends with their time limits, again.
fn patiently<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
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

/// The real thing.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem;

impl Storage for FileSystem {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        patiently(|| fs::read_dir(dir))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match access {
            Access::Read => {}
            Access::Write => {
                options.write(true);
            }
            Access::Create => {
                options.write(true).create(true).truncate(true);
            }
        }
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

impl StorageFile for File {
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

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn is_gone_from(&self, path: &Path) -> io::Result<bool> {
        // Not by inode numbers: there are file systems where they change.
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
        // Advice: whether it is taken changes nothing but the speed.
        let _ = fadvise(self, 0, None, Advice::DontNeed);
    }
}
