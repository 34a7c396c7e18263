//! Reading JSON without changing it.
//!
//! A [`Cursor`] walks a text and answers in [`Span`]s, so that what is passed on verbatim is a slice of what was received. It
//! checks what it walks over, so that the text of nearly every webhook is read once. serde_json judges the rest
//! ([`Cursor::finish`]): texts in which the cursor found a fault, to say which, and those with containers that it skipped
//! without a look at their grammar. Until then, the cursor's answers are provisional.
//!
//! Neither recurses: nesting costs a counter, not stack. A cursor comes to the text's end whatever the text is.

use std::{borrow::Cow, ops::Range};

use memchr::memchr;
use serde::de::IgnoredAny;

use super::{malformed::Malformed, request::BOM};
use crate::dead_letter::Reason;

/// A range of a text, in bytes.
pub(super) type Span = Range<usize>;

/// The text of `bytes`, which must be one valid JSON value in UTF-8.
pub(super) fn validate(bytes: &[u8]) -> Result<&str, Malformed> {
    let text = text_of(bytes)?;
    judge(text)?;
    Ok(text)
}

/// The text of `bytes`, which must be UTF-8. The text may still not be JSON.
pub(super) fn text_of(bytes: &[u8]) -> Result<&str, Malformed> {
    // In UTF-16 and UTF-32, zeros stand beside the first character of every JSON text; in UTF-8 there are none.
    if let [0, ..] | [_, 0, ..] | [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] = bytes {
        let detail = "the JSON text is UTF-16 or UTF-32; it must be UTF-8";
        return Err(Malformed::new(Reason::InvalidUtf8, Some(0), detail));
    }
    if bytes.starts_with(BOM) {
        let detail = "the JSON text begins with a byte order mark, which JSON does not allow";
        return Err(Malformed::new(Reason::InvalidJson, Some(0), detail));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        Malformed::new(Reason::InvalidUtf8, Some(offset), "the JSON text is not UTF-8")
    })
}

fn judge(text: &str) -> Result<(), Malformed> {
    let error = match serde_json::from_str::<IgnoredAny>(text) {
        Ok(IgnoredAny) => return Ok(()),
        Err(error) => error,
    };
    let offset = offset_of(text, &error);
    Err(Malformed::new(
        Reason::InvalidJson,
        Some(offset),
        error.to_string(),
    ))
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

/// A position in a JSON text.
///
/// Its small methods are inlined: handing a [`Quoted`] over through memory took as long as reading a short string.
pub(super) struct Cursor<'t> {
    text: &'t str,
    /// The next byte to read.
    pub at: usize,
    /// Whether the innermost object or list was just entered, so that no comma precedes what follows.
    first: bool,
    /// Whether what was walked over is valid JSON, as far as that can be told without serde_json.
    certain: bool,
}

impl<'t> Cursor<'t> {
    pub fn new(text: &'t str) -> Self {
        Cursor {
            text,
            at: 0,
            first: false,
            certain: true,
        }
    }

    /// Whether the text is valid JSON, once the cursor has walked over its value.
    ///
    /// # Errors
    /// It is not; says why, and where.
    pub fn finish(mut self) -> Result<(), Malformed> {
        self.peek();
        match self.certain && self.at == self.text.len() {
            true => Ok(()),
            false => judge(self.text),
        }
    }

    /// The byte here; at the end zero, which occurs in no valid JSON text.
    fn byte(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    /// The text is not valid JSON. Nothing of it is read any more.
    fn fail(&mut self) {
        self.certain = false;
        self.at = self.text.len();
    }

    /// The next byte that is not white space, with the cursor on it.
    #[inline(always)]
    pub fn peek(&mut self) -> u8 {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    /// Enters the object or list that begins here.
    pub fn enter(&mut self) {
        self.at += 1;
        self.first = true;
    }

    /// The name of the next member of the object that the cursor is in; leaves the cursor at the member's value.
    /// `None` after the last one; leaves the cursor after the object.
    #[inline(always)]
    pub fn member(&mut self) -> Option<Quoted> {
        if !self.another(b'}') {
            return None;
        }
        if self.byte() != b'"' {
            self.fail();
            return None;
        }
        let name = self.quoted();
        if self.peek() != b':' {
            self.fail();
            return None;
        }
        self.at += 1;
        self.peek();
        Some(name)
    }

    /// Whether the list that the cursor is in has another element; leaves the cursor at it, or after the list.
    pub fn element(&mut self) -> bool {
        self.another(b']')
    }

    /// Whether the container that the cursor is in goes on; leaves the cursor at what follows, or after the container.
    #[inline(always)]
    fn another(&mut self, end: u8) -> bool {
        let first = std::mem::take(&mut self.first);
        match (self.peek(), first) {
            (byte, _) if byte == end => {
                self.at += 1;
                false
            }
            (b',', false) => {
                self.at += 1;
                self.peek();
                true
            }
            (0 | b',', _) | (_, false) => {
                self.fail();
                false
            }
            (_, true) => true,
        }
    }

    /// Skips the string that begins here.
    #[inline(always)]
    fn quoted(&mut self) -> Quoted {
        let start = self.at + 1;
        let mut escaped = false;
        self.at = start;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let run = plain_run(rest);
            self.at += run;
            match &rest[run..] {
                [b'"', ..] => {
                    let span = start..self.at;
                    self.at += 1;
                    return Quoted { span, escaped };
                }
                [b'\\', escape, rest @ ..] => match (escape, rest) {
                    (b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', _) => self.at += 2,
                    (b'u', [a, b, c, d, ..]) if [a, b, c, d].iter().all(|byte| byte.is_ascii_hexdigit()) => {
                        self.at += 6;
                    }
                    _ => break,
                },
                // A control character, or the end.
                _ => break,
            }
            escaped = true;
        }
        self.fail();
        Quoted {
            span: self.at..self.at,
            escaped,
        }
    }

    /// Skips the value that begins here.
    #[inline(always)]
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
                if !is_scalar(&self.text.as_bytes()[start..self.at]) {
                    self.fail();
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
    #[inline(never)]
    fn container(&mut self) -> usize {
        self.certain = false;
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

/// Whether this is a number, `true`, `false` or `null`.
fn is_scalar(text: &[u8]) -> bool {
    /// What follows the digits, of which there must be one.
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then(|| &text[count..])
    }
    fn number(text: &[u8]) -> Option<&[u8]> {
        let mut rest = match text.strip_prefix(b"-").unwrap_or(text) {
            [b'0', rest @ ..] => rest,
            digits_first => digits(digits_first)?,
        };
        if let [b'.', fraction @ ..] = rest {
            rest = digits(fraction)?;
        }
        if let [b'e' | b'E', exponent @ ..] = rest {
            let ([b'+' | b'-', unsigned @ ..] | unsigned) = exponent;
            rest = digits(unsigned)?;
        }
        Some(rest)
    }
    matches!(text, b"true" | b"false" | b"null") || number(text).is_some_and(<[u8]>::is_empty)
}

const LOW: u64 = u64::from_le_bytes([0x01; 8]);
const HIGH: u64 = u64::from_le_bytes([0x80; 8]);

/// Marks the high bit of each byte that is below `limit`, and possibly of bytes after the first such one. The limit is at most
/// 0x80.
fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(LOW * u64::from(limit)) & !word & HIGH
}

/// The same for bytes that are equal.
fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ (LOW * u64::from(byte)), 1)
}

/// The number of bytes before the first `"`, backslash or control character. Eight bytes are checked together: most of the
/// time of reading a body goes here.
fn plain_run(bytes: &[u8]) -> usize {
    let mut run = 0;
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        let found = equal(word, b'"') | equal(word, b'\\') | below(word, b' ');
        if found != 0 {
            return run + found.trailing_zeros() as usize / 8;
        }
        run += 8;
        rest = tail;
    }
    let last = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
    run + last.unwrap_or(rest.len())
}

