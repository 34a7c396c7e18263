//! What is wrong with a bridge: each problem with its severity, since when, what it costs, and what to do.
//!
//! The page, `/status.json`, `cmc-bridge why` and `cmc-bridge top` show these problems; none of them judges by itself. The causes
//! are the texts of the log. A problem belongs to an alert ([`ProblemKind::alert`]): it has the same severity, its limits are the
//! alert's, and the alert's runbook is its own. Unlike the alert, it is shown at once.
//!
//! A report is judged as it stands ([`judge`]); only [`Onsets`] remembers, for problems that have no beginning of their own, when
//! each was first seen.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{LaneState, LogIntake, StreamReport, Time};
use crate::{
    admin::{health::Readiness, rates::CounterSample},
    human,
    metrics::{BlockReason, Outcome, RefusedFile, Shortage},
};

/// How bad a problem is, with the meaning of the alerts' severities. The worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Webhooks or acknowledged events are in danger now.
    Critical,
    /// Consumers wait, or danger approaches.
    Warning,
    /// There is time.
    Info,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
            Severity::Info => "info",
        }
    }
}

/// Every kind of problem. Of those with the same severity, the one declared first is the worse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    LogFailed,
    LogNotOpen,
    SpoolFull,
    WebhooksRefused,
    Damage,
    SpoolNearlyFull,
    BooksDiffer,
    CertificateExpiresSoon,
    Draining,
    Starting,
    LaneBlocked,
    SpoolFilling,
    SyncsSlow,
    AnswersSlow,
    EventsWaiting,
    CredentialsRefused,
    CertificateRefused,
    CredentialFailures,
    CredentialsMissing,
    CertificateExpires,
    UnknownLogs,
    LogLinesDropped,
    EventsDiverted,
    DeadLetters,
}

impl ProblemKind {
    /// The alert for the same fault. Its section in docs/operations.md is the runbook.
    pub fn alert(self) -> &'static str {
        match self {
            ProblemKind::LogFailed => "CmcBridgeNoneReady",
            ProblemKind::LogNotOpen | ProblemKind::WebhooksRefused => "CmcBridgeRefusesWebhooks",
            ProblemKind::SpoolFull | ProblemKind::SpoolNearlyFull => "CmcBridgeSpoolNearlyFull",
            ProblemKind::Damage => "CmcBridgeDamage",
            ProblemKind::BooksDiffer => "CmcBridgeBooksDiffer",
            ProblemKind::CertificateExpiresSoon => "CmcBridgeCertificateExpiresSoon",
            ProblemKind::Draining | ProblemKind::Starting => "CmcBridgeNotReady",
            ProblemKind::LaneBlocked => "CmcBridgeLaneBlocked",
            ProblemKind::SpoolFilling => "CmcBridgeSpoolFilling",
            ProblemKind::SyncsSlow => "CmcBridgeSyncsSlow",
            ProblemKind::AnswersSlow => "CmcBridgeAnswersSlow",
            ProblemKind::EventsWaiting => "CmcBridgeEventsWaiting",
            ProblemKind::CredentialsRefused => "CmcBridgeCredentialsRefused",
            ProblemKind::CertificateRefused => "CmcBridgeCertificateRefused",
            ProblemKind::CredentialFailures => "CmcBridgeCredentialFailures",
            ProblemKind::CredentialsMissing => "CmcBridgeCredentialsMissing",
            ProblemKind::CertificateExpires => "CmcBridgeCertificateExpires",
            ProblemKind::UnknownLogs => "CmcBridgeUnknownLogs",
            ProblemKind::LogLinesDropped => "CmcBridgeLogLinesDropped",
            ProblemKind::EventsDiverted => "CmcBridgeEventsDiverted",
            ProblemKind::DeadLetters => "CmcBridgeDeadLetters",
        }
    }

    /// Its severity, which is that of its alert.
    pub fn severity(self) -> Severity {
        match self {
            ProblemKind::DeadLetters => Severity::Info,
            kind if kind < ProblemKind::Draining => Severity::Critical,
            _ => Severity::Warning,
        }
    }
}

/// A problem, in words. Sentences have no full stop at their end.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub kind: ProblemKind,
    pub severity: Severity,
    /// The streams that have it; none if it concerns the whole bridge.
    pub streams: Vec<&'static str>,
    /// What is wrong.
    pub what: String,
    /// Since when; the first time that it was seen, if nothing better is known.
    pub since: Time,
    /// What it costs.
    pub costs: String,
    /// What to do.
    pub action: String,
    /// The runbook, as an address relative to the repository.
    pub runbook: String,
}

/// Everything that [`judge`] needs beside the streams' reports.
pub(super) struct Facts<'a> {
    pub at: Time,
    pub started: Time,
    pub readiness: Readiness,
    pub streams: &'a [StreamReport],
    pub unknown_logs: &'a [String],
    pub credential_files: Vec<RefusedFile>,
    pub certificate: Option<CertificateFacts>,
    /// Now, and as long ago as the windows of the alerts are long.
    pub now: &'a CounterSample,
    pub a_minute_ago: &'a CounterSample,
    pub five_minutes_ago: &'a CounterSample,
    pub ten_minutes_ago: &'a CounterSample,
    pub at_first: &'a CounterSample,
}

