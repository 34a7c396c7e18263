//! A simulated Kafka cluster behind [`Connect`] and [`Broker`]: transactions, fencing, refusals and a read_committed view,
//! with faults that a test puts in line. What a lane may not do (use a producer after an error, commit behind a fence)
//! panics here.
//!
//! A process may be given a pause, which is called before each call: there the simulation lets other threads run, or the
//! process die. A commit that was under way when its process died, or whose answer was lost, may still arrive later, if
//! no newer producer of the group has appeared ([`Cluster::arrive`]).

use std::{
    collections::{BTreeMap, VecDeque},
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::broker::{
    BlockReason, Broker, BrokerError, Committed, Connect, DeliveryError, Mode, Outgoing, Refusal,
};
use crate::{
    batch::alone_in_batch,
    clock,
    spool::{Seq, sim::Pause},
};

/// What goes wrong. Each waits for the first call that it can happen to, and happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection, for this reason.
    Connect(BlockReason),
    /// The coordinator gives no position.
    NoCoordinator,
    /// Nothing can be begun.
    Begin,
    /// A record can't be queued.
    Send,
    /// Some of the records are delivered, then an error.
    Delivery,
    /// Nothing is delivered before the deadline.
    Slow,
    /// The commit is done, its answer is lost.
    ReplyLost,
    /// The commit is not done.
    CommitFails,
    /// The answer is lost, and the commit may be done later.
    CommitLate,
    /// A foreign producer of the same group appears before the commit.
    Fence,
}

/// Where the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Before the call with this number.
    Before(usize),
    /// After it.
    After(usize),
}

/// The payload of the panic that stands for the death of the process.
pub struct Crashed;

/// A record as a topic holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub value: Vec<u8>,
    state: State,
}

impl Record {
    /// The number that `max.message.bytes` limits.
    fn size(&self) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]));
        alone_in_batch(self.key.as_deref(), headers, self.value.len())
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value).ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open(u64),
    Committed,
    Aborted,
}

/// A topic's settings and records.
#[derive(Debug, Default)]
pub struct Topic {
    /// `max.message.bytes`
    pub limit: Option<usize>,
    /// Whether the broker tells it.
    pub limit_told: bool,
    /// Refuses null keys.
    pub compacted: bool,
    /// The bridge's user may not write.
    pub forbidden: bool,
    records: Vec<Record>,
}

#[derive(Debug, Default)]
struct Group {
    epoch: u64,
    committed: Option<Committed>,
    open: Option<Open>,
    /// A commit of the open transaction that is under way.
    under_way: Option<Committed>,
    /// Where its lane keeps its position.
    topic: String,
}

#[derive(Debug)]
struct Open {
    number: u64,
    begun: Instant,
}

/// Everything that a test can look at or change.
#[derive(Debug, Default)]
pub struct Inner {
    pub topics: BTreeMap<String, Topic>,
    groups: BTreeMap<Uuid, Group>,
    /// Faults to come.
    pub faults: VecDeque<Fault>,
    pub crash: Option<Crash>,
    /// There are no transactions: a delivered record is there.
    pub plain: bool,
    /// librdkafka's own `message.max.bytes`, compared with the value's length.
    pub client_limit: Option<usize>,
    /// Records that fit into the producer's queue.
    pub queue: Option<usize>,
    /// The mode of each connection so far.
    pub connects: Vec<Mode>,
    /// Records in each committed transaction.
    pub transactions: Vec<usize>,
    /// Calls so far.
    pub calls: usize,
    /// Chooses where there is a choice: which record of a batch an error names.
    pub seed: u64,
    next_transaction: u64,
}

/// The cluster. Clones are the same one.
#[derive(Clone, Default)]
pub struct Cluster {
    inner: Arc<Mutex<Inner>>,
    topic: String,
    pause: Option<Pause>,
}

impl Cluster {
    /// A cluster with these topics; the first one is where a lane keeps its position.
    pub fn new(topics: &[&str]) -> Cluster {
        let cluster = Cluster {
            topic: topics[0].to_owned(),
            ..Cluster::default()
        };
        for topic in topics {
            cluster
                .lock()
                .topics
                .insert((*topic).to_owned(), Topic::default());
        }
        cluster
    }

