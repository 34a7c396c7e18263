//! A webhook's size in the spool is bounded by its body's size, whatever its shape. `docs/operations.md` states the bound.

use super::*;

/// At most this many times the body …
const TIMES: usize = 16;
/// … plus this much for what the records of a webhook share, which is stored once.
const ONCE: usize = 4 * 1024;

fn webhook(event: &str) -> String {
    format!(r#"{{"event_type":"deliveries","server_composition":"pro","event":{{{event}}}}}"#)
}

#[test]
fn a_webhook_takes_a_small_multiple_of_its_body_in_the_spool() {
    let many = |element: &str| [element; 10_000].join(",");
    let list = |element: &str| webhook(&format!(r#""deliveries":[{}]"#, many(element)));
    // `event` may have at most 64 members, and at most 64 lists and objects may stand beside it.
    let members = |name: &dyn Fn(usize) -> String, value: &str| {
        let all: Vec<_> = (0..63).map(|n| format!(r#""{}":{value}"#, name(n))).collect();
        webhook(&format!(r#""deliveries":[],{}"#, all.join(",")))
    };
    let long = "x".repeat(300);
    let bodies = [
        ("numbers", list("1")),
        ("empty objects", list("{}")),
        ("empty lists", list("[]")),
        (
            "numbers and objects by turns",
            list("1,{}").replacen("1,{},", "", 5_000),
        ),
        ("shortest keys", list(r#"{"messageId":"x"}"#)),
        (
            "longest keys",
            list(&format!(r#"{{"messageId":"{}"}}"#, "x".repeat(MAX_KEY))),
        ),
        ("times", list(r#"{"created":"2026-10-01 09:15:02"}"#)),
        ("reserved members", list(r#"{"status":1,"event_type":1}"#)),
        (
            "another list",
            webhook(&format!(r#""deliveries":[],"b":[{}]"#, many("1"))),
        ),
        ("lists with short names", members(&|n| n.to_string(), "[1,1,1]")),
        (
            "lists with long names",
            members(&|n| format!("{n}{long}"), "[1,1,1]"),
        ),
        ("values with long names", members(&|n| format!("{n}{long}"), "1")),
        (
            "a short name and a long list",
            members(&|n| n.to_string(), &format!("[{}]", ["1"; 158].join(","))),
        ),
        (
            "members with long names",
            webhook(r#""deliveries":[]"#).replacen(
                '{',
                &format!(
                    "{{{}",
                    (0..64).map(|n| format!(r#""{n}{long}":[],"#)).collect::<String>()
                ),
                1,
            ),
        ),
        (
            "an element in parts",
            webhook(&format!(r#""deliveries":[{{"a":"{}"}}]"#, "x".repeat(300_000))),
        ),
        ("no JSON, in parts", "{".repeat(300_000)),
        ("nothing", String::new()),
        (
            "a composition of another kind",
            list("1").replace("pro", &"p".repeat(MAX_COMPOSITION)),
        ),
        (
            "no composition",
            list("1").replace(r#""pro""#, &format!(r#""{}""#, "p".repeat(10_000))),
        ),
        ("masked", list("1").replace("pro", "configured-secret")),
    ];
    let long_type = format!("application/json; x={}", "x".repeat(8_000));
    for (name, body) in &bodies {
        for max_record_bytes in [1_024, 1_000_000] {
            let rules = Rules {
                max_record_bytes,
                ..rules()
            };
            let request = Request {
                content_type: Some(&long_type),
                ..request(body.as_bytes())
            };
            let split = split(
                &open(body.as_bytes(), BodyEncoding::Json, &rules),
                &rules,
                &request,
            );
            let events = split.events.iter().map(|(_, batch, _)| batch);
            let letters = split.dead_letters.iter().map(|(batch, _)| batch);
            let stored: usize = events.chain(letters).map(|batch| batch.bytes().len()).sum();
            println!("{name}: {} bytes become {stored}", body.len());
            assert!(
                stored <= TIMES * body.len() + ONCE,
                "{name}: {} bytes become {stored}",
                body.len()
            );
        }
    }
}
