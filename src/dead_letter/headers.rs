//! The names of a letter's headers; the head of [`super`] says what each holds.

/// The first header of a letter.
pub const REASON: &str = "cmc-dead-letter-reason";
pub(super) const OFFSET: &str = "cmc-dead-letter-offset";
pub(super) const INDEX: &str = "cmc-dead-letter-index";
pub(super) const MEMBER: &str = "cmc-dead-letter-member";
pub(super) const EVENT_TYPE: &str = "cmc-dead-letter-event-type";
pub(super) const SERVER_COMPOSITION: &str = "cmc-dead-letter-server-composition";
pub(super) const PATH: &str = "cmc-dead-letter-path";
pub(super) const CONTENT_TYPE: &str = "cmc-dead-letter-content-type";
pub(super) const TOPIC: &str = "cmc-dead-letter-topic";
pub(super) const RECEIVED_AT: &str = "cmc-dead-letter-received-at";
pub(super) const MASKED: &str = "cmc-dead-letter-masked";
pub(super) const ID: &str = "cmc-dead-letter-id";
pub(super) const PART: &str = "cmc-dead-letter-part";
pub(super) const PARTS: &str = "cmc-dead-letter-parts";
/// These come last, since they differ between the letters of a webhook.
pub(super) const OWN: [&str; 3] = [OFFSET, INDEX, PART];