/// The certificate of the webhooks' port.
pub(super) struct CertificateFacts {
    /// When it expires, in seconds since the Unix epoch.
    pub expires: i64,
    /// Why a new pair is refused, if it is.
    pub refused: Option<RefusedFile>,
}

/// The commits that make a disk slow: this many in a minute, and a tenth of all.
const SLOW_SYNCS: u64 = 3;
/// Above this, a commit is slow, in seconds.
const SLOW_SYNC: f64 = 0.25;
const SLOW_ANSWER: f64 = 2.0;
/// The part of the spool's limit from which on it is nearly full.
const NEARLY_FULL: f64 = 0.85;
const FILLING_SECONDS: u64 = 4 * 3600;
const WAITING_SECONDS: u64 = 300;
const DAY: i64 = 86_400;

/// A problem that may not know yet when it began.
struct Found {
    kind: ProblemKind,
    streams: Vec<&'static str>,
    what: String,
    since: Option<Time>,
    costs: String,
    action: String,
}

/// All problems, the worst first.
pub(super) fn judge(facts: &Facts<'_>, onsets: &Onsets) -> Vec<Problem> {
    let mut found = Vec::new();
    of_logs(facts, &mut found);
    of_lanes(facts, &mut found);
    of_webhooks(facts, &mut found);
    of_files(facts, &mut found);
    of_the_rest(facts, &mut found);
    found.sort_by_key(|problem| (problem.kind.severity(), problem.kind));
    onsets.date(found, facts.at)
}

impl StreamReport {
    fn is(&self, log: LogIntake) -> bool {
        self.log == log
    }

    fn is_blocked(&self) -> bool {
        matches!(self.lane, LaneState::Blocked { .. })
    }
}

fn of_logs(facts: &Facts<'_>, found: &mut Vec<Found>) {
    let of = |log| {
        facts
            .streams
            .iter()
            .filter(move |stream| stream.is(log))
            .collect()
    };
    let failed: Vec<&StreamReport> = of(LogIntake::Failed);
    if !failed.is_empty() {
        found.push(Found {
            kind: ProblemKind::LogFailed,
            streams: names(&failed),
            what: format!("The log of {} can't be written: the disk returned an error", list(&failed)),
            since: None,
            costs: "No webhook can be made durable, and the process ends with exit code 74; what it acknowledged is on the disk"
                .into(),
            action: "Read the last lines of the bridge's log, then look at the disk of spool.dir (dmesg)".into(),
        });
    }
    for stream in of(LogIntake::NotOpen)
        .into_iter()
        .chain(of(LogIntake::Unreadable))
    {
        found.push(not_open(facts, stream));
    }
    let full: Vec<&StreamReport> = of(LogIntake::Full);
    if !full.is_empty() {
        let by_limit = full.iter().any(|stream| stream.used() >= NEARLY_FULL);
        let refused = facts.now.short_of(Shortage::Spool, facts.five_minutes_ago);
        found.push(Found {
            kind: ProblemKind::SpoolFull,
            streams: names(&full),
            what: match by_limit {
                true => format!("The spool of {} is full: spool.max_bytes is used up", list(&full)),
                false => format!("The spool of {} is full: the disk of spool.dir has no room", list(&full)),
            },
            since: None,
            costs: format!(
                "Its webhooks are answered 503 ({} in the last minutes), and the sender may not repeat them; {}",
                human::count(refused),
                waiting(&full)
            ),
            action: match by_limit {
                true => "Raise spool.max_bytes if the volume has room, and restart; then remove what holds up delivery",
                false => "Make room on that disk, but never inside the spool; then remove what holds up delivery",
            }
            .into(),
        });
    }
    for stream in facts.streams.iter().filter(|stream| !stream.is(LogIntake::Full)) {
        if stream.used() > NEARLY_FULL && stream.backlog > 0 {
            found.push(Found {
                kind: ProblemKind::SpoolNearlyFull,
                streams: vec![stream.stream],
                what: format!("The spool of {} is {:.0} % full", stream.stream, stream.used() * 100.0),
                since: None,
                costs: format!("When it is full{}, its webhooks are answered 503", stream.soon()),
                action: "Raise spool.max_bytes if the volume has room, and restart; then remove what holds up delivery"
                    .into(),
            });
        } else if let Some(seconds) = stream.full_in_seconds
            && seconds < FILLING_SECONDS
            && (stream.is_blocked() || age(stream, facts.at) > WAITING_SECONDS)
        {
            found.push(Found {
                kind: ProblemKind::SpoolFilling,
                streams: vec![stream.stream],
                what: format!(
                    "More arrives for {} than reaches Kafka: at this rate, its spool is full in about {}",
                    stream.stream,
                    human::rough_age(seconds)
                ),
                since: None,
                costs: "Nothing yet; when it is full, its webhooks are answered 503".into(),
                action: "Remove what holds up delivery, or raise spool.max_bytes if the volume has room"
                    .into(),
            });
        }
    }
}

