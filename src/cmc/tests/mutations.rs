//! Randomly mutated bodies, each judged by the oracle: events are passed on as received, and everything else becomes a
//! dead letter with its bytes.
//!
//! `CMC_BRIDGE_TEST_MUTATIONS` sets the number of bodies (default 20,000), `CMC_BRIDGE_TEST_SEED` the seed. A failing body is
//! printed; it then belongs in [`FOUND`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    oracle::{Event, Expected, Piece, expected, whole},
    samples::{BATCH, SAMPLES, sample},
    *,
};
use crate::{
    dead_letter::{Letter, LetterAssembler, MAX_TEXT},
    simulation::random::Random,
};

/// Bodies that were once handled wrongly, or almost. Each is judged as JSON and as a form.
const FOUND: [&[u8]; 1] = [
    // The member's name was passed on as written although it is not valid text.
    br#"{"event_type":"blocks","\ud83d":[1],"server_composition":"pro","event":{"blocks":[{}]}}"#,
];

/// What JSON and forms are made of, and what breaks them.
const TOKENS: [&[u8]; 34] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"\\ude00",
    b"\\u0000",
    b"\\\"",
    b",",
    b":",
    b"%",
    b"%2",
    b"%zz",
    b"%00",
    b"%FF",
    b"%22",
    b"%c3%a9",
    b"+",
    b";",
    b"&",
    b"&&",
    b"=",
    b"&=&",
    b"event",
    b"\xEF\xBB\xBF",
    b"\0",
    b"\x1F",
    b"\xFF",
    b"\xED\xA0\x80",
    b" \r\n\t",
    b"configured-secret",
];

/// Additional members, elements and fields of a body.
const PIECES: [&str; 30] = [
    "{},",
    "7,",
    "null,",
    "[{}],",
    "{ \t},",
    "1e400,",
    r#"{"n":-1.50E+400},"#,
    r#""text","#,
    r#""event_type":"bounces","#,
    r#""event\u005ftype":"deliveries","#,
    r#""server_composition":"utc","#,
    r#""event":{"deliveries":[]},"#,
    r#""event":{},"#,
    r#""api_key":"configured-secret","#,
    r#""api_key":1,"#,
    r#""deliveries":[{"a":1},2],"#,
    r#""bounces":[{},[],"x"],"#,
    r#""\ud83d":[1],"#,
    r#""meta":{"a":[]},"#,
    r#""messageId":1,"#,
    r#""messageId":"","#,
    r#""messageId":"a\u0000b","#,
    r#""messageId":"\ud83d","#,
    r#""messageId":"\ud83d\ude00","#,
    r#""created":"2026-10-01 09:15:02","#,
    r#""status":null,"#,
    "&event_type=bounces",
    "&api_key=k%65y",
    "&extra=%5b1]",
    "&event=%7B%22deliveries%22:[]}",
];

