//! A disk that takes no writes and reads around what it can't read: for looking at a log.
//!
//! It says yes to every change and makes none. A read of a segment or of the checkpoint that ends with EIO is done again
//! sector by sector. A sector that fails reads as zeros, over which no checksum of a record or header holds (unless zeros
//! are what stood there), and is noted: a failing disk may take seconds for each try, so it is not asked twice. Every
//! other error, and one of another file, is the caller's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{
    checkpoint, segment,
    storage::{Access, Storage, StorageFile},
};

/// What the kernel reads, or fails to read, as one.
const SECTOR: u64 = 4096;

/// Beginnings of the sectors that could not be read, for each file.
type Noted = Arc<Mutex<BTreeMap<PathBuf, BTreeSet<u64>>>>;

pub struct ReadOnly {
    disk: Arc<dyn Storage>,
    noted: Noted,
}

struct ReadOnlyFile {
    /// `None` for one that would have been created.
    file: Option<Box<dyn StorageFile>>,
    path: PathBuf,
    /// Whether what can't be read is noted; else it is an error.
    read_around: bool,
    noted: Noted,
}

impl ReadOnly {
    pub fn new(disk: Arc<dyn Storage>) -> ReadOnly {
        ReadOnly {
            disk,
            noted: Noted::default(),
        }
    }

    /// The bytes of a file that could not be read, of those that were asked for so far: ranges in order, with room between.
    pub fn refused(&self, path: &Path) -> Vec<(u64, u64)> {
        let noted = self.noted.lock();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for sector in noted.get(path).into_iter().flatten() {
            match ranges.last_mut() {
                Some((_, end)) if end == sector => *end += SECTOR,
                _ => ranges.push((*sector, sector + SECTOR)),
            }
        }
        ranges
    }
}

/// Whether any of the ranges has bytes in common with `from..to`.
pub fn touch(ranges: &[(u64, u64)], from: u64, to: u64) -> bool {
    ranges.iter().any(|(begin, end)| *begin < to && from < *end)
}

impl Storage for ReadOnly {
    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn StorageFile>> {
        let file = match access {
            Access::Read | Access::Write => Some(self.disk.open(path, Access::Read)?),
            Access::Create => None,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Box::new(ReadOnlyFile {
            file,
            path: path.to_path_buf(),
            read_around: name == checkpoint::NAME || segment::parse_file_name(&name).is_some(),
            noted: Arc::clone(&self.noted),
        }))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl StorageFile for ReadOnlyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(file) = &self.file else {
            return Ok(0);
        };
        let mut noted = self.noted.lock();
        if !noted.contains_key(&self.path) {
            match file.read_at(buf, offset) {
                Err(error) if self.read_around && is_refused(&error) => {}
                result => return result,
            }
        }
        let sectors = noted.entry(self.path.clone()).or_default();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let in_sector = (SECTOR - at % SECTOR) as usize;
            let end = buf.len().min(done + in_sector);
            let part = &mut buf[done..end];
            let sector = at - at % SECTOR;
            let read = match sectors.contains(&sector) {
                true => Err(Errno::IO.into()),
                false => file.read_at(part, at),
            };
            let n = match read {
                Err(error) if is_refused(&error) => {
                    sectors.insert(sector);
                    part.fill(0);
                    (file.size()?.saturating_sub(at) as usize).min(part.len())
                }
                read => read?,
            };
            done += n;
            if done < end {
                break;
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        self.file.as_ref().map_or(Ok(0), |file| file.size())
    }

    fn is_gone_from(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
    }

    fn uncache(&self) {}
}

/// Whether the disk can't read what was asked for.
pub fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}
