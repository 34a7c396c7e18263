//! `spool repair`: sets damaged parts aside.

use std::io::Write;

use clap::Args;

use super::{
    selection::LogArgs,
    verify::{self, advice},
};
use crate::{
    cli::{exit::Exit, output::Output},
    spool::{
        Damage,
        repair::{Lost, repair},
    },
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
The batches that can be read are written into a new log in the old one's place; they keep their numbers, so that nothing
is delivered twice. The damaged log is kept beside it, as <stream>.damaged-<time>. Without --accept-loss nothing is
changed: what would be lost is printed.";

/// The arguments of `spool repair`.
#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Go on without the batches that can't be read
    #[arg(long)]
    accept_loss: bool,
}

/// Repairs what is damaged.
pub fn run(args: &RepairArgs, out: &mut Output) -> Result<(), Exit> {
    let spool = args.logs.locked()?;
    let mut damaged: Vec<Stream> = Vec::new();
    let (mut undecodable, mut refused, mut lossless) = (0, false, true);
    for survey in spool.surveys() {
        let (stream, mut survey) = survey?;
        let findings = verify::verify(stream, &mut survey)?;
        if !findings.damage.is_empty() {
            damaged.push(stream);
        }
        undecodable += findings.undecodable;
        lossless &= findings.is_lossless();
        refused |= findings.damage.iter().any(Damage::is_refused);
        verify::as_text(&findings, out)?;
    }
    out.flush()?;
    let newer = || match undecodable {
        0 => Ok(()),
        _ => Err(Exit::Data(format!(
            "{undecodable} batches are whole and of a layout that this version doesn't know: nothing to repair, start the \
             version that wrote them"
        ))),
    };
    if damaged.is_empty() {
        return newer();
    }
    if !args.accept_loss && lossless {
        return Err(Exit::Data(format!(
            "nothing was changed. No batch is lost by the damage above; with --accept-loss the logs are written anew from what \
             is whole{}",
            advice(refused)
        )));
    }
    if !args.accept_loss {
        return Err(Exit::Data(format!(
            "nothing was changed. With --accept-loss the batches above are given up, and delivery goes on without them{}",
            advice(refused)
        )));
    }
    let config = args.logs.spool.config()?;
    let now = jiff::Timestamp::now()
        .strftime("damaged-%Y%m%dT%H%M%SZ")
        .to_string();
    for stream in damaged {
        let log = spool.dir.join(stream.name());
        let repaired = repair(&log, &now, config.spool.segment_bytes, config.spool.durability)?;
        let Some(repaired) = repaired else {
            continue;
        };
        writeln!(
            out,
            "repaired {stream}: {} events in {} batches wait; the damaged log is {}",
            repaired.events,
            repaired.batches,
            repaired.aside.display()
        )?;
        for unknown in &repaired.unknown {
            writeln!(out, "         may be lost, and how much can't be told: {unknown}")?;
        }
        if repaired.lost.is_empty() && repaired.unknown.is_empty() {
            writeln!(out, "         no batch is lost")?;
        }
        if let Some(from) = repaired.position_unknown {
            writeln!(
                out,
                "         how far delivery had come was unreadable here: it goes on at the position in Kafka. Without one (with \
                 at-least-once delivery, or when Kafka has forgotten it) it goes on from batch {from}, and events may be \
                 delivered again"
            )?;
        }
        for lost in &repaired.lost {
            writeln!(out, "         lost: {}", describe(lost))?;
        }
    }
    out.flush()?;
    newer()
}

fn describe(lost: &Lost) -> String {
    let range = match lost.to.0 - lost.from.0 {
        1 => format!("batch {}", lost.from),
        _ => format!("batches {} to {}", lost.from, lost.to.0 - 1),
    };
    match lost.events {
        Some(events) => format!("{range}, {events} events"),
        None => format!("{range}, or as many of them as there were"),
    }
}
