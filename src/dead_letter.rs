//! Dead letters: records that hold what could not become an event, and records that their topic refused.
//!
//! A [`DeadLetter`] becomes one record on the dead-letter topic, or several numbered parts if one record would exceed the
//! record limit. The value is the bytes in question and nothing else. Everything known about them is in headers; an unknown
//! one is left out:
//!
//! ```text
//! cmc-dead-letter-reason              the name of a Reason
//! cmc-dead-letter-member              the list that an element was in, or the member that had the value
//! cmc-dead-letter-event-type          of the webhook
//! cmc-dead-letter-server-composition  of the webhook
//! cmc-dead-letter-path                of the request
//! cmc-dead-letter-content-type        of the request
//! cmc-dead-letter-received-at         RFC 3339, UTC, microseconds
//! cmc-dead-letter-topic               the topic for which the broker refused the record
//! cmc-dead-letter-masked              "true" if credentials were overwritten with `*`
//! cmc-dead-letter-offset              where in the JSON text, in bytes
//! cmc-dead-letter-index               which element of its list, from 0
//! cmc-dead-letter-id, -part, -parts   of parts only: the letter's id, this part's number from 1, the number of parts
//! ```
//!
//! A record that the broker refused keeps its key and its own headers, whatever their names. They come first: the headers of
//! the letter begin at the last `cmc-dead-letter-reason`. The values of the parts, concatenated in the order of their numbers,
//! are the bytes in question. Texts from outside are cut to [`MAX_TEXT`] bytes. [`LetterAssembler`] reads all of this back.
//!
//! This module knows neither the sender's format nor Kafka; `cmc` and the lanes both make dead letters.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`headers`] | the names of the headers |
//! | [`letter`] | letters read back and assembled from their parts |
//! | [`record`] | turns a letter into the records that carry it |
//! | [`reason`] | the closed list of reasons |

mod headers;
mod letter;
mod reason;
mod record;

pub(crate) use self::record::rfc3339_micros;
pub use self::{
    headers::REASON,
    letter::{Letter, LetterAssembler, LetterError, part_of},
    reason::{Failure, Reason, Scope},
    record::{DeadLetter, MAX_TEXT},
};

#[cfg(test)]
mod tests;
