//! The body of a request: what it is written in, and how it is read.
//!
//! A body is read into memory within three bounds: `ingest.max_body_bytes`, the budget of bytes in flight, and the
//! connection's body deadline. What is taken out of the budget is what is allocated: of a client that is known the whole
//! Content-Length at once, of any other one, and without a Content-Length, a buffer that grows with what comes. A body
//! that came as one frame is used as it is.

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
    progress::Progress,
};
use crate::{cmc::BodyEncoding, dead_letter::Reason};

/// After an early answer so much of the body is still read, so that the client comes to read the answer.
pub(super) const DRAIN_BYTES: usize = 1024 * 1024;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(1);
/// The same for a client that is admitted, in bodies of `ingest.max_body_bytes`.
pub(super) const DRAIN_BODIES: usize = 8;

/// What a request's header says about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Known(BodyEncoding),
    /// No content type: the first byte decides; see [`sniff`].
    Unnamed,
    Unsupported(Reason),
}

impl Media {
    /// JSON must be UTF-8 if it says anything. The `charset` of a form is ignored: a form is ASCII, and what its percent
    /// signs stand for is judged when it is decoded.
    pub(super) fn of(headers: &HeaderMap) -> Media {
        // hyper takes the chunks off and leaves what is below them.
        for (name, plain) in [(CONTENT_ENCODING, "identity"), (TRANSFER_ENCODING, "chunked")] {
            for encoding in headers.get_all(name) {
                let encoding = encoding.as_bytes().trim_ascii();
                if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(plain.as_bytes()) {
                    return Media::Unsupported(Reason::UnsupportedEncoding);
                }
            }
        }
        let Some(value) = headers.get(CONTENT_TYPE) else {
            return Media::Unnamed;
        };
        let Ok(value) = value.to_str() else {
            return Media::Unsupported(Reason::UnsupportedMediaType);
        };
        let mut parts = value.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        if essence.is_empty() {
            Media::Unnamed
        } else if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            Media::Known(BodyEncoding::Form)
        } else if essence.eq_ignore_ascii_case("application/json") && parts.all(is_no_foreign_charset) {
            Media::Known(BodyEncoding::Json)
        } else {
            Media::Unsupported(Reason::UnsupportedMediaType)
        }
    }
}

fn is_no_foreign_charset(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return true;
    };
    let value = value.trim().trim_matches('"');
    !name.trim().eq_ignore_ascii_case("charset")
        || value.eq_ignore_ascii_case("utf-8")
        || value.eq_ignore_ascii_case("utf8")
}

/// The value without the buffer that its header came in.
pub(super) fn own(content_type: &HeaderValue) -> HeaderValue {
    match content_type.as_bytes() {
        b"application/json" => HeaderValue::from_static("application/json"),
        b"application/x-www-form-urlencoded" => HeaderValue::from_static("application/x-www-form-urlencoded"),
        // What was a value is one.
        other => HeaderValue::from_bytes(other).unwrap_or_else(|_| content_type.clone()),
    }
}

/// The encoding of a body without a content type: JSON when it begins like an object or a list.
pub(super) fn sniff(body: &[u8]) -> BodyEncoding {
    match body.trim_ascii_start().first() {
        Some(b'{' | b'[') => BodyEncoding::Json,
        _ => BodyEncoding::Form,
    }
}

/// The length that a body announces.
pub(super) fn announced(body: &Incoming) -> Option<u64> {
    body.size_hint().exact()
}

/// Why a body could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It is over the limit; this much of it is known.
    TooLarge(u64),
    /// The budget of bytes in flight is used up.
    Overloaded,
    /// The deadline passed.
    TimedOut,
    /// Its chunks are not what they should be.
    Invalid,
    /// The client went away.
    Disconnected,
}

impl ReadError {
    /// hyper tells a wrong chunk from an end in the middle only by the kind of the error beneath.
    fn of(error: &hyper::Error) -> ReadError {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause.map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => ReadError::Invalid,
            _ => ReadError::Disconnected,
        }
    }
}

impl From<Exhausted> for ReadError {
    fn from(_: Exhausted) -> ReadError {
        ReadError::Overloaded
    }
}

/// Least bytes that a buffer begins with.
const FIRST_BYTES: usize = 4 * 1024;

/// The capacity of a buffer that has `capacity` and must hold `needed` bytes, of a body of `most` at most: half as much
/// again, so that a byte is copied some three times and a third is empty at most.
fn capacity_for(needed: usize, capacity: usize, most: usize) -> usize {
    let more = (capacity + capacity / 2).max(FIRST_BYTES);
    needed.max(more.min(most))
}

