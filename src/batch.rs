//! Batches of outbound records: ingest makes them, the spool stores them, a lane sends them.
//!
//! A batch holds the records of one webhook for one stream. The spool treats it as opaque bytes; only this module knows
//! the layout. Fixed numbers are little-endian, `varint` is LEB128 of at most 32 bits, and `bytes` is a varint length
//! followed by that many bytes.
//!
//! ```text
//! u8     layout, 3
//! i64    received at, microseconds since the Unix epoch
//! u32    number of records
//! varint number of common headers, then for each: name (bytes), value (bytes)
//! bytes  beginning: the common prefix of all records' values
//! record × number of records:
//!   varint 0 for the null key, otherwise the key's length plus 1; the key follows
//!   varint number of own headers, then for each:
//!     varint even: twice the number of the name, in the order of first use in this batch; a new name follows (bytes),
//!            then varint 0 if the value is the record's key, otherwise the value's length plus 1; the value follows
//!            odd: twice the number of a repeated header, plus 1; a new one follows, as above
//!   bytes  the value after the beginning
//! ```
//!
//! Common headers are stored once per batch and come before a record's own headers. A record's own headers that others are
//! likely to have as well are *repeated* headers: name and value are stored with the first record that has them.
//!
//! What the records of a webhook share is stored once, because each byte of a batch is copied, checksummed, written and
//! synced before the answer. The shared part is a quarter of an ordinary webhook's events, and nearly all of the dead letters
//! of a list of numbers, which would otherwise be hundreds of times as large as the list.
//!
//! Layout 2 had no repeated headers and didn't double the numbers of names. It is still read.

use std::{borrow::Cow, ops::Range};

use thiserror::Error;

const LAYOUT: u8 = 3;
/// The layout before repeated headers.
const WITHOUT_REPEATED: u8 = 2;
/// Offset of the number of records, which is filled in at the end.
const COUNT_AT: usize = 9;

/// An encoded batch and how many records it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    events: u32,
}

impl Batch {
    /// The encoded form, in the layout of this module.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory that the encoded form takes, in bytes.
    pub fn allocated(&self) -> usize {
        self.bytes.capacity()
    }

    /// A batch of arbitrary bytes, for tests of what can't be decoded.
    #[cfg(test)]
    pub fn of_bytes(bytes: Vec<u8>, events: u32) -> Batch {
        Batch { bytes, events }
    }

    /// Number of records.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// When the webhook arrived, microseconds since the Unix epoch.
    pub fn received_at_micros(&self) -> i64 {
        received_at_micros(&self.bytes).unwrap_or_default()
    }
}

/// When the webhook of an encoded batch arrived, without decoding the rest of it.
pub fn received_at_micros(encoded: &[u8]) -> Option<i64> {
    encoded.get(1..9)?.try_into().ok().map(i64::from_le_bytes)
}

/// Encodes a batch, record by record.
pub struct BatchBuilder {
    bytes: Vec<u8>,
    events: u32,
    /// The names of own headers so far, concatenated, and where each ends.
    names: Vec<u8>,
    name_ends: Vec<usize>,
    /// The repeated headers so far: number of the name, and the value's place in `bytes`.
    repeated: Vec<(usize, Range<usize>)>,
}

