//! `cmc-bridge config show`: every key with its value and origin, as TOML, secrets redacted.

use std::io::Write;

use crate::{
    config::{Loaded, to_toml},
    exit::Exit,
};

/// Prints the configuration.
pub fn run(loaded: &Loaded, out: &mut impl Write) -> Result<(), Exit> {
    out.write_all(to_toml(&loaded.settings).as_bytes())?;
    Ok(out.flush()?)
}
