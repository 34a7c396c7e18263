use proptest::prelude::*;

use super::{
    headers::{ID, INDEX, MEMBER, OFFSET, PART, PARTS, REASON, RECEIVED_AT},
    record::{LetterRecord, LetterRecords, MIN_PART, cut},
    *,
};
use crate::batch::{BatchBuilder, BatchView, alone_in_batch};

fn text<'a>(headers: &'a [(&str, &[u8])], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| std::str::from_utf8(value).unwrap())
}

#[test]
fn names_are_distinct_snake_case_and_listed() {
    let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    for name in &names {
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'8'),
            "{name}"
        );
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Reason::ALL.len());
    assert_eq!(
        Reason::ALL.last().map(|last| *last as usize),
        Some(Reason::ALL.len() - 1)
    );
}

#[test]
fn only_known_details_become_headers() {
    let letter = DeadLetter::new(Reason::InvalidJson, 1_700_000_000_000_001, b"{");
    let records = letter.records(1_000_000);
    let record = records.iter().next().unwrap();
    assert_eq!(records.count(), 1);
    assert_eq!(record.key, None);
    assert_eq!(record.value, b"{");
    let headers: [(&str, &[u8]); 2] = [
        ("cmc-dead-letter-reason", b"invalid_json"),
        ("cmc-dead-letter-received-at", b"2023-11-14T22:13:20.000001Z"),
    ];
    assert_eq!(record.headers(), headers);
}

#[test]
fn known_details_become_headers_after_the_records_own() {
    let own: [(&str, &[u8]); 1] = [("ce_id", b"x")];
    let letter = DeadLetter {
        offset: Some(7),
        index: Some(0),
        member: Some("deliveries"),
        event_type: Some("deliveries"),
        server_composition: Some("pro"),
        path: Some("/webhooks/events"),
        content_type: Some("application/json"),
        masked: true,
        topic: Some("cmc.deliveries"),
        key: Some(b"key"),
        headers: &own,
        ..DeadLetter::new(Reason::RefusedInvalid, 0, b"{}")
    };
    let records = letter.records(1_000_000);
    let record = records.iter().next().unwrap();
    assert_eq!(record.key, Some(&b"key"[..]));
    let headers: [(&str, &[u8]); 12] = [
        ("ce_id", b"x"),
        ("cmc-dead-letter-reason", b"refused_invalid"),
        ("cmc-dead-letter-member", b"deliveries"),
        ("cmc-dead-letter-event-type", b"deliveries"),
        ("cmc-dead-letter-server-composition", b"pro"),
        ("cmc-dead-letter-path", b"/webhooks/events"),
        ("cmc-dead-letter-content-type", b"application/json"),
        ("cmc-dead-letter-topic", b"cmc.deliveries"),
        ("cmc-dead-letter-received-at", b"1970-01-01T00:00:00.000000Z"),
        ("cmc-dead-letter-masked", b"true"),
        ("cmc-dead-letter-offset", b"7"),
        ("cmc-dead-letter-index", b"0"),
    ];
    assert_eq!(record.headers(), headers);
}

#[test]
fn text_from_outside_is_cut_between_characters() {
    let path = "/".to_owned() + &"十".repeat(1000);
    let letter = DeadLetter {
        path: Some(&path),
        ..DeadLetter::new(Reason::InvalidJson, 0, b"")
    };
    let records = letter.records(1_000_000);
    let record = records.iter().next().unwrap();
    let headers = record.headers();
    assert_eq!(text(&headers, "cmc-dead-letter-path"), Some(&path[..256]));
}

#[test]
fn parts_fit_are_numbered_and_add_up() {
    let value: Vec<u8> = (0..10_000_000u32).map(|n| n as u8).collect();
    for (key, limit, length) in [
        (None, 1_000_000, 8_000_000),
        (None, 5_000, 1_000_000),
        (Some(&b"own key"[..]), 2_000, 2_000),
        (None, 1_000_000, 999_999),
    ] {
        let letter = DeadLetter {
            key,
            ..DeadLetter::new(Reason::InvalidJson, 0, &value[..length])
        };
        let mut builder = BatchBuilder::new(0, &[], b"", 0);
        letter.push(&mut builder, limit);
        let batch = builder.finish();
        let view = BatchView::decode(batch.bytes()).unwrap();
        let count = view.records.len();
        assert!(
            count > 1 && count < length / (limit - 400) + 2,
            "{count} parts for {length} bytes"
        );
        let id = text(
            &view.headers(&view.records[0]).collect::<Vec<_>>(),
            "cmc-dead-letter-id",
        )
        .unwrap()
        .to_owned();
        let mut whole = Vec::new();
        for (index, record) in view.records.iter().enumerate() {
            let headers: Vec<_> = view.headers(record).collect();
            let size = alone_in_batch(record.key, headers.iter().copied(), record.value_len());
            assert!(size <= limit, "{size} > {limit}");
            assert_eq!(record.key, Some(key.unwrap_or(id.as_bytes())));
            assert_eq!(text(&headers, "cmc-dead-letter-id"), Some(&*id));
            let part = text(&headers, "cmc-dead-letter-part").unwrap();
            assert_eq!(part, (index + 1).to_string());
            let parts = text(&headers, "cmc-dead-letter-parts").unwrap();
            assert_eq!(parts, count.to_string());
            whole.extend_from_slice(&record.value());
        }
        assert!(whole == value[..length]);
    }
}

