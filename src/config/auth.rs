//! Who may post webhooks: `[ingest.auth]`.
//!
//! Credentials come as lists (values or a file with one a line) and as named entries; all of them are valid at once.
//! No credential at all is accepted here, so that `check` and `dev` can go on; `serve` refuses it by
//! [`require_credentials`].
//!
//! Credentials that come from a file are known by their [`CredentialFile`] too, by which ingest reads them again. What is
//! refused at the start is refused then: a secret that no request could present, a name or a secret that is there twice,
//! and more than [`MAX_CREDENTIALS`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use ::config::{Value, ValueKind};
use secrecy::{ExposeSecret, SecretString};

use super::{
    files::{read_secret, read_secrets},
    keys::environment_name,
    parse,
    problem::{ConfigError, Fault, Origin, Problem, fault},
    raw::Raw,
    types::{Auth, Config, Credential, CredentialKind},
};

const ALLOW_ANONYMOUS: &str = "ingest.auth.allow_anonymous";
const CREDENTIALS: &str = "ingest.auth.credentials";
const ENTRY_KEYS: [&str; 4] = ["name", "kind", "value", "value_file"];

/// Most credentials. A request is compared with each of its kind, and each name is a label value.
pub const MAX_CREDENTIALS: usize = 64;

/// A kind, its word in named entries, and the keys of its lists.
const LISTS: [(CredentialKind, &str, &str, &str); 3] = [
    (
        CredentialKind::Bearer,
        "bearer",
        "ingest.auth.bearer_tokens",
        "ingest.auth.bearer_tokens_file",
    ),
    (
        CredentialKind::Basic,
        "basic",
        "ingest.auth.basic",
        "ingest.auth.basic_file",
    ),
    (
        CredentialKind::ApiKey,
        "api_key",
        "ingest.auth.api_keys",
        "ingest.auth.api_keys_file",
    ),
];

/// A credential and where it was given.
struct Found {
    credential: Credential,
    key: String,
    origin: Origin,
}

/// A file that credentials come from.
#[derive(Clone, Debug)]
pub struct CredentialFile {
    /// The names of the credentials that it held when the configuration was loaded.
    pub names: Vec<String>,
    path: PathBuf,
    kind: CredentialKind,
    holds: Holds,
}

#[derive(Clone, Debug)]
enum Holds {
    /// One secret a line; their names are made of the kind and a number.
    Lines,
    /// One secret of this name.
    Named(String),
}

impl CredentialFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong and what to do, in one line: it can't be read, holds nothing, or a secret that can't be used.
    pub fn read(&self) -> Result<Vec<Credential>, String> {
        let refused = |(what, fix): Fault| format!("{}: {what}; {fix}", self.path.display());
        let secrets = self.secrets().map_err(refused)?;
        let credentials = match &self.holds {
            Holds::Lines => numbered(self.kind, secrets),
            Holds::Named(name) => secrets
                .into_iter()
                .map(|secret| credential(name.clone(), self.kind, secret))
                .collect(),
        };
        for (index, credential) in credentials.iter().enumerate() {
            if let Some((what, fix)) = secret_problem(self.kind, credential.secret.expose_secret()) {
                return Err(refused(fault(format!("entry {} {what}", index + 1), fix)));
            }
        }
        Ok(credentials)
    }

    /// The secrets that it holds, whatever they are.
    fn secrets(&self) -> Result<Vec<String>, Fault> {
        if let Holds::Named(_) = self.holds {
            return Ok(vec![read_secret(&self.path)?]);
        }
        let text = read_secrets(&self.path)?;
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let secrets: Vec<String> = lines.map(str::to_owned).collect();
        if secrets.is_empty() {
            return Err(fault("the file has no secret in it", "write one a line"));
        }
        Ok(secrets)
    }
}

fn credential(name: String, kind: CredentialKind, secret: String) -> Credential {
    Credential {
        name,
        kind,
        secret: SecretString::from(secret),
    }
}

/// The credentials of a list, which have no names of their own.
fn numbered(kind: CredentialKind, secrets: Vec<String>) -> Vec<Credential> {
    let named = |(index, secret)| credential(list_name(kind, index + 1), kind, secret);
    secrets.into_iter().enumerate().map(named).collect()
}

fn list_name(kind: CredentialKind, number: usize) -> String {
    let word = match kind {
        CredentialKind::Bearer => "bearer",
        CredentialKind::Basic => "basic",
        CredentialKind::ApiKey => "api-key",
    };
    format!("{word}-{number}")
}

