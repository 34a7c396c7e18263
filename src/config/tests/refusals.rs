//! Refused values, and what the message must say.

use secrecy::ExposeSecret;

use super::{Given, SECRET, file, one, variable};

#[test]
fn files_that_are_not_a_configuration() {
    let missing = Given {
        files: vec!["/no/such/file.toml".into()],
        ..Given::default()
    };
    one(
        &missing,
        &[
            "file /no/such/file.toml: can't be read",
            "with --config or CMC_BRIDGE_CONFIG",
        ],
    );
    one(&file("[ingest\n"), &["bridge.toml: TOML parse error at line 1"]);
    one(
        &file("[kafka.properties]\nsasl.password = \"a\"\n\"sasl.password\" = \"b\""),
        &["is given twice"],
    );
}

#[test]
fn settings_that_would_always_refuse_some_webhook_within_all_limits() {
    let webhook = "a body of 1 MiB with 10000 events";
    one(
        &file("[ingest]\nmax_body_bytes = \"1MiB\"\nmax_bytes_in_flight = \"1MiB\""),
        &[
            "ingest.max_bytes_in_flight",
            webhook,
            "at least 3 MiB",
            "lower one",
        ],
    );
    one(
        &file(
            "[ingest]\nmax_body_bytes = \"1MiB\"\nmax_events = 1000000\n[spool]\nmax_bytes = \"4MiB\"\nsegment_bytes = \"1MiB\"",
        ),
        &["spool.max_bytes", "1000000 events", "at least"],
    );
    one(
        &file("[ingest]\nmax_body_bytes = \"32MiB\"\n[spool]\nmax_bytes = \"64MiB\""),
        &[
            "spool.max_bytes",
            "a body of 32 MiB with 10000 events",
            "at least 129 MiB",
        ],
    );
    one(
        &file("[ingest]\nmax_body_bytes = \"256MiB\""),
        &["ingest.max_bytes_in_flight", "a body of 256 MiB", "at least"],
    );
    let fits = file("[ingest]\nmax_body_bytes = \"1MiB\"\nmax_bytes_in_flight = \"3MiB\"");
    assert!(fits.load().is_ok());
}

#[test]
fn received_mail_needs_a_path_and_room_of_its_own() {
    let enabled = |rest: &str| file(&format!("[streams.inbound]\nenabled = true\n{rest}"));
    let mail = "one received mail may need: a body of 128 MiB";
    one(
        &enabled("[ingest]\ninbound_max_body_bytes = \"128MiB\"\nmax_bytes_in_flight = \"128MiB\""),
        &["ingest.max_bytes_in_flight", mail, "at least"],
    );
    one(
        &enabled("[ingest]\ninbound_max_body_bytes = \"128MiB\"\n[spool]\nmax_bytes = \"256MiB\""),
        &["spool.max_bytes", mail, "at least 512 MiB"],
    );
    // A stream that is off needs nothing.
    let off = file("[ingest]\ninbound_max_body_bytes = \"1GiB\"");
    assert!(off.load().is_ok());
    for paths in [
        "inbound_path = \"/webhooks/events\"",
        "health_path = \"/webhooks/inbound\"",
    ] {
        one(
            &file(&format!("[ingest]\n{paths}")),
            &["ingest.inbound_path", "is the path of ingest."],
        );
    }
    one(
        &enabled("content = \"some\""),
        &["streams.inbound.content", "no-attachments"],
    );
    assert!(enabled("content = \"envelope\"").load().is_ok());
}

