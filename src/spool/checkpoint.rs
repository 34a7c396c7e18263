//! The checkpoint: the lane's position, on disk.
//!
//! Two slots of 512 bytes are written in turn. Each has two copies, 4096 bytes apart, and both are synced before the position
//! counts as stored. A crash can tear both copies of the slot being written, but not the other slot, which holds the
//! previous position; nothing beyond that has been trimmed yet. The position found at a start may exist only in the page
//! cache, because the previous process was killed or its sync failed. So opening the log writes it again and syncs it before
//! relying on it.
//!
//! ```text
//! offset size
//!    0   512   slot 0, first copy    generations 0, 2, 4 …
//!  512   512   slot 1, first copy    generations 1, 3, 5 …
//! 4096   512   slot 0, second copy
//! 4608   512   slot 1, second copy
//!
//! offset size   in each slot
//!  0     8   magic "CMCcheck"
//!  8     4   CRC-32C of log id (16 bytes) and bytes 12 to 40
//! 12     4   zero
//! 16     8   generation; the valid slot with the highest one is used
//! 24     8   sequence of the next batch
//! 32     8   events in all batches before it
//! ```
//!
//! # Damage
//!
//! One damaged copy costs nothing: the other one holds the same position. If both copies of the newest slot are damaged, the
//! other slot is used ([`Wrong::Newest`]): its position is too low by what was delivered between the last two stores, and the
//! segments in between may be gone. With no readable slot the position is unknown. Earlier versions wrote one copy of each
//! slot; the next store adds the second.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    error::SpoolError,
    numbers::{put, u64_at},
    position::{Position, Seq},
    storage::{ReadStorage, Storage, StorageFile, replace},
};

pub const NAME: &str = "checkpoint";
const SLOT: usize = 512;
/// Where the copies begin.
const COPIES: [u64; 2] = [0, 4096];
const MAGIC: &[u8; 8] = b"CMCcheck";

/// Offsets of a slot's fields.
mod at {
    pub const CRC: usize = 8;
    pub const ZERO: usize = 12;
    pub const GENERATION: usize = 16;
    pub const SEQ: usize = 24;
    pub const EVENTS: usize = 32;
    pub const END: usize = 40;
}

/// The open checkpoint of a log.
pub struct Checkpoint {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    log_id: [u8; 16],
    generation: u64,
    position: Position,
    /// Whether `position` is known to be on the disk.
    stored: bool,
}

/// What a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPosition {
    generation: u64,
    pub position: Position,
    pub wrong: Option<Wrong>,
}

/// Damage that was found along with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// One copy of a slot is damaged, by bit rot or by a crash during a store.
    Copy,
    /// Both copies of a slot are damaged; they may have held a newer position than the one that was found.
    Newest,
}

impl Checkpoint {
    /// Creates the checkpoint of a new log, with this position in both slots.
    pub fn create(
        storage: &dyn Storage,
        dir: &Path,
        log_id: [u8; 16],
        position: Position,
    ) -> Result<(), SpoolError> {
        let mut content = vec![0; COPIES[1] as usize + 2 * SLOT];
        for copy in COPIES {
            for (generation, at) in [(0, copy as usize), (1, copy as usize + SLOT)] {
                content[at..at + SLOT].copy_from_slice(&encode(&log_id, generation, position));
            }
        }
        replace(storage, dir, NAME, &content)
    }

    /// Opens the checkpoint that holds `stored`, and makes that durable if the disk has room for it.
    pub fn open(
        storage: &dyn Storage,
        dir: &Path,
        log_id: [u8; 16],
        stored: StoredPosition,
    ) -> Result<Checkpoint, SpoolError> {
        let path = dir.join(NAME);
        let file = storage
            .open_for_writing(&path)
            .map_err(SpoolError::io("open", &path))?;
        let mut checkpoint = Checkpoint {
            file,
            path,
            log_id,
            generation: stored.generation,
            position: stored.position,
            stored: false,
        };
        match checkpoint.write(stored.generation, stored.position) {
            Ok(()) => checkpoint.stored = true,
            // It may have room again later. Until then nothing is trimmed.
            Err(error) if error.is_no_space() => {}
            Err(error) => return Err(error),
        }
        Ok(checkpoint)
    }

    /// Whether the position is durable, so that what lies before it may be removed.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// Whether this position is durably stored.
    pub fn holds(&self, position: Position) -> bool {
        self.stored && self.position == position
    }

