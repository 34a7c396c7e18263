//! `[kafka.properties]`: librdkafka's own names go to librdkafka, except those that the bridge sets itself.
//!
//! In the environment `_` stands for `.`. A secret can be given as a file too, under its name with `_file`.
//! Librdkafka is asked at once whether it takes each one: a misspelled name would block every lane later.

use std::{collections::BTreeMap, fs::File, io::Read};

use ::config::{Value, ValueKind};
use rdkafka::{ClientConfig, error::KafkaError};
use secrecy::{ExposeSecret, SecretString};

use super::{
    auth,
    problem::Origin,
    raw::Raw,
    source::{full_name, text_fault},
};

const KEY: &str = "kafka.properties";
const FILE_SUFFIX: &str = "_file";

/// The secrets that may be given as a file.
const SECRETS: &[&str] = &[
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.client.credentials.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
];

/// Properties that the bridge sets, and what to do instead.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("metadata.broker.list", "set kafka.bootstrap_servers"),
    (
        "transactional.id",
        "set kafka.id_prefix; each stream's lane has an id of its own",
    ),
    (
        "group.id",
        "set kafka.id_prefix; each stream's lane has a group of its own",
    ),
    (
        "group.instance.id",
        "leave it out: the bridge's groups have no members",
    ),
    ("transaction.timeout.ms", "set kafka.transaction_timeout"),
    ("message.max.bytes", "set kafka.max_record_bytes"),
    ("allow.auto.create.topics", "set kafka.create_topics"),
    ("log_level", "set log.level"),
    ("log.level", "set log.level"),
    (
        "log.queue",
        "leave it out: the bridge takes librdkafka's log lines itself",
    ),
    ("enable.idempotence", "leave it out: kafka.delivery needs it"),
    ("acks", "leave it out: kafka.delivery needs all"),
    ("request.required.acks", "leave it out: kafka.delivery needs all"),
    ("max.in.flight", "leave it out: the order of events depends on it"),
    (
        "max.in.flight.requests.per.connection",
        "leave it out: the order of events depends on it",
    ),
    ("retries", "leave it out: an event is sent until Kafka has it"),
    (
        "message.send.max.retries",
        "leave it out: an event is sent until Kafka has it",
    ),
    (
        "message.timeout.ms",
        "leave it out: events wait in the spool, without a limit",
    ),
    (
        "delivery.timeout.ms",
        "leave it out: events wait in the spool, without a limit",
    ),
    (
        "delivery.report.only.error",
        "leave it out: the bridge counts deliveries",
    ),
    (
        "enable.gapless.guarantee",
        "leave it out: the bridge makes a new producer after an error",
    ),
    (
        "queuing.strategy",
        "leave it out: the order of events depends on it",
    ),
    (
        "batch.num.messages",
        "leave it out: the bridge changes it to find a record that Kafka refuses",
    ),
    (
        "partitioner",
        "leave it out: it is murmur2_random, so that Java clients choose the same partitions",
    ),
    (
        "isolation.level",
        "leave it out: positions are read as read_committed",
    ),
    (
        "enable.auto.commit",
        "leave it out: positions move within transactions only",
    ),
    (
        "auto.commit.enable",
        "leave it out: positions move within transactions only",
    ),
    (
        "auto.commit.interval.ms",
        "leave it out: positions move within transactions only",
    ),
    (
        "enable.auto.offset.store",
        "leave it out: positions move within transactions only",
    ),
    ("auto.offset.reset", "leave it out: the bridge reads no records"),
];

/// The properties that name a file of PEM.
const PEM_FILES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
];

/// What is wrong with the files of PEM that these properties name, which librdkafka reads over or tells badly: one sentence
/// each. A file that can't be read is told by librdkafka.
pub fn pem_faults(properties: &BTreeMap<String, SecretString>) -> Vec<String> {
    let faults = PEM_FILES.iter().filter_map(|name| {
        let path = properties.get(*name)?.expose_secret();
        let mut first = Vec::new();
        let file = File::open(path).ok()?;
        file.take(4).read_to_end(&mut first).ok()?;
        let fault = text_fault(&first)?;
        Some(format!("kafka.properties: {name}: {path}: {fault}"))
    });
    faults.collect()
}

/// Whether a property's value must never be shown. Errs on the safe side for names it does not know.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if let Some(base) = name.strip_suffix(FILE_SUFFIX)
        && SECRETS.contains(&base)
    {
        return false;
    }
    let telling = [
        "password",
        "passphrase",
        "secret",
        "key.pem",
        "token",
        "oauthbearer.config",
    ];
    SECRETS.contains(&name.as_str())
        || telling.iter().any(|part| name.contains(part)) && name != "sasl.oauthbearer.token.endpoint.url"
}

