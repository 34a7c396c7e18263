//! Stand-in: the interface of the sender's formats that ingest uses.

use std::borrow::Cow;

use crate::{
    batch::{Batch, BatchBuilder},
    config::{Ingest, Kafka, StreamConfig},
    dead_letter::Reason,
    stream::{Stream, Tally},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEncoding {
    Json,
    Form,
}

#[derive(Clone, Debug)]
pub struct Rules;

impl Rules {
    pub fn new(_ingest: &Ingest, _kafka: &Kafka, _streams: &[StreamConfig; 4]) -> Self {
        Rules
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub received_at_micros: i64,
    pub path: &'a str,
    pub content_type: Option<&'a str>,
    pub body: &'a [u8],
}

#[derive(Clone, Debug)]
pub struct Malformed {
    pub reason: Reason,
    pub offset: Option<usize>,
    pub detail: Cow<'static, str>,
}

impl Malformed {
    pub fn new(reason: Reason, offset: Option<usize>, detail: impl Into<Cow<'static, str>>) -> Self {
        Malformed {
            reason,
            offset,
            detail: detail.into(),
        }
    }
}

#[derive(Debug)]
pub struct Envelope<'a>(&'a [u8]);

#[derive(Debug)]
pub struct Opened<'a> {
    pub api_key: Option<Cow<'a, str>>,
    pub content: Result<Envelope<'a>, Malformed>,
}

#[derive(Debug, Default)]
pub struct Split {
    pub events: Option<(Stream, Batch, Tally)>,
    pub dead_letters: Option<(Batch, Tally)>,
    pub failures: Vec<Reason>,
}

pub fn open<'a>(body: &'a [u8], _encoding: BodyEncoding, _rules: &Rules) -> Opened<'a> {
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
            Err(Malformed::new(Reason::InvalidJson, Some(0), "not JSON"))
        },
    }
}

pub fn split(opened: &Opened<'_>, rules: &Rules, request: &Request<'_>) -> Split {
    match &opened.content {
        Ok(envelope) => {
            let mut tally = Tally::default();
            tally.count(Stream::Deliveries, None);
            let batch = BatchBuilder::new(request.received_at_micros, &[], 0).finish();
            Split {
                events: (!envelope.0.ends_with(b"[]}}")).then_some((Stream::Deliveries, batch, tally)),
                ..Split::default()
            }
        }
        Err(malformed) => Split {
            events: None,
            dead_letters: Some(dead_letter_body(malformed, Some(opened), rules, request)),
            failures: vec![malformed.reason],
        },
    }
}

pub fn dead_letter_body(
    _malformed: &Malformed,
    _opened: Option<&Opened<'_>>,
    _rules: &Rules,
    request: &Request<'_>,
) -> (Batch, Tally) {
    let mut builder = BatchBuilder::new(request.received_at_micros, &[], request.body.len());
    builder.push(None, &[], &[request.body]);
    let mut tally = Tally::default();
    tally.count(Stream::DeadLetters, None);
    (builder.finish(), tally)
}
