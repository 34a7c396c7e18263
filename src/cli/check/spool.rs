//! `check --live` of the spool's disk: its lines, from what [`disk`] measures.

use std::{io::Write, path::Path, time::Duration};

use crate::{
    config::{Config, human_duration, human_size},
    spool::Durability,
};

use super::{
    directory::{Directory, existing_parent},
    disk,
    live::{Lines, Verdict},
};

/// A webhook waits for one sync or two; above this, answers are late by what a sender may not wait for.
const SLOW_SYNC: Duration = Duration::from_millis(100);
/// No device that keeps what it is told is as quick.
const TOO_QUICK: Duration = Duration::from_micros(5);

/// Prints what the disk says, which is to hold the logs of so many streams.
pub fn look(config: &Config, streams: usize, lines: &mut Lines<'_, impl Write>) -> std::io::Result<()> {
    let subject = format!("spool {}", config.spool.dir.display());
    let dir = match Directory::look(&config.spool.dir) {
        Directory::Unusable(why) => {
            let cure = "set spool.dir to a directory that this user may write";
            return lines.line(Verdict::Fail, &subject, &format!("{why}; {cure}"));
        }
        Directory::Creatable => existing_parent(&config.spool.dir),
        Directory::Ready { .. } => config.spool.dir.clone(),
    };
    if let Some(why) = disk::doubtful_kind(&dir) {
        lines.line(Verdict::Warn, &subject, why)?;
    }
    match disk::sync_times(&dir) {
        Err(error) => {
            let text = format!("can't be written and synced: {error}; serve would end with 74");
            lines.line(Verdict::Fail, &subject, &text)?;
        }
        Ok(times) => {
            let (verdict, advice) = judge_sync(&times, config);
            let text = format!(
                "writable, fdatasync p50 {} p99 {} ({} syncs of 4 KiB){advice}",
                short(times.p50),
                short(times.p99),
                times.count
            );
            lines.line(verdict, &subject, &text)?;
        }
    }
    room(config, streams as u64, &dir, lines)
}

fn judge_sync(times: &disk::SyncTimes, config: &Config) -> (Verdict, String) {
    if config.spool.durability == Durability::PageCache {
        return (Verdict::Ok, "; page-cache doesn't wait for it".to_owned());
    }
    if times.p50 > config.ingest.append_timeout {
        let limit = human_duration(config.ingest.append_timeout);
        return (
            Verdict::Fail,
            format!(
                "; webhooks may wait {limit} (ingest.append_timeout) and would be answered 503: use a faster disk"
            ),
        );
    }
    if times.p99 > SLOW_SYNC {
        return (
            Verdict::Warn,
            "; slow: each answer waits for a sync, a crowd shares one. Use a faster disk if the sender has a short time-out"
                .to_owned(),
        );
    }
    if times.p50 < TOO_QUICK {
        return (
            Verdict::Warn,
            "; too quick for a device that keeps what it is told: make sure that a sync means something here"
                .to_owned(),
        );
    }
    (Verdict::Ok, String::new())
}

fn room(config: &Config, streams: u64, dir: &Path, lines: &mut Lines<'_, impl Write>) -> std::io::Result<()> {
    let Ok(stat) = rustix::fs::statvfs(dir) else {
        return lines.line(Verdict::Warn, "disk", "does not say how much room it has");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let (max, segment) = (config.spool.max_bytes, config.spool.segment_bytes);
    let (verdict, text) = judge_room(free, disk::used(&config.spool.dir), streams, max, segment);
    lines.line(verdict, "disk", &text)
}

fn judge_room(free: u64, used: u64, streams: u64, max: u64, segment: u64) -> (Verdict, String) {
    let need = max.saturating_add(2 * segment).saturating_mul(streams);
    // A new log begins with one segment, and has the next one ready.
    let least = segment.saturating_mul(2 * streams);
    let has = format!("{} free, {} used by the spool", room_size(free), room_size(used));
    let wants = format!(
        "{streams} streams may need {} (spool.max_bytes {} and two segments each)",
        room_size(need),
        human_size(max)
    );
    if free.saturating_add(used) < least {
        let text = format!("{has}; not even two segments fit for each of {streams} streams: make room");
        (Verdict::Fail, text)
    } else if free.saturating_add(used) < need {
        let text = format!("{has}, but {wants}: lower spool.max_bytes or use a larger volume");
        (Verdict::Warn, text)
    } else {
        (Verdict::Ok, format!("{has}; {wants}"))
    }
}

/// A time for people, with two or three digits.
pub fn short(time: Duration) -> String {
    let micros = time.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn room_size(bytes: u64) -> String {
    match bytes >> 20 {
        mebibytes @ 0..10_240 => format!("{mebibytes} MiB"),
        mebibytes => format!("{} GiB", mebibytes >> 10),
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
            (13 * GIB, 0, Verdict::Ok),
            (12 * GIB, 0, Verdict::Warn),
            // What the spool has already counts as room.
            (5 * GIB, 8 * GIB, Verdict::Ok),
            (5 * SEGMENT, 0, Verdict::Fail),
            (5 * SEGMENT, SEGMENT, Verdict::Warn),
        ];
        for (free, used, verdict) in cases {
            let (found, text) = judge_room(free, used, 3, 4 * GIB, SEGMENT);
            assert_eq!(found, verdict, "{text}");
        }
    }

    #[test]
    fn syncs_are_judged_by_what_waits_for_them() {
        let mut config = crate::config::load(&[], std::iter::empty()).unwrap().config;
        let cases = [
            (300, 2_000, Verdict::Ok),
            (300, 200_000, Verdict::Warn),
            (1, 2_000, Verdict::Warn),
            (11_000_000, 12_000_000, Verdict::Fail),
        ];
        let times = |p50, p99| disk::SyncTimes {
            count: 100,
            p50: Duration::from_micros(p50),
            p99: Duration::from_micros(p99),
        };
        for (p50, p99, verdict) in cases {
            assert_eq!(judge_sync(&times(p50, p99), &config).0, verdict, "{p50} {p99}");
        }
        config.spool.durability = Durability::PageCache;
        assert_eq!(judge_sync(&times(11_000_000, 12_000_000), &config).0, Verdict::Ok);
    }

    #[test]
    fn times_are_short() {
        let cases = [
            (7, "7 µs"),
            (1_540, "1.5 ms"),
            (23_400, "23 ms"),
            (2_340_000, "2.3 s"),
        ];
        for (micros, text) in cases {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
    }
}
