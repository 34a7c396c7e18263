//! Compares what readers see with what was posted and acknowledged.
//!
//! A *batch* is what one webhook puts into one log, an *event* is one of its records. These hold at any time:
//!
//! - An event is in its topic once, as it was sent.
//! - If one batch of a log was acknowledged before another one was posted, it comes first.
//! - While no transaction is open, a batch is there as a whole or not at all.
//! - The records of a received mail, a *group*, are in one transaction, and all on one topic.
//!
//! When everything has come to rest, every acknowledged event is there.
//!
//! At-least-once delivery may duplicate events and show parts of batches; the first copies of events with a key are in order
//! nevertheless. Part of a group may then be on its topic although all of it is among the dead letters, because one of its records was
//! refused after others were delivered. The limits in the README's "What is guaranteed" are the only exceptions, each a function of its own:
//! [`Oracle::restored`], [`Oracle::copied`], [`Oracle::topic_deleted`], [`Oracle::damaged`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use super::{
    plan::LETTERS,
    webhook::{ExpectedRecord, MadeWebhook},
};
use crate::{
    config::Delivery,
    simulation::broker::{Cluster, StoredRecord},
    stream::Stream,
};

/// Ends the run: a guarantee is broken.
macro_rules! violated {
    ($invariant:literal, $($what:tt)+) => {
        panic!("[{}] {}", $invariant, format_args!($($what)+))
    };
}
pub(super) use violated;

struct PostedEvent {
    batch: usize,
    index: usize,
    topic: &'static str,
    keyless: bool,
    seen: u32,
    /// How often it may be seen.
    allowed: u32,
    seen_at: u64,
}

struct PostedBatch {
    webhook: usize,
    stream: Stream,
    /// The directories that hold it durably.
    holders: Vec<usize>,
    posted: u64,
    acknowledged: Option<u64>,
    /// It may be missing.
    optional: bool,
    /// It may be incomplete: part of it is gone with its topic, or there are no transactions.
    torn: bool,
    /// It may be out of order: part of it is gone with its topic and may be sent again at any time.
    unordered: bool,
    events: std::ops::Range<usize>,
    seen: usize,
    /// The transaction of the events seen so far.
    transaction: Option<u64>,
    /// The next index of an event in each partition.
    next: BTreeMap<Partition, usize>,
}

