//! The sender's format: a webhook's body becomes records.
//!
//! [`open`] reads a body once and answers three things apart: the `api_key`, which the caller must judge before anything
//! else is done; the names by which a dead letter is told; and either an [`Envelope`] or how the body is [`Malformed`].
//! [`split`] then makes one record for each message event and dead letters of what can't go on. A body that can't be
//! opened, or whose content type is none of ours, becomes a dead letter as a whole.
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
//! | [`malformed`] | why a body as a whole could not be understood |
//! | [`mask`](mod@mask) | credentials overwritten in dead letters |
//! | [`request`] | the request, and which encoding its body is in |
//! | [`rules`] | what a deployment decides, and the fixed limits |
//! | [`time`] | ce_time |
//! | [`understand`](mod@understand) | a body from its content type to its records |

mod elements;
mod envelope;
mod event;
mod form;
mod id;
mod json;
mod malformed;
mod mask;
mod request;
mod rules;
mod time;
mod understand;

pub use self::{
    envelope::{Envelope, Opened},
    event::{Split, split},
    id::NAMESPACE,
    malformed::Malformed,
    mask::{SHORTEST, Secrets, mask},
    request::{BOM, BodyEncoding, Media, Request},
    rules::{MAX_COMPOSITION, MAX_DEPTH, MAX_KEY, MAX_MEMBERS, Rules},
    understand::{Understood, explain, open, understand},
};

#[cfg(test)]
mod tests;
