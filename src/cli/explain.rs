//! `cmc-bridge explain`: what a webhook's body would become, or what is wrong with it, where, and what to do.
//!
//! The body goes through the code of the server ([`cmc::explain`]) with the limits, zones, streams and topics of the
//! configuration, as if its sender were admitted. Nothing is stored or sent. Credentials are masked wherever the
//! server would mask them, and in the excerpt as well.
//!
//! A position is given in bytes, lines and columns of the JSON text. For a form that is the decoded `event` field,
//! unless the form itself is at fault.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`excerpt`] | a place in a text, with the text around it |

mod excerpt;

use std::{
    borrow::Cow,
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use percent_encoding::percent_decode;
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};

use self::excerpt::{Excerpt, cut};
use super::{
    config_args::ConfigArgs,
    output::{Output, say},
    records::{attachment_part, bytes, headers, push_value},
};
use crate::{
    batch::{Batch, BatchView, RecordView},
    cli::exit::Exit,
    clock,
    cmc::{self, BodyEncoding, Endpoint, Malformed, Secrets, Understood},
    config::Config,
    dead_letter::{Reason, Scope},
    human,
    plain::visible,
    stream::Stream,
};

/// Columns if the terminal does not report its width.
const COLUMNS: usize = 100;

pub const AFTER_HELP: &str = "\
Examples:
  cmc-bridge explain webhook.json
  curl … | cmc-bridge explain --content-type application/x-www-form-urlencoded
  cmc-bridge tap --stream dead-letters --from-beginning -n 1 --json | jq -j .value | cmc-bridge explain

It needs neither Kafka nor credentials, and stores nothing. With --config and the environment it applies the limits, zones,
streams and topics of the bridge.

Exit codes: 0 everything would become events, 65 something would not, 74 the file can't be read.";

/// The arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The file that holds the body [default: standard input, as for -]
    pub file: Option<PathBuf>,
    /// The Content-Type header that it came with [default: none; the first byte tells JSON from a form]
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// The path that it was posted to, for received mail ingest.inbound_path [default: ingest.path]
    #[arg(long)]
    pub path: Option<String>,
    /// Print whole values even on a terminal
    #[arg(long)]
    pub full: bool,
    /// Print one JSON object per line: each record, then the answer
    #[arg(long)]
    pub json: bool,
}

/// Prints what the body would become.
///
/// # Errors
/// 64: a header can't carry the content type. 65: something would not become an event. 74: the body can't be read.
pub fn run(args: &ExplainArgs, out: &mut Output) -> Result<(), Exit> {
    let config = args.config.load()?.config;
    if args
        .content_type
        .as_deref()
        .is_some_and(|value| !is_header_value(value))
    {
        let what = "--content-type has characters that a header can't carry";
        return Err(Exit::Usage(what.to_owned()));
    }
    let rules = config.rules();
    let path = args.path.as_deref().unwrap_or(&config.ingest.path);
    let (most, key, advice) = match rules.endpoint(path) {
        Endpoint::Events => (
            config.ingest.max_body_bytes,
            "ingest.max_body_bytes",
            "raise ingest.max_body_bytes, or lower the number of events in a webhook in CMC's console",
        ),
        Endpoint::Inbound => (
            config.ingest.inbound_max_body_bytes,
            "ingest.inbound_max_body_bytes",
            "raise ingest.inbound_max_body_bytes",
        ),
    };
    let body = read(args.file.as_deref(), most)?;
    let mut printer = Printer {
        config: &config,
        secrets: &rules.secrets,
        json: args.json,
        columns: columns(args),
        out,
    };
    let is_events = path.strip_suffix('/').unwrap_or(path) == config.ingest.path.trim_end_matches('/');
    if !is_events && !rules.is_inbound(path) {
        return printer.not_taken(
            404,
            Diagnosis {
                detail: format!("the bridge accepts no webhooks at {path}").into(),
                advice: "post to ingest.path, or with streams.inbound.enabled to ingest.inbound_path, or change that setting",
                ..Diagnosis::default()
            },
        );
    }
    if body.len() > most {
        let limit = human::exact_size(most as u64);
        return printer.not_taken(
            413,
            Diagnosis {
                detail: format!("the body has more than {limit} ({key})").into(),
                advice,
                ..Diagnosis::default()
            },
        );
    }
    let request = cmc::Request {
        received_at_micros: clock::unix_micros(),
        path,
        content_type: args.content_type.as_deref(),
        body: &body,
    };
    let understood = cmc::explain(&request, &rules);
    printer.understood(&understood, &body)
}

