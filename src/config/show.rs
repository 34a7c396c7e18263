//! The configuration as `config show` prints it: TOML, secrets redacted, each value with its origin.
//!
//! A secret is redacted by the key that it belongs to. One that was put where a file's name belongs is no name of a file
//! that exists, and of such a name nothing is shown but the directories that do ([`shown_path`]).

use std::path::Path;

use ::config::{Value, ValueKind};

use super::{keys::Shape, problem::Origin};
use crate::plain::steers;

/// One key that has a value, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The full name.
    pub key: String,
    /// The TOML table it belongs to.
    pub table: String,
    /// Its name there, quoted if it must be.
    pub name: String,
    /// A TOML value; secrets are replaced, names of files that are not there shortened.
    pub value: String,
    pub origin: Origin,
}

/// What stands for a secret.
const REDACTED: &str = "\"<redacted>\"";
/// What stands for the part of a path that is not there.
const NOT_THERE: &str = "<not there>";

pub(super) fn redacted() -> String {
    REDACTED.to_owned()
}

/// A path for people; of one that is not there, no more than the directories that are.
pub fn shown_path(path: &Path) -> String {
    let is_there = |path: &&Path| !path.as_os_str().is_empty() && path.symlink_metadata().is_ok();
    match path.ancestors().find(is_there) {
        Some(found) if found == path => path.display().to_string(),
        Some(found) => found.join(NOT_THERE).display().to_string(),
        None => NOT_THERE.to_owned(),
    }
}

/// The name of a file as TOML.
pub(super) fn file(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(path) if path.trim().is_empty() => quoted(path),
        ValueKind::String(path) => quoted(&shown_path(Path::new(path.trim()))),
        _ => redacted(),
    }
}

/// A key's value as TOML. Of lists of secrets only the number of entries is shown.
pub(super) fn setting_value(shape: Shape, value: &Value) -> String {
    match (shape, &value.kind) {
        (Shape::Secrets, ValueKind::Array(items)) => {
            format!("[{}]", vec![redacted(); items.len()].join(", "))
        }
        (Shape::Secrets, ValueKind::String(text)) => {
            let items = text.split(',').filter(|item| !item.trim().is_empty()).count();
            format!("[{}]", vec![redacted(); items].join(", "))
        }
        (Shape::Secrets, _) => redacted(),
        (Shape::Credentials, ValueKind::Array(items)) => {
            let items: Vec<String> = items.iter().map(credential).collect();
            format!("[{}]", items.join(", "))
        }
        (Shape::Credentials, _) => redacted(),
        (Shape::File, _) => file(value),
        _ => literal(value),
    }
}

fn credential(value: &Value) -> String {
    let ValueKind::Table(table) = &value.kind else {
        return redacted();
    };
    let shown = ["name", "kind", "value", "value_file"]
        .into_iter()
        .filter_map(|name| {
            let value = table.get(name)?;
            let shown = match name {
                "value" => redacted(),
                "value_file" => file(value),
                _ => literal(value),
            };
            Some(format!("{name} = {shown}"))
        });
    format!("{{ {} }}", shown.collect::<Vec<_>>().join(", "))
}

/// A TOML value on one line.
pub(super) fn literal(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => quoted(text),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(literal).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Table(table) => {
            let mut items: Vec<String> = table
                .iter()
                .map(|(name, value)| format!("{} = {}", quoted(name), literal(value)))
                .collect();
            items.sort();
            format!("{{ {} }}", items.join(", "))
        }
        ValueKind::Float(float) => format!("{float:?}"),
        other => other.to_string(),
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if steers(c) => quoted.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// All settings as one TOML document, each line with its origin as a comment.
///
/// Lines with secrets or without a whole path are comments: who uses the document as a file must not end up with a token
/// that everybody can guess.
pub fn to_toml(settings: &[Setting]) -> String {
    let mut text = String::new();
    let mut table = None;
    for setting in settings {
        if table != Some(&setting.table) {
            if table.is_some() {
                text.push('\n');
            }
            text.push_str(&format!("[{}]\n", setting.table));
            table = Some(&setting.table);
        }
        let hidden = match [REDACTED, NOT_THERE]
            .iter()
            .any(|part| setting.value.contains(part))
        {
            true => "# ",
            false => "",
        };
        text.push_str(&format!(
            "{hidden}{} = {}  # {}\n",
            setting.name, setting.value, setting.origin
        ));
    }
    text
}
