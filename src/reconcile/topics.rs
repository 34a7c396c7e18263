//! Reads the topics into the ledger, and refuses those that may have forgotten events.
//!
//! A record is sent to Kafka after its event was created, so records from before the days are not read. The records just before that
//! offset are read as well: if one has no timestamp (the bridge sends such records while its clock and Kafka's differ), more of them
//! may hold events of the days, and only reading everything is safe.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use rdkafka::{Message, message::Headers};
use tokio::runtime::Handle;

use super::{
    ReconcileOptions, Step,
    error::ReconcileError,
    ledger::{Ledger, NO_SLOT},
    scope::Scope,
};
use crate::{
    cmc, config::Config, dead_letter::REASON, human, kafka::range_reader::RangeReader, stream::Stream,
};

/// How many offsets before the first timestamp in question are read.
const LOOK_BACK: i64 = 1000;
/// How often progress is reported.
const REPORT_EVERY: u64 = 4096;

/// The topics of the streams that are compared. Two streams may share one.
pub struct TopicSet {
    first: OneTopic,
    second: Option<OneTopic>,
    runtime: Handle,
}

struct OneTopic {
    name: String,
    reader: RangeReader,
    /// Offsets below these have been read.
    read: BTreeMap<i32, i64>,
}

impl TopicSet {
    /// Connects.
    ///
    /// # Errors
    /// The cluster can't be reached, or a topic can't be read.
    pub fn open(config: &Config, scope: &Scope, runtime: &Handle) -> Result<TopicSet, ReconcileError> {
        let group = format!("{}.reconcile", config.kafka.id_prefix);
        let open = |stream| -> Result<OneTopic, ReconcileError> {
            let name = config.stream(stream).topic.clone();
            Ok(OneTopic {
                reader: RangeReader::open(&config.kafka, stream, "reconcile", &group, &name)?,
                name,
                read: BTreeMap::new(),
            })
        };
        let mut streams = scope.streams().iter().copied();
        let first = open(streams.next().unwrap_or(Stream::Deliveries))?;
        let other = streams.find(|stream| config.stream(*stream).topic != first.name);
        Ok(TopicSet {
            first,
            second: other.map(open).transpose()?,
            runtime: runtime.clone(),
        })
    }

    fn all(&self) -> impl Iterator<Item = &OneTopic> {
        std::iter::once(&self.first).chain(&self.second)
    }

    /// The topics' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all().map(|topic| topic.name.as_str())
    }

    /// A reader, for its client.
    pub fn reader(&self) -> &RangeReader {
        &self.first.reader
    }

    /// Refuses a topic that may have deleted or compacted events of the days.
    ///
    /// # Errors
    /// The reason.
    pub fn refuse_forgetful(&self, scope: &Scope) -> Result<(), ReconcileError> {
        for topic in self.all() {
            if let Some(why) = topic.forgetful(scope, &self.runtime)? {
                return Err(ReconcileError::Forgotten(format!("topic {} {why}", topic.name)));
            }
        }
        Ok(())
    }

    /// Reads what has not been read yet, up to the ends of now, into the ledger.
    ///
    /// # Errors
    /// A topic can't be read, its records have no timestamps, or it was stopped.
    pub fn read(
        &mut self,
        scope: &Scope,
        options: &ReconcileOptions,
        ledger: &mut Ledger,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Step<'_>),
    ) -> Result<(), ReconcileError> {
        for topic in std::iter::once(&mut self.first).chain(&mut self.second) {
            topic.read(scope, options, ledger, stop, report)?;
        }
        ledger.seal();
        Ok(())
    }
}

impl OneTopic {
    /// Why the topic may have forgotten events of the days.
    fn forgetful(&self, scope: &Scope, runtime: &Handle) -> Result<Option<String>, ReconcileError> {
        let rules = self.reader.rules(runtime)?;
        if rules.compacted {
            return Ok(Some(
                "is compacted, so it forgets events that later ones of the same mail replace".to_owned(),
            ));
        }
        let begin = scope.begin().as_millisecond();
        let kept = match (rules.retention_ms, rules.retention_bytes) {
            (Some(-1), Some(-1)) => true,
            (Some(millis), Some(-1)) => Timestamp::now().as_millisecond().saturating_sub(millis) < begin,
            _ => false,
        };
        if kept {
            return Ok(None);
        }
        let at = self.reader.offsets_at(begin)?;
        let bounds = self.reader.bounds()?;
        let doubtful = bounds.iter().find(|(partition, (first, end))| {
            let older = match at.get(partition) {
                Some(Some(offset)) => offset > first,
                _ => first < end,
            };
            // Nothing was ever deleted, or something older is still there.
            *first > 0 && !older
        });
        Ok(doubtful.map(|(partition, _)| {
            let retention = match rules.retention_ms {
                Some(millis) if millis >= 0 => format!("retention.ms keeps {}", human::age(millis as u64 / 1000)),
                _ => "its retention is limited or not shown (DESCRIBE_CONFIGS)".to_owned(),
            };
            format!(
                "has deleted records, and the oldest one left in partition {partition} is later than {} ({retention}). Choose later \
                 days",
                scope.begin()
            )
        }))
    }

    fn read(
        &mut self,
        scope: &Scope,
        options: &ReconcileOptions,
        ledger: &mut Ledger,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Step<'_>),
    ) -> Result<(), ReconcileError> {
        let bounds = self.reader.settled_bounds()?;
        let at = self.reader.offsets_at(scope.begin().as_millisecond())?;
        let (mut ranges, mut total) = (BTreeMap::new(), 0);
        for (partition, (first, end)) in bounds {
            let start = match (self.read.get(&partition), at.get(&partition)) {
                (Some(read), _) => *read,
                (None, _) if options.read_all => first,
                (None, Some(Some(offset))) => *offset - LOOK_BACK,
                (None, _) => end - LOOK_BACK,
            };
            let start = start.max(first);
            if start < end {
                ranges.insert(partition, (start, end));
                total += (end - start) as u64;
            }
            self.read.insert(partition, end);
        }
        self.reader.assign(&ranges)?;
        let mut done = 0;
        while !self.reader.at_end() {
            if stop.load(Ordering::Relaxed) {
                return Err(ReconcileError::Stopped);
            }
            let Some(record) = self.reader.poll()? else {
                continue;
            };
            let is_event = note(&record, scope, ledger);
            if is_event && record.timestamp().to_millis().is_none() && !options.read_all {
                return Err(ReconcileError::Forgotten(format!(
                    "topic {} has events without timestamps, so where the days begin on it is not known. Read all of it with \
                     --read-all",
                    self.name
                )));
            }
            done += 1;
            if done % REPORT_EVERY == 0 {
                report(Step::Topics { done, total });
            }
        }
        Ok(())
    }
}

/// Adds a record's event to the ledger if it belongs to the scope. Returns whether the record is an event at all.
fn note(record: &impl Message, scope: &Scope, ledger: &mut Ledger) -> bool {
    let is_letter = |headers: &_| Headers::iter(headers).any(|header| header.key == REASON);
    if record.headers().is_some_and(is_letter) {
        return false;
    }
    let Some(event) = record.payload().and_then(cmc::on_topic) else {
        return false;
    };
    let slot = match event.created {
        None => Some(NO_SLOT),
        Some(created) => scope.slot(created),
    };
    let composition = scope.index_of(&event.composition);
    if let (Some(slot), Some(composition)) = (slot, composition)
        && scope.streams().contains(&event.stream)
    {
        ledger.add(&event, composition, slot);
    }
    true
}
