//! The value that belongs to a name of the key, wherever both are.
//!
//! What follows a name shows what kind of name it is: `"` and `:` a JSON member, `=` a form field, `>` an XML
//! element; a part of a multipart body has `name=` before it. The first character after the name also shows how many
//! encodings wrap all this: `%5C%22` is a quote in a JSON string in a form. The value is then read through the same
//! layers to its end. If the text begins like JSON, the bottom layer is a JSON string.
//!
//! In valid JSON a value ends where JSON says. Elsewhere nothing is certain, and masking too much is better than too
//! little.

use std::ops::Range;

use memchr::memmem;

use super::spelling::{DEPTH, Layer, is_lead, read};

/// How a value is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// With `*`.
    Stars,
    /// With a JSON string of `*`: the value is not a string, and the text around it must stay JSON.
    String,
}

/// A text whose names are examined from beginning to end.
pub(super) struct Values<'t> {
    text: &'t [u8],
    /// Whether the text begins like JSON.
    json: bool,
    /// Whether it is read as a form nevertheless.
    form: bool,
    /// Whether it is valid JSON; determined at the first name.
    valid: Option<bool>,
    /// The end of the values found so far.
    done: usize,
    /// The end of the first blank line after the last position searched from; the length of the text if there is
    /// none.
    blank: usize,
}

impl<'t> Values<'t> {
    /// `form`: the text is read as a form, whatever it looks like.
    pub fn new(text: &'t [u8], form: bool) -> Self {
        // A byte order mark may precede it, in UTF-8 or UTF-16.
        let first = text.iter().find(|byte| byte.is_ascii_graphic());
        Values {
            text,
            json: matches!(first, Some(b'{' | b'[' | b'"')),
            form,
            valid: None,
            done: 0,
            blank: 0,
        }
    }

    /// The value that belongs to the name at this position; `None` if there is none, or if the name is part of
    /// another value.
    pub fn of(&mut self, name: Range<usize>) -> Option<(Range<usize>, Fill)> {
        if name.end <= self.done {
            return None;
        }
        let (value, fill) = self.find(name)?;
        self.done = self.done.max(value.end);
        (!value.is_empty()).then_some((value, fill))
    }

    fn find(&mut self, name: Range<usize>) -> Option<(Range<usize>, Fill)> {
        let mut chars = self.behind(name.end)?;
        let quoted = matches!(chars.peek(), Some(b'"' | b'\''));
        if quoted {
            chars.pass();
        }
        chars.pass_space(!self.json);
        let stars = |value| Some((value, Fill::Stars));
        match chars.peek() {
            Some(b':') if quoted || !self.is_valid() => {
                chars.pass();
                chars.pass_space(false);
                self.member(chars)
            }
            Some(b'=') => stars(self.field(name.start, chars)),
            Some(b'>') => {
                chars.pass();
                stars(chars.pass_until(|byte| byte == b'<'))
            }
            _ => stars(self.part(name)?),
        }
    }