#[test]
fn single_values() {
    let cases = [
        (
            "INGEST__LISTEN",
            "localhost:8080",
            "\"localhost:8080\" is not an address",
            "such as 0.0.0.0:8080",
        ),
        (
            "ADMIN__LISTEN",
            "9464",
            "is not an address",
            "an IP address and a port",
        ),
        ("INGEST__HEALTH_PATH", "healthz", "is not a path", "give a path"),
        (
            "INGEST__HEALTH_PATH",
            "/a b",
            "no path has ' '",
            "such as /healthz",
        ),
        (
            "INGEST__HEALTH_PATH",
            "/webhooks/events/",
            "is the path of webhooks",
            "another path",
        ),
        ("INGEST__PATH", "webhooks", "is not a path", "/webhooks/events"),
        (
            "INGEST__PATH",
            "/a#b",
            "is not a path",
            "without query or fragment",
        ),
        ("INGEST__PATH", "/a b", "no path has ' '", "/webhooks/events"),
        ("INGEST__PATH", "/十", "no path has '十'", "percent-encode"),
        ("INGEST__PATH", "/a<b", "no path has '<'", "/webhooks/events"),
        ("INGEST__PATH", "/a|b", "no path has '|'", "/webhooks/events"),
        ("INGEST__PATH", "/a\\b", "no path has '\\\\'", "/webhooks/events"),
        ("INGEST__PATH", "/a//b", "an empty segment", "one /"),
        ("INGEST__PATH", "/a/./b", "a segment of dots", "take it out"),
        (
            "INGEST__PATH",
            "/a/%2E%2E/b",
            "\"%2E\" stands for '.'",
            "write '.'",
        ),
        ("INGEST__PATH", "/..", "a segment of dots", "take it out"),
        (
            "INGEST__PATH",
            "/%zz",
            "a % without two hexadecimal digits",
            "%25",
        ),
        (
            "INGEST__PATH",
            "/a%4",
            "a % without two hexadecimal digits",
            "%25",
        ),
        ("INGEST__PATH", "/%65vents", "\"%65\" stands for 'e'", "write 'e'"),
        ("INGEST__PATH", "/%e5%8D%81", "\"%e5\"", "upper case"),
        (
            "INGEST__PATH",
            "/%+5",
            "a % without two hexadecimal digits",
            "%25",
        ),
        ("INGEST__PATH", "/readyz", "probes", "/webhooks/events"),
        ("INGEST__PATH", "/metrics/", "probes", "/webhooks/events"),
        (
            "INGEST__TIME_ZONES",
            "pro",
            "\"pro\" is not name=value",
            "transactional-email=UTC",
        ),
        (
            "INGEST__TIME_ZONES",
            "pro=UTC,=UTC",
            "\"=UTC\" is not name=value",
            "sandbox=",
        ),
        ("INGEST__PATH", "/", "is not a path", "other than /"),
        ("INGEST__PATH", "/a?b", "is not a path", "without query"),
        (
            "INGEST__MAX_BODY_BYTES",
            "8 Mb!",
            "\"8 Mb!\" is not a size",
            "KiB, MiB, GiB",
        ),
        (
            "INGEST__MAX_BODY_BYTES",
            "10",
            "\"10\" is too small",
            "give 1 KiB to 1 GiB",
        ),
        ("INGEST__MAX_EVENTS", "many", "is not a whole number", "digits"),
        ("INGEST__MAX_EVENTS", "0", "is too small", "give 1 to 1000000"),
        ("INGEST__MAX_CONNECTIONS", "-1", "is not a whole number", "digits"),
        ("INGEST__MAX_BYTES_IN_FLIGHT", "5TiB", "is too large", "to 1 TiB"),
        ("INGEST__HEADER_TIMEOUT", "10 minutes", "is not a time", "500ms"),
        (
            "INGEST__HEADER_TIMEOUT",
            "0",
            "is too small",
            "give 100 ms to 1 h",
        ),
        ("INGEST__BODY_TIMEOUT", "2h", "is too large", "1 h"),
        ("INGEST__APPEND_TIMEOUT", "1d", "is not a time", "ms, s, m or h"),
        (
            "INGEST__RETRY_AFTER",
            "1500ms",
            "no whole number of seconds",
            "whole seconds",
        ),
        ("INGEST__RETRY_AFTER", "0", "is too small", "1 s"),
        (
            "INGEST__MALFORMED_STATUS",
            "500",
            "\"500\" is not a status",
            "200 to 202, or 400 to 499",
        ),
        (
            "INGEST__TIME_ZONE",
            "Tokyo",
            "\"Tokyo\" is not a time zone",
            "Asia/Tokyo",
        ),
        (
            "INGEST__TIME_ZONES__PRO",
            "JST9",
            "\"JST9\" is not a time zone",
            "Asia/Tokyo",
        ),
        (
            "INGEST__AUTH__ALLOW_ANONYMOUS",
            "yes",
            "\"yes\" is not true or false",
            "true or false",
        ),
        ("INGEST__TLS__RELOAD", "0", "is too small", "give 100 ms to 24 h"),
        ("SPOOL__DIR", "", "is empty", "leave the key out"),
        (
            "SPOOL__MAX_BYTES",
            "40MiB",
            "less than four segments",
            "at least 64 MiB",
        ),
        (
            "SPOOL__SEGMENT_BYTES",
            "4KiB",
            "is too small",
            "give 64 KiB to 1 GiB",
        ),
        (
            "SPOOL__DURABILITY",
            "sync",
            "\"sync\" is not a choice",
            "fsync or page-cache",
        ),
        ("KAFKA__BOOTSTRAP_SERVERS", "", "is empty", "host:port"),
        (
            "KAFKA__BOOTSTRAP_SERVERS",
            "a:9092,b",
            "\"b\" is not a broker's address",
            "host:port",
        ),
        (
            "KAFKA__BOOTSTRAP_SERVERS",
            "a:0",
            "is not a broker's address",
            "host:port",
        ),
        (
            "KAFKA__DELIVERY",
            "at-most-once",
            "is not a choice",
            "give exactly-once or at-least-once",
        ),
        (
            "KAFKA__CREATE_TOPICS",
            "1",
            "is not true or false",
            "true or false",
        ),
        ("KAFKA__TOPIC_PARTITIONS", "x", "is not a whole number", "digits"),
        ("KAFKA__TOPIC_REPLICATION", "70000", "is too large", "0 to 1000"),
        ("KAFKA__ID_PREFIX", "a b", "is not a prefix", "A-Z"),
        ("KAFKA__MAX_RECORD_BYTES", "1000", "is too small", "1 KiB"),
        ("KAFKA__TRANSACTION_EVENTS", "0", "is too small", "1 to 1000000"),
        ("KAFKA__TRANSACTION_BYTES", "1k", "is too small", "64 KiB"),
        (
            "KAFKA__TRANSACTION_TIMEOUT",
            "500ms",
            "is too small",
            "give 1 s to 15 min",
        ),
        ("KAFKA__TRANSACTION_TIMEOUT", "16m", "is too large", "15 min"),
        (
            "STREAMS__DEAD_LETTERS__ENABLED",
            "false",
            "would vanish",
            "leave it true",
        ),
        (
            "STREAMS__BLOCKS__TOPIC",
            "a/b",
            "\"a/b\" is not a topic's name",
            "249",
        ),
        ("STREAMS__BLOCKS__TOPIC", "..", "is not a topic's name", "249"),
        (
            "STREAMS__BLOCKS__ENABLED",
            "",
            "is not true or false",
            "true or false",
        ),
        ("SENDER_API__URL", "", "is empty", "leave the key out"),
        (
            "SENDER_API__URL",
            "api.smtps.jp",
            "is not the URL of a Web API",
            "https://host/path",
        ),
        (
            "SENDER_API__URL",
            "http://api.smtps.jp/transaction/v2",
            "is not the URL of a Web API",
            "http only for this machine",
        ),
        (
            "SENDER_API__URL",
            "https://reader:hunter2@api.smtps.jp/",
            "is not the URL of a Web API",
            "without credentials or query",
        ),
        (
            "SENDER_API__URL",
            "https://api.smtps.jp/?api_key=hunter2",
            "is not the URL of a Web API",
            "without credentials or query",
        ),
        ("SENDER_API__PAUSE", "2m", "is too large", "1 min"),
        ("SENDER_API__TIMEOUT", "0", "is too small", "give 100 ms"),
        ("SENDER_API__TIMEOUT", "soon", "is not a time", "seconds"),
        ("SHUTDOWN__LAME_DUCK", "x", "is not a time", "seconds"),
        ("SHUTDOWN__GRACE", "2h", "is too large", "0 s to 1 h"),
        ("LOG__FORMAT", "xml", "is not a choice", "text or json"),
        ("LOG__LEVEL", "inof", "\"inof\" is not a log filter", "debug"),
        ("LOG__LEVEL", "info,a=b=c", "is not a log filter", "target=level"),
    ];
    for (name, value, what, fix) in cases {
        let key = name.to_ascii_lowercase().replace("__", ".");
        let start = format!("{key} (environment variable CMC_BRIDGE__{name}): ");
        one(&variable(name, value), &[&start, what, fix]);
    }
    for (text, parts) in [
        (
            "server_compositions = [\"pro\", \" \"]".to_owned(),
            ["has an empty name", "take it out"],
        ),
        (
            format!("server_compositions = \"pro,{}\"", "x".repeat(300)),
            ["is too long for a server_composition", "bytes"],
        ),
        ("server_compositions = 7".to_owned(), ["is not a list", "one,two"]),
        (
            "user = \"reader\"".to_owned(),
            ["sender_api.key (default): is not set", "give the user's key"],
        ),
        (
            "key = \"hunter2\"".to_owned(),
            ["sender_api.user (default): is not set", "give the API user"],
        ),
        (
            "user = \"reader\"\nkey_file = \"/no/such/file\"".to_owned(),
            ["sender_api.key_file", "No such file"],
        ),
        (
            "user = \"reader\"\nkey = \"hunter2\"\nkey_file = \"/no/such/file\"".to_owned(),
            ["sender_api.key is given too", "keep the value or the file"],
        ),
    ] {
        one(&file(&format!("[sender_api]\n{text}\n")), &parts);
    }
    one(
        &variable("STREAMS__BOUNCES__TOPIC", &"t".repeat(250)),
        &["is not a topic's name"],
    );
    one(
        &variable("ADMIN__LISTEN", "127.0.0.1:8080"),
        &["admin.listen", "taken by ingest.listen", "a port each"],
    );
}

