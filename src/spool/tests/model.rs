//! Random lives of a log against a plain model. Acknowledged batches are there, complete, once and in order, whatever fails
//! between any two calls. All others are there completely or not at all. No plain crash looks like damage.

use proptest::prelude::*;

use crate::batch::Batch;

use super::harness::{LogLife, batch, options, segments};
use crate::{
    simulation::disk::{Op, SimDisk},
    spool::{AppendError, Damage, DamageKind, Position, Seq},
};

const SEGMENT: u64 = 8 << 10;

#[derive(Clone, Debug)]
enum Step {
    /// Appends batches of these lengths as one group.
    Append(Vec<usize>),
    Rest,
    /// Reads this many batches and compares them.
    Read(usize),
    /// Delivers this many more batches.
    Advance(usize),
    Store,
    /// The process dies after this many more calls.
    Halt(u64),
    /// A sync fails, of files whose name contains this.
    FailSync(&'static str, u64),
    FailWrite(u64),
    /// The disk holds no more than this many bytes, or has room again.
    Room(Option<usize>),
    /// The process dies; the page cache lives on.
    Kill,
    /// The power fails.
    Crash(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0usize..200, 2 => 200usize..2000, 1 => 2000usize..12_000];
    prop_oneof![
        8 => prop::collection::vec(len, 1..6).prop_map(Step::Append),
        3 => Just(Step::Rest),
        2 => (1usize..10).prop_map(Step::Read),
        3 => (1usize..10).prop_map(Step::Advance),
        3 => Just(Step::Store),
        3 => (0u64..30).prop_map(Step::Halt),
        1 => (prop_oneof![Just(".segment"), Just("checkpoint"), Just("")], 0u64..4)
            .prop_map(|(name, skip)| Step::FailSync(name, skip)),
        1 => (0u64..6).prop_map(Step::FailWrite),
        1 => prop::option::of(0usize..60_000).prop_map(Step::Room),
        2 => Just(Step::Kill),
        4 => any::<u64>().prop_map(Step::Crash),
    ]
}

/// The expected state.
#[derive(Default)]
struct Model {
    /// Batches that must be there.
    acknowledged: Vec<Batch>,
    /// Batches after them, of which the first ones may be there.
    uncertain: Vec<Batch>,
    /// The minimum and maximum position after the next open.
    stored: (u64, u64),
    /// The position of this life.
    position: u64,
    numbers: u64,
    refused: u64,
    crashes: u64,
}

impl Model {
    fn events_before(&self, seq: u64) -> u64 {
        let before = &self.acknowledged[..seq as usize];
        before.iter().map(|b| u64::from(b.events())).sum()
    }

    fn position(&self, seq: u64) -> Position {
        Position {
            seq: Seq(seq),
            events: self.events_before(seq),
        }
    }

    /// Opens the log, with a crash during the open if one is due, and compares everything with the model.
    fn open(&mut self, disk: &SimDisk) -> LogLife {
        let options = options(SEGMENT);
        // Fails by a halt or an injected error, each of which happens once.
        let mut life = LogLife::open(disk, &options)
            .or_else(|_| {
                disk.kill();
                LogLife::open(disk, &options)
            })
            .unwrap();
        // A crash may tear the position that is being stored; that costs nothing.
        let torn = [DamageKind::PositionCopied, DamageKind::PositionOlder];
        let by_crash = |damage: &Damage| damage.is_harmless() && torn.contains(&damage.kind);
        assert!(life.damage.iter().all(by_crash), "{:?}", life.damage);
        assert!(life.backlog.blocking_damage().is_none());
        let end = life.backlog.end();
        let found = (end.seq.0 as usize)
            .checked_sub(self.acknowledged.len())
            .expect("an acknowledged batch is lost");
        assert!(
            found <= self.uncertain.len(),
            "the log has batches that nobody appended"
        );
        self.acknowledged.extend(self.uncertain.drain(..).take(found));
        assert_eq!(end, self.position(self.acknowledged.len() as u64));
        let position = life.backlog.position();
        assert!((self.stored.0..=self.stored.1).contains(&position.seq.0));
        assert_eq!(position, self.position(position.seq.0));
        self.position = position.seq.0;
        self.stored = (self.position, self.position);
        let books = life.books.snapshot();
        assert_eq!(
            (books.durable_total, books.position_total),
            (end.events, position.events)
        );
        self.read_all(&mut life);
        life
    }

    fn read_all(&self, life: &mut LogLife) {
        life.backlog.rewind();
        let (batches, damage) = life.read();
        assert_eq!(damage, None);
        let wanted = &self.acknowledged[self.position as usize..];
        assert_eq!(batches.len(), wanted.len());
        for (i, (found, wanted)) in batches.iter().zip(wanted).enumerate() {
            assert_eq!(found.seq.0, self.position + i as u64);
            assert_eq!(found.events_before, self.events_before(found.seq.0));
            assert!(found.payload == wanted.bytes(), "the batch differs");
        }
        life.backlog.rewind();
    }

