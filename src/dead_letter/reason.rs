//! The reasons for dead letters.

use std::fmt;

/// Why something became a dead letter: the closed list of values of the header and the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The content type is neither JSON nor a form.
    UnsupportedMediaType,
    /// The body has a content encoding.
    UnsupportedEncoding,
    /// The body is not a multipart body with a boundary at its beginning and end.
    InvalidMultipart,
    /// The webhook of a received mail lacks what every mail has, or has a field that none has.
    InvalidMail,
    /// What the record of a mail must hold would exceed `kafka.max_record_bytes`.
    MailTooLarge,
    /// The form's fields are not percent-encoded UTF-8.
    InvalidForm,
    /// The JSON text is not UTF-8.
    InvalidUtf8,
    /// The JSON text is not JSON.
    InvalidJson,
    /// The body is JSON, but not an object.
    BodyNotObject,
    /// `event_type`, `server_composition`, `event`, `api_key` or the list of events occurs more than once.
    DuplicateMember,
    /// More members than any webhook has, each of which would be a dead letter.
    TooManyMembers,
    /// `event_type` is missing.
    MissingEventType,
    /// `event_type` is not a string.
    InvalidEventType,
    /// `server_composition` is missing.
    MissingServerComposition,
    /// `server_composition` is not a string, or too long.
    InvalidServerComposition,
    /// `event` is missing.
    MissingEvent,
    /// `event` is not an object.
    EventNotObject,
    /// `event` has no member with the name that `event_type` gives.
    MissingList,
    /// The member with the name that `event_type` gives is not a list.
    ListNotArray,
    /// More elements than `ingest.max_events`.
    TooManyEvents,
    /// An element is nested too deeply.
    TooDeep,
    /// `event_type` names no stream, or one that is not enabled.
    UnknownEventType,
    /// A list or object beside `event` in the webhook.
    UnexpectedMember,
    /// An element of a list other than the one that `event_type` names.
    UnexpectedList,
    /// A member of `event` that is not a list.
    UnexpectedValue,
    /// The element is not an object.
    ElementNotObject,
    /// The element has a member `event_type` or `server_composition` of its own.
    ReservedMember,
    /// The record of the element would exceed `kafka.max_record_bytes`.
    RecordTooLarge,
    /// The broker refused the record, sent alone, as too large.
    RefusedTooLarge,
    /// The broker refused the record, sent alone, as invalid.
    RefusedInvalid,
}

/// A dead letter without any of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// The element's position in its list, or the record's in its batch, from 0; `None` if it has no such position.
    pub index: Option<usize>,
}

impl Failure {
    /// For something that is not in a list.
    pub fn whole(reason: Reason) -> Failure {
        Failure { reason, index: None }
    }
}

/// What a [`Reason`] applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A whole body.
    Body,
    /// A piece of a webhook whose other events went on.
    Element,
    /// A record that the broker refused, which is not a parse failure.
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
    pub const ALL: [Reason; 30] = [
        Reason::UnsupportedMediaType,
        Reason::UnsupportedEncoding,
        Reason::InvalidMultipart,
        Reason::InvalidMail,
        Reason::MailTooLarge,
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
            Reason::InvalidMultipart => "invalid_multipart",
            Reason::InvalidMail => "invalid_mail",
            Reason::MailTooLarge => "mail_too_large",
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

    /// The reason with this name.
    pub fn from_name(name: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// What the reason applies to.
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
