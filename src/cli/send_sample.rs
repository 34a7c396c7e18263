//! `cmc-bridge send-sample`: posts sample webhooks, as Customers Mail Cloud does, and sums up the answers.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`attachment`] | files to attach to received mails |
//! | [`credentials`] | the credential to present |
//! | [`generate`] | makes webhooks |
//! | [`mail`] | makes webhooks of received mail |

pub mod attachment;
mod credentials;
pub mod generate;
mod mail;

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Args, value_parser};
use hyper::header::HeaderValue;
use jiff::Timestamp;
use tokio::{runtime::Runtime, task::JoinSet, time::sleep_until};
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use self::{
    credentials::CredentialArgs,
    generate::{BodyFormat, Generator, WebhookKind},
};
use super::{percentile::percentile, progress_bar::ProgressBar, signals::stop_signals};
use crate::{
    cli::exit::Exit,
    http_client::{Client, Target, trust},
    human,
};

/// The paths for a URL without one: the bridge's defaults, for events and for received mail.
const PATH: &str = "/webhooks/events";
const INBOUND_PATH: &str = "/webhooks/inbound";
/// How long a webhook waits for its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the progress bar is drawn.
const REDRAW: Duration = Duration::from_millis(100);

pub const AFTER_HELP: &str = "\
Other users of this machine can see the command line, so put credentials into files, or into the environment variables
CMC_BRIDGE_SEND_BEARER, CMC_BRIDGE_SEND_BASIC and CMC_BRIDGE_SEND_API_KEY. The first line of a file that is neither blank
nor a comment (#) counts, so the bridge's own credential files work.

The certificate of an https URL must be signed by an authority in --ca-file, or by one that the system trusts.

Ctrl-C stops sending and prints the summary. Exits with 0 if every answer was 200, otherwise with 69. Malformed webhooks
are answered 400, so sending them ends with 69.

Examples:
  cmc-bridge send-sample http://127.0.0.1:8080/webhooks/events --bearer-file /run/secrets/token
  cmc-bridge send-sample --kind mixed --format form --events 100 --count 1000 --concurrency 16
  cmc-bridge send-sample --kind inbound --attach estimate.pdf --attach photo.jpg";

/// The arguments of `send-sample`.
#[derive(Args, Clone, Debug)]
pub struct SendSampleArgs {
    /// Webhook endpoint; the default path is /webhooks/events, for received mail /webhooks/inbound
    #[arg(default_value = "http://127.0.0.1:8080", value_parser = endpoint)]
    url: Target,
    /// Kind of webhooks to send
    #[arg(long, value_enum, default_value = "deliveries")]
    kind: WebhookKind,
    /// Format of the bodies [default: json; multipart with --attach]
    #[arg(long, value_enum)]
    format: Option<BodyFormat>,
    /// Attach this file to each received mail; may be repeated
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// Events in each webhook
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=100_000))]
    events: u64,
    /// Number of webhooks
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=10_000_000))]
    count: u64,
    /// Webhooks per second; 0 sends as fast as they are answered
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Number of connections, each with one webhook in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..=1024))]
    concurrency: u64,
    /// Value of server_composition
    #[arg(long, value_name = "NAME", default_value = "pro")]
    server_composition: String,
    /// Authorities to trust for https (PEM) instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// While no connection can be made, try again for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = value_parser!(u64).range(..=3600))]
    wait: u64,
    #[command(flatten)]
    credentials: CredentialArgs,
}

/// A webhook endpoint; [`SendSampleArgs::target`] adds the path to a URL without one.
fn endpoint(url: &str) -> Result<Target, String> {
    let example =
        "http://127.0.0.1:8080/webhooks/events, with --bearer, --basic or --api-key for credentials";
    Target::parse(url, "/", example).map_err(|error| match error.contains("--basic") {
        true => error,
        false => format!("{error}: see --bearer, --basic and --api-key"),
    })
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("give a number of webhooks per second, 0.001 to 1000000, or 0 for no limit".to_owned()),
    }
}

