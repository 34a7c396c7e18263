//! A simulated disk, deterministic by seed.
//!
//! A program sees the *live* state, like the page cache; a power loss leaves the *durable* one. They differ by the changes that
//! no sync has covered: to 512-byte sectors, lengths and directory entries. A crash keeps any of these changes, and leaves some
//! sectors half-written: of the bytes that were to change, some are old, some are new and some are neither. Bytes that a write
//! leaves unchanged stay unchanged, as on a disk with *powersafe overwrite*; logs that append within a sector depend on that.
//! [`SimDisk::kill`] ends a process and leaves the page cache alone.
//!
//! A process may have a [`Pause`], which is called before every system call and in the middle of some writes. There the
//! simulation runs other parts or lets the process die.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use super::random::Random;
use crate::{
    clock,
    spool::storage::{ReadFile, ReadStorage, Storage, StorageFile},
};

const SECTOR: usize = 512;

/// Called before each call of a process, with its kind if it is a system call. If it unwinds, the call never happens.
pub type Pause = Arc<dyn Fn(Option<Op>) + Send + Sync>;

/// A kind of system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Create,
    Write,
    SyncData,
    SetLen,
    Rename,
    Remove,
    SyncDir,
    Uncache,
    /// Changes nothing, so it is not counted and can only fail.
    Read,
}

/// The disk. It outlives the processes that use it.
pub struct SimDisk(Arc<Mutex<DiskState>>);

/// The disk as one process sees it; after a crash or kill every call fails.
struct Mount {
    disk: Arc<Mutex<DiskState>>,
    life: u64,
    pause: Option<Pause>,
}

struct OpenFile {
    mount: Mount,
    id: usize,
}

#[derive(Clone, Default)]
struct DiskState {
    files: BTreeMap<usize, SimFile>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Changes of directory entries since the directory's last sync, the oldest first.
    entries: Vec<Entry>,
    dirs: BTreeSet<PathBuf>,
    durable_dirs: BTreeSet<PathBuf>,
    capacity: Option<usize>,
    fault: Option<DiskFault>,
    /// The number of calls that a fault has made fail.
    failed: u64,
    halt_in: Option<u64>,
    syncs_held: bool,
    sync_time: Duration,
    life: u64,
    random: Random,
    counts: BTreeMap<Op, BTreeMap<String, u64>>,
}

#[derive(Clone, Default)]
struct SimFile {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Sector(usize, Vec<u8>),
    Len(usize),
}

