//! Puts letters together from the records of the dead-letter topic, and keeps the records' places.
//!
//! All parts of a letter are written in one transaction and in order, but another bridge's parts may lie between them. An
//! incomplete letter is held, within a limit, until its parts arrive or the topic ends. If the topic ends
//! first, retention has deleted some parts.

use std::collections::BTreeMap;

use rdkafka::{Message, message::Headers};

use crate::dead_letter::{Letter, LetterAssembler, LetterError, part_of};

/// Maximum number of bytes of incomplete letters that are held. Beyond it, the oldest letter is given up.
const MOST_HELD: usize = 256 << 20;

/// Where a record stands in the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordPlace {
    pub partition: i32,
    pub offset: i64,
}

impl RecordPlace {
    /// The place of a record that was read.
    pub fn of(record: &impl Message) -> RecordPlace {
        RecordPlace {
            partition: record.partition(),
            offset: record.offset(),
        }
    }
}

/// Puts letters together.
pub struct Assembly {
    letters: LetterAssembler,
    open: BTreeMap<String, OpenLetter>,
    /// The bytes of the parts of all open letters, and their limit.
    held: usize,
    most: usize,
}

impl Default for Assembly {
    fn default() -> Assembly {
        Assembly {
            letters: LetterAssembler::default(),
            open: BTreeMap::new(),
            held: 0,
            most: MOST_HELD,
        }
    }
}

struct OpenLetter {
    places: Vec<RecordPlace>,
    bytes: usize,
}

/// What a record turned out to be.
#[derive(Debug)]
pub enum Assembled {
    /// It is not a dead letter.
    Foreign,
    /// It is part of a letter that still lacks others.
    Part,
    /// It is the last part of a letter, or can't be read.
    Letter(ReadLetter),
}

/// A letter, or why it can't be read, with the places of its records.
#[derive(Debug)]
pub struct ReadLetter {
    pub places: Vec<RecordPlace>,
    pub letter: Box<Result<Letter, LetterError>>,
}

impl Assembled {
    fn letter(places: Vec<RecordPlace>, letter: Result<Letter, LetterError>) -> Assembled {
        let letter = Box::new(letter);
        Assembled::Letter(ReadLetter { places, letter })
    }
}

impl Assembly {
    /// Takes a record that was read. The second result has the places of letters given up to stay within the limit.
    pub fn take(&mut self, record: &impl Message) -> (Assembled, Vec<Vec<RecordPlace>>) {
        let headers: Vec<(&str, &[u8])> = record
            .headers()
            .into_iter()
            .flat_map(Headers::iter)
            .map(|header| (header.key, header.value.unwrap_or_default()))
            .collect();
        let value = record.payload().unwrap_or_default();
        self.add(RecordPlace::of(record), record.key(), &headers, value)
    }

    fn add(
        &mut self,
        place: RecordPlace,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
        value: &[u8],
    ) -> (Assembled, Vec<Vec<RecordPlace>>) {
        let id = part_of(headers);
        let letter = match self.letters.add(key, headers, value) {
            Err(LetterError::NoReason) => return (Assembled::Foreign, Vec::new()),
            Err(error) => return (Assembled::letter(vec![place], Err(error)), Vec::new()),
            Ok(letter) => letter,
        };
        let Some(id) = id else {
            return (
                letter.map_or(Assembled::Part, |letter| {
                    Assembled::letter(vec![place], Ok(letter))
                }),
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
            return (Assembled::letter(open.places, Ok(letter)), Vec::new());
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
        (Assembled::Part, given_up)
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

    fn add(
        assembly: &mut Assembly,
        offset: i64,
        part: &Parts,
        index: usize,
    ) -> (Assembled, Vec<Vec<RecordPlace>>) {
        let (key, headers, value) = &part[index];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assembly.add(place(offset), Some(key), &headers, value)
    }

    fn place(offset: i64) -> RecordPlace {
        RecordPlace { partition: 1, offset }
    }

    #[test]
    fn parts_of_two_letters_among_each_other() {
        let (one, two) = (parts(&[b'1'; 2000]), parts(&[b'2'; 2000]));
        assert_eq!((one.len(), two.len()), (2, 2));
        let mut assembly = Assembly::default();
        assert!(matches!(add(&mut assembly, 4, &one, 0).0, Assembled::Part));
        assert!(matches!(add(&mut assembly, 5, &two, 0).0, Assembled::Part));
        assert_eq!(assembly.incomplete(), 2);
        for (offset, parts, first, byte) in [(7, &one, 4, b'1'), (8, &two, 5, b'2')] {
            let Assembled::Letter(read) = add(&mut assembly, offset, parts, 1).0 else {
                panic!("no letter");
            };
            assert_eq!(read.places, [place(first), place(offset)]);
            assert_eq!(read.letter.unwrap().value, [byte; 2000]);
        }
        assert_eq!((assembly.incomplete(), assembly.held), (0, 0));
        let foreign = assembly.add(place(9), None, &[("ce_id", b"1")], b"{}").0;
        assert!(matches!(foreign, Assembled::Foreign));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let letters: Vec<Parts> = (0..3).map(|n| parts(&[n; 2000])).collect();
        let held = letters[0][0].2.len();
        let mut assembly = Assembly {
            most: 2 * held,
            ..Assembly::default()
        };
        for (offset, letter) in (0..2).zip(&letters) {
            assert_eq!(add(&mut assembly, offset, letter, 0).1, [[]; 0]);
        }
        assert_eq!(add(&mut assembly, 2, &letters[2], 0).1, [[place(0)]]);
        assert_eq!((assembly.incomplete(), assembly.held), (2, 2 * held));
        assert!(matches!(
            add(&mut assembly, 3, &letters[1], 1).0,
            Assembled::Letter(..)
        ));
    }
}
