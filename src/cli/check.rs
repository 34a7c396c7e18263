//! `cmc-bridge check`: shows what would run with this configuration, and warns.
//!
//! Opens no port, asks no broker and writes nothing; with `--live` ([`live`]) it also asks Kafka, the disk and the sender's Web API.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`directory`] | looks at the spool's directory |
//! | [`live`] | check --live: asks Kafka, the disk and the sender's Web API |

mod directory;
mod live;

use std::{collections::BTreeMap, io::Write};

use clap::Args;

use self::directory::Directory;
use super::config_args::ConfigArgs;
use crate::{
    cli::exit::Exit,
    config::{Auth, Config, CredentialKind, Delivery, Loaded, Origin, SenderApi, pem_faults, shown_path},
    human,
    ingest::Pair,
    kafka::probe::make_clients,
    leftover::Leftovers,
    plain::visible,
    spool::Durability,
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge check --config cmc-bridge.toml
  cmc-bridge check --live";

/// The arguments of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Also ask Kafka, the disk and the sender's API: brokers, topics, rights, sync times, free space, the API's user and key
    ///
    /// Changes nothing: creates no topic and sends no event. Each line says ok, warn or FAIL, with the cause and what to
    /// do. Exits with 69 if any line is FAIL.
    #[arg(long)]
    pub live: bool,
}

/// Checks the configuration and, with `--live`, Kafka, the disk and the sender's Web API.
///
/// # Errors
/// 78: `serve` would refuse the configuration. 69: with `--live`, something else would stop it.
pub fn command(args: &CheckArgs, out: &mut impl Write) -> Result<(), Exit> {
    let loaded = args.config.load()?;
    let streams = run(&loaded, out)?;
    let kafka = &loaded.config.kafka;
    if args.live {
        writeln!(out)?;
        live::run(&loaded.config, &streams, out)?;
    } else if let Err(error) = make_clients(kafka, Stream::Deliveries) {
        let effect = "serve would take webhooks and deliver nothing";
        writeln!(out, "warning: kafka.properties: {error}; until then {effect}")?;
    }
    Ok(out.flush()?)
}

/// Prints the summary and the warnings. Returns the streams that `serve` would deliver: the enabled ones, and disabled
/// ones whose logs hold something.
///
/// # Errors
/// 78: `serve` would refuse the configuration.
pub fn run(loaded: &Loaded, out: &mut impl Write) -> Result<Vec<Stream>, Exit> {
    let config = &loaded.config;
    let directory = Directory::look(&config.spool.dir);
    let is_enabled = |stream| config.stream(stream).enabled;
    let leftovers = Leftovers::look_from_outside(&config.spool.dir, is_enabled);
    let (leftovers, unlisted) = match leftovers {
        Ok(leftovers) => (leftovers, None),
        Err(error) => (Leftovers::default(), Some(error)),
    };
    let pair = config.ingest.tls.as_ref().map(Pair::load).transpose();
    let usable = pair.as_ref().ok().and_then(Option::as_ref);
    summary(config, &directory, usable, &leftovers, out)?;
    let mut all = warnings(config, &directory, usable);
    all.extend(left_behind(config, &leftovers));
    all.extend(doubtful_zones(loaded));
    // An unusable directory has its own warning.
    if let (Some(error), Directory::Ready { .. }) = (unlisted, &directory) {
        all.push(format!(
            "spool.dir: whether events wait in it is unknown: {error}"
        ));
    }
    for warning in all {
        writeln!(out, "warning: {warning}")?;
    }
    loaded.require_credentials()?;
    pair?;
    writeln!(out, "the configuration is valid")?;
    out.flush()?;
    let mut streams = Stream::ALL.to_vec();
    streams.retain(|stream| is_enabled(*stream) || leftovers.has(*stream));
    Ok(streams)
}

