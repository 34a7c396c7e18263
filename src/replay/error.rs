//! Why a replay ends early.

use std::io;

use thiserror::Error;

use crate::kafka::broker::BrokerError;

/// Why a replay ended early. What was committed stays.
#[derive(Debug, Error)]
pub enum ReplayError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(
        "group {group} has no position in partition {partition}, which has records that have been there for 7 days or have no \
         timestamp. Kafka forgets the position of a group that was idle for so long, and an earlier replay may have delivered \
         them. If there was none, add \
         --from-beginning"
    )]
    Forgotten { group: String, partition: i32 },
    #[error(
        "in partition {0} letters that are left and letters that are replayed alternate more often than a position can record. \
         Choose other letters, or leave dead for good what is dead now with --give-up"
    )]
    TooScattered(i32),
    #[error(transparent)]
    Output(#[from] io::Error),
}
