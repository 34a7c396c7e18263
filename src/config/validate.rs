//! From merged values to the validated types: ranges, forms, and what must fit together.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, time::Duration};

use jiff::tz::TimeZone;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{
    Admin, Config, Delivery, Ingest, Kafka, Log, LogFormat, Shutdown, Spool, StreamConfig, Tls, auth, parse,
    problem::Origin, properties, raw::Raw, source::full_name,
};
use crate::{batch, spool::Durability, stream::Stream};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Times that a client or the disk may take.
const WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Reads every section; `None` only with a problem noted.
pub(super) fn config(raw: &mut Raw) -> Option<Config> {
    let ingest = ingest(raw);
    let admin = admin(raw);
    let spool = spool(raw);
    let kafka = kafka(raw);
    let streams = Stream::ALL.map(|stream| stream_config(raw, stream));
    let shutdown = shutdown(raw);
    let log = log(raw);
    let (ingest, admin, spool) = (ingest?, admin?, spool?);
    if let Some(kafka) = &kafka {
        refuse_too_little_for_a_webhook(raw, &ingest, &spool, kafka);
    }
    refuse_shared_listener(raw, ingest.listen, admin.listen);
    let [Some(deliveries), Some(bounces), Some(blocks), Some(dead_letters)] = streams else {
        return None;
    };
    Some(Config {
        ingest,
        admin,
        spool,
        kafka: kafka?,
        streams: [deliveries, bounces, blocks, dead_letters],
        shutdown: shutdown?,
        log: log?,
    })
}

/// A webhook within `ingest.max_body_bytes` and `ingest.max_events` must have room when nothing else is in the way: else it
/// would be answered 503 for ever.
fn refuse_too_little_for_a_webhook(raw: &mut Raw, ingest: &Ingest, spool: &Spool, kafka: &Kafka) {
    let stored = batch::most_bytes(ingest.max_body_bytes, ingest.max_events, kafka.max_record_bytes);
    // The segment in use counts as a whole, also when all of it is delivered: it goes only when another one is begun. It holds
    // `spool.segment_bytes`, or one batch that is larger.
    let stored_bytes = stored as u64;
    let in_spool =
        (stored_bytes + stored_bytes.max(spool.segment_bytes)).max(4 * ingest.max_body_bytes as u64);
    let needs = [
        (
            "ingest.max_bytes_in_flight",
            ingest.max_bytes_in_flight as u64,
            batch::most_allocated(stored) as u64,
        ),
        ("spool.max_bytes", spool.max_bytes, in_spool),
    ];
    for (key, given, needed) in needs {
        if given < needed {
            let what = format!(
                "is less than one webhook may need: a body of {} with {} events (ingest.max_body_bytes, ingest.max_events)",
                parse::human_size(ingest.max_body_bytes as u64),
                ingest.max_events
            );
            let least = parse::human_size(needed.next_multiple_of(MIB));
            raw.problem(key, what, format!("give at least {least}, or lower one of those"));
        }
    }
}

fn ingest(raw: &mut Raw) -> Option<Ingest> {
    let listen = listen(raw, "ingest.listen");
    let path = webhooks_path(raw);
    let health_path = health_path(raw, path.as_deref());
    let auth = auth::auth(raw);
    let max_body_bytes = raw.size::<usize>("ingest.max_body_bytes", KIB..=GIB);
    let max_events = raw.number("ingest.max_events", 1..=1_000_000);
    let time_zone = raw.text("ingest.time_zone").and_then(|name| {
        let zone = TimeZone::get(&name).ok();
        if zone.is_none() {
            raw.problem("ingest.time_zone", not_a_zone(&name), ZONE_FIX);
        }
        zone
    });
    let time_zones = time_zones(raw);
    let malformed_status = malformed_status(raw);
    let max_connections = raw.number("ingest.max_connections", 1..=1_000_000);
    let max_bytes_in_flight = raw.size::<usize>("ingest.max_bytes_in_flight", MIB..=TIB);
    let header_timeout = raw.duration("ingest.header_timeout", WAIT);
    let body_timeout = raw.duration("ingest.body_timeout", WAIT);
    let idle_timeout = raw.duration("ingest.idle_timeout", WAIT);
    let append_timeout = raw.duration("ingest.append_timeout", WAIT);
    let retry_after = retry_after(raw);
    let tls = tls(raw);
    let (auth, credential_files) = auth?;
    Some(Ingest {
        listen: listen?,
        path: path?,
        health_path: health_path?,
        auth,
        credential_files,
        max_body_bytes: max_body_bytes?,
        max_events: max_events?,
        time_zone: time_zone?,
        time_zones,
        malformed_status: malformed_status?,
        max_connections: max_connections?,
        max_bytes_in_flight: max_bytes_in_flight?,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        idle_timeout: idle_timeout?,
        append_timeout: append_timeout?,
        retry_after: retry_after?,
        tls: tls?,
    })
}

