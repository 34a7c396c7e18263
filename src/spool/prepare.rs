//! Prepares the next segment in the background, so that taking it into use costs the writer no wait.
//!
//! A prepared segment is a file of its full length, synced: a full disk is met here, where nobody waits yet.
//!
//! It is a segment that was trimmed, when there is one, else a new file. The records in a trimmed one are no
//! danger: a record's checksum covers the segment's id, and ids are never given twice. Trimmed segments wait for it
//! under their own names, so that an open finds and removes them as it does any other below the checkpoint.
//!
//! The blocks of a new file are written with zeros, for overwriting what was written makes a commit's `fdatasync` cheaper:
//! the file's metadata doesn't change. But then each byte is written twice. When segments fill fast, disk and cores have
//! better things to do, and commits are large enough to bear it: blocks are only reserved then.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::clock;

use super::{
    error::SpoolError,
    storage::{Storage, StorageFile},
};

/// The name of the prepared segment; there is never more than one.
pub const SPARE: &str = "next.spare";
/// After the disk was full, the next try comes so much later.
const RETRY: Duration = Duration::from_secs(1);

/// Trimmed segments that wait to be used again.
pub struct Trimmed {
    /// The oldest first: what stays is the log's last part, without gaps.
    kept: Mutex<VecDeque<PathBuf>>,
    most: usize,
}

impl Trimmed {
    /// Keeps up to 1/32 of the byte budget, at least two. A log that grows uses them up before it takes new room, so its
    /// files never need more than the budget and two segments.
    pub fn new(max_bytes: u64, segment_bytes: u64) -> Trimmed {
        Trimmed {
            kept: Mutex::default(),
            most: (max_bytes / 32 / segment_bytes).clamp(2, 16) as usize,
        }
    }

    /// Keeps a segment's file, which must lie below the stored checkpoint. Gives the file to be removed instead when there
    /// are enough: the oldest one.
    pub fn keep(&self, path: PathBuf) -> Option<PathBuf> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(path);
        if kept.len() > self.most {
            kept.pop_front()
        } else {
            None
        }
    }

    /// The oldest one, which is the caller's then.
    pub fn take(&self) -> Option<PathBuf> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// How the blocks of a new file are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    Zeroed,
    Reserved,
}

/// A segment that is asked for.
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
    /// Makes a file of this length, of a trimmed segment or a new one, and syncs it.
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
                    // Else a crash could leave the new header under the old name.
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
            // First, so that a disk without the room is not filled in vain, again and again, at others' expense.
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
                // A half-made file would keep the room that the disk lacks; the error that counts is the first one.
                let _ = storage.remove(&path);
                Err(SpoolError::io("prepare", &path)(error))
            }
        }
    }
}

/// What the background thread is at.
enum State {
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

/// Prepares one segment ahead, on a thread of its own.
pub struct Preparer {
    shared: Arc<(Mutex<State>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
    /// Set when there is no thread, in the simulation: prepares what is due.
    by_hand: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// What [`Preparer::take`] gives.
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
    pub fn start(
        storage: Arc<dyn Storage>,
        dir: PathBuf,
        trimmed: Arc<Trimmed>,
        thread_name: String,
    ) -> io::Result<Preparer> {
        let shared = Arc::new((Mutex::new(State::Idle), Condvar::new()));
        let thread_shared = Arc::clone(&shared);
        let thread = thread::Builder::new().name(thread_name).spawn(move || {
            // A panic is a bug, and must not leave the writer waiting for a segment that nobody makes.
            let run = || run(&*storage, &dir, &trimmed, &thread_shared);
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                let bug = io::Error::other("the preparer panicked; its message stands above");
                *lock(&thread_shared.0) = State::Failed(SpoolError::io("prepare a segment in", &dir)(bug));
                thread_shared.1.notify_all();
            }
        })?;
        Ok(Preparer {
            shared,
            thread: Some(thread),
            by_hand: None,
        })
    }

