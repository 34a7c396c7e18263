//! The world of one run: directories with their processes, the cluster and the time; and what happens at each call.
//!
//! There are no threads. A step of a process (a writer's turn, a lane's turn …) is a function call. At every system call and
//! every call to the broker that it makes, the world may run whole steps of other parts, as if the thread had been interrupted
//! there, or let the process die by unwinding.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    oracle::{Oracle, violated},
    plan::{Plan, TOPICS, TRANSACTION_TIMEOUT},
    process::{PerThread, Process, StreamParts},
    random::Random,
    webhook::{self, MadeWebhook},
};
use crate::{
    clock,
    cmc::Endpoint,
    config::Delivery,
    lane::delivery::Turn,
    metrics::{BlockReason, Outcome},
    simulation::{
        broker::Cluster,
        disk::{Op, Pause, SimDisk},
    },
    spool::{Durability, Manifest, SpoolError},
    stream::Stream,
};

/// The payload of the panic that stands for the death of a process.
struct Died;

/// A part of a process with a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Writer,
    Preparer,
    Lane,
}

/// Where bits have rotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    OfBatch,
    /// One of two copies, or a position that Kafka's exceeds: costs nothing.
    OfACopy,
}

/// A spool directory and the process in it.
pub struct Site {
    pub disk: RefCell<Rc<SimDisk>>,
    pub process: RefCell<Option<Rc<Process>>>,
    /// Streams with bit rot that was not repaired.
    pub rotten: RefCell<BTreeMap<Stream, Rot>>,
    /// Whether the disk was full during this life of the process.
    pub full: Cell<bool>,
    /// The number of calls that had failed on the disk before this life of the process.
    failed: Cell<u64>,
}

pub struct World {
    pub random: RefCell<Random>,
    pub plan: Plan,
    pub shared: Rc<PerThread>,
    pub cluster: Cluster,
    pub sites: RefCell<Vec<Rc<Site>>>,
    pub oracle: RefCell<Oracle>,
    /// The processes whose steps are under way, the outermost first.
    stack: RefCell<Vec<usize>>,
    /// After this many more calls (of this kind), the process that makes the next one dies.
    pub dies_in: Cell<Option<(Option<Op>, u64)>>,
    /// No more faults.
    pub calm: Cell<bool>,
    /// No other steps run during calls.
    pub alone: Cell<bool>,
    webhooks: Cell<u64>,
    /// All webhooks with events, by the oracle's numbers.
    posted: RefCell<Vec<(usize, Rc<MadeWebhook>)>>,
    /// Counts answers, and turns of lanes that did something.
    pub moves: Cell<u64>,
    trace: Option<RefCell<Vec<String>>>,
    /// How often each thing happened.
    pub counts: RefCell<BTreeMap<&'static str, u64>>,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// A call of a process in this directory.
fn called(site: usize, op: Option<Op>) {
    let world = WORLD.with_borrow(|world| world.as_ref().map(Rc::clone));
    if let Some(world) = world {
        world.called(site, op);
    }
}

impl Site {
    /// Whether a batch of the stream is damaged.
    pub fn may_lose(&self, stream: Stream) -> bool {
        self.rotten.borrow().get(&stream) == Some(&Rot::OfBatch)
    }
}

impl World {
    pub fn new(seed: u64, shared: Rc<PerThread>, traced: bool) -> Rc<World> {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random);
        let cluster = Cluster::new(&TOPICS);
        {
            let mut inner = cluster.lock();
            inner.seed = random.next();
            inner.queue = plan.queue;
            inner.request = plan.request;
            inner.names_records = plan.names_records;
            inner.hasty = plan.hasty;
            inner.one_by_one_in_time = plan.one_by_one_in_time;
            inner.unstable_positions = plan.unstable_positions;
            inner.plain = plan.delivery == Delivery::AtLeastOnce;
            for (name, topic) in &mut inner.topics {
                *topic = plan.topic_settings(name);
            }
        }
        let world = Rc::new(World {
            oracle: RefCell::new(Oracle::new(TOPICS, plan.delivery)),
            plan,
            shared,
            cluster,
            sites: RefCell::default(),
            stack: RefCell::default(),
            dies_in: Cell::new(None),
            calm: Cell::new(false),
            alone: Cell::new(false),
            webhooks: Cell::new(0),
            posted: RefCell::default(),
            moves: Cell::new(0),
            trace: traced.then(RefCell::default),
            counts: RefCell::default(),
            random: RefCell::new(random),
        });
        clock::simulate(Some(Instant::now()));
        WORLD.set(Some(Rc::clone(&world)));
        let disk = SimDisk::new(seed);
        world.add_site(Rc::new(disk));
        world
    }