#[derive(Clone)]
enum Entry {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

#[derive(Clone)]
struct DiskFault {
    op: Op,
    name: &'static str,
    skip: u64,
    /// Whether every call fails with ENOSPC; otherwise one call fails with EIO.
    no_room: bool,
}

impl SimDisk {
    /// An empty disk with a directory `/spool`.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(DiskState {
            random: Random::new(seed),
            dirs: ["/".into(), "/spool".into()].into(),
            durable_dirs: ["/".into(), "/spool".into()].into(),
            ..DiskState::default()
        })))
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock()
    }

    /// The disk for a new process.
    pub fn mount(&self) -> Arc<dyn Storage> {
        self.mount_with(None)
    }

    /// The disk for a new process that pauses at its calls.
    pub fn mount_with(&self, pause: Option<Pause>) -> Arc<dyn Storage> {
        let life = self.lock().life;
        Arc::new(Mount {
            disk: Arc::clone(&self.0),
            life,
            pause,
        })
    }

    /// An independent copy, to try several futures of one state.
    pub fn fork(&self) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Ends the process; the page cache stays.
    pub fn kill(&self) {
        let mut disk = self.lock();
        disk.life += 1;
        disk.fault = None;
        disk.halt_in = None;
    }

    /// Cuts the power: any part of what was not synced is kept, and sectors that were being written may be torn.
    pub fn crash(&self, seed: u64) {
        self.power_cut(seed, true);
    }

    /// [`SimDisk::crash`] between two writes: no sector is torn.
    pub fn crash_between_writes(&self, seed: u64) {
        self.power_cut(seed, false);
    }

    fn power_cut(&self, seed: u64, tears: bool) {
        self.kill();
        let mut disk = self.lock();
        let own = disk.random.next();
        disk.random = Random::new(own ^ seed);
        // All, none, or each change by chance: in reality the extremes are the most likely.
        let keep = [0, 4, 2, 1, 3][disk.random(5) as usize];
        let tears = tears && disk.random(2) == 0;
        for entry in std::mem::take(&mut disk.entries) {
            if disk.random(4) < keep {
                entry.apply(&mut disk.durable);
            }
        }
        let parents: Vec<PathBuf> = disk.dirs.difference(&disk.durable_dirs).cloned().collect();
        for dir in parents {
            if disk.random(4) >= keep {
                disk.dirs.remove(&dir);
                disk.durable.retain(|path, _| !path.starts_with(&dir));
            }
        }
        disk.live = disk.durable.clone();
        let kept: BTreeSet<usize> = disk.live.values().copied().collect();
        disk.files.retain(|id, _| kept.contains(id));
        let mut files = std::mem::take(&mut disk.files);
        for file in files.values_mut() {
            for change in std::mem::take(&mut file.pending) {
                if tears && disk.random(3) == 0 {
                    change.tear(&mut file.durable, disk.random(u64::MAX));
                } else if disk.random(4) < keep {
                    change.apply(&mut file.durable);
                }
            }
            file.live = file.durable.clone();
        }
        disk.files = files;
    }

    /// Makes everything durable.
    pub fn settle(&self) {
        let mut disk = self.lock();
        disk.entries.clear();
        disk.durable = disk.live.clone();
        disk.durable_dirs = disk.dirs.clone();
        for file in disk.files.values_mut() {
            file.pending.clear();
            file.durable = file.live.clone();
        }
    }

    /// After this many more changing calls, every call fails, as if the process had died there.
    pub fn halt_in(&self, calls: u64) {
        self.lock().halt_in = Some(calls);
    }

    /// Whether a halt has happened.
    pub fn halted(&self) -> bool {
        self.lock().halt_in == Some(0)
    }

    /// One call of this kind fails with EIO, on a file whose name contains `name`, after `skip` that succeed. A failed
    /// sync leaves pages that look clean and have, in part, never reached the disk.
    pub fn fail(&self, op: Op, name: &'static str, skip: u64) {
        self.lock().fault = Some(DiskFault {
            op,
            name,
            skip,
            no_room: false,
        });
    }

    /// All calls of this kind on files whose name contains `name` fail with ENOSPC, as on a full copy-on-write file system,
    /// where overwriting takes room, too.
    pub fn fail_for_want_of_room(&self, op: Op, name: &'static str) {
        self.lock().fault = Some(DiskFault {
            op,
            name,
            skip: 0,
            no_room: true,
        });
    }

    /// The number of calls that [`SimDisk::fail`] has made fail.
    pub fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Ends the faults of [`SimDisk::fail`].
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// While held, no `fdatasync` of a segment returns.
    pub fn hold_syncs(&self, held: bool) {
        self.lock().syncs_held = held;
    }

    /// Each `fdatasync` takes this long by the simulated clock.
    pub fn set_sync_time(&self, time: Duration) {
        self.lock().sync_time = time;
    }

    /// All files together hold no more than this many bytes.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.lock().capacity = bytes;
    }

    /// The number of calls of this kind on files whose name ends with `suffix`.
    pub fn count(&self, op: Op, suffix: &str) -> u64 {
        let disk = self.lock();
        let counts = disk.counts.get(&op).into_iter().flatten();
        counts
            .filter(|(name, _)| name.ends_with(suffix))
            .map(|(_, n)| n)
            .sum()
    }

    /// The names of all files, without directory.
    pub fn names(&self) -> Vec<String> {
        self.lock().live.keys().map(|path| file_name(path)).collect()
    }

    /// An existing file's bytes as a program sees them.
    pub fn read(&self, path: &Path) -> Vec<u8> {
        let disk = self.lock();
        disk.files[&disk.live[path]].live.clone()
    }

    /// Creates or replaces a file, durably.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.lock();
        let id = disk.new_id();
        disk.live.insert(path.to_path_buf(), id);
        disk.durable.insert(path.to_path_buf(), id);
        let file = SimFile {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
        };
        disk.files.insert(id, file);
    }

    /// Removes a file, durably.
    pub fn delete(&self, path: &Path) {
        let mut disk = self.lock();
        assert!(disk.live.remove(path).is_some(), "no {}", path.display());
        disk.durable.remove(path);
        disk.entries.clear();
    }

    /// Replaces a directory with another one, durably.
    pub fn put_in_place(&self, new: &Path, old: &Path) {
        let mut disk = self.lock();
        let DiskState { live, durable, .. } = &mut *disk;
        for names in [live, durable] {
            names.retain(|path, _| path.parent() != Some(old));
            let of_new: Vec<_> = names
                .extract_if(.., |path, _| path.parent() == Some(new))
                .collect();
            names.extend(
                of_new
                    .into_iter()
                    .map(|(path, id)| (old.join(path.file_name().unwrap_or_default()), id)),
            );
        }
        disk.entries.clear();
    }

    /// Bit rot: changes one bit, durably.
    pub fn rot(&self, path: &Path, at: u64) {
        let mut bytes = self.read(path);
        bytes[at as usize] ^= 0x40;
        self.put(path, bytes);
    }

    /// The paths of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().live.keys().cloned().collect()
    }
}

