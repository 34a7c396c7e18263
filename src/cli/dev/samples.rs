//! Sample webhooks as the sender posts them; addresses and ids are made up.

use crate::{cli::send_sample::generate::BodyFormat, cmc::Endpoint};

/// One webhook.
pub struct SampleWebhook {
    pub what: &'static str,
    pub format: BodyFormat,
    /// What its path brings.
    pub endpoint: Endpoint,
    /// Whether the body is truncated and so can't be understood.
    pub truncated: bool,
    pub body: &'static str,
}

/// A body that can stand in single quotes in a shell.
pub const CURL: &str = r#"{"event_type":"bounces","server_composition":"pro","event":{"bounces":[{"messageId":"<1@example.co.jp>","created":"2026-10-01 09:15:06","subject":"十月のお知らせ","from":"news@example.co.jp","to":"nobody@example.net","status":"2","reason":"550 5.1.1 User unknown"}]}}"#;

/// Events of two messages, a received mail, and a truncated body.
pub const ALL: &[SampleWebhook] = &[
    SampleWebhook {
        what: "a delivery, queued (JSON)",
        format: BodyFormat::Json,
        endpoint: Endpoint::Events,
        truncated: false,
        body: r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[{"reason":"","sourceIp":"192.0.2.10","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:02","subject":"十月のお知らせ","apiData":"","messageId":"\u003C7b1e9c52@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"hanako@example.net","senderIp":"","status":"queued"}]}}"#,
    },
    SampleWebhook {
        what: "two deliveries in one webhook (form, the sender's default)",
        format: BodyFormat::Form,
        endpoint: Endpoint::Events,
        truncated: false,
        body: "server_composition=pro&event_type=deliveries&event=%7B%22deliveries%22%3A%5B%7B%22created%22%3A%222026-10-01+09%3A15%3A05%22%2C%22subject%22%3A%22%E5%8D%81%E6%9C%88%E3%81%AE%E3%81%8A%E7%9F%A5%E3%82%89%E3%81%9B%22%2C%22messageId%22%3A%22%5Cu003C7b1e9c52%40mail.example.co.jp%5Cu003E%22%2C%22from%22%3A%22news%40example.co.jp%22%2C%22to%22%3A%22hanako%40example.net%22%2C%22senderIp%22%3A%22198.51.100.7%22%2C%22status%22%3A%22succeeded%22%7D%2C%7B%22created%22%3A%222026-10-01+09%3A15%3A05%22%2C%22subject%22%3A%22%E5%8D%81%E6%9C%88%E3%81%AE%E3%81%8A%E7%9F%A5%E3%82%89%E3%81%9B%22%2C%22messageId%22%3A%22%5Cu003C8c2f0d63%40mail.example.co.jp%5Cu003E%22%2C%22from%22%3A%22news%40example.co.jp%22%2C%22to%22%3A%22nobody%40example.net%22%2C%22reason%22%3A%22550+5.1.1+User+unknown%22%2C%22status%22%3A%22failed%22%7D%5D%7D",
    },
    SampleWebhook {
        what: "the bounce of the second one (JSON)",
        format: BodyFormat::Json,
        endpoint: Endpoint::Events,
        truncated: false,
        body: r#"{"event_type":"bounces","server_composition":"pro","event":{"bounces":[{"reason":"550 5.1.1 \u003Cnobody@example.net\u003E: Recipient address rejected: User unknown (in reply to RCPT TO)","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:06","subject":"十月のお知らせ","apiData":"","messageId":"\u003C8c2f0d63@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"nobody@example.net","status":"2"}]}}"#,
    },
    SampleWebhook {
        what: "a received mail with an attachment (multipart)",
        format: BodyFormat::Multipart,
        endpoint: Endpoint::Inbound,
        truncated: false,
        body: concat!(
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"server_composition\"\r\n\r\npro\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"headers\"\r\n\r\n",
            "[{\"name\":\"Message-ID\",\"value\":\"\\u003Cin-1@example.net\\u003E\"}]\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"subject\"\r\n\r\n",
            "Re: 十月のお知らせ\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nありがとうございます。\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"envelope-from\"\r\n\r\n",
            "hanako@example.net\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"envelope-to\"\r\n\r\n",
            "info@example.co.jp\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"attachments\"\r\n\r\n1\r\n",
            "------=_Part_1_\r\nContent-Disposition: form-data; name=\"attachment1\"; ",
            "filename=\"=?UTF-8?B?6KaL56mNLmNzdg==?=\"\r\nContent-Type: text/csv\r\n\r\n",
            "item,price\r\npaper,500\r\n\r\n",
            "------=_Part_1_--\r\n",
        ),
    },
    SampleWebhook {
        what: "a truncated body (it becomes a dead letter)",
        format: BodyFormat::Json,
        endpoint: Endpoint::Events,
        truncated: true,
        body: r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[{"subject":"十月の"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::send_sample::generate::BOUNDARY,
        cmc::{self, BodyEncoding, Media},
        config,
    };

    /// What the bridge makes of a body: its `api_key`, and whether it is understood.
    fn opened(sample: &SampleWebhook, body: &str) -> (Option<String>, bool) {
        let inbound = ("CMC_BRIDGE__STREAMS__INBOUND__ENABLED".into(), "true".into());
        let config = config::load(&[], std::iter::once(inbound)).unwrap().config;
        let content_type = sample.format.content_type(BOUNDARY);
        let request = cmc::Request {
            received_at_micros: 0,
            path: match sample.endpoint {
                Endpoint::Events => &config.ingest.path,
                Endpoint::Inbound => &config.ingest.inbound_path,
            },
            content_type: Some(&content_type),
            body: body.as_bytes(),
        };
        let media = Media::Known(sample.format.encoding());
        let rules = config.rules();
        let opened = cmc::open_request(&request, media, &rules);
        (opened.api_key.map(|key| key.into_owned()), opened.content.is_ok())
    }

    #[test]
    fn samples_are_what_they_say() {
        let key = "k\"ey+ &=%鍵";
        for sample in ALL {
            assert_eq!(
                opened(sample, sample.body),
                (None, !sample.truncated),
                "{}",
                sample.what
            );
            if !sample.truncated {
                let body = sample.format.with_api_key(sample.body, key);
                assert_eq!(
                    opened(sample, &body),
                    (Some(key.to_owned()), true),
                    "{}",
                    sample.what
                );
            }
        }
        let rules = config::load(&[], std::iter::empty()).unwrap().config.rules();
        let opened = cmc::open(CURL.as_bytes(), BodyEncoding::Json, &rules);
        assert!(opened.content.is_ok());
        assert!(!CURL.contains('\''));
    }
}
