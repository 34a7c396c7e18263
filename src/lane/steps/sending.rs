//! Sending batches, and what follows when the broker refuses one of their records: rule 4 of [`super::super`].

use std::time::Instant;

use tracing::{info, warn};

use super::{
    super::{
        broker::{BlockReason, Broker, BrokerError, Connect, DeliveryError, Mode, Outgoing, Refusal},
        refusal::{self, Refusals, dead_letter},
        sent::{Sent, SentRecord},
        trouble::{dead_letter_refused, not_connected, undecodable, unreadable},
    },
    Lane, Stop,
};
use crate::{
    batch::BatchView,
    clock,
    dead_letter::Failure,
    spool::{Seq, StoredBatch},
    stream::Stream,
};

/// While records are sent one by one, a transaction holds no more than this: each refusal sends it again.
const ONE_BY_ONE_EVENTS: usize = 500;

impl<C: Connect> Lane<C> {
    /// Sends the next whole batches: at most so many events, or one batch.
    pub(super) fn send(
        &mut self,
        sent: &mut Sent,
        most_events: usize,
        deadline: Instant,
    ) -> Result<(), DeliveryError> {
        let most_events = match self.mode() {
            Mode::OneByOne => ONE_BY_ONE_EVENTS.min(most_events),
            Mode::Batched => most_events,
        };
        loop {
            let next = match self.backlog.peek() {
                Ok(next) => next,
                // What could be read is delivered first; the next turn meets the damage again.
                Err(_) if !sent.is_empty() => break,
                Err(error) => return Err(unreadable(error).into()),
            };
            let Some(next) = next else {
                break;
            };
            let fits = sent.events + next.events as usize <= most_events
                && sent.bytes + next.payload.len() <= self.options.transaction_bytes;
            let in_range = self.refusals.as_ref().is_none_or(|r| next.seq < r.until);
            let joins = sent.is_empty() || fits && in_range;
            if !joins {
                break;
            }
            let Some(batch) = self.backlog.take().map_err(unreadable)? else {
                break;
            };
            let view = match BatchView::decode(&batch.payload) {
                Ok(view) => view,
                Err(error) => {
                    let failed = undecodable(&batch, error);
                    self.backlog.put_back(batch);
                    if sent.is_empty() {
                        return Err(failed.into());
                    }
                    break;
                }
            };
            self.send_batch(&batch, &view, sent, deadline)?;
            sent.end = batch.end();
            sent.events += batch.events as usize;
            sent.bytes += batch.payload.len();
        }
        Ok(())
    }

    fn send_batch(
        &mut self,
        batch: &StoredBatch,
        view: &BatchView<'_>,
        sent: &mut Sent,
        deadline: Instant,
    ) -> Result<(), DeliveryError> {
        let Some(broker) = &mut self.broker else {
            return Err(not_connected().into());
        };
        let topic = &self.options.topic;
        // Not that of the receipt: see docs/events.md.
        let timestamp_micros = clock::unix_micros();
        let mut headers = Vec::with_capacity(16);
        let mut scratch = Vec::new();
        sent.received.push((view.received_at_micros, view.records.len()));
        for (index, record) in view.records.iter().enumerate() {
            let value = record.value_in(&mut scratch);
            headers.clear();
            headers.extend(view.headers(record));
            let outgoing = Outgoing {
                topic,
                key: record.key,
                headers: &headers,
                value,
                timestamp_micros,
            };
            let mut verdict = self.refusals.as_ref().and_then(|refusals| {
                refusals.verdict(batch.seq, index, view, record, broker.record_limit(topic))
            });
            if verdict.is_none() {
                match broker.send(outgoing, deadline) {
                    Ok(()) => sent.records.push(SentRecord {
                        batch: batch.seq,
                        number: index,
                        dead_letter: false,
                        keyless: record.key.is_none(),
                    }),
                    // Refused before it was queued: the transaction is not harmed.
                    Err(DeliveryError::Refused { index, refusal }) if index >= sent.behind() => {
                        verdict = Some(refusal);
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some(refusal) = verdict else {
                continue;
            };
            if self.options.stream == Stream::DeadLetters {
                return Err(dead_letter_refused(Stream::DeadLetters, topic, refusal).into());
            }
            warn!(
                stream = %self.options.stream, batch = batch.seq.0, index, topic, ?refusal,
                "the broker refused a record; it goes to the dead-letter topic"
            );
            let dead_letter_topic = &self.options.dead_letter_topic;
            let most = broker
                .record_limit(dead_letter_topic)
                .map_or(self.options.max_record_bytes, |limit| {
                    limit.min(self.options.max_record_bytes)
                });
            for part in dead_letter(refusal, topic, &headers, view, record.key, value)
                .records(most)
                .iter()
            {
                let outgoing = Outgoing {
                    topic: dead_letter_topic,
                    key: part.key,
                    headers: &part.headers(),
                    value: part.value,
                    timestamp_micros,
                };
                match broker.send(outgoing, deadline) {
                    Ok(()) => sent.records.push(SentRecord {
                        batch: batch.seq,
                        number: index,
                        dead_letter: true,
                        keyless: part.key.is_none(),
                    }),
                    Err(DeliveryError::Refused { index, refusal }) if index >= sent.behind() => {
                        return Err(
                            dead_letter_refused(self.options.stream, dead_letter_topic, refusal).into(),
                        );
                    }
                    Err(error) => return Err(error),
                }
            }
            sent.diverted.push(Failure {
                reason: refusal::reason(refusal),
                index: Some(index),
            });
        }
        Ok(())
    }

    /// What to do after a refusal: rule 4. `sent` holds the refused record, `touched` is behind all that was sent.
    pub(super) fn refused(&mut self, sent: &Sent, touched: Seq, index: usize, refusal: Refusal) -> Stop {
        let Some(record) = index.checked_sub(sent.first).and_then(|n| sent.records.get(n)) else {
            return Stop::Blocked(BrokerError {
                reason: BlockReason::Other,
                message: format!("record {index} was refused, of {} sent", sent.behind()),
            });
        };
        let topic = &self.options.topic;
        if self.options.stream == Stream::DeadLetters {
            return dead_letter_refused(Stream::DeadLetters, topic, refusal).into();
        }
        if let Some(refusals) = &mut self.refusals
            && refusals.mode == Mode::OneByOne
        {
            if record.dead_letter {
                return dead_letter_refused(self.options.stream, &self.options.dead_letter_topic, refusal)
                    .into();
            }
            refusals.add(record, refusal);
            return Stop::Again;
        }
        let limit = self.broker.as_ref().and_then(|b| b.record_limit(topic));
        let mode = match (&self.refusals, refusal, limit) {
            (None, Refusal::TooLarge, Some(_)) => Mode::Batched,
            _ => Mode::OneByOne,
        };
        info!(
            stream = %self.options.stream, topic, ?refusal, ?mode, events = sent.events,
            "the broker refused a batch; the range is sent again without what it refuses"
        );
        let until = self.refusals.as_ref().map_or(Seq(0), |refusals| refusals.until);
        self.refusals = Some(Refusals::until(until.max(touched), mode));
        Stop::Again
    }
}
