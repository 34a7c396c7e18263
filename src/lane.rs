//! A lane delivers one stream: from its spool log into its Kafka topic, each event once.
//!
//! A lane is a thread with its own cursor, producer and position. It knows Kafka, and nothing of the sender. Its steps are
//! written in [`delivery`], over the trait [`kafka::broker::Broker`](crate::kafka::broker::Broker). The thread in this file
//! only repeats them.
//!
//! # Exactly once
//!
//! The position is the sequence of the next batch to deliver. Kafka stores it, as the offset of the topic's partition 0 in
//! the lane's own consumer group, and moves it in the same transaction as the events. One transaction:
//!
//! ```text
//! begin → send the events of the next whole batches → wait for their deliveries
//!       → offset = position, metadata = history → commit → checkpoint (at most a second later)
//! ```
//!
//! Each of these rules closes a hole:
//!
//! 1. The first delivery error ends the wait. Any abort, failed or slow commit, or fence drops the producer. A new one fences
//!    the old one, reads the committed position and continues from there. So a commit whose answer was lost is discovered, and
//!    no late callback of an old producer counts for a new transaction, because each producer has its own counter.
//! 2. The position is the largest of three: the one in Kafka, the last one confirmed in memory, and the checkpoint. A missing
//!    committed offset never means zero: offsets of idle groups expire, and topics get deleted.
//! 3. A position in Kafka counts only as far as Kafka's metadata and the log agree on who wrote the sequences before it
//!    ([`position`]). Where they disagree, the directory was rolled back, was copied, or lost its tail. The lane then makes the
//!    agreed position durable in the checkpoint and gives the log a new name in Kafka, so that it does not take new events for
//!    delivered ones.
//! 4. A record that its topic can't take goes to the dead-letter topic, in the same transaction. Nothing else is ever diverted:
//!    time-outs, missing rights and missing topics block the lane. A record is diverted in two cases:
//!    - The topic's configuration rules it out, if the broker shows the configuration: it is too large, or has no key on a
//!      compacted topic. The lane knows that before it sends anything. Rules that were read long ago are read again first.
//!    - The broker refuses it. Kafka refuses whole requests, so the lane sends the range again. If the broker named the
//!      refused records, the rest is sent without them. Otherwise the batches of the refused request go one record per request,
//!      and the others as before; a refusal then names its record. If that takes longer than a transaction may, the next ones
//!      only ask about records that the broker has not taken yet. When it has been asked about all, the batches go many
//!      records per request again, without those that it refused.
//!
//!    The records of a received mail belong together: when one of them is diverted, all are.
//!
//!    The broker may refuse an early request while the lane is still sending. Whichever call meets the failure, it reports the
//!    first cause ([`kafka::broker::Broker`](crate::kafka::broker::Broker)).
//! 5. A failure blocks this lane only. The lane tries again after growing waits, with a metric and a log line.
//! 6. An idle lane commits its position every hour, because offsets of idle groups expire.
//! 7. The timestamp of a record is the time of sending. Retention would soon delete a record with an old timestamp, and the
//!    broker would refuse one that is ahead of its clock. If the broker refuses the time of sending, because its clock and this
//!    machine's differ, records go without a timestamp for ten minutes.
//! 8. While events keep coming, transactions begin `kafka.commit_interval` apart, because each costs the brokers much the same
//!    however few events it has. An interval in which none began is kept for one that begins early. So the first event after a
//!    pause goes at once, and events that come once in an interval don't wait. A full transaction and the one after it begin at
//!    once. A drain does not pause.
//!
//! # At least once
//!
//! `kafka.delivery = "at-least-once"` is for brokers without transactions: the same, without begin and commit. The position
//! moves when everything sent is delivered. It lives in the checkpoint alone, which is stored every second.
//!
//! - A partition has one request in flight, and a refusal ends the producer. So nothing that follows a refused record is
//!   delivered before it, and each key's events stay in order. Records known to be delivered by then are not sent again.
//! - A late delivery blocks the lane but keeps the producer for an hour, because the producer's own retries make no
//!   duplicates. Records that wait longer are sent anew, with new timestamps.
//! - After a failed delivery or a crash, the lane sends everything after the position again. Rules 4, 5 and 7 hold.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`delivery`] | the steps of a lane, over the broker trait |
//! | [`in_flight`] | records sent and not yet committed |
//! | [`position`] | how far a position in Kafka can be trusted |
//! | [`refusal`] | knowledge about refused records; how often a lane may connect because of them |
//! | [`causes`] | a lane's own failures, with cause and cure |
//! | [`options`] | configuration of a lane |