fn listen(raw: &mut Raw, key: &str) -> Option<SocketAddr> {
    raw.parsed(
        key,
        "an address",
        "give an IP address and a port, such as 0.0.0.0:8080 or [::]:8080",
        |kind| parse::text(kind)?.trim().parse().ok(),
    )
}

fn refuse_shared_listener(raw: &mut Raw, ingest: SocketAddr, admin: SocketAddr) {
    let overlap = ingest.ip() == admin.ip() || ingest.ip().is_unspecified() || admin.ip().is_unspecified();
    if overlap && ingest.port() == admin.port() && admin.port() != 0 {
        let what = format!("{admin} is taken by ingest.listen ({ingest})");
        raw.problem("admin.listen", what, "give webhooks and metrics a port each");
    }
}

/// `Some(None)` is no path.
fn health_path(raw: &mut Raw, of_webhooks: Option<&str>) -> Option<Option<String>> {
    const KEY: &str = "ingest.health_path";
    if raw.text(KEY)?.is_empty() {
        return Some(None);
    }
    let path = path(raw, KEY, ("health checks", "/healthz"), |_| false)?;
    if Some(path.as_str()) == of_webhooks {
        let fix = "give another path, such as /healthz, or \"\" for none";
        raw.problem(KEY, "is the path of webhooks (ingest.path)", fix);
    }
    Some(Some(path))
}

/// Paths that probes ask on some port: a request for one must not be a webhook.
const PROBED: [&str; 6] = [
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/status",
    "/status.json",
];

/// The path of the webhooks.
fn webhooks_path(raw: &mut Raw) -> Option<String> {
    let purpose = ("webhooks", "/webhooks/events");
    path(raw, "ingest.path", purpose, |path| PROBED.contains(&path))
}

/// A path of the webhooks' port, for a purpose with an example. Requests are compared with it byte by byte, so it must be what
/// every client sends for it: no other spelling of the same path (RFC 3986, 6.2), and nothing that a client or a proxy takes
/// out or changes.
fn path(
    raw: &mut Raw,
    key: &str,
    (purpose, example): (&str, &str),
    is_taken: impl Fn(&str) -> bool,
) -> Option<String> {
    let text = raw.text(key)?;
    let path = text.trim_end_matches('/');
    let taken = || {
        let fault = (
            "it is one of those of probes and metrics".to_owned(),
            "give another one".to_owned(),
        );
        is_taken(path).then_some(fault)
    };
    if let Some((what, fix)) = path_fault(path).or_else(taken) {
        let what = format!("{} is not a path for {purpose}: {what}", parse::quoted(&text));
        raw.problem(key, what, format!("{fix}, such as {example}"));
        return None;
    }
    Some(path.to_owned())
}

/// Why no request can have this path (without slashes at its end), and what to do.
fn path_fault(path: &str) -> Option<(String, String)> {
    let fault = |what: &str, fix: &str| Some((what.to_owned(), fix.to_owned()));
    if !path.starts_with('/') {
        let fix = "give a path other than /, without query";
        return fault("it must begin with / and go on", fix);
    }
    if path.contains(['?', '#']) {
        let fix = "give a path other than /, without query or fragment";
        return fault(
            "it has a query or a fragment, and requests with any query are taken",
            fix,
        );
    }
    if path.len() > MAX_PATH {
        return fault("it is too long", &format!("give up to {MAX_PATH} bytes"));
    }
    if let Some(c) = path.chars().find(|c| !is_of_paths(*c)) {
        let fix = "take it out or percent-encode it";
        return fault(&format!("no path has {c:?} in it"), fix);
    }
    for (at, _) in path.match_indices('%') {
        let code = path.get(at..at + 3).unwrap_or_default();
        let digits = code
            .get(1..)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return fault("it has a % without two hexadecimal digits", "write %25 for a %");
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            let c = char::from(byte);
            let what = format!("{code:?} stands for {c:?}, which clients write as it is");
            return fault(&what, &format!("write {c:?}"));
        }
        if code != code.to_ascii_uppercase() {
            let what = format!("clients write {code:?} in upper case");
            return fault(&what, "write it in upper case");
        }
    }
    let mut segments = path[1..].split('/');
    if segments.clone().any(str::is_empty) {
        return fault(
            "it has an empty segment, which proxies take out",
            "write one / between segments",
        );
    }
    if segments.any(|segment| [".", ".."].contains(&segment)) {
        return fault("it has a segment of dots, which clients resolve", "take it out");
    }
    None
}

/// Longer ones come near the limit of a request's header.
const MAX_PATH: usize = 1000;

