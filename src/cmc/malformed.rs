//! Why a body as a whole could not be understood.

use std::borrow::Cow;

use thiserror::Error;

use crate::dead_letter::Reason;

/// A body that could not be understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{detail}")]
pub struct Malformed {
    pub reason: Reason,
    /// Where the fault is, in bytes.
    pub offset: Option<usize>,
    /// Whether the fault lies within `event`. For a form, `offset` then counts within the decoded field; otherwise it counts
    /// within the body.
    pub in_event: bool,
    /// For people: says what is wrong, and never what the body holds.
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

    /// A body for no enabled stream, which is a dead letter without being malformed.
    pub fn unknown_event_type() -> Self {
        let detail = "event_type names no enabled stream";
        Malformed::new(Reason::UnknownEventType, None, detail)
    }

    /// A mail that does not fit its record.
    pub fn mail_too_large() -> Self {
        let detail = "what the mail's own record must hold is larger than kafka.max_record_bytes";
        Malformed::new(Reason::MailTooLarge, None, detail)
    }

    pub(super) fn in_event(self) -> Self {
        Malformed {
            in_event: true,
            ..self
        }
    }
}
