//! Text from strangers, made harmless for terminals and logs.
//!
//! A character *steers* if a terminal obeys it or if it changes how the text around it is shown: control
//! characters (C0, DEL, C1), line and paragraph separators, marks, overrides and isolates of direction, characters of no
//! width, fillers, annotations, tags, and controls of shorthand, music and hieroglyphs. Variation selectors don't steer:
//! Japanese names and pictures have them.
//!
//! [`visible`] turns a text into one line. [`Plain`] wraps a terminal or a log and lets no steering character through except line
//! end and tab; it writes `\uXXXX` instead, so that JSON keeps its meaning.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

/// Whether the character steers.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0xAD | 0x34F | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2
            | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F
            | 0x3164 | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A
            | 0xE0000..=0xE00FF | 0xE01F0..=0xE0FFF)
}

/// A text on one line, with a space for each line end and tab, and `U+FFFD` for any other character that steers.
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if steers(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// What may pass in addition to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Line ends and tabs.
    Lines,
    /// Plain colours and weights as well.
    LinesAndColours,
}

/// Escapes the characters that steer.
pub fn escaped(text: &str, passes: Passes) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let may_pass = matches!(c, '\n' | '\t')
            || c == '\u{1b}'
                && passes == Passes::LinesAndColours
                && text.get(at + 1..).is_some_and(is_colour);
        if may_pass || !steers(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a String can't fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

/// Whether the text after an escape character selects a plain colour or weight.
fn is_colour(behind: &str) -> bool {
    let code = behind.strip_prefix('[').and_then(|rest| rest.split_once('m'));
    code.is_some_and(|(code, _)| {
        matches!(
            code,
            "0" | "1" | "2" | "3" | "4" | "31" | "32" | "33" | "34" | "35" | "36"
        )
    })
}

/// A writer of UTF-8 that escapes what steers. Bytes that are not UTF-8 become `U+FFFD`.
#[derive(Debug)]
pub struct Plain<W> {
    out: W,
    /// The beginning of a character whose end has not been written yet.
    begun: Vec<u8>,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W) -> Plain<W> {
        Plain {
            out,
            begun: Vec::new(),
        }
    }
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let cut = match std::str::from_utf8(&all) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => all.len(),
        };
        self.begun = all.split_off(cut);
        let text = String::from_utf8_lossy(&all);
        self.out.write_all(escaped(&text, Passes::Lines).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEERING: &str = "\0\u{7}\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{2028}\u{2029}\u{202e}\u{2060}\
        \u{2066}\u{2069}\u{3164}\u{feff}\u{fff9}\u{e0001}\u{e0041}\u{e007f}";

    #[test]
    fn what_steers_is_not_visible() {
        for c in STEERING.chars() {
            assert!(steers(c), "{c:?}");
            assert_eq!(visible(&format!("a{c}b")), "a\u{fffd}b", "{c:?}");
        }
        let text = "aé十月 葛\u{e0100}飾 ☎\u{fe0f} 😀\u{301}\u{a0}";
        assert_eq!(visible(text), text);
        assert_eq!(visible("a\r\n\tb"), "a   b");
    }

    #[test]
    fn json_stays_the_same_json() {
        let text = format!("十月{STEERING}😀");
        let line = serde_json::to_string(&text).unwrap();
        let shown = escaped(&line, Passes::Lines);
        assert!(!shown.chars().any(steers), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }

    #[test]
    fn characters_may_come_in_pieces() {
        let text = "十\u{202e}月\u{e0041}\n\u{9b}a";
        for size in 1..text.len() {
            let mut plain = Plain::new(Vec::new());
            for piece in text.as_bytes().chunks(size) {
                plain.write_all(piece).unwrap();
            }
            let shown = String::from_utf8(plain.out).unwrap();
            assert_eq!(shown, "十\\u202e月\\udb40\\udc41\n\\u009ba");
        }
        let mut plain = Plain::new(Vec::new());
        plain.write_all(b"a\xffb\xe5\x8d").unwrap();
        plain.write_all(b"c").unwrap();
        assert_eq!(String::from_utf8(plain.out).unwrap(), "a\u{fffd}b\u{fffd}c");
    }
}
