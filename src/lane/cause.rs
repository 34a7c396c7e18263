//! What an error of librdkafka means for the operator: a reason for the metric, the cause, and what to do about it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

use super::broker::{BlockReason, BrokerError, Refusal};

/// The names that an error message may need.
#[derive(Clone, Debug)]
pub struct Names {
    pub topic: String,
    /// Also the transactional id.
    pub group: String,
    pub bootstrap_servers: String,
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

/// Explains an error met while `doing` something.
pub fn explain(error: &KafkaError, doing: &str, names: &Names, last: &LastError) -> BrokerError {
    let code = match error {
        // The library gives no code for this one.
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    };
    let mut text = match error {
        // Its Display says only the code; the text has the broker's words.
        KafkaError::Transaction(error) => error.string(),
        _ => error.to_string(),
    };
    let mut found = match error {
        // librdkafka's words name the property.
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => Some((
            BlockReason::Other,
            "Check [kafka.properties] in the configuration".to_owned(),
        )),
        _ => code.and_then(|code| known(code, names)),
    };
    let vague = matches!(
        code,
        None | Some(
            Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::MessageTimedOut
                | Code::AllBrokersDown
                | Code::BrokerTransportFailure
        )
    );
    if vague
        && found
            .as_ref()
            .is_none_or(|(reason, _)| *reason != BlockReason::Other)
        && let Some((code, cause)) = last.get()
    {
        text = format!("{text}; before that: {cause}");
        found = known(code, names).or(found);
    }
    let (reason, advice) = found.unwrap_or((BlockReason::Transaction, String::new()));
    let stop = if advice.is_empty() { "" } else { ". " };
    BrokerError {
        reason,
        message: format!("cannot {doing}: {text}{stop}{advice}"),
    }
}

/// The refusal that a delivery error stands for, if it is one.
pub fn refusal(code: Code) -> Option<Refusal> {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => Some(Refusal::TooLarge),
        Code::InvalidRecord => Some(Refusal::Invalid),
        _ => None,
    }
}

fn known(code: Code, names: &Names) -> Option<(BlockReason, String)> {
    let Names {
        topic,
        group,
        bootstrap_servers,
    } = names;
    Some(match code {
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve | Code::OperationTimedOut => (
            BlockReason::Connect,
            format!("Check that the brokers at {bootstrap_servers} run and can be reached from here (kafka.bootstrap_servers)"),
        ),
        Code::SSL => (
            BlockReason::Authentication,
            "Check that the broker's port speaks TLS and that its certificate is signed by a CA in ssl.ca.location".into(),
        ),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => (
            BlockReason::Authentication,
            "Check security.protocol, sasl.mechanism, sasl.username and sasl.password under [kafka.properties]".into(),
        ),
        Code::TopicAuthorizationFailed => (
            BlockReason::Authorization,
            format!(
                "Grant the bridge's user WRITE, DESCRIBE and READ on topic {topic} (and on the dead-letter topic), and \
                 CREATE with kafka.create_topics"
            ),
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
            format!("Grant the bridge's user WRITE and DESCRIBE on transactional id {group}, best by the prefix kafka.id_prefix"),
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
        let error = explain(&error, "create the topic", &names(), &LastError::default());
        assert_eq!(error.reason, BlockReason::Authorization, "{error}");
        assert!(error.message.contains("CREATE"), "{error}");
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
}
