//! Shared by the benchmarks: processes with their CPU time, and an HTTP load that uses as little CPU as possible.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{self, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// A server process, which ends when this value is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub admin: Option<SocketAddr>,
}

impl Server {
    /// Starts a process and waits for a line with each of these words and `"address":"<ip:port>"`. The first address is its
    /// main port.
    pub fn start(command: &mut Command, words: &[&str]) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut found = vec![None; words.len()];
        let mut said = String::new();
        while found.contains(&None) {
            let Some(Ok(line)) = lines.next() else {
                panic!("the server ended:\n{said}");
            };
            if let Some(index) = words.iter().position(|word| line.contains(word)) {
                let rest = line.split("\"address\":\"").nth(1).expect("an address");
                found[index] = rest.split('"').next().expect("a quote").parse().ok();
            }
            said = said + &line + "\n";
        }
        // A full pipe would block the server.
        std::thread::spawn(move || lines.for_each(drop));
        let mut addresses = found.into_iter().flatten();
        Server {
            child,
            address: addresses.next().expect("a main port"),
            admin: addresses.next(),
        }
    }

    /// CPU time (user and system) that all its threads have used so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(&self.child.id().to_string())
    }

    /// The most memory that it has had resident so far, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("procfs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak
            .and_then(|peak| peak.trim().strip_suffix(" kB"))
            .expect("a size");
        kib.parse::<u64>().expect("a number") / 1024
    }
}

/// The bridge's metrics, as text.
pub fn scrape(admin: SocketAddr) -> String {
    let mut stream = net::TcpStream::connect(admin).expect("connects");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
        .expect("sends");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    text
}

/// The value of a series in the metrics' text, given with its labels.
pub fn figure(text: &str, series: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse::<f64>().ok();
    text.lines().find_map(value).expect("a series") as u64
}

/// CPU time (user and system) that a process, given by its id or `self`, has used so far.
pub fn cpu_of(process: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("procfs");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let ticks: u64 = [11, 12]
        .iter()
        .map(|i| fields[*i].parse::<u64>().expect("ticks"))
        .sum();
    // Linux reports these in hundredths of a second, whatever the kernel's own tick.
    Duration::from_millis(ticks * 10)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The result of a load.
pub struct Seen {
    pub answers: u64,
    pub seconds: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Seen {
    pub fn per_second(&self) -> f64 {
        self.answers as f64 / self.seconds
    }
}

/// A kept-alive connection.
pub struct Client(TcpStream);

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        Client(stream)
    }

    /// Sends a request made by [`request`], and awaits its answer, which must be a 200.
    pub async fn post(&mut self, request: &[u8]) {
        let mut answer = [0; 1024];
        self.0.write_all(request).await.expect("sends");
        let mut n = 0;
        // The answers are short: head, an empty line, `ok`.
        while !answer[..n].ends_with(b"ok") {
            let more = self.0.read(&mut answer[n..]).await.expect("reads");
            let said = String::from_utf8_lossy(&answer[..n]);
            assert!(more > 0, "the connection ended: {said}");
            n += more;
        }
        let said = String::from_utf8_lossy(&answer[..n]);
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{said}");
    }
}

/// A webhook's request.
pub fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhooks/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Posts these bodies in turn over `connections` kept-alive connections, one request at a time on each, for this long.
pub async fn load(address: SocketAddr, bodies: &[&[u8]], connections: usize, time: Duration) -> Seen {
    let requests: Arc<[Vec<u8>]> = bodies.iter().map(|body| request(body)).collect();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let requests = Arc::clone(&requests);
        tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            let mut times = Vec::with_capacity(1 << 16);
            for request in requests.iter().cycle().skip(connection) {
                if begun.elapsed() >= time {
                    break;
                }
                let sent = Instant::now();
                client.post(request).await;
                times.push(sent.elapsed());
            }
            times
        });
    }
    let mut times = Vec::new();
    while let Some(more) = tasks.join_next().await {
        times.extend(more.expect("no panic"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    Seen {
        answers: times.len() as u64,
        seconds,
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    }
}

/// The median.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Describes the machine, for the record.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} × {model}, Linux {}", kernel.trim())
}
