//! Documents that must stay true.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            found.insert(name.to_owned());
        }
    }
}

/// Tests stand beside their module, simulators and harnesses beside those; the map names modules.
fn is_module(path: &str) -> bool {
    !path.contains("test")
}

#[test]
fn the_module_map_matches_the_tree() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let map: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.starts_with("src/") && word.ends_with(".rs"))
        .map(str::to_owned)
        .collect();
    let mut tree = BTreeSet::new();
    rust_files(&root().join("src"), &mut tree);
    tree.retain(|path| is_module(path));
    let (ground, inner): (BTreeSet<_>, BTreeSet<_>) =
        tree.into_iter().partition(|path| path.matches('/').count() == 1);
    assert_eq!(map, ground);

    // The others are listed by the face of their folder.
    for path in inner {
        let (folder, file) = path.rsplit_once('/').unwrap();
        let face = fs::read_to_string(root().join(format!("{folder}.rs"))).unwrap();
        let name = file.strip_suffix(".rs").unwrap();
        let listed = face
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .any(|line| {
                line.trim_start_matches("//! | ")
                    .trim_start_matches('[')
                    .starts_with(&format!("`{name}`"))
            });
        assert!(listed, "{folder}.rs doesn't list {name}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in [
        "README.md",
        "README.ja.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/events.md",
        "examples/consumers/README.md",
        "docs/operations.md",
        "docs/cmc-console.md",
        "docs/cmc-console.ja.md",
    ] {
        let path = root().join(document);
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(
                path.parent().unwrap().join(file).exists(),
                "{document} links to {file}"
            );
        }
    }
}
