//! The validated configuration: what the rest of the program sees.
//!
//! Raw values become these types once, at the edge, by [`load`]: built-in defaults, then the files named by `--config`
//! in their order, then the environment (`CMC_BRIDGE__` and the key in upper case, `__` for each dot). Nothing else is
//! read. What is unknown or wrong is refused, all of it in one [`ConfigError`]; secrets are in none of the messages.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`auth`] | credentials, from values and files |
//! | [`keys`] | every key with its default |
//! | [`parse`] | times, sizes, numbers, lists |
//! | [`problem`] | what is wrong, where, and what to do; all at once |
//! | [`properties`] | librdkafka's properties, and which are the bridge's own |
//! | [`raw`] | raw values and where they came from |
//! | [`show`] | values as TOML, redacted |
//! | [`source`] | files and environment into raw values |
//! | [`validate`] | raw values into validated ones |

mod auth;
mod keys;
mod parse;
mod problem;
mod properties;
mod raw;
mod show;
mod source;
#[cfg(test)]
mod tests;
mod validate;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;

pub use self::{
    auth::{CredentialFile, MAX_CREDENTIALS, clash},
    parse::{human_duration, human_size},
    problem::{ConfigError, Origin, Problem},
    properties::pem_faults,
    show::{Setting, shown_path, to_toml},
    source::{environment, text_fault},
};
use crate::{spool::Durability, stream::Stream};

/// A valid configuration, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Every key with its value and origin, secrets redacted.
    pub settings: Vec<Setting>,
}

impl Loaded {
    /// What `serve` asks for beyond validity: somebody must be able to post webhooks.
    ///
    /// # Errors
    /// No credential is set and anonymous posting is not allowed; says what to set.
    pub fn require_credentials(&self) -> Result<(), ConfigError> {
        auth::require_credentials(&self.config)
    }
}

/// Loads and validates: defaults, then `files` in order, then the variables of the bridge among `environment`.
///
/// # Errors
/// Everything that is wrong, one line each.
pub fn load(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    match look(files, environment)? {
        (Some(config), settings, problems) if problems.is_empty() => Ok(Loaded { config, settings }),
        (_, _, problems) => Err(ConfigError { problems }),
    }
}

/// Every key with its value and origin, secrets redacted, and what is wrong with them, if anything.
///
/// # Errors
/// The layers can't be merged.
pub fn settings(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Vec<Setting>, Result<(), ConfigError>), ConfigError> {
    let (_, settings, problems) = look(files, environment)?;
    let verdict = match problems.is_empty() {
        true => Ok(()),
        false => Err(ConfigError { problems }),
    };
    Ok((settings, verdict))
}

type Looked = (Option<Config>, Vec<Setting>, Vec<Problem>);

fn look(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Looked, ConfigError> {
    let mut problems = Vec::new();
    let mut layers = vec![source::Layer::defaults()];
    layers.extend(files.iter().map(|file| source::Layer::file(file, &mut problems)));
    layers.push(source::Layer::environment(environment, &mut problems));
    let root = source::merge(layers).map_err(|error| ConfigError {
        problems: vec![Problem::new(
            "",
            Origin::Default,
            error.to_string(),
            "report this as a defect",
        )],
    })?;
    let mut raw = raw::Raw::new(root, problems);
    let config = validate::config(&mut raw);
    let settings = raw.settings();
    Ok((config, settings, raw.into_problems()))
}

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    pub ingest: Ingest,
    pub admin: Admin,
    pub spool: Spool,
    pub kafka: Kafka,
    /// One entry for each stream, at [`Stream::index`]; read through [`Config::stream`].
    pub streams: [StreamConfig; 4],
    pub shutdown: Shutdown,
    pub log: Log,
}

impl Config {
    /// The settings of one stream.
    pub fn stream(&self, stream: Stream) -> &StreamConfig {
        &self.streams[stream.index()]
    }
}

/// The webhook side.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// `ingest.listen`
    pub listen: SocketAddr,
    /// `ingest.path`: the path of the webhook endpoint, without a trailing slash.
    pub path: String,
    /// `ingest.health_path`: answered for load balancers, without a trailing slash; `None` where there is none.
    pub health_path: Option<String>,
    pub auth: Auth,
    /// The files that `auth` was read from, to be read again while the bridge runs.
    pub credential_files: Vec<CredentialFile>,
    /// `ingest.max_body_bytes`: a larger body is answered 413.
    pub max_body_bytes: usize,
    /// `ingest.max_events`: a webhook with more elements is malformed.
    pub max_events: usize,
    /// `ingest.time_zone`: the zone of the member `created`.
    pub time_zone: jiff::tz::TimeZone,
    /// `ingest.time_zones.<server_composition>`: exceptions to `time_zone`.
    pub time_zones: BTreeMap<String, jiff::tz::TimeZone>,
    /// `ingest.malformed_status`: the status for a body that can't be understood, 400 unless the sender needs another.
    pub malformed_status: u16,
    /// `ingest.max_connections`: a further connection takes the place of one without a credential, or is answered 503.
    pub max_connections: usize,
    /// `ingest.max_bytes_in_flight`: bodies being read and batches waiting for the disk, all together.
    pub max_bytes_in_flight: usize,
    /// `ingest.header_timeout`: from the first byte wanted to the end of the header.
    pub header_timeout: Duration,
    /// `ingest.body_timeout`: from the end of the header to the end of the body.
    pub body_timeout: Duration,
    /// `ingest.idle_timeout`: how long a connection may be quiet between two requests.
    pub idle_timeout: Duration,
    /// `ingest.append_timeout`: how long a webhook may wait for the disk before it is answered 503.
    pub append_timeout: Duration,
    /// `ingest.retry_after`: the `Retry-After` of every 503, whole seconds.
    pub retry_after: Duration,
    /// `ingest.tls`; plain HTTP without it.
    pub tls: Option<Tls>,
}

