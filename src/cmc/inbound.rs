//! Webhooks of received mail: from a body to a [`Mail`].
//!
//! A webhook brings one mail, as JSON or as `multipart/form-data`. The members of the JSON object, or the parts of the multipart
//! body, are its *fields*. The rules:
//!
//! - `api_key` is judged and cut out. `server_composition` is required. `attachments` is the number of attachments; it is passed
//!   on only if it differs from the number of files. `headers` is a list of objects with `name` and `value`; if it is such a list
//!   as a string, the string's contents take its place, otherwise it stays as it is. All other fields are passed on as they are,
//!   unknown ones too.
//! - Each part with a file name, and each part named `attachment` and a number, is a file; `api_key` never is.
//! - A text part is decoded from the charset that its `Content-Type` declares, by default UTF-8. If it can't be decoded, or if the
//!   texts that are not UTF-8 have more than [`MOST_DECODED`] bytes together, its bytes are kept.
//! - A `Content-Transfer-Encoding` is not removed (the sender has none, and RFC 7578 allows none in HTTP), but it is passed on: a
//!   text that has one counts as bytes.
//! - File names may be raw UTF-8, encoded words, or extended parameters: [`file_name`].
//! - A body is malformed if it is neither JSON nor a multipart body that ends with its closing boundary; if a field occurs twice,
//!   has no name, or is one of `event_type`, `event` and `attachments_announced`; if `attachments` can't be decoded; if there are
//!   none of `headers`, `envelope-from`, `envelope-to` and `subject`; or if it exceeds a limit: [`MAX_MEMBERS`] fields,
//!   [`MOST_PARTS`] parts, [`multipart::MOST_HEADER`] bytes in the header of a part, [`MOST_NAME`] bytes in the name of a field, [`MAX_DEPTH`] levels in
//!   a JSON value, [`MAX_COMPOSITION`](super::MAX_COMPOSITION) bytes of `server_composition`.
//!
//! A malformed body becomes a dead letter as a whole, and so does a mail that does not fit its first record
//! ([`group`](super::group)). There is nothing in between: a mail goes on whole or not at all.
//!
//! Reading costs no copy of the body: files and UTF-8 text are slices of it. That, and one pass, is why the parts are found
//! here and not by a crate that streams them.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`file_name`] | file names: encoded words, extended parameters |
//! | [`multipart`] | finds the parts of a multipart body |
//! | [`part`] | the header of a part: name, file name, content type |

mod file_name;
mod multipart;
mod part;

use std::{borrow::Cow, collections::BTreeSet};

use encoding_rs::UTF_8;

use self::{multipart::boundary_of, part::PartHeader};
use super::{
    charset::{decode, encoding},
    envelope::{Content, Opened, StringMember, composition},
    json::{self, Cursor},
    mail::{Field, FieldValue, Mail, MailFile},
    malformed::Malformed,
    request::{BodyEncoding, Request},
    rules::{MAX_DEPTH, MAX_MEMBERS},
};
use crate::dead_letter::Reason;

/// What stands for `event_type` in the records and dead letters of received mail.
pub(super) const EVENT_TYPE: &str = "inbound";
/// Maximum number of parts of a multipart body.
pub const MOST_PARTS: usize = 1000;
/// Maximum length of a field's name in bytes.
const MOST_NAME: usize = 256;
/// Maximum size of all texts of a mail that are decoded from another charset than UTF-8, in bytes.
const MOST_DECODED: usize = 2 << 20;
/// The content type of a part that has none.
const UNKNOWN_TYPE: &[u8] = b"application/octet-stream";

/// Opens the body of a webhook of received mail.
pub(super) fn open<'a>(request: &Request<'a>, encoding: BodyEncoding) -> Opened<'a> {
    match encoding {
        BodyEncoding::Json => open_json(request.body),
        _ => open_multipart(request),
    }
}

