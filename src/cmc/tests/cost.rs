//! The cost of reading a body depends only on its size: no shape that a sender may choose costs more than a few times
//! as much as a plain body of the same size. The measure is this thread's CPU time, which other tests and a busy machine
//! don't increase.

use std::{fs, hint::black_box, thread, time::Duration};

use super::*;

/// The size of a body: large enough to measure, small enough for an unoptimised build.
const BYTES: usize = 1 << 20;
const ROUNDS: usize = 5;

/// Repeats the piece as often as it fits.
fn filled(begin: &str, piece: &str, end: &str) -> String {
    let count = (BYTES - begin.len() - end.len()) / piece.len();
    format!("{begin}{}{end}", piece.repeat(count))
}

pub(super) fn processor_time() -> Duration {
    // The kernel updates its account when a thread yields.
    thread::sleep(Duration::from_micros(1));
    let account = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(account.split(' ').next().unwrap().parse().unwrap())
}

/// The shortest time to open this body, which is all the work done for an unknown sender.
fn cost(body: &str, encoding: BodyEncoding, rules: &Rules) -> Duration {
    let once = || {
        let begin = processor_time();
        black_box(open(body.as_bytes(), encoding, rules).content.is_ok());
        processor_time() - begin
    };
    (0..ROUNDS).map(|_| once()).min().unwrap_or_default()
}

fn check(plain: &[String], shapes: &[(&str, String)], encoding: BodyEncoding, times: u32) {
    let rules = rules();
    let floor = plain
        .iter()
        .map(|body| cost(body, encoding, &rules))
        .max()
        .unwrap();
    for (name, body) in shapes {
        let cost = cost(body, encoding, &rules);
        println!(
            "{name}: {cost:?}, {:.1} times the plain one",
            cost.as_secs_f64() / floor.as_secs_f64()
        );
        assert!(
            cost < floor * times,
            "{name}: {cost:?} for {} bytes, a plain one {floor:?}",
            body.len()
        );
    }
}

#[test]
fn no_form_costs_more_than_a_few_plain_ones() {
    let plain = [filled("", "a=b&", "")];
    let shapes = [
        ("brackets", filled("", "a=[&", "")),
        ("braces", filled("", "a={&", "")),
        ("brackets around nothing JSON", filled("", "a=[x]&", "")),
        ("numbers without a comma", filled("", "a=[1 1]&", "")),
        ("lists", filled("", "a=[]&", "")),
        ("encoded brackets", filled("", "a=%5B&", "")),
        ("a list of brackets", filled("a=", "[", "")),
        (
            "nested lists",
            format!("a={}{}", "[".repeat(BYTES / 2), "]".repeat(BYTES / 2)),
        ),
        ("fields without a name", filled("", "=&", "")),
        ("fields without a value", filled("", "a&", "")),
        ("ampersands", filled("", "&", "")),
        ("names without an end", filled("", "a", "")),
        ("encoded names", filled("", "%61=b&", "")),
        ("encoded values", filled("", "a=%62+&", "")),
        ("broken escapes", filled("", "a=%&", "")),
        ("broken names", filled("", "%=a&", "")),
        ("bytes that are no UTF-8", filled("", "a=%FF&", "")),
        ("a long encoded value", filled("a=", "%5B", "")),
        ("keys", filled("", "api_key=k&", "")),
        ("encoded keys", filled("", "%61pi_key=%6B&", "")),
        ("types", filled("", "event_type=deliveries&", "")),
        ("compositions", filled("", "server_composition=%70ro&", "")),
        ("events", filled("", "event={}&", "")),
        ("broken events", filled("", "event=[&", "")),
        ("events of brackets", filled("", "event=%5B%5B&", "")),
        ("an event of brackets", filled("event=", "[", "")),
    ];
    check(&plain, &shapes, BodyEncoding::Form, TIMES);
}

/// A tighter bound: the other one allows for unoptimised builds and would hide much.
#[test]
fn no_field_costs_more_for_looking_like_json() {
    let rules = rules();
    for (field, twin) in [
        ("a=[&", "a=b&"),
        ("a={&", "a=b&"),
        ("a=[x&", "a=bx&"),
        ("a=[}&", "a=bb&"),
        ("a=%5B&", "a=%61&"),
    ] {
        let [cost, plain] =
            [field, twin].map(|piece| cost(&filled("", piece, ""), BodyEncoding::Form, &rules));
        assert!(cost < plain * 2, "{field}: {cost:?}, {twin}: {plain:?}");
    }
}

#[test]
fn no_json_costs_more_than_a_few_plain_ones() {
    let plain = [filled(r#"{"a":0"#, r#","a":0"#, "}")];
    let around = |begin: &str, piece: &str, end: &str| {
        let begin = format!(r#"{{"event_type":"deliveries","server_composition":"pro","event":{{{begin}"#);
        filled(&begin, piece, &format!("{end}}}}}"))
    };
    let shapes = [
        ("lists beside the event", filled(r#"{"a":0"#, r#","a":[]"#, "}")),
        ("escaped names", filled(r#"{"a":0"#, r#","\u0061":0"#, "}")),
        ("half characters", filled(r#"{"a":0"#, r#","\ud800":0"#, "}")),
        ("keys", filled(r#"{"a":0"#, r#","api_key":"k""#, "}")),
        (
            "escaped keys",
            filled(r#"{"a":0"#, r#","api_ke\u0079":"\u006B""#, "}"),
        ),
        ("events", filled(r#"{"a":0"#, r#","event":{}"#, "}")),
        ("events that are none", filled(r#"{"a":0"#, r#","event":1"#, "}")),
        (
            "nested lists",
            format!("{}{}", "[".repeat(BYTES / 2), "]".repeat(BYTES / 2)),
        ),
        ("a text that does not end", filled("{\"", "a", "")),
        ("white space", filled("{", " \n", "}")),
        ("line feeds before what is wrong", filled("{", "\n", "?")),
        ("members of the event", around(r#""a":0"#, r#","a":0"#, "")),
        ("lists of the event", around(r#""a":[]"#, r#","a":[]"#, "")),
        ("too many elements", around(r#""deliveries":[{}"#, ",{}", "]")),
        (
            "members of an element",
            around(r#""deliveries":[{"a":0"#, r#","status":"""#, "}]"),
        ),
        (
            "escaped members of an element",
            around(r#""deliveries":[{"a":0"#, r#","statu\u0073":"""#, "}]"),
        ),
        (
            "reserved members of an element",
            around(r#""deliveries":[{"a":0"#, r#","event_type":0"#, "}]"),
        ),
        (
            "an element of depth",
            around(
                r#""deliveries":["#,
                &format!("{}{}", "[".repeat(BYTES / 4), "]".repeat(BYTES / 4)),
                "]",
            ),
        ),
        (
            "a long escaped text",
            around(r#""deliveries":[{"messageId":""#, r"\u0061", r#""}]"#),
        ),
    ];
    check(&plain, &shapes, BodyEncoding::Json, TIMES);
}

/// The bound for a form full of brackets.
const TIMES: u32 = 4;
