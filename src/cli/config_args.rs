//! The option `--config`, common to most commands.

use std::path::PathBuf;

use clap::Args;

use crate::config::{self, ConfigError, Loaded};

/// Where the configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file (TOML); may be repeated: later files override earlier ones, key by key
    #[arg(long = "config", short = 'c', value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

impl ConfigArgs {
    /// Loads the files and this process's environment.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(&self.files, config::environment()?.into_iter())
    }
}
