//! `spool repair`: replaces a damaged log with one that holds the batches that can be read.

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
A new log with the batches that can be read takes the old one's place. The batches keep their numbers, so nothing is
delivered twice. The damaged log is kept beside it as <stream>.damaged-<time>. Without --accept-loss nothing is changed, and
what would be lost is printed.

Examples:
  cmc-bridge spool repair --dir /mnt/volume
  cmc-bridge spool repair --dir /mnt/volume --accept-loss";

/// The arguments of `spool repair`.
#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Repair, and give up the batches that can't be read
    #[arg(long)]
    accept_loss: bool,
}

/// Repairs the damaged logs.
///
/// # Errors
/// 64: there is no spool. 65: the loss is not accepted, or a batch has an unknown layout. 69: a bridge has the spool open.
/// 74: a file can't be read or written.
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
            "{undecodable} batches are intact but have a layout that this version doesn't know: nothing to repair, start \
             the version that wrote them"
        ))),
    };
    if damaged.is_empty() {
        return newer();
    }
    if !args.accept_loss && lossless {
        return Err(Exit::Data(format!(
            "nothing was changed. The damage above loses no batch; with --accept-loss the logs are rewritten from what is \
             intact{}",
            advice(refused)
        )));
    }
    if !args.accept_loss {
        return Err(Exit::Data(format!(
            "nothing was changed. With --accept-loss the batches above are given up and delivery goes on without them{}",
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
            writeln!(out, "         possibly lost, extent unknown: {unknown}")?;
        }
        if repaired.lost.is_empty() && repaired.unknown.is_empty() {
            writeln!(out, "         no batch is lost")?;
        }
        if let Some(from) = repaired.position_unknown {
            writeln!(
                out,
                "         the checkpoint was unreadable: delivery continues at the position in Kafka. Without one (with at-least-once \
                 delivery, or if Kafka has forgotten it) it continues from batch {from}, and events may be delivered again"
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
        None => format!("{range}, or as many of them as existed"),
    }
}