/// A piece that is large, or close to a limit.
fn large(random: &mut Random) -> String {
    let near = |random: &mut Random, limit: usize| limit - 2 + random.index(5);
    match random.below(8) {
        0 => format!("{},", "9".repeat(4000)),
        1 => {
            let levels = [near(random, MAX_DEPTH), 3000][random.index(2)];
            format!("{}{},", "[".repeat(levels), "]".repeat(levels))
        }
        2 => format!(r#""messageId":"{}","#, "i".repeat(near(random, MAX_KEY))),
        3 => format!(r#""messageId":"{}","#, r"\u0041".repeat(near(random, MAX_KEY))),
        4 => format!(r#""messageId":"{}é","#, "i".repeat(near(random, MAX_KEY) - 1)),
        5 => format!(r#""{}":[1],"#, "十".repeat(near(random, 86))),
        6 => (0..near(random, MAX_MEMBERS))
            .map(|n| format!(r#""m{n}":[],"#))
            .collect(),
        _ => format!(r#""x":"{}","#, "x".repeat(random.index(2000))),
    }
}

fn mutate(body: &mut Vec<u8>, random: &mut Random) {
    let at = random.index(body.len() + 1);
    // Usually a place where a member or an element may begin.
    let place = body[at..]
        .iter()
        .position(|byte| b"{[,".contains(byte))
        .map_or(at, |next| at + next + 1);
    let length = random.index(40).min(body.len() - at);
    match random.below(8) {
        0 if at < body.len() => body[at] = random.below(256) as u8,
        1 => drop(body.drain(at..at + length)),
        2 => {
            let token = random.pick(&TOKENS);
            body.splice(at..at, token.iter().copied());
        }
        3 => {
            let piece = body[at..at + length].to_vec();
            body.splice(at..at, piece);
        }
        4 => drop(body.splice(place..place, large(random).into_bytes())),
        5 => {
            let end = body.len();
            let piece = random.pick(&PIECES);
            body.splice(end..end, piece.bytes());
        }
        _ => drop(body.splice(place..place, random.pick(&PIECES).bytes())),
    }
}

/// Percent-encodes as clients do: everything, or only what is necessary.
fn encode(text: &[u8], random: &mut Random) -> Vec<u8> {
    let (all, lower, plus) = (random.one_in(2), random.one_in(2), random.one_in(2));
    let mut out = Vec::new();
    for byte in text {
        match byte {
            b' ' if plus => out.push(b'+'),
            b'%' | b'&' | b'+' => out.extend(format!("%{byte:02X}").bytes()),
            _ if all && !byte.is_ascii_alphanumeric() && lower => out.extend(format!("%{byte:02x}").bytes()),
            _ if all && !byte.is_ascii_alphanumeric() => out.extend(format!("%{byte:02X}").bytes()),
            _ => out.push(*byte),
        }
    }
    out
}

fn body(random: &mut Random) -> (Vec<u8>, BodyEncoding) {
    let mut bodies: Vec<&str> = SAMPLES.iter().map(|sample| sample.0).collect();
    let batch = deliveries(&BATCH[BATCH.find("[{").unwrap() + 1..BATCH.rfind("}]").unwrap() + 1][..1000]);
    let few = deliveries(r#"{"messageId":"<a@b>","n":1.0}, {} ,{"created":"2026-10-01 09:15:02"}"#);
    let form_sample = sample!("deliveries-form.txt");
    bodies.extend([&*few, &*batch, form_sample]);
    let chosen = random.pick(&bodies);
    let mut body = chosen.as_bytes().to_vec();
    let change = |body: &mut Vec<u8>, random: &mut Random| {
        for _ in 0..random.below(4) {
            mutate(body, random);
        }
    };
    if chosen == form_sample {
        change(&mut body, random);
        return (body, BodyEncoding::Form);
    }
    if random.one_in(2) {
        change(&mut body, random);
        return (body, BodyEncoding::Json);
    }
    // As a form, mutated before or after encoding.
    let event = chosen
        .find(r#""event":"#)
        .map_or("{}", |at| &chosen[at + 8..chosen.len() - 1]);
    let event_type = if chosen.contains(r#""bounces":["#) {
        "bounces"
    } else {
        "deliveries"
    };
    let mut event = event.trim().as_bytes().to_vec();
    let before = random.one_in(2);
    if before {
        change(&mut event, random);
    }
    let mut form = format!("server_composition=utc&event_type={event_type}&event=").into_bytes();
    form.extend(encode(&event, random));
    if !before {
        change(&mut form, random);
    }
    (form, BodyEncoding::Form)
}

/// The result of checking a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Malformed,
    Unknown,
    Whole,
    InParts,
}

/// Checks a body against the oracle.
pub(super) fn check(body: &[u8], encoding: BodyEncoding, rules: &Rules) -> Checked {
    let (expected, api_key) = expected(body, encoding, rules);
    let opened = open(body, encoding, rules);
    assert_eq!(opened.api_key.as_deref(), api_key.as_deref());
    if encoding == BodyEncoding::Json {
        agrees_with_serde_json(body);
    }
    let split = split(&opened, rules, &request(body));
    let mut letters = read_letters(&split);
    assert_eq!(
        letters.iter().map(|letter| letter.reason).collect::<Vec<_>>(),
        reasons(&split)
    );
    for letter in &letters {
        assert_eq!(letter.path.as_deref(), Some("/webhooks/events"));
        assert_eq!(letter.content_type.as_deref(), Some("application/json"));
        assert_eq!(letter.received_at_micros, RECEIVED_AT);
    }
    let (events, pieces) = match expected {
        Expected::Split { events, letters } => (events, letters),
        whole => {
            assert!(split.events.is_none());
            let letter = letters.pop().unwrap();
            assert!(letters.is_empty());
            assert_bytes(&letter, body);
            let malformed = opened.content.err();
            return match whole {
                Expected::Malformed(reasons) => {
                    assert!(
                        reasons.contains(&letter.reason),
                        "{} of {reasons:?}",
                        letter.reason
                    );
                    assert_eq!(malformed.unwrap().reason, letter.reason);
                    Checked::Malformed
                }
                _ => {
                    assert_eq!(malformed, None);
                    assert_eq!(letter.reason, Reason::UnknownEventType);
                    Checked::Unknown
                }
            };
        }
    };
    assert!(opened.content.is_ok());
    let found: Vec<Event> = super::events(&split)
        .into_iter()
        .map(|record| {
            if let Some(subject) = record.header("ce_subject") {
                assert_eq!(Some(subject), record.key.as_deref());
            }
            Event {
                id: record.header("ce_id").unwrap().to_owned(),
                key: record.key,
                value: record.value,
            }
        })
        .collect();
    assert_eq!(found, events);
    assert_eq!(letters.len(), pieces.len());
    for (letter, piece) in letters.iter().zip(&pieces) {
        check_piece(letter, piece);
    }
    if pieces.is_empty() {
        Checked::Whole
    } else {
        Checked::InParts
    }
}

/// The oracle and serde_json accept the same JSON, except for some that serde_json rejects when it builds values.
fn agrees_with_serde_json(body: &[u8]) {
    const REFUSED: [&str; 4] = [
        "number out of range",
        "recursion limit",
        "lone leading",
        "unexpected end of hex",
    ];
    let valid = std::str::from_utf8(body).is_ok_and(|text| whole(text).is_some());
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(_) => assert!(valid),
        Err(error) => {
            let error = error.to_string();
            assert!(
                !valid || REFUSED.iter().any(|text| error.starts_with(text)),
                "{error}"
            );
        }
    }
}

fn check_piece(letter: &Letter, piece: &Piece) {
    assert_eq!((letter.reason, letter.index), (piece.reason, piece.index));
    let member = piece.member.as_ref().map(|member| {
        let mut short = String::new();
        for character in member.chars() {
            if short.len() + character.len_utf8() > MAX_TEXT {
                break;
            }
            short.push(character);
        }
        short
    });
    if !letter.masked {
        assert_eq!(letter.member, member);
    }
    assert_eq!(letter.member.is_some(), member.is_some());
    assert_bytes(letter, piece.value.as_bytes());
}

/// Asserts that the bytes are equal except where masked: by `*`, and by quotes around `*` if it was not a string.
fn assert_bytes(letter: &Letter, sent: &[u8]) {
    assert_eq!(letter.value.len(), sent.len());
    for (at, (have, want)) in letter.value.iter().zip(sent).enumerate() {
        assert!(
            have == want || letter.masked && b"*\"0".contains(have),
            "byte {at}"
        );
    }
}

/// The dead letters of a body, read back from their records.
fn read_letters(split: &Split) -> Vec<Letter> {
    let mut letters = LetterAssembler::default();
    let mut whole = Vec::new();
    if let Some((batch, _)) = &split.dead_letters {
        let view = BatchView::decode(batch.bytes()).unwrap();
        for record in &view.records {
            let headers: Vec<_> = view.headers(record).collect();
            whole.extend(letters.add(record.key, &headers, &record.value()).unwrap());
        }
    }
    assert_eq!(letters.incomplete().next(), None);
    whole
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn mutated_bodies_follow_the_contract() {
    let count = number("CMC_BRIDGE_TEST_MUTATIONS", 20_000);
    let seed = number("CMC_BRIDGE_TEST_SEED", 1);
    println!("CMC_BRIDGE_TEST_SEED={seed} CMC_BRIDGE_TEST_MUTATIONS={count}");
    let mut random = Random::new(seed);
    let mut outcomes = [0u64; 4];
    let mut rules = rules();
    for round in 0..count {
        rules.max_record_bytes = random.pick(&[900, 1500, 1_000_000, 1_000_000]);
        rules.max_events = random.pick(&[2, 10_000, 10_000]);
        rules.enabled[Stream::Bounces.index()] = !random.one_in(8);
        let (body, encoding) = body(&mut random);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&body, encoding, &rules)));
        match outcome {
            Ok(outcome) => outcomes[outcome as usize] += 1,
            Err(_) => panic!(
                "round {round}, {encoding:?}, max_record_bytes {}, max_events {}: {}",
                rules.max_record_bytes,
                rules.max_events,
                body.escape_ascii()
            ),
        }
    }
    println!("malformed, unknown, whole, in parts: {outcomes:?}");
    // The mutations must not all end at the first check.
    assert!(
        count < 1000 || outcomes.iter().all(|many| *many > count / 200),
        "{outcomes:?}"
    );
}

#[test]
fn earlier_findings_stay_fixed() {
    for body in FOUND {
        for encoding in [BodyEncoding::Json, BodyEncoding::Form] {
            check(body, encoding, &rules());
        }
    }
}
