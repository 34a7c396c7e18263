//! The steps of a lane over the [`Broker`] trait: the rules of [`super`] in code.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`sending`] | sends batches, and handles refusals |

mod sending;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing::{debug, error, info, warn};

use crate::{
    batch, clock,
    config::Delivery,
    kafka::broker::{
        BlockReason, Broker, BrokerError, CommittedPosition, Connect, DeliveryError, Mode, RefusedRecords,
    },
    metrics::{StreamMetrics, TransactionOutcome},
    spool::{Backlog, Seq, SpoolError},
    stream::Stream,
};

use super::{
    causes::{blocked_by, no_room, not_connected, unreadable},
    in_flight::InFlight,
    options::LaneOptions,
    position,
    refusal::{Pace, Refusals, mode_of},
};

/// Maximum number of events in the first transaction: see [`Lane::adapt`].
const FIRST_EVENTS: usize = 1000;

/// How long records have no timestamp after the broker refused timestamps.
const UNTIMED: Duration = Duration::from_secs(600);

/// Without transactions, records that wait in the producer keep the timestamps with which they were queued. After this time
/// they are sent anew, before the topic's retention considers them old.
const STALE: Duration = Duration::from_secs(3600);

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do right away.
    Progress,
    /// Everything durable is in Kafka.
    Idle,
    /// Nothing can be done before this time has passed.
    Blocked(Duration),
    /// The next transaction begins after this time: see [`Lane::pause`].
    Paused(Duration),
}

/// The delivery of one stream into Kafka.
pub struct Lane<C: Connect> {
    options: LaneOptions,
    backlog: Backlog,
    connect: C,
    metrics: StreamMetrics,
    broker: Option<C::Broker>,
    /// How the broker sends, and when it was connected.
    mode: Mode,
    connected_at: Instant,
    /// When the broker refused timestamps.
    untimely_at: Option<Instant>,
    /// Set while a range is being sent again after a refusal.
    refusals: Option<Refusals>,
    pace: Pace,
    /// The transaction whose commit is not confirmed.
    unconfirmed: Option<InFlight>,
    /// Records sent and not delivered yet. With transactions it is set only until the turn ends.
    in_flight: Option<InFlight>,
    /// When the next transaction may begin; `None` before the first, and after one that left batches behind.
    next_at: Option<Instant>,
    /// Maximum number of events in the next transaction. Never more than `options.transaction_events`.
    most_events: usize,
    wait: Duration,
    blocked: Option<BlockReason>,
    stored_at: Instant,
    /// When Kafka was last known to have this lane's position; `None` when it is known to have another.
    committed_at: Option<Instant>,
}

/// Why a turn ended early.
enum Stop {
    Blocked(BrokerError),
    /// The deadline passed, and no other cause is known.
    Late(BrokerError),
    Refused(RefusedRecords),
    /// The broker refused timestamps.
    Untimely(BrokerError),
    /// A new producer must continue at once.
    Again,
    /// A new producer must continue after this time.
    Paced(Duration),
    Spool(SpoolError),
}

