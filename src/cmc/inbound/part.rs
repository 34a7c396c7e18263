//! The header of a part: the name of its field, a file name, types.

use std::borrow::Cow;

use super::file_name;

/// What the header of a part says.
pub(super) struct PartHeader<'a> {
    /// The name of its field.
    pub name: Cow<'a, [u8]>,
    /// The file name, decoded, and as received if that differs.
    pub file_name: Option<(String, Option<Vec<u8>>)>,
    pub content_type: Option<Cow<'a, [u8]>>,
    /// A `Content-Transfer-Encoding` other than 7bit, 8bit and binary.
    pub transfer_encoding: Option<Cow<'a, [u8]>>,
}

impl<'a> PartHeader<'a> {
    /// Reads a header without its last line break. The error says what is wrong.
    pub fn read(header: &'a [u8]) -> Result<PartHeader<'a>, &'static str> {
        let (mut disposition, mut content_type, mut transfer_encoding) = (None, None, None);
        for line in unfolded(header) {
            let colon = memchr::memchr(b':', &line).ok_or("a line in the header of a part has no colon")?;
            let (name, value) = match line {
                Cow::Borrowed(line) => (
                    Cow::Borrowed(&line[..colon]),
                    Cow::Borrowed(line[colon + 1..].trim_ascii()),
                ),
                Cow::Owned(line) => (
                    Cow::Owned(line[..colon].to_vec()),
                    Cow::Owned(line[colon + 1..].trim_ascii().to_vec()),
                ),
            };
            let field = match name.trim_ascii() {
                name if name.eq_ignore_ascii_case(b"content-disposition") => &mut disposition,
                name if name.eq_ignore_ascii_case(b"content-type") => &mut content_type,
                name if name.eq_ignore_ascii_case(b"content-transfer-encoding") => &mut transfer_encoding,
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err("the header of a part has a field twice");
            }
        }
        let disposition = disposition.ok_or("a part has no Content-Disposition")?;
        if !essence_is(&disposition, b"form-data") {
            return Err("the Content-Disposition of a part is not form-data");
        }
        let parameters = Parameters::of(&disposition);
        let name = parameters.plain(b"name").ok_or("a part has no name")?;
        Ok(PartHeader {
            name: Cow::Owned(name),
            file_name: file_name::of(&parameters),
            content_type: content_type.filter(|value| !value.is_empty()),
            transfer_encoding: transfer_encoding.filter(|value| !is_plain(value)),
        })
    }
}

fn is_plain(transfer_encoding: &[u8]) -> bool {
    let plain: [&[u8]; 4] = [b"", b"7bit", b"8bit", b"binary"];
    plain
        .iter()
        .any(|name| transfer_encoding.eq_ignore_ascii_case(name))
}

/// The lines of a header. A line that begins with a blank continues the one before it.
fn unfolded(header: &[u8]) -> Vec<Cow<'_, [u8]>> {
    let mut lines: Vec<Cow<'_, [u8]>> = Vec::new();
    for line in header.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match lines.last_mut() {
            Some(last) if matches!(line.first(), Some(b' ' | b'\t')) => last.to_mut().extend_from_slice(line),
            _ => lines.push(Cow::Borrowed(line)),
        }
    }
    lines
}

/// Whether the value before the first parameter is this one.
pub(super) fn essence_is(value: &[u8], wanted: &[u8]) -> bool {
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    value[..end].trim_ascii().eq_ignore_ascii_case(wanted)
}

/// The charset that a content type declares.
pub(super) fn charset(content_type: &[u8]) -> Option<Vec<u8>> {
    Parameters::of(content_type)
        .plain(b"charset")
        .filter(|label| !label.is_empty())
}

/// The parameters of a header field, such as `form-data; name="a"; filename="b"`.
pub(super) struct Parameters(Vec<(Vec<u8>, Vec<u8>)>);

impl Parameters {
    /// Reads the parameters. What is none is skipped.
    pub fn of(value: &[u8]) -> Parameters {
        let mut found = Vec::new();
        let mut rest = after(value, b';');
        while !rest.is_empty() {
            let end = rest
                .iter()
                .position(|byte| matches!(byte, b'=' | b';'))
                .unwrap_or(rest.len());
            let name = rest[..end].trim_ascii().to_ascii_lowercase();
            rest = &rest[end..];
            let Some(value) = rest.strip_prefix(b"=") else {
                rest = after(rest, b';');
                continue;
            };
            let value = value.trim_ascii_start();
            let text = match value.strip_prefix(b"\"") {
                Some(quoted) => {
                    let (text, tail) = unquote(quoted);
                    rest = after(tail, b';');
                    text
                }
                None => {
                    let end = memchr::memchr(b';', value).unwrap_or(value.len());
                    rest = after(&value[end..], b';');
                    value[..end].trim_ascii().to_vec()
                }
            };
            found.push((name, text));
        }
        Parameters(found)
    }

    /// The value of the first parameter with this name, as received.
    pub fn plain(&self, name: &[u8]) -> Option<Vec<u8>> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }

    /// All of them: name in lower case, value.
    pub fn all(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.0
    }
}

/// What follows the first such byte.
fn after(text: &[u8], byte: u8) -> &[u8] {
    memchr::memchr(byte, text).map_or(&[], |at| &text[at + 1..])
}

/// The contents of a quoted string, and what follows its end. A backslash quotes only a quote or a backslash: some clients
/// send the path of a file with single backslashes. A quote ends the string only before a semicolon or at the end: some clients
/// don't quote those of a file name.
fn unquote(quoted: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut text = Vec::new();
    let mut rest = quoted;
    while let Some((byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'"', tail) if matches!(tail.trim_ascii_start(), [] | [b';', ..]) => return (text, tail),
            (b'\\', [next @ (b'"' | b'\\'), tail @ ..]) => {
                text.push(*next);
                rest = tail;
            }
            _ => {
                text.push(*byte);
                rest = tail;
            }
        }
    }
    (text, rest)
}