    /// Stores a position; it is durable when this returns.
    ///
    /// # Errors
    /// The disk failed.
    pub fn store(&mut self, position: Position) -> Result<(), SpoolError> {
        let generation = self.generation + 1;
        self.write(generation, position)?;
        self.generation = generation;
        self.position = position;
        self.stored = true;
        Ok(())
    }

    fn write(&self, generation: u64, position: Position) -> Result<(), SpoolError> {
        let slot = encode(&self.log_id, generation, position);
        let at = (generation % 2) * SLOT as u64;
        COPIES
            .iter()
            .try_for_each(|copy| self.file.write_all_at(&slot, copy + at))
            .and_then(|()| self.file.sync_data())
            .map_err(SpoolError::io("write", &self.path))
    }
}

/// What the checkpoint in `dir` holds; `None` when no slot can be read, which is damage.
pub fn read(
    disk: &dyn ReadStorage,
    dir: &Path,
    log_id: [u8; 16],
) -> Result<Option<StoredPosition>, SpoolError> {
    let path = dir.join(NAME);
    let file = match disk.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SpoolError::io("open", &path)(error)),
    };
    let mut copies = [[0; 2 * SLOT]; 2];
    for (copy, at) in copies.iter_mut().zip(COPIES) {
        file.read_at(copy, at).map_err(SpoolError::io("read", &path))?;
    }
    let slots = [0, SLOT].map(|at| copies.map(|copy| Slot::read(&log_id, &copy[at..at + SLOT])));
    let whole = slots.iter().flatten().filter_map(Slot::whole);
    let newest = whole.max_by_key(|(generation, _)| *generation);
    Ok(newest.map(|(generation, position)| StoredPosition {
        generation,
        position,
        wrong: slots.iter().filter_map(|slot| wrong(slot, generation)).max(),
    }))
}

/// What a copy of a slot holds.
#[derive(Clone, Copy)]
enum Slot {
    Whole(u64, Position),
    /// Zeros: apparently never written.
    Blank,
    Damaged,
}

impl Slot {
    fn read(log_id: &[u8; 16], bytes: &[u8]) -> Slot {
        match decode(log_id, bytes) {
            Some((generation, position)) => Slot::Whole(generation, position),
            None if bytes.iter().all(|byte| *byte == 0) => Slot::Blank,
            None => Slot::Damaged,
        }
    }

    fn whole(&self) -> Option<(u64, Position)> {
        match self {
            Slot::Whole(generation, position) => Some((*generation, *position)),
            Slot::Blank | Slot::Damaged => None,
        }
    }
}

/// What is wrong with a slot, given the newest generation that can be read.
fn wrong(copies: &[Slot; 2], newest: u64) -> Option<Wrong> {
    match copies {
        // Earlier versions began with slot 1 blank (a crash may leave one copy of its first store) and wrote no second copies.
        [Slot::Blank, Slot::Blank] if newest == 0 => None,
        [Slot::Blank, Slot::Whole(1, _)] => None,
        [Slot::Whole(..), Slot::Whole(..) | Slot::Blank] => None,
        [Slot::Whole(..), _] | [_, Slot::Whole(..)] => Some(Wrong::Copy),
        _ => Some(Wrong::Newest),
    }
}

fn encode(log_id: &[u8; 16], generation: u64, position: Position) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    put(&mut slot, 0, MAGIC);
    put(&mut slot, at::GENERATION, &generation.to_le_bytes());
    put(&mut slot, at::SEQ, &position.seq.0.to_le_bytes());
    put(&mut slot, at::EVENTS, &position.events.to_le_bytes());
    let crc = crc(log_id, &slot);
    put(&mut slot, at::CRC, &crc.to_le_bytes());
    slot
}

fn decode(log_id: &[u8; 16], slot: &[u8]) -> Option<(u64, Position)> {
    let slot: &[u8; SLOT] = slot.try_into().ok()?;
    if slot[..at::CRC] != *MAGIC || slot[at::CRC..at::ZERO] != crc(log_id, slot).to_le_bytes() {
        return None;
    }
    let position = Position {
        seq: Seq(u64_at(slot, at::SEQ)),
        events: u64_at(slot, at::EVENTS),
    };
    Some((u64_at(slot, at::GENERATION), position))
}

fn crc(log_id: &[u8; 16], slot: &[u8; SLOT]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(log_id), &slot[at::ZERO..at::END])
}