impl BatchBuilder {
    /// Begins a batch that was received at this time (microseconds since the Unix epoch) and whose records share these
    /// headers and this beginning of their values. `capacity` is a guess of the encoded size of all records, in bytes.
    pub fn new(received_at_micros: i64, common: &[(&str, &[u8])], beginning: &[u8], capacity: usize) -> Self {
        /// An upper bound for layout, time, counts, and the lengths of eight headers.
        const AROUND: usize = 64;
        let once = common
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        let mut bytes = Vec::with_capacity(AROUND + once + beginning.len() + capacity);
        bytes.push(LAYOUT);
        bytes.extend_from_slice(&received_at_micros.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        put_varint(&mut bytes, common.len());
        for (name, value) in common {
            put_bytes(&mut bytes, name.as_bytes());
            put_bytes(&mut bytes, value);
        }
        put_bytes(&mut bytes, beginning);
        BatchBuilder {
            bytes,
            events: 0,
            names: Vec::with_capacity(32),
            name_ends: Vec::with_capacity(4),
            repeated: Vec::new(),
        }
    }

    /// Adds a record. Its value is the batch's beginning followed by the parts of `rest`, so callers needn't join them.
    pub fn push(&mut self, key: Option<&[u8]>, headers: &[(&str, &[u8])], rest: &[&[u8]]) {
        self.push_repeating(key, &[], headers, rest);
    }

    /// Like [`push`](Self::push), with headers before the others that further records of the batch are likely to have as well.
    pub fn push_repeating(
        &mut self,
        key: Option<&[u8]>,
        repeated: &[(&str, &[u8])],
        headers: &[(&str, &[u8])],
        rest: &[&[u8]],
    ) {
        self.put_optional(key);
        put_varint(&mut self.bytes, repeated.len() + headers.len());
        for (name, value) in repeated {
            self.put_repeated(name, value);
        }
        for (name, value) in headers {
            let number = self.name_number(name);
            put_varint(&mut self.bytes, 2 * number.unwrap_or(self.name_ends.len()));
            self.put_new_name(number, name);
            self.put_optional(if key == Some(*value) { None } else { Some(value) });
        }
        put_varint(&mut self.bytes, rest.iter().map(|part| part.len()).sum());
        for part in rest {
            self.bytes.extend_from_slice(part);
        }
        self.events += 1;
    }

    fn put_optional(&mut self, bytes: Option<&[u8]>) {
        put_varint(&mut self.bytes, bytes.map_or(0, |bytes| bytes.len() + 1));
        self.bytes.extend_from_slice(bytes.unwrap_or_default());
    }

    fn put_repeated(&mut self, name: &str, value: &[u8]) {
        let number = self.name_number(name);
        // The latest ones are the most likely.
        let known = self
            .repeated
            .iter()
            .rposition(|(of, place)| Some(*of) == number && self.bytes.get(place.clone()) == Some(value));
        put_varint(&mut self.bytes, 2 * known.unwrap_or(self.repeated.len()) + 1);
        if known.is_none() {
            let new = number.unwrap_or(self.name_ends.len());
            put_varint(&mut self.bytes, 2 * new);
            self.put_new_name(number, name);
            self.put_optional(Some(value));
            let end = self.bytes.len();
            self.repeated.push((new, end - value.len()..end));
        }
    }

    fn name_number(&self, name: &str) -> Option<usize> {
        let mut start = 0;
        self.name_ends.iter().position(|&end| {
            let found = &self.names[start..end] == name.as_bytes();
            start = end;
            found
        })
    }

    fn put_new_name(&mut self, number: Option<usize>, name: &str) {
        if number.is_none() {
            put_bytes(&mut self.bytes, name.as_bytes());
            self.names.extend_from_slice(name.as_bytes());
            self.name_ends.push(self.names.len());
        }
    }

    /// Number of records added so far.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// The finished batch. It releases memory that it doesn't need, if that is worth a copy.
    pub fn finish(mut self) -> Batch {
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare > SMALL && spare > self.bytes.len() / SPARE_PART {
            self.bytes.shrink_to_fit();
        }
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.events.to_le_bytes());
        Batch {
            bytes: self.bytes,
            events: self.events,
        }
    }
}

/// The maximum size in the spool, in bytes, of the batches of one webhook, given the maximum size of its body, the maximum
/// number of its elements (`records`) and the maximum size of a record in Kafka (`record`).
///
/// Each element becomes one record. Besides the element's own bytes, that takes at most `RECORD` bytes, and once more what
/// becomes its key or time, which only an element of at least `KEYED` bytes has. What records share is stored once. A dead
/// letter that is larger than a Kafka record may be is split into parts.
pub fn most_bytes(body: usize, records: usize, record: usize) -> usize {
    /// Lengths, the numbers of headers, an id or an index.
    const RECORD: usize = 48;
    /// `{"messageId":""}`
    const KEYED: usize = 16;
    /// Common and repeated headers, and the beginning of the values.
    const ONCE: usize = 8 * 1024;
    /// More than a part's key, id and number, and less than its headers leave for its value.
    const PART: usize = 128;
    const PART_HEADERS: usize = 4 * 1024;
    const LEAST_PART_VALUE: usize = 1024;
    let records = records.min(body / 2);
    let parts = body / record.saturating_sub(PART_HEADERS).max(LEAST_PART_VALUE);
    let copies = body.saturating_sub(records * KEYED);
    body + copies + records * RECORD + parts * PART + ONCE
}

/// The maximum memory, in bytes, of batches of this many bytes: see [`BatchBuilder::finish`].
pub fn most_allocated(bytes: usize) -> usize {
    bytes + bytes / SPARE_PART + 2 * SMALL
}

/// Unused memory up to this size is not worth a copy, …
const SMALL: usize = 64 * 1024;
/// … nor is this part of a batch.
const SPARE_PART: usize = 8;

