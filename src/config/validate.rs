//! Turns merged values into the validated types, and checks that they fit together. [`super::keys`] says what each key may hold.

use std::net::SocketAddr;

use super::{
    auth,
    files::read_secret,
    parse, properties,
    raw::Raw,
    types::{
        Admin, ApiAccount, Config, Delivery, Ingest, Kafka, LogConfig, LogFormat, SenderApi, Shutdown,
        SpoolConfig, StreamConfig, TlsConfig,
    },
};
use crate::{
    batch,
    cmc::{self, MailContent},
    human,
    spool::Durability,
    stream::Stream,
};

const MIB: u64 = 1 << 20;

/// Reads every section; `None` only with a problem noted.
pub(super) fn config(raw: &mut Raw) -> Option<Config> {
    raw.refuse_faults();
    let ingest = ingest(raw);
    let admin = admin(raw);
    let spool = spool(raw);
    let kafka = kafka(raw);
    let streams = Stream::ALL.map(|stream| stream_config(raw, stream));
    let sender_api = sender_api(raw);
    let mail_content = raw.choice(
        "streams.inbound.content",
        &[
            ("all", MailContent::All),
            ("no-attachments", MailContent::NoAttachments),
            ("envelope", MailContent::Envelope),
        ],
    );
    let shutdown = shutdown(raw);
    let log = log(raw);
    let (ingest, admin, spool) = (ingest?, admin?, spool?);
    if let Some(kafka) = &kafka {
        refuse_too_little_for_a_webhook(raw, &ingest, &spool, kafka);
        if streams[Stream::Inbound.index()]
            .as_ref()
            .is_some_and(|stream| stream.enabled)
        {
            refuse_too_little_for_a_mail(raw, &ingest, &spool, kafka);
        }
    }
    refuse_shared_listener(raw, ingest.listen, admin.listen);
    let [
        Some(deliveries),
        Some(bounces),
        Some(blocks),
        Some(inbound),
        Some(dead_letters),
    ] = streams
    else {
        return None;
    };
    Some(Config {
        ingest,
        admin,
        spool,
        kafka: kafka?,
        streams: [deliveries, bounces, blocks, inbound, dead_letters],
        mail_content: mail_content?,
        sender_api: sender_api?,
        shutdown: shutdown?,
        log: log?,
    })
}

/// Refuses limits under which a webhook within `ingest.max_body_bytes` and `ingest.max_events` has no room even if nothing else takes
/// any: it would be answered 503 for ever.
fn refuse_too_little_for_a_webhook(raw: &mut Raw, ingest: &Ingest, spool: &SpoolConfig, kafka: &Kafka) {
    let stored = batch::most_bytes(ingest.max_body_bytes, ingest.max_events, kafka.max_record_bytes);
    let what = format!(
        "one webhook may need: a body of {} with {} events (ingest.max_body_bytes, ingest.max_events)",
        human::exact_size(ingest.max_body_bytes as u64),
        ingest.max_events
    );
    refuse_less_than(raw, ingest, spool, ingest.max_body_bytes, stored, &what);
}

/// The same for a received mail within `ingest.inbound_max_body_bytes`.
fn refuse_too_little_for_a_mail(raw: &mut Raw, ingest: &Ingest, spool: &SpoolConfig, kafka: &Kafka) {
    let body = ingest.inbound_max_body_bytes;
    let stored = cmc::most_bytes_of_mail(body, kafka.max_record_bytes);
    let what = format!(
        "one received mail may need: a body of {} (ingest.inbound_max_body_bytes)",
        human::exact_size(body as u64)
    );
    refuse_less_than(raw, ingest, spool, body, stored, &what);
}

/// Refuses limits that leave no room for a body of this size that becomes `stored` bytes in the spool.
fn refuse_less_than(
    raw: &mut Raw,
    ingest: &Ingest,
    spool: &SpoolConfig,
    body: usize,
    stored: usize,
    need: &str,
) {
    // The segment in use counts as a whole, even when all of it is delivered: it is trimmed only after another one has begun. It
    // holds `spool.segment_bytes`, or one larger batch.
    let stored_bytes = stored as u64;
    let in_spool = (stored_bytes + stored_bytes.max(spool.segment_bytes)).max(4 * body as u64);
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
            let what = format!("is less than {need}");
            let least = human::exact_size(needed.next_multiple_of(MIB));
            raw.problem(key, what, format!("give at least {least}, or lower one of those"));
        }
    }
}

