//! The object `event`: its lists, and the parts of each element that a record needs.
//!
//! All lists are read alike, since `event_type` may follow them. Elements and members beyond the limits are skipped
//! and no longer stored.

use std::ops::Range;

use super::{
    json::{Cursor, JsonKind, Quoted, Span},
    malformed::Malformed,
    rules::{MAX_DEPTH, MAX_MEMBERS},
};
use crate::dead_letter::Reason;

/// Bytes of the longest name that means something in an envelope or an element.
pub(super) const LONGEST_NAME: usize = "server_composition".len();

/// The object `event`.
#[derive(Default)]
pub(super) struct EventObject {
    pub members: Vec<Member>,
    /// The elements of all lists, one list after the other.
    pub elements: Vec<Element>,
    /// The first fault in them.
    pub malformed: Option<Malformed>,
}

/// A member of `event`.
pub(super) struct Member {
    pub name: Quoted,
    pub value: Span,
    /// Which of [`EventObject::elements`] belong to this list; `None` if the member is not a list.
    pub list: Option<Range<usize>>,
}

/// An element of a list.
pub(super) struct Element {
    pub span: Span,
    pub is_object: bool,
    /// Whether it has a member with the name of one that is put first.
    pub reserved: bool,
    /// The strings in these members; if a member is repeated, the last one counts.
    pub message_id: Option<Quoted>,
    pub created: Option<Quoted>,
    pub status: Option<Quoted>,
}

/// Reads the value of `event`, storing no more than the limits allow.
pub(super) fn read_event(
    cursor: &mut Cursor<'_>,
    text: &str,
    max_events: usize,
) -> Result<EventObject, Malformed> {
    let start = cursor.at;
    if cursor.peek() != b'{' {
        cursor.value();
        let detail = "event is not an object";
        return Err(Malformed::new(Reason::EventNotObject, Some(start), detail));
    }
    cursor.enter();
    let mut event = EventObject::default();
    while let Some(name) = cursor.member() {
        if event.members.len() == MAX_MEMBERS {
            event.malformed.get_or_insert_with(|| {
                let detail = format!("event has more than {MAX_MEMBERS} members");
                Malformed::new(Reason::TooManyMembers, Some(cursor.at), detail)
            });
            cursor.value();
            continue;
        }
        let start = cursor.at;
        let list = if cursor.peek() == b'[' {
            let first = event.elements.len();
            cursor.enter();
            while cursor.element() {
                event.read_element(cursor, text, max_events);
            }
            Some(first..event.elements.len())
        } else {
            cursor.value();
            None
        };
        event.members.push(Member {
            name,
            value: start..cursor.at,
            list,
        });
    }
    Ok(event)
}

impl EventObject {
    /// Reads the element at the cursor.
    fn read_element(&mut self, cursor: &mut Cursor<'_>, text: &str, max_events: usize) {
        if self.elements.len() == max_events {
            self.malformed.get_or_insert_with(|| {
                let detail = format!("the webhook has more than {max_events} elements");
                Malformed::new(Reason::TooManyEvents, Some(cursor.at), detail)
            });
            cursor.value();
            return;
        }
        let mut element = Element {
            span: cursor.at..cursor.at,
            is_object: false,
            reserved: false,
            message_id: None,
            created: None,
            status: None,
        };
        let depth = if cursor.peek() == b'{' {
            element.is_object = true;
            element.read_members(cursor, text)
        } else {
            cursor.value().depth
        };
        element.span.end = cursor.at;
        if depth > MAX_DEPTH {
            self.malformed.get_or_insert_with(|| {
                let detail = format!("an element is nested more than {MAX_DEPTH} levels deep");
                Malformed::new(Reason::TooDeep, Some(element.span.start), detail)
            });
        }
        self.elements.push(element);
    }
}

impl Element {
    /// Reads the object at the cursor; returns its depth.
    fn read_members(&mut self, cursor: &mut Cursor<'_>, text: &str) -> usize {
        let mut depth = 1;
        let mut scratch = String::new();
        cursor.enter();
        while let Some(name) = cursor.member() {
            let value = cursor.value();
            depth = depth.max(value.depth + 1);
            let string = match value.kind {
                JsonKind::String(quoted) => Some(quoted),
                _ => None,
            };
            match name.decode_up_to(LONGEST_NAME, text, &mut scratch) {
                Some("messageId") => self.message_id = string,
                Some("created") => self.created = string,
                Some("status") => self.status = string,
                Some("event_type" | "server_composition") => self.reserved = true,
                _ => {}
            }
        }
        depth
    }
}
