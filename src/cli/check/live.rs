//! `check --live`: asks Kafka, the disk and the sender's Web API without changing anything.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`disk`] | measures the disk |
//! | [`kafka`] | asks Kafka for brokers, topics and rights |
//! | [`report`] | the lines: ok, warn, FAIL |
//! | [`sender_api`] | asks the sender's Web API |
//! | [`spool`] | judges the spool's disk |

mod disk;
mod kafka;
mod report;
mod sender_api;
mod spool;

use std::io::Write;

use self::report::LiveReport;
use crate::{cli::exit::Exit, config::Config, stream::Stream};

/// Asks and prints, for the streams that `serve` would deliver.
///
/// # Errors
/// 69: at least one line is FAIL.
pub fn run(config: &Config, streams: &[Stream], out: &mut impl Write) -> Result<(), Exit> {
    let mut report = LiveReport::new(out);
    spool::look(config, streams.len(), &mut report)?;
    kafka::look(config, streams, &mut report)?;
    sender_api::look(config, &mut report)?;
    let (warnings, failures) = (report.warnings, report.failures);
    match failures {
        0 => {
            writeln!(out, "ready to serve ({warnings} warnings)")?;
            Ok(out.flush()?)
        }
        _ => Err(Exit::Unavailable(format!(
            "{failures} FAIL, {warnings} warn: see above for what to do"
        ))),
    }
}
