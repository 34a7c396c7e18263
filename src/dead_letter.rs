//! Dead letters: records for what could not go where it should have gone.
//!
//! A [`DeadLetter`] becomes one record on the dead-letter topic, or several numbered parts when one would pass the record
//! limit. Its value is the bytes in question and nothing else; all that is known about them stands in headers, each left
//! out when it is not known:
//!
//! ```text
//! cmc-dead-letter-reason              a Reason's name
//! cmc-dead-letter-offset              where in the JSON text, in bytes
//! cmc-dead-letter-index               which element of its list, from 0
//! cmc-dead-letter-member              the list that an element stood in, or the member that the value had
//! cmc-dead-letter-event-type          as the webhook said
//! cmc-dead-letter-server-composition  as the webhook said
//! cmc-dead-letter-path                of the request
//! cmc-dead-letter-content-type        of the request
//! cmc-dead-letter-received-at         RFC 3339, UTC, microseconds
//! cmc-dead-letter-masked              "true" when credentials were overwritten with `*`
//! cmc-dead-letter-topic               where the broker refused the record
//! cmc-dead-letter-id, -part, -parts   only of parts: the letter's id, this part's number from 1, how many there are
//! ```
//!
//! A record that the broker refused keeps its key and its own headers, which come first. The parts' values, put together
//! in the order of their numbers, are the bytes. Texts that came from outside are cut to [`MAX_TEXT`] bytes.
//!
//! This module knows neither the sender's format nor Kafka: ingest and the lanes both make dead letters.

use std::fmt;

use uuid::Uuid;

use crate::batch::{BatchBuilder, alone_in_batch};

/// Most bytes of a header value that was text from outside.
pub const MAX_TEXT: usize = 256;

/// Least room for a part's value, whatever its headers need: a letter always gets through in a bounded number of parts.
const MIN_PART: usize = 1024;

/// Why something became a dead letter: the closed list behind the header and the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The content type is neither JSON nor a form.
    UnsupportedMediaType,
    /// The body has a content encoding.
    UnsupportedEncoding,
    /// The form's fields are not percent-encoded UTF-8.
    InvalidForm,
    /// The JSON text is not UTF-8.
    InvalidUtf8,
    /// The JSON text is not JSON.
    InvalidJson,
    /// The body is JSON, but no object.
    BodyNotObject,
    /// `event_type`, `server_composition`, `event`, `api_key` or the list of the events is there more than once.
    DuplicateMember,
    /// More members than any webhook has, each of which would be a dead letter.
    TooManyMembers,
    /// There is no `event_type`.
    MissingEventType,
    /// `event_type` is no string.
    InvalidEventType,
    /// There is no `server_composition`.
    MissingServerComposition,
    /// `server_composition` is no string, or too long a one.
    InvalidServerComposition,
    /// There is no `event`.
    MissingEvent,
    /// `event` is no object.
    EventNotObject,
    /// `event` has no member of the name that `event_type` says.
    MissingList,
    /// The member of the name that `event_type` says is no list.
    ListNotArray,
    /// More elements than `ingest.max_events`.
    TooManyEvents,
    /// An element is nested too deeply.
    TooDeep,
    /// `event_type` names no stream, or one that is not enabled.
    UnknownEventType,
    /// A list or object beside `event` in the webhook.
    UnexpectedMember,
    /// An element of another list than `event_type` says.
    UnexpectedList,
    /// A member of `event` that is no list.
    UnexpectedValue,
    /// The element is no object.
    ElementNotObject,
    /// The element has a member `event_type` or `server_composition` of its own.
    ReservedMember,
    /// The element makes a record over `kafka.max_record_bytes`.
    RecordTooLarge,
    /// The broker refused the record alone as too large.
    RefusedTooLarge,
    /// The broker refused the record alone as invalid.
    RefusedInvalid,
}

/// What a [`Reason`] speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A whole body.
    Body,
    /// A piece of a webhook whose other events went on.
    Element,
    /// A record that the broker refused; not a parse failure.
    Broker,
}