/// The characters that a path may have (RFC 3986, 3.3): others are sent encoded, or refused.
fn is_of_paths(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%/".contains(c)
}

const ZONE_FIX: &str = "give a name of the IANA time zone database, such as Asia/Tokyo or UTC";

fn not_a_zone(name: &str) -> String {
    format!("{} is not a time zone", parse::quoted(name))
}

fn time_zones(raw: &mut Raw) -> BTreeMap<String, TimeZone> {
    const KEY: &str = "ingest.time_zones";
    let mut zones = BTreeMap::new();
    for (composition, value) in raw.members(KEY) {
        match parse::text(&value.kind).and_then(|name| TimeZone::get(name.trim()).ok()) {
            Some(zone) => {
                zones.insert(composition, zone);
            }
            None => {
                let key = full_name(KEY, Some(&composition));
                let what = format!("{} is not a time zone", parse::shown(&value));
                raw.problem_at(key, Origin::of(&value), what, ZONE_FIX);
            }
        }
    }
    zones
}

fn malformed_status(raw: &mut Raw) -> Option<u16> {
    raw.parsed(
        "ingest.malformed_status",
        "a status for malformed webhooks",
        "give 200 to 202, or 400 to 499",
        |kind| {
            parse::number(kind)
                .filter(|status| (200..=202).contains(status) || (400..500).contains(status))
                .and_then(|status| u16::try_from(status).ok())
        },
    )
}

fn retry_after(raw: &mut Raw) -> Option<Duration> {
    const KEY: &str = "ingest.retry_after";
    let duration = raw.duration(KEY, Duration::from_secs(1)..=Duration::from_secs(3600))?;
    if duration.subsec_nanos() != 0 {
        raw.problem(
            KEY,
            "is no whole number of seconds",
            "give whole seconds, as the header Retry-After needs",
        );
        return None;
    }
    Some(duration)
}

/// `Some(None)` is plain HTTP.
fn tls(raw: &mut Raw) -> Option<Option<Tls>> {
    let [certificate_key, key_key] = ["ingest.tls.certificate", "ingest.tls.key"];
    let certificate = raw.file(certificate_key);
    let key = raw.file(key_key);
    let reload = raw.duration(
        "ingest.tls.reload",
        Duration::from_millis(100)..=Duration::from_secs(24 * 3600),
    )?;
    let (missing, given) = match (certificate, key) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => {
            return Some(Some(Tls {
                certificate,
                key,
                reload,
            }));
        }
        (Some(_), None) => (key_key, certificate_key),
        (None, Some(_)) => (certificate_key, key_key),
    };
    let what = format!("is not set, but {given} is ({})", raw.origin(given));
    raw.problem(missing, what, "give both files, or none for plain HTTP");
    None
}

fn admin(raw: &mut Raw) -> Option<Admin> {
    Some(Admin {
        listen: listen(raw, "admin.listen")?,
    })
}

fn spool(raw: &mut Raw) -> Option<Spool> {
    let dir = raw.text("spool.dir");
    let max_bytes = raw.size("spool.max_bytes", 256 * KIB..=1024 * TIB);
    let segment_bytes = raw.size("spool.segment_bytes", 64 * KIB..=GIB);
    let durability = raw.choice(
        "spool.durability",
        &[
            ("fsync", Durability::Fsync),
            ("page-cache", Durability::PageCache),
        ],
    );
    if let (Some(max), Some(segment)) = (max_bytes, segment_bytes)
        && max < 4 * segment
    {
        raw.problem(
            "spool.max_bytes",
            format!(
                "is less than four segments of spool.segment_bytes ({})",
                parse::human_size(segment)
            ),
            format!(
                "give at least {}, or lower spool.segment_bytes",
                parse::human_size(4 * segment)
            ),
        );
    }
    Some(Spool {
        dir: dir?.into(),
        max_bytes: max_bytes?,
        segment_bytes: segment_bytes?,
        durability: durability?,
    })
}

