//! `spool verify`: reads everything that waits and reports damage.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::selection::LogArgs;
use crate::{
    batch::{BatchView, received_at_micros},
    cli::{exit::Exit, output::Output, progress_bar::ProgressBar},
    human,
    spool::{Damage, survey::Survey},
    stream::Stream,
};

/// The arguments of `spool verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Print one JSON object per line, one for each stream
    #[arg(long)]
    json: bool,
}

/// What one stream's log holds, and its damage.
pub(super) struct Findings {
    pub stream: Stream,
    pub batches: u64,
    pub events: u64,
    pub oldest_micros: Option<i64>,
    pub damage: Vec<Damage>,
    /// Batches with valid checksums but an unknown layout.
    pub undecodable: u64,
}

impl Findings {
    /// Whether everything that waits can be read.
    pub fn is_lossless(&self) -> bool {
        self.undecodable == 0 && self.damage.iter().all(Damage::costs_nothing)
    }
}

/// Verifies the spool.
///
/// # Errors
/// 64: there is no spool. 65: something is damaged. 69: a bridge has the spool open. 74: a file can't be read.
pub fn run(args: &VerifyArgs, out: &mut Output) -> Result<(), Exit> {
    let spool = args.logs.at_rest()?;
    let (mut damaged, mut refused, mut lossless) = (0, false, true);
    for survey in spool.surveys() {
        let (stream, mut survey) = survey?;
        let findings = verify(stream, &mut survey)?;
        damaged += usize::from(!findings.damage.is_empty() || findings.undecodable > 0);
        refused |= findings.damage.iter().any(Damage::is_refused);
        lossless &= findings.is_lossless();
        if args.json {
            writeln!(out, "{}", as_json(&findings))?;
        } else {
            as_text(&findings, out)?;
        }
    }
    out.flush()?;
    match damaged {
        0 => Ok(()),
        _ if lossless => Err(Exit::Data(format!(
            "{damaged} of the streams are damaged, but no batch is lost by that. Keep a copy of {}; `cmc-bridge spool repair` \
             mends them. Find the cause before you trust the volume again{}",
            spool.dir.display(),
            advice(refused)
        ))),
        _ => Err(Exit::Data(format!(
            "{damaged} of the streams can't be read completely. Keep a copy of {}; `cmc-bridge spool export` saves what \
             can be read, `cmc-bridge spool repair` sets the rest aside{}",
            spool.dir.display(),
            advice(refused)
        ))),
    }
}

/// Reads everything that waits in one stream's log.
///
/// # Errors
/// 74: a file can't be read.
pub(super) fn verify(stream: Stream, survey: &mut Survey) -> Result<Findings, Exit> {
    let mut findings = Findings {
        stream,
        batches: 0,
        events: 0,
        oldest_micros: None,
        damage: Vec::new(),
        undecodable: 0,
    };
    let first = survey.position().seq.0;
    let total = survey.end().seq.0.saturating_sub(first);
    let progress = ProgressBar::start();
    while let Some(batch) = survey.next_batch()? {
        if findings.batches == 0 {
            findings.oldest_micros = received_at_micros(&batch.payload);
        }
        findings.batches += 1;
        findings.events += u64::from(batch.events);
        findings.undecodable += u64::from(BatchView::decode(&batch.payload).is_err());
        if findings.batches.is_multiple_of(1000) {
            progress.draw(batch.seq.0 - first, total);
        }
    }
    findings.damage = survey.damage().to_vec();
    Ok(findings)
}

/// Prints the findings as text.
///
/// # Errors
/// 74: the output can't be written.
pub(super) fn as_text(findings: &Findings, out: &mut impl Write) -> Result<(), Exit> {
    let word = match findings.damage.is_empty() && findings.undecodable == 0 {
        true => "ok",
        false => "DAMAGED",
    };
    write!(
        out,
        "{word:<8} {}: {} events in {} batches wait",
        findings.stream, findings.events, findings.batches
    )?;
    match findings.oldest_micros {
        Some(oldest) => writeln!(out, ", the oldest received {}", human::time(oldest))?,
        None => writeln!(out)?,
    }
    for damage in &findings.damage {
        writeln!(out, "         {damage}")?;
    }
    if findings.undecodable > 0 {
        writeln!(
            out,
            "         {} batches have a layout that this version doesn't know: use the version that wrote them",
            findings.undecodable
        )?;
    }
    Ok(())
}

fn as_json(findings: &Findings) -> Value {
    json!({
        "stream": findings.stream.name(),
        "batches": findings.batches,
        "events": findings.events,
        "oldest_received": findings.oldest_micros.map(human::time),
        "damage": findings.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "undecodable_batches": findings.undecodable,
    })
}

/// What to add to an error when the disk refuses to read.
pub(super) fn advice(refused: bool) -> &'static str {
    match refused {
        true => {
            ". The disk refuses to read: first copy the volume with ddrescue or the like, which retries and may recover more. \
             Then examine the copy with --dir, and replace the disk"
        }
        false => "",
    }
}

/// One damage as JSON.
pub(super) fn damage_json(damage: &Damage) -> Value {
    json!({
        "what": damage.kind.to_string(),
        "segment": damage.segment.0,
        "bytes": damage.bytes.map(|(from, to)| [from, to]),
        "from_batch": damage.from.0,
        "to_batch": damage.to.map(|to| to.0),
    })
}
