//! Delivers a spool whose bridge is gone: runs the logs and lanes of a bridge, without its ports.
//!
//! Every stream in the spool is drained, enabled or not. Logs are opened as the bridge opens them, under the spool's lock, so the
//! promises about delivery hold here too. A log that can't be opened does not hold up the others; its error is returned at the end.

use std::{
    mem,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::Registry;
use tokio::{runtime::Handle, sync::mpsc, time::sleep};
use tracing::info;

use super::{
    error::BridgeError,
    pipeline::{Pipeline, PipelineContext, Purpose},
    streams::LOOK,
};
use crate::{
    books::Balance,
    config::Config,
    metrics::{BlockReason, Metrics},
    spool::{SpoolError, SpoolLock},
    stream::Stream,
};

/// How long the lanes may take to stop in good order.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The result for one stream.
#[derive(Clone, Debug)]
pub struct Drained {
    pub stream: Stream,
    pub books: Balance,
    /// Why its lane could not go on.
    pub blocked: Option<BlockReason>,
}

/// How long a drain waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a bridge that still has the spool open.
    pub lock: Duration,
    /// For the next delivery; without a limit if `None`.
    pub progress: Option<Duration>,
}

/// Delivers the contents of this configuration's spool. Ends when all of it is delivered, when the rest lies after damage or a disk
/// error, when `patience` ends, or at a message on `stop`. Calls `look` with the state of the streams a few
/// times a second.
///
/// # Errors
/// The directory holds no log, the spool is locked, or a log or lane failed.
pub async fn drain(
    config: &Config,
    patience: Patience,
    mut stop: mpsc::Receiver<()>,
    mut look: impl FnMut(&[Drained]),
) -> Result<Vec<Drained>, BridgeError> {
    // A directory without a manifest is not skipped: opening it says what is wrong.
    let logs = || {
        let mut streams = Stream::ALL.to_vec();
        streams.retain(|stream| config.spool.dir.join(stream.name()).is_dir());
        streams
    };
    if logs().is_empty() {
        return Err(BridgeError::NoLogs(config.spool.dir.clone()));
    }
    let lock = lock(&config.spool.dir, patience.lock, &mut stop).await?;
    lock.until_the_process_ends();
    let streams = logs();
    let metrics = Arc::new(Metrics::new(&Registry::new(), &streams, [])?);
    let (failed, mut failures) = mpsc::unbounded_channel();
    let context = Arc::new(PipelineContext {
        config: config.clone(),
        metrics: Arc::clone(&metrics),
        failed,
        runtime: Handle::current(),
        purpose: Purpose::Drain,
        repeats: None,
    });
    let pipelines = streams
        .iter()
        .map(|stream| Pipeline::start(&context, *stream))
        .collect::<Result<Vec<_>, _>>()?;
    // Now `failures` ends when the last stream does.
    drop(context);
    let drained = || -> Vec<Drained> {
        pipelines
            .iter()
            .map(|pipeline| Drained {
                stream: pipeline.stream,
                books: pipeline.books.snapshot(),
                blocked: metrics.for_stream(pipeline.stream).blocked(),
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
        let stuck = |(pipeline, drained): (&Pipeline, &Drained)| {
            let finished = pipeline.look(|open| open.lane.is_finished());
            finished == Some(true)
                || pipeline.has_failed()
                || drained.blocked.is_some_and(BlockReason::is_of_the_spool)
        };
        let given_up = patience
            .progress
            .is_some_and(|patience| moved.0.elapsed() >= patience);
        if pipelines.iter().zip(&now).all(stuck) || given_up {
            break;
        }
        tokio::select! {
            Some(error) = failures.recv() => return Err(error.into()),
            Some(()) = stop.recv() => break,
            () = sleep(LOOK) => {}
        }
    }
    // A lane's last act is to store its checkpoint.
    let deadline = Instant::now() + LAST_WORDS;
    let is_finished = |pipeline: &Pipeline| pipeline.look(|open| open.lane.is_finished()).unwrap_or(true);
    for pipeline in &pipelines {
        pipeline.look(|open| open.lane.stop());
    }
    while !pipelines.iter().all(is_finished) && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    let unopened = pipelines.iter().find_map(Pipeline::take_error);
    if let Some(error) = failures.try_recv().ok().or(unopened) {
        return Err(error.into());
    }
    let result = drained();
    info!(left = left(&result), "the spool has been drained");
    Ok(result)
}

/// Locks the spool. Waits for another process that has it open, at most for `patience` and until a message on `stop`.
async fn lock(
    spool: &Path,
    patience: Duration,
    stop: &mut mpsc::Receiver<()>,
) -> Result<SpoolLock, SpoolError> {
    let deadline = Instant::now() + patience;
    let mut told = false;
    loop {
        let result = SpoolLock::acquire(spool);
        if !matches!(result, Err(SpoolError::Locked { .. })) || Instant::now() >= deadline {
            return result;
        }
        if !mem::replace(&mut told, true) {
            info!(spool = %spool.display(), ?patience, "waiting for the bridge that has this spool open");
        }
        tokio::select! {
            Some(()) = stop.recv() => return result,
            () = sleep(LOOK) => {}
        }
    }
}
