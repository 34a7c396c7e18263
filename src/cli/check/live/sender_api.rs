//! Asks the sender's Web API for a page of each composition's deliveries, as `reconcile` would, but each only once.

use std::io::Write;

use jiff::{Timestamp, civil::Time};

use super::report::{Level, LiveReport};
use crate::{
    cli::exit::Exit,
    config::Config,
    plain::visible,
    sender_api::{ApiError, Question, SenderApi, Span},
    stream::Stream,
};

/// Prints a line for each composition, if there is an account.
///
/// # Errors
/// The output can't be written, or there is no runtime.
pub fn look(config: &Config, report: &mut LiveReport<'_, impl Write>) -> Result<(), Exit> {
    if config.sender_api.account.is_none() {
        return Ok(());
    }
    let mut api = match SenderApi::new(&config.sender_api) {
        Ok(api) => api.without_repeats(),
        Err(error) => return Ok(report.line(Level::Fail, "sender API", &error.to_string())?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let compositions = &config.sender_api.server_compositions;
    if compositions.is_empty() {
        let text = "not asked: sender_api.server_compositions names none. Name those whose events reconcile is to compare";
        report.line(Level::Warn, "sender API", text)?;
    }
    for composition in compositions {
        let zone = &config.ingest.time_zone;
        let zone = config.ingest.time_zones.get(composition).unwrap_or(zone);
        let today = zone.to_datetime(Timestamp::now()).date();
        let question = Question {
            stream: Stream::Deliveries,
            composition,
            begin: today.yesterday().unwrap_or(today).to_datetime(Time::midnight()),
            span: Span::Hour,
        };
        let answer = runtime.block_on(api.page(question, 0));
        let subject = format!("sender API ({})", visible(composition));
        match answer {
            Ok(_) => report.line(Level::Ok, &subject, &format!("answers {}", api.url("deliveries")))?,
            Err(error) => {
                report.line(Level::Fail, &subject, &error.to_string())?;
                // Every composition would fail in the same way, and perhaps as slowly.
                if let ApiError::Unavailable { .. } = error {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}
