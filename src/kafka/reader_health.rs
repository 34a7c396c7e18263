//! When a reader of topics gives up.
//!
//! librdkafka never does: after every error it fetches again, twice a second, and where it passes on no error it is as silent
//! as a topic without news. So a reader that only waits for records would hang on a fault that can't heal. There are three
//! kinds of fault:
//!
//! - *Lasting*: no right, no topic, wrong credentials, a batch that can't be decoded. Reading ends at once.
//! - *Passing*: a broker that is away, a partition without a leader. librdkafka reports a connection that was merely idle in
//!   the same way as a broker that is down, and does not report a missing leader at all. So a reader concludes nothing from
//!   reports: it asks about its topic ([`look`]), and warns or ends according to what it learns. That also finds answers that
//!   librdkafka can't parse, which it only logs.
//! - *Unknown*: any other error ends reading when it is still being reported [`STUBBORN`] after it was first.

use std::time::{Duration, Instant};

use rdkafka::{consumer::BaseConsumer, error::KafkaError, types::RDKafkaErrorCode as Code};

use super::{broker::BrokerError, callbacks::Callbacks, session::Session, topics::describe};

/// How often a reader without end asks about its topics, and how long one with an end waits for news before it asks.
pub const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Longest wait for the answer: a reader that is asked to end must not be held up.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);
/// How long an unknown error may repeat.
const STUBBORN: Duration = Duration::from_secs(5);
/// An error that repeats after a longer time than this is a new one.
const APART: Duration = Duration::from_secs(4);
/// Failed fetches are repeated more often than this.
const AGAIN: Duration = Duration::from_secs(2);

/// The errors of one consumer's polls.
#[derive(Debug, Default)]
pub struct ReadErrors(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    code: Code,
    first: Instant,
    last: Instant,
}

impl ReadErrors {
    /// Whether reading ends with this error, which was reported `now`.
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
        // No reader joins the group.
        | Code::GroupAuthorizationFailed => Kind::Passing,
        _ => Kind::Unknown,
    }
}

/// What a reader without news learns about its topic.
pub enum Look {
    /// The topic can be read.
    Well,
    /// It does not exist, may not be described, or holds data that can't be parsed. Waiting does not help.
    Lost(BrokerError),
    /// The cluster does not answer, or not now.
    Away(BrokerError),
    /// Some partitions can't be read now.
    Leaderless(BrokerError),
}

/// Asks about the session's topic. Takes three seconds at most.
pub fn look(session: &Session, consumer: &BaseConsumer<Callbacks>) -> Look {
    let explain = |error: &KafkaError| session.explain("read the topic", error);
    let unparsed = Code::BadMessage;
    if session.callbacks.last_error.is(unparsed, AGAIN) {
        return Look::Lost(explain(&KafkaError::MessageConsumption(unparsed)));
    }
    match describe(consumer, &session.topic, LOOK_PATIENCE) {
        Ok(found) if found.partitions.is_empty() => {
            Look::Lost(explain(&KafkaError::MetadataFetch(Code::UnknownTopicOrPartition)))
        }
        Ok(found) => found
            .leaderless(&session.topic)
            .map_or(Look::Well, Look::Leaderless),
        Err(error) => match error.rdkafka_error_code().map(kind) {
            Some(Kind::Lasting) => Look::Lost(explain(&error)),
            _ => Look::Away(explain(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code) -> KafkaError {
        KafkaError::MessageConsumption(code)
    }

    /// Whether one of the reports ends reading; each is so many milliseconds after the first.
    fn ends(code: Code, reports: impl IntoIterator<Item = u64>) -> bool {
        let begun = Instant::now();
        let mut errors = ReadErrors::default();
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
        let mut errors = ReadErrors::default();
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
