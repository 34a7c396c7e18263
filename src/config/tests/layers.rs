//! Which layer wins, how variables are named and typed, and which origin is reported.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{Given, file, setting, variable};
use crate::{
    config::{Auth, LogFormat, Origin},
    spool::Durability,
    stream::Stream,
};

#[test]
fn defaults_are_the_documented_ones() {
    let loaded = Given::default().loaded();
    let config = &loaded.config;
    assert_eq!(config.ingest.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.ingest.path, "/webhooks/events");
    assert_eq!(config.ingest.max_body_bytes, 8 << 20);
    assert_eq!(config.ingest.max_events, 10_000);
    assert_eq!(config.ingest.max_connections, 4096);
    assert_eq!(config.ingest.max_bytes_in_flight, 256 << 20);
    assert_eq!(config.ingest.header_timeout, Duration::from_secs(10));
    assert_eq!(config.ingest.body_timeout, Duration::from_secs(30));
    assert_eq!(config.ingest.append_timeout, Duration::from_secs(10));
    assert_eq!(config.ingest.retry_after, Duration::from_secs(5));
    assert_eq!(config.ingest.malformed_status, 400);
    assert!(config.ingest.tls.is_none());
    assert_eq!(config.ingest.time_zone.iana_name(), Some("Asia/Tokyo"));
    assert!(config.ingest.time_zones.is_empty());
    assert!(matches!(&config.ingest.auth, Auth::Credentials(none) if none.is_empty()));
    assert_eq!(config.admin.listen.to_string(), "0.0.0.0:9464");
    assert_eq!(config.spool.dir.to_str(), Some("/var/lib/cmc-bridge"));
    assert_eq!(config.spool.max_bytes, 4 << 30);
    assert_eq!(config.spool.segment_bytes, 16 << 20);
    assert_eq!(config.spool.durability, Durability::Fsync);
    assert_eq!(config.kafka.bootstrap_servers, "localhost:9092");
    assert!(!config.kafka.create_topics);
    assert_eq!(
        (config.kafka.topic_partitions, config.kafka.topic_replication),
        (None, None)
    );
    assert_eq!(config.kafka.id_prefix, "cmc-bridge");
    assert_eq!(config.kafka.max_record_bytes, 1_000_000);
    assert_eq!(config.kafka.transaction_events, 40_000);
    assert_eq!(config.kafka.transaction_bytes, 32 << 20);
    assert_eq!(config.kafka.transaction_timeout, Duration::from_secs(15));
    assert_eq!(config.kafka.commit_interval, Duration::from_millis(100));
    assert!(config.kafka.properties.is_empty());
    let streams = Stream::ALL.map(|stream| {
        (
            config.stream(stream).enabled,
            config.stream(stream).topic.as_str(),
        )
    });
    assert_eq!(
        streams,
        [
            (true, "cmc.deliveries"),
            (true, "cmc.bounces"),
            (false, "cmc.blocks"),
            (false, "cmc.inbound"),
            (true, "cmc.dead-letters")
        ]
    );
    assert_eq!(config.shutdown.lame_duck, Duration::from_secs(5));
    assert_eq!(config.shutdown.grace, Duration::from_secs(25));
    assert_eq!(
        (config.log.format, config.log.level.as_str()),
        (LogFormat::Text, "info")
    );
    assert!(
        loaded
            .settings
            .iter()
            .all(|setting| setting.origin == Origin::Default)
    );
}

