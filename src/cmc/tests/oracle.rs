//! The expected result of a body, derived independently from the contract. The oracle is slow, and shares with the tested
//! code only the limits, the list of reasons and the size of a record alone in its batch (which has tests of its own).

use std::collections::BTreeSet;

use sha1::{Digest, Sha1};

use super::*;
use crate::batch::alone_in_batch;

/// The expected result of a body.
pub(super) enum Expected {
    /// Malformed for one of these reasons: the body is one dead letter.
    Malformed(BTreeSet<Reason>),
    /// Not for an enabled stream: the body is one dead letter.
    Unknown,
    /// Each piece is an event or a dead letter.
    Split { events: Vec<Event>, letters: Vec<Piece> },
}

/// A record without `ce_time`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub key: Option<String>,
    pub id: String,
    pub value: String,
}

/// A dead letter of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub reason: Reason,
    pub index: Option<usize>,
    pub member: Option<String>,
    pub value: String,
}

/// The members that matter, from either encoding.
#[derive(Default)]
struct Members {
    /// A `None` in one of these lists is a value that is not a string.
    event_type: Vec<Option<String>>,
    composition: Vec<Option<String>>,
    keys: Vec<Option<String>>,
    /// JSON texts, each one whole value.
    event: Vec<String>,
    /// Faults of form fields named `event`, which matter only to enabled streams.
    wrong_event: BTreeSet<Reason>,
    /// Lists and objects beside `event`.
    others: Vec<(Option<String>, String)>,
    wrong: BTreeSet<Reason>,
}

/// The body's expected result, and its `api_key`.
pub(super) fn expected(body: &[u8], encoding: BodyEncoding, rules: &Rules) -> (Expected, Option<String>) {
    let members = match encoding {
        BodyEncoding::Json => match of_json(body) {
            Ok(members) => members,
            Err(reason) => return (Expected::Malformed([reason].into()), None),
        },
        BodyEncoding::Form | BodyEncoding::Multipart => of_form(body),
    };
    let key = match &members.keys[..] {
        [key] => key.clone(),
        _ => None,
    };
    (judge(members, rules), key)
}

fn of_json(body: &[u8]) -> Result<Members, Reason> {
    let text = std::str::from_utf8(body).map_err(|_| Reason::InvalidUtf8)?;
    let value = whole(text).ok_or_else(|| no_json(text))?;
    if !value.starts_with('{') {
        return Err(Reason::BodyNotObject);
    }
    let mut found = Members::default();
    for (name, value) in members(value) {
        let name = decoded(name);
        match name.as_deref() {
            Some("event_type") => found.event_type.push(decoded(value)),
            Some("server_composition") => found.composition.push(decoded(value)),
            Some("api_key") => found.keys.push(decoded(value)),
            Some("event") => found.event.push(value.to_owned()),
            _ if value.starts_with(['{', '[']) => found.others.push((name, value.to_owned())),
            _ => {}
        }
    }
    Ok(found)
}

/// The reason for text that is not JSON. Zero bytes where UTF-16 has them count as invalid UTF-8.
fn no_json(text: &str) -> Reason {
    match text.bytes().take(2).any(|byte| byte == 0) {
        true => Reason::InvalidUtf8,
        false => Reason::InvalidJson,
    }
}

fn of_form(body: &[u8]) -> Members {
    let mut found = Members::default();
    for field in body.split(|byte| *byte == b'&').filter(|field| !field.is_empty()) {
        let (name, value) = match field.iter().position(|byte| *byte == b'=') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &b""[..]),
        };
        let text = |raw| percent_decoded(raw).and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(name) = text(name) else {
            found.wrong.insert(Reason::InvalidForm);
            continue;
        };
        if name == "event" {
            match percent_decoded(value).map(String::from_utf8) {
                None => drop(found.wrong_event.insert(Reason::InvalidForm)),
                Some(Err(_)) => {
                    found.wrong_event.insert(Reason::InvalidUtf8);
                    found.event.push("{}".to_owned());
                }
                Some(Ok(text)) => found.event.push(text),
            }
            continue;
        }
        let value = text(value);
        if value.is_none() {
            found.wrong.insert(Reason::InvalidForm);
        }
        match (name.as_str(), value) {
            ("event_type", Some(value)) => found.event_type.push(Some(value)),
            ("server_composition", Some(value)) => found.composition.push(Some(value)),
            ("api_key", value) => found.keys.push(value),
            (_, Some(value)) if whole(&value).is_some_and(|json| json.starts_with(['{', '['])) => {
                found.others.push((Some(name), value));
            }
            _ => {}
        }
    }
    found
}

