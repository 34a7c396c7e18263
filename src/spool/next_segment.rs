//! Prepares the next segment in the background, so that the writer doesn't wait for it.
//!
//! A prepared segment is a synced file of full length, so a full disk is noticed here, before anybody waits.
//!
//! It is a trimmed segment if there is one, otherwise a new file. The records in a trimmed segment do no harm: a record's
//! checksum covers the segment's id, and ids are never reused. Trimmed segments keep their names until they are reused, so that
//! opening the log removes them like any other segment below the checkpoint.
//!
//! A new file is filled with zeros, because overwriting allocated blocks makes a commit's `fdatasync` cheaper: the file's
//! metadata doesn't change. The price is that each byte is written twice. When segments fill fast, commits are large and the
//! disk is busy, so blocks are only reserved.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::clock;

use super::{
    error::SpoolError,
    storage::{Storage, StorageFile},
};

/// The name of the prepared segment; there is never more than one.
pub const SPARE: &str = "next.spare";
/// How long to wait after the disk was full.
const RETRY: Duration = Duration::from_secs(1);

/// Trimmed segments kept for reuse.
pub struct Trimmed {
    /// The oldest first, so that those that stay have no gaps between them.
    kept: Mutex<VecDeque<PathBuf>>,
    most: usize,
}

impl Trimmed {
    /// Keeps up to 1/32 of the byte budget, at least two segments. A growing log uses them up before it takes new room, so its
    /// files never exceed the budget by more than two segments.
    pub fn new(max_bytes: u64, segment_bytes: u64) -> Trimmed {
        Trimmed {
            kept: Mutex::default(),
            most: (max_bytes / 32 / segment_bytes).clamp(2, 16) as usize,
        }
    }

    /// Keeps a segment's file, which must lie below the stored checkpoint. If there are enough already, returns the oldest one,
    /// which the caller must remove.
    pub fn keep(&self, path: PathBuf) -> Option<PathBuf> {
        let mut kept = self.kept.lock();
        kept.push_back(path);
        if kept.len() > self.most {
            kept.pop_front()
        } else {
            None
        }
    }

    /// Hands over the oldest one.
    pub fn take(&self) -> Option<PathBuf> {
        self.kept.lock().pop_front()
    }
}

/// How the blocks of a new file are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    Zeroed,
    Reserved,
}

/// A request for a segment.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub len: u64,
    pub blocks: Blocks,
}

/// A prepared segment.
pub struct Spare {
    pub file: Box<dyn StorageFile>,
    pub path: PathBuf,
    pub len: u64,
}

impl Spare {
    /// Makes a synced file of this length from a trimmed segment, or a new one.
    pub fn prepare(
        storage: &dyn Storage,
        dir: &Path,
        trimmed: &Trimmed,
        Wanted { len, blocks }: Wanted,
    ) -> Result<Spare, SpoolError> {
        let path = dir.join(SPARE);
        let fill = || -> io::Result<Box<dyn StorageFile>> {
            let (file, mut offset) = match trimmed.take() {
                Some(old) => {
                    storage.rename(&old, &path)?;
                    // Otherwise a crash could leave the new header under the old name.
                    storage.sync_dir(dir)?;
                    let file = storage.open_for_writing(&path)?;
                    let size = file.size()?;
                    if size > len {
                        file.set_len(len)?;
                    }
                    (file, size)
                }
                None => (storage.create(&path)?, 0),
            };
            // Reserve first, so that a nearly full disk isn't filled again and again in vain, at others' expense.
            let reserved = offset < len && file.reserve(offset, len - offset)?;
            if reserved && blocks == Blocks::Reserved {
                offset = len;
            }
            let zeros = vec![0; len.saturating_sub(offset).min(1 << 20) as usize];
            while offset < len {
                let n = (len - offset).min(zeros.len() as u64);
                file.write_all_at(&zeros[..n as usize], offset)?;
                offset += n;
            }
            file.sync_data()?;
            Ok(file)
        };
        match fill() {
            Ok(file) => Ok(Spare { file, path, len }),
            Err(error) => {
                // A partial file would take the room that the disk lacks. The first error is the one to report.
                let _ = storage.remove(&path);
                Err(SpoolError::io("prepare", &path)(error))
            }
        }
    }
}

/// The state of the preparation.
enum Preparing {
    Idle,
    Wanted(Wanted),
    Ready(Spare),
    /// The disk was full; not tried again before this time.
    NoSpace {
        wanted: Wanted,
        until: Instant,
    },
    Failed(SpoolError),
    Stopped,
}

/// What the background thread and the writer share.
type Preparation = (Mutex<Preparing>, Condvar);

