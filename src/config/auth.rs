//! Who may post webhooks: `[ingest.auth]`.
//!
//! Credentials come as lists (values, or a file with one a line) and as named entries; all of them are valid at once. Having none is
//! accepted here, so that `check` and `dev` can go on; `serve` refuses it by [`require_credentials`].
//!
//! For credentials that come from a file, ingest gets the [`CredentialFile`] too and reads it again. Secrets refused at the
//! start are refused then as well: a secret that no request could present, a name or a secret that is there twice, and more than
//! [`MAX_CREDENTIALS`](super::credentials::MAX_CREDENTIALS).

use std::path::PathBuf;

use ::config::{Map, Value, ValueKind};

use super::{
    credentials::{Auth, Credential, CredentialFile, CredentialKind, clash, numbered},
    files::read_secret,
    keys::environment_name,
    parse,
    problem::{ConfigError, Fault, Origin, Problem, fault},
    raw::Raw,
};

const ALLOW_ANONYMOUS: &str = "ingest.auth.allow_anonymous";
const CREDENTIALS: &str = "ingest.auth.credentials";
const ENTRY_KEYS: [&str; 4] = ["name", "kind", "value", "value_file"];

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

/// Who may post, and the files that say so.
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
        let fix = "set it to false, or take the credentials out";
        raw.problem(ALLOW_ANONYMOUS, what, fix);
    }
    Some((Auth::Anonymous, files))
}

/// Takes the credentials of one kind's list or file.
fn listed(
    raw: &mut Raw,
    kind: CredentialKind,
    key: &str,
    file_key: &str,
    found: &mut Vec<Found>,
    files: &mut Vec<CredentialFile>,
) {
    let values = raw.get(key, parse::list).unwrap_or_default();
    let (key, credentials) = match raw.file(file_key) {
        None => (key, numbered(kind, values)),
        Some(_) if !values.is_empty() => {
            let what = format!("{key} is given too ({})", raw.origin(key));
            return raw.problem(file_key, what, "keep the values or the file");
        }
        Some(path) => match CredentialFile::of_lines(path, kind) {
            Ok((file, credentials)) => {
                files.push(file);
                (file_key, credentials)
            }
            Err((what, fix)) => return raw.problem(file_key, what, fix),
        },
    };
    let origin = raw.origin(key);
    for (index, credential) in credentials.into_iter().enumerate() {
        if let Some((what, fix)) = credential.fault() {
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
        let fix = format!("write [[{CREDENTIALS}]]");
        return raw.problem(CREDENTIALS, "is not a list of tables", fix);
    };
    for (index, entry) in entries.into_iter().enumerate() {
        let key = format!("{CREDENTIALS}[{index}]");
        let ValueKind::Table(entry) = entry.kind else {
            let fix = format!("write [[{CREDENTIALS}]] with name, kind and value or value_file");
            raw.problem_at(key, origin.clone(), "is not a table", fix);
            continue;
        };
        let mut faults = Vec::new();
        let credential = one_named(&entry, &mut faults, files);
        for (name, (what, fix)) in faults {
            raw.problem_at(format!("{key}.{name}"), origin.clone(), what, fix);
        }
        found.extend(credential.map(|credential| Found {
            credential,
            key,
            origin: origin.clone(),
        }));
    }
}

/// What is wrong with an entry, by its key.
type EntryFaults = Vec<(String, Fault)>;

fn one_named(
    entry: &Map<String, Value>,
    faults: &mut EntryFaults,
    files: &mut Vec<CredentialFile>,
) -> Option<Credential> {
    let mut unknown: Vec<&String> = entry
        .keys()
        .filter(|name| !ENTRY_KEYS.contains(&name.as_str()))
        .collect();
    unknown.sort();
    for unknown in unknown {
        let fault = fault("there is no such key", nearest_entry_key(unknown));
        faults.push((unknown.clone(), fault));
    }
    let name = noting(faults, "name", name(entry));
    let kind = noting(faults, "kind", kind(entry));
    let (key, secret) = secret(entry);
    let (secret, path) = noting(faults, key, secret)?;
    let credential = Credential::new(name.clone().unwrap_or_default(), kind?, secret);
    faults.extend(credential.fault().map(|fault| (key.to_owned(), fault)));
    files.extend(path.map(|path| CredentialFile::of_one(path, credential.name.clone(), credential.kind)));
    name.map(|_| credential)
}

fn noting<T>(faults: &mut EntryFaults, key: &str, result: Result<T, Fault>) -> Option<T> {
    let note = |fault| faults.push((key.to_owned(), fault));
    result.map_err(note).ok()
}

fn name(entry: &Map<String, Value>) -> Result<String, Fault> {
    let Some(value) = entry.get("name") else {
        return Err(fault("is missing", "name the credential for metrics and logs"));
    };
    let is_name = |name: &&str| {
        let mut bytes = name.bytes();
        (1..=64).contains(&name.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    match parse::text(&value.kind).filter(is_name) {
        Some(name) => Ok(name.to_owned()),
        None => Err(fault(
            "is not a name for metrics",
            "give 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'",
        )),
    }
}

fn kind(entry: &Map<String, Value>) -> Result<CredentialKind, Fault> {
    let word = entry.get("kind").and_then(|value| parse::text(&value.kind));
    let known = LISTS.iter().find(|(_, known, ..)| Some(*known) == word);
    known
        .map(|(kind, ..)| *kind)
        .ok_or_else(|| fault("is missing or not a kind", "give bearer, basic or api_key"))
}

/// The secret of an entry, the file that it comes from, if any, and the key that it or its fault belongs to.
fn secret(entry: &Map<String, Value>) -> (&'static str, Result<(String, Option<PathBuf>), Fault>) {
    let text = |name: &str| entry.get(name).map(|value| parse::text(&value.kind));
    match (text("value"), text("value_file")) {
        (Some(Some(value)), None) => ("value", Ok((value.to_owned(), None))),
        (None, Some(Some(path))) => {
            let path = PathBuf::from(path.trim());
            let secret = read_secret(&path);
            ("value_file", secret.map(|secret| (secret, Some(path))))
        }
        (Some(_), Some(_)) => {
            let fault = fault("value is given too", "keep the value or the file");
            ("value_file", Err(fault))
        }
        (None, None) => ("value", Err(fault("is missing", "give value or value_file"))),
        _ => ("value", Err(fault("the secret is not text", "put it in quotes"))),
    }
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

/// Refuses a configuration with which nobody could post: no credential, and anonymous posting not allowed.
pub(super) fn require_credentials(auth: &Auth) -> Result<(), ConfigError> {
    if !matches!(auth, Auth::Credentials(credentials) if credentials.is_empty()) {
        return Ok(());
    }
    let key_and_variable = |key: &str| format!("{key} ({})", environment_name(key));
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
