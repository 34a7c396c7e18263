//! Batches of outbound records: what ingest makes, the spool keeps, and a lane sends.
//!
//! A batch holds the records of one webhook for one stream. The spool treats it as opaque bytes; only this module knows
//! the layout. All numbers are little-endian; `bytes` is a u32 length followed by that many bytes.
//!
//! ```text
//! u8     layout, 1
//! i64    received at, microseconds since the Unix epoch
//! u32    number of records
//! u16    number of common headers, then for each: name (bytes), value (bytes)
//! record × number of records:
//!   u8     1 when a key follows, else 0 (null key)
//!   bytes  key, when there is one
//!   u16    number of own headers, then for each: name (bytes), value (bytes)
//!   bytes  value
//! ```
//!
//! Common headers stand once for the whole batch and come before a record's own headers: most of a record's headers are
//! the same for each event of a webhook, and storing them once halves what a small event costs on disk.

use thiserror::Error;

const LAYOUT: u8 = 1;
/// Where the number of records stands, so that it can be filled in at the end.
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

    /// A batch of any bytes, for tests of what can't be decoded.
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

/// Encodes a batch record by record.
pub struct BatchBuilder {
    bytes: Vec<u8>,
    events: u32,
}

impl BatchBuilder {
    /// Begins a batch that was received at this time (microseconds since the Unix epoch) and whose records share these
    /// headers. `capacity` is a guess of its encoded size in bytes.
    pub fn new(received_at_micros: i64, common: &[(&str, &[u8])], capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.push(LAYOUT);
        bytes.extend_from_slice(&received_at_micros.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        put_headers(&mut bytes, common);
        BatchBuilder { bytes, events: 0 }
    }

    /// Adds a record. The value is the concatenation of `value`, so that nothing needs to be joined before.
    pub fn push(&mut self, key: Option<&[u8]>, headers: &[(&str, &[u8])], value: &[&[u8]]) {
        match key {
            Some(key) => {
                self.bytes.push(1);
                put_bytes(&mut self.bytes, key);
            }
            None => self.bytes.push(0),
        }
        put_headers(&mut self.bytes, headers);
        let length: usize = value.iter().map(|part| part.len()).sum();
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        for part in value {
            self.bytes.extend_from_slice(part);
        }
        self.events += 1;
    }

    /// Number of records added so far.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// The finished batch.
    pub fn finish(mut self) -> Batch {
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.events.to_le_bytes());
        Batch {
            bytes: self.bytes,
            events: self.events,
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_headers(out: &mut Vec<u8>, headers: &[(&str, &[u8])]) {
    out.extend_from_slice(&(headers.len() as u16).to_le_bytes());
    for (name, value) in headers {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value);
    }
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
    /// The headers that every record of the batch has, before its own.
    pub common: Vec<(&'a str, &'a [u8])>,
    /// The records, in the order of the webhook's list.
    pub records: Vec<RecordView<'a>>,
}

/// One outbound record.
#[derive(Debug)]
pub struct RecordView<'a> {
    /// The Kafka key; `None` is the null key.
    pub key: Option<&'a [u8]>,
    /// The headers that only this record has.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// The Kafka value.
    pub value: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Decodes what [`BatchBuilder`] made.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut input = Input(bytes);
        if input.take(1)? != [LAYOUT] {
            return Err(DecodeError("layout number"));
        }
        let received_at_micros = i64::from_le_bytes(input.array()?);
        let count = u32::from_le_bytes(input.array()?) as usize;
        let common = input.headers()?;
        let mut records = Vec::with_capacity(count.min(bytes.len() / 7));
        for _ in 0..count {
            let key = match input.take(1)? {
                [0] => None,
                [1] => Some(input.bytes()?),
                _ => return Err(DecodeError("key marker")),
            };
            records.push(RecordView {
                key,
                headers: input.headers()?,
                value: input.bytes()?,
            });
        }
        if !input.0.is_empty() {
            return Err(DecodeError("bytes after the last record"));
        }
        Ok(BatchView {
            received_at_micros,
            common,
            records,
        })
    }

    /// The headers of one record in the order in which they go to Kafka.
    pub fn headers<'r>(
        &'r self,
        record: &'r RecordView<'a>,
    ) -> impl Iterator<Item = (&'a str, &'a [u8])> + 'r {
        self.common.iter().chain(&record.headers).copied()
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

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(length as usize)
    }

    fn headers(&mut self) -> Result<Vec<(&'a str, &'a [u8])>, DecodeError> {
        let count = u16::from_le_bytes(self.array()?) as usize;
        let mut headers = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let name =
                std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError("a header name is not UTF-8"))?;
            headers.push((name, self.bytes()?));
        }
        Ok(headers)
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
        let mut builder = BatchBuilder::new(1_700_000_000_000_001, &[("ce_specversion", b"1.0")], 100);
        builder.push(Some(b"<a@b>"), &[("ce_id", b"x")], &[b"{", b"}"]);
        builder.push(None, &[], &[b"two"]);
        builder.finish()
    }

    #[test]
    fn decodes_what_it_encodes() {
        let batch = sample();
        let view = BatchView::decode(batch.bytes()).unwrap();
        assert_eq!(view.received_at_micros, 1_700_000_000_000_001);
        assert_eq!(view.records.len(), 2);
        assert_eq!(view.records[0].key, Some(&b"<a@b>"[..]));
        assert_eq!(view.records[0].value, b"{}");
        let headers: Vec<_> = view.headers(&view.records[0]).collect();
        assert_eq!(
            headers,
            [("ce_specversion", b"1.0".as_slice()), ("ce_id", b"x".as_slice())]
        );
        assert_eq!(view.records[1].key, None);
        assert_eq!(view.records[1].value, b"two");
    }

    #[test]
    fn every_cut_is_an_error_and_never_a_panic() {
        let batch = sample();
        for end in 0..batch.bytes().len() {
            assert!(BatchView::decode(&batch.bytes()[..end]).is_err(), "cut at {end}");
        }
        let mut longer = batch.bytes().to_vec();
        longer.push(0);
        assert!(BatchView::decode(&longer).is_err());
    }

    #[test]
    fn varint_lengths() {
        for (n, bytes) in [(0, 1), (-1, 1), (63, 1), (64, 2), (8191, 2), (8192, 3)] {
            assert_eq!(varint(n), bytes, "{n}");
        }
    }
}