/// Whether a header can carry this value.
fn is_header_value(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

/// Reads the body, up to one byte beyond the limit.
fn read(file: Option<&Path>, limit: usize) -> Result<Vec<u8>, Exit> {
    let mut body = Vec::new();
    let most = limit as u64 + 1;
    match file.filter(|path| *path != "-") {
        Some(path) => File::open(path)
            .and_then(|file| file.take(most).read_to_end(&mut body))
            .map_err(|error| Exit::Io(format!("{}: {error}", path.display())))?,
        None => {
            if io::stdin().is_terminal() {
                say("reading the body from standard input; end it with Ctrl-D");
            }
            let read = io::stdin().lock().take(most).read_to_end(&mut body);
            read.map_err(|error| Exit::Io(format!("standard input: {error}")))?
        }
    };
    Ok(body)
}

/// The width at which lines are cut: unlimited unless a terminal shows them.
fn columns(args: &ExplainArgs) -> usize {
    if args.full || !io::stdout().is_terminal() {
        return usize::MAX;
    }
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => COLUMNS,
    }
}

struct Printer<'p> {
    config: &'p Config,
    secrets: &'p Secrets,
    json: bool,
    columns: usize,
    out: &'p mut Output,
}

impl Printer<'_> {
    /// Reports that the server would not have looked into the body.
    fn not_taken(&mut self, status: u16, problem: Diagnosis) -> Result<(), Exit> {
        let answer = AnswerLine {
            status,
            read_as: "nothing",
            ..AnswerLine::default()
        };
        self.answer(&answer, Some(&problem))?;
        Err(Exit::Data(problem.detail.into_owned()))
    }

    fn understood(&mut self, understood: &Understood, body: &[u8]) -> Result<(), Exit> {
        let split = &understood.split;
        if let Some((stream, batch, _)) = &split.events {
            self.records(*stream, batch)?;
        }
        if let Some((batch, _)) = &split.dead_letters {
            self.records(Stream::DeadLetters, batch)?;
        }
        let answer = AnswerLine {
            status: match (&understood.malformed, understood.encoding) {
                (None, _) => 200,
                (Some(_), None) => 415,
                (Some(_), Some(_)) => self.config.ingest.malformed_status,
            },
            read_as: match understood.encoding {
                Some(BodyEncoding::Json) => "JSON",
                Some(BodyEncoding::Form) => "form",
                Some(BodyEncoding::Multipart) => "multipart",
                None => "nothing",
            },
            bytes: body.len(),
            events: split
                .events
                .as_ref()
                .map_or(0, |(_, batch, _)| batch.events() as usize),
            dead_letters: split.failures.len(),
        };
        let problem = self.problem(understood, body);
        self.answer(&answer, problem.as_ref())?;
        match (problem, split.failures.len()) {
            (Some(problem), _) => Err(Exit::Data(format!(
                "it would be a dead letter: {}",
                problem.detail
            ))),
            (None, 0) => Ok(()),
            (None, count) => Err(Exit::Data(format!("dead letters instead of events: {count}"))),
        }
    }

    /// The fault of the body as a whole.
    fn problem(&self, understood: &Understood, body: &[u8]) -> Option<Diagnosis> {
        let first = understood.split.failures.first().map(|failure| failure.reason);
        let unknown = (first == Some(Reason::UnknownEventType)).then(Malformed::unknown_event_type);
        let malformed = understood.malformed.as_ref().or(unknown.as_ref())?;
        Some(Diagnosis {
            reason: Some(malformed.reason),
            detail: malformed.detail.clone(),
            advice: advice(malformed.reason),
            place: malformed
                .offset
                .map(|offset| self.place(malformed, understood, body, offset)),
        })
    }

    fn place(&self, malformed: &Malformed, understood: &Understood, body: &[u8], offset: usize) -> Location {
        let is_form = understood.encoding == Some(BodyEncoding::Form);
        let event = event_field(body).filter(|_| is_form && malformed.in_event);
        let (within, text) = match event {
            Some(event) => {
                let masked = cmc::mask(&event, self.secrets).into_owned();
                ("event", masked)
            }
            // Shown as it would be stored: with its credentials overwritten, byte for byte.
            None => ("body", stored(understood)),
        };
        Location {
            within,
            offset,
            excerpt: Excerpt::new(&text, offset),
        }
    }

    fn records(&mut self, stream: Stream, batch: &Batch) -> Result<(), Exit> {
        let view = decode(batch)?;
        for record in &view.records {
            if self.json {
                self.record_as_json(stream, &view, record)?;
            } else {
                self.record_as_text(stream, &view, record)?;
            }
        }
        Ok(())
    }

    fn record_as_text(
        &mut self,
        stream: Stream,
        view: &BatchView<'_>,
        record: &RecordView<'_>,
    ) -> io::Result<()> {
        let header = |name: &str| {
            let found = view.headers(record).find(|(key, _)| *key == name)?.1;
            Some(visible(&String::from_utf8_lossy(found)))
        };
        let key = match record.key {
            None => "(none)".to_owned(),
            Some(key) => visible(&String::from_utf8_lossy(key)),
        };
        let topic = &self.config.stream(stream).topic;
        let mark = if stream == Stream::DeadLetters {
            '✗'
        } else {
            '→'
        };
        writeln!(self.out, "{mark} {topic}  stream {stream}  key {key}")?;
        for name in ["ce_id", "ce_time", "ce_subject"] {
            if let Some(value) = header(name) {
                writeln!(self.out, "  {name:<10}  {value}")?;
            }
        }
        for (name, what) in [
            ("reason", "reason"),
            ("index", "element"),
            ("member", "of"),
            ("part", "part"),
            ("parts", "of parts"),
        ] {
            if let Some(value) = header(&format!("cmc-dead-letter-{name}")) {
                writeln!(self.out, "  {what:<10}  {value}")?;
            }
        }
        if let Some(reason) = element_reason(header("cmc-dead-letter-reason")) {
            writeln!(self.out, "  what to do  {}", advice(reason))?;
        }
        let find = |name: &str| {
            view.headers(record)
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        let value = match attachment_part(find, record.value_len()) {
            Some(part) => part,
            None => visible(&String::from_utf8_lossy(&record.value())),
        };
        writeln!(self.out, "  {}", cut(&value, self.columns.saturating_sub(2)))
    }

    fn record_as_json(
        &mut self,
        stream: Stream,
        view: &BatchView<'_>,
        record: &RecordView<'_>,
    ) -> io::Result<()> {
        let kind = match stream {
            Stream::DeadLetters => "dead_letter",
            _ => "event",
        };
        let headers = headers(view.headers(record).map(|(name, value)| (name, Some(value))));
        let mut line = format!(
            r#"{{"kind":"{kind}","stream":"{stream}","topic":{},"key":{},"headers":{headers},"value":"#,
            json!(self.config.stream(stream).topic),
            bytes(record.key),
        )
        .into_bytes();
        push_value(Some(&record.value()), &mut line);
        line.extend_from_slice(b"}\n");
        self.out.write_all(&line)
    }

    /// Prints the fault of the body as a whole, and the answer.
    fn answer(&mut self, answer: &AnswerLine, problem: Option<&Diagnosis>) -> io::Result<()> {
        let AnswerLine {
            status,
            read_as,
            bytes,
            events,
            dead_letters,
        } = answer;
        if self.json {
            let line = json!({
                "kind": "answer",
                "status": status,
                "read_as": read_as,
                "bytes": bytes,
                "events": events,
                "dead_letters": dead_letters,
                "problem": problem.map(Diagnosis::json),
            });
            writeln!(self.out, "{line}")?;
        } else {
            if let Some(problem) = problem {
                problem.text(self.out)?;
            }
            if events + dead_letters == 0 && problem.is_some() {
                writeln!(self.out, "answer {status}; nothing is stored")?;
            } else {
                writeln!(
                    self.out,
                    "answer {status}; {bytes} bytes read as {read_as}; events: {events}, dead letters: {dead_letters}"
                )?;
            }
        }
        self.out.flush()
    }
}

