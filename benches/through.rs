//! What events cost from the webhook into Kafka, on the bridge and on the broker, while Kafka is live.
//!
//! The load is one-event webhooks at fixed rates, and webhooks of 100 events as fast as they are answered. The ways alternate on
//! one broker: exactly-once, at-least-once, and bare rdkafka producers that send the same records with the same codec, with a
//! transaction every 100 ms and without. CPU time is that of whole processes, from /proc. The broker's includes what it uses at
//! rest. Latency is measured on its own, because a consumer costs the broker CPU time: from the moment when the generator
//! should have posted an event, whether it was late or not, until a `read_committed` consumer has it.
//!
//! `cargo bench --bench through -- [seconds=8] [rounds=1] [rates=5000,1000,100,10] [other=<path>] [settings=<name>=<value>,…]`.
//! `other` is a second binary, which takes turns with this one. `settings` compares exactly-once delivery with each of these
//! settings instead of ways; a name is the end of the setting's variable, such as `KAFKA__PROPERTIES__COMPRESSION_TYPE`.

// A benchmark that can't continue panics.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

// This benchmark needs only a part of each.
#[allow(dead_code)]
mod harness;
#[allow(dead_code)]
mod support;

use std::{
    env, fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harness::{jars, kafka, process, topics, wait};
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use support::{Client, Server, cpu_of, figure, load, machine, median, request, scrape};
use tokio::{runtime::Runtime, task::JoinSet};
use topics::{Reader, Record};

const ONE: &str = include_str!("../tests/samples/deliveries-succeeded.json");
const ONE_ID: &str = "7b1e9c52-0a44-4d0e-9a1f-5d2f0f7c1a10";
const HUNDRED: &str = include_str!("../tests/samples/deliveries-batch-100.json");
const PARTITIONS: i32 = 3;
const LIMIT: Duration = Duration::from_secs(300);
/// The bare producer's pace, which is the bridge's default.
const INTERVAL: Duration = Duration::from_millis(100);
/// Without this, the tests' brokers start faster and run slower than production's.
const JAVA_OPTIONS: [(&str, &str); 1] = [("_JAVA_OPTIONS", "-XX:TieredStopAtLevel=4")];

/// A way from the generator into Kafka.
struct Way {
    name: String,
    kind: Kind,
}

enum Kind {
    Bridge(Bridge),
    Bare { transactions: bool },
}

struct Bridge {
    binary: String,
    delivery: &'static str,
    /// The name and value of a variable.
    setting: Option<(String, String)>,
}

/// What a way cost.
#[derive(Default)]
struct Cost {
    events: u64,
    seconds: f64,
    transactions: u64,
    /// CPU seconds, of the bridge or the bare producer.
    own: f64,
    kafka: f64,
    /// Bytes in the topic.
    bytes: u64,
}

struct Kafka {
    broker: kafka::Broker,
    process: String,
}

fn argument(name: &str) -> Option<String> {
    env::args().find_map(|arg| Some(arg.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

fn numbers(name: &str, default: &str) -> Vec<u64> {
    let text = argument(name).unwrap_or_else(|| default.to_owned());
    text.split(',')
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().expect("a number"))
        .collect()
}

fn main() {
    if env::var_os(JAVA_OPTIONS[0].0).is_none() {
        let mut this = Command::new(env::current_exe().expect("a path"));
        let status = this.args(env::args_os().skip(1)).envs(JAVA_OPTIONS).status();
        assert!(status.expect("starts").success());
        return;
    }
    let time = Duration::from_secs(numbers("seconds", "8")[0]);
    let rounds = numbers("rounds", "1")[0];
    let ways = ways();
    let kafka = Kafka::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    println!("{}\n{rounds} rounds of {} s\n", machine(), time.as_secs());
    // A cold Java machine compiles for half a minute. These records are also what the bare producers send.
    let warm = kafka.topic();
    at_full_speed(&runtime, &kafka, &ways[0], &warm, time, &[]);
    let mut reader = Reader::new(&kafka.broker.bootstrap(), &warm);
    let records = reader.read_count(20_000, LIMIT).to_vec();
    drop(reader);
    for way in &ways {
        at_rate(&runtime, &kafka, way, 1000, 2 * time, &records);
    }
    let rest = kafka.cpu();
    thread::sleep(Duration::from_secs(3));
    let rest = (kafka.cpu() - rest).as_secs_f64() / 3.0;
    println!("Kafka at rest: {:.0} % of a core\n", rest * 100.0);
    println!(
        "| events/s | way | Kafka, % of a core | bridge, % of a core | transactions/s | bytes an event | p50 | p99 |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for rate in numbers("rates", "5000,1000,100,10") {
        let mut costs: Vec<Vec<Cost>> = ways.iter().map(|_| Vec::new()).collect();
        let mut times: Vec<Vec<Duration>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (n, way) in ways.iter().enumerate() {
                costs[n].push(at_rate(&runtime, &kafka, way, rate, time, &records));
                times[n].extend(latencies(&runtime, &kafka, way, rate, time));
            }
        }
        for ((way, costs), times) in ways.iter().zip(&costs).zip(&mut times) {
            times.sort_unstable();
            let percentile = |part: usize| match times.get(times.len() * part / 100) {
                Some(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
                None => "–".to_owned(),
            };
            let of = |figure: fn(&Cost) -> f64| median(costs.iter().map(figure).collect());
            println!(
                "| {rate} | {} | {:.0} | {:.1} | {:.0} | {:.0} | {} | {} |",
                way.name,
                of(|cost| cost.kafka / cost.seconds) * 100.0,
                of(|cost| cost.own / cost.seconds) * 100.0,
                of(|cost| cost.transactions as f64 / cost.seconds),
                of(|cost| cost.bytes as f64 / cost.events as f64),
                percentile(50),
                percentile(99),
            );
        }
    }
    println!(
        "\n| 100-event webhooks | events/s | CPU µs an event | Kafka's CPU µs an event | transactions/s | bytes an event |\n\
         |---|---|---|---|---|---|"
    );
    let mut costs: Vec<Vec<Cost>> = ways.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds.max(3) {
        for (way, costs) in ways.iter().zip(&mut costs) {
            costs.push(at_full_speed(
                &runtime,
                &kafka,
                way,
                &kafka.topic(),
                time,
                &records,
            ));
        }
    }
    for (way, costs) in ways.iter().zip(&costs) {
        let of = |figure: fn(&Cost) -> f64| median(costs.iter().map(figure).collect());
        println!(
            "| {} | {:.0} | {:.1} | {:.1} | {:.0} | {:.0} |",
            way.name,
            of(|cost| cost.events as f64 / cost.seconds),
            of(|cost| cost.own * 1e6 / cost.events as f64),
            of(|cost| cost.kafka * 1e6 / cost.events as f64),
            of(|cost| cost.transactions as f64 / cost.seconds),
            of(|cost| cost.bytes as f64 / cost.events as f64),
        );
    }
}

fn ways() -> Vec<Way> {
    let own = env!("CARGO_BIN_EXE_cmc-bridge").to_owned();
    let other = argument("other");
    let bridge = |prefix: &str, binary: &str, delivery: &'static str| Way {
        name: format!("{prefix}{delivery}"),
        kind: Kind::Bridge(Bridge {
            binary: binary.to_owned(),
            delivery,
            setting: None,
        }),
    };
    let others = |delivery| {
        other
            .iter()
            .map(move |other| bridge("other binary, ", other, delivery))
    };
    let mut ways = Vec::new();
    if let Some(settings) = argument("settings") {
        let parts = settings
            .split(',')
            .map(|setting| setting.split_once('=').expect("<name>=<value>"));
        ways.extend(parts.map(|(name, value)| Way {
            name: format!("{name}={value}"),
            kind: Kind::Bridge(Bridge {
                binary: own.clone(),
                delivery: "exactly-once",
                setting: Some((format!("CMC_BRIDGE__{name}"), value.to_owned())),
            }),
        }));
        ways.extend(["exactly-once", "at-least-once"].into_iter().flat_map(others));
        return ways;
    }
    for delivery in ["exactly-once", "at-least-once"] {
        ways.push(bridge("", &own, delivery));
        ways.extend(others(delivery));
    }
    ways.extend([true, false].map(|transactions| Way {
        name: format!("bare, {}", if transactions { "transactions" } else { "none" }),
        kind: Kind::Bare { transactions },
    }));
    ways
}

impl Kafka {
    fn start() -> Kafka {
        let broker = kafka::Broker::own();
        let file = broker.dir().join("broker.properties");
        let file = file.to_str().expect("UTF-8").as_bytes();
        let is_broker = |process: &String| {
            let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            !command.starts_with(b"sh\0") && command.split(|byte| *byte == 0).any(|word| word == file)
        };
        let processes = fs::read_dir("/proc").expect("procfs").flatten();
        let mut names = processes.filter_map(|entry| entry.file_name().into_string().ok());
        let process = names.find(is_broker).expect("the broker's process");
        Kafka { broker, process }
    }

    fn cpu(&self) -> Duration {
        cpu_of(&self.process)
    }

    fn topic(&self) -> String {
        topics::create(&self.broker.bootstrap(), "through", PARTITIONS, &[])
    }

    /// Bytes of a topic's records, as they are on disk.
    fn bytes(&self, topic: &str) -> u64 {
        let dirs = fs::read_dir(self.broker.dir().join("broker-data")).expect("a directory");
        let dirs = dirs.flatten().map(|dir| dir.path());
        let of_topic = dirs.filter(|dir| dir.to_string_lossy().contains(topic));
        let files = of_topic.flat_map(|dir| fs::read_dir(dir).expect("a directory").flatten());
        let logs = files.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        logs.map(|log| log.metadata().expect("metadata").len()).sum()
    }
}

/// Posts one-event webhooks at this rate, or sends as many records.
fn at_rate(
    runtime: &Runtime,
    kafka: &Kafka,
    way: &Way,
    rate: u64,
    time: Duration,
    records: &[Record],
) -> Cost {
    let topic = kafka.topic();
    let cost = match &way.kind {
        Kind::Bare { transactions } => {
            let bare = Bare::start(kafka, &topic, *transactions);
            bare.cost(kafka, || {
                let (begun, mut sent, mut ended) = (Instant::now(), 0, Instant::now());
                while begun.elapsed() < time {
                    let due = begun + Duration::from_secs_f64(sent as f64 / rate as f64);
                    let next = if *transactions {
                        due.min(ended + INTERVAL)
                    } else {
                        due
                    };
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    if Instant::now() >= due {
                        bare.send(&records[sent % records.len()]);
                        sent += 1;
                    }
                    if *transactions && ended.elapsed() >= INTERVAL {
                        bare.commit();
                        ended = Instant::now();
                    }
                }
                bare.commit();
            })
        }
        Kind::Bridge(of_way) => {
            let (server, _spool) = of_way.start(kafka, &topic);
            bridge_cost(runtime, kafka, &server, || {
                runtime.block_on(post_at(server.address, rate, time));
            })
        }
    };
    Cost {
        bytes: kafka.bytes(&topic),
        ..cost
    }
}

/// Posts webhooks of 100 events as fast as they are answered, or sends as many records as possible.
fn at_full_speed(
    runtime: &Runtime,
    kafka: &Kafka,
    way: &Way,
    topic: &str,
    time: Duration,
    records: &[Record],
) -> Cost {
    let cost = match &way.kind {
        Kind::Bare { transactions } => {
            let bare = Bare::start(kafka, topic, *transactions);
            bare.cost(kafka, || {
                let begun = Instant::now();
                while begun.elapsed() < time {
                    records.iter().for_each(|record| bare.send(record));
                    if *transactions {
                        bare.commit();
                    }
                }
                bare.commit();
            })
        }
        Kind::Bridge(of_way) => {
            let (server, _spool) = of_way.start(kafka, topic);
            let bodies: Vec<String> = (0..64).map(hundred).collect();
            let bodies: Vec<&[u8]> = bodies.iter().map(String::as_bytes).collect();
            bridge_cost(runtime, kafka, &server, || {
                runtime.block_on(load(server.address, &bodies, 16, time));
            })
        }
    };
    Cost {
        bytes: kafka.bytes(topic),
        ..cost
    }
}

/// From the moment when each event should have been posted until a consumer has it.
fn latencies(runtime: &Runtime, kafka: &Kafka, way: &Way, rate: u64, time: Duration) -> Vec<Duration> {
    let Kind::Bridge(of_way) = &way.kind else {
        return Vec::new();
    };
    let topic = kafka.topic();
    let (server, _spool) = of_way.start(kafka, &topic);
    let consumer: BaseConsumer = topics::client_config(&kafka.broker.bootstrap())
        .set("group.id", wait::unique("latency"))
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(&topic, partition, Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&list).expect("assigns");
    let expected = 1 + rate * time.as_secs();
    let seen = thread::spawn(move || {
        let deadline = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        while (seen.len() as u64) < expected {
            assert!(Instant::now() < deadline, "{} of {expected}", seen.len());
            let Some(message) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = message.expect("a record");
            let key = String::from_utf8_lossy(message.key().expect("a key")).into_owned();
            let number: u64 = key[1..9].parse().expect("a number");
            seen.push((number, Instant::now()));
        }
        seen
    });
    let begun = runtime.block_on(async {
        let mut client = Client::connect(server.address).await;
        client.post(&request(one(0).as_bytes())).await;
        // Connecting to Kafka takes a second, once.
        let admin = server.admin.expect("an admin port");
        while figure(
            &scrape(admin),
            "cmc_bridge_delivered_events_total{stream=\"deliveries\"}",
        ) == 0
        {
            thread::sleep(Duration::from_millis(10));
        }
        post_at(server.address, rate, time).await
    });
    let seen = seen.join().expect("no panic");
    // The first one waited for the producer to connect.
    let counted = seen.iter().filter(|(number, _)| *number > 0);
    counted
        .map(|(number, at)| {
            at.duration_since(begun + Duration::from_secs_f64((*number - 1) as f64 / rate as f64))
        })
        .collect()
}

/// Posts events numbered from 1 at this rate, each at its time whatever happened to the others. Returns the time of the first.
async fn post_at(address: std::net::SocketAddr, rate: u64, time: Duration) -> Instant {
    const CONNECTIONS: u64 = 64;
    Client::connect(address)
        .await
        .post(&request(one(0).as_bytes()))
        .await;
    let total = rate * time.as_secs();
    let begun = Instant::now() + Duration::from_millis(100);
    let mut tasks = JoinSet::new();
    for first in 0..CONNECTIONS.min(total) {
        tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            for number in (first..total).step_by(CONNECTIONS as usize) {
                let due = begun + Duration::from_secs_f64(number as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
                client.post(&request(one(number + 1).as_bytes())).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    begun
}

/// A webhook with one event of this number.
fn one(number: u64) -> String {
    ONE.trim_ascii_end()
        .replace(ONE_ID, &id(number))
        .replace("hanako@", &format!("user{}@", number * 7919 % 100_003))
}

/// The body of a webhook with 100 events, none like those of another number.
fn hundred(number: u64) -> String {
    let mut body = String::with_capacity(HUNDRED.len());
    let mut parts = HUNDRED.trim_ascii_end().split("\\u003C");
    body.push_str(parts.next().expect("a beginning"));
    for (n, part) in parts.enumerate() {
        body.push_str("\\u003C");
        body.push_str(&id(number * 100 + n as u64));
        body.push_str(&part[ONE_ID.len()..]);
    }
    body
}

/// Like the sender's ids: most of it can't be compressed.
fn id(number: u64) -> String {
    let mut random = wait::Random::from_seed(number + 1);
    let mut hex = |digits: u32| {
        format!(
            "{:0width$x}",
            random.below(1 << (4 * digits)),
            width = digits as usize
        )
    };
    format!(
        "{number:08}-{}-{}-{}-{}{}",
        hex(4),
        hex(4),
        hex(4),
        hex(6),
        hex(6)
    )
}

impl Bridge {
    fn start(&self, kafka: &Kafka, topic: &str) -> (Server, tempfile::TempDir) {
        let spool = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut command = Command::new(&self.binary);
        command.arg("serve").envs([
            ("CMC_BRIDGE__INGEST__LISTEN", "127.0.0.1:0"),
            ("CMC_BRIDGE__ADMIN__LISTEN", "127.0.0.1:0"),
            ("CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
            ("CMC_BRIDGE__LOG__FORMAT", "json"),
            ("CMC_BRIDGE__KAFKA__BOOTSTRAP_SERVERS", &kafka.broker.bootstrap()),
            ("CMC_BRIDGE__KAFKA__CREATE_TOPICS", "true"),
            ("CMC_BRIDGE__KAFKA__DELIVERY", self.delivery),
            ("CMC_BRIDGE__SPOOL__MAX_BYTES", "64GiB"),
            ("CMC_BRIDGE__SPOOL__DIR", spool.path().to_str().expect("UTF-8")),
            ("CMC_BRIDGE__STREAMS__DELIVERIES__TOPIC", topic),
        ]);
        command.envs(self.setting.clone());
        let server = Server::start(
            &mut command,
            &["webhooks are served", "metrics and probes are served"],
        );
        (server, spool)
    }
}

/// What the bridge and the broker use until all that `run` has posted is in Kafka.
fn bridge_cost(runtime: &Runtime, kafka: &Kafka, server: &Server, run: impl FnOnce()) -> Cost {
    let admin = server.admin.expect("an admin port");
    let all_delivered = || {
        wait::until(LIMIT, "everything to be delivered", || {
            let text = scrape(admin);
            let backlog = figure(&text, "cmc_bridge_backlog_events{stream=\"deliveries\"}");
            let events = figure(&text, "cmc_bridge_delivered_events_total{stream=\"deliveries\"}");
            let committed = "cmc_bridge_transactions_total{outcome=\"committed\",stream=\"deliveries\"}";
            (backlog == 0).then(|| (events, figure(&text, committed)))
        })
    };
    // Keeps the connection to Kafka out of the measurement.
    runtime.block_on(async {
        let mut client = Client::connect(server.address).await;
        client.post(&request(one(0).as_bytes())).await;
    });
    let before = all_delivered();
    let (begun, own, theirs) = (Instant::now(), server.cpu(), kafka.cpu());
    run();
    let after = all_delivered();
    Cost {
        events: after.0 - before.0,
        seconds: begun.elapsed().as_secs_f64(),
        transactions: after.1 - before.1,
        own: (server.cpu() - own).as_secs_f64(),
        kafka: (kafka.cpu() - theirs).as_secs_f64(),
        bytes: 0,
    }
}

struct Counter(Arc<AtomicU64>);

impl ClientContext for Counter {}

impl ProducerContext for Counter {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record was not delivered");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A producer without anything around it.
struct Bare<'a> {
    producer: ThreadedProducer<Counter>,
    topic: &'a str,
    transactional: bool,
    sent: AtomicU64,
    committed: AtomicU64,
    commits: AtomicU64,
    done: Arc<AtomicU64>,
}

impl<'a> Bare<'a> {
    fn start(kafka: &Kafka, topic: &'a str, transactional: bool) -> Bare<'a> {
        let done = Arc::new(AtomicU64::new(0));
        let mut config = topics::client_config(&kafka.broker.bootstrap());
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4");
        if transactional {
            config.set("transactional.id", wait::unique("bare"));
        }
        let producer: ThreadedProducer<Counter> = config
            .create_with_context(Counter(Arc::clone(&done)))
            .expect("a producer");
        if transactional {
            producer.init_transactions(LIMIT).expect("begins");
            producer.begin_transaction().expect("begins");
        }
        Bare {
            producer,
            topic,
            transactional,
            sent: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            done,
        }
    }

    fn send(&self, record: &Record) {
        loop {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (key, value) in &record.headers {
                headers = headers.insert(Header {
                    key,
                    value: Some(value),
                });
            }
            let base = BaseRecord::to(self.topic)
                .key(record.key.as_deref().expect("a key"))
                .payload(&record.value)
                .headers(headers);
            match self.producer.send(base) {
                Ok(()) => break,
                Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until everything is delivered, and commits it.
    fn commit(&self) {
        let sent = self.sent.load(Ordering::Relaxed);
        while self.done.load(Ordering::Relaxed) < sent {
            thread::sleep(Duration::from_millis(1));
        }
        if self.transactional && self.committed.swap(sent, Ordering::Relaxed) < sent {
            self.producer.commit_transaction(LIMIT).expect("commits");
            self.producer.begin_transaction().expect("begins");
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn cost(&self, kafka: &Kafka, run: impl FnOnce()) -> Cost {
        let (begun, own, theirs) = (Instant::now(), cpu_of("self"), kafka.cpu());
        run();
        Cost {
            events: self.sent.load(Ordering::Relaxed),
            seconds: begun.elapsed().as_secs_f64(),
            transactions: self.commits.load(Ordering::Relaxed),
            own: (cpu_of("self") - own).as_secs_f64(),
            kafka: (kafka.cpu() - theirs).as_secs_f64(),
            bytes: 0,
        }
    }
}
