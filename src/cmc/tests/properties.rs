//! Properties that hold for every body.

use proptest::prelude::*;

use super::{mutations::check, *};

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
    fn any_bytes_at_all_are_kept(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body, BodyEncoding::Json, &rules());
        check(&body, BodyEncoding::Form, &rules());
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
        check(json.as_bytes(), BodyEncoding::Json, &rules());
        check(form.as_bytes(), BodyEncoding::Form, &rules());
        let from_json = split_with(json.as_bytes(), BodyEncoding::Json, &rules());
        let from_form = split_with(form.as_bytes(), BodyEncoding::Form, &rules());
        let objects = elements.iter().filter(|element| element.is_object()).count();
        prop_assert_eq!(events(&from_json).len(), objects);
        prop_assert_eq!(from_json.failures.len(), elements.len() - objects);
        prop_assert_eq!(from_json.events, from_form.events);
        prop_assert_eq!(from_json.dead_letters, from_form.dead_letters);
    }
}
