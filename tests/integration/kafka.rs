//! Real Kafka brokers: one that most tests share, and own ones for tests that kill theirs.
//!
//! The controller of an own broker runs in another process, and a killed broker restarts only after the controller has
//! fenced it. Otherwise Kafka (seen with 4.3.1) can hang a transaction for ever: the broker returns as the leader it was,
//! resumes a prepared commit, and is then fenced and registered again. While there is no leader, its coordinator takes the
//! partitions for deleted and completes the transaction without writing its markers. A cluster with replicas moves the
//! leaders instead.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, Once, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::Signal;

use crate::{
    jars::{java, work_dir},
    process::{Process, watched},
    topics::{client_config, try_create_topic},
    wait::{self, Permit, Random, Semaphore},
};

/// A broker takes about 600 MB, and a core while it starts.
static OWN_BROKERS: Semaphore = Semaphore::new(2);

/// The controller fences a broker after this time without a heartbeat.
const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// The same for brokers that are never killed or that are paused: a busy machine must not fence them.
const LONG_SESSION: Duration = Duration::from_secs(15);

/// The id of all clusters; they never meet.
pub const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qg";

/// What the controller logs when it takes leaderships from a broker, and when it gives them.
const TAKEN: [&str; 2] = [" fenced=1,", " inControlledShutdown=1,"];
const GIVEN: &str = " fenced=-1,";

const START_LIMIT: Duration = Duration::from_secs(90);

/// How many listeners of the shared broker advertise a proxy's address: one for each test with a proxy.
const PROXIED: usize = 8;

/// The broker that tests share.
struct Shared {
    broker: Broker,
    /// For each proxied listener: the proxy's listener and the broker's port behind it.
    proxied: Mutex<Vec<(TcpListener, u16)>>,
}

fn own_shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let mut proxied = Vec::new();
        let broker = Broker::start(None, |listeners, free_port| {
            proxied = (0..PROXIED)
                .map(|_| (TcpListener::bind("127.0.0.1:0").unwrap(), free_port()))
                .collect();
            Extra {
                properties: proxied_listeners(listeners, &proxied),
                format: Vec::new(),
            }
        });
        Shared {
            broker,
            proxied: Mutex::new(proxied),
        }
    })
}

fn proxied_listeners(listeners: &str, proxied: &[(TcpListener, u16)]) -> String {
    let mut listening = listeners.to_owned();
    let mut advertised = listeners.split(',').next().unwrap().to_owned();
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    let mut threads = String::new();
    for (n, (proxy, port)) in proxied.iter().enumerate() {
        listening += &format!(",PROXIED{n}://127.0.0.1:{port}");
        advertised += &format!(",PROXIED{n}://{}", proxy.local_addr().unwrap());
        protocols += &format!(",PROXIED{n}:PLAINTEXT");
        threads += &format!("listener.name.proxied{n}.num.network.threads=1\n");
    }
    format!(
        "listeners={listening}\nadvertised.listeners={advertised}\n\
         listener.security.protocol.map={protocols}\n{threads}"
    )
}

/// The bootstrap servers of the cluster that tests share. Topics are unique, and nothing stops it.
pub fn shared() -> &'static str {
    static BOOTSTRAP: OnceLock<String> = OnceLock::new();
    BOOTSTRAP.get_or_init(|| {
        std::env::var("CMC_BRIDGE_TEST_BROKERS").unwrap_or_else(|_| own_shared().broker.bootstrap())
    })
}

/// A proxied listener of the shared broker: the broker's plain bootstrap servers, the proxy's listener, and the broker's
/// port behind it.
pub fn proxied() -> (String, TcpListener, u16) {
    let shared = own_shared();
    let (listener, port) = shared
        .proxied
        .lock()
        .unwrap()
        .pop()
        .expect("a proxied listener for each test that takes one: see PROXIED");
    (shared.broker.bootstrap(), listener, port)
}

/// What a broker has besides its plain listener.
#[derive(Default)]
pub struct Extra {
    /// Lines of its properties; they override earlier ones.
    pub properties: String,
    /// Arguments of `StorageTool format`.
    pub format: Vec<String>,
}

/// A cluster of one broker.
pub struct Broker {
    dir: PathBuf,
    port: u16,
    format: Vec<String>,
    /// Only for an own broker; the shared one is its own controller.
    controller: Option<Process>,
    process: Option<Process>,
    _permit: Option<Permit>,
}

