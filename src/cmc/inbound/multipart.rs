//! Finds the parts of a `multipart/form-data` body (RFC 2046, 5.1; RFC 7578), without copying them.
//!
//! A delimiter is a whole line: CRLF (or the beginning of the body), `--`, the boundary, for the closing one `--` again, spaces
//! or tabs, CRLF (or after the closing one the end of the body). So an attachment may hold the boundary within a line. Between
//! two delimiters stands a part: header, empty line, content. Only blanks may precede the first delimiter or follow the closing
//! one: anything else would vanish.

use std::borrow::Cow;

use memchr::memmem::Finder;

use super::part::{Parameters, essence_is};
use crate::{
    cmc::{malformed::Malformed, request::Request},
    dead_letter::Reason,
};

/// Maximum length of a boundary. RFC 2046 allows 70 bytes.
const MOST_BOUNDARY: usize = 200;
/// Maximum size of the header of a part in bytes.
pub(super) const MOST_HEADER: usize = 8 << 10;

/// One part.
pub(super) struct Part<'a> {
    /// Where it begins in the body.
    pub at: usize,
    pub header: &'a [u8],
    pub content: &'a [u8],
}

fn invalid(at: Option<usize>, detail: impl Into<Cow<'static, str>>) -> Malformed {
    Malformed::new(Reason::InvalidMultipart, at, detail)
}

/// The boundary: the parameter of the content type; without a content type, the first line of the body tells it.
pub(super) fn boundary_of(request: &Request<'_>) -> Result<Vec<u8>, Malformed> {
    let content_type = request.content_type.filter(|value| !value.trim().is_empty());
    let boundary = match content_type {
        Some(value) => Parameters::of(value.as_bytes()).plain(b"boundary"),
        None => {
            let line = request.body.split(|byte| *byte == b'\r').next();
            line.and_then(|line| line.strip_prefix(b"--"))
                .map(|boundary| boundary.to_vec())
        }
    };
    match boundary {
        Some(boundary) if (1..=MOST_BOUNDARY).contains(&boundary.len()) => Ok(boundary),
        Some(_) => {
            let detail = format!("the boundary is empty, or longer than {MOST_BOUNDARY} bytes");
            Err(invalid(None, detail))
        }
        None if content_type.is_some_and(|value| essence_is(value.as_bytes(), b"multipart/form-data")) => {
            Err(invalid(None, "the content type has no parameter boundary"))
        }
        None => Err(invalid(
            Some(0),
            "the body does not begin with a boundary, and has no content type",
        )),
    }
}

/// Reads part after part. After an error there are no more.
pub(super) struct Parts<'a> {
    body: &'a [u8],
    /// CRLF, `--`, the boundary.
    delimiter: Finder<'static>,
    state: State,
}

enum State {
    Start,
    /// A part begins here.
    Part(usize),
    End,
}

impl<'a> Parts<'a> {
    pub fn new(body: &'a [u8], boundary: &[u8]) -> Parts<'a> {
        let delimiter = [b"\r\n--", boundary].concat();
        Parts {
            body,
            delimiter: Finder::new(&delimiter).into_owned(),
            state: State::Start,
        }
    }

    /// The next part; `None` after the last one.
    pub fn next(&mut self) -> Option<Result<Part<'a>, Malformed>> {
        let result = self.step().transpose();
        if !matches!(result, Some(Ok(_))) {
            self.state = State::End;
        }
        result
    }

    fn step(&mut self) -> Result<Option<Part<'a>>, Malformed> {
        if let State::Start = self.state {
            let first = self.delimiter.needle().get(2..).unwrap_or_default();
            let at_start = self
                .body
                .starts_with(first)
                .then(|| self.line_end(first.len()))
                .flatten();
            let (before, line) = match at_start {
                Some(line) => (0, line),
                None => self
                    .find(0)
                    .ok_or_else(|| invalid(Some(0), "the body has no line with the boundary"))?,
            };
            if !is_blank(&self.body[..before]) {
                return Err(invalid(Some(0), "there is text before the first boundary"));
            }
            self.after(line)?;
        }
        let State::Part(at) = self.state else {
            return Ok(None);
        };
        // The line break before a delimiter may be the one that ends the header.
        let Some((end, line)) = self.find(at - 2) else {
            let at = Some(self.body.len());
            return Err(invalid(at, "the body ends before its closing boundary"));
        };
        let part = self.part(at, end)?;
        self.after(line)?;
        Ok(Some(part))
    }

    /// Takes note of a delimiter line.
    fn after(&mut self, line: Line) -> Result<(), Malformed> {
        if !line.closing {
            self.state = State::Part(line.end);
            return Ok(());
        }
        self.state = State::End;
        match is_blank(&self.body[line.end..]) {
            true => Ok(()),
            false => Err(invalid(
                Some(line.end),
                "there is text after the closing boundary",
            )),
        }
    }

    /// The next delimiter from `from` on: where its CRLF is, and its line.
    fn find(&self, from: usize) -> Option<(usize, Line)> {
        let text = self.body.get(from..)?;
        self.delimiter.find_iter(text).find_map(|at| {
            let line = self.line_end(from + at + self.delimiter.needle().len())?;
            Some((from + at, line))
        })
    }

    /// The rest of a delimiter line after its boundary; `None` if the line is none.
    fn line_end(&self, at: usize) -> Option<Line> {
        let rest = self.body.get(at..)?;
        let after = rest.strip_prefix(b"--");
        let closing = after.is_some();
        let rest = after.unwrap_or(rest);
        let padding = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        let rest = &rest[padding..];
        let end = self.body.len() - rest.len();
        match rest {
            [b'\r', b'\n', ..] => Some(Line {
                closing,
                end: end + 2,
            }),
            [] if closing => Some(Line { closing, end }),
            _ => None,
        }
    }

    fn part(&self, at: usize, end: usize) -> Result<Part<'a>, Malformed> {
        // Including the line break before the delimiter, which an empty content may share with the header.
        let text = &self.body[at..(end + 2).max(at)];
        if text.starts_with(b"\r\n") || text.is_empty() {
            return Err(invalid(Some(at), "a part has no header"));
        }
        let header = &text[..text.len().min(MOST_HEADER + 4)];
        let Some(header_end) = memchr::memmem::find(header, b"\r\n\r\n") else {
            let detail = match header.len() < text.len() {
                true => format!("the header of a part is larger than {MOST_HEADER} bytes"),
                false => "the header of a part has no end".to_owned(),
            };
            return Err(invalid(Some(at), detail));
        };
        let content = at + header_end + 4;
        Ok(Part {
            at,
            header: &text[..header_end],
            content: &self.body[content.min(end)..end],
        })
    }
}

struct Line {
    closing: bool,
    /// Where the next line begins.
    end: usize,
}

fn is_blank(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_whitespace)
}