#[derive(Default)]
struct AnswerLine {
    status: u16,
    read_as: &'static str,
    bytes: usize,
    events: usize,
    dead_letters: usize,
}

/// The fault of a body as a whole.
#[derive(Default)]
struct Diagnosis {
    /// `None` if nothing would be stored.
    reason: Option<Reason>,
    detail: Cow<'static, str>,
    advice: &'static str,
    place: Option<Location>,
}

/// The position of the fault.
struct Location {
    /// Where the offset counts: in the body, or in the decoded `event` field of a form.
    within: &'static str,
    offset: usize,
    excerpt: Excerpt,
}

impl Diagnosis {
    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        match self.reason {
            Some(reason) => writeln!(out, "{reason}: {}", self.detail)?,
            None => writeln!(out, "{}", self.detail)?,
        }
        if let Some(Location {
            within,
            offset,
            excerpt,
        }) = &self.place
        {
            let Excerpt {
                line,
                column,
                text,
                caret,
            } = excerpt;
            writeln!(
                out,
                "  at byte {offset} of {within}: line {line}, column {column}"
            )?;
            writeln!(out, "  {text}\n  {:caret$}^", "")?;
        }
        writeln!(out, "  what to do  {}", self.advice)
    }

    fn json(&self) -> Value {
        json!({
            "reason": self.reason.map(Reason::name),
            "detail": self.detail,
            "advice": self.advice,
            "place": self.place.as_ref().map(|place| json!({
                "within": place.within,
                "offset": place.offset,
                "line": place.excerpt.line,
                "column": place.excerpt.column,
                "excerpt": place.excerpt.text,
            })),
        })
    }
}

