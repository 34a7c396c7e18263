//! A received mail as a group of records: first the mail, then its attachments in parts; `docs/events.md` is the contract.
//!
//! A group is one batch, so it becomes durable as a whole, and a lane sends it in one transaction. All records have the same
//! key, so they stand in one partition, in order:
//!
//! - *The mail* is flat JSON: `event_type` and `server_composition`, the fields in the order received, `attachments`.
//! - *An attachment* is each file, and each field that has no place in the mail's record: because it could not be decoded, or
//!   because the record would be too large (the largest field goes first). In place of such a field stands
//!   `{"attachment":<index>}`.
//! - Its *parts* hold the bytes as received. No part is larger than `kafka.max_record_bytes` allows, and there is room left for the
//!   headers of a dead letter: so a refused record still fits one letter. An empty attachment has one part.
//!
//! The id of the mail is that of its fields and files as received ([`super::id`]), so it depends neither on the boundary of the
//! multipart body nor on the configuration. The ids of the parts follow from it.
//!
//! Memory: the batch holds each byte of a file once, and each field once. JSON escapes a text at most sixfold, but only texts that
//! may fit the record together. [`most_bytes`] is the sum.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::{
    event::{Common, MAIL_TYPE, RecordLimit, is_attribute, prefix},
    id::Ids,
    inbound::{EVENT_TYPE, MOST_PARTS},
    json::{Cursor, JsonKind},
    mail::{FieldValue, Mail},
    request::Request,
    rules::{MAX_KEY, MailContent, Rules},
};
use crate::{
    batch::{Batch, BatchBuilder, alone_in_batch},
    stream::{Stream, Tally},
};

/// The type of the records that hold parts of attachments.
const ATTACHMENT_TYPE: &str = "jp.smtps.cmc.inbound.attachment";
/// Room in each record for the headers of a dead letter.
const LETTER_HEADERS: usize = 512;
/// Least room for the value of a part, however large its headers.
const LEAST_PART: usize = 1024;
/// A smaller field has no reason to leave the record of the mail.
const LEAST_MOVED: usize = 1024;
/// The fields that `streams.inbound.content = "envelope"` keeps.
const ENVELOPE: [&str; 5] = ["filter", "headers", "subject", "envelope-from", "envelope-to"];

/// The maximum size in the spool, in bytes, of what a received mail becomes, given the maximum sizes of its body and of a record.
pub fn most_bytes(body: usize, record: usize) -> usize {
    /// Key, id, number and lengths of a part, twice: a dead letter may need as many parts.
    const PART: usize = MAX_KEY + 192;
    /// Headers that the parts of an attachment share; they are stored once for each attachment. They come from the body's own
    /// part headers, and stand in the record of the mail as well.
    const ATTACHMENT: usize = MAX_KEY + 768;
    let parts = body / record.saturating_sub(8 << 10).max(LEAST_PART) + 1;
    // A record of the mail is at most one record.
    body + body / 8 + record + parts * PART + (MOST_PARTS + 64).min(body / 64) * ATTACHMENT + (8 << 10)
}

/// The mail does not fit its record, whatever is moved out of it.
#[derive(Debug)]
pub(super) struct MailTooLarge;

/// An attachment: a file, or a field that has no place in the record of the mail.
struct Attachment<'m> {
    /// What the list in the mail's record says of it; without size, hash and number of parts.
    about: String,
    content_type: Cow<'m, [u8]>,
    name: Option<&'m str>,
    original_name: Option<&'m [u8]>,
    /// The field that it takes the place of.
    member: Option<&'m str>,
    transfer_encoding: Option<&'m [u8]>,
    content: &'m [u8],
    /// Of the content, in hexadecimal.
    sha256: String,
    /// Whether its content is left out.
    omitted: bool,
}

/// A field in the record of the mail.
struct Member<'m> {
    name: &'m str,
    quoted: &'m str,
    value: &'m FieldValue<'m>,
    /// The value as JSON, if it is small enough.
    json: Option<Cow<'m, str>>,
    /// The index of the attachment that holds the value.
    moved: Option<usize>,
}

