//! Explains librdkafka's errors to the operator: the reason for the metric, the cause, and the cure.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::{config::ClientConfig, error::KafkaError, types::RDKafkaErrorCode as Code};
use secrecy::{ExposeSecret, SecretString};

use super::broker::{BlockReason, BrokerError, Refusal};
use crate::config;

/// The names that an error message may need.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub topic: &'a str,
    /// Also the transactional id.
    pub group: &'a str,
    pub kafka: &'a config::Kafka,
}

/// An older report of a client explains nothing.
const RECENT: Duration = Duration::from_secs(60);

/// The last error that a client reported on its own. Calls often say only "timed out", and this says why.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, Code, String)>>);

impl LastError {
    /// Takes a report of the client.
    pub fn set(&self, code: Code, text: &str) {
        let mut last = self.0.lock();
        let follows = last.as_ref().is_some_and(|(when, _, said)| {
            // "All brokers down" follows each failure of a broker and says less. Without a new token, brokers refuse the old one.
            let says_less = code == Code::AllBrokersDown
                || code == Code::Authentication && said.starts_with(TOKEN) && !text.starts_with(TOKEN);
            says_less && when.elapsed() < RECENT
        });
        if !follows {
            *last = Some((Instant::now(), code, text.to_owned()));
        }
    }

    /// Forgets the report: what it said has been dealt with.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    /// The report, if it is recent.
    pub fn get(&self) -> Option<(Code, String)> {
        let last = self.0.lock();
        let (when, code, text) = last.as_ref()?;
        (when.elapsed() < RECENT).then(|| (*code, text.clone()))
    }

    /// Whether the last report has this code and is no older than `age`.
    pub fn is(&self, code: Code, age: Duration) -> bool {
        let last = self.0.lock();
        last.as_ref()
            .is_some_and(|(when, last, _)| *last == code && when.elapsed() <= age)
    }
}

/// The code of an error. rdkafka's own function leaves out one kind.
fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    }
}

/// Explains an error that occurred while `doing` something.
pub fn explain(error: &KafkaError, doing: &str, names: &Names<'_>, last: &LastError) -> BrokerError {
    let code = code_of(error);
    let (mut text, mut found) = match error {
        // Display shows only the code. The string has the broker's words.
        KafkaError::Transaction(error) => (error.string(), None),
        // Display also shows the value, which is a secret when a secret's name is misspelt.
        KafkaError::ClientConfig(_, what, _, _) => (what.clone(), Some(misconfigured(what))),
        KafkaError::ClientCreation(what) => (what.clone(), Some(misconfigured(what))),
        _ => (error.to_string(), None),
    };
    if let KafkaError::MessageConsumption(code) = error {
        // The words name the batch, which the code does not. Neither names the topic.
        if let Some((_, words)) = last.get().filter(|(told, _)| told == code) {
            found = unreadable(*code, &words, names);
            text = words;
        }
        text = format!("{}: {text}", names.topic);
        let log = "Look at the log of the broker that leads its partition";
        found = found
            .or_else(|| known(*code, names))
            .or_else(|| Some((BlockReason::Other, log.to_owned())));
    }
    found = found.or_else(|| known(code?, names));
    let vague = matches!(
        code,
        Some(
            Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::MessageTimedOut
                | Code::BrokerTransportFailure
                | Code::AllBrokersDown
        )
    );
    let cause = last.get();
    if vague && cause.is_none() && uses_tokens(names.kafka) {
        found = Some(no_token_yet(names));
    }
    if vague && let Some((code, cause)) = cause {
        // OpenSSL's errors after the handshake are reported as failures of the transport.
        found = match cause.split_once(TOKEN) {
            Some((_, why)) => Some(token(why)),
            None if cause.contains("SSL routines") => Some(tls(&cause)),
            None => known(code, names).or(found),
        };
        if let (Some((BlockReason::Connect, advice)), Some(address)) = (&mut found, advertised(&cause)) {
            *advice = format!(
                "The cluster advertises this broker as {address} (its advertised.listeners): check that it runs and can be \
                 reached from here under that address, and that security.protocol matches this listener"
            );
        }
        text = format!("{text}; before that: {cause}");
    }
    text.truncate(text.trim_end_matches('.').len());
    // OpenSSL names the files that properties name.
    text = redact(&text, &names.kafka.unshown());
    let (reason, advice) = found.unwrap_or((BlockReason::Transaction, String::new()));
    BrokerError {
        reason,
        cause: format!("cannot {doing}: {text}"),
        cure: advice,
    }
}