#[test]
fn values_of_the_wrong_type_in_files() {
    let cases = [
        (
            "[streams.bounces]\ntopic = 123",
            "streams.bounces.topic",
            "123 is not text",
            "quotes",
        ),
        (
            "[spool]\ndir = [\"a\"]",
            "spool.dir",
            "a list is not text",
            "quotes",
        ),
        (
            "[ingest]\nmax_events = 1.5",
            "ingest.max_events",
            "1.5 is not a whole number",
            "digits",
        ),
        (
            "[ingest.max_events]\nx = 1",
            "ingest.max_events",
            "is a single key, not a table",
            "give it a value",
        ),
        (
            "[ingest]\nmax_body_bytes = -1",
            "ingest.max_body_bytes",
            "-1 is not a size",
            "bytes",
        ),
        (
            "[kafka]\ncreate_topics = 1",
            "kafka.create_topics",
            "1 is not true or false",
            "true or false",
        ),
        (
            "[kafka]\nbootstrap_servers = 9092",
            "kafka.bootstrap_servers",
            "not a list of texts",
            "one,two",
        ),
        (
            "[ingest.time_zones]\npro = 9",
            "ingest.time_zones.pro",
            "9 is not a time zone",
            "Asia/Tokyo",
        ),
        (
            "[kafka.properties]\n\"linger.ms\" = [5]",
            "kafka.properties.linger.ms",
            "is not text",
            "quotes",
        ),
        (
            "[kafka.properties]\n\"sasl.mechanism\" = \"OAUTHBEARER\"",
            "kafka.properties.sasl.mechanism",
            "needs a source of tokens",
            "sasl.oauthbearer.method to oidc",
        ),
    ];
    for (text, key, what, fix) in cases {
        one(&file(text), &[&format!("{key} (file "), what, fix]);
    }
}

