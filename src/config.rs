//! The validated configuration: all that the rest of the program sees.
//!
//! Raw values become these types once, at the edge, by [`load`]: built-in defaults, then the files that the command
//! line names, in their order, then the environment (`CMC_BRIDGE__` and the key in upper case, `__` for each dot). Nothing else is
//! read. What is unknown or wrong is refused, all of it in one [`ConfigError`]; secrets are in none of the messages.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`auth`] | `[ingest.auth]`: who may post webhooks |
//! | [`credentials`] | credentials and the files that they come from |
//! | [`files`] | small text files, and how their names are shown |
//! | [`forms`] | the forms of texts: paths, topics, addresses |
//! | [`keys`] | every key with its kind and its default |
//! | [`kinds`] | kinds of keys, with the range or form of their values |
//! | [`parse`] | times, sizes, numbers, lists |
//! | [`problem`] | what is wrong, where, and what to do; all at once |
//! | [`properties`] | librdkafka's properties, and which are the bridge's own |
//! | [`raw`] | raw values and where they came from |
//! | [`rules`] | the configuration as cmc needs it |
//! | [`show`] | values as TOML, redacted |
//! | [`source`] | files and environment into raw values |
//! | [`types`] | the validated configuration, section by section |
//! | [`validate`] | raw values into validated ones |

mod auth;
mod credentials;
mod files;
mod forms;
mod keys;
mod kinds;
mod parse;
mod problem;
mod properties;
mod raw;
mod rules;
mod show;
mod source;
#[cfg(test)]
mod tests;
mod types;
mod validate;

use std::{net::SocketAddr, path::PathBuf};

pub use self::{
    credentials::{Auth, Credential, CredentialFile, CredentialKind, MAX_CREDENTIALS, clash},
    files::{shown_path, text_fault},
    problem::{ConfigError, Origin, Problem},
    properties::pem_faults,
    rules::secrets,
    show::{Setting, to_toml},
    source::environment,
    types::{
        Admin, ApiAccount, Config, Delivery, Ingest, Kafka, LogConfig, LogFormat, SenderApi, Shutdown,
        SpoolConfig, StreamConfig, TlsConfig,
    },
};

/// A valid configuration, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Every key with its value and origin, secrets redacted.
    pub settings: Vec<Setting>,
}

impl Loaded {
    /// Requires, as `serve` does, that somebody can post webhooks.
    ///
    /// # Errors
    /// No credential is set and anonymous posting is not allowed; says what to set.
    pub fn require_credentials(&self) -> Result<(), ConfigError> {
        auth::require_credentials(&self.config.ingest.auth)
    }
}

/// Loads and validates: defaults, then `files` in order, then the variables of the bridge among `environment`.
///
/// # Errors
/// Everything that is wrong, one line each.
pub fn load(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    match look(files, environment)? {
        (Some(config), settings, problems) if problems.is_empty() => Ok(Loaded { config, settings }),
        (_, _, problems) => Err(ConfigError { problems }),
    }
}

/// `admin.listen`, even if something else in the configuration is refused: a bridge whose configuration has been damaged
/// since its start can still be asked.
///
/// # Errors
/// The layers can't be merged, or this key is refused.
pub fn admin_listen(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<SocketAddr, ConfigError> {
    let (config, settings, problems) = look(files, environment)?;
    let shown = || settings.iter().find(|setting| setting.key == "admin.listen");
    config
        .map(|config| config.admin.listen)
        .or_else(|| shown()?.value.trim_matches('"').parse().ok())
        .ok_or(ConfigError { problems })
}

/// Every key with its value and origin, secrets redacted, and what is wrong with them, if anything.
///
/// # Errors
/// The layers can't be merged.
pub fn settings(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(Vec<Setting>, Result<(), ConfigError>), ConfigError> {
    let (_, settings, problems) = look(files, environment)?;
    let verdict = match problems.is_empty() {
        true => Ok(()),
        false => Err(ConfigError { problems }),
    };
    Ok((settings, verdict))
}

type Looked = (Option<Config>, Vec<Setting>, Vec<Problem>);

fn look(
    files: &[PathBuf],
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Looked, ConfigError> {
    let mut problems = Vec::new();
    let mut layers: Vec<_> = files
        .iter()
        .map(|file| source::Layer::file(file, &mut problems))
        .collect();
    layers.push(source::Layer::environment(environment, &mut problems));
    let root = source::merge(layers).map_err(|error| ConfigError {
        problems: vec![Problem::new(
            "",
            Origin::Default,
            error.to_string(),
            "report this as a defect",
        )],
    })?;
    let mut raw = raw::Raw::new(root, problems);
    let config = validate::config(&mut raw);
    let settings = show::settings(&raw);
    Ok((config, settings, raw.into_problems()))
}