/// Order is guaranteed within one.
type Partition = (&'static str, usize);

pub struct Oracle {
    delivery: Delivery,
    tick: u64,
    events: Vec<PostedEvent>,
    batches: Vec<PostedBatch>,
    /// The batches of each webhook, dead letters first.
    webhooks: Vec<std::ops::Range<usize>>,
    by_value: HashMap<Vec<u8>, usize>,
    /// How far each partition of each topic has been read.
    read: BTreeMap<&'static str, BTreeMap<usize, usize>>,
    /// The time at which the newest visible batch was posted, by directory, stream and partition.
    newest: BTreeMap<(usize, Stream, Partition), u64>,
    /// Partly visible batches.
    partial: BTreeSet<usize>,
}

impl Oracle {
    pub fn new(topics: impl IntoIterator<Item = &'static str>, delivery: Delivery) -> Oracle {
        Oracle {
            delivery,
            tick: 0,
            events: Vec::new(),
            batches: Vec::new(),
            webhooks: Vec::new(),
            by_value: HashMap::new(),
            read: topics.into_iter().map(|topic| (topic, BTreeMap::new())).collect(),
            newest: BTreeMap::new(),
            partial: BTreeSet::new(),
        }
    }

    /// The time, in steps of this oracle.
    pub fn now(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A webhook is posted to the bridge of this directory.
    pub fn posted(&mut self, holder: usize, made: &MadeWebhook) -> usize {
        let posted = self.now();
        let first = self.batches.len();
        let webhook = self.webhooks.len();
        for (stream, records) in &made.batches {
            let batch = self.batches.len();
            let begin = self.events.len();
            for (index, record) in records.iter().enumerate() {
                let ExpectedRecord {
                    topic,
                    value,
                    keyless,
                } = record;
                let former = self.by_value.insert(value.clone(), self.events.len());
                assert!(former.is_none(), "two events are identical");
                self.events.push(PostedEvent {
                    batch,
                    index,
                    topic,
                    keyless: *keyless,
                    seen: 0,
                    allowed: match self.delivery {
                        Delivery::ExactlyOnce => 1,
                        Delivery::AtLeastOnce => u32::MAX / 2,
                    },
                    seen_at: 0,
                });
            }
            self.batches.push(PostedBatch {
                webhook,
                stream: *stream,
                holders: vec![holder],
                posted,
                acknowledged: None,
                optional: false,
                // Without transactions a batch is seen record by record.
                torn: self.delivery == Delivery::AtLeastOnce,
                unordered: false,
                events: begin..self.events.len(),
                seen: 0,
                transaction: None,
                next: BTreeMap::new(),
            });
        }
        self.webhooks.push(first..self.batches.len());
        webhook
    }

    /// A webhook is posted again to a bridge that drops repeats. If its events are `known` there, they must not be stored again.
    pub fn posted_again(&mut self, webhook: usize, known: bool) {
        for batch in &mut self.batches[self.webhooks[webhook].clone()] {
            if known && batch.stream != Stream::DeadLetters {
                continue;
            }
            // Either copy may be seen first.
            batch.unordered = true;
            for event in &mut self.events[batch.events.clone()] {
                event.allowed += 1;
            }
        }
    }

    /// A webhook was answered 200.
    pub fn acknowledged(&mut self, webhook: usize) {
        let now = self.now();
        for batch in &mut self.batches[self.webhooks[webhook].clone()] {
            batch.acknowledged = Some(now);
        }
    }

    /// Reads new records from the topics.
    pub fn look(&mut self, cluster: &Cluster) {
        let mut read = mem::take(&mut self.read);
        for (topic, at) in &mut read {
            cluster.follow(topic, at, |partition, record| {
                self.saw((topic, partition), record)
            });
        }
        self.read = read;
        if !self.partial.is_empty() && !cluster.is_open() {
            let batch = *self.partial.iter().next().unwrap_or(&0);
            let PostedBatch { webhook, stream, .. } = self.batches[batch];
            violated!("whole", "webhook {webhook} in {stream} is visible in part");
        }
    }

    fn saw(&mut self, partition: Partition, record: &StoredRecord) {
        let (topic, _) = partition;
        let value = &record.value;
        let Some(&id) = self.by_value.get(value) else {
            violated!("intact", "{topic} has {:?}", String::from_utf8_lossy(value));
        };
        let tick = self.now();
        let event = &mut self.events[id];
        let batch = &mut self.batches[event.batch];
        let (webhook, stream, index) = (batch.webhook, batch.stream, event.index);
        if event.topic != topic {
            let at_least_once = self.delivery == Delivery::AtLeastOnce;
            if stream.is_grouped() && at_least_once && event.topic == LETTERS {
                return;
            }
            violated!("intact", "event {index} of webhook {webhook} is in {topic}");
        }
        event.seen += 1;
        if event.seen > event.allowed {
            violated!(
                "once",
                "event {index} of webhook {webhook} in {stream} was seen {} times",
                event.seen
            );
        }
        if event.seen > 1 {
            return;
        }
        event.seen_at = tick;
        batch.seen += 1;
        let transaction = *batch.transaction.get_or_insert(record.transaction);
        if stream.is_grouped() && !batch.torn && transaction != record.transaction {
            violated!("group", "the mail of webhook {webhook} is in two transactions");
        }
        match batch.seen == batch.events.len() || batch.torn {
            true => self.partial.remove(&event.batch),
            false => self.partial.insert(event.batch),
        };
        // Without transactions, a record without a key may change its partition when it is sent again, and dead letters for a
        // refused request come only once the refused records are known.
        let free = self.delivery == Delivery::AtLeastOnce && (event.keyless || topic == LETTERS);
        if batch.unordered || free {
            return;
        }
        let next = batch.next.entry(partition).or_default();
        if event.index < *next {
            violated!(
                "order",
                "event {index} of webhook {webhook} in {stream} is out of order"
            );
        }
        *next = event.index + 1;
        for holder in &batch.holders {
            let newest = self.newest.entry((*holder, stream, partition)).or_default();
            if batch
                .acknowledged
                .is_some_and(|acknowledged| acknowledged < *newest)
            {
                violated!("order", "webhook {webhook} in {stream} comes after a later one");
            }
            *newest = batch.posted.max(*newest);
        }
    }

    /// Everything has come to rest.
    pub fn quiet(&mut self, cluster: &Cluster) {
        self.look(cluster);
        for batch in &self.batches {
            let PostedBatch { webhook, stream, .. } = batch;
            if batch.acknowledged.is_some() && !batch.optional && batch.seen < batch.events.len() {
                violated!(
                    "lost",
                    "webhook {webhook} in {stream} was acknowledged but is missing"
                );
            }
        }
        for webhook in &self.webhooks {
            let [letters, events] = &self.batches[webhook.clone()] else {
                continue;
            };
            if events.seen > 0 && letters.seen == 0 && !letters.optional && !events.torn {
                violated!(
                    "letters first",
                    "webhook {} is visible without its dead letters",
                    events.webhook
                );
            }
        }
    }

    /// The directory now holds what its copy held at that time; anything later is lost with the disk. `renewed` are the streams
    /// whose log has had another name in Kafka since, so the copy doesn't know what was delivered under it.
    pub fn restored(&mut self, holder: usize, time: u64, renewed: &[Stream]) {
        for batch in &mut self.batches {
            // Anything posted by then may be in the copy, including what an earlier restore seemed to have lost.
            if batch.posted <= time && renewed.contains(&batch.stream) {
                for event in &mut self.events[batch.events.clone()] {
                    if event.seen == 0 || event.seen_at > time {
                        event.allowed += 1;
                    }
                }
            }
            if !batch.holders.contains(&holder) {
                continue;
            }
            // Webhooks not acknowledged by then may or may not be in the copy.
            if batch.acknowledged.is_none_or(|at| at > time) {
                batch.holders.retain(|h| *h != holder);
                batch.optional |= batch.holders.is_empty();
            }
        }
    }

    /// A bridge starts on a copy of the directory: both may deliver what is not delivered yet.
    pub fn copied(&mut self, holder: usize, copy: usize) {
        for batch in &mut self.batches {
            if !batch.holders.contains(&holder) {
                continue;
            }
            if batch.acknowledged.is_some() {
                batch.holders.push(copy);
            }
            for event in &mut self.events[batch.events.clone()] {
                if event.seen == 0 {
                    event.allowed += 1;
                }
            }
        }
        let newest = self.newest.clone().into_iter();
        for ((_, stream, partition), newest) in newest.filter(|((h, ..), _)| *h == holder) {
            self.newest.insert((copy, stream, partition), newest);
        }
    }

    /// A topic is deleted with its events and its lanes' positions: batches after their checkpoints may come again.
    pub fn topic_deleted(&mut self, topic: &'static str, streams: &[Stream]) {
        self.read.insert(topic, BTreeMap::new());
        for (id, batch) in self.batches.iter_mut().enumerate() {
            let events = &mut self.events[batch.events.clone()];
            if batch.seen == 0 || !streams.contains(&batch.stream) {
                continue;
            }
            batch.optional = true;
            batch.torn = true;
            batch.unordered = true;
            self.partial.remove(&id);
            for event in events {
                if event.topic == topic {
                    event.seen = 0;
                } else {
                    event.allowed += 1;
                }
            }
            batch.seen = 0;
            batch.transaction = None;
            batch.next.clear();
        }
        self.newest.retain(|(_, stream, _), _| !streams.contains(stream));
    }

    /// Damage was reported: batches after it need not be delivered.
    pub fn damaged(&mut self, holder: usize, stream: Stream) {
        for batch in &mut self.batches {
            if batch.stream == stream && batch.holders.contains(&holder) {
                batch.optional = true;
            }
        }
    }

    /// The number of visible events.
    pub fn seen(&self) -> usize {
        self.events.iter().filter(|event| event.seen > 0).count()
    }
}