impl DiskState {
    fn random(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    fn new_id(&mut self) -> usize {
        self.files.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    /// Counts each changing call before it happens, and fails it if a test asked for that.
    fn change(&mut self, op: Op, name: &str) -> io::Result<()> {
        match &mut self.halt_in {
            Some(0) => return Err(eio()),
            Some(calls) => *calls -= 1,
            None => {}
        }
        let counts = self.counts.entry(op).or_default();
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                counts.insert(name.to_owned(), 1);
            }
        }
        self.fail_if_asked(op, name)
    }

    fn fail_if_asked(&mut self, op: Op, name: &str) -> io::Result<()> {
        if let Some(fault) = &mut self.fault
            && fault.op == op
            && name.contains(fault.name)
        {
            if fault.no_room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if fault.skip == 0 {
                self.fault = None;
                self.failed += 1;
                return Err(eio());
            }
            fault.skip -= 1;
        }
        Ok(())
    }

    fn used(&self) -> usize {
        self.live.values().map(|id| self.files[id].live.len()).sum()
    }

    fn room(&self) -> usize {
        self.capacity
            .map_or(usize::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    /// By how much a file would grow to reach this length.
    fn growth(&mut self, id: usize, len: usize) -> usize {
        len.saturating_sub(self.file(id).live.len())
    }

    fn file(&mut self, id: usize) -> &mut SimFile {
        self.files.entry(id).or_default()
    }

    /// The current name of an open file.
    fn name_of(&self, id: usize) -> String {
        let entry = self.live.iter().find(|(_, live)| **live == id);
        entry.map(|(path, _)| file_name(path)).unwrap_or_default()
    }
}

impl SimFile {
    fn set_len(&mut self, len: usize) {
        self.live.resize(len, 0);
        self.pending.push(Change::Len(len));
    }

    fn write(&mut self, buf: &[u8], offset: usize) {
        let end = offset + buf.len();
        if buf.is_empty() {
            return;
        }
        if end > self.live.len() {
            self.set_len(end);
        }
        self.live[offset..end].copy_from_slice(buf);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let to = ((sector + 1) * SECTOR).min(self.live.len());
            let bytes = self.live[sector * SECTOR..to].to_vec();
            self.pending.push(Change::Sector(sector, bytes));
        }
    }
}

impl Change {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Change::Len(len) => bytes.resize(len, 0),
            // Bytes beyond the length are not part of the file.
            Change::Sector(sector, content) => {
                let at = sector * SECTOR;
                let n = bytes.len().saturating_sub(at).min(content.len());
                if n > 0 {
                    bytes[at..at + n].copy_from_slice(&content[..n]);
                }
            }
        }
    }
}

