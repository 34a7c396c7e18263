//! Turns an envelope into records; `docs/events.md` is the contract.
//!
//! The loop over the elements is the hot one: an event costs a hash, a few short strings on the stack and one copy of
//! its bytes into the batch.

use std::{borrow::Cow, iter};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use uuid::Uuid;

use super::{
    elements::Element,
    envelope::{Content, Envelope, Opened, Unexpected, open_json},
    group::{MailTooLarge, split_mail},
    id::Ids,
    identity::Members,
    mail::Mail,
    malformed::Malformed,
    mask::{is_key, mask, mask_form, mask_mail, mask_text, mask_whole},
    request::{BodyEncoding, Request},
    rules::{MAX_KEY, Rules},
    time::Clock,
};
use crate::{
    batch::{Batch, BatchBuilder, alone_in_batch},
    dead_letter::{DeadLetter, Failure, Reason, rfc3339_micros},
    repeats::Repeats,
    stream::{Stream, Tally},
};

/// What an opened body becomes.
#[derive(Debug, Default)]
pub struct Split {
    /// The events; `None` if there are none.
    pub events: Option<(Stream, Batch, Tally)>,
    /// The records for [`Stream::DeadLetters`]; `None` if there are none.
    pub dead_letters: Option<(Batch, Tally)>,
    /// One entry for each dead letter, however many parts it has.
    pub failures: Vec<Failure>,
    /// The ids of `events`, if repeats are to be recognised; otherwise none.
    pub ids: Vec<Uuid>,
    /// How many events were left out, because they are known to be durable.
    pub repeated: u64,
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A webhook.
    Webhook,
    /// The sender's Web API. The record says so, and its `ce_id` is the canonical one.
    Api,
}

/// The record that a row of the sender's Web API becomes: what its webhook's would have been, but for `ce_id` and `cmc-origin`.
/// `read_at_micros` is when it was read, in microseconds since the Unix epoch.
///
/// # Errors
/// Why it can't become an event.
pub fn row(
    stream: Stream,
    composition: &str,
    row: &str,
    read_at_micros: i64,
    rules: &Rules,
) -> Result<Batch, Reason> {
    let composition = serde_json::Value::from(composition);
    let body = format!(
        r#"{{"event_type":"{stream}","server_composition":{composition},"event":{{"{stream}":[{row}]}}}}"#
    );
    let request = Request {
        received_at_micros: read_at_micros,
        path: "",
        content_type: None,
        body: body.as_bytes(),
    };
    let split = split_from(&open_json(request.body, rules), rules, &request, Origin::Api);
    match (split.events, split.failures.first()) {
        (Some((_, batch, _)), None) if batch.events() == 1 => Ok(batch),
        (_, failure) => Err(failure.map_or(Reason::InvalidJson, |failure| failure.reason)),
    }
}

/// Makes the records of an opened body. A malformed one becomes a dead letter.
pub fn split(opened: &Opened<'_>, rules: &Rules, request: &Request<'_>) -> Split {
    split_from(opened, rules, request, Origin::Webhook)
}

fn split_from(opened: &Opened<'_>, rules: &Rules, request: &Request<'_>, origin: Origin) -> Split {
    let envelope = match &opened.content {
        Ok(Content::Events(envelope)) => envelope,
        Ok(Content::Mail(mail)) => return split_inbound(mail, opened, rules, request),
        Err(malformed) => {
            return Split {
                dead_letters: dead_letter_body(malformed, opened, rules, request),
                failures: vec![Failure::whole(malformed.reason)],
                ..Split::default()
            };
        }
    };
    let Some(stream) = envelope.stream else {
        let unknown = Malformed::unknown_event_type();
        return Split {
            dead_letters: dead_letter_body(&unknown, opened, rules, request),
            failures: vec![Failure::whole(unknown.reason)],
            ..Split::default()
        };
    };
    let mut letters = DeadLetters::new(opened, rules, request);
    let split = split_events(stream, envelope, opened, rules, request, origin, &mut letters);
    for Unexpected { name, value } in &envelope.unexpected {
        let name = letters.name(name.as_deref());
        letters.add(Reason::UnexpectedMember, None, &name, value.as_bytes());
    }
    let failures = std::mem::take(&mut letters.failures);
    Split {
        dead_letters: letters.finish(),
        failures,
        ..split
    }
}

fn split_inbound(mail: &Mail<'_>, opened: &Opened<'_>, rules: &Rules, request: &Request<'_>) -> Split {
    let composition = opened.server_composition.as_deref().unwrap_or_default();
    match split_mail(mail, composition, rules, request) {
        Ok((batch, tally)) => Split {
            events: Some((Stream::Inbound, batch, tally)),
            ..Split::default()
        },
        Err(MailTooLarge) => {
            let malformed = Malformed::mail_too_large();
            Split {
                dead_letters: dead_letter_body(&malformed, opened, rules, request),
                failures: vec![Failure::whole(malformed.reason)],
                ..Split::default()
            }
        }
    }
}

