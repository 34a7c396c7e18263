//! Adds holes to their topics, in transactions. Any error of the producer ends the work: the next run finds what was committed on the
//! topics.

use std::collections::BTreeMap;

use super::{
    error::ReconcileError,
    hour::{Fate, Hole},
    scope::Scope,
};
use crate::{
    batch::{Batch, alone_in_batch},
    cmc,
    config::Config,
    kafka::{
        broker::{BrokerError, DeliveryError, Outgoing, Refusal},
        range_reader::RangeReader,
        tool_producer::ToolProducer,
    },
};

/// Adds the holes that are to be added, and notes what became of each. Without a producer, it only notes which can't become events.
///
/// # Errors
/// Kafka is not available or refuses an event, or another reconciliation has begun.
pub fn add(
    config: &Config,
    scope: &Scope,
    holes: &mut [Hole],
    read_at_micros: i64,
    mut producer: Option<&mut ToolProducer>,
    reader: &RangeReader,
) -> Result<(), ReconcileError> {
    let rules = config.rules();
    let (mut pending, mut bytes, mut added) = (Vec::new(), 0, 0);
    for index in 0..holes.len() {
        let hole = &mut holes[index];
        if !matches!(hole.fate, Fate::ToAdd | Fate::NearToAdd) {
            continue;
        }
        let (stream, composition) = (hole.key.stream, scope.composition(hole.key.composition));
        let batch = match cmc::row(stream, composition, &hole.text, read_at_micros, &rules) {
            Ok(batch) => batch,
            Err(reason) => {
                hole.fate = Fate::Unfit(reason.name());
                continue;
            }
        };
        let Some(producer) = producer.as_deref_mut() else {
            continue;
        };
        let topic = config.stream(stream).topic.as_str();
        let failed = |added, error: &dyn std::fmt::Display| ReconcileError::Adding {
            added,
            error: error.to_string(),
        };
        match refusal(&batch, topic, producer, reader).map_err(|error| failed(added, &error))? {
            Some(refusal) => hole.fate = Fate::Unfit(refusal.reason().name()),
            None => {
                bytes += batch.bytes().len();
                pending.push((index, topic, batch));
            }
        }
        if pending.len() >= config.kafka.transaction_events || bytes >= config.kafka.transaction_bytes {
            commit(producer, &pending).map_err(|error| failed(added, &error))?;
            added += settle(holes, &mut pending);
            bytes = 0;
        }
    }
    if let Some(producer) = producer
        && !pending.is_empty()
    {
        commit(producer, &pending).map_err(|error| ReconcileError::Adding {
            added,
            error: error.to_string(),
        })?;
        settle(holes, &mut pending);
    }
    Ok(())
}

/// Notes that these were added; returns how many.
fn settle(holes: &mut [Hole], pending: &mut Vec<(usize, &str, Batch)>) -> u64 {
    for (index, ..) in pending.iter() {
        holes[*index].fate = Fate::Added;
    }
    pending.drain(..).len() as u64
}

/// Why the topic is sure to refuse the event, if it is.
fn refusal(
    batch: &Batch,
    topic: &str,
    producer: &mut ToolProducer,
    reader: &RangeReader,
) -> Result<Option<Refusal>, BrokerError> {
    let Some(rules) = producer.topic(reader, topic)? else {
        return Ok(None);
    };
    let refusal = Outgoing::each_in(batch, topic, |record| {
        let size = || alone_in_batch(record.key, record.headers.iter().copied(), record.value.len());
        rules.refuse(record.key.is_none(), size).map_or(Ok(()), Err)
    });
    Ok(refusal.err())
}

/// One transaction of these events.
fn commit(producer: &mut ToolProducer, pending: &[(usize, &str, Batch)]) -> Result<(), DeliveryError> {
    let deadline = producer.deadline();
    producer.begin_transaction()?;
    for (_, topic, batch) in pending {
        Outgoing::each_in(batch, topic, |record| producer.send(record, deadline))?;
    }
    producer.commit(&BTreeMap::new(), deadline)
}
