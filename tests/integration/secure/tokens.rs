//! OAUTHBEARER: tokens from an endpoint, refused by it or by the broker, and renewed.

use super::*;
use crate::token_server::SCOPE;

/// The settings for OAUTHBEARER.
fn oauth(broker: &Secured) -> Setup {
    let properties = Documented::read().with("OAUTHBEARER", broker);
    assert_eq!(properties["sasl.oauthbearer.scope"], SCOPE);
    assert_eq!(properties["sasl.oauthbearer.client.id"], CLIENT);
    with_properties(Setup::new(&broker.sasl_ssl()), &properties).set("kafka.transaction_timeout", "10s")
}

#[test]
fn token_errors_are_named_and_nothing_is_lost() {
    let broker = secured();
    let set = |name: &'static str, value: String| -> Change<'_> {
        Box::new(move |setup| setup.property(name, &value))
    };
    let cases: Vec<Case<'_>> = vec![
        (
            "wrong secret",
            set(
                "sasl.oauthbearer.client.secret_file",
                broker.file("wrong-password"),
            ),
            "authentication",
            &["invalid_client", "sasl.oauthbearer.client.secret"],
        ),
        (
            "wrong scope",
            set("sasl.oauthbearer.scope", "mail".into()),
            "authentication",
            &["invalid_scope", "sasl.oauthbearer.scope"],
        ),
        (
            "an expired token",
            set(TOKEN_URL, broker.tokens.url("expired")),
            "authentication",
            &["unexpired token", "compare its clock"],
        ),
        (
            "a token for another cluster",
            set(TOKEN_URL, broker.tokens.url("audience")),
            "authentication",
            &[
                "The broker refuses the token",
                "sasl.oauthbearer.expected.audience",
            ],
        ),
        (
            "no endpoint",
            // Nothing listens on this port.
            set(TOKEN_URL, "https://127.0.0.1:1/token".into()),
            "connect",
            &["the token endpoint", "can be reached from here"],
        ),
        (
            "an endpoint of another authority",
            set("https.ca.location", broker.file("ca.pem")),
            "authentication",
            &["https.ca.location"],
        ),
    ];
    wrong_logins(broker, &oauth(broker), "tokens", cases);
}

#[test]
fn tokens_are_renewed_before_they_expire() {
    let broker = secured();
    let kafka = broker.bootstrap();
    let topic = |stream: &str| topics::create(&kafka, &format!("renewed.{stream}"), 1, &[]);
    let topics = Topics {
        deliveries: topic("deliveries"),
        bounces: topic("bounces"),
        blocks: "renewed.blocks".into(),
        dead_letters: topic("dead-letters"),
    };
    let prefixed = |kind: &str, prefix: &str, operations: &[&str]| {
        let resource = [kind, prefix, "--resource-pattern-type", "prefixed"];
        grant(&[CLIENT], operations, &resource)
    };
    broker.acls(&[
        prefixed("--topic", "renewed.", &["Write", "Read"]),
        prefixed("--transactional-id", "cmc-bridge", &["Write"]),
        prefixed("--group", "cmc-bridge", &["Read"]),
    ]);
    let setup = oauth(broker).property(TOKEN_URL, &broker.tokens.url("renewed"));
    let bridge = setup.topics(&topics).start();
    let post = |id: &str| {
        let element = message(id, "renewed");
        let body = webhook("deliveries", "pro", &[&element]);
        assert_eq!(bridge.client().post(&body).status, 200);
        bridge.wait_drained(LIMIT);
    };
    post("first@test");
    let first = broker.tokens.given("renewed");
    // Each of the three lanes has at most two clients, so one of them has renewed its token twice.
    wait::until(LIMIT, "renewed tokens", || {
        (broker.tokens.given("renewed") > first + 6).then_some(())
    });
    post("second@test");
    let mut reader = Reader::new(&kafka, &topics.deliveries);
    let records = reader.read_to_end(LIMIT);
    assert_eq!(records.len(), 2);
}