    /// The same cluster for a lane of one process, which pauses at its calls and keeps its position at this topic.
    pub fn for_lane(&self, topic: &str, pause: Pause) -> Cluster {
        Cluster {
            topic: topic.to_owned(),
            pause: Some(pause),
            ..self.clone()
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a fault in line.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// What a read_committed consumer sees: nothing behind the first open transaction.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let inner = self.lock();
        let records = inner.topics.get(topic).map_or(&[][..], |t| &t.records);
        let visible = records.iter().take_while(|r| !matches!(r.state, State::Open(_)));
        visible.filter(|r| r.state == State::Committed).cloned().collect()
    }

    /// The values that it sees, as text.
    pub fn values(&self, topic: &str) -> Vec<String> {
        let text = |r: Record| String::from_utf8(r.value).unwrap();
        self.read(topic).into_iter().map(text).collect()
    }

    /// A group's committed position.
    pub fn committed(&self, group: Uuid) -> Option<Committed> {
        self.lock().groups.get(&group)?.committed.clone()
    }

    /// Commits a position from outside.
    pub fn set_committed(&self, group: Uuid, committed: Option<Committed>) {
        self.lock().groups.entry(group).or_default().committed = committed;
    }

    /// Deletes a topic with its records, and every position stored for it.
    pub fn delete_topic(&self, topic: &str) {
        let mut inner = self.lock();
        inner.topics.remove(topic);
        for group in inner.groups.values_mut() {
            if group.topic == topic {
                group.committed = None;
            }
        }
    }

    /// Whether a transaction is open.
    pub fn is_open(&self) -> bool {
        self.lock().groups.values().any(|group| group.open.is_some())
    }

    /// Aborts the transactions that have been open for this long, and fences their producers.
    pub fn expire(&self, limit: Duration) {
        let mut inner = self.lock();
        let late: Vec<Uuid> = inner
            .groups
            .iter()
            .filter(|(_, group)| {
                group
                    .open
                    .as_ref()
                    .is_some_and(|open| clock::since(open.begun) >= limit)
            })
            .map(|(id, _)| *id)
            .collect();
        for group in late {
            inner.fence(group);
        }
    }

    /// The commits that were under way when their process died, or lost their answer, arrive.
    pub fn arrive(&self) {
        let mut inner = self.lock();
        let ids: Vec<Uuid> = inner.groups.keys().copied().collect();
        for id in ids {
            let late = inner.groups.get_mut(&id).and_then(|group| group.under_way.take());
            if let Some(committed) = late {
                inner.end(id, State::Committed);
                inner.groups.entry(id).or_default().committed = Some(committed);
            }
        }
    }

    /// The requests under way are lost.
    pub fn lose(&self) {
        let mut inner = self.lock();
        inner.groups.values_mut().for_each(|group| group.under_way = None);
    }

    /// What became of a topic's records from this one on, as far as a read_committed consumer gets: its key, headers and
    /// value for those it sees. And the number of the record it waits for.
    pub fn follow(&self, topic: &str, from: usize, mut seen: impl FnMut(&Record)) -> usize {
        let inner = self.lock();
        let records = inner.topics.get(topic).map_or(&[][..], |t| &t.records);
        let mut at = from;
        for record in records.iter().skip(from) {
            match record.state {
                State::Open(_) => break,
                State::Committed => seen(record),
                State::Aborted => {}
            }
            at += 1;
        }
        at
    }
}

impl Inner {
    /// Counts a call, and ends the process there when a crash is due.
    fn call(&mut self) {
        self.calls += 1;
        if self.crash == Some(Crash::Before(self.calls)) {
            self.crash = None;
            resume_unwind(Box::new(Crashed));
        }
    }

    fn done(&mut self) {
        if self.crash == Some(Crash::After(self.calls)) {
            self.crash = None;
            resume_unwind(Box::new(Crashed));
        }
    }

    /// The next fault, when it is one of these.
    fn take(&mut self, of: impl Fn(Fault) -> bool) -> Option<Fault> {
        let next = *self.faults.front()?;
        of(next).then(|| self.faults.pop_front()).flatten()
    }

    fn end(&mut self, group: Uuid, state: State) -> usize {
        let group = self.groups.entry(group).or_default();
        group.under_way = None;
        let Some(open) = group.open.take() else {
            return 0;
        };
        let mut ended = 0;
        for record in self.topics.values_mut().flat_map(|topic| &mut topic.records) {
            if record.state == State::Open(open.number) {
                record.state = state;
                ended += 1;
            }
        }
        ended
    }

    /// A new producer of the group: former ones are fenced, their transaction is aborted.
    fn fence(&mut self, group: Uuid) -> u64 {
        self.end(group, State::Aborted);
        let group = self.groups.entry(group).or_default();
        group.epoch += 1;
        group.epoch
    }

