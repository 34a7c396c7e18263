//! Shared by the benchmarks: processes with their CPU time, and an HTTP load that uses as little CPU as possible.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
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

/// Posts the same request over `connections` kept-alive connections, one request at a time on each, for this long. Every answer
/// must be a 200.
pub async fn load(address: SocketAddr, body: &'static [u8], connections: usize, time: Duration) -> Seen {
    let mut request = format!(
        "POST /webhooks/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    let request: &'static [u8] = request.leak();
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.set_nodelay(true).expect("nodelay");
            let mut times = Vec::with_capacity(1 << 16);
            let mut answer = [0; 1024];
            while begun.elapsed() < time {
                let sent = Instant::now();
                stream.write_all(request).await.expect("sends");
                let mut n = 0;
                // The answers are short: head, an empty line, `ok`.
                while !answer[..n].ends_with(b"ok") {
                    let more = stream.read(&mut answer[n..]).await.expect("reads");
                    assert!(
                        more > 0,
                        "the connection ended: {}",
                        String::from_utf8_lossy(&answer[..n])
                    );
                    n += more;
                }
                assert!(
                    answer.starts_with(b"HTTP/1.1 200"),
                    "{}",
                    String::from_utf8_lossy(&answer[..n])
                );
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
