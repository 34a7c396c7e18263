//! Bodies designed to be expensive cost about as much as good ones of their size.

use std::time::{Duration, Instant};

use super::{bridge, events, expect_outcome, expect_problem};
use crate::{
    cmc::{message, webhook},
    http::Client,
};

/// How long this request takes.
fn time(client: &mut Client, body: &str, status: u16) -> Duration {
    let start = Instant::now();
    let response = client.post(body);
    let time = start.elapsed();
    assert_eq!(response.status, status);
    if status != 200 {
        expect_problem(&response, status);
    }
    time
}

const ROUNDS: usize = 7;

#[test]
fn many_elements_and_deep_nesting_are_cheap_and_one_dead_letter_each() {
    let bridge = bridge(&[("spool.durability", "page-cache")]);
    let mut client = bridge.client();
    let list = vec!["{}"; 300_000];
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let bad = [
        webhook("deliveries", "pro", &list),
        format!("[{}]", list.join(",")),
        webhook("deliveries", "pro", &[&deep]),
        "[".repeat(200_000),
        deep,
    ];
    for (index, body) in bad.iter().enumerate() {
        let element = message("a", &"x".repeat(500));
        let good = webhook(
            "deliveries",
            "pro",
            &vec![element.as_str(); body.len() / element.len()],
        );
        // Takes turns and keeps the fastest of each, because other tests share the CPU.
        let mut quickest = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            quickest[0] = quickest[0].min(time(&mut client, &good, 200));
            quickest[1] = quickest[1].min(time(&mut client, body, 400));
        }
        let [good, time] = quickest;
        println!("{index}: {} bytes: {time:?}; good: {good:?}", body.len());
        // Dead letters take an unoptimised build about ten times as long; more than linear work would take seconds.
        assert!(
            time < good * 20 + Duration::from_millis(50),
            "body {index} took {time:?}, a good one of its size {good:?}"
        );
    }
    let count = (bad.len() * ROUNDS) as f64;
    assert_eq!(events(&bridge, "dead_letters"), count);
    expect_outcome(&bridge, "malformed", count);
}
