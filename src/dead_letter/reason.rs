//! Why there are dead letters.

use std::fmt;

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

/// A dead letter, without anything of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// The element's place in its list, or the record's in its batch, from 0; `None` for what has no such place.
    pub index: Option<usize>,
}

impl Failure {
    /// Of something that stands in no list.
    pub fn whole(reason: Reason) -> Failure {
        Failure { reason, index: None }
    }
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

    /// The reason of this name.
    pub fn from_name(name: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name)
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
