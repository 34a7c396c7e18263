//! Compares what the sender knows with what a `read_committed` consumer sees.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    bridge::Topics,
    load::{EventId, Outcome, Posted, key_of},
    topics::{Reader, Record},
};

/// Reads both topics to their current ends and judges them. Call it when the backlog is empty.
pub fn check(kafka: &str, topics: &Topics, posted: &[Posted]) {
    let streams = [("deliveries", &topics.deliveries), ("bounces", &topics.bounces)];
    let mut problems = Vec::new();
    for (stream, topic) in streams {
        let mut reader = Reader::new(kafka, topic);
        let records = reader.read_to_end(Duration::from_secs(120));
        let part: Vec<&Posted> = posted.iter().filter(|p| p.stream == stream).collect();
        problems.extend(judge(stream, &part, records));
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems[..problems.len().min(30)].join("\n")
    );
}

/// Like [`check`], but events may be repeated: judges their first records, and returns the repeats.
pub fn check_at_least_once(kafka: &str, topics: &Topics, posted: &[Posted]) -> Vec<Record> {
    let streams = [("deliveries", &topics.deliveries), ("bounces", &topics.bounces)];
    let (mut problems, mut again) = (Vec::new(), Vec::new());
    for (stream, topic) in streams {
        let mut reader = Reader::new(kafka, topic);
        let records = reader.read_to_end(Duration::from_secs(120));
        let mut seen = HashSet::new();
        let (first, repeats): (Vec<Record>, Vec<Record>) = records
            .iter()
            .cloned()
            .partition(|record| seen.insert(event_id(record)));
        again.extend(repeats);
        let part: Vec<&Posted> = posted.iter().filter(|p| p.stream == stream).collect();
        problems.extend(judge(stream, &part, &first));
    }
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems[..problems.len().min(30)].join("\n")
    );
    again
}

/// The problems of a stream. None if every acknowledged event arrived once, every other at most once, each webhook whole or
/// not at all, and the order per key and replica agrees with the order of acknowledgement.
pub fn judge(stream: &str, posted: &[&Posted], records: &[Record]) -> Vec<String> {
    let mut problems = Vec::new();
    let webhooks: HashMap<(u64, u64, u64), &Posted> =
        posted.iter().map(|p| ((p.run, p.client, p.n), *p)).collect();
    let mut seen: HashMap<EventId, u32> = HashMap::new();
    let mut order = Order::default();
    for record in records {
        let id = event_id(record);
        let Some(webhook) = webhooks.get(&(id.0, id.1, id.2)).filter(|p| id.3 < p.events) else {
            problems.push(format!("{stream}: never sent: {id:?}"));
            continue;
        };
        if record.key_text() != Some(&key_of(id)) {
            problems.push(format!("{stream}: {id:?} has the key {:?}", record.key_text()));
        }
        *seen.entry(id).or_default() += 1;
        problems.extend(order.next(stream, record, id, webhook));
    }
    let (mut acknowledged, mut present) = (0, 0);
    for webhook in posted {
        let count = |index| {
            seen.get(&(webhook.run, webhook.client, webhook.n, index))
                .copied()
                .unwrap_or(0)
        };
        let counts: Vec<u32> = (0..webhook.events).map(count).collect();
        let known = webhook.outcome;
        let is_acknowledged = matches!(known, Outcome::Acknowledged(_));
        acknowledged += usize::from(is_acknowledged);
        let whole = counts.iter().all(|n| *n == 1);
        let absent = counts.iter().all(|n| *n == 0);
        present += usize::from(whole && !is_acknowledged);
        if !(whole || absent && !is_acknowledged) {
            let name = (webhook.run, webhook.client, webhook.n);
            problems.push(format!(
                "{stream}: {name:?}, {known:?}: its events arrived {counts:?} times"
            ));
        }
    }
    println!(
        "{stream}: {} records; {acknowledged} webhooks acknowledged, {} not, of which {present} arrived",
        records.len(),
        posted.len() - acknowledged
    );
    problems
}

/// Order per key and replica: an event that was acknowledged before another was sent must come before it.
#[derive(Default)]
struct Order {
    /// By key and replica: the partition, the latest sending time so far, and the last index of each webhook.
    keys: HashMap<(Vec<u8>, Option<usize>), KeyOrder>,
    reported: HashSet<Vec<u8>>,
}

struct KeyOrder {
    partition: i32,
    latest_sent: Instant,
    latest: EventId,
    last_index: HashMap<(u64, u64, u64), u32>,
}

