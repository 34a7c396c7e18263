//! Checks that documents match the code.

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

/// Whether the path is a module; the map doesn't list the tests beside modules.
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

    // The head comment of each folder's own module lists the others.
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

/// Every document in the repository.
fn documents(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            documents(&path, found);
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// The text without its code blocks, which contain no links or headings.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchors of a document's headings on GitHub.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn links_and_file_names_in_documents_resolve() {
    let mut all = Vec::new();
    documents(&root(), &mut all);
    assert!(all.contains(&root().join("docs/operations.md")));
    let mut broken = Vec::new();
    for document in all {
        let text = prose(&fs::read_to_string(&document).unwrap());
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            let leads = target.exists()
                && (anchor.is_empty()
                    || anchors(&prose(&fs::read_to_string(&target).unwrap())).contains(anchor));
            if !leads {
                broken.push(format!("{} links to {link}", document.display()));
            }
        }
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.ends_with(".rs"))
        {
            // Relative to the root or to the sources (`cmc/event.rs`). A name without a folder may mean any file of that name.
            let exists = root().join(name).exists() || root().join("src").join(name).exists();
            if name.contains('/') && !exists {
                broken.push(format!("{} names {name}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_mutant_has_its_row() {
    let names = |file: &str, before: &str, after: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(root().join(file)).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix(before)?.split_once(after))
            .map(|(name, _)| name.to_owned())
            .collect()
    };
    let mutants = names("tests/mutants", "    (\"", "\", ");
    let mut rows = names("docs/simulation.md", "| ", " | ");
    assert!(rows.remove("mutant"));
    assert_eq!(rows, mutants);
}
