//! Credentials never reach a dead letter.

use super::*;

#[test]
fn the_api_key_of_a_dead_lettered_body_is_masked_where_it_stands() {
    for (body, encoding, value) in [
        (
            r#"{"api_key":"k\u0065y","k":"key"}"#,
            BodyEncoding::Json,
            r#"{"api_key":"********","k":"key"}"#,
        ),
        (
            r#"{"api\u005fkey":"鍵"}"#,
            BodyEncoding::Json,
            r#"{"api\u005fkey":"***"}"#,
        ),
        (r#"{"api_key":12}"#, BodyEncoding::Json, r#"{"api_key":**}"#),
        (r#"{"api_key":["a"]}"#, BodyEncoding::Json, r#"{"api_key":*****}"#),
        (
            r#"{"api_key":"a","api_key":"bc"}"#,
            BodyEncoding::Json,
            r#"{"api_key":"*","api_key":"**"}"#,
        ),
        ("api%5Fkey=a%20b&x=1", BodyEncoding::Form, "api%5Fkey=*****&x=1"),
        ("api_key=%FF&x=1", BodyEncoding::Form, "api_key=***&x=1"),
        ("api_key=a%&x=1", BodyEncoding::Form, "api_key=**&x=1"),
        (
            "x=1&api_key=a&api_key=bc",
            BodyEncoding::Form,
            "x=1&api_key=*&api_key=**",
        ),
    ] {
        let letters = letters(&split_with(body.as_bytes(), encoding, &rules()));
        assert_eq!(letters[0].value, value);
        assert_eq!(letters[0].header("cmc-dead-letter-masked"), Some("true"));
    }
}

#[test]
fn an_empty_api_key_is_nothing_to_mask() {
    let letters = letters(&split_json(r#"{"api_key":""}"#));
    assert_eq!(letters[0].value, r#"{"api_key":""}"#);
    assert_eq!(letters[0].header("cmc-dead-letter-masked"), None);
}

#[test]
fn configured_credentials_are_masked_everywhere_in_dead_letters_and_nowhere_else() {
    let body = r#"{"event_type":"deliveries","server_composition":"configured-secret","event":{"deliveries":[{"a":"configured-secret"},"configured\u002dsecret"],"configured-secret":1}}"#;
    let rules = rules();
    let request = Request {
        path: "/configured%2Dsecret",
        content_type: Some("application/json; x=configured-secret"),
        ..request(body.as_bytes())
    };
    let split = split(
        &open(body.as_bytes(), BodyEncoding::Json, &rules),
        &rules,
        &request,
    );
    assert!(events(&split)[0].value.contains("configured-secret"));
    let letters = letters(&split);
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        let text = format!("{letter:?}");
        assert!(!text.contains("configured"), "{text}");
        assert_eq!(letter.header("cmc-dead-letter-masked"), Some("true"));
    }
    assert_eq!(letters[0].value, format!("\"{}\"", "*".repeat(22)));
    assert_eq!(
        letters[1].header("cmc-dead-letter-path"),
        Some("/*******************")
    );
}

#[test]
fn no_error_text_has_the_body() {
    for body in [
        "{\"api_key\":\"TOPSECRET\" TOPSECRET}",
        "{\"api_key\":\"TOPSECRET\\q\"}",
        "{\"api_key\":TOPSECRET}",
        "{\"api_key\":\"TOPSECRET\"}",
        "api_key=TOPSECRET%",
        "api_key=TOPSECRET&event=TOPSECRET",
        "api_key=TOPSECRET&event_type=bounces&server_composition=b&event=TOPSECRET",
    ] {
        for encoding in [BodyEncoding::Json, BodyEncoding::Form] {
            let error = open(body.as_bytes(), encoding, &rules()).content.err().unwrap();
            assert!(!format!("{error:?}").contains("TOPSECRET"), "{error:?}");
        }
    }
}