#[test]
fn later_files_win_over_earlier_ones_and_variables_over_all() {
    let given = Given::default()
        .config_file(
            "a.toml",
            "[ingest]\nmax_events = 1\nmax_connections = 1\npath = \"/a\"",
        )
        .config_file("b.toml", "[ingest]\nmax_events = 2\nmax_connections = 2")
        .variable("INGEST__MAX_EVENTS", "3");
    let loaded = given.loaded();
    let ingest = &loaded.config.ingest;
    assert_eq!(
        (ingest.max_events, ingest.max_connections, ingest.path.as_str()),
        (3, 2, "/a")
    );
    let origin = |key| setting(&loaded, key).origin.clone();
    assert_eq!(
        origin("ingest.max_events"),
        Origin::Environment("CMC_BRIDGE__INGEST__MAX_EVENTS".to_owned())
    );
    assert_eq!(
        origin("ingest.max_connections"),
        Origin::File(given.files[1].clone())
    );
    assert_eq!(origin("ingest.path"), Origin::File(given.files[0].clone()));
    assert_eq!(origin("ingest.listen"), Origin::Default);
}

#[test]
fn variables_stay_text_until_they_are_read() {
    let loaded = variable("STREAMS__BOUNCES__TOPIC", "123")
        .variable("KAFKA__PROPERTIES__SASL_PASSWORD", "00123")
        .variable("KAFKA__ID_PREFIX", "1e3")
        .variable("INGEST__AUTH__BEARER_TOKENS", "007, true ,,1.50,")
        .variable("INGEST__MAX_BODY_BYTES", "1MiB")
        .variable("INGEST__RETRY_AFTER", "7")
        .variable("KAFKA__CREATE_TOPICS", "true")
        .variable("KAFKA__TOPIC_PARTITIONS", "12")
        .variable("KAFKA__BOOTSTRAP_SERVERS", "a:1, b:2,")
        .loaded();
    let config = &loaded.config;
    assert_eq!(config.stream(Stream::Bounces).topic, "123");
    assert_eq!(config.kafka.properties["sasl.password"].expose_secret(), "00123");
    assert_eq!(config.kafka.id_prefix, "1e3");
    let Auth::Credentials(credentials) = &config.ingest.auth else {
        panic!()
    };
    let secrets: Vec<_> = credentials
        .iter()
        .map(|credential| credential.secret.expose_secret())
        .collect();
    assert_eq!(secrets, ["007", "true", "1.50"]);
    assert_eq!(config.ingest.max_body_bytes, 1 << 20);
    assert_eq!(config.ingest.retry_after, Duration::from_secs(7));
    assert!(config.kafka.create_topics);
    assert_eq!(config.kafka.topic_partitions, Some(12));
    assert_eq!(config.kafka.bootstrap_servers, "a:1,b:2");
}

#[test]
fn a_list_is_replaced_as_a_whole() {
    let loaded = Given::default()
        .config_file("a.toml", "[ingest.auth]\nbearer_tokens = [\"a\", \"b\"]")
        .variable("INGEST__AUTH__BEARER_TOKENS", "c")
        .loaded();
    let Auth::Credentials(credentials) = &loaded.config.ingest.auth else {
        panic!()
    };
    assert_eq!(credentials.len(), 1);
    assert_eq!(credentials[0].secret.expose_secret(), "c");
}

#[test]
fn variables_of_other_programs_are_ignored() {
    let names = [
        "CMC_BRIDGE_PORT",
        "CMC_BRIDGE_SERVICE_HOST",
        "CMC_BRIDGE_INGEST__LISTEN",
        "CMC_BRIDGE",
        "PATH",
    ];
    let variables = names.map(|name| (name.to_owned(), "tcp://10.0.0.1:8080".to_owned()));
    let given = Given {
        variables: variables.to_vec(),
        ..Given::default()
    };
    assert!(
        given
            .loaded()
            .settings
            .iter()
            .all(|setting| setting.origin == Origin::Default)
    );
}

