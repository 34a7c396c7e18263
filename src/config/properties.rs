//! `[kafka.properties]`: librdkafka's own names go to librdkafka, except those that the bridge sets itself.
//!
//! In the environment `_` stands for `.`. A secret can be given as a file too, under its name with `_file`.
//! Each property is given to librdkafka at once to be checked: a misspelled name would block every lane later.

use std::{collections::BTreeMap, fs::File, io::Read};

use ::config::{Value, ValueKind};
use rdkafka::{ClientConfig, error::KafkaError};
use secrecy::{ExposeSecret, SecretString};

use super::{
    files::{read_secret, shown_path, text_fault},
    keys::entry_name,
    problem::{Fault, Origin, fault},
    raw::Raw,
    types::Kafka,
};

const KEY: &str = "kafka.properties";
const FILE_SUFFIX: &str = "_file";

/// The secrets that may be given as a file.
pub(super) const SECRETS: &[&str] = &[
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
        "leave it out: the bridge logs librdkafka's lines itself",
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
    (
        "auto.offset.reset",
        "leave it out: the bridge's readers choose where they begin",
    ),
];

/// Second names of properties, with the name that the bridge uses. librdkafka would take whichever is set last.
const ALIASES: &[(&str, &str)] = &[
    ("compression.codec", "compression.type"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("sasl.mechanisms", "sasl.mechanism"),
    (
        "sasl.oauthbearer.client.credentials.client.id",
        "sasl.oauthbearer.client.id",
    ),
    (
        "sasl.oauthbearer.client.credentials.client.secret",
        "sasl.oauthbearer.client.secret",
    ),
];

/// The properties that name a PEM file.
const PEM_FILES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "https.ca.location",
];

/// Faults in the PEM files that these properties name which librdkafka ignores or reports unclearly: one sentence each. Librdkafka
/// itself reports a file that can't be read.
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

/// Properties whose texts may be shown.
const OPEN: &[&str] = &[
    "broker.address.family",
    "broker.version.fallback",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.type",
    "debug",
    "metadata.recovery.strategy",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.credentials.client.id",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.grant.type",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.username",
    "security.protocol",
    "ssl.cipher.suites",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.engine.id",
    "ssl.providers",
    "ssl.sigalgs.list",
    "topic.blacklist",
];

/// The endings of names whose values are numbers, true or false. Such values may be shown.
const NUMBERS: &[&str] = &[
    ".bytes",
    ".close",
    ".disable",
    ".enable",
    ".fails",
    ".kbytes",
    ".level",
    ".max",
    ".messages",
    ".min",
    ".ms",
    ".name",
    ".relogin",
    ".request",
    ".seed",
    ".size",
    ".sparse",
    ".ttl",
    ".verification",
    "enable.sasl.oauthbearer.unsecure.jwt",
];

/// The endings of names whose values are files.
const FILES: &[&str] = &[".location", ".keytab", ".file", FILE_SUFFIX];

/// How much of a property's value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Openness {
    Open,
    /// Only the part that names an existing file.
    FileName,
    Secret,
}

/// How much of a property may be shown. If its name is in no list, nothing: librdkafka has secrets under many names, and later
/// versions may have more.
pub(super) fn openness(name: &str, value: &Value) -> Openness {
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let is_number = match &value.kind {
        ValueKind::String(text) => text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok(),
        ValueKind::Boolean(_) | ValueKind::I64(_) | ValueKind::Float(_) => true,
        _ => false,
    };
    // A user and password, or a token in a query, may be a part of the address.
    let is_bare_url = matches!(&value.kind, ValueKind::String(text) if !text.contains(['@', '?', '#']));
    if OPEN.contains(&name)
        || ends(NUMBERS) && is_number
        || name == "sasl.oauthbearer.token.endpoint.url" && is_bare_url
    {
        Openness::Open
    } else if ends(FILES) {
        Openness::FileName
    } else {
        Openness::Secret
    }
}

impl Kafka {
    /// The values of properties that no message may show.
    pub fn unshown(&self) -> Vec<SecretString> {
        let is_unshown = |(name, value): &(&String, &SecretString)| {
            let text = value.expose_secret();
            match openness(name, &Value::new(None, text)) {
                Openness::Open => false,
                Openness::FileName => shown_path(text.as_ref()) != text,
                Openness::Secret => true,
            }
        };
        let unshown = self.properties.iter().filter(is_unshown);
        unshown.map(|(_, value)| value.clone()).collect()
    }
}

