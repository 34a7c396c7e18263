//! The envelope of a webhook: its few members, and where the elements are.
//!
//! A fault is noted and reading goes on, since the `api_key` may follow; [`Fields::finish`] then decides. A form
//! collects the same [`Fields`] in its own way.

use std::borrow::Cow;

use super::{
    elements::{EventObject, LONGEST_NAME, Member, read_event},
    json::{self, Cursor, JsonKind},
    mail::Mail,
    malformed::Malformed,
    request::BodyEncoding,
    rules::{MAX_COMPOSITION, MAX_MEMBERS, Rules},
};
use crate::{dead_letter::Reason, stream::Stream};

/// A body that was read. It holds the `api_key`, so it has no `Debug`.
pub struct Opened<'a> {
    /// The `api_key`, if it can be found and is a string; also `None` if there is more than one.
    pub api_key: Option<Cow<'a, str>>,
    /// `event_type`, if it can be found and is a string.
    pub event_type: Option<Cow<'a, str>>,
    /// `server_composition`, if it can be found and is a string.
    pub server_composition: Option<Cow<'a, str>>,
    /// Its contents, or why they can't be known.
    pub content: Result<Content<'a>, Malformed>,
    /// How it was read; `None` if it was not.
    pub(super) encoding: Option<BodyEncoding>,
}

/// What a body holds.
pub enum Content<'a> {
    Events(Envelope<'a>),
    Mail(Mail<'a>),
}

impl Content<'_> {
    /// The stream of its records; `None` if `event_type` names no enabled one.
    pub fn stream(&self) -> Option<Stream> {
        match self {
            Content::Events(envelope) => envelope.stream,
            Content::Mail(_) => Some(Stream::Inbound),
        }
    }
}

impl Opened<'_> {
    /// A body about which nothing else is known.
    pub(super) fn closed(malformed: Malformed) -> Self {
        Opened {
            api_key: None,
            event_type: None,
            server_composition: None,
            content: Err(malformed),
            encoding: None,
        }
    }

    /// The same for the body of a webhook of received mail.
    pub(super) fn closed_mail(malformed: Malformed) -> Self {
        Opened {
            event_type: Some(Cow::Borrowed(super::inbound::EVENT_TYPE)),
            ..Opened::closed(malformed)
        }
    }
}

/// A webhook of the right shape.
pub struct Envelope<'a> {
    /// The stream of its events; `None` if `event_type` names no enabled one.
    pub(super) stream: Option<Stream>,
    /// The JSON text to which all spans refer.
    pub(super) text: Cow<'a, str>,
    pub(super) event: EventObject,
    pub(super) unexpected: Vec<Unexpected<'a>>,
}

/// A list or an object beside `event`.
pub(super) struct Unexpected<'a> {
    /// `None` if it is not valid text (half a surrogate pair).
    pub name: Option<Cow<'a, str>>,
    pub value: Cow<'a, str>,
}

/// The state of a member that should be a string.
#[derive(Default)]
pub(super) enum StringMember<'a> {
    #[default]
    Missing,
    Found(Cow<'a, str>),
    Unusable(Option<usize>),
}

impl<'a> StringMember<'a> {
    pub fn found(self) -> Option<Cow<'a, str>> {
        match self {
            StringMember::Found(text) => Some(text),
            StringMember::Missing | StringMember::Unusable(_) => None,
        }
    }
}

/// The members of an envelope as they are found.
#[derive(Default)]
pub(super) struct Fields<'a> {
    event_type: StringMember<'a>,
    server_composition: StringMember<'a>,
    api_key: StringMember<'a>,
    event: Option<Result<EventObject, Malformed>>,
    /// The first fault in an `event` member itself, if no other fault precedes it; it does not matter for a stream
    /// that is not enabled.
    wrong_event: Option<Malformed>,
    unexpected: Vec<Unexpected<'a>>,
    /// The first fault that counts whatever else is found.
    malformed: Option<Malformed>,
}

