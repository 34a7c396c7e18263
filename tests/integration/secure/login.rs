//! Wrong logins: certificates, passwords, mechanisms, protocols, property names.

use super::*;

#[test]
fn login_errors_are_named_and_nothing_is_lost() {
    let broker = secured();
    let localhost = broker.sasl_ssl().replace("127.0.0.1", "localhost");
    let set = |name: &'static str, value: String| -> Change<'_> {
        Box::new(move |setup| setup.property(name, &value))
    };
    let cases: Vec<Case<'_>> = vec![
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
    wrong_logins(broker, &scram(broker, "cmc-bridge"), "login", cases);
}