fn open_json(body: &[u8]) -> Opened<'_> {
    let mut fields = Collector::default();
    let text = match json::validate(body) {
        Ok(text) => text,
        Err(malformed) => return Opened::closed_mail(malformed),
    };
    let mut cursor = Cursor::new(text);
    if cursor.peek() != b'{' {
        let detail = "the body is not a JSON object";
        return Opened::closed_mail(Malformed::new(Reason::BodyNotObject, Some(cursor.at), detail));
    }
    cursor.enter();
    while let Some(name) = cursor.member() {
        let value = cursor.value();
        let at = value.span.start;
        if value.depth > MAX_DEPTH {
            let detail = format!("a field is nested more than {MAX_DEPTH} levels deep");
            fields.note(Malformed::new(Reason::TooDeep, Some(at), detail));
        }
        let quoted = &text[name.span.start - 1..name.span.end + 1];
        // A name that is no text (half a surrogate pair) still is a name.
        let decoded = name.decode(text).unwrap_or(Cow::Borrowed(quoted));
        let value = FieldValue::Json(Cow::Borrowed(&text[value.span]));
        fields.add(decoded, Cow::Borrowed(quoted), value, at);
    }
    fields.finish()
}

fn open_multipart<'a>(request: &Request<'a>) -> Opened<'a> {
    let mut fields = Collector::default();
    let boundary = match boundary_of(request) {
        Ok(boundary) => boundary,
        Err(malformed) => return Opened::closed_mail(malformed),
    };
    let mut parts = multipart::Parts::new(request.body, &boundary);
    let mut count = 0;
    // After a fault, what follows still matters: it may be the key.
    while let Some(part) = parts.next() {
        let part = match part {
            Ok(part) => part,
            Err(malformed) => {
                fields.note(malformed);
                break;
            }
        };
        count += 1;
        if count > MOST_PARTS {
            let detail = format!("the body has more than {MOST_PARTS} parts");
            fields.note(Malformed::new(Reason::TooManyMembers, Some(part.at), detail));
            break;
        }
        match PartHeader::read(part.header) {
            Ok(header) => fields.add_part(header, part.content, part.at),
            Err(detail) => fields.note(Malformed::new(Reason::InvalidMultipart, Some(part.at), detail)),
        }
    }
    fields.finish()
}

/// Collects the fields of a mail.
#[derive(Default)]
struct Collector<'a> {
    names: BTreeSet<Cow<'a, str>>,
    api_key: Option<Cow<'a, str>>,
    server_composition: StringMember<'a>,
    /// As JSON text.
    announced: Option<String>,
    fields: Vec<Field<'a>>,
    files: Vec<MailFile<'a>>,
    /// How much text was decoded, in bytes as received.
    decoded: usize,
    malformed: Option<Malformed>,
}

impl<'a> Collector<'a> {
    /// Notes a fault; the first one counts.
    fn note(&mut self, malformed: Malformed) {
        self.malformed.get_or_insert(malformed);
    }

    /// Whether this is the first field of this name.
    fn is_new(&mut self, name: Cow<'a, str>, at: usize) -> bool {
        let is_key = name == "api_key";
        if self.names.insert(name) {
            return true;
        }
        if is_key {
            self.api_key = None;
        }
        let detail = "a field occurs more than once";
        self.note(Malformed::new(Reason::DuplicateMember, Some(at), detail));
        false
    }

    fn add_part(&mut self, header: PartHeader<'a>, content: &'a [u8], at: usize) {
        let name = match String::from_utf8(header.name.into_owned()) {
            Ok(name) if name.len() <= MOST_NAME => Cow::Owned(name),
            _ => {
                let detail = format!("the name of a field is not UTF-8, or longer than {MOST_NAME} bytes");
                return self.note(Malformed::new(Reason::InvalidMultipart, Some(at), detail));
            }
        };
        let content_type = header.content_type.unwrap_or(Cow::Borrowed(UNKNOWN_TYPE));
        let is_file = header.file_name.is_some() || is_attachment(&name);
        if !is_file || name == "api_key" {
            let quoted = serde_json::Value::from(&*name).to_string();
            let value = match self.text(content, &content_type) {
                Some(text) if header.transfer_encoding.is_none() => FieldValue::Text(text),
                _ => FieldValue::Bytes {
                    bytes: content,
                    content_type,
                    transfer_encoding: header.transfer_encoding,
                },
            };
            return self.add(name, Cow::Owned(quoted), value, at);
        }
        if self.is_new(name.clone(), at) {
            let (name_of_file, original_name) = header.file_name.unzip();
            self.files.push(MailFile {
                field: name,
                name: name_of_file,
                original_name: original_name.flatten(),
                content_type,
                transfer_encoding: header.transfer_encoding,
                content,
            });
        }
    }