/// Byte by byte.
fn percent_decoded(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => *byte,
        });
    }
    Some(out)
}

fn judge(found: Members, rules: &Rules) -> Expected {
    let mut wrong = found.wrong;
    let lists = [found.event_type.len(), found.composition.len(), found.keys.len()];
    if lists.iter().any(|count| *count > 1) {
        wrong.insert(Reason::DuplicateMember);
    }
    if found.others.len() > MAX_MEMBERS {
        wrong.insert(Reason::TooManyMembers);
    }
    match found.event_type.first() {
        None => drop(wrong.insert(Reason::MissingEventType)),
        Some(None) => drop(wrong.insert(Reason::InvalidEventType)),
        Some(Some(_)) => {}
    }
    match found.composition.first() {
        None => drop(wrong.insert(Reason::MissingServerComposition)),
        Some(Some(text)) if text.len() <= MAX_COMPOSITION => {}
        Some(_) => drop(wrong.insert(Reason::InvalidServerComposition)),
    }
    let mut wrong_event = found.wrong_event;
    if found.event.len() > 1 {
        wrong_event.insert(Reason::DuplicateMember);
    }
    let event = match found.event.first() {
        None => {
            wrong_event.insert(Reason::MissingEvent);
            "{}"
        }
        Some(text) => match whole(text) {
            None => {
                wrong_event.insert(no_json(text));
                "{}"
            }
            Some(event) if event.starts_with('{') => event,
            Some(_) => {
                wrong_event.insert(Reason::EventNotObject);
                "{}"
            }
        },
    };
    let found_event_type = matches!(found.event_type.first(), Some(Some(_)));
    let event_type = found.event_type.into_iter().next().flatten().unwrap_or_default();
    let composition = found.composition.into_iter().next().flatten().unwrap_or_default();
    let stream = ["deliveries", "bounces", "blocks"]
        .iter()
        .position(|name| *name == event_type)
        .filter(|index| rules.enabled[*index]);
    let members = members(event);
    let is_unknown = stream.is_none() && found_event_type;
    if !is_unknown {
        wrong.extend(wrong_event);
    }
    if stream.is_some() {
        judge_event(&members, &event_type, rules, &mut wrong);
    }
    if !wrong.is_empty() {
        return Expected::Malformed(wrong);
    }
    if stream.is_none() {
        return Expected::Unknown;
    }
    let (mut events, mut letters) = (Vec::new(), Vec::new());
    let mut fail = |reason, index, member, value: &str| {
        letters.push(Piece {
            reason,
            index,
            member,
            value: value.to_owned(),
        });
    };
    for (name, value) in members {
        let name = decoded(name);
        if !value.starts_with('[') {
            fail(Reason::UnexpectedValue, None, name, value);
            continue;
        }
        for (index, element) in elements(value).into_iter().enumerate() {
            let result = match name.as_deref() == Some(&event_type) {
                true => event_of(element, &event_type, &composition, rules),
                false => Err(Reason::UnexpectedList),
            };
            match result {
                Ok(event) => events.push(event),
                Err(reason) => fail(reason, Some(index), name.clone(), element),
            }
        }
    }
    for (name, value) in found.others {
        fail(Reason::UnexpectedMember, None, name, &value);
    }
    Expected::Split { events, letters }
}

/// Collects the faults of an enabled stream's `event` object.
fn judge_event(members: &[(&str, &str)], event_type: &str, rules: &Rules, wrong: &mut BTreeSet<Reason>) {
    if members.len() > MAX_MEMBERS {
        wrong.insert(Reason::TooManyMembers);
    }
    let named: Vec<&str> = members
        .iter()
        .filter(|(name, _)| decoded(name).as_deref() == Some(event_type))
        .map(|(_, value)| *value)
        .collect();
    match named[..] {
        [] => drop(wrong.insert(Reason::MissingList)),
        [value] if value.starts_with('[') => {}
        [_] => drop(wrong.insert(Reason::ListNotArray)),
        _ => drop(wrong.insert(Reason::DuplicateMember)),
    }
    let all: Vec<&str> = members
        .iter()
        .filter(|(_, value)| value.starts_with('['))
        .flat_map(|(_, value)| elements(value))
        .collect();
    if all.len() > rules.max_events {
        wrong.insert(Reason::TooManyEvents);
    }
    if all.iter().any(|element| depth(element) > MAX_DEPTH) {
        wrong.insert(Reason::TooDeep);
    }
}

