//! Scenes in which the simulated broker, librdkafka's mock cluster and a real Kafka must behave alike.
//!
//! A scene drives the [`Broker`] trait. Its transcript has the answers, and what a read_committed consumer sees afterwards, in
//! words that leave out what may differ from run to run. The simulation must not be kinder than the others: where a transcript
//! differs, the simulation is wrong. The unit tests play the scenes with the simulation and the mock cluster. The integration
//! tests include this file and play them with Kafka.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    broker::{Broker, Connect, DeliveryError, Mode, Outgoing, RefusedRecords, Seq},
    config::{self, Delivery},
    metrics::Metrics,
    producer::KafkaConnect,
    stream::Stream,
};

/// How a scene's topic behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// It takes everything.
    Kind,
    /// It refuses odd records: their value says so, and they have no key.
    Refusing,
    /// It will be [forbidden](World::forbid).
    Forbidden,
    /// It refuses timestamps.
    Untimely,
    /// Its lane's coordinators will [move](World::move_coordinators).
    Moving,
}

/// A scene's topic, and what connects its lanes.
pub struct SceneTopic<C> {
    pub name: String,
    pub connect: C,
}

impl SceneTopic<KafkaConnect> {
    /// A topic of a cluster that is reached with librdkafka.
    pub fn of_cluster(name: String, bootstrap: &str, delivery: Delivery, runtime: &Handle) -> Self {
        let settings = [
            ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
            ("KAFKA__BOOTSTRAP_SERVERS", bootstrap),
        ];
        let settings = settings.map(|(key, value)| (format!("CMC_BRIDGE__{key}"), value.to_owned()));
        let kafka = config::Kafka {
            delivery,
            transaction_timeout: Duration::from_secs(60),
            ..config::load(&[], settings.into_iter()).unwrap().config.kafka
        };
        let metrics = Metrics::new(&Registry::new(), &[], []).unwrap();
        SceneTopic {
            connect: KafkaConnect {
                kafka: Arc::new(kafka),
                stream: Stream::Bounces,
                topic: name.clone(),
                dead_letter_topic: name.clone(),
                runtime: runtime.clone(),
                sums: metrics.for_stream(Stream::Bounces).kafka,
            },
            name,
        }
    }
}

/// A cluster in which scenes are played.
pub trait World {
    type Connect: Connect;

    /// Whether a topic can behave like this, with odd records in these places.
    fn can(&self, temper: Temper, odd: &[usize]) -> bool;

    /// Makes a topic with one partition.
    fn make_topic(&self, temper: Temper) -> SceneTopic<Self::Connect>;

    /// Withdraws the bridge's right to write to the topic.
    fn forbid(&self, topic: &SceneTopic<Self::Connect>);

    /// Lets the topic take timestamps again. Kafka applies its limit to the markers of transactions, too, and such a transaction
    /// hangs when a marker is refused.
    fn take_timestamps(&self, topic: &SceneTopic<Self::Connect>);

    /// Moves the coordinators of a lane's transactions and group to another broker.
    fn move_coordinators(&self, group: Uuid);

    /// The values that a read_committed consumer sees.
    fn read(&self, topic: &SceneTopic<Self::Connect>) -> Vec<String>;
}

/// A scene under way.
struct Scene<'a, W: World> {
    world: &'a W,
    transactional: bool,
    topic: SceneTopic<W::Connect>,
    seen: Vec<String>,
}

type Play<W> = fn(&mut Scene<'_, W>);

/// A scene to play: its topic, the places of odd records, and the transcripts with transactions and without.
struct Script<W: World> {
    name: &'static str,
    temper: Temper,
    odd: &'static [usize],
    play: Play<W>,
    with: &'static [&'static str],
    without: &'static [&'static str],
}

/// Enough records for several requests to be in flight while records are still being sent.
const MANY: usize = 20_000;

const ALL: &str = "20000 seen, in order";
const NONE: &str = "0 seen, in order";
const AMONG: &str = "refused, the odd one among the records";

