//! What a lane does, step by step, over the [`Broker`] trait: the rules of [`super`] in code.

mod flow;
mod sending;

use std::{
    collections::VecDeque,
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    admin::metrics::{StreamMetrics, TransactionOutcome},
    batch, clock,
    config::Delivery,
    spool::{Backlog, Seq, SpoolError},
    stream::Stream,
};

use super::{
    broker::{BlockReason, Broker, BrokerError, Committed, Connect, DeliveryError, Mode},
    options::LaneOptions,
    position,
    refusal::Refusals,
    sent::Sent,
    trouble::{blocked_by, no_room, not_connected, unreadable},
};

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
    /// With at-least-once delivery: what was sent and is not delivered yet, the oldest first.
    flight: VecDeque<Sent>,
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
        // What is damaged tells no time; it has waited at least since now.
        let oldest = oldest(&mut backlog).or_else(|| (backlog.position() != backlog.end()).then(now_micros));
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
            flight: VecDeque::new(),
            blocked: None,
            stored_at: clock::now(),
            committed_at: Some(clock::now()),
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

    /// Whether all that the log holds now is known to be delivered. That needs no broker.
    pub fn nothing_left(&self) -> bool {
        self.backlog.position() == self.backlog.end() && self.backlog.blocking_damage().is_none()
    }

    /// Stores the checkpoint and lets go of the broker. A lane that has delivered everything is not blocked any more.
    pub fn finish(&mut self) -> Result<(), SpoolError> {
        if self.nothing_left() {
            if self.blocked.take().is_some() {
                self.metrics.lane_free();
            }
            info!(stream = %self.options.stream, "all that the log holds is delivered");
        }
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
                self.flight.clear();
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
        let due = resting || clock::since(self.stored_at) >= self.options.timing.checkpoint_every;
        if due && self.backlog.checkpoint_due() {
            self.backlog.store_checkpoint()?;
            self.stored_at = clock::now();
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
        let next = match self.backlog.peek() {
            Ok(next) => next.map(|batch| batch.seq),
            // What could be read before it is delivered first.
            Err(_) if !self.flight.is_empty() => None,
            Err(error) => return Err(unreadable(error).into()),
        };
        if let Some(refusals) = &self.refusals
            && self.flight.is_empty()
            && next.is_none_or(|next| next >= refusals.until)
        {
            debug!(stream = %self.options.stream, "the refused range is done with");
            let mode = refusals.mode;
            self.refusals = None;
            if mode == Mode::OneByOne {
                return Err(Stop::Again);
            }
        }
        match self.options.delivery {
            Delivery::ExactlyOnce if next.is_some() => return self.transaction(),
            Delivery::AtLeastOnce if next.is_some() || !self.flight.is_empty() => {
                return self.flow(next.is_some());
            }
            _ => {}
        }
        let every = self.options.timing.recommit_every;
        if self.options.delivery == Delivery::ExactlyOnce
            && self.committed_at.is_none_or(|at| clock::since(at) >= every)
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
            return Err(match self.backlog.renew_group() {
                Ok(_) => Stop::Again,
                // As for webhooks, a full disk is waited out.
                Err(error) if error.is_no_space() => no_room(&error).into(),
                Err(error) => error.into(),
            });
        }
        debug!(stream = %self.options.stream, position = start.0, "the position is settled");
        Ok(())
    }

    fn mode(&self) -> Mode {
        self.refusals
            .as_ref()
            .map_or(Mode::Batched, |refusals| refusals.mode)
    }

    /// Delivers the next batches in one transaction.
    fn transaction(&mut self) -> Result<Turn, Stop> {
        let mut sent = Sent::begin(0);
        let deadline = sent.begun + self.mode().time(self.options.transaction_limit);
        let delivered = self
            .begin()
            .and_then(|()| self.send(&mut sent, self.most_events, deadline))
            .and_then(|()| self.broker()?.delivered(sent.behind(), deadline));
        if let Err(error) = delivered {
            if matches!(error, DeliveryError::Late(_)) {
                self.adapt(sent.events, None);
            }
            self.ended(TransactionOutcome::Aborted, sent.begun);
            return Err(match error {
                DeliveryError::Failed(error) | DeliveryError::Late(error) => Stop::Blocked(error),
                DeliveryError::Refused { index, refusal } => {
                    self.refused(&sent, sent.touched(), index, refusal)
                }
            });
        }
        let (begun, end, events) = (sent.begun, sent.end, sent.events);
        let metadata = position::metadata(self.backlog.history(), end.seq);
        self.unconfirmed = Some(sent);
        if let Err(error) = self.broker()?.commit(end.seq, &metadata, deadline) {
            if clock::now() >= deadline {
                self.adapt(events, None);
            }
            self.ended(TransactionOutcome::Failed, begun);
            return Err(error.into());
        }
        self.adapt(events, Some(clock::since(begun)));
        self.ended(TransactionOutcome::Committed, begun);
        if let Some(sent) = self.unconfirmed.take() {
            self.backlog.advance(end);
            self.account(&sent);
        }
        self.committed_at = Some(clock::now());
        self.unblock();
        Ok(Turn::Progress)
    }

    fn begin(&mut self) -> Result<(), DeliveryError> {
        Ok(self.broker()?.begin()?)
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
        self.metrics
            .transaction(outcome, clock::since(begun).as_secs_f64());
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
        let begun = clock::now();
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
        self.committed_at = Some(clock::now());
        Ok(Turn::Progress)
    }

    fn broker(&mut self) -> Result<&mut C::Broker, BrokerError> {
        self.broker.as_mut().ok_or_else(not_connected)
    }

    /// What blocks the lane now.
    #[cfg(test)]
    pub fn blocked(&self) -> Option<BlockReason> {
        self.blocked
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