fn event_of(element: &str, event_type: &str, composition: &str, rules: &Rules) -> Result<Event, Reason> {
    if !element.starts_with('{') {
        return Err(Reason::ElementNotObject);
    }
    let members = members(element);
    let names: Vec<Option<String>> = members.iter().map(|(name, _)| decoded(name)).collect();
    let named = |wanted: &str| {
        let at = names.iter().rposition(|name| name.as_deref() == Some(wanted))?;
        Some(members[at].1)
    };
    if named("event_type").or(named("server_composition")).is_some() {
        return Err(Reason::ReservedMember);
    }
    let key = named("messageId")
        .and_then(decoded)
        .filter(|id| !id.is_empty() && id.len() <= MAX_KEY);
    let mut hash = Sha1::digest(
        [
            NAMESPACE.as_bytes(),
            event_type.as_bytes(),
            b"\0",
            composition.as_bytes(),
            b"\0",
            element.as_bytes(),
        ]
        .concat(),
    );
    hash[6] = hash[6] & 0x0F | 0x50;
    hash[8] = hash[8] & 0x3F | 0x80;
    let id = uuid::Uuid::from_slice(&hash[..16]).unwrap();
    assert_eq!(id.get_version_num(), 5);
    let composition_json = serde_json::to_string(composition).unwrap();
    let comma = if members.is_empty() { "" } else { "," };
    let value = format!(
        r#"{{"event_type":"{event_type}","server_composition":{composition_json}{comma}{}"#,
        &element[1..]
    );

    let source = percent_encode(composition.as_bytes(), NON_ALPHANUMERIC).to_string();
    let source = ["-.", "_~"].concat().chars().fold(source, |text, plain| {
        text.replace(&format!("%{:02X}", u32::from(plain)), &plain.to_string())
    });
    let mut headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_type", format!("jp.smtps.cmc.{event_type}")),
        ("ce_source", format!("/cmc/{source}")),
        ("content-type", "application/json".to_owned()),
        ("cmc-received-at", RECEIVED_AT_TEXT.to_owned()),
        ("ce_id", id.to_string()),
    ];
    let in_no_attribute = |c: char| {
        c.is_control() || ('\u{fdd0}'..='\u{fdef}').contains(&c) || u32::from(c) % 0x10000 >= 0xFFFE
    };
    if let Some(key) = key.as_ref().filter(|key| !key.contains(in_no_attribute)) {
        headers.push(("ce_subject", key.clone()));
    }
    let zone = if composition == "utc" { "+00:00" } else { "+09:00" };
    let is_time = |text: &String| {
        let shape = text.replace(|c: char| c.is_ascii_digit(), "0");
        // jiff accepts a leap second, the contract does not.
        shape == "0000-00-00 00:00:00"
            && !text.ends_with("60")
            && text.parse::<jiff::civil::DateTime>().is_ok()
    };
    if let Some(created) = named("created").and_then(decoded).filter(is_time) {
        headers.push(("ce_time", format!("{}{zone}", created.replace(' ', "T"))));
    }
    let sizes = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
    if alone_in_batch(key.as_deref().map(str::as_bytes), sizes, value.len()) > rules.max_record_bytes {
        return Err(Reason::RecordTooLarge);
    }
    Ok(Event {
        key,
        id: id.to_string(),
        value,
    })
}

