//! The configuration as a whole: layers, refusals, secrets, shipped files.

mod layers;
mod refusals;
mod secrets;
mod shipped;
mod unknown;

use std::path::PathBuf;

use super::{ConfigError, Loaded, Setting, load};

/// Part of every secret in these tests.
const SECRET: &str = "hunter2";

/// Files and variables to load.
#[derive(Default)]
struct Given {
    dir: Option<tempfile::TempDir>,
    files: Vec<PathBuf>,
    variables: Vec<(String, String)>,
}

impl Given {
    /// Adds a file with this name and text and passes it by `--config`.
    fn config_file(mut self, name: &str, text: &str) -> Given {
        let path = self.write(name, text);
        self.files.push(path);
        self
    }

    /// Adds a variable; `key` is its name without the prefix.
    fn variable(mut self, key: &str, value: &str) -> Given {
        self.variables
            .push((format!("CMC_BRIDGE__{key}"), value.to_owned()));
        self
    }

    /// Writes a file beside the configuration.
    fn write(&mut self, name: &str, text: &str) -> PathBuf {
        let dir = self.dir.get_or_insert_with(|| tempfile::tempdir().unwrap());
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.files, self.variables.clone().into_iter())
    }

    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|error| panic!("{error}"))
    }

    /// One line per problem.
    fn refused(&self) -> Vec<String> {
        let error = self.load().map(|_| ()).unwrap_err();
        let lines: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
        for line in &lines {
            assert!(!line.contains('\n'), "more than one line: {line}");
        }
        lines
    }
}

/// A configuration of one file.
fn file(text: &str) -> Given {
    Given::default().config_file("bridge.toml", text)
}

/// A configuration of one variable.
fn variable(key: &str, value: &str) -> Given {
    Given::default().variable(key, value)
}

fn setting<'a>(loaded: &'a Loaded, key: &str) -> &'a Setting {
    loaded
        .settings
        .iter()
        .find(|setting| setting.key == key)
        .unwrap_or_else(|| panic!("no {key}"))
}

/// Loads and expects exactly one problem, whose line contains all `parts` and no secret.
fn one(given: &Given, parts: &[&str]) {
    let lines = given.refused();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in {:?}", lines[0]);
    }
    let error = given.load().map(|_| ()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
}
