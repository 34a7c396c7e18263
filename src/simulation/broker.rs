//! A simulated Kafka cluster with librdkafka in front, behind [`Connect`] and [`Broker`]: partitions, transactions, fencing,
//! refusals and a read_committed view, with faults that a test queues. A lane that breaks a rule (uses a producer after an
//! error, commits behind a fence) panics here.
//!
//! It must not be kinder than the real ones; `conformance` compares them. In particular:
//!
//! - Records go out in requests of any size, one partition each; partitions overtake each other. A request is sent at any time:
//!   at once, or when something is awaited. So a refusal may show when a much later record is sent.
//! - A request is refused as a whole. The broker may or may not name the refused records, and librdkafka may not even say in
//!   which request they were.
//! - Requests in flight behind a refused one are accepted. So is everything still queued, unless a refusal ends the producer.
//!   The properties of the lane's producers ([`properties::producer`]) determine how many are in flight, and what a refusal
//!   ends.
//! - A topic's rules are those at the time when the producer connected.
//! - The position can't be read for a while after a transaction is left open.
//!
//! A process may have a pause, which is called before each call. There the simulation lets other threads run, or the process
//! die. A commit that was under way when its process died, or whose answer was lost, may still arrive later, unless a newer
//! producer of the group has appeared ([`Cluster::arrive`]).

use std::{
    collections::{BTreeMap, VecDeque},
    panic::resume_unwind,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use super::disk::Pause;
use crate::kafka::{
    broker::{
        BlockReason, Broker, BrokerError, CommittedPosition, Connect, DeliveryError, Mode, Outgoing, Refusal,
        RefusedRecords, TopicRules,
    },
    properties,
    session::Session,
};
use crate::{
    batch::alone_in_batch,
    clock,
    config::{self, Delivery},
    spool::Seq,
    stream::Stream,
};

/// What goes wrong. Each fault waits for the first call it applies to, and happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerFault {
    /// The connection fails, for this reason.
    Connect(BlockReason),
    /// The coordinator returns no position.
    NoCoordinator,
    /// No transaction can be begun.
    Begin,
    /// A record can't be queued.
    Send,
    /// Some records are delivered, then an error follows.
    Delivery,
    /// No record is delivered before the deadline.
    Slow,
    /// The commit is done, but its answer is lost.
    ReplyLost,
    /// The commit fails.
    CommitFails,
    /// The answer is lost, and the commit may be done later.
    CommitLate,
    /// A foreign producer of the same group appears before the commit.
    Fence,
}

/// When the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Before the call with this number.
    Before(usize),
    /// After it.
    After(usize),
}

/// The codec leaves nothing of these bytes, and all of the others.
pub const COMPRESSIBLE: u8 = b'~';

/// The payload of the panic that stands for the death of a process.
pub struct Crashed;

/// A record as a topic holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub value: Vec<u8>,
    /// The number of its transaction; 0 if it has none.
    pub transaction: u64,
    state: TransactionState,
}

impl StoredRecord {
    /// The size that `max.message.bytes` limits.
    fn size(&self, compressed: bool) -> usize {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), &value[..]));
        let shrinks = |byte: &&u8| compressed && **byte == COMPRESSIBLE;
        let saved = self.value.iter().filter(shrinks).count();
        alone_in_batch(self.key.as_deref(), headers, self.value.len() - saved)
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n == name)?;
        std::str::from_utf8(value).ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransactionState {
    Open(u64),
    Committed,
    Aborted,
}

/// A topic's settings and records.
#[derive(Debug, Default)]
pub struct Topic {
    /// The number of partitions besides the first.
    pub more_partitions: usize,
    /// `max.message.bytes`
    pub limit: Option<usize>,
    /// Producers compress what they send: see [`COMPRESSIBLE`].
    pub compressed: bool,
    /// Refuses null keys.
    pub compacted: bool,
    /// Refuses values with this beginning, for a reason that no configuration shows.
    pub refuses: Option<&'static str>,
    /// Whether the broker reveals the topic's configuration.
    pub told: bool,
    /// The bridge's user may not write to it.
    pub forbidden: bool,
    /// The clocks of bridge and broker differ, so timestamps are refused.
    pub clock_differs: bool,
    partitions: BTreeMap<usize, Vec<StoredRecord>>,
}