/// The decoded text of a JSON string; `None` for any other value, and for half a surrogate pair.
fn decoded(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

const SPACE: [char; 4] = [' ', '\n', '\r', '\t'];

/// The JSON value in a text, without the white space around it; `None` if it is not one by RFC 8259.
pub(super) fn whole(text: &str) -> Option<&str> {
    let text = text.trim_matches(SPACE);
    (value_end(text.as_bytes(), 0)?.0 == text.len()).then_some(text)
}

fn depth(value: &str) -> usize {
    value_end(value.as_bytes(), 0).unwrap().1
}

/// Names and values of an object, as written.
fn members(object: &str) -> Vec<(&str, &str)> {
    let inner = object[1..object.len() - 1].trim_matches(SPACE);
    let mut at = 0;
    let mut found = Vec::new();
    while at < inner.len() {
        let name_end = value_end(inner.as_bytes(), at).unwrap().0;
        let name = &inner[at..name_end];
        let value_at = space_end(inner.as_bytes(), space_end(inner.as_bytes(), name_end) + 1);
        let end = value_end(inner.as_bytes(), value_at).unwrap().0;
        found.push((name, &inner[value_at..end]));
        at = space_end(inner.as_bytes(), space_end(inner.as_bytes(), end) + 1);
    }
    found
}

/// The elements of a list, as written.
fn elements(list: &str) -> Vec<&str> {
    let inner = list[1..list.len() - 1].trim_matches(SPACE);
    let mut at = 0;
    let mut found = Vec::new();
    while at < inner.len() {
        let end = value_end(inner.as_bytes(), at).unwrap().0;
        found.push(&inner[at..end]);
        at = space_end(inner.as_bytes(), space_end(inner.as_bytes(), end) + 1);
    }
    found
}

fn space_end(text: &[u8], at: usize) -> usize {
    let space = text
        .iter()
        .skip(at)
        .take_while(|byte| SPACE.contains(&char::from(**byte)));
    at + space.count()
}

/// The end and the depth of the JSON value that begins at `at`, by the grammar of RFC 8259.
fn value_end(text: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    let mut open = Vec::new();
    let mut deepest = 0;
    'value: loop {
        match byte(at) {
            start @ (b'{' | b'[') => {
                open.push(start);
                deepest = deepest.max(open.len());
                at = space_end(text, at + 1);
                if byte(at) != start + 2 {
                    if start == b'{' {
                        at = name_end(text, at)?;
                    }
                    continue 'value;
                }
                open.pop();
                at += 1;
            }
            b'"' => at = string_end(text, at)?,
            b't' | b'f' | b'n' => {
                let words = ["true", "false", "null"];
                at += words
                    .iter()
                    .find(|word| text[at..].starts_with(word.as_bytes()))?
                    .len();
            }
            _ => at = number_end(text, at)?,
        }
        // After a value, more values follow, or the ends of its containers.
        loop {
            let Some(start) = open.last() else {
                return Some((at, deepest));
            };
            at = space_end(text, at);
            match byte(at) {
                b',' => {
                    at = space_end(text, at + 1);
                    if *start == b'{' {
                        at = name_end(text, at)?;
                    }
                    continue 'value;
                }
                end if end == start + 2 => {
                    open.pop();
                    at += 1;
                }
                _ => return None,
            }
        }
    }
}

/// The start of the value of the member whose name begins at `at`.
fn name_end(text: &[u8], at: usize) -> Option<usize> {
    let at = space_end(text, string_end(text, at)?);
    (text.get(at) == Some(&b':')).then(|| space_end(text, at + 1))
}

fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if *text.get(at + 1)? == b'u' => {
                let digits = text.get(at + 2..at + 6)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                at += 6;
            }
            b'\\' if b"\"\\/bfnrt".contains(&text[at + 1]) => at += 2,
            b'\\' | 0..0x20 => return None,
            _ => at += 1,
        }
    }
}

fn number_end(text: &[u8], mut at: usize) -> Option<usize> {
    let digits = |at: usize| {
        text.iter()
            .skip(at)
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    at += usize::from(text.get(at) == Some(&b'-'));
    match digits(at) {
        0 => return None,
        many if many > 1 && text[at] == b'0' => return None,
        many => at += many,
    }
    if text.get(at) == Some(&b'.') {
        at += 1;
        at += Some(digits(at)).filter(|many| *many > 0)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(text.get(at), Some(b'+' | b'-')));
        at += Some(digits(at)).filter(|many| *many > 0)?;
    }
    Some(at)
}

#[test]
fn the_oracle_knows_json() {
    for (text, valid) in [
        ("{}", true),
        (" [ 1 , -0.5e+3 , 1e400, \"\\ud83d\\u0000\" ] \n", true),
        ("{\"a\":{\"b\":[{}]},\"a\":null}", true),
        ("-0", true),
        ("", false),
        ("01", false),
        ("1.", false),
        ("+1", false),
        (".5", false),
        ("1e", false),
        ("[1,]", false),
        ("{\"a\"}", false),
        ("{,}", false),
        ("{1:2}", false),
        ("\"\u{1}\"", false),
        ("\"\\x\"", false),
        ("[}", false),
        ("nul", false),
        ("\u{feff}{}", false),
        ("\u{a0}1", false),
        ("{} {}", false),
    ] {
        assert_eq!(whole(text).is_some(), valid, "{text:?}");
    }
}
