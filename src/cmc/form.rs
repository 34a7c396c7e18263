//! `application/x-www-form-urlencoded` bodies, the sender's default.
//!
//! Fields are separated by `&`, name and value by `=`; `+` is a space, `%XX` a byte, and the bytes must form UTF-8.
//! Decoding is strict, since a guess would change an event: a `%` without two hexadecimal digits, or a field that is
//! not UTF-8, makes the form malformed. The `event` field holds the JSON text of the object that a JSON body has in
//! its place.
//!
//! A form may have millions of fields, from a sender who is not known yet. So an insignificant field costs no
//! allocation, and once the form is malformed, only fields that may be the `api_key` or identify a dead letter are
//! decoded.

use std::{borrow::Cow, str};

use memchr::{memchr, memchr_iter, memchr2};

use super::{
    elements::{EventObject, read_event},
    envelope::{Fields, Opened, StringMember},
    json::{self, Cursor, first_of},
    malformed::Malformed,
    rules::Rules,
};
use crate::dead_letter::Reason;

/// Opens a form.
pub(super) fn open_form<'a>(body: &'a [u8], rules: &Rules) -> Opened<'a> {
    let mut fields = Fields::default();
    let mut text = None;
    let (mut name_scratch, mut value_scratch) = (Vec::new(), Vec::new());
    let mut next = 0;
    for end in memchr_iter(b'&', body).chain([body.len()]) {
        let start = next;
        let field = &body[start..end];
        next = end + 1;
        if field.is_empty() {
            continue;
        }
        let (name, value) = match memchr(b'=', field) {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        };
        let value_at = start + field.len() - value.len();
        let found = match read_text(name, start, &mut name_scratch) {
            Ok(name) => name,
            Err(malformed) => {
                fields.note(malformed);
                continue;
            }
        };
        let at = Some(value_at);
        match found {
            "event" if fields.is_malformed() => {}
            "event" if fields.has_event() => match read(value, &mut value_scratch) {
                Ok(_) => fields.note_second_event(at),
                Err(broken) => fields.note_of_event(broken_percent(value_at + broken)),
            },
            "event" => match decode(value) {
                Ok(value) => {
                    fields.set_event(open_event(&value, rules));
                    text = Some(value);
                }
                Err(broken) => fields.note_of_event(broken_percent(value_at + broken)),
            },
            "event_type" | "server_composition" | "api_key" => {
                let (value, malformed) = match decode_text(value, value_at) {
                    Ok(value) => (StringMember::Found(value), None),
                    Err(malformed) => (StringMember::Unusable(at), Some(malformed)),
                };
                match (found, &value) {
                    ("api_key", _) => fields.set_api_key(value, at),
                    (_, StringMember::Unusable(_)) => {}
                    ("event_type", _) => fields.set_event_type(value, at),
                    _ => fields.set_server_composition(value, at),
                }
                if let Some(malformed) = malformed {
                    fields.note(malformed);
                }
            }
            _ if fields.is_malformed() => {}
            _ => match read_text(value, value_at, &mut value_scratch) {
                Ok(text) if is_container(text) => {
                    let name = decode_text(name, start).ok();
                    let value = decode_text(value, value_at).unwrap_or_default();
                    fields.add_unexpected(name, value, at);
                }
                Ok(_) => {}
                Err(malformed) => fields.note(malformed),
            },
        }
    }
    fields.finish(text_of(text), rules)
}

/// The decoded `event` as text. If it is not UTF-8, nothing was found in it and the text is not needed.
fn text_of(event: Option<Cow<'_, [u8]>>) -> Cow<'_, str> {
    match event {
        Some(Cow::Borrowed(bytes)) => str::from_utf8(bytes).map_or_else(|_| Cow::default(), Cow::Borrowed),
        Some(Cow::Owned(bytes)) => String::from_utf8(bytes).map_or_else(|_| Cow::default(), Cow::Owned),
        None => Cow::default(),
    }
}

fn open_event(value: &[u8], rules: &Rules) -> Result<EventObject, Malformed> {
    let text = json::text_of(value)?;
    let mut cursor = Cursor::new(text);
    cursor.peek();
    let event = read_event(&mut cursor, text, rules.max_events);
    cursor.finish()?;
    event
}

/// Whether the text is a JSON list or object. The ends of a text already show that it can't be one.
fn is_container(text: &str) -> bool {
    let json = text.trim_matches([' ', '\t', '\n', '\r']).as_bytes();
    matches!(json, [b'{', .., b'}'] | [b'[', .., b']']) && json::is_valid(text)
}

fn decode_text(raw: &[u8], at: usize) -> Result<Cow<'_, str>, Malformed> {
    match decode(raw).map_err(|offset| broken_percent(at + offset))? {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| not_utf8(at)),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| not_utf8(at)),
    }
}

/// [`decode_text`] without an allocation of its own.
fn read_text<'r>(raw: &'r [u8], at: usize, scratch: &'r mut Vec<u8>) -> Result<&'r str, Malformed> {
    let bytes = read(raw, scratch).map_err(|offset| broken_percent(at + offset))?;
    str::from_utf8(bytes).map_err(|_| not_utf8(at))
}

