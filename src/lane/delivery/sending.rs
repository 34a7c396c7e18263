//! Sends batches, and handles refused records: rule 4 of [`super::super`].

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{
    super::{
        causes::{dead_letter_refused, not_connected, undecodable, unreadable},
        in_flight::{InFlight, SentRecord},
        options::LaneOptions,
        refusal::{Refusals, dead_letter, mode_of},
    },
    Lane, Stop,
};
use crate::{
    batch::{BatchView, alone_in_batch},
    clock,
    dead_letter::{DeadLetter, Failure},
    kafka::broker::{
        Broker, BrokerError, Connect, DeliveryError, Mode, Outgoing, Refusal, RefusedRecords, TopicRules,
    },
    spool::{Seq, StoredBatch},
    stream::Stream,
};

/// Maximum number of events in a transaction of one record per request, because each refusal sends it again.
const ONE_BY_ONE_EVENTS: usize = 500;
/// A topic's rules that are older than this are read again before they divert a record.
const RULES_LAST: Duration = Duration::from_secs(10);

/// Who refuses a record.
#[derive(Clone, Copy, Debug)]
enum RefusedBy {
    /// The broker has refused it.
    Broker,
    /// The topic's configuration says that the broker will refuse it.
    Topic,
    /// The client: the record is larger than `kafka.max_record_bytes`.
    Client,
}

