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
    /// `multipart/form-data`, for received mail only
    Multipart,
}

/// What the webhooks on a path bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// What became of mails that were sent.
    Events,
    /// Mails that were received.
    Inbound,
}

impl Endpoint {
    fn takes(self, encoding: BodyEncoding) -> bool {
        match encoding {
            BodyEncoding::Json => true,
            BodyEncoding::Form => self == Endpoint::Events,
            BodyEncoding::Multipart => self == Endpoint::Inbound,
        }
    }
}

impl BodyEncoding {
    /// Guesses the encoding of a body without a content type: JSON if it begins like an object or a list, even after a
    /// byte order mark; otherwise the other encoding of its endpoint.
    pub fn guess(body: &[u8], endpoint: Endpoint) -> BodyEncoding {
        match (BodyEncoding::sniff(body), endpoint) {
            (BodyEncoding::Form, Endpoint::Inbound) => BodyEncoding::Multipart,
            (encoding, _) => encoding,
        }
    }

    /// [`guess`](Self::guess) for events.
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
    /// Takes the values of all `Content-Type` fields of a request to this endpoint. They must agree.
    ///
    /// Parameters are ignored, whatever they are: RFC 8259 gives `charset` no meaning for JSON, and a form is ASCII. Both
    /// are UTF-8 or malformed, as their bytes show.
    pub fn of<'v>(endpoint: Endpoint, content_types: impl IntoIterator<Item = &'v [u8]>) -> Media {
        let mut media = Media::Unnamed;
        for value in content_types {
            let this = match essence(value) {
                b"" => continue,
                name if name.eq_ignore_ascii_case(b"application/json") => Media::Known(BodyEncoding::Json),
                name if name.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") => {
                    Media::Known(BodyEncoding::Form)
                }
                name if name.eq_ignore_ascii_case(b"multipart/form-data") => {
                    Media::Known(BodyEncoding::Multipart)
                }
                _ => return Media::Unsupported(Reason::UnsupportedMediaType),
            };
            if media != Media::Unnamed && media != this {
                return Media::Unsupported(Reason::UnsupportedMediaType);
            }
            media = this;
        }
        match media {
            Media::Known(encoding) if !endpoint.takes(encoding) => {
                Media::Unsupported(Reason::UnsupportedMediaType)
            }
            media => media,
        }
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

    fn of(values: &[&[u8]]) -> Media {
        Media::of(Endpoint::Events, values.iter().copied())
    }

    #[test]
    fn received_mail_comes_as_json_or_multipart() {
        for (content_type, expected) in [
            ("application/json", JSON),
            (
                "Multipart/Form-Data; boundary=x",
                Media::Known(BodyEncoding::Multipart),
            ),
            ("application/x-www-form-urlencoded", TYPE),
            ("multipart/mixed; boundary=x", TYPE),
            ("", Media::Unnamed),
        ] {
            let media = Media::of(Endpoint::Inbound, [content_type.as_bytes()]);
            assert_eq!(media, expected, "{content_type:?}");
        }
    }

    #[test]
    fn content_types() {
        assert_eq!(of(&[]), Media::Unnamed);
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
            assert_eq!(of(&[content_type.as_bytes()]), expected, "{content_type:?}");
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
            assert_eq!(of(values), expected, "{values:?}");
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