impl SendSampleArgs {
    fn target(&self) -> Target {
        match (self.url.path.as_str(), self.kind) {
            ("/", WebhookKind::Inbound) => self.url.with_path(INBOUND_PATH),
            ("/", _) => self.url.with_path(PATH),
            _ => self.url.clone(),
        }
    }

    /// The format of the bodies. The error says which options don't go together.
    fn format(&self) -> Result<BodyFormat, &'static str> {
        let is_mail = self.kind == WebhookKind::Inbound;
        let has_files = !self.attach.is_empty();
        match self.format {
            _ if has_files && !is_mail => Err("only received mail has attachments: give --kind inbound"),
            _ if is_mail && self.events != 1 => {
                Err("a webhook of received mail brings one mail: use --count")
            }
            Some(BodyFormat::Form) if is_mail => {
                Err("received mail comes as json or multipart, not as a form")
            }
            Some(BodyFormat::Multipart) if !is_mail => Err("only received mail comes as multipart"),
            Some(BodyFormat::Json) if has_files => {
                Err("received mail in JSON has no attachments: use multipart")
            }
            Some(format) => Ok(format),
            None if has_files => Ok(BodyFormat::Multipart),
            None => Ok(BodyFormat::Json),
        }
    }
}

/// Sends all webhooks and prints the summary.
///
/// # Errors
/// 64: a credential, `--ca-file` or a file to attach can't be used, or options don't go together. 69: a webhook was not
/// answered 200.
pub fn run(args: &SendSampleArgs, out: &mut impl Write) -> Result<(), Exit> {
    let format = args.format().map_err(|error| Exit::Usage(error.to_owned()))?;
    let credentials = args.credentials.resolve(|name| std::env::var_os(name))?;
    let trust = args.url.is_https().then(|| trust(args.ca_file.as_deref()));
    let trust = trust.transpose().map_err(Exit::Usage)?;
    let generator = Generator {
        kind: args.kind,
        format,
        events: args.events,
        server_composition: args.server_composition.clone(),
        api_key: credentials.api_key,
        run: Uuid::new_v4().simple().to_string().split_off(20),
        attachments: attachment::read(&args.attach).map_err(Exit::Usage)?,
    };
    let posting = Arc::new(Posting {
        target: args.target(),
        authorization: credentials.authorization,
        trust,
        generator,
        count: args.count,
        pause: (args.rate > 0.0).then(|| Duration::from_secs_f64(1.0 / args.rate)),
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    });
    let start = Instant::now();
    let runtime = Runtime::new()?;
    let wait = Duration::from_secs(args.wait);
    let results = runtime.block_on(async {
        if !wait.is_zero() {
            posting.target.reachable_within(wait).await;
        }
        send_all(&posting, args.concurrency.min(args.count)).await
    })?;
    summary(&posting, &results, start.elapsed(), out)?;
    let good = results.answers.get(&200).map_or(0, |answers| answers.count);
    match args.count - good {
        0 => Ok(()),
        bad => Err(Exit::Unavailable(format!(
            "{bad} of {} webhooks were not answered 200{}",
            args.count,
            advice(&results, args.kind)
        ))),
    }
}

/// The state that all connections share.
struct Posting {
    target: Target,
    authorization: Option<HeaderValue>,
    trust: Option<TlsConnector>,
    generator: Generator,
    count: u64,
    /// The time between the starts of two webhooks.
    pause: Option<Duration>,
    next: AtomicU64,
    done: AtomicU64,
    stopped: AtomicBool,
}

/// The answers to the webhooks.
#[derive(Default)]
struct Results {
    answers: BTreeMap<u16, Answers>,
    unanswered: u64,
    /// Why the last unanswered webhook had no answer.
    last_error: String,
    /// How long each answer took.
    times: Vec<Duration>,
}

