//! Commits transactions, with a limit that holds.
//!
//! librdkafka does not always respect the time-out of a call. `send_offsets_to_transaction` was seen to wait through a whole
//! outage of the group's coordinator: seven minutes with a limit of ten seconds (librdkafka#5456; #5511 when the coordinator has
//! moved). A lane that waits in such a call can't report that it is blocked. So a separate thread makes the calls, and a late
//! call is abandoned. The lane then drops the producer, as after any failed commit, and the next producer fences it. Whatever
//! the late call still does has no effect.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{TopicPartitionList, consumer::ConsumerGroupMetadata, error::KafkaError, producer::Producer};

use super::polled::PolledProducer;

/// How long after the deadline to wait for librdkafka's own error, which says more than that the time is up.
const MARGIN: Duration = Duration::from_secs(1);

/// Makes one producer's commits.
pub struct Committer {
    jobs: SyncSender<Job>,
    answers: Receiver<Result<(), Failed>>,
}

struct Job {
    offsets: TopicPartitionList,
    deadline: Instant,
}

/// Why a transaction is not known to be committed.
pub enum Failed {
    /// A call failed: what was being done, and the error.
    Error(&'static str, KafkaError),
    /// The answer is late. The producer must not be used again.
    Late,
}

impl Committer {
    /// Starts the thread. When the committer is dropped, it ends as soon as no call is running.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(producer: Arc<PolledProducer>, group: ConsumerGroupMetadata) -> io::Result<Committer> {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (done, answers) = sync_channel(1);
        thread::Builder::new().name("commit".into()).spawn(move || {
            for job in todo {
                // Nobody waits for a late answer.
                if done.send(commit(&producer, &group, &job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Committer { jobs, answers })
    }

    /// Commits the open transaction, and these offsets with it, if there are any.
    ///
    /// # Errors
    /// The transaction may be committed or not.
    pub fn commit(&self, offsets: TopicPartitionList, deadline: Instant) -> Result<(), Failed> {
        if self.jobs.send(Job { offsets, deadline }).is_err() {
            return Err(Failed::Late);
        }
        let left = deadline.saturating_duration_since(Instant::now()) + MARGIN;
        self.answers.recv_timeout(left).unwrap_or(Err(Failed::Late))
    }
}

fn commit(producer: &PolledProducer, group: &ConsumerGroupMetadata, job: &Job) -> Result<(), Failed> {
    let left = || job.deadline.saturating_duration_since(Instant::now());
    let failed = |doing| move |error| Failed::Error(doing, error);
    if job.offsets.count() > 0 {
        producer
            .send_offsets_to_transaction(&job.offsets, group, left())
            .map_err(failed("put the position into the transaction"))?;
    }
    producer
        .commit_transaction(left())
        .map_err(failed("commit the transaction"))
}