impl<'a> Fields<'a> {
    /// Notes a fault; the first one counts.
    pub fn note(&mut self, malformed: Malformed) {
        self.malformed.get_or_insert(malformed);
    }

    /// Whether there is a fault that counts whatever else is found: then only the strings still matter.
    pub fn is_malformed(&self) -> bool {
        self.malformed.is_some()
    }

    pub fn has_event(&self) -> bool {
        self.event.is_some()
    }

    pub fn note_second_event(&mut self, offset: Option<usize>) {
        let detail = "event occurs more than once";
        self.note_of_event(Malformed::new(Reason::DuplicateMember, offset, detail));
    }

    fn note_duplicate(&mut self, offset: Option<usize>, detail: &'static str) {
        self.note(Malformed::new(Reason::DuplicateMember, offset, detail));
    }

    pub fn set_event_type(&mut self, text: StringMember<'a>, offset: Option<usize>) {
        match self.event_type {
            StringMember::Missing => self.event_type = text,
            _ => self.note_duplicate(offset, "event_type occurs more than once"),
        }
    }

    pub fn set_server_composition(&mut self, text: StringMember<'a>, offset: Option<usize>) {
        match self.server_composition {
            StringMember::Missing => self.server_composition = text,
            _ => self.note_duplicate(offset, "server_composition occurs more than once"),
        }
    }

    pub fn set_api_key(&mut self, text: StringMember<'a>, offset: Option<usize>) {
        match self.api_key {
            StringMember::Missing => self.api_key = text,
            _ => {
                self.api_key = StringMember::Unusable(offset);
                self.note_duplicate(offset, "api_key occurs more than once");
            }
        }
    }

    /// Sets the first `event`.
    pub fn set_event(&mut self, event: Result<EventObject, Malformed>) {
        self.event = Some(event.map_err(Malformed::in_event));
    }

    /// Notes a fault in an `event` member.
    pub fn note_of_event(&mut self, malformed: Malformed) {
        if self.malformed.is_none() {
            self.wrong_event.get_or_insert(malformed);
        }
    }

    pub fn add_unexpected(&mut self, name: Option<Cow<'a, str>>, value: Cow<'a, str>, offset: Option<usize>) {
        if self.unexpected.len() < MAX_MEMBERS {
            self.unexpected.push(Unexpected { name, value });
        } else if !self.is_malformed() {
            self.note(Malformed::new(
                Reason::TooManyMembers,
                offset,
                format!("the webhook has more than {MAX_MEMBERS} lists and objects beside event"),
            ));
        }
    }

