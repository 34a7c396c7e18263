//! Bodies of `application/x-www-form-urlencoded`, the sender's default.
//!
//! Fields are joined by `&`, a name and its value by `=`; `+` is a space, `%XX` a byte, and the bytes must make UTF-8.
//! Decoding is strict, for a guess would change an event: a `%` without two hexadecimal digits or a field that is no UTF-8
//! makes the form malformed. `event` is the JSON text of the object that a JSON body has in that place.

use std::{borrow::Cow, str};

use super::{
    Malformed, Rules,
    elements::{Event, read_event},
    envelope::{Fields, Opened, Text},
    json::{self, Cursor},
};
use crate::dead_letter::Reason;

/// Opens a form.
pub(super) fn open<'a>(body: &'a [u8], rules: &Rules) -> Opened<'a> {
    let mut fields = Fields::default();
    let mut text = None;
    let mut end = 0;
    for field in body.split(|byte| *byte == b'&') {
        let start = end;
        end = start + field.len() + 1;
        if field.is_empty() {
            continue;
        }
        let equals = field.iter().position(|byte| *byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        };
        let value_at = start + field.len() - value.len();
        let name = match decode_text(name, start) {
            Ok(name) => name,
            Err(malformed) => {
                fields.note(malformed);
                continue;
            }
        };
        if name == "event" {
            match decode(value) {
                Err(at) => fields.note(broken_percent(value_at + at)),
                Ok(value) => {
                    let event = open_event(&value, rules);
                    fields.set_event(event, Some(value_at));
                    text.get_or_insert(value);
                }
            }
            continue;
        }
        let value_text = match decode_text(value, value_at) {
            Ok(value) => value,
            Err(malformed) => {
                if name == "api_key" {
                    let nothing = Text::Unusable(Some(value_at));
                    fields.set_api_key(nothing, value_at..value_at + value.len(), Some(value_at));
                }
                fields.note(malformed);
                continue;
            }
        };
        match &*name {
            "event_type" => fields.set_event_type(Text::Found(value_text), Some(value_at)),
            "server_composition" => fields.set_server_composition(Text::Found(value_text), Some(value_at)),
            "api_key" => {
                let span = value_at..value_at + value.len();
                fields.set_api_key(Text::Found(value_text), span, Some(value_at));
            }
            _ if is_container(&value_text) => fields.add_unexpected(name, value_text, Some(value_at)),
            _ => {}
        }
    }
    fields.finish(text_of(text), rules)
}

/// The decoded `event` as text. Where it is no UTF-8 nothing was found in it, and the text is not needed.
fn text_of(event: Option<Cow<'_, [u8]>>) -> Cow<'_, str> {
    match event {
        Some(Cow::Borrowed(bytes)) => str::from_utf8(bytes).map_or_else(|_| Cow::default(), Cow::Borrowed),
        Some(Cow::Owned(bytes)) => String::from_utf8(bytes).map_or_else(|_| Cow::default(), Cow::Owned),
        None => Cow::default(),
    }
}

fn open_event(value: &[u8], rules: &Rules) -> Result<Event, Malformed> {
    let text = json::validate(value)?;
    let mut cursor = Cursor::new(text);
    cursor.peek();
    read_event(&mut cursor, text, rules.max_events)
}

/// Whether the text is a JSON list or object.
fn is_container(text: &str) -> bool {
    matches!(text.trim_start().as_bytes().first(), Some(b'{' | b'['))
        && json::validate(text.as_bytes()).is_ok()
}

fn decode_text(raw: &[u8], at: usize) -> Result<Cow<'_, str>, Malformed> {
    let not_utf8 = || Malformed::new(Reason::InvalidForm, Some(at), "a form field is not UTF-8");
    match decode(raw).map_err(|offset| broken_percent(at + offset))? {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| not_utf8()),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| not_utf8()),
    }
}

fn broken_percent(offset: usize) -> Malformed {
    let detail = "a % in the form is not followed by two hexadecimal digits";
    Malformed::new(Reason::InvalidForm, Some(offset), detail)
}

/// Decodes a name or a value, or says where it is broken.
fn decode(raw: &[u8]) -> Result<Cow<'_, [u8]>, usize> {
    let special = |byte: &u8| matches!(byte, b'%' | b'+');
    let mut rest = raw;
    let mut out = Vec::new();
    while let Some(run) = rest.iter().position(special) {
        if out.is_empty() {
            out.reserve_exact(raw.len());
        }
        out.extend_from_slice(&rest[..run]);
        rest = match rest[run..] {
            [b'+', ref tail @ ..] => {
                out.push(b' ');
                tail
            }
            [b'%', high, low, ref tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex(high) << 4 | hex(low));
                tail
            }
            _ => return Err(raw.len() - rest.len() + run),
        };
    }
    if out.is_empty() {
        return Ok(Cow::Borrowed(raw));
    }
    out.extend_from_slice(rest);
    Ok(Cow::Owned(out))
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    (digit & 0xF) + 9 * (digit >> 6)
}