    /// Without a thread: what it would do is done by calling [`Preparer::by_hand`]'s function.
    #[cfg(test)]
    pub fn stepped(storage: Arc<dyn Storage>, dir: PathBuf, trimmed: Arc<Trimmed>) -> Preparer {
        let shared = Arc::new((Mutex::new(State::Idle), Condvar::new()));
        let by_hand_shared = Arc::clone(&shared);
        Preparer {
            shared,
            thread: None,
            by_hand: Some(Arc::new(move || {
                let due = lock(&by_hand_shared.0).due();
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

    /// Asks for such a segment, unless one is there or under way.
    pub fn want(&self, wanted: Wanted) {
        let mut state = lock(&self.shared.0);
        if matches!(*state, State::Idle) {
            *state = State::Wanted(wanted);
            self.shared.1.notify_all();
        }
    }

    /// Takes a segment of at least this length; waits while it is being prepared, but not for room on the disk.
    pub fn take(&self, len: u64) -> Taken {
        let (mutex, changed) = &*self.shared;
        let mut state = lock(mutex);
        // Somebody waits for it.
        let wanted = Wanted {
            len,
            blocks: Blocks::Reserved,
        };
        loop {
            match std::mem::replace(&mut *state, State::Idle) {
                State::Ready(spare) if spare.len >= len => return Taken::Spare(spare),
                // Too small for an unusually large batch: make a larger one in its place.
                State::Idle | State::Ready(_) => {
                    *state = State::Wanted(wanted);
                    changed.notify_all();
                }
                // What has no room may be an unusually large one.
                State::NoSpace { wanted: refused, .. } if len < refused.len => {
                    *state = State::Wanted(wanted);
                    changed.notify_all();
                }
                State::NoSpace { wanted, until } => {
                    *state = State::NoSpace { wanted, until };
                    return Taken::NoSpace;
                }
                State::Failed(error) => return Taken::Failed(error),
                State::Stopped => {
                    *state = State::Stopped;
                    return Taken::NoSpace;
                }
                under_way @ State::Wanted(_) => {
                    *state = under_way;
                    state = match &self.by_hand {
                        None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                        Some(by_hand) => {
                            drop(state);
                            by_hand();
                            lock(mutex)
                        }
                    };
                }
            }
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        *lock(&self.shared.0) = State::Stopped;
        self.shared.1.notify_all();
        // A later open of the same log must not meet this thread at the spare segment.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(mutex: &Mutex<State>) -> MutexGuard<'_, State> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is to be done now.
enum Due {
    Prepare(Wanted),
    Wait(Option<Duration>),
    End,
}

impl State {
    fn due(&self) -> Due {
        match self {
            State::Stopped => Due::End,
            State::Wanted(wanted) => Due::Prepare(*wanted),
            State::NoSpace { wanted, until } => match until.saturating_duration_since(clock::now()) {
                Duration::ZERO => Due::Prepare(*wanted),
                wait => Due::Wait(Some(wait)),
            },
            State::Idle | State::Ready(_) | State::Failed(_) => Due::Wait(None),
        }
    }
}

type Shared = (Mutex<State>, Condvar);

fn run(storage: &dyn Storage, dir: &Path, trimmed: &Trimmed, shared: &Shared) {
    let (mutex, changed) = shared;
    let mut state = lock(mutex);
    loop {
        state = match state.due() {
            Due::End => return,
            Due::Wait(None) => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Due::Wait(Some(wait)) => {
                changed
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            Due::Prepare(wanted) => {
                drop(state);
                prepare(storage, dir, trimmed, wanted, shared);
                lock(mutex)
            }
        };
    }
}

fn prepare(storage: &dyn Storage, dir: &Path, trimmed: &Trimmed, wanted: Wanted, (mutex, changed): &Shared) {
    let result = Spare::prepare(storage, dir, trimmed, wanted);
    let mut state = lock(mutex);
    if matches!(*state, State::Stopped) {
        return;
    }
    *state = match result {
        Ok(spare) => State::Ready(spare),
        Err(error) if error.is_no_space() => State::NoSpace {
            wanted,
            until: clock::now() + RETRY,
        },
        Err(error) => State::Failed(error),
    };
    changed.notify_all();
}
