//! A webhook never exceeds `batch::most_bytes`, the bound that settings are checked against. Otherwise a webhook within
//! all limits could be refused forever.

use super::*;
use crate::batch::{most_allocated, most_bytes};

/// A webhook whose list repeats this element as often as the limits allow.
fn filled(element: &str, max_body: usize, max_events: usize) -> String {
    let frame = r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":[]}}"#;
    let count = ((max_body - frame.len()) / (element.len() + 1)).min(max_events);
    frame.replace("[]", &format!("[{}]", vec![element; count].join(",")))
}

#[test]
fn no_webhook_exceeds_the_bound_that_settings_are_checked_against() {
    let key = |bytes: usize| format!(r#"{{"messageId":"{}"}}"#, "k".repeat(bytes));
    let elements = [
        "1".to_owned(),
        "{}".to_owned(),
        "[]".to_owned(),
        "1,{}".to_owned(),
        r#"{"status":1,"event_type":1}"#.to_owned(),
        r#"{"created":"2026-10-01 09:15:02"}"#.to_owned(),
        format!(
            r#"{{"messageId":"{}","created":"2026-10-01 09:15:02"}}"#,
            "k".repeat(512)
        ),
        key(1),
        key(10),
        key(512),
        r#"{"messageId":"\u0061\u0061"}"#.to_owned(),
        format!(r#"{{"a":"{}"}}"#, "x".repeat(5_000)),
        format!(r#"{{"a":"{}"}}"#, "x".repeat(45_000)),
        format!(r#""{}""#, "x".repeat(45_000)),
        r#""configured-secret""#.to_owned(),
    ];
    let shapes: [&dyn Fn(String) -> String; 4] = [
        &|body| body,
        // The elements in another list, then a body that is malformed: only dead letters.
        &|body| body.replace(r#""deliveries":["#, r#""deliveries":[],"other":["#),
        &|body| body.replace("{\"event_type", "{\"event_type\":0,\"event_type"),
        &|body| body.replace("\"pro\"", &format!("\"{}\"", "\\u0001".repeat(256))),
    ];
    let mut fullest = 0.0f64;
    for (max_body, max_events) in [(1_000, 10), (20_100, 10_000), (50_000, 100), (200_000, 10_000)] {
        for max_record_bytes in [1_024, 1_000_000] {
            let mut rules = rules();
            rules.max_events = max_events;
            rules.max_record_bytes = max_record_bytes;
            for element in &elements {
                for shape in &shapes {
                    let body = shape(filled(element, max_body, max_events));
                    let split = split_with(body.as_bytes(), BodyEncoding::Json, &rules);
                    let batches = split.events.iter().map(|(_, batch, _)| batch);
                    let batches: Vec<_> = batches
                        .chain(split.dead_letters.iter().map(|(batch, _)| batch))
                        .collect();
                    let stored = batches.iter().map(|batch| batch.bytes().len()).sum::<usize>();
                    let allocated = batches.iter().map(|batch| batch.allocated()).sum::<usize>();
                    let most = most_bytes(body.len().max(max_body), max_events, max_record_bytes);
                    let what = format!(
                        "{stored} of {most} bytes, {allocated} of memory: {} × {element:.40}, up to {max_events}, {max_record_bytes}",
                        body.len()
                    );
                    assert!(stored <= most, "{what}");
                    assert!(allocated <= most_allocated(most), "{what}");
                    fullest = fullest.max(stored as f64 / most as f64);
                }
            }
        }
    }
    // A bound far above what is possible would refuse good settings.
    println!("{fullest:.2}");
    assert!(fullest > 0.7, "{fullest}");
}