fn scripts<W: World>() -> [Script<W>; 11] {
    [
        Script {
            name: "all is delivered",
            temper: Temper::Kind,
            odd: &[],
            play: delivered,
            with: &["delivered", "committed", ALL, "position 7, \"v1 x\""],
            without: &["delivered", ALL],
        },
        Script {
            name: "the first of many is refused",
            temper: Temper::Refusing,
            odd: &[0],
            play: |scene| refused(scene, &[0]),
            with: &[AMONG, "nothing behind it seen", NONE],
            without: &[AMONG, "nothing behind it seen", NONE],
        },
        Script {
            name: "one in the middle is refused",
            temper: Temper::Refusing,
            odd: &[7000],
            play: |scene| refused(scene, &[7000]),
            with: &[AMONG, "nothing behind it seen", NONE],
            without: &[AMONG, "nothing behind it seen"],
        },
        Script {
            name: "a refusal is known before the next call",
            temper: Temper::Refusing,
            odd: &[0],
            play: refused_before_a_call,
            with: &[AMONG, NONE],
            without: &[AMONG, NONE],
        },
        Script {
            name: "two are refused, one record a request",
            temper: Temper::Refusing,
            odd: &[5, 20],
            play: one_by_one,
            with: &["refused, an odd one named", NONE],
            without: &["refused, all odd ones named", "38 seen, in order"],
        },
        Script {
            name: "all are taken, one record a request",
            temper: Temper::Kind,
            odd: &[],
            play: taken,
            with: &["delivered", "taken: [0, 1, 2, 3, 4]", NONE],
            without: &["delivered", "taken: []", "5 seen, in order"],
        },
        Script {
            name: "one is too large for the client",
            temper: Temper::Kind,
            odd: &[],
            play: too_large,
            with: &["too large", "delivered", "committed", "10 seen, in order"],
            without: &["too large", "delivered", "10 seen, in order"],
        },
        Script {
            name: "a second producer",
            temper: Temper::Kind,
            odd: &[],
            play: fenced,
            with: &["delivered", "no position", "not committed", NONE],
            without: &["delivered"],
        },
        Script {
            name: "the right to write is withdrawn",
            temper: Temper::Forbidden,
            odd: &[],
            play: forbidden,
            with: &["failed: authorization", NONE],
            without: &["failed: authorization", NONE],
        },
        Script {
            name: "timestamps are refused",
            temper: Temper::Untimely,
            odd: &[],
            play: untimely,
            with: &["untimely", NONE, "delivered", "committed", ALL],
            // When several records of a request have bad timestamps, librdkafka says only that they are invalid.
            without: &["refused, none named", "delivered", ALL],
        },
        Script {
            name: "the coordinators move before the commit",
            temper: Temper::Moving,
            odd: &[],
            play: moved,
            with: &["delivered", "committed", "delivered", "committed"],
            without: &["delivered", "delivered"],
        },
    ]
}