#[test]
fn one_tls_file_without_the_other() {
    let fix = "give both files, or none";
    one(
        &variable("INGEST__TLS__CERTIFICATE", "/tls.crt"),
        &[
            "ingest.tls.key (default): is not set, but ingest.tls.certificate is (environment",
            fix,
        ],
    );
    one(
        &file("[ingest.tls]\nkey = \"/tls.key\""),
        &[
            "ingest.tls.certificate (default): is not set, but ingest.tls.key is (file",
            fix,
        ],
    );
}

#[test]
fn properties_that_the_bridge_owns() {
    let cases = [
        ("transactional.id", "set kafka.id_prefix"),
        ("group.id", "set kafka.id_prefix"),
        ("bootstrap.servers", "set kafka.bootstrap_servers"),
        ("message.max.bytes", "set kafka.max_record_bytes"),
        ("transaction.timeout.ms", "set kafka.transaction_timeout"),
        ("allow.auto.create.topics", "set kafka.create_topics"),
        ("enable.idempotence", "leave it out"),
        ("acks", "leave it out"),
        ("isolation.level", "leave it out"),
        ("batch.num.messages", "leave it out"),
        ("partitioner", "murmur2_random"),
        ("enable.auto.commit", "leave it out"),
        ("message.timeout.ms", "the spool"),
        ("log.level", "set log.level"),
    ];
    for (name, instead) in cases {
        let text = format!("[kafka.properties]\n\"{name}\" = \"x\"");
        one(
            &file(&text),
            &[
                &format!("kafka.properties.{name} (file "),
                "is set by the bridge itself",
                instead,
            ],
        );
        let upper = name.to_ascii_uppercase().replace('.', "_");
        one(
            &variable(&format!("KAFKA__PROPERTIES__{upper}"), "x"),
            &["is set by the bridge itself", instead],
        );
    }
}

