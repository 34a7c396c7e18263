//! The spool's directory, looked at without changing it.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::{human, spool::denied};

/// The state of `spool.dir`.
pub enum Directory {
    /// It exists and is writable; `free` is in bytes.
    Ready { free: Option<u64> },
    /// It is missing and can be created.
    Creatable,
    /// Why it can't be used.
    Unusable(String),
}

impl Directory {
    /// Looks at the directory, or at the parent in which it would be created.
    pub fn look(dir: &Path) -> Directory {
        let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK);
        match std::fs::metadata(dir) {
            Ok(metadata) if !metadata.is_dir() => Directory::Unusable("is not a directory".to_owned()),
            Ok(_) => match denied(dir) {
                None => {
                    let free = rustix::fs::statvfs(dir).ok();
                    Directory::Ready {
                        free: free.map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize)),
                    }
                }
                Some(why) => Directory::Unusable(why),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let parent = existing_parent(dir);
                match writable(&parent) {
                    Ok(()) => Directory::Creatable,
                    Err(error) => Directory::Unusable(format!(
                        "is missing and this user can't create it in {}: {error}",
                        parent.display()
                    )),
                }
            }
            Err(error) => Directory::Unusable(format!("can't be examined: {error}")),
        }
    }

    /// The state in words.
    pub fn describe(&self) -> String {
        match self {
            Directory::Ready { free: Some(free) } => {
                format!("writable, {} free", human::size(*free))
            }
            Directory::Ready { free: None } => "writable".to_owned(),
            Directory::Creatable => "will be created".to_owned(),
            Directory::Unusable(why) => why.clone(),
        }
    }
}

/// The nearest existing directory above.
pub fn existing_parent(dir: &Path) -> PathBuf {
    let parents = dir
        .ancestors()
        .skip(1)
        .filter(|parent| !parent.as_os_str().is_empty());
    parents
        .into_iter()
        .find(|parent| parent.exists())
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_looked_for_in_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Directory::look(&dir.path().join("a/b")),
            Directory::Creatable
        ));
        assert_eq!(
            existing_parent(Path::new("no-such-directory/b")),
            PathBuf::from(".")
        );
    }
}