/// Plays all scenes that are possible in the world, and compares the transcripts. Gives the number of scenes.
pub fn play<W: World>(world: &W, transactional: bool) -> usize {
    let mut played = 0;
    for script in scripts::<W>() {
        if world.can(script.temper, script.odd) {
            let mut scene = Scene {
                world,
                transactional,
                topic: world.make_topic(script.temper),
                seen: Vec::new(),
            };
            (script.play)(&mut scene);
            let expected = if transactional {
                script.with
            } else {
                script.without
            };
            assert_eq!(
                scene.seen, expected,
                "{}, transactional: {transactional}",
                script.name
            );
            played += 1;
        }
    }
    played
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn value(number: usize, odd: &[usize]) -> String {
    match odd.contains(&number) {
        true => format!("odd {number:05}"),
        false => format!("{number:05}"),
    }
}

impl<W: World> Scene<'_, W> {
    fn see(&mut self, what: impl Into<String>) {
        self.seen.push(what.into());
    }

    fn producer(&self, group: Uuid, mode: Mode) -> <W::Connect as Connect>::Broker {
        let until = deadline();
        loop {
            match self.topic.connect.connect(group, mode) {
                Ok(broker) => return broker,
                // A new topic or coordinator takes a moment to be ready.
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    fn put(&self, broker: &mut impl Broker, value: &str) -> Result<(), DeliveryError> {
        let outgoing = Outgoing {
            topic: &self.topic.name,
            // A compacted topic refuses odd records, because they have no key.
            key: (!value.starts_with("odd")).then_some(b"key"),
            headers: &[("name", b"value")],
            value: value.as_bytes(),
        };
        broker.send(outgoing, deadline())
    }

    /// Begins, sends this many records with odd ones in these places, and waits for their deliveries.
    fn send(&self, broker: &mut impl Broker, records: usize, odd: &[usize]) -> Result<(), DeliveryError> {
        broker.begin()?;
        for number in 0..records {
            self.put(broker, &value(number, odd))?;
        }
        broker.delivered(deadline())
    }

    fn outcome(&mut self, outcome: &Result<(), DeliveryError>) {
        self.see(match outcome {
            Ok(()) => "delivered".to_owned(),
            Err(DeliveryError::TooLarge) => "too large".to_owned(),
            Err(DeliveryError::Untimely(_)) => "untimely".to_owned(),
            Err(DeliveryError::Late(_)) => "late".to_owned(),
            Err(DeliveryError::Failed(error)) => format!("failed: {}", error.reason.label()),
            Err(DeliveryError::Refused(RefusedRecords { named: false, .. })) => {
                "refused, none named".to_owned()
            }
            Err(DeliveryError::Refused(refused)) => format!("refused, {} named", refused.records.len()),
        });
    }

    /// Sees whether the odd records are among those refused.
    fn among<'r>(
        &mut self,
        outcome: &'r Result<(), DeliveryError>,
        odd: &[usize],
    ) -> Option<&'r RefusedRecords> {
        let Err(DeliveryError::Refused(refused)) = outcome else {
            self.outcome(outcome);
            return None;
        };
        // Perhaps nothing is known about which ones.
        let among = |odd: &usize| refused.records.iter().any(|(number, _)| number == odd);
        match refused.records.is_empty() || odd.iter().all(among) {
            true => self.see(AMONG),
            false => self.outcome(outcome),
        }
        Some(refused)
    }

    fn commit(&mut self, broker: &mut impl Broker) {
        if self.transactional {
            self.see(match broker.commit(Seq(7), "v1 x", deadline()) {
                Ok(()) => "committed",
                Err(_) => "not committed",
            });
        }
    }

    fn position(&mut self, broker: &mut impl Broker) {
        if self.transactional {
            self.see(match broker.committed().unwrap() {
                Some(position) => format!("position {}, {:?}", position.seq.0, position.metadata),
                None => "no position".to_owned(),
            });
        }
    }

    fn count(&mut self) {
        let values = self.world.read(&self.topic);
        let order = if values.is_sorted() {
            "in order"
        } else {
            "out of order"
        };
        self.see(format!("{} seen, {order}", values.len()));
    }
}

fn delivered<W: World>(scene: &mut Scene<'_, W>) {
    let group = Uuid::new_v4();
    let mut broker = scene.producer(group, Mode::Batched);
    let sent = scene.send(&mut broker, MANY, &[]);
    scene.outcome(&sent);
    scene.commit(&mut broker);
    drop(broker);
    scene.count();
    let mut broker = scene.producer(group, Mode::Batched);
    scene.position(&mut broker);
}

fn refused<W: World>(scene: &mut Scene<'_, W>, odd: &[usize]) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    let sent = scene.send(&mut broker, MANY, odd);
    drop(broker);
    let Some(refused) = scene.among(&sent, odd) else {
        return;
    };
    let values = scene.world.read(&scene.topic);
    let before: Vec<String> = (0..odd[0]).map(|number| value(number, &[])).collect();
    let delivered = refused.delivered.iter();
    let said = |number: &usize| values.contains(&value(*number, &[]));
    assert!(
        delivered
            .clone()
            .take(100)
            .chain(delivered.rev().take(100))
            .all(said)
    );
    match before.starts_with(&values) {
        true => scene.see("nothing behind it seen"),
        false => scene.count(),
    }
    if scene.transactional || odd[0] == 0 {
        scene.count();
    }
}

/// A call on a failed transaction says only that it failed; the answer must say why.
fn refused_before_a_call<W: World>(scene: &mut Scene<'_, W>) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    broker.begin().unwrap();
    let mut sent = scene.put(&mut broker, &value(0, &[0]));
    // Without transactions, later records may be taken.
    let later = if scene.transactional { 1..300 } else { 0..0 };
    for number in later {
        if sent.is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(1));
        sent = scene.put(&mut broker, &value(number, &[]));
    }
    let sent = sent.and_then(|()| broker.delivered(deadline()));
    drop(broker);
    scene.among(&sent, &[0]);
    scene.count();
}

