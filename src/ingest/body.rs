//! The body of a request: its encoding according to the header, and how it is read.
//!
//! A body is read into memory within three limits: `ingest.max_body_bytes` (for received mail `ingest.inbound_max_body_bytes`), the budget of bytes in flight, and the
//! deadline of the body. The budget is charged for what is allocated: for a known client the whole `Content-Length`
//! at once; for a stranger, or without a `Content-Length`, a buffer that grows as data arrives. A body that arrives
//! as a single frame is used without a copy.

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap,
    body::{Body, Incoming},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING},
};
use tokio::time::timeout;

use super::{
    limits::{Budget, Exhausted, Share, Whose},
    phase::PhaseTracker,
};
use crate::{
    cmc::{Endpoint, Media},
    dead_letter::Reason,
};

/// After an early answer, this much of the body is still read, so that the client can read the answer.
pub(super) const DRAIN_BYTES: usize = 1024 * 1024;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(1);
/// The same for an admitted client, in bodies of `ingest.max_body_bytes`.
pub(super) const DRAIN_BODIES: usize = 8;

/// A body up to this size is requested (`100 Continue`) although it will be discarded.
pub(super) const SMALL_BYTES: usize = 64 * 1024;

/// What a request's header says about the encoding of its body.
pub(super) fn media(endpoint: Endpoint, headers: &HeaderMap) -> Media {
    // hyper removes the chunking and leaves any coding below it.
    for (name, plain) in [(CONTENT_ENCODING, "identity"), (TRANSFER_ENCODING, "chunked")] {
        for encoding in headers.get_all(name) {
            let encoding = encoding.as_bytes().trim_ascii();
            if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(plain.as_bytes()) {
                return Media::Unsupported(Reason::UnsupportedEncoding);
            }
        }
    }
    let content_types = headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
    Media::of(endpoint, content_types)
}

/// A copy of the value that does not keep alive the buffer of its header.
pub(super) fn own(content_type: &HeaderValue) -> HeaderValue {
    match content_type.as_bytes() {
        b"application/json" => HeaderValue::from_static("application/json"),
        b"application/x-www-form-urlencoded" => HeaderValue::from_static("application/x-www-form-urlencoded"),
        // A copy of a valid value is valid.
        other => HeaderValue::from_bytes(other).unwrap_or_else(|_| content_type.clone()),
    }
}

/// The announced length of a body.
pub(super) fn announced(body: &Incoming) -> Option<u64> {
    body.size_hint().exact()
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It exceeds the limit; this many bytes of it are known.
    TooLarge(u64),
    /// The budget of bytes in flight is exhausted.
    Overloaded,
    /// The deadline passed.
    TimedOut,
    /// Its chunks are invalid.
    Invalid,
    /// The client went away.
    Disconnected,
}

impl BodyError {
    /// hyper tells an invalid chunk from a premature end only by the kind of the underlying error.
    fn of(error: &hyper::Error) -> BodyError {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause.map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => BodyError::Invalid,
            _ => BodyError::Disconnected,
        }
    }
}

impl From<Exhausted> for BodyError {
    fn from(_: Exhausted) -> BodyError {
        BodyError::Overloaded
    }
}

/// The initial capacity of a buffer, in bytes.
const FIRST_BYTES: usize = 4 * 1024;

/// Grows the buffer to `needed` bytes of a body of at most `most`, once the budget allows it. It grows by half, so
/// that each byte is copied about three times and at most a third of the buffer is empty.
fn make_room(
    buffer: &mut Vec<u8>,
    needed: usize,
    most: usize,
    budget: &Budget,
    share: &mut Share,
) -> Result<(), Exhausted> {
    if needed <= buffer.capacity() {
        return Ok(());
    }
    let more = (buffer.capacity() + buffer.capacity() / 2).max(FIRST_BYTES);
    let capacity = needed.max(more.min(most));
    budget.grow(share, capacity)?;
    buffer.reserve_exact(capacity - buffer.len());
    Ok(())
}