impl Change {
    /// Applies part of the change, as when the power fails while the disk writes it.
    fn tear(self, bytes: &mut [u8], seed: u64) {
        let Change::Sector(sector, content) = self else {
            return;
        };
        let mut random = Random::new(seed);
        let cut = random.below(SECTOR as u64) as usize;
        let how = random.below(3);
        let old = bytes.iter_mut().skip(sector * SECTOR);
        for (at, (old, new)) in old
            .zip(content)
            .enumerate()
            .filter(|(_, (old, new))| **old != *new)
        {
            match how {
                0 if at < cut => *old = new,
                1 if at >= cut => *old = new,
                2 => *old = random.next() as u8,
                _ => {}
            }
        }
    }
}

impl Entry {
    fn apply(self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Entry::Link(path, id) => {
                names.insert(path, id);
            }
            Entry::Unlink(path) => {
                names.remove(&path);
            }
            Entry::Rename(from, to, id) => {
                names.remove(&from);
                names.insert(to, id);
            }
        }
    }

    fn dir(&self) -> Option<&Path> {
        match self {
            Entry::Link(path, _) | Entry::Unlink(path) | Entry::Rename(_, path, _) => path.parent(),
        }
    }
}

impl Mount {
    /// Runs before a call: other parts may run, or the process may die.
    fn lock(&self, op: Op) -> io::Result<MutexGuard<'_, DiskState>> {
        if let Some(pause) = &self.pause {
            pause(Some(op));
        }
        self.lock_now()
    }

    fn lock_now(&self) -> io::Result<MutexGuard<'_, DiskState>> {
        let disk = self.disk.lock();
        if disk.life != self.life || disk.halt_in == Some(0) {
            return Err(eio());
        }
        Ok(disk)
    }
}

impl ReadStorage for Mount {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.lock(Op::Read)?;
        let inside = disk.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| file_name(path)).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(self.existing(path)?))
    }
}

impl Mount {
    fn file(&self, id: usize) -> OpenFile {
        let mount = Mount {
            disk: Arc::clone(&self.disk),
            life: self.life,
            pause: self.pause.clone(),
        };
        OpenFile { mount, id }
    }

    fn existing(&self, path: &Path) -> io::Result<OpenFile> {
        let id = self.lock(Op::Read)?.live.get(path).copied();
        Ok(self.file(id.ok_or(io::ErrorKind::NotFound)?))
    }
}

