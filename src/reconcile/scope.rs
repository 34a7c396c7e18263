//! What is compared: days, compositions, streams; and of the days the hours that are over for long enough.
//!
//! Hours are those of the time zone of `created`, by the clock on the wall. Where that clock shows an hour twice, it is one hour and
//! ends with the second one.

use std::{collections::BTreeMap, ops::Range};

use jiff::{
    SignedDuration, Span, Timestamp,
    civil::{Date, DateTime, Time},
    tz::TimeZone,
};
use thiserror::Error;

use crate::stream::Stream;

/// The sender keeps events for so many days.
pub const KEPT_DAYS: i32 = 40;
/// Events that were created this many hours before or after the days can be near misses. No two time zones differ more.
const AROUND: i32 = 14;
/// Hours of a day, by the clock on the wall.
const HOURS: usize = 24;
/// The records of an event are read from so long before the first hour on. The clocks of sender and bridge may differ by that.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// What is compared.
#[derive(Clone, Debug)]
pub struct Scope {
    from: Date,
    to: Date,
    compositions: Vec<(String, TimeZone)>,
    streams: Vec<Stream>,
    /// Hours that ended later don't count.
    settled: Timestamp,
}

/// An hour of one composition and stream.
#[derive(Clone, Copy, Debug)]
pub struct Hour {
    /// The index of its composition.
    pub composition: u8,
    pub stream: Stream,
    pub slot: u16,
    /// By the clock of its composition's zone.
    pub begin: DateTime,
}

/// A day of a composition's deliveries, all of whose hours count.
#[derive(Clone, Debug)]
pub struct WholeDay {
    /// The index of its composition.
    pub composition: u8,
    pub day: Date,
    pub slots: Range<u16>,
}

/// Why there is nothing to compare.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScopeError {
    #[error("--from {from} is after --to {to}")]
    Reversed { from: Date, to: Date },
    #[error("the sender keeps events for {KEPT_DAYS} days; {0} is longer ago")]
    TooOld(Date),
    #[error("{0} is in the future")]
    Future(Date),
    #[error(
        "no server composition is named: give --server-composition, or set sender_api.server_compositions"
    )]
    NoComposition,
    #[error("at most 255 compositions at a time")]
    TooManyCompositions,
    #[error("no hour of these days has been over for long enough (--settle)")]
    TooEarly,
}

impl Scope {
    /// Days from `from` to `to`, both included, and of them the hours that ended more than `settle` ago. The names of compositions
    /// come with their time zones.
    ///
    /// # Errors
    /// There is nothing to compare, or the sender doesn't know it any more.
    pub fn new(
        from: Date,
        to: Date,
        compositions: BTreeMap<String, TimeZone>,
        streams: Vec<Stream>,
        settle: SignedDuration,
    ) -> Result<Scope, ScopeError> {
        let now = Timestamp::now();
        let today = |zone: &TimeZone| zone.to_datetime(now).date();
        if from > to {
            return Err(ScopeError::Reversed { from, to });
        }
        if compositions.is_empty() {
            return Err(ScopeError::NoComposition);
        }
        if compositions.len() > usize::from(u8::MAX) {
            return Err(ScopeError::TooManyCompositions);
        }
        for zone in compositions.values() {
            let today = today(zone);
            if days_between(from, today) > KEPT_DAYS {
                return Err(ScopeError::TooOld(from));
            }
            if to > today {
                return Err(ScopeError::Future(to));
            }
        }
        let settled = now.checked_sub(settle).unwrap_or(now);
        let scope = Scope {
            from,
            to,
            compositions: compositions.into_iter().collect(),
            streams,
            settled,
        };
        if scope.hours().next().is_none() {
            return Err(ScopeError::TooEarly);
        }
        Ok(scope)
    }

    /// The hours that count, by composition, stream and time.
    pub fn hours(&self) -> impl Iterator<Item = Hour> + '_ {
        let compositions = self.compositions.iter().zip(0u8..);
        compositions.flat_map(move |((_, zone), composition)| {
            self.streams.iter().flat_map(move |stream| {
                let slots = AROUND as u16..self.slots() - AROUND as u16;
                slots.filter_map(move |slot| {
                    let begin = self.begin_of(slot)?;
                    let ended = end_of(begin, zone).is_some_and(|end| end <= self.settled);
                    ended.then_some(Hour {
                        composition,
                        stream: *stream,
                        slot,
                        begin,
                    })
                })
            })
        })
    }

    /// The days of deliveries of which every hour counts.
    pub fn whole_days(&self) -> Vec<WholeDay> {
        let mut days: Vec<WholeDay> = Vec::new();
        for hour in self.hours().filter(|hour| hour.stream == Stream::Deliveries) {
            match days.last_mut() {
                Some(day) if (day.composition, day.day) == (hour.composition, hour.begin.date()) => {
                    day.slots.end = hour.slot + 1;
                }
                _ => days.push(WholeDay {
                    composition: hour.composition,
                    day: hour.begin.date(),
                    slots: hour.slot..hour.slot + 1,
                }),
            }
        }
        days.retain(|day| day.slots.len() == HOURS);
        days
    }

    /// How many hours of each stream and composition are not over for long enough.
    pub fn too_early(&self) -> usize {
        let all = usize::from(self.slots()) - 2 * AROUND as usize;
        all * self.streams.len() * self.compositions.len() - self.hours().count()
    }

    /// The name of a composition.
    pub fn composition(&self, index: u8) -> &str {
        self.compositions
            .get(usize::from(index))
            .map_or("", |(name, _)| name)
    }

    /// The index of a composition that is compared.
    pub fn index_of(&self, composition: &str) -> Option<u8> {
        let found = self
            .compositions
            .binary_search_by(|(name, _)| name.as_str().cmp(composition));
        found.ok().map(|index| index as u8)
    }

    /// The number of an hour, counting from the first one around the days; `None` if it is not near them.
    pub fn slot(&self, created: DateTime) -> Option<u16> {
        let days = days_between(self.from, created.date());
        let slot = days * 24 + i32::from(created.hour()) + AROUND;
        u16::try_from(slot).ok().filter(|slot| *slot < self.slots())
    }

    /// The day of an hour.
    pub fn day(&self, slot: u16) -> Option<Date> {
        Some(self.begin_of(slot)?.date())
    }

    /// The time from which records are read: the begin of the first day in the zone where it begins first, less a margin.
    pub fn begin(&self) -> Timestamp {
        let begins = self.compositions.iter().filter_map(|(_, zone)| {
            let begin = zone.to_ambiguous_timestamp(self.from.to_datetime(Time::midnight()));
            begin.earlier().ok()?.checked_sub(MARGIN).ok()
        });
        begins.min().unwrap_or(Timestamp::MIN)
    }

    /// The streams that are compared.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    fn begin_of(&self, slot: u16) -> Option<DateTime> {
        let hours = Span::new().hours(i64::from(slot) - i64::from(AROUND));
        self.from.to_datetime(Time::midnight()).checked_add(hours).ok()
    }

    /// The number of hours in and around the days.
    fn slots(&self) -> u16 {
        // At most 41 days.
        ((days_between(self.from, self.to) + 1) * 24 + 2 * AROUND) as u16
    }
}

/// When an hour is over.
fn end_of(begin: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let end = begin.checked_add(Span::new().hours(1)).ok()?;
    zone.to_ambiguous_timestamp(end).later().ok()
}

fn days_between(from: Date, to: Date) -> i32 {
    (to - from).get_days()
}