/// A log that is being opened, or can't be.
fn not_open(facts: &Facts<'_>, stream: &StreamReport) -> Found {
    let name = stream.stream;
    let costs = match stream.is(LogIntake::Unreadable) {
        true => "Nobody knows how many of its events wait on disk; none is delivered".to_owned(),
        false => format!(
            "Its webhooks are answered 503 ({} in the last minutes), and what its log holds is not delivered; other streams \
             go on",
            human::count(facts.now.short_of(Shortage::Log, facts.five_minutes_ago))
        ),
    };
    match &stream.lane {
        LaneState::Blocked { cause, since, reason, .. } => Found {
            kind: match (*reason == BlockReason::Damage.label(), stream.log) {
                (true, _) => ProblemKind::Damage,
                (false, LogIntake::Unreadable) => ProblemKind::LaneBlocked,
                (false, _) => ProblemKind::LogNotOpen,
            },
            streams: vec![name],
            what: format!("{name}: {cause}"),
            since: Some(*since),
            costs,
            action: match *reason == BlockReason::Damage.label() {
                true => "Stop the bridge and copy the whole spool directory before anything else; then follow the runbook",
                false => "Look at the disk of spool.dir (df, dmesg); the bridge tries again by itself",
            }
            .into(),
        },
        _ => Found {
            kind: ProblemKind::Starting,
            streams: vec![name],
            what: format!("The log of {name} is being opened"),
            since: Some(facts.started),
            costs,
            action: "Wait: it takes seconds. If it doesn't end, the disk of spool.dir hangs (dmesg, iostat)".into(),
        },
    }
}

/// Lanes that are blocked, those with the same cause together, and lanes that are late.
fn of_lanes(facts: &Facts<'_>, found: &mut Vec<Found>) {
    let is_open = |stream: &&StreamReport| !matches!(stream.log, LogIntake::NotOpen | LogIntake::Unreadable);
    let mut blocked: Vec<Vec<&StreamReport>> = Vec::new();
    for stream in facts.streams.iter().filter(is_open) {
        match &stream.lane {
            LaneState::Blocked { .. } => {
                let same = |other: &&mut Vec<&StreamReport>| same_cause(&other[0].lane, &stream.lane);
                match blocked.iter_mut().find(same) {
                    Some(others) => others.push(stream),
                    None => blocked.push(vec![stream]),
                }
            }
            _ if age(stream, facts.at) > WAITING_SECONDS => found.push(Found {
                kind: ProblemKind::EventsWaiting,
                streams: vec![stream.stream],
                what: format!(
                    "An event of {} has waited for {}, and the lane is not blocked",
                    stream.stream,
                    human::age(age(stream, facts.at))
                ),
                since: stream.oldest,
                costs: format!("{}; their consumers act late", capital(&waiting(&[stream]))),
                action: match stream.rates.delivered > stream.rates.accepted {
                    true => "Wait: it catches up by itself",
                    false => "Look at the brokers: request times, disks, quotas",
                }
                .into(),
            }),
            _ => {}
        }
    }
    found.extend(blocked.iter().map(|streams| blocked_together(streams)));
}

fn same_cause(left: &LaneState, right: &LaneState) -> bool {
    match (left, right) {
        (
            LaneState::Blocked { reason, cure, .. },
            LaneState::Blocked {
                reason: other_reason,
                cure: other_cure,
                ..
            },
        ) => reason == other_reason && cure == other_cure && !cure.is_empty(),
        _ => false,
    }
}

fn blocked_together(streams: &[&StreamReport]) -> Found {
    let (mut since, mut why, mut is_of_the_spool, mut what_to_do) =
        (None, String::new(), false, String::new());
    for stream in streams {
        if let LaneState::Blocked {
            reason,
            cause,
            cure,
            since: blocked_since,
            ..
        } = &stream.lane
        {
            since = since.map_or(Some(*blocked_since), |other: Time| {
                Some(Time(other.0.min(blocked_since.0)))
            });
            why = format!("{reason}: {cause}");
            cure.clone_into(&mut what_to_do);
            is_of_the_spool = [BlockReason::Damage.label(), BlockReason::DiskError.label()].contains(reason);
        }
    }
    if what_to_do.is_empty() {
        what_to_do =
            "Wait: the bridge tries again by itself. If it doesn't pass, read the bridge's log".to_owned();
    }
    let soonest = streams
        .iter()
        .min_by_key(|stream| stream.full_in_seconds.unwrap_or(u64::MAX));
    Found {
        kind: match is_of_the_spool {
            true => ProblemKind::Damage,
            false => ProblemKind::LaneBlocked,
        },
        streams: names(streams),
        what: format!("{} are not being delivered: {why}", capital(&list(streams))),
        since,
        costs: format!(
            "{}; webhooks are taken as long as the spool has room{}",
            capital(&waiting(streams)),
            soonest.map_or(String::new(), |stream| match stream.full_in_seconds {
                Some(seconds) => format!(": at this rate for about {} more", human::rough_age(seconds)),
                None => format!(" ({:.0} % is used)", stream.used() * 100.0),
            })
        ),
        action: what_to_do,
    }
}