/// The text without these values.
pub fn redact(text: &str, unshown: &[SecretString]) -> String {
    let values = unshown.iter().map(ExposeSecret::expose_secret);
    values.fold(text.to_owned(), |text, value| hide(&text, value))
}

/// The text without this value. An error may contain only its beginning.
fn hide(text: &str, value: &str) -> String {
    const TELLING: usize = 8;
    let beginning: String = value.chars().take(TELLING).collect();
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&beginning).filter(|_| !beginning.is_empty()) {
        let (before, found) = rest.split_at(at);
        let same = found.chars().zip(value.chars()).take_while(|(a, b)| a == b);
        let len = same.map(|(c, _)| c.len_utf8()).sum();
        shown.push_str(before);
        shown.push_str("<redacted>");
        rest = &found[len..];
    }
    shown + rest
}

/// Explains why a topic could not be created.
pub fn explain_creation(error: &KafkaError, names: &Names<'_>, last: &LastError) -> BrokerError {
    let topic = names.topic;
    let explained = explain(error, &format!("create topic {topic}"), names, last);
    match code_of(error) {
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => BrokerError {
            reason: BlockReason::Authorization,
            cause: format!("cannot create topic {topic}: {error}"),
            cure: "Grant the bridge's user CREATE on it, or create it and set kafka.create_topics = false"
                .into(),
        },
        // The topic was looked up just before.
        Some(Code::OperationTimedOut) if last.get().is_none() => BrokerError {
            reason: BlockReason::Connect,
            cause: format!("cannot create topic {topic}: {error}"),
            cure: format!(
                "The brokers at {} answer, but the cluster's controller does not: check that the \
                 address that each broker advertises (its advertised.listeners) can be reached from here",
                names.kafka.bootstrap_servers
            ),
        },
        _ => explained,
    }
}

/// The broker's address in a client's message, if the cluster gave that address. `…/bootstrap` marks one of the
/// configuration.
fn advertised(said: &str) -> Option<&str> {
    let (name, rest) = said.split_once(": ")?;
    let address = if name.ends_with("Coordinator") {
        rest.split_once(": ")?.0
    } else {
        let (address, id) = name.rsplit_once('/')?;
        id.parse::<i32>().ok()?;
        address
    };
    Some(address.rsplit_once("//").map_or(address, |(_, address)| address))
}

/// What to correct in `[kafka.properties]`, from librdkafka's words.
fn misconfigured(what: &str) -> (BlockReason, String) {
    let advice = if what.contains("SASL mechanism") {
        "Set sasl.mechanism under [kafka.properties] to one that this build supports: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or \
         OAUTHBEARER. docs/kafka-security.md says what to use in place of IAM and Kerberos"
    } else {
        "Correct the property under [kafka.properties], or the file that it names"
    };
    (BlockReason::Other, advice.to_owned())
}

/// What to correct about TLS, from OpenSSL's words.
fn tls(what: &str) -> (BlockReason, String) {
    let advice = if what.contains("verify failed") {
        "Check that ssl.ca.location has the CA of the broker's certificate (without it, the system's CAs are trusted), and \
         that the certificate is for the name or address in kafka.bootstrap_servers and advertised.listeners"
    } else if what.contains("alert") {
        "The broker wants a client certificate, or another one: check ssl.certificate.location and ssl.key.location"
    } else {
        "Check that the broker's port speaks TLS (security.protocol), and ssl.ca.location"
    };
    (BlockReason::Authentication, advice.to_owned())
}

/// What librdkafka says before the reason for which it has no token.
const TOKEN: &str = "Failed to acquire SASL OAUTHBEARER token: ";