#[test]
fn headers_that_leave_no_room_make_finitely_many_parts() {
    let large = vec![b'h'; 5000];
    let own: [(&str, &[u8]); 1] = [("large", &large)];
    let letter = DeadLetter {
        headers: &own,
        ..DeadLetter::new(Reason::RefusedTooLarge, 0, &large)
    };
    let records = letter.records(2000);
    assert_eq!(records.count(), 5);
    assert_eq!(
        records.iter().map(|record| record.value.len()).sum::<usize>(),
        5000
    );
}

/// The letter that [`LetterAssembler`] reads from all records in the given order.
fn read(records: &LetterRecords<'_>, order: impl Iterator<Item = usize>) -> Letter {
    let records: Vec<LetterRecord<'_>> = records.iter().collect();
    let mut letters = LetterAssembler::default();
    let mut found = Vec::new();
    for index in order {
        let record = &records[index];
        found.extend(letters.add(record.key, &record.headers(), record.value).unwrap());
    }
    assert_eq!(letters.incomplete().next(), None);
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// The letter as it must be read back.
fn whole(letter: &DeadLetter<'_>) -> Letter {
    let short = |text: Option<&str>| text.map(|text| cut(text).to_owned());
    Letter {
        reason: letter.reason,
        offset: letter.offset,
        index: letter.index,
        member: short(letter.member),
        event_type: short(letter.event_type),
        server_composition: short(letter.server_composition),
        path: short(letter.path),
        content_type: short(letter.content_type),
        received_at_micros: letter.received_at_micros,
        masked: letter.masked,
        topic: short(letter.topic),
        key: letter.key.map(<[u8]>::to_vec),
        headers: letter
            .headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
            .collect(),
        value: letter.value.to_vec(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_letter_is_read_back_whole(
        reason in prop::sample::select(&Reason::ALL[..]),
        numbers in (any::<Option<usize>>(), any::<Option<usize>>()),
        texts in prop::collection::vec(prop::option::of("[a-z/十😀\u{0}]{0,300}"), 6),
        received_at_micros in 0i64..4_000_000_000_000_000,
        masked in any::<bool>(),
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        own in prop::collection::vec(
            (
                prop_oneof![
                    "[a-z_-]{0,20}",
                    Just(REASON.to_owned()),
                    Just(ID.to_owned()),
                    Just(PART.to_owned()),
                    Just(PARTS.to_owned()),
                    Just(MEMBER.to_owned()),
                ],
                prop::collection::vec(any::<u8>(), 0..40),
            ),
            0..4,
        ),
        value in prop::collection::vec(any::<u8>(), 0..20_000),
        limit in 600usize..25_000,
        backwards in any::<bool>(),
    ) {
        let text = |index: usize| texts[index].as_deref();
        let own: Vec<(&str, &[u8])> = own.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let letter = DeadLetter {
            offset: numbers.0,
            index: numbers.1,
            member: text(0),
            event_type: text(1),
            server_composition: text(2),
            path: text(3),
            content_type: text(4),
            masked,
            topic: text(5),
            key: key.as_deref(),
            headers: &own,
            ..DeadLetter::new(reason, received_at_micros, &value)
        };
        let records = letter.records(limit);
        for record in records.iter() {
            let size = alone_in_batch(record.key, record.headers().into_iter(), record.value.len());
            prop_assert!(size <= limit || record.value.len() <= MIN_PART);
        }
        let count = records.count();
        let order: Vec<usize> = if backwards { (0..count).rev().collect() } else { (0..count).collect() };
        prop_assert_eq!(read(&records, order.into_iter()), whole(&letter));
    }
}

#[test]
fn limits_and_boundaries_of_parts_are_exact() {
    let value = vec![b'x'; 100_000];
    let limit = 5_000;
    let letter = |length: usize| DeadLetter::new(Reason::InvalidJson, 0, &value[..length]);
    let size = |record: &LetterRecord<'_>| {
        alone_in_batch(record.key, record.headers().into_iter(), record.value.len())
    };
    let largest = (0..limit)
        .rev()
        .find(|length| letter(*length).records(limit).count() == 1)
        .unwrap();
    let records = letter(largest);
    assert_eq!(size(&records.records(limit).iter().next().unwrap()), limit);
    let parts = letter(largest + 1);
    let parts = parts.records(limit);
    assert_eq!(parts.count(), 2);
    let part = parts.iter().next().unwrap().value.len();
    for (length, count) in [(part * 2, 2), (part * 2 + 1, 3), (part * 3 - 1, 3), (part * 3, 3)] {
        let letter = letter(length);
        let records = letter.records(limit);
        assert_eq!(records.count(), count, "{length}");
        assert!(records.iter().all(|record| !record.value.is_empty()));
        assert_eq!(read(&records, 0..count), whole(&letter));
    }
    // An empty value is a letter, too, even if its headers alone are too large.
    for limit in [1, limit] {
        let letter = letter(0);
        assert_eq!(read(&letter.records(limit), 0..1), whole(&letter));
    }
}

#[test]
fn texts_at_their_limit() {
    for (text, length) in [
        ("x".repeat(256), 256),
        ("x".repeat(257), 256),
        ("x".repeat(255) + "é", 255),
        ("x".repeat(254) + "é", 256),
        ("x".repeat(253) + "😀", 253),
        (String::new(), 0),
    ] {
        let letter = DeadLetter {
            member: Some(&text),
            ..DeadLetter::new(Reason::UnexpectedList, 0, b"1")
        };
        let read = read(&letter.records(1_000_000), 0..1);
        assert_eq!(read.member.as_deref(), Some(&text[..length]));
    }
}

#[test]
fn repeated_and_missing_parts() {
    let value = vec![b'x'; 4_500];
    let letter = DeadLetter::new(Reason::InvalidJson, 0, &value);
    let records = letter.records(2_000);
    assert_eq!(records.count(), 3);
    assert_eq!(read(&records, [0, 1, 0, 1, 2].into_iter()), whole(&letter));

    let mut letters = LetterAssembler::default();
    for record in records.iter().skip(1) {
        assert_eq!(letters.add(record.key, &record.headers(), record.value), Ok(None));
    }
    let record = records.iter().next().unwrap();
    let headers = record.headers();
    let id = text(&headers, ID);
    assert_eq!(letters.incomplete().collect::<Vec<_>>(), [(id.unwrap(), 2, 3)]);
}

#[test]
fn records_that_are_not_letters_are_refused() {
    const REASON_OF: (&str, &[u8]) = (REASON, b"invalid_json");
    const TIME: (&str, &[u8]) = (RECEIVED_AT, b"2026-10-01T00:15:02.123456Z");
    let refused = |headers: &[(&str, &[u8])]| LetterAssembler::default().add(None, headers, b"").unwrap_err();
    assert_eq!(refused(&[]), LetterError::NoReason);
    assert_eq!(refused(&[TIME]), LetterError::NoReason);
    assert_eq!(refused(&[REASON_OF]), LetterError::Missing(RECEIVED_AT));
    assert_eq!(
        refused(&[(REASON, b"later"), TIME]),
        LetterError::UnknownReason("later".to_owned())
    );
    for (name, value) in [
        (REASON, &b"\xFF"[..]),
        (RECEIVED_AT, b"yesterday"),
        (OFFSET, b"-1"),
        (INDEX, b""),
        (MEMBER, b"\xFF"),
    ] {
        // The time is last, so a broken header precedes it.
        let headers = if name == REASON {
            vec![(name, value), TIME]
        } else {
            vec![REASON_OF, (name, value), TIME]
        };
        assert_eq!(refused(&headers), LetterError::Header(name));
    }
    let part = |part, parts| [REASON_OF, TIME, (ID, &b"id"[..]), (PART, part), (PARTS, parts)];
    assert_eq!(
        refused(&[REASON_OF, TIME, (ID, b"id")]),
        LetterError::Missing(PART)
    );
    assert_eq!(
        refused(&part(b"0", b"2")),
        LetterError::Part { part: 0, parts: 2 }
    );
    assert_eq!(
        refused(&part(b"3", b"2")),
        LetterError::Part { part: 3, parts: 2 }
    );
    let mut letters = LetterAssembler::default();
    assert_eq!(letters.add(None, &part(b"1", b"9"), b"a"), Ok(None));
    for (number, parts, value) in [(b"1", b"9", b"b"), (b"2", b"3", b"a")] {
        assert!(matches!(
            letters.add(None, &part(number, parts), value),
            Err(LetterError::Part { .. })
        ));
    }
    // Headers of later versions are ignored.
    let later: [(&str, &[u8]); 3] = [REASON_OF, TIME, ("cmc-dead-letter-later", b"\xFF")];
    assert!(matches!(letters.add(None, &later, b""), Ok(Some(_))));
}
