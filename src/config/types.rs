//! The validated configuration, section by section.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;

use super::{
    credentials::{Auth, CredentialFile},
    files::shown_path,
};
use crate::{cmc::MailContent, spool::Durability, stream::Stream};

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub ingest: Ingest,
    pub admin: Admin,
    pub spool: SpoolConfig,
    pub kafka: Kafka,
    /// One entry for each stream, at [`Stream::index`]; read through [`Config::stream`].
    pub streams: [StreamConfig; Stream::ALL.len()],
    /// `streams.inbound.content`
    pub mail_content: MailContent,
    pub sender_api: SenderApi,
    pub shutdown: Shutdown,
    pub log: LogConfig,
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
    /// `ingest.health_path`: answered for load balancers, without a trailing slash; `None` if there is none.
    pub health_path: Option<String>,
    pub auth: Auth,
    /// The files that `auth` was read from, to be read again while the bridge runs.
    pub credential_files: Vec<CredentialFile>,
    /// `ingest.max_body_bytes`: a larger body is answered 413.
    pub max_body_bytes: usize,
    /// `ingest.inbound_path`: the path of webhooks of received mail, without a trailing slash.
    pub inbound_path: String,
    /// `ingest.inbound_max_body_bytes`: a larger body of received mail is answered 413.
    pub inbound_max_body_bytes: usize,
    /// `ingest.max_events`: a webhook with more elements is malformed.
    pub max_events: usize,
    /// `ingest.time_zone`: the time zone of the member `created`.
    pub time_zone: jiff::tz::TimeZone,
    /// `ingest.time_zones.<server_composition>`: exceptions to `time_zone`.
    pub time_zones: BTreeMap<String, jiff::tz::TimeZone>,
    /// `ingest.malformed_status`: the status for a body that can't be understood, 400 unless the sender needs another.
    pub malformed_status: u16,
    /// `ingest.repeats` and `ingest.repeat_window`: events that were made durable so long ago are not stored again; `None` keeps
    /// repeats.
    pub repeat_window: Option<Duration>,
    /// `ingest.max_connections`: a further connection replaces one without a credential, or is answered 503.
    pub max_connections: usize,
    /// `ingest.max_bytes_in_flight`: bodies being read and batches waiting for the disk, all together.
    pub max_bytes_in_flight: usize,
    /// `ingest.header_timeout`: from waiting for the first byte to the end of the header.
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
    pub tls: Option<TlsConfig>,
}

/// TLS on the webhooks' port. The bridge reads the files, and reads them again while it runs; loading the configuration does not.
#[derive(Clone)]
pub struct TlsConfig {
    /// `ingest.tls.certificate`: PEM, the server's certificate first, then the intermediate ones.
    pub certificate: PathBuf,
    /// `ingest.tls.key`: PEM, without a passphrase.
    pub key: PathBuf,
    /// `ingest.tls.reload`: how often the files are checked for changes.
    pub reload: Duration,
}

impl fmt::Debug for TlsConfig {
    /// The file's name may be the key itself, put there by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [certificate, key] = [&self.certificate, &self.key].map(|path| shown_path(path));
        write!(f, "Tls({certificate:?}, {key:?}, {:?})", self.reload)
    }
}

/// The operators' side: metrics and probes.
#[derive(Clone, Debug)]
pub struct Admin {
    /// `admin.listen`
    pub listen: SocketAddr,
}

/// The spool on local disk.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
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
    /// `kafka.topic_partitions` of created topics; `None` is the broker's default.
    pub topic_partitions: Option<u32>,
    /// `kafka.topic_replication` of created topics; `None` is the broker's default.
    pub topic_replication: Option<u16>,
    /// `kafka.id_prefix` of transactional ids and groups.
    pub id_prefix: String,
    /// `kafka.max_record_bytes`: a record larger than this (alone in a record batch) is dead-lettered in parts.
    pub max_record_bytes: usize,
    /// `kafka.transaction_events`: maximum number of events in one transaction (a larger batch is still sent whole).
    pub transaction_events: usize,
    /// `kafka.transaction_bytes`: maximum bytes of batches in one transaction (a larger batch is still sent whole).
    pub transaction_bytes: usize,
    /// `kafka.transaction_timeout`: after this time the broker aborts an open transaction.
    pub transaction_timeout: Duration,
    /// `kafka.commit_interval`: transactions of a stream begin this far apart while events keep coming.
    pub commit_interval: Duration,
    /// `[kafka.properties]`: librdkafka properties by their own names; some are secrets.
    pub properties: BTreeMap<String, SecretString>,
}

#[cfg(test)]
impl Kafka {
    /// Settings without a cluster.
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
            commit_interval: Duration::ZERO,
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

/// The sender's Web API, which `reconcile` asks.
#[derive(Clone)]
pub struct SenderApi {
    /// `sender_api.url`, without a trailing slash.
    pub url: String,
    /// `sender_api.user` and `sender_api.key`; `None` when neither is set.
    pub account: Option<ApiAccount>,
    /// `sender_api.ca_file`: the authorities to trust, PEM; `None` for the system's.
    pub ca_file: Option<PathBuf>,
    /// `sender_api.server_compositions`: whose events are asked for.
    pub server_compositions: Vec<String>,
    /// `sender_api.pause` between two calls.
    pub pause: Duration,
    /// `sender_api.timeout`: how long a call may take.
    pub timeout: Duration,
}

/// Who calls the Web API.
#[derive(Clone, Debug)]
pub struct ApiAccount {
    pub user: String,
    pub key: SecretString,
}

impl fmt::Debug for SenderApi {
    /// The file's name may be the key itself, put there by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ca_file = self.ca_file.as_deref().map(shown_path);
        f.debug_struct("SenderApi")
            .field("url", &self.url)
            .field("account", &self.account)
            .field("ca_file", &ca_file)
            .field("server_compositions", &self.server_compositions)
            .field("pause", &self.pause)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// What happens after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Shutdown {
    /// `shutdown.lame_duck`: no longer ready, but still serving.
    pub lame_duck: Duration,
    /// `shutdown.grace`: after that, time to finish requests and deliver the backlog.
    pub grace: Duration,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `log.format`
    pub format: LogFormat,
    /// `log.level`: a `tracing` filter such as `info` or `info,cmc_bridge::lane=debug,cmc_bridge::kafka=debug`.
    pub level: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}