    /// Ends the run on this thread.
    pub fn end() {
        WORLD.set(None);
        clock::simulate(None);
    }

    pub fn add_site(&self, disk: Rc<SimDisk>) {
        self.sites.borrow_mut().push(Rc::new(Site {
            disk: RefCell::new(disk),
            process: RefCell::new(None),
            rotten: RefCell::default(),
            full: Cell::new(false),
            failed: Cell::new(0),
        }));
    }

    pub fn site(&self, site: usize) -> Rc<Site> {
        Rc::clone(&self.sites.borrow()[site])
    }

    pub fn process(&self, site: usize) -> Option<Rc<Process>> {
        self.site(site).process.borrow().as_ref().map(Rc::clone)
    }

    pub fn below(&self, n: u64) -> u64 {
        self.random.borrow_mut().below(n)
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.random.borrow_mut().one_in(n)
    }

    /// One of these, if there is one.
    pub fn pick_from<'a, T>(&self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.below(of.len() as u64) as usize])
    }

    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        self.random.borrow_mut().pick(of)
    }

    /// Adds an entry to the trace.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        if let Some(trace) = &self.trace {
            let depth = self.stack.borrow().len();
            trace.borrow_mut().push(format!("{:1$}{what}", "", 2 * depth));
        }
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace
            .as_ref()
            .map(|trace| trace.borrow().clone())
            .unwrap_or_default()
    }

    /// A process makes a call.
    fn called(&self, site: usize, op: Option<Op>) {
        self.count("calls");
        if let Some((kind, calls)) = self.dies_in.get()
            && (kind.is_none() || kind == op)
        {
            if calls == 0 {
                self.dies_in.set(None);
                self.note(format_args!("process {site} dies"));
                self.count("deaths at a call");
                resume_unwind(Box::new(Died));
            }
            self.dies_in.set(Some((kind, calls - 1)));
        }
        let depth = self.stack.borrow().len();
        if self.alone.get() || depth > 2 || !self.one_in(self.plan.nest * (depth as u64).pow(2).max(1)) {
            return;
        }
        self.count("interruptions");
        self.check_books();
        // A step of one process may contain steps of another one, but no further steps of the first: its death would end
        // those of the other, too.
        let foreign = self.stack.borrow().iter().any(|running| *running != site);
        let sites = self.sites.borrow().len();
        let other = match depth == 1 && !foreign && self.one_in(3) {
            true => self.below(sites as u64) as usize,
            false => site,
        };
        match self.below(8) {
            0 => self.drive(),
            1 if !self.calm.get() => self.post(other),
            2..4 => self.step(other, Part::Writer),
            4 => self.step(other, Part::Preparer),
            5 if !self.calm.get() => self.pass(Duration::from_millis(self.pick(&[1, 300, 6000]))),
            _ => self.step(other, Part::Lane),
        }
    }

    /// Runs a step of a process, which may die or fail meanwhile.
    pub fn run(&self, site: usize, what: impl FnOnce() -> Result<(), SpoolError>) {
        self.stack.borrow_mut().push(site);
        let ended = catch_unwind(AssertUnwindSafe(what));
        self.stack.borrow_mut().pop();
        let outer = self.stack.borrow().contains(&site);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.failed(site, &error, outer),
            Err(panic) => self.unwound(site, panic, outer),
        }
    }

    fn unwound(&self, site: usize, panic: Box<dyn Any + Send>, outer: bool) {
        if outer || !panic.is::<Died>() {
            resume_unwind(panic);
        }
        self.bury(site);
    }

    /// Part of the process has failed for good, and the process is about to end.
    fn failed(&self, site: usize, error: &SpoolError, outer: bool) {
        self.note(format_args!("process {site} fails: {error}"));
        self.count("failures");
        let here = self.site(site);
        if !here.full.get() && here.disk.borrow().failed() == here.failed.get() {
            violated!("liveness", "the process failed without a fault: {error}");
        }
        match self.process(site) {
            Some(process) => process.ends_in.set(Some(self.below(4))),
            None if outer => {}
            None => self.bury(site),
        }
    }

    /// Ends the process, perhaps with a power cut; only what the disk kept remains.
    pub fn bury(&self, site: usize) {
        let here = self.site(site);
        if let Some(process) = here.process.take() {
            process.gone.set(true);
        }
        let disk = here.disk.borrow();
        if self.plan.durability == Durability::PageCache || self.one_in(2) {
            self.note(format_args!("process {site} is gone"));
            self.count("kills");
            disk.kill();
        } else {
            let seed = self.random.borrow_mut().next();
            self.note(format_args!("process {site} is gone, with a power cut"));
            self.count("power cuts");
            disk.crash(seed);
        }
        if self.one_in(2) {
            self.cluster.lose();
        }
        self.shared.drive();
    }

    /// Starts the process of a directory; it may die meanwhile.
    pub fn start(&self, site: usize) {
        let here = self.site(site);
        here.failed.set(here.disk.borrow().failed());
        let pause: Pause = Arc::new(move |op| called(site, op));
        self.note(format_args!("process {site} starts"));
        self.run(site, || {
            let disk = Rc::clone(&here.disk.borrow());
            let process = Process::start(&self.shared, &self.plan, &disk, &self.cluster, &pause)?;
            for pipe in &process.pipes {
                // A kill can tear a copy. That is not bit rot, and costs nothing either.
                let damage = pipe.damage.iter().find(|damage| !damage.is_harmless());
                if let Some(damage) = damage
                    && !here.may_lose(pipe.stream)
                {
                    violated!("damage", "{} has lost nothing: {damage}", pipe.stream);
                }
            }
            here.process.replace(Some(Rc::new(process)));
            self.count("starts");
            Ok(())
        });
    }

    /// Runs a step of one part of a process, unless that is under way.
    pub fn step(&self, site: usize, part: Part) {
        let Some(process) = self.process(site) else {
            return;
        };
        match process.ends_in.get() {
            Some(0) if self.stack.borrow().is_empty() => {
                drop(process);
                return self.bury(site);
            }
            Some(steps) => process.ends_in.set(Some(steps.saturating_sub(1))),
            None => {}
        }
        let pipe = &process.pipes[self.below(process.pipes.len() as u64) as usize];
        self.step_of(site, &process, pipe, part);
    }

    /// Runs a step of this stream's part; returns the result of a lane's turn.
    pub fn step_of(&self, site: usize, process: &Process, pipe: &StreamParts, part: Part) -> Option<Turn> {
        let mut turn = None;
        if process.gone.get() {
            return turn;
        }
        match part {
            // The writer would wait for the preparer, which is under way.
            Part::Writer if pipe.preparing.get() => {}
            Part::Writer => {
                let log = pipe.log.take();
                if let Some(mut log) = log {
                    self.note(format_args!("writer of {site} {}", pipe.stream));
                    self.run(site, || {
                        log.turn()?;
                        pipe.log.replace(Some(log));
                        Ok(())
                    });
                    self.drive();
                }
            }
            Part::Preparer if pipe.preparing.get() || pipe.log.borrow().is_none() => {}
            Part::Preparer => {
                self.note(format_args!("preparer of {site} {}", pipe.stream));
                pipe.preparing.set(true);
                self.run(site, || {
                    (pipe.prepare)();
                    Ok(())
                });
                pipe.preparing.set(false);
            }
            Part::Lane => {
                let lane = pipe.lane.take();
                if let Some(mut lane) = lane {
                    self.note(format_args!("lane of {site} {}", pipe.stream));
                    self.run(site, || {
                        let result = lane.turn()?;
                        self.note(format_args!("  {result:?}"));
                        if result == Turn::Progress {
                            self.moves.set(self.moves.get() + 1);
                        }
                        if lane.blocked() == Some(BlockReason::Damage)
                            && !self.site(site).may_lose(pipe.stream)
                        {
                            violated!(
                                "damage",
                                "the lane of {} is blocked and has lost nothing",
                                pipe.stream
                            );
                        }
                        turn = Some(result);
                        pipe.lane.replace(Some(lane));
                        Ok(())
                    });
                }
            }
        }
        self.check();
        turn
    }

    /// Lets webhooks proceed, and collects their answers.
    pub fn drive(&self) {
        self.shared.drive();
        self.look_at_answers();
    }

    pub fn look_at_answers(&self) {
        for site in 0..self.sites.borrow().len() {
            let Some(process) = self.process(site) else {
                continue;
            };
            for (number, outcome) in process.answers() {
                self.note(format_args!("webhook {number}: {outcome:?}"));
                self.moves.set(self.moves.get() + 1);
                if matches!(outcome, Outcome::Accepted | Outcome::Malformed) {
                    self.count("acknowledged");
                    process.has_acknowledged(number);
                    self.oracle.borrow_mut().acknowledged(number);
                } else {
                    self.count("refused");
                }
            }
        }
    }

    /// Posts a webhook.
    pub fn post(&self, site: usize) {
        let Some(process) = self.process(site) else {
            return;
        };
        if self.plan.repeats && self.one_in(3) {
            return self.post_again(&process);
        }
        self.webhooks.set(self.webhooks.get() + 1);
        let made = webhook::make(&mut self.random.borrow_mut(), &self.plan, self.webhooks.get());
        for (stream, records) in made.batches.iter().filter(|(stream, _)| stream.is_grouped()) {
            let is_refused = records
                .iter()
                .any(|record| record.topic != self.plan.topic(*stream));
            self.count(if is_refused { "refused mails" } else { "mails" });
        }
        let batches = made
            .batches
            .iter()
            .map(|(stream, records)| (*stream, records.len()));
        let batches: Vec<_> = batches.collect();
        let number = self.oracle.borrow_mut().posted(site, &made);
        self.note(format_args!("webhook {number} to {site}: {batches:?}"));
        let made = Rc::new(made);
        // Received mail is not recognised.
        if made.endpoint == Endpoint::Events {
            self.posted.borrow_mut().push((number, Rc::clone(&made)));
        }
        process.post(&self.shared, number, &made);
        self.look_at_answers();
    }

    /// Repeats a webhook, whatever became of it. There is only one site.
    fn post_again(&self, process: &Process) {
        let Some((number, made)) = self.pick_from(&self.posted.borrow()).cloned() else {
            return;
        };
        let known = process.knows(number);
        self.note(format_args!("webhook {number} again, known: {known}"));
        self.count("repeats");
        self.oracle.borrow_mut().posted_again(number, known);
        process.post(&self.shared, number, &made);
        self.look_at_answers();
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        clock::simulate_wait(clock::now() + time);
        self.cluster.expire(TRANSACTION_TIMEOUT);
    }

    /// What must be true at any point.
    pub fn check(&self) {
        self.check_books();
        self.oracle.borrow_mut().look(&self.cluster);
    }

    fn check_books(&self) {
        for site in 0..self.sites.borrow().len() {
            let Some(process) = self.process(site) else {
                continue;
            };
            for pipe in &process.pipes {
                let books = pipe.books.snapshot();
                if !books.balanced() {
                    violated!("books", "{} of {site}: {books:?}", pipe.stream);
                }
            }
        }
    }

    /// A log's name in Kafka, if there is a log.
    pub fn group(disk: &SimDisk, stream: Stream) -> Option<Uuid> {
        let manifest = Manifest::read(&*disk.mount(), &Plan::dir(stream)).ok().flatten();
        manifest.map(|manifest| manifest.group_id)
    }
}
