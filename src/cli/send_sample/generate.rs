//! Generates webhooks, each event with its own messageId. [`super::mail`] generates those of received mail.

use std::fmt::Write;

use clap::ValueEnum;
use jiff::{Timestamp, tz::TimeZone};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{attachment::Attachment, mail};

/// Kind of webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WebhookKind {
    /// Delivery events: queued, succeeded, deferred and failed in turn
    Deliveries,
    /// Bounces, with each code in turn
    Bounces,
    /// Messages that were not sent; dead letters unless the stream is enabled, which it is not by default
    Blocks,
    /// Truncated bodies: answered 400, and kept as dead letters
    Malformed,
    /// Three webhooks of deliveries, then one of bounces
    Mixed,
    /// Received mails, to a path of their own; dead letters unless streams.inbound is enabled, which it is not by default
    Inbound,
}

/// Format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BodyFormat {
    /// application/json
    Json,
    /// application/x-www-form-urlencoded, the sender's default
    Form,
    /// multipart/form-data, only for received mail: its default with --attach
    Multipart,
}

/// The boundary of multipart bodies. A run of `send-sample` appends random digits to it.
pub const BOUNDARY: &str = "----=_Part_1_";

impl BodyFormat {
    /// The value of the header Content-Type; for multipart with this boundary.
    pub fn content_type(self, boundary: &str) -> String {
        match self {
            BodyFormat::Json => "application/json".to_owned(),
            BodyFormat::Form => "application/x-www-form-urlencoded".to_owned(),
            BodyFormat::Multipart => format!("multipart/form-data; boundary=\"{boundary}\""),
        }
    }

    /// A body of this format with an `api_key` added; a multipart body has [`BOUNDARY`].
    pub fn with_api_key(self, body: &str, key: &str) -> String {
        match self {
            BodyFormat::Json => body.replacen('{', &format!("{{\"api_key\":{},", text(key)), 1),
            BodyFormat::Form => format!("api_key={}&{body}", field(key)),
            BodyFormat::Multipart => {
                let mut part = Vec::new();
                mail::put_field(&mut part, BOUNDARY, "api_key", key);
                String::from_utf8_lossy(&part).into_owned() + body
            }
        }
    }

    #[cfg(test)]
    pub fn encoding(self) -> crate::cmc::BodyEncoding {
        match self {
            BodyFormat::Json => crate::cmc::BodyEncoding::Json,
            BodyFormat::Form => crate::cmc::BodyEncoding::Form,
            BodyFormat::Multipart => crate::cmc::BodyEncoding::Multipart,
        }
    }
}

/// Generates the webhooks of one run of `send-sample`.
#[derive(Clone, Debug)]
pub struct Generator {
    pub kind: WebhookKind,
    pub format: BodyFormat,
    /// Events in each webhook.
    pub events: u64,
    pub server_composition: String,
    pub api_key: Option<String>,
    /// Part of each messageId, so that no two runs share one.
    pub run: String,
    /// The attachments of each received mail.
    pub attachments: Vec<Attachment>,
}

pub(super) const SUBJECTS: [&str; 5] = [
    "十月のお知らせ",
    "ご注文ありがとうございます",
    "【重要】パスワード再設定のご案内",
    "発送が完了しました（お届け予定日のご連絡）",
    "髙橋様　ご予約の確認",
];

const STATUSES: [(&str, &str); 4] = [
    ("queued", ""),
    ("succeeded", ""),
    ("deferred", "451 4.3.0 Temporary failure"),
    ("failed", "550 5.1.1 User unknown"),
];

const CODES: [(&str, &str); 12] = [
    ("1", "Host or domain name not found"),
    ("2", "550 5.1.1 User unknown"),
    ("3", "Retransmission timeout"),
    ("4", "554 5.7.1 Rejected by policy"),
    ("5", "552 5.2.2 Mailbox full"),
    ("6", "Forwarding error"),
    ("7", "451 4.3.0 Error of the receiving server"),
    ("8", "552 5.3.4 Message too big"),
    ("9", "501 5.1.3 Bad recipient address syntax"),
    ("10", "Blocked address"),
    ("11", "One-click unsubscribed"),
    ("99", "Other"),
];

/// All but the characters that forms leave as they are; [`field`] turns a space into `+`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b' ');

impl Generator {
    /// The boundary of multipart bodies. It is random, so that no attachment holds it.
    pub fn boundary(&self) -> String {
        format!("{BOUNDARY}{}", self.run)
    }

    /// The value of the header Content-Type.
    pub fn content_type(&self) -> String {
        self.format.content_type(&self.boundary())
    }