impl Scope {
    /// The label value.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Body => "body",
            Scope::Element => "element",
            Scope::Broker => "broker",
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 27] = [
        Reason::UnsupportedMediaType,
        Reason::UnsupportedEncoding,
        Reason::InvalidForm,
        Reason::InvalidUtf8,
        Reason::InvalidJson,
        Reason::BodyNotObject,
        Reason::DuplicateMember,
        Reason::TooManyMembers,
        Reason::MissingEventType,
        Reason::InvalidEventType,
        Reason::MissingServerComposition,
        Reason::InvalidServerComposition,
        Reason::MissingEvent,
        Reason::EventNotObject,
        Reason::MissingList,
        Reason::ListNotArray,
        Reason::TooManyEvents,
        Reason::TooDeep,
        Reason::UnknownEventType,
        Reason::UnexpectedMember,
        Reason::UnexpectedList,
        Reason::UnexpectedValue,
        Reason::ElementNotObject,
        Reason::ReservedMember,
        Reason::RecordTooLarge,
        Reason::RefusedTooLarge,
        Reason::RefusedInvalid,
    ];

    /// The name in the header and in the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Reason::UnsupportedMediaType => "unsupported_media_type",
            Reason::UnsupportedEncoding => "unsupported_encoding",
            Reason::InvalidForm => "invalid_form",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::InvalidJson => "invalid_json",
            Reason::BodyNotObject => "body_not_object",
            Reason::DuplicateMember => "duplicate_member",
            Reason::TooManyMembers => "too_many_members",
            Reason::MissingEventType => "missing_event_type",
            Reason::InvalidEventType => "invalid_event_type",
            Reason::MissingServerComposition => "missing_server_composition",
            Reason::InvalidServerComposition => "invalid_server_composition",
            Reason::MissingEvent => "missing_event",
            Reason::EventNotObject => "event_not_object",
            Reason::MissingList => "missing_list",
            Reason::ListNotArray => "list_not_array",
            Reason::TooManyEvents => "too_many_events",
            Reason::TooDeep => "too_deep",
            Reason::UnknownEventType => "unknown_event_type",
            Reason::UnexpectedMember => "unexpected_member",
            Reason::UnexpectedList => "unexpected_list",
            Reason::UnexpectedValue => "unexpected_value",
            Reason::ElementNotObject => "element_not_object",
            Reason::ReservedMember => "reserved_member",
            Reason::RecordTooLarge => "record_too_large",
            Reason::RefusedTooLarge => "refused_too_large",
            Reason::RefusedInvalid => "refused_invalid",
        }
    }

    /// What the reason speaks of.
    pub fn scope(self) -> Scope {
        match self {
            Reason::UnexpectedMember
            | Reason::UnexpectedList
            | Reason::UnexpectedValue
            | Reason::ElementNotObject
            | Reason::ReservedMember
            | Reason::RecordTooLarge => Scope::Element,
            Reason::RefusedTooLarge | Reason::RefusedInvalid => Scope::Broker,
            _ => Scope::Body,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One dead letter; the fields are the headers of the module's head.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    pub reason: Reason,
    pub offset: Option<usize>,
    pub index: Option<usize>,
    pub member: Option<&'a str>,
    pub event_type: Option<&'a str>,
    pub server_composition: Option<&'a str>,
    pub path: Option<&'a str>,
    pub content_type: Option<&'a str>,
    /// Microseconds since the Unix epoch.
    pub received_at_micros: i64,
    /// Whether credentials were overwritten, here or in `value`.
    pub masked: bool,
    pub topic: Option<&'a str>,
    /// The key of a refused record.
    pub key: Option<&'a [u8]>,
    /// All headers of a refused record.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The bytes in question.
    pub value: &'a [u8],
}

impl<'a> DeadLetter<'a> {
    /// A letter of which nothing is known but this.
    pub fn new(reason: Reason, received_at_micros: i64, value: &'a [u8]) -> Self {
        DeadLetter {
            reason,
            offset: None,
            index: None,
            member: None,
            event_type: None,
            server_composition: None,
            path: None,
            content_type: None,
            received_at_micros,
            masked: false,
            topic: None,
            key: None,
            headers: &[],
            value,
        }
    }

    /// The records that this letter becomes, none larger (alone in a Kafka record batch) than `max_record_bytes` unless
    /// key and headers alone leave no room for 1 KiB of value.
    pub fn records(&self, max_record_bytes: usize) -> Records<'a> {
        let mut headers: Vec<Header<'a>> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, Bytes::Borrowed(value)))
            .collect();
        self.put_known(&mut headers);
        let size = alone_in_batch(self.key, borrowed(&headers), self.value.len());
        if size <= max_record_bytes {
            return Records {
                key: self.key.map(Bytes::Borrowed),
                headers,
                numbered: false,
                parts: 1,
                part_bytes: self.value.len().max(1),
                value: self.value,
            };
        }
        let id = Uuid::new_v4().to_string();
        let key = match self.key {
            Some(key) => Bytes::Borrowed(key),
            None => Bytes::Owned(id.clone().into_bytes()),
        };
        headers.push(("cmc-dead-letter-id", Bytes::Owned(id.into_bytes())));
        let widest: [Header<'_>; 2] = [
            (PARTS, Bytes::Borrowed(&[0; 20])),
            (PART, Bytes::Borrowed(&[0; 20])),
        ];
        let overhead = alone_in_batch(
            Some(key.get()),
            borrowed(&headers).chain(borrowed(&widest)),
            max_record_bytes,
        ) - max_record_bytes;
        let part_bytes = max_record_bytes.saturating_sub(overhead).max(MIN_PART);
        let parts = self.value.len().div_ceil(part_bytes).max(1);
        headers.push((PARTS, Bytes::Owned(parts.to_string().into_bytes())));
        Records {
            key: Some(key),
            headers,
            numbered: true,
            parts,
            part_bytes,
            value: self.value,
        }
    }

    /// Adds this letter's records to a batch.
    pub fn push(&self, batch: &mut BatchBuilder, max_record_bytes: usize) {
        for record in self.records(max_record_bytes).iter() {
            batch.push(record.key, &record.headers(), &[record.value]);
        }
    }

    fn put_known(&self, headers: &mut Vec<Header<'a>>) {
        let mut put = |name, value: Bytes<'a>| headers.push((name, value));
        put(
            "cmc-dead-letter-reason",
            Bytes::Borrowed(self.reason.name().as_bytes()),
        );
        for (name, number) in [
            ("cmc-dead-letter-offset", self.offset),
            ("cmc-dead-letter-index", self.index),
        ] {
            if let Some(number) = number {
                put(name, Bytes::Owned(number.to_string().into_bytes()));
            }
        }
        for (name, text) in [
            ("cmc-dead-letter-member", self.member),
            ("cmc-dead-letter-event-type", self.event_type),
            ("cmc-dead-letter-server-composition", self.server_composition),
            ("cmc-dead-letter-path", self.path),
            ("cmc-dead-letter-content-type", self.content_type),
            ("cmc-dead-letter-topic", self.topic),
        ] {
            if let Some(text) = text {
                put(name, Bytes::Borrowed(cut(text).as_bytes()));
            }
        }
        let received_at = rfc3339_micros(self.received_at_micros).into_bytes();
        put("cmc-dead-letter-received-at", Bytes::Owned(received_at));
        if self.masked {
            put("cmc-dead-letter-masked", Bytes::Borrowed(b"true"));
        }
    }
}

