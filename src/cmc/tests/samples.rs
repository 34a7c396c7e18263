//! Well-formed webhooks and the records that they become, byte for byte.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::*;

macro_rules! sample {
    ($name:literal) => {
        include_str!(concat!("../../../tests/samples/", $name))
    };
}
pub(super) use sample;

pub(super) const BATCH: &str = sample!("deliveries-batch-100.json");

/// Body, stream, `ce_id`, time of `created` (on 2026-10-01, Tokyo time), whether it has a key. The ids were computed by
/// another implementation (Python's `uuid.uuid5`).
#[rustfmt::skip]
pub(super) const SAMPLES: [(&str, Stream, &str, &str, bool); 9] = [
    (sample!("blocks.json"), Stream::Blocks, "e5e13975-41ac-5934-a583-7f539c7eb6f3", "09:20:00", false),
    (sample!("bounces-unknown-host.json"), Stream::Bounces, "7c8031cb-3df8-5c6c-b380-b17a35c6b89a", "09:15:02", true),
    (sample!("bounces-unknown-user.json"), Stream::Bounces, "f6d9eeb4-346c-57b3-b7b0-9aa07f8b6ce9", "09:15:06", true),
    (sample!("deliveries-api-key.json"), Stream::Deliveries, "592266bb-9d19-5cdd-9e20-b1f775a53b85", "09:15:02", true),
    (sample!("deliveries-deferred.json"), Stream::Deliveries, "84c6af1d-72ca-5719-a6f2-67d32c6fb50b", "09:15:02", true),
    (sample!("deliveries-failed.json"), Stream::Deliveries, "08b07fe1-7a43-50ee-bd9d-cf16b693a9fb", "09:15:02", true),
    (sample!("deliveries-queued.json"), Stream::Deliveries, "5d72cb5f-1cb3-5b39-9313-df2b68914e3c", "09:15:02", true),
    (sample!("deliveries-succeeded.json"), Stream::Deliveries, "ec4e8a9d-917a-5716-ba3c-3b6228d1e537", "09:15:05", true),
    (sample!("deliveries-version1.json"), Stream::Deliveries, "b7ef997b-41a8-52dc-8832-42f8e0994e40", "09:15:02", true),
];

const KEY: &str = "<7b1e9c52-0a44-4d0e-9a1f-5d2f0f7c1a10@mail.example.co.jp>";

fn expected(stream: Stream, id: &str, time: &str, key: Option<&str>, element: &str) -> Rec {
    let mut headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_type", format!("jp.smtps.cmc.{stream}")),
        ("ce_source", "/cmc/pro".to_owned()),
        ("content-type", "application/json".to_owned()),
        ("cmc-received-at", RECEIVED_AT_TEXT.to_owned()),
        ("ce_id", id.to_owned()),
    ];
    if let Some(key) = key {
        headers.push(("ce_subject", key.to_owned()));
    }
    headers.push(("ce_time", format!("2026-10-01T{time}+09:00")));
    Rec {
        key: key.map(str::to_owned),
        headers: headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        value: format!(
            r#"{{"event_type":"{stream}","server_composition":"pro",{}"#,
            element.strip_prefix('{').unwrap()
        ),
    }
}

/// The text between the brackets of the list in these bodies.
fn inside_list(body: &str, stream: Stream) -> &str {
    let marker = format!("\"{stream}\":[");
    let start = body.find(&marker).unwrap() + marker.len();
    &body[start..body.rfind("]}").unwrap()]
}

#[test]
fn each_sample_becomes_its_record() {
    for (body, stream, id, time, keyed) in SAMPLES {
        let split = split_json(body);
        let element = inside_list(body, stream);
        let record = expected(stream, id, time, keyed.then_some(KEY), element);
        assert_eq!(events(&split), [record]);
        assert_eq!(split.events.as_ref().map(|(stream, ..)| *stream), Some(stream));
        assert!(split.dead_letters.is_none() && split.failures.is_empty());
    }
}

