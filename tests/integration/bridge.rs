//! Runs the real binary, configured only by environment variables.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    http::{Client, Wire},
    kafka::new_dir,
    metrics::{STREAMS, Scrape},
    process::{Ended, Process, watched},
    topics, wait,
};

/// Bootstrap servers that nothing listens on.
pub const NO_KAFKA: &str = "127.0.0.1:1";

const START_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// A topic for each stream.
pub struct Topics {
    pub deliveries: String,
    pub bounces: String,
    pub blocks: String,
    pub dead_letters: String,
}

impl Topics {
    /// Creates topics with unique names and three partitions each.
    pub fn create(kafka: &str) -> Self {
        let topic = |what| topics::create(kafka, what, 3, &[]);
        Topics {
            deliveries: topic("deliveries"),
            bounces: topic("bounces"),
            blocks: topic("blocks"),
            dead_letters: topic("dead-letters"),
        }
    }
}

/// How to start a bridge. The same setup can start it again on the same spool.
#[derive(Clone)]
pub struct Setup {
    spool: PathBuf,
    environment: BTreeMap<String, String>,
    through: Vec<String>,
}

impl Setup {
    /// A new spool directory, free ports, anonymous posts allowed, no lame-duck period.
    pub fn new(bootstrap: &str) -> Self {
        let setup = Setup {
            spool: PathBuf::new(),
            environment: BTreeMap::new(),
            through: Vec::new(),
        };
        setup
            .spool(&new_dir("spool"))
            .set("kafka.bootstrap_servers", bootstrap)
            .set("ingest.listen", "127.0.0.1:0")
            // Longer than a busy machine needs; no test waits for these time-outs.
            .set("ingest.append_timeout", "60s")
            .set("ingest.header_timeout", "60s")
            .set("admin.listen", "127.0.0.1:0")
            .set("ingest.auth.allow_anonymous", "true")
            .set("shutdown.lame_duck", "0s")
            .set("shutdown.grace", "25s")
            .set("log.format", "json")
    }

    /// Sets a configuration key (`ingest.max_events`) by its environment variable.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(variable(key), value.to_owned());
        self
    }

    /// Removes a setting, so that the default applies.
    pub fn unset(mut self, key: &str) -> Self {
        self.environment.remove(&variable(key));
        self
    }

    /// The value of a setting.
    pub fn value(&self, key: &str) -> &str {
        &self.environment[&variable(key)]
    }

    /// Starts the bridge through a program such as `prlimit`, given with its arguments.
    pub fn through(mut self, program: &[&str]) -> Self {
        self.through = program.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Another spool directory.
    pub fn spool(mut self, dir: &Path) -> Self {
        self.spool = dir.to_owned();
        self.set("spool.dir", dir.to_str().unwrap())
    }

    /// The spool's directory.
    pub fn spool_dir(&self) -> &Path {
        &self.spool
    }

    /// Sets the topics of the streams.
    pub fn topics(self, topics: &Topics) -> Self {
        self.set("streams.deliveries.topic", &topics.deliveries)
            .set("streams.bounces.topic", &topics.bounces)
            .set("streams.blocks.topic", &topics.blocks)
            .set("streams.dead_letters.topic", &topics.dead_letters)
    }

    /// Sets one of librdkafka's properties by its environment variable.
    pub fn property(self, name: &str, value: &str) -> Self {
        self.set(&format!("kafka.properties.{}", name.replace('.', "_")), value)
    }

    /// A command of the binary with these settings and no other CMC_BRIDGE variables.
    pub fn command(&self, args: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_cmc-bridge");
        let through = self.through.iter().map(String::as_str);
        let mut all = through.chain([program]).chain(args.iter().copied());
        let first = all.next().unwrap();
        let mut command = watched(first, &all.map(OsString::from).collect::<Vec<_>>());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CMC_BRIDGE")) {
            command.env_remove(name);
        }
        command.envs(&self.environment);
        command
    }

    /// Starts the bridge without waiting.
    pub fn spawn(&self) -> Running {
        let mut command = self.command(&["serve"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = process.take_stderr().unwrap();
        let reader = thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            }
        });
        Running {
            process,
            lines,
            reader: Some(reader),
        }
    }

    /// Starts the bridge and waits until it serves.
    pub fn start(&self) -> Bridge {
        let mut running = self.spawn();
        let mut find = |message: &str| {
            wait::until(START_LIMIT, &format!("the log line {message:?}"), || {
                if let Some(status) = running.process.exited() {
                    panic!("the bridge ended with {status}:\n{}", running.stderr());
                }
                running.logged_address(message)
            })
        };
        let admin = find("metrics and probes are served");
        let ingest = find("webhooks are served");
        Bridge {
            ingest,
            admin,
            running,
        }
    }
}

/// A running command of the binary, with its output in files.
pub struct Started {
    pub process: Process,
    name: String,
    dir: PathBuf,
}

impl Started {
    /// Starts a command with these settings and environment variables.
    pub fn new(setup: &Setup, args: &[&str], variables: &[(&str, &str)]) -> Started {
        let dir = new_dir("command");
        let file = |name: &str| File::create(dir.join(name)).unwrap();
        let mut command = setup.command(args);
        command.envs(variables.iter().copied());
        command.stdout(file("stdout")).stderr(file("stderr"));
        let process = Process::spawn(&mut command).unwrap();
        let name = args.join(" ");
        Started { process, name, dir }
    }

