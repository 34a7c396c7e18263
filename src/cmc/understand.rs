//! Takes a body from its content type to its records, in two steps: [`open`] reads it and finds its `api_key`, which the caller
//! judges; [`understand`] makes the records once the sender is admitted.

use memchr::memmem;

use super::{
    envelope::{Opened, open_json},
    event::{Split, split},
    form::open_form,
    malformed::Malformed,
    request::{BOM, BodyEncoding, Media, Request},
    rules::Rules,
};
use crate::dead_letter::Reason;

/// How a body was understood, and the records that it becomes.
#[derive(Debug)]
pub struct Understood {
    /// How the body was read; `None` if its content type or encoding is not supported.
    pub encoding: Option<BodyEncoding>,
    /// The records.
    pub split: Split,
    /// Why the body as a whole could not be understood.
    pub malformed: Option<Malformed>,
}

/// Opens a body. It says nothing about who sent it: judge [`Opened::api_key`] before using the rest.
pub fn open<'a>(body: &'a [u8], media: impl Into<Media>, rules: &Rules) -> Opened<'a> {
    let encoding = match media.into() {
        Media::Known(encoding) => encoding,
        Media::Unnamed => BodyEncoding::sniff(body),
        Media::Unsupported(reason) => {
            let detail = match reason {
                Reason::UnsupportedEncoding => "the body has a content encoding or a transfer coding",
                _ => "the content type is neither JSON nor a form",
            };
            return Opened::closed(Malformed::new(reason, None, detail));
        }
    };
    let opened = match encoding {
        BodyEncoding::Json => open_json(body, rules),
        BodyEncoding::Form => open_form(body, rules),
    };
    Opened {
        encoding: Some(encoding),
        ..opened
    }
}

/// Makes the records of an opened body.
pub fn understand(opened: Opened<'_>, request: &Request<'_>, rules: &Rules) -> Understood {
    let encoding = opened.encoding;
    Understood {
        encoding,
        split: split(&opened, rules, request),
        malformed: opened
            .content
            .err()
            .map(|malformed| with_hint(malformed, encoding, request.body)),
    }
}

/// What a request from an admitted sender would become, by its single content type.
pub fn explain(request: &Request<'_>, rules: &Rules) -> Understood {
    let media = Media::of(request.content_type.map(str::as_bytes));
    understand(open(request.body, media, rules), request, rules)
}

/// Adds a hint if the body looks unlike what it was read as, or was not read at all.
fn with_hint(malformed: Malformed, read_as: Option<BodyEncoding>, body: &[u8]) -> Malformed {
    let hint = match (read_as, BodyEncoding::sniff(body)) {
        _ if malformed.reason == Reason::UnsupportedEncoding => return malformed,
        (Some(BodyEncoding::Json), BodyEncoding::Json) if body.starts_with(BOM) => {
            "this looks like JSON after a byte order mark: find out what adds the mark"
        }
        (Some(BodyEncoding::Form) | None, BodyEncoding::Json) => {
            "this looks like JSON: the content type should be application/json"
        }
        (Some(BodyEncoding::Json) | None, BodyEncoding::Form)
            if memmem::find(body, b"event_type=").is_some() =>
        {
            "this looks like a form: the content type should be application/x-www-form-urlencoded"
        }
        _ => return malformed,
    };
    Malformed {
        detail: format!("{}; {hint}", malformed.detail).into(),
        ..malformed
    }
}
