//! Sample webhooks as the sender posts them; addresses and ids are made up.

use crate::cli::send_sample::generate::BodyFormat;

/// One webhook.
pub struct SampleWebhook {
    pub what: &'static str,
    pub format: BodyFormat,
    /// Whether the body is truncated and so can't be understood.
    pub truncated: bool,
    pub body: &'static str,
}

/// A body that can stand in single quotes in a shell.
pub const CURL: &str = r#"{"event_type":"bounces","server_composition":"pro","event":{"bounces":[{"messageId":"<1@example.co.jp>","created":"2026-10-01 09:15:06","subject":"十月のお知らせ","from":"news@example.co.jp","to":"nobody@example.net","status":"2","reason":"550 5.1.1 User unknown"}]}}"#;

/// Events of two messages, and a truncated body.
pub const ALL: &[SampleWebhook] = &[
    SampleWebhook {
        what: "a delivery, queued (JSON)",
        format: BodyFormat::Json,
        truncated: false,
        body: r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[{"reason":"","sourceIp":"192.0.2.10","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:02","subject":"十月のお知らせ","apiData":"","messageId":"\u003C7b1e9c52@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"hanako@example.net","senderIp":"","status":"queued"}]}}"#,
    },
    SampleWebhook {
        what: "two deliveries in one webhook (form, the sender's default)",
        format: BodyFormat::Form,
        truncated: false,
        body: "server_composition=pro&event_type=deliveries&event=%7B%22deliveries%22%3A%5B%7B%22created%22%3A%222026-10-01+09%3A15%3A05%22%2C%22subject%22%3A%22%E5%8D%81%E6%9C%88%E3%81%AE%E3%81%8A%E7%9F%A5%E3%82%89%E3%81%9B%22%2C%22messageId%22%3A%22%5Cu003C7b1e9c52%40mail.example.co.jp%5Cu003E%22%2C%22from%22%3A%22news%40example.co.jp%22%2C%22to%22%3A%22hanako%40example.net%22%2C%22senderIp%22%3A%22198.51.100.7%22%2C%22status%22%3A%22succeeded%22%7D%2C%7B%22created%22%3A%222026-10-01+09%3A15%3A05%22%2C%22subject%22%3A%22%E5%8D%81%E6%9C%88%E3%81%AE%E3%81%8A%E7%9F%A5%E3%82%89%E3%81%9B%22%2C%22messageId%22%3A%22%5Cu003C8c2f0d63%40mail.example.co.jp%5Cu003E%22%2C%22from%22%3A%22news%40example.co.jp%22%2C%22to%22%3A%22nobody%40example.net%22%2C%22reason%22%3A%22550+5.1.1+User+unknown%22%2C%22status%22%3A%22failed%22%7D%5D%7D",
    },
    SampleWebhook {
        what: "the bounce of the second one (JSON)",
        format: BodyFormat::Json,
        truncated: false,
        body: r#"{"event_type":"bounces","server_composition":"pro","event":{"bounces":[{"reason":"550 5.1.1 \u003Cnobody@example.net\u003E: Recipient address rejected: User unknown (in reply to RCPT TO)","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:06","subject":"十月のお知らせ","apiData":"","messageId":"\u003C8c2f0d63@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"nobody@example.net","status":"2"}]}}"#,
    },
    SampleWebhook {
        what: "a truncated body (it becomes a dead letter)",
        format: BodyFormat::Json,
        truncated: true,
        body: r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[{"subject":"十月の"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cmc::{self, BodyEncoding},
        config,
    };

    #[test]
    fn samples_are_what_they_say() {
        let config = config::load(&[], std::iter::empty()).unwrap().config;
        let rules = config.rules();
        for sample in ALL {
            let opened = cmc::open(sample.body.as_bytes(), sample.format.encoding(), &rules);
            assert_eq!(opened.content.is_err(), sample.truncated, "{}", sample.what);
        }
        let opened = cmc::open(CURL.as_bytes(), BodyEncoding::Json, &rules);
        assert!(opened.content.is_ok());
        assert!(!CURL.contains('\''));
        let key = "k\"ey+ &=%鍵";
        for sample in ALL.iter().filter(|sample| !sample.truncated) {
            let body = sample.format.with_api_key(sample.body, key);
            let opened = cmc::open(body.as_bytes(), sample.format.encoding(), &rules);
            assert_eq!(opened.api_key.as_deref(), Some(key));
            assert!(opened.content.is_ok());
        }
    }
}
