//! `spool ls`: lists segments and the batches that wait.

use std::{io::Write, path::Path};

use clap::Args;
use serde_json::{Value, json};

use super::selection::{LogArgs, UNKNOWN_LOG};
use crate::{
    batch::received_at_micros,
    cli::{exit::Exit, output::Output},
    human,
    leftover::unknown_logs,
    spool::{
        SpoolError, SpoolLock,
        survey::{SegmentFile, Survey, segments},
    },
    stream::Stream,
};

/// The arguments of `spool ls`.
#[derive(Args, Clone, Debug)]
pub struct SpoolLsArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// The contents of one stream's log.
struct Listing {
    stream: Stream,
    segments: Vec<SegmentFile>,
    /// `None` while a bridge has the spool open.
    waiting: Option<Waiting>,
    /// Damaged logs that repairs have set aside.
    aside: Vec<String>,
}

struct Waiting {
    from: u64,
    to: u64,
    events: u64,
    oldest_micros: Option<i64>,
    damage: Vec<String>,
}

/// Lists the spool.
///
/// # Errors
/// 64: there is no spool. 74: a file can't be read.
pub fn run(args: &SpoolLsArgs, out: &mut Output) -> Result<(), Exit> {
    let dir = args.logs.spool.dir()?;
    // Released at once: a bridge that starts now must find it free.
    let open = match SpoolLock::of_existing(&dir) {
        Err(SpoolError::Locked { .. }) => true,
        lock => {
            lock?;
            false
        }
    };
    let mut listings = Vec::new();
    for stream in args.logs.streams(&dir)? {
        let log = dir.join(stream.name());
        listings.push(Listing {
            stream,
            segments: segments(&log)?,
            waiting: if open { None } else { waiting(&log)? },
            aside: aside(&dir, stream)?,
        });
    }
    let unknown = unknown_logs(&dir)?;
    if args.json {
        let document = json!({
            "dir": dir.to_string_lossy(),
            "open": open,
            "streams": listings.iter().map(as_json).collect::<Vec<_>>(),
            "unknown": unknown,
        });
        writeln!(out, "{document}")?;
    } else {
        let note = match open {
            false => "",
            true => "  (a bridge has it open: its /metrics show what waits)",
        };
        writeln!(out, "{}{note}", dir.display())?;
        for listing in &listings {
            as_text(listing, out)?;
        }
        for name in unknown {
            writeln!(out, "\n{name}  {UNKNOWN_LOG}")?;
        }
    }
    Ok(out.flush()?)
}

fn waiting(log: &Path) -> Result<Option<Waiting>, Exit> {
    let Some(mut survey) = Survey::open(log)? else {
        return Ok(None);
    };
    let oldest = survey.next_batch()?;
    let (from, to) = (survey.position(), survey.end());
    Ok(Some(Waiting {
        from: from.seq.0,
        to: to.seq.0,
        events: to.events.saturating_sub(from.events),
        oldest_micros: oldest.and_then(|batch| received_at_micros(&batch.payload)),
        damage: survey.found_at_open().iter().map(ToString::to_string).collect(),
    }))
}

fn aside(dir: &Path, stream: Stream) -> Result<Vec<String>, Exit> {
    let prefix = format!("{}.", stream.name());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn as_text(listing: &Listing, out: &mut impl Write) -> Result<(), Exit> {
    let bytes: u64 = listing.segments.iter().map(|s| s.bytes).sum();
    writeln!(
        out,
        "\n{}  {} in {} segments",
        listing.stream,
        human::exact_size(bytes),
        listing.segments.len()
    )?;
    if let Some(waiting) = &listing.waiting {
        match (waiting.to.saturating_sub(waiting.from), waiting.oldest_micros) {
            (0, _) => writeln!(out, "  nothing waits; the next batch is {}", waiting.to)?,
            (batches, oldest) => writeln!(
                out,
                "  {} events wait in {batches} batches from {} on, the oldest received {}",
                waiting.events,
                waiting.from,
                oldest.map_or_else(|| "?".to_owned(), human::time),
            )?,
        }
        for damage in &waiting.damage {
            writeln!(out, "  DAMAGED: {damage}")?;
        }
    }
    if !listing.segments.is_empty() {
        writeln!(
            out,
            "  {:>8}  {:>12}  {:>14}  {:>10}  began",
            "segment", "first batch", "events before", "size"
        )?;
    }
    for segment in &listing.segments {
        match &segment.header {
            Some(header) => writeln!(
                out,
                "  {:>8}  {:>12}  {:>14}  {:>10}  {}{}",
                segment.id.0,
                header.first_seq.0,
                header.events_before,
                human::exact_size(segment.bytes),
                human::time(header.created_micros),
                if header.after_loss {
                    "  batches before it are lost"
                } else {
                    ""
                }
            )?,
            None => writeln!(
                out,
                "  {:>8}  its header can't be read ({})",
                segment.id.0,
                human::exact_size(segment.bytes)
            )?,
        }
    }
    for name in &listing.aside {
        writeln!(out, "  beside it: {name}")?;
    }
    Ok(())
}

fn as_json(listing: &Listing) -> Value {
    let segments: Vec<Value> = listing
        .segments
        .iter()
        .map(|segment| {
            let header = segment.header.as_ref();
            json!({
                "segment": segment.id.0,
                "bytes": segment.bytes,
                "readable": header.is_some(),
                "first_batch": header.map(|h| h.first_seq.0),
                "events_before": header.map(|h| h.events_before),
                "began": header.map(|h| human::time(h.created_micros)),
                "after_loss": header.map(|h| h.after_loss),
            })
        })
        .collect();
    let waiting = listing.waiting.as_ref().map(|waiting| {
        json!({
            "from_batch": waiting.from,
            "to_batch": waiting.to,
            "events": waiting.events,
            "oldest_received": waiting.oldest_micros.map(human::time),
            "damage": waiting.damage,
        })
    });
    json!({
        "stream": listing.stream.name(),
        "segments": segments,
        "waiting": waiting,
        "beside": listing.aside,
    })
}
