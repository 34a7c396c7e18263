//! Credentials, the files that they come from, and what makes them unfit.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret, SecretString};

use super::{
    files::{read_secret, read_secrets},
    problem::{Fault, fault},
};

/// Maximum number of credentials. A request is compared with each one of its kind, and each name is a label value.
pub const MAX_CREDENTIALS: usize = 64;

/// Who may post webhooks.
#[derive(Clone, Debug)]
pub enum Auth {
    /// `ingest.auth.allow_anonymous = true`: anybody who can reach the port.
    Anonymous,
    /// Senders that present one of these. If there are none, nobody can post; `serve` refuses that, `check` and `dev` don't.
    Credentials(Vec<Credential>),
}

/// One accepted credential.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The name in metrics and logs: given, or made of the kind and a number (`bearer-1`).
    pub name: String,
    pub kind: CredentialKind,
    /// The token, the key, or `user:password`.
    pub secret: SecretString,
}

impl Credential {
    pub(super) fn new(name: String, kind: CredentialKind, secret: String) -> Credential {
        Credential {
            name,
            kind,
            secret: secret.into(),
        }
    }

    /// Why no request could ever present the secret, or why anybody could.
    pub(super) fn fault(&self) -> Option<Fault> {
        let secret = self.secret.expose_secret();
        let (what, fix) = if secret.trim().is_empty() {
            ("is an empty secret", "give the secret, or take the entry out")
        } else if secret.chars().any(char::is_control) {
            ("contains a control character", "take out line ends and the like")
        } else if secret.trim() != secret {
            let fix = "take it out: CMC's console does not show it";
            ("begins or ends with white space", fix)
        } else {
            match self.kind {
                CredentialKind::Bearer if !secret.bytes().all(|byte| byte.is_ascii_graphic()) => {
                    let fix = "a bearer token is ASCII without white space";
                    ("can't stand in a header", fix)
                }
                CredentialKind::Basic => match secret.split_once(':') {
                    None => ("has no colon", "give user:password"),
                    Some((_, "")) => ("has an empty password", "give user:password"),
                    Some(_) => return None,
                },
                _ => return None,
            }
        };
        Some(fault(what, fix))
    }
}

/// How a credential is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CredentialKind {
    /// `Authorization: Bearer <token>`
    Bearer,
    /// `Authorization: Basic <base64 of user:password>`
    Basic,
    /// The member or field `api_key` of the body.
    ApiKey,
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
    /// One secret per line; their names are made of the kind and a number.
    Lines,
    /// One secret of this name.
    Named(String),
}

impl CredentialFile {
    /// A file with one secret a line, and the credentials in it.
    pub(super) fn of_lines(path: PathBuf, kind: CredentialKind) -> Result<(Self, Vec<Credential>), Fault> {
        let mut file = CredentialFile {
            names: Vec::new(),
            path,
            kind,
            holds: Holds::Lines,
        };
        let credentials = numbered(kind, file.secrets()?);
        file.names = credentials.iter().map(|one| one.name.clone()).collect();
        Ok((file, credentials))
    }

    /// A file that is the secret of the credential of this name.
    pub(super) fn of_one(path: PathBuf, name: String, kind: CredentialKind) -> CredentialFile {
        CredentialFile {
            names: vec![name.clone()],
            path,
            kind,
            holds: Holds::Named(name),
        }
    }

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
                .map(|secret| Credential::new(name.clone(), self.kind, secret))
                .collect(),
        };
        for (index, credential) in credentials.iter().enumerate() {
            if let Some((what, fix)) = credential.fault() {
                return Err(refused((format!("entry {} {what}", index + 1), fix)));
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

/// The credentials of a list, which have no names of their own.
pub(super) fn numbered(kind: CredentialKind, secrets: Vec<String>) -> Vec<Credential> {
    let word = match kind {
        CredentialKind::Bearer => "bearer",
        CredentialKind::Basic => "basic",
        CredentialKind::ApiKey => "api-key",
    };
    let named = |(index, secret)| Credential::new(format!("{word}-{}", index + 1), kind, secret);
    secrets.into_iter().enumerate().map(named).collect()
}

/// Why these credentials can't be valid together, in one line, with the index of the later one at fault.
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
        // If one secret had two names, nobody could tell which of them is still in use.
        if let Some(first) = secrets.insert((this.kind, this.secret.expose_secret()), &this.name) {
            return Some((at, format!("{} is the same secret as {first}", this.name)));
        }
    }
    None
}
