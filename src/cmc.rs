//! The sender's format: a webhook's body becomes records.
//!
//! [`open`] reads a body once and answers three things apart: the `api_key`, which the caller must judge before anything
//! else is done; the names by which a dead letter is told; and either an [`Envelope`] or how the body is [`Malformed`].
//! [`split`] then makes one record for each message event and dead letters of what can't go on. A body that can't be
//! opened, or whose content type is none of ours, becomes a dead letter as a whole by [`dead_letter_body`].
//!
//! ```text
//! {"event_type": "deliveries", "server_composition": "pro", "api_key": "…",
//!  "event": {"deliveries": [{…}, {…}, …]}}
//! ```
//!
//! A form has the same members as fields; its `event` is the JSON text of the object. Rules:
//!
//! - The elements of `event[event_type]` are the events. They go on verbatim: a record's value is the element as it came,
//!   with `event_type` and `server_composition` put first.
//! - A body is malformed as a whole when it is no JSON or no form, when a member above is missing, of the wrong type or
//!   repeated, and when it passes a limit: `ingest.max_events` elements (of all lists together), [`MAX_DEPTH`] levels in
//!   an element, [`MAX_MEMBERS`] members of `event` or lists and objects beside it, [`MAX_COMPOSITION`] bytes of
//!   `server_composition`.
//! - A body of no enabled stream is a dead letter as a whole and not malformed; its `event` is not judged: not what it holds,
//!   nor whether it is there.
//! - Otherwise what can't go on becomes dead letters piece by piece, and the rest goes on: elements of other lists, members
//!   of `event` that are no lists, lists and objects beside `event`, elements that are no objects, that have a member
//!   `event_type` or `server_composition`, or that make too large a record.
//! - Numbers, strings, `true`, `false` and `null` beside `event` are ignored, as are form fields that are no list or object.
//!
//! The `api_key` is found whenever a JSON body is valid JSON, and whenever the form's field decodes, whatever else is wrong.
//! No error text has it, and nothing that is stored: see [`mask()`].
//!
//! All of this takes time and memory in proportion to the body at most, with no recursion.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`elements`] | an element's members |
//! | [`envelope`] | what a webhook says around its list |
//! | [`event`] | an element into a record |
//! | [`form`] | form bodies, decoded strictly |
//! | [`id`] | ce_id |
//! | [`json`] | JSON bodies: validated, then walked by a cursor |
//! | [`mask`](mod@mask) | credentials overwritten in dead letters |
//! | [`time`] | ce_time |

mod elements;
mod envelope;
mod event;
mod form;
mod id;
mod json;
mod mask;
mod time;

use std::{borrow::Cow, collections::BTreeMap};

use jiff::tz::TimeZone;
use thiserror::Error;

pub use self::{
    envelope::{Envelope, Opened},
    event::{Split, dead_letter_body, split},
    id::NAMESPACE,
    mask::{SHORTEST, Secrets, mask},
};
use crate::{
    config::{Auth, Ingest, Kafka, StreamConfig},
    dead_letter::Reason,
    stream::Stream,
};

/// The byte order mark of UTF-8, with which no JSON text begins (RFC 8259, 8.1).
pub const BOM: &[u8] = "\u{FEFF}".as_bytes();

/// Most levels of objects and lists in an element, the element itself counted as one.
pub const MAX_DEPTH: usize = 64;

/// Most members of `event`, and most lists and objects beside it.
pub const MAX_MEMBERS: usize = 64;

/// Most bytes of `server_composition`; it stands in every record.
pub const MAX_COMPOSITION: usize = 256;

/// Most bytes of a `messageId` that becomes a key.
pub const MAX_KEY: usize = 512;

/// What the configuration says about webhooks, made once.
#[derive(Clone, Debug)]
pub struct Rules {
    enabled: [bool; 4],
    max_events: usize,
    max_record_bytes: usize,
    time_zone: TimeZone,
    time_zones: BTreeMap<String, TimeZone>,
    secrets: Secrets,
}

impl Rules {
    /// The rules of this configuration; `streams` has one entry for each stream, at [`Stream::index`].
    pub fn new(ingest: &Ingest, kafka: &Kafka, streams: &[StreamConfig; 4]) -> Self {
        Rules {
            enabled: [0, 1, 2, 3].map(|index| streams[index].enabled),
            max_events: ingest.max_events,
            max_record_bytes: kafka.max_record_bytes,
            time_zone: ingest.time_zone.clone(),
            time_zones: ingest.time_zones.clone(),
            secrets: Secrets::new(&ingest.auth),
        }
    }

    /// The same rules with other credentials to overwrite in dead letters.
    pub fn masking(&self, auth: &Auth) -> Self {
        Rules {
            secrets: Secrets::new(auth),
            ..self.clone()
        }
    }

    /// The enabled stream that this `event_type` names.
    fn stream(&self, event_type: &str) -> Option<Stream> {
        Stream::from_event_type(event_type).filter(|stream| self.enabled[stream.index()])
    }

    fn time_zone(&self, server_composition: &str) -> &TimeZone {
        self.time_zones.get(server_composition).unwrap_or(&self.time_zone)
    }
}

/// The request that brought a body.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Microseconds since the Unix epoch.
    pub received_at_micros: i64,
    /// The path, without the query.
    pub path: &'a str,
    /// The header `Content-Type` as it came.
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoding {
    /// `application/json`
    Json,
    /// `application/x-www-form-urlencoded`, the sender's default
    Form,
}

/// A body that could not be understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{detail}")]
pub struct Malformed {
    pub reason: Reason,
    /// Where, in bytes: see `in_event`.
    pub offset: Option<usize>,
    /// Whether it lies in `event`: of a form, `offset` counts in the decoded field then, else in the body.
    pub in_event: bool,
    /// For a human: says what is wrong, and never what the body holds.
    pub detail: Cow<'static, str>,
}

impl Malformed {
    /// A body that is malformed for this reason.
    pub fn new(reason: Reason, offset: Option<usize>, detail: impl Into<Cow<'static, str>>) -> Self {
        Malformed {
            reason,
            offset,
            in_event: false,
            detail: detail.into(),
        }
    }

    fn in_event(self) -> Self {
        Malformed {
            in_event: true,
            ..self
        }
    }
}

/// Opens a body. It says nothing about who sent it: judge [`Opened::api_key`] before using the rest.
pub fn open<'a>(body: &'a [u8], encoding: BodyEncoding, rules: &Rules) -> Opened<'a> {
    match encoding {
        BodyEncoding::Json => envelope::open_json(body, rules),
        BodyEncoding::Form => form::open(body, rules),
    }
}

#[cfg(test)]
mod tests;
