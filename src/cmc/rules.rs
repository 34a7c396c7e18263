//! What a deployment decides about webhooks, and the limits that nobody can change.

use std::{collections::BTreeMap, sync::Arc};

use jiff::tz::TimeZone;

use super::{mask::Secrets, request::Endpoint};
use crate::{repeats::Repeats, stream::Stream};

/// Maximum number of levels of objects and lists in an element, counting the element itself as one.
pub const MAX_DEPTH: usize = 64;

/// Maximum number of members of `event`, and of lists and objects beside it.
pub const MAX_MEMBERS: usize = 64;

/// Maximum length of `server_composition` in bytes; every record repeats it.
pub const MAX_COMPOSITION: usize = 256;

/// Maximum length of a `messageId` that becomes a key, in bytes.
pub const MAX_KEY: usize = 512;

/// The settings that decide what becomes of a body.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether each stream is enabled, at [`Stream::index`].
    pub enabled: [bool; Stream::ALL.len()],
    /// Maximum number of elements in one webhook.
    pub max_events: usize,
    /// Maximum size of a record, alone in a Kafka record batch, in bytes.
    pub max_record_bytes: usize,
    /// The time zone of `created` where `time_zones` names no other.
    pub time_zone: TimeZone,
    /// Time zones by `server_composition`.
    pub time_zones: BTreeMap<String, TimeZone>,
    /// The secrets that are overwritten in dead letters.
    pub secrets: Secrets,
    /// Received mail; `None` if its stream is not enabled.
    pub inbound: Option<InboundRules>,
    /// The events that are known to be durable and left out; `None` if repeats are kept.
    pub repeats: Option<Arc<Repeats>>,
}

/// What a deployment decides about received mail.
#[derive(Clone, Debug)]
pub struct InboundRules {
    /// The path of its webhooks, without a trailing slash.
    pub path: String,
    pub content: MailContent,
}

/// How much of a received mail is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailContent {
    /// Everything.
    All,
    /// The fields; of attachments, only what the mail's record says about them.
    NoAttachments,
    /// Of the fields only `filter`, `headers`, `subject`, `envelope-from` and `envelope-to`; attachments as in `NoAttachments`.
    Envelope,
}

impl Rules {
    /// The enabled stream that this `event_type` names.
    pub(super) fn stream(&self, event_type: &str) -> Option<Stream> {
        Stream::from_event_type(event_type).filter(|stream| self.enabled[stream.index()])
    }

    /// What webhooks on this path bring.
    pub fn endpoint(&self, path: &str) -> Endpoint {
        match self.is_inbound(path) {
            true => Endpoint::Inbound,
            false => Endpoint::Events,
        }
    }

    /// Whether webhooks on this path bring received mail.
    pub fn is_inbound(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        self.inbound.as_ref().is_some_and(|inbound| inbound.path == path)
    }

    pub(super) fn time_zone(&self, server_composition: &str) -> &TimeZone {
        self.time_zones.get(server_composition).unwrap_or(&self.time_zone)
    }
}
