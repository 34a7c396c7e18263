//! Writes attachments of received mail into a directory, once all their parts have been read.
//!
//! Parts are collected in a temporary file of the directory, so memory stays small. After the last part, the size and the SHA-256
//! must be those that the parts announce. Only then does the file get its name: a [safe one](super::safe_name), and never that of
//! an existing file. An attachment that is there already under its name is not written
//! again, so the same topic can be read twice.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rdkafka::Message;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::safe_name::{numbered, safe_name};
use crate::{
    cli::records::{header, stream},
    human,
    plain::visible,
    stream::Stream,
};

/// Maximum number of attachments whose parts are awaited; then the oldest is given up.
const MOST_OPEN: usize = 64;
/// Maximum number of files with one name.
const MOST_ALIKE: u32 = 10_000;

/// Collects parts and saves attachments.
pub struct AttachmentSaver {
    dir: PathBuf,
    open: VecDeque<OpenAttachment>,
}

/// An attachment of which parts are missing.
struct OpenAttachment {
    of: PartOf,
    /// The number of parts so far.
    parts: u64,
    bytes: u64,
    hash: Sha256,
    file: NamedTempFile,
}

/// Which attachment a part belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartOf {
    topic: String,
    partition: i32,
    mail: String,
    index: u64,
}

/// The headers of a part.
struct Part {
    of: PartOf,
    name: String,
    number: u64,
    count: u64,
    size: u64,
    sha256: String,
}

impl Part {
    /// Reads the headers; `None` if the record is no part of an attachment.
    fn of(record: &impl Message) -> Option<Part> {
        if stream(record) != Some(Stream::Inbound) {
            return None;
        }
        let text = |name: &str| Some(String::from_utf8_lossy(header(record, name)?).into_owned());
        let about = |name: &str| text(&format!("cmc-attachment-{name}"));
        let number = |name: &str| about(name)?.parse::<u64>().ok();
        let member = || {
            Some(format!(
                "{}.{}",
                about("member")?,
                extension(&text("content-type")?)
            ))
        };
        Some(Part {
            of: PartOf {
                topic: record.topic().to_owned(),
                partition: record.partition(),
                mail: text("cmc-mail-id")?,
                index: number("index")?,
            },
            name: member().or_else(|| about("name")).unwrap_or_default(),
            number: number("part")?,
            count: number("parts")?,
            size: number("size")?,
            sha256: about("sha256")?,
        })
    }

    /// The attachment in words.
    fn shown(&self) -> String {
        let PartOf { mail, index, .. } = &self.of;
        visible(&format!("attachment {index} of mail {mail} ({})", self.name))
    }
}

/// The extension of a field that came as an attachment.
fn extension(content_type: &str) -> &'static str {
    match content_type.split(';').next().unwrap_or_default().trim() {
        "application/json" => "json",
        "text/plain" => "txt",
        _ => "bin",
    }
}

impl AttachmentSaver {
    /// Saves into this directory, which is made if there is none.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(dir: &Path) -> io::Result<AttachmentSaver> {
        fs::create_dir_all(dir)?;
        Ok(AttachmentSaver {
            dir: dir.to_path_buf(),
            open: VecDeque::new(),
        })
    }

    /// Takes a record. Returns what to tell the user, if it is the last part of an attachment or shows that one can't be saved.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn take(&mut self, record: &impl Message) -> io::Result<Option<String>> {
        let Some(part) = Part::of(record) else {
            return Ok(None);
        };
        let known = self.open.iter().position(|open| open.of == part.of);
        let mut open = match known.and_then(|at| self.open.remove(at)) {
            // Read again from its beginning: at-least-once delivery may repeat it.
            _ if part.number == 1 => OpenAttachment {
                of: part.of.clone(),
                parts: 0,
                bytes: 0,
                hash: Sha256::new(),
                file: NamedTempFile::new_in(&self.dir)?,
            },
            Some(open) => open,
            None if part.number < part.count => return Ok(None),
            None => {
                return Ok(Some(format!(
                    "{} is not saved: its beginning was not read",
                    part.shown()
                )));
            }
        };
        if part.number > open.parts + 1 {
            return Ok(Some(format!(
                "{} is not saved: part {} is missing",
                part.shown(),
                open.parts + 1
            )));
        }
        if part.number == open.parts + 1 {
            let value = record.payload().unwrap_or_default();
            open.file.write_all(value)?;
            open.hash.update(value);
            open.bytes += value.len() as u64;
            open.parts += 1;
        }
        if open.parts < part.count {
            self.open.push_back(open);
            return Ok(self.give_up_oldest());
        }
        let sha256: String = open
            .hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if open.bytes != part.size || sha256 != part.sha256 {
            return Ok(Some(format!(
                "{} is not saved: its size or its SHA-256 differs",
                part.shown()
            )));
        }
        let path = keep(open.file, &self.dir, &safe_name(&part.name), &sha256)?;
        let size = human::size(part.size);
        Ok(Some(format!("{}: {} ({size})", part.shown(), path.display())))
    }

    fn give_up_oldest(&mut self) -> Option<String> {
        let oldest = (self.open.len() > MOST_OPEN)
            .then(|| self.open.pop_front())
            .flatten()?;
        let PartOf { mail, index, .. } = &oldest.of;
        let what = format!(
            "attachment {index} of mail {mail} is not saved: parts after {} are missing",
            oldest.parts
        );
        Some(visible(&what))
    }

    /// How many attachments still lack parts.
    pub fn incomplete(&self) -> usize {
        self.open.len()
    }
}