/// The position of the first of two bytes in a word; 8 if it has neither.
pub(super) fn first_of(word: &[u8; 8], one: u8, other: u8) -> usize {
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
    fn plain_runs_end_at_the_first_quote_backslash_or_control_character() {
        let filler: Vec<u8> = (b' '..=255).filter(|byte| !b"\"\\".contains(byte)).collect();
        for length in 0..40 {
            for offset in 0..filler.len() - length {
                let mut bytes = filler[offset..offset + length].to_vec();
                assert_eq!(plain_run(&bytes), length);
                for end in [b'"', b'\\', 0, 0x1F] {
                    bytes.truncate(length);
                    bytes.push(end);
                    bytes.extend_from_slice(b"abc\"\\#]!");
                    assert_eq!(plain_run(&bytes), length);
                }
            }
        }
    }

    /// Walks over the value at the cursor, into every container.
    fn walk(cursor: &mut Cursor<'_>) {
        match cursor.peek() {
            b'{' => {
                cursor.enter();
                while cursor.member().is_some() {
                    walk(cursor);
                }
            }
            b'[' => {
                cursor.enter();
                while cursor.element() {
                    walk(cursor);
                }
            }
            _ => drop(cursor.value()),
        }
    }

    /// Walks over `text`, and requires that the cursor finds it valid, without help, if serde_json does.
    fn judges_as_serde_json(text: &str) {
        let mut cursor = Cursor::new(text);
        walk(&mut cursor);
        cursor.peek();
        let alone = cursor.certain && cursor.at == text.len();
        assert_eq!(alone, is_valid(text), "{text:?}");
        assert_eq!(cursor.finish().is_ok(), alone);
    }

    /// Every text of at most `most` of these pieces between two others.
    fn every_text(before: &str, pieces: &[&str], most: u32, after: &str) {
        let base = pieces.len();
        for length in 0..=most {
            for mut number in 0..base.pow(length) {
                let mut text = before.to_owned();
                for _ in 0..length {
                    text.push_str(pieces[number % base]);
                    number /= base;
                }
                text.push_str(after);
                judges_as_serde_json(&text);
            }
        }
    }

    #[test]
    fn a_cursor_judges_as_serde_json_does() {
        let grammar = ["{", "}", "[", "]", ":", ",", "\"\"", "0", " "];
        every_text("", &grammar, 5, "");
        every_text("{\"\":[", &grammar, 4, "]}");
        every_text("[{\"\":0", &grammar, 4, "}]");
        let characters = ["\\", "\"", "u", "0", "F", "n", "/", "x", "\u{1f}", "十"];
        every_text("{\"", &characters, 4, "\":0}");
        every_text("\"\\u00", &characters, 4, "\"");
        every_text("[", &["-", "0", "12", ".", "e", "E", "+", "x", "\0"], 5, "]");
        every_text(
            "",
            &["true", "false", "null", "t", "nul", "l", " ", "\u{a0}", "\n"],
            3,
            "",
        );
    }

    #[test]
    fn a_skipped_container_is_left_to_serde_json() {
        for (text, valid) in [("[{\"a\":1}]", true), ("[{\"a\"}]", false)] {
            let mut cursor = Cursor::new(text);
            cursor.value();
            assert!(!cursor.certain);
            assert_eq!(cursor.finish().is_ok(), valid);
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
