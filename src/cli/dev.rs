//! `cmc-bridge dev`: tries the bridge on one machine.
//!
//! Everything is real except Kafka: a broker embedded in the process (librdkafka's mock) takes its place, and each event
//! is printed when it reaches its topic. The spool is a temporary directory. The mock keeps no offsets and writes no
//! transaction markers, so `dev` proves nothing about exactly-once; the integration tests do, on Apache Kafka. Webhooks
//! arrive over plain HTTP, whatever `ingest.tls` says.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`samples`] | the webhooks that `--sample` posts |

mod samples;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use hyper::header::HeaderValue;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    mocking::MockCluster,
};
use secrecy::ExposeSecret;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

use super::{
    config_args::ConfigArgs,
    records::{self, PrintFormat},
    send_sample::generate::{BOUNDARY, BodyFormat},
    signals::stop_signals,
};
use crate::{
    bridge::Bridge,
    cli::exit::Exit,
    cmc::Endpoint,
    config::{Auth, Config, CredentialKind},
    http_client::{Client, Target},
    logging,
    stream::Stream,
};

const PARTITIONS: i32 = 3;
/// How long a sample waits for its answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub const AFTER_HELP: &str = "\
An embedded broker takes Kafka's place, and each event is printed when it reaches its topic. Every stream is enabled, received
mail included. The spool is temporary.
Delivery guarantees can't be tried here: the embedded broker keeps neither offsets nor transactions.

Examples:
  cmc-bridge dev --sample
  cmc-bridge dev --listen 127.0.0.1:9000";

/// The arguments of `dev`.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Address for webhooks; without credentials it must be a loopback address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address for status, metrics and probes
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    pub admin_listen: SocketAddr,
    /// Post a few sample webhooks once the bridge is ready
    #[arg(long)]
    pub sample: bool,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// 64: anybody could post from outside. 78: the configuration is refused. Else as [`serve`](super::serve::run).
pub fn run(args: &DevArgs) -> Result<(), Exit> {
    let mut config = args.config.load()?.config;
    let spool = tempfile::Builder::new().prefix("cmc-bridge-dev-").tempdir()?;
    let mock = MockCluster::new(1).map_err(unavailable)?;
    adapt(&mut config, args, spool.path(), mock.bootstrap_servers())?;
    let _logging = logging::init(&config.log)?;
    for topic in topics(&config) {
        mock.create_topic(topic, PARTITIONS, 1).map_err(unavailable)?;
    }
    let presented = Presented::of(&config.ingest.auth)?;
    let printer = RecordPrinter::start(&config)?;
    let runtime = Runtime::new()?;
    let result: Result<(), Exit> = runtime.block_on(async {
        let stop = stop_signals()?;
        let [path, inbound_path] = [&config.ingest.path, &config.ingest.inbound_path].map(String::clone);
        let brokers = config.kafka.bootstrap_servers.clone();
        let bridge = Bridge::start(config).await?;
        let url = |path: &str| format!("http://{}{path}", bridge.ingest_address());
        greet(
            &url(&path),
            &url(&inbound_path),
            bridge.admin_address(),
            &brokers,
            spool.path(),
            &presented.curl(),
        )?;
        if args.sample {
            let client = |path: &str| {
                let target = Target::new(bridge.ingest_address(), path);
                Client::new(target, presented.authorization.clone())
            };
            let clients = [client(&path), client(&inbound_path)];
            tokio::spawn(post_samples(clients, presented.api_key.clone()));
        }
        Ok(bridge.run(stop).await?)
    });
    printer.stop();
    runtime.shutdown_background();
    result?;
    // The reader may be gone.
    let _ = writeln!(io::stdout(), "Stopped. The temporary spool is removed.");
    Ok(())
}

