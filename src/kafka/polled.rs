//! A producer with a thread that runs its callbacks.
//!
//! rdkafka has one of its own (`ThreadedProducer`). It waits in whole milliseconds and spins through the last part of one: nearly a
//! hundredth of a core for each producer at rest. It also panics if its thread can't be started.

use std::{
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rdkafka::producer::{BaseProducer, Producer};

use super::callbacks::Callbacks;

/// How long the thread waits for events, and so the longest time that dropping takes. The part of a millisecond is over when
/// the whole ones have been waited for, so there is nothing to spin through.
const WAIT: Duration = Duration::from_micros(250_100);

/// A producer whose callbacks run in a thread of its own, until it is dropped.
pub struct PolledProducer {
    producer: Arc<BaseProducer<Callbacks>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PolledProducer {
    /// Starts the thread.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(producer: BaseProducer<Callbacks>) -> io::Result<PolledProducer> {
        let name = format!("poll-{}", producer.client().context().stream());
        let producer = Arc::new(producer);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, ended) = (Arc::clone(&producer), Arc::clone(&stop));
        let thread = thread::Builder::new().name(name).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                polled.poll(WAIT);
            }
        })?;
        Ok(PolledProducer {
            producer,
            stop,
            thread: Some(thread),
        })
    }
}

impl Deref for PolledProducer {
    type Target = BaseProducer<Callbacks>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The producer must be dropped here, where it purges what it holds, and not in its own thread.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;
    use crate::{
        config,
        kafka::{broker::Mode, properties, session::Session},
        stream::Stream,
    };

    /// CPU time of this process's threads with that name.
    fn cpu_of_threads(name: &str) -> Duration {
        let of_thread = |task: fs::DirEntry| {
            let comm = fs::read_to_string(task.path().join("comm")).ok()?;
            let ran = fs::read_to_string(task.path().join("schedstat")).ok()?;
            (comm.trim_end() == name).then(|| ran.split(' ').next().unwrap().parse::<u64>().unwrap())
        };
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        Duration::from_nanos(tasks.filter_map(of_thread).sum())
    }

    #[test]
    fn a_thread_at_rest_takes_no_cpu_time() {
        const TIME: Duration = Duration::from_secs(3);
        let kafka = config::Kafka::for_tests();
        let session = Session::of_tool(&kafka, Stream::Blocks, "client", "group".to_owned());
        let config = properties::producer(&session, Mode::Batched, Duration::from_secs(15), None);
        let producer = PolledProducer::start(session.client(&config).unwrap()).unwrap();
        let begun = Instant::now();
        let used_before = cpu_of_threads("poll-blocks");
        while begun.elapsed() < TIME {
            thread::sleep(Duration::from_millis(50));
        }
        // rdkafka's own thread takes 9 thousandths.
        let used = cpu_of_threads("poll-blocks").saturating_sub(used_before);
        assert!(
            used > Duration::ZERO && used < begun.elapsed() * 4 / 1000,
            "{used:?}"
        );
        drop(producer);
    }
}
