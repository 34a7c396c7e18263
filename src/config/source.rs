//! The layers of the configuration: defaults, files, environment. Later ones win, key by key.
//!
//! Each layer is flattened to known keys before the crate `config` merges them. That crate treats dots as separators, but
//! librdkafka's names contain dots. Flattened, `sasl.password` is one name wherever it comes from, so a variable overrides a file.
//! A list is replaced as a whole. Unknown names are problems and enter no layer.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsString,
    path::Path,
};

use ::config::{FileFormat, Map, Source, Value, ValueKind};

use super::{
    files,
    keys::{self, PREFIX, WithTables, entry_name},
    kinds::Kind,
    parse,
    problem::{ConfigError, Origin, Problem},
    properties,
};

/// A key, and the name below it if it is a table with names of the user's choice.
type KeyPath = (&'static str, Option<String>);

/// One source of values, flattened.
#[derive(Clone, Default)]
pub(super) struct Layer {
    values: BTreeMap<KeyPath, Value>,
}

impl std::fmt::Debug for Layer {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Layer {
    /// A TOML file.
    pub(super) fn file(path: &Path, problems: &mut Vec<Problem>) -> Layer {
        let origin = Origin::File(path.to_owned());
        let mut layer = Layer::default();
        match parse_file(path) {
            Ok(table) => layer.descend("", table, &origin, problems),
            Err((what, fix)) => problems.push(Problem::new("", origin, what, fix)),
        }
        layer
    }

    /// A table of a file; `prefix` is empty or ends with a dot.
    fn descend(
        &mut self,
        prefix: &str,
        table: Map<String, Value>,
        origin: &Origin,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let full = format!("{prefix}{name}");
            // A dot inside quotes would hide which table is meant.
            let known = if name.contains('.') {
                None
            } else {
                keys::find(&full)
            };
            match (known, value.kind) {
                (Some(key), ValueKind::Table(members)) if key.kind.is_table() => {
                    self.members(key.name, "", members, origin, problems);
                }
                (Some(key), _) if key.kind.is_table() => {
                    problems.push(Problem::new(
                        &full,
                        origin.clone(),
                        "is a table, not a value",
                        format!("write [{full}] and its entries below"),
                    ));
                }
                (Some(key), ValueKind::Table(_)) => problems.push(Problem::new(
                    key.name,
                    origin.clone(),
                    "is a single key, not a table",
                    "give it a value",
                )),
                (Some(key), kind) => self.insert((key.name, None), kind, origin, problems),
                (None, ValueKind::Table(inner)) if keys::is_table(&full) => {
                    self.descend(&format!("{full}."), inner, origin, problems);
                }
                (None, _) if keys::is_table(&full) => problems.push(Problem::new(
                    &full,
                    origin.clone(),
                    "is a table of keys, not a value",
                    format!("write [{full}] and its keys below"),
                )),
                (None, _) => problems.push(Problem::new(
                    &full,
                    origin.clone(),
                    "there is no such key",
                    match keys::nearest(&full, WithTables::Yes) {
                        Some(near) => format!("did you mean {near}?"),
                        None => "config/default.toml shows every key".to_owned(),
                    },
                )),
            }
        }
    }

    /// The members of a table with free names, where dots are part of a name.
    fn members(
        &mut self,
        key: &'static str,
        prefix: &str,
        table: Map<String, Value>,
        origin: &Origin,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value.kind {
                ValueKind::Table(inner) => {
                    self.members(key, &format!("{name}."), inner, origin, problems);
                }
                kind => self.insert((key, Some(name)), kind, origin, problems),
            }
        }
    }

    /// The process's environment.
    pub(super) fn environment(
        variables: impl Iterator<Item = (String, String)>,
        problems: &mut Vec<Problem>,
    ) -> Layer {
        let mut layer = Layer::default();
        for (variable, value) in variables {
            let Some(rest) = variable.strip_prefix(PREFIX) else {
                continue;
            };
            let name = rest.to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Environment(variable.clone());
            let upper = rest == rest.to_ascii_uppercase();
            if upper && keys::find(&name).is_some_and(|key| matches!(key.kind, Kind::TimeZones)) {
                layer.listed_members(&name, &value, &origin, problems);
                continue;
            }
            match resolve(&name).filter(|_| upper) {
                Some(path) => layer.insert(path, ValueKind::String(value), &origin, problems),
                None => problems.push(unknown_variable(&name, origin)),
            }
        }
        layer
    }

    /// A table with free names as one text, `name=value,name=value`: variables can't spell every name.
    fn listed_members(&mut self, key: &str, text: &str, origin: &Origin, problems: &mut Vec<Problem>) {
        let Some(key) = keys::find(key) else {
            return;
        };
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.rsplit_once('=') {
                Some((name, value)) if !name.trim().is_empty() => {
                    let path = (key.name, Some(name.trim().to_owned()));
                    self.insert(path, ValueKind::String(value.trim().to_owned()), origin, problems);
                }
                _ => problems.push(Problem::new(
                    key.name,
                    origin.clone(),
                    format!("{} is not name=value", parse::quoted(item)),
                    "give a list such as transactional-email=UTC,sandbox=Asia/Tokyo",
                )),
            }
        }
    }

    fn insert(&mut self, path: KeyPath, kind: ValueKind, origin: &Origin, problems: &mut Vec<Problem>) {
        match self.values.entry(path) {
            Entry::Vacant(place) => {
                place.insert(Value::new(origin.encode().as_ref(), kind));
            }
            Entry::Occupied(place) => {
                let (key, member) = place.key();
                problems.push(Problem::new(
                    member
                        .as_ref()
                        .map_or((*key).to_owned(), |member| entry_name(key, member)),
                    origin.clone(),
                    "is given twice",
                    "keep one of the two",
                ));
            }
        }
    }
}

