//! The status of a running bridge, as its admin port gives it: `/status.json`.
//!
//! A bridge of another version may answer with more or fewer members. What is missing has its default, and what is unknown is
//! ignored.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hyper::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::config_args::ConfigArgs;
use crate::{
    admin::status::{BridgeState, problems::Severity},
    cli::exit::Exit,
    config,
    http_client::{Client, Target, trust},
};

/// The path of the status below the address of an admin port.
const PATH: &str = "/status.json";

/// What a bridge says about itself.
#[derive(Clone, Debug, Deserialize)]
pub struct BridgeStatus {
    pub at: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub state: BridgeState,
    pub summary: String,
    /// `None`: its version doesn't judge.
    pub problems: Option<Vec<Problem>>,
    /// Oldest first.
    #[serde(default)]
    pub rates: Vec<Rates>,
    pub acknowledgement_seconds: Option<Quantiles>,
    #[serde(default)]
    pub streams: Vec<Stream>,
    pub disk: Option<Disk>,
    #[serde(default)]
    pub dead_letters: Vec<DeadLetter>,
    #[serde(default)]
    pub refusals: Vec<Refusal>,
}

/// Webhooks accepted and refused and events delivered, per second.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Rates {
    pub accepted: f64,
    pub refused: f64,
    pub delivered: f64,
}

/// Median and 99th percentile, in seconds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
}

/// One stream.
#[derive(Clone, Debug, Deserialize)]
pub struct Stream {
    pub stream: String,
    pub topic: String,
    pub lane: Lane,
    pub log: String,
    pub backlog: u64,
    pub oldest: Option<String>,
    pub spool_bytes: u64,
    pub spool_limit_bytes: u64,
    pub full_in_seconds: Option<u64>,
    #[serde(default)]
    pub rates: StreamRates,
    pub sync_seconds: Option<Quantiles>,
}

/// Events per second.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamRates {
    pub accepted: f64,
    pub delivered: f64,
}

/// What a lane is doing.
#[derive(Clone, Debug, Deserialize)]
pub struct Lane {
    pub state: String,
    /// Why it is blocked.
    pub reason: Option<String>,
}

/// Space on the file system of the spool.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Disk {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Dead letters of one webhook or transaction.
#[derive(Clone, Debug, Deserialize)]
pub struct DeadLetter {
    pub at: String,
    pub reason: String,
    pub stream: Option<String>,
    pub count: u64,
}

/// Refused requests with one outcome and cause.
#[derive(Clone, Debug, Deserialize)]
pub struct Refusal {
    pub outcome: String,
    pub cause: Option<String>,
    pub count: u64,
    pub last: String,
}

/// One problem, in words.
#[derive(Clone, Debug, Deserialize)]
pub struct Problem {
    pub severity: Severity,
    pub what: String,
    pub since: String,
    pub costs: String,
    pub action: String,
    pub runbook: String,
}

/// The admin port of one bridge.
pub struct BridgeClient {
    client: Client,
    url: String,
}

impl BridgeClient {
    /// A client for a URL such as `http://10.0.0.7:9464`, with or without the path of a page.
    ///
    /// # Errors
    /// 64: the URL is wrong. 69: it is an `https` one, and no authorities are trusted.
    pub fn new(url: &str) -> Result<BridgeClient, Exit> {
        let wrong = |error| Exit::Usage(format!("--url {url}: {error}"));
        let mut target = Target::parse(url, "/", "http://127.0.0.1:9464").map_err(wrong)?;
        let path = target.path.split('?').next().unwrap_or_default();
        let pages = [PATH, "/status", "/metrics", "/readyz", "/livez"];
        let base = pages.iter().find_map(|page| path.strip_suffix(page));
        target.path = base.unwrap_or(path).trim_end_matches('/').to_owned();
        let url = target.url();
        target.path.push_str(PATH);
        let trust = target.is_https().then(|| trust(None)).transpose();
        let trust = trust.map_err(Exit::Unavailable)?;
        Ok(BridgeClient {
            client: Client::new(target, None).with_trust(trust),
            url,
        })
    }