impl<C: Connect> Lane<C> {
    /// Sends the next whole batches: one, and more while they stay within `most_events`.
    ///
    /// # Errors
    /// Why the turn must end early.
    pub(super) fn send(
        &mut self,
        sent: &mut InFlight,
        most_events: usize,
        deadline: Instant,
    ) -> Result<(), Stop> {
        let most_events = match self.mode {
            Mode::OneByOne => ONE_BY_ONE_EVENTS.min(most_events),
            Mode::Batched => most_events,
        };
        loop {
            let next = match self.backlog.peek() {
                Ok(next) => next,
                // The readable batches are delivered first. The next turn meets the damage again.
                Err(_) if !sent.is_empty() => break,
                Err(error) => return Err(unreadable(error).into()),
            };
            let Some(next) = next else {
                break;
            };
            let fits = sent.events + next.events as usize <= most_events
                && sent.bytes + next.payload.len() <= self.options.transaction_bytes;
            let goes_alike = mode_of(self.refusals.as_ref(), next.seq) == self.mode;
            let joins = sent.is_empty() || fits && goes_alike;
            if !joins {
                sent.full = true;
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
        sent: &mut InFlight,
        deadline: Instant,
    ) -> Result<(), Stop> {
        let Some(broker) = &mut self.broker else {
            return Err(not_connected().into());
        };
        let topic = &self.options.topic;
        let rules = broker.rules(topic);
        let group = match self.options.stream.is_grouped() {
            true => refusal_in(view, batch.seq, self.refusals.as_ref(), rules),
            false => None,
        };
        if let Some((RefusedBy::Topic, _)) = group
            && clock::since(self.connected_at) >= RULES_LAST
        {
            return Err(Stop::Again);
        }
        let mut headers = Vec::with_capacity(16);
        let mut scratch = Vec::new();
        sent.received.push((view.received_at_micros, view.records.len()));
        for (number, record) in view.records.iter().enumerate() {
            let of_record = SentRecord {
                batch: batch.seq,
                number,
                part: None,
                keyless: record.key.is_none(),
            };
            let refusals = self.refusals.as_ref();
            // What was delivered of a group that is diverted now goes with the rest: a dead letter has the whole group.
            if group.is_none() && refusals.is_some_and(|refusals| refusals.is_delivered(&of_record)) {
                continue;
            }
            if refusals.is_some_and(|refusals| refusals.is_taken(&of_record)) {
                sent.only_asks = true;
                continue;
            }
            let value = record.value_in(&mut scratch);
            headers.clear();
            headers.extend(view.headers(record));
            let known = refusals.and_then(|refusals| refusals.known(batch.seq, number, of_record.keyless));
            let size = || alone_in_batch(record.key, view.headers(record), record.value_len());
            let mut refused = match (group, known, rules.refuse(of_record.keyless, size)) {
                (Some(_), ..) => group,
                (None, Some(refusal), _) => Some((RefusedBy::Broker, refusal)),
                // The rules may have changed since, and a record that fits must not be diverted.
                (None, None, Some(_)) if clock::since(self.connected_at) >= RULES_LAST => {
                    return Err(Stop::Again);
                }
                (None, None, Some(refusal)) => Some((RefusedBy::Topic, refusal)),
                (None, None, None) => None,
            };
            if refused.is_none() {
                let outgoing = Outgoing {
                    topic,
                    key: record.key,
                    headers: &headers,
                    value,
                };
                match broker.send(outgoing, deadline) {
                    Ok(()) => sent.records.push(of_record),
                    Err(DeliveryError::TooLarge) if self.options.stream.is_grouped() => {
                        // Records of the group may be on their way to the topic. The transaction is made anew without them.
                        let end = batch.end().seq;
                        let refusals = self.refusals.get_or_insert_with(|| Refusals::until(end));
                        refusals.until = refusals.until.max(end);
                        refusals.refuse(of_record, Refusal::TooLarge);
                        return Err(Stop::Again);
                    }
                    Err(DeliveryError::TooLarge) => refused = Some((RefusedBy::Client, Refusal::TooLarge)),
                    Err(error) => return Err(error.into()),
                }
            }
            let Some((by, refusal)) = refused else {
                continue;
            };
            if self.options.stream == Stream::DeadLetters {
                return Err(dead_letter_refused(self.options.stream, topic, refusal).into());
            }
            warn!(
                stream = %self.options.stream, batch = batch.seq.0, index = number, topic, ?refusal, ?by,
                "the topic can't take a record; it goes to the dead-letter topic"
            );
            let letter = dead_letter(refusal, topic, &headers, view, record.key, value);
            send_letter(
                broker,
                &self.options,
                refusals,
                &letter,
                of_record,
                sent,
                deadline,
            )?;
            sent.diverted.push(Failure {
                reason: refusal.reason(),
                index: Some(number),
            });
        }
        Ok(())
    }

    /// Takes note of what the broker took of a transaction that ran out of time, one record per request. Returns whether it took
    /// anything, so that the next transaction asks about less.
    pub(super) fn learn(&mut self, sent: &InFlight) -> bool {
        let taken = self.broker.as_ref().map(C::Broker::taken).unwrap_or_default();
        let Some(refusals) = self.refusals.as_mut().filter(|_| !taken.is_empty()) else {
            return false;
        };
        for record in taken.iter().filter_map(|number| sent.records.get(*number)) {
            refusals.take(*record);
        }
        info!(
            stream = %self.options.stream, topic = self.options.topic, records = taken.len(),
            "the time for a transaction is over before each record has had a request of its own; the next one asks about the others"
        );
        true
    }

    /// Decides what to do after a refusal: rule 4.
    pub(super) fn refused(&mut self, sent: &InFlight, refused: &RefusedRecords) -> Stop {
        let record = |(number, refusal): &(usize, Refusal)| Some((*sent.records.get(*number)?, *refusal));
        let records: Vec<(SentRecord, Refusal)> = refused.records.iter().filter_map(record).collect();
        let letter = records.iter().find(|(record, _)| record.part.is_some());
        if self.options.stream == Stream::DeadLetters {
            let refusal = records.first().map_or(Refusal::Invalid, |(_, refusal)| *refusal);
            return dead_letter_refused(Stream::DeadLetters, &self.options.topic, refusal).into();
        }
        if let (true, Some((_, refusal))) = (refused.named, letter) {
            return dead_letter_refused(self.options.stream, &self.options.dead_letter_topic, *refusal)
                .into();
        }
        if self.mode == Mode::OneByOne && !refused.named {
            return BrokerError::unnamed_refusal().into();
        }
        let touched = sent.touched();
        let refusals = self.refusals.get_or_insert_with(|| Refusals::until(touched));
        refusals.until = refusals.until.max(touched);
        for record in refused.delivered.iter().filter_map(|n| sent.records.get(*n)) {
            refusals.deliver(*record);
        }
        let rules_are_new = clock::since(self.connected_at) < RULES_LAST;
        if refused.named {
            for (record, refusal) in &records {
                refusals.refuse(*record, *refusal);
            }
        } else if rules_are_new {
            let batches = records.iter().map(|(record, _)| record.batch);
            let first = batches.clone().min().unwrap_or(sent.first());
            let last = batches.max().map_or(touched, |last| Seq(last.0 + 1));
            refusals.ask_one_by_one(first..last);
        }
        info!(
            stream = %self.options.stream, topic = self.options.topic, records = records.len(), named = refused.named,
            "the broker refused records; the range is sent again without them"
        );
        Stop::Paced(self.pace.wait())
    }
}

/// Why a group is diverted as a whole: one of its records is known to be refused.
fn refusal_in(
    view: &BatchView<'_>,
    batch: Seq,
    refusals: Option<&Refusals>,
    rules: TopicRules,
) -> Option<(RefusedBy, Refusal)> {
    if let Some(known) = refusals.and_then(|refusals| refusals.known_in(batch)) {
        return Some((RefusedBy::Broker, known));
    }
    let refusal = view.records.iter().find_map(|record| {
        let size = || alone_in_batch(record.key, view.headers(record), record.value_len());
        rules.refuse(record.key.is_none(), size)
    });
    refusal.map(|refusal| (RefusedBy::Topic, refusal))
}

/// Sends the dead letter of a record, except the parts that are delivered already.
fn send_letter(
    broker: &mut impl Broker,
    options: &LaneOptions,
    refusals: Option<&Refusals>,
    letter: &DeadLetter<'_>,
    of_record: SentRecord,
    sent: &mut InFlight,
    deadline: Instant,
) -> Result<(), Stop> {
    let topic = &options.dead_letter_topic;
    let limit = broker.rules(topic).max_bytes.unwrap_or(usize::MAX);
    let records = letter.records(limit.min(options.max_record_bytes));
    for (part, record) in records.iter().enumerate() {
        let of_letter = SentRecord {
            part: Some(part),
            keyless: record.key.is_none(),
            ..of_record
        };
        if refusals.is_some_and(|refusals| refusals.is_delivered(&of_letter)) {
            continue;
        }
        if refusals.is_some_and(|refusals| refusals.is_taken(&of_letter)) {
            sent.only_asks = true;
            continue;
        }
        let outgoing = Outgoing {
            topic,
            key: record.key,
            headers: &record.headers(),
            value: record.value,
        };
        match broker.send(outgoing, deadline) {
            Ok(()) => sent.records.push(of_letter),
            Err(DeliveryError::TooLarge) => {
                return Err(dead_letter_refused(options.stream, topic, Refusal::TooLarge).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
