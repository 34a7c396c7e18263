//! What an error of librdkafka means for the operator: a reason for the metric, the cause, and what to do about it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};
use secrecy::{ExposeSecret, SecretString};

use super::broker::{BlockReason, BrokerError, Refusal};

/// The names that an error message may need.
#[derive(Clone, Debug)]
pub struct Names {
    pub topic: String,
    /// Also the transactional id.
    pub group: String,
    pub bootstrap_servers: String,
    /// Values of properties that no message may show; OpenSSL's errors have the names of files.
    pub unshown: Vec<SecretString>,
}

/// What a client reported longer ago explains nothing.
const RECENT: Duration = Duration::from_secs(60);

/// The last error that a client reported by itself. Calls often end with no more than "timed out", and this says why.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, Code, String)>>);

impl LastError {
    pub fn set(&self, code: Code, text: &str) {
        // "All brokers down" follows each single failure and says less than it.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = last.as_ref().is_some_and(|(when, ..)| when.elapsed() < RECENT);
        if code != Code::AllBrokersDown || !recent {
            *last = Some((Instant::now(), code, text.to_owned()));
        }
    }

    fn get(&self) -> Option<(Code, String)> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, code, text) = last.as_ref()?;
        (when.elapsed() < RECENT).then(|| (*code, text.clone()))
    }
}

/// The code behind an error; rdkafka leaves one out.
fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    }
}

/// Whether an error ends reading; after any other it goes on by itself.
pub fn ends_reading(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::Authentication
                | Code::SaslAuthenticationFailed
                | Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::Fatal
        )
    )
}

/// Explains an error met while `doing` something.
pub fn explain(error: &KafkaError, doing: &str, names: &Names, last: &LastError) -> BrokerError {
    let code = code_of(error);
    let (mut text, mut found) = match error {
        // Its Display says only the code; the text has the broker's words.
        KafkaError::Transaction(error) => (error.string(), None),
        // Its Display shows the value too, which is a secret when a secret's name is misspelt.
        KafkaError::ClientConfig(_, what, _, _) => (what.clone(), Some(misconfigured(what))),
        KafkaError::ClientCreation(what) => (what.clone(), Some(misconfigured(what))),
        _ => (error.to_string(), None),
    };
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
    if vague && let Some((code, cause)) = last.get() {
        // OpenSSL's errors after the handshake come as failures of the transport.
        found = match cause.contains("SSL routines") {
            true => Some(tls(&cause)),
            false => known(code, names).or(found),
        };
        if let (Some((BlockReason::Connect, advice)), Some(address)) = (&mut found, advertised(&cause)) {
            *advice = format!(
                "The cluster advertises this broker as {address} (its advertised.listeners): check that it runs and can be \
                 reached from here under that address, and that security.protocol is that of this listener"
            );
        }
        text = format!("{text}; before that: {cause}");
    }
    text.truncate(text.trim_end_matches('.').len());
    for value in &names.unshown {
        text = hide(&text, value.expose_secret());
    }
    let (reason, advice) = found.unwrap_or((BlockReason::Transaction, String::new()));
    let stop = if advice.is_empty() { "" } else { ". " };
    BrokerError {
        reason,
        message: format!("cannot {doing}: {text}{stop}{advice}"),
    }
}

/// The text without this value, of which an error may have the beginning alone.
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
pub fn explain_creation(error: &KafkaError, topic: &str, names: &Names, last: &LastError) -> BrokerError {
    let explained = explain(error, &format!("create topic {topic}"), names, last);
    match code_of(error) {
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => BrokerError {
            reason: BlockReason::Authorization,
            message: format!(
                "cannot create topic {topic}: {error}. Grant the bridge's user CREATE on it, or create it and set \
                 kafka.create_topics = false"
            ),
        },
        // The topic was looked up just before.
        Some(Code::OperationTimedOut) if last.get().is_none() => BrokerError {
            reason: BlockReason::Connect,
            message: format!(
                "cannot create topic {topic}: {error}. Brokers at {} answer, the cluster's controller doesn't: check that the \
                 address that each broker advertises (its advertised.listeners) can be reached from here",
                names.bootstrap_servers
            ),
        },
        _ => explained,
    }
}

/// The broker's address in what a client said of it, when the cluster told it; `…/bootstrap` is one of the configuration.
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

