//! Whether replicas hold events that are not in Kafka: asks the admin port of each for `/status.json`.
//!
//! A bridge under load always holds some events, but none for long. So each replica must have delivered what it had received before
//! it was first asked, by its own clock. A log that is not open holds an unknown number of events, and so does a replica that does
//! not answer.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::time::sleep;

use super::{ReconcileOptions, error::ReconcileError, scope::Scope};
use crate::{
    http_client::{Client, Target},
    stream::Stream,
};

/// How long a replica may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before the replicas are asked again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Status {
    at: Time,
    streams: Vec<StreamStatus>,
    unknown_logs: Vec<String>,
}

#[derive(Deserialize)]
struct StreamStatus {
    stream: String,
    log: String,
    backlog: u64,
    oldest: Option<Time>,
}

/// When replicas were first asked, by their addresses and clocks.
type Asked = BTreeMap<String, Time>;

/// A time as a replica writes it: UTC, always with six digits, so that texts compare as times.
type Time = String;

/// Waits until no replica holds an event that it had received before this call.
///
/// # Errors
/// One still does after `options.wait`, or can't be asked.
pub async fn wait(
    options: &ReconcileOptions,
    scope: &Scope,
    stop: &AtomicBool,
    waiting: &mut dyn FnMut(&str),
) -> Result<(), ReconcileError> {
    let deadline = Instant::now() + options.wait;
    let mut asked = Asked::new();
    loop {
        let Some(why) = obstacle(&options.replicas, scope, &mut asked).await else {
            return Ok(());
        };
        if stop.load(Ordering::Relaxed) {
            return Err(ReconcileError::Stopped);
        }
        if Instant::now() >= deadline {
            return Err(ReconcileError::Replica(why));
        }
        waiting(&why);
        sleep(AGAIN).await;
    }
}

/// The first reason to wait.
async fn obstacle(replicas: &[Target], scope: &Scope, asked: &mut Asked) -> Option<String> {
    for replica in replicas {
        let url = replica.url();
        let addresses = match replica.everywhere().await {
            Ok(addresses) if addresses.is_empty() => return Some(format!("replica {url} has no address")),
            Ok(addresses) => addresses,
            Err(error) => return Some(format!("replica {url} can't be found: {error}")),
        };
        for target in addresses {
            let at = format!("replica {url} ({})", target.address);
            let mut client = Client::new(target.with_path("/status.json"), None);
            let why = match client.get(PATIENCE).await {
                Err(error) => Some(format!("can't be asked: {error}")),
                Ok(reply) if reply.status != hyper::StatusCode::OK => {
                    Some(format!("answers /status.json with {}", reply.status))
                }
                Ok(reply) => match serde_json::from_str::<Status>(&reply.text) {
                    Ok(status) => {
                        let since = asked
                            .entry(target.address.clone())
                            .or_insert_with(|| status.at.clone());
                        held(&status, scope.streams(), since)
                    }
                    Err(error) => Some(format!("answers /status.json with something else: {error}")),
                },
            };
            if let Some(why) = why {
                return Some(format!("{at} {why}"));
            }
        }
    }
    None
}

/// What a replica may hold of these streams that it had received before `since`.
fn held(status: &Status, streams: &[Stream], since: &str) -> Option<String> {
    if let Some(log) = status.unknown_logs.first() {
        return Some(format!("has a log that its version doesn't know: {log}"));
    }
    let concerns = |stream: Stream| {
        status
            .streams
            .iter()
            .find(move |found| found.stream == stream.name())
    };
    for stream in streams {
        // A disabled stream with an empty log has no lane.
        let Some(found) = concerns(*stream) else {
            continue;
        };
        if ["not_open", "unreadable", "failed"].contains(&found.log.as_str()) {
            return Some(format!(
                "has a log of {stream} whose contents are unknown ({})",
                found.log
            ));
        }
        let is_later = found.oldest.as_deref().is_some_and(|oldest| oldest >= since);
        if found.backlog > 0 && !is_later {
            return Some(format!(
                "holds {} events of {stream} that are not in Kafka",
                found.backlog
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::rfc3339_micros;

    #[test]
    fn old_events_and_unknown_logs_are_obstacles() {
        let [before, since, after] = [10, 20, 30].map(|second| rfc3339_micros(second * 1_000_000));
        let status = |log: &str, backlog: u64, oldest: Option<&String>, unknown: &[&str]| Status {
            at: after.clone(),
            streams: vec![StreamStatus {
                stream: "deliveries".to_owned(),
                log: log.to_owned(),
                backlog,
                oldest: oldest.cloned(),
            }],
            unknown_logs: unknown.iter().map(|name| (*name).to_owned()).collect(),
        };
        for (status, obstacle) in [
            (status("accepting", 0, None, &[]), false),
            (status("full", 9, Some(&before), &[]), true),
            (status("accepting", 9, None, &[]), true),
            (status("accepting", 9, Some(&after), &[]), false),
            (status("disabled", 9, Some(&before), &[]), true),
            (status("not_open", 0, None, &[]), true),
            (status("unreadable", 0, None, &[]), true),
            (status("failed", 0, None, &[]), true),
            (status("accepting", 0, None, &["openings"]), true),
        ] {
            assert_eq!(held(&status, &[Stream::Deliveries], &since).is_some(), obstacle);
            let other = held(&status, &[Stream::Bounces], &since);
            assert_eq!(other.is_some(), !status.unknown_logs.is_empty());
        }
    }
}