/// What to look at if neither the token endpoint nor a broker has reported an error. An endpoint that is slow, or that is busy and
/// asked again, reports none in time; without a token no broker is asked.
fn no_token_yet(names: &Names<'_>) -> (BlockReason, String) {
    let advice = format!(
        "Check that the token endpoint (sasl.oauthbearer.token.endpoint.url) gives a token within seconds: nothing is sent to the \
         brokers before that. If it does, check that the brokers at {} answer",
        names.kafka.bootstrap_servers
    );
    (BlockReason::Connect, advice)
}

/// What to correct about a token, from the words of the token endpoint (a body), of curl or of librdkafka.
fn token(why: &str) -> (BlockReason, String) {
    use BlockReason::{Authentication, Connect};
    let is_body = why.trim_start().starts_with(['{', '<']);
    let in_body = |parts: &[&str]| is_body && parts.iter().any(|part| why.contains(part));
    let has = |parts: &[&str]| !is_body && parts.iter().any(|part| why.contains(part));
    let (reason, advice) = if in_body(&["invalid_scope"]) {
        (
            Authentication,
            "Check sasl.oauthbearer.scope under [kafka.properties]: the token endpoint refuses this scope",
        )
    } else if in_body(&["invalid_client", "unauthorized_client", "access_denied"]) {
        (
            Authentication,
            "Check sasl.oauthbearer.client.id and sasl.oauthbearer.client.secret under [kafka.properties]: the token endpoint \
             refuses this client or its secret",
        )
    } else if has(&["unexpired token"]) {
        (
            Authentication,
            "The token endpoint gives tokens that have already expired: compare its clock with this machine's",
        )
    } else if has(&[
        "SSL certificate",
        "certificate verify failed",
        "trust anchors",
        "subject name",
    ]) {
        (
            Authentication,
            "Check that https.ca.location under [kafka.properties] has the CA of the token endpoint's certificate (without it, the \
             system's CAs are trusted), and that the certificate is for the name in sasl.oauthbearer.token.endpoint.url",
        )
    } else if has(&["SSL routines"]) && !has(&["unexpected eof"]) {
        (
            Connect,
            "Check that the port in sasl.oauthbearer.token.endpoint.url speaks TLS 1.2 or 1.3 and wants no client certificate. The \
             brokers are not the cause",
        )
    } else if has(&[
        "onnect",
        "resolve",
        "timed out",
        "timeout",
        "reset",
        "closed",
        "Empty reply",
        "SYSCALL",
        "unexpected eof",
        "roxy",
        "Send failure",
        "Recv failure",
    ]) {
        (
            Connect,
            "Check that the token endpoint (sasl.oauthbearer.token.endpoint.url) runs and can be reached from here (an https_proxy in \
             the environment counts). The brokers are not the cause",
        )
    } else {
        (
            Authentication,
            "Check the properties sasl.oauthbearer.… under [kafka.properties], and the log of the token endpoint",
        )
    };
    (reason, advice.to_owned())
}

/// What to do about a batch that can't be read, from librdkafka's words.
fn unreadable(code: Code, what: &str, names: &Names<'_>) -> Option<(BlockReason, String)> {
    let topic = names.topic;
    let advice = match code {
        Code::NotImplemented if what.contains("codec") => format!(
            "Topic {topic} holds records compressed by {}, which this build can't read; it reads {}. Read them with another \
             consumer, or let the topic's producers or its compression.type use one of these",
            codec(what),
            codecs().join(", ")
        ),
        Code::NotImplemented => {
            format!("Topic {topic} holds records in a newer format than this build knows: upgrade cmc-bridge")
        }
        Code::MessageSizeTooLarge | Code::BadMessage if what.contains("receive.message.max.bytes") => {
            "Raise receive.message.max.bytes under [kafka.properties]".to_owned()
        }
        Code::BadMessage | Code::BadCompression | Code::InvalidMessage => format!(
            "A batch of topic {topic} is damaged on its leader. If another replica is whole, make that one the leader; otherwise \
             move the topic's beginning past the batch with kafka-delete-records.sh"
        ),
        _ => return None,
    };
    Some((BlockReason::Other, advice))
}

/// The codecs that this build of librdkafka can read.
pub fn codecs() -> Vec<&'static str> {
    let features = ClientConfig::new()
        .create_native_config()
        .and_then(|config| config.get("builtin.features"))
        .unwrap_or_default();
    let known = ["gzip", "snappy", "lz4", "zstd"].into_iter();
    known
        .filter(|codec| features.split(',').any(|feature| feature.trim() == *codec))
        .collect()
}

