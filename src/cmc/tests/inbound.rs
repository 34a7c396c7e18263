//! Received mail: from a body to its group of records.

use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

const JSON: &[u8] = include_bytes!("../../../tests/samples/inbound.json");
const MULTIPART: &[u8] = include_bytes!("../../../tests/samples/inbound-multipart.txt");
const BOUNDARY: &str = "----=_Part_7_1";

fn inbound(content: MailContent, max_record_bytes: usize) -> Rules {
    Rules {
        inbound: Some(InboundRules {
            path: "/webhooks/inbound".to_owned(),
            content,
        }),
        max_record_bytes,
        ..rules()
    }
}

fn all() -> Rules {
    inbound(MailContent::All, 1_000_000)
}

/// What the bridge makes of a body on the path of received mail.
fn explained(body: &[u8], content_type: Option<&str>, rules: &Rules) -> Understood {
    let request = Request {
        received_at_micros: RECEIVED_AT,
        path: "/webhooks/inbound",
        content_type,
        body,
    };
    explain(&request, rules)
}

fn multipart_type() -> String {
    format!("multipart/form-data; boundary=\"{BOUNDARY}\"")
}

/// A record with its value as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rec {
    key: String,
    headers: Vec<(String, Vec<u8>)>,
    value: Vec<u8>,
}

impl Rec {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, value)| &**value);
        assert!(found.next().is_none(), "{name} occurs twice");
        value
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.bytes(name).map(|value| std::str::from_utf8(value).unwrap())
    }

    fn number(&self, name: &str) -> usize {
        self.header(name).unwrap().parse().unwrap()
    }
}

