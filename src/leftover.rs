//! Logs in a spool that belong to no enabled stream.
//!
//! A stream can be disabled while acknowledged events wait in its log. They are still owed to Kafka, and the configuration
//! still has the topic. So the bridge delivers them until the log is empty, but takes no webhooks for the stream ([`Service`]).
//! A log that holds nothing stays closed: a disabled stream needs no topic.
//!
//! - *A log that can't be opened* keeps no other stream from starting, and the bridge tries it again as it does any other.
//!   Meanwhile it counts as a blocked lane.
//! - *A log of an unknown stream* was written by a newer version, and only that one knows its topic. It can't be delivered, so
//!   the log, a metric, the status page and the commands report it.
//! - *A log in another directory* than `spool.dir` is not looked for. `spool drain --dir` delivers it.

use std::{fmt, io, path::Path};

use crate::{
    spool::{
        SpoolError, SpoolLock,
        survey::{Survey, segments},
    },
    stream::Stream,
};

/// Logs that hold events although they take no webhooks.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Logs of disabled streams.
    pub disabled: Vec<(Stream, Left)>,
    /// Logs of streams that this version doesn't know, by the names of their directories.
    pub unknown: Vec<(String, Left)>,
}

/// The contents of such a log.
#[derive(Debug)]
pub enum Left {
    /// This many events are not known to be in Kafka.
    Events(u64),
    /// Unknown, for this reason: the log is damaged, can't be read, or is open.
    Unknown(String),
}

/// What a bridge does for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The stream is enabled: takes its webhooks and delivers their events.
    Enabled,
    /// The stream is disabled: delivers what its log still holds.
    Leftover,
}

impl Leftovers {
    /// Looks into the spool in `dir`. The caller holds its lock. `enabled` says which streams take webhooks.
    ///
    /// # Errors
    /// The directory can't be listed. A missing one counts as empty.
    pub fn look(dir: &Path, enabled: impl Fn(Stream) -> bool) -> Result<Leftovers, SpoolError> {
        Leftovers::look_by(dir, enabled, look)
    }

    /// The result when nobody could look: every disabled stream may have left something.
    pub fn unseen(enabled: impl Fn(Stream) -> bool) -> Leftovers {
        let unseen = || Left::Unknown("the disk doesn't answer".to_owned());
        let disabled = Stream::ALL.into_iter().filter(|stream| !enabled(*stream));
        Leftovers {
            disabled: disabled.map(|stream| (stream, unseen())).collect(),
            unknown: Vec::new(),
        }
    }

    /// [`Leftovers::look`] without the lock. The contents of logs are unknown while a bridge has the spool open.
    ///
    /// # Errors
    /// The directory can't be listed, or its lock can't be tried. A missing directory counts as empty.
    pub fn look_from_outside(dir: &Path, enabled: impl Fn(Stream) -> bool) -> Result<Leftovers, SpoolError> {
        match SpoolLock::of_existing(dir) {
            Err(SpoolError::Locked { .. }) => Leftovers::look_by(dir, enabled, |log| {
                let is_there = segments(log).map_or(true, |segments| !segments.is_empty());
                is_there.then(|| Left::Unknown("a bridge has the spool open".to_owned()))
            }),
            // The lock is not kept: a bridge that starts meanwhile must find it free.
            lock => {
                lock?;
                Leftovers::look(dir, enabled)
            }
        }
    }

    fn look_by(
        dir: &Path,
        enabled: impl Fn(Stream) -> bool,
        look: impl Fn(&Path) -> Option<Left>,
    ) -> Result<Leftovers, SpoolError> {
        let disabled = Stream::ALL.into_iter().filter(|stream| !enabled(*stream));
        Ok(Leftovers {
            disabled: disabled
                .filter_map(|stream| Some((stream, look(&dir.join(stream.name()))?)))
                .collect(),
            unknown: unknown_logs(dir)?
                .into_iter()
                .filter_map(|name| {
                    let left = look(&dir.join(&name))?;
                    Some((name, left))
                })
                .collect(),
        })
    }

    /// Whether this stream is disabled and its log holds something.
    pub fn has(&self, stream: Stream) -> bool {
        self.disabled.iter().any(|(of, _)| *of == stream)
    }
}

