//! Repairs a damaged log: writes what can be read to a new log and records what is lost.
//!
//! The repaired log is completed and made durable in a directory beside the damaged one. Then the two are exchanged in one
//! atomic call, so a crash at any instant leaves one or the other. The damaged log is kept, and so is what an interrupted
//! repair left, each under a unique name.
//!
//! The repaired log keeps log id, group, history and the batches' sequences, so a position in Kafka keeps its meaning and
//! nothing is delivered twice. It begins at the checkpoint. Where batches are lost, a new segment begins and its header says
//! so; readers skip the missing sequences there. Event totals continue without the lost events, so the books balance.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::clock;

use super::{
    access,
    checkpoint::Checkpoint,
    damage::Damage,
    error::SpoolError,
    next_segment::{Blocks, Spare, Trimmed, Wanted},
    position::{Position, Seq},
    segment::Durability,
    storage::{FileSystem, Storage},
    survey::Survey,
    writer::Writer,
};

/// A commit of the repaired log holds no more bytes than this, unless one batch alone does.
const COMMIT_BYTES: usize = 4 << 20;

/// The result of a repair.
#[derive(Debug)]
pub struct Repaired {
    /// The sequences that are lost.
    pub lost: Vec<Lost>,
    /// Damage that may or may not have cost batches, such as a lost tail.
    pub unknown: Vec<Damage>,
    /// The first batch that was kept, if the position was unreadable. Kafka may have some of the batches.
    pub position_unknown: Option<Seq>,
    /// Undelivered batches that were kept, and their events.
    pub batches: u64,
    pub events: u64,
    /// Where the damaged log is now.
    pub aside: PathBuf,
}

/// Batches that are lost.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    pub from: Seq,
    /// The first batch after them.
    pub to: Seq,
    /// How many events they held, if a later batch shows it. A later incarnation's doesn't: it may have begun without being
    /// able to read them.
    pub events: Option<u64>,
}

/// Repairs the log in `dir`, whose spool must be locked; `None` if nothing is damaged. Moves the damaged log to a directory
/// beside `dir` whose name consists of `dir`'s and `aside`, and a number if that name is taken.
///
/// # Errors
/// The disk failed; the log is unchanged, or already repaired.
pub fn repair(
    dir: &Path,
    aside: &str,
    segment_bytes: u64,
    durability: Durability,
) -> Result<Option<Repaired>, SpoolError> {
    repair_from(&|| Survey::open(dir), dir, aside, segment_bytes, durability)
}

fn repair_from(
    survey: &dyn Fn() -> Result<Option<Survey>, SpoolError>,
    dir: &Path,
    aside: &str,
    segment_bytes: u64,
    durability: Durability,
) -> Result<Option<Repaired>, SpoolError> {
    let storage: Arc<dyn Storage> = Arc::new(FileSystem);
    let (parent, work) = (beside(dir, ""), beside(dir, "repairing"));
    let failed = |action| SpoolError::io(action, &work);
    let begin = || {
        // What an interrupted repair left may be the damaged log itself, so it must not be deleted.
        match fs::rename(&work, free_name(dir, &format!("{aside}-left"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("set aside")(error)),
            _ => access::create_dir(&work).map_err(failed("create the directory")),
        }
    };
    let rewritten = rewrite(survey, &storage, &work, begin, segment_bytes, durability);
    if rewritten.is_err() {
        // A partial copy would take room that the bridge needs. The first error is the one to report.
        let _ = fs::remove_dir_all(&work);
    }
    let Some(mut repaired) = rewritten? else {
        return Ok(None);
    };
    let sync_parent = || File::open(&parent).and_then(|dir| dir.sync_all());
    sync_parent().map_err(SpoolError::io("sync", &parent))?;
    renameat_with(CWD, &work, CWD, dir, RenameFlags::EXCHANGE)
        .map_err(|error| failed("put in its place")(error.into()))?;
    repaired.aside = free_name(dir, aside);
    fs::rename(&work, &repaired.aside).map_err(failed("set aside"))?;
    sync_parent().map_err(SpoolError::io("sync", &parent))?;
    Ok(Some(repaired))
}

/// An unused name beside `dir` with this suffix, and a number if need be. Under the spool's lock nobody else takes it.
fn free_name(dir: &Path, suffix: &str) -> PathBuf {
    let taken = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    let mut name = beside(dir, suffix);
    let mut number = 1;
    while taken(&name) {
        number += 1;
        name = beside(dir, &format!("{suffix}-{number}"));
    }
    name
}

/// Writes what can be read to a new log in `work`, which `begin` creates; does nothing and returns `None` if nothing is
/// damaged.
pub(super) fn rewrite(
    survey: &dyn Fn() -> Result<Option<Survey>, SpoolError>,
    storage: &Arc<dyn Storage>,
    work: &Path,
    begin: impl FnOnce() -> Result<(), SpoolError>,
    segment_bytes: u64,
    durability: Durability,
) -> Result<Option<Repaired>, SpoolError> {
    let (Some(mut first), Some(mut survey)) = (survey()?, survey()?) else {
        return Ok(None);
    };
    while first.next_batch()?.is_some() {}
    if first.damage().is_empty() {
        return Ok(None);
    }
    begin()?;
    let mut rewriting = Rewriting::begin(&survey, Arc::clone(storage), work, segment_bytes, durability)?;
    while let Some(batch) = survey.next_batch()? {
        rewriting.lose(&survey, batch.seq, Some(batch.events_before))?;
        rewriting.keep(&batch.payload, batch.events)?;
        rewriting.old = batch.end();
    }
    rewriting.lose(&survey, survey.end().seq, None)?;
    rewriting.finish(&survey).map(Some)
}

/// A directory beside the log's; without a suffix their parent.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    if suffix.is_empty() {
        return match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
    }
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