/// Makes the dead letter of a whole body.
pub(super) fn dead_letter_body(
    malformed: &Malformed,
    opened: &Opened<'_>,
    rules: &Rules,
    request: &Request<'_>,
) -> Option<(Batch, Tally)> {
    let body = match opened.encoding {
        _ if rules.is_inbound(request.path) => mask_mail(request.body, &rules.secrets),
        Some(BodyEncoding::Form) => mask_form(request.body, &rules.secrets),
        _ => mask(request.body, &rules.secrets),
    };
    let mut letters = DeadLetters::new(opened, rules, request);
    letters.offset = malformed.offset;
    letters.add_masked(malformed.reason, None, &MemberName::default(), body);
    letters.finish()
}

fn split_events(
    stream: Stream,
    envelope: &Envelope<'_>,
    opened: &Opened<'_>,
    rules: &Rules,
    request: &Request<'_>,
    origin: Origin,
    letters: &mut DeadLetters<'_>,
) -> Split {
    let text = &*envelope.text;
    let composition = opened.server_composition.as_deref().unwrap_or_default();
    let common = Common::new(stream, composition, request.received_at_micros);
    let all = common.headers();
    let headers = match origin {
        Origin::Webhook => &all[..WEBHOOK_HEADERS],
        Origin::Api => &all[..],
    };
    let prefix = prefix(stream, composition);
    let capacity = text.len() + envelope.event.elements.len() * EVENT_OVERHEAD;
    let mut writer = EventWriter {
        stream,
        text,
        prefix_len: prefix.len(),
        limit: RecordLimit::new(rules.max_record_bytes, headers),
        ids: Ids::new(stream.name(), composition),
        origin,
        clock: Clock::new(rules.time_zone(composition)),
        batch: BatchBuilder::new(request.received_at_micros, headers, prefix.as_bytes(), capacity),
        tally: Tally::default(),
        scratch: String::new(),
        repeats: rules.repeats.as_deref(),
        received_at_micros: request.received_at_micros,
        new: Vec::new(),
        repeated: 0,
    };
    for member in &envelope.event.members {
        let name = member.name.decode(text);
        let Some(list) = &member.list else {
            let value = &text[member.value.clone()];
            let name = letters.name(name.as_deref());
            letters.add(Reason::UnexpectedValue, None, &name, value.as_bytes());
            continue;
        };
        let ours = name.as_deref() == Some(stream.name());
        // Masked once per list, however many elements fail: a name can be as long as the body.
        let mut masked = None;
        let elements = envelope.event.elements.get(list.clone()).unwrap_or_default();
        for (index, element) in elements.iter().enumerate() {
            let result = if ours {
                writer.push(element)
            } else {
                Err(Reason::UnexpectedList)
            };
            if let Err(reason) = result {
                let value = &text[element.span.clone()];
                let name = masked.get_or_insert_with(|| letters.name(name.as_deref()));
                letters.add(reason, Some(index), name, value.as_bytes());
            }
        }
    }
    let batch = writer.batch.finish();
    Split {
        events: (batch.events() > 0).then_some((stream, batch, writer.tally)),
        ids: writer.new,
        repeated: writer.repeated,
        ..Split::default()
    }
}

/// An estimate of the bytes that an event adds to its own in a batch: key, headers, lengths.
const EVENT_OVERHEAD: usize = 144;

/// How many of [`Common::headers`] the events of a webhook have.
const WEBHOOK_HEADERS: usize = 5;

/// The type of the records that hold mails.
pub(super) const MAIL_TYPE: &str = "jp.smtps.cmc.inbound";

/// The headers that all events of a webhook share.
pub(super) struct Common {
    event_type: String,
    source: String,
    received_at: String,
}

/// All characters except those that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

impl Common {
    pub fn new(stream: Stream, composition: &str, received_at_micros: i64) -> Self {
        Common {
            event_type: ["jp.smtps.cmc.", stream.name()].concat(),
            source: iter::once("/cmc/")
                .chain(utf8_percent_encode(composition, ENCODED))
                .collect(),
            received_at: rfc3339_micros(received_at_micros),
        }
    }

    /// Those that the records of a mail share.
    pub fn shared(&self) -> [(&str, &[u8]); 3] {
        let [version, _, source, _, received_at, _] = self.headers();
        [version, source, received_at]
    }

