//! Turns a dead letter into the records that carry it.

use uuid::Uuid;

use super::{
    headers::{
        CONTENT_TYPE, EVENT_TYPE, ID, INDEX, MASKED, MEMBER, OFFSET, OWN, PART, PARTS, PATH, REASON,
        RECEIVED_AT, SERVER_COMPOSITION, TOPIC,
    },
    reason::Reason,
};
use crate::batch::{BatchBuilder, alone_in_batch};

/// Maximum length of a header value with text from outside, in bytes.
pub const MAX_TEXT: usize = 256;

/// Minimum room for the value of a part, however large its headers, so that a letter always fits into a bounded number
/// of parts.
pub(super) const MIN_PART: usize = 1024;

/// One dead letter; the fields are the headers in the head of [`super`].
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    pub reason: Reason,
    pub offset: Option<usize>,
    pub index: Option<usize>,
    pub member: Option<&'a str>,
    pub event_type: Option<&'a str>,
    pub server_composition: Option<&'a str>,
    pub path: Option<&'a str>,
    pub content_type: Option<&'a str>,
    /// Microseconds since the Unix epoch.
    pub received_at_micros: i64,
    /// Whether credentials were overwritten, here or in `value`.
    pub masked: bool,
    pub topic: Option<&'a str>,
    /// The key of a refused record.
    pub key: Option<&'a [u8]>,
    /// All headers of a refused record.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The bytes in question.
    pub value: &'a [u8],
}

impl<'a> DeadLetter<'a> {
    /// A letter about which nothing else is known.
    pub fn new(reason: Reason, received_at_micros: i64, value: &'a [u8]) -> Self {
        DeadLetter {
            reason,
            offset: None,
            index: None,
            member: None,
            event_type: None,
            server_composition: None,
            path: None,
            content_type: None,
            received_at_micros,
            masked: false,
            topic: None,
            key: None,
            headers: &[],
            value,
        }
    }

    /// The records that this letter becomes. None is larger (alone in a Kafka record batch) than `max_record_bytes`,
    /// unless key and headers alone leave no room for 1 KiB of value.
    pub fn records(&self, max_record_bytes: usize) -> LetterRecords<'a> {
        let mut headers: Vec<Header<'a>> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, Bytes::Borrowed(value)))
            .collect();
        self.put_known(&mut headers);
        let size = alone_in_batch(self.key, borrowed(&headers), self.value.len());
        if size <= max_record_bytes {
            return LetterRecords {
                key: self.key.map(Bytes::Borrowed),
                headers,
                numbered: false,
                parts: 1,
                part_bytes: self.value.len().max(1),
                value: self.value,
            };
        }
        let id = Uuid::new_v4().to_string();
        let key = match self.key {
            Some(key) => Bytes::Borrowed(key),
            None => Bytes::Owned(id.clone().into_bytes()),
        };
        headers.push((ID, Bytes::Owned(id.into_bytes())));
        let widest: [Header<'_>; 2] = [
            (PARTS, Bytes::Borrowed(&[0; 20])),
            (PART, Bytes::Borrowed(&[0; 20])),
        ];
        let overhead = alone_in_batch(
            Some(key.get()),
            borrowed(&headers).chain(borrowed(&widest)),
            max_record_bytes,
        ) - max_record_bytes;
        let part_bytes = max_record_bytes.saturating_sub(overhead).max(MIN_PART);
        let parts = self.value.len().div_ceil(part_bytes).max(1);
        headers.push((PARTS, Bytes::Owned(parts.to_string().into_bytes())));
        LetterRecords {
            key: Some(key),
            headers,
            numbered: true,
            parts,
            part_bytes,
            value: self.value,
        }
    }

    /// Adds the records of this letter to a batch, which stores what its letters have in common once.
    pub fn push(&self, batch: &mut BatchBuilder, max_record_bytes: usize) {
        for record in self.records(max_record_bytes).iter() {
            let headers = record.headers();
            let begin = headers.iter().position(|(name, _)| OWN.contains(name));
            let (repeated, own) = headers.split_at(begin.unwrap_or(headers.len()));
            batch.push_repeating(record.key, repeated, own, &[record.value]);
        }
    }

    fn put_known(&self, headers: &mut Vec<Header<'a>>) {
        let mut put = |name, value: Bytes<'a>| headers.push((name, value));
        put(REASON, Bytes::Borrowed(self.reason.name().as_bytes()));
        for (name, text) in [
            (MEMBER, self.member),
            (EVENT_TYPE, self.event_type),
            (SERVER_COMPOSITION, self.server_composition),
            (PATH, self.path),
            (CONTENT_TYPE, self.content_type),
            (TOPIC, self.topic),
        ] {
            if let Some(text) = text {
                put(name, Bytes::Borrowed(cut(text).as_bytes()));
            }
        }
        let received_at = rfc3339_micros(self.received_at_micros).into_bytes();
        put(RECEIVED_AT, Bytes::Owned(received_at));
        if self.masked {
            put(MASKED, Bytes::Borrowed(b"true"));
        }
        for (name, number) in [(OFFSET, self.offset), (INDEX, self.index)] {
            if let Some(number) = number {
                put(name, Bytes::Owned(number.to_string().into_bytes()));
            }
        }
    }
}

type Header<'a> = (&'a str, Bytes<'a>);

#[derive(Debug)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl Bytes<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

fn borrowed<'h>(headers: &'h [Header<'_>]) -> impl Iterator<Item = (&'h str, &'h [u8])> {
    headers.iter().map(|(name, value)| (*name, value.get()))
}

/// The records of one dead letter.
#[derive(Debug)]
pub struct LetterRecords<'a> {
    key: Option<Bytes<'a>>,
    headers: Vec<Header<'a>>,
    numbered: bool,
    parts: usize,
    part_bytes: usize,
    value: &'a [u8],
}

impl LetterRecords<'_> {
    /// Their number; never zero.
    pub fn count(&self) -> usize {
        self.parts
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = LetterRecord<'_>> {
        (0..self.parts).map(|index| {
            let start = index * self.part_bytes;
            let end = (start + self.part_bytes).min(self.value.len());
            LetterRecord {
                key: self.key.as_ref().map(Bytes::get),
                headers: &self.headers,
                part: self.numbered.then(|| (index + 1).to_string()),
                value: &self.value[start..end],
            }
        })
    }
}

/// One record of a dead letter.
#[derive(Debug)]
pub struct LetterRecord<'r> {
    /// The Kafka key; `None` is the null key.
    pub key: Option<&'r [u8]>,
    headers: &'r [Header<'r>],
    part: Option<String>,
    /// The Kafka value.
    pub value: &'r [u8],
}

impl LetterRecord<'_> {
    /// The headers in their order.
    pub fn headers(&self) -> Vec<(&str, &[u8])> {
        let part = self.part.iter().map(|part| (PART, part.as_bytes()));
        borrowed(self.headers).chain(part).collect()
    }
}

/// The beginning of a text: at most [`MAX_TEXT`] bytes of whole characters.
pub(super) fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// RFC 3339 in UTC with exactly six digits after the second and `Z`; a time out of range becomes the epoch.
pub(crate) fn rfc3339_micros(micros: i64) -> String {
    let timestamp = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{timestamp:.6}")
}
