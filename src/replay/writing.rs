//! The write side of a replay: what letters became and the positions that have them settled, in one transaction.
//!
//! A letter of which Kafka refuses a record is dead as a whole. When Kafka does not name the refused records, the batch is sent
//! again, one record a request. After each refusal a new producer begins, until nothing is refused. A record that its
//! topic's configuration rules out is not sent at all.

use std::collections::BTreeSet;

use super::{
    ReplayError,
    reading::Reading,
    tried::Tried,
    verdict::{Dead, Verdict},
};
use crate::{
    batch::alone_in_batch,
    config::Config,
    kafka::{
        broker::{BrokerError, DeliveryError, Mode, Refusal},
        letter_reader::LetterReader,
        replay_producer::ReplayProducer,
        session::CommittedOffsets,
    },
};

/// The transactions of a group.
pub struct Writing<'r> {
    config: &'r Config,
    writer: ReplayProducer,
    /// Topics that refuse records without a key: they are compacted.
    keyed: BTreeSet<String>,
    /// The broker refused timestamps: records have none.
    untimed: bool,
}

/// Of a record that was sent.
struct Sent {
    /// The index of its letter.
    letter: usize,
    topic: String,
    keyed: bool,
}

impl<'r> Writing<'r> {
    /// Writes with a writer that has begun.
    pub fn new(config: &'r Config, writer: ReplayProducer) -> Writing<'r> {
        Writing {
            config,
            writer,
            keyed: BTreeSet::new(),
            untimed: false,
        }
    }

    /// Delivers what the letters became, together with the positions. Letters of which Kafka refuses something are dead
    /// then.
    pub fn write(&mut self, batch: &mut [Tried], reading: &mut Reading<'_>) -> Result<(), ReplayError> {
        loop {
            for tried in &mut *batch {
                if let Some(dead) = self.refused_beforehand(tried, reading.source())? {
                    tried.verdict = Verdict::Dead(dead);
                    reading.settle(tried);
                }
            }
            let positions = reading.to_commit()?;
            let mut sent = Vec::new();
            let mode = match self.transact(batch, &positions, &mut sent) {
                Ok(()) => {
                    reading.committed(positions);
                    return Ok(());
                }
                Err(DeliveryError::TooLarge) => {
                    let refused = sent.len().checked_sub(1).map(|last| (last, Refusal::TooLarge));
                    self.bury(refused, &sent, batch, reading);
                    self.writer.mode()
                }
                Err(DeliveryError::Refused(refused)) if refused.named => {
                    self.bury(refused.records, &sent, batch, reading);
                    self.writer.mode()
                }
                Err(DeliveryError::Refused(_)) if self.writer.mode() == Mode::Batched => Mode::OneByOne,
                Err(DeliveryError::Refused(_)) => return Err(BrokerError::unnamed_refusal().into()),
                Err(DeliveryError::Untimely(_)) if !self.untimed => {
                    self.untimed = true;
                    self.writer.mode()
                }
                Err(
                    DeliveryError::Untimely(error)
                    | DeliveryError::Late(error)
                    | DeliveryError::Failed(error),
                ) => return Err(error.into()),
            };
            self.writer.begin_anew(reading.source(), mode)?;
            if self.untimed {
                self.writer.omit_timestamps();
            }
            // The new producer shut out whoever came in between, and what that one did is done.
            reading.check_alone()?;
        }
    }

    /// The letters of refused records are dead.
    fn bury(
        &mut self,
        refused: impl IntoIterator<Item = (usize, Refusal)>,
        sent: &[Sent],
        batch: &mut [Tried],
        reading: &mut Reading<'_>,
    ) {
        for (number, refusal) in refused {
            let Some(record) = sent.get(number) else {
                continue;
            };
            if refusal == Refusal::Invalid && !record.keyed {
                self.keyed.insert(record.topic.clone());
            }
            let tried = &mut batch[record.letter];
            tried.verdict = Verdict::Dead(dead(refusal));
            reading.settle(tried);
        }
    }

    /// Why a letter is dead when a record of it is sure to be refused.
    fn refused_beforehand(
        &mut self,
        tried: &Tried,
        source: &LetterReader,
    ) -> Result<Option<Dead>, BrokerError> {
        let mut refusal = None;
        let mut missing = None;
        tried.each_record::<BrokerError>(self.config, &mut |record| {
            let Some(rules) = self.writer.topic(source, record.topic)? else {
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

    /// One transaction: what the letters became, and the positions. Each record that is sent is put into `sent`.
    fn transact(
        &mut self,
        batch: &[Tried],
        positions: &CommittedOffsets,
        sent: &mut Vec<Sent>,
    ) -> Result<(), DeliveryError> {
        let deadline = self.writer.deadline();
        self.writer.begin_transaction()?;
        for (letter, tried) in batch.iter().enumerate() {
            tried.each_record(self.config, &mut |record| {
                sent.push(Sent {
                    letter,
                    topic: record.topic.to_owned(),
                    keyed: record.key.is_some(),
                });
                self.writer.send(record, deadline)
            })?;
        }
        self.writer.commit(positions, deadline)
    }
}

fn dead(refusal: Refusal) -> Dead {
    Dead::new(refusal.reason().name(), "Kafka refuses a record of it")
}
