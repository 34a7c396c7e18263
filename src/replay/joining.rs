//! Letters of the dead-letter topic with the places of their records.
//!
//! All parts of a letter are written in one transaction and in order, but those of another bridge may lie between them. What
//! lacks parts is held, within a limit, until they come or the topic ends: retention has cut it then.

use std::collections::BTreeMap;

use rdkafka::{Message, message::Headers};

use crate::dead_letter::{Letter, LetterAssembler, LetterError, part_of};

/// Letters that lack parts are held, the oldest no longer when all together have more bytes than this.
const MOST_HELD: usize = 256 << 20;

/// Where a record stands in the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
}

impl Place {
    /// Where a record that was read stands.
    pub fn of(record: &impl Message) -> Place {
        Place {
            partition: record.partition(),
            offset: record.offset(),
        }
    }
}

/// Puts letters together, and knows where their parts stand.
pub struct Joining {
    letters: LetterAssembler,
    open: BTreeMap<String, OpenLetter>,
    /// Bytes of the parts of all that are open, and most of them.
    held: usize,
    most: usize,
}

impl Default for Joining {
    fn default() -> Joining {
        Joining {
            letters: LetterAssembler::default(),
            open: BTreeMap::new(),
            held: 0,
            most: MOST_HELD,
        }
    }
}

struct OpenLetter {
    places: Vec<Place>,
    bytes: usize,
}

/// What a record was.
#[derive(Debug)]
pub enum Found {
    /// No dead letter.
    Foreign,
    /// A part of a letter that lacks others.
    Part,
    /// It completes a letter, or can't be read.
    Letter(Read),
}

/// A letter, or why a record is none that can be read, with the places of its records.
#[derive(Debug)]
pub struct Read {
    pub places: Vec<Place>,
    pub letter: Box<Result<Letter, LetterError>>,
}

impl Found {
    fn letter(places: Vec<Place>, letter: Result<Letter, LetterError>) -> Found {
        let letter = Box::new(letter);
        Found::Letter(Read { places, letter })
    }
}

impl Joining {
    /// Takes a record that was read. Also gives the places of letters that are given up, for too much is held.
    pub fn take(&mut self, record: &impl Message) -> (Found, Vec<Vec<Place>>) {
        let headers: Vec<(&str, &[u8])> = record
            .headers()
            .into_iter()
            .flat_map(Headers::iter)
            .map(|header| (header.key, header.value.unwrap_or_default()))
            .collect();
        let value = record.payload().unwrap_or_default();
        self.add(Place::of(record), record.key(), &headers, value)
    }

    fn add(
        &mut self,
        place: Place,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
        value: &[u8],
    ) -> (Found, Vec<Vec<Place>>) {
        let id = part_of(headers);
        let letter = match self.letters.add(key, headers, value) {
            Err(LetterError::NoReason) => return (Found::Foreign, Vec::new()),
            Err(error) => return (Found::letter(vec![place], Err(error)), Vec::new()),
            Ok(letter) => letter,
        };
        let Some(id) = id else {
            return (
                letter.map_or(Found::Part, |letter| Found::letter(vec![place], Ok(letter))),
                Vec::new(),
            );
        };
        let mut open = self.open.remove(id).unwrap_or(OpenLetter {
            places: Vec::new(),
            bytes: 0,
        });
        open.places.push(place);
        if let Some(letter) = letter {
            self.held -= open.bytes;
            return (Found::letter(open.places, Ok(letter)), Vec::new());
        }
        open.bytes += value.len();
        self.held += value.len();
        self.open.insert(id.to_owned(), open);
        let mut given_up = Vec::new();
        while self.held > self.most
            && let Some(id) = self.oldest()
            && let Some(open) = self.open.remove(&id)
        {
            self.letters.forget(&id);
            self.held -= open.bytes;
            given_up.push(open.places);
        }
        (Found::Part, given_up)
    }

    fn oldest(&self) -> Option<String> {
        let oldest = self.open.iter().min_by_key(|(_, open)| open.places.first());
        oldest.map(|(id, _)| id.clone())
    }

    /// How many letters lack parts.
    pub fn incomplete(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{DeadLetter, Reason};

    type Parts = Vec<(Vec<u8>, Vec<(String, Vec<u8>)>, Vec<u8>)>;

    fn parts(value: &[u8]) -> Parts {
        let letter = DeadLetter::new(Reason::InvalidJson, 0, value);
        let records = letter.records(1400);
        let parts = records.iter().map(|record| {
            let headers = record.headers();
            let headers = headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()));
            (
                record.key.unwrap_or_default().to_vec(),
                headers.collect(),
                record.value.to_vec(),
            )
        });
        parts.collect()
    }

    fn add(joining: &mut Joining, offset: i64, part: &Parts, index: usize) -> (Found, Vec<Vec<Place>>) {
        let (key, headers, value) = &part[index];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        joining.add(place(offset), Some(key), &headers, value)
    }

    fn place(offset: i64) -> Place {
        Place { partition: 1, offset }
    }

    #[test]
    fn parts_of_two_letters_among_each_other() {
        let (one, two) = (parts(&[b'1'; 2000]), parts(&[b'2'; 2000]));
        assert_eq!((one.len(), two.len()), (2, 2));
        let mut joining = Joining::default();
        assert!(matches!(add(&mut joining, 4, &one, 0).0, Found::Part));
        assert!(matches!(add(&mut joining, 5, &two, 0).0, Found::Part));
        assert_eq!(joining.incomplete(), 2);
        for (offset, parts, first, byte) in [(7, &one, 4, b'1'), (8, &two, 5, b'2')] {
            let Found::Letter(read) = add(&mut joining, offset, parts, 1).0 else {
                panic!("no letter");
            };
            assert_eq!(read.places, [place(first), place(offset)]);
            assert_eq!(read.letter.unwrap().value, [byte; 2000]);
        }
        assert_eq!((joining.incomplete(), joining.held), (0, 0));
        let foreign = joining.add(place(9), None, &[("ce_id", b"1")], b"{}").0;
        assert!(matches!(foreign, Found::Foreign));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let letters: Vec<Parts> = (0..3).map(|n| parts(&[n; 2000])).collect();
        let held = letters[0][0].2.len();
        let mut joining = Joining {
            most: 2 * held,
            ..Joining::default()
        };
        for (offset, letter) in (0..2).zip(&letters) {
            assert_eq!(add(&mut joining, offset, letter, 0).1, [[]; 0]);
        }
        assert_eq!(add(&mut joining, 2, &letters[2], 0).1, [[place(0)]]);
        assert_eq!((joining.incomplete(), joining.held), (2, 2 * held));
        assert!(matches!(
            add(&mut joining, 3, &letters[1], 1).0,
            Found::Letter(..)
        ));
    }
}