/// No length here exceeds 32 bits: a webhook's body is limited.
fn put_varint(out: &mut Vec<u8>, number: usize) {
    let mut rest = number as u32;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// The bytes are not a batch in this module's layout. The spool's checksums make this a version mismatch or a bug,
/// never bit rot.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a batch of a known layout: {0}")]
pub struct DecodeError(&'static str);

/// A decoded batch that borrows from its bytes.
#[derive(Debug)]
pub struct BatchView<'a> {
    /// When the webhook arrived, microseconds since the Unix epoch.
    pub received_at_micros: i64,
    /// The records, in the order of the webhook's list.
    pub records: Vec<RecordView<'a>>,
    /// The common headers, followed by each record's own.
    headers: Vec<(&'a str, &'a [u8])>,
    /// The number of common headers.
    common: usize,
}

/// One outbound record.
#[derive(Debug)]
pub struct RecordView<'a> {
    /// The Kafka key; `None` is the null key.
    pub key: Option<&'a [u8]>,
    /// Which of the batch's headers are this record's own.
    own: Range<usize>,
    beginning: &'a [u8],
    rest: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The Kafka value.
    pub fn value(&self) -> Cow<'a, [u8]> {
        if self.beginning.is_empty() {
            Cow::Borrowed(self.rest)
        } else {
            Cow::Owned([self.beginning, self.rest].concat())
        }
    }

    /// The Kafka value, joined in `scratch` if need be. This saves allocations when many records are read.
    pub fn value_in<'s>(&self, scratch: &'s mut Vec<u8>) -> &'s [u8]
    where
        'a: 's,
    {
        if self.beginning.is_empty() {
            return self.rest;
        }
        scratch.clear();
        scratch.extend_from_slice(self.beginning);
        scratch.extend_from_slice(self.rest);
        scratch
    }

    /// Bytes of the Kafka value.
    pub fn value_len(&self) -> usize {
        self.beginning.len() + self.rest.len()
    }
}

impl<'a> BatchView<'a> {
    /// Decodes what [`BatchBuilder`] made.
    ///
    /// # Errors
    /// The bytes are not a batch of a known layout.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        /// Bytes of a record without key, headers and value.
        const SMALLEST: usize = 3;
        let mut input = Input(bytes);
        let [layout] = input.array()?;
        if !(WITHOUT_REPEATED..=LAYOUT).contains(&layout) {
            return Err(DecodeError("layout number"));
        }
        let received_at_micros = i64::from_le_bytes(input.array()?);
        let count = u32::from_le_bytes(input.array()?) as usize;
        let mut headers = Vec::new();
        let common = input.varint()?;
        for _ in 0..common {
            headers.push((input.text()?, input.bytes()?));
        }
        let beginning = input.bytes()?;
        let mut own = OwnHeaders {
            layout,
            names: Vec::new(),
            repeated: Vec::new(),
        };
        let mut records = Vec::with_capacity(count.min(bytes.len() / SMALLEST));
        for _ in 0..count {
            let key = input.optional()?;
            let first = headers.len();
            for _ in 0..input.varint()? {
                headers.push(own.read(&mut input, key)?);
            }
            records.push(RecordView {
                key,
                own: first..headers.len(),
                beginning,
                rest: input.bytes()?,
            });
        }
        if !input.0.is_empty() {
            return Err(DecodeError("bytes after the last record"));
        }
        Ok(BatchView {
            received_at_micros,
            records,
            headers,
            common,
        })
    }

    /// The headers of one of this batch's records, in the order in which they go to Kafka.
    pub fn headers<'r>(&'r self, record: &RecordView<'a>) -> impl Iterator<Item = (&'a str, &'a [u8])> + 'r {
        let common = self.headers.iter().take(self.common);
        let own = self.headers.get(record.own.clone()).unwrap_or_default();
        common.chain(own).copied()
    }
}

type HeaderView<'a> = (&'a str, &'a [u8]);

/// The own headers that have been read so far.
struct OwnHeaders<'a> {
    layout: u8,
    names: Vec<&'a str>,
    repeated: Vec<HeaderView<'a>>,
}