/// Reads a whole body. The share covers its buffer, so that an empty promise of a stranger takes no room from others.
///
/// `begun` is set when the client is let send it.
pub(super) async fn read(
    body: &mut Incoming,
    begun: &mut bool,
    max: usize,
    budget: &Budget,
    whose: Whose,
    progress: &Progress,
) -> Result<(Bytes, Share), ReadError> {
    let announced = match announced(body) {
        Some(length) => match usize::try_from(length) {
            Ok(length) if length <= max => Some(length),
            _ => return Err(ReadError::TooLarge(length)),
        },
        None => None,
    };
    let promised = announced.filter(|_| whose == Whose::Known).unwrap_or(0);
    let most = announced.unwrap_or(max);
    let mut share = budget.reserve(promised, whose)?;
    *begun = true;
    let mut collected = Vec::new();
    // With an announced length the last frame is known without asking for another one.
    while announced.is_none_or(|length| collected.len() < length) {
        let data = match poll_fn(|cx| poll_data(body, progress, cx)).await? {
            Some(data) => data,
            None => break,
        };
        let length = collected.len() + data.len();
        if length > max {
            return Err(ReadError::TooLarge(length as u64));
        }
        if announced == Some(data.len()) {
            budget.grow(&mut share, length)?;
            return Ok((data, share));
        }
        if length > collected.capacity() {
            let capacity = capacity_for(length.max(promised), collected.capacity(), most);
            budget.grow(&mut share, capacity)?;
            collected.reserve_exact(capacity - collected.len());
        }
        collected.extend_from_slice(&data);
    }
    Ok((collected.into(), share))
}

/// The next bytes of a body. The deadline is the connection's: no timer is set for a body that comes at once.
fn poll_data(
    body: &mut Incoming,
    progress: &Progress,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, ReadError>> {
    loop {
        if progress.body_expired() {
            return Poll::Ready(Err(ReadError::TimedOut));
        }
        let result = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => Ok(None),
            Poll::Ready(Some(Err(error))) => Err(ReadError::of(&error)),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(Some(data)),
                // Trailers say nothing that is asked for.
                Err(_) => continue,
            },
        };
        return Poll::Ready(result);
    }
}

/// Reads on and throws away, within these bounds. The answer is on its way meanwhile.
pub(super) async fn drain(mut body: Incoming, bytes: usize, time: Duration) {
    let reading = async {
        let mut drained = 0;
        while drained < bytes
            && let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            drained += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Out of time is one of the ways to end.
    let _ = timeout(time, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: Option<&str>, encoding: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
        }
        if let Some(value) = encoding {
            headers.insert(CONTENT_ENCODING, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn content_types() {
        const JSON: Media = Media::Known(BodyEncoding::Json);
        const FORM: Media = Media::Known(BodyEncoding::Form);
        const TYPE: Media = Media::Unsupported(Reason::UnsupportedMediaType);
        let table = [
            (None, Media::Unnamed),
            (Some(""), Media::Unnamed),
            (Some("application/json"), JSON),
            (Some("Application/JSON"), JSON),
            (Some("application/json; charset=utf-8"), JSON),
            (Some("application/json;charset=\"UTF-8\""), JSON),
            (Some("application/json ; Charset = utf8; x=y"), JSON),
            (Some("application/json; boundary"), JSON),
            (Some("application/json; charset=Shift_JIS"), TYPE),
            (Some("application/json; x=y; charset=utf-16"), TYPE),
            (Some("application/x-www-form-urlencoded"), FORM),
            (
                Some("application/x-www-form-urlencoded; charset=ISO-8859-1"),
                FORM,
            ),
            (Some("text/json"), TYPE),
            (Some("application/jsonp"), TYPE),
            (Some("application/vnd.api+json"), TYPE),
            (Some("multipart/form-data; boundary=x"), TYPE),
            (Some("text/plain"), TYPE),
            (Some("application/json, text/plain"), TYPE),
        ];
        for (content_type, expected) in table {
            assert_eq!(
                Media::of(&headers(content_type, None)),
                expected,
                "{content_type:?}"
            );
        }
    }

    #[test]
    fn content_encodings() {
        const JSON: Media = Media::Known(BodyEncoding::Json);
        const ENCODING: Media = Media::Unsupported(Reason::UnsupportedEncoding);
        for (encoding, expected) in [
            ("identity", JSON),
            ("Identity ", JSON),
            ("", JSON),
            ("gzip", ENCODING),
            ("identity, gzip", ENCODING),
            ("br", ENCODING),
        ] {
            let headers = headers(Some("application/json"), Some(encoding));
            assert_eq!(Media::of(&headers), expected, "{encoding:?}");
        }
        for (coding, expected) in [("chunked", JSON), ("gzip, chunked", ENCODING)] {
            let mut headers = headers(Some("application/json"), None);
            headers.insert(TRANSFER_ENCODING, coding.parse().unwrap());
            assert_eq!(Media::of(&headers), expected, "{coding:?}");
        }
    }

    #[test]
    fn sniffing() {
        for (body, expected) in [
            ("{}", BodyEncoding::Json),
            (" \r\n\t[1]", BodyEncoding::Json),
            ("event_type=deliveries", BodyEncoding::Form),
            ("", BodyEncoding::Form),
            ("\"text\"", BodyEncoding::Form),
        ] {
            assert_eq!(sniff(body.as_bytes()), expected, "{body:?}");
        }
    }
}