    /// The text of a part that is no file; `None` if it can't be decoded.
    fn text(&mut self, content: &'a [u8], content_type: &[u8]) -> Option<Cow<'a, str>> {
        let label = part::charset(content_type);
        let encoding = label.as_deref().map_or(Some(UTF_8), encoding)?;
        if encoding == UTF_8 {
            return std::str::from_utf8(content).ok().map(Cow::Borrowed);
        }
        let decoded = self.decoded + content.len();
        if decoded > MOST_DECODED {
            return None;
        }
        self.decoded = decoded;
        decode(encoding, content)
    }

    fn add(&mut self, name: Cow<'a, str>, quoted: Cow<'a, str>, value: FieldValue<'a>, at: usize) {
        if !self.is_new(name.clone(), at) {
            return;
        }
        match &*name {
            "api_key" => self.api_key = value.text(),
            "server_composition" => {
                self.server_composition = value
                    .text()
                    .map_or(StringMember::Unusable(Some(at)), StringMember::Found);
            }
            "attachments" => match announced(&value) {
                Some(announced) => self.announced = Some(announced),
                None => self.note(Malformed::new(
                    Reason::InvalidMail,
                    Some(at),
                    "the number of attachments can't be decoded",
                )),
            },
            "event_type" | "event" | "attachments_announced" => self.note(Malformed::new(
                Reason::InvalidMail,
                Some(at),
                "the webhook has a field that no received mail has (event_type, event or attachments_announced)",
            )),
            _ if self.fields.len() == MAX_MEMBERS => {
                let detail = format!("the mail has more than {MAX_MEMBERS} fields");
                self.note(Malformed::new(Reason::TooManyMembers, Some(at), detail));
            }
            "headers" => {
                let value = list_in(&value).map_or(value, FieldValue::Json);
                self.fields.push(Field { name, quoted, value });
            }
            _ => self.fields.push(Field { name, quoted, value }),
        }
    }

    fn finish(mut self) -> Opened<'a> {
        let content = self.judge();
        let mail = content.map(|()| {
            Content::Mail(Mail {
                announced: self
                    .announced
                    .filter(|announced| *announced != self.files.len().to_string()),
                fields: self.fields,
                files: self.files,
            })
        });
        Opened {
            api_key: self.api_key,
            event_type: Some(Cow::Borrowed(EVENT_TYPE)),
            server_composition: self.server_composition.found(),
            content: mail,
            encoding: None,
        }
    }

    fn judge(&mut self) -> Result<(), Malformed> {
        if let Some(malformed) = self.malformed.take() {
            return Err(malformed);
        }
        composition(&self.server_composition)?;
        let is_mail = ["headers", "envelope-from", "envelope-to", "subject"];
        if !is_mail.iter().any(|name| self.names.contains(*name)) {
            let detail = "the webhook is no received mail: it has none of headers, envelope-from, envelope-to and subject";
            return Err(Malformed::new(Reason::InvalidMail, None, detail));
        }
        Ok(())
    }
}

/// Whether a field of this name is a file.
fn is_attachment(name: &str) -> bool {
    let number = name.strip_prefix("attachment");
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The announced number of attachments as JSON text: a number if it is one, else what was received. `None` if it is no text.
fn announced(value: &FieldValue<'_>) -> Option<String> {
    match (value.text(), value) {
        (Some(text), _) => Some(match text.trim().parse::<u64>() {
            Ok(number) => number.to_string(),
            Err(_) => serde_json::Value::from(&*text).to_string(),
        }),
        (None, FieldValue::Json(json)) => Some(json.to_string()),
        (None, _) => None,
    }
}

/// The JSON list that a text holds, if it holds one.
fn list_in<'a>(value: &FieldValue<'a>) -> Option<Cow<'a, str>> {
    let text = value.text()?;
    let is_list = text.trim_ascii_start().starts_with('[') && json::is_valid(&text);
    (is_list && Cursor::new(text.trim_ascii_start()).value().depth <= MAX_DEPTH).then_some(text)
}
