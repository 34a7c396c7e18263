//! What a deployment decides about webhooks, and the limits that nobody can change.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use super::mask::Secrets;
use crate::stream::Stream;

/// Most levels of objects and lists in an element, counting the element itself as one.
pub const MAX_DEPTH: usize = 64;

/// Most members of `event`, and most lists and objects beside it.
pub const MAX_MEMBERS: usize = 64;

/// Most bytes of `server_composition`, which every record repeats.
pub const MAX_COMPOSITION: usize = 256;

/// Most bytes of a `messageId` that becomes a key.
pub const MAX_KEY: usize = 512;

/// The settings that decide what becomes of a body.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether each stream is enabled, at [`Stream::index`].
    pub enabled: [bool; 4],
    /// Most elements of one webhook.
    pub max_events: usize,
    /// Most bytes of a record, alone in a Kafka record batch.
    pub max_record_bytes: usize,
    /// The time zone of `created` where `time_zones` names no other.
    pub time_zone: TimeZone,
    /// Time zones by `server_composition`.
    pub time_zones: BTreeMap<String, TimeZone>,
    /// What is overwritten in dead letters.
    pub secrets: Secrets,
}

impl Rules {
    /// The enabled stream that this `event_type` names.
    pub(super) fn stream(&self, event_type: &str) -> Option<Stream> {
        Stream::from_event_type(event_type).filter(|stream| self.enabled[stream.index()])
    }

    pub(super) fn time_zone(&self, server_composition: &str) -> &TimeZone {
        self.time_zones.get(server_composition).unwrap_or(&self.time_zone)
    }
}
