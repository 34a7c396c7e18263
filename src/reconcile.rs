//! Adds to the topics what the sender has and they lack.
//!
//! The sender posts each webhook once, as far as anyone knows. What it posted while no bridge could be reached is on no topic, and no
//! receiver can tell. But its Web API lists the events of the last 40 days. A reconciliation compares that list with the topics:
//!
//! 1. It chooses [hours](scope): whole ones that ended more than `settle` ago, when their webhooks had long arrived.
//! 2. It waits until each [replica](replicas) has delivered what it had received before.
//! 3. Its producer begins, which shuts out every other reconciliation and ends its open transaction. Only then are the ends of the
//!    topics read.
//! 4. It reads the [topics] and keeps a fingerprint of each event in a [ledger].
//! 5. It asks for the sender's [counts] of each day: deliveries whose counts agree with the topic are not read, except when it is
//!    to be thorough. It [reads each other hour](hour) until two reads agree, and takes each row's event out of the ledger. A row
//!    without one is a *hole*. An hour whose reads never agree is unsettled, and adds nothing.
//! 6. It waits for the replicas again and reads what has come to the topics meanwhile, which may fill holes.
//! 7. A hole whose mail and status the ledger still has, in an event that the sender doesn't know, is a *near miss*: perhaps the same
//!    event in another form. It is listed and not added, unless the operator says so.
//! 8. It [adds](add) the other holes, in transactions.
//!
//! So the topics are the only state. A reconciliation that is killed, run again or run twice at a time adds each event once. Events
//! are compared as multisets: what the sender has twice is on the topics twice.
//!
//! It can't know of a webhook that arrives, or is sent again, later than `settle` after its hour, or of a spool that no replica it
//! asked has. Such an event would be on the topic twice, with two different `ce_id`s.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`scope`] | the days, hours, compositions and streams that are compared |
//! | [`replicas`] | whether replicas hold events that are not in Kafka |
//! | [`topics`] | reads the topics, and refuses those that have forgotten the days |
//! | [`counts`] | days that are finished by the sender's counts |
//! | [`ledger`] | fingerprints of the events on the topics |
//! | [`hour`] | reads an hour from the sender until two reads agree |
//! | [`add`] | adds holes in transactions |
//! | [`outcome`] | what was found and done |
//! | [`error`] | why it ends early |

mod add;
mod counts;
mod error;
mod hour;
mod ledger;
mod outcome;
mod replicas;
mod scope;
mod topics;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jiff::{Timestamp, civil::Time};
use tokio::runtime::Runtime;

use self::{
    counts::Agreement,
    hour::{HourReader, Reading},
    ledger::Ledger,
    scope::Hour,
    topics::TopicSet,
};
pub use self::{
    error::ReconcileError,
    hour::{Fate, Hole},
    outcome::{Cell, CellKey, Outcome},
    scope::Scope,
};
use crate::{
    config::Config,
    http_client::Target,
    kafka::tool_producer::ToolProducer,
    sender_api::{Question, SenderApi, Span},
    stream::Stream,
};

/// How to reconcile.
#[derive(Clone, Debug)]
pub struct ReconcileOptions {
    /// Finds holes and adds nothing.
    pub dry_run: bool,
    /// Adds near misses, too.
    pub add_near: bool,
    /// Reads the rows of every day, also where the sender's counts agree with the topics.
    pub thorough: bool,
    /// Reads the topics from their beginning.
    pub read_all: bool,
    /// The admin ports of all replicas.
    pub replicas: Vec<Target>,
    /// How long to wait for replicas.
    pub wait: Duration,
    /// Maximum number of holes.
    pub most: usize,
}

/// What a reconciliation is doing.
#[derive(Clone, Copy, Debug)]
pub enum Step<'s> {
    /// It waits for a replica, for this reason.
    Waiting(&'s str),
    /// It has read so many of so many records.
    Topics { done: u64, total: u64 },
    /// It has read so many of so many hours from the sender.
    Hours { done: u64, total: u64 },
}

