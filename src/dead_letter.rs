//! Dead letters: records for what could not go where it should have gone.
//!
//! A [`DeadLetter`] becomes one record on the dead-letter topic, or several numbered parts when one would pass the record
//! limit. Its value is the bytes in question and nothing else; all that is known about them stands in headers, each left
//! out when it is not known:
//!
//! ```text
//! cmc-dead-letter-reason              a Reason's name
//! cmc-dead-letter-member              the list that an element stood in, or the member that the value had
//! cmc-dead-letter-event-type          as the webhook said
//! cmc-dead-letter-server-composition  as the webhook said
//! cmc-dead-letter-path                of the request
//! cmc-dead-letter-content-type        of the request
//! cmc-dead-letter-received-at         RFC 3339, UTC, microseconds
//! cmc-dead-letter-topic               where the broker refused the record
//! cmc-dead-letter-masked              "true" when credentials were overwritten with `*`
//! cmc-dead-letter-offset              where in the JSON text, in bytes
//! cmc-dead-letter-index               which element of its list, from 0
//! cmc-dead-letter-id, -part, -parts   only of parts: the letter's id, this part's number from 1, how many there are
//! ```
//!
//! A record that the broker refused keeps its key and its own headers, which come first, whatever their names: the letter's
//! begin at the last `cmc-dead-letter-reason`. The parts' values, put together in the order of their numbers, are the bytes.
//! Texts that came from outside are cut to [`MAX_TEXT`] bytes. [`LetterAssembler`] reads all of this back.
//!
//! This module knows neither the sender's format nor Kafka: ingest and the lanes both make dead letters.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`headers`] | the names of the headers |
//! | [`letter`] | dead letters read back: what was sent, parts joined |
//! | [`record`] | a letter into the records that carry it |
//! | [`reason`] | the closed list of reasons |

mod headers;
mod letter;
mod reason;
mod record;

pub(crate) use self::record::rfc3339_micros;
pub use self::{
    letter::{Letter, LetterAssembler, LetterError, part_of},
    reason::{Failure, Reason, Scope},
    record::{DeadLetter, MAX_TEXT},
};

#[cfg(test)]
mod tests;