/// The records of a mail, after what holds for every group is checked.
fn group(understood: &Understood, rules: &Rules) -> (Value, Vec<Rec>) {
    assert_eq!(understood.malformed, None);
    assert!(understood.split.failures.is_empty() && understood.split.dead_letters.is_none());
    let (stream, batch, tally) = understood.split.events.as_ref().unwrap();
    assert_eq!(*stream, Stream::Inbound);
    assert_eq!((tally.counts()[0], tally.total()), (1, u64::from(batch.events())));
    let view = BatchView::decode(batch.bytes()).unwrap();
    let records: Vec<Rec> = view
        .records
        .iter()
        .map(|record| Rec {
            key: std::str::from_utf8(record.key.unwrap()).unwrap().to_owned(),
            headers: view
                .headers(record)
                .map(|(name, value)| (name.to_owned(), value.to_vec()))
                .collect(),
            value: record.value().into_owned(),
        })
        .collect();
    for record in &records {
        let headers = record
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let size = alone_in_batch(Some(record.key.as_bytes()), headers, record.value.len());
        assert!(
            size <= rules.max_record_bytes || record.value.len() <= 1024,
            "{size}"
        );
    }
    let mail = &records[0];
    let value: Value = serde_json::from_slice(&mail.value).unwrap();
    assert_eq!(mail.header("ce_type"), Some("jp.smtps.cmc.inbound"));
    let ids: std::collections::BTreeSet<_> = records.iter().map(|record| record.header("ce_id")).collect();
    assert_eq!(ids.len(), records.len(), "ids are unique");
    let mut parts = records[1..].iter();
    for (index, attachment) in (1..).zip(value["attachments"].as_array().unwrap()) {
        assert_eq!(attachment["index"], index);
        let count = attachment["parts"].as_u64().unwrap() as usize;
        let mut content = Vec::new();
        for number in 1..=count {
            let part = parts.next().unwrap();
            assert_eq!(part.key, mail.key);
            assert_eq!(part.header("ce_type"), Some("jp.smtps.cmc.inbound.attachment"));
            for name in [
                "ce_specversion",
                "ce_source",
                "cmc-received-at",
                "ce_subject",
                "ce_time",
            ] {
                assert_eq!(part.header(name), mail.header(name));
            }
            assert_eq!(part.header("cmc-mail-id"), mail.header("ce_id"));
            assert_eq!(part.number("cmc-attachment-index"), index);
            assert_eq!(part.number("cmc-attachment-part"), number);
            assert_eq!(part.number("cmc-attachment-parts"), count);
            assert_eq!(
                part.header("cmc-attachment-sha256"),
                attachment["sha256"].as_str()
            );
            assert_eq!(part.number("cmc-attachment-size") as u64, attachment["size"]);
            assert_eq!(part.header("cmc-attachment-name"), attachment["name"].as_str());
            content.extend_from_slice(&part.value);
        }
        if count > 0 {
            assert_eq!(content.len() as u64, attachment["size"]);
            assert_eq!(attachment["sha256"], sha256(&content));
        }
    }
    assert_eq!(parts.next(), None);
    (value, records)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The content of an attachment.
fn content(records: &[Rec], index: usize) -> Vec<u8> {
    let parts = records[1..]
        .iter()
        .filter(|part| part.number("cmc-attachment-index") == index);
    parts.flat_map(|part| part.value.clone()).collect()
}

/// A part of a multipart body: header lines, content.
type Part<'p> = (&'p str, &'p [u8]);

fn body(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (header, content) in parts {
        body.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {header}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

const COMPOSITION: Part<'static> = ("name=\"server_composition\"", b"pro");
const SUBJECT: Part<'static> = ("name=\"subject\"", "件名".as_bytes());

fn with(parts: &[Part<'_>]) -> Understood {
    let mut all_parts = vec![COMPOSITION, SUBJECT];
    all_parts.extend_from_slice(parts);
    explained(&body(&all_parts), Some(&multipart_type()), &all())
}

fn mail(parts: &[Part<'_>]) -> (Value, Vec<Rec>) {
    group(&with(parts), &all())
}

#[test]
fn the_json_sample_goes_on_verbatim() {
    let (value, records) = group(&explained(JSON, Some("application/json"), &all()), &all());
    let text = String::from_utf8(records[0].value.clone()).unwrap();
    let sample = String::from_utf8(JSON.to_vec()).unwrap();
    let members = sample.trim().strip_prefix('{').unwrap();
    let members = members.strip_suffix(r#","server_composition":"pro"}"#).unwrap();
    assert_eq!(
        text,
        format!(r#"{{"event_type":"inbound","server_composition":"pro",{members},"attachments":[]}}"#)
    );
    assert_eq!(value["headers"][1]["name"], "Message-ID");
    assert_eq!(records[0].key, "<in-1@example.net>");
    assert_eq!(records[0].header("ce_subject"), Some("<in-1@example.net>"));
    assert_eq!(records[0].header("ce_source"), Some("/cmc/pro"));
    assert_eq!(records[0].header("ce_time"), None);
    assert_eq!(records[0].header("content-type"), Some("application/json"));
    assert_eq!(records[0].header("cmc-received-at"), Some(RECEIVED_AT_TEXT));
}

#[test]
fn the_multipart_sample_becomes_a_mail_and_an_attachment() {
    let content_type = multipart_type();
    for content_type in [Some(content_type.as_str()), None] {
        let sample = MULTIPART.to_vec();
        let (value, records) = group(&explained(&sample, content_type, &all()), &all());
        assert_eq!(records.len(), 2);
        assert_eq!(value["subject"], "添付あり");
        assert_eq!(
            value["headers"],
            json!([{"name": "Message-ID", "value": "<in-2@example.net>"}])
        );
        // The list is verbatim, with its escapes.
        assert!(String::from_utf8_lossy(&records[0].value).contains(r"\u003Cin-2@example.net\u003E"));
        let attachment = &value["attachments"][0];
        assert_eq!(
            *attachment,
            json!({
                "index": 1, "field": "attachment1", "name": "estimate.csv", "content_type": "text/csv",
                "size": 23, "sha256": sha256(b"item,price\r\npaper,500\r\n"), "parts": 1,
            })
        );
        assert_eq!(records[1].value, b"item,price\r\npaper,500\r\n");
        assert_eq!(records[1].header("content-type"), Some("text/csv"));
        assert_eq!(value.get("attachments_announced"), None);
        assert_eq!(records[0].key, "<in-2@example.net>");
    }
}

#[test]
fn ids_depend_on_what_was_sent_alone() {
    let id = |understood: &Understood, rules: &Rules| {
        group(understood, rules).1[0].header("ce_id").unwrap().to_owned()
    };
    let sample = MULTIPART.to_vec();
    let first = id(&explained(&sample, Some(&multipart_type()), &all()), &all());
    // The vector in docs/events.md.
    assert_eq!(first, "494d7a69-a9b9-5c23-8a44-e9ad421ce631");
    let text = String::from_utf8(sample).unwrap().replace(BOUNDARY, "other");
    let other = explained(
        text.as_bytes(),
        Some("multipart/form-data; boundary=other"),
        &all(),
    );
    assert_eq!(id(&other, &all()), first);
    for rules in [
        inbound(MailContent::All, 1500),
        inbound(MailContent::NoAttachments, 1_000_000),
        inbound(MailContent::Envelope, 1_000_000),
    ] {
        assert_eq!(
            id(&explained(MULTIPART, Some(&multipart_type()), &rules), &rules),
            first
        );
    }
    let changed = text.replace("paper,500", "paper,501");
    let changed = explained(
        changed.as_bytes(),
        Some("multipart/form-data; boundary=other"),
        &all(),
    );
    assert_ne!(id(&changed, &all()), first);
}

#[test]
fn key_time_and_subject_come_from_the_headers() {
    for (headers, key, subject, time) in [
        (
            r#"[{"name":"MESSAGE-id","value":" <a@b> "}]"#,
            Some("<a@b>"),
            true,
            None,
        ),
        (
            r#"[{"value":"<a@b>","name":"Message-ID","x":[{}]},{"name":"Message-ID","value":"second"}]"#,
            Some("<a@b>"),
            true,
            None,
        ),
        (r#"[7,"x",{"name":"Message-ID","value":7}]"#, None, false, None),
        (r#"[{"name":"Message-ID","value":""}]"#, None, false, None),
        (
            r#"[{"name":"Message-ID","value":"a\u0001b"}]"#,
            Some("a\u{1}b"),
            false,
            None,
        ),
        (
            r#"[{"name":"Date","value":"Thu, 01 Oct 2026 09:15:02 +0900 (JST)"}]"#,
            None,
            false,
            Some("2026-10-01T09:15:02+09:00"),
        ),
        (
            r#"[{"name":"Date","value":"1 Oct 2026 09:15:02 GMT"}]"#,
            None,
            false,
            Some("2026-10-01T09:15:02+00:00"),
        ),
        // The wrong day of the week, a year of two digits, no seconds, a leap second, a comment.
        (
            r#"[{"name":"Date","value":"Mon, 1 Oct 26 09:15 -0330 (a (nested) comment)"}]"#,
            None,
            false,
            Some("2026-10-01T09:15:00-03:30"),
        ),
        (
            r#"[{"name":"Date","value":"Sat, 31 Dec 2016 23:59:60 +0000"}]"#,
            None,
            false,
            Some("2016-12-31T23:59:59+00:00"),
        ),
        (
            r#"[{"name":"Date","value":"Thu, 31 Feb 2026 09:15:02 +0900"}]"#,
            None,
            false,
            None,
        ),
        (
            r#"[{"name":"Date","value":"2026-10-01T09:15:02+09:00"}]"#,
            None,
            false,
            None,
        ),
        (
            r#"[{"name":"Date","value":"Thu, 01 Oct 2026 09:15:02 +9999"}]"#,
            None,
            false,
            None,
        ),
        (
            r#"[{"name":"Date","value":"Thu, 01 Oct 2026 09:15:02 +0900\u0000"}]"#,
            None,
            false,
            None,
        ),
        (r#"[{"name":"Date","value":"yesterday"}]"#, None, false, None),
        // No list: it stays a text.
        (r#"[{"name":"Message-ID","value":"<a@b>"}"#, None, false, None),
        (r#"{"name":"Message-ID","value":"<a@b>"}"#, None, false, None),
        ("", None, false, None),
    ] {
        let (value, records) = mail(&[("name=\"headers\"", headers.as_bytes())]);
        let id = records[0].header("ce_id").unwrap();
        assert_eq!(records[0].key, key.unwrap_or(id), "{headers}");
        assert_eq!(
            records[0].header("ce_subject"),
            key.filter(|_| subject),
            "{headers}"
        );
        assert_eq!(records[0].header("ce_time"), time, "{headers}");
        let is_list = serde_json::from_str::<Value>(headers).is_ok_and(|value| value.is_array());
        assert_eq!(value["headers"].is_array(), is_list, "{headers}");
        if !is_list {
            assert_eq!(value["headers"], headers);
        }
    }
    let long = format!(r#"[{{"name":"Message-ID","value":"{}"}}]"#, "x".repeat(513));
    let (_, records) = mail(&[("name=\"headers\"", long.as_bytes())]);
    assert_eq!(records[0].key, records[0].header("ce_id").unwrap());
}

#[test]
fn headers_as_a_string_in_json_become_a_list() {
    let body = r#"{"server_composition":"pro","headers":"[{\"name\":\"Message-ID\",\"value\":\"\\u003Ca@b\\u003E\"}]"}"#;
    let (value, records) = group(&explained(body.as_bytes(), None, &all()), &all());
    assert_eq!(value["headers"][0]["value"], "<a@b>");
    assert_eq!(records[0].key, "<a@b>");
}

#[test]
fn attachments_of_every_size_and_number() {
    let big = vec![b'x'; 2_500_000];
    let huge = vec![b'x'; 30_000_000];
    let cases: [(usize, &[u8]); 5] = [(0, b""), (1, b""), (20, b"content"), (2, &big), (1, &huge)];
    for (count, bytes) in cases {
        let names: Vec<String> = (1..=count)
            .map(|n| format!("name=\"attachment{n}\"; filename=\"{n}.bin\""))
            .collect();
        let number = count.to_string();
        let mut parts: Vec<Part<'_>> = vec![("name=\"attachments\"", number.as_bytes())];
        parts.extend(names.iter().map(|name| (name.as_str(), bytes)));
        let (value, records) = mail(&parts);
        assert_eq!(value["attachments"].as_array().unwrap().len(), count);
        assert_eq!(value.get("attachments_announced"), None);
        for index in 1..=count {
            assert_eq!(content(&records, index), bytes);
        }
        let each = bytes.len().div_ceil(999_000).max(1);
        assert_eq!(records.len(), 1 + count * each);
    }
}

#[test]
fn a_number_of_attachments_that_does_not_match_is_passed_on() {
    let file: Part<'_> = ("name=\"attachment1\"; filename=\"a\"", b"a");
    for (announced, shown) in [
        ("1", None),
        (" 1 ", None),
        ("2", Some(json!(2))),
        ("0", Some(json!(0))),
        ("-1", Some(json!("-1"))),
        ("one", Some(json!("one"))),
        ("", Some(json!(""))),
    ] {
        let (value, _) = mail(&[("name=\"attachments\"", announced.as_bytes()), file]);
        assert_eq!(
            value.get("attachments_announced"),
            shown.as_ref(),
            "{announced:?}"
        );
    }
    let (value, _) = mail(&[file]);
    assert_eq!(value.get("attachments_announced"), None);
    let body = br#"{"server_composition":"pro","subject":"","attachments":3}"#;
    let (value, _) = group(&explained(body, None, &all()), &all());
    assert_eq!(
        (&value["attachments"], &value["attachments_announced"]),
        (&json!([]), &json!(3))
    );
}

#[test]
fn names_are_decoded_and_kept() {
    for (parameter, name, original) in [
        ("filename=\"a.txt\"", Some("a.txt"), None),
        ("filename=\"見積.csv\"", Some("見積.csv"), None),
        (
            "filename=\"=?UTF-8?B?6KaL56mNLmNzdg==?=\"",
            Some("見積.csv"),
            Some("=?UTF-8?B?6KaL56mNLmNzdg==?="),
        ),
        (
            "filename=\"=?ISO-2022-JP?B?GyRCOCtAURsoQg==?=\"",
            Some("見積"),
            Some("=?ISO-2022-JP?B?GyRCOCtAURsoQg==?="),
        ),
        (
            "filename*=UTF-8''%E8%A6%8B%E7%A9%8D.csv",
            Some("見積.csv"),
            Some("UTF-8''%E8%A6%8B%E7%A9%8D.csv"),
        ),
        ("filename=\"../../etc/passwd\"", Some("../../etc/passwd"), None),
        ("filename=\"\"", Some(""), None),
        ("x=y", None, None),
    ] {
        let header = format!("name=\"attachment1\"; {parameter}");
        let (value, records) = mail(&[(&header, b"x")]);
        assert_eq!(value["attachments"][0]["name"].as_str(), name, "{parameter}");
        assert_eq!(
            records[1].header("cmc-attachment-name-original"),
            original,
            "{parameter}"
        );
        assert_eq!(value["attachments"][0]["original_name"].as_str(), original);
    }
    // A file is a file, whatever its field is called.
    let (value, records) = mail(&[("name=\"photo\"; filename=\"p.png\"", b"\x89PNG")]);
    assert_eq!(value["attachments"][0]["field"], "photo");
    assert_eq!(records[1].value, b"\x89PNG");
    assert_eq!(
        records[1].header("content-type"),
        Some("application/octet-stream")
    );
}

#[test]
fn a_boundary_inside_an_attachment_is_content() {
    for inside in [
        format!("x--{BOUNDARY}\r\n"),
        format!("\r\n--{BOUNDARY}x\r\n"),
        format!("\r\n--{BOUNDARY}--x"),
        format!("\n--{BOUNDARY}\n"),
        format!("\r\n-{BOUNDARY}\r\n"),
        "\r\n\r\n--\r\n".to_owned(),
        "\r\n".to_owned(),
        "\r".to_owned(),
    ] {
        let (_, records) = mail(&[("name=\"attachment1\"; filename=\"a\"", inside.as_bytes())]);
        assert_eq!(content(&records, 1), inside.as_bytes(), "{inside:?}");
    }
}

#[test]
fn texts_are_decoded_by_their_charset() {
    let jis = b"\x1b$B8+@Q\x1b(B";
    let joined = b"\x1b$B8+\x1b(B\x1b$B@Q\x1b(B";
    let cases: [(&str, &[u8], Option<&str>); 13] = [
        ("text/plain; charset=ISO-2022-JP", joined, Some("見積")),
        ("text/plain; charset=US-ASCII", "見積".as_bytes(), Some("見積")),
        ("text/plain; charset=ISO-2022-JP", "見積".as_bytes(), None),
        ("text/plain; charset=UTF-8", "見積".as_bytes(), Some("見積")),
        ("text/plain", "見積".as_bytes(), Some("見積")),
        ("text/plain; charset=\"iso-2022-jp\"", jis, Some("見積")),
        ("text/plain; charset=Shift_JIS", b"\x8C\xA9\x90\xCF", Some("見積")),
        ("text/plain; charset=CP932", b"\x8C\xA9\x90\xCF", Some("見積")),
        ("text/plain; charset=EUC-JP", b"\xB8\xAB\xC0\xD1", Some("見積")),
        ("text/plain; charset=ISO-8859-1", b"caf\xE9\r\n", Some("café\r\n")),
        ("text/plain; charset=UTF-8", b"\xFF\xFE", None),
        ("text/plain; charset=Shift_JIS", b"\x8C", None),
        ("text/plain; charset=martian", b"abc", None),
    ];
    for (content_type, bytes, text) in cases {
        let header =
            format!("name=\"text\"\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: 8bit");
        let (value, records) = mail(&[(&header, bytes)]);
        match text {
            Some(text) => assert_eq!(value["text"], text, "{content_type}"),
            None => {
                assert_eq!(value["text"], json!({"attachment": 1}), "{content_type}");
                assert_eq!(value["attachments"][0]["member"], "text");
                assert_eq!(content(&records, 1), bytes);
                assert_eq!(records[1].header("content-type"), Some(content_type));
                assert_eq!(records[1].header("cmc-attachment-member"), Some("text"));
            }
        }
    }
}

#[test]
fn many_texts_that_are_not_utf_8_are_kept_as_bytes() {
    let text = [b"\x1b$B".as_slice(), &b"8+".repeat(499_998), b"\x1b(B"].concat();
    let names: Vec<String> = (0..3)
        .map(|n| format!("name=\"text{n}\"\r\nContent-Type: text/plain; charset=ISO-2022-JP"))
        .collect();
    let parts: Vec<Part<'_>> = names
        .iter()
        .map(|name| (name.as_str(), text.as_slice()))
        .collect();
    let (value, records) = mail(&parts);
    for (name, content_type) in [
        ("text0", "text/plain; charset=utf-8"),
        ("text1", "text/plain; charset=utf-8"),
        ("text2", "text/plain; charset=ISO-2022-JP"),
    ] {
        let index = value[name]["attachment"].as_u64().unwrap() as usize;
        assert_eq!(value["attachments"][index - 1]["content_type"], content_type);
        let content = content(&records, index);
        match name {
            "text2" => assert_eq!(content, text),
            _ => assert_eq!(content, "見".repeat(499_998).as_bytes()),
        }
    }
}

#[test]
fn texts_that_json_escapes_cost_no_more_than_a_record() {
    let text = vec![1; 900_000];
    let names: Vec<String> = (0..30).map(|n| format!("name=\"text{n}\"")).collect();
    let parts: Vec<Part<'_>> = names
        .iter()
        .map(|name| (name.as_str(), text.as_slice()))
        .collect();
    let (value, records) = mail(&parts);
    for index in 1..=30 {
        assert_eq!(content(&records, index), text);
    }
    assert_eq!(value["attachments"].as_array().unwrap().len(), 30);
}

#[test]
fn a_mail_may_have_html_only_or_no_text_at_all() {
    let html = "<p>見積</p>\r\n";
    let (value, records) = mail(&[(
        "name=\"html\"\r\nContent-Type: text/html; charset=UTF-8",
        html.as_bytes(),
    )]);
    assert_eq!(
        (&value["html"], value.get("text"), records.len()),
        (&json!(html), None, 1)
    );
    let (value, _) = mail(&[]);
    assert_eq!((value.get("html"), value.get("text")), (None, None));
    let body = br#"{"server_composition":"pro","envelope-to":"a@b","html":""}"#;
    let (value, _) = group(&explained(body, None, &all()), &all());
    assert_eq!(value["html"], "");
}

#[test]
fn a_boundary_may_hold_every_character_that_is_allowed() {
    for boundary in ["a", "a b", "'()+_,-./:=?", &"x".repeat(70), "-", "--"] {
        let sample = String::from_utf8(MULTIPART.to_vec())
            .unwrap()
            .replace(BOUNDARY, boundary);
        let content_type = format!("Multipart/Form-Data; charset=utf-8;Boundary = \"{boundary}\"");
        let (value, _) = group(&explained(sample.as_bytes(), Some(&content_type), &all()), &all());
        assert_eq!(value["attachments"][0]["size"], 23, "{boundary}");
    }
}

#[test]
fn a_text_with_a_transfer_encoding_is_kept_as_bytes() {
    let (value, records) = mail(&[(
        "name=\"text\"\r\nContent-Transfer-Encoding: quoted-printable",
        b"=E8=A6=8B",
    )]);
    assert_eq!(value["text"], json!({"attachment": 1}));
    assert_eq!(value["attachments"][0]["transfer_encoding"], "quoted-printable");
    assert_eq!(records[1].header("cmc-attachment-member"), Some("text"));
    assert_eq!(
        records[1].header("cmc-attachment-transfer-encoding"),
        Some("quoted-printable")
    );
    assert_eq!(records[1].value, b"=E8=A6=8B");
}

#[test]
fn a_transfer_encoding_is_passed_on_and_not_removed() {
    let (value, records) = mail(&[(
        "name=\"attachment1\"; filename=\"a\"\r\nContent-Transfer-Encoding: base64",
        b"eA==",
    )]);
    assert_eq!(value["attachments"][0]["transfer_encoding"], "base64");
    assert_eq!(
        records[1].header("cmc-attachment-transfer-encoding"),
        Some("base64")
    );
    assert_eq!(records[1].value, b"eA==");
}

#[test]
fn what_is_too_large_for_the_record_goes_as_an_attachment() {
    let html = "あ".repeat(1_000_000);
    for (body, content_type, stored) in [
        (
            format!(r#"{{"server_composition":"pro","subject":"s","html":"{html}","text":"t"}}"#)
                .into_bytes(),
            "application/json".to_owned(),
            format!("\"{html}\""),
        ),
        (
            body(&[
                COMPOSITION,
                SUBJECT,
                ("name=\"html\"", html.as_bytes()),
                ("name=\"text\"", b"t"),
            ]),
            multipart_type(),
            html.clone(),
        ),
    ] {
        let (value, records) = group(&explained(&body, Some(&content_type), &all()), &all());
        assert_eq!(value["html"], json!({"attachment": 1}));
        assert_eq!(value["text"], "t");
        assert_eq!(content(&records, 1), stored.as_bytes());
    }
    // Several middling ones: the largest goes first, and only as many as must.
    let rules = inbound(MailContent::All, 10_000);
    let fields: Vec<String> = (0..6).map(|n| format!("name=\"f{n}\"")).collect();
    let sizes = [1500, 2000, 1000, 4000, 1800, 100];
    let texts: Vec<Vec<u8>> = sizes.iter().map(|size| vec![b'y'; *size]).collect();
    let mut parts = vec![COMPOSITION, SUBJECT];
    parts.extend(
        fields
            .iter()
            .zip(&texts)
            .map(|(name, text)| (name.as_str(), text.as_slice())),
    );
    let (value, _) = group(
        &explained(&super::inbound::body(&parts), Some(&multipart_type()), &rules),
        &rules,
    );
    let moved: Vec<bool> = (0..6).map(|n| value[format!("f{n}")].is_object()).collect();
    assert_eq!(moved, [false, false, false, true, false, false]);
    // Control characters take six bytes each in JSON.
    let rules = inbound(MailContent::All, 10_000);
    let text = vec![1u8; 9000];
    let body = super::inbound::body(&[COMPOSITION, SUBJECT, ("name=\"text\"", &text)]);
    let (value, records) = group(&explained(&body, Some(&multipart_type()), &rules), &rules);
    assert_eq!(value["text"], json!({"attachment": 1}));
    assert_eq!(content(&records, 1), text);
}

#[test]
fn content_can_be_left_out() {
    let parts = [
        COMPOSITION,
        SUBJECT,
        ("name=\"text\"", b"secret"),
        ("name=\"custom\"", b"secret"),
        ("name=\"envelope-to\"", b"a@example.co.jp"),
        ("name=\"attachment1\"; filename=\"a.txt\"", b"secret"),
    ];
    for (kept, text) in [(MailContent::NoAttachments, true), (MailContent::Envelope, false)] {
        let rules = inbound(kept, 1_000_000);
        let understood = explained(&body(&parts), Some(&multipart_type()), &rules);
        let (value, records) = group(&understood, &rules);
        assert_eq!(records.len(), 1);
        assert_eq!(value.get("text").is_some(), text);
        assert_eq!(value.get("custom").is_some(), text);
        assert_eq!(value["envelope-to"], "a@example.co.jp");
        assert_eq!(
            (
                &value["attachments"][0]["parts"],
                &value["attachments"][0]["size"]
            ),
            (&json!(0), &json!(6))
        );
        let (_, batch, _) = understood.split.events.unwrap();
        let holds = memchr::memmem::find(batch.bytes(), b"secret").is_some();
        assert_eq!(holds, text);
    }
}

/// A body that is a dead letter as a whole.
fn dead(understood: &Understood, rules: &Rules) -> (Reason, Vec<u8>) {
    assert!(understood.split.events.is_none());
    let [failure] = &understood.split.failures[..] else {
        panic!("{:?}", understood.split.failures);
    };
    let malformed = understood.malformed.as_ref().unwrap();
    assert_eq!(malformed.reason, failure.reason, "{}", malformed.detail);
    assert_eq!(failure.reason.scope(), crate::dead_letter::Scope::Body);
    let (batch, _) = understood.split.dead_letters.as_ref().unwrap();
    let view = BatchView::decode(batch.bytes()).unwrap();
    let mut letters = crate::dead_letter::LetterAssembler::default();
    let mut found = None;
    for record in &view.records {
        let headers: Vec<_> = view.headers(record).collect();
        let size = alone_in_batch(record.key, headers.iter().copied(), record.value_len());
        assert!(size <= rules.max_record_bytes);
        found = letters.add(record.key, &headers, &record.value()).unwrap();
    }
    let letter = found.unwrap();
    assert_eq!(letter.event_type.as_deref(), Some("inbound"));
    assert_eq!(letter.path.as_deref(), Some("/webhooks/inbound"));
    (letter.reason, letter.value)
}

#[test]
fn what_is_not_understood_is_a_dead_letter_with_all_of_it() {
    let multipart = |parts: &[Part<'_>]| body(parts);
    let good = body(&[COMPOSITION, SUBJECT]);
    let cut = |by: usize| good[..good.len() - by].to_vec();
    let framed = |before: &str, after: &str| [before.as_bytes(), &good, after.as_bytes()].concat();
    let raw = |inside: &str| format!("--{BOUNDARY}{inside}\r\n--{BOUNDARY}--").into_bytes();
    let many: Vec<String> = (0..1001)
        .map(|n| format!("name=\"attachment{n}\"; filename=\"x\""))
        .collect();
    let many: Vec<Part<'_>> = many.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let fields: Vec<String> = (0..66).map(|n| format!("name=\"f{n}\"")).collect();
    let fields: Vec<Part<'_>> = fields.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let long_name = format!("name=\"{}\"", "n".repeat(257));
    let long_header = format!("name=\"a\"; x=\"{}\"", "h".repeat(9000));
    let deep = format!(
        r#"{{"server_composition":"pro","subject":{}1{}}}"#,
        "[".repeat(65),
        "]".repeat(65)
    );
    let long = format!(
        "{{\"server_composition\":\"{}\",\"subject\":\"\"}}",
        "c".repeat(257)
    );
    for (body, json, reason) in [
        (good.clone(), true, Reason::InvalidJson),
        (cut(4), false, Reason::InvalidMultipart),
        (cut(30), false, Reason::InvalidMultipart),
        (framed("text\r\n", ""), false, Reason::InvalidMultipart),
        (framed("", "text"), false, Reason::InvalidMultipart),
        (b"".to_vec(), false, Reason::InvalidMultipart),
        (
            b"--other\r\n\r\n\r\n--other--".to_vec(),
            false,
            Reason::InvalidMultipart,
        ),
        (raw("\r\n\r\nno header"), false, Reason::InvalidMultipart),
        (
            raw("\r\nContent-Disposition: form-data; name=\"a\""),
            false,
            Reason::InvalidMultipart,
        ),
        (
            raw("\r\nContent-Disposition: form-data\r\n\r\nx"),
            false,
            Reason::InvalidMultipart,
        ),
        (
            raw("\r\nContent-Disposition: attachment; name=a\r\n\r\nx"),
            false,
            Reason::InvalidMultipart,
        ),
        (
            raw("\r\nContent-Type: text/plain\r\n\r\nx"),
            false,
            Reason::InvalidMultipart,
        ),
        (raw("\r\nno colon\r\n\r\nx"), false, Reason::InvalidMultipart),
        (
            multipart(&[COMPOSITION, SUBJECT, (&long_name, b"x")]),
            false,
            Reason::InvalidMultipart,
        ),
        (
            multipart(&[COMPOSITION, SUBJECT, (&long_header, b"x")]),
            false,
            Reason::InvalidMultipart,
        ),
        (multipart(&many), false, Reason::TooManyMembers),
        (multipart(&fields), false, Reason::TooManyMembers),
        (
            multipart(&[COMPOSITION, SUBJECT, SUBJECT]),
            false,
            Reason::DuplicateMember,
        ),
        (
            multipart(&[COMPOSITION, COMPOSITION, SUBJECT]),
            false,
            Reason::DuplicateMember,
        ),
        (
            multipart(&[COMPOSITION, SUBJECT, ("name=u", b"1"), ("name=u", b"2")]),
            false,
            Reason::DuplicateMember,
        ),
        (multipart(&[SUBJECT]), false, Reason::MissingServerComposition),
        (multipart(&[]), false, Reason::MissingServerComposition),
        (
            multipart(&[("name=server_composition", b"\xFF"), SUBJECT]),
            false,
            Reason::InvalidServerComposition,
        ),
        // Lines that end in LF alone.
        (
            String::from_utf8(good.clone())
                .unwrap()
                .replace("\r\n", "\n")
                .into_bytes(),
            false,
            Reason::InvalidMultipart,
        ),
        (
            multipart(&[COMPOSITION, SUBJECT, ("name=attachments", b"\xFF")]),
            false,
            Reason::InvalidMail,
        ),
        (
            multipart(&[COMPOSITION, ("name=\"text\"", b"x")]),
            false,
            Reason::InvalidMail,
        ),
        (
            multipart(&[COMPOSITION, SUBJECT, ("name=event_type", b"x")]),
            false,
            Reason::InvalidMail,
        ),
        (deliveries("{}").into_bytes(), true, Reason::InvalidMail),
        (b"[]".to_vec(), true, Reason::BodyNotObject),
        (b"{\"a\":\"\xFF\"}".to_vec(), true, Reason::InvalidUtf8),
        (
            br#"{"server_composition":"pro","subject":"","subject":""}"#.to_vec(),
            true,
            Reason::DuplicateMember,
        ),
        (
            br#"{"server_composition":7,"subject":""}"#.to_vec(),
            true,
            Reason::InvalidServerComposition,
        ),
        (long.into_bytes(), true, Reason::InvalidServerComposition),
        (deep.into_bytes(), true, Reason::TooDeep),
    ] {
        let content_type = match json {
            true => "application/json".to_owned(),
            false => multipart_type(),
        };
        let rules = inbound(MailContent::All, 2000);
        let understood = explained(&body, Some(&content_type), &rules);
        let (found, value) = dead(&understood, &rules);
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        assert_eq!(found, reason, "{shown}");
        assert_eq!(value, body, "{shown}");
    }
    for content_type in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
    ] {
        assert_eq!(
            dead(&explained(&good, Some(content_type), &all()), &all()).0,
            Reason::InvalidMultipart
        );
    }
    for content_type in ["application/x-www-form-urlencoded", "text/plain"] {
        assert_eq!(
            dead(&explained(&good, Some(content_type), &all()), &all()).0,
            Reason::UnsupportedMediaType
        );
    }
}

#[test]
fn a_mail_that_does_not_fit_its_record_is_a_dead_letter() {
    let names: Vec<String> = (1..=300)
        .map(|n| format!("name=\"attachment{n}\"; filename=\"{}\"", "long".repeat(50)))
        .collect();
    let mut parts = vec![COMPOSITION, SUBJECT];
    parts.extend(names.iter().map(|name| (name.as_str(), &b"x"[..])));
    let body = body(&parts);
    let rules = inbound(MailContent::All, 20_000);
    let understood = explained(&body, Some(&multipart_type()), &rules);
    assert_eq!(dead(&understood, &rules), (Reason::MailTooLarge, body.clone()));
    // With a larger limit it is understood.
    group(&explained(&body, Some(&multipart_type()), &all()), &all());
}

#[test]
fn the_key_is_found_and_stored_nowhere() {
    let key: Part<'_> = (
        "name=\"api_key\"\r\nContent-Type: text/plain; charset=UTF-8",
        b"0123456789",
    );
    let open_with = |body: &[u8], content_type: &str, rules: &Rules| {
        let request = Request {
            received_at_micros: RECEIVED_AT,
            path: "/webhooks/inbound",
            content_type: Some(content_type),
            body,
        };
        let media = Media::of(Endpoint::Inbound, [content_type.as_bytes()]);
        open_request(&request, media, rules)
            .api_key
            .map(|key| key.into_owned())
    };
    let file: Part<'_> = ("name=\"api_key\"; filename=\"key.txt\"", b"0123456789");
    let good = body(&[key, COMPOSITION, SUBJECT]);
    let as_file = body(&[file, COMPOSITION, SUBJECT]);
    let bad = body(&[SUBJECT, SUBJECT, key]);
    let twice = body(&[key, key]);
    for (body, found) in [(&good, true), (&as_file, true), (&bad, true), (&twice, false)] {
        let key = open_with(body, &multipart_type(), &all());
        assert_eq!(key.as_deref(), found.then_some("0123456789"));
        let understood = explained(body, Some(&multipart_type()), &all());
        let split = &understood.split;
        let batches = split.events.iter().map(|(_, batch, _)| batch);
        for batch in batches.chain(split.dead_letters.iter().map(|(batch, _)| batch)) {
            assert!(memchr::memmem::find(batch.bytes(), b"0123456789").is_none());
        }
    }
    let json = br#"{"api_key":"0123456789","server_composition":"pro","subject":""}"#;
    assert_eq!(
        open_with(json, "application/json", &all()).as_deref(),
        Some("0123456789")
    );
    let (value, _) = group(&explained(json, None, &all()), &all());
    assert_eq!(value.get("api_key"), None);
}

#[test]
fn without_the_stream_the_path_means_nothing() {
    let split = explained(JSON, None, &rules()).split;
    assert_eq!(reasons(&split), [Reason::MissingEventType]);
}

#[test]
fn mail_on_the_path_of_events_gets_a_hint() {
    for (body, content_type) in [
        (JSON, "application/json"),
        (MULTIPART, "multipart/form-data; boundary=x"),
    ] {
        let request = Request {
            content_type: Some(content_type),
            ..request(body)
        };
        let detail = explain(&request, &rules()).malformed.unwrap().detail;
        assert!(detail.contains("ingest.inbound_path"), "{detail}");
    }
}

#[test]
fn the_batch_is_as_large_as_the_configuration_expects() {
    let many: Vec<String> = (1..=990)
        .map(|n| format!("name=\"attachment{n}\"; filename=\"{}\"", "n".repeat(200)))
        .collect();
    let headers = format!(r#"[{{"name":"Message-ID","value":"{}"}}]"#, "m".repeat(512));
    let big = vec![b'z'; 3_000_000];
    let few: Vec<Part<'_>> = vec![("name=\"attachment1\"; filename=\"big\"", &big)];
    let tiny: Vec<Part<'_>> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    for (files, record) in [
        (&few, 1_000_000),
        (&few, 1024),
        (&few, 4096),
        (&tiny, 1_000_000),
        (&tiny, 300_000),
    ] {
        let rules = inbound(MailContent::All, record);
        let mut parts = vec![COMPOSITION, SUBJECT, ("name=\"headers\"", headers.as_bytes())];
        parts.extend_from_slice(files);
        let body = body(&parts);
        let understood = explained(&body, Some(&multipart_type()), &rules);
        let split = &understood.split;
        let batches = split.events.iter().map(|(_, batch, _)| batch);
        for batch in batches.chain(split.dead_letters.iter().map(|(batch, _)| batch)) {
            let most = most_bytes_of_mail(body.len(), record);
            assert!(
                batch.bytes().len() <= most,
                "{} of {most} at {record}",
                batch.bytes().len()
            );
            assert!(batch.allocated() <= crate::batch::most_allocated(most));
            if split.dead_letters.is_none() {
                // It never grew.
                let spare = batch.allocated() - batch.bytes().len();
                assert!(spare <= 64 * 1024 + batch.bytes().len() / 8, "{spare}");
            }
        }
    }
}

fn arb_content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"--".to_vec()),
        Just(BOUNDARY.as_bytes().to_vec()),
        Just(b"\r\n--".to_vec()),
        Just(b"\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(vec![b'x'; 1500]),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Whether a content has a line that is a delimiter.
fn has_delimiter(content: &[u8]) -> bool {
    let framed = [b"\r\n", content, b"\r\n"].concat();
    let delimiter = format!("\r\n--{BOUNDARY}").into_bytes();
    memchr::memmem::find_iter(&framed, &delimiter).any(|at| {
        let rest = &framed[at + delimiter.len()..];
        let rest = rest.strip_prefix(b"--").unwrap_or(rest);
        let rest = rest.trim_ascii_start_blanks();
        rest.starts_with(b"\r\n")
    })
}

trait Blanks {
    fn trim_ascii_start_blanks(&self) -> &[u8];
}

impl Blanks for [u8] {
    fn trim_ascii_start_blanks(&self) -> &[u8] {
        let blanks = self
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        &self[blanks..]
    }
}

proptest! {
    #[test]
    fn files_come_out_byte_for_byte(
        contents in proptest::collection::vec(arb_content(), 0..6),
        text in ".*",
        record in prop_oneof![Just(1024usize), Just(3000), Just(1_000_000)],
    ) {
        let contents: Vec<_> = contents.into_iter().filter(|content| !has_delimiter(content)).collect();
        prop_assume!(!has_delimiter(text.as_bytes()));
        let names: Vec<String> =
            (1..=contents.len()).map(|n| format!("name=\"attachment{n}\"; filename=\"{n}\"")).collect();
        let mut parts = vec![COMPOSITION, SUBJECT, ("name=\"text\"", text.as_bytes())];
        parts.extend(names.iter().zip(&contents).map(|(name, content)| (name.as_str(), content.as_slice())));
        let rules = inbound(MailContent::All, record);
        let understood = explained(&body(&parts), Some(&multipart_type()), &rules);
        if understood.malformed.as_ref().is_some_and(|malformed| malformed.reason == Reason::MailTooLarge) {
            return Ok(());
        }
        let (value, records) = group(&understood, &rules);
        for (index, content) in (1..).zip(&contents) {
            prop_assert_eq!(&self::content(&records, index), content);
        }
        match value["text"].as_str() {
            Some(found) => prop_assert_eq!(found, text),
            None => {
                let index = value["text"]["attachment"].as_u64().unwrap() as usize;
                prop_assert_eq!(self::content(&records, index), text.as_bytes());
            }
        }
    }

    #[test]
    fn no_body_panics_or_vanishes(
        mut body in arb_content(),
        frame in 0..3u8,
        cut in 0..2000usize,
    ) {
        if frame > 0 {
            body = super::inbound::body(&[COMPOSITION, SUBJECT, ("name=\"attachment1\"", &body)]);
        }
        if frame > 1 {
            body.truncate(cut);
        }
        for content_type in [None, Some("application/json"), Some("multipart/form-data; boundary=\"----=_Part_7_1\"")] {
            let understood = explained(&body, content_type, &all());
            let split = &understood.split;
            prop_assert_eq!(split.events.is_some(), split.dead_letters.is_none());
        }
    }
}
