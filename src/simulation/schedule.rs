//! The schedule of a run: steps of the processes, and what happens between them.

use std::{rc::Rc, time::Duration};

use super::{
    oracle::violated,
    plan::TRANSACTION_TIMEOUT,
    rot::rot,
    world::{Part, World},
};
use crate::{
    lane::delivery::Turn,
    metrics::BlockReason,
    simulation::{
        broker::BrokerFault,
        disk::{Op, SimDisk},
    },
    spool::Durability,
    stream::Stream,
};

/// The maximum number of rounds until everything has come to rest.
const ROUNDS: usize = 600;

const BROKER_FAULTS: [BrokerFault; 10] = [
    BrokerFault::Connect(BlockReason::Connect),
    BrokerFault::NoCoordinator,
    BrokerFault::Begin,
    BrokerFault::Send,
    BrokerFault::Delivery,
    BrokerFault::Slow,
    BrokerFault::ReplyLost,
    BrokerFault::CommitFails,
    BrokerFault::CommitLate,
    BrokerFault::Fence,
];

const DISK_OPS: [Op; 7] = [
    Op::Create,
    Op::Write,
    Op::SyncData,
    Op::SetLen,
    Op::Rename,
    Op::Remove,
    Op::SyncDir,
];

/// A copy of a directory.
struct Copy {
    site: usize,
    disk: SimDisk,
    time: u64,
    groups: Vec<Option<uuid::Uuid>>,
}

/// Executes a whole run.
pub fn live(world: &World) {
    let mut copies = Vec::new();
    world.start(0);
    for _ in 0..world.plan.steps {
        step(world, &mut copies);
        world.check();
    }
    come_to_rest(world);
    // The process must still work.
    for site in 0..world.sites.borrow().len() {
        world.post(site);
    }
    come_to_rest(world);
}

fn step(world: &World, copies: &mut Vec<Copy>) {
    let site = world.below(world.sites.borrow().len() as u64) as usize;
    if world.process(site).is_none() && world.one_in(2) {
        // What a process has recovered but not yet synced is the hardest to get right, so it often dies again soon.
        if world.one_in(2) {
            die_soon(world, world.pick(&[50, 150]));
        }
        world.start(site);
        return;
    }
    match world.below(100) {
        0..27 => world.post(site),
        27..45 => world.step(site, Part::Writer),
        45..51 => world.step(site, Part::Preparer),
        51..75 => world.step(site, Part::Lane),
        75..78 => {
            let times = [1, 500, 1100, 12_000, 20_000, 4_000_000];
            world.pass(Duration::from_millis(world.pick(&times)));
        }
        78..82 => {
            let fault = world.pick(&BROKER_FAULTS);
            world.note(format_args!("broker: {fault:?}"));
            world.count("broker faults");
            world.cluster.fault(fault);
        }
        82..85 if world.plan.disk_faults => disk_fault(world, site),
        82..85 => {}
        85..89 => die_soon(world, 50),
        89 => world.bury(site),
        90 => stop(world, site),
        91 => {
            world.note(format_args!("late requests arrive"));
            world.cluster.arrive();
        }
        92 => topic_away(world),
        93 => come_to_rest(world),
        _ if world.plan.copies => copy(world, site, copies),
        _ if world.plan.rot && (!world.plan.expiry || world.one_in(2)) => rot(world, site),
        _ if world.plan.expiry => expire(world, site),
        _ => {}
    }
}

/// A process dies within this many calls, or at one of the next system calls of a kind.
fn die_soon(world: &World, most: u64) {
    let death = match world.one_in(2) {
        true => (None, world.below(most)),
        false => (Some(world.pick(&DISK_OPS)), world.below(4)),
    };
    world.note(format_args!("death after calls: {death:?}"));
    world.dies_in.set(Some(death));
}

fn disk_fault(world: &World, site: usize) {
    let here = world.site(site);
    let disk = here.disk.borrow();
    world.count("disk faults");
    if world.one_in(4) {
        let room = world.pick(&[0, 12_000, 30_000]);
        let room = world.one_in(2).then_some(room);
        world.note(format_args!("disk of {site}: room for {room:?}"));
        here.full.set(true);
        disk.set_capacity(room);
    } else {
        // The state after a failed sync is the hardest to get right.
        let (op, name) = if world.one_in(3) {
            (Op::SyncData, world.pick(&[".segment", "checkpoint"]))
        } else {
            (
                world.pick(&DISK_OPS),
                world.pick(&["", "", ".segment", "checkpoint", "spare"]),
            )
        };
        let most = world.pick(&[1, 6]);
        let skip = world.below(most);
        world.note(format_args!(
            "disk of {site}: {op:?} of {name:?} fails after {skip}"
        ));
        disk.fail(op, name, skip);
    }
}

