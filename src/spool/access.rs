//! Who may use a spool's files: their owner and their group, but nobody else, because they hold mail addresses.
//!
//! Files have mode 0660 and directories 02770, whatever the umask. The setgid bit passes a directory's group on to what is created
//! in it. So another user of the same group can take a spool over, for example after a change of `runAsUser` in Kubernetes. Locking
//! a spool gives these modes to what earlier versions left in it (0644 and 0755), unless it belongs to somebody else.
//!
//! A `spool.dir` that exists keeps its mode, because it may be the root of a volume, or a directory that others use. To keep the
//! group out as well, close that directory: `chmod g= <spool.dir>`.
//!
//! Modes are a precaution. If a file system has none, or a file belongs to somebody else, the spool works as before. Commands that
//! only read a spool change no mode.

use std::{
    fmt::{self, Display, Formatter},
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io, iter,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access},
    process::{getegid, geteuid, getgroups},
};
use tracing::warn;

const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;
/// The bits of a mode.
const BITS: u32 = 0o7777;
/// The bits of owner, group and others, which are all but setuid, setgid and sticky.
const ALL: u32 = 0o777;
/// The bits of everyone but the owner and the group.
const OTHERS: u32 = 0o007;

/// Opens a file with these options, which may create it.
///
/// # Errors
/// It can't be opened.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.mode(FILE).open(path)?;
    // Somebody else's file, or a file system without modes: the file is as usable as it was.
    let _ = file.set_permissions(Permissions::from_mode(FILE));
    Ok(file)
}

/// Creates a directory, and those above it that are missing; the latter get the usual mode. One that exists is left as it is.
///
/// # Errors
/// One of them can't be created.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    create_dir(dir)
}

/// Creates a directory.
///
/// # Errors
/// It exists, or can't be created.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    // The setgid bit comes later: `mkdir` knows none, and fails with it under systemd's RestrictSUIDSGID.
    DirBuilder::new().mode(DIRECTORY & ALL).create(dir)?;
    // A file system without modes keeps what it has.
    let _ = set_mode(dir, DIRECTORY);
    Ok(())
}

/// Sets a mode, without the setgid bit if this process may not set that.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let set = |mode| fs::set_permissions(path, Permissions::from_mode(mode));
    set(mode).or_else(|error| {
        if mode & ALL == mode {
            Err(error)
        } else {
            set(mode & ALL)
        }
    })
}

/// Gives all files of a spool their modes. Reports what others may still use because it can't be changed.
pub fn restrict(spool: &Path) {
    let mut open = contents(spool).filter_map(|(path, mode)| {
        let old = mode_of(&path)?;
        let error = match old == mode {
            true => return None,
            false => set_mode(&path, mode).err()?,
        };
        (old & OTHERS != 0).then_some((path, old, error))
    });
    let Some((path, mode, error)) = open.next() else {
        return;
    };
    let more = open.count();
    warn!(
        path = %path.display(), mode = format!("{mode:04o}"), %error, more,
        "other users of this machine may use files of the spool, and this process can't change that: run chmod -R o= on the logs \
         in spool.dir"
    );
}

/// The first file or directory of the spool that this process may not read and write, itself included, with the reason.
pub fn denied(spool: &Path) -> Option<String> {
    let mut all = iter::once((spool.to_owned(), DIRECTORY)).chain(contents(spool));
    let (path, error) = all.find_map(|(path, mode)| {
        let wanted = match mode {
            DIRECTORY => Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
            _ => Access::READ_OK | Access::WRITE_OK,
        };
        let error = access(&path, wanted).err()?;
        Some((path, io::Error::from(error)))
    })?;
    Some(format!(
        "{} can't be used: {error}{}",
        path.display(),
        Explained(&path, &error)
    ))
}

/// The spool's own files with the mode that each must have: its lock, its logs, and what repairs have set aside.
fn contents(spool: &Path) -> impl Iterator<Item = (PathBuf, u32)> {
    let logs = entries(spool).into_iter().filter_map(|dir| {
        let files = entries(&dir);
        // The mode alone identifies a log of another group, which can't be listed.
        let is_log = files.iter().any(|file| is_of_a_log(file)) || mode_of(&dir) == Some(DIRECTORY);
        is_log.then_some((dir, files))
    });
    let lock = spool.join("lock");
    let lock = lock.exists().then_some((lock, FILE));
    lock.into_iter().chain(logs.flat_map(|(dir, files)| {
        let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
        let files = files.into_iter().filter(is_file).map(|file| (file, FILE));
        [(dir, DIRECTORY)].into_iter().chain(files)
    }))
}

fn mode_of(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.mode() & BITS)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn is_of_a_log(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == "manifest")
        || file.extension().is_some_and(|it| it == "segment")
}

/// Why access to a path was denied, and what to do, if its owner and mode are the cause; otherwise nothing.
pub struct Explained<'a>(pub &'a Path, pub &'a io::Error);

