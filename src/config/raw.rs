//! The merged values before validation, and the typed readers that take them out.
//!
//! A reader that can't give its type notes a problem and answers `None`; validation goes on, so that everything that
//! is wrong is told at once.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, time::Duration};

use ::config::{Value, ValueKind};

use super::{
    keys::{self, KEYS, Shape},
    parse,
    problem::{Origin, Problem},
    properties,
    show::{Setting, literal},
    source::full_name,
};
use crate::human;

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

    /// The merged value of a key; every key has one, for each has a default.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        key.split('.')
            .try_fold(&self.root, |value, name| match &value.kind {
                ValueKind::Table(table) => table.get(name),
                _ => None,
            })
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

    /// Reads a value by `parse`, whose failure means that it is not `noun`.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        noun: &str,
        fix: &str,
        parse: impl FnOnce(&ValueKind) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let parsed = parse(&value.kind);
        if parsed.is_none() {
            let shown = parse::shown(value);
            self.problem(key, format!("{shown} is not {noun}"), fix);
        }
        parsed
    }

    /// Takes a value that is in range and fits its type.
    fn ranged<V: PartialOrd + Copy, T: TryFrom<V>>(
        &mut self,
        key: &str,
        value: Option<V>,
        range: RangeInclusive<V>,
        human: impl Fn(&V) -> String,
    ) -> Option<T> {
        let value = value?;
        if range.contains(&value)
            && let Ok(value) = T::try_from(value)
        {
            return Some(value);
        }
        let what = if value < *range.start() {
            "too small"
        } else {
            "too large"
        };
        let shown = self.value(key).map(parse::shown).unwrap_or_default();
        let fix = format!("give {} to {}", human(range.start()), human(range.end()));
        self.problem(key, format!("{shown} is {what}"), fix);
        None
    }

    pub(super) fn number<T: TryFrom<u64>>(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<T> {
        let value = self.parsed(key, "a whole number", "give digits only", parse::number);
        self.ranged(key, value, range, u64::to_string)
    }

    pub(super) fn size<T: TryFrom<u64>>(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<T> {
        let value = self.parsed(
            key,
            "a size",
            "give bytes, or a whole number with KiB, MiB, GiB (by 1024) or k, M, G (by 1000), such as 8MiB",
            parse::size,
        );
        self.ranged(key, value, range, |bytes| human::exact_size(*bytes))
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.parsed(
            key,
            "a time",
            "give seconds, or a whole number with ms, s, m or h, such as 500ms",
            parse::duration,
        );
        self.ranged(key, value, range, |duration| human::exact_duration(*duration))
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        self.parsed(key, "true or false", "give true or false", parse::boolean)
    }

    /// Text that must not be empty, its ends trimmed.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let text = self.maybe_text(key)?;
        if text.is_empty() {
            self.problem(
                key,
                "is empty",
                "give a value, or leave the key out for the default",
            );
            return None;
        }
        Some(text)
    }

    /// Text that may be empty, its ends trimmed.
    pub(super) fn maybe_text(&mut self, key: &str) -> Option<String> {
        self.parsed(key, "text", "put it in quotes", |kind| {
            parse::text(kind).map(|text| text.trim().to_owned())
        })
    }

    /// A file's name; `None` when the key is not set.
    pub(super) fn file(&mut self, key: &str) -> Option<PathBuf> {
        match self
            .value(key)
            .map(|value| parse::text(&value.kind).map(str::to_owned))?
        {
            Some(path) => Some(path.trim())
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            None => {
                // What it is instead may be a secret.
                self.problem(key, "is not text", "put the file's name in quotes");
                None
            }
        }
    }

    /// Reads text that is one of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.problem(
            key,
            format!("{} is not a choice here", parse::quoted(&text)),
            format!("give {}", words.join(" or ")),
        );
        None
    }

    /// A list: an array of texts, or one text with commas. `None` with a problem noted if it is neither.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let list = match &self.value(key)?.kind {
            ValueKind::String(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(items.map(str::to_owned).collect())
            }
            ValueKind::Array(items) => items
                .iter()
                .map(|item| parse::text(&item.kind).map(str::to_owned))
                .collect(),
            _ => None,
        };
        if list.is_none() {
            self.problem(
                key,
                "is not a list of texts",
                r#"give ["one", "two"], in a variable: one,two"#,
            );
        }
        list
    }

    /// The entries of a table with names of the user's choice.
    pub(super) fn members(&self, key: &str) -> BTreeMap<String, Value> {
        match self.value(key).map(|value| &value.kind) {
            Some(ValueKind::Table(table)) => table
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    /// Everything that is set, secrets redacted, in the order of [`KEYS`].
    pub(super) fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for key in KEYS {
            let Some(value) = self.value(key.name) else {
                continue;
            };
            let (table, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
            match key.shape {
                Shape::Members | Shape::Properties => {
                    for (member, value) in self.members(key.name) {
                        let value_shown = match key.shape {
                            Shape::Properties => properties::shown(&member, &value),
                            _ => literal(&value),
                        };
                        settings.push(Setting {
                            key: full_name(key.name, Some(&member)),
                            table: key.name.to_owned(),
                            name: literal(&Value::new(None, member)),
                            value: value_shown,
                            origin: Origin::of(&value),
                        });
                    }
                }
                shape => settings.push(Setting {
                    key: key.name.to_owned(),
                    table: table.to_owned(),
                    name: name.to_owned(),
                    value: super::show::setting_value(shape, value),
                    origin: Origin::of(value),
                }),
            }
        }
        settings
    }
}

/// The keys that a problem of credentials names: as written in files and as variables.
pub(super) fn key_and_variable(key: &str) -> String {
    format!("{key} ({})", keys::environment_name(key))
}