impl Broker {
    /// Starts a broker that the caller may kill, pause and restart. Waits while too many run.
    pub fn own() -> Self {
        Broker::start(Some(OWN_BROKERS.acquire()), |_, _| Extra::default())
    }

    /// Like [`Broker::own`], but it may be paused for longer, and its restart takes that much longer.
    pub fn own_that_may_hang() -> Self {
        Broker::own_with(&format!(
            "broker.session.timeout.ms={}\n",
            LONG_SESSION.as_millis()
        ))
    }

    /// Like [`Broker::own`], with these lines in its properties.
    pub fn own_with(properties: &str) -> Self {
        Broker::start(Some(OWN_BROKERS.acquire()), |_, _| Extra {
            properties: properties.to_owned(),
            ..Extra::default()
        })
    }

    /// Starts a broker; with a permit, its controller runs in another process. `extra` receives the broker's listeners and
    /// a function that returns further free ports.
    pub fn start(
        permit: Option<Permit>,
        mut extra: impl FnMut(&str, &mut dyn FnMut() -> u16) -> Extra,
    ) -> Self {
        let separate = permit.is_some();
        let mut random = Random::new("broker ports");
        for _ in 0..5 {
            let (port, controller) = (free_port(&mut random), free_port(&mut random));
            let dir = new_dir("kafka");
            let mut listeners = format!("PLAINTEXT://127.0.0.1:{port}");
            if !separate {
                listeners += &format!(",CONTROLLER://127.0.0.1:{controller}");
            }
            let extra = extra(&listeners, &mut || free_port(&mut random));
            write_files(&dir, &listeners, port, controller, separate, &extra.properties);
            let mut broker = Broker {
                dir,
                port,
                format: extra.format,
                controller: None,
                process: None,
                _permit: None,
            };
            if separate {
                broker.controller = Some(run_kafka(&broker.dir, "controller", "256m", &[]));
            }
            if broker.try_start() {
                broker._permit = permit;
                return broker;
            }
            let log = |node: &str| fs::read_to_string(broker.dir.join(node)).unwrap_or_default();
            let logs = log("broker.log") + &log("controller.log");
            assert!(
                logs.contains("already in use"),
                "Kafka ended while starting:\n{logs}"
            );
        }
        panic!("no free port in five tries");
    }

    /// Its `bootstrap.servers`, the same after a restart.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The broker's output.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("broker.log")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM; waits for the orderly end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM);
            assert!(
                process.wait(Duration::from_secs(60)).is_some(),
                "the broker did not stop; see {}",
                self.log_file().display()
            );
        }
    }

    /// SIGSTOP: connections stay open, but nothing answers. After its session time-out the controller fences it.
    pub fn pause(&mut self) {
        self.process.as_mut().unwrap().signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.as_mut().unwrap().signal(Signal::CONT);
    }

    /// Restarts it with the same data and port, once the controller has noticed that it is gone.
    pub fn start_again(&mut self) {
        self.kill();
        wait::until(START_LIMIT, "the controller to fence the broker", || {
            let log = fs::read_to_string(self.dir.join("controller.log")).unwrap();
            let taken = TAKEN.iter().filter_map(|line| log.rfind(line)).max();
            (taken > log.rfind(GIVEN)).then_some(())
        });
        wait::until(START_LIMIT, "the broker's restart on its old port", || {
            self.try_start().then_some(())
        });
    }

    /// Starts the process and waits until topics can be created; false if it or its controller ended.
    fn try_start(&mut self) -> bool {
        let process = self
            .process
            .insert(run_kafka(&self.dir, "broker", "512m", &self.format));
        let bootstrap = format!("127.0.0.1:{}", self.port);
        let probe: BaseConsumer = client_config(&bootstrap).create().unwrap();
        let what = format!(
            "a broker; its output is in {}",
            self.dir.join("broker.log").display()
        );
        wait::until(START_LIMIT, &what, || {
            let ended = |process: &mut Process| process.exited().is_some();
            if ended(process) || self.controller.as_mut().is_some_and(ended) {
                return Some(false);
            }
            let metadata = probe.fetch_metadata(None, Duration::from_millis(500)).ok()?;
            // The listener answers metadata requests at once; only a created topic shows that the controller works.
            (metadata.brokers().len() == 1 && try_create_topic(&bootstrap, "harness-probe", 1, &[]).is_ok())
                .then_some(true)
        })
    }
}

