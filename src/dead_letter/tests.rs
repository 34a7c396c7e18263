use super::*;
use crate::batch::BatchView;

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
fn only_what_is_known_becomes_a_header() {
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
fn all_that_is_known_becomes_headers_after_the_records_own() {
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
        ("cmc-dead-letter-offset", b"7"),
        ("cmc-dead-letter-index", b"0"),
        ("cmc-dead-letter-member", b"deliveries"),
        ("cmc-dead-letter-event-type", b"deliveries"),
        ("cmc-dead-letter-server-composition", b"pro"),
        ("cmc-dead-letter-path", b"/webhooks/events"),
        ("cmc-dead-letter-content-type", b"application/json"),
        ("cmc-dead-letter-topic", b"cmc.deliveries"),
        ("cmc-dead-letter-received-at", b"1970-01-01T00:00:00.000000Z"),
        ("cmc-dead-letter-masked", b"true"),
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
fn parts_fit_are_numbered_and_make_the_bytes() {
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
        let mut builder = BatchBuilder::new(0, &[], 0);
        letter.push(&mut builder, limit);
        let batch = builder.finish();
        let view = BatchView::decode(batch.bytes()).unwrap();
        let count = view.records.len();
        assert!(
            count > 1 && count < length / (limit - 400) + 2,
            "{count} parts of {length}"
        );
        let id = text(&view.records[0].headers, "cmc-dead-letter-id").unwrap();
        let mut whole = Vec::new();
        for (index, record) in view.records.iter().enumerate() {
            let size = alone_in_batch(record.key, record.headers.iter().copied(), record.value.len());
            assert!(size <= limit, "{size} > {limit}");
            assert_eq!(record.key, Some(key.unwrap_or(id.as_bytes())));
            assert_eq!(text(&record.headers, "cmc-dead-letter-id"), Some(id));
            let part = text(&record.headers, "cmc-dead-letter-part").unwrap();
            assert_eq!(part, (index + 1).to_string());
            let parts = text(&record.headers, "cmc-dead-letter-parts").unwrap();
            assert_eq!(parts, count.to_string());
            whole.extend_from_slice(record.value);
        }
        assert!(whole == value[..length]);
    }
}

#[test]
fn headers_that_leave_no_room_still_end() {
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