/// `sasl_password_file` → `sasl.password_file`, `sasl_password` → `sasl.password`.
pub(super) fn name_from_environment(name: &str) -> String {
    let dotted = name.replace('_', ".");
    match dotted.strip_suffix(".file") {
        Some(base) if SECRETS.contains(&base) => format!("{base}{FILE_SUFFIX}"),
        _ => dotted,
    }
}

/// The properties for librdkafka, secrets read from their files.
pub(super) fn properties(raw: &mut Raw) -> BTreeMap<String, SecretString> {
    let members = raw.members(KEY);
    let mut properties = BTreeMap::new();
    for (name, value) in &members {
        let key = full_name(KEY, Some(name));
        let origin = Origin::of(value);
        if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| owned == name) {
            raw.problem_at(key, origin, "is set by the bridge itself", *instead);
            continue;
        }
        let text = match property_text(name, value) {
            Ok(text) => text,
            Err((what, fix)) => {
                raw.problem_at(key, origin, what, fix);
                continue;
            }
        };
        let (name, text) = match name.strip_suffix(FILE_SUFFIX) {
            Some(base) if SECRETS.contains(&base) => {
                if let Some(other) = members.get(base) {
                    let what = format!("{base} is given as a value too ({})", Origin::of(other));
                    raw.problem_at(key, origin, what, "keep the value or the file");
                    continue;
                }
                match auth::read_secret(text.trim().as_ref()) {
                    Ok(secret) => (base, secret),
                    Err((what, fix)) => {
                        raw.problem_at(key, origin, what, fix);
                        continue;
                    }
                }
            }
            Some(_) => {
                let fix = format!("{FILE_SUFFIX} goes with {}", SECRETS.join(", "));
                raw.problem_at(key, origin, "can't be given as a file", fix);
                continue;
            }
            None => (name.as_str(), text),
        };
        if SECRETS.contains(&name) && text.is_empty() {
            raw.problem_at(
                key,
                origin,
                "is an empty secret",
                "give the secret, or leave the key out",
            );
            continue;
        }
        if let Some(what) = refusal(name, &text) {
            let fix = "see the list of librdkafka's properties, CONFIGURATION.md";
            raw.problem_at(key, origin, what, fix);
            continue;
        }
        properties.insert(name.to_owned(), SecretString::from(text));
    }
    properties
}

/// What librdkafka has against a property, if it doesn't take it.
fn refusal(name: &str, value: &str) -> Option<String> {
    let error = ClientConfig::new()
        .set(name, value)
        .create_native_config()
        .err()?;
    Some(match error {
        // The error's own text shows the value.
        KafkaError::ClientConfig(_, what, ..) if !is_secret(name) || !what.contains(value) => {
            format!("is refused by librdkafka: {}", what.trim_end())
        }
        _ => "is refused by librdkafka".to_owned(),
    })
}

/// A property's value as librdkafka takes it.
fn property_text(name: &str, value: &Value) -> Result<String, (&'static str, &'static str)> {
    match &value.kind {
        ValueKind::String(text) if text.contains('\0') => {
            Err(("contains a NUL character", "librdkafka takes text without NUL"))
        }
        ValueKind::String(text) => Ok(text.clone()),
        // An unquoted secret may not be what it looks like: 0x10 is 16.
        ValueKind::Boolean(_) | ValueKind::I64(_) | ValueKind::Float(_) if !is_secret(name) => {
            Ok(value.kind.to_string())
        }
        _ => Err(("is not text", "put the value in quotes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_environment() {
        let names = [
            ("sasl_password", "sasl.password"),
            ("sasl_password_file", "sasl.password_file"),
            ("ssl_key_pem_file", "ssl.key.pem_file"),
            (
                "sasl_oauthbearer_assertion_file",
                "sasl.oauthbearer.assertion.file",
            ),
            ("socket_keepalive_enable", "socket.keepalive.enable"),
        ];
        for (variable, name) in names {
            assert_eq!(name_from_environment(variable), name);
        }
    }

    #[test]
    fn secrets_are_known_by_name() {
        for secret in SECRETS {
            assert!(is_secret(secret), "{secret}");
            assert!(!is_secret(&format!("{secret}_file")), "{secret}");
        }
        assert!(is_secret("SASL.Password"));
        assert!(is_secret("sasl.oauthbearer.config"));
        assert!(is_secret("some.future.secret"));
        for open in [
            "sasl.username",
            "ssl.ca.location",
            "ssl.key.location",
            "linger.ms",
            "client.id",
        ] {
            assert!(!is_secret(open), "{open}");
        }
    }
}