    /// Decides what the body is. The spans of `event` refer to `text`.
    pub fn finish(mut self, text: Cow<'a, str>, rules: &Rules) -> Opened<'a> {
        let content = self.judge(&text, rules).map(|(stream, event)| {
            Content::Events(Envelope {
                stream,
                text,
                event,
                unexpected: self.unexpected,
            })
        });
        Opened {
            api_key: self.api_key.found(),
            event_type: self.event_type.found(),
            server_composition: self.server_composition.found(),
            content,
            encoding: None,
        }
    }

    fn judge(&mut self, text: &str, rules: &Rules) -> Result<(Option<Stream>, EventObject), Malformed> {
        let fail = |reason, offset, detail| Err(Malformed::new(reason, offset, detail));
        let stream = match &self.event_type {
            StringMember::Found(event_type) => Some(rules.stream(event_type)),
            StringMember::Missing | StringMember::Unusable(_) => None,
        };
        if stream != Some(None)
            && let Some(malformed) = self.wrong_event.take()
        {
            return Err(malformed);
        }
        if let Some(malformed) = self.malformed.take() {
            return Err(malformed);
        }
        match &self.event_type {
            StringMember::Found(_) => {}
            StringMember::Missing => return fail(Reason::MissingEventType, None, "event_type is missing"),
            StringMember::Unusable(at) => {
                return fail(Reason::InvalidEventType, *at, "event_type is not a string");
            }
        }
        composition(&self.server_composition)?;
        let Some(stream) = stream.flatten() else {
            return Ok((None, EventObject::default()));
        };
        let mut event = match self.event.take() {
            None => return fail(Reason::MissingEvent, None, "event is missing"),
            Some(event) => event?,
        };
        if let Some(malformed) = event.malformed.take() {
            return Err(malformed.in_event());
        }
        let mut named = event
            .members
            .iter()
            .filter(|member| member.name.decode(text).as_deref() == Some(stream.name()));
        let result = match (named.next(), named.next()) {
            (None, _) => fail(
                Reason::MissingList,
                None,
                "event has no member with the name that event_type gives",
            ),
            (Some(_), Some(second)) => fail(
                Reason::DuplicateMember,
                Some(second.value.start),
                "event has more than one member with the name that event_type gives",
            ),
            (
                Some(Member {
                    list: None, value, ..
                }),
                None,
            ) => fail(
                Reason::ListNotArray,
                Some(value.start),
                "the member of event with the name that event_type gives is not a list",
            ),
            (Some(_), None) => return Ok((Some(stream), event)),
        };
        result.map_err(Malformed::in_event)
    }
}

/// What is wrong with a `server_composition`, if anything.
pub(super) fn composition(member: &StringMember<'_>) -> Result<(), Malformed> {
    let (reason, offset, detail) = match member {
        StringMember::Found(text) if text.len() <= MAX_COMPOSITION => return Ok(()),
        StringMember::Found(_) => (
            Reason::InvalidServerComposition,
            None,
            format!("server_composition is longer than {MAX_COMPOSITION} bytes"),
        ),
        StringMember::Missing => (
            Reason::MissingServerComposition,
            None,
            "server_composition is missing".to_owned(),
        ),
        StringMember::Unusable(at) => (
            Reason::InvalidServerComposition,
            *at,
            "server_composition is not a string".to_owned(),
        ),
    };
    Err(Malformed::new(reason, offset, detail))
}

/// Opens a JSON body.
pub(super) fn open_json<'a>(body: &'a [u8], rules: &Rules) -> Opened<'a> {
    let text = match json::text_of(body) {
        Ok(text) => text,
        Err(malformed) => return Opened::closed(malformed),
    };
    let mut cursor = Cursor::new(text);
    if cursor.peek() != b'{' {
        let offset = Some(cursor.at);
        cursor.value();
        let malformed = cursor.finish().err().unwrap_or_else(|| {
            Malformed::new(Reason::BodyNotObject, offset, "the body is not a JSON object")
        });
        return Opened::closed(malformed);
    }
    cursor.enter();
    let mut fields = Fields::default();
    let mut scratch = String::new();
    while let Some(name) = cursor.member() {
        let at = cursor.at;
        match name.decode_up_to(LONGEST_NAME, text, &mut scratch) {
            Some("event_type") => fields.set_event_type(read_text(&mut cursor, text), Some(at)),
            Some("server_composition") => {
                fields.set_server_composition(read_text(&mut cursor, text), Some(at))
            }
            Some("api_key") => fields.set_api_key(read_text(&mut cursor, text), Some(at)),
            Some("event") if fields.has_event() => {
                cursor.value();
                fields.note_second_event(Some(at));
            }
            Some("event") => fields.set_event(read_event(&mut cursor, text, rules.max_events)),
            _ => {
                let value = cursor.value();
                if value.depth > 0 && !fields.is_malformed() {
                    fields.add_unexpected(name.decode(text), Cow::Borrowed(&text[value.span]), Some(at));
                }
            }
        }
    }
    match cursor.finish() {
        Ok(()) => fields.finish(Cow::Borrowed(text), rules),
        Err(malformed) => Opened::closed(malformed),
    }
}

/// Reads a value that should be a string.
fn read_text<'a>(cursor: &mut Cursor<'_>, text: &'a str) -> StringMember<'a> {
    let value = cursor.value();
    let decoded = match value.kind {
        JsonKind::String(quoted) => quoted.decode(text),
        _ => None,
    };
    decoded.map_or(
        StringMember::Unusable(Some(value.span.start)),
        StringMember::Found,
    )
}