/// Reads a whole body. The share covers its buffer, so that the empty promise of a stranger takes no room from
/// others.
///
/// `begun` is set once the client has been allowed to send the body.
pub(super) async fn read(
    body: &mut Incoming,
    begun: &mut bool,
    max: usize,
    budget: &Budget,
    whose: Whose,
    phase: &PhaseTracker,
) -> Result<(Bytes, Share), BodyError> {
    let announced = match announced(body) {
        Some(length) => match usize::try_from(length) {
            Ok(length) if length <= max => Some(length),
            _ => return Err(BodyError::TooLarge(length)),
        },
        None => None,
    };
    let promised = announced.filter(|_| whose == Whose::Known).unwrap_or(0);
    let most = announced.unwrap_or(max);
    let mut share = budget.reserve(promised, whose)?;
    *begun = true;
    let mut collected = Vec::new();
    // With an announced length, the last frame is known without asking for another one.
    while announced.is_none_or(|length| collected.len() < length) {
        let data = match poll_fn(|cx| poll_data(body, phase, cx)).await? {
            Some(data) => data,
            None => break,
        };
        let length = collected.len() + data.len();
        if length > max {
            return Err(BodyError::TooLarge(length as u64));
        }
        if announced == Some(data.len()) {
            budget.grow(&mut share, length)?;
            return Ok((data, share));
        }
        make_room(&mut collected, length.max(promised), most, budget, &mut share)?;
        collected.extend_from_slice(&data);
    }
    Ok((collected.into(), share))
}

/// The next bytes of a body. The deadline is the connection's: no timer is set for a body that arrives at once.
fn poll_data(
    body: &mut Incoming,
    phase: &PhaseTracker,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, BodyError>> {
    loop {
        if phase.body_expired() {
            return Poll::Ready(Err(BodyError::TimedOut));
        }
        let result = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => Ok(None),
            Poll::Ready(Some(Err(error))) => Err(BodyError::of(&error)),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(Some(data)),
                // Trailers carry nothing of interest.
                Err(_) => continue,
            },
        };
        return Poll::Ready(result);
    }
}

/// Reads a body of up to `most` bytes and discards it. Returns whether it ended within [`DRAIN_TIME`]: a stranger who
/// sends slowly, or not all, is not waited for. `begun` is set once the client has been allowed to send the body.
pub(super) async fn skip(body: &mut Incoming, begun: &mut bool, most: usize, phase: &PhaseTracker) -> bool {
    if announced(body).is_some_and(|length| length > most as u64) {
        return false;
    }
    *begun = true;
    let mut left = most;
    let reading = async {
        loop {
            match poll_fn(|cx| poll_data(body, phase, cx)).await {
                Ok(None) => return true,
                Ok(Some(data)) if data.len() <= left => left -= data.len(),
                _ => return false,
            }
        }
    };
    timeout(DRAIN_TIME, reading).await.unwrap_or(false)
}

/// Reads on and discards, within these limits, while the answer is on its way.
pub(super) async fn drain(mut body: Incoming, bytes: usize, time: Duration) {
    let reading = async {
        let mut drained = 0;
        while drained < bytes
            && let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            drained += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Running out of time is one way to end.
    let _ = timeout(time, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmc::BodyEncoding;

    #[test]
    fn the_budget_covers_what_is_allocated() {
        const MOST: usize = 1_000_000;
        for step in [1, 999, 16 * 1024, 300_000] {
            let budget = Budget::new(2 * MOST);
            let mut share = budget.reserve(0, Whose::Stranger).unwrap();
            let mut buffer = Vec::new();
            while buffer.len() < MOST {
                let length = (buffer.len() + step).min(MOST);
                make_room(&mut buffer, length, MOST, &budget, &mut share).unwrap();
                buffer.resize(length, b'x');
                assert!(share.bytes() >= buffer.capacity(), "{step}: {length}");
                assert!(
                    buffer.capacity() <= (length + length / 2).max(FIRST_BYTES),
                    "{step}: {length}"
                );
            }
            assert_eq!(share.bytes(), MOST);
            let further = make_room(&mut buffer, MOST + 1, 2 * MOST, &budget, &mut share);
            assert_eq!(
                (further, buffer.capacity()),
                (Err(Exhausted), MOST),
                "half is for others"
            );
        }
    }

    #[test]
    fn content_encodings() {
        const JSON: Media = Media::Known(BodyEncoding::Json);
        const ENCODING: Media = Media::Unsupported(Reason::UnsupportedEncoding);
        for (name, value, expected) in [
            (CONTENT_ENCODING, "identity", JSON),
            (CONTENT_ENCODING, "Identity ", JSON),
            (CONTENT_ENCODING, "", JSON),
            (CONTENT_ENCODING, "gzip", ENCODING),
            (CONTENT_ENCODING, "identity, gzip", ENCODING),
            (CONTENT_ENCODING, "br", ENCODING),
            (TRANSFER_ENCODING, "chunked", JSON),
            (TRANSFER_ENCODING, "gzip, chunked", ENCODING),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(media(Endpoint::Events, &headers), expected, "{headers:?}");
        }
        assert_eq!(media(Endpoint::Events, &HeaderMap::new()), Media::Unnamed);
    }
}
