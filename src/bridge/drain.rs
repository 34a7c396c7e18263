//! Delivering a spool whose bridge is gone: the logs and lanes of a bridge, without its ports.
//!
//! Every stream that the spool holds is drained, whether it is enabled or not. Opened as the bridge opens it, with the
//! spool's lock held, so what is promised of deliveries holds here too.

use std::time::{Duration, Instant};

use prometheus::Registry;
use tokio::{sync::mpsc, time::sleep};
use tracing::info;

use super::{LOOK, internal, open_logs, start_lane};
use crate::{
    accounts::Books,
    admin::metrics::{BlockReason, Metrics},
    config::Config,
    exit::Exit,
    spool::SpoolLock,
    stream::Stream,
};

/// Most time for lanes to end in good order when they are told to.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What became of a stream.
#[derive(Clone, Debug)]
pub struct Drained {
    pub stream: Stream,
    pub books: Books,
    /// Why its lane could not go on.
    pub blocked: Option<BlockReason>,
}

/// Delivers what the spool of this configuration holds. Ends when all of it is delivered; when what is left lies behind
/// damage or a disk error; when nothing was delivered for `patience`; or at a word of `stop`. `look` is told about the streams a few
/// times a second.
pub async fn drain(
    config: &Config,
    patience: Option<Duration>,
    mut stop: mpsc::Receiver<()>,
    mut look: impl FnMut(&[Drained]),
) -> Result<Vec<Drained>, Exit> {
    // One without a manifest is not passed over: opening it says what is wrong.
    let streams: Vec<Stream> = Stream::ALL
        .into_iter()
        .filter(|stream| config.spool.dir.join(stream.name()).is_dir())
        .collect();
    if streams.is_empty() {
        let dir = config.spool.dir.display();
        return Err(Exit::Usage(format!("{dir} holds no stream's log of a spool")));
    }
    let lock = SpoolLock::acquire(&config.spool.dir)?;
    let metrics = Metrics::new(&Registry::new(), &streams, []).map_err(internal)?;
    let (failed, mut failures) = mpsc::unbounded_channel();
    let opened = open_logs(config, &streams, &metrics, &failed)
        .into_iter()
        .map(|(_, opened)| opened)
        .collect::<Result<Vec<_>, _>>()?;
    let mut running = opened
        .into_iter()
        .map(|opened| start_lane(config, opened, &metrics, &failed))
        .collect::<Result<Vec<_>, _>>()?;
    for running in &mut running {
        running.log.close();
        running.lane.drain();
    }
    let drained = || -> Vec<Drained> {
        let of = |stream| metrics.for_stream(stream).blocked();
        running
            .iter()
            .map(|running| Drained {
                stream: running.stream,
                books: running.accounts.snapshot(),
                blocked: of(running.stream),
            })
            .collect()
    };
    let left = |drained: &[Drained]| drained.iter().map(|d| d.books.backlog()).sum::<u64>();
    let mut moved = (Instant::now(), left(&drained()));
    loop {
        let now = drained();
        look(&now);
        if left(&now) != moved.1 {
            moved = (Instant::now(), left(&now));
        }
        let stuck = |(running, drained): (&super::Running, &Drained)| {
            running.lane.is_finished() || drained.blocked.is_some_and(BlockReason::is_of_the_spool)
        };
        let given_up = patience.is_some_and(|patience| moved.0.elapsed() >= patience);
        if running.iter().zip(&now).all(stuck) || given_up {
            break;
        }
        tokio::select! {
            Some(error) = failures.recv() => return Err(error.into()),
            Some(()) = stop.recv() => break,
            () = sleep(LOOK) => {}
        }
    }
    // Its last word is the checkpoint.
    let deadline = Instant::now() + LAST_WORDS;
    running.iter().for_each(|running| running.lane.stop());
    while !running.iter().all(|running| running.lane.is_finished()) && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    if let Ok(error) = failures.try_recv() {
        return Err(error.into());
    }
    let result = drained();
    info!(left = left(&result), "the spool has been drained");
    drop(lock);
    Ok(result)
}
