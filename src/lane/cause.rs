//! What an error of librdkafka means for the operator: a reason for the metric, the cause, and what to do about it.

use std::sync::{Mutex, PoisonError};

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

/// The last error that a client reported by itself. Calls often end with no more than "timed out", and this says why.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Code, String)>>);

impl LastError {
    pub fn set(&self, code: Code, text: &str) {
        // "All brokers down" follows each single failure and says less than it.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if code != Code::AllBrokersDown || last.is_none() {
            *last = Some((code, text.to_owned()));
        }
    }

    fn get(&self) -> Option<(Code, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Explains an error met while `doing` something.
pub fn explain(error: &KafkaError, doing: &str, names: &Names, last: &LastError) -> BrokerError {
    let code = error.rdkafka_error_code();
    let mut text = match error {
        // Its Display says only the code; the text has the broker's words.
        KafkaError::Transaction(error) => error.string(),
        _ => error.to_string(),
    };
    let mut found = code.and_then(|code| known(code, names));
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
    if vague && let Some((code, cause)) = last.get() {
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
            format!("Grant the bridge's user WRITE, DESCRIBE and READ on topic {topic} (and on the dead-letter topic)"),
        ),
        Code::GroupAuthorizationFailed => (
            BlockReason::Authorization,
            format!("Grant the bridge's user READ on consumer group {group}, best by the prefix kafka.id_prefix"),
        ),
        Code::TransactionalIdAuthorizationFailed | Code::ClusterAuthorizationFailed => (
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