impl Display for Explained<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Explained(path, error) = self;
        if error.kind() != io::ErrorKind::PermissionDenied {
            return Ok(());
        }
        let Some((path, metadata)) = closed(path) else {
            return Ok(());
        };
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let (owner, owners) = (metadata.uid(), metadata.gid());
        write!(
            f,
            "; {} belongs to user {owner} and group {owners}, with mode {:04o}, and this process is user {user} of group {group}. ",
            path.display(),
            metadata.mode() & BITS,
        )?;
        match is_member(owners) {
            true => write!(
                f,
                "Start this version once as user {owner}, which gives the group access"
            )?,
            false => write!(f, "Run it with group {owners}")?,
        }
        write!(
            f,
            ", or run chown -R {user}:{group} on the spool's directory as root"
        )
    }
}

/// The nearest thing that exists at or above a path, or the directory of that file, if its mode denies this process access.
fn closed(path: &Path) -> Option<(&Path, Metadata)> {
    let mut existing = path
        .ancestors()
        .filter_map(|path| Some((path, fs::metadata(path).ok()?)));
    let nearest = existing.next()?;
    let parent = nearest.1.is_file().then(|| existing.next()).flatten();
    [Some(nearest), parent]
        .into_iter()
        .flatten()
        .find(|(_, metadata)| !permits(metadata, geteuid().as_raw(), is_member(metadata.gid())))
}

/// Whether a mode gives a user all access that the spool needs.
fn permits(metadata: &Metadata, user: u32, is_member: bool) -> bool {
    let shift = match (metadata.uid() == user, is_member) {
        (true, _) => 6,
        (_, true) => 3,
        _ => 0,
    };
    let needed = if metadata.is_dir() { 0o7 } else { 0o6 };
    (metadata.mode() >> shift) & needed == needed
}

fn is_member(group: u32) -> bool {
    let others = getgroups().unwrap_or_default();
    group == getegid().as_raw() || others.iter().any(|other| other.as_raw() == group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{
        SpoolLock,
        storage::{FileSystem, Storage},
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & BITS
    }

    /// A spool with a log and what a repair has set aside, all with the modes of earlier versions.
    fn old_spool() -> tempfile::TempDir {
        let spool = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = spool.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "?").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        };
        file("deliveries/manifest");
        file("deliveries/checkpoint");
        file("deliveries.damaged-1/00000000000000000001.segment");
        file("somebody's/notes");
        file("lock");
        spool
    }

    #[test]
    fn everything_new_is_closed_to_others_and_open_to_the_group() {
        let parent = tempfile::tempdir().unwrap();
        let spool = parent.path().join("above/spool");
        let _lock = SpoolLock::acquire(&spool).unwrap();
        let log = spool.join("deliveries");
        FileSystem.create_dir_all(&log).unwrap();
        FileSystem.create(&log.join("manifest")).unwrap();
        for dir in [&spool, &log] {
            assert_eq!(mode(dir), DIRECTORY, "{}", dir.display());
        }
        for file in [spool.join("lock"), log.join("manifest")] {
            assert_eq!(mode(&file), FILE, "{}", file.display());
        }
        assert_ne!(mode(&parent.path().join("above")), DIRECTORY);
    }

    #[test]
    fn a_lock_closes_what_earlier_versions_left_open_and_nothing_else() {
        let spool = old_spool();
        let before = mode(spool.path());
        let _lock = SpoolLock::acquire(spool.path()).unwrap();
        for dir in ["deliveries", "deliveries.damaged-1"] {
            assert_eq!(mode(&spool.path().join(dir)), DIRECTORY, "{dir}");
        }
        let files = ["lock", "deliveries/manifest", "deliveries/checkpoint"];
        for file in files
            .into_iter()
            .chain(["deliveries.damaged-1/00000000000000000001.segment"])
        {
            assert_eq!(mode(&spool.path().join(file)), FILE, "{file}");
        }
        assert_eq!(mode(spool.path()), before);
        assert_eq!(mode(&spool.path().join("somebody's/notes")), 0o644);
        assert_eq!(mode(&spool.path().join("somebody's")), 0o755);
    }

    #[test]
    fn only_a_denial_by_owner_and_mode_is_explained() {
        let spool = old_spool();
        assert_eq!(denied(spool.path()), None);
        let other = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(Explained(spool.path(), &other).to_string(), "");
        // The mode permits this process everything, so something else is the cause.
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(Explained(&spool.path().join("gone"), &denied).to_string(), "");
        let file = spool.path().join("deliveries/manifest");
        assert_eq!(Explained(&file, &denied).to_string(), "");
        // A directory that permits nothing denies its files, too, to its owner.
        let log = spool.path().join("deliveries");
        fs::set_permissions(&log, Permissions::from_mode(0o500)).unwrap();
        let explained = Explained(&file, &denied).to_string();
        let cause = format!("; {} belongs to user {}", log.display(), geteuid().as_raw());
        assert!(explained.starts_with(&cause), "{explained}");
        fs::set_permissions(&log, Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_mode_permits_by_owner_then_group_then_everyone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let own = geteuid().as_raw();
        let cases = [
            (0o600, own, false, true),
            (0o400, own, true, false),
            (0o060, own, true, false),
            (0o660, own + 1, true, true),
            (0o640, own + 1, true, false),
            (0o666, own + 1, false, true),
            (0o660, own + 1, false, false),
        ];
        for (mode, user, is_member, expected) in cases {
            fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
            let metadata = fs::metadata(file.path()).unwrap();
            assert_eq!(
                permits(&metadata, user, is_member),
                expected,
                "{mode:o} {user} {is_member}"
            );
        }
    }
}
