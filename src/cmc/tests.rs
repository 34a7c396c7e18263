//! Helpers for the tests of the sender's format.

mod amplification;
mod bound;
mod cost;
mod failures;
mod inbound;
mod mutations;
mod oracle;
mod properties;
mod samples;
mod secrets;

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::{event::dead_letter_body, *};
use crate::{
    batch::{Batch, BatchView, alone_in_batch},
    dead_letter::Reason,
    stream::Stream,
};

const RECEIVED_AT: i64 = 1_790_813_702_123_456;
const RECEIVED_AT_TEXT: &str = "2026-10-01T00:15:02.123456Z";

pub(super) fn rules() -> Rules {
    Rules {
        enabled: [true; Stream::ALL.len()],
        max_events: 10_000,
        max_record_bytes: 1_000_000,
        time_zone: TimeZone::get("Asia/Tokyo").unwrap(),
        time_zones: BTreeMap::from([("utc".to_owned(), TimeZone::UTC)]),
        secrets: Secrets::new(["configured-secret"]),
        inbound: None,
        repeats: None,
    }
}

pub(super) fn request(body: &[u8]) -> Request<'_> {
    Request {
        received_at_micros: RECEIVED_AT,
        path: "/webhooks/events",
        content_type: Some("application/json"),
        body,
    }
}

pub(super) fn split_with(body: &[u8], media: impl Into<Media>, rules: &Rules) -> Split {
    split(&open(body, media, rules), rules, &request(body))
}

pub(super) fn reasons(split: &Split) -> Vec<Reason> {
    split.failures.iter().map(|failure| failure.reason).collect()
}

pub(super) fn split_json(body: &str) -> Split {
    split_with(body.as_bytes(), BodyEncoding::Json, &rules())
}

/// A record with all its headers, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rec {
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    pub value: String,
}

impl Rec {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, value)| &**value);
        assert_eq!(found.next(), None, "{name} occurs twice");
        value
    }
}

pub(super) fn records(batch: &Batch) -> Vec<Rec> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let view = BatchView::decode(batch.bytes()).unwrap();
    assert_eq!(view.received_at_micros, RECEIVED_AT);
    assert_eq!(view.records.len(), batch.events() as usize);
    view.records
        .iter()
        .map(|record| Rec {
            key: record.key.map(text),
            headers: view
                .headers(record)
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect(),
            value: text(&record.value()),
        })
        .collect()
}

pub(super) fn events(split: &Split) -> Vec<Rec> {
    split.events.as_ref().map_or_else(Vec::new, |(_, batch, tally)| {
        assert_eq!(tally.total(), u64::from(batch.events()));
        records(batch)
    })
}

pub(super) fn letters(split: &Split) -> Vec<Rec> {
    split
        .dead_letters
        .as_ref()
        .map_or_else(Vec::new, |(batch, tally)| {
            assert_eq!(tally.total(), u64::from(batch.events()));
            records(batch)
        })
}

/// The same webhook as a form.
pub(super) fn form(event_type: &str, server_composition: &str, event: &str) -> String {
    let encode = |text: &str| percent_encode(text.as_bytes(), NON_ALPHANUMERIC).to_string();
    format!(
        "event={}&event_type={}&server_composition={}",
        encode(event),
        encode(event_type),
        encode(server_composition)
    )
}

/// An envelope of deliveries with these elements.
pub(super) fn deliveries(elements: &str) -> String {
    format!(
        r#"{{"event_type":"deliveries","server_composition":"pro","event":{{"deliveries":[{elements}]}}}}"#
    )
}
