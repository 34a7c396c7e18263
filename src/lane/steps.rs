//! What a lane does, step by step, over the [`Broker`] trait: the rules of [`super`] in code.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    admin::metrics::{StreamMetrics, TransactionOutcome},
    batch::{self, BatchView},
    config::Delivery,
    dead_letter::Failure,
    spool::{Backlog, Seq, SpoolError, StoredBatch},
    stream::Stream,
};

use super::{
    broker::{BlockReason, Broker, BrokerError, Committed, Connect, DeliveryError, Mode, Outgoing, Refusal},
    options::LaneOptions,
    position,
    refusal::{self, Refusals, dead_letter},
    sent::{Sent, SentRecord},
    trouble::{blocked_by, dead_letter_refused, not_connected, undecodable, unreadable},
};

/// While records are sent one by one, a transaction holds no more than this: each refusal sends it again.
const ONE_BY_ONE_EVENTS: usize = 500;

/// The first transaction holds no more events than this; see [`Lane::adapt`].
const FIRST_EVENTS: usize = 1000;

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do at once.
    Progress,
    /// Everything durable is in Kafka.
    Idle,
    /// Nothing can be done before this time has passed.
    Blocked(Duration),
}

/// One stream's way into Kafka.
pub struct Lane<C: Connect> {
    options: LaneOptions,
    backlog: Backlog,
    connect: C,
    metrics: StreamMetrics,
    broker: Option<C::Broker>,
    /// Set while a range is sent again after a refusal.
    refusals: Option<Refusals>,
    /// The transaction whose commit has not been confirmed.
    unconfirmed: Option<Sent>,
    /// With at-least-once delivery: what was sent and is not delivered yet.
    window: Option<Sent>,
    /// Most events in the next transaction, at most `options.transaction_events`.
    most_events: usize,
    wait: Duration,
    blocked: Option<BlockReason>,
    stored_at: Instant,
    /// When the position in Kafka was known to be this lane's; `None` when it is known not to be.
    committed_at: Option<Instant>,
}

/// Why a turn ended early.
enum Stop {
    Blocked(BrokerError),
    /// A record was refused: send the range again another way, at once.
    Again,
    Spool(SpoolError),
}

impl From<BrokerError> for Stop {
    fn from(error: BrokerError) -> Stop {
        Stop::Blocked(error)
    }
}

impl From<SpoolError> for Stop {
    fn from(error: SpoolError) -> Stop {
        Stop::Spool(error)
    }
}

impl<C: Connect> Lane<C> {
    /// A lane that begins at the log's checkpoint and connects at its first turn.
    pub fn new(options: LaneOptions, mut backlog: Backlog, connect: C, metrics: StreamMetrics) -> Lane<C> {
        let oldest = oldest(&mut backlog);
        backlog
            .accounts()
            .found_delivered(backlog.position().events, oldest);
        Lane {
            wait: options.timing.first_wait,
            most_events: FIRST_EVENTS.min(options.transaction_events),
            options,
            backlog,
            connect,
            metrics,
            broker: None,
            refusals: None,
            unconfirmed: None,
            window: None,
            blocked: None,
            stored_at: Instant::now(),
            committed_at: Some(Instant::now()),
        }
    }

    /// The directory of the lane's log.
    pub fn log_dir(&self) -> PathBuf {
        self.backlog.dir().to_path_buf()
    }

    /// The lane's stream.
    pub fn stream(&self) -> Stream {
        self.options.stream
    }

