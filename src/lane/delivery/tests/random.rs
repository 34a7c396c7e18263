//! Random lives of one spool directory: appends, faults, crashes, restarts, reopened logs.

use super::*;
use crate::simulation::random::Random;

const FAULTS: [BrokerFault; 9] = [
    BrokerFault::Connect(BlockReason::Connect),
    BrokerFault::NoCoordinator,
    BrokerFault::Begin,
    BrokerFault::Send,
    BrokerFault::Delivery,
    BrokerFault::Slow,
    BrokerFault::ReplyLost,
    BrokerFault::CommitFails,
    BrokerFault::Fence,
];

/// The life of a directory, and what readers should see.
struct Life {
    random: Random,
    bench: Bench,
    /// Events for the topic and for the dead letters.
    good: Vec<String>,
    refused: Vec<String>,
    next: u64,
}

impl Life {
    fn new(seed: u64) -> Life {
        let mut random = Random::new(seed);
        let mut options = options();
        options.transaction_events = 1 + random.below(12) as usize;
        options.timing.recommit_every = match random.one_in(4) {
            true => Duration::from_millis(1),
            false => Duration::from_secs(3600),
        };
        if random.one_in(2) {
            options.timing.checkpoint_every = Duration::ZERO;
        }
        let bench = Bench::with(options);
        {
            let mut inner = bench.cluster.lock();
            inner.seed = random.next();
            inner.queue = (!random.one_in(3)).then(|| 1 + random.below(6) as usize);
            inner.request = random.one_in(2).then(|| 1 + random.below(5) as usize);
            inner.names_records = random.one_in(2);
            inner.hasty = random.below(5) as usize;
            let topic = inner.topics.get_mut(TOPIC).unwrap();
            topic.limit = Some(2000);
            topic.told = random.one_in(2);
            topic.compacted = random.one_in(2);
        }
        Life {
            random,
            bench,
            good: Vec::new(),
            refused: Vec::new(),
            next: 0,
        }
    }

    fn append(&mut self) {
        let compacted = self.bench.cluster.lock().topics[TOPIC].compacted;
        let bad = 3 + self.random.below(40);
        let events: Vec<(Option<&str>, String)> = (0..1 + self.random.below(5))
            .map(|_| {
                self.next += 1;
                let value = self.next.to_string();
                let (key, value, refused) = match (self.random.one_in(bad), self.random.one_in(2)) {
                    (true, true) => (Some("key"), format!("{value:x<2500}"), true),
                    (true, false) => (None, value, compacted),
                    _ => (Some("key"), value, false),
                };
                let list = if refused {
                    &mut self.refused
                } else {
                    &mut self.good
                };
                list.push(value.clone());
                (key, value)
            })
            .collect();
        let events: Vec<_> = events
            .iter()
            .map(|(key, value)| Event { key: *key, value })
            .collect();
        self.bench.append_events(&events);
    }

    /// One turn, in which the process may die.
    fn turn(&mut self) {
        let bench = &mut self.bench;
        match catch_unwind(AssertUnwindSafe(|| bench.turn())) {
            Ok(_) => {}
            Err(panic) if panic.is::<Crashed>() => bench.restart(),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0..7 => self.append(),
            7..19 => self.turn(),
            19 | 20 => {
                let fault = self.random.pick(&FAULTS);
                self.bench.cluster.fault(fault);
            }
            21 => {
                let call = self.bench.cluster.lock().calls + 1 + self.random.below(12) as usize;
                let crash = match self.random.one_in(2) {
                    true => Crash::Before(call),
                    false => Crash::After(call),
                };
                self.bench.cluster.lock().crash = Some(crash);
            }
            22 => {
                if self.random.one_in(2) {
                    self.bench.lane().finish().unwrap();
                }
                self.bench.restart();
            }
            _ => self.quiet(),
        }
    }

    /// Checks that without further faults everything comes to rest, and readers see each event once, in order.
    fn quiet(&mut self) {
        self.bench.cluster.lock().faults.clear();
        self.bench.cluster.lock().crash = None;
        self.bench.settle();
        assert_eq!(self.bench.cluster.values(TOPIC), self.good);
        assert_eq!(self.bench.cluster.values(LETTERS), self.refused);
        // Now and then offsets expire while the lane is idle. The checkpoint is durable by then.
        if self.random.one_in(3) {
            self.bench.cluster.set_committed(self.bench.group(), None);
        }
    }
}

#[test]
fn random_lives_duplicate_and_lose_nothing() {
    let given = std::env::var("CMC_BRIDGE_TEST_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let lives = std::env::var("CMC_BRIDGE_TEST_LIVES").map_or(60, |lives| lives.parse().unwrap());
    let seeds = given.map_or(0..lives, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let lived = catch_unwind(|| {
            let mut life = Life::new(seed);
            for _ in 0..120 {
                life.step();
            }
            life.quiet();
            let outcome = (life.good.len(), life.refused.len());
            assert_eq!(life.bench.group(), life.bench.lane().backlog.group_id());
            outcome
        });
        if let Err(panic) = lived {
            eprintln!("CMC_BRIDGE_TEST_SEED={seed} shows it again");
            resume_unwind(panic);
        }
    }
}
