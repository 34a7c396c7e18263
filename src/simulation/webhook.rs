//! Generates webhooks, and the records that each must become.

use bytes::Bytes;

use super::{broker::COMPRESSIBLE, plan::Plan, random::Random};
use crate::stream::Stream;

/// A webhook's body and the records expected from it.
pub struct MadeWebhook {
    pub body: Bytes,
    /// The batches for each stream, with their records.
    pub batches: Vec<(Stream, Vec<ExpectedRecord>)>,
}

/// A record that must appear in a topic.
pub struct ExpectedRecord {
    pub topic: &'static str,
    pub value: Vec<u8>,
}

/// Makes a webhook; `number` makes its parts unique.
pub fn make(random: &mut Random, plan: &Plan, number: u64) -> MadeWebhook {
    if random.one_in(12) {
        return malformed(plan, number);
    }
    let stream = random.pick(plan.event_streams());
    let topic = plan.topic(stream);
    let mut elements = Vec::new();
    let mut events = Vec::new();
    let mut letters = Vec::new();
    let bad = random.one_in(5);
    for index in 0..1 + random.below(4) {
        let id = number * 10 + index;
        if bad && random.one_in(2) {
            let element = format!("\"bad {id}\"");
            letters.push(ExpectedRecord {
                topic: plan.topic(Stream::DeadLetters),
                value: element.clone().into_bytes(),
            });
            elements.push(element);
            continue;
        }
        let odd = random.one_in(10);
        let (keyless, large) = (odd && random.one_in(2), odd && random.one_in(2));
        let key = match keyless {
            true => String::new(),
            false => format!("\"messageId\":\"k{}\",", random.below(3)),
        };
        let padding = char::from(random.pick(&[b'x', COMPRESSIBLE]));
        let too_large = large && !(plan.compressed && padding == char::from(COMPRESSIBLE));
        let padding = String::from(padding).repeat(if large { 1500 } else { 0 });
        let members = format!("{key}\"n\":\"{id}{padding}\"");
        let refused = plan.compacted && keyless || plan.limit.is_some() && too_large;
        let topic = if refused {
            plan.topic(Stream::DeadLetters)
        } else {
            topic
        };
        let value = format!(
            "{{\"event_type\":\"{}\",\"server_composition\":\"pro\",{members}}}",
            stream.name()
        );
        events.push(ExpectedRecord {
            topic,
            value: value.into_bytes(),
        });
        elements.push(format!("{{{members}}}"));
    }
    let body = format!(
        "{{\"event_type\":\"{0}\",\"server_composition\":\"pro\",\"event\":{{\"{0}\":[{1}]}}}}",
        stream.name(),
        elements.join(",")
    );
    let batches = [(Stream::DeadLetters, letters), (stream, events)];
    MadeWebhook {
        body: body.into(),
        batches: batches
            .into_iter()
            .filter(|(_, records)| !records.is_empty())
            .collect(),
    }
}

fn malformed(plan: &Plan, number: u64) -> MadeWebhook {
    let body = format!("{{\"event_type\": cut off {number}");
    let letter = ExpectedRecord {
        topic: plan.topic(Stream::DeadLetters),
        value: body.clone().into_bytes(),
    };
    MadeWebhook {
        body: body.into(),
        batches: vec![(Stream::DeadLetters, vec![letter])],
    }
}
