//! What a lane is told.

use std::time::Duration;

use crate::{config::Delivery, stream::Stream};

/// What a lane is told.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    pub stream: Stream,
    pub delivery: Delivery,
    pub topic: String,
    pub dead_letter_topic: String,
    /// Dead letters are cut into parts of this size.
    pub max_record_bytes: usize,
    /// Most events in a transaction; a larger batch still goes whole.
    pub transaction_events: usize,
    /// Most encoded bytes in a transaction; a larger batch still goes whole.
    pub transaction_bytes: usize,
    /// A transaction that takes longer than this is given up; well below the broker's own time-out.
    pub transaction_limit: Duration,
    pub timing: Timing,
}

/// How often a lane does what it does by the clock. Tests choose other values.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The checkpoint lags behind Kafka by no more than this.
    pub checkpoint_every: Duration,
    /// An idle lane commits its position again after this time.
    pub recommit_every: Duration,
    /// The first wait after a failure; it doubles up to the longest.
    pub first_wait: Duration,
    pub longest_wait: Duration,
    /// Without transactions, a wait for deliveries is interrupted this often, for the checkpoint and for the end.
    pub late_every: Duration,
    /// A full transaction that took less than this may be followed by one twice as large.
    pub quick: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            checkpoint_every: Duration::from_secs(1),
            recommit_every: Duration::from_secs(3600),
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(10),
            late_every: Duration::from_millis(500),
            quick: Duration::from_millis(500),
        }
    }
}
