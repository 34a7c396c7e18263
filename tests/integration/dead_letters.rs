//! Dead letters alone tell what was sent: read from the real topic, they are compared with it.

use std::time::Duration;

use cmc_bridge::dead_letter::{Letter, LetterAssembler, Reason};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{self, message, webhook},
    http::{EVENTS, FORM, JSON},
    kafka,
    topics::{self, Reader, Record},
};

const LIMIT: Duration = Duration::from_secs(180);

/// Whether what the clients sent is a dead letter in parts depends on this.
const MAX_RECORD_BYTES: usize = 20_000;

fn bridge(kafka: &str, topics: &Topics) -> Bridge {
    Setup::new(kafka)
        .topics(topics)
        .set("kafka.max_record_bytes", &MAX_RECORD_BYTES.to_string())
        .start()
}

/// All letters of a topic once everything is delivered, and how many records they were.
fn letters(bridge: &Bridge, kafka: &str, topic: &str) -> (Vec<Letter>, usize) {
    bridge.wait_drained(LIMIT);
    let mut reader = Reader::new(kafka, topic);
    let records = reader.read_to_end(LIMIT);
    let mut letters = LetterAssembler::default();
    let mut whole = Vec::new();
    for record in records {
        let headers: Vec<(&str, &[u8])> = record
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        whole.extend(
            letters
                .add(record.key.as_deref(), &headers, &record.value)
                .unwrap(),
        );
    }
    assert_eq!(letters.incomplete().next(), None);
    (whole, records.len())
}

/// The letter with these bytes, taken out.
fn take(letters: &mut Vec<Letter>, value: &[u8]) -> Letter {
    let at = letters.iter().position(|letter| letter.value == value);
    letters.remove(at.unwrap_or_else(|| panic!("no letter of {}", value.escape_ascii())))
}

#[test]
fn bodies_are_rebuilt_byte_for_byte() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let bridge = bridge(kafka, &topics);
    let noise = |length: usize| -> Vec<u8> {
        let mut state = 1u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(next).collect()
    };
    let text = ("content-type", "text/plain; charset=\"十\"");
    let encoded = ("content-encoding", "gzip");
    let deep = "[".repeat(65) + &"]".repeat(65);
    let deep = webhook("deliveries", "pro", &[&deep]);
    type Row<'r> = (&'r str, Vec<(&'r str, &'r str)>, Vec<u8>, u16, Reason);
    #[rustfmt::skip]
    let rows: Vec<Row<'_>> = vec![
        (EVENTS, vec![JSON], b"".to_vec(), 400, Reason::InvalidJson),
        (EVENTS, vec![JSON], b"{\"event_type\":\"deliveries\",\"event\":{\0".to_vec(), 400, Reason::InvalidJson),
        (EVENTS, vec![JSON], b"\xEF\xBB\xBF{}".to_vec(), 400, Reason::InvalidJson),
        (EVENTS, vec![JSON], b"{\"a\":\"\xFF\"}".to_vec(), 400, Reason::InvalidUtf8),
        (EVENTS, vec![JSON], deep.into_bytes(), 400, Reason::TooDeep),
        (EVENTS, vec![JSON], webhook("opens", "pro", &["1e400"]).into_bytes(), 200, Reason::UnknownEventType),
        (EVENTS, vec![FORM], b"event_type=bounces&x=%zz&;&+".to_vec(), 400, Reason::InvalidForm),
        (EVENTS, vec![], b"[]".to_vec(), 400, Reason::BodyNotObject),
        (EVENTS, vec![text], b"\0\r\n\xFFtext".to_vec(), 415, Reason::UnsupportedMediaType),
        ("/webhooks/events/", vec![JSON, encoded], noise(1000), 415, Reason::UnsupportedEncoding),
        (EVENTS, vec![JSON], noise(MAX_RECORD_BYTES - 20), 400, Reason::InvalidUtf8),
        (EVENTS, vec![FORM], noise(300_000), 400, Reason::InvalidForm),
    ];
    let mut client = bridge.client();
    for (path, headers, body, status, reason) in &rows {
        let answer = client.request("POST", path, headers, body).unwrap();
        assert_eq!(answer.status, *status, "{reason}");
    }
    let (mut letters, records) = letters(&bridge, kafka, &topics.dead_letters);
    assert_eq!(letters.len(), rows.len());
    // The two large ones are in parts: of 20,000 bytes, less a few hundred.
    assert_eq!(
        records,
        rows.len() - 2 + 2 + 300_000usize.div_ceil(MAX_RECORD_BYTES - 500)
    );
    for (path, headers, body, _, reason) in &rows {
        let letter = take(&mut letters, body);
        assert_eq!(letter.reason, *reason);
        assert_eq!(letter.path.as_deref(), Some(*path));
        let content_type = headers.iter().find(|(name, _)| *name == "content-type");
        assert_eq!(
            letter.content_type.as_deref(),
            content_type.map(|(_, value)| *value)
        );
        assert_eq!(
            (letter.key, letter.headers, letter.masked),
            (None, Vec::new(), false)
        );
    }
}

