//! Days of deliveries that are finished by the sender's own counts, without reading their rows.
//!
//! The sender counts the mails of a day that were queued, succeeded and failed. A day *agrees* if the topic has as many events of each
//! of these statuses, none of an undocumented one, and none twice. Deferred deliveries are in no count, so their rows are read even
//! then. Nor are bounces, whose rows are always read.
//!
//! Equal counts prove less than equal rows: an event that is missing goes unnoticed if another one of the same day and status is on
//! the topic and unknown to the sender. Whatever else makes counts differ (another zone, another meaning of a count, an event that
//! the topic has twice) only leads to reading the rows.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use tokio::runtime::Runtime;

use super::{
    error::ReconcileError,
    ledger::Ledger,
    scope::{Scope, WholeDay},
};
use crate::{
    sender_api::{ApiError, COUNTED, SenderApi},
    stream::{Stream, Tally},
};

/// The one status of deliveries that is in no count.
pub const UNCOUNTED: &str = "deferred";

/// What the counts say.
#[derive(Debug, Default)]
pub struct Agreement {
    /// The days that agree, with the number of their counted events.
    pub days: Vec<(WholeDay, u64)>,
    /// Why the sender gives no counts.
    pub unusable: Option<String>,
}

impl Agreement {
    /// Asks for the counts of all days of the scope.
    ///
    /// # Errors
    /// The sender is not available, or it was stopped. A refusal is no error: the rows are read.
    pub fn find(
        api: &mut SenderApi<'_>,
        runtime: &Runtime,
        stop: &AtomicBool,
        scope: &Scope,
        ledger: &Ledger,
    ) -> Result<Agreement, ReconcileError> {
        let mut found = Agreement::default();
        let mut months = BTreeMap::new();
        let tallies = ledger.tallies();
        for day in scope.whole_days() {
            if stop.load(Ordering::Relaxed) {
                return Err(ReconcileError::Stopped);
            }
            let month = (day.composition, day.day.first_of_month());
            let counts = match months.entry(month) {
                std::collections::btree_map::Entry::Occupied(counts) => counts.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let asked = api.counts(scope.composition(day.composition), day.day);
                    let counts = runtime.block_on(asked);
                    place.insert(match counts {
                        Ok(counts) => counts,
                        Err(error @ (ApiError::Refused { .. } | ApiError::NotUnderstood { .. })) => {
                            found.unusable = Some(error.to_string());
                            Vec::new()
                        }
                        Err(error) => return Err(error.into()),
                    })
                }
            };
            let mut of_day = counts.iter().filter(|counts| counts.day == day.day);
            if let (Some(counts), None) = (of_day.next(), of_day.next())
                && let Some(tally) = of_whole(&day, &tallies)
                && agree(&counts.counts, &tally)
            {
                found.days.push((day, counts.counts.iter().sum()));
            }
        }
        Ok(found)
    }
}

/// The sum of a day's slots; `None` if an event is there twice.
fn of_whole(day: &WholeDay, tallies: &BTreeMap<(u8, u16), Option<Tally>>) -> Option<Tally> {
    let mut sum = Tally::default();
    let slots = day.slots.clone();
    for tally in slots.filter_map(|slot| tallies.get(&(day.composition, slot))) {
        sum.add(tally.as_ref()?);
    }
    Some(sum)
}

fn agree(counts: &[u64; COUNTED.len()], tally: &Tally) -> bool {
    let known = Stream::Deliveries.statuses();
    let of = |status: &str| u64::from(tally.counts()[Stream::Deliveries.status_index(Some(status))]);
    let others: u64 = known
        .iter()
        .filter(|status| !COUNTED.contains(status) && **status != UNCOUNTED)
        .map(|status| of(status))
        .sum();
    others == 0 && COUNTED.map(of) == *counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counted_status_must_agree_and_no_other_be_there() {
        let tally = |statuses: &[&str]| {
            let mut tally = Tally::default();
            for status in statuses {
                tally.count(Stream::Deliveries, Some(status));
            }
            tally
        };
        let day = ["queued", "queued", "succeeded", "failed", "deferred"];
        assert!(agree(&[2, 1, 1], &tally(&day)));
        assert!(agree(&[0, 0, 0], &tally(&[])));
        for counts in [[1, 1, 1], [2, 2, 1], [2, 1, 0], [2, 0, 2]] {
            assert!(!agree(&counts, &tally(&day)), "{counts:?}");
        }
        assert!(!agree(&[2, 1, 1], &tally(&[&day[..], &["lost"]].concat())));
    }
}
