//! Generates webhooks, and the records that each must become.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{broker::COMPRESSIBLE, plan::Plan, random::Random};
use crate::{cmc::Endpoint, stream::Stream};

/// A webhook's body and the records expected from it.
pub struct MadeWebhook {
    pub endpoint: Endpoint,
    pub body: Bytes,
    /// The batches for each stream, with their records.
    pub batches: Vec<(Stream, Vec<ExpectedRecord>)>,
}

/// A record that must appear in a topic.
pub struct ExpectedRecord {
    pub topic: &'static str,
    pub value: Vec<u8>,
    /// Whether its key is null.
    pub keyless: bool,
}

impl ExpectedRecord {
    fn letter(plan: &Plan, value: &str) -> ExpectedRecord {
        ExpectedRecord {
            topic: plan.topic(Stream::DeadLetters),
            value: value.as_bytes().to_vec(),
            keyless: true,
        }
    }
}

/// The content type of webhooks.
pub fn content_type(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Events => "application/json",
        Endpoint::Inbound => "multipart/form-data; boundary=b",
    }
}

/// Makes a webhook; `number` makes its parts unique.
pub fn make(random: &mut Random, plan: &Plan, number: u64) -> MadeWebhook {
    if random.one_in(12) {
        return malformed(plan, number);
    }
    let stream = random.pick(plan.event_streams());
    if stream == Stream::Inbound {
        return mail(random, plan, number);
    }
    let topic = plan.topic(stream);
    let mut elements = Vec::new();
    let mut events = Vec::new();
    let mut letters = Vec::new();
    let bad = random.one_in(5);
    for index in 0..1 + random.below(4) {
        let id = number * 10 + index;
        if bad && random.one_in(2) {
            let element = format!("\"bad {id}\"");
            letters.push(ExpectedRecord::letter(plan, &element));
            elements.push(element);
            continue;
        }
        let odd = random.one_in(10);
        let (keyless, large) = (odd && random.one_in(2), odd && random.one_in(2));
        let key = match keyless {
            true => String::new(),
            false => format!("\"messageId\":\"k{}\",", random.below(3)),
        };
        let (padding, too_large) = padding(random, plan, if large { 1500 } else { 0 });
        let members = format!("{key}\"n\":\"{id}{padding}\"");
        let refused = plan.compacted && keyless || too_large;
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
            keyless,
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
        endpoint: Endpoint::Events,
        body: body.into(),
        batches: batches
            .into_iter()
            .filter(|(_, records)| !records.is_empty())
            .collect(),
    }
}

fn malformed(plan: &Plan, number: u64) -> MadeWebhook {
    let body = format!("{{\"event_type\": cut off {number}");
    dead(plan, Endpoint::Events, body)
}

/// A body that becomes a dead letter as a whole.
fn dead(plan: &Plan, endpoint: Endpoint, body: String) -> MadeWebhook {
    let letter = ExpectedRecord::letter(plan, &body);
    MadeWebhook {
        endpoint,
        body: body.into(),
        batches: vec![(Stream::DeadLetters, vec![letter])],
    }
}

/// Padding of this length, and whether it makes its record too large for a topic with a limit.
fn padding(random: &mut Random, plan: &Plan, length: usize) -> (String, bool) {
    let byte = random.pick(&[b'x', COMPRESSIBLE]);
    let shrinks = plan.compressed && byte == COMPRESSIBLE;
    let text = String::from(char::from(byte)).repeat(length);
    (text, length > 0 && plan.limit.is_some() && !shrinks)
}

/// A received mail with up to three attachments. If one of its records is too large, all go to the dead letters.
fn mail(random: &mut Random, plan: &Plan, number: u64) -> MadeWebhook {
    let count = random.below(4);
    // The number of the record that is large: the mail is 0.
    let large = random.one_in(4).then(|| random.below(count + 1));
    let mut refused = false;
    let mut padding = |record| {
        let length = if large == Some(record) { 3000 } else { 0 };
        let (text, is_too_large) = padding(random, plan, length);
        refused |= is_too_large;
        text
    };
    let subject = format!("{number}{}", padding(0));
    let contents: Vec<String> = (1..=count)
        .map(|index| format!("content {index} of {number}{}", padding(index)))
        .collect();
    let headers = format!(r#"[{{"name":"Message-ID","value":"k{}"}}]"#, random.below(3));
    let mut body = String::new();
    let fields = [
        ("server_composition", "pro"),
        ("headers", &headers),
        ("subject", &subject),
    ];
    for (name, value) in fields {
        body += &format!("--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n");
    }
    let mut list = Vec::new();
    for (index, content) in (1..).zip(&contents) {
        body +=
            &format!("--b\r\nContent-Disposition: form-data; name=attachment{index}\r\n\r\n{content}\r\n");
        let sha256: String = Sha256::digest(content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        list.push(format!(
            r#"{{"index":{index},"field":"attachment{index}","content_type":"application/octet-stream","size":{},"sha256":"{sha256}","parts":1}}"#,
            content.len()
        ));
    }
    if random.one_in(10) {
        return dead(plan, Endpoint::Inbound, body);
    }
    let value = format!(
        r#"{{"event_type":"inbound","server_composition":"pro","headers":{headers},"subject":"{subject}","attachments":[{}]}}"#,
        list.join(",")
    );
    let topic = plan.topic(if refused {
        Stream::DeadLetters
    } else {
        Stream::Inbound
    });
    let records = std::iter::once(value)
        .chain(contents)
        .map(|value| ExpectedRecord {
            topic,
            value: value.into_bytes(),
            keyless: false,
        });
    MadeWebhook {
        endpoint: Endpoint::Inbound,
        body: (body + "--b--\r\n").into(),
        batches: vec![(Stream::Inbound, records.collect())],
    }
}