/// Reconciles.
///
/// # Errors
/// See [`ReconcileError`]. Nothing was added, unless the error says so.
pub fn reconcile(
    config: &Config,
    scope: &Scope,
    options: &ReconcileOptions,
    runtime: &Runtime,
    stop: &AtomicBool,
    report: &mut dyn FnMut(Step<'_>),
) -> Result<Outcome, ReconcileError> {
    let mut api = SenderApi::new(&config.sender_api)?;
    let wait = |report: &mut dyn FnMut(Step<'_>)| {
        runtime.block_on(replicas::wait(options, scope, stop, &mut |why| {
            report(Step::Waiting(why));
        }))
    };
    wait(report)?;
    let mut topics = TopicSet::open(config, scope, runtime.handle())?;
    let mut producer = match options.dry_run {
        true => None,
        false => {
            let id = format!("{}.reconcile", config.kafka.id_prefix);
            let names: Vec<&str> = topics.names().collect();
            Some(ToolProducer::begin(
                topics.reader(),
                id,
                &names,
                runtime.handle(),
            )?)
        }
    };
    topics.refuse_forgetful(scope)?;
    let mut ledger = Ledger::default();
    topics.read(scope, options, &mut ledger, stop, report)?;

    let mut outcome = Outcome::new(scope);
    let mut hours: Vec<Hour> = scope.hours().collect();
    let mut holes: Vec<Hole> = Vec::new();
    let mut examined = BTreeSet::new();
    let agreement = match options.thorough {
        true => Agreement::default(),
        false => Agreement::find(&mut api, runtime, stop, scope, &ledger)?,
    };
    outcome.no_counts = agreement.unusable;
    let mut reader = HourReader::new(&mut api, runtime, stop, options.most);
    for (day, counted) in agreement.days {
        let key = CellKey {
            day: day.day,
            composition: day.composition,
            stream: Stream::Deliveries,
        };
        let question = Question {
            stream: Stream::Deliveries,
            composition: scope.composition(day.composition),
            begin: day.day.to_datetime(Time::midnight()),
            span: Span::DayWithStatus(counts::UNCOUNTED),
        };
        // Anything unexpected: its hours are read.
        let Reading::Settled {
            rows, holes: found, ..
        } = reader.read(question, key, &mut ledger)?
        else {
            continue;
        };
        hours.retain(|hour| CellKey::of(hour) != key);
        ledger.take_counted(day.composition, &day.slots);
        let cell = outcome.cell(key);
        cell.sender += counted + rows;
        cell.counted += counted;
        for slot in day.slots {
            examined.insert((day.composition, Stream::Deliveries, slot));
        }
        holes.extend(found);
    }
    let total = hours.len() as u64;
    for (done, hour) in hours.iter().enumerate() {
        report(Step::Hours {
            done: done as u64,
            total,
        });
        let question = Question {
            stream: hour.stream,
            composition: scope.composition(hour.composition),
            begin: hour.begin,
            span: Span::Hour,
        };
        match reader.read(question, CellKey::of(hour), &mut ledger)? {
            Reading::Settled {
                rows,
                elsewhere,
                holes: found,
            } => {
                outcome.cell(CellKey::of(hour)).sender += rows;
                outcome.elsewhere += elsewhere;
                examined.insert((hour.composition, hour.stream, hour.slot));
                holes.extend(found);
            }
            Reading::Unsettled => {
                outcome.cell(CellKey::of(hour)).unsettled += 1;
            }
        }
    }
    if !holes.is_empty() {
        wait(report)?;
    }
    // What has come meanwhile may fill holes.
    topics.read(scope, options, &mut ledger, stop, report)?;
    topics.refuse_forgetful(scope)?;
    holes.retain(|hole| {
        let filled = ledger
            .take(hole.row.id)
            .or_else(|| ledger.take(hole.row.version_1));
        filled.is_none()
    });
    outcome.count_topics(scope, &ledger, &examined);
    mark_near_misses(&mut holes, &ledger, options.add_near);
    if stop.load(Ordering::Relaxed) {
        return Err(ReconcileError::Stopped);
    }
    let read_at = Timestamp::now().as_microsecond();
    add::add(
        config,
        scope,
        &mut holes,
        read_at,
        producer.as_mut(),
        topics.reader(),
    )?;
    outcome.count_holes(holes);
    Ok(outcome)
}

/// Finds the holes that may be on a topic in another form.
fn mark_near_misses(holes: &mut [Hole], ledger: &Ledger, add_near: bool) {
    let wanted: BTreeSet<u64> = holes.iter().map(|hole| hole.row.kin).collect();
    let kin: BTreeMap<u64, u64> = ledger.left_kin(&wanted);
    for hole in holes {
        if kin.contains_key(&hole.row.kin) {
            hole.fate = match add_near {
                true => Fate::NearToAdd,
                false => Fate::Near,
            };
        }
    }
}