/// Prepares one segment ahead, on a thread of its own.
pub struct Preparer {
    shared: Arc<Preparation>,
    thread: Option<thread::JoinHandle<()>>,
    /// In the simulation, which has no thread: prepares what is due.
    by_hand: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// The result of [`Preparer::take`].
pub enum Taken {
    Spare(Spare),
    /// The disk has no room now.
    NoSpace,
    Failed(SpoolError),
}

impl From<Result<Spare, SpoolError>> for Taken {
    fn from(prepared: Result<Spare, SpoolError>) -> Taken {
        match prepared {
            Ok(spare) => Taken::Spare(spare),
            Err(error) if error.is_no_space() => Taken::NoSpace,
            Err(error) => Taken::Failed(error),
        }
    }
}

impl Preparer {
    /// Starts the thread that prepares segments in `dir`.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(
        storage: Arc<dyn Storage>,
        dir: PathBuf,
        trimmed: Arc<Trimmed>,
        thread_name: String,
    ) -> io::Result<Preparer> {
        let shared = Arc::new((Mutex::new(Preparing::Idle), Condvar::new()));
        let thread_shared = Arc::clone(&shared);
        let thread = thread::Builder::new().name(thread_name).spawn(move || {
            // A panic is a bug; it must not leave the writer waiting for a segment that nobody makes.
            let run = || run(&*storage, &dir, &trimmed, &thread_shared);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                let bug = io::Error::other("the preparer panicked; its message stands above");
                *thread_shared.0.lock() =
                    Preparing::Failed(SpoolError::io("prepare a segment in", &dir)(bug));
                thread_shared.1.notify_all();
            }
        })?;
        Ok(Preparer {
            shared,
            thread: Some(thread),
            by_hand: None,
        })
    }

    /// Without a thread: [`Preparer::by_hand`]'s function does its work.
    #[cfg(test)]
    pub fn stepped(storage: Arc<dyn Storage>, dir: PathBuf, trimmed: Arc<Trimmed>) -> Preparer {
        let shared = Arc::new((Mutex::new(Preparing::Idle), Condvar::new()));
        let by_hand_shared = Arc::clone(&shared);
        Preparer {
            shared,
            thread: None,
            by_hand: Some(Arc::new(move || {
                let due = by_hand_shared.0.lock().due();
                if let Due::Prepare(wanted) = due {
                    prepare(&*storage, &dir, &trimmed, wanted, &by_hand_shared);
                }
            })),
        }
    }

    #[cfg(test)]
    pub fn by_hand(&self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.by_hand.clone()
    }

    /// Asks for a segment, unless one is ready or being prepared.
    pub fn want(&self, wanted: Wanted) {
        let mut state = self.shared.0.lock();
        if matches!(*state, Preparing::Idle) {
            *state = Preparing::Wanted(wanted);
            self.shared.1.notify_all();
        }
    }

    /// Takes a segment of at least this length. Waits while it is being prepared, but not for room on the disk.
    pub fn take(&self, len: u64) -> Taken {
        let (mutex, changed) = &*self.shared;
        let mut state = mutex.lock();
        // The writer is waiting for it, so there is no time to write zeros.
        let wanted = Wanted {
            len,
            blocks: Blocks::Reserved,
        };
        loop {
            match std::mem::replace(&mut *state, Preparing::Idle) {
                Preparing::Ready(spare) if spare.len >= len => return Taken::Spare(spare),
                // Too small for an unusually large batch: replace it with a larger one.
                Preparing::Idle | Preparing::Ready(_) => {
                    *state = Preparing::Wanted(wanted);
                    changed.notify_all();
                }
                // The request that found no room may have been for an unusually large segment.
                Preparing::NoSpace { wanted: refused, .. } if len < refused.len => {
                    *state = Preparing::Wanted(wanted);
                    changed.notify_all();
                }
                Preparing::NoSpace { wanted, until } => {
                    *state = Preparing::NoSpace { wanted, until };
                    return Taken::NoSpace;
                }
                Preparing::Failed(error) => return Taken::Failed(error),
                Preparing::Stopped => {
                    *state = Preparing::Stopped;
                    return Taken::NoSpace;
                }
                under_way @ Preparing::Wanted(_) => {
                    *state = under_way;
                    match &self.by_hand {
                        None => changed.wait(&mut state),
                        Some(by_hand) => MutexGuard::unlocked(&mut state, || by_hand()),
                    }
                }
            }
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        *self.shared.0.lock() = Preparing::Stopped;
        self.shared.1.notify_all();
        // The next opening of the same log must not compete with this thread for the spare segment.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The next thing to do.
enum Due {
    Prepare(Wanted),
    Wait(Option<Duration>),
    End,
}

impl Preparing {
    fn due(&self) -> Due {
        match self {
            Preparing::Stopped => Due::End,
            Preparing::Wanted(wanted) => Due::Prepare(*wanted),
            Preparing::NoSpace { wanted, until } => match until.saturating_duration_since(clock::now()) {
                Duration::ZERO => Due::Prepare(*wanted),
                wait => Due::Wait(Some(wait)),
            },
            Preparing::Idle | Preparing::Ready(_) | Preparing::Failed(_) => Due::Wait(None),
        }
    }
}

fn run(storage: &dyn Storage, dir: &Path, trimmed: &Trimmed, shared: &Preparation) {
    let (mutex, changed) = shared;
    let mut state = mutex.lock();
    loop {
        match state.due() {
            Due::End => return,
            Due::Wait(None) => changed.wait(&mut state),
            Due::Wait(Some(wait)) => {
                changed.wait_for(&mut state, wait);
            }
            Due::Prepare(wanted) => MutexGuard::unlocked(&mut state, || {
                prepare(storage, dir, trimmed, wanted, shared);
            }),
        }
    }
}

fn prepare(
    storage: &dyn Storage,
    dir: &Path,
    trimmed: &Trimmed,
    wanted: Wanted,
    (mutex, changed): &Preparation,
) {
    let result = Spare::prepare(storage, dir, trimmed, wanted);
    let mut state = mutex.lock();
    if matches!(*state, Preparing::Stopped) {
        return;
    }
    *state = match result {
        Ok(spare) => Preparing::Ready(spare),
        Err(error) if error.is_no_space() => Preparing::NoSpace {
            wanted,
            until: clock::now() + RETRY,
        },
        Err(error) => Preparing::Failed(error),
    };
    changed.notify_all();
}
