//! The write side of a replay: writes what the letters became, and the positions that settle them, in one transaction.
//!
//! When Kafka refuses a record, its letter stays dead as a whole. When Kafka does not name the refused records, the batch is
//! sent again, one record per request. After each refusal a new producer begins, until nothing is refused. A record that its
//! topic's configuration rules out is not sent at all.

use std::collections::BTreeSet;

use super::{
    attempt::Attempt,
    error::ReplayError,
    reprocess::{Dead, Reprocessed},
    source::Source,
};
use crate::{
    batch::alone_in_batch,
    config::Config,
    kafka::{
        broker::{BrokerError, DeliveryError, Mode, Refusal},
        range_reader::RangeReader,
        session::CommittedOffsets,
        tool_producer::ToolProducer,
    },
};

/// The transactions of a group.
pub struct Sink<'r> {
    config: &'r Config,
    producer: ToolProducer,
    /// Topics that refused a record without a key: they are compacted.
    keyed: BTreeSet<String>,
    /// The broker refused timestamps, so records have none.
    untimed: bool,
}

/// A record that was sent.
struct SentRecord {
    /// The index of its letter.
    letter: usize,
    topic: String,
    keyed: bool,
}

impl<'r> Sink<'r> {
    /// A sink with a producer that has begun.
    pub fn new(config: &'r Config, producer: ToolProducer) -> Sink<'r> {
        Sink {
            config,
            producer,
            keyed: BTreeSet::new(),
            untimed: false,
        }
    }

    /// Delivers what the letters became, together with the positions. Letters of refused records are dead afterwards.
    ///
    /// # Errors
    /// Kafka is not available, another replay has begun, or the position would be too long.
    pub fn write(&mut self, batch: &mut [Attempt], source: &mut Source<'_>) -> Result<(), ReplayError> {
        loop {
            for attempt in &mut *batch {
                if let Some(dead) = self.refused_beforehand(attempt, source.reader())? {
                    attempt.result = Reprocessed::Dead(dead);
                    source.settle(attempt);
                }
            }
            let positions = source.to_commit()?;
            let mut sent = Vec::new();
            let mode = match self.transact(batch, &positions, &mut sent) {
                Ok(()) => {
                    source.committed(positions);
                    return Ok(());
                }
                Err(DeliveryError::TooLarge) => {
                    let refused = sent.len().checked_sub(1).map(|last| (last, Refusal::TooLarge));
                    self.bury(refused, &sent, batch, source);
                    self.producer.mode()
                }
                Err(DeliveryError::Refused(refused)) if refused.named => {
                    self.bury(refused.records, &sent, batch, source);
                    self.producer.mode()
                }
                Err(DeliveryError::Refused(_)) if self.producer.mode() == Mode::Batched => Mode::OneByOne,
                Err(DeliveryError::Refused(_)) => return Err(BrokerError::unnamed_refusal().into()),
                Err(DeliveryError::Untimely(_)) if !self.untimed => {
                    self.untimed = true;
                    self.producer.mode()
                }
                Err(
                    DeliveryError::Untimely(error)
                    | DeliveryError::Late(error)
                    | DeliveryError::Failed(error),
                ) => return Err(error.into()),
            };
            self.producer.begin_anew(source.reader(), mode)?;
            if self.untimed {
                self.producer.omit_timestamps();
            }
            // The new producer has shut out any other replay, which may have committed something before.
            source.check_alone()?;
        }
    }

    /// Leaves the letters of refused records dead.
    fn bury(
        &mut self,
        refused: impl IntoIterator<Item = (usize, Refusal)>,
        sent: &[SentRecord],
        batch: &mut [Attempt],
        source: &mut Source<'_>,
    ) {
        for (number, refusal) in refused {
            let Some(record) = sent.get(number) else {
                continue;
            };
            if refusal == Refusal::Invalid && !record.keyed {
                self.keyed.insert(record.topic.clone());
            }
            let attempt = &mut batch[record.letter];
            attempt.result = Reprocessed::Dead(dead(refusal));
            source.settle(attempt);
        }
    }

    /// Why a letter stays dead, if one of its records is sure to be refused.
    fn refused_beforehand(
        &mut self,
        attempt: &Attempt,
        reader: &RangeReader,
    ) -> Result<Option<Dead>, BrokerError> {
        let mut refusal = None;
        let mut missing = None;
        attempt.each_record::<BrokerError>(self.config, &mut |record| {
            let Some(rules) = self.producer.topic(reader, record.topic)? else {
                missing.get_or_insert_with(|| record.topic.to_owned());
                return Ok(());
            };
            let keyless = record.key.is_none();
            let size = || alone_in_batch(record.key, record.headers.iter().copied(), record.value.len());
            let known = (keyless && self.keyed.contains(record.topic)).then_some(Refusal::Invalid);
            refusal = refusal.or(rules.refuse(keyless, size)).or(known);
            Ok(())
        })?;
        Ok(match missing {
            Some(topic) => Some(Dead::new("no_topic", format!("there is no topic {topic}"))),
            None => refusal.map(dead),
        })
    }

    /// Makes one transaction of what the letters became and the positions. Adds each record to `sent`.
    fn transact(
        &mut self,
        batch: &[Attempt],
        positions: &CommittedOffsets,
        sent: &mut Vec<SentRecord>,
    ) -> Result<(), DeliveryError> {
        let deadline = self.producer.deadline();
        self.producer.begin_transaction()?;
        for (letter, attempt) in batch.iter().enumerate() {
            attempt.each_record(self.config, &mut |record| {
                sent.push(SentRecord {
                    letter,
                    topic: record.topic.to_owned(),
                    keyed: record.key.is_some(),
                });
                self.producer.send(record, deadline)
            })?;
        }
        self.producer.commit(positions, deadline)
    }
}

fn dead(refusal: Refusal) -> Dead {
    Dead::new(refusal.reason().name(), "Kafka refuses a record of it")
}