mod causes;
pub mod delivery;
mod in_flight;
pub mod options;
pub mod position;
mod refusal;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::delivery::{Lane, Turn};
use crate::{kafka::broker::Connect, spool::SpoolError};

/// How often an idle lane wakes up, for the checkpoint and the hourly commit.
const IDLE: Duration = Duration::from_millis(500);

/// A running lane.
pub struct LaneThread {
    control: Arc<LaneControl>,
    wake_log: Box<dyn Fn() + Send + Sync>,
    handle: JoinHandle<()>,
}

/// The task of a lane. It never goes back to an earlier phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LanePhase {
    /// Deliver.
    Run,
    /// Deliver the rest, then end.
    Drain,
    /// End.
    Stop,
}

/// Tells the lane's thread its phase.
struct LaneControl {
    phase: Mutex<LanePhase>,
    changed: Condvar,
}

impl LaneThread {
    /// Starts a lane. Its thread calls `on_failure` when the spool fails; the process must end then.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start<C: Connect + Send + 'static>(
        lane: Lane<C>,
        on_failure: impl FnOnce(SpoolError) + Send + 'static,
    ) -> io::Result<LaneThread>
    where
        C::Broker: Send,
    {
        let control = Arc::new(LaneControl::new());
        let wake_log = Box::new(lane.waker());
        let name = format!("lane-{}", lane.stream());
        let thread_control = Arc::clone(&control);
        let handle = thread::Builder::new().name(name).spawn(move || {
            // A panic is a bug. It must not leave a stream without a lane unnoticed.
            let dir = lane.log_dir();
            let ended = catch_unwind(AssertUnwindSafe(|| run(lane, &thread_control)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => on_failure(error),
                Err(_) => on_failure(SpoolError::Io {
                    action: "go on delivering from",
                    path: dir,
                    source: io::Error::other("the lane panicked; its message is above"),
                }),
            }
        })?;
        Ok(LaneThread {
            control,
            wake_log,
            handle,
        })
    }

    /// Delivers the rest, then ends.
    pub fn drain(&self) {
        self.enter(LanePhase::Drain);
    }

    /// Ends after the current turn. The checkpoint then covers everything delivered.
    pub fn stop(&self) {
        self.enter(LanePhase::Stop);
    }

    /// Whether the lane has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    fn enter(&self, phase: LanePhase) {
        self.control.enter(phase);
        (self.wake_log)();
    }
}

impl LaneControl {
    fn new() -> LaneControl {
        LaneControl {
            phase: Mutex::new(LanePhase::Run),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LanePhase> {
        self.phase.lock()
    }

    fn enter(&self, phase: LanePhase) {
        let mut current = self.lock();
        *current = phase.max(*current);
        self.changed.notify_all();
    }

    fn phase(&self) -> LanePhase {
        *self.lock()
    }

    /// Sleeps while the phase is still `phase`, at most this long.
    fn sleep(&self, phase: LanePhase, limit: Duration) {
        self.changed
            .wait_while_for(&mut self.lock(), |current| *current == phase, limit);
    }
}

fn run<C: Connect>(mut lane: Lane<C>, control: &LaneControl) -> Result<(), SpoolError> {
    loop {
        let phase = control.phase();
        if phase == LanePhase::Stop || phase == LanePhase::Drain && lane.nothing_left() {
            return lane.finish();
        }
        if phase == LanePhase::Drain {
            lane.hurry();
        }
        match lane.turn()? {
            Turn::Progress => {}
            Turn::Idle if phase == LanePhase::Drain => return lane.finish(),
            Turn::Idle => lane.wait(IDLE),
            Turn::Blocked(wait) | Turn::Paused(wait) => control.sleep(phase, wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_phase_entered_during_a_turn_is_not_slept_over() {
        let control = LaneControl::new();
        let phase = control.phase();
        control.enter(LanePhase::Drain);
        let begun = Instant::now();
        control.sleep(phase, Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_sleeper_is_woken() {
        let control = Arc::new(LaneControl::new());
        let theirs = Arc::clone(&control);
        let begun = Instant::now();
        let sleeper = thread::spawn(move || theirs.sleep(LanePhase::Run, Duration::from_secs(60)));
        control.enter(LanePhase::Stop);
        sleeper.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