/// The key that a variable's lower-case name with dots means.
fn resolve(name: &str) -> Option<KeyPath> {
    if let Some(key) = keys::find(name) {
        let is_settable = !key.kind.is_table() && !matches!(key.kind, Kind::Credentials);
        return is_settable.then_some((key.name, None));
    }
    let mut tables = keys::KEYS.iter().filter(|key| key.kind.is_table());
    tables.find_map(|key| {
        let entry = name.strip_prefix(key.name)?.strip_prefix('.')?;
        let entry = match key.kind {
            Kind::Properties => properties::name_from_environment(entry),
            _ => entry.to_owned(),
        };
        (!entry.is_empty()).then_some((key.name, Some(entry)))
    })
}

fn unknown_variable(name: &str, origin: Origin) -> Problem {
    match keys::find(name).map(|key| (key.name, &key.kind)) {
        Some((name, Kind::Credentials)) => Problem::new(
            name,
            origin,
            "can't be set by a variable",
            "use a file with [[ingest.auth.credentials]], or CMC_BRIDGE__INGEST__AUTH__BEARER_TOKENS, __BASIC, __API_KEYS",
        ),
        Some((name, Kind::Properties)) => Problem::new(
            name,
            origin,
            "is a table",
            format!(
                "add the name of an entry: {}__<NAME>",
                keys::environment_name(name)
            ),
        ),
        _ => Problem::new(
            name,
            origin,
            "there is no such key",
            match keys::nearest(name, WithTables::No) {
                Some(near) => format!("did you mean {}?", keys::environment_name(near)),
                None => "config/default.toml shows every key".to_owned(),
            },
        ),
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        let mut root = Map::new();
        for ((key, member), value) in &self.values {
            let mut path: Vec<&str> = key.split('.').collect();
            path.extend(member.as_deref());
            nest(&mut root, &path, value);
        }
        Ok(root)
    }
}

/// Puts a value at a path of names, whatever characters they have.
fn nest(table: &mut Map<String, Value>, path: &[&str], value: &Value) {
    let Some((name, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        table.insert((*name).to_owned(), value.clone());
        return;
    }
    let child = table
        .entry((*name).to_owned())
        .or_insert_with(|| Value::new(None, Map::<String, Value>::new()));
    if let ValueKind::Table(inner) = &mut child.kind {
        nest(inner, rest, value);
    }
}

/// Merges the layers over the built-in defaults, the last one strongest.
///
/// # Errors
/// The crate `config` can't merge them.
pub(super) fn merge(layers: Vec<Layer>) -> Result<Value, ::config::ConfigError> {
    let mut builder = ::config::Config::builder();
    for key in keys::KEYS {
        builder = builder.set_default(key.name, key.default())?;
    }
    for layer in layers {
        builder = builder.add_source(layer);
    }
    Ok(builder.build()?.cache)
}

/// Parses a TOML file, or says what is wrong and what to do.
fn parse_file(path: &Path) -> Result<Map<String, Value>, (String, &'static str)> {
    let text = files::read(path).map_err(|what| {
        (
            what,
            "name a TOML file that can be read, with --config or CMC_BRIDGE_CONFIG",
        )
    })?;
    ::config::File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|error| {
            let text = match error {
                ::config::ConfigError::FileParse { cause, .. } => cause.to_string(),
                other => other.to_string(),
            };
            // The lines between the first and the last quote the file, which may hold secrets.
            let mut lines = text.lines();
            let what = match (lines.next(), lines.next_back()) {
                (Some(place), Some(message)) => format!("{place}: {message}"),
                (place, _) => place.unwrap_or("is not TOML").to_owned(),
            };
            (what, "correct the file's syntax")
        })
}

/// The process's variables that are the bridge's, for [`super::load`].
///
/// # Errors
/// A variable of the bridge is not UTF-8: guessing at a password would be worse.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let (mut variables, mut problems) = (Vec::new(), Vec::new());
    for (name, value) in std::env::vars_os().filter(|(name, _)| is_ours(name)) {
        let shown = name.to_string_lossy().into_owned();
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => variables.push((name, value)),
            _ => problems.push(Problem::new(
                "",
                Origin::Environment(shown),
                "is not UTF-8",
                "give name and value as UTF-8",
            )),
        }
    }
    if problems.is_empty() {
        Ok(variables)
    } else {
        Err(ConfigError { problems })
    }
}

fn is_ours(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}