fn kafka(raw: &mut Raw) -> Option<Kafka> {
    let bootstrap_servers = bootstrap_servers(raw);
    let delivery = delivery(raw);
    let create_topics = raw.boolean("kafka.create_topics");
    let topic_partitions = raw.number::<u32>("kafka.topic_partitions", 0..=1_000_000);
    let topic_replication = raw.number::<u16>("kafka.topic_replication", 0..=1000);
    let id_prefix = id_prefix(raw);
    let max_record_bytes = raw.size("kafka.max_record_bytes", KIB..=1_000_000_000);
    let transaction_events = raw.number("kafka.transaction_events", 1..=1_000_000);
    let transaction_bytes = raw.size("kafka.transaction_bytes", 64 * KIB..=GIB);
    let transaction_timeout = raw.duration(
        "kafka.transaction_timeout",
        Duration::from_secs(1)..=Duration::from_secs(900),
    );
    let properties = properties::properties(raw);
    Some(Kafka {
        bootstrap_servers: bootstrap_servers?,
        delivery: delivery?,
        create_topics: create_topics?,
        topic_partitions: Some(topic_partitions?).filter(|partitions| *partitions > 0),
        topic_replication: Some(topic_replication?).filter(|replication| *replication > 0),
        id_prefix: id_prefix?,
        max_record_bytes: max_record_bytes?,
        transaction_events: transaction_events?,
        transaction_bytes: transaction_bytes?,
        transaction_timeout: transaction_timeout?,
        properties,
    })
}

fn bootstrap_servers(raw: &mut Raw) -> Option<String> {
    const KEY: &str = "kafka.bootstrap_servers";
    let servers = raw.list(KEY)?;
    let wrong = servers.iter().find(|server| !is_server(server));
    let what = match wrong {
        Some(server) => format!("{} is not a broker's address", parse::quoted(server)),
        None if servers.is_empty() => "is empty".to_owned(),
        None => return Some(servers.join(",")),
    };
    raw.problem(KEY, what, "give host:port, several with commas");
    None
}

/// `host:port` or `[v6]:port`, no white space.
fn is_server(server: &str) -> bool {
    let Some((host, port)) = server.rsplit_once(':') else {
        return false;
    };
    !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn delivery(raw: &mut Raw) -> Option<Delivery> {
    const KEY: &str = "kafka.delivery";
    raw.choice(
        KEY,
        &[
            ("exactly-once", Delivery::ExactlyOnce),
            ("at-least-once", Delivery::AtLeastOnce),
        ],
    )
}

/// Whether Kafka's letters are the only ones: they do for topics, ids and groups.
fn has_kafka_letters(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn id_prefix(raw: &mut Raw) -> Option<String> {
    const KEY: &str = "kafka.id_prefix";
    let prefix = raw.text(KEY)?;
    if prefix.len() <= 100 && has_kafka_letters(&prefix) {
        return Some(prefix);
    }
    let what = format!("{} is not a prefix for ids", parse::quoted(&prefix));
    raw.problem(KEY, what, "give up to 100 of A-Z, a-z, 0-9, '.', '_', '-'");
    None
}

fn stream_config(raw: &mut Raw, stream: Stream) -> Option<StreamConfig> {
    let (enabled_key, topic_key) = (
        format!("streams.{stream}.enabled"),
        format!("streams.{stream}.topic"),
    );
    let enabled = raw.boolean(&enabled_key);
    if stream == Stream::DeadLetters && enabled == Some(false) {
        raw.problem(
            &enabled_key,
            "dead letters can't be disabled: what can't be understood would vanish",
            "leave it true; streams.dead_letters.topic may be a topic with short retention",
        );
    }
    let topic = raw.text(&topic_key);
    if let Some(topic) = &topic
        && !(topic.len() <= 249 && has_kafka_letters(topic) && topic != "." && topic != "..")
    {
        let what = format!("{} is not a topic's name", parse::quoted(topic));
        raw.problem(
            &topic_key,
            what,
            "Kafka takes up to 249 of A-Z, a-z, 0-9, '.', '_', '-'",
        );
    }
    Some(StreamConfig {
        enabled: enabled?,
        topic: topic?,
    })
}

fn shutdown(raw: &mut Raw) -> Option<Shutdown> {
    let range = Duration::ZERO..=Duration::from_secs(3600);
    let lame_duck = raw.duration("shutdown.lame_duck", range.clone());
    let grace = raw.duration("shutdown.grace", range);
    Some(Shutdown {
        lame_duck: lame_duck?,
        grace: grace?,
    })
}

fn log(raw: &mut Raw) -> Option<Log> {
    let format = raw.choice(
        "log.format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
    );
    let level = raw.text("log.level");
    if let Some(level) = &level
        && !is_filter(level)
    {
        let what = format!("{} is not a log filter", parse::quoted(level));
        let fix = "give off, error, warn, info, debug or trace, parts with target=level: info,cmc_bridge::lane=debug";
        raw.problem("log.level", what, fix);
    }
    Some(Log {
        format: format?,
        level: level?,
    })
}

/// Whether it is a filter. A lone word must be a level: `tracing` would take a mistyped one for a target, and silence
/// everything else.
fn is_filter(filter: &str) -> bool {
    let plain_words = |part: &str| part.contains(['=', '[', ':']) || part.parse::<LevelFilter>().is_ok();
    filter.split(',').all(|part| plain_words(part.trim())) && EnvFilter::builder().parse(filter).is_ok()
}