#[test]
fn a_record_in_full() {
    let record = &events(&split_json(sample!("deliveries-queued.json")))[0];
    assert_eq!(record.key.as_deref(), Some(KEY));
    assert_eq!(
        record.value,
        r#"{"event_type":"deliveries","server_composition":"pro","reason":"","sourceIp":"192.0.2.10","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:02","subject":"十月のお知らせ","apiData":"","messageId":"\u003C7b1e9c52-0a44-4d0e-9a1f-5d2f0f7c1a10@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"hanako@example.net","senderIp":"","status":"queued"}"#
    );
}

#[test]
fn the_form_sample_becomes_two_records() {
    let body = sample!("deliveries-form.txt");
    let rules = rules();
    let opened = open(body.as_bytes(), BodyEncoding::Form, &rules);
    assert_eq!(
        opened.api_key.as_deref(),
        Some("0123456789abcdef0123456789abcdef")
    );
    let split = split(&opened, &rules, &request(body.as_bytes()));
    let element = |ip: &str, to: &str, status: &str| {
        format!(
            r#"{{"reason":"","sourceIp":"","returnPath":"bounce@mail.example.co.jp","created":"2026-10-01 09:15:02","subject":"十月のお知らせ","apiData":"","messageId":"\u003C7b1e9c52-0a44-4d0e-9a1f-5d2f0f7c1a10@mail.example.co.jp\u003E","from":"news@example.co.jp","to":"{to}@example.net","senderIp":"{ip}","status":"{status}"}}"#
        )
    };
    let record = |id, element: String| expected(Stream::Deliveries, id, "09:15:02", Some(KEY), &element);
    assert_eq!(
        events(&split),
        [
            record(
                "2d2f6fc4-c180-5d07-9745-bc3759d07010",
                element("198.51.100.7", "hanako", "succeeded")
            ),
            record(
                "fdc6efa2-38fc-5ac3-8742-a39ee0debec4",
                element("", "taro", "queued")
            ),
        ]
    );
    let tally = split.events.unwrap().2;
    assert_eq!(tally.counts()[..5], [1, 1, 0, 0, 0]);
}

#[test]
fn a_batch_of_100_keeps_order_and_bytes() {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        event: BTreeMap<&'a str, Vec<&'a RawValue>>,
    }
    let body: Body<'_> = serde_json::from_str(BATCH).unwrap();
    let split = split_json(BATCH);
    let records = events(&split);
    assert_eq!(records.len(), 100);
    for (index, (record, element)) in records.iter().zip(&body.event["deliveries"]).enumerate() {
        let prefix = r#"{"event_type":"deliveries","server_composition":"pro","#;
        assert_eq!(record.value, format!("{prefix}{}", &element.get()[1..]));
        assert!(
            record
                .key
                .as_deref()
                .unwrap()
                .starts_with(&format!("<{index:08x}")),
            "{index}"
        );
    }
    let mut ids: Vec<_> = records.iter().map(|record| record.header("ce_id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    assert_eq!(split.events.unwrap().2.counts()[..5], [25, 25, 25, 25, 0]);
}

#[test]
fn a_form_and_json_make_the_same_records() {
    let odd = r#"{"event_type":"bounces","server_composition":"日本 &=+%\"\\\u003C\/","event":{"bounces":[ {} ,{"a+b":"c d%20&","messageId":"\u5341"}]}}"#;
    let bodies = SAMPLES.iter().map(|sample| sample.0).chain([BATCH, odd]);
    for body in bodies {
        let parsed: BTreeMap<&str, &RawValue> = serde_json::from_str(body).unwrap();
        let text = |name: &str| serde_json::from_str::<String>(parsed[name].get()).unwrap();
        let form = form(
            &text("event_type"),
            &text("server_composition"),
            parsed["event"].get(),
        );
        let from_form = split_with(form.as_bytes(), BodyEncoding::Form, &rules());
        let from_json = split_json(body);
        assert!(from_json.events.is_some());
        assert_eq!(from_form.events, from_json.events);
        assert_eq!(from_form.failures, from_json.failures);
    }
}

#[test]
fn the_documented_vectors_hold() {
    let document = include_str!("../../../docs/events.md");
    let section = document.split("### Test vectors").nth(1).unwrap();
    assert!(document.contains(&format!("    {NAMESPACE}\n")));
    let mut count = 0;
    for row in section
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("| `{"))
    {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, event_type, composition, element, id, _] = cells[..] else {
            panic!("{row}");
        };
        let body = format!(
            r#"{{"event_type":"{event_type}","server_composition":"{composition}","event":{{"{event_type}":[{element}]}}}}"#
        );
        assert_eq!(events(&split_json(&body))[0].header("ce_id"), Some(id), "{row}");
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn the_documentation_lists_exactly_the_reasons() {
    let document = include_str!("../../../docs/events.md");
    let section = document.split("### Reasons").nth(1).unwrap();
    let rows: Vec<_> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| row.split(" | ").take(2).collect::<Vec<_>>())
        .collect();
    let expected: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| vec![format!("{reason}`"), reason.scope().name().to_owned()])
        .collect();
    assert_eq!(rows, expected);
}

