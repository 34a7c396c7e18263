//! Judges the spool's disk by what [`disk`] measures.

use std::{io::Write, path::Path, time::Duration};

use super::{
    disk,
    report::{Level, LiveReport},
};
use crate::{
    cli::check::directory::{Directory, existing_parent},
    config::Config,
    human,
    spool::Durability,
};

/// A webhook waits for one or two syncs; above this, a sender may not wait for its answer.
const SLOW_SYNC: Duration = Duration::from_millis(100);
/// No device syncs this fast and keeps its promise.
const TOO_QUICK: Duration = Duration::from_micros(5);

/// Prints the lines for a disk that must hold the logs of `streams` streams.
///
/// # Errors
/// The output can't be written.
pub fn look(config: &Config, streams: usize, report: &mut LiveReport<'_, impl Write>) -> std::io::Result<()> {
    let subject = format!("spool {}", config.spool.dir.display());
    let dir = match Directory::look(&config.spool.dir) {
        Directory::Unusable(why) => {
            let cure = "set spool.dir to a directory that this user can write to";
            return report.line(Level::Fail, &subject, &format!("{why}; {cure}"));
        }
        Directory::Creatable => existing_parent(&config.spool.dir),
        Directory::Ready { .. } => config.spool.dir.clone(),
    };
    if let Some(why) = disk::doubtful_kind(&dir) {
        report.line(Level::Warn, &subject, why)?;
    }
    match disk::sync_times(&dir) {
        Err(error) => {
            let text = format!("can't be written and synced: {error}; serve would end with 74");
            report.line(Level::Fail, &subject, &text)?;
        }
        Ok(times) => {
            let (level, advice) = judge_sync(&times, config);
            let text = format!(
                "writable, fdatasync p50 {} p99 {} ({} syncs of 4 KiB){advice}",
                human::latency(times.p50),
                human::latency(times.p99),
                times.count
            );
            report.line(level, &subject, &text)?;
        }
    }
    room(config, streams as u64, &dir, report)
}

fn judge_sync(times: &disk::SyncTimes, config: &Config) -> (Level, String) {
    if config.spool.durability == Durability::PageCache {
        return (Level::Ok, "; page-cache doesn't wait for syncs".to_owned());
    }
    if times.p50 > config.ingest.append_timeout {
        let limit = human::exact_duration(config.ingest.append_timeout);
        return (
            Level::Fail,
            format!(
                "; webhooks may wait {limit} (ingest.append_timeout) and would be answered 503: use a faster disk"
            ),
        );
    }
    if times.p99 > SLOW_SYNC {
        return (
            Level::Warn,
            "; slow: each answer waits for a sync, which concurrent webhooks share. Use a faster disk if the sender's time-out is short"
                .to_owned(),
        );
    }
    if times.p50 < TOO_QUICK {
        return (
            Level::Warn,
            "; too fast for a device that really syncs: make sure that a sync is durable here".to_owned(),
        );
    }
    (Level::Ok, String::new())
}

fn room(
    config: &Config,
    streams: u64,
    dir: &Path,
    report: &mut LiveReport<'_, impl Write>,
) -> std::io::Result<()> {
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return report.line(Level::Warn, "disk", "doesn't tell its free space");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let (max, segment) = (config.spool.max_bytes, config.spool.segment_bytes);
    let (level, text) = judge_room(free, disk::used(&config.spool.dir), streams, max, segment);
    report.line(level, "disk", &text)
}

fn judge_room(free: u64, used: u64, streams: u64, max: u64, segment: u64) -> (Level, String) {
    let need = max.saturating_add(2 * segment).saturating_mul(streams);
    // A new log has its first segment and a spare.
    let least = segment.saturating_mul(2 * streams);
    let has = format!(
        "{} free, {} used by the spool",
        human::size(free),
        human::size(used)
    );
    let wants = format!(
        "{streams} streams may need {} (spool.max_bytes {} and two segments each)",
        human::size(need),
        human::exact_size(max)
    );
    if free.saturating_add(used) < least {
        let text = format!("{has}; two segments for each of {streams} streams don't fit: make room");
        (Level::Fail, text)
    } else if free.saturating_add(used) < need {
        let text = format!("{has}, but {wants}: lower spool.max_bytes or use a larger volume");
        (Level::Warn, text)
    } else {
        (Level::Ok, format!("{has}; {wants}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn room_for_all_streams() {
        let cases = [
            (13 * GIB, 0, Level::Ok),
            (12 * GIB, 0, Level::Warn),
            // The space that the spool already uses counts as free.
            (5 * GIB, 8 * GIB, Level::Ok),
            (5 * SEGMENT, 0, Level::Fail),
            (5 * SEGMENT, SEGMENT, Level::Warn),
        ];
        for (free, used, level) in cases {
            let (found, text) = judge_room(free, used, 3, 4 * GIB, SEGMENT);
            assert_eq!(found, level, "{text}");
        }
    }

    #[test]
    fn syncs_are_judged_by_what_waits_for_them() {
        let mut config = crate::config::load(&[], std::iter::empty()).unwrap().config;
        let cases = [
            (300, 2_000, Level::Ok),
            (300, 200_000, Level::Warn),
            (1, 2_000, Level::Warn),
            (11_000_000, 12_000_000, Level::Fail),
        ];
        let times = |p50, p99| disk::SyncTimes {
            count: 100,
            p50: Duration::from_micros(p50),
            p99: Duration::from_micros(p99),
        };
        for (p50, p99, level) in cases {
            assert_eq!(judge_sync(&times(p50, p99), &config).0, level, "{p50} {p99}");
        }
        config.spool.durability = Durability::PageCache;
        assert_eq!(judge_sync(&times(11_000_000, 12_000_000), &config).0, Level::Ok);
    }
}