    fn headers(&self) -> [(&str, &[u8]); WEBHOOK_HEADERS + 1] {
        [
            ("ce_specversion", b"1.0"),
            ("ce_type", self.event_type.as_bytes()),
            ("ce_source", self.source.as_bytes()),
            ("content-type", b"application/json"),
            ("cmc-received-at", self.received_at.as_bytes()),
            ("cmc-origin", b"api"),
        ]
    }
}

/// The beginning of every value, up to but without the comma before the element's own members.
pub(super) fn prefix(stream: Stream, composition: &str) -> String {
    let composition = serde_json::Value::from(composition).to_string();
    [
        r#"{"event_type":""#,
        stream.name(),
        r#"","server_composition":"#,
        &composition,
    ]
    .concat()
}

/// Writes events into a batch.
struct EventWriter<'w> {
    stream: Stream,
    text: &'w str,
    /// Length of the common beginning of every value.
    prefix_len: usize,
    limit: RecordLimit<'w>,
    ids: Ids,
    origin: Origin,
    clock: Clock<'w>,
    batch: BatchBuilder,
    tally: Tally,
    /// Holds a decoded string while an event is written.
    scratch: String,
    repeats: Option<&'w Repeats>,
    received_at_micros: i64,
    /// With `repeats`: the ids of the events in `batch`.
    new: Vec<Uuid>,
    /// How many events were left out, because they are known.
    repeated: u64,
}

impl EventWriter<'_> {
    fn push(&mut self, element: &Element) -> Result<(), Reason> {
        let raw = &self.text[element.span.clone()];
        if !element.is_object {
            return Err(Reason::ElementNotObject);
        }
        if element.reserved {
            return Err(Reason::ReservedMember);
        }
        let status = element
            .status
            .as_ref()
            .and_then(|status| status.decode_up_to(MAX_KEY, self.text, &mut self.scratch));
        let mut tally = self.tally;
        tally.count(self.stream, status);

        let rest = &raw.as_bytes()[1..];
        let comma: &[u8] = if rest.trim_ascii_start() == b"}" {
            b""
        } else {
            b","
        };
        let time = element
            .created
            .as_ref()
            .and_then(|created| created.decode_up_to(MAX_KEY, self.text, &mut self.scratch))
            .and_then(|created| self.clock.time(created));
        let key = element
            .message_id
            .as_ref()
            .and_then(|id| id.decode_up_to(MAX_KEY, self.text, &mut self.scratch))
            .filter(|id| !id.is_empty());
        let mut id_buffer = [0; 36];
        let uuid = match self.origin {
            Origin::Webhook => self.ids.uuid(raw.as_bytes()),
            Origin::Api => self
                .ids
                .uuid(Members::read(raw).canonical(self.stream).as_bytes()),
        };
        if let Some(repeats) = self.repeats
            && repeats.is_known(self.stream, &uuid, self.received_at_micros)
        {
            self.repeated += 1;
            return Ok(());
        }
        let id = &*uuid.hyphenated().encode_lower(&mut id_buffer);

        let mut headers: [(&str, &[u8]); 3] = [("ce_id", id.as_bytes()), ("", b""), ("", b"")];
        let mut count = 1;
        if let Some(key) = key.filter(|key| is_attribute(key)) {
            headers[count] = ("ce_subject", key.as_bytes());
            count += 1;
        }
        if let Some(time) = time {
            headers[count] = ("ce_time", time);
            count += 1;
        }
        let headers = &headers[..count];
        let key = key.map(str::as_bytes);
        let value_len = self.prefix_len + comma.len() + rest.len();
        if self.limit.is_passed(key, headers, value_len) {
            return Err(Reason::RecordTooLarge);
        }
        self.batch.push(key, headers, &[comma, rest]);
        self.tally = tally;
        if self.repeats.is_some() {
            self.new.push(uuid);
        }
        Ok(())
    }
}

/// Whether a text may be a CloudEvents attribute: it contains neither control characters nor noncharacters.
pub(super) fn is_attribute(text: &str) -> bool {
    let is_plain = |byte: &u8| (b' '..=b'~').contains(byte);
    let is_noncharacter =
        |c: char| matches!(u32::from(c), 0xFDD0..=0xFDEF) || u32::from(c) & 0xFFFE == 0xFFFE;
    // Nearly all are ASCII.
    text.as_bytes().iter().all(is_plain) || text.chars().all(|c| !c.is_control() && !is_noncharacter(c))
}

/// The limit on the size of a record.
pub(super) struct RecordLimit<'w> {
    pub max_record_bytes: usize,
    /// The headers that all events share, and the length of their names and values.
    pub common: &'w [(&'w str, &'w [u8])],
    common_len: usize,
}

impl<'w> RecordLimit<'w> {
    pub fn new(max_record_bytes: usize, common: &'w [(&'w str, &'w [u8])]) -> Self {
        RecordLimit {
            max_record_bytes,
            common,
            common_len: bytes_of(common),
        }
    }