    /// The body of webhook number `number`; its events were created at `now`.
    pub fn body(&self, number: u64, now: Timestamp) -> Vec<u8> {
        if self.kind == WebhookKind::Inbound {
            return mail::body(self, number, now);
        }
        let event_type = match self.kind {
            WebhookKind::Bounces => "bounces",
            WebhookKind::Blocks => "blocks",
            WebhookKind::Mixed if number % 4 == 3 => "bounces",
            _ => "deliveries",
        };
        let zone = TimeZone::get("Asia/Tokyo").unwrap_or(TimeZone::UTC);
        let created = zone.to_datetime(now).strftime("%Y-%m-%d %H:%M:%S").to_string();
        let mut event = format!(r#"{{"{event_type}":["#);
        for index in 0..self.events {
            if index > 0 {
                event.push(',');
            }
            self.event(event_type, number * self.events + index, &created, &mut event);
        }
        event.push_str("]}");
        if self.kind == WebhookKind::Malformed {
            // Truncated here, so that both formats have a truncated event.
            event.truncate(event.len() - 3);
        }
        let composition = &self.server_composition;
        let body = match self.format {
            BodyFormat::Json => format!(
                r#"{{"event_type":"{event_type}","server_composition":{},"event":{event}}}"#,
                text(composition)
            ),
            // The command line allows multipart for received mail only.
            BodyFormat::Form | BodyFormat::Multipart => format!(
                "server_composition={}&event_type={event_type}&event={}",
                field(composition),
                field(&event)
            ),
        };
        match &self.api_key {
            None => body.into_bytes(),
            Some(key) => self.format.with_api_key(&body, key).into_bytes(),
        }
    }

    fn event(&self, event_type: &str, number: u64, created: &str, out: &mut String) {
        let turn = |length: usize| (number % length as u64) as usize;
        let (status, reason) = match event_type {
            "deliveries" => STATUSES[turn(STATUSES.len())],
            "bounces" => CODES[turn(CODES.len())],
            _ => ("", "Blocked address"),
        };
        let ips = match event_type {
            "deliveries" => r#""sourceIp":"192.0.2.10","senderIp":"198.51.100.7","#,
            _ => "",
        };
        let (subject, run) = (SUBJECTS[turn(SUBJECTS.len())], &self.run);
        // The sender escapes angle brackets in this way. Writing into a String can't fail.
        let _ = write!(
            out,
            r#"{{"reason":"{reason}",{ips}"returnPath":"bounce@mail.example.co.jp","created":"{created}","subject":"{subject}","apiData":"","messageId":"\u003C{run}.{number}@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"user{number}@example.net","status":"{status}"}}"#,
        );
    }
}

/// A string as JSON.
pub(super) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value in a form.
fn field(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string().replace(' ', "+")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{cmc, config};

    const KEY: &str = "k+ &\"\\秘";

    fn generator(kind: WebhookKind, format: BodyFormat) -> Generator {
        Generator {
            kind,
            format,
            events: 3,
            server_composition: "メール \"&=+".to_owned(),
            api_key: Some(KEY.to_owned()),
            run: format!("{kind:?}"),
            attachments: Vec::new(),
        }
    }

    #[test]
    fn bodies_are_what_they_say() {
        let blocks = ("CMC_BRIDGE__STREAMS__BLOCKS__ENABLED".into(), "true".into());
        let config = config::load(&[], std::iter::once(blocks)).unwrap().config;
        let rules = config.rules();
        let kinds = WebhookKind::value_variants().iter();
        for kind in kinds.filter(|kind| **kind != WebhookKind::Inbound) {
            for format in &[BodyFormat::Json, BodyFormat::Form] {
                for number in 0..5 {
                    let body = generator(*kind, *format).body(number, Timestamp::UNIX_EPOCH);
                    let opened = cmc::open(&body, format.encoding(), &rules);
                    let shown = String::from_utf8_lossy(&body);
                    assert_eq!(
                        opened.content.is_err(),
                        *kind == WebhookKind::Malformed,
                        "{shown}"
                    );
                    if *format == BodyFormat::Form {
                        assert_eq!(opened.api_key.as_deref(), Some(KEY));
                    }
                }
            }
        }
    }

    #[test]
    fn every_event_has_its_own_id() {
        let mut ids = BTreeSet::new();
        for kind in [
            WebhookKind::Deliveries,
            WebhookKind::Bounces,
            WebhookKind::Blocks,
            WebhookKind::Mixed,
        ] {
            for number in 0..5 {
                let body = generator(kind, BodyFormat::Json).body(number, Timestamp::UNIX_EPOCH);
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(body["api_key"], KEY);
                let list = body["event"][body["event_type"].as_str().unwrap()].as_array();
                for event in list.unwrap() {
                    assert_eq!(event["created"], "1970-01-01 09:00:00");
                    ids.insert(event["messageId"].as_str().unwrap().to_owned());
                }
            }
        }
        assert_eq!(ids.len(), 4 * 5 * 3);
        assert!(ids.contains("<Mixed.14@mail.example.co.jp>"), "{ids:?}");
    }

    #[test]
    fn forms_carry_every_character() {
        assert_eq!(field("a b+c&d=e%-._*"), "a+b%2Bc%26d%3De%25-._*");
        assert_eq!(field("十"), "%E5%8D%81");
    }
}
