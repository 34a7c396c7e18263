//! Properties that hold for every body.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{
    samples::{BATCH, SAMPLES, sample},
    *,
};

/// Bytes that matter to one of the parsers.
const TOKENS: [&str; 16] = [
    "{", "}", "[", "]", "\"", "\\", "\\u", "\\ud83d", ",", ":", "%", "%2", "&", "=", "event", "{},",
];

#[derive(Clone, Debug)]
enum Mutation {
    Replace(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Replace(at, byte)),
        (at(), 1usize..40).prop_map(|(at, length)| Mutation::Remove(at, length)),
        (at(), 0usize..TOKENS.len()).prop_map(|(at, token)| Mutation::Insert(at, token)),
        (at(), 1usize..60).prop_map(|(at, length)| Mutation::Repeat(at, length)),
    ]
}

impl Mutation {
    fn apply(&self, body: &mut Vec<u8>) {
        if body.is_empty() {
            return;
        }
        match self {
            Mutation::Replace(at, byte) => {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            Mutation::Remove(at, length) => {
                let at = at.index(body.len());
                body.drain(at..(at + length).min(body.len()));
            }
            Mutation::Insert(at, token) => {
                let at = at.index(body.len());
                body.splice(at..at, TOKENS[*token].bytes());
            }
            Mutation::Repeat(at, length) => {
                let at = at.index(body.len());
                let piece = body[at..(at + length).min(body.len())].to_vec();
                body.splice(at..at, piece);
            }
        }
    }
}

fn bodies() -> Vec<&'static str> {
    let mut bodies: Vec<_> = SAMPLES.iter().map(|sample| sample.0).collect();
    bodies.push(sample!("deliveries-form.txt"));
    bodies.push(&BATCH[..2000]);
    bodies
}

/// Opens and splits; every forwarded value must be the prefix and an element's bytes, in the order of the text.
fn check(body: &[u8], encoding: BodyEncoding) {
    let rules = rules();
    let opened = open(body, encoding, &rules);
    let split = split(&opened, &rules, &request(body));
    let Ok(envelope) = &opened.content else {
        assert!(split.events.is_none());
        assert_eq!(split.failures.len(), 1);
        return;
    };
    let mut from = 0;
    for record in events(&split) {
        serde_json::from_str::<serde::de::IgnoredAny>(&record.value).unwrap();
        let composition = serde_json::Value::from(opened.server_composition.as_deref().unwrap());
        let event_type = opened.event_type.as_deref().unwrap();
        let prefix = format!(r#"{{"event_type":"{event_type}","server_composition":{composition}"#);
        let rest = record.value.strip_prefix(&prefix).unwrap();
        let rest = rest.strip_prefix(',').unwrap_or(rest);
        let element = format!("{{{rest}");
        from += envelope.text[from..].find(&element).unwrap() + element.len();
    }
    for letter in split.dead_letters.iter().flat_map(|(batch, _)| records(batch)) {
        assert!(letter.header("cmc-dead-letter-reason").is_some());
    }
    // What serde_json finds in the same text is what was found.
    let event = match encoding {
        BodyEncoding::Json => {
            match serde_json::from_slice::<BTreeMap<String, &RawValue>>(body) {
                Ok(members) => members["event"].get(),
                Err(_) => return, // a name that is no text, beside the event
            }
        }
        BodyEncoding::Form => &*envelope.text,
    };
    let lists: BTreeMap<String, &RawValue> = match serde_json::from_str(event) {
        Ok(lists) => lists,
        Err(_) => return, // a name that is no text
    };
    if lists.len() != envelope.event.members.len() {
        return; // a repeated name
    }
    for member in &envelope.event.members {
        let name = member.name.decode(&envelope.text).unwrap();
        let raw = lists[&*name].get();
        assert_eq!(&envelope.text[member.value.clone()], raw);
        let elements = serde_json::from_str::<Vec<&RawValue>>(raw).ok();
        let found = member.list.clone().map(|list| &envelope.event.elements[list]);
        assert_eq!(elements.as_ref().map(Vec::len), found.map(<[_]>::len));
        for (element, found) in elements.iter().flatten().zip(found.into_iter().flatten()) {
            assert_eq!(&envelope.text[found.span.clone()], element.get());
        }
    }
}

fn json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
    let text = "[a-z\u{0}-\u{7f}十😀]{0,12}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text.prop_map(Into::into),
        Just("2026-10-01 09:15:02".into()),
    ];
    let name = prop_oneof![
        Just("messageId".to_owned()),
        Just("created".to_owned()),
        Just("status".to_owned()),
        text,
    ];
    leaf.prop_recursive(depth, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_bodies_never_panic_and_forward_only_what_came(
        which in any::<prop::sample::Index>(),
        mutations in prop::collection::vec(mutation(), 0..4),
    ) {
        let bodies = bodies();
        let mut body = which.get(&bodies).as_bytes().to_vec();
        for mutation in &mutations {
            mutation.apply(&mut body);
        }
        check(&body, BodyEncoding::Json);
        check(&body, BodyEncoding::Form);
    }

    #[test]
    fn any_bytes_at_all_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body, BodyEncoding::Json);
        check(&body, BodyEncoding::Form);
    }

    #[test]
    fn a_form_and_json_agree(
        elements in prop::collection::vec(json(4), 0..8),
        pretty in any::<bool>(),
        composition in "[a-z\u{0}-\u{7f}十😀]{0,12}",
    ) {
        let event = serde_json::json!({ "deliveries": elements });
        let event = if pretty { format!("{event:#}") } else { event.to_string() };
        let composition_json = serde_json::Value::from(composition.as_str());
        let json = format!(r#"{{"event":{event},"server_composition":{composition_json},"event_type":"deliveries"}}"#);
        let form = form("deliveries", &composition, &event);
        check(json.as_bytes(), BodyEncoding::Json);
        check(form.as_bytes(), BodyEncoding::Form);
        let from_json = split_with(json.as_bytes(), BodyEncoding::Json, &rules());
        let from_form = split_with(form.as_bytes(), BodyEncoding::Form, &rules());
        let objects = elements.iter().filter(|element| element.is_object()).count();
        prop_assert_eq!(events(&from_json).len(), objects);
        prop_assert_eq!(from_json.failures.len(), elements.len() - objects);
        prop_assert_eq!(from_json.events, from_form.events);
        prop_assert_eq!(from_json.dead_letters, from_form.dead_letters);
    }
}
