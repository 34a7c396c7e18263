//! Wrong logins: certificates, passwords, mechanisms, protocols, property names.

use super::*;

#[test]
fn login_errors_are_named_and_nothing_is_lost() {
    let broker = secured();
    let kafka = broker.bootstrap();
    let prefixed = |kind: &str, prefix: &str, operations: &[&str]| {
        let resource = [kind, prefix, "--resource-pattern-type", "prefixed"];
        grant(&["cmc-bridge"], operations, &resource)
    };
    broker.acls(&[
        prefixed("--topic", "login.", &["Write", "Read"]),
        prefixed("--transactional-id", "cmc-bridge", &["Write"]),
        prefixed("--group", "cmc-bridge", &["Read"]),
    ]);
    let localhost = broker.sasl_ssl().replace("127.0.0.1", "localhost");
    type Change<'a> = Box<dyn Fn(Setup) -> Setup + 'a>;
    let set = |name: &'static str, value: String| -> Change<'_> {
        Box::new(move |setup| setup.property(name, &value))
    };
    let cases: Vec<(&str, Change<'_>, &str, &[&str])> = vec![
        (
            "wrong CA",
            set("ssl.ca.location", broker.file("other-ca.pem")),
            "authentication",
            &["certificate", "ssl.ca.location"],
        ),
        (
            "no CA",
            Box::new(|setup| {
                setup
                    .unset("kafka.properties.ssl_ca_location")
                    .property("debug", "security")
                    .set("log.level", "debug")
            }),
            "authentication",
            &["certificate", "ssl.ca.location"],
        ),
        (
            "a missing CA file",
            set("ssl.ca.location", "/no/such/ca.pem".into()),
            "other",
            &["ssl.ca.location"],
        ),
        (
            "another name than in the certificate",
            Box::new(|setup| setup.set("kafka.bootstrap_servers", &localhost)),
            "authentication",
            &["certificate", "kafka.bootstrap_servers"],
        ),
        (
            "wrong password",
            set("sasl.password_file", broker.file("wrong-password")),
            "authentication",
            &["SASL", "sasl.password"],
        ),
        (
            "wrong password with PLAIN",
            Box::new(|setup| {
                setup
                    .property("sasl.mechanism", "PLAIN")
                    .property("sasl.username", PLAIN_USER)
                    .property("sasl.password_file", &broker.file("wrong-password"))
            }),
            "authentication",
            &["sasl.password"],
        ),
        (
            "a mechanism that the broker does not have",
            set("sasl.mechanism", "SCRAM-SHA-256".into()),
            "authentication",
            &["SCRAM-SHA-512", "sasl.mechanism"],
        ),
        (
            "a mechanism that this build does not have",
            set("sasl.mechanism", "GSSAPI".into()),
            "other",
            &["sasl.mechanism", "SCRAM-SHA-512"],
        ),
        (
            "a mechanism that nobody has",
            set("sasl.mechanism", "SCRAM-MD5".into()),
            "other",
            &["sasl.mechanism"],
        ),
        (
            "plaintext on the TLS port",
            Box::new(|setup| {
                setup
                    .property("security.protocol", "PLAINTEXT")
                    .unset("kafka.properties.sasl_mechanism")
            }),
            "connect",
            &["does this port want TLS?", "that security.protocol matches"],
        ),
        (
            "SASL without TLS on the TLS port",
            set("security.protocol", "SASL_PLAINTEXT".into()),
            "connect",
            &["does this port want TLS?", "that security.protocol matches"],
        ),
        (
            "TLS on a plain port",
            Box::new(|setup| setup.set("kafka.bootstrap_servers", &broker.bootstrap())),
            "connect",
            &["SSL connection closed by peer", "that security.protocol matches"],
        ),
        (
            "no client certificate",
            Box::new(|setup| {
                setup
                    .property("security.protocol", "SSL")
                    .set("kafka.bootstrap_servers", &broker.ssl())
            }),
            "authentication",
            &["ssl.certificate.location"],
        ),
        (
            "properties that don't go together",
            set("socket.timeout.ms", "60000".into()),
            "other",
            &["socket.timeout.ms", "[kafka.properties]"],
        ),
    ];
    let started: Vec<_> = cases
        .into_iter()
        .map(|(case, change, reason, words)| {
            let topic = |stream: &str| topics::create(&kafka, &format!("login.{stream}"), 1, &[]);
            let topics = Topics {
                deliveries: topic("deliveries"),
                bounces: topic("bounces"),
                blocks: "login.blocks".into(),
                dead_letters: topic("dead-letters"),
            };
            let right = scram(broker, "cmc-bridge").topics(&topics);
            let bridge = change(right.clone()).start();
            (case, reason, words, change(right.clone()), right, bridge, topics)
        })
        .collect();
    for (case, reason, words, wrong, right, bridge, topics) in started {
        let element = message(&format!("{case}@test").replace(' ', "-"), case);
        let body = webhook("deliveries", "pro", &[&element]);
        assert_eq!(bridge.client().post(&body).status, 200, "{case}");
        for stream in STREAMS {
            wait_blocked(case, &bridge, stream, reason, words);
        }
        if case == "no CA" {
            let log = bridge.running.stderr();
            let looked = [
                "Setting default CA certificate location",
                "Unable to find any standard CA",
            ];
            assert!(
                looked.iter().any(|line| log.contains(line)),
                "librdkafka did not look for the system's CA bundle"
            );
        }
        assert_no_secrets(&wrong, &bridge);
        bridge.kill();
        let bridge = right.start();
        bridge.wait_drained(LIMIT);
        let mut reader = Reader::new(&kafka, &topics.deliveries);
        let records = reader.read_to_end(LIMIT);
        assert_eq!(records.len(), 1, "{case}");
        cmc::check(&records[0], "deliveries", "pro", &element);
    }
}
