//! The write side of a replay: what letters became and the positions that have them settled, in one transaction.
//!
//! A letter of which Kafka refuses a record is dead as a whole. Kafka names the record for sure only when records are sent one a
//! request: after a refusal the batch goes again that way, with a new producer, until nothing of it is refused. What is
//! sure to be refused is not sent.

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
    dead_letter::Reason,
    lane::{
        broker::{BrokerError, DeliveryError, Mode, Refusal},
        replay::{Committed, Source, Topic, Writer},
    },
};

/// The transactions of a group.
pub struct Writing<'r> {
    config: &'r Config,
    writer: Writer,
    /// Topics that refuse records without a key: they are compacted.
    keyed: BTreeSet<String>,
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
    pub fn new(config: &'r Config, writer: Writer) -> Writing<'r> {
        Writing {
            config,
            writer,
            keyed: BTreeSet::new(),
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
            match self.transact(batch, &positions, &mut sent) {
                Ok(()) => {
                    reading.committed(positions);
                    return Ok(());
                }
                Err(DeliveryError::Late(error) | DeliveryError::Failed(error)) => return Err(error.into()),
                Err(DeliveryError::Refused { index, refusal }) => {
                    // Of records that were sent together the wrong one may be named.
                    if self.writer.mode() == Mode::OneByOne
                        && let Some(record) = sent.into_iter().nth(index)
                    {
                        if refusal == Refusal::Invalid && !record.keyed {
                            self.keyed.insert(record.topic);
                        }
                        let tried = &mut batch[record.letter];
                        tried.verdict = Verdict::Dead(refused(refusal));
                        reading.settle(tried);
                    }
                    self.writer.begin_anew(reading.source(), Mode::OneByOne)?;
                    // The new producer shut out whoever came in between, and what that one did is done.
                    reading.check_alone()?;
                }
            }
        }
    }

    /// Why a letter is dead when a record of it is sure to be refused.
    fn refused_beforehand(&mut self, tried: &Tried, source: &Source) -> Result<Option<Dead>, BrokerError> {
        let mut refusal = None;
        let mut missing = None;
        tried.each_record::<BrokerError>(self.config, &mut |record| {
            let limit = match self.writer.topic(source, record.topic)? {
                Topic::Missing => {
                    missing.get_or_insert_with(|| record.topic.to_owned());
                    return Ok(());
                }
                Topic::Takes(limit) => limit,
            };
            let size = alone_in_batch(record.key, record.headers.iter().copied(), record.value.len());
            if limit.is_some_and(|limit| size > limit) {
                refusal = Some(Refusal::TooLarge);
            } else if record.key.is_none() && self.keyed.contains(record.topic) {
                refusal = Some(Refusal::Invalid);
            }
            Ok(())
        })?;
        Ok(match missing {
            Some(topic) => Some(Dead::new("no_topic", format!("there is no topic {topic}"))),
            None => refusal.map(refused),
        })
    }

    /// One transaction: what the letters became, and the positions. Each record that is sent is put into `sent`.
    fn transact(
        &mut self,
        batch: &[Tried],
        positions: &Committed,
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

fn refused(refusal: Refusal) -> Dead {
    let reason = match refusal {
        Refusal::TooLarge => Reason::RefusedTooLarge,
        Refusal::Invalid => Reason::RefusedInvalid,
    };
    Dead::new(reason.name(), "Kafka refuses a record of it")
}
