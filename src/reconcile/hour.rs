//! Reads an hour, or a day's deferred deliveries, from the sender until two reads agree.
//!
//! The sender doesn't say in which order rows come. If rows are added while pages are read, a row may come twice or not at all. So the
//! whole hour is read again until two reads in a row have the same rows, in whatever order.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Runtime;

use super::{error::ReconcileError, ledger::Ledger, outcome::CellKey};
use crate::{
    cmc::Row,
    sender_api::{ApiError, Question, SenderApi, Span},
};

/// An hour that has not settled after so many reads is given up.
const READS: usize = 6;
/// Maximum number of pages: ten million rows. A server that ignores the page would answer for ever.
const PAGES: usize = 100_000;

/// An event that the sender has and the topics lack.
#[derive(Clone, Debug)]
pub struct Hole {
    pub key: CellKey,
    pub row: Row,
    /// As the sender gave it.
    pub text: Box<str>,
    pub fate: Fate,
}

/// What becomes of a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is to be added.
    ToAdd,
    /// A topic has an event of the same mail and status that the sender doesn't know.
    Near,
    /// The same, but it is to be added.
    NearToAdd,
    /// It can't become an event, for this reason.
    Unfit(&'static str),
    Added,
}

/// An hour as it was read.
pub enum Reading {
    Settled {
        rows: u64,
        /// Rows whose `created` names another hour, or no time. They count only there: a sender that lists a row under two hours
        /// must not make it two events.
        elsewhere: u64,
        holes: Vec<Hole>,
    },
    Unsettled,
}

/// Reads hours.
pub struct HourReader<'a, 'c> {
    api: &'a mut SenderApi<'c>,
    runtime: &'a Runtime,
    stop: &'a AtomicBool,
    /// The limit on holes, and how many there are.
    most: usize,
    found: usize,
}

/// The rows of one read: their number and the sum of their ids. Equal rows in any order have equal sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    rows: u64,
    sum: u128,
}

impl Digest {
    fn add(&mut self, row: &Row) {
        self.add_all(Digest {
            rows: 1,
            sum: row.id.as_u128(),
        });
    }

    fn add_all(&mut self, other: Digest) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// Whether a row is one that was asked for.
fn belongs(row: &Row, question: Question<'_>) -> bool {
    let begin = question.begin;
    row.created.is_some_and(|created| {
        created.date() == begin.date()
            && match question.span {
                Span::Hour => created.hour() == begin.hour(),
                Span::DayWithStatus(status) => question.stream.status_index(Some(status)) == row.status,
            }
    })
}

impl<'a, 'c> HourReader<'a, 'c> {
    /// A reader. `stop` ends it early, and so do more holes than `most`.
    pub fn new(api: &'a mut SenderApi<'c>, runtime: &'a Runtime, stop: &'a AtomicBool, most: usize) -> Self {
        HourReader {
            api,
            runtime,
            stop,
            most,
            found: 0,
        }
    }

    /// Reads an hour and takes its events out of the ledger; of an unsettled one, none.
    ///
    /// # Errors
    /// The sender is not available, there are too many holes, or it was stopped.
    pub fn read(
        &mut self,
        question: Question<'_>,
        key: CellKey,
        ledger: &mut Ledger,
    ) -> Result<Reading, ReconcileError> {
        let mut before = None;
        for _ in 0..READS {
            let mut digest = Digest::default();
            let (mut taken, mut holes, mut elsewhere) = (Vec::new(), Vec::new(), 0);
            let (mut last_page, mut is_usable) = (Digest::default(), true);
            for page in 0.. {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ReconcileError::Stopped);
                }
                if page == PAGES {
                    let url = self.api.url(question.stream.name());
                    let why = format!("there are more than {PAGES} pages");
                    return Err(ApiError::NotUnderstood { url, why }.into());
                }
                let rows = self.runtime.block_on(self.api.page(question, page))?;
                if rows.is_empty() {
                    break;
                }
                let mut this_page = Digest::default();
                for text in rows {
                    let row = Row::read(question.stream, question.composition, text.get());
                    this_page.add(&row);
                    if !belongs(&row, question) {
                        elsewhere += 1;
                        continue;
                    }
                    // The version of most consoles first: that match is exact.
                    match ledger.take(row.id).or_else(|| ledger.take(row.version_1)) {
                        Some(place) => taken.push(place),
                        None => holes.push(Hole {
                            key,
                            row,
                            text: text.get().into(),
                            fate: Fate::ToAdd,
                        }),
                    }
                    if self.found + holes.len() > self.most {
                        return Err(ReconcileError::TooMany(self.most));
                    }
                }
                // So many rows were added, or the server ignores the page.
                if this_page == last_page {
                    is_usable = false;
                    break;
                }
                digest.add_all(this_page);
                last_page = this_page;
            }
            // A server that ignores the status gives other rows, too.
            is_usable &= question.span == Span::Hour || elsewhere == 0;
            if before == Some(digest) && is_usable {
                self.found += holes.len();
                return Ok(Reading::Settled {
                    rows: digest.rows - elsewhere,
                    elsewhere,
                    holes,
                });
            }
            before = Some(digest);
            taken.into_iter().for_each(|place| ledger.give_back(place));
        }
        Ok(Reading::Unsettled)
    }
}