    pub fn is_passed(&self, key: Option<&[u8]>, headers: &[(&str, &[u8])], value_len: usize) -> bool {
        /// An upper bound for the lengths of eight headers and the batch around them.
        const AROUND: usize = 256;
        let key_len = key.map_or(0, <[u8]>::len);
        // Nearly all are far below the limit, and an exact count takes time.
        self.common_len + bytes_of(headers) + key_len + value_len + AROUND > self.max_record_bytes && {
            let all = self.common.iter().chain(headers).copied();
            alone_in_batch(key, all, value_len) > self.max_record_bytes
        }
    }
}

fn bytes_of(headers: &[(&str, &[u8])]) -> usize {
    headers.iter().map(|(name, value)| name.len() + value.len()).sum()
}

/// The name of a member of a webhook, for its dead letters.
#[derive(Default)]
struct MemberName<'n> {
    /// Masked.
    name: Option<Cow<'n, str>>,
    /// Whether the webhook's key has this name, so that the whole value is masked.
    is_key: bool,
}

/// Collects the dead letters of one webhook. Nearly every webhook has none, so nothing is masked before the first.
struct DeadLetters<'a> {
    rules: &'a Rules,
    opened: &'a Opened<'a>,
    request: &'a Request<'a>,
    batch: Option<BatchBuilder>,
    failures: Vec<Failure>,
    offset: Option<usize>,
    texts: Option<Texts<'a>>,
}

/// What the dead letters of a webhook say about it.
struct Texts<'a> {
    event_type: Option<Cow<'a, str>>,
    server_composition: Option<Cow<'a, str>>,
    path: Cow<'a, str>,
    content_type: Option<Cow<'a, str>>,
    /// Whether one of these texts was masked.
    masked: bool,
}

impl<'a> Texts<'a> {
    fn new(opened: &'a Opened<'_>, rules: &Rules, request: &Request<'a>) -> Self {
        let mut masked = false;
        let mut text = |text: &'a str| {
            let text = mask_text(text, &rules.secrets);
            masked |= matches!(text, Cow::Owned(_));
            text
        };
        Texts {
            event_type: opened.event_type.as_deref().map(&mut text),
            server_composition: opened.server_composition.as_deref().map(&mut text),
            path: text(request.path),
            content_type: request.content_type.map(&mut text),
            masked,
        }
    }
}

impl<'a> DeadLetters<'a> {
    fn new(opened: &'a Opened<'a>, rules: &'a Rules, request: &'a Request<'a>) -> Self {
        DeadLetters {
            rules,
            opened,
            request,
            batch: None,
            failures: Vec::new(),
            offset: None,
            texts: None,
        }
    }

    /// The member that a piece was or was part of; `None` if its name is not valid text.
    fn name<'n>(&self, name: Option<&'n str>) -> MemberName<'n> {
        MemberName {
            name: name.map(|name| mask_text(name, &self.rules.secrets)),
            is_key: name.is_some_and(is_key),
        }
    }

    fn add(&mut self, reason: Reason, index: Option<usize>, member: &MemberName<'_>, value: &[u8]) {
        let value = match member.is_key {
            true => Cow::Owned(mask_whole(value)),
            false => mask(value, &self.rules.secrets),
        };
        self.add_masked(reason, index, member, value);
    }

    fn add_masked(
        &mut self,
        reason: Reason,
        index: Option<usize>,
        member: &MemberName<'_>,
        value: Cow<'_, [u8]>,
    ) {
        let texts = self
            .texts
            .get_or_insert_with(|| Texts::new(self.opened, self.rules, self.request));
        let member = &member.name;
        let masked = texts.masked || matches!(value, Cow::Owned(_)) || matches!(member, Some(Cow::Owned(_)));
        let letter = DeadLetter {
            offset: self.offset,
            index,
            member: member.as_deref(),
            event_type: texts.event_type.as_deref(),
            server_composition: texts.server_composition.as_deref(),
            path: Some(&texts.path),
            content_type: texts.content_type.as_deref(),
            masked,
            ..DeadLetter::new(reason, self.request.received_at_micros, &value)
        };
        let received_at = self.request.received_at_micros;
        let batch = self
            .batch
            .get_or_insert_with(|| BatchBuilder::new(received_at, &[], b"", 0));
        letter.push(batch, self.rules.max_record_bytes);
        self.failures.push(Failure { reason, index });
    }

    fn finish(self) -> Option<(Batch, Tally)> {
        let batch = self.batch?.finish();
        let tally = tally_dead_letters(&batch);
        Some((batch, tally))
    }
}

/// Every part counts, since it is a record of its own.
fn tally_dead_letters(batch: &Batch) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..batch.events() {
        tally.count(Stream::DeadLetters, None);
    }
    tally
}