fn refuse_shared_listener(raw: &mut Raw, ingest: SocketAddr, admin: SocketAddr) {
    let overlap = ingest.ip() == admin.ip() || ingest.ip().is_unspecified() || admin.ip().is_unspecified();
    if overlap && ingest.port() == admin.port() && admin.port() != 0 {
        let what = format!("{admin} is taken by ingest.listen ({ingest})");
        raw.problem("admin.listen", what, "give webhooks and metrics a port each");
    }
}

fn ingest(raw: &mut Raw) -> Option<Ingest> {
    let auth = auth::auth(raw);
    let tls = tls(raw);
    let path = raw.text("ingest.path")?.trim_end_matches('/').to_owned();
    let health_path = raw.text("ingest.health_path")?.trim_end_matches('/').to_owned();
    if health_path == path {
        let fix = "give another path, such as /healthz, or \"\" for none";
        raw.problem("ingest.health_path", "is the path of webhooks (ingest.path)", fix);
    }
    let inbound_path = raw.text("ingest.inbound_path")?.trim_end_matches('/').to_owned();
    for (taken, key) in [(&path, "ingest.path"), (&health_path, "ingest.health_path")] {
        if *taken == inbound_path {
            let what = format!("is the path of {key}");
            raw.problem(
                "ingest.inbound_path",
                what,
                "give another path, such as /webhooks/inbound",
            );
        }
    }
    let time_zones = raw
        .entries("ingest.time_zones")
        .filter_map(|(composition, value)| Some((composition.to_owned(), parse::time_zone(&value.kind)?)))
        .collect();
    let (auth, credential_files) = auth?;
    Some(Ingest {
        listen: raw.get("ingest.listen", parse::address)?,
        path,
        health_path: Some(health_path).filter(|path| !path.is_empty()),
        auth,
        credential_files,
        max_body_bytes: raw.number("ingest.max_body_bytes")?,
        inbound_path,
        inbound_max_body_bytes: raw.number("ingest.inbound_max_body_bytes")?,
        max_events: raw.number("ingest.max_events")?,
        time_zone: raw.get("ingest.time_zone", parse::time_zone)?,
        time_zones,
        malformed_status: raw.get("ingest.malformed_status", parse::status)?,
        repeat_window: match raw.choice("ingest.repeats", &[("keep", false), ("drop", true)])? {
            true => Some(raw.get("ingest.repeat_window", parse::duration)?),
            false => None,
        },
        max_connections: raw.number("ingest.max_connections")?,
        max_bytes_in_flight: raw.number("ingest.max_bytes_in_flight")?,
        header_timeout: raw.get("ingest.header_timeout", parse::duration)?,
        body_timeout: raw.get("ingest.body_timeout", parse::duration)?,
        idle_timeout: raw.get("ingest.idle_timeout", parse::duration)?,
        append_timeout: raw.get("ingest.append_timeout", parse::duration)?,
        retry_after: raw.get("ingest.retry_after", parse::duration)?,
        tls: tls?,
    })
}

/// `Some(None)` is plain HTTP.
fn tls(raw: &mut Raw) -> Option<Option<TlsConfig>> {
    let [certificate_key, key_key] = ["ingest.tls.certificate", "ingest.tls.key"];
    let (missing, given) = match (raw.file(certificate_key), raw.file(key_key)) {
        (None, None) => return Some(None),
        (Some(certificate), Some(key)) => {
            return Some(Some(TlsConfig {
                certificate,
                key,
                reload: raw.get("ingest.tls.reload", parse::duration)?,
            }));
        }
        (Some(_), None) => (key_key, certificate_key),
        (None, Some(_)) => (certificate_key, key_key),
    };
    let what = format!("is not set, but {given} is ({})", raw.origin(given));
    raw.problem(missing, what, "give both files, or none for plain HTTP");
    None
}

fn admin(raw: &Raw) -> Option<Admin> {
    Some(Admin {
        listen: raw.get("admin.listen", parse::address)?,
    })
}

fn spool(raw: &mut Raw) -> Option<SpoolConfig> {
    let (max_bytes, segment_bytes) = (raw.number("spool.max_bytes"), raw.number("spool.segment_bytes"));
    if let (Some(max_bytes), Some(segment_bytes)) = (max_bytes, segment_bytes)
        && max_bytes < 4 * segment_bytes
    {
        let (segment, least) = (
            human::exact_size(segment_bytes),
            human::exact_size(4 * segment_bytes),
        );
        raw.problem(
            "spool.max_bytes",
            format!("is less than four segments of spool.segment_bytes ({segment})"),
            format!("give at least {least}, or lower spool.segment_bytes"),
        );
    }
    Some(SpoolConfig {
        dir: raw.text("spool.dir")?.into(),
        max_bytes: max_bytes?,
        segment_bytes: segment_bytes?,
        durability: raw.choice(
            "spool.durability",
            &[
                ("fsync", Durability::Fsync),
                ("page-cache", Durability::PageCache),
            ],
        )?,
    })
}

