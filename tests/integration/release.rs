//! What a release consists of: its version, which stands in one place and is copied to others, and its man pages.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::kafka::new_dir;

#[expect(dead_code, reason = "its main")]
#[path = "../../examples/man.rs"]
mod man;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The places of `.ci/set-version`: a file, and what stands before the version there.
fn places() -> Vec<(String, String)> {
    let script = fs::read_to_string(root().join(".ci/set-version")).unwrap();
    let (_, table) = script.split_once("PLACES = [\n").unwrap();
    let (table, _) = table.split_once("\n]").unwrap();
    let entry = |line: &str| {
        let mut parts = line.split('"').skip(1).step_by(2).map(str::to_owned);
        (parts.next().unwrap(), parts.next().unwrap().replace("\\n", "\n"))
    };
    table.lines().map(entry).collect()
}

#[test]
fn the_version_is_the_same_everywhere() {
    let places = places();
    assert!(places.len() > 8);
    for (file, before) in &places {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let mut after = text.split(before.as_str()).skip(1).peekable();
        assert!(
            after.peek().is_some(),
            "no {before:?} in {file}: correct .ci/set-version"
        );
        for after in after {
            let after = after.trim_start_matches('"');
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
            let found = after.split(|c| !is_part(c)).next().unwrap();
            assert_eq!(found, VERSION, "{file}, after {before:?}");
        }
    }
    let changes = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let (_, unreleased) = changes.split_once("## [Unreleased]\n").unwrap();
    let (unreleased, released) = unreleased.split_once("\n## [").unwrap_or((unreleased, ""));
    assert!(
        !unreleased.trim().is_empty() || released.starts_with(&format!("{VERSION}] - ")),
        "nothing is unreleased, and the changelog's newest version is not {VERSION}"
    );
}

#[test]
fn no_other_file_names_the_version() {
    let mut known: BTreeSet<String> = places().into_iter().map(|(file, _)| file).collect();
    // Derived from the chart by deploy/helm/sync, and compared by the gate.
    known.insert("deploy/kubernetes/cmc-bridge.yaml".into());
    let mut left = Vec::new();
    for top in [
        "README.md",
        "README.ja.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "config",
        "deploy",
        "docs",
        ".ci",
    ] {
        visit(&root().join(top), &mut |file| {
            let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let Ok(text) = fs::read_to_string(file) else {
                return;
            };
            if !known.contains(&name) && names_version(&text) {
                left.push(name);
            }
        });
    }
    assert!(
        left.is_empty(),
        "{left:?} name version {VERSION}: add them to .ci/set-version"
    );
}

/// Whether a line names the bridge and its version, and not a longer number such as 10.1.0 or 0.1.0.1.
fn names_version(text: &str) -> bool {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    text.lines()
        .filter(|line| line.contains("cmc-bridge"))
        .any(|line| {
            line.split(|c| !is_number(c))
                .any(|number| number.trim_end_matches('.') == VERSION)
        })
}

fn visit(path: &Path, see: &mut impl FnMut(&PathBuf)) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            visit(&entry.unwrap().path(), see);
        }
    } else {
        see(&path.to_owned());
    }
}

#[test]
fn every_command_has_a_man_page() {
    let directory = new_dir("man");
    man::write(&directory).unwrap();
    let read = |name: &str| {
        fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let all = read("cmc-bridge.1");
    assert!(all.contains(VERSION) && all.contains("Exit codes"));
    for command in [
        "serve",
        "check",
        "why",
        "top",
        "tap",
        "explain",
        "send-sample",
        "spool-repair",
        "dead-letters-replay",
        "config-show",
    ] {
        let page = read(&format!("cmc-bridge-{command}.1"));
        assert!(
            page.starts_with(".ie") || page.contains(".TH cmc\\-bridge"),
            "{command}: {page}"
        );
    }
    assert!(read("cmc-bridge-why.1").contains("critical: webhooks or acknowledged events are in danger now"));
}