/// Gives the file its name, or finds the same content there already under it.
fn keep(mut file: NamedTempFile, dir: &Path, name: &str, sha256: &str) -> io::Result<PathBuf> {
    file.as_file().sync_all()?;
    for number in 1..=MOST_ALIKE {
        let path = match number {
            1 => dir.join(name),
            number => dir.join(numbered(name, number)),
        };
        match file.persist_noclobber(&path) {
            Ok(_) => {
                File::open(dir)?.sync_all()?;
                return Ok(path);
            }
            Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => file = refused.file,
            Err(refused) => return Err(refused.error),
        }
        if holds(&path, sha256) {
            return Ok(path);
        }
    }
    let what = format!("{} has {MOST_ALIKE} files that are called {name}", dir.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, what))
}

/// Whether this is a regular file with these contents. One that can't be read is another one.
fn holds(path: &Path, sha256: &str) -> bool {
    let hash = || -> io::Result<String> {
        if !fs::symlink_metadata(path)?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut file, mut hash) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
                read => hash.update(&buffer[..read]),
            }
        }
    };
    hash().is_ok_and(|found| found == sha256)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders, OwnedMessage},
    };

    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// A part of an attachment whose parts have three bytes each.
    fn part(mail: &str, name: &[u8], content: &[u8], number: usize) -> OwnedMessage {
        let parts: Vec<&[u8]> = content.chunks(3).collect();
        let headers = [
            ("ce_type", b"jp.smtps.cmc.inbound.attachment".to_vec()),
            ("content-type", b"text/plain".to_vec()),
            ("cmc-mail-id", mail.as_bytes().to_vec()),
            ("cmc-attachment-index", b"1".to_vec()),
            ("cmc-attachment-name", name.to_vec()),
            ("cmc-attachment-part", number.to_string().into_bytes()),
            (
                "cmc-attachment-parts",
                parts.len().max(1).to_string().into_bytes(),
            ),
            ("cmc-attachment-size", content.len().to_string().into_bytes()),
            ("cmc-attachment-sha256", sha256(content).into_bytes()),
        ];
        let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(value),
            })
        });
        let value = parts.get(number - 1).copied().unwrap_or_default().to_vec();
        let topic = "cmc.inbound".to_owned();
        OwnedMessage::new(
            Some(value),
            None,
            topic,
            Timestamp::NotAvailable,
            0,
            0,
            Some(headers),
        )
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn take(
        saver: &mut AttachmentSaver,
        mail: &str,
        name: &str,
        content: &[u8],
        numbers: &[usize],
    ) -> String {
        let said: Vec<String> = numbers
            .iter()
            .filter_map(|number| {
                saver
                    .take(&part(mail, name.as_bytes(), content, *number))
                    .unwrap()
            })
            .collect();
        said.join("\n")
    }

    #[test]
    fn whole_attachments_are_saved_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.txt"), "mine").unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("c.txt")).unwrap();
        let mut saver = AttachmentSaver::new(dir.path()).unwrap();
        // Interleaved mails, a repeated part, and one that begins anew.
        assert_eq!(take(&mut saver, "m1", "a.txt", b"abcdefg", &[1, 2, 2]), "");
        assert_eq!(take(&mut saver, "m2", "a.txt", b"other", &[1]), "");
        assert!(take(&mut saver, "m1", "a.txt", b"abcdefg", &[3]).ends_with("/a.txt (7 B)"));
        assert!(take(&mut saver, "m2", "a.txt", b"other", &[1, 2]).ends_with("/a (2).txt (5 B)"));
        assert!(take(&mut saver, "m3", "b.txt", b"", &[1]).contains("/b (2).txt"));
        assert!(take(&mut saver, "m4", "c.txt", b"x", &[1]).contains("/c (2).txt"));
        assert!(take(&mut saver, "m5", "../../x/..", b"y", &[1]).contains("/_.._.._x_ (1 B)"));
        // Read again: nothing new.
        assert!(take(&mut saver, "m1", "a.txt", b"abcdefg", &[1, 2, 3]).ends_with("/a.txt (7 B)"));
        assert!(take(&mut saver, "m2", "a.txt", b"other", &[1, 2]).ends_with("/a (2).txt (5 B)"));
        assert_eq!(
            names(dir.path()),
            [
                "_.._.._x_",
                "a (2).txt",
                "a.txt",
                "b (2).txt",
                "b.txt",
                "c (2).txt",
                "c.txt"
            ]
        );
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("a.txt"), read("a (2).txt")),
            (b"abcdefg".to_vec(), b"other".to_vec())
        );
        assert_eq!((read("b.txt"), read("b (2).txt")), (b"mine".to_vec(), Vec::new()));
        assert_eq!(saver.incomplete(), 0);
    }

    #[test]
    fn what_is_incomplete_or_wrong_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut saver = AttachmentSaver::new(dir.path()).unwrap();
        assert!(take(&mut saver, "m1", "a", b"abcdefg", &[2, 3]).contains("beginning was not read"));
        assert!(take(&mut saver, "m1", "a", b"abcdefg", &[1, 3]).contains("part 2 is missing"));
        let mut wrong = part("m2", b"a", b"abc", 1);
        wrong = OwnedMessage::new(
            Some(b"abd".to_vec()),
            None,
            "cmc.inbound".to_owned(),
            Timestamp::NotAvailable,
            0,
            0,
            wrong.headers().cloned(),
        );
        assert!(saver.take(&wrong).unwrap().unwrap().contains("SHA-256 differs"));
        for mail in 0..=MOST_OPEN {
            let said = take(&mut saver, &format!("n{mail}"), "a", b"abcdefg", &[1]);
            assert_eq!(said.contains("mail n0 is not saved"), mail == MOST_OPEN, "{said}");
        }
        assert_eq!(saver.incomplete(), MOST_OPEN);
        drop(saver);
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