/// Requests that were refused or answered slowly.
fn of_webhooks(facts: &Facts<'_>, found: &mut Vec<Found>) {
    let causes = [
        (
            Shortage::Flight,
            "raise ingest.max_bytes_in_flight with the memory limit, or scale out",
        ),
        (
            Shortage::Connections,
            "raise ingest.max_connections with the memory limit, stop clients that hold connections, or scale out",
        ),
        (
            Shortage::Disk,
            "look at the disk of spool.dir (iostat, dmesg): a commit took longer than ingest.append_timeout",
        ),
    ];
    for (shortage, action) in causes {
        let refused = facts.now.short_of(shortage, facts.five_minutes_ago);
        if refused > 0 {
            found.push(Found {
                kind: ProblemKind::WebhooksRefused,
                streams: Vec::new(),
                what: format!("Webhooks are answered 503: {}", shortage.cause()),
                since: None,
                costs: format!(
                    "{} in the last minutes; the sender may not repeat them",
                    number(refused, "webhook was refused", "webhooks were refused")
                ),
                action: capital(action),
            });
        }
    }
    slow_syncs(facts, found);
    let answers = facts
        .now
        .acknowledgements
        .since(&facts.five_minutes_ago.acknowledgements);
    if let Some(times) = answers.quantiles()
        && times.p99 > SLOW_ANSWER
        && times.count >= SLOW_SYNCS
    {
        found.push(Found {
            kind: ProblemKind::AnswersSlow,
            streams: Vec::new(),
            what: format!("Webhooks are answered slowly: p99 {}", seconds(times.p99)),
            since: None,
            costs: "The sender waits, and may give up without repeating the webhook".into(),
            action: "Look at the sync times first, then at the processor, then at slow clients or proxies"
                .into(),
        });
    }
    credentials(facts, found);
    let dropped = facts.now.log_lines_dropped
        - facts
            .five_minutes_ago
            .log_lines_dropped
            .min(facts.now.log_lines_dropped);
    if dropped > 0 {
        found.push(Found {
            kind: ProblemKind::LogLinesDropped,
            streams: Vec::new(),
            what: "Nobody reads the bridge's log, or not fast enough".into(),
            since: None,
            costs: format!(
                "{} in the last minutes",
                number(dropped, "log line was dropped", "log lines were dropped")
            ),
            action: "Look at the log collector of this node, and its disk".into(),
        });
    }
}

fn slow_syncs(facts: &Facts<'_>, found: &mut Vec<Found>) {
    let mut slow = Vec::new();
    let mut words = Vec::new();
    let before = |at: usize| facts.a_minute_ago.streams.get(at).map(|stream| &stream.syncs);
    for (at, (report, sample)) in facts.streams.iter().zip(&facts.now.streams).enumerate() {
        let syncs = before(at).map_or_else(|| sample.syncs.clone(), |before| sample.syncs.since(before));
        let above = syncs.above(SLOW_SYNC);
        if above >= SLOW_SYNCS && above * 10 >= syncs.count() {
            slow.push(report);
            words.push(format!("{above} of {} for {}", syncs.count(), report.stream));
        }
    }
    if !slow.is_empty() {
        found.push(Found {
            kind: ProblemKind::SyncsSlow,
            streams: names(&slow),
            what: format!(
                "The disk of spool.dir is slow: of the syncs in the last minute, these took more than {} ms: {}",
                SLOW_SYNC * 1000.0,
                words.join(", ")
            ),
            since: None,
            costs: "Each webhook waits for a sync before its answer; after ingest.append_timeout it is answered 503".into(),
            action: "Look what else uses the disk (iostat -x 5), and at its limits; `cmc-bridge check --live` measures it"
                .into(),
        });
    }
}

fn credentials(facts: &Facts<'_>, found: &mut Vec<Found>) {
    let of = |outcome| facts.now.requests(outcome, facts.ten_minutes_ago);
    let (wrong, missing) = (of(Outcome::Unauthorized), of(Outcome::Challenged));
    let judged = of(Outcome::Accepted) + of(Outcome::Malformed) + wrong;
    if wrong > 10 && wrong * 20 > judged {
        found.push(Found {
            kind: ProblemKind::CredentialFailures,
            streams: Vec::new(),
            what: "Requests present a wrong credential".into(),
            since: None,
            costs: format!(
                "{} answered 401 in the last 10 minutes; if the sender sent them, they are lost",
                number(wrong, "request was", "requests were")
            ),
            action: "Find the credential whose uses stopped (cmc_bridge_credential_uses_total), and put it back beside the new \
                     one; if none stopped, somebody is guessing: block them in front of the bridge"
                .into(),
        });
    }
    let not_of_webhooks = [
        Outcome::Challenged,
        Outcome::NotFound,
        Outcome::MethodNotAllowed,
        Outcome::HeaderTooLarge,
        Outcome::InvalidHttp,
    ];
    let others = Outcome::ALL
        .into_iter()
        .filter(|outcome| !not_of_webhooks.contains(outcome));
    if missing > others.map(of).sum::<u64>() + 10 {
        found.push(Found {
            kind: ProblemKind::CredentialsMissing,
            streams: Vec::new(),
            what: "Requests come without a credential, and are not repeated with one".into(),
            since: None,
            costs: format!(
                "{} answered 401 in the last 10 minutes; if the sender sent them, they are lost",
                number(missing, "request was", "requests were")
            ),
            action: "Check that each console of the sender has its credential".into(),
        });
    }
}