/// The repaired log while it is being written.
struct Rewriting {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    segment_bytes: u64,
    writer: Writer,
    pending: usize,
    lost: Vec<Lost>,
    batches: u64,
    events: u64,
    /// The position after the last batch, as the damaged log counts.
    old: Position,
}

impl Rewriting {
    fn begin(
        survey: &Survey,
        storage: Arc<dyn Storage>,
        dir: &Path,
        segment_bytes: u64,
        durability: Durability,
    ) -> Result<Rewriting, SpoolError> {
        let found = survey.inspection();
        let position = found.position;
        Checkpoint::create(&*storage, dir, found.manifest.log_id.into_bytes(), position)?;
        found.manifest.write(&*storage, dir)?;
        let mut rewriting = Rewriting {
            writer: Writer::in_place_of(Arc::clone(&storage), dir, durability, found),
            storage,
            dir: dir.to_path_buf(),
            segment_bytes,
            pending: 0,
            lost: Vec::new(),
            batches: 0,
            events: 0,
            old: position,
        };
        rewriting.roll(0)?;
        Ok(rewriting)
    }

    /// Records that what lies between the last batch and `seq` is lost. `events_before` is the damaged log's count before
    /// `seq`. What an earlier repair gave up is no longer damage and is not reported again.
    fn lose(&mut self, survey: &Survey, seq: Seq, events_before: Option<u64>) -> Result<(), SpoolError> {
        if seq <= self.old.seq {
            return Ok(());
        }
        let in_between = |found: &&Damage| {
            !found.is_harmless() && found.from < seq && found.to.is_none_or(|to| to > self.old.seq)
        };
        let found = survey.damage().iter().filter(in_between);
        if !survey.follows_known_loss(seq, self.old.events)
            && let Some(from) = found.map(|found| found.from.max(self.old.seq)).min()
        {
            self.lost.push(Lost {
                from,
                to: seq,
                events: events_before
                    .filter(|_| self.writer.history().is_one_incarnation(self.old.seq, seq))
                    .map(|before| before.saturating_sub(self.old.events)),
            });
        }
        self.commit()?;
        self.writer.lose_to(seq);
        self.roll(0)
    }

    fn keep(&mut self, payload: &[u8], events: u32) -> Result<(), SpoolError> {
        if self.pending + payload.len() > COMMIT_BYTES || !self.writer.fits(payload.len()) {
            self.commit()?;
        }
        if !self.writer.fits(payload.len()) {
            self.roll(payload.len())?;
        }
        self.writer.add(payload, events);
        self.pending += payload.len();
        self.batches += 1;
        self.events += u64::from(events);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        self.pending = 0;
        self.writer.commit().map(drop)
    }

    fn roll(&mut self, payload_len: usize) -> Result<(), SpoolError> {
        let len = self.segment_bytes.max(self.writer.segment_len_for(payload_len));
        let none = Trimmed::new(0, len);
        let wanted = Wanted {
            len,
            blocks: Blocks::Reserved,
        };
        let spare = Spare::prepare(&*self.storage, &self.dir, &none, wanted)?;
        let now = clock::unix_micros();
        self.writer.roll(spare, now).map(|_| ())
    }

    fn finish(mut self, survey: &Survey) -> Result<Repaired, SpoolError> {
        self.commit()?;
        self.writer.seal()?;
        self.writer.sync()?;
        let blocking = survey.inspection().blocking.iter();
        let (of_position, unknown): (Vec<_>, Vec<_>) = blocking.cloned().partition(Damage::is_of_position);
        Ok(Repaired {
            lost: self.lost,
            unknown,
            position_unknown: of_position.first().map(|damage| damage.from),
            batches: self.batches,
            events: self.events,
            aside: PathBuf::new(),
        })
    }
}

#[cfg(test)]
mod tests;
