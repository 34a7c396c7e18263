//! Takes a body from its content type to its records, in two steps: [`open`] reads it and finds its `api_key`, which the caller
//! judges; [`understand`] makes the records once the sender is admitted.

use memchr::memmem;

use super::{
    envelope::{Opened, open_json},
    event::{Split, split},
    form::open_form,
    inbound,
    malformed::Malformed,
    request::{BOM, BodyEncoding, Endpoint, Media, Request},
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

/// Opens the body of a request. It says nothing about who sent it: judge [`Opened::api_key`] before using the rest.
pub fn open_request<'a>(request: &Request<'a>, media: Media, rules: &Rules) -> Opened<'a> {
    if !rules.is_inbound(request.path) {
        return open(request.body, media, rules);
    }
    let encoding = match media {
        Media::Known(encoding) => encoding,
        Media::Unnamed => BodyEncoding::guess(request.body, Endpoint::Inbound),
        Media::Unsupported(reason) => return Opened::closed_mail(unsupported(reason, Endpoint::Inbound)),
    };
    Opened {
        encoding: Some(encoding),
        ..inbound::open(request, encoding)
    }
}

fn unsupported(reason: Reason, endpoint: Endpoint) -> Malformed {
    let detail = match (reason, endpoint) {
        (Reason::UnsupportedEncoding, _) => "the body has a content encoding or a transfer coding",
        (_, Endpoint::Events) => "the content type is neither JSON nor a form",
        (_, Endpoint::Inbound) => "the content type is neither JSON nor multipart/form-data",
    };
    Malformed::new(reason, None, detail)
}

/// Opens a body of events.
pub fn open<'a>(body: &'a [u8], media: impl Into<Media>, rules: &Rules) -> Opened<'a> {
    let encoding = match media.into() {
        Media::Known(encoding) => encoding,
        Media::Unnamed => BodyEncoding::sniff(body),
        Media::Unsupported(reason) => return Opened::closed(unsupported(reason, Endpoint::Events)),
    };
    let opened = match encoding {
        BodyEncoding::Json => open_json(body, rules),
        _ => open_form(body, rules),
    };
    Opened {
        encoding: Some(encoding),
        ..opened
    }
}

/// Makes the records of an opened body.
pub fn understand(opened: Opened<'_>, request: &Request<'_>, rules: &Rules) -> Understood {
    let encoding = opened.encoding;
    let split = split(&opened, rules, request);
    let mail_too_large = || {
        let first = split.failures.first()?;
        (first.reason == Reason::MailTooLarge).then(Malformed::mail_too_large)
    };
    let malformed = opened.content.err().or_else(mail_too_large);
    Understood {
        encoding,
        malformed: malformed.map(|malformed| match rules.is_inbound(request.path) {
            true => malformed,
            false => with_hint(malformed, encoding, request.body),
        }),
        split,
    }
}

/// What a request from an admitted sender would become, by its single content type.
pub fn explain(request: &Request<'_>, rules: &Rules) -> Understood {
    let media = Media::of(
        rules.endpoint(request.path),
        request.content_type.map(str::as_bytes),
    );
    understand(open_request(request, media, rules), request, rules)
}

/// Adds a hint if the body looks unlike what it was read as, or was not read at all.
fn with_hint(malformed: Malformed, read_as: Option<BodyEncoding>, body: &[u8]) -> Malformed {
    let hint = match (read_as, BodyEncoding::sniff(body)) {
        _ if malformed.reason == Reason::UnsupportedEncoding => return malformed,
        _ if is_mail(&malformed, body) => {
            "this looks like received mail: it belongs to ingest.inbound_path, with streams.inbound.enabled = true"
        }
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

/// Whether a body that is no event looks like a received mail.
fn is_mail(malformed: &Malformed, body: &[u8]) -> bool {
    /// A field of every received mail stands near the beginning or the end of its body.
    const LOOKED_AT: usize = 64 << 10;
    let reasons = [Reason::MissingEventType, Reason::UnsupportedMediaType];
    let ends = [
        &body[..body.len().min(LOOKED_AT)],
        &body[body.len().saturating_sub(LOOKED_AT)..],
    ];
    reasons.contains(&malformed.reason) && ends.iter().any(|end| memmem::find(end, b"envelope-to").is_some())
}