/// Who may post, and the files that this comes from.
pub(super) fn auth(raw: &mut Raw) -> Option<(Auth, Vec<CredentialFile>)> {
    let allow_anonymous = raw.get(ALLOW_ANONYMOUS, parse::boolean)?;
    let (mut found, mut files) = (Vec::new(), Vec::new());
    for (kind, _, key, file_key) in LISTS {
        listed(raw, kind, key, file_key, &mut found, &mut files);
    }
    named(raw, &mut found, &mut files);
    if let Some((at, what)) = clash(found.iter().map(|found| &found.credential))
        && let Some(found) = found.get(at)
    {
        let fix = "give each credential a name and a secret of its own";
        raw.problem_at(&found.key, found.origin.clone(), what, fix);
    }
    if !allow_anonymous {
        let credentials = found.into_iter().map(|found| found.credential).collect();
        return Some((Auth::Credentials(credentials), files));
    }
    if let Some(first) = found.first() {
        let what = format!(
            "allows everybody, but {} ({}) asks for a credential",
            first.key, first.origin
        );
        raw.problem(
            ALLOW_ANONYMOUS,
            what,
            "set it to false, or take the credentials out",
        );
    }
    Some((Auth::Anonymous, files))
}

/// Why these credentials can't be valid at once, in one line, and the place of the later one at fault.
pub fn clash<'c>(credentials: impl Iterator<Item = &'c Credential>) -> Option<(usize, String)> {
    let mut names = BTreeSet::new();
    let mut secrets = BTreeMap::new();
    for (at, this) in credentials.enumerate() {
        if at == MAX_CREDENTIALS {
            return Some((at, format!("there are more than {MAX_CREDENTIALS} credentials")));
        }
        if !names.insert(&this.name) {
            return Some((at, format!("the name {} is there twice", this.name)));
        }
        // Two names of one secret would hide which of them is out of use.
        if let Some(first) = secrets.insert((this.kind, this.secret.expose_secret()), &this.name) {
            return Some((at, format!("{} is the same secret as {first}", this.name)));
        }
    }
    None
}

/// Takes the credentials of one kind's list or file.
fn listed(
    raw: &mut Raw,
    kind: CredentialKind,
    key: &'static str,
    file_key: &'static str,
    found: &mut Vec<Found>,
    files: &mut Vec<CredentialFile>,
) {
    let values = raw.get(key, parse::list).unwrap_or_default();
    let file = raw.file(file_key);
    let (key, secrets) = match file {
        Some(_) if !values.is_empty() => {
            let what = format!("{key} is given too ({})", raw.origin(key));
            raw.problem(file_key, what, "keep the values or the file");
            return;
        }
        Some(path) => {
            let mut file = CredentialFile {
                names: Vec::new(),
                path,
                kind,
                holds: Holds::Lines,
            };
            let secrets = match file.secrets() {
                Ok(secrets) => secrets,
                Err((what, fix)) => {
                    raw.problem(file_key, what, fix);
                    return;
                }
            };
            file.names = (1..=secrets.len())
                .map(|number| list_name(kind, number))
                .collect();
            files.push(file);
            (file_key, secrets)
        }
        None => (key, values),
    };
    let origin = raw.origin(key);
    for (index, credential) in numbered(kind, secrets).into_iter().enumerate() {
        if let Some((what, fix)) = secret_problem(kind, credential.secret.expose_secret()) {
            raw.problem(key, format!("entry {} {what}", index + 1), fix);
        }
        found.push(Found {
            credential,
            key: key.to_owned(),
            origin: origin.clone(),
        });
    }
}

/// Takes the named credentials.
fn named(raw: &mut Raw, found: &mut Vec<Found>, files: &mut Vec<CredentialFile>) {
    let Some(value) = raw.value(CREDENTIALS).cloned() else {
        return;
    };
    let origin = Origin::of(&value);
    let ValueKind::Array(entries) = value.kind else {
        raw.problem(
            CREDENTIALS,
            "is not a list of tables",
            format!("write [[{CREDENTIALS}]]"),
        );
        return;
    };
    for (index, entry) in entries.into_iter().enumerate() {
        let key = format!("{CREDENTIALS}[{index}]");
        let ValueKind::Table(entry) = entry.kind else {
            let fix = format!("write [[{CREDENTIALS}]] with name, kind and value or value_file");
            raw.problem_at(key, origin.clone(), "is not a table", fix);
            continue;
        };
        let mut problems = Vec::new();
        let credential = one_named(&entry.into_iter().collect(), &mut problems, files);
        for (name, what, fix) in problems {
            raw.problem_at(format!("{key}.{name}"), origin.clone(), what, fix);
        }
        if let Some(credential) = credential {
            found.push(Found {
                credential,
                key,
                origin: origin.clone(),
            });
        }
    }
}

/// A key of a named entry, what is wrong, what to do.
type EntryProblem = (String, String, String);

