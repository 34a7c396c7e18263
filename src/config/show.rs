//! The configuration as `config show` prints it: TOML, secrets redacted, each value with its origin.

use ::config::{Value, ValueKind};

use super::{keys::Shape, problem::Origin};

/// One key that has a value, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The full name.
    pub key: String,
    /// The TOML table it belongs to.
    pub table: String,
    /// Its name there, quoted if it must be.
    pub name: String,
    /// A TOML value; secrets are replaced.
    pub value: String,
    pub origin: Origin,
}

/// What stands for a secret.
const REDACTED: &str = "\"<redacted>\"";

pub(super) fn redacted() -> String {
    REDACTED.to_owned()
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
            let shown = if name == "value" {
                redacted()
            } else {
                literal(value)
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
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// All settings as one TOML document, each line with its origin as a comment.
///
/// Lines with secrets are comments as a whole: who uses the document as a file must not end up with a token that
/// everybody can guess.
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
        let hidden = match setting.value.contains(REDACTED) {
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
