//! The credential that `send-sample` presents, from the command line, a file or the environment.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use hyper::header::HeaderValue;

use crate::{cli::exit::Exit, config::shown_path};

const BEARER: &str = "CMC_BRIDGE_SEND_BEARER";
const BASIC: &str = "CMC_BRIDGE_SEND_BASIC";
const API_KEY: &str = "CMC_BRIDGE_SEND_API_KEY";

/// The options. They hold secrets, so Debug shows nothing.
#[derive(Args, Clone)]
pub struct CredentialArgs {
    /// Authenticate with this Bearer token
    #[arg(long, value_name = "TOKEN", group = "authorization")]
    bearer: Option<String>,
    /// Authenticate with the Bearer token in this file
    #[arg(long, alias = "bearer_file", value_name = "FILE", group = "authorization")]
    bearer_file: Option<PathBuf>,
    /// Authenticate with this user and password
    #[arg(long, value_name = "USER:PASSWORD", group = "authorization")]
    basic: Option<String>,
    /// Authenticate with the user:password in this file
    #[arg(long, alias = "basic_file", value_name = "FILE", group = "authorization")]
    basic_file: Option<PathBuf>,
    /// Add this api_key to each body
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    api_key: Option<String>,
    /// Add the api_key in this file to each body
    #[arg(long, alias = "api_key_file", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

impl std::fmt::Debug for CredentialArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CredentialArgs")
    }
}

/// What each webhook carries.
#[derive(Debug)]
pub struct Credentials {
    pub authorization: Option<HeaderValue>,
    pub api_key: Option<String>,
}

impl CredentialArgs {
    /// The credential. The command line takes precedence over the environment.
    ///
    /// # Errors
    /// 64: a file can't be read, or a credential can't be sent.
    pub fn resolve(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Credentials, Exit> {
        let from_environment = |name: &str| match variable(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value
                .into_string()
                .map(Some)
                .map_err(|_| Exit::Usage(format!("{name} is not UTF-8"))),
        };
        let file = |path: &Option<PathBuf>| path.as_deref().map(first_secret).transpose();
        let mut bearer = self.bearer.clone().or(file(&self.bearer_file)?);
        let mut basic = self.basic.clone().or(file(&self.basic_file)?);
        if bearer.is_none() && basic.is_none() {
            bearer = from_environment(BEARER)?;
            basic = from_environment(BASIC)?;
        }
        let authorization = match (bearer, basic) {
            (Some(_), Some(_)) => {
                let text = format!("{BEARER} and {BASIC} are both set; set only one of them");
                return Err(Exit::Usage(text));
            }
            (Some(token), None) => Some(format!("Bearer {token}")),
            (None, Some(pair)) if !pair.contains(':') => {
                return Err(Exit::Usage(
                    "a Basic credential has the form user:password, but this one has no colon".to_owned(),
                ));
            }
            (None, Some(pair)) => Some(format!("Basic {}", STANDARD.encode(pair))),
            (None, None) => None,
        };
        let authorization = authorization.map(|text| {
            let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
                Exit::Usage("the Bearer token has characters that a header can't contain".to_owned())
            })?;
            value.set_sensitive(true);
            Ok::<_, Exit>(value)
        });
        let api_key = self.api_key.clone().or(file(&self.api_key_file)?);
        Ok(Credentials {
            authorization: authorization.transpose()?,
            api_key: match api_key {
                None => from_environment(API_KEY)?,
                some => some,
            },
        })
    }
}

fn first_secret(path: &Path) -> Result<String, Exit> {
    let refused = |why: String| Exit::Usage(format!("{}: {why}", shown_path(path)));
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let mut lines = text.lines().map(str::trim);
    let found = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    found
        .map(str::to_owned)
        .ok_or_else(|| refused("holds no credential".to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        credentials: CredentialArgs,
    }

    type Variables<'a> = &'a [(&'a str, &'a str)];
    type Found = (Option<String>, Option<String>);

    fn resolve(args: &[&str], variables: Variables<'_>) -> Result<Found, String> {
        let line = ["send-sample"].iter().chain(args);
        let args = CommandLine::try_parse_from(line).map_err(|error| error.to_string())?;
        assert!(!format!("{args:?}").contains("s3cr3t"));
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let found = args
            .credentials
            .resolve(variable)
            .map_err(|exit| exit.to_string())?;
        let header = found
            .authorization
            .map(|value| value.to_str().unwrap().to_owned());
        Ok((header, found.api_key))
    }

    #[test]
    fn credentials_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        std::fs::write(&file, "# ours\n\n  s3cr3t-1  \ns3cr3t-2\n").unwrap();
        let file = file.to_str().unwrap();
        let some = |text: &str| Some(text.to_owned());
        let cases: [(&[&str], Variables<'_>, Found); 6] = [
            (&[], &[], (None, None)),
            (
                &["--bearer", "s3cr3t"],
                &[(BASIC, "a:b")],
                (some("Bearer s3cr3t"), None),
            ),
            (&["--bearer-file", file], &[], (some("Bearer s3cr3t-1"), None)),
            (
                &[],
                &[(BASIC, "user:s3cr3t")],
                (some("Basic dXNlcjpzM2NyM3Q="), None),
            ),
            (
                &["--api_key_file", file],
                &[(API_KEY, "x")],
                (None, some("s3cr3t-1")),
            ),
            (&[], &[(API_KEY, "k"), (BEARER, "")], (None, some("k"))),
        ];
        for (args, variables, wanted) in cases {
            assert_eq!(
                resolve(args, variables).unwrap(),
                wanted,
                "{args:?} {variables:?}"
            );
        }
    }

    #[test]
    fn unusable_credentials() {
        let cases: [(&[&str], Variables<'_>, &str); 6] = [
            (&["--bearer", "a", "--basic", "b:c"], &[], "cannot be used with"),
            (&["--basic", "nocolon"], &[], "user:password"),
            (&["--bearer", "a\nb"], &[], "header can't contain"),
            (
                &["--bearer-file", "/no/such/file"],
                &[],
                "/<not there>: No such file",
            ),
            (&["--bearer-file", "/dev/null"], &[], "holds no credential"),
            (&[], &[(BEARER, "a"), (BASIC, "b:c")], "both set"),
        ];
        for (args, variables, wanted) in cases {
            let error = resolve(args, variables).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
