//! The pipelines of a process together: opened side by side, and stopped side by side.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout_at},
};
use tracing::{info, warn};

use super::pipeline::{OpenPipeline, Pipeline, PipelineContext};
use crate::{
    admin::books::StreamBooks, config::Config, leftover::Service, spool::SpoolError, stream::Stream,
};

/// How often to check whether the lanes have ended.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Opens these streams side by side, and waits up to `patience` for them.
///
/// # Errors
/// No event stream that takes webhooks can be opened.
pub(super) async fn open(
    context: PipelineContext,
    streams: &[Stream],
    patience: Duration,
) -> Result<Vec<Pipeline>, SpoolError> {
    let context = Arc::new(context);
    let pipelines = streams
        .iter()
        .map(|stream| Pipeline::start(&context, *stream))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|source| SpoolError::Io {
            action: "start threads for",
            path: context.config.spool.dir.clone(),
            source,
        })?;
    let until = Instant::now() + patience;
    let waiting = spawn_blocking(move || {
        for pipeline in &pipelines {
            if !pipeline.wait(until) {
                let meanwhile = match pipeline.takes_webhooks {
                    true => "its webhooks are answered 503",
                    false => "nothing of it is delivered",
                };
                warn!(stream = %pipeline.stream, "the log is not open yet: {meanwhile} until it is");
            }
        }
        pipelines
    });
    let pipelines = waiting
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    let mut of_events = pipelines
        .iter()
        .filter(|pipeline| pipeline.takes_webhooks && pipeline.stream != Stream::DeadLetters);
    let error = match of_events.clone().all(Pipeline::has_failed) {
        true => of_events.find_map(Pipeline::take_error),
        false => None,
    };
    error.map_or(Ok(pipelines), Err)
}

/// The books of these streams, for metrics and status page.
pub(super) fn books(config: &Config, streams: &[Pipeline]) -> Arc<[StreamBooks]> {
    streams
        .iter()
        .map(|pipeline| {
            let (sized, watched) = (pipeline.appender.clone(), pipeline.appender.clone());
            StreamBooks {
                stream: pipeline.stream,
                topic: config.stream(pipeline.stream).topic.clone(),
                service: match pipeline.takes_webhooks {
                    true => Service::Enabled,
                    false => Service::Leftover,
                },
                books: Arc::clone(&pipeline.books),
                log_state: Box::new(move || watched.state()),
                spool_bytes: Box::new(move || sized.used_bytes()),
                spool_limit_bytes: config.spool.max_bytes,
            }
        })
        .collect()
}

/// Seals the logs, and lets the lanes deliver the backlog: each until it is done, all until `last_words`. Then they stop, and have
/// until `deadline` to end in good order.
pub(super) async fn stop(streams: Vec<Pipeline>, last_words: Instant, deadline: Instant) {
    let (logs, lanes): (Vec<_>, Vec<_>) = streams
        .into_iter()
        .filter_map(|pipeline| {
            let OpenPipeline { log, lane } = pipeline.take()?;
            Some((log, (pipeline.stream, lane, Arc::clone(&pipeline.books))))
        })
        .unzip();
    // Side by side, so that a disk that hangs under one log does not hold up the others.
    let mut closing = JoinSet::new();
    for (i, mut log) in logs.into_iter().enumerate() {
        closing.spawn_blocking(move || {
            log.close();
            i
        });
    }
    let sealed = async {
        while let Some(closed) = closing.join_next().await {
            if let Ok((_, lane, _)) = closed.map(|i| &lanes[i]) {
                lane.drain();
            }
        }
    };
    if timeout_at(deadline.into(), sealed).await.is_err() {
        warn!("the disk was still busy when the grace time ended");
    }
    for (_, lane, _) in &lanes {
        lane.drain();
    }
    let all_ended = || lanes.iter().all(|(_, lane, _)| lane.is_finished());
    while !all_ended() && Instant::now() < deadline {
        if Instant::now() >= last_words {
            lanes.iter().for_each(|(_, lane, _)| lane.stop());
        }
        sleep(LOOK).await;
    }
    for (stream, _, books) in &lanes {
        let books = books.snapshot();
        let backlog = books.backlog();
        info!(%stream, delivered = books.delivered, diverted = books.diverted, backlog, "the stream has stopped");
    }
}
