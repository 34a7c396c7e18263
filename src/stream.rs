//! The five streams. Each has its own spool log, lane and topic.

use std::fmt;

/// A kind of event, with its own log, lane, topic and byte budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// What became of each message that was sent.
    Deliveries,
    /// Messages that bounced.
    Bounces,
    /// Messages that the sender's service refused to send (Pro plan).
    Blocks,
    /// Mails that were received, with their attachments.
    Inbound,
    /// Authenticated webhooks, or parts of them, that could not be understood.
    DeadLetters,
}

impl Stream {
    /// Every stream, in the order of [`Stream::index`].
    pub const ALL: [Stream; 5] = [
        Stream::Deliveries,
        Stream::Bounces,
        Stream::Blocks,
        Stream::Inbound,
        Stream::DeadLetters,
    ];

    /// The streams that a webhook can name in `event_type`.
    pub const EVENTS: [Stream; 3] = [Stream::Deliveries, Stream::Bounces, Stream::Blocks];

    /// The name in configuration, metrics, directories and Kafka ids.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Deliveries => "deliveries",
            Stream::Bounces => "bounces",
            Stream::Blocks => "blocks",
            Stream::Inbound => "inbound",
            Stream::DeadLetters => "dead_letters",
        }
    }

    /// The stream that a webhook's `event_type` names, if any.
    pub fn from_event_type(event_type: &str) -> Option<Stream> {
        Stream::EVENTS.into_iter().find(|s| s.name() == event_type)
    }

    /// The stream of records with this `ce_type`.
    pub fn from_ce_type(ce_type: &str) -> Option<Stream> {
        match ce_type.strip_prefix("jp.smtps.cmc.")? {
            "inbound" | "inbound.attachment" => Some(Stream::Inbound),
            event_type => Stream::from_event_type(event_type),
        }
    }

    /// Whether the records of a batch belong together: if Kafka refuses one of them, all are diverted.
    pub fn is_grouped(self) -> bool {
        self == Stream::Inbound
    }

    /// A dense index, for arrays with one entry per stream.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The values of the metric label `status` on this stream; the last one is for every value not listed.
    ///
    /// Deliveries: the sender's documented statuses. Bounces: its documented codes (1 unknown host … 99 others).
    /// Received mail: whether the record is the mail or part of an attachment. Blocks have no documented status, dead letters
    /// have none.
    pub fn statuses(self) -> &'static [&'static str] {
        match self {
            Stream::Deliveries => &["queued", "succeeded", "failed", "deferred", "other"],
            Stream::Bounces => &[
                "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "99", "other",
            ],
            Stream::Inbound => &["mail", "attachment", "other"],
            Stream::Blocks | Stream::DeadLetters => &["other"],
        }
    }

    /// Where a status stands among [`Stream::statuses`] (`None`: the event has none).
    pub fn status_index(self, status: Option<&str>) -> usize {
        let known = self.statuses();
        status
            .and_then(|status| known.iter().position(|k| *k == status))
            .unwrap_or(known.len() - 1)
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many events of a batch have which status: one count for each of [`Stream::statuses`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u32; 13]);

impl Tally {
    /// Counts one event of `stream` whose `status` member has this text (`None`: no such member, or no string).
    pub fn count(&mut self, stream: Stream, status: Option<&str>) {
        self.0[stream.status_index(status)] += 1;
    }

    /// Counts one event whose status stands there among [`Stream::statuses`].
    pub fn count_at(&mut self, status: usize) {
        if let Some(count) = self.0.get_mut(status) {
            *count += 1;
        }
    }

    /// The counts, in the order of [`Stream::statuses`]; entries beyond the stream's list are zero.
    pub fn counts(&self) -> &[u32] {
        &self.0
    }

    /// Adds another tally's counts.
    pub fn add(&mut self, other: &Tally) {
        for (sum, n) in self.0.iter_mut().zip(other.0) {
            *sum += n;
        }
    }

    /// All events counted.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| u64::from(*n)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_counts_known_and_other() {
        let mut tally = Tally::default();
        tally.count(Stream::Bounces, Some("99"));
        tally.count(Stream::Bounces, Some("100"));
        tally.count(Stream::Bounces, None);
        assert_eq!(tally.counts()[11], 1);
        assert_eq!(tally.counts()[12], 2);
        assert_eq!(tally.total(), 3);
    }

    #[test]
    fn every_status_list_fits_a_tally_and_ends_with_other() {
        for stream in Stream::ALL {
            assert!(stream.statuses().len() <= Tally::default().counts().len());
            assert_eq!(stream.statuses().last(), Some(&"other"));
        }
    }

    #[test]
    fn no_event_type_names_received_mail_or_the_dead_letters() {
        assert_eq!(Stream::from_event_type("bounces"), Some(Stream::Bounces));
        assert_eq!(Stream::from_event_type("inbound"), None);
        assert_eq!(Stream::from_event_type("dead_letters"), None);
    }
}
