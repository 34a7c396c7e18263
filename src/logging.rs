//! Log lines go to stderr: text for people, or one JSON object per line.
//!
//! JSON lines have `timestamp`, `level`, `target`, `message` and the event's fields at the top level, and the span's fields (such as
//! a request's id) under `span`. Colours appear only on a terminal, and not with `NO_COLOR`. The filter applies to every target;
//! librdkafka's lines are events of the lane. An event is one line, and nothing in it can steer a terminal, whatever it quotes.
//!
//! A separate thread writes the lines, so that nobody waits for their reader: webhooks, lanes and the stop go on while a log
//! collector hangs. Lines beyond [`QUEUE`] are then dropped and counted ([`DroppedLines`]).

use std::{
    io::{self, IsTerminal},
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use prometheus::{
    IntCounter,
    core::{Collector, Desc},
    proto::{Counter, MetricFamily},
};
use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{
    config::{LogConfig, LogFormat},
    plain::{Passes, escaped},
};

/// The number of lines that may wait to be written.
const QUEUE: usize = 1024;
/// How long the last lines may take at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(5);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// A validated configuration has a valid filter; other callers' may not be.
    #[error("log.level is not a log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging is already set up: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

/// Running logging. Dropping it waits until the last lines are written, unless nobody reads them.
#[must_use]
pub struct Logging(Option<WorkerGuard>);

impl Drop for Logging {
    fn drop(&mut self) {
        let guard = self.0.take();
        // The guard itself writes to standard output, whose reader may hang.
        last_lines(move || drop(guard));
    }
}

/// Writes something at the end of the process, without waiting long for a reader that hangs.
pub fn last_lines(write: impl FnOnce() + Send + 'static) {
    let (writing, written) = mpsc::channel::<()>();
    let thread = thread::Builder::new().spawn(move || {
        write();
        drop(writing);
    });
    if thread.is_ok() {
        let _ = written.recv_timeout(LAST_LINES);
    }
}

/// How many log lines were dropped since nobody read standard error.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// `cmc_bridge_log_lines_dropped_total`.
pub struct DroppedLines(IntCounter);

impl DroppedLines {
    /// A collector, to be registered once.
    ///
    /// # Errors
    /// Never: the name is a constant that Prometheus accepts.
    pub fn new() -> prometheus::Result<DroppedLines> {
        let help = "Log lines that were dropped since nobody read standard error";
        IntCounter::new("cmc_bridge_log_lines_dropped_total", help).map(DroppedLines)
    }
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let mut counter = Counter::default();
        counter.set_value(dropped_lines() as f64);
        for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
            metric.set_counter(counter.clone());
        }
        families
    }
}

/// Begins logging for the whole process.
///
/// # Errors
/// The filter is invalid, or logging has begun already.
pub fn init(log: &LogConfig) -> Result<Logging, LoggingError> {
    let filter = EnvFilter::builder().parse(&log.level)?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let ansi = io::stderr().is_terminal() && !no_color;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        .finish(io::stderr());
    DROPPED.get_or_init(|| writer.error_counter());
    tracing_subscriber::registry()
        .with(filter)
        .with(lines(log.format, ansi, writer))
        .try_init()?;
    Ok(Logging(Some(guard)))
}

/// The layer that writes lines.
fn lines<S, W>(format: LogFormat, ansi: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let passes = match format == LogFormat::Text && ansi {
        true => Passes::LinesAndColours,
        false => Passes::Lines,
    };
    let writer = PlainLines { writer, passes };
    match format {
        LogFormat::Text => fmt::layer().with_writer(writer).with_ansi(ansi).boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
    }
}

/// Makes writers of whole lines, escaped.
struct PlainLines<W> {
    writer: W,
    passes: Passes,
}

struct PlainLine<W> {
    writer: W,
    passes: Passes,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for PlainLines<W> {
    type Writer = PlainLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        PlainLine {
            writer: self.writer.make_writer(),
            passes: self.passes,
        }
    }
}

impl<W: io::Write> io::Write for PlainLine<W> {
    /// Takes one whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = escaped(text.trim_end_matches('\n'), self.passes).replace('\n', "\\n") + "\n";
        self.writer.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, ansi: bool) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = lines(format, ansi, move || writer.clone());
        let subscriber = tracing_subscriber::registry()
            .with(EnvFilter::new("info"))
            .with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("request", id = 7);
            let _entered = span.enter();
            tracing::info!(target: "bridge", stream = "bounces", count = 3, "committed");
            tracing::debug!("hidden");
        });
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_lines_are_flat() {
        let text = logged(LogFormat::Json, true);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["target"], "bridge");
        assert_eq!(line["message"], "committed");
        assert_eq!(line["stream"], "bounces");
        assert_eq!(line["count"], 3);
        assert_eq!(line["span"]["id"], 7);
        assert!(line["timestamp"].is_string());
        assert!(line.get("spans").is_none());
    }

    #[test]
    fn text_lines_have_colours_only_when_asked() {
        let plain = logged(LogFormat::Text, false);
        assert!(
            plain.contains("committed") && plain.contains("stream=\"bounces\""),
            "{plain}"
        );
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert!(logged(LogFormat::Text, true).contains('\u{1b}'));
    }

    #[test]
    fn an_event_is_one_line_that_steers_nothing() {
        for (format, ansi) in [
            (LogFormat::Text, false),
            (LogFormat::Text, true),
            (LogFormat::Json, false),
        ] {
            let buffer = Buffer::default();
            let writer = buffer.clone();
            let layer = lines(format, ansi, move || writer.clone());
            let subscriber = tracing_subscriber::registry().with(layer);
            let bad = "a\nb\u{1b}[2Jc\u{9b}2Jd\u{202e}e\u{200b}";
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(shown = %bad, debug = ?bad, plain = bad, "{bad}");
            });
            let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(!text.contains("\u{1b}[2J"), "{text:?}");
            let steers = |c| crate::plain::steers(c) && c != '\n' && !(ansi && c == '\u{1b}');
            assert!(!text.contains(steers), "{text:?}");
        }
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        let log = LogConfig {
            format: LogFormat::Text,
            level: "a=b=c".to_owned(),
        };
        assert!(matches!(init(&log), Err(LoggingError::Filter(_))));
    }
}
