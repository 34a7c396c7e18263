//! The option `--config`, common to most commands, and the variable that replaces it.

use std::{env, ffi::OsString, path::PathBuf};

use clap::Args;

use crate::config::{self, ConfigError, Loaded};

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file (TOML); may be repeated: later files override earlier ones, key by key [default: the files in
    /// CMC_BRIDGE_CONFIG, separated by colons]
    #[arg(long = "config", short = 'c', value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Names the files for all commands that no `--config` does: in a pod or a service, every command then sees what `serve` sees.
const VARIABLE: &str = "CMC_BRIDGE_CONFIG";

impl ConfigArgs {
    /// The files, from the command line or else from [`VARIABLE`].
    pub fn files(&self) -> Vec<PathBuf> {
        choose(&self.files, env::var_os(VARIABLE))
    }

    /// Loads the files and this process's environment.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(&self.files(), config::environment()?.into_iter())
    }
}

fn choose(files: &[PathBuf], variable: Option<OsString>) -> Vec<PathBuf> {
    if !files.is_empty() {
        return files.to_vec();
    }
    let named = env::split_paths(&variable.unwrap_or_default()).collect::<Vec<_>>();
    named
        .into_iter()
        .filter(|file| !file.as_os_str().is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_files_unless_the_command_line_does() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let chosen =
            |files: &[&str], variable: Option<&str>| choose(&paths(files), variable.map(OsString::from));
        assert_eq!(chosen(&[], None), paths(&[]));
        assert_eq!(chosen(&[], Some("")), paths(&[]));
        assert_eq!(chosen(&[], Some("/etc/a.toml")), paths(&["/etc/a.toml"]));
        assert_eq!(
            chosen(&[], Some("/etc/a.toml:b.toml:")),
            paths(&["/etc/a.toml", "b.toml"])
        );
        assert_eq!(chosen(&["c.toml"], Some("/etc/a.toml")), paths(&["c.toml"]));
    }
}
