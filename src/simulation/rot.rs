//! Bit rot, only where it can be told from a torn write and therefore must be; and `spool repair` after it.

use std::path::PathBuf;

use super::{
    oracle::violated,
    plan::Plan,
    world::{Part, Rot, World},
};
use crate::{
    simulation::disk::SimDisk,
    spool::{
        Durability,
        tests::harness::{HEADER, records, repair, stored_position},
    },
    stream::Stream,
};

/// Flips bits after a power cut: in a batch before a later commit (any batch if the log was at rest before), or in data
/// that is stored twice. Then an operator may repair the log.
pub fn rot(world: &World, site: usize) {
    if world.plan.durability == Durability::PageCache {
        return;
    }
    let stream = world.pick(world.plan.streams());
    // One damaged place per log: two would be reported, but this test can't predict what remains between them.
    if world.site(site).rotten.borrow().contains_key(&stream) {
        return;
    }
    let rested = rest(world, site, stream);
    if world.process(site).is_some() {
        world.bury(site);
    }
    let here = world.site(site);
    let disk = here.disk.borrow();
    // A torn position and a rotten one are two damages.
    disk.crash_between_writes(world.random.borrow_mut().next());
    let rotten = match world.one_in(2) {
        true => rot_batch(world, &disk, stream, rested),
        false => rot_what_is_stored_twice(world, &disk, stream),
    };
    let Some(rotten) = rotten else {
        return;
    };
    world.count("rotten");
    here.rotten.borrow_mut().insert(stream, rotten);
    if world.one_in(2) {
        repair_log(world, site, &disk, stream, rotten);
    }
}

fn segments(disk: &SimDisk, stream: Stream) -> Vec<PathBuf> {
    let dir = Plan::dir(stream);
    let mut segments: Vec<_> = disk.paths();
    segments.retain(|path| path.starts_with(&dir) && path.extension().is_some_and(|e| e == "segment"));
    segments
}

fn flip(world: &World, disk: &SimDisk, path: &std::path::Path, at: u64) {
    world.note(format_args!("a bit rots at {at} of {}", path.display()));
    disk.rot(path, at);
}

fn rot_batch(world: &World, disk: &SimDisk, stream: Stream, rested: bool) -> Option<Rot> {
    let segments = segments(disk, stream);
    let path = world.pick_from(&segments)?;
    let records = records(disk, path);
    let last_commit = match segments.last() == Some(path) && !rested {
        true => records.last().map_or(0, |record| record.commit),
        false => u64::MAX,
    };
    let may: Vec<_> = records
        .iter()
        .filter(|record| record.commit < last_commit && record.is_batch)
        .collect();
    let record = world.pick_from(&may)?;
    let at = record.at + world.below(record.len as u64) as usize;
    flip(world, disk, path, at as u64);
    Some(Rot::OfBatch)
}

/// Often in the newest segment: after a kill, its header alone says who wrote it.
fn rot_what_is_stored_twice(world: &World, disk: &SimDisk, stream: Stream) -> Option<Rot> {
    let dir = Plan::dir(stream);
    let checkpoint = dir.join("checkpoint");
    let there = disk.paths().contains(&checkpoint);
    match world.below(8) {
        0..4 => {
            let segments = segments(disk, stream);
            let path = match world.one_in(2) {
                true => segments.last()?,
                false => world.pick_from(&segments)?,
            };
            flip(world, disk, path, world.below(HEADER + 48));
        }
        4..6 if there => {
            let slot = world.pick(&[0, 512]);
            let copy = world.pick(&[0, 4096]);
            let before = stored_position(disk, &dir);
            // A store that a crash tore, or that failed, may have left its position in this copy alone.
            let bytes = disk.read(&checkpoint);
            let of_copy = |copy: u64| bytes.get((slot + copy) as usize..(slot + copy + 40) as usize);
            let twice = of_copy(0) == of_copy(4096);
            flip(world, disk, &checkpoint, slot + copy + world.below(40));
            if twice && before.is_some_and(|before| before.wrong.is_none()) {
                let after = stored_position(disk, &dir);
                if after.map(|after| after.position) != before.map(|before| before.position) {
                    violated!(
                        "damage",
                        "one rotten copy changes the position of {stream}: {after:?}"
                    );
                }
            }
        }
        6 if there && !world.plan.expiry => {
            // Both copies of one slot: only Kafka knows what was delivered last.
            let slot = world.pick(&[0, 512]);
            for copy in [0, 4096] {
                flip(world, disk, &checkpoint, slot + copy + world.below(40));
            }
        }
        7 => {
            let path = dir.join(world.pick(&["manifest", "manifest.copy"]));
            disk.paths().contains(&path).then_some(())?;
            flip(world, disk, &path, world.below(60));
        }
        _ => return None,
    }
    Some(Rot::OfACopy)
}

/// `spool repair --accept-loss`, with the process gone.
fn repair_log(world: &World, site: usize, disk: &SimDisk, stream: Stream, rotten: Rot) {
    let options = world.plan.log(stream);
    // Both logs need room beside each other.
    disk.set_capacity(None);
    let repaired = match repair(disk, &options) {
        Ok(repaired) => repaired,
        Err(error) => violated!("damage", "{stream} could not be repaired: {error}"),
    };
    world.note(format_args!("the log of {stream} is repaired: {repaired:?}"));
    let Some(repaired) = repaired else {
        return;
    };
    world.count("repaired");
    let is_lost = !repaired.lost.is_empty() || !repaired.unknown.is_empty();
    match rotten {
        Rot::OfBatch if is_lost => world.oracle.borrow_mut().damaged(site, stream),
        Rot::OfACopy if is_lost => violated!("damage", "{stream} has lost nothing: {repaired:?}"),
        _ => {}
    }
    world.site(site).rotten.borrow_mut().remove(&stream);
    if repaired.position_unknown.is_some() {
        violated!("damage", "the position of {stream} can be read: {repaired:?}");
    }
}

/// Lets a stream's log come to rest; returns whether it did.
fn rest(world: &World, site: usize, stream: Stream) -> bool {
    let Some(process) = world.process(site) else {
        return false;
    };
    let Some(pipe) = process.pipes.iter().find(|pipe| pipe.stream == stream) else {
        return false;
    };
    world.dies_in.set(None);
    world.alone.set(true);
    let mut rested = false;
    for _ in 0..3 {
        rested = pipe.log.borrow().as_ref().is_some_and(|log| log.is_empty());
        world.step_of(site, &process, pipe, Part::Writer);
    }
    world.alone.set(false);
    // On a full disk there may be no segment for the seal; the last commit before a crash then stays the last one.
    rested && pipe.log.borrow().is_some() && !world.site(site).full.get()
}