    /// The admin port of the bridge with this configuration, on this machine.
    ///
    /// # Errors
    /// 64: the port is chosen by the system. 78: `admin.listen` is refused.
    pub fn configured(args: &ConfigArgs) -> Result<BridgeClient, Exit> {
        let listen = config::admin_listen(&args.files(), config::environment()?.into_iter())?;
        if listen.port() == 0 {
            let what =
                "admin.listen has port 0, so the system chooses a port: give the bridge's address with --url";
            return Err(Exit::Usage(what.to_owned()));
        }
        BridgeClient::new(&format!("http://{}", reachable(listen)))
    }

    /// The address, as a URL without the path of a page.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks for the status.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn ask(&mut self, limit: Duration) -> Result<BridgeStatus, NoStatus> {
        let reply = self.client.get(limit).await;
        let reply = reply.map_err(|error| NoStatus::unanswered(&error, limit))?;
        match reply.status {
            StatusCode::OK => serde_json::from_str(&reply.text).map_err(|error| {
                NoStatus::elsewhere(format!("{PATH} is not the status of a bridge ({error})"))
            }),
            status @ (StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT) => Err(NoStatus {
                cause: format!("a proxy answers {status}"),
                is_elsewhere: false,
            }),
            status => Err(NoStatus::elsewhere(format!("{PATH} is answered {status}"))),
        }
    }
}

/// Why there is no status.
#[derive(Clone, Debug)]
pub struct NoStatus {
    pub cause: String,
    /// Something is at the address, but no admin port of a bridge: nothing is known about the bridge.
    pub is_elsewhere: bool,
}

impl NoStatus {
    fn elsewhere(what: String) -> NoStatus {
        NoStatus {
            cause: format!("{what}: this is no admin port of a bridge"),
            is_elsewhere: true,
        }
    }

    fn unanswered(error: &io::Error, limit: Duration) -> NoStatus {
        match error.kind() {
            io::ErrorKind::InvalidData => NoStatus::elsewhere(error.to_string()),
            io::ErrorKind::TimedOut => NoStatus {
                cause: format!("no answer within {} s", limit.as_secs()),
                is_elsewhere: false,
            },
            _ => NoStatus {
                cause: error.to_string(),
                is_elsewhere: false,
            },
        }
    }
}

/// The address under which a port on all interfaces can be reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The seconds from one time of a status to another; 0 if it is not later or can't be read.
pub fn seconds_between(from: &str, to: &str) -> u64 {
    let parse = |text: &str| text.parse::<Timestamp>().ok().map(|time| time.as_second());
    let (from, to) = (parse(from), parse(to));
    let between = from.zip(to).map_or(0, |(from, to)| to.saturating_sub(from));
    between.try_into().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_have_the_path_of_a_page() {
        for (url, base) in [
            ("http://127.0.0.1:9464", "http://127.0.0.1:9464"),
            ("http://127.0.0.1:9464/", "http://127.0.0.1:9464"),
            ("http://h:1/status?refresh=off", "http://h:1"),
            ("http://h:1/bridge/status.json", "http://h:1/bridge"),
            ("http://h:1/bridge/", "http://h:1/bridge"),
        ] {
            let client = BridgeClient::new(url).unwrap();
            assert_eq!(client.url(), base);
        }
        for url in ["h:1", "", "ftp://h"] {
            let Err(Exit::Usage(text)) = BridgeClient::new(url) else {
                panic!("{url}")
            };
            assert!(text.contains("http://127.0.0.1:9464"), "{text}");
        }
    }

    #[test]
    fn a_port_on_all_interfaces_is_asked_on_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:9464", "127.0.0.1:9464"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), reached);
        }
    }

    #[test]
    fn times() {
        let seconds = seconds_between("2026-10-01T09:00:00.5Z", "2026-10-01T09:01:00Z");
        assert_eq!(seconds, 60);
        assert_eq!(seconds_between("2026-10-01T09:01:00Z", "2026-10-01T09:00:00Z"), 0);
        assert_eq!(seconds_between("", "2026-10-01T09:00:00Z"), 0);
    }
}