/// Runs Kafka with `<node>.properties`; formats its data directory first if it is new.
pub fn run_kafka(dir: &Path, node: &str, heap: &str, format: &[String]) -> Process {
    let properties = dir.join(format!("{node}.properties"));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join(format!("{node}.log")))
        .unwrap();
    let options = java_options(dir, heap);
    if !dir.join(format!("{node}-data")).exists() {
        let status = Command::new(&java().program)
            .args(&options)
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(&properties)
            .args(format)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log.try_clone().unwrap())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "formatting failed; see {node}.log in {}",
            dir.display()
        );
    }
    let args: Vec<OsString> = options
        .into_iter()
        .chain(["kafka.Kafka".into(), properties.into_os_string()])
        .collect();
    let mut command = watched(&java().program, &args);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    Process::spawn(&mut command).unwrap()
}

/// The file with the public key of the token endpoint, the only one that brokers of this process may read keys from.
pub fn key_file() -> PathBuf {
    work_dir()
        .join(format!("run-{}", std::process::id()))
        .join("jwks.json")
}

/// Options for a Java program with Kafka's classes that logs according to the broker's `log4j2.xml`. It starts quickly and
/// uses little, because the tests share the machine with the bridge.
pub fn java_options(dir: &Path, heap: &str) -> Vec<OsString> {
    [
        format!("-Xmx{heap}"),
        "-XX:+UseSerialGC".to_owned(),
        "-XX:TieredStopAtLevel=1".to_owned(),
        format!("-Dlog4j2.configurationFile={}", dir.join("log4j2.xml").display()),
        format!(
            "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{}",
            key_file().display()
        ),
        "-cp".to_owned(),
        java().class_path.clone(),
    ]
    .map(OsString::from)
    .to_vec()
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the broker's output is kept in {}", self.log_file().display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A new directory for this run. Removes those of earlier runs whose process has ended.
pub fn new_dir(what: &str) -> PathBuf {
    static CLEAN: Once = Once::new();
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    CLEAN.call_once(|| {
        for entry in fs::read_dir(work_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("run-"))
                && !Path::new("/proc").join(pid).exists()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let dir = work_dir()
        .join(format!("run-{}", std::process::id()))
        .join(format!("{what}-{n}"));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A free port that this process has not been given before. It is below the ephemeral range, so that a client's outgoing
/// connection can't take a stopped broker's port (or connect to itself).
pub fn free_port(random: &mut Random) -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = 15_000 + random.below(17_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

fn write_files(dir: &Path, listeners: &str, port: u16, controller: u16, separate: bool, extra: &str) {
    let (roles, controller_id) = if separate {
        ("broker", 2)
    } else {
        ("broker,controller", 1)
    };
    let common = format!(
        "controller.quorum.voters={controller_id}@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         broker.session.timeout.ms={session}\n\
         initial.broker.registration.timeout.ms=170000\n\
         broker.heartbeat.interval.ms=500\n\
         default.replication.factor=1\n\
         min.insync.replicas=1\n\
         auto.create.topics.enable=false\n",
        session = if separate { SESSION_TIMEOUT } else { LONG_SESSION }.as_millis()
    );
    let controller_listener = format!("CONTROLLER://127.0.0.1:{controller}");
    if separate {
        let properties = format!(
            "process.roles=controller\nnode.id=2\nlisteners={controller_listener}\nlog.dirs={}\n{common}{extra}",
            dir.join("controller-data").display()
        );
        fs::write(dir.join("controller.properties"), properties).unwrap();
    }
    let properties = format!(
        "process.roles={roles}\n\
         node.id=1\n\
         listeners={listeners}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         log.dirs={}\n\
         num.network.threads=2\n\
         num.io.threads=4\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n\
         group.initial.rebalance.delay.ms=0\n\
         log.cleaner.dedupe.buffer.size=4194304\n\
         {common}{extra}",
        dir.join("broker-data").display()
    );
    fs::write(dir.join("broker.properties"), properties).unwrap();
    write_log_settings(dir);
}

/// `log4j2.xml`: quiet, except for what the controller does to brokers.
pub fn write_log_settings(dir: &Path) {
    let log4j = r#"<Configuration status="ERROR">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c %m%n%throwable"/></Console></Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
    <Logger name="org.apache.kafka.controller" level="INFO"/>
  </Loggers>
</Configuration>
"#;
    fs::write(dir.join("log4j2.xml"), log4j).unwrap();
}
