//! `ce_id`: an event that is sent again has the same id.
//!
//! A version 5 UUID in [`NAMESPACE`] of `event_type`, NUL, `server_composition`, NUL, and the element's bytes as
//! received. `docs/events.md` has test vectors.

use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid, uuid};

/// The namespace of every `ce_id`. It never changes.
pub const NAMESPACE: Uuid = uuid!("eac0cf54-3957-4ef5-959d-a50a1c9d281d");

/// Makes the ids of the events of one webhook.
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
        let hash: [u8; 20] = self.0.clone().chain_update(element).finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Builder::from_sha1_bytes(bytes).into_uuid()
    }
}