fn kafka(raw: &mut Raw) -> Option<Kafka> {
    let properties = properties::properties(raw);
    Some(Kafka {
        bootstrap_servers: raw.get("kafka.bootstrap_servers", parse::list)?.join(","),
        delivery: raw.choice(
            "kafka.delivery",
            &[
                ("exactly-once", Delivery::ExactlyOnce),
                ("at-least-once", Delivery::AtLeastOnce),
            ],
        )?,
        create_topics: raw.get("kafka.create_topics", parse::boolean)?,
        topic_partitions: Some(raw.number("kafka.topic_partitions")?).filter(|partitions| *partitions > 0),
        topic_replication: Some(raw.number("kafka.topic_replication")?)
            .filter(|replication| *replication > 0),
        id_prefix: raw.text("kafka.id_prefix")?,
        max_record_bytes: raw.number("kafka.max_record_bytes")?,
        transaction_events: raw.number("kafka.transaction_events")?,
        transaction_bytes: raw.number("kafka.transaction_bytes")?,
        transaction_timeout: raw.get("kafka.transaction_timeout", parse::duration)?,
        commit_interval: raw.get("kafka.commit_interval", parse::duration)?,
        properties,
    })
}

fn stream_config(raw: &mut Raw, stream: Stream) -> Option<StreamConfig> {
    let enabled_key = format!("streams.{stream}.enabled");
    let enabled = raw.get(&enabled_key, parse::boolean)?;
    if stream == Stream::DeadLetters && !enabled {
        raw.problem(
            &enabled_key,
            "dead letters can't be disabled: what can't be understood would vanish",
            "leave it true; streams.dead_letters.topic may be a topic with short retention",
        );
    }
    Some(StreamConfig {
        enabled,
        topic: raw.text(&format!("streams.{stream}.topic"))?,
    })
}

fn sender_api(raw: &mut Raw) -> Option<SenderApi> {
    let account = api_account(raw);
    let names = "sender_api.server_compositions";
    let server_compositions = raw.get(names, parse::list)?;
    if server_compositions.iter().any(|name| name.trim().is_empty()) {
        raw.problem(names, "has an empty name", "take it out");
        return None;
    }
    Some(SenderApi {
        url: raw.text("sender_api.url")?.trim_end_matches('/').to_owned(),
        account: account?,
        ca_file: raw.file("sender_api.ca_file"),
        server_compositions,
        pause: raw.get("sender_api.pause", parse::duration)?,
        timeout: raw.get("sender_api.timeout", parse::duration)?,
    })
}

/// `Some(None)` is no account.
fn api_account(raw: &mut Raw) -> Option<Option<ApiAccount>> {
    let [user_key, key_key, file_key] = ["sender_api.user", "sender_api.key", "sender_api.key_file"];
    let user = raw.text(user_key)?;
    let value = raw.text(key_key)?;
    let (key_key, key) = match raw.file(file_key) {
        None => (key_key, value),
        Some(_) if !value.is_empty() => {
            let what = format!("{key_key} is given too ({})", raw.origin(key_key));
            raw.problem(file_key, what, "keep the value or the file");
            return None;
        }
        Some(path) => match read_secret(&path) {
            Ok(key) => (file_key, key),
            Err((what, fix)) => {
                raw.problem(file_key, what, fix);
                return None;
            }
        },
    };
    match (user.is_empty(), key.is_empty()) {
        (true, true) => Some(None),
        (false, false) => Some(Some(ApiAccount {
            user,
            key: key.into(),
        })),
        (true, false) => {
            raw.problem(
                user_key,
                format!("is not set, but {key_key} is"),
                "give the API user that the key belongs to",
            );
            None
        }
        (false, true) => {
            raw.problem(
                key_key,
                format!("is not set, but {user_key} is"),
                "give the user's key, or the file that holds it",
            );
            None
        }
    }
}

fn shutdown(raw: &Raw) -> Option<Shutdown> {
    Some(Shutdown {
        lame_duck: raw.get("shutdown.lame_duck", parse::duration)?,
        grace: raw.get("shutdown.grace", parse::duration)?,
    })
}

fn log(raw: &Raw) -> Option<LogConfig> {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Some(LogConfig {
        format: raw.choice("log.format", &formats)?,
        level: raw.text("log.level")?,
    })
}
