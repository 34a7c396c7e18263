//! Stand-in: the interface of the sender's formats that ingest uses.

use std::borrow::Cow;

use crate::{
    batch::{Batch, BatchBuilder},
    stream::{Stream, Tally},
};

pub mod dead_letter {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reason {
        Syntax,
        ContentType,
        ContentEncoding,
        EventType,
    }

    impl Reason {
        pub const ALL: [Reason; 4] = [
            Reason::Syntax,
            Reason::ContentType,
            Reason::ContentEncoding,
            Reason::EventType,
        ];

        pub fn label(self) -> &'static str {
            match self {
                Reason::Syntax => "syntax",
                Reason::ContentType => "content_type",
                Reason::ContentEncoding => "content_encoding",
                Reason::EventType => "event_type",
            }
        }

        pub fn scope(self) -> &'static str {
            match self {
                Reason::EventType => "element",
                _ => "body",
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoding {
    Json,
    Form,
}

pub struct Rules;

pub struct RequestContext<'a> {
    pub received_at_micros: i64,
    pub path: &'a str,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

pub struct Malformed {
    pub reason: dead_letter::Reason,
    pub offset: Option<usize>,
    pub detail: String,
}

pub struct Envelope<'a>(&'a [u8]);

pub struct Opened<'a> {
    pub api_key: Option<Cow<'a, str>>,
    pub content: Result<Envelope<'a>, Malformed>,
}

pub struct Split {
    pub events: Option<(Stream, Batch, Tally)>,
    pub dead_letters: Option<(Batch, Tally)>,
    pub failures: Vec<dead_letter::Reason>,
}

pub fn open(body: &[u8], _encoding: BodyEncoding) -> Opened<'_> {
    let api_key = std::str::from_utf8(body)
        .ok()
        .and_then(|text| text.split_once("\"api_key\":\""))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(key, _)| Cow::Borrowed(key));
    Opened {
        api_key,
        content: if body.starts_with(b"{") && body.ends_with(b"}") {
            Ok(Envelope(body))
        } else {
            Err(Malformed {
                reason: dead_letter::Reason::Syntax,
                offset: Some(0),
                detail: "not JSON".to_owned(),
            })
        },
    }
}

pub fn split(envelope: &Envelope<'_>, _rules: &Rules, _context: &RequestContext<'_>) -> Split {
    let _ = envelope.0;
    Split {
        events: None,
        dead_letters: None,
        failures: Vec::new(),
    }
}

pub fn dead_letter_body(
    _reason: dead_letter::Reason,
    _offset: Option<usize>,
    _rules: &Rules,
    context: &RequestContext<'_>,
) -> (Batch, Tally) {
    let mut builder = BatchBuilder::new(context.received_at_micros, &[], context.body.len());
    builder.push(None, &[], &[context.body]);
    let mut tally = Tally::default();
    tally.count(Stream::DeadLetters, None);
    (builder.finish(), tally)
}