#[test]
fn pieces_are_rebuilt_byte_for_byte() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let bridge = bridge(kafka, &topics);
    let large = message("large@test", &"十".repeat(20_000));
    let good = [
        r#"{"messageId":"a\u0000b","n":-1.50E+3}"#.to_owned(),
        format!(r#"{{"messageId":"{}"}}"#, "i".repeat(512)),
    ];
    let elements = [
        &*good[0],
        "-1.50E+400",
        r#"{ "event_type" : "x", "a":"%+&" }"#,
        &large,
        &good[1],
    ];
    let list = elements.join(" ,\n");
    let event = format!(r#"{{"deliveries":[{list}],"bounces":[{{}},null],"total": 3.0 }}"#);
    let encoded = percent_encoding::percent_encode(event.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
    let form = format!("server_composition=a%26b&event_type=deliveries&extra=[%221+1%22]&event={encoded}");
    assert_eq!(bridge.client().post_with(&[FORM], form).status, 200);

    let (mut letters, records) = letters(&bridge, kafka, &topics.dead_letters);
    assert!(records > letters.len(), "the large one is in parts");
    for (reason, member, index, value) in [
        (Reason::ElementNotObject, "deliveries", Some(1), elements[1]),
        (Reason::ReservedMember, "deliveries", Some(2), elements[2]),
        (Reason::RecordTooLarge, "deliveries", Some(3), elements[3]),
        (Reason::UnexpectedList, "bounces", Some(0), "{}"),
        (Reason::UnexpectedList, "bounces", Some(1), "null"),
        (Reason::UnexpectedValue, "total", None, "3.0"),
        (Reason::UnexpectedMember, "extra", None, "[\"1 1\"]"),
    ] {
        let letter = take(&mut letters, value.as_bytes());
        assert_eq!((letter.reason, letter.index), (reason, index));
        assert_eq!(letter.member.as_deref(), Some(member));
        assert_eq!(letter.event_type.as_deref(), Some("deliveries"));
        assert_eq!(letter.server_composition.as_deref(), Some("a&b"));
        assert_eq!(letter.content_type.as_deref(), Some(FORM.1));
    }
    assert_eq!(letters, []);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let records = reader.read_to_end(LIMIT);
    assert_eq!(records.len(), good.len());
    for element in &good {
        let id = cmc::key_of(element);
        let record = records.iter().find(|record| record.key_text() == id.as_deref());
        cmc::check(record.unwrap(), "deliveries", "a&b", element);
    }
}

#[test]
fn a_refused_record_is_rebuilt_from_its_parts() {
    let kafka = kafka::shared();
    let mut topics = Topics::create(kafka);
    topics.deliveries = topics::create(kafka, "refusing", 1, &[("max.message.bytes", "10000")]);
    let bridge = bridge(kafka, &topics);
    // With its own headers alone the records still fit, with those of a dead letter they don't.
    let padding = MAX_RECORD_BYTES - 470;
    let with_key = message("large@test", &cmc::incompressible(padding - 100));
    let without = format!(
        r#"{{"created":"2026-10-01 09:15:02","subject":"{}"}}"#,
        cmc::incompressible(padding)
    );
    for element in [&with_key, &without] {
        assert_eq!(
            bridge
                .client()
                .post(webhook("deliveries", "pro", &[element]))
                .status,
            200
        );
    }
    let (letters, records) = letters(&bridge, kafka, &topics.dead_letters);
    assert_eq!((letters.len(), records), (2, 4));
    for element in [&with_key, &without] {
        let key = cmc::key_of(element).map(String::into_bytes);
        let letter = letters.iter().find(|letter| letter.key == key).unwrap();
        assert_eq!(letter.reason, Reason::RefusedTooLarge);
        assert_eq!(letter.topic.as_deref(), Some(topics.deliveries.as_str()));
        let record = Record {
            partition: 0,
            timestamp_ms: letter.received_at_micros / 1000,
            key: letter.key.clone(),
            headers: letter.headers.clone(),
            value: letter.value.clone(),
        };
        cmc::check(&record, "deliveries", "pro", element);
    }
}
