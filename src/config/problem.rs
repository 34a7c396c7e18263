//! Where a value came from, and what is wrong with it.

use std::{fmt, path::PathBuf};

use ::config::Value;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A file named by `--config`.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
}

const FILE: &str = "file:";
const ENVIRONMENT: &str = "environment:";

impl Origin {
    /// The text that [`Value::origin`] carries through the merge.
    pub(super) fn encode(&self) -> Option<String> {
        match self {
            Origin::Default => None,
            Origin::File(path) => Some(format!("{FILE}{}", path.display())),
            Origin::Environment(name) => Some(format!("{ENVIRONMENT}{name}")),
        }
    }

    /// The origin that a merged value carries.
    pub(super) fn of(value: &Value) -> Origin {
        let text = value.origin().unwrap_or_default();
        if let Some(path) = text.strip_prefix(FILE) {
            Origin::File(path.into())
        } else if let Some(name) = text.strip_prefix(ENVIRONMENT) {
            Origin::Environment(name.to_owned())
        } else {
            Origin::Default
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.to_string_lossy().escape_debug()),
            Origin::Environment(name) => write!(f, "environment variable {}", name.escape_debug()),
        }
    }
}

/// What is wrong with a value, and what to do about it. Never holds a secret's value.
pub(super) type Fault = (String, String);

pub(super) fn fault(what: impl Into<String>, fix: impl Into<String>) -> Fault {
    (what.into(), fix.into())
}

/// One thing that is wrong, with what to do about it. Never holds a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's full name; empty if the problem is the origin as a whole.
    pub key: String,
    pub origin: Origin,
    /// What is wrong.
    pub what: String,
    /// What is accepted, or what to set.
    pub fix: String,
}

impl Problem {
    pub(super) fn new(
        key: impl Into<String>,
        origin: Origin,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Problem {
        Problem {
            key: key.into(),
            origin,
            what: what.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: ", self.origin)?;
        } else {
            write!(f, "{} ({}): ", self.key.escape_debug(), self.origin)?;
        }
        write!(f, "{}; {}", self.what, self.fix)
    }
}

/// A configuration that was refused: everything that is wrong with it, one line each.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is refused:")?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}
