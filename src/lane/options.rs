//! Configuration of a lane.

use std::time::Duration;

use crate::{config::Delivery, stream::Stream};

/// Configuration of a lane.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    pub stream: Stream,
    pub delivery: Delivery,
    pub topic: String,
    pub dead_letter_topic: String,
    /// Size of the parts into which dead letters are cut, in bytes.
    pub max_record_bytes: usize,
    /// Maximum number of events in a transaction. A larger batch is still sent whole.
    pub transaction_events: usize,
    /// Maximum number of encoded bytes in a transaction. A larger batch is still sent whole.
    pub transaction_bytes: usize,
    /// A transaction that takes longer is given up. Well below the broker's own time-out.
    pub transaction_limit: Duration,
    pub timing: Timing,
}

/// Intervals and waits of a lane. Tests choose other values.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The longest time by which the checkpoint lags behind Kafka.
    pub checkpoint_every: Duration,
    /// How often an idle lane commits its position.
    pub recommit_every: Duration,
    /// Transactions begin this far apart while there is less to deliver than a full one.
    pub commit_interval: Duration,
    /// The first wait after a failure. It doubles up to `longest_wait`.
    pub first_wait: Duration,
    pub longest_wait: Duration,
    /// How often a wait for deliveries without transactions is interrupted, for the checkpoint and a stop.
    pub late_every: Duration,
    /// A full transaction that took less time may be followed by one twice as large.
    pub quick: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            checkpoint_every: Duration::from_secs(1),
            recommit_every: Duration::from_secs(3600),
            commit_interval: Duration::ZERO,
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(10),
            late_every: Duration::from_millis(500),
            quick: Duration::from_millis(500),
        }
    }
}