#[derive(Default)]
struct Answers {
    count: u64,
    /// The body of the first answer that had any.
    text: String,
}

impl Results {
    fn sent(&self) -> u64 {
        self.answers.values().map(|answers| answers.count).sum::<u64>() + self.unanswered
    }

    fn add(&mut self, other: Results) {
        for (status, answers) in other.answers {
            let sum = self.answers.entry(status).or_default();
            sum.count += answers.count;
            if sum.text.is_empty() {
                sum.text = answers.text;
            }
        }
        self.unanswered += other.unanswered;
        if self.last_error.is_empty() {
            self.last_error = other.last_error;
        }
        self.times.extend(other.times);
    }
}

/// Sends all webhooks. A signal stops the sending, a second one also the waiting for answers.
async fn send_all(posting: &Arc<Posting>, connections: u64) -> Result<Results, Exit> {
    let start = tokio::time::Instant::now();
    let mut stop = stop_signals()?;
    let progress = ProgressBar::start();
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(send_some(Arc::clone(posting), start));
    }
    let mut results = Results::default();
    loop {
        progress.draw(posting.done.load(Ordering::Relaxed), posting.count);
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(share) => results.add(share.map_err(std::io::Error::other)?),
                None => break,
            },
            () = tokio::time::sleep(REDRAW), if progress.shown() => {}
            _ = stop.recv() => {
                if posting.stopped.swap(true, Ordering::Relaxed) {
                    break;
                }
            }
        }
    }
    results.times.sort_unstable();
    Ok(results)
}

/// Sends one connection's share.
async fn send_some(posting: Arc<Posting>, start: tokio::time::Instant) -> Results {
    let mut client =
        Client::new(posting.target.clone(), posting.authorization.clone()).with_trust(posting.trust.clone());
    let content_type = posting.generator.content_type();
    let mut results = Results::default();
    loop {
        let number = posting.next.fetch_add(1, Ordering::Relaxed);
        if number >= posting.count {
            return results;
        }
        if let Some(pause) = posting.pause {
            sleep_until(start + pause.mul_f64(number as f64)).await;
        }
        if posting.stopped.load(Ordering::Relaxed) {
            return results;
        }
        let body = Bytes::from(posting.generator.body(number, Timestamp::now()));
        let begin = Instant::now();
        match client.post(&content_type, body, PATIENCE).await {
            Ok(answer) => {
                results.times.push(begin.elapsed());
                let answers = results.answers.entry(answer.status.as_u16()).or_default();
                answers.count += 1;
                if answers.text.is_empty() {
                    answers.text = answer.text;
                }
            }
            Err(error) => {
                results.unanswered += 1;
                results.last_error = error.to_string();
            }
        }
        posting.done.fetch_add(1, Ordering::Relaxed);
    }
}

fn summary(
    posting: &Posting,
    results: &Results,
    took: Duration,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let (count, events) = (posting.count, posting.generator.events);
    writeln!(
        out,
        "posted to    {}, messageIds <{}.0@…> to <{}.{}@…>",
        posting.target.url(),
        posting.generator.run,
        posting.generator.run,
        count * events - 1
    )?;
    for (status, answers) in &results.answers {
        let text = match status {
            200 => String::new(),
            _ => format!("  {}", first_line(&answers.text)),
        };
        writeln!(out, "answer {status}   {}{text}", answers.count)?;
    }
    if results.unanswered > 0 {
        writeln!(out, "no answer    {}  {}", results.unanswered, results.last_error)?;
    }
    let unsent = count - results.sent();
    if unsent > 0 {
        writeln!(out, "not sent     {unsent}")?;
    }
    let good = results.answers.get(&200).map_or(0, |answers| answers.count);
    let seconds = took.as_secs_f64().max(0.001);
    if good > 0 {
        writeln!(
            out,
            "rate         {:.0} webhooks/s, {:.0} events/s answered 200, in {}",
            good as f64 / seconds,
            (good * events) as f64 / seconds,
            human::latency(took)
        )?;
    }
    if let Some(max) = results.times.last() {
        writeln!(
            out,
            "latency      p50 {}  p99 {}  max {}",
            human::latency(percentile(&results.times, 50)),
            human::latency(percentile(&results.times, 99)),
            human::latency(*max)
        )?;
    }
    out.flush()
}

