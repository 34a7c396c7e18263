//! The configuration as `config show` prints it: TOML, secrets redacted, each value with its origin.
//!
//! The key decides whether a value is a secret. A secret that was entered where a file's name belongs names no file that exists,
//! so only the existing directories of such a name are shown ([`shown_path`]).

use std::path::Path;

use ::config::{Value, ValueKind};

use super::{
    files::{NOT_THERE, shown_path},
    keys::{KEYS, entry_name},
    kinds::Kind,
    problem::Origin,
    properties::{Openness, openness},
    raw::Raw,
};
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
    /// A TOML value; secrets are replaced, names of missing files are shortened.
    pub value: String,
    pub origin: Origin,
}

/// Replaces a secret.
const REDACTED: &str = "\"<redacted>\"";

fn redacted() -> String {
    REDACTED.to_owned()
}

/// The name of a file as TOML.
fn file(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(path) if path.trim().is_empty() => quoted(path),
        ValueKind::String(path) => quoted(&shown_path(Path::new(path.trim()))),
        _ => redacted(),
    }
}

/// Everything that is set, secrets redacted, in the order of [`KEYS`].
pub(super) fn settings(raw: &Raw) -> Vec<Setting> {
    let mut settings = Vec::new();
    for key in KEYS {
        let Some(value) = raw.value(key.name) else {
            continue;
        };
        if key.kind.is_table() {
            settings.extend(raw.entries(key.name).map(|(name, value)| Setting {
                key: entry_name(key.name, name),
                table: key.name.to_owned(),
                name: quoted(name),
                value: match key.kind {
                    Kind::Properties => property(name, value),
                    _ => literal(value),
                },
                origin: Origin::of(value),
            }));
            continue;
        }
        let (table, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        settings.push(Setting {
            key: key.name.to_owned(),
            table: table.to_owned(),
            name: name.to_owned(),
            value: setting_value(&key.kind, value),
            origin: Origin::of(value),
        });
    }
    settings
}

/// The value of a property of librdkafka as TOML, as far as it may be shown.
fn property(name: &str, value: &Value) -> String {
    match openness(name, value) {
        Openness::Open => literal(value),
        Openness::FileName => file(value),
        Openness::Secret => redacted(),
    }
}

/// A key's value as TOML. Lists of secrets show only how many there are.
fn setting_value(kind: &Kind, value: &Value) -> String {
    match (kind, &value.kind) {
        (Kind::Secrets, ValueKind::Array(items)) => {
            format!("[{}]", vec![redacted(); items.len()].join(", "))
        }
        (Kind::Secrets, ValueKind::String(text)) => {
            let items = text.split(',').filter(|item| !item.trim().is_empty()).count();
            format!("[{}]", vec![redacted(); items].join(", "))
        }
        (Kind::Secret, ValueKind::String(text)) if text.trim().is_empty() => quoted(text),
        (Kind::Secrets | Kind::Secret, _) => redacted(),
        (Kind::Credentials, ValueKind::Array(items)) => {
            let items: Vec<String> = items.iter().map(credential).collect();
            format!("[{}]", items.join(", "))
        }
        (Kind::Credentials, _) => redacted(),
        (Kind::File, _) => file(value),
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
fn literal(value: &Value) -> String {
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
/// Lines with secrets or with shortened paths are comments. Otherwise a reader who uses the document as a file would get a token that
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::properties::SECRETS;

    #[test]
    fn only_what_is_known_to_be_no_secret_is_shown() {
        let show = |name: &str, value: &str| property(name, &Value::new(None, value));
        let hidden = redacted();
        for secret in SECRETS {
            assert_eq!(show(secret, "12"), hidden, "{secret}");
            assert_eq!(
                show(&format!("{secret}_file"), "hunter2"),
                "\"<not there>\"",
                "{secret}"
            );
        }
        for name in [
            "SASL.Password",
            "sasl.jaas.config",
            "sasl.oauthbearer.config",
            "sasl.kerberos.kinit.cmd",
            "ssl.key",
            "ssl_key",
            "ssl.certificate.pem",
            "some.future.name",
            "linger.ms",
            "log.thread.name",
        ] {
            assert_eq!(show(name, "hunter2"), hidden, "{name}");
        }
        for (name, value) in [
            ("sasl.username", "cmc"),
            ("security.protocol", "sasl_ssl"),
            ("linger.ms", "5"),
            ("socket.keepalive.enable", "true"),
            ("client.id", "a b"),
            ("sasl.oauthbearer.token.endpoint.url", "https://host/token"),
            ("ssl.ca.location", "/"),
        ] {
            assert_eq!(show(name, value), format!("{value:?}"), "{name}");
        }
        let url = "https://user:hunter2@host/token";
        assert_eq!(show("sasl.oauthbearer.token.endpoint.url", url), hidden);
        assert_eq!(show("ssl.key.location", "/hunter2"), "\"/<not there>\"");
        assert_eq!(property("linger.ms", &Value::new(None, 5)), "5");
    }
}
