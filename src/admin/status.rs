//! The status of the bridge for people: one page shows at a glance whether webhooks are taken and delivered; if not, it shows why
//! and what to do.
//!
//! [`Status::report`] gathers a [`StatusReport`]: one snapshot of each stream's books, so that `recovered + accepted = delivered +
//! diverted + backlog` holds in it, and the rates of the last minutes. [`page`] writes it as HTML, its `Serialize` as JSON. A
//! report holds names, counts, times and the texts of errors, and nothing from a webhook.
//!
//! A report waits for nothing: rates and free space on the disk come from samples.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`chart`] | the charts of the page |
//! | [`escaped`] | text from elsewhere, escaped for HTML |
//! | [`page`] | the page: HTML |
//! | [`problems`] | what is wrong, since when, what it costs, and what to do |

mod chart;
mod escaped;
pub mod page;
pub mod problems;
#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize, Serializer};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep},
};

use self::problems::{CertificateFacts, Facts, Onsets, Problem, judge};
use super::{
    books::StreamBooks,
    health::{Health, Readiness},
    rates::{Buckets, CounterSample, EVERY, Quantiles, RateHistory, Rates, StreamSample, per_second},
};
use crate::{
    clock,
    dead_letter::rfc3339_micros,
    human,
    leftover::Service,
    logging,
    metrics::{BlockReason, Blocked, CertificateState, Metrics, Outcome, RecentLetter, Shortage},
    spool::LogState,
};

/// The sources of reports.
pub struct Status {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub books: Arc<[StreamBooks]>,
    pub spool_dir: PathBuf,
    unknown_logs: Vec<String>,
    certificate: Option<CertificateState>,
    started: Instant,
    history: RateHistory,
    onsets: Onsets,
    disk: Mutex<Option<DiskRoom>>,
}

/// Everything that the page shows, at one instant.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    pub at: Time,
    pub version: &'static str,
    pub uptime_seconds: u64,
    pub state: BridgeState,
    /// The state in a sentence.
    pub summary: String,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// Oldest first.
    pub rates: Vec<Rates>,
    /// From the end of a request's header to its answer, in the last five minutes.
    pub acknowledgement_seconds: Option<Quantiles>,
    pub streams: Vec<StreamReport>,
    /// Directories in the spool with events of streams that this version doesn't know.
    pub unknown_logs: Vec<String>,
    pub disk: Option<DiskRoom>,
    /// Newest first.
    pub dead_letters: Vec<LetterReport>,
    /// Requests that were not answered with 200, newest first.
    pub refusals: Vec<RefusalReport>,
}

/// A time, in microseconds since the Unix epoch; RFC 3339 in JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time(pub i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339_micros(self.0))
    }
}

/// The state of the whole bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BridgeState {
    Ready,
    /// Webhooks are taken, but not all of them, or not everything is delivered.
    Impaired,
    Draining,
    NotReady,
}

/// One stream.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    pub stream: &'static str,
    pub topic: String,
    pub lane: LaneState,
    pub log: LogIntake,
    pub recovered: u64,
    pub accepted: u64,
    pub delivered: u64,
    pub diverted: u64,
    pub backlog: u64,
    /// When the oldest event of the backlog was received.
    pub oldest: Option<Time>,
    pub spool_bytes: u64,
    pub spool_limit_bytes: u64,
    /// When the spool will be full, if it goes on growing as in the last minute.
    pub full_in_seconds: Option<u64>,
    pub rates: StreamRates,
    /// Syncs of the last five minutes.
    pub sync_seconds: Option<Quantiles>,
}

/// Events per second, in the last minute.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StreamRates {
    pub accepted: f64,
    pub delivered: f64,
}

/// What a lane is doing.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LaneState {
    /// Everything durable is in Kafka.
    Idle,
    Running,
    Blocked {
        reason: &'static str,
        /// Cause and cure, as in the log.
        message: String,
        cause: String,
        /// May be empty.
        cure: String,
        since: Time,
        last_failure: Time,
    },
}

/// Whether a stream's log takes webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogIntake {
    Accepting,
    Full,
    Failed,
    /// It is being opened, or can't be opened now, so its contents are unknown.
    NotOpen,
    /// The stream is disabled; what its log still holds is delivered.
    Disabled,
    /// The stream is disabled, and its log is not open.
    Unreadable,
}