impl<'a> OwnHeaders<'a> {
    fn read(&mut self, input: &mut Input<'a>, key: Option<&'a [u8]>) -> Result<HeaderView<'a>, DecodeError> {
        let number = input.varint()?;
        if self.layout == WITHOUT_REPEATED {
            return self.read_named(number, input, key);
        }
        if number % 2 == 0 {
            return self.read_named(number / 2, input, key);
        }
        if number / 2 == self.repeated.len() {
            let name = input.varint()? / 2;
            let header = self.read_named(name, input, key)?;
            self.repeated.push(header);
        }
        let header = self.repeated.get(number / 2);
        header.copied().ok_or(DecodeError("number of a repeated header"))
    }

    fn read_named(
        &mut self,
        number: usize,
        input: &mut Input<'a>,
        key: Option<&'a [u8]>,
    ) -> Result<HeaderView<'a>, DecodeError> {
        if number == self.names.len() {
            self.names.push(input.text()?);
        }
        let name = self.names.get(number);
        let name = name.ok_or(DecodeError("number of a header name"))?;
        let value = input.optional()?.or(key);
        Ok((name, value.ok_or(DecodeError("a header without a value"))?))
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .ok_or(DecodeError("it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(DecodeError("it ends too early"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<usize, DecodeError> {
        let mut number = 0u32;
        for shift in (0..32).step_by(7) {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7F);
            if bits.leading_zeros() < shift {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number as usize);
            }
        }
        Err(DecodeError("a number of more than 32 bits"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.varint()?;
        self.take(length)
    }

    /// Bytes whose length is stored plus 1, because 0 means that there are none.
    fn optional(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        let length = self.varint()?.checked_sub(1);
        length.map(|length| self.take(length)).transpose()
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError("a header name is not UTF-8"))
    }
}

/// Bytes of a Kafka record batch (format v2) that holds this record alone, uncompressed: the number that a broker
/// compares with the topic's `max.message.bytes`.
pub fn alone_in_batch<'h>(
    key: Option<&[u8]>,
    headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    value_len: usize,
) -> usize {
    const BATCH_OVERHEAD: usize = 61;
    let mut count = 0;
    let mut headers_len = 0;
    for (name, value) in headers {
        count += 1;
        headers_len += varint(name.len() as i64) + name.len() + varint(value.len() as i64) + value.len();
    }
    // Attributes, timestamp delta and offset delta of the first record take one byte each; a null key is length -1.
    let body = 3
        + key.map_or(1, |k| varint(k.len() as i64) + k.len())
        + varint(value_len as i64)
        + value_len
        + varint(count)
        + headers_len;
    BATCH_OVERHEAD + varint(body as i64) + body
}