impl Topic {
    fn rules(&self) -> TopicRules {
        match self.told {
            true => TopicRules {
                max_bytes: self.limit,
                compressed: self.compressed,
                compacted: self.compacted,
                ..TopicRules::default()
            },
            false => TopicRules::default(),
        }
    }

    fn refusal(&self, record: &StoredRecord) -> Option<Refusal> {
        let rules = TopicRules {
            max_bytes: self.limit,
            compressed: false,
            compacted: self.compacted,
            ..TopicRules::default()
        };
        let other = self
            .refuses
            .is_some_and(|begin| record.value.starts_with(begin.as_bytes()));
        rules
            .refuse(record.key.is_none(), || record.size(self.compressed))
            .or(other.then_some(Refusal::Invalid))
    }
}

#[derive(Debug, Default)]
struct Group {
    epoch: u64,
    committed: Option<CommittedPosition>,
    open: Option<Open>,
    /// A commit of the open transaction that is under way.
    under_way: Option<CommittedPosition>,
    /// The topic at which its lane stores its position.
    topic: String,
    /// A transaction was left open, and the position can't be read yet.
    unstable: bool,
}

#[derive(Debug)]
struct Open {
    number: u64,
    begun: Instant,
}

/// Everything that a test can inspect or change.
#[derive(Debug, Default)]
pub struct Inner {
    pub topics: BTreeMap<String, Topic>,
    groups: BTreeMap<Uuid, Group>,
    /// Queued faults.
    pub faults: VecDeque<BrokerFault>,
    pub crash: Option<Crash>,
    /// No transactions: a delivered record is visible.
    pub plain: bool,
    /// librdkafka's own `message.max.bytes`, compared with the value's length.
    pub client_limit: Option<usize>,
    /// The maximum number of records in the producer's queue.
    pub queue: Option<usize>,
    /// The maximum number of records in a request, if there is one.
    pub request: Option<usize>,
    /// Whether the broker names the invalid records of a request.
    pub names_records: bool,
    /// Whether positions may be unreadable for a while after a transaction is left open.
    pub unstable_positions: bool,
    /// One in this many records is sent as soon as it is queued, along with all before it; none if 0.
    pub hasty: usize,
    /// The number of records that a transaction of one record per request can deliver before its deadline, if there is a limit.
    pub one_by_one_in_time: Option<usize>,
    /// The mode of each connection so far.
    pub connects: Vec<Mode>,
    /// The number of calls so far.
    pub transactions: Vec<usize>,
    /// Calls so far.
    pub calls: usize,
    /// The source of random choices, such as which record of a batch an error names.
    pub seed: u64,
    next_transaction: u64,
}

/// The cluster. Clones share it.
#[derive(Clone, Default)]
pub struct Cluster {
    inner: Arc<Mutex<Inner>>,
    topic: String,
    pause: Option<Pause>,
}

impl Cluster {
    /// A cluster with these topics; lanes store their position at the first one.
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

