//! Bit rot: where it can be told from a torn write, and so must be.

use super::{
    plan::Plan,
    world::{Part, World},
};
use crate::{config::Durability, spool::harness::records, stream::Stream};

/// After a power cut a bit is another one: in a batch that has a later commit behind it, or in a segment's header. When
/// the log was at rest before, that is any batch.
pub fn rot(world: &World, site: usize) {
    if world.plan.durability == Durability::PageCache {
        return;
    }
    let stream = world.pick(world.plan.streams());
    // One damage to a log: two at once are told of, but what is left between them is not foretold here.
    if world.site(site).rotten.borrow().contains(&stream) {
        return;
    }
    let rested = rest(world, site, stream);
    if world.process(site).is_some() {
        world.bury(site);
    }
    let here = world.site(site);
    let disk = here.disk.borrow();
    disk.crash(world.random.borrow_mut().next());
    let dir = Plan::dir(stream);
    let mut segments: Vec<_> = disk.paths();
    segments.retain(|path| path.starts_with(&dir) && path.extension().is_some_and(|e| e == "segment"));
    let Some(path) =
        (!segments.is_empty()).then(|| segments[world.below(segments.len() as u64) as usize].clone())
    else {
        return;
    };
    let records = records(&disk, &path);
    let last_commit = match segments.last() == Some(&path) && !rested {
        true => records.last().map_or(0, |record| record.commit),
        false => u64::MAX,
    };
    let may: Vec<_> = records
        .iter()
        .filter(|record| record.commit < last_commit && record.is_batch)
        .collect();
    let at = match (may.is_empty(), world.one_in(4)) {
        (false, false) => {
            let record = may[world.below(may.len() as u64) as usize];
            record.at + world.below(record.len as u64) as usize
        }
        _ => world.below(4096) as usize,
    };
    world.note(format_args!("a bit rots at {at} of {}", path.display()));
    world.count("rotten");
    disk.rot(&path, at as u64);
    here.rotten.borrow_mut().push(stream);
}

/// Lets a stream's log come to rest; whether it did.
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
    // On a full disk there may be no segment for the seal: the last commit before a crash then stays the last one.
    rested && pipe.log.borrow().is_some() && !world.site(site).full.get()
}