/// The contents of the log in `dir`; `None` if it holds nothing.
fn look(dir: &Path) -> Option<Left> {
    let survey = match Survey::open(dir) {
        Ok(survey) => survey?,
        Err(error) => return Some(Left::Unknown(error.to_string())),
    };
    let mut found = survey.found_at_open().iter();
    if let Some(damage) = found.find(|damage| !damage.is_harmless()) {
        return Some(Left::Unknown(format!("{}: {damage}", dir.display())));
    }
    let (from, to) = (survey.position(), survey.end());
    (from.seq < to.seq).then(|| Left::Events(to.events.saturating_sub(from.events)))
}

/// The directories in `dir` that hold a log and are not named after a stream, sorted by name. A damaged log that a repair has
/// set aside is not among them.
///
/// # Errors
/// The directory can't be listed. A missing one counts as empty.
pub fn unknown_logs(dir: &Path) -> Result<Vec<String>, SpoolError> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.split_once('.').map_or(name.as_str(), |(stem, _)| stem);
            let is_known = Stream::ALL.iter().any(|stream| stream.name() == stem);
            if !is_known && entry.path().join("manifest").is_file() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| SpoolError::Io {
            action: "list",
            path: dir.to_owned(),
            source,
        }),
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Events(1) => f.write_str("1 event"),
            Left::Events(events) => write!(f, "{events} events"),
            Left::Unknown(why) => write!(f, "an unknown number of events ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus::Registry;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        batch::BatchBuilder,
        books::Books,
        metrics::Metrics,
        spool::{Durability, Log, LogMetrics, LogOptions, storage::FileSystem},
        stream::Tally,
    };

    /// A log in `dir` with so many events, each in a batch of its own.
    async fn write_log(dir: &Path, events: usize) {
        let options = LogOptions {
            dir: dir.to_owned(),
            name: "test",
            max_bytes: 1 << 20,
            segment_bytes: 64 << 10,
            durability: Durability::Fsync,
        };
        let metrics = Metrics::new(&Registry::new(), &[], []).unwrap();
        let of_stream = metrics.for_stream(Stream::Blocks);
        let log_metrics = LogMetrics {
            sync_seconds: of_stream.sync_seconds.clone(),
            commit_webhooks: of_stream.commit_webhooks.clone(),
        };
        let books = Arc::new(Books::default());
        let (mut log, _backlog) =
            Log::open(Arc::new(FileSystem), &options, books, log_metrics, |_| {}).unwrap();
        for _ in 0..events {
            let mut batch = BatchBuilder::new(0, &[], b"", 0);
            batch.push(None, &[], &[b"event"]);
            let mut tally = Tally::default();
            tally.count(Stream::Blocks, None);
            let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            log.appender()
                .append(batch.finish(), tally, permit, deadline)
                .await
                .unwrap();
        }
        log.close();
    }

    fn shown(dir: &Path) -> (Vec<String>, Vec<String>) {
        let left = Leftovers::look(dir, |stream| stream != Stream::Blocks).unwrap();
        (
            left.disabled
                .iter()
                .map(|(stream, left)| format!("{stream}: {left}"))
                .collect(),
            left.unknown
                .iter()
                .map(|(name, left)| format!("{name}: {left}"))
                .collect(),
        )
    }

    #[tokio::test]
    async fn what_waits_where_no_webhook_goes_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let nothing = (Vec::new(), Vec::new());
        assert_eq!(shown(&dir.join("missing")), nothing);
        for name in ["lost+found", "blocks.damaged-1", "blocks"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        write_log(&dir.join("deliveries"), 1).await;
        write_log(&dir.join("blocks.damaged-1"), 1).await;
        write_log(&dir.join("blocks"), 0).await;
        write_log(&dir.join("openings"), 0).await;
        assert_eq!(shown(dir), nothing);

        write_log(&dir.join("blocks"), 2).await;
        write_log(&dir.join("openings"), 1).await;
        let some = |left: &str| vec![left.to_owned()];
        assert_eq!(shown(dir), (some("blocks: 2 events"), some("openings: 1 event")));

        let damage = |file: &str| {
            for name in ["blocks", "openings"] {
                std::fs::write(dir.join(name).join(file), "?").unwrap();
            }
        };
        // Its copy has all that is needed.
        damage("manifest");
        assert_eq!(shown(dir), (some("blocks: 2 events"), some("openings: 1 event")));
        damage("manifest.copy");
        let (disabled, unknown) = shown(dir);
        assert!(disabled[0].contains("blocks: an unknown number"), "{disabled:?}");
        assert!(unknown[0].contains("the manifest is damaged"), "{unknown:?}");
    }
}