impl Order {
    fn next(&mut self, stream: &str, record: &Record, id: EventId, webhook: &Posted) -> Option<String> {
        let key = record.key.clone()?;
        let entry = self
            .keys
            .entry((key.clone(), webhook.replica))
            .or_insert_with(|| KeyOrder {
                partition: record.partition,
                latest_sent: webhook.sent,
                latest: id,
                last_index: HashMap::new(),
            });
        let last = entry.last_index.insert((id.0, id.1, id.2), id.3);
        let problem = if entry.partition != record.partition {
            Some(format!(
                "{stream}: {id:?} is not on the partition of its key's first event"
            ))
        } else if last.is_some_and(|last| last > id.3) {
            Some(format!(
                "{stream}: {id:?} comes after a later event of its webhook"
            ))
        } else if matches!(webhook.outcome, Outcome::Acknowledged(at) if at < entry.latest_sent) {
            Some(format!(
                "{stream}: {id:?} was acknowledged before {:?} was sent, but comes after it",
                entry.latest
            ))
        } else {
            None
        };
        if webhook.sent > entry.latest_sent {
            (entry.latest_sent, entry.latest) = (webhook.sent, id);
        }
        // One report per key is enough.
        problem.filter(|_| self.reported.insert(key))
    }
}

/// The event of the load in a record.
pub fn event_id(record: &Record) -> EventId {
    let value: Value = serde_json::from_slice(&record.value).unwrap();
    let id = value["apiData"]
        .as_str()
        .unwrap_or_else(|| panic!("not of the load: {}", record.text()));
    let parts: Vec<u64> = id.split('/').map(|part| part.parse().unwrap()).collect();
    (parts[0], parts[1], parts[2], parts[3] as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn posted(n: u64, sent: Instant, outcome: Outcome) -> Posted {
        Posted {
            run: 1,
            client: 1,
            n,
            stream: "deliveries",
            events: 2,
            sent,
            outcome,
            replica: None,
        }
    }

    fn records(order: &[(u64, u32)]) -> Vec<Record> {
        let record = |(n, index): &(u64, u32)| Record {
            partition: 0,
            timestamp_ms: 0,
            key: Some(key_of((1, 1, *n, *index)).into_bytes()),
            headers: Vec::new(),
            value: format!(r#"{{"apiData":"1/1/{n}/{index}"}}"#).into_bytes(),
        };
        order.iter().map(record).collect()
    }

    #[test]
    fn it_finds_lost_repeated_partial_and_unknown_events() {
        let now = Instant::now();
        let known = posted(1, now, Outcome::Acknowledged(now));
        let unknown = posted(2, now, Outcome::Unanswered);
        let judge = |order: &[(u64, u32)]| judge("t", &[&known, &unknown], &records(order)).len();
        assert_eq!(judge(&[(1, 0), (1, 1)]), 0);
        assert_eq!(judge(&[(1, 0), (1, 1), (2, 0), (2, 1)]), 0);
        assert_eq!(judge(&[(1, 0)]), 1, "lost");
        assert_eq!(judge(&[(1, 0), (1, 1), (1, 1)]), 1, "twice");
        assert_eq!(judge(&[(1, 0), (1, 1), (2, 1)]), 1, "torn");
        assert_eq!(judge(&[(1, 0), (1, 1), (3, 0)]), 1, "never sent");
    }

    #[test]
    fn it_finds_events_of_a_key_out_of_order() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // Two webhooks, each with one event with the same hot key.
        let hot: Vec<(u64, u32)> = (1..400)
            .flat_map(|n| [(n, 0), (n, 1)])
            .filter(|(n, index)| {
                key_of((1, 1, *n, *index)) == "<hot-1-0@load>"
                    && !key_of((1, 1, *n, 1 - *index)).contains("hot")
            })
            .collect();
        let (first, second) = (hot[0], *hot.iter().find(|(n, _)| *n != hot[0].0).unwrap());
        let one = posted(first.0, at(0), Outcome::Acknowledged(at(1)));
        let two = posted(second.0, at(2), Outcome::Acknowledged(at(3)));
        let together = posted(second.0, at(0), Outcome::Acknowledged(at(3)));
        let rest = [(first.0, 1 - first.1), (second.0, 1 - second.1)];
        let judge = |webhooks: &[&Posted], order: [(u64, u32); 2]| {
            let all: Vec<_> = order.into_iter().chain(rest).collect();
            let problems = judge("t", webhooks, &records(&all));
            problems
                .iter()
                .filter(|problem| problem.contains("acknowledged before"))
                .count()
        };
        assert_eq!(judge(&[&one, &two], [first, second]), 0);
        assert_eq!(judge(&[&one, &two], [second, first]), 1);
        assert_eq!(
            judge(&[&one, &together], [second, first]),
            0,
            "sent at the same time"
        );
    }
}