/// What is wrong with `[kafka.properties]`, in librdkafka's words.
fn misconfigured(what: &str) -> (BlockReason, String) {
    let advice = if what.contains("SASL mechanism") {
        "Set sasl.mechanism under [kafka.properties] to one that this build has: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    } else {
        "Correct it under [kafka.properties], or the file that it names"
    };
    (BlockReason::Other, advice.to_owned())
}

/// What is wrong with TLS, in OpenSSL's words.
fn tls(what: &str) -> (BlockReason, String) {
    let advice = if what.contains("verify failed") {
        "Check that ssl.ca.location has the CA of the broker's certificate (without it the system's are trusted), and that \
         the certificate is for the name or address in kafka.bootstrap_servers and advertised.listeners"
    } else if what.contains("alert") {
        "The broker wants another client certificate, or one at all: check ssl.certificate.location and ssl.key.location"
    } else {
        "Check that the broker's port speaks TLS (security.protocol), and ssl.ca.location"
    };
    (BlockReason::Authentication, advice.to_owned())
}

/// The refusal that a delivery error stands for, if it is one.
pub fn refusal(code: Code) -> Option<Refusal> {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Some(Refusal::TooLarge),
        // The second is of a good record in a batch that has several bad ones.
        Code::InvalidRecord | Code::InvalidDifferentRecord => Some(Refusal::Invalid),
        _ => None,
    }
}

fn known(code: Code, names: &Names) -> Option<(BlockReason, String)> {
    let Names {
        topic,
        group,
        bootstrap_servers,
        ..
    } = names;
    Some(match code {
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::OperationTimedOut => (
            BlockReason::Connect,
            format!(
                "Check that the brokers at {bootstrap_servers} run and can be reached from here \
                 (kafka.bootstrap_servers), and that security.protocol is that of their listener"
            ),
        ),
        Code::SSL => tls(""),
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
            format!("Grant the bridge's user READ on consumer group {group}, best by the prefix kafka.id_prefix"),
        ),
        Code::ClusterAuthorizationFailed => (
            BlockReason::Authorization,
            "Grant the bridge's user IDEMPOTENT_WRITE on the cluster (brokers before 2.8 ask for it), and CREATE with \
             kafka.create_topics"
                .into(),
        ),
        Code::TransactionalIdAuthorizationFailed => (
            BlockReason::Authorization,
            format!("Grant the bridge's user WRITE on transactional id {group}, best by the prefix kafka.id_prefix"),
        ),
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => (
            BlockReason::TopicMissing,
            format!("Create topic {topic}, or set kafka.create_topics = true"),
        ),
        Code::InvalidTopic | Code::PolicyViolation | Code::InvalidTimestamp => (
            BlockReason::TopicInvalid,
            format!("Check the settings of topic {topic}, and this machine's clock"),
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
    use super::*;

    fn names() -> Names {
        Names {
            topic: "cmc.bounces".into(),
            group: "cmc-bridge.bounces.x".into(),
            bootstrap_servers: "kafka:9092".into(),
            unshown: vec!["hunter2-and-more".to_owned().into()],
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
            assert!(error.message.contains(shown), "{}", error.message);
            assert!(!error.message.contains("hunter2-"), "{}", error.message);
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
            assert!(error.message.contains(cure), "{error}");
        }
    }

    #[test]
    fn an_answer_to_the_creation_of_a_topic_is_explained() {
        let error = KafkaError::AdminOp(Code::TopicAuthorizationFailed);
        let error = explain_creation(&error, "cmc.bounces", &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Authorization, "{error}");
        assert!(error.message.contains("CREATE"), "{error}");
        let error = KafkaError::AdminOp(Code::OperationTimedOut);
        let error = explain_creation(&error, "cmc.bounces", &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Connect, "{error}");
        assert!(error.message.contains("advertised.listeners"), "{error}");
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
        assert!(error.message.contains("no.such.property"), "{error}");
        assert!(!error.message.contains("refused"), "{error}");
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
        assert!(error.message.contains("bad password"), "{error}");
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
                error.message.contains(said) && error.message.contains(cure),
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
            error.message.contains("sasl.passwort") && !error.message.contains("s3cr3t"),
            "{error}"
        );
    }

    #[test]
    fn a_topic_that_must_not_be_created() {
        let error = KafkaError::AdminOp(Code::TopicAuthorizationFailed);
        let error = explain_creation(&error, "cmc.bounces", &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Authorization);
        assert!(error.message.contains("CREATE"), "{error}");
    }
}