/// Space on the file system of the spool.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DiskRoom {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Dead letters of one webhook or transaction.
#[derive(Debug, Serialize)]
pub struct LetterReport {
    pub at: Time,
    pub reason: &'static str,
    pub scope: &'static str,
    pub stream: Option<&'static str>,
    /// The first one's place in its list or batch, from 0.
    pub index: Option<usize>,
    pub count: usize,
}

/// Requests with one outcome, and one shortage if it is a 503.
#[derive(Debug, Serialize)]
pub struct RefusalReport {
    pub outcome: &'static str,
    pub cause: Option<&'static str>,
    pub count: u64,
    pub last: Time,
}

impl Status {
    /// A status without samples; [`Status::watch`] takes them.
    pub fn new(
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        books: Arc<[StreamBooks]>,
        spool_dir: PathBuf,
    ) -> Status {
        Status {
            metrics,
            health,
            books,
            spool_dir,
            unknown_logs: Vec::new(),
            certificate: None,
            started: Instant::now(),
            history: RateHistory::default(),
            onsets: Onsets::default(),
            disk: Mutex::new(None),
        }
    }

    /// Shows that the spool holds events of streams that this version doesn't know, in these directories.
    pub fn with_unknown_logs(self, unknown_logs: Vec<String>) -> Status {
        Status { unknown_logs, ..self }
    }

    /// Shows the state of the certificate.
    pub fn with_certificate(self, certificate: Option<CertificateState>) -> Status {
        Status { certificate, ..self }
    }

    /// Takes samples until the future is dropped. A disk that hangs does not hold up the rates.
    pub async fn watch(&self) {
        tokio::join!(self.watch_counters(), self.watch_disk());
    }