    /// What it has written so far to `stdout` or `stderr`.
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    /// Waits until it has written this to standard error.
    pub fn says(&mut self, text: &str) {
        wait::until(COMMAND_LIMIT, &format!("{text:?} on standard error"), || {
            let stderr = self.text("stderr");
            if let Some(status) = self.process.exited() {
                panic!("{} ended with {status}: {stderr}", self.name);
            }
            stderr.contains(text).then_some(())
        });
    }

    /// The most memory that was resident so far, in bytes; `None` if it has ended.
    pub fn peak_bytes(&self) -> Option<u64> {
        memory_of(self.process.id(), "VmHWM:")
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let status = self.process.wait(COMMAND_LIMIT);
        let (stdout, stderr) = (self.text("stdout"), self.text("stderr"));
        println!("$ cmc-bridge {}\n{stdout}{stderr}", self.name);
        let status = status.unwrap_or_else(|| panic!("{} still ran after {COMMAND_LIMIT:?}", self.name));
        Ended {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
        }
    }
}

/// Runs a command with these settings to its end.
pub fn run(setup: &Setup, args: &[&str]) -> Ended {
    Started::new(setup, args, &[]).end()
}

fn variable(key: &str) -> String {
    format!("CMC_BRIDGE__{}", key.to_uppercase().replace('.', "__"))
}

/// A bridge process. Dropping it kills it, and prints its last log lines if the test fails.
pub struct Running {
    process: Process,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Waits for its end and all of its output; returns the exit code.
    pub fn wait_exit(&mut self, limit: Duration) -> i32 {
        let status = self.process.wait(limit);
        let Some(status) = status else {
            panic!("the bridge still ran after {limit:?}");
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
            .code()
            .unwrap_or_else(|| panic!("the bridge ended with {status}"))
    }

    fn logged_address(&self, message: &str) -> Option<SocketAddr> {
        let lines = self.lines.lock().unwrap();
        lines.iter().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            if line["message"] != message {
                return None;
            }
            Some(line["address"].as_str()?.parse().unwrap())
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let from = lines.len().saturating_sub(60);
            eprintln!("--- the bridge's last lines\n{}\n---", lines[from..].join("\n"));
        }
    }
}

/// The value of a memory line in `/proc/<pid>/status`, in bytes; `None` if the process has ended.
fn memory_of(id: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// A bridge that takes webhooks.
pub struct Bridge {
    /// The webhook port.
    pub ingest: SocketAddr,
    /// The port for metrics and probes.
    pub admin: SocketAddr,
    pub running: Running,
}

impl Bridge {
    /// A raw connection to the webhook port.
    pub fn wire(&self) -> Wire {
        Wire::connect(self.ingest)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.running.process.id()
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The value of a memory line in `/proc/<pid>/status`, in bytes.
    pub fn memory(&self, name: &str) -> u64 {
        memory_of(self.id(), name).unwrap()
    }

    /// The name and the nice value of each thread.
    pub fn nice_values(&self) -> Vec<(String, i32)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        // A thread may end meanwhile.
        let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
        stats
            .map(|stat| {
                // proc(5): the name stands in parentheses, and 16 fields later the nice value.
                let (name, rest) = stat.rsplit_once(") ").unwrap();
                let (_, name) = name.split_once('(').unwrap();
                (name.to_owned(), rest.split(' ').nth(16).unwrap().parse().unwrap())
            })
            .collect()
    }

    /// A new client of the webhook port.
    pub fn client(&self) -> Client {
        Client::new(self.ingest)
    }

    /// The status of a probe.
    pub fn probe(&self, path: &str) -> u16 {
        Client::new(self.admin).get(path).status
    }

    /// A scrape. The books must balance in every one.
    pub fn scrape(&self) -> Scrape {
        let response = Client::new(self.admin).get("/metrics");
        assert_eq!(response.status, 200);
        let scrape = Scrape::parse(response.text());
        scrape.check_accounts();
        scrape
    }

    /// Scrapes until `condition` holds.
    pub fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&Scrape) -> bool,
    ) -> Scrape {
        wait::until(limit, what, || {
            let scrape = self.scrape();
            condition(&scrape).then_some(scrape)
        })
    }

    /// Waits until no stream has an undelivered event. Every stream that is enabled by default must have a backlog figure.
    pub fn wait_drained(&self, limit: Duration) -> Scrape {
        const BACKLOG: &str = "cmc_bridge_backlog_events";
        self.wait_for(limit, "an empty backlog", |scrape| {
            let open = scrape.label_values(BACKLOG, "stream");
            STREAMS.iter().all(|stream| open.contains(stream))
                && open.iter().all(|stream| scrape.stream(BACKLOG, stream) == 0.0)
        })
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.running.process.kill();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.running.process.signal(Signal::TERM);
    }

    /// SIGTERM; waits for the orderly end.
    pub fn stop(mut self) {
        self.terminate();
        assert_eq!(self.running.wait_exit(Duration::from_secs(60)), 0);
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.running.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.running.process.signal(Signal::CONT);
    }
}