impl From<DeliveryError> for Stop {
    fn from(error: DeliveryError) -> Stop {
        match error {
            DeliveryError::Refused(refused) => Stop::Refused(refused),
            DeliveryError::Untimely(error) => Stop::Untimely(error),
            DeliveryError::Late(error) => Stop::Late(error),
            DeliveryError::Failed(error) => Stop::Blocked(error),
            error @ DeliveryError::TooLarge => Stop::Blocked(BrokerError {
                reason: BlockReason::Other,
                cause: error.to_string(),
                cure: String::new(),
            }),
        }
    }
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
    /// A lane that begins at the log's checkpoint and connects in its first turn.
    pub fn new(options: LaneOptions, mut backlog: Backlog, connect: C, metrics: StreamMetrics) -> Lane<C> {
        // A damaged batch does not show when it was received. It counts as waiting from now on.
        let oldest =
            oldest(&mut backlog).or_else(|| (backlog.position() != backlog.end()).then(clock::unix_micros));
        backlog.books().found_delivered(backlog.position().events, oldest);
        Lane {
            wait: options.timing.first_wait,
            most_events: FIRST_EVENTS.min(options.transaction_events),
            options,
            backlog,
            connect,
            metrics,
            broker: None,
            mode: Mode::Batched,
            connected_at: clock::now(),
            untimely_at: None,
            refusals: None,
            pace: Pace::new(),
            unconfirmed: None,
            in_flight: None,
            next_at: None,
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

    /// Whether everything in the log is known to be delivered. This needs no broker.
    pub fn nothing_left(&self) -> bool {
        self.backlog.position() == self.backlog.end() && self.backlog.blocking_damage().is_none()
    }

    /// Stores the checkpoint and drops the broker. A lane that has delivered everything is no longer blocked.
    ///
    /// # Errors
    /// The spool has failed.
    pub fn finish(&mut self) -> Result<(), SpoolError> {
        if self.nothing_left() {
            if self.blocked.take().is_some() {
                self.metrics.lane_free();
            }
            info!(stream = %self.options.stream, "everything in the log is delivered");
        }
        // In this order: dropping a broker that does not answer takes time, and the process may be killed meanwhile.
        let stored = self.backlog.store_checkpoint();
        self.broker = None;
        stored
    }

    /// Takes the next step: connects, delivers a transaction, or finds nothing to do.
    ///
    /// # Errors
    /// The spool has failed, and the process must end.
    pub fn turn(&mut self) -> Result<Turn, SpoolError> {
        let turn = match self.try_turn() {
            Ok(turn) => turn,
            Err(stop) => {
                let sent = self.in_flight.take();
                self.backlog.rewind();
                let turn = match self.follow(stop, sent) {
                    Stop::Spool(error) => return Err(error),
                    Stop::Paced(wait) if !wait.is_zero() => Turn::Blocked(wait),
                    Stop::Blocked(error) | Stop::Late(error) => self.block(error),
                    _ => Turn::Progress,
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
        let resting = !matches!(turn, Turn::Progress | Turn::Paused(_));
        let due = resting || clock::since(self.stored_at) >= self.options.timing.checkpoint_every;
        if due && self.backlog.checkpoint_due() {
            self.backlog.store_checkpoint()?;
            self.stored_at = clock::now();
        }
        Ok(())
    }

    /// Decides what to do about the records in flight, given why they were not delivered.
    fn follow(&mut self, stop: Stop, sent: Option<InFlight>) -> Stop {
        match (stop, sent) {
            (Stop::Refused(refused), Some(sent)) => self.refused(&sent, &refused),
            (Stop::Untimely(error), _) if self.untimely_at.is_some() => Stop::Blocked(error),
            (Stop::Untimely(error), _) => {
                warn!(
                    stream = %self.options.stream, "{error}. Records are sent without a timestamp for {} minutes",
                    UNTIMED.as_secs() / 60
                );
                self.untimely_at = Some(clock::now());
                Stop::Again
            }
            (stop, _) => stop,
        }
    }

    fn try_turn(&mut self) -> Result<Turn, Stop> {
        if let Some(damage) = self.backlog.blocking_damage() {
            return Err(blocked_by(damage, self.backlog.dir()).into());
        }
        if self.in_flight.is_some() {
            return self.arrive();
        }
        let next = self.backlog.peek().map(|next| next.map(|batch| batch.seq));
        if self.broker.is_none() {
            let mode = next
                .as_ref()
                .ok()
                .copied()
                .flatten()
                .map(|next| mode_of(self.refusals.as_ref(), next));
            return self.connect(mode.unwrap_or(Mode::Batched));
        }
        let next = next.map_err(unreadable)?;
        if self
            .refusals
            .as_ref()
            .is_some_and(|r| next.is_none_or(|next| next >= r.until))
        {
            debug!(stream = %self.options.stream, "the refused range is delivered");
            self.refusals = None;
        }
        if self.mode != next.map_or(Mode::Batched, |next| mode_of(self.refusals.as_ref(), next)) {
            return Err(Stop::Again);
        }
        if next.is_some() {
            return match self.options.delivery {
                Delivery::ExactlyOnce => match self.pause() {
                    Some(wait) => Ok(Turn::Paused(wait)),
                    None => self.transaction(),
                },
                Delivery::AtLeastOnce => self.window(),
            };
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

    /// Connects a producer and settles the position.
    fn connect(&mut self, mode: Mode) -> Result<Turn, Stop> {
        self.mode = mode;
        let mut broker = self.connect.connect(self.backlog.group_id(), mode)?;
        self.connected_at = clock::now();
        self.untimely_at = self.untimely_at.filter(|at| clock::since(*at) < UNTIMED);
        if self.untimely_at.is_some() {
            broker.omit_timestamps();
        }
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

    /// Finds the position to continue from: rules 2 and 3.
    fn settle(&mut self, committed: Option<CommittedPosition>) -> Result<(), Stop> {
        let unconfirmed = self.unconfirmed.take();
        let own = self.backlog.position();
        let Some(CommittedPosition { seq, metadata }) = committed else {
            info!(stream = %self.options.stream, position = own.seq.0,
                "Kafka has no position for this log; the lane begins at the checkpoint");
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
                // The commit succeeded but its answer was lost. It has been counted as failed.
                Some(sent) if sent.end == found => self.account(&sent),
                _ => {
                    let oldest = oldest(&mut self.backlog);
                    self.backlog.books().found_delivered(found.events, oldest);
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
                 copy, copied, or lost its end. Delivery continues under a new group. Nothing is skipped, but what another \
                 copy of this directory delivered may be delivered again"
            );
            return Err(match self.backlog.renew_group() {
                Ok(_) => Stop::Again,
                // The lane waits for room on the disk, as webhooks do.
                Err(error) if error.is_no_space() => no_room(&error).into(),
                Err(error) => error.into(),
            });
        }
        debug!(stream = %self.options.stream, position = start.0, "the position is settled");
        Ok(())
    }

    /// How long the next transaction waits for more events: rule 8. One that would be full, that follows a full one or a
    /// refusal, begins at once.
    fn pause(&self) -> Option<Duration> {
        let waiting = self.backlog.end().events - self.backlog.position().events;
        let is_paced = !self.options.timing.commit_interval.is_zero() && self.refusals.is_none();
        if !is_paced || waiting >= self.most_events as u64 {
            return None;
        }
        let left = self.next_at?.checked_duration_since(clock::now())?;
        (!left.is_zero()).then_some(left)
    }

    /// When the transaction after one that begins now may begin. Each uses up an interval, and one unused interval is kept, so
    /// that a lane keeps up with events that come just as often as transactions may begin.
    fn next_after(&self, begun: Instant) -> Instant {
        let interval = self.options.timing.commit_interval;
        self.next_at
            .map_or(begun, |next| (next + interval).clamp(begun, begun + interval))
    }

    /// Ends all pauses between transactions, for a lane that is to end.
    pub fn hurry(&mut self) {
        self.options.timing.commit_interval = Duration::ZERO;
    }

    /// Delivers the next batches in one transaction.
    fn transaction(&mut self) -> Result<Turn, Stop> {
        let mut sent = InFlight::begin();
        self.next_at = Some(self.next_after(sent.begun));
        let delivered = self.begin(&sent).and_then(|deadline| {
            self.send(&mut sent, self.most_events, deadline)?;
            self.broker()?.delivered(deadline)?;
            match &mut self.refusals {
                Some(refusals) if sent.only_asks => {
                    refusals.asked_until(sent.end.seq);
                    Err(Stop::Again)
                }
                _ => Ok(deadline),
            }
        });
        let deadline = match delivered {
            Ok(deadline) => deadline,
            Err(mut stop) => {
                if matches!(stop, Stop::Late(_)) {
                    self.adapt(sent.events, None);
                    if self.learn(&sent) {
                        stop = Stop::Paced(self.pace.wait());
                    }
                }
                self.ended(TransactionOutcome::Aborted, sent.begun);
                self.in_flight = Some(sent);
                return Err(stop);
            }
        };
        let (begun, end, events) = (sent.begun, sent.end, sent.events);
        let metadata = position::metadata(self.backlog.history(), end.seq);
        if let Err(error) = self.broker()?.commit(end.seq, &metadata, deadline) {
            if clock::now() >= deadline {
                self.adapt(events, None);
                self.learn(&sent);
            }
            self.ended(TransactionOutcome::Failed, begun);
            self.unconfirmed = Some(sent);
            return Err(error.into());
        }
        self.adapt(events, Some(clock::since(begun)));
        self.ended(TransactionOutcome::Committed, begun);
        self.committed_at = Some(clock::now());
        self.next_at = self.next_at.filter(|_| !sent.full);
        self.book(&sent);
        Ok(Turn::Progress)
    }

    /// Sends the next batches without a transaction.
    fn window(&mut self) -> Result<Turn, Stop> {
        let mut sent = InFlight::begin();
        let deadline = self.begin(&sent)?;
        let result = self.send(&mut sent, self.most_events, deadline);
        self.in_flight = Some(sent);
        result?;
        self.arrive()
    }

    /// Waits for records sent without a transaction. A late delivery blocks the lane but keeps the producer, because a new
    /// one would send everything in flight a second time.
    fn arrive(&mut self) -> Result<Turn, Stop> {
        let until = clock::now() + self.options.timing.late_every;
        let delivered = self.broker()?.delivered(until);
        let Some(sent) = self.in_flight.take() else {
            return Ok(Turn::Progress);
        };
        let took = clock::since(sent.begun);
        match delivered {
            Ok(()) => {
                self.adapt(sent.events, Some(took));
                self.book(&sent);
                Ok(Turn::Progress)
            }
            Err(DeliveryError::Late(error)) if took < STALE => {
                if took >= self.options.transaction_limit && self.blocked.is_none() {
                    self.block(error);
                }
                self.in_flight = Some(sent);
                Ok(Turn::Blocked(Duration::ZERO))
            }
            Err(error) => {
                self.in_flight = Some(sent);
                Err(error.into())
            }
        }
    }

    /// Begins a transaction, or a window. Returns the time at which it must be over.
    fn begin(&mut self, sent: &InFlight) -> Result<Instant, Stop> {
        let limit = self.options.transaction_limit;
        let broker = self.broker()?;
        broker.begin()?;
        Ok(sent.begun + broker.stretch(limit))
    }

    /// Moves the position past the records in flight, which are delivered for good.
    fn book(&mut self, sent: &InFlight) {
        self.backlog.advance(sent.end);
        self.account(sent);
        self.unblock();
    }

    /// Adapts the size of transactions to backlog and broker: large ones deliver a backlog faster, but one that is too large
    /// for its time limit would never succeed. `took` is `None` if the transaction ran out of time.
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

    /// Books a committed transaction. The position must have moved past it already.
    fn account(&mut self, sent: &InFlight) {
        let oldest = oldest(&mut self.backlog);
        self.backlog.books().advanced(
            sent.end.events,
            (sent.events - sent.diverted.len()) as u64,
            sent.diverted.len() as u64,
            oldest,
        );
        self.metrics.diverted(&sent.diverted);
        let now = clock::unix_micros();
        // Added to the metric at once, when dropped.
        let times = self.metrics.delivery_seconds.local();
        for (received, events) in &sent.received {
            let seconds = (now - received).max(0) as f64 / 1e6;
            for _ in 0..*events {
                times.observe(seconds);
            }
        }
    }

    /// Commits only the position, so that the group's offset does not expire: rule 6.
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

    /// What blocks the lane.
    #[cfg(test)]
    pub fn blocked(&self) -> Option<BlockReason> {
        self.blocked
    }

    fn block(&mut self, error: BrokerError) -> Turn {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.options.timing.longest_wait);
        self.blocked = Some(error.reason);
        self.metrics.lane_blocked(error.reason, &error.cause, &error.cure);
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

#[cfg(test)]
mod tests;
