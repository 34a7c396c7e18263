//! The plan of a run, chosen by its seed: settings, and what can go wrong.

use std::{path::PathBuf, time::Duration};

use super::random::Random;
use crate::{
    config::Delivery,
    lane::options::{LaneOptions, Timing},
    simulation::broker::Topic,
    spool::{Durability, LogOptions},
    stream::Stream,
};

pub const DELIVERIES: &str = "cmc.deliveries";
pub const BOUNCES: &str = "cmc.bounces";
pub const INBOUND: &str = "cmc.inbound";
pub const LETTERS: &str = "cmc.dead-letters";

/// Every topic.
pub const TOPICS: [&str; 4] = [DELIVERIES, BOUNCES, INBOUND, LETTERS];

/// When the broker aborts an open transaction.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

pub struct Plan {
    streams: Vec<Stream>,
    /// Deliveries and bounces have one topic.
    shared: bool,
    /// `max.message.bytes` of the events' topics; twice that of the topic of received mail, whose records are larger.
    pub limit: Option<usize>,
    /// Whether producers compress records, so that the broker may take large ones.
    pub compressed: bool,
    /// Whether the broker reveals the topics' configuration.
    told: bool,
    /// How many partitions topics have besides the first.
    more_partitions: usize,
    /// The maximum number of records in a request.
    pub request: Option<usize>,
    /// Whether the broker names the invalid records of a request.
    pub names_records: bool,
    /// Whether positions can't be read for a while after a transaction was left open.
    pub unstable_positions: bool,
    /// One in this many records is sent at once.
    pub hasty: usize,
    /// Records that a transaction of one record per request delivers in time.
    pub one_by_one_in_time: Option<usize>,
    /// The events' topics refuse null keys.
    pub compacted: bool,
    /// Records that fit into a producer's queue.
    pub queue: Option<usize>,
    segment_bytes: u64,
    max_bytes: u64,
    pub durability: Durability,
    pub delivery: Delivery,
    transaction_events: usize,
    checkpoint_every: Duration,
    commit_interval: Duration,
    /// The directory is restored from older copies, and bridges run on copies of it.
    pub copies: bool,
    /// Offsets expire and topics are deleted.
    pub expiry: bool,
    /// Bits rot.
    pub rot: bool,
    /// The disk fails and fills.
    pub disk_faults: bool,
    /// The sender repeats webhooks, and the bridge drops the repeats that it knows.
    pub repeats: bool,
    /// Other parts run at one in this many calls.
    pub nest: u64,
    pub steps: u64,
}

impl Plan {
    pub fn new(random: &mut Random) -> Plan {
        let bounces = random.one_in(3);
        let mut streams = vec![Stream::Deliveries];
        streams.extend(bounces.then_some(Stream::Bounces));
        streams.extend(random.one_in(3).then_some(Stream::Inbound));
        streams.push(Stream::DeadLetters);
        let special = random.below(10);
        Plan {
            streams,
            shared: random.one_in(4),
            limit: random.one_in(2).then_some(1200),
            compressed: random.one_in(2),
            told: random.one_in(2),
            more_partitions: random.pick(&[0, 0, 1, 2]),
            request: random.one_in(2).then(|| 1 + random.below(4) as usize),
            names_records: random.one_in(2),
            unstable_positions: random.one_in(4),
            hasty: random.pick(&[0, 2, 6]),
            one_by_one_in_time: random.one_in(3).then(|| 1 + random.below(6) as usize),
            compacted: random.one_in(2),
            queue: random.one_in(3).then(|| 1 + random.below(6) as usize),
            // In the longest ones, a segment that was left early is not worth reusing.
            segment_bytes: 4096 + random.pick(&[700, 1500, 4000, 9000]),
            max_bytes: random.pick(&[1 << 30, 1 << 30, 30_000]),
            durability: match random.one_in(12) {
                true => Durability::PageCache,
                false => Durability::Fsync,
            },
            delivery: match random.one_in(10) {
                true => Delivery::AtLeastOnce,
                false => Delivery::ExactlyOnce,
            },
            transaction_events: 1 + random.below(12) as usize,
            checkpoint_every: Duration::from_millis(random.pick(&[0, 1000])),
            commit_interval: Duration::from_millis(random.pick(&[0, 50, 1000])),
            copies: matches!(special, 0..3),
            expiry: matches!(special, 3..6),
            rot: matches!(special, 5..7),
            disk_faults: random.one_in(2),
            nest: random.pick(&[3, 8, 30]),
            steps: 10 + random.below(50),
            // A directory that is restored or copied has other events than its process knows.
            repeats: special > 6 && random.one_in(2),
        }
    }

    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    pub fn event_streams(&self) -> &[Stream] {
        &self.streams[..self.streams.len() - 1]
    }

    pub fn topic(&self, stream: Stream) -> &'static str {
        match stream {
            Stream::DeadLetters => LETTERS,
            Stream::Bounces if !self.shared => BOUNCES,
            Stream::Inbound => INBOUND,
            _ => DELIVERIES,
        }
    }

    /// The topic as it is created.
    pub fn topic_settings(&self, topic: &str) -> Topic {
        let mut settings = Topic::default();
        settings.more_partitions = self.more_partitions;
        settings.told = self.told;
        settings.compressed = self.compressed;
        if topic != LETTERS {
            let factor = if topic == INBOUND { 2 } else { 1 };
            settings.limit = self.limit.map(|limit| limit * factor);
            settings.compacted = self.compacted;
        }
        settings
    }

    pub fn dir(stream: Stream) -> PathBuf {
        PathBuf::from("/spool").join(stream.name())
    }

    pub fn log(&self, stream: Stream) -> LogOptions {
        LogOptions {
            dir: Plan::dir(stream),
            name: stream.name(),
            max_bytes: self.max_bytes,
            segment_bytes: self.segment_bytes,
            durability: self.durability,
        }
    }

    pub fn lane(&self, stream: Stream) -> LaneOptions {
        LaneOptions {
            stream,
            delivery: self.delivery,
            topic: self.topic(stream).into(),
            dead_letter_topic: LETTERS.into(),
            max_record_bytes: 100_000,
            transaction_events: self.transaction_events,
            transaction_bytes: 4000,
            transaction_limit: TRANSACTION_TIMEOUT * 2 / 3,
            timing: Timing {
                checkpoint_every: self.checkpoint_every,
                commit_interval: self.commit_interval,
                ..Timing::default()
            },
        }
    }
}
