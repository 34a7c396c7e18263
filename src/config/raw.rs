//! The merged values before validation, and what is wrong with them.
//!
//! [`Raw::refuse_faults`] notes what is wrong with each key alone, by its kind. The typed readers then give `None` for such a key
//! and note nothing, so validation can go on and everything that is wrong is reported at once.

use std::path::PathBuf;

use ::config::{Value, ValueKind};

use super::{
    keys::{self, KEYS, entry_name},
    parse,
    problem::{Origin, Problem},
};

/// All merged values, and what was found wrong with them so far.
pub(super) struct Raw {
    root: Value,
    problems: Vec<Problem>,
}

impl Raw {
    pub(super) fn new(root: Value, problems: Vec<Problem>) -> Raw {
        Raw { root, problems }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes what is wrong with each key on its own.
    pub(super) fn refuse_faults(&mut self) {
        let mut faults = Vec::new();
        for key in KEYS {
            let mut look = |name: String, value: &Value| {
                if let Some((what, fix)) = key.kind.fault(value) {
                    faults.push(Problem::new(name, Origin::of(value), what, fix));
                }
            };
            if key.kind.is_table() {
                for (entry, value) in self.entries(key.name) {
                    look(entry_name(key.name, entry), value);
                }
            } else if let Some(value) = self.value(key.name) {
                look(key.name.to_owned(), value);
            }
        }
        self.problems.append(&mut faults);
    }

    /// The merged value of a key; every key has one, because each has a default.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        key.split('.')
            .try_fold(&self.root, |value, name| match &value.kind {
                ValueKind::Table(table) => table.get(name),
                _ => None,
            })
    }

    /// The entries of a key that is a table, in the order of their names.
    pub(super) fn entries(&self, key: &str) -> impl Iterator<Item = (&str, &Value)> {
        let mut entries: Vec<_> = match self.value(key).map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => {
                table.iter().map(|(name, value)| (name.as_str(), value)).collect()
            }
            _ => Vec::new(),
        };
        entries.sort_by_key(|(name, _)| *name);
        entries.into_iter()
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.value(key).map_or(Origin::Default, Origin::of)
    }

    /// Notes a problem of a key.
    pub(super) fn problem(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.problem_at(key, self.origin(key), what, fix);
    }

    /// Notes a problem of something that is not itself a key.
    pub(super) fn problem_at(
        &mut self,
        key: impl Into<String>,
        origin: Origin,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(Problem::new(key, origin, what, fix));
    }

    /// A key's value, read by `parse`.
    pub(super) fn get<T>(&self, key: &str, parse: impl FnOnce(&ValueKind) -> Option<T>) -> Option<T> {
        let value = self.value(key)?;
        let is_valid = keys::find(key)?.kind.fault(value).is_none();
        is_valid.then(|| parse(&value.kind)).flatten()
    }

    /// A whole number, or a size in bytes.
    pub(super) fn number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        self.get(key, parse::size)?.try_into().ok()
    }

    /// Text, its ends trimmed.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.get(key, |kind| parse::text(kind).map(|text| text.trim().to_owned()))
    }

    /// A file's name; `None` when the key is not set.
    pub(super) fn file(&self, key: &str) -> Option<PathBuf> {
        self.text(key).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// What the key's word stands for.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let choice = choices.iter().find(|(word, _)| *word == text);
        choice.map(|(_, value)| *value)
    }
}
