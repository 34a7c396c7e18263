//! Prints Kafka records as text or as one JSON object per line.

use std::io::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use rdkafka::{Message, message::Headers};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{plain::visible, stream::Stream};

const REASON: &str = "cmc-dead-letter-reason";
/// The `ce_type` of parts of attachments.
const ATTACHMENT: &[u8] = b"jp.smtps.cmc.inbound.attachment";

/// How to print records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrintFormat {
    Text,
    Json,
}

/// Prints a record.
///
/// # Errors
/// The output can't be written.
pub fn print(record: &impl Message, format: PrintFormat, out: &mut impl Write) -> io::Result<()> {
    match format {
        PrintFormat::Text => text(record, out)?,
        PrintFormat::Json => json(record, out)?,
    }
    out.flush()
}

fn text(record: &impl Message, out: &mut impl Write) -> io::Result<()> {
    let text = |bytes: Option<&[u8]>| match bytes {
        None => "(none)".to_owned(),
        Some(bytes) => visible(&String::from_utf8_lossy(bytes)),
    };
    writeln!(
        out,
        "→ {}  partition {}  offset {}  key {}",
        record.topic(),
        record.partition(),
        record.offset(),
        text(record.key())
    )?;
    if let Some(reason) = header(record, REASON) {
        writeln!(out, "  reason {}", text(Some(reason)))?;
    }
    let part = attachment_part(
        |name| header(record, name),
        record.payload().map_or(0, <[u8]>::len),
    );
    writeln!(out, "  {}", part.unwrap_or_else(|| text(record.payload())))
}

/// A record that holds part of an attachment, in words; `None` for any other record. `header` finds a header, `bytes` is the
/// size of the value.
pub fn attachment_part<'h>(header: impl Fn(&str) -> Option<&'h [u8]>, bytes: usize) -> Option<String> {
    if header("ce_type") != Some(ATTACHMENT) {
        return None;
    }
    let text = |name: &str| {
        let value = header(&format!("cmc-attachment-{name}"));
        value.map_or("(none)".to_owned(), |value| {
            visible(&String::from_utf8_lossy(value))
        })
    };
    let content_type = header("content-type").unwrap_or_default();
    let (name, what) = match header("cmc-attachment-member") {
        Some(_) => ("member", "field"),
        None => ("name", "attachment"),
    };
    Some(format!(
        "{what} {} {}  {}  part {} of {}: {bytes} of {} bytes",
        text("index"),
        text(name),
        visible(&String::from_utf8_lossy(content_type)),
        text("part"),
        text("parts"),
        text("size"),
    ))
}

fn json(record: &impl Message, out: &mut impl Write) -> io::Result<()> {
    let timestamp = record.timestamp().to_millis();
    let mut line = format!(
        r#"{{"topic":{},"partition":{},"offset":{},"timestamp":{},"key":{},"headers":{},"value":"#,
        json!(record.topic()),
        record.partition(),
        record.offset(),
        json!(timestamp),
        bytes(record.key()),
        headers(
            record
                .headers()
                .into_iter()
                .flat_map(Headers::iter)
                .map(|header| (header.key, header.value))
        )
    )
    .into_bytes();
    push_value(record.payload(), &mut line);
    line.extend_from_slice(b"}\n");
    out.write_all(&line)
}

/// Appends a record's value as JSON on one line: unchanged if it is JSON, else as [`bytes()`].
pub fn push_value(value: Option<&[u8]>, line: &mut Vec<u8>) {
    match value.and_then(|value| serde_json::from_slice::<&RawValue>(value).ok()) {
        // A line break can only stand between tokens, where it is white space.
        Some(raw) => line.extend(raw.get().bytes().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            byte => byte,
        })),
        None => line.extend_from_slice(bytes(value).to_string().as_bytes()),
    }
}

/// Text as a string, other bytes as `{"base64": …}`.
pub fn bytes(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => Value::String(text.to_owned()),
        Some((Err(_), bytes)) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// Headers by name; a repeated one has a list.
pub fn headers<'a>(headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Value {
    let mut found = Map::new();
    for (name, value) in headers {
        let value = bytes(value);
        match found.get_mut(name) {
            None => {
                found.insert(name.to_owned(), value);
            }
            Some(Value::Array(list)) => list.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    Value::Object(found)
}

/// The value of a record's header.
pub fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a [u8]> {
    let headers = record.headers()?;
    headers.iter().find(|header| header.key == name)?.value
}

/// The stream of a record that the bridge has written.
pub fn stream(record: &impl Message) -> Option<Stream> {
    if header(record, REASON).is_some() {
        return Some(Stream::DeadLetters);
    }
    let kind = std::str::from_utf8(header(record, "ce_type")?).ok()?;
    Stream::from_ce_type(kind)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders, OwnedMessage},
    };

    use super::*;

    fn record(key: Option<&[u8]>, headers: &[(&str, &[u8])], value: Option<&[u8]>) -> OwnedMessage {
        let mut all = OwnedHeaders::new();
        for (key, value) in headers {
            all = all.insert(Header {
                key,
                value: Some(*value),
            });
        }
        OwnedMessage::new(
            value.map(<[u8]>::to_vec),
            key.map(<[u8]>::to_vec),
            "cmc.bounces".to_owned(),
            Timestamp::CreateTime(1_700_000_000_123),
            2,
            7,
            Some(all),
        )
    }

    fn printed(record: &OwnedMessage, format: PrintFormat) -> String {
        let mut out = Vec::new();
        print(record, format, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_values_stay_as_they_are() {
        let record = record(
            Some(b"<1@example.co.jp>"),
            &[
                ("ce_type", b"jp.smtps.cmc.bounces"),
                ("a", b"1"),
                ("a", b"2"),
                ("b", b"\xff"),
            ],
            Some("{\"n\":1000.0,\r\n\"s\":\"\\u003C十月\"}".as_bytes()),
        );
        assert_eq!(
            printed(&record, PrintFormat::Json),
            concat!(
                r#"{"topic":"cmc.bounces","partition":2,"offset":7,"timestamp":1700000000123,"key":"<1@example.co.jp>","#,
                r#""headers":{"a":["1","2"],"b":{"base64":"/w=="},"ce_type":"jp.smtps.cmc.bounces"},"#,
                "\"value\":{\"n\":1000.0,  \"s\":\"\\u003C十月\"}}\n"
            )
        );
    }

    #[test]
    fn every_line_is_json() {
        let values: [(Option<&[u8]>, Value); 5] = [
            (None, Value::Null),
            (Some(b""), json!("")),
            (Some(b"{\"broken\n"), json!("{\"broken\n")),
            (Some(b"\xff\xfe"), json!({ "base64": "//4=" })),
            (Some(b" [1]\n"), json!([1])),
        ];
        for (value, wanted) in values {
            let line = printed(&record(None, &[], value), PrintFormat::Json);
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let parsed: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["value"], wanted);
            assert_eq!(parsed["key"], Value::Null);
        }
    }

    #[test]
    fn text_can_not_steer_a_terminal() {
        let record = record(None, &[(REASON, b"invalid_json")], Some(b"a\x1b[2Jb\nc"));
        assert_eq!(
            printed(&record, PrintFormat::Text),
            "→ cmc.bounces  partition 2  offset 7  key (none)\n  reason invalid_json\n  a\u{FFFD}[2Jb c\n"
        );
        assert_eq!(stream(&record), Some(Stream::DeadLetters));
    }
}
