//! A lane: one stream's way from its spool log into its Kafka topic, each event once.
//!
//! A lane is a thread with its own cursor, producer and position. It knows Kafka and nothing of the sender. What it does
//! is written as [`delivery`] over the [`kafka::broker::Broker`](crate::kafka::broker::Broker) trait; the thread here only calls them.
//!
//! # Exactly once
//!
//! The position (the sequence of the next batch) is stored in Kafka, as the offset of the topic's partition 0 in the
//! lane's own consumer group, and moves in the same transaction as the events. One transaction:
//!
//! ```text
//! begin → send the events of the next whole batches → wait for their deliveries
//!       → offset = position, metadata = history → commit → checkpoint (at most a second later)
//! ```
//!
//! Rules, each closing a hole:
//!
//! 1. The first delivery error ends the wait. Any abort, failed or slow commit, or fence drops the producer; a new one
//!    fences the old, reads the committed position and goes on. So a commit whose answer was lost is found out, and no
//!    late callback of an old producer is counted for a new transaction (each has its own counter).
//! 2. The position is the largest of the one in Kafka, the last one confirmed in memory and the checkpoint. No committed
//!    offset is never zero: offsets of idle groups expire, and topics get deleted.
//! 3. A position in Kafka counts only as far as Kafka's metadata and the log agree on who wrote the sequences before it
//!    ([`position`]). Where they don't, the directory was rolled back, copied, or lost its tail: the agreed position is
//!    made durable in the checkpoint and the log takes a new name in Kafka, so that new events are not skipped as
//!    delivered.
//! 4. A record that its topic can't take goes to the dead-letter topic in the same transaction. Nothing else is ever
//!    diverted: time-outs, missing rights and missing topics block the lane. Which records these are:
//!    - Those that the topic's configuration rules out, where the broker tells it: too large, or without a key on a
//!      compacted topic. They are known before anything is sent. Rules that were read long ago are read again first.
//!    - Those that the broker refuses. Kafka refuses whole requests, so the range is sent again: without the refused
//!      records where the broker named them; otherwise the batches that were in the refused request go one record a
//!      request, and the rest as before. What is refused then is known.
//!
//!    The broker refuses an early request while the lane is still sending; whichever call meets the failure, the first
//!    cause is found ([`kafka::broker::Broker`](crate::kafka::broker::Broker)).
//! 5. A failure blocks this lane only, with growing waits, a metric and a log line.
//! 6. While idle, the position is committed again each hour, for offsets of idle groups expire.
//! 7. A record's timestamp is the time of sending: an old one would be retention's prey at once, one ahead of the broker's
//!    clock would be refused. When the broker refuses the time of sending, for its clock and this machine's differ, records
//!    go without a timestamp for ten minutes.
//!
//! # At least once
//!
//! For brokers without transactions, `kafka.delivery = "at-least-once"`: the same without begin and commit. The position moves
//! when all that was sent is delivered, and lives in the checkpoint alone, stored each second.
//!
//! - A partition has one request in flight, and a refusal ends the producer: so nothing behind a refused record is delivered
//!   before it, and the order per key is kept. What is known to be delivered by then is not sent again.
//! - A delivery that is late blocks the lane and keeps the producer, whose own retries make no doubles, for an hour. Records
//!   that wait longer are sent anew, with new timestamps.
//! - A delivery that failed, and a crash, make the lane send again what is behind the position. Rules 4, 5 and 7 hold.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`causes`] | failures that a lane meets by itself, explained |
//! | [`delivery`] | what a lane does, over the broker trait |
//! | [`in_flight`] | what is sent and not yet committed |
//! | [`options`] | what a lane is told |
//! | [`position`] | what a position in Kafka is worth |
//! | [`refusal`] | what is known of refused records; how often a lane may connect for them |

mod causes;
pub mod delivery;
mod in_flight;
pub mod options;
pub mod position;
mod refusal;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use self::delivery::{Lane, Turn};
use crate::{kafka::broker::Connect, spool::SpoolError};

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

/// An idle lane looks up this often, for the checkpoint and the hourly commit.
const IDLE: Duration = Duration::from_millis(500);

/// A running lane.
pub struct LaneThread {
    control: Arc<Control>,
    wake_log: Box<dyn Fn() + Send + Sync>,
    handle: JoinHandle<()>,
}

/// What the lane's thread is asked to do.
struct Control {
    phase: AtomicU8,
    sleep: std::sync::Mutex<()>,
    changed: std::sync::Condvar,
}

impl LaneThread {
    /// Starts a lane. `on_failure` is called from its thread when the spool can't go on: the process must end then.
    pub fn start<C: Connect + Send + 'static>(
        lane: Lane<C>,
        on_failure: impl FnOnce(SpoolError) + Send + 'static,
    ) -> io::Result<LaneThread>
    where
        C::Broker: Send,
    {
        let control = Arc::new(Control::new());
        let wake_log = Box::new(lane.waker());
        let name = format!("lane-{}", lane.stream());
        let thread_control = Arc::clone(&control);
        let handle = thread::Builder::new().name(name).spawn(move || {
            // A panic is a bug, and must not leave a stream without a lane unnoticed.
            let dir = lane.log_dir();
            let ended = catch_unwind(AssertUnwindSafe(|| run(lane, &thread_control)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => on_failure(error),
                Err(_) => on_failure(SpoolError::Io {
                    action: "go on delivering from",
                    path: dir,
                    source: io::Error::other("the lane panicked; its message stands above"),
                }),
            }
        })?;
        Ok(LaneThread {
            control,
            wake_log,
            handle,
        })
    }

    /// Delivers what is left and then ends.
    pub fn drain(&self) {
        self.ask(DRAIN);
    }

    /// Ends at the next chance, with what is delivered by then in the checkpoint.
    pub fn stop(&self) {
        self.ask(STOP);
    }

    /// Whether the lane has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    fn ask(&self, phase: u8) {
        self.control.ask(phase);
        (self.wake_log)();
    }
}

impl Control {
    fn new() -> Control {
        Control {
            phase: AtomicU8::new(RUN),
            sleep: std::sync::Mutex::new(()),
            changed: std::sync::Condvar::new(),
        }
    }

    fn ask(&self, phase: u8) {
        // Under the lock, so that it can't fall between the sleeper's look at the phase and its sleep.
        let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.phase.fetch_max(phase, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    /// Sleeps until asked for something else than `phase`, at most this long.
    fn sleep(&self, phase: u8, limit: Duration) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self
            .changed
            .wait_timeout_while(guard, limit, |()| self.phase() == phase);
    }
}

fn run<C: Connect>(mut lane: Lane<C>, control: &Control) -> Result<(), SpoolError> {
    loop {
        let phase = control.phase();
        if phase == STOP || phase == DRAIN && lane.nothing_left() {
            return lane.finish();
        }
        match lane.turn()? {
            Turn::Progress => {}
            Turn::Idle if phase == DRAIN => return lane.finish(),
            Turn::Idle => lane.wait(IDLE),
            Turn::Blocked(wait) => control.sleep(phase, wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_word_that_came_during_a_turn_is_not_slept_over() {
        let control = Control::new();
        let phase = control.phase();
        control.ask(DRAIN);
        let begun = Instant::now();
        control.sleep(phase, Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_sleeper_is_woken() {
        let control = Arc::new(Control::new());
        let theirs = Arc::clone(&control);
        let begun = Instant::now();
        let sleeper = thread::spawn(move || theirs.sleep(RUN, Duration::from_secs(60)));
        control.ask(STOP);
        sleeper.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
