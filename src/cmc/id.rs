//! `ce_id`: an event that is sent again has the same id.
//!
//! A version 5 UUID in [`NAMESPACE`] of `event_type`, NUL, `server_composition`, NUL, and the element's bytes as
//! received. For a received mail, its fields and files stand for the element ([`Ids::of_mail`]). `docs/events.md` has test
//! vectors.

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid, uuid};

use super::mail::Mail;

/// The namespace of every `ce_id`. It never changes.
pub const NAMESPACE: Uuid = uuid!("eac0cf54-3957-4ef5-959d-a50a1c9d281d");

/// Makes the ids of the records of one webhook.
pub(super) struct Ids(Sha1);

impl Ids {
    pub fn new(event_type: &str, server_composition: &str) -> Self {
        let mut hash = Sha1::new();
        hash.update(NAMESPACE.as_bytes());
        hash.update(event_type.as_bytes());
        hash.update([0]);
        hash.update(server_composition.as_bytes());
        hash.update([0]);
        Ids(hash)
    }

    /// The id of the element with these bytes, in lower case with hyphens, written into `buffer`.
    pub fn id<'b>(&self, element: &[u8], buffer: &'b mut [u8; 36]) -> &'b str {
        self.uuid(element).hyphenated().encode_lower(buffer)
    }

    /// The same as a UUID.
    pub fn uuid(&self, element: &[u8]) -> Uuid {
        version_5(self.0.clone().chain_update(element))
    }

    /// The id of a received mail. Its fields and files stand for the element, in the order received: for each its name, NUL, for
    /// a file its file name as received and NUL, the length of the value in decimal digits, NUL, and the value.
    pub fn of_mail<'b>(&self, mail: &Mail<'_>, buffer: &'b mut [u8; 36]) -> &'b str {
        let mut hash = self.0.clone();
        let mut add = |name: &str, file_name: Option<&[u8]>, value: &[u8]| {
            hash.update(name.as_bytes());
            hash.update([0]);
            if let Some(file_name) = file_name {
                hash.update(file_name);
                hash.update([0]);
            }
            hash.update(value.len().to_string());
            hash.update([0]);
            hash.update(value);
        };
        for field in &mail.fields {
            add(&field.name, None, field.value.bytes());
        }
        for file in &mail.files {
            let name = file.name.as_deref().unwrap_or_default();
            add(
                &file.field,
                Some(file.original_name.as_deref().unwrap_or(name.as_bytes())),
                file.content,
            );
        }
        version_5(hash).hyphenated().encode_lower(buffer)
    }
}

fn version_5(hash: Sha1) -> Uuid {
    let hash: [u8; 20] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_sha1_bytes(bytes).into_uuid()
}