/// The events' topic becomes unwritable or writable again, or begins or ceases to refuse timestamps.
fn topic_away(world: &World) {
    let stream = world.pick(world.plan.event_streams());
    let clock = world.one_in(4);
    let mut inner = world.cluster.lock();
    if let Some(topic) = inner.topics.get_mut(world.plan.topic(stream)) {
        if clock {
            topic.clock_differs = !topic.clock_differs;
            world.note(format_args!(
                "topic of {stream}: clock_differs = {}",
                topic.clock_differs
            ));
            return;
        }
        topic.forbidden = !topic.forbidden;
        world.note(format_args!("topic of {stream}: forbidden = {}", topic.forbidden));
    }
}

/// A clean stop.
fn stop(world: &World, site: usize) {
    let Some(process) = world.process(site) else {
        return;
    };
    world.note(format_args!("process {site} stops"));
    world.count("stops");
    for pipe in &process.pipes {
        if let Some(log) = &*pipe.log.borrow() {
            log.close();
        }
        for _ in 0..2 {
            world.step_of(site, &process, pipe, Part::Writer);
        }
        if let Some(lane) = &mut *pipe.lane.borrow_mut() {
            lane.hurry();
        }
        for _ in 0..world.below(10) {
            match world.step_of(site, &process, pipe, Part::Lane) {
                Some(Turn::Progress) => {}
                Some(Turn::Paused(wait)) => {
                    violated!("liveness", "a lane that drains waits {wait:?} for more")
                }
                _ => break,
            }
        }
        let lane = pipe.lane.take();
        if let Some(mut lane) = lane
            && !process.gone.get()
        {
            world.run(site, || lane.finish());
        }
    }
    drop(process);
    if world.process(site).is_some() {
        world.bury(site);
    }
}

/// The directory is copied, or replaced by an older copy, or a bridge starts on a copy of it.
fn copy(world: &World, site: usize, copies: &mut Vec<Copy>) {
    let streams = world.plan.streams();
    let older = copies.iter().position(|copy| copy.site == site);
    match (older, world.below(4)) {
        (Some(older), 0 | 1) => {
            let Copy {
                disk, time, groups, ..
            } = &copies[older];
            if world.process(site).is_some() {
                world.bury(site);
            }
            let here = world.site(site);
            let now = |stream| World::group(&here.disk.borrow(), stream);
            let renewed: Vec<Stream> = streams
                .iter()
                .zip(groups)
                .filter(|(stream, group)| now(**stream) != **group)
                .map(|(stream, _)| *stream)
                .collect();
            world.note(format_args!("directory {site} is restored; renewed: {renewed:?}"));
            world.count("restored");
            here.disk.replace(Rc::new(disk.fork()));
            world.oracle.borrow_mut().restored(site, *time, &renewed);
            // It now meets the position of another life, so this is a good moment to die.
            drop(here);
            world.start(site);
            if world.one_in(2) {
                die_soon(world, 40);
            }
            for _ in 0..4 {
                world.step(site, Part::Lane);
            }
        }
        (Some(older), 2) if world.sites.borrow().len() == 1 => {
            // A copy of the newest state: an older one would combine restore and copy.
            let copy = world.sites.borrow().len();
            copies.remove(older);
            let disk = snapshot(world, site);
            world.note(format_args!("a copy of directory {site} lives as {copy}"));
            world.count("copied");
            world.add_site(Rc::new(disk));
            world.oracle.borrow_mut().copied(site, copy);
        }
        _ => {
            let disk = snapshot(world, site);
            world.note(format_args!("directory {site} is copied"));
            copies.push(Copy {
                site,
                time: world.oracle.borrow_mut().now(),
                groups: streams
                    .iter()
                    .map(|stream| World::group(&disk, *stream))
                    .collect(),
                disk,
            });
        }
    }
}

/// A snapshot of the volume: what a power cut would leave now. With page-cache durability, everything.
fn snapshot(world: &World, site: usize) -> SimDisk {
    let copy = world.site(site).disk.borrow().fork();
    if world.plan.durability == Durability::PageCache {
        copy.settle();
    }
    copy.crash(world.random.borrow_mut().next());
    copy.set_capacity(None);
    copy
}

/// The offsets of a lane at rest expire, or the events' topic is deleted.
fn expire(world: &World, site: usize) {
    // The oracle can't tell what is lost with a deleted topic from what rot destroys.
    if world.one_in(3) && !world.plan.rot {
        delete_topic(world);
        return;
    }
    let Some(process) = world.process(site) else {
        return;
    };
    let pipe = &process.pipes[world.below(process.pipes.len() as u64) as usize];
    world.alone.set(true);
    for _ in 0..6 {
        let turn = world.step_of(site, &process, pipe, Part::Lane);
        if let Some(Turn::Paused(wait)) = turn {
            world.pass(wait);
        }
        // At rest the checkpoint is as new as the position.
        if turn == Some(Turn::Idle) {
            if let Some(group) = World::group(&world.site(site).disk.borrow(), pipe.stream) {
                world.note(format_args!("the offsets of {} expire", pipe.stream));
                world.count("expired");
                world.cluster.set_committed(group, None);
            }
            break;
        }
    }
    world.alone.set(false);
}