/// Bytes of a zigzag varint.
fn varint(n: i64) -> usize {
    let zigzag = ((n << 1) ^ (n >> 63)) as u64;
    (64 - (zigzag | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Batch {
        let mut builder = BatchBuilder::new(1_700_000_000_000_001, &[("ce_specversion", b"1.0")], b"{", 100);
        let long = [b'y'; 300];
        builder.push(Some(b"<a@b>"), &[("id", b"x"), ("key", b"<a@b>")], &[b"}"]);
        builder.push(None, &[], &[b"two", &long]);
        builder.push(Some(b""), &[("key", b""), ("new", &long), ("id", b"z")], &[]);
        builder.finish()
    }

    fn repeating() -> Batch {
        let mut builder = BatchBuilder::new(0, &[], b"", 100);
        for _ in 0..2 {
            builder.push_repeating(None, &[("a", b"x"), ("b", b"y")], &[("a", b"z")], &[b"v"]);
        }
        builder.finish()
    }

    #[test]
    fn decodes_what_it_encodes() {
        let long = [b'y'; 300];
        let batch = sample();
        assert_eq!(batch.events(), 3);
        let view = BatchView::decode(batch.bytes()).unwrap();
        assert_eq!(view.received_at_micros, 1_700_000_000_000_001);
        let keys: Vec<_> = view.records.iter().map(|record| record.key).collect();
        assert_eq!(keys, [Some(&b"<a@b>"[..]), None, Some(b"")]);
        let common = ("ce_specversion", &b"1.0"[..]);
        let headers: Vec<Vec<_>> = view.records.iter().map(|r| view.headers(r).collect()).collect();
        assert_eq!(headers[0], [common, ("id", b"x"), ("key", b"<a@b>")]);
        assert_eq!(headers[1], [common]);
        assert_eq!(headers[2], [common, ("key", b""), ("new", &long), ("id", b"z")]);
        let mut scratch = b"of another record".to_vec();
        for (record, value) in view
            .records
            .iter()
            .zip([&b"{}"[..], &[b"{two", &long[..]].concat(), b"{"])
        {
            assert_eq!(&*record.value(), value);
            assert_eq!(record.value_in(&mut scratch), value);
            assert_eq!(record.value_len(), value.len());
        }
    }

    #[test]
    fn what_the_records_share_is_stored_once() {
        let of = |records: usize| {
            let mut builder = BatchBuilder::new(0, &[("common", b"value")], b"beginning", 0);
            for _ in 0..records {
                builder.push(Some(b"key"), &[("header", b"key")], &[b"!"]);
            }
            builder.finish().bytes().len()
        };
        // Key, its length, number of headers, number of the name, "is the key", length, value.
        assert_eq!(of(3) - of(2), 3 + 1 + 1 + 1 + 1 + 1 + 1);
    }

    #[test]
    fn repeated_headers_are_stored_once_and_read_everywhere() {
        let long = [b'y'; 300];
        let build = |records: usize| {
            let mut builder = BatchBuilder::new(0, &[], b"", 0);
            for index in 0..records {
                let which: &[u8] = if index % 3 == 0 { b"x" } else { &long };
                let repeated = [("reason", which), ("key", &b"key"[..])];
                builder.push_repeating(Some(b"key"), &repeated, &[("reason", b"own")], &[b"!"]);
            }
            builder.finish()
        };
        let batch = build(7);
        let view = BatchView::decode(batch.bytes()).unwrap();
        for (index, record) in view.records.iter().enumerate() {
            let headers: Vec<_> = view.headers(record).collect();
            let which: &[u8] = if index % 3 == 0 { b"x" } else { &long };
            assert_eq!(headers, [("reason", which), ("key", b"key"), ("reason", b"own")]);
        }
        // Key, its length, number of headers, two repeated ones, name, length, value of the own one, length, value.
        let more = build(7).bytes().len() - build(6).bytes().len();
        assert_eq!(more, 3 + 1 + 1 + 2 + 1 + 1 + 3 + 1 + 1);
    }

    #[test]
    fn layout_2_is_read() {
        let mut bytes = BatchBuilder::new(5, &[], b"", 0).finish().bytes().to_vec();
        bytes[0] = WITHOUT_REPEATED;
        bytes[COUNT_AT] = 2;
        bytes.extend_from_slice(b"\x02k\x02\x00\x01a\x00\x01\x01b\x02v\x01!\x00\x01\x01\x01\x00");
        let view = BatchView::decode(&bytes).unwrap();
        let headers: Vec<Vec<_>> = view.records.iter().map(|r| view.headers(r).collect()).collect();
        assert_eq!(headers, [vec![("a", &b"k"[..]), ("b", b"v")], vec![("b", b"")]]);
    }

    #[test]
    fn numbers_are_read_as_they_were_written_and_no_more_than_32_bits() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u32::MAX as usize] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, number);
            assert_eq!(Input(&bytes).varint(), Ok(number));
            assert!(Input(&bytes[..bytes.len() - 1]).varint().is_err());
        }
        for bytes in [[0xFF, 0xFF, 0xFF, 0xFF, 0x10], [0x80; 5]] {
            let too_long = DecodeError("a number of more than 32 bits");
            assert_eq!(Input(&bytes).varint(), Err(too_long));
        }
    }

    #[test]
    fn what_no_builder_writes_is_an_error() {
        let mut bytes = BatchBuilder::new(0, &[], b"", 0).finish().bytes().to_vec();
        bytes[COUNT_AT] = 1;
        let decode =
            |record: &[u8]| BatchView::decode(&[&bytes, record].concat()).map(|view| view.records.len());
        assert_eq!(decode(&[0, 0, 0]), Ok(1));
        assert_eq!(decode(&[0, 1, 2]), Err(DecodeError("number of a header name")));
        assert_eq!(
            decode(&[0, 1, 3]),
            Err(DecodeError("number of a repeated header"))
        );
        assert_eq!(
            decode(&[0, 1, 0, 1, b'n', 0, 0]),
            Err(DecodeError("a header without a value"))
        );
        assert_eq!(
            decode(&[0, 1, 0, 1, 0xFF, 1, 0]),
            Err(DecodeError("a header name is not UTF-8"))
        );
        for layout in [0, 1, LAYOUT + 1] {
            bytes[0] = layout;
            let other = BatchView::decode(&bytes).map(|view| view.records.len());
            assert_eq!(other, Err(DecodeError("layout number")));
        }
    }

    #[test]
    fn every_cut_is_an_error_and_never_a_panic() {
        for batch in [sample(), repeating()] {
            for end in 0..batch.bytes().len() {
                assert!(BatchView::decode(&batch.bytes()[..end]).is_err(), "cut at {end}");
            }
            let mut longer = batch.bytes().to_vec();
            longer.push(0);
            assert!(BatchView::decode(&longer).is_err());
        }
    }

    #[test]
    fn varint_lengths() {
        for (n, bytes) in [(0, 1), (-1, 1), (63, 1), (64, 2), (8191, 2), (8192, 3)] {
            assert_eq!(varint(n), bytes, "{n}");
        }
    }
}