/// Makes the records of a mail.
pub(super) fn split_mail(
    mail: &Mail<'_>,
    composition: &str,
    rules: &Rules,
    request: &Request<'_>,
) -> Result<(Batch, Tally), MailTooLarge> {
    let content = rules
        .inbound
        .as_ref()
        .map_or(MailContent::All, |inbound| inbound.content);
    let ids = Ids::new(EVENT_TYPE, composition);
    let mut buffer = [0; 36];
    let id = ids.of_mail(mail, &mut buffer).to_owned();
    let header = |name| mail.field("headers").and_then(|headers| header_in(headers, name));
    let message_id = header("Message-ID").filter(|id| !id.is_empty() && id.len() <= MAX_KEY);
    let time = header("Date").and_then(|date| time_of(&date));
    let key = message_id.as_deref().unwrap_or(&id);

    let common = Common::new(Stream::Inbound, composition, request.received_at_micros);
    let mut headers = common.shared().to_vec();
    if let Some(subject) = message_id.as_deref().filter(|id| is_attribute(id)) {
        headers.push(("ce_subject", subject.as_bytes()));
    }
    if let Some(time) = &time {
        headers.push(("ce_time", time.as_bytes()));
    }
    let own: [(&str, &[u8]); 3] = [
        ("ce_id", id.as_bytes()),
        ("ce_type", MAIL_TYPE.as_bytes()),
        ("content-type", b"application/json"),
    ];

    let mut attachments: Vec<Attachment<'_>> = mail.files.iter().map(|file| of_file(file, content)).collect();
    let mut members: Vec<Member<'_>> = mail
        .fields
        .iter()
        .filter(|field| content != MailContent::Envelope || ENVELOPE.contains(&&*field.name))
        .map(|field| Member {
            name: &field.name,
            quoted: &field.quoted,
            value: &field.value,
            json: None,
            moved: None,
        })
        .collect();
    move_what_can_not_fit(&mut members, &mut attachments, rules.max_record_bytes);
    let limit = RecordLimit::new(rules.max_record_bytes.saturating_sub(LETTER_HEADERS), &headers);
    let value = loop {
        let value = value(&members, &attachments, mail, composition, &limit, key);
        match value {
            Some(value) if !limit.is_passed(Some(key.as_bytes()), &own, value.len()) => break value,
            _ => move_largest(&mut members, &mut attachments)?,
        }
    };

    let capacity = capacity(key, &headers, &value, &attachments, &limit);
    let mut batch = BatchBuilder::new(request.received_at_micros, &headers, b"", capacity);
    let mut tally = Tally::default();
    batch.push(Some(key.as_bytes()), &own, &[value.as_bytes()]);
    tally.count(Stream::Inbound, Some("mail"));
    for (index, attachment) in (1..).zip(&attachments).filter(|(_, one)| !one.omitted) {
        let about = About::new(index, attachment, &id, attachment.parts(key, &limit));
        let size = attachment.part_bytes(key, &limit);
        for number in 1..=about.count {
            let begin = (number - 1) * size;
            let end = (begin + size).min(attachment.content.len());
            let name = format!("{id}/{index}/{number}");
            let part_id = ids.id(name.as_bytes(), &mut buffer);
            let part = number.to_string();
            let own: [(&str, &[u8]); 2] = [
                ("ce_id", part_id.as_bytes()),
                ("cmc-attachment-part", part.as_bytes()),
            ];
            batch.push_repeating(
                Some(key.as_bytes()),
                &about.headers(attachment),
                &own,
                &[&attachment.content[begin..end]],
            );
            tally.count(Stream::Inbound, Some("attachment"));
        }
    }
    Ok((batch.finish(), tally))
}

