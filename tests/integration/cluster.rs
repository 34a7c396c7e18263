//! A Kafka cluster of three brokers and a controller, each in its own process. Each partition has three replicas, two of which
//! must be in sync, so that one broker may fail and leaders and coordinators move.
//!
//! Positions and transactions have one coordinator each (one partition), so that a test knows which broker to kill.
//! Kafka's defaults determine how often the coordinator looks for transactions that have timed out.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{OnceLock, RwLock},
    thread,
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    metadata::Metadata,
};
use rustix::process::Signal;

use crate::{
    kafka::{CLUSTER_ID, free_port, new_dir, run_kafka, write_log_settings},
    process::Process,
    topics::{client_config, try_create_topic},
    wait::{self, Random},
};

/// The leader of partition 0 of these topics is the coordinator of transactions and of groups (positions), respectively.
pub const COORDINATORS: [&str; 2] = ["__transaction_state", "__consumer_offsets"];

const BROKERS: usize = 3;
const START_LIMIT: Duration = Duration::from_secs(180);
/// Long enough that no broker is fenced while the whole cluster is paused.
const PAUSES: Duration = Duration::from_secs(120);

/// A cluster whose brokers are never killed. Lock it for reading while it must run, for writing to pause it.
pub fn shared() -> &'static RwLock<Cluster> {
    static SHARED: OnceLock<RwLock<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| RwLock::new(Cluster::start(PAUSES)))
}

/// A running cluster. Dropping it kills it.
pub struct Cluster {
    dir: PathBuf,
    bootstrap: String,
    /// The brokers, including killed ones, then the controller.
    nodes: Vec<Process>,
    probe: BaseConsumer,
}

impl Cluster {
    /// Starts a cluster that fences a broker after this time without a heartbeat.
    pub fn start(session_timeout: Duration) -> Self {
        let mut random = Random::new("cluster ports");
        for _ in 0..5 {
            let dir = new_dir("cluster");
            let ports = [(); BROKERS + 1].map(|()| free_port(&mut random));
            write_files(&dir, &ports, session_timeout);
            let mut cluster = Cluster::run(dir, &ports[..BROKERS]);
            if cluster.wait_started() {
                return cluster;
            }
            let logs: String = (0..=BROKERS)
                .map(|node| fs::read_to_string(cluster.dir.join(format!("{}.log", name(node)))).unwrap())
                .collect();
            assert!(
                logs.contains("already in use"),
                "Kafka ended while starting:\n{logs}"
            );
        }
        panic!("no free ports in five tries");
    }

    fn run(dir: PathBuf, ports: &[u16]) -> Self {
        // In parallel, because the controller formats its storage first.
        let nodes = thread::scope(|scope| {
            let start = |node| {
                let dir = &dir;
                scope.spawn(move || run_node(dir, node))
            };
            let threads: Vec<_> = (0..=BROKERS).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let bootstrap = addresses.join(",");
        Cluster {
            dir,
            probe: client_config(&bootstrap).create().unwrap(),
            bootstrap,
            nodes,
        }
    }

    /// Waits until topics with all replicas can be created; false if a process ended.
    fn wait_started(&mut self) -> bool {
        wait::until(START_LIMIT, "three brokers", || {
            if self.nodes.iter_mut().any(|node| node.exited().is_some()) {
                return Some(false);
            }
            let complete = self.metadata()?.brokers().len() == BROKERS;
            (complete && try_create_topic(&self.bootstrap, "harness-probe", 1, &[]).is_ok()).then_some(true)
        })
    }

    /// The `bootstrap.servers` of all brokers.
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// The metadata of the cluster from any running broker.
    fn metadata(&self) -> Option<Metadata> {
        self.probe.fetch_metadata(None, Duration::from_secs(2)).ok()
    }

    /// The leader of the topic's partition 0. Waits until there is one other than `but`.
    pub fn leader(&self, topic: &str, but: Option<i32>) -> i32 {
        wait::until(START_LIMIT, &format!("a leader of {topic}"), || {
            let metadata = self.metadata()?;
            let topic = metadata.topics().iter().find(|t| t.name() == topic)?;
            let leader = topic.partitions().iter().find(|p| p.id() == 0)?.leader();
            (leader >= 0 && Some(leader) != but).then_some(leader)
        })
    }

    /// SIGKILL to the broker with this id.
    pub fn kill(&mut self, id: i32) {
        self.nodes[id as usize - 1].kill();
    }

    /// Restarts a killed broker once the cluster has noticed that it is gone, and waits until all replicas of all
    /// partitions are in sync.
    pub fn start_again(&mut self, id: i32) {
        wait::until(START_LIMIT, "the controller to fence the broker", || {
            let metadata = self.metadata()?;
            metadata.brokers().iter().all(|b| b.id() != id).then_some(())
        });
        let node = id as usize - 1;
        wait::until(START_LIMIT, "the broker's return into the sync sets", || {
            if self.nodes[node].exited().is_some() {
                self.nodes[node] = run_node(&self.dir, node);
            }
            let metadata = self.metadata()?;
            let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            partitions
                .all(|p| p.leader() >= 0 && p.isr().len() == BROKERS)
                .then_some(())
        });
    }

    /// SIGSTOP to all brokers: connections stay open, but nothing answers.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT to all brokers.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        for broker in &mut self.nodes[..BROKERS] {
            broker.signal(signal);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        if thread::panicking() {
            eprintln!("the cluster's output is kept in {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The name of a node, counted from 0: the brokers first, then the controller.
fn name(node: usize) -> String {
    match node {
        BROKERS => "controller".to_owned(),
        _ => format!("broker-{}", node + 1),
    }
}

fn run_node(dir: &Path, node: usize) -> Process {
    run_kafka(dir, &name(node), "256m", &[])
}

fn write_files(dir: &Path, ports: &[u16], session_timeout: Duration) {
    for (node, port) in ports.iter().enumerate() {
        let (role, listener) = match node {
            BROKERS => ("controller", "CONTROLLER"),
            _ => ("broker", "PLAINTEXT"),
        };
        let data = dir.join(format!("{}-data", name(node)));
        if role == "broker" {
            // The file that formatting would write; formatting takes a second and a JVM.
            let meta = format!("version=1\ncluster.id={CLUSTER_ID}\nnode.id={}\n", node + 1);
            fs::create_dir(&data).unwrap();
            fs::write(data.join("meta.properties"), meta).unwrap();
        }
        let properties = format!(
            "process.roles={role}\n\
             node.id={id}\n\
             listeners={listener}://127.0.0.1:{port}\n\
             log.dirs={data}\n\
             controller.quorum.voters={controller_id}@127.0.0.1:{controller_port}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             broker.session.timeout.ms={session}\n\
             broker.heartbeat.interval.ms=500\n\
             initial.broker.registration.timeout.ms=170000\n\
             replica.lag.time.max.ms=2000\n\
             replica.fetch.wait.max.ms=200\n\
             default.replication.factor=3\n\
             min.insync.replicas=2\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.num.partitions=1\n\
             auto.create.topics.enable=false\n\
             group.initial.rebalance.delay.ms=0\n\
             num.network.threads=2\n\
             num.io.threads=4\n\
             log.cleaner.dedupe.buffer.size=4194304\n",
            id = node + 1,
            data = data.display(),
            controller_id = BROKERS + 1,
            controller_port = ports[BROKERS],
            session = session_timeout.as_millis(),
        );
        fs::write(dir.join(format!("{}.properties", name(node))), properties).unwrap();
    }
    write_log_settings(dir);
}