#[test]
fn a_property_has_the_same_name_in_every_source() {
    let quoted =
        "[kafka.properties]\n\"sasl.password\" = \"file\"\n\"linger.ms\" = 5\n\"debug\" = \"broker\"";
    let nested =
        "[kafka.properties.sasl]\npassword = \"file\"\n[kafka.properties]\nlinger.ms = 5\ndebug = \"broker\"";
    for text in [quoted, nested] {
        let loaded = file(text)
            .variable("KAFKA__PROPERTIES__SASL_PASSWORD", "environment")
            .variable("KAFKA__PROPERTIES__SOCKET_KEEPALIVE_ENABLE", "true")
            .loaded();
        let properties: Vec<(&str, &str)> = loaded
            .config
            .kafka
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose_secret()))
            .collect();
        assert_eq!(
            properties,
            [
                ("debug", "broker"),
                ("linger.ms", "5"),
                ("sasl.password", "environment"),
                ("socket.keepalive.enable", "true"),
            ]
        );
        let origin = &setting(&loaded, "kafka.properties.sasl.password").origin;
        assert_eq!(
            *origin,
            Origin::Environment("CMC_BRIDGE__KAFKA__PROPERTIES__SASL_PASSWORD".to_owned())
        );
    }
}

#[test]
fn paths_that_every_client_sends_unchanged() {
    for path in [
        "/webhooks/events",
        "/a",
        "/a;b=c,d/~x_y-z.1",
        "/a:b@c!$&'()*+",
        "/%E5%8D%81/a%20b",
        "/...",
        "/.a",
    ] {
        let loaded = variable("INGEST__PATH", path).loaded();
        assert_eq!(loaded.config.ingest.path, path);
    }
}

/// A file has one line per zone. The environment has one variable per zone, or a single list that allows any name.
#[test]
fn time_zones_by_server_composition() {
    let list = " transactional-email=UTC, Pro = Asia/Seoul ,,pro=Europe/Paris,a=b=Asia/Tokyo";
    let given = file("[ingest.time_zones]\npro = \"UTC\"\nTest = \"Asia/Seoul\"")
        .variable("INGEST__TIME_ZONES", list)
        .variable("INGEST__TIME_ZONES__SANDBOX", "Europe/Paris");
    let loaded = given.loaded();
    let zones: Vec<_> = loaded
        .config
        .ingest
        .time_zones
        .iter()
        .map(|(name, zone)| (name.as_str(), zone.iana_name().unwrap_or_default()))
        .collect();
    assert_eq!(
        zones,
        [
            ("Pro", "Asia/Seoul"),
            ("Test", "Asia/Seoul"),
            ("a=b", "Asia/Tokyo"),
            ("pro", "Europe/Paris"),
            ("sandbox", "Europe/Paris"),
            ("transactional-email", "UTC")
        ]
    );
    let origin = &setting(&loaded, "ingest.time_zones.Pro").origin;
    assert_eq!(
        *origin,
        Origin::Environment("CMC_BRIDGE__INGEST__TIME_ZONES".to_owned())
    );
}

#[test]
fn tls_needs_two_files() {
    let loaded =
        file("[ingest.tls]\ncertificate = \"/tls/tls.crt\"\nkey = \"/tls/tls.key\"\nreload = \"2m\"")
            .loaded();
    let tls = loaded.config.ingest.tls.unwrap();
    assert_eq!(
        (tls.certificate.to_str(), tls.key.to_str(), tls.reload),
        (
            Some("/tls/tls.crt"),
            Some("/tls/tls.key"),
            Duration::from_secs(120)
        )
    );
}

#[test]
fn values_are_tidied() {
    let loaded = file("[ingest]\npath = \"/hooks//\"\nretry_after = 2\nbody_timeout = 0.5").loaded();
    assert_eq!(loaded.config.ingest.path, "/hooks");
    assert_eq!(loaded.config.ingest.retry_after, Duration::from_secs(2));
    assert_eq!(loaded.config.ingest.body_timeout, Duration::from_millis(500));
}

#[test]
fn an_empty_health_path_means_none() {
    assert_eq!(
        variable("INGEST__HEALTH_PATH", "")
            .loaded()
            .config
            .ingest
            .health_path,
        None
    );
}