#[test]
fn a_property_is_taken_by_either_name_but_not_by_both() {
    for (alias, name, value) in [
        ("compression.codec", "compression.type", "zstd"),
        ("queue.buffering.max.ms", "linger.ms", "5"),
        ("sasl.mechanisms", "sasl.mechanism", "PLAIN"),
    ] {
        let text = format!("[kafka.properties]\n\"{alias}\" = \"{value}\"\n");
        let properties = file(&text).loaded().config.kafka.properties;
        let names: Vec<_> = properties.keys().collect();
        assert_eq!(names, [name], "{alias}");
        assert_eq!(properties[name].expose_secret(), value);
        one(
            &file(&format!("{text}\"{name}\" = \"{value}\"\n")),
            &[
                &format!("kafka.properties.{alias} (file "),
                &format!("is another name of {name}, which is given too"),
                "keep one of them",
            ],
        );
    }
}

#[test]
fn properties_that_librdkafka_rejects() {
    for (name, value, what) in [
        ("socket.timeout.m", "1", "No such configuration property"),
        ("linger.ms", "soon", "linger.ms"),
        ("linger.ms", "-1", "outside allowed range"),
        ("compression.type", "zip", "Invalid value \"zip\""),
        (
            "sasl.passwort",
            SECRET,
            "No such configuration property: \"sasl.passwort\"",
        ),
    ] {
        let text = format!("[kafka.properties]\n\"{name}\" = \"{value}\"");
        one(
            &file(&text),
            &[
                &format!("kafka.properties.{name} (file "),
                "is refused by librdkafka: ",
                what,
            ],
        );
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let given = file("[ingest]\nlisten = \"x\"\nlistn = 1\n[kafka]\ndelivery = \"at-most-once\"")
        .config_file("broken.toml", "[")
        .variable("LOG__LEVEL", "loud")
        .variable("SPOOL__DURABILITY", "maybe")
        .variable("NOPE", "1");
    let lines = given.refused();
    for key in [
        "ingest.listen ",
        "ingest.listn ",
        "kafka.delivery ",
        "log.level ",
        "spool.durability ",
        "nope ",
        "file ",
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with(key)),
            "no {key} in {lines:#?}"
        );
    }
    assert_eq!(lines.len(), 7, "{lines:#?}");
    let error = given.load().unwrap_err().to_string();
    assert_eq!(error.lines().count(), 8, "{error}");
}
