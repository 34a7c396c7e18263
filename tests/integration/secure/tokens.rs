//! OAUTHBEARER: tokens from an endpoint, refused by it or by the broker, and renewed.

use super::*;
use crate::{
    commands::check_live,
    sender::{KEY, Sender, USER},
    token_server::SCOPE,
};

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
            "wrong client, and an answer that repeats the secret",
            Box::new(|setup| {
                let url = broker.tokens.url(&format!("token?key={URL_SECRET}"));
                setup
                    .property(TOKEN_URL, &url)
                    .property("sasl.oauthbearer.client.id", "nobody")
                    .property("debug", "all")
                    .set("log.level", "trace")
            }),
            "authentication",
            &[
                "not a known client: nobody:<redacted>",
                "sasl.oauthbearer.client.id",
            ],
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
            "an endpoint without TLS",
            // The broker's plain port.
            set(TOKEN_URL, format!("https://{}/token", broker.bootstrap())),
            "connect",
            &["the token endpoint"],
        ),
        (
            "an endpoint that is busy",
            set(TOKEN_URL, broker.tokens.url("busy")),
            "connect",
            &[TOKEN_URL, "gives a token within seconds"],
        ),
        (
            "an endpoint that never answers",
            set(TOKEN_URL, broker.tokens.url("silent")),
            "connect",
            &[TOKEN_URL, "gives a token within seconds"],
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

/// Topics of this test, which the client of the tokens may use.
fn topics_of(broker: &Secured, name: &str) -> Topics {
    let kafka = broker.bootstrap();
    let topic = |stream: &str| topics::create(&kafka, &format!("{name}.{stream}"), 1, &[]);
    let prefixed = |kind: &str, prefix: &str, operations: &[&str]| {
        let resource = [kind, prefix, "--resource-pattern-type", "prefixed"];
        grant(&[CLIENT], operations, &resource)
    };
    broker.acls(&[
        prefixed("--topic", &format!("{name}."), &["Write", "Read"]),
        prefixed("--transactional-id", "cmc-bridge", &["Write"]),
        prefixed("--group", "cmc-bridge", &["Read"]),
    ]);
    Topics {
        deliveries: topic("deliveries"),
        bounces: topic("bounces"),
        blocks: format!("{name}.blocks"),
        dead_letters: topic("dead-letters"),
    }
}

#[test]
fn tokens_are_renewed_under_load_and_no_lane_stops() {
    let broker = secured();
    let topics = topics_of(broker, "renewed");
    let setup = oauth(broker).property(TOKEN_URL, &broker.tokens.url("renewed"));
    let bridge = setup.topics(&topics).start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    bridge.wait_for(LIMIT, "deliveries", |scrape| {
        scrape.sum("cmc_bridge_delivered_events_total", &[]) >= 100.0
    });
    let first = broker.tokens.given("renewed");
    // The broker closes a connection whose token has expired. Each lane has a producer, and each of those renews its token twice or
    // more: their connections live longer than two tokens.
    wait::until(LIMIT, "renewed tokens", || {
        (broker.tokens.given("renewed") > first + 8).then_some(())
    });
    load.wait_acknowledged(100, LIMIT);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    let log = bridge.running.stderr();
    assert!(!log.contains("the lane is blocked"), "{log}");
    assert_no_secret("the log", &log);
    bridge.stop();
    oracle::check(&broker.bootstrap(), &topics, &posted);
}

#[test]
fn an_endpoint_that_leaves_is_named_and_delivery_goes_on_when_it_is_back() {
    let broker = secured();
    let topics = topics_of(broker, "leaving");
    let setup = oauth(broker).property(TOKEN_URL, &broker.tokens.url("leaving"));
    let bridge = setup.topics(&topics).start();
    let target = Target::default();
    target.set(bridge.ingest);
    let load = Load::start(&target, Shape::default());
    bridge.wait_for(LIMIT, "deliveries", |scrape| {
        scrape.sum("cmc_bridge_delivered_events_total", &[]) >= 100.0
    });
    broker.tokens.leave(true);
    let cure = ["unexpected eof", "can be reached from here"];
    wait_blocked("away", &bridge, "deliveries", "connect", &cure);
    load.wait_acknowledged(100, LIMIT);
    broker.tokens.leave(false);
    let posted = load.stop();
    bridge.wait_drained(LIMIT);
    bridge.stop();
    oracle::check(&broker.bootstrap(), &topics, &posted);
}

#[test]
fn a_bridge_whose_endpoint_never_answers_stops_within_its_grace() {
    let broker = secured();
    let setup = oauth(broker)
        .property(TOKEN_URL, &broker.tokens.url("silent"))
        .set("shutdown.grace", "3s");
    let mut bridge = setup.start();
    assert_eq!(bridge.client().post(cmc::delivery("kept@test")).status, 200);
    let began = std::time::Instant::now();
    bridge.terminate();
    assert_eq!(bridge.running.wait_exit(LIMIT), 0);
    // librdkafka waits 20 s for an answer.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn tools_log_in_with_tokens() {
    let broker = secured();
    let topics = topics_of(broker, "tools");
    let sender = Sender::start(Vec::new());
    let setup = oauth(broker)
        .topics(&topics)
        .set("sender_api.url", &sender.url())
        .set("sender_api.user", USER)
        .set("sender_api.key", KEY)
        .set("sender_api.server_compositions", "pro");
    let bridge = setup.start();
    assert_eq!(bridge.client().post(cmc::delivery("tools@test")).status, 200);
    assert_eq!(bridge.client().post("{").status, 400);
    bridge.wait_drained(LIMIT);
    bridge.stop();
    check_live(&setup, 0, &["READ on topic", "WRITE on transactional id"]);
    for (args, code, part) in [
        // Both records: which of the topics it reads first is not fixed.
        (&["tap", "--from-beginning", "-n", "2"][..], 0, "tools@test"),
        (&["dead-letters", "ls"], 0, "invalid_json"),
        (&["reconcile"], 0, ""),
        // The letter is still no webhook.
        (&["dead-letters", "replay"], 65, ""),
    ] {
        let ended = run(&setup, args);
        ended.has(code, &[part]);
        assert_no_secret(&args.join(" "), &(ended.stdout + &ended.stderr));
    }
    // Without a token, they say why.
    let wrong = setup.property(
        "sasl.oauthbearer.client.secret_file",
        &broker.file("wrong-password"),
    );
    for args in [
        &["check", "--live"][..],
        &["tap"],
        &["dead-letters", "ls"],
        &["dead-letters", "replay"],
        &["reconcile"],
    ] {
        run(&wrong, args).has(69, &["invalid_client", "sasl.oauthbearer.client.secret"]);
    }
}