fn delete_topic(world: &World) {
    let topic = world.plan.topic(world.pick(world.plan.event_streams()));
    world.cluster.lose();
    if world.cluster.is_open() {
        return;
    }
    let streams: Vec<Stream> = world.plan.event_streams().to_vec();
    let streams: Vec<Stream> = streams
        .into_iter()
        .filter(|stream| world.plan.topic(*stream) == topic)
        .collect();
    world.check();
    world.note(format_args!("{topic} is deleted"));
    world.count("topics deleted");
    world.cluster.delete_topic(topic);
    world.oracle.borrow_mut().topic_deleted(topic, &streams);
    if world.one_in(2) {
        make_topic(world, topic);
    }
}

fn make_topic(world: &World, topic: &'static str) {
    let settings = world.plan.topic_settings(topic);
    world.cluster.lock().topics.insert(topic.to_owned(), settings);
}

/// The faults end, and everything must be delivered soon.
fn come_to_rest(world: &World) {
    world.note(format_args!("no more faults"));
    world.count("rests");
    world.calm.set(true);
    world.dies_in.set(None);
    {
        let mut inner = world.cluster.lock();
        inner.faults.clear();
        inner
            .topics
            .values_mut()
            .for_each(|topic| topic.forbidden = false);
    }
    for stream in world.plan.event_streams() {
        let topic = world.plan.topic(*stream);
        if !world.cluster.lock().topics.contains_key(topic) {
            make_topic(world, topic);
        }
    }
    let sites = world.sites.borrow().len();
    for site in 0..sites {
        let here = world.site(site);
        here.disk.borrow().set_capacity(None);
        here.disk.borrow().heal();
        here.full.set(false);
        if world.process(site).is_none() {
            world.start(site);
        }
        if world.process(site).is_none() {
            violated!("liveness", "the process does not start");
        }
    }
    let mut rounds = 0;
    // Lanes blocked by damage connect and are blocked again forever, and two of them could alternate.
    let mut stuck = Vec::new();
    while (0..sites).filter(|site| round(world, *site, &mut stuck)).count() > 0 {
        rounds += 1;
        if rounds > ROUNDS {
            violated!("liveness", "not everything is delivered after {rounds} rounds");
        }
    }
    // A life whose log was renamed since may have left a transaction open that no later producer ends. Readers wait until the
    // broker ends it.
    world.pass(TRANSACTION_TIMEOUT);
    world.oracle.borrow_mut().quiet(&world.cluster);
    for site in 0..sites {
        look_at_rest(world, site);
    }
    world.calm.set(false);
}

/// Gives every part a turn; returns whether anything moved.
fn round(world: &World, site: usize, stuck: &mut Vec<(usize, Stream)>) -> bool {
    let Some(process) = world.process(site) else {
        violated!("liveness", "the process ended without a fault");
    };
    // It has only now met an earlier fault.
    if process.ends_in.get().is_some() {
        world.bury(site);
        world.start(site);
        return true;
    }
    let before = world.moves.get();
    let mut moved = false;
    for pipe in &process.pipes {
        world.step_of(site, &process, pipe, Part::Writer);
        world.step_of(site, &process, pipe, Part::Preparer);
        let is_stuck = stuck.contains(&(site, pipe.stream));
        let turn = (!is_stuck).then(|| world.step_of(site, &process, pipe, Part::Lane));
        match turn.flatten() {
            Some(Turn::Blocked(wait)) => {
                world.pass(wait);
                let damaged = pipe.lane.borrow().as_ref().and_then(|lane| lane.blocked());
                if damaged == Some(BlockReason::Damage) {
                    world.oracle.borrow_mut().damaged(site, pipe.stream);
                    stuck.push((site, pipe.stream));
                } else {
                    moved = true;
                }
            }
            Some(Turn::Paused(wait)) => {
                world.pass(wait);
                moved = true;
            }
            Some(Turn::Progress | Turn::Idle) => {}
            None => {}
        }
        moved |= pipe.log.borrow().as_ref().is_none_or(|log| !log.is_empty());
    }
    moved || process.is_busy() || world.moves.get() > before
}

fn look_at_rest(world: &World, site: usize) {
    let Some(process) = world.process(site) else {
        return;
    };
    for pipe in &process.pipes {
        let books = pipe.books.snapshot();
        if books.backlog() > 0 && !world.site(site).may_lose(pipe.stream) {
            violated!("books", "{} has a backlog at rest: {books:?}", pipe.stream);
        }
    }
}
