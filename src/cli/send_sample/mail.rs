//! Generates webhooks of received mail: JSON without attachments, multipart with them, as the sender posts them.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};

use super::generate::{BodyFormat, Generator, SUBJECTS, text};

/// The body of mail number `number`, which was received at `now`.
pub(super) fn body(of: &Generator, number: u64, now: Timestamp) -> Vec<u8> {
    let subject = SUBJECTS[(number % SUBJECTS.len() as u64) as usize];
    let headers = headers(&of.run, number, subject, now);
    let html = format!("<p>{subject}</p>");
    let envelope_to = format!("user{number}@example.co.jp");
    let api_key = of.api_key.iter().map(|key| ("api_key", key.as_str()));
    let fields = [
        ("server_composition", of.server_composition.as_str()),
        ("filter", "info@example.co.jp"),
        ("headers", &headers),
        ("subject", subject),
        ("text", subject),
        ("html", &html),
        ("envelope-from", "hanako@example.net"),
        ("envelope-to", &envelope_to),
    ];
    let fields = api_key.chain(fields);
    if of.format != BodyFormat::Multipart {
        let member = |(name, value): (&str, &str)| match name {
            "headers" => format!(r#""{name}":{value}"#),
            _ => format!(r#""{name}":{}"#, text(value)),
        };
        let members: Vec<String> = fields.map(member).collect();
        return format!("{{{}}}", members.join(",")).into_bytes();
    }
    let boundary = of.boundary();
    let size: usize = of.attachments.iter().map(|file| file.content.len() + 1024).sum();
    let mut body = Vec::with_capacity(size + 8192);
    for (name, value) in fields {
        put_field(&mut body, &boundary, name, value);
    }
    put_field(
        &mut body,
        &boundary,
        "attachments",
        &of.attachments.len().to_string(),
    );
    for (number, file) in (1..).zip(&of.attachments) {
        let disposition = format!(
            r#"name="attachment{number}"; filename="{}""#,
            file_name(&file.name)
        );
        put(
            &mut body,
            &boundary,
            &disposition,
            "application/octet-stream",
            &file.content,
        );
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

/// The header list as JSON.
fn headers(run: &str, number: u64, subject: &str, now: Timestamp) -> String {
    let zone = TimeZone::get("Asia/Tokyo").unwrap_or(TimeZone::UTC);
    let date = rfc2822::to_string(&now.to_zoned_datetime(zone)).unwrap_or_default();
    let header = |name: &str, value: &str| format!(r#"{{"name":"{name}","value":{}}}"#, text(value));
    let id = format!("<{run}.{number}@mail.example.co.jp>");
    let list = [
        header("Date", &date),
        header("Message-ID", &id)
            .replace('<', r"\u003C")
            .replace('>', r"\u003E"),
        header("Subject", subject),
    ];
    format!("[{}]", list.join(","))
}

/// Appends a text part.
pub(super) fn put_field(body: &mut Vec<u8>, boundary: &str, name: &str, value: &str) {
    let disposition = format!(r#"name="{name}""#);
    put(
        body,
        boundary,
        &disposition,
        "text/plain; charset=UTF-8",
        value.as_bytes(),
    );
}

fn put(body: &mut Vec<u8>, boundary: &str, disposition: &str, content_type: &str, content: &[u8]) {
    // Writing to a vector can't fail.
    let _ = write!(
        body,
        "--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: {content_type}\r\n\r\n"
    );
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n");
}

/// A file name as the sender writes it: as an encoded word if it is not ASCII.
fn file_name(name: &str) -> String {
    match name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        true => name.replace('\\', r"\\").replace('"', "\\\""),
        false => format!("=?UTF-8?B?{}?=", STANDARD.encode(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{attachment::Attachment, generate::WebhookKind},
        *,
    };
    use crate::{
        batch::BatchView,
        cmc::{self, Endpoint, Media},
        config,
    };

    const NAMES: [&str; 4] = ["plain.txt", "見積 書.csv", "a\"b\\c.txt", "line\nend"];

    #[test]
    fn the_bridge_understands_each_mail() {
        let variables = [("CMC_BRIDGE__STREAMS__INBOUND__ENABLED".into(), "true".into())];
        let config = config::load(&[], variables.into_iter()).unwrap().config;
        let rules = config.rules();
        for format in [BodyFormat::Json, BodyFormat::Multipart] {
            let attachments = NAMES.map(|name| Attachment {
                name: name.to_owned(),
                content: format!("content of {name}\r\n").into_bytes(),
            });
            let generator = Generator {
                kind: WebhookKind::Inbound,
                format,
                events: 1,
                server_composition: "メール \"&".to_owned(),
                api_key: Some("k+ \"秘".to_owned()),
                run: "run".to_owned(),
                attachments: attachments.to_vec(),
            };
            let body = generator.body(7, Timestamp::UNIX_EPOCH);
            let content_type = generator.content_type();
            let request = cmc::Request {
                received_at_micros: 0,
                path: "/webhooks/inbound",
                content_type: Some(&content_type),
                body: &body,
            };
            let media = Media::of(Endpoint::Inbound, [content_type.as_bytes()]);
            let opened = cmc::open_request(&request, media, &rules);
            assert_eq!(opened.api_key.as_deref(), Some("k+ \"秘"));
            let understood = cmc::understand(opened, &request, &rules);
            assert_eq!(understood.malformed, None);
            let (_, batch, _) = understood.split.events.unwrap();
            let view = BatchView::decode(batch.bytes()).unwrap();
            assert_eq!(view.records[0].key, Some(&b"<run.7@mail.example.co.jp>"[..]));
            assert!(
                view.headers(&view.records[0])
                    .any(|h| h == ("ce_time", b"1970-01-01T09:00:00+09:00"))
            );
            let mail: serde_json::Value = serde_json::from_slice(&view.records[0].value()).unwrap();
            assert_eq!(mail["server_composition"], "メール \"&");
            assert_eq!(mail["html"], format!("<p>{}</p>", SUBJECTS[2]));
            if format == BodyFormat::Json {
                assert_eq!(view.records.len(), 1);
                continue;
            }
            let names: Vec<_> = mail["attachments"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| &one["name"])
                .collect();
            assert_eq!(names, NAMES);
            for (record, file) in view.records[1..].iter().zip(&attachments) {
                assert_eq!(*record.value(), file.content);
            }
        }
    }
}
