//! Dead letters read back from their topic.
//!
//! [`LetterAssembler`] takes records one by one and returns a [`Letter`] with the record that completes it: at once,
//! unless the letter is in parts. The letter alone suffices to restore what was sent. The [`Scope`](super::Scope) of
//! its reason says what that is:
//!
//! - a body: [`Letter::value`], posted to the path with the content type (without one the bridge guessed it);
//! - a piece of a webhook: `value` is JSON text, with the webhook's event type and composition, the member of `event`
//!   that it was or was in, and its index there;
//! - a refused record: topic, key, headers and `value`.
//!
//! Only masked credentials ([`Letter::masked`]) and whatever exceeded [`MAX_TEXT`](super::MAX_TEXT) bytes of a text
//! are lost.
//!
//! Headers with unknown names are ignored, since later versions may have more; an unknown reason is an error.

use std::{collections::BTreeMap, str::FromStr};

use thiserror::Error;

use super::{
    headers::{
        CONTENT_TYPE, EVENT_TYPE, ID, INDEX, MASKED, MEMBER, OFFSET, PART, PARTS, PATH, REASON, RECEIVED_AT,
        SERVER_COMPOSITION, TOPIC,
    },
    reason::Reason,
};

/// A complete dead letter; the fields are those of [`DeadLetter`](super::DeadLetter).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub reason: Reason,
    pub offset: Option<usize>,
    pub index: Option<usize>,
    pub member: Option<String>,
    pub event_type: Option<String>,
    pub server_composition: Option<String>,
    pub path: Option<String>,
    pub content_type: Option<String>,
    /// Microseconds since the Unix epoch.
    pub received_at_micros: i64,
    pub masked: bool,
    pub topic: Option<String>,
    /// The key of a refused record.
    pub key: Option<Vec<u8>>,
    /// All headers of a refused record.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The bytes in question.
    pub value: Vec<u8>,
}

/// Why a record is not a dead letter, or not one that this version can read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LetterError {
    #[error("the record has no header {REASON}")]
    NoReason,
    #[error("this version does not know the reason {0:?}")]
    UnknownReason(String),
    #[error("the header {0} can't be read")]
    Header(&'static str),
    #[error("the record has no header {0}")]
    Missing(&'static str),
    #[error("part {part} of {parts} does not belong to the letter's other parts")]
    Part { part: usize, parts: usize },
}

/// Assembles letters from the records of a dead-letter topic, in whatever order their parts arrive. A part that comes
/// again is dropped; a letter whose records all come again is returned again.
#[derive(Debug, Default)]
pub struct LetterAssembler {
    /// Letters with missing parts, by id.
    open: BTreeMap<String, Incomplete>,
}

#[derive(Debug)]
struct Incomplete {
    parts: usize,
    values: BTreeMap<usize, Vec<u8>>,
}

impl LetterAssembler {
    /// Takes a record with its headers in their order. Returns the letter that it completes, if any.
    ///
    /// # Errors
    /// The record is no dead letter, or none that this version can read.
    pub fn add(
        &mut self,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
        value: &[u8],
    ) -> Result<Option<Letter>, LetterError> {
        let begin = headers
            .iter()
            .rposition(|(name, _)| *name == REASON)
            .ok_or(LetterError::NoReason)?;
        let (own, known) = headers.split_at(begin);
        let known = LetterHeaders(known);
        let reason = known.text(REASON)?.ok_or(LetterError::NoReason)?;
        let reason =
            Reason::from_name(reason).ok_or_else(|| LetterError::UnknownReason(reason.to_owned()))?;
        let received_at: jiff::Timestamp = known
            .parse(RECEIVED_AT)?
            .ok_or(LetterError::Missing(RECEIVED_AT))?;
        let owned = |name| known.text(name).map(|text| text.map(str::to_owned));
        let id = known.text(ID)?;
        let mut letter = Letter {
            reason,
            offset: known.parse(OFFSET)?,
            index: known.parse(INDEX)?,
            member: owned(MEMBER)?,
            event_type: owned(EVENT_TYPE)?,
            server_composition: owned(SERVER_COMPOSITION)?,
            path: owned(PATH)?,
            content_type: owned(CONTENT_TYPE)?,
            received_at_micros: received_at.as_microsecond(),
            masked: known.text(MASKED)?.is_some(),
            topic: owned(TOPIC)?,
            // Parts without a key of their own have the id as their key.
            key: key
                .filter(|key| id.map(str::as_bytes) != Some(*key))
                .map(<[u8]>::to_vec),
            headers: own
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
                .collect(),
            value: Vec::new(),
        };
        letter.value = match id {
            None => value.to_vec(),
            Some(id) => {
                let part = known.parse(PART)?.ok_or(LetterError::Missing(PART))?;
                let parts = known.parse(PARTS)?.ok_or(LetterError::Missing(PARTS))?;
                match self.add_part(id, part, parts, value)? {
                    Some(value) => value,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(letter))
    }

    /// The whole value, if this part completes it.
    fn add_part(
        &mut self,
        id: &str,
        part: usize,
        parts: usize,
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, LetterError> {
        if !(1..=parts).contains(&part) {
            return Err(LetterError::Part { part, parts });
        }
        let open = self.open.entry(id.to_owned()).or_insert_with(|| Incomplete {
            parts,
            values: BTreeMap::new(),
        });
        if open.parts != parts || open.values.get(&part).is_some_and(|known| known != value) {
            return Err(LetterError::Part { part, parts });
        }
        open.values.insert(part, value.to_vec());
        if open.values.len() < parts {
            return Ok(None);
        }
        let open = self.open.remove(id);
        Ok(open.map(|open| open.values.into_values().collect::<Vec<_>>().concat()))
    }

    /// Forgets the parts of an incomplete letter.
    pub fn forget(&mut self, id: &str) {
        self.open.remove(id);
    }

    /// The incomplete letters: id, number of parts present, number of parts. At the end of a topic these are letters
    /// that retention has cut, or that are still being written.
    pub fn incomplete(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        self.open
            .iter()
            .map(|(id, open)| (id.as_str(), open.values.len(), open.parts))
    }
}

/// The id of the letter to which a part with these headers belongs; `None` for a whole letter, or no letter.
pub fn part_of<'h>(headers: &'h [(&'h str, &'h [u8])]) -> Option<&'h str> {
    let begin = headers.iter().rposition(|(name, _)| *name == REASON)?;
    LetterHeaders(&headers[begin..]).text(ID).ok()?
}

/// The headers about the letter.
struct LetterHeaders<'h>(&'h [(&'h str, &'h [u8])]);

impl<'h> LetterHeaders<'h> {
    fn text(&self, name: &'static str) -> Result<Option<&'h str>, LetterError> {
        let header = self.0.iter().find(|(known, _)| *known == name);
        header
            .map(|(_, value)| std::str::from_utf8(value).map_err(|_| LetterError::Header(name)))
            .transpose()
    }

    fn parse<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, LetterError> {
        self.text(name)?
            .map(|text| text.parse().map_err(|_| LetterError::Header(name)))
            .transpose()
    }
}