fn of_file<'m>(file: &'m super::mail::MailFile<'m>, content: MailContent) -> Attachment<'m> {
    let mut about = format!(r#""field":{}"#, json_text(file.field.as_bytes()));
    let mut add = |name: &str, value: Option<&[u8]>| {
        if let Some(value) = value {
            about.push_str(&format!(r#","{name}":{}"#, json_text(value)));
        }
    };
    add("name", file.name.as_deref().map(str::as_bytes));
    add("original_name", file.original_name.as_deref());
    add("content_type", Some(&file.content_type));
    add("transfer_encoding", file.transfer_encoding.as_deref());
    Attachment {
        about,
        content_type: Cow::Borrowed(&file.content_type),
        name: file.name.as_deref(),
        original_name: file.original_name.as_deref(),
        member: None,
        transfer_encoding: file.transfer_encoding.as_deref(),
        content: file.content,
        sha256: sha256(file.content),
        omitted: content != MailContent::All,
    }
}

fn of_member<'m>(member: &Member<'m>) -> Attachment<'m> {
    let content_type = match member.value {
        FieldValue::Json(_) => Cow::Borrowed(&b"application/json"[..]),
        FieldValue::Text(_) => Cow::Borrowed(&b"text/plain; charset=utf-8"[..]),
        FieldValue::Bytes { content_type, .. } => Cow::Borrowed(&**content_type),
    };
    let content = member.value.bytes();
    let transfer_encoding = match member.value {
        FieldValue::Bytes {
            transfer_encoding, ..
        } => transfer_encoding.as_deref(),
        _ => None,
    };
    let mut about = format!(
        r#""member":{},"content_type":{}"#,
        member.quoted,
        json_text(&content_type)
    );
    if let Some(encoding) = transfer_encoding {
        about.push_str(&format!(r#","transfer_encoding":{}"#, json_text(encoding)));
    }
    Attachment {
        about,
        content_type,
        name: None,
        original_name: None,
        member: Some(member.name),
        transfer_encoding,
        content,
        sha256: sha256(content),
        omitted: false,
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Bytes as a JSON string.
fn json_text(bytes: &[u8]) -> String {
    serde_json::Value::from(&*String::from_utf8_lossy(bytes)).to_string()
}

/// A value as JSON; `None` if it can't be.
fn json_of<'m>(value: &'m FieldValue<'_>) -> Option<Cow<'m, str>> {
    match value {
        FieldValue::Json(json) => Some(Cow::Borrowed(json)),
        FieldValue::Text(text) => Some(Cow::Owned(serde_json::Value::from(&**text).to_string())),
        FieldValue::Bytes { .. } => None,
    }
}

/// The record of the mail; `None` if a field must be moved first.
fn value(
    members: &[Member<'_>],
    attachments: &[Attachment<'_>],
    mail: &Mail<'_>,
    composition: &str,
    limit: &RecordLimit<'_>,
    key: &str,
) -> Option<String> {
    let size: usize = members.iter().map(|member| member.len()).sum();
    if size > limit.max_record_bytes || members.iter().any(|m| m.json.is_none() && m.moved.is_none()) {
        return None;
    }
    let mut value = prefix(Stream::Inbound, composition);
    for member in members {
        value.push(',');
        value.push_str(member.quoted);
        value.push(':');
        match (&member.json, member.moved) {
            (Some(json), None) => value.push_str(json),
            (_, moved) => value.push_str(&format!(r#"{{"attachment":{}}}"#, moved.unwrap_or_default())),
        }
    }
    value.push_str(r#","attachments":["#);
    for (index, attachment) in (1..).zip(attachments) {
        if index > 1 {
            value.push(',');
        }
        let parts = match attachment.omitted {
            true => 0,
            false => attachment.parts(key, limit),
        };
        value.push_str(&format!(
            r#"{{"index":{index},{},"size":{},"sha256":"{}","parts":{parts}}}"#,
            attachment.about,
            attachment.content.len(),
            attachment.sha256,
        ));
    }
    value.push(']');
    if let Some(announced) = &mail.announced {
        value.push_str(r#","attachments_announced":"#);
        value.push_str(announced);
    }
    value.push('}');
    Some(value)
}

impl<'m> Member<'m> {
    fn move_into(&mut self, attachments: &mut Vec<Attachment<'m>>) {
        attachments.push(of_member(self));
        self.moved = Some(attachments.len());
        self.json = None;
    }

    /// Bytes in the record of the mail.
    fn len(&self) -> usize {
        let value = match self.moved {
            Some(_) => 0,
            None => self.json.as_ref().map_or(0, |json| json.len()),
        };
        self.quoted.len() + value
    }
}

/// Moves the largest fields into attachments until the others may fit the record, and makes JSON of those. JSON is never shorter
/// than the text, but up to six times as long: so only what may fit costs that.
fn move_what_can_not_fit<'m>(members: &mut [Member<'m>], attachments: &mut Vec<Attachment<'m>>, most: usize) {
    let size = |member: &Member<'_>| member.value.bytes().len();
    let mut left: usize = members.iter().map(size).sum();
    while left > most
        && let Some(largest) = members
            .iter_mut()
            .filter(|member| member.moved.is_none() && size(member) >= LEAST_MOVED)
            .max_by_key(|member| size(member))
    {
        left -= size(largest);
        largest.move_into(attachments);
    }
    for member in members.iter_mut().filter(|member| member.moved.is_none()) {
        member.json = json_of(member.value);
    }
}

/// Moves a field into an attachment: one that can't be JSON, or the largest.
fn move_largest<'m>(
    members: &mut [Member<'m>],
    attachments: &mut Vec<Attachment<'m>>,
) -> Result<(), MailTooLarge> {
    let size = |member: &Member<'_>| member.json.as_ref().map_or(usize::MAX, |json| json.len());
    let largest = members
        .iter_mut()
        .filter(|member| member.moved.is_none())
        .max_by_key(|member| size(member))
        .filter(|member| size(member) >= LEAST_MOVED)
        .ok_or(MailTooLarge)?;
    largest.move_into(attachments);
    Ok(())
}

impl Attachment<'_> {
    /// Bytes of each part but the last.
    fn part_bytes(&self, key: &str, limit: &RecordLimit<'_>) -> usize {
        let about = About::new(usize::MAX, self, "", usize::MAX);
        let widest: [(&str, &[u8]); 3] = [
            ("ce_id", &[0; 36]),
            // The id of the mail, which is missing above.
            ("cmc-attachment-part", &[0; 20]),
            ("", &[0; 36]),
        ];
        let about = about.headers(self);
        let headers = limit.common.iter().chain(&about).chain(&widest).copied();
        let most = limit.max_record_bytes;
        let overhead = alone_in_batch(Some(key.as_bytes()), headers, most).saturating_sub(most);
        most.saturating_sub(overhead).max(LEAST_PART)
    }

    /// Number of parts.
    fn parts(&self, key: &str, limit: &RecordLimit<'_>) -> usize {
        self.content.len().div_ceil(self.part_bytes(key, limit)).max(1)
    }
}

/// The headers that the parts of an attachment share.
struct About {
    mail_id: String,
    index: String,
    parts: String,
    size: String,
    count: usize,
}

impl About {
    fn new(index: usize, attachment: &Attachment<'_>, mail_id: &str, parts: usize) -> About {
        About {
            mail_id: mail_id.to_owned(),
            index: index.to_string(),
            parts: parts.to_string(),
            size: attachment.content.len().to_string(),
            count: parts,
        }
    }

    fn headers<'h>(&'h self, attachment: &'h Attachment<'_>) -> Vec<(&'h str, &'h [u8])> {
        let optional: [(&str, Option<&[u8]>); 4] = [
            ("cmc-attachment-name", attachment.name.map(str::as_bytes)),
            ("cmc-attachment-name-original", attachment.original_name),
            ("cmc-attachment-member", attachment.member.map(str::as_bytes)),
            ("cmc-attachment-transfer-encoding", attachment.transfer_encoding),
        ];
        let mut headers: Vec<(&str, &[u8])> = vec![
            ("ce_type", ATTACHMENT_TYPE.as_bytes()),
            ("content-type", &attachment.content_type),
            ("cmc-mail-id", self.mail_id.as_bytes()),
            ("cmc-attachment-index", self.index.as_bytes()),
        ];
        headers.extend(
            optional
                .iter()
                .filter_map(|(name, value)| Some((*name, (*value)?))),
        );
        headers.push(("cmc-attachment-size", self.size.as_bytes()));
        headers.push(("cmc-attachment-sha256", attachment.sha256.as_bytes()));
        headers.push(("cmc-attachment-parts", self.parts.as_bytes()));
        headers
    }
}

/// An upper bound of the size of the batch, so that it is never copied to grow.
fn capacity(
    key: &str,
    common: &[(&str, &[u8])],
    value: &str,
    attachments: &[Attachment<'_>],
    limit: &RecordLimit<'_>,
) -> usize {
    /// Lengths, ids and numbers of a record; names of headers.
    const RECORD: usize = 160;
    const NAMES: usize = 512;
    let bytes_of = |headers: &[(&str, &[u8])]| -> usize {
        headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 12)
            .sum()
    };
    let parts: usize = attachments
        .iter()
        .filter(|attachment| !attachment.omitted)
        .map(|attachment| {
            let about = About::new(usize::MAX, attachment, "", usize::MAX);
            let headers = bytes_of(&about.headers(attachment)) + 36;
            attachment.content.len() + headers + attachment.parts(key, limit) * (key.len() + RECORD)
        })
        .sum();
    bytes_of(common) + value.len() + key.len() + RECORD + NAMES + parts
}

/// The value of the first header of the mail with this name, in any case, without blanks around it.
fn header_in(headers: &FieldValue<'_>, wanted: &str) -> Option<String> {
    let FieldValue::Json(list) = headers else {
        return None;
    };
    let mut cursor = Cursor::new(list);
    if cursor.peek() != b'[' {
        return None;
    }
    cursor.enter();
    while cursor.element() {
        if cursor.peek() != b'{' {
            cursor.value();
            continue;
        }
        cursor.enter();
        let (mut name, mut value) = (None, None);
        while let Some(member) = cursor.member() {
            let JsonKind::String(text) = cursor.value().kind else {
                continue;
            };
            match member.decode(list).as_deref() {
                Some("name") => name = text.decode(list),
                Some("value") => value = Some(text),
                _ => {}
            }
        }
        if name.is_some_and(|name| name.eq_ignore_ascii_case(wanted)) {
            return Some(value?.decode(list)?.trim().to_owned());
        }
    }
    None
}

/// The time of a `Date` header in RFC 3339, with its own offset.
fn time_of(date: &str) -> Option<String> {
    /// No date is longer.
    const LONGEST: usize = 200;
    let date = Some(date).filter(|date| date.len() <= LONGEST)?;
    // Many programs write the wrong day of the week.
    let parser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    let time = parser.parse_zoned_datetime(date).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}