/// Files of credentials, and the certificate.
fn of_files(facts: &Facts<'_>, found: &mut Vec<Found>) {
    for file in &facts.credential_files {
        found.push(Found {
            kind: ProblemKind::CredentialsRefused,
            streams: Vec::new(),
            what: format!("New credentials are refused: {}", file.cause),
            since: Some(Time(file.since_micros)),
            costs: "The old ones stay valid, but a console that presents a new one is answered 401, and a restart would fail with \
                    exit code 78"
                .into(),
            action: "Write the file again; don't restart before that".into(),
        });
    }
    let Some(certificate) = &facts.certificate else {
        return;
    };
    if let Some(pair) = &certificate.refused {
        found.push(Found {
            kind: ProblemKind::CertificateRefused,
            streams: Vec::new(),
            what: format!("The new TLS certificate is refused: {}", pair.cause),
            since: Some(Time(pair.since_micros)),
            costs: "The old one stays in use until it expires, but a restart would fail with exit code 78"
                .into(),
            action: "Write both files again; don't restart before that".into(),
        });
    }
    let left = certificate.expires - facts.at.0 / 1_000_000;
    if left < 14 * DAY {
        let kind = match left < 2 * DAY {
            true => ProblemKind::CertificateExpiresSoon,
            false => ProblemKind::CertificateExpires,
        };
        found.push(Found {
            kind,
            streams: Vec::new(),
            what: match u64::try_from(left) {
                Ok(left) => format!("The TLS certificate expires in {}", human::rough_age(left)),
                Err(_) => "The TLS certificate has expired".into(),
            },
            since: None,
            costs: "Once it has expired, the sender can't connect, and its webhooks are lost".into(),
            action: "Find out why it was not renewed, and put a new one in the files of ingest.tls; the bridge loads it by itself"
                .into(),
        });
    }
}

fn of_the_rest(facts: &Facts<'_>, found: &mut Vec<Found>) {
    if facts.readiness == Readiness::Draining {
        let backlog = facts.streams.iter().map(|stream| stream.backlog).sum();
        found.push(Found {
            kind: ProblemKind::Draining,
            streams: Vec::new(),
            what: "The bridge is stopping".into(),
            since: None,
            costs: format!(
                "{} not in Kafka yet; what is left at the end stays on disk for the next start",
                number(backlog, "event is", "events are")
            ),
            action: "Nothing, if that is wanted: other replicas take the webhooks; otherwise find out who sent SIGTERM".into(),
        });
    }
    for stream in facts.streams {
        let (came, went) = (
            stream.recovered + stream.accepted,
            stream.delivered + stream.diverted + stream.backlog,
        );
        if came != went {
            found.push(Found {
                kind: ProblemKind::BooksDiffer,
                streams: vec![stream.stream],
                what: format!(
                    "The books of {} don't balance: {came} events came, {went} are accounted for",
                    stream.stream
                ),
                since: None,
                costs: "A bug; events may be missing or doubled in Kafka".into(),
                action: "Keep a copy of the spool directory, the metrics and the log, and report it".into(),
            });
        }
    }
    if !facts.unknown_logs.is_empty() {
        found.push(Found {
            kind: ProblemKind::UnknownLogs,
            streams: Vec::new(),
            what: format!(
                "The spool holds events of streams that this version doesn't know: {}",
                facts.unknown_logs.join(", ")
            ),
            since: Some(facts.started),
            costs: "They are on disk, and nobody delivers them".into(),
            action: "Start the newer version that wrote them, or let its `spool drain` deliver them".into(),
        });
    }
    let risen = |of: fn(&crate::admin::rates::StreamSample) -> u64, at: usize| {
        let before = facts.at_first.streams.get(at).map_or(0, of);
        facts.now.streams.get(at).map_or(0, of).saturating_sub(before)
    };
    for (at, stream) in facts.streams.iter().enumerate() {
        let diverted = risen(|sample| sample.diverted, at);
        if diverted > 0 {
            found.push(Found {
                kind: ProblemKind::EventsDiverted,
                streams: vec![stream.stream],
                what: format!("Topic {} refuses records", stream.topic),
                since: None,
                costs: format!(
                    "{} to the dead-letter topic in the last minutes; consumers of {} lack them",
                    number(diverted, "event went", "events went"),
                    stream.stream
                ),
                action: "Correct the topic's max.message.bytes or cleanup.policy, then run `cmc-bridge dead-letters replay`".into(),
            });
        }
        let letters = risen(|sample| sample.accepted, at);
        if stream.stream == crate::stream::Stream::DeadLetters.name() && letters > 0 {
            found.push(Found {
                kind: ProblemKind::DeadLetters,
                streams: Vec::new(),
                what: "Webhooks, or parts of them, could not be understood".into(),
                since: None,
                costs: format!(
                    "{} in the last minutes; consumers lack these events, and nothing is lost",
                    number(letters, "dead letter was written", "dead letters were written")
                ),
                action: "Look at them with `cmc-bridge dead-letters ls --since 1h --show`".into(),
            });
        }
    }
}

