//! Reads around what the disk can't read, for a survey.
//!
//! A read of a segment or the checkpoint that ends with EIO is repeated sector by sector. A sector that can't be read is
//! replaced by zeros, which no checksum of a record or header accepts (unless the sector held zeros), and is noted: a failing
//! disk may take seconds for each try, so no sector is tried twice. Every other error, and any error of another file, goes to
//! the caller.

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
    storage::{ReadFile, ReadStorage},
};

/// Bytes that the kernel reads, or fails to read, as a unit.
const SECTOR: u64 = 4096;

/// Beginnings of the sectors that could not be read, for each file.
type Noted = Arc<Mutex<BTreeMap<PathBuf, BTreeSet<u64>>>>;

pub struct Salvage {
    disk: Arc<dyn ReadStorage>,
    noted: Noted,
}

struct SalvageFile {
    file: Box<dyn ReadFile>,
    path: PathBuf,
    /// Whether unreadable sectors are noted; otherwise they are an error.
    read_around: bool,
    noted: Noted,
}

impl Salvage {
    pub fn new(disk: Arc<dyn ReadStorage>) -> Salvage {
        Salvage {
            disk,
            noted: Noted::default(),
        }
    }

    /// The byte ranges of a file that could not be read so far, in order and not adjacent.
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

impl ReadStorage for Salvage {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Box::new(SalvageFile {
            file: self.disk.open(path)?,
            path: path.to_path_buf(),
            read_around: name == checkpoint::NAME || segment::parse_file_name(&name).is_some(),
            noted: Arc::clone(&self.noted),
        }))
    }
}

impl ReadFile for SalvageFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let file = &self.file;
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

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

/// Whether this error means that the disk can't read the bytes.
pub fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}