/// An answer's text on one line of at most 300 characters.
fn first_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn advice(results: &Results, kind: WebhookKind) -> &'static str {
    let answered = |status| results.answers.contains_key(&status);
    if results.unanswered > 0 && results.answers.is_empty() {
        "; is a bridge running there? `cmc-bridge dev` starts one to try out"
    } else if answered(401) {
        "; give a credential that the bridge accepts with --bearer-file, --basic-file, --api-key-file or their variables"
    } else if (answered(404) || answered(405)) && kind == WebhookKind::Inbound {
        "; is the path the one in ingest.inbound_path, and streams.inbound.enabled = true?"
    } else if answered(404) || answered(405) {
        "; is the path the one in ingest.path?"
    } else if answered(503) {
        "; the bridge is full or stopping: check its log and metrics"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        args: SendSampleArgs,
    }

    fn args(line: &[&str]) -> SendSampleArgs {
        let line = ["send-sample"].iter().chain(line);
        <CommandLine as clap::Parser>::try_parse_from(line).unwrap().args
    }

    #[test]
    fn endpoints_have_the_bridge_s_path_by_default() {
        for (line, url) in [
            (&[][..], "http://127.0.0.1:8080/webhooks/events"),
            (&["--kind", "inbound"], "http://127.0.0.1:8080/webhooks/inbound"),
            (&["http://bridge:81"], "http://bridge:81/webhooks/events"),
            (
                &["http://bridge/", "--kind", "inbound"],
                "http://bridge/webhooks/inbound",
            ),
            (&["http://bridge/x", "--kind", "inbound"], "http://bridge/x"),
            (&["http://bridge/x"], "http://bridge/x"),
        ] {
            assert_eq!(args(line).target().url(), url);
        }
        assert!(endpoint("http://a:b@bridge/").unwrap_err().contains("--basic"));
    }

    #[test]
    fn formats_follow_from_the_kind() {
        let cases: [(&[&str], Result<BodyFormat, &str>); 9] = [
            (&[], Ok(BodyFormat::Json)),
            (&["--format", "form"], Ok(BodyFormat::Form)),
            (&["--kind", "inbound"], Ok(BodyFormat::Json)),
            (
                &["--kind", "inbound", "--format", "multipart"],
                Ok(BodyFormat::Multipart),
            ),
            (&["--kind", "inbound", "--attach", "a"], Ok(BodyFormat::Multipart)),
            (&["--attach", "a"], Err("--kind inbound")),
            (&["--format", "multipart"], Err("only received mail")),
            (
                &["--kind", "inbound", "--format", "json", "--attach", "a"],
                Err("use multipart"),
            ),
            (&["--kind", "inbound", "--events", "2"], Err("--count")),
        ];
        for (line, wanted) in cases {
            match (args(line).format(), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{found}"),
                (found, _) => panic!("{line:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn files_to_attach_are_read_within_a_limit() {
        let files = |name: &str| attachment::read(&[PathBuf::from(name)]);
        assert!(files("/dev/zero").unwrap_err().contains("more than"));
        assert!(files("/no/such/file").unwrap_err().contains("No such file"));
        assert_eq!(files("/dev/null").unwrap()[0].name, "null");
    }

    #[test]
    fn rates() {
        for good in ["0", "1", "0.5", "1e3"] {
            assert!(rate(good).is_ok(), "{good}");
        }
        for bad in ["-1", "x", "NaN", "inf", "1e9", ""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