fn summary(
    config: &Config,
    directory: &Directory,
    pair: Option<&Pair>,
    leftovers: &Leftovers,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let (ingest, spool, kafka) = (&config.ingest, &config.spool, &config.kafka);
    let scheme = if ingest.tls.is_some() { "https" } else { "http" };
    writeln!(out, "webhooks      {scheme}://{}{}", ingest.listen, ingest.path)?;
    if config.stream(Stream::Inbound).enabled {
        writeln!(
            out,
            "received mail {scheme}://{}{}",
            ingest.listen, ingest.inbound_path
        )?;
    }
    if let Some(tls) = &ingest.tls {
        let expiry = pair.map_or("can't be used".to_owned(), |pair| {
            format!("expires {}", pair.expires_at())
        });
        writeln!(out, "certificate   {}: {expiry}", shown_path(&tls.certificate))?;
    }
    writeln!(out, "credentials   {}", credentials(&ingest.auth))?;
    writeln!(out, "admin         http://{}/", config.admin.listen)?;
    writeln!(
        out,
        "spool         {}: {}",
        spool.dir.display(),
        directory.describe()
    )?;
    writeln!(
        out,
        "              {} for each stream, durable by {}",
        human::exact_size(spool.max_bytes),
        match spool.durability {
            Durability::Fsync => "fsync",
            Durability::PageCache => "page-cache",
        }
    )?;
    writeln!(
        out,
        "kafka         {}, {}",
        kafka.bootstrap_servers,
        match kafka.delivery {
            Delivery::ExactlyOnce => "exactly-once",
            Delivery::AtLeastOnce => "at-least-once",
        }
    )?;
    if !kafka.properties.is_empty() {
        let names: Vec<&str> = kafka.properties.keys().map(String::as_str).collect();
        writeln!(out, "              with {}", names.join(", "))?;
    }
    writeln!(out, "sender API    {}", sender_api(&config.sender_api))?;
    for stream in Stream::ALL {
        let settings = config.stream(stream);
        match settings.enabled {
            true => writeln!(out, "stream        {stream} -> topic {}", settings.topic)?,
            false if leftovers.has(stream) => writeln!(
                out,
                "stream        {stream} is disabled; what its log holds -> topic {}",
                settings.topic
            )?,
            false => writeln!(out, "stream        {stream} is disabled")?,
        }
    }
    Ok(())
}

/// What `reconcile` would ask.
fn sender_api(api: &SenderApi) -> String {
    let Some(account) = &api.account else {
        return "no user and key, so reconcile has nothing to ask".to_owned();
    };
    let names: Vec<&str> = api.server_compositions.iter().map(String::as_str).collect();
    let names = match names.as_slice() {
        [] => "no compositions".to_owned(),
        names => names.join(", "),
    };
    format!("{} as {}: {}", api.url, visible(&account.user), visible(&names))
}

fn credentials(auth: &Auth) -> String {
    let Auth::Credentials(credentials) = auth else {
        return "none: anybody may post".to_owned();
    };
    let kinds = [
        (CredentialKind::Bearer, "bearer"),
        (CredentialKind::Basic, "basic"),
        (CredentialKind::ApiKey, "api_key"),
    ];
    let counts: Vec<String> = kinds
        .into_iter()
        .map(|(kind, word)| {
            (
                credentials
                    .iter()
                    .filter(|credential| credential.kind == kind)
                    .count(),
                word,
            )
        })
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if counts.is_empty() {
        "none".to_owned()
    } else {
        counts.join(", ")
    }
}

fn enabled(config: &Config) -> impl Iterator<Item = Stream> + '_ {
    Stream::ALL
        .into_iter()
        .filter(|stream| config.stream(*stream).enabled)
}

/// Warnings about names from environment variables, which have no hyphens.
fn doubtful_zones(loaded: &Loaded) -> impl Iterator<Item = String> + '_ {
    let variable = "CMC_BRIDGE__INGEST__TIME_ZONES";
    loaded.settings.iter().filter_map(move |setting| {
        let Origin::Environment(origin) = &setting.origin else {
            return None;
        };
        let name = origin.strip_prefix(variable)?.strip_prefix("__")?;
        name.contains('_').then(|| {
            format!(
                "{}: a variable can't have a hyphen: if the webhooks' server_composition has one, set {variable}=name=zone",
                setting.key
            )
        })
    })
}

/// Warnings about events in logs that take no webhooks.
fn left_behind(config: &Config, leftovers: &Leftovers) -> Vec<String> {
    let of_disabled = leftovers.disabled.iter().map(|(stream, left)| {
        format!(
            "streams.{stream}.enabled: it is false, but the stream's log holds {left}: serve delivers what it can read of \
             them to topic {} and takes no webhooks for the stream",
            config.stream(*stream).topic
        )
    });
    let of_unknown = leftovers.unknown.iter().map(|(name, left)| {
        format!(
            "spool.dir: {} is the log of a stream that this version doesn't know, and holds {left}: only the version that \
             wrote it can deliver them",
            config.spool.dir.join(name).display()
        )
    });
    of_disabled.chain(of_unknown).collect()
}

