//! The sender's format: from a webhook's body to records.
//!
//! [`open`] reads a body once and finds three things: the `api_key`, which the caller must judge before it does anything else;
//! the names that identify a dead letter; and either an [`Envelope`] or why the body is [`Malformed`]. [`understand()`] then
//! makes one record of each event, and dead letters of what can't become an event. A body that can't be opened, or whose
//! content type is not supported, becomes a dead letter as a whole.
//!
//! ```text
//! {"event_type": "deliveries", "server_composition": "pro", "api_key": "…",
//!  "event": {"deliveries": [{…}, {…}, …]}}
//! ```
//!
//! A form has the same members as fields; its `event` field holds the JSON text of the object. The rules:
//!
//! - The elements of `event[event_type]` are the events. They are passed on verbatim: the value of a record is the element as
//!   received, with `event_type` and `server_composition` put first.
//! - A body is malformed as a whole if it is neither JSON nor a form; if one of the members above is missing, repeated or of
//!   the wrong type; or if it exceeds a limit: `ingest.max_events` elements (in all lists together), [`MAX_DEPTH`] levels in an
//!   element, [`MAX_MEMBERS`] members of `event` or lists and objects beside it, [`MAX_COMPOSITION`] bytes of
//!   `server_composition`.
//! - A body whose `event_type` names no enabled stream is a dead letter as a whole, but not malformed. Its `event` is not
//!   checked: neither its contents nor its presence.
//! - Otherwise each piece that can't become an event becomes a dead letter, and the rest goes on. Such pieces are elements of
//!   other lists; members of `event` that are not lists; lists and objects beside `event`; and elements that are not objects,
//!   that have a member `event_type` or `server_composition`, or whose record would be too large.
//! - Numbers, strings, `true`, `false` and `null` beside `event` are ignored, and so are form fields that hold neither a list
//!   nor an object.
//!
//! Webhooks on the path of received mail bring one mail each: [`inbound`] says how it is read, [`group`] what it becomes.
//!
//! The `api_key` is found in every body that is valid JSON, and in every form whose `api_key` field can be decoded, whatever
//! else is wrong. It appears in no error text and in nothing that is stored: see [`mask()`].
//!
//! All of this takes time and memory at most proportional to the body, without recursion. This module knows neither HTTP nor
//! the configuration.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`charset`] | names of character encodings |
//! | [`elements`] | the lists of `event` and the members of their elements |
//! | [`envelope`] | the members around the list of events |
//! | [`event`] | turns elements into records, everything else into dead letters |
//! | [`form`] | form bodies, decoded strictly |
//! | [`group`] | a received mail as a group of records |
//! | [`id`] | ce_id |
//! | [`identity`](mod@identity) | when two forms of an event are the same event |
//! | [`inbound`] | webhooks of received mail |
//! | [`json`] | JSON bodies: walked by a cursor that checks them, and judged by serde_json where it has doubts |
//! | [`mail`] | a received mail: fields and files |
//! | [`malformed`] | why a body as a whole could not be understood |
//! | [`mask`](mod@mask) | credentials masked in dead letters |
//! | [`request`] | the request, and which encoding its body is in |
//! | [`rules`] | what a deployment decides, and the fixed limits |
//! | [`time`] | ce_time |
//! | [`understand`](mod@understand) | takes a body from its content type to its records |

mod charset;
mod elements;
mod envelope;
mod event;
mod form;
mod group;
mod id;
mod identity;
mod inbound;
mod json;
mod mail;
mod malformed;
mod mask;
mod request;
mod rules;
mod time;
mod understand;

pub use self::{
    envelope::{Content, Envelope, Opened},
    event::{Split, row, split},
    group::most_bytes as most_bytes_of_mail,
    id::NAMESPACE,
    identity::{OnTopic, Row, on_topic},
    malformed::Malformed,
    mask::{SHORTEST, Secrets, mask},
    request::{BOM, BodyEncoding, Endpoint, Media, Request},
    rules::{InboundRules, MAX_COMPOSITION, MAX_DEPTH, MAX_KEY, MAX_MEMBERS, MailContent, Rules},
    understand::{Understood, explain, open, open_request, understand},
};

#[cfg(test)]
mod tests;
