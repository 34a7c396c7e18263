//! The request that carried a body, and which of the sender's two encodings the body has.

use crate::dead_letter::Reason;

/// The byte order mark of UTF-8, with which no JSON text begins (RFC 8259, 8.1).
pub const BOM: &[u8] = "\u{FEFF}".as_bytes();

/// The request that brought a body.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// When it arrived, in microseconds since the Unix epoch.
    pub received_at_micros: i64,
    /// The path, without the query.
    pub path: &'a str,
    /// The `Content-Type` header as received.
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoding {
    /// `application/json`
    Json,
    /// `application/x-www-form-urlencoded`, the sender's default
    Form,
}

impl BodyEncoding {
    /// Guesses the encoding of a body without a content type: JSON if it begins like an object or a list, even after a
    /// byte order mark.
    pub fn sniff(body: &[u8]) -> BodyEncoding {
        let body = body.strip_prefix(BOM).unwrap_or(body);
        match body.trim_ascii_start().first() {
            Some(b'{' | b'[') => BodyEncoding::Json,
            _ => BodyEncoding::Form,
        }
    }
}

/// What a request's header says about the encoding of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Known(BodyEncoding),
    /// No content type: [`BodyEncoding::sniff`] decides.
    Unnamed,
    Unsupported(Reason),
}

impl Media {
    /// Takes the values of all `Content-Type` fields, which must agree.
    ///
    /// Parameters are ignored, whatever they are: RFC 8259 gives `charset` no meaning for JSON, and a form is ASCII. Both
    /// are UTF-8 or malformed, as their bytes show.
    pub fn of<'v>(content_types: impl IntoIterator<Item = &'v [u8]>) -> Media {
        let mut media = Media::Unnamed;
        for value in content_types {
            let this = match essence(value) {
                b"" => continue,
                name if name.eq_ignore_ascii_case(b"application/json") => Media::Known(BodyEncoding::Json),
                name if name.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") => {
                    Media::Known(BodyEncoding::Form)
                }
                _ => return Media::Unsupported(Reason::UnsupportedMediaType),
            };
            if media != Media::Unnamed && media != this {
                return Media::Unsupported(Reason::UnsupportedMediaType);
            }
            media = this;
        }
        media
    }
}

impl From<BodyEncoding> for Media {
    fn from(encoding: BodyEncoding) -> Media {
        Media::Known(encoding)
    }
}

/// The media type without its parameters.
fn essence(value: &[u8]) -> &[u8] {
    let end = value.iter().position(|byte| *byte == b';');
    value[..end.unwrap_or(value.len())].trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Media = Media::Known(BodyEncoding::Json);
    const FORM: Media = Media::Known(BodyEncoding::Form);
    const TYPE: Media = Media::Unsupported(Reason::UnsupportedMediaType);

    #[test]
    fn content_types() {
        assert_eq!(Media::of([]), Media::Unnamed);
        for (content_type, expected) in [
            ("", Media::Unnamed),
            ("application/json", JSON),
            ("Application/JSON", JSON),
            ("application/json; charset=utf-8", JSON),
            ("application/json;charset=\"UTF-8\"", JSON),
            ("application/json ; Charset = utf8; x=y", JSON),
            ("application/json; boundary", JSON),
            ("application/json; charset=us-ascii", JSON),
            ("application/json; charset='utf-8'", JSON),
            ("application/json; charset=ISO-8859-1", JSON),
            ("application/json; charset=", JSON),
            ("application/json; charset", JSON),
            ("application/json; charset=utf-8; charset=utf-16", JSON),
            ("application/json;;=; \"; charset=\"Shift_JIS", JSON),
            ("application/json; x=\",\"", JSON),
            (";charset=utf-8", Media::Unnamed),
            ("application/x-www-form-urlencoded", FORM),
            ("application/x-www-form-urlencoded; charset=ISO-8859-1", FORM),
            ("Application/X-WWW-Form-Urlencoded;charset", FORM),
            ("text/json", TYPE),
            ("application/json charset=utf-8", TYPE),
            ("application / json", TYPE),
            ("application/jsonp", TYPE),
            ("application/vnd.api+json", TYPE),
            ("multipart/form-data; boundary=x", TYPE),
            ("text/plain", TYPE),
            ("application/json, text/plain", TYPE),
        ] {
            assert_eq!(Media::of([content_type.as_bytes()]), expected, "{content_type:?}");
        }
    }

    #[test]
    fn several_content_types_must_agree_and_parameters_may_hold_any_bytes() {
        let table: [(&[&[u8]], Media); 6] = [
            (&[b"application/json", b"application/json; charset=x"], JSON),
            (&[b"", b"application/json"], JSON),
            (&[b"application/json", b"application/x-www-form-urlencoded"], TYPE),
            (&[b"application/json", b"text/plain"], TYPE),
            (&[b"application/json; charset=\xE5\x8D\x81"], JSON),
            (&[b"application/json\xE5"], TYPE),
        ];
        for (values, expected) in table {
            assert_eq!(Media::of(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn sniffing() {
        for (body, expected) in [
            ("{}", BodyEncoding::Json),
            (" \r\n\t[1]", BodyEncoding::Json),
            ("\u{FEFF}{}", BodyEncoding::Json),
            ("\u{FEFF}a=b", BodyEncoding::Form),
            ("event_type=deliveries", BodyEncoding::Form),
            ("", BodyEncoding::Form),
            ("\"text\"", BodyEncoding::Form),
        ] {
            assert_eq!(BodyEncoding::sniff(body.as_bytes()), expected, "{body:?}");
        }
    }
}