/// When problems without a beginning of their own were first seen.
#[derive(Debug, Default)]
pub(super) struct Onsets(Mutex<Vec<(ProblemKind, Vec<&'static str>, Time)>>);

impl Onsets {
    /// Gives each problem its beginning, and forgets those that are over.
    fn date(&self, found: Vec<Found>, now: Time) -> Vec<Problem> {
        let mut onsets = self.0.lock();
        onsets.retain(|(kind, streams, _)| {
            found
                .iter()
                .any(|one| one.kind == *kind && one.streams == *streams)
        });
        let mut date = |one: &Found| {
            let known = onsets
                .iter()
                .find(|(kind, streams, _)| one.kind == *kind && one.streams == *streams);
            let since = known.map_or(now, |(_, _, since)| *since);
            if since == now {
                onsets.push((one.kind, one.streams.clone(), now));
            }
            since
        };
        found
            .into_iter()
            .map(|one| Problem {
                since: one.since.unwrap_or_else(|| date(&one)),
                kind: one.kind,
                severity: one.kind.severity(),
                streams: one.streams,
                what: one.what,
                costs: one.costs,
                action: one.action,
                runbook: format!("docs/operations.md#{}", one.kind.alert().to_lowercase()),
            })
            .collect()
    }
}

impl StreamReport {
    /// The used part of the spool's limit.
    fn used(&self) -> f64 {
        self.spool_bytes as f64 / self.spool_limit_bytes.max(1) as f64
    }

    fn soon(&self) -> String {
        self.full_in_seconds.map_or(String::new(), |seconds| {
            format!(", at this rate in about {}", human::rough_age(seconds))
        })
    }
}

/// The age of a stream's oldest event in seconds.
fn age(stream: &StreamReport, now: Time) -> u64 {
    stream.oldest.map_or(0, |oldest| super::seconds(oldest, now))
}

fn names(streams: &[&StreamReport]) -> Vec<&'static str> {
    streams.iter().map(|stream| stream.stream).collect()
}

/// `deliveries, bounces and dead_letters`
fn list(streams: &[&StreamReport]) -> String {
    let names = names(streams);
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

fn waiting(streams: &[&StreamReport]) -> String {
    let backlog = streams.iter().map(|stream| stream.backlog).sum();
    match backlog {
        0 => "no event waits".to_owned(),
        _ => format!("{} on disk", number(backlog, "event waits", "events wait")),
    }
}

fn number(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{} {many}", human::count(count)),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn seconds(seconds: f64) -> String {
    human::latency(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admin::{
        rates::StreamSample,
        status::{BridgeState, StreamRates},
    };

    const NOW: Time = Time(1_000_000_000_000);
    const ALL: [ProblemKind; 24] = [
        ProblemKind::LogFailed,
        ProblemKind::LogNotOpen,
        ProblemKind::SpoolFull,
        ProblemKind::WebhooksRefused,
        ProblemKind::Damage,
        ProblemKind::SpoolNearlyFull,
        ProblemKind::BooksDiffer,
        ProblemKind::CertificateExpiresSoon,
        ProblemKind::Draining,
        ProblemKind::Starting,
        ProblemKind::LaneBlocked,
        ProblemKind::SpoolFilling,
        ProblemKind::SyncsSlow,
        ProblemKind::AnswersSlow,
        ProblemKind::EventsWaiting,
        ProblemKind::CredentialsRefused,
        ProblemKind::CertificateRefused,
        ProblemKind::CredentialFailures,
        ProblemKind::CredentialsMissing,
        ProblemKind::CertificateExpires,
        ProblemKind::UnknownLogs,
        ProblemKind::LogLinesDropped,
        ProblemKind::EventsDiverted,
        ProblemKind::DeadLetters,
    ];

    /// A bridge that the tests spoil.
    struct Given {
        streams: Vec<StreamReport>,
        now: CounterSample,
        before: CounterSample,
        readiness: Readiness,
        unknown_logs: Vec<String>,
        credential_files: Vec<RefusedFile>,
        certificate: Option<(i64, Option<RefusedFile>)>,
    }

    fn given() -> Given {
        let streams = ["deliveries", "bounces", "dead_letters"].map(|stream| StreamReport {
            stream,
            topic: format!("cmc.{stream}"),
            lane: LaneState::Idle,
            log: LogIntake::Accepting,
            recovered: 0,
            accepted: 0,
            delivered: 0,
            diverted: 0,
            backlog: 0,
            oldest: None,
            spool_bytes: 1,
            spool_limit_bytes: 1000,
            full_in_seconds: None,
            rates: StreamRates::default(),
            sync_seconds: None,
        });
        let mut sample = CounterSample::empty(std::time::Instant::now());
        sample.streams = vec![StreamSample::default(); 3];
        Given {
            streams: streams.into(),
            now: sample.clone(),
            before: sample,
            readiness: Readiness::Ready,
            unknown_logs: Vec::new(),
            credential_files: Vec::new(),
            certificate: None,
        }
    }

    impl Given {
        fn backlog(&mut self, stream: usize, events: u64, age: i64) {
            self.streams[stream].accepted = events;
            self.streams[stream].backlog = events;
            self.streams[stream].oldest = Some(Time(NOW.0 - age * 1_000_000));
        }

        fn block(&mut self, stream: usize, reason: BlockReason, cure: &str) {
            self.streams[stream].lane = LaneState::Blocked {
                reason: reason.label(),
                message: String::new(),
                cause: "cannot connect".into(),
                cure: cure.into(),
                since: Time(NOW.0 - 60_000_000 - stream as i64),
                last_failure: NOW,
            };
        }

        fn judged_at(&self, at: Time, onsets: &Onsets) -> Vec<Problem> {
            let facts = Facts {
                at,
                started: Time(0),
                readiness: self.readiness,
                streams: &self.streams,
                unknown_logs: &self.unknown_logs,
                credential_files: self.credential_files.clone(),
                certificate: self
                    .certificate
                    .clone()
                    .map(|(expires, refused)| CertificateFacts { expires, refused }),
                now: &self.now,
                a_minute_ago: &self.before,
                five_minutes_ago: &self.before,
                ten_minutes_ago: &self.before,
                at_first: &self.before,
            };
            judge(&facts, onsets)
        }

        fn judged(&self) -> Vec<Problem> {
            self.judged_at(NOW, &Onsets::default())
        }

        fn kinds(&self) -> Vec<ProblemKind> {
            self.judged().into_iter().map(|problem| problem.kind).collect()
        }
    }

    fn refused() -> RefusedFile {
        RefusedFile {
            file: "f".into(),
            cause: "/etc/f: is empty".into(),
            since_micros: 7,
        }
    }

    #[test]
    fn nothing_is_wrong() {
        let mut given = given();
        given.backlog(0, 10, WAITING_SECONDS as i64);
        given.certificate = Some((NOW.0 / 1_000_000 + 14 * DAY, None));
        assert!(given.kinds().is_empty());
    }

    type Spoil = fn(&mut Given);

    #[test]
    fn each_fault_is_found() {
        use ProblemKind::*;
        let cases: [(&[ProblemKind], Spoil); 23] = [
            (&[LogFailed], |g| g.streams[1].log = LogIntake::Failed),
            (&[Starting], |g| g.streams[0].log = LogIntake::NotOpen),
            (&[LogNotOpen], |g| {
                g.streams[0].log = LogIntake::NotOpen;
                g.block(0, BlockReason::DiskError, "");
            }),
            (&[Damage], |g| {
                g.streams[0].log = LogIntake::Unreadable;
                g.block(0, BlockReason::Damage, "");
            }),
            (&[LaneBlocked], |g| {
                g.streams[0].log = LogIntake::Unreadable;
                g.block(0, BlockReason::DiskError, "");
            }),
            (&[Damage], |g| g.block(1, BlockReason::DiskError, "Wait")),
            (&[SpoolFull, LaneBlocked], |g| {
                g.streams[0].log = LogIntake::Full;
                g.block(0, BlockReason::Connect, "Start it");
            }),
            (&[SpoolNearlyFull], |g| {
                g.backlog(0, 1, 1);
                g.streams[0].spool_bytes = 851;
            }),
            (&[SpoolFilling, EventsWaiting], |g| {
                g.backlog(0, 1, 301);
                g.streams[0].full_in_seconds = Some(14_399);
            }),
            (&[WebhooksRefused], |g| {
                g.now.shortages[Shortage::Disk as usize] = 1
            }),
            (&[WebhooksRefused], |g| {
                g.now.shortages[Shortage::Connections as usize] = 1
            }),
            (&[BooksDiffer], |g| g.streams[2].accepted = 1),
            (&[CertificateExpiresSoon], |g| g.certificate = Some((0, None))),
            (&[CertificateExpires], |g| {
                g.certificate = Some((NOW.0 / 1_000_000 + 14 * DAY - 1, None));
            }),
            (&[CertificateRefused], |g| {
                g.certificate = Some((i64::MAX, Some(refused())))
            }),
            (&[CredentialsRefused], |g| g.credential_files.push(refused())),
            (&[CredentialFailures], |g| {
                g.now.outcomes[Outcome::Unauthorized.index()] = 11
            }),
            (&[], |g| {
                g.now.outcomes[Outcome::Unauthorized.index()] = 11;
                g.now.outcomes[Outcome::Accepted.index()] = 300;
            }),
            (&[CredentialsMissing], |g| {
                g.now.outcomes[Outcome::Challenged.index()] = 11
            }),
            (&[UnknownLogs], |g| g.unknown_logs.push("opens".into())),
            (&[LogLinesDropped], |g| g.now.log_lines_dropped = 1),
            (&[EventsDiverted], |g| g.now.streams[1].diverted = 1),
            (&[DeadLetters], |g| g.now.streams[2].accepted = 1),
        ];
        for (number, (expected, spoil)) in cases.into_iter().enumerate() {
            let mut given = given();
            spoil(&mut given);
            assert_eq!(given.kinds(), expected, "case {number}");
            for problem in given.judged() {
                for text in [&problem.what, &problem.costs, &problem.action] {
                    assert!(
                        !text.is_empty() && !text.ends_with('.'),
                        "case {number}: {problem:?}"
                    );
                }
            }
        }
        let mut given = given();
        given.readiness = Readiness::Draining;
        assert_eq!(given.kinds(), [Draining]);
    }

    #[test]
    fn lanes_with_one_cause_are_one_problem() {
        let mut given = given();
        given.backlog(0, 1200, 30);
        for stream in [0, 1] {
            given.block(stream, BlockReason::Connect, "Start the broker");
        }
        given.block(2, BlockReason::TopicMissing, "Create it");
        let problems = given.judged();
        assert_eq!(problems.len(), 2);
        assert_eq!(problems[0].streams, ["deliveries", "bounces"]);
        assert_eq!(
            problems[0].what,
            "Deliveries and bounces are not being delivered: connect: cannot connect"
        );
        assert_eq!(
            (problems[0].since, problems[0].action.as_str()),
            (Time(NOW.0 - 60_000_001), "Start the broker")
        );
        assert!(
            problems[0]
                .costs
                .starts_with("1,200 events wait on disk; webhooks are taken")
        );
        given.streams[1].full_in_seconds = Some(7300);
        assert!(
            given.judged()[0]
                .costs
                .ends_with("at this rate for about 2 h more")
        );
    }

    #[test]
    fn a_problem_begins_when_it_is_first_seen() {
        let (mut given, onsets) = (given(), Onsets::default());
        let at = |given: &Given, seconds| given.judged_at(Time(NOW.0 + seconds), &onsets);
        given.streams[0].log = LogIntake::Full;
        assert_eq!(at(&given, 0)[0].since, NOW);
        assert_eq!(at(&given, 9)[0].since, NOW);
        given.streams[0].log = LogIntake::Accepting;
        assert!(at(&given, 10).is_empty());
        given.streams[0].log = LogIntake::Full;
        assert_eq!(at(&given, 11)[0].since, Time(NOW.0 + 11));
    }

    #[test]
    fn a_single_slow_sync_is_no_slow_disk() {
        let histogram = |slow, fast| {
            let options = prometheus::HistogramOpts::new("h", "h").buckets(vec![0.25, 1.0]);
            let histogram = prometheus::Histogram::with_opts(options).unwrap();
            (0..slow).for_each(|_| histogram.observe(0.3));
            (0..fast).for_each(|_| histogram.observe(0.001));
            crate::admin::rates::Buckets::of(&histogram)
        };
        let mut given = given();
        for (slow, fast, expected) in [(2, 0, false), (3, 0, true), (3, 27, true), (3, 28, false)] {
            given.now.streams[1].syncs = histogram(slow, fast);
            assert_eq!(
                given.kinds().contains(&ProblemKind::SyncsSlow),
                expected,
                "{slow} {fast}"
            );
        }
        let mut answers = self::given();
        answers.now.acknowledgements = {
            let options = prometheus::HistogramOpts::new("h", "h").buckets(vec![2.0, 5.0]);
            let histogram = prometheus::Histogram::with_opts(options).unwrap();
            (0..3).for_each(|_| histogram.observe(3.0));
            crate::admin::rates::Buckets::of(&histogram)
        };
        assert_eq!(answers.kinds(), [ProblemKind::AnswersSlow]);
    }

    #[test]
    fn each_kind_has_the_severity_and_the_runbook_of_its_alert() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let (rules, runbooks) = (read("deploy/prometheus/rules.yaml"), read("docs/operations.md"));
        let mut severities = BTreeMap::new();
        for rule in rules.split("- alert: ").skip(1) {
            let severity = rule.split("severity: ").nth(1).unwrap();
            severities.insert(rule.lines().next().unwrap(), severity.lines().next().unwrap());
        }
        let mut worst_first = ALL;
        worst_first.sort_by_key(|kind| (kind.severity(), *kind));
        assert_eq!(worst_first, ALL, "not declared in their order");
        for kind in ALL {
            let alert = kind.alert();
            assert_eq!(
                severities.get(alert).copied(),
                Some(kind.severity().name()),
                "{kind:?}"
            );
            assert!(runbooks.contains(&format!("\n### {alert}\n")), "{alert}");
        }
        let state = serde_json::to_value(BridgeState::Ready).unwrap();
        assert_eq!(state, "ready");
    }
}
