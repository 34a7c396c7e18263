//! The sender's bodies and the records that they must become, computed without the bridge's code.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use sha1::{Digest, Sha1};

use crate::{topics::Record, wait::Random};

/// The text of a file in tests/samples.
pub fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/samples")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A webhook with these raw elements.
pub fn webhook(event_type: &str, composition: &str, elements: &[&str]) -> String {
    format!(
        r#"{{"event_type":"{event_type}","server_composition":"{composition}","event":{{"{event_type}":[{}]}}}}"#,
        elements.join(",")
    )
}

/// A delivery event with this id and subject.
pub fn message(id: &str, subject: &str) -> String {
    format!(
        r#"{{"reason":"","created":"2026-10-01 09:15:02","subject":"{subject}","messageId":"\u003C{id}\u003E","status":"queued"}}"#
    )
}

/// Text that lz4 can't make smaller, and other codecs not by half.
pub fn incompressible(length: usize) -> String {
    let mut random = Random::from_seed(7);
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let text = (0..length).map(|_| char::from(letters[random.below(64) as usize]));
    text.collect()
}

/// A webhook with one delivery event with this id.
pub fn delivery(id: &str) -> String {
    webhook("deliveries", "pro", &[&message(id, "s")])
}

/// The raw texts of the elements of `"<list>":[…]` in a JSON body, cut at the brackets without parsing.
pub fn elements(body: &str, list: &str) -> Vec<String> {
    let opening = format!("\"{list}\":[");
    let start = body.rfind(&opening).unwrap() + opening.len();
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let mut found = Vec::new();
    let mut from = start;
    for (at, c) in body[start..].char_indices().map(|(at, c)| (start + at, c)) {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' | '[' => depth += 1,
            ']' if depth == 0 => {
                found.push(body[from..at].to_owned());
                return found.into_iter().filter(|element| !element.is_empty()).collect();
            }
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                found.push(body[from..at].to_owned());
                from = at + 1;
            }
            _ => {}
        }
    }
    panic!("no end of the list {list}");
}

/// The expected key of an element's record: its decoded messageId.
pub fn key_of(element: &str) -> Option<String> {
    let element: Value = serde_json::from_str(element).unwrap();
    let id = element["messageId"].as_str()?;
    (!id.is_empty() && id.len() <= 512).then(|| id.to_owned())
}

/// The expected value of an element's record.
pub fn value_of(event_type: &str, composition: &str, element: &str) -> String {
    let members = element.strip_prefix('{').unwrap();
    let comma = if members.trim_start() == "}" { "" } else { "," };
    format!(r#"{{"event_type":"{event_type}","server_composition":"{composition}"{comma}{members}"#)
}

/// Checks the whole record of an event: key, value, each header and the time.
pub fn check(record: &Record, event_type: &str, composition: &str, element: &str) {
    let key = key_of(element);
    assert_eq!(record.key_text(), key.as_deref());
    assert_eq!(record.text(), value_of(event_type, composition, element));

    let mut want: BTreeMap<&str, String> = BTreeMap::from([
        ("ce_specversion", "1.0".to_owned()),
        ("ce_type", format!("jp.smtps.cmc.{event_type}")),
        ("ce_source", format!("/cmc/{}", percent_encoded(composition))),
        ("content-type", "application/json".to_owned()),
    ]);
    // CloudEvents allows no control characters in attributes.
    if let Some(key) = key.filter(|key| !key.contains(char::is_control)) {
        want.insert("ce_subject", key);
    }
    let parsed: Value = serde_json::from_str(element).unwrap();
    if let Some((date, time)) = parsed["created"].as_str().and_then(|text| text.split_once(' ')) {
        want.insert("ce_time", format!("{date}T{time}+09:00"));
    }
    let mut have: BTreeMap<&str, String> = BTreeMap::new();
    for (name, _) in &record.headers {
        have.insert(name, record.header(name).unwrap().to_owned());
    }
    let id = have.remove("ce_id").expect("ce_id");
    check_event_id(&id, event_type, composition, element);
    let received = have.remove("cmc-received-at").expect("cmc-received-at");
    check_received_at(&received, record);
    assert_eq!(have, want);
}

/// Checks for an RFC 3339 time with microseconds, recent and before the record was sent.
fn check_received_at(text: &str, record: &Record) {
    let fraction = text.split_once('.').expect("a fraction of a second").1;
    let digits = fraction.chars().take_while(char::is_ascii_digit).count();
    assert_eq!(digits, 6, "{text}");
    let received: jiff::Timestamp = text.parse().unwrap();
    let now = jiff::Timestamp::now();
    let sent = record.timestamp_ms;
    let order = received.as_millisecond() <= sent && sent <= now.as_millisecond();
    assert!(order, "received {text}, sent {sent}, now {now}");
    let age = now.as_second() - received.as_second();
    assert!((-1..600).contains(&age), "received {age} s ago: {text}");
}

fn check_event_id(id: &str, event_type: &str, composition: &str, element: &str) {
    let id = uuid::Uuid::parse_str(id).unwrap();
    assert_eq!(id.get_version_num(), 5, "{id}");
    // The contract's document publishes the namespace.
    if let Some(namespace) = published_namespace() {
        assert_eq!(id, event_id(&namespace, event_type, composition, element));
    }
}

/// UUIDv5 (RFC 9562, 5.5) over event type, NUL, server composition, NUL, the element's raw bytes.
pub fn event_id(namespace: &uuid::Uuid, event_type: &str, composition: &str, element: &str) -> uuid::Uuid {
    let mut hash = Sha1::new();
    hash.update(namespace.as_bytes());
    for part in [event_type, "\0", composition, "\0", element] {
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    let mut bytes: [u8; 16] = digest[..16].try_into().unwrap();
    bytes[6] = bytes[6] & 0x0f | 0x50;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    uuid::Uuid::from_bytes(bytes)
}

/// The first UUID after the word "namespace" in docs/events.md.
fn published_namespace() -> Option<uuid::Uuid> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/events.md");
    let text = fs::read_to_string(path).ok()?;
    let from = text
        .to_lowercase()
        .find("namespace")
        .expect("docs/events.md names the namespace");
    let found = text
        .get(from..)?
        .split(|c: char| !(c.is_ascii_hexdigit() || c == '-'));
    let namespace = found
        .filter(|word| word.len() == 36)
        .find_map(|word| uuid::Uuid::parse_str(word).ok());
    Some(namespace.expect("docs/events.md gives the namespace as a UUID"))
}

/// All except the unreserved characters of RFC 3986.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[test]
fn an_event_id_is_a_name_based_uuid() {
    // From Python: uuid.uuid5(uuid.NAMESPACE_DNS, 'deliveries\0pro\0{"a":1}')
    let dns = uuid::Uuid::parse_str("6ba7b810-9dad-11d1-80b4-00c04fd430c8").unwrap();
    let id = event_id(&dns, "deliveries", "pro", r#"{"a":1}"#);
    assert_eq!(id.to_string(), "64befe8c-3cb7-5929-a9db-830501718198");
}

#[test]
fn elements_are_cut_verbatim() {
    let body = r#"{"event":{"blocks":[{"a":"]},\"{"}, 7,{"b":[1,{"c":2}]}]}}"#;
    assert_eq!(
        elements(body, "blocks"),
        [r#"{"a":"]},\"{"}"#, " 7", r#"{"b":[1,{"c":2}]}"#]
    );
}