/// Adapts a configuration: loopback, the embedded broker, a temporary spool.
fn adapt(config: &mut Config, args: &DevArgs, spool: &std::path::Path, brokers: String) -> Result<(), Exit> {
    config.ingest.listen = args.listen;
    config.ingest.tls = None;
    config.admin.listen = args.admin_listen;
    config.spool.dir = spool.to_path_buf();
    config.kafka.bootstrap_servers = brokers;
    config.kafka.properties.clear();
    for stream in [Stream::Blocks, Stream::Inbound] {
        config.streams[stream.index()].enabled = true;
    }
    config.shutdown.lame_duck = Duration::ZERO;
    config.shutdown.grace = Duration::from_secs(5);
    let anybody = match &config.ingest.auth {
        Auth::Anonymous => true,
        Auth::Credentials(credentials) => credentials.is_empty(),
    };
    if anybody {
        if !args.listen.ip().is_loopback() {
            return Err(Exit::Usage(format!(
                "--listen {} is not a loopback address, so anybody could post there: set a credential (and not \
                 ingest.auth.allow_anonymous), for example with CMC_BRIDGE__INGEST__AUTH__BEARER_TOKENS",
                args.listen
            )));
        }
        config.ingest.auth = Auth::Anonymous;
    }
    if std::env::var_os("CMC_BRIDGE__LOG__LEVEL").is_none() && config.log.level == "info" {
        // Standard output already shows what happens.
        config.log.level = "warn".into();
    }
    Ok(())
}

/// Every stream's topic, each once.
fn topics(config: &Config) -> BTreeSet<&str> {
    config
        .streams
        .iter()
        .map(|stream| stream.topic.as_str())
        .collect()
}

fn greet(
    url: &str,
    inbound_url: &str,
    admin: SocketAddr,
    brokers: &str,
    spool: &std::path::Path,
    curl: &str,
) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    writeln!(out, "webhooks                       {url}")?;
    writeln!(out, "webhooks of received mail      {inbound_url}")?;
    writeln!(
        out,
        "status, metrics and probes     http://{admin}/status  /metrics  /livez  /readyz"
    )?;
    writeln!(out, "Kafka (embedded)               {brokers}")?;
    writeln!(out, "spool (temporary)              {}", spool.display())?;
    writeln!(out, "\nTry it from another terminal:\n")?;
    writeln!(out, "curl -i {url} -H 'Content-Type: application/json' {curl}")?;
    writeln!(
        out,
        "\nEvents appear here when they reach their topics. Ctrl-C stops the bridge.\n"
    )?;
    out.flush()
}

/// The configured credential that samples and the printed command present: one for a header if possible.
struct Presented {
    authorization: Option<HeaderValue>,
    api_key: Option<String>,
    /// For curl: the header, or the body with its key. Keeps the secret off the terminal; removed on drop.
    file: Option<NamedTempFile>,
}

impl Presented {
    fn of(auth: &Auth) -> Result<Presented, Exit> {
        let mut presented = Presented {
            authorization: None,
            api_key: None,
            file: None,
        };
        let first = match auth {
            Auth::Credentials(all) => all
                .iter()
                .find(|one| one.kind != CredentialKind::ApiKey)
                .or(all.first()),
            Auth::Anonymous => None,
        };
        let Some(first) = first else {
            return Ok(presented);
        };
        let secret = first.secret.expose_secret();
        let text = match first.kind {
            CredentialKind::Bearer => format!("Bearer {secret}"),
            CredentialKind::Basic => format!("Basic {}", STANDARD.encode(secret)),
            CredentialKind::ApiKey => {
                presented.api_key = Some(secret.to_owned());
                BodyFormat::Json.with_api_key(samples::CURL, secret)
            }
        };
        let mut file = tempfile::Builder::new().prefix("cmc-bridge-dev-").tempfile()?;
        if first.kind == CredentialKind::ApiKey {
            file.write_all(text.as_bytes())?;
        } else {
            writeln!(file, "Authorization: {text}")?;
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| Exit::Usage(format!("{} can't be sent in a header", first.name)))?;
            value.set_sensitive(true);
            presented.authorization = Some(value);
        }
        presented.file = Some(file);
        Ok(presented)
    }

    /// The end of curl's command line: credential and body.
    fn curl(&self) -> String {
        let body = samples::CURL;
        match &self.file {
            None => format!("-d '{body}'"),
            Some(file) if self.api_key.is_some() => format!("--data-binary '@{}'", file.path().display()),
            Some(file) => format!("-H '@{}' -d '{body}'", file.path().display()),
        }
    }
}

/// Posts the samples with a client for each endpoint.
async fn post_samples([mut events, mut inbound]: [Client; 2], api_key: Option<String>) {
    // The bridge finds no key in a truncated body.
    let keyed = |sample: &&samples::SampleWebhook| api_key.is_none() || !sample.truncated;
    for sample in samples::ALL.iter().filter(keyed) {
        let body = match &api_key {
            None => Bytes::from_static(sample.body.as_bytes()),
            Some(key) => sample.format.with_api_key(sample.body, key).into(),
        };
        let client = match sample.endpoint {
            Endpoint::Events => &mut events,
            Endpoint::Inbound => &mut inbound,
        };
        let content_type = sample.format.content_type(BOUNDARY);
        let answer = client.post(&content_type, body, PATIENCE).await;
        // One write, so that the printer's thread can't split the line.
        let line = match answer {
            Ok(answer) => format!("posted {}: {}\n", sample.what, answer.status),
            Err(error) => format!("posted {}: {error}\n", sample.what),
        };
        let _ = io::stdout().lock().write_all(line.as_bytes());
    }
}