fn decode(batch: &Batch) -> Result<BatchView<'_>, Exit> {
    BatchView::decode(batch.bytes()).map_err(|error| Exit::Unavailable(error.to_string()))
}

/// The concatenated values of the dead letters: for a malformed body, the body.
fn stored(understood: &Understood) -> Vec<u8> {
    let batch = understood.split.dead_letters.as_ref().map(|(batch, _)| batch);
    let view = batch.and_then(|batch| decode(batch).ok());
    let records = view.iter().flat_map(|view| &view.records);
    records.flat_map(|record| record.value().into_owned()).collect()
}

/// The first `event` field of a form, decoded.
fn event_field(form: &[u8]) -> Option<Vec<u8>> {
    let decode = |text: &[u8]| {
        let spaces: Vec<u8> = text
            .iter()
            .map(|byte| if *byte == b'+' { b' ' } else { *byte })
            .collect();
        percent_decode(&spaces).collect::<Vec<u8>>()
    };
    form.split(|byte| *byte == b'&').find_map(|field| {
        let equals = field.iter().position(|byte| *byte == b'=')?;
        (decode(&field[..equals]) == b"event").then(|| decode(&field[equals + 1..]))
    })
}

/// The reason with this name, if it applies to a part of a webhook.
fn element_reason(name: Option<String>) -> Option<Reason> {
    let mut known = Reason::ALL.into_iter();
    known.find(|reason| reason.scope() == Scope::Element && Some(reason.name()) == name.as_deref())
}

fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::UnsupportedMediaType => {
            "choose JSON, a form or (for received mail) multipart in CMC's console; check that nothing in between changes Content-Type"
        }
        Reason::InvalidMultipart => {
            "check that the body is complete, and that its boundary is the one in the content type (--content-type)"
        }
        Reason::InvalidMail => {
            "a received mail has server_composition and headers, envelope-from, envelope-to or subject; post events to ingest.path"
        }
        Reason::MailTooLarge => "raise kafka.max_record_bytes, and max.message.bytes of the topic above it",
        Reason::UnsupportedEncoding => "check that nothing between CMC and the bridge compresses bodies",
        Reason::InvalidForm | Reason::InvalidUtf8 | Reason::InvalidJson => {
            "check that the body is complete (not cut, edited or already decoded) and has the type that it was read as"
        }
        Reason::BodyNotObject | Reason::EventNotObject | Reason::MissingList | Reason::ListNotArray => {
            "the shape is {\"event_type\":\"deliveries\",\"server_composition\":\"…\",\"event\":{\"deliveries\":[…]}}"
        }
        Reason::MissingEventType
        | Reason::InvalidEventType
        | Reason::MissingServerComposition
        | Reason::InvalidServerComposition
        | Reason::MissingEvent => {
            "a webhook has event_type and server_composition (strings) and event; check that this is an event webhook of CMC"
        }
        Reason::DuplicateMember => "it is unclear which of the two is meant; keep one",
        Reason::TooManyMembers => "this is not a webhook of CMC; check who posts it",
        Reason::TooManyEvents => {
            "raise ingest.max_events, or lower the number of events in a webhook in CMC's console"
        }
        Reason::TooDeep => "CMC's events are flat; check who posts it",
        Reason::UnknownEventType => {
            "enable its stream (streams.<name>.enabled), or deselect the event in CMC's console"
        }
        Reason::UnexpectedMember | Reason::UnexpectedList | Reason::UnexpectedValue => {
            "only the list that event_type names becomes events; the rest is kept as dead letters"
        }
        Reason::ElementNotObject => "an event must be an object",
        Reason::ReservedMember => {
            "the bridge adds event_type and server_composition to each event, but this element already has one"
        }
        Reason::RecordTooLarge | Reason::RefusedTooLarge => {
            "raise kafka.max_record_bytes, and max.message.bytes of the topic above it"
        }
        Reason::RefusedInvalid => "the topic's settings reject it; see the broker's log",
    }
}