fn one_named(
    entry: &BTreeMap<String, Value>,
    problems: &mut Vec<EntryProblem>,
    files: &mut Vec<CredentialFile>,
) -> Option<Credential> {
    let mut problem = |name: &str, what: &str, fix: &str| {
        problems.push((name.to_owned(), what.to_owned(), fix.to_owned()));
    };
    for unknown in entry.keys().filter(|name| !ENTRY_KEYS.contains(&name.as_str())) {
        problem(unknown, "there is no such key", &nearest_entry_key(unknown));
    }
    let text = |name: &str| entry.get(name).map(|value| parse::text(&value.kind));
    let name = match text("name") {
        Some(Some(name)) if is_name(name) => Some(name.to_owned()),
        Some(_) => {
            problem(
                "name",
                "is not a name for metrics",
                "give 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'",
            );
            None
        }
        None => {
            problem(
                "name",
                "is missing",
                "name the credential, as metrics and logs shall call it",
            );
            None
        }
    };
    let word = text("kind").flatten();
    let kind = LISTS
        .iter()
        .find(|(_, known, ..)| Some(*known) == word)
        .map(|(kind, ..)| *kind);
    if kind.is_none() {
        problem(
            "kind",
            "is missing or not a kind",
            "give bearer, basic or api_key",
        );
    }
    let (secret_key, secret) = match (text("value"), text("value_file")) {
        (Some(Some(value)), None) => ("value", value.to_owned()),
        (None, Some(Some(path))) => match read_secret(path.trim().as_ref()) {
            Ok(secret) => {
                if let (Some(name), Some(kind)) = (&name, kind) {
                    files.push(CredentialFile {
                        names: vec![name.clone()],
                        path: path.trim().into(),
                        kind,
                        holds: Holds::Named(name.clone()),
                    });
                }
                ("value_file", secret)
            }
            Err((what, fix)) => {
                problem("value_file", &what, &fix);
                return None;
            }
        },
        (Some(_), Some(_)) => {
            problem("value_file", "value is given too", "keep the value or the file");
            return None;
        }
        (None, None) => {
            problem("value", "is missing", "give value or value_file");
            return None;
        }
        _ => {
            problem("value", "the secret is not text", "put it in quotes");
            return None;
        }
    };
    let kind = kind?;
    if let Some((what, fix)) = secret_problem(kind, &secret) {
        problem(secret_key, what, fix);
    }
    Some(credential(name?, kind, secret))
}

fn nearest_entry_key(unknown: &str) -> String {
    ENTRY_KEYS
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 2)
        .map_or_else(
            || format!("an entry has {}", ENTRY_KEYS.join(", ")),
            |(_, known)| format!("did you mean {known}?"),
        )
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// What makes a secret one that no request could ever present, or that anybody could.
fn secret_problem(kind: CredentialKind, secret: &str) -> Option<(&'static str, &'static str)> {
    if secret.trim().is_empty() {
        return Some(("is an empty secret", "give the secret, or take the entry out"));
    }
    if secret.chars().any(char::is_control) {
        return Some(("contains a control character", "take out line ends and the like"));
    }
    if secret.trim() != secret {
        return Some((
            "begins or ends with white space",
            "take it out: CMC's console does not show it",
        ));
    }
    match kind {
        CredentialKind::Bearer if !secret.bytes().all(|byte| byte.is_ascii_graphic()) => Some((
            "can't stand in a header",
            "a bearer token is ASCII without white space",
        )),
        CredentialKind::Basic => match secret.split_once(':') {
            None => Some(("has no colon", "give user:password")),
            Some((_, "")) => Some(("has an empty password", "give user:password")),
            Some(_) => None,
        },
        _ => None,
    }
}

/// The name of a key in files and in the environment.
fn key_and_variable(key: &str) -> String {
    format!("{key} ({})", environment_name(key))
}

/// Refuses a configuration with which nobody could post: no credential, and anonymous posting not allowed.
pub(super) fn require_credentials(config: &Config) -> Result<(), ConfigError> {
    match &config.ingest.auth {
        Auth::Credentials(credentials) if credentials.is_empty() => {
            let lists = LISTS.map(|(_, _, key, _)| key_and_variable(key));
            let fix = format!(
                "set one of {} (or name a file that has it: the same names with _file or _FILE) or \
                 [[{CREDENTIALS}]]; or, if the network admits only the sender, {} = true",
                lists.join(", "),
                key_and_variable(ALLOW_ANONYMOUS),
            );
            let what = "no credential is set, so nobody could post webhooks";
            Err(ConfigError {
                problems: vec![Problem::new("ingest.auth", Origin::Default, what, fix)],
            })
        }
        Auth::Credentials(_) | Auth::Anonymous => Ok(()),
    }
}
