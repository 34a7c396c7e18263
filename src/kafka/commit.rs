//! Commits of transactions, with a limit that holds.
//!
//! librdkafka is told a time-out with each call and does not always keep it: `send_offsets_to_transaction` was seen to wait
//! through a whole outage of the group's coordinator, seven minutes at a limit of ten seconds (librdkafka#5456; #5511 when
//! it has moved), and a lane in it can't say that it is blocked. So the calls are made on a thread of their own, and
//! whoever is late is left behind. The lane drops such a producer as after any failed commit, and the next one fences it:
//! what the call still does can't count.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::KafkaError,
    producer::{Producer, ThreadedProducer},
};

use super::callbacks::Callbacks;

/// librdkafka's own error says more than that time is up, so it may come this much late.
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
    /// What was being done, and the error.
    Error(&'static str, KafkaError),
    /// There is no answer yet. The producer must not be used again.
    Late,
}

impl Committer {
    /// Starts the thread. It ends when this is dropped, once no call is under way.
    pub fn start(
        producer: Arc<ThreadedProducer<Callbacks>>,
        group: ConsumerGroupMetadata,
    ) -> io::Result<Committer> {
        let (jobs, todo) = sync_channel::<Job>(1);
        let (done, answers) = sync_channel(1);
        thread::Builder::new().name("commit".into()).spawn(move || {
            for job in todo {
                // Nobody listens any more when it comes late.
                if done.send(commit(&producer, &group, &job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Committer { jobs, answers })
    }

    /// Commits the open transaction and these offsets with it.
    pub fn commit(&self, offsets: TopicPartitionList, deadline: Instant) -> Result<(), Failed> {
        if self.jobs.send(Job { offsets, deadline }).is_err() {
            return Err(Failed::Late);
        }
        let left = deadline.saturating_duration_since(Instant::now()) + MARGIN;
        self.answers.recv_timeout(left).unwrap_or(Err(Failed::Late))
    }
}

fn commit(
    producer: &ThreadedProducer<Callbacks>,
    group: &ConsumerGroupMetadata,
    job: &Job,
) -> Result<(), Failed> {
    let left = || job.deadline.saturating_duration_since(Instant::now());
    let failed = |doing| move |error| Failed::Error(doing, error);
    producer
        .send_offsets_to_transaction(&job.offsets, group, left())
        .map_err(failed("put the position into the transaction"))?;
    producer
        .commit_transaction(left())
        .map_err(failed("commit the transaction"))
}
