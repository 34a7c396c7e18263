//! Every way in which a body or a piece of it can fail.

use super::*;
use crate::dead_letter::Scope;

const HEAD: &str = r#""api_key":"key","event_type":"deliveries","server_composition":"pro""#;

/// JSON bodies, each with its reason and offset.
fn malformed_json() -> Vec<(String, Reason, Option<usize>)> {
    let with = |rest: &str| format!("{{{HEAD},{rest}}}");
    // Including the opening brace and the comma that follows.
    let head = HEAD.len() + 2;
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let too_deep = with(&format!(
        r#""event":{{"deliveries":[{{}},{{"a":{}}}]}}"#,
        deep(64)
    ));
    let many_lists = (0..65).map(|n| format!("\"m{n}\":[],")).collect::<String>();
    let long = "c".repeat(257);
    vec![
        (with(r#""event":{}"#), Reason::MissingList, None),
        (with(r#""event":{"bounces":[{}]}"#), Reason::MissingList, None),
        (
            with(r#""event":{"deliveries":{}}"#),
            Reason::ListNotArray,
            Some(head + 22),
        ),
        (
            with(r#""event":{"deliveries":null}"#),
            Reason::ListNotArray,
            Some(head + 22),
        ),
        (with(r#""event":[]"#), Reason::EventNotObject, Some(head + 8)),
        (with(r#""event":null"#), Reason::EventNotObject, Some(head + 8)),
        (
            with(r#""event":"{\"deliveries\":[]}""#),
            Reason::EventNotObject,
            Some(head + 8),
        ),
        (format!("{{{HEAD}}}"), Reason::MissingEvent, None),
        (
            with(r#""event":{},"event":{}"#),
            Reason::DuplicateMember,
            Some(head + 19),
        ),
        (
            with(r#""event":{"deliveries":[],"deliveries":[]}"#),
            Reason::DuplicateMember,
            Some(head + 38),
        ),
        (
            with(r#""event_type":"deliveries","event":{}"#),
            Reason::DuplicateMember,
            Some(head + 13),
        ),
        (
            with(r#""event\u005ftype":1,"event":{}"#),
            Reason::DuplicateMember,
            Some(head + 18),
        ),
        (
            with(r#""server_composition":"pro""#),
            Reason::DuplicateMember,
            Some(head + 21),
        ),
        (too_deep, Reason::TooDeep, Some(head + 26)),
        (
            with(&format!(
                r#""event":{{"bounces":[{}],"deliveries":[]}}"#,
                deep(65)
            )),
            Reason::TooDeep,
            Some(head + 20),
        ),
        (
            with(&format!(r#""event":{{{many_lists}"deliveries":[]}}"#)),
            Reason::TooManyMembers,
            None,
        ),
        (
            with(&format!(r#"{many_lists}"event":{{"deliveries":[]}}"#)),
            Reason::TooManyMembers,
            None,
        ),
        (
            r#"{"api_key":"key","event":{},"server_composition":"pro"}"#.to_owned(),
            Reason::MissingEventType,
            None,
        ),
        (
            r#"{"event_type":1,"api_key":"key"}"#.to_owned(),
            Reason::InvalidEventType,
            Some(14),
        ),
        (
            r#"{"event_type":"\ud83d","api_key":"key"}"#.to_owned(),
            Reason::InvalidEventType,
            Some(14),
        ),
        (
            r#"{"event_type":"bounces","api_key":"key"}"#.to_owned(),
            Reason::MissingServerComposition,
            None,
        ),
        (
            r#"{"api_key":"key","event_type":"bounces","server_composition":[]}"#.to_owned(),
            Reason::InvalidServerComposition,
            Some(61),
        ),
        (
            format!(r#"{{"api_key":"key","event_type":"bounces","server_composition":"{long}"}}"#),
            Reason::InvalidServerComposition,
            None,
        ),
    ]
}

#[test]
fn malformed_bodies_have_their_reason_and_their_key() {
    for (body, reason, offset) in malformed_json() {
        let rules = rules();
        let opened = open(body.as_bytes(), BodyEncoding::Json, &rules);
        let malformed = opened.content.as_ref().err().unwrap();
        assert_eq!(malformed.reason, reason, "{body}");
        if reason != Reason::TooManyMembers {
            assert_eq!(malformed.offset, offset, "{body}");
        }
        assert_eq!(opened.api_key.as_deref(), Some("key"), "{body}");
        let split = split(&opened, &rules, &request(body.as_bytes()));
        assert_eq!(reasons(&split), [reason]);
        assert!(split.events.is_none());
        let letters = letters(&split);
        assert_eq!(letters[0].value, body.replace("\"key\"", "\"***\""));
        assert_eq!(letters[0].header("cmc-dead-letter-masked"), Some("true"));
        let offset = malformed.offset.map(|offset| offset.to_string());
        assert_eq!(letters[0].header("cmc-dead-letter-offset"), offset.as_deref());
    }
}

#[test]
fn bodies_without_a_findable_key() {
    for (body, encoding, reason, offset) in [
        (&b""[..], BodyEncoding::Json, Reason::InvalidJson, Some(0)),
        (
            br#"{"api_key":"key""#,
            BodyEncoding::Json,
            Reason::InvalidJson,
            Some(16),
        ),
        (
            br#"{"api_key":"key"}{}"#,
            BodyEncoding::Json,
            Reason::InvalidJson,
            Some(17),
        ),
        (
            b"{\"api_key\":\"key\",\"x\":\"\xFF\"}",
            BodyEncoding::Json,
            Reason::InvalidUtf8,
            Some(22),
        ),
        (b" [{}]", BodyEncoding::Json, Reason::BodyNotObject, Some(1)),
        (
            br#"{"api_key":"a","api_key":"a"}"#,
            BodyEncoding::Json,
            Reason::DuplicateMember,
            Some(25),
        ),
        (
            br#"{"api_key":1,"event_type":"bounces"}"#,
            BodyEncoding::Json,
            Reason::MissingServerComposition,
            None,
        ),
        (b"", BodyEncoding::Form, Reason::MissingEventType, None),
        (b"api_key=%2", BodyEncoding::Form, Reason::InvalidForm, Some(8)),
        (b"api_key=%FF", BodyEncoding::Form, Reason::InvalidForm, Some(8)),
        (
            b"api_key=a&api_key=b",
            BodyEncoding::Form,
            Reason::DuplicateMember,
            Some(18),
        ),
        (
            b"api_key=a&api_key=b&api_key=c",
            BodyEncoding::Form,
            Reason::DuplicateMember,
            Some(18),
        ),
    ] {
        let opened = open(body, encoding, &rules());
        let text = String::from_utf8_lossy(body);
        assert_eq!(opened.api_key, None, "{text}");
        let malformed = opened.content.err().unwrap();
        assert_eq!((malformed.reason, malformed.offset), (reason, offset), "{text}");
        assert!(!malformed.to_string().is_empty());
    }
}

#[test]
fn malformed_forms_have_their_reason_and_their_key() {
    let type_and_composition = "api_key=key&event_type=deliveries&server_composition=pro&";
    let at = type_and_composition.len();
    for (rest, reason, offset) in [
        ("", Reason::MissingEvent, None),
        ("event=", Reason::InvalidJson, Some(0)),
        ("event=%7B%22deliveries%22:[%7B%7D", Reason::InvalidJson, Some(17)),
        ("event=%22%FF%22", Reason::InvalidUtf8, Some(1)),
        ("event=\"\"", Reason::EventNotObject, Some(0)),
        ("event={}&event={}", Reason::DuplicateMember, Some(at + 15)),
        ("event={}&event_type=x", Reason::DuplicateMember, Some(at + 20)),
        (
            "event={}&server_composition=x",
            Reason::DuplicateMember,
            Some(at + 28),
        ),
        ("event={%2x}", Reason::InvalidForm, Some(at + 7)),
        ("event={}&x=%", Reason::InvalidForm, Some(at + 11)),
        ("event={}&%zz=1", Reason::InvalidForm, Some(at + 9)),
        ("event={}&x=%FF", Reason::InvalidForm, Some(at + 11)),
        ("event={}&%FF=1", Reason::InvalidForm, Some(at + 9)),
        ("event={}", Reason::MissingList, None),
    ] {
        let body = format!("{type_and_composition}{rest}");
        let rules = rules();
        let opened = open(body.as_bytes(), BodyEncoding::Form, &rules);
        let malformed = opened.content.as_ref().err().unwrap();
        assert_eq!((malformed.reason, malformed.offset), (reason, offset), "{body}");
        assert_eq!(opened.api_key.as_deref(), Some("key"), "{body}");
        let letters = letters(&split(&opened, &rules, &request(body.as_bytes())));
        assert_eq!(letters[0].value, body.replace("=key", "=***"));
    }
}

#[test]
fn depth_and_number_at_their_limits_are_fine() {
    let nested = "[".repeat(63) + &"]".repeat(63);
    let split = split_json(&deliveries(&format!(r#"{{"a":{nested}}}"#)));
    assert_eq!(events(&split).len(), 1);
    let mut rules = rules();
    rules.max_events = 3;
    let body = deliveries("{},{},{}");
    let split = split_with(body.as_bytes(), BodyEncoding::Json, &rules);
    assert_eq!(events(&split).len(), 3);
}

#[test]
fn too_many_elements_are_not_stored() {
    let mut rules = rules();
    rules.max_events = 100;
    for lists in [
        format!(r#""deliveries":[{}{{}}]"#, "{},".repeat(300_000)),
        format!(r#""deliveries":[],"bounces":[{}[]]"#, "[],".repeat(300_000)),
    ] {
        let body = format!(r#"{{{HEAD},"event":{{{lists}}}}}"#);
        let opened = open(body.as_bytes(), BodyEncoding::Json, &rules);
        assert_eq!(opened.api_key.as_deref(), Some("key"));
        assert_eq!(
            opened.content.err().map(|error| error.reason),
            Some(Reason::TooManyEvents)
        );

        let mut cursor = json::Cursor::new(&body);
        cursor.at = body.find(r#"{"deliveries"#).unwrap();
        let event = elements::read_event(&mut cursor, &body, rules.max_events)
            .ok()
            .unwrap();
        assert_eq!(event.elements.len(), 100);
    }
}

#[test]
fn deep_nesting_uses_no_stack() {
    for nested in [
        "[".repeat(200_000) + &"]".repeat(200_000),
        r#"{"a":"#.repeat(200_000) + "1" + &"}".repeat(200_000),
    ] {
        for (body, reason) in [
            (deliveries(&nested), Some(Reason::TooDeep)),
            (deliveries(&format!(r#"{{"a":{nested}}}"#)), Some(Reason::TooDeep)),
            (
                format!(r#"{{{HEAD},"x":{nested},"event":{{"deliveries":[],"y":{{"z":{nested}}}}}}}"#),
                None,
            ),
        ] {
            let opened = open(body.as_bytes(), BodyEncoding::Json, &rules());
            assert_eq!(opened.content.as_ref().err().map(|error| error.reason), reason);
        }
    }
}

#[test]
fn a_body_of_no_enabled_stream_is_one_dead_letter() {
    let mut rules = rules();
    rules.enabled[Stream::Blocks.index()] = false;
    for (event_type, event) in [
        ("blocks", r#"{"blocks":[{},{}]}"#),
        ("dead_letters", r#"{"dead_letters":[{}]}"#),
        ("opens", r#"{"anything":{"at":"all"}}"#),
        ("opens", r#""text""#),
        ("opens", "[7]"),
        ("opens", "null"),
        ("", "{}"),
    ] {
        let json = format!(r#"{{"event_type":"{event_type}","server_composition":"pro","event":{event}}}"#);
        let form = form(event_type, "pro", event);
        for (body, encoding) in [(json, BodyEncoding::Json), (form, BodyEncoding::Form)] {
            let opened = open(body.as_bytes(), encoding, &rules);
            assert_eq!(opened.content.as_ref().ok().and_then(Content::stream), None);
            assert!(opened.content.is_ok());
            let split = split(&opened, &rules, &request(body.as_bytes()));
            assert!(split.events.is_none());
            assert_eq!(reasons(&split), [Reason::UnknownEventType]);
            let letters = letters(&split);
            assert_eq!(letters.len(), 1);
            assert_eq!(letters[0].value, body);
            assert_eq!(letters[0].header("cmc-dead-letter-event-type"), Some(event_type));
        }
    }
}

#[test]
fn the_event_of_a_stream_that_is_not_enabled_is_not_validated() {
    let named = r#""event_type":"opens","server_composition":"pro""#;
    let many = "1,".repeat(20_000) + "1";
    let deep = "[".repeat(100) + &"]".repeat(100);
    for (body, encoding) in [
        (format!("{{{named}}}"), BodyEncoding::Json),
        (
            format!(r#"{{{named},"event":{{}},"event":7}}"#),
            BodyEncoding::Json,
        ),
        (
            format!(r#"{{{named},"event":{{"opens":[{many}]}}}}"#),
            BodyEncoding::Json,
        ),
        (
            format!(r#"{{{named},"event":{{"opens":[{deep}]}}}}"#),
            BodyEncoding::Json,
        ),
        (
            "event_type=opens&server_composition=pro".to_owned(),
            BodyEncoding::Form,
        ),
        (
            "event_type=opens&server_composition=pro&event=no+JSON".to_owned(),
            BodyEncoding::Form,
        ),
        (
            "event=%&event_type=opens&server_composition=pro&event=".to_owned(),
            BodyEncoding::Form,
        ),
        (
            "event=%ff&event_type=opens&server_composition=pro".to_owned(),
            BodyEncoding::Form,
        ),
    ] {
        let split = split_with(body.as_bytes(), encoding, &rules());
        assert_eq!(reasons(&split), [Reason::UnknownEventType], "{body:.100}");
        assert!(split.events.is_none());
        assert_eq!(letters(&split)[0].value, body);
        // The same body for an enabled stream is malformed.
        let known = body.replace("opens", "bounces");
        let opened = open(known.as_bytes(), encoding, &rules());
        assert!(opened.content.is_err(), "{known:.100}");
    }
}

#[test]
fn text_that_is_not_utf8_is_reported_as_such() {
    let body = deliveries(r#"{"subject":"x"}"#);
    let wide = |to_bytes: fn(u16) -> [u8; 2]| body.encode_utf16().flat_map(to_bytes).collect::<Vec<u8>>();
    let marked = |mark: &[u8], rest: &[u8]| [mark, rest].concat();
    let (little, big) = (wide(u16::to_le_bytes), wide(u16::to_be_bytes));
    // "件名" in Shift_JIS.
    let shift_jis = deliveries(r#"{"subject":"??"}"#).into_bytes();
    let at = shift_jis.iter().position(|byte| *byte == b'?').unwrap();
    let mut shift_jis = shift_jis;
    shift_jis.splice(at..at + 2, [0x8C, 0x8F, 0x96, 0xBC]);
    for (bytes, reason, offset, detail) in [
        (little.clone(), Reason::InvalidUtf8, 0, "is UTF-16 or UTF-32"),
        (big.clone(), Reason::InvalidUtf8, 0, "is UTF-16 or UTF-32"),
        (
            marked(&[0xFF, 0xFE], &little),
            Reason::InvalidUtf8,
            0,
            "is UTF-16 or UTF-32",
        ),
        (
            marked(&[0xFE, 0xFF], &big),
            Reason::InvalidUtf8,
            0,
            "is UTF-16 or UTF-32",
        ),
        (
            marked(BOM, body.as_bytes()),
            Reason::InvalidJson,
            0,
            "byte order mark",
        ),
        (shift_jis, Reason::InvalidUtf8, at, "is not UTF-8"),
    ] {
        let malformed = open(&bytes, BodyEncoding::Json, &rules()).content.err().unwrap();
        assert_eq!(
            (malformed.reason, malformed.offset),
            (reason, Some(offset)),
            "{malformed}"
        );
        assert!(malformed.detail.contains(detail), "{malformed}");
    }
}

#[test]
fn pieces_that_fail_do_not_affect_the_rest() {
    let large = format!(r#"{{"large":"{}"}}"#, "x".repeat(3000));
    let elements = format!(
        r#"{{"n":0}}, 7 ,{{"event_type":1}},{{"n":1}},{{"\u0065vent_type":""}},[{{}}],{large},{{"n":2}},{{"a":0,"server_composition":"x"}}"#
    );
    let event = format!(
        r#"{{"total" : 3, "bounces":[{{"b":0}},null],"deliveries":[{elements}],"meta":{{ "a":1}},"t\ud83d":""}}"#
    );
    let json = format!(
        r#"{{"event_type":"deliveries","server_composition":"pro","extra":[ 1],"event":{event},"more\u0021":{{}},"n":1}}"#
    );
    let form = form("deliveries", "pro", &event) + "&extra=%5B+1%5D&more!={}&n=1";
    let expected: Vec<(Reason, Option<&str>, Option<&str>, &str)> = vec![
        (Reason::UnexpectedValue, None, Some("total"), "3"),
        (Reason::UnexpectedList, Some("0"), Some("bounces"), r#"{"b":0}"#),
        (Reason::UnexpectedList, Some("1"), Some("bounces"), "null"),
        (Reason::ElementNotObject, Some("1"), Some("deliveries"), "7"),
        (
            Reason::ReservedMember,
            Some("2"),
            Some("deliveries"),
            r#"{"event_type":1}"#,
        ),
        (
            Reason::ReservedMember,
            Some("4"),
            Some("deliveries"),
            r#"{"\u0065vent_type":""}"#,
        ),
        (Reason::ElementNotObject, Some("5"), Some("deliveries"), "[{}]"),
        (Reason::RecordTooLarge, Some("6"), Some("deliveries"), &large),
        (
            Reason::ReservedMember,
            Some("8"),
            Some("deliveries"),
            r#"{"a":0,"server_composition":"x"}"#,
        ),
        (Reason::UnexpectedValue, None, Some("meta"), r#"{ "a":1}"#),
        (Reason::UnexpectedValue, None, None, r#""""#),
        (Reason::UnexpectedMember, None, Some("extra"), "[ 1]"),
        (Reason::UnexpectedMember, None, Some("more!"), "{}"),
    ];
    let mut rules = rules();
    rules.max_record_bytes = 2500;
    for (body, encoding) in [(json, BodyEncoding::Json), (form, BodyEncoding::Form)] {
        let split = split_with(body.as_bytes(), encoding, &rules);
        let values: Vec<_> = events(&split).into_iter().map(|record| record.value).collect();
        assert_eq!(
            values,
            [0, 1, 2].map(|n| format!(r#"{{"event_type":"deliveries","server_composition":"pro","n":{n}}}"#))
        );
        assert_eq!(
            reasons(&split),
            expected.iter().map(|row| row.0).collect::<Vec<_>>()
        );
        let mut letters = letters(&split).into_iter().peekable();
        for (reason, index, member, value) in &expected {
            let mut letter = letters.next().unwrap();
            assert_eq!(letter.header("cmc-dead-letter-reason"), Some(reason.name()));
            assert_eq!(letter.header("cmc-dead-letter-index"), *index);
            assert_eq!(letter.header("cmc-dead-letter-member"), *member);
            assert_eq!(letter.header("cmc-dead-letter-masked"), None);
            while letters
                .peek()
                .is_some_and(|next| next.header("cmc-dead-letter-part") > Some("1"))
            {
                letter.value += &letters.next().unwrap().value;
            }
            assert_eq!(letter.value, *value);
        }
        assert_eq!(letters.next(), None);
    }
}

#[test]
fn a_dead_letter_in_full() {
    let split = split_json(&deliveries("{},1"));
    let headers = [
        ("cmc-dead-letter-reason", "element_not_object"),
        ("cmc-dead-letter-member", "deliveries"),
        ("cmc-dead-letter-event-type", "deliveries"),
        ("cmc-dead-letter-server-composition", "pro"),
        ("cmc-dead-letter-path", "/webhooks/events"),
        ("cmc-dead-letter-content-type", "application/json"),
        ("cmc-dead-letter-received-at", RECEIVED_AT_TEXT),
        ("cmc-dead-letter-index", "1"),
    ];
    let letter = Rec {
        key: None,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        value: "1".to_owned(),
    };
    assert_eq!(letters(&split), [letter]);
}

#[test]
fn the_record_limit_is_exact() {
    let element = format!(
        r#"{{"messageId":"id","created":"2026-10-01 09:15:02","x":"{}"}}"#,
        "x".repeat(500)
    );
    let body = deliveries(&element);
    let record = &events(&split_json(&body))[0];
    let headers = record
        .headers
        .iter()
        .map(|(name, value)| (&**name, value.as_bytes()));
    let size = crate::batch::alone_in_batch(Some(b"id"), headers, record.value.len());
    for (limit, failures) in [(size, vec![]), (size - 1, vec![Reason::RecordTooLarge])] {
        let mut rules = rules();
        rules.max_record_bytes = limit;
        assert_eq!(
            reasons(&split_with(body.as_bytes(), BodyEncoding::Json, &rules)),
            failures
        );
    }
}

#[test]
fn a_body_that_was_never_opened_is_a_dead_letter_too() {
    let body = b"\x1F\x8B configured-secret";
    for reason in [Reason::UnsupportedMediaType, Reason::UnsupportedEncoding] {
        let split = split_with(body, Media::Unsupported(reason), &rules());
        assert_eq!(reasons(&split), [reason]);
        let (batch, tally) = split.dead_letters.unwrap();
        assert_eq!(tally.total(), 1);
        let view = BatchView::decode(batch.bytes()).unwrap();
        assert_eq!(*view.records[0].value(), *b"\x1F\x8B *****************");
        let headers: Vec<_> = view.headers(&view.records[0]).collect();
        assert_eq!(headers[0], ("cmc-dead-letter-reason", reason.name().as_bytes()));
        assert_eq!(headers.last(), Some(&("cmc-dead-letter-masked", &b"true"[..])));
    }
}

/// The tables above, and those of received mail, cover every reason that a webhook can have. A new reason needs a row in one.
#[test]
fn every_reason_has_its_row() {
    let source = concat!(include_str!("failures.rs"), include_str!("inbound.rs"));
    for reason in Reason::ALL
        .iter()
        .filter(|reason| reason.scope() != Scope::Broker)
    {
        assert!(source.contains(&format!("Reason::{reason:?}")), "{reason}");
    }
}

#[test]
fn a_long_name_is_masked_once_for_all_of_its_elements() {
    // Masking it once per element would process 10,000 × 4 MB and take minutes.
    let name = "%+".repeat(2 << 20);
    let zeros = "0,".repeat(9_999) + "0";
    let body = format!(
        r#"{{"event_type":"deliveries","server_composition":"pro","event":{{"deliveries":[],"{name}":[{zeros}]}}}}"#
    );
    let begun = std::time::Instant::now();
    let split = split_with(body.as_bytes(), BodyEncoding::Json, &rules());
    assert_eq!(split.failures.len(), 10_000);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(100),
        "{:?}",
        begun.elapsed()
    );
}