impl Storage for Mount {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock(Op::Create)?;
        let ancestors = dir.ancestors().map(Path::to_path_buf);
        disk.dirs.extend(ancestors);
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut disk = self.lock(Op::Create)?;
        if !path.parent().is_some_and(|dir| disk.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Op::Create, &file_name(path))?;
        let id = match disk.live.get(path).copied() {
            Some(id) => {
                disk.file(id).set_len(0);
                id
            }
            None => {
                let id = disk.new_id();
                disk.file(id);
                disk.live.insert(path.to_path_buf(), id);
                disk.entries.push(Entry::Link(path.to_path_buf(), id));
                id
            }
        };
        Ok(Box::new(self.file(id)))
    }

    fn open_for_writing(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Ok(Box::new(self.existing(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.lock(Op::Rename)?;
        disk.change(Op::Rename, &file_name(from))?;
        let id = disk.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.live.insert(to.to_path_buf(), id);
        disk.entries
            .push(Entry::Rename(from.to_path_buf(), to.to_path_buf(), id));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock(Op::Remove)?;
        disk.change(Op::Remove, &file_name(path))?;
        if disk.live.remove(path).is_some() {
            disk.entries.push(Entry::Unlink(path.to_path_buf()));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.lock(Op::SyncDir)?;
        disk.change(Op::SyncDir, &file_name(dir))?;
        let (synced, rest) = std::mem::take(&mut disk.entries)
            .into_iter()
            .partition(|entry| entry.dir() == Some(dir));
        disk.entries = rest;
        for entry in Vec::<Entry>::into_iter(synced) {
            entry.apply(&mut disk.durable);
        }
        let children = disk.dirs.iter().filter(|child| child.parent() == Some(dir));
        let children: Vec<PathBuf> = children.cloned().collect();
        disk.durable_dirs.extend(children);
        Ok(())
    }
}

impl OpenFile {
    fn write_part(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.mount.lock_now()?;
        let name = disk.name_of(self.id);
        let changed = disk.change(Op::Write, &name);
        let growth = disk.growth(self.id, offset as usize + buf.len());
        let room = disk.room();
        let (n, result) = match changed {
            Err(error) if disk.halt_in == Some(0) => return Err(error),
            Err(error) => (buf.len() / 2, Err(error)),
            Ok(()) if room < growth => (
                buf.len() - (growth - room),
                Err(io::ErrorKind::StorageFull.into()),
            ),
            Ok(()) => (buf.len(), Ok(())),
        };
        disk.file(self.id).write(&buf[..n], offset as usize);
        result
    }
}

impl ReadFile for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.mount.lock(Op::Read)?;
        if disk.fault.as_ref().is_some_and(|fault| fault.op == Op::Read) {
            let name = disk.name_of(self.id);
            disk.fail_if_asked(Op::Read, &name)?;
        }
        let bytes = &disk.file(self.id).live;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.mount.lock(Op::Read)?.file(self.id).live.len() as u64)
    }
}

impl StorageFile for OpenFile {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.mount.lock(Op::Write)?;
        // A write is not atomic: other parts may run in between, and a death leaves part of it.
        if self.mount.pause.is_some() && buf.len() > 1 && disk.random(4) == 0 {
            let part = 1 + disk.random(buf.len() as u64 - 1) as usize;
            drop(disk);
            self.write_part(&buf[..part], offset)?;
            self.mount.lock(Op::Write).map(drop)?;
            return self.write_part(&buf[part..], offset + part as u64);
        }
        drop(disk);
        self.write_part(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.mount.lock(Op::SyncData)?;
        let name = disk.name_of(self.id);
        while disk.syncs_held && name.ends_with(".segment") {
            drop(disk);
            thread::sleep(Duration::from_millis(1));
            disk = self.mount.lock(Op::SyncData)?;
        }
        clock::sleep(disk.sync_time);
        let result = disk.change(Op::SyncData, &name);
        if disk.halt_in == Some(0) && result.is_err() {
            return result;
        }
        let mut kept = std::mem::take(&mut disk.file(self.id).pending);
        if result.is_err() {
            kept.retain(|_| disk.random(2) == 0);
        }
        let file = disk.file(self.id);
        for change in kept {
            change.apply(&mut file.durable);
        }
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.mount.lock(Op::SetLen)?;
        let name = disk.name_of(self.id);
        disk.change(Op::SetLen, &name)?;
        disk.file(self.id).set_len(len as usize);
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut disk = self.mount.lock(Op::SetLen)?;
        let end = (offset + len) as usize;
        let growth = disk.growth(self.id, end);
        if growth > disk.room() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if growth > 0 {
            disk.file(self.id).set_len(end);
        }
        Ok(true)
    }

    fn is_gone_from(&self, path: &Path) -> io::Result<bool> {
        Ok(self.mount.lock(Op::Read)?.live.get(path) != Some(&self.id))
    }

    fn uncache(&self) {
        if let Ok(mut disk) = self.mount.lock(Op::Uncache) {
            let name = disk.name_of(self.id);
            let _ = disk.change(Op::Uncache, &name);
        }
    }
}

fn eio() -> io::Error {
    io::Error::other("input/output error")
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