fn not_utf8(at: usize) -> Malformed {
    Malformed::new(Reason::InvalidForm, Some(at), "a form field is not UTF-8")
}

fn broken_percent(offset: usize) -> Malformed {
    let detail = "a % in the form is not followed by two hexadecimal digits";
    Malformed::new(Reason::InvalidForm, Some(offset), detail)
}

/// Decodes a name or a value; fails with the offset of a broken `%`.
fn decode(raw: &[u8]) -> Result<Cow<'_, [u8]>, usize> {
    let Some(first) = memchr2(b'%', b'+', raw) else {
        return Ok(Cow::Borrowed(raw));
    };
    let mut out = vec![0; raw.len()];
    let length = decode_from(raw, first, &mut out)?;
    out.truncate(length);
    Ok(Cow::Owned(out))
}

/// [`decode`] into a vector that is reused.
fn read<'r>(raw: &'r [u8], scratch: &'r mut Vec<u8>) -> Result<&'r [u8], usize> {
    let Some(first) = memchr2(b'%', b'+', raw) else {
        return Ok(raw);
    };
    if scratch.len() < raw.len() {
        scratch.resize(raw.len(), 0);
    }
    let length = decode_from(raw, first, scratch)?;
    Ok(&scratch[..length])
}

/// Decodes into `out`, which is at least as long as `raw`; everything before `first` is plain. Returns the decoded
/// length, or where `raw` is broken. The sender encodes every quote and comma, so runs of plain bytes are short: a
/// word is copied whole, however much of it counts, and only a long run is searched for and copied as one.
fn decode_from(raw: &[u8], first: usize, out: &mut [u8]) -> Result<usize, usize> {
    out[..first].copy_from_slice(&raw[..first]);
    let mut length = first;
    let mut rest = &raw[first..];
    loop {
        rest = match rest {
            [] => break,
            [b'+', tail @ ..] => {
                out[length] = b' ';
                length += 1;
                tail
            }
            [b'%', high, low, tail @ ..] => {
                let (high, low) = (HEX[usize::from(*high)], HEX[usize::from(*low)]);
                if high | low == NO_DIGIT {
                    return Err(raw.len() - rest.len());
                }
                out[length] = high << 4 | low;
                length += 1;
                tail
            }
            [b'%', ..] => return Err(raw.len() - rest.len()),
            _ => {
                // Decoded bytes are never longer than their source, so the word fits.
                let mut run = 8;
                if let Some(word) = rest.first_chunk::<8>() {
                    out[length..length + 8].copy_from_slice(word);
                    run = first_of(word, b'%', b'+');
                }
                if run == 8 {
                    run = memchr2(b'%', b'+', rest).unwrap_or(rest.len());
                    out[length..length + run].copy_from_slice(&rest[..run]);
                }
                length += run;
                &rest[run..]
            }
        };
    }
    Ok(length)
}

/// The entry in [`HEX`] for a byte that is not a hexadecimal digit. All bits are set, so that it survives an `or`.
const NO_DIGIT: u8 = 0xFF;

/// The value of each hexadecimal digit.
const HEX: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte, plain, as `+` or encoded, in runs of every length around a word's.
    #[test]
    fn decodes_runs_of_every_length() {
        let all: Vec<u8> = (0..=255).collect();
        for run in 0..40 {
            for spelled in ["%25", "+", "%2b%2B", "%00+%fF"] {
                let bytes: &[u8] = match spelled {
                    "%25" => b"%",
                    "+" => b" ",
                    "%2b%2B" => b"++",
                    _ => b"\0 \xFF",
                };
                for start in (0..all.len() - run).step_by(3) {
                    let plain: Vec<u8> = all[start..start + run]
                        .iter()
                        .copied()
                        .filter(|byte| !b"%+".contains(byte))
                        .collect();
                    let raw = [spelled.as_bytes(), &plain, spelled.as_bytes(), &plain].concat();
                    let expected = [bytes, &plain, bytes, &plain].concat();
                    assert_eq!(decode(&raw).unwrap(), expected);
                    assert!(matches!(decode(&plain), Ok(Cow::Borrowed(same)) if same == plain));
                }
            }
        }
    }

    #[test]
    fn every_pair_behind_a_percent_sign_is_digits_or_broken() {
        for high in 0..=255u8 {
            for low in 0..=255u8 {
                let digits = str::from_utf8(&[high, low])
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|text| u8::from_str_radix(text, 16).ok());
                let raw = [b'a', b'+', b'%', high, low, b'z'];
                let expected = digits.map(|byte| vec![b'a', b' ', byte, b'z']).ok_or(2);
                assert_eq!(decode(&raw).map(Cow::into_owned), expected);
            }
        }
        for (raw, at) in [("%", 0), ("%4", 0), ("a%", 1), ("+++++++++%4", 9), ("%41%4", 3)] {
            assert_eq!(decode(raw.as_bytes()), Err(at), "{raw}");
        }
    }
}
