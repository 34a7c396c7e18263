//! The files in `config/`: `default.toml` equals the built-in defaults, and `production.toml` loads.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use super::{Given, setting};
use crate::config::{Auth, Origin, keys::KEYS, load, raw::Raw, source::Layer, to_toml};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn given(name: &str) -> Given {
    Given {
        files: vec![shipped(name)],
        ..Given::default()
    }
}

#[test]
fn default_toml_equals_the_built_in_defaults() {
    let (with, without) = (given("default.toml").loaded(), Given::default().loaded());
    assert_eq!(format!("{:?}", with.config), format!("{:?}", without.config));
    let values = |loaded: &crate::config::Loaded| -> Vec<(String, String)> {
        let settings = loaded.settings.iter();
        settings
            .map(|setting| (setting.key.clone(), setting.value.clone()))
            .collect()
    };
    assert_eq!(values(&with), values(&without), "as written");
}

#[test]
fn default_toml_shows_every_key() {
    let mut problems = Vec::new();
    let layer = Layer::file(&shipped("default.toml"), &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    let root = crate::config::source::merge(vec![layer]).unwrap();
    let raw = Raw::new(root, Vec::new());
    let text = std::fs::read_to_string(shipped("default.toml")).unwrap();
    for key in KEYS {
        // A layer keeps no trace of an empty table, so look for its header in the file.
        let shown = raw.value(key.name).is_some() || text.contains(&format!("\n[{}]\n", key.name));
        assert!(shown, "{} is not in config/default.toml", key.name);
    }
}

#[test]
fn keys_of_a_table_stand_together() {
    let mut tables: Vec<&str> = KEYS
        .iter()
        .map(|key| key.name.rsplit_once('.').unwrap().0)
        .collect();
    tables.dedup();
    let mut distinct = tables.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(tables.len(), distinct.len(), "{tables:?}");
}

#[test]
fn production_toml_loads_with_its_secrets() {
    let mut secrets = Given::default();
    let basic = secrets.write("basic", "# console\ncmc:one\n\ncmc:two\n");
    let password = secrets.write("kafka-password", "three\n");
    let text = std::fs::read_to_string(shipped("production.toml")).unwrap();
    let text = text
        .replace("/run/secrets/cmc-bridge/basic", basic.to_str().unwrap())
        .replace(
            "/run/secrets/cmc-bridge/kafka-password",
            password.to_str().unwrap(),
        );
    let loaded = secrets.config_file("production.toml", &text).loaded();
    loaded.require_credentials().unwrap();
    let Auth::Credentials(credentials) = &loaded.config.ingest.auth else {
        panic!()
    };
    let names: Vec<&str> = credentials
        .iter()
        .map(|credential| credential.name.as_str())
        .collect();
    assert_eq!(names, ["basic-1", "basic-2"]);
    assert_eq!(
        loaded.config.kafka.properties["sasl.password"].expose_secret(),
        "three"
    );
    assert!(!loaded.config.kafka.properties.contains_key("sasl.password_file"));
}

#[test]
fn the_output_of_config_show_loads_again() {
    let mut first = given("default.toml")
        .variable(
            "KAFKA__PROPERTIES__CLIENT_RACK",
            "/etc/\"odd\"\\name\u{7f}\t\u{202e}",
        )
        .variable("INGEST__TIME_ZONES__SANDBOX", "UTC")
        .variable("INGEST__AUTH__ALLOW_ANONYMOUS", "true");
    let shown = to_toml(&first.loaded().settings);
    assert!(shown.contains("listen = \"0.0.0.0:8080\"  # file "), "{shown}");
    assert!(
        shown.contains("# environment variable CMC_BRIDGE__INGEST__TIME_ZONES__SANDBOX"),
        "{shown}"
    );
    let path = first.write("shown.toml", &shown);
    let second = load(std::slice::from_ref(&path), std::iter::empty())
        .unwrap_or_else(|error| panic!("{error}\n{shown}"));
    assert_eq!(
        format!("{:?}", first.loaded().config),
        format!("{:?}", second.config)
    );
    assert_eq!(
        second.config.kafka.properties["client.rack"].expose_secret(),
        "/etc/\"odd\"\\name\u{7f}\t\u{202e}"
    );
    assert_eq!(setting(&second, "ingest.listen").origin, Origin::File(path));
}
