//! The checkpoint: the lane's position, on disk.
//!
//! Two slots of 512 bytes, written in turn, each synced before the position counts as stored. A crash can tear only the
//! slot being written; the other one still holds the position before, which nothing has been trimmed beyond. What an
//! open reads may stand in the page cache only, since the process before was killed or its sync failed: so it is
//! written again and synced before it counts.
//!
//! ```text
//! offset size   in each slot
//!  0     8   magic "CMCcheck"
//!  8     4   CRC-32C of log id (16 bytes) and bytes 12 to 40
//! 12     4   zero
//! 16     8   generation; the valid slot with the higher one counts
//! 24     8   sequence of the next batch
//! 32     8   events in all batches before it
//! ```

use std::path::{Path, PathBuf};

use super::{
    Position, Seq, SpoolError, manifest,
    storage::{Access, Storage, StorageFile},
};

pub const NAME: &str = "checkpoint";
const SLOT: usize = 512;
const MAGIC: &[u8; 8] = b"CMCcheck";

/// The open checkpoint of a log.
pub struct Checkpoint {
    file: Box<dyn StorageFile>,
    path: PathBuf,
    log_id: [u8; 16],
    generation: u64,
    position: Position,
}

impl Checkpoint {
    /// Makes the checkpoint of a new log.
    pub fn create(
        storage: &dyn Storage,
        dir: &Path,
        log_id: [u8; 16],
        position: Position,
    ) -> Result<(), SpoolError> {
        let mut content = vec![0; 2 * SLOT];
        content[..SLOT].copy_from_slice(&encode(&log_id, 0, position));
        manifest::replace(storage, dir, NAME, &content)
    }

    /// Opens the checkpoint; `Ok(None)` when neither slot can be read, which is damage.
    pub fn open(
        storage: &dyn Storage,
        dir: &Path,
        log_id: [u8; 16],
    ) -> Result<Option<Checkpoint>, SpoolError> {
        let path = dir.join(NAME);
        let file = match storage.open(&path, Access::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::io("open", &path)(error)),
        };
        let mut content = [0; 2 * SLOT];
        let n = file
            .read_at(&mut content, 0)
            .map_err(SpoolError::io("read", &path))?;
        let newest = content[..n]
            .chunks(SLOT)
            .filter_map(|slot| decode(&log_id, slot))
            .max_by_key(|(generation, _)| *generation);
        let Some((generation, position)) = newest else {
            return Ok(None);
        };
        let checkpoint = Checkpoint {
            file,
            path,
            log_id,
            generation,
            position,
        };
        checkpoint.write(generation, position)?;
        Ok(Some(checkpoint))
    }

    /// The position that is durably stored.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Stores a position; it is durable when this returns.
    pub fn store(&mut self, position: Position) -> Result<(), SpoolError> {
        let generation = self.generation + 1;
        self.write(generation, position)?;
        self.generation = generation;
        self.position = position;
        Ok(())
    }

    fn write(&self, generation: u64, position: Position) -> Result<(), SpoolError> {
        let slot = encode(&self.log_id, generation, position);
        self.file
            .write_all_at(&slot, (generation % 2) * SLOT as u64)
            .and_then(|()| self.file.sync_data())
            .map_err(SpoolError::io("write", &self.path))
    }
}

fn encode(log_id: &[u8; 16], generation: u64, position: Position) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(MAGIC);
    slot[16..24].copy_from_slice(&generation.to_le_bytes());
    slot[24..32].copy_from_slice(&position.seq.0.to_le_bytes());
    slot[32..40].copy_from_slice(&position.events.to_le_bytes());
    let crc = crc(log_id, &slot);
    slot[8..12].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(log_id: &[u8; 16], slot: &[u8]) -> Option<(u64, Position)> {
    let slot: &[u8; SLOT] = slot.try_into().ok()?;
    if slot[..8] != *MAGIC || slot[8..12] != crc(log_id, slot).to_le_bytes() {
        return None;
    }
    let u64_at = |at: usize| {
        let mut array = [0; 8];
        array.copy_from_slice(&slot[at..at + 8]);
        u64::from_le_bytes(array)
    };
    let position = Position {
        seq: Seq(u64_at(24)),
        events: u64_at(32),
    };
    Some((u64_at(16), position))
}

fn crc(log_id: &[u8; 16], slot: &[u8; SLOT]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(log_id), &slot[12..40])
}