    /// The same cluster for a lane of one process, which pauses at its calls and stores its position at this topic.
    pub fn for_lane(&self, topic: &str, pause: Pause) -> Cluster {
        Cluster {
            topic: topic.to_owned(),
            pause: Some(pause),
            ..self.clone()
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Queues a fault.
    pub fn fault(&self, fault: BrokerFault) {
        self.lock().faults.push_back(fault);
    }

    /// The records that a read_committed consumer sees: none behind the first open transaction.
    pub fn read(&self, topic: &str) -> Vec<StoredRecord> {
        let mut seen = Vec::new();
        self.follow(topic, &mut BTreeMap::new(), |_, record| seen.push(record.clone()));
        seen
    }

    /// Their values as text.
    pub fn values(&self, topic: &str) -> Vec<String> {
        let text = |r: StoredRecord| String::from_utf8(r.value).unwrap();
        self.read(topic).into_iter().map(text).collect()
    }

    /// A group's committed position.
    pub fn committed(&self, group: Uuid) -> Option<CommittedPosition> {
        self.lock().groups.get(&group)?.committed.clone()
    }

    /// Sets a committed position from outside.
    pub fn set_committed(&self, group: Uuid, committed: Option<CommittedPosition>) {
        self.lock().groups.entry(group).or_default().committed = committed;
    }

    /// Deletes a topic with its records and every position stored for it.
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

    /// Aborts transactions that have been open for this long, and fences their producers.
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

    /// Commits whose process died or whose answer was lost arrive.
    pub fn arrive(&self) {
        let mut inner = self.lock();
        let ids: Vec<Uuid> = inner.groups.keys().copied().collect();
        for id in ids {
            let late = inner.groups.get_mut(&id).and_then(|group| group.under_way.take());
            if let Some(committed) = late {
                inner.end(id, TransactionState::Committed);
                inner.groups.entry(id).or_default().committed = Some(committed);
            }
        }
    }

    /// Requests under way are lost.
    pub fn lose(&self) {
        let mut inner = self.lock();
        inner.groups.values_mut().for_each(|group| group.under_way = None);
    }

    /// Reads what a read_committed consumer sees of a topic from the places in `from` on, and advances them. In each partition,
    /// nothing behind the first open transaction is visible.
    pub fn follow(
        &self,
        topic: &str,
        from: &mut BTreeMap<usize, usize>,
        mut seen: impl FnMut(usize, &StoredRecord),
    ) {
        let inner = self.lock();
        for (partition, records) in inner
            .topics
            .get(topic)
            .map(|t| &t.partitions)
            .into_iter()
            .flatten()
        {
            let place = from.entry(*partition).or_default();
            for record in records.iter().skip(*place) {
                match record.state {
                    TransactionState::Open(_) => break,
                    TransactionState::Committed => seen(*partition, record),
                    TransactionState::Aborted => {}
                }
                *place += 1;
            }
        }
    }
}

impl Inner {
    /// Counts a call, and ends the process there if a crash is due.
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

    /// The next fault, if it is one of these.
    fn take(&mut self, of: impl Fn(BrokerFault) -> bool) -> Option<BrokerFault> {
        let next = *self.faults.front()?;
        of(next).then(|| self.faults.pop_front()).flatten()
    }

    fn end(&mut self, group: Uuid, state: TransactionState) -> usize {
        let group = self.groups.entry(group).or_default();
        group.under_way = None;
        let Some(open) = group.open.take() else {
            return 0;
        };
        let mut ended = 0;
        let partitions = self
            .topics
            .values_mut()
            .flat_map(|topic| topic.partitions.values_mut());
        for record in partitions.flatten() {
            if record.state == TransactionState::Open(open.number) {
                record.state = state;
                ended += 1;
            }
        }
        ended
    }

    /// A new producer of the group fences the former ones, whose transaction is aborted.
    fn fence(&mut self, group: Uuid) -> u64 {
        let was_open = self.groups.get(&group).is_some_and(|group| group.open.is_some());
        let unstable = was_open && self.unstable_positions && self.choose(2) == 0;
        self.end(group, TransactionState::Aborted);
        let group = self.groups.entry(group).or_default();
        group.unstable |= unstable;
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
        cause: message.to_owned(),
        cure: String::new(),
    }
}

impl Cluster {
    fn pause(&self) {
        if let Some(pause) = &self.pause {
            pause(None);
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
        if let Some(BrokerFault::Connect(reason)) = inner.take(|f| matches!(f, BrokerFault::Connect(_))) {
            return Err(error(reason, "no connection"));
        }
        match inner.topics.get(&self.topic) {
            None => return Err(error(BlockReason::TopicMissing, "no such topic")),
            Some(topic) if topic.forbidden => return Err(error(BlockReason::Authorization, "no right")),
            Some(_) => {}
        }
        let epoch = inner.fence(group);
        inner.groups.entry(group).or_default().topic = self.topic.clone();
        let rules = inner.topics.iter();
        let rules = rules.map(|(name, topic)| (name.clone(), topic.rules())).collect();
        let plain = inner.plain;
        inner.done();
        let (in_flight, ends_at_refusal) = in_flight(plain, mode);
        Ok(Producer {
            cluster: self.clone(),
            group,
            mode,
            epoch,
            rules,
            in_flight,
            ends_at_refusal,
            timed: true,
            queued: Vec::new(),
            waiting: 0,
            broken: false,
        })
    }
}

/// How many requests a lane's producer keeps in flight, and whether a refusal ends what is queued, according to its properties.
fn in_flight(plain: bool, mode: Mode) -> (usize, bool) {
    static FOUND: [OnceLock<(usize, bool)>; 4] = [const { OnceLock::new() }; 4];
    let delivery = match plain {
        true => Delivery::AtLeastOnce,
        false => Delivery::ExactlyOnce,
    };
    *FOUND[usize::from(plain) * 2 + usize::from(mode == Mode::OneByOne)].get_or_init(|| {
        let kafka = config::Kafka {
            delivery,
            ..config::Kafka::for_tests()
        };
        let timeout = Duration::from_secs(15);
        let session = Session::of_tool(&kafka, Stream::Deliveries, "client", "group".to_owned());
        let properties = properties::producer(&session, mode, timeout, None);
        let in_flight = properties.get("max.in.flight.requests.per.connection");
        let in_flight = in_flight.and_then(|number| number.parse().ok());
        // A failed transaction takes no more records; without transactions this needs a property.
        let ends = !plain || properties.get("enable.gapless.guarantee") == Some("true");
        (in_flight.unwrap_or(5), ends)
    })
}

/// One producer.
pub struct Producer {
    cluster: Cluster,
    group: Uuid,
    mode: Mode,
    epoch: u64,
    rules: BTreeMap<String, TopicRules>,
    /// The maximum number of requests in flight.
    in_flight: usize,
    /// Whether records queued behind a refused one are given up.
    ends_at_refusal: bool,
    /// Whether records have timestamps.
    timed: bool,
    /// The records since `begin`.
    queued: Vec<Queued>,
    /// How many of them are not delivered yet.
    waiting: usize,
    broken: bool,
}

/// A record in the producer.
struct Queued {
    topic: String,
    partition: usize,
    record: StoredRecord,
    delivered: bool,
}

impl Producer {
    /// Makes a call; after an error, the producer is broken.
    fn with<T, E: From<BrokerError>>(
        &mut self,
        call: impl FnOnce(&mut Producer, &mut Inner) -> Result<T, E>,
    ) -> Result<T, E> {
        assert!(!self.broken, "a producer was used after an error");
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

    /// The waiting records as requests: their numbers, with partitions in any order.
    fn requests(&self, inner: &mut Inner) -> Vec<Vec<usize>> {
        let mut partitions: BTreeMap<(&str, usize), VecDeque<Vec<usize>>> = BTreeMap::new();
        for (number, queued) in self
            .queued
            .iter()
            .enumerate()
            .filter(|(_, queued)| !queued.delivered)
        {
            let requests = partitions.entry((&queued.topic, queued.partition)).or_default();
            let most = match self.mode {
                Mode::Batched => inner.request.map_or(usize::MAX, |most| 1 + inner.choose(most)),
                Mode::OneByOne => 1,
            };
            match requests.back_mut() {
                Some(request) if request.len() < most => request.push(number),
                _ => requests.push_back(vec![number]),
            }
        }
        let mut waiting: Vec<_> = partitions.into_values().collect();
        let mut requests = Vec::new();
        while !waiting.is_empty() {
            let next = inner.choose(waiting.len());
            match waiting[next].pop_front() {
                Some(request) => requests.push(request),
                None => drop(waiting.remove(next)),
            }
        }
        requests
    }

    /// Sends at most this many waiting records, until one is refused.
    fn transmit(&mut self, inner: &mut Inner, most: usize, deadline: Instant) -> Result<(), DeliveryError> {
        let limit = inner
            .one_by_one_in_time
            .filter(|_| self.mode == Mode::OneByOne && !inner.plain);
        let in_time = limit.map(|limit| limit.saturating_sub(self.queued.len() - self.waiting));
        let mut left = in_time.map_or(most, |in_time| most.min(in_time));
        let requests = self.requests(inner);
        let mut refused = RefusedRecords {
            named: self.mode == Mode::OneByOne,
            ..RefusedRecords::default()
        };
        let mut all_invalid = true;
        // After a refusal in a partition, only requests that were already in flight go on.
        let mut after = None;
        for mut request in requests {
            request.truncate(left);
            if request.is_empty() {
                break;
            }
            left -= request.len();
            match &mut after {
                Some(0) if self.ends_at_refusal => break,
                Some(more) => *more = usize::saturating_sub(*more, 1),
                None => {}
            }
            let refusals = self.refusals(inner, &request)?;
            if refusals.is_empty() {
                self.append(inner, &request);
                continue;
            }
            all_invalid &= refusals.iter().all(|(_, refusal)| *refusal == Refusal::Invalid);
            let names = inner.names_records && !inner.plain && all_invalid || self.mode == Mode::OneByOne;
            let one = refusals[0].1;
            match names {
                true => refused.records.extend(refusals),
                false => refused
                    .records
                    .extend(request.iter().map(|number| (*number, one))),
            }
            refused.named = names;
            let others = if inner.plain && self.ends_at_refusal {
                0
            } else {
                self.in_flight - 1
            };
            after.get_or_insert(others);
        }
        if after.is_none() && in_time.is_some_and(|in_time| in_time < most) && self.waiting > 0 {
            clock::simulate_wait(deadline);
            return Err(DeliveryError::Late(error(BlockReason::Connect, "too slow")));
        }
        if after.is_none() {
            return Ok(());
        }
        refused.records.sort_unstable_by_key(|(number, _)| *number);
        if self.mode == Mode::Batched && !refused.named && inner.choose(8) == 0 {
            refused.records.clear();
        }
        if inner.plain && inner.choose(4) > 0 {
            let delivered = self
                .queued
                .iter()
                .enumerate()
                .filter(|(_, queued)| queued.delivered);
            refused.delivered = delivered.map(|(number, _)| number).collect();
        }
        Err(DeliveryError::Refused(refused))
    }

    /// The records in a request that their topic refuses.
    fn refusals(&self, inner: &Inner, request: &[usize]) -> Result<Vec<(usize, Refusal)>, DeliveryError> {
        let Some(topic) = inner.topics.get(&self.queued[request[0]].topic) else {
            return Err(error(BlockReason::TopicMissing, "the topic is gone").into());
        };
        if topic.forbidden {
            return Err(error(BlockReason::Authorization, "no right to write").into());
        }
        if topic.clock_differs && self.timed && inner.plain && request.len() > 1 {
            // librdkafka only says that they are invalid.
            return Ok(request.iter().map(|number| (*number, Refusal::Invalid)).collect());
        }
        if topic.clock_differs && self.timed {
            return Err(DeliveryError::Untimely(error(
                BlockReason::TopicInvalid,
                "invalid timestamp",
            )));
        }
        let refusal = |number: &usize| Some((*number, topic.refusal(&self.queued[*number].record)?));
        Ok(request.iter().filter_map(refusal).collect())
    }

    fn append(&mut self, inner: &mut Inner, request: &[usize]) {
        let (transaction, state) = match inner.plain {
            true => (0, TransactionState::Committed),
            false => {
                let number = inner.groups[&self.group].open.as_ref().unwrap().number;
                (number, TransactionState::Open(number))
            }
        };
        for number in request {
            let queued = &mut self.queued[*number];
            queued.delivered = true;
            self.waiting -= 1;
            let record = StoredRecord {
                transaction,
                state,
                ..queued.record.clone()
            };
            let topic = inner.topics.get_mut(&queued.topic).unwrap();
            topic.partitions.entry(queued.partition).or_default().push(record);
        }
    }
}

impl Broker for Producer {
    fn committed(&mut self) -> Result<Option<CommittedPosition>, BrokerError> {
        self.with(|producer, inner| {
            let group = inner.groups.entry(producer.group).or_default();
            if std::mem::take(&mut group.unstable) {
                return Err(error(BlockReason::Transaction, "the position is not stable"));
            }
            if inner.take(|f| f == BrokerFault::NoCoordinator).is_some() {
                return Err(error(BlockReason::Connect, "the coordinator is not available"));
            }
            Ok(inner.groups[&producer.group].committed.clone())
        })
    }

    fn rules(&self, topic: &str) -> TopicRules {
        self.rules.get(topic).copied().unwrap_or_default()
    }

    fn stretch(&self, time: Duration) -> Duration {
        time
    }

    fn omit_timestamps(&mut self) {
        self.timed = false;
    }

    fn begin(&mut self) -> Result<(), BrokerError> {
        self.with(|producer, inner| {
            if inner.take(|f| f == BrokerFault::Begin).is_some() {
                return Err(error(BlockReason::Transaction, "cannot begin"));
            }
            producer.queued.clear();
            producer.waiting = 0;
            if inner.plain {
                return Ok(());
            }
            inner.next_transaction += 1;
            let number = inner.next_transaction;
            let begun = clock::now();
            let group = inner.groups.entry(producer.group).or_default();
            let open = group.open.replace(Open { number, begun });
            assert!(open.is_none(), "a transaction was begun twice");
            Ok(())
        })
    }

    fn send(&mut self, record: Outgoing<'_>, deadline: Instant) -> Result<(), DeliveryError> {
        let own = |(name, value): &(&str, &[u8])| ((*name).to_owned(), value.to_vec());
        let copy = StoredRecord {
            key: record.key.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(own).collect(),
            value: record.value.to_vec(),
            transaction: 0,
            state: TransactionState::Aborted,
        };
        let limit = self.cluster.lock().client_limit;
        if limit.is_some_and(|limit| record.value.len() > limit) {
            return Err(DeliveryError::TooLarge);
        }
        self.with(|producer, inner| {
            if inner.take(|f| f == BrokerFault::Send).is_some() {
                return Err(error(BlockReason::Connect, "cannot send").into());
            }
            let full = inner.queue.is_some_and(|queue| producer.waiting >= queue);
            if full || inner.hasty > 0 && inner.choose(inner.hasty) == 0 {
                producer.transmit(inner, usize::MAX, deadline)?;
            }
            let partitions = inner
                .topics
                .get(record.topic)
                .map_or(0, |topic| topic.more_partitions)
                + 1;
            let partition = match record.key {
                Some(key) => {
                    key.iter()
                        .fold(7, |hash: usize, byte| hash * 31 + usize::from(*byte))
                        % partitions
                }
                None => inner.choose(partitions),
            };
            producer.queued.push(Queued {
                topic: record.topic.to_owned(),
                partition,
                record: copy,
                delivered: false,
            });
            producer.waiting += 1;
            Ok(())
        })
    }

    fn delivered(&mut self, deadline: Instant) -> Result<(), DeliveryError> {
        let result = self.with(|producer, inner| {
            match inner.take(|f| matches!(f, BrokerFault::Delivery | BrokerFault::Slow)) {
                Some(BrokerFault::Slow) => {
                    clock::simulate_wait(deadline);
                    return Err(DeliveryError::Late(error(BlockReason::Connect, "too slow")));
                }
                Some(_) => {
                    let some = producer.queued.len() / 2;
                    producer.transmit(inner, some, deadline)?;
                    return Err(error(BlockReason::Transaction, "delivery failed").into());
                }
                None => {}
            }
            producer.transmit(inner, usize::MAX, deadline)
        });
        // Without transactions, a late delivery is not a failure.
        if matches!(result, Err(DeliveryError::Late(_))) && self.cluster.lock().plain {
            self.broken = false;
        }
        result
    }

    fn taken(&self) -> Vec<usize> {
        let mut inner = self.cluster.lock();
        if inner.plain || self.mode == Mode::Batched {
            return Vec::new();
        }
        let delivered = (0..self.queued.len()).filter(|number| self.queued[*number].delivered);
        // While records wait, the reports of others may be under way.
        delivered
            .filter(|_| self.waiting == 0 || inner.choose(4) > 0)
            .collect()
    }

    fn commit(&mut self, position: Seq, metadata: &str, _: Instant) -> Result<(), BrokerError> {
        let committed = CommittedPosition {
            seq: position,
            metadata: metadata.to_owned(),
        };
        if let Some(group) = self.cluster.lock().groups.get_mut(&self.group)
            && group.epoch == self.epoch
        {
            group.under_way = Some(committed.clone());
        }
        self.with(|producer, inner| {
            assert!(
                producer.queued.iter().all(|queued| queued.delivered),
                "committed before delivery"
            );
            let fault = inner.take(|f| {
                matches!(
                    f,
                    BrokerFault::ReplyLost
                        | BrokerFault::CommitFails
                        | BrokerFault::CommitLate
                        | BrokerFault::Fence
                )
            });
            match fault {
                Some(BrokerFault::CommitLate) => return Err(error(BlockReason::Transaction, "no answer")),
                Some(BrokerFault::CommitFails) => {
                    inner.groups.entry(producer.group).or_default().under_way = None;
                    return Err(error(BlockReason::Transaction, "commit failed"));
                }
                Some(BrokerFault::Fence) => {
                    inner.fence(producer.group);
                    return Err(error(BlockReason::Fenced, "fenced"));
                }
                _ => {}
            }
            let records = inner.end(producer.group, TransactionState::Committed);
            assert_eq!(
                records,
                producer.queued.len(),
                "records of the transaction are lost"
            );
            inner.transactions.push(records);
            producer.queued.clear();
            producer.waiting = 0;
            inner.groups.entry(producer.group).or_default().committed = Some(committed);
            match fault {
                Some(_) => Err(error(BlockReason::Transaction, "the answer is lost")),
                None => Ok(()),
            }
        })
    }
}