    fn choose(&mut self, n: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) as usize % n.max(1)
    }
}

pub fn error(reason: BlockReason, message: &str) -> BrokerError {
    BrokerError {
        reason,
        message: message.to_owned(),
    }
}

impl Cluster {
    fn pause(&self) {
        if let Some(pause) = &self.pause {
            pause();
        }
    }
}

impl Connect for Cluster {
    type Broker = Producer;

    fn connect(&self, group: Uuid, mode: Mode) -> Result<Producer, BrokerError> {
        self.pause();
        let mut inner = self.lock();
        inner.call();
        inner.connects.push(mode);
        if let Some(Fault::Connect(reason)) = inner.take(|f| matches!(f, Fault::Connect(_))) {
            return Err(error(reason, "no connection"));
        }
        match inner.topics.get(&self.topic) {
            None => return Err(error(BlockReason::TopicMissing, "no such topic")),
            Some(topic) if topic.forbidden => return Err(error(BlockReason::Authorization, "no right")),
            Some(_) => {}
        }
        let epoch = inner.fence(group);
        inner.groups.entry(group).or_default().topic = self.topic.clone();
        inner.done();
        Ok(Producer {
            cluster: self.clone(),
            group,
            mode,
            epoch,
            sent: Vec::new(),
            delivered: 0,
            broken: false,
        })
    }
}

/// One producer.
pub struct Producer {
    cluster: Cluster,
    group: Uuid,
    mode: Mode,
    epoch: u64,
    /// The open transaction's records, with their topics.
    sent: Vec<(String, Record)>,
    delivered: usize,
    broken: bool,
}

impl Producer {
    /// Makes a call; after an error the producer is broken.
    fn with<T, E: From<BrokerError>>(
        &mut self,
        call: impl FnOnce(&mut Producer, &mut Inner) -> Result<T, E>,
    ) -> Result<T, E> {
        assert!(!self.broken, "a producer is used after an error");
        let cluster = self.cluster.clone();
        cluster.pause();
        let mut inner = cluster.lock();
        inner.call();
        let current = inner.groups.entry(self.group).or_default().epoch == self.epoch;
        let result = match current {
            true => call(self, &mut inner),
            false => Err(error(BlockReason::Fenced, "fenced").into()),
        };
        self.broken = result.is_err();
        inner.done();
        result
    }

    /// Why a topic refuses a record.
    fn refusal(inner: &Inner, topic: &str, record: &Record) -> Option<Refusal> {
        let topic = inner.topics.get(topic)?;
        match topic.limit {
            Some(limit) if record.size() > limit => Some(Refusal::TooLarge),
            _ if topic.compacted && record.key.is_none() => Some(Refusal::Invalid),
            _ => None,
        }
    }

    /// Delivers what waits in the queue, up to `limit` records. A batch is all records that wait for a topic.
    fn deliver(&mut self, inner: &mut Inner, limit: usize) -> Result<(), DeliveryError> {
        let state = match inner.plain {
            true => State::Committed,
            false => State::Open(inner.groups[&self.group].open.as_ref().unwrap().number),
        };
        let waiting = self.delivered..self.sent.len().min(self.delivered.saturating_add(limit));
        for index in waiting.clone() {
            let (topic, record) = &self.sent[index];
            let same_topic = waiting.clone().filter(|i| self.sent[*i].0 == *topic);
            let batch: Vec<usize> = match self.mode {
                Mode::Batched => same_topic.collect(),
                Mode::OneByOne => vec![index],
            };
            let refused = batch
                .iter()
                .find_map(|i| Self::refusal(inner, topic, &self.sent[*i].1));
            if let Some(refusal) = refused {
                let index = batch[inner.choose(batch.len())];
                return Err(DeliveryError::Refused { index, refusal });
            }
            match inner.topics.get_mut(topic) {
                None => return Err(error(BlockReason::TopicMissing, "the topic is gone").into()),
                Some(topic) if topic.forbidden => {
                    return Err(error(BlockReason::Authorization, "no right to write").into());
                }
                Some(topic) => topic.records.push(Record {
                    state,
                    ..record.clone()
                }),
            }
            self.delivered += 1;
        }
        Ok(())
    }
}

impl Broker for Producer {
    fn committed(&mut self) -> Result<Option<Committed>, BrokerError> {
        self.with(|producer, inner| {
            if inner.take(|f| f == Fault::NoCoordinator).is_some() {
                return Err(error(BlockReason::Connect, "the coordinator is not available"));
            }
            Ok(inner.groups[&producer.group].committed.clone())
        })
    }

