//! Small text files: the configuration's own, and those with secrets in them; and how their names are shown.

use std::{fs::File, io::Read, path::Path};

use super::problem::{Fault, fault};

/// A file larger than this is not a configuration or a secret.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Replaces the part of a path that does not exist.
pub(super) const NOT_THERE: &str = "<not there>";

/// Reads a text file.
///
/// # Errors
/// Why not, as a sentence about the file.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// Reads a file with secrets in it, without the byte order mark that some editors put first.
///
/// # Errors
/// Why not. The file's name is shown as far as it exists.
pub(super) fn read_secrets(path: &Path) -> Result<String, Fault> {
    let text = read(path).map_err(|what| {
        // A secret that was put here by mistake is not repeated.
        let what = format!("the file {:?} {what}", shown_path(path));
        fault(
            what,
            "give the path of a readable text file, not the secret itself",
        )
    })?;
    Ok(match text.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Reads a file that is one secret; the line end after it is not part of it.
///
/// # Errors
/// Those of [`read_secrets`]; or the file is empty.
pub(super) fn read_secret(path: &Path) -> Result<String, Fault> {
    let text = read_secrets(path)?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(fault("the file is empty", "write the secret into it"));
    }
    Ok(secret.to_owned())
}

/// Why a PEM reader can't read this text file, as a sentence about the file; `None` for plain text.
pub fn text_fault(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xEF, 0xBB, 0xBF, ..] => {
            Some("it begins with a byte order mark, which hides its first line: save it without")
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [0, ..] | [_, 0, ..] => {
            Some("it is UTF-16: save it as plain text")
        }
        _ => None,
    }
}

/// A path as messages show it: as far as it exists. The rest may be a secret.
pub fn shown_path(path: &Path) -> String {
    let is_there = |path: &&Path| !path.as_os_str().is_empty() && path.symlink_metadata().is_ok();
    match path.ancestors().find(is_there) {
        Some(found) if found == path => path.display().to_string(),
        Some(found) => found.join(NOT_THERE).display().to_string(),
        None => NOT_THERE.to_owned(),
    }
}