    async fn watch_counters(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.history.push(self.sample());
            // So that it is known since when each problem exists, even if nobody looks.
            self.report();
        }
    }

    fn sample(&self) -> CounterSample {
        let of_stream = |of: &StreamBooks| {
            let books = of.books.snapshot();
            StreamSample {
                accepted: books.accepted_total(),
                delivered: books.delivered,
                diverted: books.diverted,
                spool_bytes: (of.spool_bytes)(),
                syncs: Buckets::of(&self.metrics.for_stream(of.stream).sync_seconds),
            }
        };
        CounterSample {
            at: Instant::now(),
            outcomes: self.metrics.outcomes(),
            shortages: Shortage::ALL.map(|shortage| self.metrics.shortages(shortage).0),
            acknowledgements: Buckets::of(self.metrics.acknowledgements()),
            log_lines_dropped: logging::dropped_lines(),
            streams: self.books.iter().map(of_stream).collect(),
        }
    }

    async fn watch_disk(&self) {
        loop {
            let dir = self.spool_dir.clone();
            let found = spawn_blocking(move || rustix::fs::statvfs(dir)).await;
            let disk = found.ok().and_then(Result::ok).map(|stat| DiskRoom {
                free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
                total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            });
            *self.disk.lock() = disk;
            sleep(EVERY).await;
        }
    }

    /// The status now.
    pub fn report(&self) -> StatusReport {
        let at = Time(clock::unix_micros());
        let now = self.sample();
        let ago = |seconds| {
            let before = self.history.before(now.at, Duration::from_secs(seconds));
            before.unwrap_or_else(|| CounterSample::empty(self.started))
        };
        let (a_minute_ago, five_minutes_ago) = (ago(60), ago(300));
        let stream = |(place, of): (usize, &StreamBooks)| {
            let [now, minute, five] = [&now, &a_minute_ago, &five_minutes_ago];
            self.stream(of, place, now, minute, five)
        };
        let streams: Vec<_> = self.books.iter().enumerate().map(stream).collect();
        let readiness = self.health.readiness();
        let (state, summary) = sum_up(readiness, &streams, &self.unknown_logs);
        let uptime = self.started.elapsed();
        let facts = Facts {
            at,
            started: Time(at.0.saturating_sub_unsigned(uptime.as_micros() as u64)),
            readiness,
            streams: &streams,
            unknown_logs: &self.unknown_logs,
            credential_files: self.metrics.credential_files().get(),
            certificate: self.certificate.as_ref().map(|state| CertificateFacts {
                expires: state.expires(),
                refused: state.refused().get().pop(),
            }),
            now: &now,
            a_minute_ago: &a_minute_ago,
            five_minutes_ago: &five_minutes_ago,
            ten_minutes_ago: &ago(600),
            at_first: &ago(u64::MAX),
        };
        StatusReport {
            at,
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: uptime.as_secs(),
            state,
            summary,
            problems: judge(&facts, &self.onsets),
            rates: self.history.rates(now.at),
            acknowledgement_seconds: now
                .acknowledgements
                .since(&five_minutes_ago.acknowledgements)
                .quantiles(),
            streams,
            unknown_logs: self.unknown_logs.clone(),
            disk: *self.disk.lock(),
            dead_letters: self.metrics.letters().get().iter().map(letter).collect(),
            refusals: refusals(&self.metrics),
        }
    }

    /// The stream at this place in the books.
    fn stream(
        &self,
        of: &StreamBooks,
        place: usize,
        now: &CounterSample,
        a_minute_ago: &CounterSample,
        five_minutes_ago: &CounterSample,
    ) -> StreamReport {
        let books = of.books.snapshot();
        let none = StreamSample::default();
        let at = |sample: &CounterSample| sample.streams.get(place).cloned().unwrap_or_default();
        let (minute, current) = (at(a_minute_ago), now.streams.get(place).unwrap_or(&none));
        let time = now.at - a_minute_ago.at;
        let growth = per_second(minute.spool_bytes, current.spool_bytes, time);
        let room = of.spool_limit_bytes.saturating_sub(current.spool_bytes);
        // What grew in a moment says nothing about the next hours.
        let grows = growth > 0.0 && time >= EVERY * 2;
        StreamReport {
            stream: of.stream.name(),
            topic: of.topic.clone(),
            lane: lane(self.metrics.blockade(of.stream).get(), books.backlog()),
            log: match (of.service, (of.log_state)()) {
                (Service::Leftover, LogState::NotOpen) => LogIntake::Unreadable,
                (Service::Leftover, _) => LogIntake::Disabled,
                (Service::Enabled, LogState::Full) => LogIntake::Full,
                (Service::Enabled, LogState::Failed) => LogIntake::Failed,
                (Service::Enabled, LogState::NotOpen) => LogIntake::NotOpen,
                (Service::Enabled, LogState::Accepting) => LogIntake::Accepting,
            },
            recovered: books.recovered,
            accepted: books.accepted_total(),
            delivered: books.delivered,
            diverted: books.diverted,
            backlog: books.backlog(),
            oldest: books.oldest_micros.map(Time),
            spool_bytes: current.spool_bytes,
            spool_limit_bytes: of.spool_limit_bytes,
            full_in_seconds: grows.then(|| (room as f64 / growth) as u64),
            rates: StreamRates {
                accepted: per_second(minute.accepted, current.accepted, time),
                delivered: per_second(minute.delivered, current.delivered, time),
            },
            sync_seconds: current.syncs.since(&at(five_minutes_ago).syncs).quantiles(),
        }
    }
}

/// What was refused since the start, newest first.
fn refusals(metrics: &Metrics) -> Vec<RefusalReport> {
    let of_shortages = Shortage::ALL.map(|shortage| {
        let (outcome, cause) = (shortage.outcome().label(), Some(shortage.cause()));
        (outcome, cause, metrics.shortages(shortage))
    });
    let short = |outcome: Outcome| {
        let of_outcome = Shortage::ALL
            .into_iter()
            .filter(|shortage| shortage.outcome() == outcome);
        of_outcome
            .map(|shortage| metrics.shortages(shortage).0)
            .sum::<u64>()
    };
    let others = Outcome::ALL.map(|outcome| {
        let (count, last) = metrics.refusals(outcome);
        (
            outcome.label(),
            None,
            (count.saturating_sub(short(outcome)), last),
        )
    });
    let all = of_shortages.into_iter().chain(others);
    let mut refusals: Vec<_> = all
        .filter(|(_, _, (count, _))| *count > 0)
        .map(|(outcome, cause, (count, last))| RefusalReport {
            outcome,
            cause,
            count,
            last: Time(last),
        })
        .collect();
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.last.0));
    refusals
}