    fn record_limit(&self, topic: &str) -> Option<usize> {
        let inner = self.cluster.lock();
        let topic = inner.topics.get(topic)?;
        topic.limit.filter(|_| topic.limit_told)
    }

    fn begin(&mut self) -> Result<(), BrokerError> {
        self.with(|producer, inner| {
            if inner.take(|f| f == Fault::Begin).is_some() {
                return Err(error(BlockReason::Transaction, "cannot begin"));
            }
            producer.sent.clear();
            producer.delivered = 0;
            if inner.plain {
                return Ok(());
            }
            inner.next_transaction += 1;
            let number = inner.next_transaction;
            let begun = clock::now();
            let group = inner.groups.entry(producer.group).or_default();
            let open = group.open.replace(Open { number, begun });
            assert!(open.is_none(), "a transaction is begun twice");
            Ok(())
        })
    }

    fn send(&mut self, record: Outgoing<'_>, _: Instant) -> Result<(), DeliveryError> {
        let own = |(name, value): &(&str, &[u8])| ((*name).to_owned(), value.to_vec());
        let copy = Record {
            key: record.key.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(own).collect(),
            value: record.value.to_vec(),
            state: State::Aborted,
        };
        let limit = self.cluster.lock().client_limit;
        if limit.is_some_and(|limit| record.value.len() > limit) {
            let (index, refusal) = (self.sent.len(), Refusal::TooLarge);
            return Err(DeliveryError::Refused { index, refusal });
        }
        self.with(|producer, inner| {
            if inner.take(|f| f == Fault::Send).is_some() {
                return Err(error(BlockReason::Connect, "cannot send").into());
            }
            if inner
                .queue
                .is_some_and(|queue| producer.sent.len() - producer.delivered >= queue)
            {
                producer.deliver(inner, usize::MAX)?;
            }
            producer.sent.push((record.topic.to_owned(), copy));
            Ok(())
        })
    }

    fn delivered(&mut self, behind: usize, deadline: Instant) -> Result<(), DeliveryError> {
        let result = self.with(|producer, inner| {
            match inner.take(|f| matches!(f, Fault::Delivery | Fault::Slow)) {
                Some(Fault::Slow) => {
                    clock::simulate_wait(deadline);
                    return Err(DeliveryError::Late(error(BlockReason::Connect, "too slow")));
                }
                Some(_) => {
                    let some = producer.sent.len() / 2;
                    producer.deliver(inner, some)?;
                    return Err(error(BlockReason::Transaction, "delivery failed").into());
                }
                None => {}
            }
            producer.deliver(inner, behind.saturating_sub(producer.delivered))
        });
        // Outside transactions a late delivery is no failure.
        if matches!(result, Err(DeliveryError::Late(_))) && self.cluster.lock().plain {
            self.broken = false;
        }
        result
    }

    fn commit(&mut self, position: Seq, metadata: &str, _: Instant) -> Result<(), BrokerError> {
        let committed = Committed {
            seq: position,
            metadata: metadata.to_owned(),
        };
        if let Some(group) = self.cluster.lock().groups.get_mut(&self.group)
            && group.epoch == self.epoch
        {
            group.under_way = Some(committed.clone());
        }
        self.with(|producer, inner| {
            assert_eq!(
                producer.delivered,
                producer.sent.len(),
                "committed before delivery"
            );
            let fault = inner.take(|f| {
                matches!(
                    f,
                    Fault::ReplyLost | Fault::CommitFails | Fault::CommitLate | Fault::Fence
                )
            });
            match fault {
                Some(Fault::CommitLate) => return Err(error(BlockReason::Transaction, "no answer")),
                Some(Fault::CommitFails) => {
                    inner.groups.entry(producer.group).or_default().under_way = None;
                    return Err(error(BlockReason::Transaction, "commit failed"));
                }
                Some(Fault::Fence) => {
                    inner.fence(producer.group);
                    return Err(error(BlockReason::Fenced, "fenced"));
                }
                _ => {}
            }
            let records = inner.end(producer.group, State::Committed);
            assert_eq!(
                records,
                producer.sent.len(),
                "records of the transaction are lost"
            );
            inner.transactions.push(records);
            producer.sent.clear();
            producer.delivered = 0;
            inner.groups.entry(producer.group).or_default().committed = Some(committed);
            match fault {
                Some(_) => Err(error(BlockReason::Transaction, "the answer is lost")),
                None => Ok(()),
            }
        })
    }
}