const PART: &str = "cmc-dead-letter-part";
const PARTS: &str = "cmc-dead-letter-parts";

type Header<'a> = (&'a str, Bytes<'a>);

#[derive(Debug)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl Bytes<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

fn borrowed<'h>(headers: &'h [Header<'_>]) -> impl Iterator<Item = (&'h str, &'h [u8])> {
    headers.iter().map(|(name, value)| (*name, value.get()))
}

/// The records of one dead letter.
#[derive(Debug)]
pub struct Records<'a> {
    key: Option<Bytes<'a>>,
    headers: Vec<Header<'a>>,
    numbered: bool,
    parts: usize,
    part_bytes: usize,
    value: &'a [u8],
}

impl Records<'_> {
    /// How many there are; never zero.
    pub fn count(&self) -> usize {
        self.parts
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.parts).map(|index| {
            let start = index * self.part_bytes;
            let end = (start + self.part_bytes).min(self.value.len());
            Record {
                key: self.key.as_ref().map(Bytes::get),
                headers: &self.headers,
                part: self.numbered.then(|| (index + 1).to_string()),
                value: &self.value[start..end],
            }
        })
    }
}

/// One record of a dead letter.
#[derive(Debug)]
pub struct Record<'r> {
    /// The Kafka key; `None` is the null key.
    pub key: Option<&'r [u8]>,
    headers: &'r [Header<'r>],
    part: Option<String>,
    /// The Kafka value.
    pub value: &'r [u8],
}

impl Record<'_> {
    /// The headers in their order.
    pub fn headers(&self) -> Vec<(&str, &[u8])> {
        let part = self.part.iter().map(|part| (PART, part.as_bytes()));
        borrowed(self.headers).chain(part).collect()
    }
}

/// The beginning of a text, at most [`MAX_TEXT`] bytes of whole characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// RFC 3339 in UTC with exactly six digits after the second and `Z`; a time out of range is given as the epoch.
pub(crate) fn rfc3339_micros(micros: i64) -> String {
    let timestamp = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{timestamp:.6}")
}

#[cfg(test)]
#[path = "dead_letter_tests.rs"]
mod tests;