/// From one time to a later one.
fn seconds(from: Time, to: Time) -> u64 {
    (to.0.saturating_sub(from.0) / 1_000_000).try_into().unwrap_or(0)
}

fn lane(blocked: Option<Blocked>, backlog: u64) -> LaneState {
    match blocked {
        Some(blocked) => LaneState::Blocked {
            reason: BlockReason::label(blocked.reason),
            message: human::with_cure(&blocked.cause, &blocked.cure),
            cause: blocked.cause,
            cure: blocked.cure,
            since: Time(blocked.since_micros),
            last_failure: Time(blocked.last_micros),
        },
        None if backlog == 0 => LaneState::Idle,
        None => LaneState::Running,
    }
}

fn letter(letter: &RecentLetter) -> LetterReport {
    LetterReport {
        at: Time(letter.at_micros),
        reason: letter.reason.name(),
        scope: letter.reason.scope().name(),
        stream: letter.stream.map(|stream| stream.name()),
        index: letter.index,
        count: letter.count,
    }
}

/// The overall state, and a sentence that explains it; the worst comes first.
fn sum_up(readiness: Readiness, streams: &[StreamReport], unknown_logs: &[String]) -> (BridgeState, String) {
    let names = |wanted: fn(&StreamReport) -> bool| {
        let names: Vec<_> = streams.iter().filter(|s| wanted(s)).map(|s| s.stream).collect();
        names.join(", ")
    };
    let backlog: u64 = streams.iter().map(|s| s.backlog).sum();
    let mut hidden = names(|s| matches!(s.log, LogIntake::NotOpen | LogIntake::Unreadable));
    for name in unknown_logs {
        hidden += if hidden.is_empty() { "" } else { ", " };
        hidden += &format!("{name} (unknown to this version)");
    }
    let (waiting, but) = match backlog {
        0 => ("All events are in Kafka".to_owned(), "except for"),
        1 => ("1 event is not in Kafka yet".to_owned(), "and neither is"),
        _ => (
            format!("{} events are not in Kafka yet", human::count(backlog)),
            "and neither is",
        ),
    };
    let waiting = match hidden.is_empty() {
        true => waiting + ".",
        false => format!("{waiting}, {but} what the log of {hidden} holds."),
    };
    match readiness {
        Readiness::Draining => (
            BridgeState::Draining,
            format!("The bridge is stopping. {waiting} What is left stays on disk."),
        ),
        Readiness::LogFailed(stream) => (
            BridgeState::NotReady,
            format!("The log of {stream} can't be written: no webhook can be made durable."),
        ),
        Readiness::LogsFull => (
            BridgeState::NotReady,
            "The spools of all event streams are full: webhooks are refused until Kafka has taken some of the backlog, \
             or the disk has room."
                .to_owned(),
        ),
        Readiness::LogsNotOpen => (
            BridgeState::NotReady,
            "No event stream's log takes webhooks, and some are not open: they are being opened, or can't be.".to_owned(),
        ),
        Readiness::Ready => {
            let full = names(|s| s.log == LogIntake::Full);
            let not_open = names(|s| s.log == LogIntake::NotOpen);
            let blocked = names(|s| matches!(s.lane, LaneState::Blocked { .. }));
            let refused: Vec<_> = [("the full spool of", &full), ("the log that is not open, of", &not_open)]
                .into_iter()
                .filter(|(_, streams)| !streams.is_empty())
                .map(|(what, streams)| format!("{what} {streams}"))
                .collect();
            let state = match refused.is_empty() && blocked.is_empty() && hidden.is_empty() {
                true => BridgeState::Ready,
                false => BridgeState::Impaired,
            };
            let mut summary = match refused.is_empty() {
                true => "Webhooks are taken. ".to_owned(),
                false => format!("Webhooks are taken, but what needs {} is refused. ", refused.join(" or ")),
            };
            if !blocked.is_empty() {
                summary += &format!("Not being delivered: {blocked}. ");
            }
            (state, summary + &waiting)
        }
    }
}
