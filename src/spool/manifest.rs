//! The manifest: which log a directory holds. JSON, replaced by rename, never changed in place.
//!
//! ```json
//! {"format":1,"log":"<uuid>","group":"<uuid>","crc32c":123}
//! ```
//!
//! `log` is part of every checksum and never changes. `group` names the log in Kafka (transactional id and consumer group);
//! the lane takes a new one when Kafka's position belongs to another life of this directory. `crc32c` covers the text
//! `<format> <log> <group>`.
//!
//! `manifest.copy` holds the same. It is used when the manifest is damaged or gone; opening the log then restores both.
//! Logs of earlier versions get their copy at the next start.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    error::SpoolError,
    segment::FORMAT,
    storage::{ReadFile, ReadStorage, Storage, read_up_to, replace},
};

const NAME: &str = "manifest";
const COPY: &str = "manifest.copy";
const MAX_BYTES: usize = 4096;

/// Which log a directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Part of every checksum of the log.
    pub log_id: Uuid,
    /// Names the log in Kafka.
    pub group_id: Uuid,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: u32,
    log: Uuid,
    group: Uuid,
    crc32c: u32,
}

impl Manifest {
    /// The manifest of a new log.
    pub fn begin() -> Manifest {
        let id = Uuid::new_v4();
        Manifest {
            log_id: id,
            group_id: id,
        }
    }

    /// Reads the manifest of the log in `dir`, or its copy if the manifest is damaged or gone; `None` if there is neither.
    ///
    /// # Errors
    /// Neither can be used; the error is the manifest's.
    pub fn read(storage: &dyn ReadStorage, dir: &Path) -> Result<Option<Manifest>, SpoolError> {
        let manifest = Manifest::read_file(storage, &dir.join(NAME));
        if let Ok(Some(_)) = manifest {
            return manifest;
        }
        match Manifest::read_file(storage, &dir.join(COPY)) {
            Ok(Some(copy)) => Ok(Some(copy)),
            _ => manifest,
        }
    }

    /// Whether the manifest and its copy, in this order, hold this.
    pub fn is_in(&self, storage: &dyn ReadStorage, dir: &Path) -> [bool; 2] {
        [NAME, COPY].map(|name| {
            let found = Manifest::read_file(storage, &dir.join(name));
            matches!(found, Ok(Some(found)) if found == *self)
        })
    }

    fn read_file(storage: &dyn ReadStorage, path: &Path) -> Result<Option<Manifest>, SpoolError> {
        let unusable = |what: String| SpoolError::Unusable {
            path: path.to_path_buf(),
            what,
        };
        let read = |file: Box<dyn ReadFile>| read_up_to(&*file, MAX_BYTES, 0);
        let bytes = match storage.open(path).and_then(read) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SpoolError::io("read", path)(error)),
        };
        let format = serde_json::from_slice::<serde_json::Value>(&bytes)
            .ok()
            .and_then(|text| text.get("format")?.as_u64())
            .ok_or_else(|| unusable("the manifest is damaged; restore it from a copy of the spool".into()))?;
        if format != u64::from(FORMAT) {
            return Err(unusable(format!(
                "its format is {format}, this version knows {FORMAT}; use the version of cmc-bridge that wrote it"
            )));
        }
        let text: Text = serde_json::from_slice(&bytes)
            .map_err(|error| unusable(format!("the manifest is damaged ({error})")))?;
        let manifest = Manifest {
            log_id: text.log,
            group_id: text.group,
        };
        if text.crc32c != manifest.crc() {
            return Err(unusable("the manifest's checksum is wrong".into()));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest of the log in `dir` and its copy, durably.
    ///
    /// # Errors
    /// The disk failed.
    pub fn write(&self, storage: &dyn Storage, dir: &Path) -> Result<(), SpoolError> {
        let text = Text {
            format: FORMAT,
            log: self.log_id,
            group: self.group_id,
            crc32c: self.crc(),
        };
        let bytes = serde_json::to_vec(&text)
            .map_err(|error| SpoolError::io("encode", &dir.join(NAME))(io::Error::other(error)))?;
        replace(storage, dir, NAME, &bytes)?;
        replace(storage, dir, COPY, &bytes)
    }

    fn crc(&self) -> u32 {
        crc32c::crc32c(format!("{FORMAT} {} {}", self.log_id, self.group_id).as_bytes())
    }
}
