//! A reprocessed letter: the result, the report about it, and the records that it became.

use super::{
    assembly::{ReadLetter, RecordPlace},
    reprocess::{Dead, Reprocessed, reprocess},
    updates::Fate,
};
use crate::{
    batch::Batch, cmc::Rules, config::Config, dead_letter::Letter, kafka::broker::Outgoing, stream::Stream,
};

/// A letter and the result of reprocessing it.
pub struct Attempt {
    pub places: Vec<RecordPlace>,
    /// `None` when it could not be read. Kept until it is reported.
    pub letter: Option<Letter>,
    pub result: Reprocessed,
}

impl Attempt {
    /// Reprocesses a letter.
    pub fn new(read: ReadLetter, rules: &Rules) -> Attempt {
        let ReadLetter { places, letter } = read;
        let (letter, result) = match *letter {
            Ok(letter) => {
                let result = reprocess(&letter, rules);
                (Some(letter), result)
            }
            Err(error) => (
                None,
                Reprocessed::Dead(Dead::new("unreadable", error.to_string())),
            ),
        };
        Attempt {
            places,
            letter,
            result,
        }
    }

    /// Whether it stays dead.
    pub fn is_dead(&self) -> bool {
        matches!(self.result, Reprocessed::Dead(_))
    }

    /// The events that it became.
    fn batch(&self) -> Option<&Batch> {
        match &self.result {
            Reprocessed::Understood {
                events: Some((_, batch)),
                ..
            } => Some(batch),
            _ => None,
        }
    }

    /// How many events a parsed letter became.
    pub fn events(&self) -> usize {
        self.batch().map_or(0, |batch| batch.events() as usize)
    }

    /// Bytes of the letter and of the events that it became.
    pub fn bytes(&self) -> usize {
        let letter = self.letter.as_ref().map_or(0, |letter| letter.value.len());
        letter + self.batch().map_or(0, |batch| batch.bytes().len())
    }

    /// The topic of a refused record.
    fn topic(&self) -> Option<&str> {
        self.letter.as_ref()?.topic.as_deref()
    }

    /// The report about it.
    pub fn fate(&self, config: &Config) -> Fate {
        match &self.result {
            Reprocessed::Dead(dead) => Fate::Dead(dead.clone()),
            Reprocessed::Record => Fate::Replayed {
                topic: self.topic().unwrap_or_default().to_owned(),
                events: 1,
                letters: 0,
            },
            Reprocessed::Understood { events, letters, .. } => Fate::Replayed {
                topic: events
                    .as_ref()
                    .map_or_else(String::new, |(stream, _)| config.stream(*stream).topic.clone()),
                events: self.events(),
                letters: *letters,
            },
        }
    }

    /// Calls `each` with each record that it became, in order.
    ///
    /// # Errors
    /// The first error of `each`.
    pub fn each_record<E>(
        &self,
        config: &Config,
        each: &mut dyn FnMut(Outgoing<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let topic = |stream| config.stream(stream).topic.as_str();
        let mut of_batch = |topic: &str, batch: &Batch| Outgoing::each_in(batch, topic, &mut *each);
        match (&self.result, &self.letter) {
            (Reprocessed::Dead(_), _) => Ok(()),
            (
                Reprocessed::Understood {
                    events, dead_letters, ..
                },
                _,
            ) => {
                if let Some((stream, batch)) = events {
                    of_batch(topic(*stream), batch)?;
                }
                match dead_letters {
                    Some(batch) => of_batch(topic(Stream::DeadLetters), batch),
                    None => Ok(()),
                }
            }
            (Reprocessed::Record, letter) => {
                let Some((letter, topic)) = letter.as_ref().zip(self.topic()) else {
                    return Ok(());
                };
                let headers: Vec<(&str, &[u8])> = letter
                    .headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_slice()))
                    .collect();
                each(Outgoing {
                    topic,
                    key: letter.key.as_deref(),
                    headers: &headers,
                    value: &letter.value,
                })
            }
        }
    }
}