    /// Wakes [`Lane::wait`] from another thread.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<C> {
        self.backlog.waker()
    }

    /// Waits until there is something to deliver, at most this long.
    pub fn wait(&self, limit: Duration) {
        self.backlog.wait(limit);
    }

    /// Stores the checkpoint and lets go of the broker.
    pub fn finish(&mut self) -> Result<(), SpoolError> {
        // In this order: to let go of a broker that does not answer takes time, and the process may be ended meanwhile.
        let stored = self.backlog.store_checkpoint();
        self.broker = None;
        stored
    }

    /// Does the next thing: connects, delivers a transaction, or finds that there is nothing to do. An error is the
    /// spool's, and the process must end.
    pub fn turn(&mut self) -> Result<Turn, SpoolError> {
        let turn = match self.try_turn() {
            Ok(turn) => turn,
            Err(stop) => {
                self.window = None;
                self.backlog.rewind();
                let turn = match stop {
                    Stop::Spool(error) => return Err(error),
                    Stop::Again => Turn::Progress,
                    Stop::Blocked(error) => self.block(error),
                };
                self.store_checkpoint_when_due(turn)?;
                // Whatever went wrong, this producer's state is not known any more.
                self.broker = None;
                return Ok(turn);
            }
        };
        self.store_checkpoint_when_due(turn)?;
        Ok(turn)
    }

    fn store_checkpoint_when_due(&mut self, turn: Turn) -> Result<(), SpoolError> {
        let resting = turn != Turn::Progress;
        let due = resting || self.stored_at.elapsed() >= self.options.timing.checkpoint_every;
        if due && self.backlog.checkpoint_due() {
            self.backlog.store_checkpoint()?;
            self.stored_at = Instant::now();
        }
        Ok(())
    }

    fn try_turn(&mut self) -> Result<Turn, Stop> {
        if let Some(damage) = self.backlog.blocking_damage() {
            return Err(blocked_by(damage, self.backlog.dir()).into());
        }
        if self.broker.is_none() {
            return self.connect();
        }
        if let Some(sent) = self.window.take() {
            return self.delivered(sent);
        }
        let next = self.backlog.peek().map_err(unreadable)?.map(|batch| batch.seq);
        if let Some(refusals) = &self.refusals
            && next.is_none_or(|next| next >= refusals.until)
        {
            debug!(stream = %self.options.stream, "the refused range is done with");
            let mode = refusals.mode;
            self.refusals = None;
            if mode == Mode::OneByOne {
                return Err(Stop::Again);
            }
        }
        if next.is_some() {
            return match self.options.delivery {
                Delivery::ExactlyOnce => self.transaction(),
                Delivery::AtLeastOnce => self.window(),
            };
        }
        let every = self.options.timing.recommit_every;
        if self.options.delivery == Delivery::ExactlyOnce
            && self.committed_at.is_none_or(|at| at.elapsed() >= every)
        {
            return self.recommit();
        }
        self.unblock();
        Ok(Turn::Idle)
    }

    /// Makes a producer and settles the position.
    fn connect(&mut self) -> Result<Turn, Stop> {
        let mode = self.mode();
        let mut broker = self.connect.connect(self.backlog.group_id(), mode)?;
        let committed = match self.options.delivery {
            Delivery::ExactlyOnce => Some(broker.committed()?),
            Delivery::AtLeastOnce => None,
        };
        self.broker = Some(broker);
        if let Some(committed) = committed {
            self.settle(committed)?;
        }
        Ok(Turn::Progress)
    }

    /// Finds the position to go on from: rules 2 and 3.
    fn settle(&mut self, committed: Option<Committed>) -> Result<(), Stop> {
        let unconfirmed = self.unconfirmed.take();
        let own = self.backlog.position();
        let Some(Committed { seq, metadata }) = committed else {
            info!(stream = %self.options.stream, position = own.seq.0,
                "Kafka has no position for this log; the checkpoint counts");
            if own.seq > Seq(0) {
                self.committed_at = None;
            }
            return Ok(());
        };
        let agreed = position::agreed(self.backlog.history(), self.backlog.end().seq, seq, &metadata);
        let start = agreed.max(own.seq);
        if start > own.seq {
            let found = self.backlog.seek(start).map_err(unreadable)?;
            match unconfirmed {
                // Its commit was done and the answer lost. It has been counted as failed.
                Some(sent) if sent.end == found => self.account(&sent),
                _ => {
                    let oldest = oldest(&mut self.backlog);
                    self.backlog.accounts().found_delivered(found.events, oldest);
                }
            }
        }
        if seq < start {
            self.committed_at = None;
        }
        if agreed < seq {
            error!(
                stream = %self.options.stream, kafka = seq.0, agreed = agreed.0, position = start.0,
                "the position in Kafka belongs to another life of this spool directory: it was restored from an older \
                 copy, copied, or lost its end. Delivery goes on under a new group; nothing is skipped, and what another \
                 copy of this directory delivered may be delivered again"
            );
            self.backlog.renew_group()?;
            return Err(Stop::Again);
        }
        debug!(stream = %self.options.stream, position = start.0, "the position is settled");
        Ok(())
    }

    fn mode(&self) -> Mode {
        self.refusals
            .as_ref()
            .map_or(Mode::Batched, |refusals| refusals.mode)
    }

    /// Sends the next batches, to be awaited without a transaction.
    fn window(&mut self) -> Result<Turn, Stop> {
        let mut sent = Sent::begin();
        let deadline = sent.begun + self.mode().time(self.options.transaction_limit);
        match self.send(&mut sent, deadline) {
            Ok(()) => self.delivered(sent),
            Err(DeliveryError::Refused { index, refusal }) => Err(self.refused(&sent, index, refusal)),
            Err(DeliveryError::Failed(error) | DeliveryError::Late(error)) => Err(error.into()),
        }
    }

    /// Awaits what was sent without a transaction. librdkafka tries again for as long as it takes, and a new producer
    /// would send everything twice: so lateness blocks the lane and keeps the producer.
    fn delivered(&mut self, sent: Sent) -> Result<Turn, Stop> {
        let until = Instant::now() + self.options.timing.late_every;
        match self.broker()?.delivered(until) {
            Ok(()) => {
                self.backlog.advance(sent.end);
                if sent.cut {
                    self.backlog.rewind();
                }
                self.account(&sent);
                self.adapt(sent.events, Some(sent.begun.elapsed()));
                self.unblock();
                Ok(Turn::Progress)
            }
            Err(DeliveryError::Late(error)) => {
                let late = sent.begun.elapsed() >= self.options.transaction_limit;
                self.window = Some(sent);
                if late && self.blocked.is_none() {
                    self.block(error);
                }
                Ok(Turn::Blocked(Duration::ZERO))
            }
            Err(DeliveryError::Failed(error)) => Err(error.into()),
            Err(DeliveryError::Refused { index, refusal }) => Err(self.refused(&sent, index, refusal)),
        }
    }

    /// Delivers the next batches in one transaction.
    fn transaction(&mut self) -> Result<Turn, Stop> {
        let mut sent = Sent::begin();
        let deadline = sent.begun + self.mode().time(self.options.transaction_limit);
        let delivered = self
            .send(&mut sent, deadline)
            .and_then(|()| self.broker()?.delivered(deadline));
        if let Err(error) = delivered {
            if matches!(error, DeliveryError::Late(_)) {
                self.adapt(sent.events, None);
            }
            self.ended(TransactionOutcome::Aborted, sent.begun);
            return Err(match error {
                DeliveryError::Failed(error) | DeliveryError::Late(error) => Stop::Blocked(error),
                DeliveryError::Refused { index, refusal } => self.refused(&sent, index, refusal),
            });
        }
        let (begun, end, events) = (sent.begun, sent.end, sent.events);
        let metadata = position::metadata(self.backlog.history(), end.seq);
        self.unconfirmed = Some(sent);
        if let Err(error) = self.broker()?.commit(end.seq, &metadata, deadline) {
            if Instant::now() >= deadline {
                self.adapt(events, None);
            }
            self.ended(TransactionOutcome::Failed, begun);
            return Err(error.into());
        }
        self.adapt(events, Some(begun.elapsed()));
        self.ended(TransactionOutcome::Committed, begun);
        if let Some(sent) = self.unconfirmed.take() {
            self.backlog.advance(end);
            if sent.cut {
                self.backlog.rewind();
            }
            self.account(&sent);
        }
        self.committed_at = Some(Instant::now());
        self.unblock();
        Ok(Turn::Progress)
    }

    /// Fits transactions to backlog and broker: large ones deliver a backlog faster, and one that is too large for the
    /// time it has would never end. `took` is `None` for one that had to be given up for its time.
    fn adapt(&mut self, events: usize, took: Option<Duration>) {
        self.most_events = match took {
            None => (events / 4).max(1),
            Some(took) if took < self.options.timing.quick && events > self.most_events / 2 => {
                self.most_events * 2
            }
            Some(_) => self.most_events,
        };
        self.most_events = self.most_events.min(self.options.transaction_events);
    }

    fn ended(&self, outcome: TransactionOutcome, begun: Instant) {
        self.metrics.transaction(outcome, begun.elapsed().as_secs_f64());
    }

    /// Sends whole batches up to the transaction's bounds.
    fn send(&mut self, sent: &mut Sent, deadline: Instant) -> Result<(), DeliveryError> {
        self.broker()?.begin()?;
        let most_events = match self.mode() {
            Mode::OneByOne => ONE_BY_ONE_EVENTS.min(self.most_events),
            Mode::Batched => self.most_events,
        };
        loop {
            let next = match self.backlog.peek() {
                Ok(next) => next,
                // What could be read is delivered first; the next turn meets the damage again.
                Err(_) if !sent.is_empty() => break,
                Err(error) => return Err(unreadable(error).into()),
            };
            let Some(next) = next else {
                break;
            };
            let fits = sent.events + next.events as usize <= most_events
                && sent.bytes + next.payload.len() <= self.options.transaction_bytes;
            let in_range = self.refusals.as_ref().is_none_or(|r| next.seq < r.until);
            let joins = sent.is_empty() || fits && in_range;
            if !joins {
                break;
            }
            let Some(batch) = self.backlog.take().map_err(unreadable)? else {
                break;
            };
            let view = match BatchView::decode(&batch.payload) {
                Ok(view) => view,
                Err(_) if !sent.is_empty() => {
                    sent.cut = true;
                    break;
                }
                Err(error) => return Err(undecodable(&batch, error).into()),
            };
            self.send_batch(&batch, &view, sent, deadline)?;
            sent.end = batch.end();
            sent.events += batch.events as usize;
            sent.bytes += batch.payload.len();
        }
        Ok(())
    }

    fn send_batch(
        &mut self,
        batch: &StoredBatch,
        view: &BatchView<'_>,
        sent: &mut Sent,
        deadline: Instant,
    ) -> Result<(), DeliveryError> {
        let Some(broker) = &mut self.broker else {
            return Err(not_connected().into());
        };
        let topic = &self.options.topic;
        let mut headers = Vec::with_capacity(16);
        sent.received.push((view.received_at_micros, view.records.len()));
        for (index, record) in view.records.iter().enumerate() {
            headers.clear();
            headers.extend(view.headers(record));
            let outgoing = Outgoing {
                topic,
                key: record.key,
                headers: &headers,
                value: record.value,
                timestamp_micros: view.received_at_micros,
            };
            let mut verdict = self.refusals.as_ref().and_then(|refusals| {
                refusals.verdict(batch.seq, index, view, record, broker.record_limit(topic))
            });
            if verdict.is_none() {
                match broker.send(outgoing, deadline) {
                    Ok(()) => sent.records.push(SentRecord {
                        batch: batch.seq,
                        number: index,
                        dead_letter: false,
                        keyless: record.key.is_none(),
                    }),
                    // Refused before it was queued: the transaction is not harmed.
                    Err(DeliveryError::Refused { index, refusal }) if index >= sent.records.len() => {
                        verdict = Some(refusal);
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some(refusal) = verdict else {
                continue;
            };
            if self.options.stream == Stream::DeadLetters {
                return Err(dead_letter_refused(topic, refusal).into());
            }
            warn!(
                stream = %self.options.stream, batch = batch.seq.0, index, topic, ?refusal,
                "the broker refused a record; it goes to the dead-letter topic"
            );
            let dead_letter_topic = &self.options.dead_letter_topic;
            let most = broker
                .record_limit(dead_letter_topic)
                .map_or(self.options.max_record_bytes, |limit| {
                    limit.min(self.options.max_record_bytes)
                });
            for part in dead_letter(refusal, topic, &headers, view, record)
                .records(most)
                .iter()
            {
                let outgoing = Outgoing {
                    topic: dead_letter_topic,
                    key: part.key,
                    headers: &part.headers(),
                    value: part.value,
                    timestamp_micros: view.received_at_micros,
                };
                match broker.send(outgoing, deadline) {
                    Ok(()) => sent.records.push(SentRecord {
                        batch: batch.seq,
                        number: index,
                        dead_letter: true,
                        keyless: part.key.is_none(),
                    }),
                    Err(DeliveryError::Refused { index, refusal }) if index >= sent.records.len() => {
                        return Err(dead_letter_refused(dead_letter_topic, refusal).into());
                    }
                    Err(error) => return Err(error),
                }
            }
            sent.diverted.push(Failure {
                reason: refusal::reason(refusal),
                index: Some(index),
            });
        }
        Ok(())
    }

    /// What to do after a refusal: rule 4.
    fn refused(&mut self, sent: &Sent, index: usize, refusal: Refusal) -> Stop {
        let Some(record) = sent.records.get(index) else {
            return Stop::Blocked(BrokerError {
                reason: BlockReason::Other,
                message: format!("record {index} was refused, of {} sent", sent.records.len()),
            });
        };
        let topic = &self.options.topic;
        if self.options.stream == Stream::DeadLetters {
            return dead_letter_refused(topic, refusal).into();
        }
        if let Some(refusals) = &mut self.refusals
            && refusals.mode == Mode::OneByOne
        {
            if record.dead_letter {
                return dead_letter_refused(&self.options.dead_letter_topic, refusal).into();
            }
            refusals.add(record, refusal);
            return Stop::Again;
        }
        let limit = self.broker.as_ref().and_then(|b| b.record_limit(topic));
        let mode = match (&self.refusals, refusal, limit) {
            (None, Refusal::TooLarge, Some(_)) => Mode::Batched,
            _ => Mode::OneByOne,
        };
        info!(
            stream = %self.options.stream, topic, ?refusal, ?mode, events = sent.events,
            "the broker refused a batch; the range is sent again without what it refuses"
        );
        let until = self.refusals.as_ref().map_or(Seq(0), |refusals| refusals.until);
        self.refusals = Some(Refusals::until(until.max(sent.touched()), mode));
        Stop::Again
    }

    /// Books a committed transaction. The position is behind it.
    fn account(&mut self, sent: &Sent) {
        let oldest = oldest(&mut self.backlog);
        self.backlog.accounts().advanced(
            sent.end.events,
            (sent.events - sent.diverted.len()) as u64,
            sent.diverted.len() as u64,
            oldest,
        );
        self.metrics.diverted(&sent.diverted);
        let now = now_micros();
        for (received, events) in &sent.received {
            let seconds = (now - received).max(0) as f64 / 1e6;
            for _ in 0..*events {
                self.metrics.delivery_seconds.observe(seconds);
            }
        }
    }

    /// Commits the position alone, so that the group does not expire: rule 6.
    fn recommit(&mut self) -> Result<Turn, Stop> {
        let begun = Instant::now();
        let deadline = begun + self.options.transaction_limit;
        let position = self.backlog.position();
        let metadata = position::metadata(self.backlog.history(), position.seq);
        let broker = self.broker()?;
        broker.begin()?;
        if let Err(error) = broker.commit(position.seq, &metadata, deadline) {
            self.ended(TransactionOutcome::Failed, begun);
            return Err(error.into());
        }
        self.ended(TransactionOutcome::Committed, begun);
        self.committed_at = Some(Instant::now());
        Ok(Turn::Progress)
    }

    fn broker(&mut self) -> Result<&mut C::Broker, BrokerError> {
        self.broker.as_mut().ok_or_else(not_connected)
    }

    fn block(&mut self, error: BrokerError) -> Turn {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.options.timing.longest_wait);
        self.blocked = Some(error.reason);
        self.metrics.lane_blocked(error.reason, &error.message);
        warn!(
            stream = %self.options.stream, reason = error.reason.label(), retry_in_ms = wait.as_millis() as u64,
            "the lane is blocked: {error}"
        );
        Turn::Blocked(wait)
    }

    fn unblock(&mut self) {
        self.wait = self.options.timing.first_wait;
        if let Some(reason) = self.blocked.take() {
            self.metrics.lane_free();
            info!(stream = %self.options.stream, reason = reason.label(), "the lane is free again");
        }
    }
}

/// When the next batch was received.
fn oldest(backlog: &mut Backlog) -> Option<i64> {
    let next = backlog.peek().ok()??;
    batch::received_at_micros(&next.payload)
}

fn now_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