/// TLS on the webhooks' port. The files are read by the bridge and again while it runs, not by [`load`].
#[derive(Clone)]
pub struct Tls {
    /// `ingest.tls.certificate`: PEM, the server's certificate first, then the intermediate ones.
    pub certificate: PathBuf,
    /// `ingest.tls.key`: PEM, without a passphrase.
    pub key: PathBuf,
    /// `ingest.tls.reload`: how often the files are looked at.
    pub reload: Duration,
}

impl fmt::Debug for Tls {
    /// The key itself may have been put in the place of its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [certificate, key] = [&self.certificate, &self.key].map(|path| shown_path(path));
        write!(f, "Tls({certificate:?}, {key:?}, {:?})", self.reload)
    }
}

/// Who may post webhooks.
#[derive(Clone, Debug)]
pub enum Auth {
    /// `ingest.auth.allow_anonymous = true`: anybody who can reach the port.
    Anonymous,
    /// Whoever presents one of these. With none nobody can post: `check` and `dev` may see that, `serve` refuses it
    /// by [`Loaded::require_credentials`].
    Credentials(Vec<Credential>),
}

/// One accepted credential.
#[derive(Clone, Debug)]
pub struct Credential {
    /// What metrics and logs call it: given, or made of the kind and a number (`bearer-1`).
    pub name: String,
    pub kind: CredentialKind,
    /// The token, the key, or `user:password`.
    pub secret: SecretString,
}

/// How a credential is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CredentialKind {
    /// `Authorization: Bearer <token>`
    Bearer,
    /// `Authorization: Basic <base64 of user:password>`
    Basic,
    /// The member or field `api_key` of the body.
    ApiKey,
}

/// The operators' side: metrics and probes.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `admin.listen`
    pub listen: SocketAddr,
}

/// The spool on local disk.
#[derive(Clone, Debug)]
pub struct Spool {
    /// `spool.dir`
    pub dir: PathBuf,
    /// `spool.max_bytes`: written and not yet trimmed bytes, per stream; beyond it the stream's webhooks get 503.
    pub max_bytes: u64,
    /// `spool.segment_bytes`: size of a segment file. Trimming works in whole segments.
    pub segment_bytes: u64,
    /// `spool.durability`
    pub durability: Durability,
}

/// The Kafka side.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `kafka.bootstrap_servers`
    pub bootstrap_servers: String,
    /// `kafka.delivery`
    pub delivery: Delivery,
    /// `kafka.create_topics`: create missing topics at start.
    pub create_topics: bool,
    /// `kafka.topic_partitions` of topics created so; `None` is the broker's default.
    pub topic_partitions: Option<u32>,
    /// `kafka.topic_replication` of topics created so; `None` is the broker's default.
    pub topic_replication: Option<u16>,
    /// `kafka.id_prefix` of transactional ids and groups.
    pub id_prefix: String,
    /// `kafka.max_record_bytes`: a record larger than this (alone in a record batch) is dead-lettered in parts.
    pub max_record_bytes: usize,
    /// `kafka.transaction_events`: most events in one transaction (a larger batch still goes whole).
    pub transaction_events: usize,
    /// `kafka.transaction_bytes`: most bytes of batches in one transaction (a larger batch still goes whole).
    pub transaction_bytes: usize,
    /// `kafka.transaction_timeout`: when the broker ends an open transaction by itself.
    pub transaction_timeout: Duration,
    /// `[kafka.properties]`: librdkafka properties by their own names; some are secrets.
    pub properties: BTreeMap<String, SecretString>,
}

#[cfg(test)]
impl Kafka {
    /// One without a cluster.
    pub fn for_tests() -> Kafka {
        Kafka {
            bootstrap_servers: String::new(),
            delivery: Delivery::ExactlyOnce,
            create_topics: false,
            topic_partitions: None,
            topic_replication: None,
            id_prefix: String::new(),
            max_record_bytes: 100_000,
            transaction_events: 1,
            transaction_bytes: 1,
            transaction_timeout: Duration::from_secs(15),
            properties: BTreeMap::new(),
        }
    }
}

/// How events go into Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// `exactly-once`: transactions; the position moves with the events.
    ExactlyOnce,
    /// `at-least-once`: an idempotent producer and no transactions; the position is the checkpoint's.
    AtLeastOnce,
}

/// One stream.
#[derive(Clone, Debug)]
pub struct StreamConfig {
    /// `streams.<name>.enabled`
    pub enabled: bool,
    /// `streams.<name>.topic`
    pub topic: String,
}

/// What happens after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// `shutdown.lame_duck`: not ready any more, but still serving.
    pub lame_duck: Duration,
    /// `shutdown.grace`: after that, time to finish requests and deliver the backlog.
    pub grace: Duration,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct Log {
    /// `log.format`
    pub format: LogFormat,
    /// `log.level`: a `tracing` filter such as `info` or `info,cmc_bridge::lane=debug`.
    pub level: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
