//! Reading JSON without changing it.
//!
//! [`validate`] lets serde_json check a text once, from its first byte to its last. A [`Cursor`] then walks the valid
//! text and answers in [`Span`]s, so that what is passed on verbatim is a slice of what was received. Neither
//! recurses: nesting costs a counter, not stack. A cursor never reads beyond the text, whatever the text is; on a
//! text that was not validated its answers are meaningless.

use std::{borrow::Cow, ops::Range};

use memchr::memchr;
use serde::de::IgnoredAny;

use super::{malformed::Malformed, request::BOM};
use crate::dead_letter::Reason;

/// A range of a text, in bytes.
pub(super) type Span = Range<usize>;

/// The text of `bytes`, which must be one valid JSON value in UTF-8.
pub(super) fn validate(bytes: &[u8]) -> Result<&str, Malformed> {
    // In UTF-16 and UTF-32, zeros stand beside the first character of every JSON text; in UTF-8 there are none.
    if let [0, ..] | [_, 0, ..] | [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] = bytes {
        let detail = "the JSON text is UTF-16 or UTF-32; it must be UTF-8";
        return Err(Malformed::new(Reason::InvalidUtf8, Some(0), detail));
    }
    if bytes.starts_with(BOM) {
        let detail = "the JSON text begins with a byte order mark, which JSON does not allow";
        return Err(Malformed::new(Reason::InvalidJson, Some(0), detail));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        Malformed::new(Reason::InvalidUtf8, Some(offset), "the JSON text is not UTF-8")
    })?;
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(IgnoredAny) => Ok(text),
        Err(error) => Err(Malformed::new(
            Reason::InvalidJson,
            Some(offset_of(text, &error)),
            error.to_string(),
        )),
    }
}

/// Whether the text is one valid JSON value.
pub(super) fn is_valid(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// serde_json gives line and column (in bytes); this is the offset in bytes.
fn offset_of(text: &str, error: &serde_json::Error) -> usize {
    if error.is_eof() {
        return text.len();
    }
    let line_start = text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| *byte == b'\n')
        .nth(error.line().wrapping_sub(2))
        .map_or(0, |(at, _)| at + 1);
    (line_start + error.column().saturating_sub(1)).min(text.len())
}

/// The contents of a JSON string, still escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quoted {
    pub span: Span,
    /// Whether it contains a backslash.
    pub escaped: bool,
}

impl Quoted {
    /// The decoded text; `None` if it contains a lone surrogate, which no UTF-8 text can.
    pub fn decode<'t>(&self, text: &'t str) -> Option<Cow<'t, str>> {
        let raw = &text[self.span.clone()];
        if !self.escaped {
            return Some(Cow::Borrowed(raw));
        }
        let mut out = String::with_capacity(raw.len());
        unescape(raw, &mut out)?;
        Some(Cow::Owned(out))
    }

    /// The decoded text if it has at most `most` bytes, without an allocation of its own.
    pub fn decode_up_to<'t>(&self, most: usize, text: &'t str, scratch: &'t mut String) -> Option<&'t str> {
        /// Length of the longest escape of one byte.
        const ESCAPE: usize = 6;
        let raw = &text[self.span.clone()];
        let decoded = if self.escaped {
            if raw.len() > most * ESCAPE {
                return None;
            }
            scratch.clear();
            unescape(raw, scratch)?;
            scratch.as_str()
        } else {
            raw
        };
        (decoded.len() <= most).then_some(decoded)
    }
}

/// The kinds of JSON value that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JsonKind {
    String(Quoted),
    Object,
    List,
    /// Number, `true`, `false` or `null`.
    Scalar,
}

/// One JSON value.
#[derive(Debug)]
pub(super) struct JsonValue {
    pub span: Span,
    pub kind: JsonKind,
    /// Levels of objects and lists, counting the outermost as one; zero for other values.
    pub depth: usize,
}

/// A position in a valid JSON text.
pub(super) struct Cursor<'t> {
    bytes: &'t [u8],
    /// The next byte to read.
    pub at: usize,
}