fn warnings(config: &Config, directory: &Directory, pair: Option<&Pair>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Auth::Anonymous = config.ingest.auth {
        warnings.push(format!(
            "ingest.auth.allow_anonymous: anybody who reaches {} can post events",
            config.ingest.listen
        ));
    }
    if let Some(warning) = pair.and_then(Pair::warning) {
        warnings.push(format!(
            "ingest.tls.certificate: it {warning}, so clients will refuse it"
        ));
    }
    if config.spool.durability == Durability::PageCache {
        warnings.push(
            "spool.durability = \"page-cache\": a power cut or kernel crash loses webhooks that were answered 200"
                .to_owned(),
        );
    }
    match directory {
        Directory::Unusable(why) => {
            warnings.push(format!("spool.dir: {} {why}", config.spool.dir.display()));
        }
        Directory::Ready { free: Some(free) } => {
            let most = config
                .spool
                .max_bytes
                .saturating_mul(enabled(config).count() as u64);
            if most > *free {
                warnings.push(format!(
                    "spool.max_bytes: {} streams of {} may need more than the {} of free space",
                    enabled(config).count(),
                    human::exact_size(config.spool.max_bytes),
                    human::size(*free)
                ));
            }
        }
        Directory::Ready { free: None } | Directory::Creatable => {}
    }
    if !Stream::EVENTS
        .into_iter()
        .any(|stream| config.stream(stream).enabled)
    {
        warnings.push(
            "streams: no event stream is enabled, so every webhook of events is dead-lettered".to_owned(),
        );
    }
    let kafka = &config.kafka;
    if !kafka.create_topics && (kafka.topic_partitions.is_some() || kafka.topic_replication.is_some()) {
        warnings.push(
            "kafka.topic_partitions, kafka.topic_replication: no effect while kafka.create_topics is false"
                .to_owned(),
        );
    }
    if config.sender_api.account.is_some()
        && let Err(error) = crate::sender_api::SenderApi::new(&config.sender_api)
    {
        warnings.push(format!("{error}: reconcile would end with 64"));
    }
    warnings.extend(pem_faults(&kafka.properties));
    let mut by_topic: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for stream in enabled(config) {
        by_topic
            .entry(&config.stream(stream).topic)
            .or_default()
            .push(stream.name());
    }
    for (topic, streams) in by_topic.iter().filter(|(_, streams)| streams.len() > 1) {
        if streams.contains(&Stream::DeadLetters.name()) {
            warnings.push(format!(
                "streams: {} share the topic {topic}, so its consumers will read dead letters among the events",
                streams.join(", ")
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn check(variables: &[(&str, &str)]) -> (String, Result<(), Exit>) {
        let variables = variables
            .iter()
            .map(|(key, value)| (format!("CMC_BRIDGE__{key}"), (*value).to_owned()));
        let loaded = load(&[], variables).unwrap();
        let mut out = Vec::new();
        let result = run(&loaded, &mut out).map(|_| ());
        (String::from_utf8(out).unwrap(), result)
    }

    #[test]
    fn says_what_would_run() {
        let dir = tempfile::tempdir().unwrap();
        let (out, result) = check(&[
            ("SPOOL__DIR", dir.path().to_str().unwrap()),
            ("SPOOL__MAX_BYTES", "64MiB"),
            ("INGEST__AUTH__BEARER_TOKENS", "s3cr3t-1,s3cr3t-2"),
            ("INGEST__AUTH__BASIC", "cmc:s3cr3t"),
            ("KAFKA__PROPERTIES__SASL_PASSWORD", "s3cr3t"),
        ]);
        result.unwrap();
        for part in [
            "http://0.0.0.0:8080/webhooks/events",
            "2 bearer, 1 basic\n",
            "writable",
            "64 MiB for each stream, durable by fsync",
            "localhost:9092, exactly-once",
            "with sasl.password",
            "deliveries -> topic cmc.deliveries",
            "blocks is disabled",
            "dead_letters -> topic cmc.dead-letters",
            "sender API    no user and key",
            "is valid",
        ] {
            assert!(out.contains(part), "no {part:?} in\n{out}");
        }
        assert!(!out.contains("s3cr3t") && !out.contains("warning"), "{out}");
    }

    #[test]
    fn warns() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let marked = dir.path().join("ca.pem");
        std::fs::write(&marked, "\u{FEFF}-----BEGIN").unwrap();
        let cases: [(&[(&str, &str)], &str); 9] = [
            (
                &[
                    ("SENDER_API__USER", "reader"),
                    ("SENDER_API__KEY", "k"),
                    ("SENDER_API__CA_FILE", file.to_str().unwrap()),
                ],
                "sender_api.ca_file: ",
            ),
            (
                &[("INGEST__TIME_ZONES__TRANSACTIONAL_EMAIL", "UTC")],
                "ingest.time_zones.transactional_email: a variable can't have a hyphen",
            ),
            (
                &[("KAFKA__PROPERTIES__SSL_CA_LOCATION", marked.to_str().unwrap())],
                "ca.pem: it begins with a byte order mark",
            ),
            (&[], "ingest.auth.allow_anonymous: anybody"),
            (&[("SPOOL__DURABILITY", "page-cache")], "power cut"),
            (&[("SPOOL__DIR", file.to_str().unwrap())], "is not a directory"),
            (
                &[
                    ("SPOOL__DIR", dir.path().to_str().unwrap()),
                    ("SPOOL__MAX_BYTES", "900TiB"),
                ],
                "spool.max_bytes: 3 streams of 900 TiB",
            ),
            (&[("KAFKA__TOPIC_PARTITIONS", "6")], "no effect while"),
            (
                &[
                    ("STREAMS__DELIVERIES__ENABLED", "false"),
                    ("STREAMS__BOUNCES__ENABLED", "false"),
                ],
                "every webhook of events is dead-lettered",
            ),
        ];
        for (variables, warning) in cases {
            let mut variables = variables.to_vec();
            variables.push(("INGEST__AUTH__ALLOW_ANONYMOUS", "true"));
            let (out, result) = check(&variables);
            result.unwrap();
            let found = out
                .lines()
                .any(|line| line.starts_with("warning: ") && line.contains(warning));
            assert!(found, "no {warning:?} in\n{out}");
        }
    }

    #[test]
    fn warns_of_events_that_wait_where_no_webhook_goes() {
        let dir = tempfile::tempdir().unwrap();
        for log in ["blocks", "openings"] {
            std::fs::create_dir(dir.path().join(log)).unwrap();
            std::fs::write(dir.path().join(log).join("manifest"), "?").unwrap();
        }
        let variables = [
            ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
            ("SPOOL__DIR", dir.path().to_str().unwrap()),
        ];
        let (out, result) = check(&variables);
        result.unwrap();
        for part in [
            "blocks is disabled; what its log holds -> topic cmc.blocks\n",
            "warning: streams.blocks.enabled: it is false, but the stream's log holds an unknown number of events (",
            "openings is the log of a stream that this version doesn't know, and holds an unknown number",
        ] {
            assert!(out.contains(part), "no {part:?} in\n{out}");
        }
    }

    #[test]
    fn refuses_what_serve_refuses() {
        let (out, result) = check(&[]);
        assert!(
            out.contains("credentials   none\n") && !out.contains("is valid"),
            "{out}"
        );
        let exit = result.unwrap_err();
        assert_eq!(exit.code(), 78);
        for part in [
            "ingest.auth.bearer_tokens",
            "CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS",
        ] {
            assert!(exit.to_string().contains(part), "{exit}");
        }
    }

    #[test]
    fn the_certificate_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["tls.crt", "tls.key"].map(|name| dir.path().join(name));
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["bridge.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        let variables = [
            ("INGEST__AUTH__ALLOW_ANONYMOUS", "true"),
            ("INGEST__TLS__CERTIFICATE", certificate.to_str().unwrap()),
            ("INGEST__TLS__KEY", key.to_str().unwrap()),
        ];
        let (out, result) = check(&variables);
        result.unwrap();
        for part in [
            "webhooks      https://0.0.0.0:8080/webhooks/events\n",
            "tls.crt: expires 2021-01-01T00:00:00Z\n",
            "warning: ingest.tls.certificate: it expired at 2021-01-01T00:00:00Z",
        ] {
            assert!(out.contains(part), "no {part:?} in\n{out}");
        }
        std::fs::write(&key, "no key").unwrap();
        let (out, result) = check(&variables);
        assert!(
            out.contains("tls.crt: can't be used\n") && !out.contains("is valid"),
            "{out}"
        );
        let exit = result.unwrap_err();
        assert_eq!(exit.code(), 78);
        assert!(
            exit.to_string().contains("tls.key: holds no private key"),
            "{exit}"
        );
    }
}