fn one_by_one<W: World>(scene: &mut Scene<'_, W>) {
    let odd = [5, 20];
    let mut broker = scene.producer(Uuid::new_v4(), Mode::OneByOne);
    let sent = scene.send(&mut broker, 40, &odd);
    match &sent {
        Err(DeliveryError::Refused(RefusedRecords {
            records, named: true, ..
        })) => {
            let numbers: Vec<usize> = records.iter().map(|(number, _)| *number).collect();
            let alone = numbers.iter().all(|number| odd.contains(number));
            match (scene.transactional, alone && !numbers.is_empty()) {
                (true, true) => scene.see("refused, an odd one named"),
                (false, true) if numbers == odd => scene.see("refused, all odd ones named"),
                _ => scene.outcome(&sent),
            }
        }
        _ => scene.outcome(&sent),
    }
    drop(broker);
    scene.count();
}

fn taken<W: World>(scene: &mut Scene<'_, W>) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::OneByOne);
    let sent = scene.send(&mut broker, 5, &[]);
    scene.outcome(&sent);
    let mut taken = broker.taken();
    taken.sort_unstable();
    scene.see(format!("taken: {taken:?}"));
    drop(broker);
    scene.count();
}

fn too_large<W: World>(scene: &mut Scene<'_, W>) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    broker.begin().unwrap();
    for number in 0..10 {
        scene.put(&mut broker, &value(number, &[])).unwrap();
        if number == 5 {
            let sent = scene.put(&mut broker, &"x".repeat(3_000_000));
            scene.outcome(&sent);
        }
    }
    let delivered = broker.delivered(deadline());
    scene.outcome(&delivered);
    scene.commit(&mut broker);
    drop(broker);
    scene.count();
}

fn fenced<W: World>(scene: &mut Scene<'_, W>) {
    let group = Uuid::new_v4();
    let mut first = scene.producer(group, Mode::Batched);
    let sent = scene.send(&mut first, 10, &[]);
    scene.outcome(&sent);
    if scene.transactional {
        // Reading the position waits until the open transaction of the first is over.
        let mut second = scene.producer(group, Mode::Batched);
        scene.position(&mut second);
        scene.commit(&mut first);
        drop((first, second));
        scene.count();
    }
}

fn forbidden<W: World>(scene: &mut Scene<'_, W>) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    scene.world.forbid(&scene.topic);
    let sent = scene.send(&mut broker, MANY, &[]);
    scene.outcome(&sent);
    drop(broker);
    scene.count();
}

fn untimely<W: World>(scene: &mut Scene<'_, W>) {
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    let sent = scene.send(&mut broker, MANY, &[]);
    scene.outcome(&sent);
    drop(broker);
    if scene.transactional {
        scene.count();
    }
    let mut broker = scene.producer(Uuid::new_v4(), Mode::Batched);
    broker.omit_timestamps();
    let sent = scene.send(&mut broker, MANY, &[]);
    scene.outcome(&sent);
    scene.world.take_timestamps(&scene.topic);
    scene.commit(&mut broker);
    drop(broker);
    scene.count();
}

fn moved<W: World>(scene: &mut Scene<'_, W>) {
    let group = Uuid::new_v4();
    let mut broker = scene.producer(group, Mode::Batched);
    for _ in 0..2 {
        let sent = scene.send(&mut broker, 10, &[]);
        scene.outcome(&sent);
        scene.world.move_coordinators(group);
        scene.commit(&mut broker);
    }
}