    /// What follows a name, read through the fewest layers in which its first character makes sense; `None` at the
    /// end, or if there are too many layers.
    fn behind(&self, at: usize) -> Option<Chars<'t>> {
        let chars = |layers| Chars {
            text: self.text,
            layers,
            at,
        };
        let first = *self.text.get(at)?;
        if !is_lead(first) {
            let in_string = self.json && !self.form && first == b'=';
            return Some(chars(if in_string {
                vec![Layer::Escapes]
            } else {
                Vec::new()
            }));
        }
        for depth in 1..=DEPTH {
            for choice in 0..1 << depth {
                let layer = |level| match choice >> level & 1 {
                    0 => Layer::Percent,
                    _ => Layer::Escapes,
                };
                let chars = chars((0..depth).map(layer).collect());
                if self.json && chars.layers.first() != Some(&Layer::Escapes) {
                    continue;
                }
                if chars.peek().is_some_and(|byte| !is_lead(byte)) {
                    return Some(chars);
                }
            }
        }
        None
    }

    fn is_valid(&mut self) -> bool {
        let json = self.json;
        let valid = || json && serde_json::from_slice::<serde::de::IgnoredAny>(self.text).is_ok();
        *self.valid.get_or_insert_with(valid)
    }

    /// The value of a JSON member.
    fn member(&mut self, mut chars: Chars<'_>) -> Option<(Range<usize>, Fill)> {
        let start = chars.at;
        match chars.peek()? {
            quote @ (b'"' | b'\'') => {
                chars.pass();
                return Some((chars.pass_string(quote), Fill::Stars));
            }
            b'[' | b'{' => chars.pass_container(),
            _ => {
                chars.pass_until(|byte| b",}]&\"'".contains(&byte) || byte.is_ascii_whitespace());
            }
        }
        let fill = match chars.layers.is_empty() && self.is_valid() {
            true => Fill::String,
            false => Fill::Stars,
        };
        Some((start..chars.at, fill))
    }

    /// The value of a form field, with `chars` at the `=`. Below another layer, and in what looks like JSON, the form
    /// may be inside a JSON string; but not if the body itself is read as a form and the name begins a field.
    fn field(&self, name: usize, mut chars: Chars<'_>) -> Range<usize> {
        let begins = self.form && matches!(self.text.get(..name), Some([] | [.., b'&']));
        let plain = self.text.get(chars.at) == Some(&b'=') && (begins || !self.json);
        chars.pass();
        if plain {
            chars.layers.clear();
            let lines = self.text.starts_with(b"--");
            return chars.pass_until(|byte| byte == b'&' || lines && matches!(byte, b'\r' | b'\n'));
        }
        let start = chars.at;
        loop {
            chars.layers.push(Layer::Escapes);
            chars.pass_until(|byte| byte == b'&');
            let ended = chars.peek().is_some();
            chars.layers.pop();
            // A quote ends the string if JSON continues after it; otherwise it is part of the value.
            let quote = chars.at;
            chars.pass();
            let goes_on = chars.ahead().is_none_or(|byte| b",}]:".contains(&byte));
            if ended || goes_on {
                return start..quote;
            }
        }
    }

    /// The value of a part of a multipart body.
    fn part(&mut self, name: Range<usize>) -> Option<Range<usize>> {
        let before = self.text.get(..name.start)?;
        let before = before.strip_suffix(b"\"").unwrap_or(before);
        let is = |end: &[u8]| {
            let tail = before
                .len()
                .checked_sub(end.len())
                .and_then(|at| before.get(at..));
            tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        };
        if !is(b"name=") && !is(b"''") {
            return None;
        }
        if self.blank < name.end {
            let behind = self.text.get(name.end..)?;
            let blank = memmem::find_iter(behind, b"\n").find_map(|at| {
                let next = behind.get(at + 1..)?;
                let next = next.strip_prefix(b"\r").unwrap_or(next);
                next.starts_with(b"\n").then_some(behind.len() - next.len() + 1)
            });
            self.blank = blank.map_or(self.text.len(), |at| name.end + at);
        }
        let value = self.text.get(self.blank..)?;
        let len = memmem::find(value, b"\n--").unwrap_or(value.len());
        let line_end = value.get(..len)?.last() == Some(&b'\r');
        Some(self.blank..self.blank + len - usize::from(line_end))
    }
}

/// The characters after a name, read through layers.
struct Chars<'t> {
    text: &'t [u8],
    layers: Vec<Layer>,
    at: usize,
}

impl Chars<'_> {
    fn peek(&self) -> Option<u8> {
        read(self.text, &self.layers, self.at).map(|read| read.ascii())
    }

    fn pass(&mut self) {
        if let Some(read) = read(self.text, &self.layers, self.at) {
            self.at = read.next;
        }
    }

    /// The next character that is not white space.
    fn ahead(&self) -> Option<u8> {
        let mut chars = Chars {
            layers: self.layers.clone(),
            ..*self
        };
        chars.pass_space(false);
        chars.peek()
    }

    /// `plus`: whether `+` stands for a space.
    fn pass_space(&mut self, plus: bool) {
        self.pass_until(|byte| !(byte.is_ascii_whitespace() || plus && byte == b'+'));
    }

    /// Skips everything before such a character, or before the end; returns what was skipped.
    fn pass_until(&mut self, ends: impl Fn(u8) -> bool) -> Range<usize> {
        let start = self.at;
        while let Some(read) = read(self.text, &self.layers, self.at) {
            if ends(read.ascii()) {
                break;
            }
            self.at = read.next;
        }
        start..self.at
    }

    /// Skips a string after its opening quote; returns its contents.
    fn pass_string(&mut self, quote: u8) -> Range<usize> {
        let start = self.at;
        while let Some(byte) = self.peek() {
            if byte == quote {
                let inside = start..self.at;
                self.pass();
                return inside;
            }
            self.pass();
            if byte == b'\\' {
                self.pass();
            }
        }
        start..self.at
    }

    fn pass_container(&mut self) {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            self.pass();
            match byte {
                b'"' => {
                    self.pass_string(b'"');
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}
