//! Names that do not exist, and which name is suggested.

use super::{file, one, variable};

#[test]
fn unknown_keys_in_files() {
    let cases = [
        (
            "[ingest]\nhostname_and_port = \"x\"",
            "ingest.hostname_and_port",
            "config/default.toml shows every key",
        ),
        (
            "[ingest]\nlistn = \"x\"",
            "ingest.listn",
            "did you mean ingest.listen?",
        ),
        ("[ingst]\nlisten = \"x\"", "ingst", "did you mean ingest?"),
        (
            "[ingest.auht]\nbasic = []",
            "ingest.auht",
            "did you mean ingest.auth?",
        ),
        (
            "[ingest]\nbearer_tokens = []",
            "ingest.bearer_tokens",
            "did you mean ingest.auth.bearer_tokens?",
        ),
        ("max_events = 5", "max_events", "did you mean ingest.max_events?"),
        (
            "[streams.delivery]\ntopic = \"x\"",
            "streams.delivery",
            "did you mean streams.deliveries?",
        ),
        (
            "\"ingest.listen\" = \"0.0.0.0:1\"",
            "ingest.listen",
            "did you mean ingest.listen?",
        ),
        ("nonsense = 1", "nonsense", "config/default.toml shows every key"),
        ("ingest = 5", "ingest", "write [ingest] and its keys below"),
        (
            "[kafka]\nproperties = \"x\"",
            "kafka.properties",
            "write [kafka.properties]",
        ),
    ];
    for (text, key, fix) in cases {
        let given = file(text);
        let origin = format!("{key} (file {}): ", given.files[0].display());
        one(&given, &[&origin, fix]);
    }
}

#[test]
fn unknown_variables() {
    let cases = [
        ("INGEST__LISTN", "did you mean CMC_BRIDGE__INGEST__LISTEN?"),
        ("ingest__listen", "did you mean CMC_BRIDGE__INGEST__LISTEN?"),
        ("MAX_EVENTS", "did you mean CMC_BRIDGE__INGEST__MAX_EVENTS?"),
        ("INGEST", "there is no such key"),
        ("NONSENSE", "config/default.toml shows every key"),
        (
            "KAFKA__PROPERTIES",
            "add the name of an entry: CMC_BRIDGE__KAFKA__PROPERTIES__<NAME>",
        ),
        (
            "INGEST__AUTH__CREDENTIALS",
            "use a file with [[ingest.auth.credentials]]",
        ),
    ];
    for (name, fix) in cases {
        one(
            &variable(name, "x"),
            &[&format!("(environment variable CMC_BRIDGE__{name})"), fix],
        );
    }
}