/// The codec that librdkafka names by its number: `Decompression (codec 0x4) of message at …`.
fn codec(what: &str) -> String {
    let number = what.split_once("codec 0x").map_or("", |(_, rest)| rest);
    let number = number.split(|c: char| !c.is_ascii_hexdigit()).next();
    match number.unwrap_or_default() {
        "1" => "gzip".to_owned(),
        "2" => "snappy".to_owned(),
        "3" => "lz4".to_owned(),
        "4" => "zstd".to_owned(),
        number => format!("codec {number}"),
    }
}

/// The refusal that a delivery error stands for, if any.
pub fn refusal(code: Code) -> Option<Refusal> {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Some(Refusal::TooLarge),
        Code::InvalidRecord => Some(Refusal::Invalid),
        _ => None,
    }
}

/// Whether an error only follows from an earlier one: a record that was given up, or a call that is no longer possible.
pub fn is_consequence(code: Code) -> bool {
    matches!(
        code,
        Code::State
            | Code::Fatal
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::GaplessGuarantee
            | Code::InvalidDifferentRecord
    )
}

/// Whether clients log in with tokens.
fn uses_tokens(kafka: &config::Kafka) -> bool {
    let mechanism = kafka.properties.get("sasl.mechanism");
    mechanism.is_some_and(|mechanism| mechanism.expose_secret().eq_ignore_ascii_case("OAUTHBEARER"))
}