    /// Runs one step. Returns false if the process can't go on.
    fn step(&mut self, disk: &SimDisk, life: &mut LogLife, step: &Step) -> bool {
        match step {
            Step::Append(lens) => {
                let mut batches = Vec::new();
                for len in lens {
                    self.numbers += 1;
                    batches.push(batch(self.numbers, *len).0);
                }
                let (answers, result) = life.try_append(&batches);
                for (batch, answer) in batches.into_iter().zip(answers) {
                    match answer {
                        Ok(()) => {
                            assert!(self.uncertain.is_empty(), "acknowledged after a failure");
                            self.acknowledged.push(batch);
                        }
                        Err(AppendError::Failed) => self.uncertain.push(batch),
                        Err(AppendError::Full) => self.refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                assert_eq!(result.is_err(), !self.uncertain.is_empty());
                result.is_ok()
            }
            Step::Rest => life.writer.rest().is_ok(),
            Step::Read(n) => {
                life.backlog.rewind();
                for seq in (self.position..self.acknowledged.len() as u64).take(*n) {
                    let found = match life.backlog.take() {
                        Ok(found) => found.expect("the log ends too early"),
                        Err(error) => {
                            assert!(disk.halted(), "{error}");
                            return false;
                        }
                    };
                    assert_eq!(found.seq.0, seq);
                    assert!(found.payload == self.acknowledged[seq as usize].bytes());
                }
                true
            }
            Step::Advance(n) => {
                self.position = (self.position + *n as u64).min(self.acknowledged.len() as u64);
                life.backlog.advance(self.position(self.position));
                true
            }
            Step::Store => {
                self.stored.1 = self.position;
                let stored = life.backlog.store_checkpoint().is_ok();
                if stored {
                    self.stored.0 = self.position;
                }
                stored
            }
            Step::Halt(calls) => {
                disk.halt_in(*calls);
                true
            }
            Step::FailSync(name, skip) => {
                disk.fail(Op::SyncData, name, *skip);
                true
            }
            Step::FailWrite(skip) => {
                disk.fail(Op::Write, "", *skip);
                true
            }
            Step::Room(bytes) => {
                disk.set_capacity(*bytes);
                true
            }
            Step::Kill | Step::Crash(_) => false,
        }
    }
}

fn run(seed: u64, steps: &[Step]) -> Model {
    let disk = SimDisk::new(seed);
    let mut model = Model::default();
    let mut life = model.open(&disk);
    for step in steps {
        if model.step(&disk, &mut life, step) {
            continue;
        }
        match step {
            Step::Crash(seed) => disk.crash(*seed),
            // A process that fails ends, sometimes with a power failure.
            step if !matches!(step, Step::Kill) && model.numbers % 2 == 0 => disk.crash(model.numbers),
            _ => disk.kill(),
        }
        model.crashes += 1;
        life = model.open(&disk);
    }
    disk.kill();
    model.open(&disk);
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_log_keeps_what_it_acknowledged(seed: u64, steps in prop::collection::vec(step(), 1..120)) {
        run(seed, &steps);
    }
}

/// Guards the test above against doing nothing: a fixed life has crashes, refusals and deliveries.
#[test]
fn the_model_exercises_the_log() {
    let steps: Vec<Step> = (0..40)
        .flat_map(|n| {
            [
                Step::Append(vec![900, 30, 2500]),
                Step::Room((n % 5 == 1).then_some(20_000)),
                Step::Append(vec![2500]),
                Step::Advance(3),
                Step::Store,
                Step::Halt(n % 9),
                Step::Append(vec![10, 20]),
                Step::Crash(n),
            ]
        })
        .collect();
    let model = run(7, &steps);
    assert!(model.crashes > 40 && model.refused > 3 && model.position > 60);
    assert!(model.acknowledged.len() > 100 && model.numbers as usize > model.acknowledged.len());
}

/// The power fails after every single call of a plain life that rolls, seals, stores and trims, with many seeds.
#[test]
fn power_loss_between_any_two_calls() {
    let steps = [
        Step::Append(vec![100, 900]),
        Step::Rest,
        Step::Append(vec![3000]),
        Step::Append(vec![10, 1500, 300]),
        Step::Advance(4),
        Step::Store,
        Step::Append(vec![9000]),
        Step::Rest,
        Step::Advance(3),
        Step::Store,
        Step::Append(vec![50]),
    ];
    let mut calls = 0;
    let mut outcomes = 0;
    loop {
        for seed in 0..12 {
            let disk = SimDisk::new(seed);
            disk.halt_in(calls);
            let mut model = Model::default();
            // The halt may hit the first open.
            let options = options(SEGMENT);
            let finished = match LogLife::open(&disk, &options) {
                Ok(mut life) => steps.iter().all(|step| model.step(&disk, &mut life, step)),
                Err(_) => false,
            };
            disk.crash(seed);
            // Half of them lose power again during recovery.
            if seed % 2 == 0 {
                disk.halt_in(calls % 17);
                if LogLife::open(&disk, &options).is_err() {
                    disk.crash(seed + 100);
                }
            }
            disk.kill();
            let mut life = model.open(&disk);
            life.append([1000], 20);
            outcomes += 1;
            if finished {
                assert!(calls > 40 && segments(&disk).len() < 4, "{calls} calls");
                assert!(outcomes > 400);
                return;
            }
        }
        calls += 1;
    }
}
