//! When a reader of topics gives up.
//!
//! librdkafka never does: after every error it fetches again, twice a second, and where it hands on no error it is as silent
//! as a topic without news. So a reader that only waits for records hangs on what can't heal. Three kinds of trouble:
//!
//! - *It won't pass by itself*: no right, no topic, wrong credentials, a batch that can't be decoded. Reading ends at once.
//! - *It may pass*: a broker that is away, a partition without a leader. librdkafka reports a connection that was merely idle in
//!   the same way as a broker that is down, and a missing leader not at all. So nothing is concluded from reports: a reader asks
//!   for its topic ([`look`]), and says or ends with what it learns. Answers that librdkafka can't parse are found in the same
//!   way, for it only logs them.
//! - *Any other error* ends reading when it is still being reported [`STUBBORN`] after it was first.

use std::time::{Duration, Instant};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use super::{
    broker::{BlockReason, BrokerError},
    client::Context,
    probe::{Topic, describe_within},
};

/// A reader asks so often how its topics are, one that comes to an end when it had no news for so long.
pub const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Most time for one such question: a reader that is told to end must not be kept.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an error may come again.
const STUBBORN: Duration = Duration::from_secs(5);
/// An error that comes again after more than this is a new one.
const APART: Duration = Duration::from_secs(4);
/// Fetches that fail are tried again more often than this.
const AGAIN: Duration = Duration::from_secs(2);

/// The errors of one consumer's polls.
#[derive(Debug, Default)]
pub struct Errors(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    code: Code,
    first: Instant,
    last: Instant,
}

impl Errors {
    /// Whether reading ends with this error, which came now.
    pub fn end_reading(&mut self, error: &KafkaError, now: Instant) -> bool {
        let Some(code) = error.rdkafka_error_code() else {
            return false;
        };
        match kind(code) {
            Kind::Lasting => true,
            Kind::Passing => false,
            Kind::Unknown => self.is_stubborn(code, now),
        }
    }

    fn is_stubborn(&mut self, code: Code, now: Instant) -> bool {
        self.0
            .retain(|seen| now.saturating_duration_since(seen.last) <= APART);
        match self.0.iter_mut().find(|seen| seen.code == code) {
            Some(seen) => {
                seen.last = now;
                now.saturating_duration_since(seen.first) >= STUBBORN
            }
            None => {
                self.0.push(Seen {
                    code,
                    first: now,
                    last: now,
                });
                false
            }
        }
    }
}

enum Kind {
    Lasting,
    Passing,
    Unknown,
}

fn kind(code: Code) -> Kind {
    match code {
        Code::TopicAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        // A batch in a codec or format that this build doesn't know, or damaged.
        | Code::NotImplemented
        | Code::BadCompression
        | Code::BadMessage
        | Code::MessageSizeTooLarge
        | Code::Fatal => Kind::Lasting,
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        // Of the group, which no reader joins.
        | Code::GroupAuthorizationFailed => Kind::Passing,
        _ => Kind::Unknown,
    }
}

/// How a topic is, for a reader that has no news of it.
pub enum Look {
    /// It can be read.
    Well,
    /// There is no such topic, or it may not be described, or what it holds can't be parsed: that won't pass by itself.
    Lost(KafkaError),
    /// The cluster doesn't answer, or not now.
    Away(KafkaError),
    /// Partitions can't be read now.
    Leaderless(BrokerError),
}

/// Asks how a topic is. Takes three seconds at most.
pub fn look(consumer: &BaseConsumer<Context>, topic: &str) -> Look {
    let unparsed = Code::BadMessage;
    if consumer.context().last_error.is(unparsed, AGAIN) {
        return Look::Lost(KafkaError::MessageConsumption(unparsed));
    }
    match describe_within(consumer, topic, PATIENCE) {
        Ok(found) if found.partitions.is_empty() => {
            Look::Lost(KafkaError::MetadataFetch(Code::UnknownTopicOrPartition))
        }
        Ok(found) => leaderless(topic, &found).map_or(Look::Well, Look::Leaderless),
        Err(error) => match error.rdkafka_error_code().map(kind) {
            Some(Kind::Lasting) => Look::Lost(error),
            _ => Look::Away(error),
        },
    }
}

/// What is wrong with a topic of which partitions have no leader.
pub fn leaderless(topic: &str, found: &Topic) -> Option<BrokerError> {
    (found.without_leader > 0).then(|| BrokerError {
        reason: BlockReason::Connect,
        message: format!(
            "cannot read topic {topic}: {} of {} partitions have no leader. Look at the brokers that hold their replicas",
            found.without_leader,
            found.partitions.len()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code) -> KafkaError {
        KafkaError::MessageConsumption(code)
    }

    /// Whether one of the reports, so many milliseconds after the first, ends reading.
    fn ends(code: Code, reports: impl IntoIterator<Item = u64>) -> bool {
        let begun = Instant::now();
        let mut errors = Errors::default();
        reports
            .into_iter()
            .any(|millis| errors.end_reading(&error(code), begun + Duration::from_millis(millis)))
    }

    #[test]
    fn what_will_not_pass_ends_reading_at_once() {
        for code in [
            Code::TopicAuthorizationFailed,
            Code::NotImplemented,
            Code::BadCompression,
            Code::BadMessage,
            Code::UnknownPartition,
        ] {
            assert!(ends(code, [0]), "{code:?}");
        }
    }

    #[test]
    fn any_error_that_repeats_ends_reading_within_ten_seconds() {
        let repeated = |until: u64| (0..until).step_by(500);
        assert!(ends(Code::InvalidMessage, repeated(6000)));
        assert!(!ends(Code::InvalidMessage, repeated(4000)));
        assert!(!ends(Code::InvalidMessage, [0]));
        // Each of these passed.
        assert!(!ends(Code::InvalidMessage, (0..60_000).step_by(4500)));
    }

    #[test]
    fn an_error_between_does_not_hide_one_that_repeats() {
        let begun = Instant::now();
        let mut errors = Errors::default();
        let ended = (0..12u64).any(|n| {
            let code = [Code::InvalidMessage, Code::Unknown][n as usize % 2];
            errors.end_reading(&error(code), begun + Duration::from_millis(n * 1000))
        });
        assert!(ended);
    }

    #[test]
    fn a_broker_that_is_away_is_waited_for() {
        for code in [Code::BrokerTransportFailure, Code::AllBrokersDown, Code::SSL] {
            assert!(!ends(code, (0..60_000).step_by(500)), "{code:?}");
        }
    }
}