fn known(code: Code, names: &Names<'_>) -> Option<(BlockReason, String)> {
    let Names {
        topic,
        group,
        kafka: config::Kafka {
            bootstrap_servers, ..
        },
    } = names;
    Some(match code {
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::OperationTimedOut => (
            BlockReason::Connect,
            format!(
                "Check that the brokers at {bootstrap_servers} run and can be reached from here \
                 (kafka.bootstrap_servers), and that security.protocol matches their listener"
            ),
        ),
        Code::SSL => tls(""),
        Code::Authentication | Code::SaslAuthenticationFailed if uses_tokens(names.kafka) => (
            BlockReason::Authentication,
            "The broker refuses the token: compare what it expects (its sasl.oauthbearer.expected.issuer, \
             sasl.oauthbearer.expected.audience and keys) with the token that the endpoint gives, and the clocks of both"
                .into(),
        ),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => (
            BlockReason::Authentication,
            "Check security.protocol, sasl.mechanism, sasl.username and sasl.password under [kafka.properties]".into(),
        ),
        Code::TopicAuthorizationFailed => (
            BlockReason::Authorization,
            format!("Grant the bridge's user WRITE and READ on topic {topic} (and on the dead-letter topic), and CREATE with kafka.create_topics"),
        ),
        Code::GroupAuthorizationFailed => (
            BlockReason::Authorization,
            format!("Grant the bridge's user READ on consumer group {group}, best with the prefix kafka.id_prefix"),
        ),
        Code::ClusterAuthorizationFailed => (
            BlockReason::Authorization,
            "Grant the bridge's user IDEMPOTENT_WRITE on the cluster (brokers before 2.8 require it), and CREATE with \
             kafka.create_topics"
                .into(),
        ),
        Code::TransactionalIdAuthorizationFailed => (
            BlockReason::Authorization,
            format!("Grant the bridge's user WRITE on transactional id {group}, best with the prefix kafka.id_prefix"),
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => (
            BlockReason::TopicMissing,
            format!("Create topic {topic}, or set kafka.create_topics = true"),
        ),
        Code::InvalidTopic | Code::PolicyViolation => (
            BlockReason::TopicInvalid,
            format!("Check the settings of topic {topic}"),
        ),
        Code::InvalidTimestamp => (
            BlockReason::TopicInvalid,
            format!(
                "Compare this machine's clock with those of the brokers: they differ by more than topic {topic} allows \
                 (message.timestamp.before.max.ms, message.timestamp.after.max.ms)"
            ),
        ),
        Code::InvalidPartitions | Code::InvalidReplicationFactor => (
            BlockReason::TopicInvalid,
            "Check kafka.topic_partitions and kafka.topic_replication against the number of brokers".into(),
        ),
        Code::InvalidTransactionTimeout => (
            BlockReason::TopicInvalid,
            "Lower kafka.transaction_timeout to the broker's transaction.max.timeout.ms or below".into(),
        ),
        Code::Fenced
        | Code::InvalidProducerEpoch
        | Code::ProducerFenced
        | Code::TransactionCoordinatorFenced
        | Code::InvalidProducerIdMapping => (
            BlockReason::Fenced,
            "A transaction took too long, or another copy of this spool directory is being delivered".into(),
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    fn names() -> Names<'static> {
        static KAFKA: LazyLock<config::Kafka> = LazyLock::new(|| {
            let secret = ("ssl.key.password".to_owned(), "hunter2-and-more".into());
            config::Kafka {
                bootstrap_servers: "kafka:9092".into(),
                properties: [secret].into(),
                ..config::Kafka::for_tests()
            }
        });
        Names {
            topic: "cmc.bounces",
            group: "cmc-bridge.bounces.x",
            kafka: &KAFKA,
        }
    }

    #[test]
    fn what_must_not_be_shown_is_in_no_message() {
        for (text, shown) in [
            ("fopen('hunter2-and-more','r')", "fopen('<redacted>','r')"),
            ("cut off: hunter2-and", "cut off: <redacted>"),
            ("hunter2-", "<redacted>"),
            ("hunter2", "hunter2"),
        ] {
            let error = KafkaError::ClientCreation(text.to_owned());
            let error = explain(&error, "make a Kafka client", &names(), &LastError::default());
            assert!(error.to_string().contains(shown), "{error}");
            assert!(!error.to_string().contains("hunter2-"), "{error}");
        }
    }

    #[test]
    fn errors_name_cause_and_cure() {
        for (code, reason, cure) in [
            (
                Code::TopicAuthorizationFailed,
                BlockReason::Authorization,
                "READ on topic cmc.bounces",
            ),
            (
                Code::GroupAuthorizationFailed,
                BlockReason::Authorization,
                "group cmc-bridge.bounces.x",
            ),
            (
                Code::UnknownTopicOrPartition,
                BlockReason::TopicMissing,
                "kafka.create_topics",
            ),
            (Code::Fenced, BlockReason::Fenced, "another copy"),
            (Code::BrokerTransportFailure, BlockReason::Connect, "kafka:9092"),
        ] {
            let error = explain(
                &KafkaError::MessageProduction(code),
                "send",
                &names(),
                &LastError::default(),
            );
            assert_eq!(error.reason, reason, "{error}");
            assert!(error.to_string().contains(cure), "{error}");
        }
    }

    #[test]
    fn a_missing_token_names_the_endpoint_and_not_the_brokers() {
        let connect = BlockReason::Connect;
        let authentication = BlockReason::Authentication;
        for (why, reason, cure) in [
            (r#"{"error":"invalid_client"}"#, authentication, "client.secret"),
            (
                r#"{"error":"invalid_scope"}"#,
                authentication,
                "oauthbearer.scope",
            ),
            (
                "Must supply an unexpired token: now=2ms, exp=1ms",
                authentication,
                "its clock",
            ),
            (
                "SSL certificate problem: unable to get local issuer certificate",
                authentication,
                "https.ca.location",
            ),
            (
                "error:0A000086:SSL routines::certificate verify failed",
                authentication,
                "https.ca.location",
            ),
            (
                "Failed to connect to 127.0.0.1 port 1 after 0 ms",
                connect,
                "token endpoint",
            ),
            ("Empty reply from server", connect, "can be reached"),
            (
                "OpenSSL SSL_read: error:0A000126:SSL routines::unexpected eof while reading, errno 0",
                connect,
                "can be reached",
            ),
            (
                "OpenSSL SSL_connect: Connection reset by peer in connection to 127.0.0.1:1",
                connect,
                "can be reached",
            ),
            (
                "TLS connect error: error:0A00010B:SSL routines::wrong version number",
                connect,
                "speaks TLS",
            ),
            (
                "SSL: no alternative certificate subject name matches target host name 'localhost'",
                authentication,
                "https.ca.location",
            ),
            (
                r#"{"error":"invalid_request","error_description":"Connection timed out: no certificate"}"#,
                authentication,
                "log of the token endpoint",
            ),
            (
                "Could not resolve host: login.example.com",
                connect,
                "token endpoint",
            ),
            (
                "<html>Not found</html>",
                authentication,
                "log of the token endpoint",
            ),
        ] {
            let last = LastError::default();
            last.set(Code::Authentication, &format!("{TOKEN}{why}"));
            let error = KafkaError::MessageProduction(Code::OperationTimedOut);
            let error = explain(&error, "send", &names(), &last);
            let text = error.to_string();
            assert_eq!(error.reason, reason, "{text}");
            assert!(text.contains(cure) && text.contains(why), "{text}");
            assert!(!text.contains("kafka:9092"), "{text}");
        }
    }

    fn with_tokens() -> config::Kafka {
        let mechanism = ("sasl.mechanism".to_owned(), "OAUTHBEARER".into());
        config::Kafka {
            bootstrap_servers: "kafka:9092".into(),
            properties: [mechanism].into(),
            ..config::Kafka::for_tests()
        }
    }

    #[test]
    fn while_neither_endpoint_nor_broker_says_anything_both_are_named() {
        let kafka = with_tokens();
        let names = Names {
            kafka: &kafka,
            ..names()
        };
        let error = KafkaError::MetadataFetch(Code::OperationTimedOut);
        let error = explain(&error, "look up the topic", &names, &LastError::default());
        assert_eq!(error.reason, BlockReason::Connect, "{error}");
        let endpoint = error.cure.find("token.endpoint.url");
        assert!(
            endpoint.is_some() && endpoint < error.cure.find("kafka:9092"),
            "{error}"
        );
    }

    #[test]
    fn a_broker_that_refuses_the_old_token_is_not_the_cause() {
        let kafka = with_tokens();
        let names = Names {
            kafka: &kafka,
            ..names()
        };
        let last = LastError::default();
        let refused = "sasl_ssl://kafka:9092/1: SASL authentication error: {\"status\":\"invalid_token\"}";
        let timed_out = || KafkaError::MessageProduction(Code::OperationTimedOut);
        last.set(Code::Authentication, &format!("{TOKEN}Empty reply from server"));
        last.set(Code::Authentication, refused);
        let error = explain(&timed_out(), "send", &names, &last);
        assert!(error.cure.contains("The brokers are not the cause"), "{error}");
        let last = LastError::default();
        last.set(Code::Authentication, refused);
        let error = explain(&timed_out(), "send", &names, &last);
        assert!(error.cure.contains("The broker refuses the token"), "{error}");
    }

    #[test]
    fn a_batch_that_can_not_be_read_is_named_with_its_codec() {
        for (code, words, parts) in [
            (
                Code::NotImplemented,
                "Decompression (codec 0x4) of message at 17 of 210 bytes failed: Local: Not implemented",
                [
                    "at 17",
                    "cmc.bounces",
                    "compressed by zstd",
                    "it reads gzip, snappy, lz4",
                ],
            ),
            (
                Code::NotImplemented,
                "Unsupported Message(Set) MagicByte 3 at offset 17",
                ["at offset 17", "cmc.bounces", "newer format", "upgrade"],
            ),
            (
                Code::BadMessage,
                "MessageSet at offset 17 (210 bytes) failed CRC32C check (original 0x1 != calculated 0x2)",
                [
                    "at offset 17",
                    "cmc.bounces",
                    "damaged",
                    "kafka-delete-records.sh",
                ],
            ),
            (
                Code::BadMessage,
                "Receive failed: Invalid response size 200 (0..100): increase receive.message.max.bytes",
                [
                    "size 200",
                    "Raise receive.message.max.bytes",
                    "[kafka.properties]",
                    "",
                ],
            ),
        ] {
            let last = LastError::default();
            last.set(code, words);
            let error = KafkaError::MessageConsumption(code);
            let error = explain(&error, "read the topic", &names(), &last);
            assert_eq!(error.reason, BlockReason::Other, "{error}");
            for part in parts {
                assert!(error.to_string().contains(part), "{error}");
            }
            // Words about something else explain nothing.
            last.set(Code::BrokerTransportFailure, "Disconnected");
            let error = KafkaError::MessageConsumption(code);
            let error = explain(&error, "read the topic", &names(), &last);
            assert!(!error.to_string().contains("Disconnected"), "{error}");
        }
    }

    #[test]
    fn an_answer_to_the_creation_of_a_topic_is_explained() {
        let error = KafkaError::AdminOp(Code::TopicAuthorizationFailed);
        let error = explain_creation(&error, &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Authorization, "{error}");
        assert!(error.to_string().contains("CREATE"), "{error}");
        let error = KafkaError::AdminOp(Code::OperationTimedOut);
        let error = explain_creation(&error, &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Connect, "{error}");
        assert!(error.to_string().contains("advertised.listeners"), "{error}");
    }

    #[test]
    fn a_property_that_librdkafka_refuses_is_named() {
        let last = LastError::default();
        last.set(Code::BrokerTransportFailure, "connection refused");
        let error = rdkafka::ClientConfig::new()
            .set("no.such.property", "1")
            .create::<rdkafka::producer::BaseProducer>()
            .map(drop)
            .unwrap_err();
        let error = explain(&error, "make a Kafka client", &names(), &last);
        assert_eq!(error.reason, BlockReason::Other, "{error}");
        assert!(error.to_string().contains("no.such.property"), "{error}");
        assert!(!error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn a_time_out_is_explained_by_what_the_client_said_before() {
        let last = LastError::default();
        last.set(Code::Authentication, "SASL authentication error: bad password");
        last.set(Code::AllBrokersDown, "1/1 brokers are down");
        let error = explain(
            &KafkaError::Flush(Code::OperationTimedOut),
            "commit",
            &names(),
            &last,
        );
        assert_eq!(error.reason, BlockReason::Authentication);
        assert!(error.to_string().contains("bad password"), "{error}");
    }

    #[test]
    fn a_failed_connection_is_explained_by_what_the_client_said_before() {
        for (said, reason, cure) in [
            (
                "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed",
                BlockReason::Authentication,
                "ssl.ca.location",
            ),
            (
                "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate",
                BlockReason::Authentication,
                "ssl.key.location",
            ),
            (
                "ssl://kafka:9092/bootstrap: Disconnected: connecting to a PLAINTEXT broker listener?",
                BlockReason::Connect,
                "brokers at kafka:9092",
            ),
            (
                "sasl_ssl://10.0.0.1:9093/1: Connection setup timed out in state CONNECT",
                BlockReason::Connect,
                "as 10.0.0.1:9093 (its advertised.listeners)",
            ),
            (
                "GroupCoordinator: b-1.example:9092: Connect to ipv4#10.0.0.2:9092 failed: Connection refused",
                BlockReason::Connect,
                "as b-1.example:9092 (its advertised.listeners)",
            ),
        ] {
            let last = LastError::default();
            last.set(Code::BrokerTransportFailure, said);
            let error = KafkaError::MetadataFetch(Code::BrokerTransportFailure);
            let error = explain(&error, "look up the topic", &names(), &last);
            assert_eq!(error.reason, reason, "{error}");
            assert!(
                error.to_string().contains(said) && error.to_string().contains(cure),
                "{error}"
            );
        }
    }

    #[test]
    fn a_property_that_is_refused_is_named_without_its_value() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("sasl.passwort", "s3cr3t");
        let refused = config.create_native_config().map(|_| ()).unwrap_err();
        assert!(
            refused.to_string().contains("s3cr3t"),
            "rdkafka shows it: {refused}"
        );
        let error = explain(&refused, "make a Kafka client", &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Other);
        assert!(
            error.to_string().contains("sasl.passwort") && !error.to_string().contains("s3cr3t"),
            "{error}"
        );
    }

    #[test]
    fn a_topic_that_must_not_be_created() {
        let error = KafkaError::AdminOp(Code::TopicAuthorizationFailed);
        let error = explain_creation(&error, &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Authorization);
        assert!(error.to_string().contains("CREATE"), "{error}");
    }
}