/// Whether a property is a secret by its name. A secret must be given as text: unquoted it may not be what it looks like.
fn is_secret(name: &str) -> bool {
    let telling = ["password", "passphrase", "secret", ".pem", "token", "config"];
    SECRETS.contains(&name) || telling.iter().any(|part| name.contains(part))
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
    let mut properties = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, value) in raw.entries(KEY) {
        let other = |name: &str| raw.entries(KEY).find(|(other, _)| *other == name);
        match property(name, value, |name| {
            other(name).map(|(_, value)| Origin::of(value))
        }) {
            Ok((name, text)) => {
                properties.insert(name.to_owned(), SecretString::from(text));
            }
            Err(fault) => faults.push((entry_name(KEY, name), Origin::of(value), fault)),
        }
    }
    if asks_for_tokens_of_nobody(&properties)
        && let Some((name, value)) = raw
            .entries(KEY)
            .find(|(name, _)| matches!(*name, "sasl.mechanism" | "sasl.mechanisms"))
    {
        let fix = "set sasl.oauthbearer.method to oidc, with the token endpoint and the client (docs/kafka-security.md)";
        let fault = fault("OAUTHBEARER needs a source of tokens", fix);
        faults.push((entry_name(KEY, name), Origin::of(value), fault));
    }
    for (key, origin, (what, fix)) in faults {
        raw.problem_at(key, origin, what, fix);
    }
    properties
}

/// Whether these properties ask for OAUTHBEARER and name no source of tokens: no client would ever log in.
fn asks_for_tokens_of_nobody(properties: &BTreeMap<String, SecretString>) -> bool {
    let is = |name: &str, value: &str| {
        let given = properties.get(name).map(ExposeSecret::expose_secret);
        given.is_some_and(|given| given.eq_ignore_ascii_case(value))
    };
    is("sasl.mechanism", "OAUTHBEARER")
        && !is("sasl.oauthbearer.method", "oidc")
        && !is("enable.sasl.oauthbearer.unsecure.jwt", "true")
}

/// One property by its first name and its text; `given` says where a property was given, if it was.
fn property<'n>(
    name: &'n str,
    value: &Value,
    given: impl Fn(&str) -> Option<Origin>,
) -> Result<(&'n str, String), Fault> {
    if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| *owned == name) {
        return Err(fault("is set by the bridge itself", *instead));
    }
    let text = property_text(name, value)?;
    let (name, text) = match name.strip_suffix(FILE_SUFFIX) {
        Some(base) if SECRETS.contains(&base) => {
            if let Some(origin) = given(base) {
                let what = format!("{base} is given as a value too ({origin})");
                return Err(fault(what, "keep the value or the file"));
            }
            (base, read_secret(text.trim().as_ref())?)
        }
        Some(_) => {
            let fix = format!("{FILE_SUFFIX} goes with {}", SECRETS.join(", "));
            return Err(fault("can't be given as a file", fix));
        }
        None => (name, text),
    };
    if SECRETS.contains(&name) && text.is_empty() {
        return Err(fault(
            "is an empty secret",
            "give the secret, or leave the key out",
        ));
    }
    if let Some(what) = refusal(name, &text, openness(name, value)) {
        return Err(fault(
            what,
            "see the list of librdkafka's properties, CONFIGURATION.md",
        ));
    }
    let Some((_, first)) = ALIASES.iter().find(|(alias, _)| *alias == name) else {
        return Ok((name, text));
    };
    let first_given = given(first).or_else(|| given(&format!("{first}{FILE_SUFFIX}")));
    match first_given {
        Some(origin) => Err(fault(
            format!("is another name of {first}, which is given too ({origin})"),
            "keep one of them",
        )),
        None => Ok((first, text)),
    }
}

/// Why librdkafka refuses a property, if it does.
fn refusal(name: &str, value: &str, openness: Openness) -> Option<String> {
    // Librdkafka's messages quote the value, or the beginning of a long one.
    let beginning: String = value.chars().take(4).collect();
    let error = ClientConfig::new()
        .set(name, value)
        .create_native_config()
        .err()?;
    Some(match error {
        KafkaError::ClientConfig(_, what, ..) if openness == Openness::Open || !what.contains(&beginning) => {
            format!("is refused by librdkafka: {}", what.trim_end())
        }
        _ => "is refused by librdkafka".to_owned(),
    })
}

/// A property's value as text for librdkafka.
fn property_text(name: &str, value: &Value) -> Result<String, Fault> {
    match &value.kind {
        ValueKind::String(text) if text.contains('\0') => Err(fault(
            "contains a NUL character",
            "librdkafka takes text without NUL",
        )),
        ValueKind::String(text) => Ok(text.clone()),
        // An unquoted secret may not be what it looks like: 0x10 is 16.
        ValueKind::Boolean(_) | ValueKind::I64(_) | ValueKind::Float(_) if !is_secret(name) => {
            Ok(value.kind.to_string())
        }
        _ => Err(fault("is not text", "put the value in quotes")),
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
}
