//! Whether the bridge can make a webhook durable: the answer of `/readyz`.
//!
//! Kafka does not count: the spool is there for its outages. A bridge is not ready if it is stopping, if a log can't be written any
//! more, or if every event stream's log is full or not open. A single full or unopened log is not enough: the other streams are
//! served, and its own webhooks are answered 503.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{
    spool::{Appender, LogState},
    stream::Stream,
};

/// The state that the probes report.
pub struct Health {
    logs: Vec<(Stream, Appender)>,
    draining: AtomicBool,
}

/// The answer of a readiness probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    Draining,
    LogFailed(Stream),
    LogsFull,
    /// No event stream's log takes webhooks, and some are not open.
    LogsNotOpen,
}

impl Readiness {
    /// Whether webhooks should be sent here.
    pub fn is_ready(self) -> bool {
        self == Readiness::Ready
    }

    /// The text of a probe's answer, for people.
    pub fn text(self) -> &'static str {
        match self {
            Readiness::Ready => "ready\n",
            Readiness::Draining => "draining: the bridge is stopping\n",
            Readiness::LogFailed(Stream::Deliveries) => "failed: the log of deliveries can't be written\n",
            Readiness::LogFailed(Stream::Bounces) => "failed: the log of bounces can't be written\n",
            Readiness::LogFailed(Stream::Blocks) => "failed: the log of blocks can't be written\n",
            Readiness::LogFailed(Stream::Inbound) => "failed: the log of inbound can't be written\n",
            Readiness::LogFailed(Stream::DeadLetters) => "failed: the log of dead_letters can't be written\n",
            Readiness::LogsFull => "full: no event stream's log accepts webhooks\n",
            Readiness::LogsNotOpen => {
                "not open: no event stream's log accepts webhooks; some are being opened or can't be, as the log says\n"
            }
        }
    }
}

impl Health {
    /// Watches the logs of all enabled streams.
    pub fn new(logs: Vec<(Stream, Appender)>) -> Health {
        Health {
            logs,
            draining: AtomicBool::new(false),
        }
    }

    /// Reports not ready from now on, because the process is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The readiness at this instant.
    pub fn readiness(&self) -> Readiness {
        let states = self.logs.iter().map(|(stream, log)| (*stream, log.state()));
        judge(self.draining.load(Ordering::Relaxed), states)
    }
}

fn judge(draining: bool, states: impl Iterator<Item = (Stream, LogState)>) -> Readiness {
    if draining {
        return Readiness::Draining;
    }
    let (mut accepting, mut not_open) = (false, false);
    for (stream, state) in states {
        match state {
            LogState::Failed => return Readiness::LogFailed(stream),
            LogState::Accepting => accepting |= stream != Stream::DeadLetters,
            LogState::NotOpen => not_open |= stream != Stream::DeadLetters,
            LogState::Full => {}
        }
    }
    match (accepting, not_open) {
        (true, _) => Readiness::Ready,
        (false, true) => Readiness::LogsNotOpen,
        (false, false) => Readiness::LogsFull,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_table() {
        use LogState::{Accepting, Failed, Full, NotOpen};
        let table = [
            (false, [Accepting, Accepting, Accepting], Readiness::Ready),
            (false, [Full, Accepting, Full], Readiness::Ready),
            (false, [Accepting, Accepting, Full], Readiness::Ready),
            (false, [Full, Full, Accepting], Readiness::LogsFull),
            (false, [Full, Full, NotOpen], Readiness::LogsFull),
            (false, [NotOpen, Accepting, NotOpen], Readiness::Ready),
            (false, [NotOpen, Full, Accepting], Readiness::LogsNotOpen),
            (
                false,
                [Accepting, Failed, Accepting],
                Readiness::LogFailed(Stream::Bounces),
            ),
            (
                false,
                [Accepting, Accepting, Failed],
                Readiness::LogFailed(Stream::DeadLetters),
            ),
            (true, [Accepting, Accepting, Accepting], Readiness::Draining),
        ];
        for (draining, states, expected) in table {
            let streams = [Stream::Deliveries, Stream::Bounces, Stream::DeadLetters];
            let found = judge(draining, streams.into_iter().zip(states));
            assert_eq!(found, expected, "{draining} {states:?}");
            assert_eq!(found.text() == "ready\n", found.is_ready());
        }
    }

    #[test]
    fn the_text_names_the_failed_log() {
        for stream in Stream::ALL {
            assert!(Readiness::LogFailed(stream).text().contains(stream.name()));
        }
    }
}
