//! Files to attach to received mails.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::human;

/// Maximum size of all attachments of a mail in bytes: each connection holds a body in memory.
const MOST: u64 = 256 << 20;

/// A file to attach.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub name: String,
    pub content: Vec<u8>,
}

/// Reads the files.
///
/// # Errors
/// Which file can't be read, and why; or they are too large.
pub fn read(files: &[PathBuf]) -> Result<Vec<Attachment>, String> {
    let mut left = MOST;
    files.iter().map(|file| read_one(file, &mut left)).collect()
}

fn read_one(file: &Path, left: &mut u64) -> Result<Attachment, String> {
    let failed = |error: io::Error| format!("--attach {}: {error}", file.display());
    let mut content = Vec::new();
    // One byte more tells a file that is too large, even one without end.
    let mut reader = File::open(file).map_err(failed)?.take(*left + 1);
    reader.read_to_end(&mut content).map_err(failed)?;
    *left = left.checked_sub(content.len() as u64).ok_or_else(|| {
        let most = human::exact_size(MOST);
        format!(
            "--attach {}: the files have more than {most} together",
            file.display()
        )
    })?;
    let name = file.file_name().unwrap_or(file.as_os_str());
    Ok(Attachment {
        name: name.to_string_lossy().into_owned(),
        content,
    })
}