/// Prints each record of the topics as it arrives.
struct RecordPrinter {
    ended: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl RecordPrinter {
    fn start(config: &Config) -> Result<RecordPrinter, Exit> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &config.kafka.bootstrap_servers)
            .set("group.id", "cmc-bridge-dev-printer")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "50")
            .create()
            .map_err(unavailable)?;
        let mut partitions = TopicPartitionList::new();
        for topic in topics(config) {
            for partition in 0..PARTITIONS {
                partitions
                    .add_partition_offset(topic, partition, Offset::Beginning)
                    .map_err(unavailable)?;
            }
        }
        // Assigned, not subscribed: the first rebalance of a group takes seconds.
        consumer.assign(&partitions).map_err(unavailable)?;
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        let thread = thread::Builder::new().name("printer".into()).spawn(move || {
            while let Some(result) = consumer
                .poll(Duration::from_millis(200))
                .map(Some)
                .or_else(|| (!flag.load(Ordering::Relaxed)).then_some(None))
            {
                if let Some(Ok(record)) = result {
                    let _ = records::print(&record, PrintFormat::Text, &mut io::stdout().lock());
                }
            }
        })?;
        Ok(RecordPrinter { ended, thread })
    }

    /// Prints what has arrived, then ends.
    fn stop(self) {
        self.ended.store(true, Ordering::Relaxed);
        // A panic of the thread has already been reported.
        let _ = self.thread.join();
    }
}

fn unavailable(error: rdkafka::error::KafkaError) -> Exit {
    Exit::Unavailable(format!("the embedded broker failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn adapted(listen: &str, variables: &[(&str, &str)]) -> Result<Config, Exit> {
        let variables = variables
            .iter()
            .map(|(key, value)| (format!("CMC_BRIDGE__INGEST__AUTH__{key}"), (*value).to_owned()));
        let mut config = load(&[], variables).unwrap().config;
        let args = DevArgs {
            config: ConfigArgs::default(),
            listen: listen.parse().unwrap(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            sample: false,
        };
        adapt(&mut config, &args, std::path::Path::new("/tmp"), String::new())?;
        Ok(config)
    }

    #[test]
    fn anybody_may_post_on_a_loopback_address_only() {
        let anybody: [&[(&str, &str)]; 2] = [&[], &[("ALLOW_ANONYMOUS", "true")]];
        for variables in anybody {
            for listen in ["127.0.0.1:0", "[::1]:0"] {
                let config = adapted(listen, variables).unwrap();
                assert!(matches!(config.ingest.auth, Auth::Anonymous));
            }
            for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
                let exit = adapted(listen, variables).unwrap_err();
                assert!(
                    exit.code() == 64 && exit.to_string().contains("not a loopback"),
                    "{exit}"
                );
            }
        }
        adapted("0.0.0.0:0", &[("BEARER_TOKENS", "t")]).unwrap();
    }

    #[test]
    fn a_credential_is_presented_and_not_printed() {
        for (variables, header, in_body) in [
            (&[("BEARER_TOKENS", "s3cr3t")][..], Some("Bearer s3cr3t"), false),
            (
                &[("API_KEYS", "k"), ("BASIC", "cmc:s3cr3t")],
                Some("Basic Y21jOnMzY3IzdA=="),
                false,
            ),
            (&[("API_KEYS", "s3cr3t")], None, true),
            (&[], None, false),
        ] {
            let config = adapted("127.0.0.1:0", variables).unwrap();
            let presented = Presented::of(&config.ingest.auth).unwrap();
            let found = presented
                .authorization
                .as_ref()
                .map(|value| value.to_str().unwrap());
            assert_eq!(found, header);
            assert_eq!(presented.api_key.is_some(), in_body);
            let curl = presented.curl();
            assert!(!curl.contains("s3cr3t"), "{curl}");
            assert_eq!(curl.contains("'@"), !variables.is_empty(), "{curl}");
        }
    }
}
