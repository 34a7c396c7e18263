//! A simulation of the whole core: webhooks, spool and lanes run on a simulated disk, cluster and clock, with faults and
//! deaths between any two calls. An oracle checks the README's guarantees.
//!
//! A run depends on its seed alone. One process works in one directory; a second one may later work in a copy of it. Their
//! parts are the production code: `Intake` from a body on, the spool's writer, preparer and recovery, `Lane::turn`. Each part
//! takes whole steps. At every call to disk or broker, steps of other parts may run, or the process may die ([`world`]).
//! [`schedule`] decides what happens between the steps, [`plan`] what the run is like, and [`oracle`] what must be true.
//!
//! Not covered: HTTP, librdkafka (`kafka/producer.rs`), waits and wake-ups of threads, a webhook that gives up waiting for
//! the disk, two steps that overlap other than one inside a call of the other, a writer that writes while its preparer works,
//! and more than one damaged place in a log.
//!
//! `CMC_BRIDGE_TEST_SEED=<seed>` runs one seed and prints its trace. `CMC_BRIDGE_TEST_SCHEDULES=<n>` sets how many schedules
//! run, `CMC_BRIDGE_TEST_FIRST=<seed>` the first seed, `CMC_BRIDGE_TEST_THREADS=<n>` the number of threads.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`broker`] | a simulated Kafka cluster, with librdkafka in front of it |
//! | [`disk`] | a simulated disk |
//! | [`oracle`] | compares what readers see with what was posted and acknowledged |
//! | [`plan`] | settings of a run, and what can go wrong in it |
//! | [`process`] | one process of the bridge, as steps without threads |
//! | [`random`] | random numbers, the same on every platform |
//! | [`rot`] | bit rot, and `spool repair` after it |
//! | [`schedule`] | what happens between the steps of the processes |
//! | [`webhook`] | generates webhooks and the records expected from them |
//! | [`world`] | directories, processes, cluster and time of one run; what happens at each call |

pub(crate) mod broker;
pub(crate) mod disk;
mod oracle;
mod plan;
mod process;
pub mod random;
mod rot;
mod schedule;
mod webhook;
mod world;

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use mimalloc::MiMalloc;

use self::{process::PerThread, world::World};

/// The program's allocator, which is also faster.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

type Counts = BTreeMap<&'static str, u64>;

/// The result of one run.
struct Ended {
    result: Result<(), String>,
    counts: Counts,
    trace: Vec<String>,
}

fn run(seed: u64, shared: &Rc<PerThread>, traced: bool) -> Ended {
    let world = World::new(seed, Rc::clone(shared), traced);
    let lived = catch_unwind(AssertUnwindSafe(|| schedule::live(&world)));
    World::end();
    let mut counts = world.counts.take();
    if lived.is_ok() {
        *counts.entry("events delivered").or_default() += world.oracle.borrow().seen() as u64;
    }
    Ended {
        result: lived.map_err(|panic| text(&*panic)),
        counts,
        trace: world.trace(),
    }
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
        .to_owned()
}

/// Counts the schedules of all threads and prints the rate from time to time, because a long run may be stopped before its end.
struct Progress {
    begun: Instant,
    done: AtomicU64,
}

impl Progress {
    const STEP: u64 = 100_000;

    fn new() -> Progress {
        Progress {
            begun: Instant::now(),
            done: AtomicU64::new(0),
        }
    }

    fn count(&self) {
        if (self.done.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(Progress::STEP) {
            self.print();
        }
    }

    fn print(&self) {
        let (done, seconds) = (
            self.done.load(Ordering::Relaxed),
            self.begun.elapsed().as_secs_f64(),
        );
        let rate = done as f64 / seconds;
        println!("{done} schedules in {seconds:.1} s, {rate:.0} a second");
    }
}

/// Runs these seeds until one fails, and reports its trace.
fn run_all(seeds: impl Iterator<Item = u64>, progress: &Progress) -> Result<Counts, String> {
    let shared = Rc::new(PerThread::new());
    let mut counts = Counts::new();
    for (schedules, seed) in seeds.enumerate() {
        let ended = run(seed, &shared, false);
        for (what, n) in ended.counts {
            *counts.entry(what).or_default() += n;
        }
        if let Err(what) = ended.result {
            let again = run(seed, &shared, true);
            let trace = again.trace.join("\n");
            return Err(format!(
                "{trace}\n\nseed {seed}, schedule {}: {what}\nrepeat it with:\n\
                 CMC_BRIDGE_TEST_SEED={seed} cargo test --lib simulation::schedules -- --nocapture",
                schedules + 1
            ));
        }
        progress.count();
    }
    Ok(counts)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn schedules() {
    if let Some(seed) = variable("CMC_BRIDGE_TEST_SEED") {
        let ended = run(seed, &Rc::new(PerThread::new()), true);
        println!("{}", ended.trace.join("\n"));
        ended.result.unwrap();
        return;
    }
    let schedules = variable("CMC_BRIDGE_TEST_SCHEDULES").unwrap_or(20_000);
    let first = variable("CMC_BRIDGE_TEST_FIRST").unwrap_or(0);
    let threads = variable("CMC_BRIDGE_TEST_THREADS").unwrap_or(1);
    let progress = Arc::new(Progress::new());
    let running: Vec<_> = (0..threads)
        .map(|thread| {
            let seeds = (first + thread..first + schedules).step_by(threads as usize);
            let progress = Arc::clone(&progress);
            thread::spawn(move || run_all(seeds, &progress))
        })
        .collect();
    let mut counts = Counts::new();
    for thread in running {
        match thread.join().unwrap() {
            Ok(found) => {
                for (what, n) in found {
                    *counts.entry(what).or_default() += n;
                }
            }
            Err(what) => panic!("{what}"),
        }
    }
    progress.print();
    for (what, n) in counts {
        println!("{n:>12} {what}");
    }
}

/// A seed determines a run.
#[test]
fn a_seed_determines_a_run() {
    let shared = Rc::new(PerThread::new());
    for seed in 0..20 {
        let (first, second) = (run(seed, &shared, true), run(seed, &shared, true));
        assert!(first.trace.len() > 10);
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
}

/// Guards `schedules` against doing nothing.
#[test]
fn the_schedules_exercise_every_part() {
    let counts = run_all(1_000_000..1_001_000, &Progress::new()).unwrap();
    for what in [
        "acknowledged",
        "broker faults",
        "copied",
        "deaths at a call",
        "disk faults",
        "events delivered",
        "expired",
        "failures",
        "interruptions",
        "kills",
        "mails",
        "power cuts",
        "refused",
        "refused mails",
        "repaired",
        "restored",
        "rests",
        "rotten",
        "stops",
        "topics deleted",
    ] {
        assert!(counts.get(what).is_some_and(|n| *n >= 10), "{what}: {counts:?}");
    }
}