#[test]
fn keys() {
    let at_limit = format!("\"{}\"", "k".repeat(512));
    let escaped_at_limit = format!("\"{}\"", "\\u006b".repeat(512));
    let over = format!("\"{}\"", "k".repeat(513));
    let escaped_over = format!("\"{}\"", "\\u006b".repeat(513));
    let wide = "k".repeat(510) + "é";
    let wide_at_limit = format!("\"{wide}\"");
    let wide_over = format!("\"k{wide}\"");
    let plain = "k".repeat(512);
    for (message_id, key) in [
        (r#""a""#, Some("a")),
        (r#""\u003C\ud83d\ude00\n\u003E""#, Some("<😀\n>")),
        (r#""""#, None),
        (r#"" ""#, Some(" ")),
        ("7", None),
        ("null", None),
        (r#"["a"]"#, None),
        (r#""\ud83d""#, None),
        (&at_limit, Some(&*plain)),
        (&escaped_at_limit, Some(&*plain)),
        (&over, None),
        (&escaped_over, None),
        (&wide_at_limit, Some(&*wide)),
        (&wide_over, None),
        (r#""a\u0000b""#, Some("a\0b")),
        (r#""a\u0085b""#, Some("a\u{85}b")),
        (r#""a\ufffeb""#, Some("a\u{fffe}b")),
        (r#""a\ufdd0b""#, Some("a\u{fdd0}b")),
        (r#""a\ufffd\u2028b""#, Some("a\u{fffd}\u{2028}b")),
        (r#""a\ude00""#, None),
        // If a member is repeated, the last one counts, whatever its value.
        (r#""a","messageId":"b""#, Some("b")),
        (r#""a","message\u0049d":7"#, None),
        (r#"7,"messageId":"b""#, Some("b")),
    ] {
        let element = format!(r#"{{"messageId":{message_id}}}"#);
        let record = &events(&split_json(&deliveries(&element)))[0];
        assert_eq!(record.key.as_deref(), key, "{message_id}");
        // CloudEvents forbids these characters in attributes; a key may contain them.
        let may_be_subject = |key: &&str| !key.contains(['\0', '\n', '\u{85}', '\u{fffe}', '\u{fdd0}']);
        assert_eq!(
            record.header("ce_subject"),
            key.filter(may_be_subject),
            "{message_id}"
        );
    }
}

#[test]
fn elements_with_odd_members() {
    for (element, value_rest, key, time, status) in [
        ("{}", "}", None, None, 4),
        ("{ \n}", " \n}", None, None, 4),
        (r#"{ "a" : 1 }"#, r#", "a" : 1 }"#, None, None, 4),
        (
            r#"{"status":"failed","status":"queued"}"#,
            r#","status":"failed","status":"queued"}"#,
            None,
            None,
            0,
        ),
        (
            r#"{"status":"queued","status":1}"#,
            r#","status":"queued","status":1}"#,
            None,
            None,
            4,
        ),
        (
            r#"{"status":"\u0071ueued"}"#,
            r#","status":"\u0071ueued"}"#,
            None,
            None,
            0,
        ),
        (
            r#"{"messageId":"a","messageId":"b"}"#,
            r#","messageId":"a","messageId":"b"}"#,
            Some("b"),
            None,
            4,
        ),
        (
            r#"{"messageId":"a","messageId":null}"#,
            r#","messageId":"a","messageId":null}"#,
            None,
            None,
            4,
        ),
        (
            r#"{"message\u0049d":"a"}"#,
            r#","message\u0049d":"a"}"#,
            Some("a"),
            None,
            4,
        ),
        (
            r#"{"x":{"messageId":"a","event_type":1}}"#,
            r#","x":{"messageId":"a","event_type":1}}"#,
            None,
            None,
            4,
        ),
        (
            r#"{"created":"2026\u002d10-01 09:15:02"}"#,
            r#","created":"2026\u002d10-01 09:15:02"}"#,
            None,
            Some("2026-10-01T09:15:02+09:00"),
            4,
        ),
        (r#"{"created":"today"}"#, r#","created":"today"}"#, None, None, 4),
    ] {
        let split = split_json(&deliveries(element));
        let record = &events(&split)[0];
        let value = format!(r#"{{"event_type":"deliveries","server_composition":"pro"{value_rest}"#);
        assert_eq!(record.value, value);
        serde_json::from_str::<serde_json::Value>(&value).unwrap();
        assert_eq!(record.key.as_deref(), key, "{element}");
        assert_eq!(record.header("ce_time"), time, "{element}");
        assert_eq!(split.events.unwrap().2.counts()[status], 1, "{element}");
    }
}

#[test]
fn the_composition_determines_zone_and_source() {
    for (composition, source, time) in [
        ("pro", "/cmc/pro", "2026-10-01T09:15:02+09:00"),
        ("utc", "/cmc/utc", "2026-10-01T09:15:02+00:00"),
        ("a-b._~c", "/cmc/a-b._~c", "2026-10-01T09:15:02+09:00"),
        (
            "a/b c:日",
            "/cmc/a%2Fb%20c%3A%E6%97%A5",
            "2026-10-01T09:15:02+09:00",
        ),
        ("", "/cmc/", "2026-10-01T09:15:02+09:00"),
    ] {
        let body = format!(
            r#" {{"server_composition":"{composition}","event":{{"blocks":[{{"created":"2026-10-01 09:15:02"}}]}},"event_type":"blocks"}} "#
        );
        let record = &events(&split_json(&body))[0];
        assert_eq!(record.header("ce_source"), Some(source));
        assert_eq!(record.header("ce_time"), Some(time));
        assert!(
            record
                .value
                .contains(&format!(r#""server_composition":"{composition}","#))
        );
    }
}

#[test]
fn an_empty_list_is_understood() {
    let split = split_json(&deliveries(" "));
    assert!(split.events.is_none() && split.dead_letters.is_none() && split.failures.is_empty());
}

#[test]
fn harmless_surroundings_are_ignored() {
    let json = r#"{"v":2,"x":"[]","y":null,"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[{}],"bounces":[]}}"#;
    let form =
        "v=2&&x=%7B+no+JSON&y&event_type=deliveries&server_composition=pro&event=%7B%22deliveries%22:[{}]}";
    for (body, encoding) in [(json, BodyEncoding::Json), (form, BodyEncoding::Form)] {
        let split = split_with(body.as_bytes(), encoding, &rules());
        assert_eq!(events(&split).len(), 1);
        assert!(split.dead_letters.is_none() && split.failures.is_empty());
    }
}