impl<'t> Cursor<'t> {
    pub fn new(text: &'t str) -> Self {
        Cursor {
            bytes: text.as_bytes(),
            at: 0,
        }
    }

    /// The byte here; at the end zero, which occurs in no valid JSON text.
    fn byte(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    /// The next byte that is not white space, with the cursor on it.
    pub fn peek(&mut self) -> u8 {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    /// Enters the object or list that begins here.
    pub fn enter(&mut self) {
        self.at += 1;
    }

    /// The name of the next member of the object that the cursor is in; leaves the cursor at the member's value.
    /// `None` after the last one; leaves the cursor after the object.
    pub fn member(&mut self) -> Option<Quoted> {
        match self.peek() {
            b'}' => {
                self.at += 1;
                return None;
            }
            0 => return None,
            b',' => {
                self.at += 1;
                self.peek();
            }
            _ => {}
        }
        let name = self.quoted();
        self.peek();
        self.at += 1; // the colon
        self.peek();
        Some(name)
    }

    /// Whether the list that the cursor is in has another element; leaves the cursor at it, or after the list.
    pub fn element(&mut self) -> bool {
        match self.peek() {
            b']' => {
                self.at += 1;
                false
            }
            0 => false,
            b',' => {
                self.at += 1;
                self.peek();
                true
            }
            _ => true,
        }
    }

    /// Skips the string that begins here.
    fn quoted(&mut self) -> Quoted {
        let start = self.at + 1;
        let mut escaped = false;
        self.at = start;
        loop {
            self.at += plain_run(self.bytes.get(self.at..).unwrap_or_default());
            match self.byte() {
                b'"' => {
                    let span = start..self.at;
                    self.at += 1;
                    return Quoted { span, escaped };
                }
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => {
                    self.at = self.bytes.len();
                    return Quoted {
                        span: self.at..self.at,
                        escaped,
                    };
                }
            }
        }
    }

    /// Skips the value that begins here.
    pub fn value(&mut self) -> JsonValue {
        let start = self.at;
        let mut depth = 0;
        let kind = match self.byte() {
            b'"' => JsonKind::String(self.quoted()),
            b'{' => {
                depth = self.container();
                JsonKind::Object
            }
            b'[' => {
                depth = self.container();
                JsonKind::List
            }
            _ => {
                while !matches!(self.byte(), b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t' | 0) {
                    self.at += 1;
                }
                JsonKind::Scalar
            }
        };
        JsonValue {
            span: start..self.at,
            kind,
            depth,
        }
    }

    /// Skips the object or list that begins here; returns its greatest depth.
    fn container(&mut self) -> usize {
        let mut depth = 0usize;
        let mut greatest = 0;
        loop {
            match self.byte() {
                b'"' => {
                    self.quoted();
                    continue;
                }
                b'{' | b'[' => {
                    depth += 1;
                    greatest = greatest.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                0 => return greatest,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return greatest;
            }
        }
    }
}

/// The number of bytes before the first `"` or backslash. Eight bytes are checked together: most of the time of
/// reading a body goes here.
fn plain_run(bytes: &[u8]) -> usize {
    let mut run = 0;
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        let at = first_of(word, b'"', b'\\');
        run += at;
        if at < 8 {
            return run;
        }
        rest = tail;
    }
    let last = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
    run + last.unwrap_or(rest.len())
}

/// The position of the first of two bytes in a word; 8 if it has neither.
pub(super) fn first_of(word: &[u8; 8], one: u8, other: u8) -> usize {
    const LOW: u64 = u64::from_le_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    /// Marks the high bit of each byte that is equal, and possibly of bytes after the first such one.
    fn equal(word: u64, byte: u8) -> u64 {
        let zero_where_equal = word ^ (LOW * u64::from(byte));
        zero_where_equal.wrapping_sub(LOW) & !zero_where_equal & HIGH
    }
    let word = u64::from_le_bytes(*word);
    let found = equal(word, one) | equal(word, other);
    found.trailing_zeros() as usize / 8
}

/// Appends the decoded contents of a JSON string; `None` (and an unfinished `out`) if it contains a lone surrogate.
pub(super) fn unescape(raw: &str, out: &mut String) -> Option<()> {
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        rest = rest.get(at + 1..)?;
        let (decoded, used) = match *rest.as_bytes().first()? {
            b'b' => ('\u{8}', 1),
            b'f' => ('\u{c}', 1),
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => code_point(rest)?,
            other => (char::from(other), 1),
        };
        out.push(decoded);
        rest = rest.get(used..)?;
    }
    out.push_str(rest);
    Some(())
}

/// The character of `uXXXX` or of a surrogate pair `uXXXX\uXXXX`, and its length in bytes.
fn code_point(escape: &str) -> Option<(char, usize)> {
    let unit = |at: usize| u32::from_str_radix(escape.get(at..at + 4)?, 16).ok();
    let high = unit(1)?;
    if !(0xD800..0xDC00).contains(&high) {
        return Some((char::from_u32(high)?, 5));
    }
    if escape.get(5..7)? != "\\u" {
        return None;
    }
    let low = unit(7)?;
    if !(0xDC00..0xE000).contains(&low) {
        return None;
    }
    let combined = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    Some((char::from_u32(combined)?, 11))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes_as_serde_json_does() {
        for text in [
            r#""""#,
            r#""plain""#,
            r#""\u003Ca@b\u003E""#,
            r#""\"\\\/\b\f\n\r\t""#,
            r#""\ud83d\ude00 \u5341月""#,
            r#""\ud83d""#,
            r#""\ud83d\u0041""#,
            r#""\ude00""#,
            r#""\ud83dx\ude00""#,
            r#""\ud83d\ud83d\ude00""#,
        ] {
            let expected = serde_json::from_str::<String>(text).ok();
            let mut out = String::new();
            let decoded = unescape(&text[1..text.len() - 1], &mut out).map(|()| out);
            assert_eq!(decoded, expected, "{text}");
        }
    }

    #[test]
    fn offsets_name_the_byte() {
        for (text, offset) in [
            ("", 0),
            ("{", 1),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{\n\n \"a\":?}", 8),
            ("十", 0),
            ("{\"十\":x}", 7),
            ("{} x", 3),
            ("{\"a\":\"\\x\"}", 7),
        ] {
            let error = validate(text.as_bytes()).unwrap_err();
            assert_eq!(error.reason, Reason::InvalidJson);
            assert_eq!(error.offset, Some(offset), "{text}: {}", error.detail);
        }
        let error = validate(b"{\"a\":\"\xE5\x8D\"}").unwrap_err();
        assert_eq!((error.reason, error.offset), (Reason::InvalidUtf8, Some(6)));
    }

    #[test]
    fn plain_runs_end_at_the_first_quote_or_backslash() {
        let filler: Vec<u8> = (0..=255).filter(|byte| !b"\"\\".contains(byte)).collect();
        for length in 0..40 {
            for offset in 0..filler.len() - length {
                let mut bytes = filler[offset..offset + length].to_vec();
                assert_eq!(plain_run(&bytes), length);
                for end in [b'"', b'\\'] {
                    bytes.truncate(length);
                    bytes.push(end);
                    bytes.extend_from_slice(b"abc\"\\#]!");
                    assert_eq!(plain_run(&bytes), length);
                }
            }
        }
    }

    #[test]
    fn values_have_their_kind_span_and_depth() {
        for (text, kind, depth) in [
            ("{ }", JsonKind::Object, 1),
            ("[[],[[\"]\"]]]", JsonKind::List, 3),
            ("-1.50e+3", JsonKind::Scalar, 0),
            ("null", JsonKind::Scalar, 0),
        ] {
            let framed = format!("{text}  ,");
            let mut cursor = Cursor::new(&framed);
            let value = cursor.value();
            assert_eq!(
                (value.span, value.kind, value.depth),
                (0..text.len(), kind, depth)
            );
        }
    }
}
