//! A received mail as its webhook brought it: fields, and files. It borrows from the body.

use std::borrow::Cow;

use super::json::Quoted;

/// A received mail, without `api_key` and `server_composition`.
pub struct Mail<'a> {
    /// The fields, in the order in which they came.
    pub(super) fields: Vec<Field<'a>>,
    /// The files, in the order in which they came.
    pub(super) files: Vec<MailFile<'a>>,
    /// The announced number of attachments as JSON text, if it is not the number of files.
    pub(super) announced: Option<String>,
}

impl<'a> Mail<'a> {
    /// The value of a field.
    pub(super) fn field(&self, name: &str) -> Option<&FieldValue<'a>> {
        let field = self.fields.iter().find(|field| field.name == name);
        field.map(|field| &field.value)
    }
}

/// A field that is no file.
pub(super) struct Field<'a> {
    pub name: Cow<'a, str>,
    /// The name as a JSON string, as received if it came as one.
    pub quoted: Cow<'a, str>,
    pub value: FieldValue<'a>,
}

/// The value of a field.
pub(super) enum FieldValue<'a> {
    /// JSON text, to be passed on verbatim.
    Json(Cow<'a, str>),
    Text(Cow<'a, str>),
    /// What can't be decoded, or is too large for that.
    Bytes {
        bytes: &'a [u8],
        content_type: Cow<'a, [u8]>,
        /// As for a [`MailFile`].
        transfer_encoding: Option<Cow<'a, [u8]>>,
    },
}

impl<'a> FieldValue<'a> {
    /// The text, if the value is text or a JSON string.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        match self {
            FieldValue::Text(text) => Some(text.clone()),
            FieldValue::Json(Cow::Borrowed(json)) => decode(json),
            FieldValue::Json(Cow::Owned(json)) => decode(json).map(|text| Cow::Owned(text.into_owned())),
            FieldValue::Bytes { .. } => None,
        }
    }

    /// The bytes that stand for the value in the id of the mail, and in a record of its own.
    pub fn bytes(&self) -> &[u8] {
        match self {
            FieldValue::Json(text) | FieldValue::Text(text) => text.as_bytes(),
            FieldValue::Bytes { bytes, .. } => bytes,
        }
    }
}

fn decode(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    let quoted = Quoted {
        span: 0..inside.len(),
        escaped: inside.contains('\\'),
    };
    quoted.decode(inside)
}

/// A file of a multipart body.
pub(super) struct MailFile<'a> {
    /// The name of its field.
    pub field: Cow<'a, str>,
    /// Its file name, decoded.
    pub name: Option<String>,
    /// Its file name as received, if that differs.
    pub original_name: Option<Vec<u8>>,
    pub content_type: Cow<'a, [u8]>,
    /// The `Content-Transfer-Encoding` that the content still has, if it is not a plain one.
    pub transfer_encoding: Option<Cow<'a, [u8]>>,
    pub content: &'a [u8],
}
