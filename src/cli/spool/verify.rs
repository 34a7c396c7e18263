//! `spool verify`: reads everything that waits.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{Place, advice, time};
use crate::{
    batch::{BatchView, received_at_micros},
    cli::{output::Output, progress::Progress},
    exit::Exit,
    spool::{Damage, survey::Survey},
    stream::Stream,
};

/// The arguments of `spool verify`.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    place: Place,
    /// One JSON object a line, one line a stream
    #[arg(long)]
    json: bool,
}

/// What can be read of one stream, and what can't.
pub(super) struct Verdict {
    pub stream: Stream,
    pub batches: u64,
    pub events: u64,
    pub oldest_micros: Option<i64>,
    pub damage: Vec<Damage>,
    /// Batches whose checksums are right and whose layout is unknown.
    pub undecodable: u64,
}

impl Verdict {
    /// Whether all that waits can be read.
    pub fn is_lossless(&self) -> bool {
        self.undecodable == 0 && self.damage.iter().all(Damage::costs_nothing)
    }
}

/// Verifies the spool.
pub fn run(args: &VerifyArgs, out: &mut Output) -> Result<(), Exit> {
    let spool = args.place.at_rest()?;
    let (mut damaged, mut refused, mut lossless) = (0, false, true);
    for survey in spool.surveys() {
        let (stream, mut survey) = survey?;
        let verdict = verify(stream, &mut survey)?;
        damaged += usize::from(!verdict.damage.is_empty() || verdict.undecodable > 0);
        refused |= verdict.damage.iter().any(Damage::is_refused);
        lossless &= verdict.is_lossless();
        if args.json {
            writeln!(out, "{}", as_json(&verdict))?;
        } else {
            as_text(&verdict, out)?;
        }
    }
    out.flush()?;
    match damaged {
        0 => Ok(()),
        _ if lossless => Err(Exit::Data(format!(
            "{damaged} of the streams are damaged, and no batch is lost by that. Keep a copy of {}; `cmc-bridge spool repair` \
             makes them whole. Find the cause before you trust the volume again{}",
            spool.dir.display(),
            advice(refused)
        ))),
        _ => Err(Exit::Data(format!(
            "{damaged} of the streams can't be read as a whole. Keep a copy of {}; `cmc-bridge spool export` saves what \
             can be read, `cmc-bridge spool repair` sets the rest aside{}",
            spool.dir.display(),
            advice(refused)
        ))),
    }
}

/// Reads everything of one stream that waits.
pub(super) fn verify(stream: Stream, survey: &mut Survey) -> Result<Verdict, Exit> {
    let mut verdict = Verdict {
        stream,
        batches: 0,
        events: 0,
        oldest_micros: None,
        damage: Vec::new(),
        undecodable: 0,
    };
    let first = survey.position().seq.0;
    let progress = Progress::new(survey.end().seq.0.saturating_sub(first));
    while let Some(batch) = survey.next_batch()? {
        if verdict.batches == 0 {
            verdict.oldest_micros = received_at_micros(&batch.payload);
        }
        verdict.batches += 1;
        verdict.events += u64::from(batch.events);
        verdict.undecodable += u64::from(BatchView::decode(&batch.payload).is_err());
        if verdict.batches.is_multiple_of(1000) {
            progress.draw(batch.seq.0 - first);
        }
    }
    progress.clear();
    verdict.damage = survey.damage().to_vec();
    Ok(verdict)
}

/// Says it in a line or more.
pub(super) fn as_text(verdict: &Verdict, out: &mut impl Write) -> Result<(), Exit> {
    let word = match verdict.damage.is_empty() && verdict.undecodable == 0 {
        true => "ok",
        false => "DAMAGED",
    };
    write!(
        out,
        "{word:<8} {}: {} events in {} batches wait",
        verdict.stream, verdict.events, verdict.batches
    )?;
    match verdict.oldest_micros {
        Some(oldest) => writeln!(out, ", the oldest received {}", time(oldest))?,
        None => writeln!(out)?,
    }
    for damage in &verdict.damage {
        writeln!(out, "         {damage}")?;
    }
    if verdict.undecodable > 0 {
        writeln!(
            out,
            "         {} batches have a layout that this version doesn't know: use the version that wrote them",
            verdict.undecodable
        )?;
    }
    Ok(())
}

fn as_json(verdict: &Verdict) -> Value {
    json!({
        "stream": verdict.stream.name(),
        "batches": verdict.batches,
        "events": verdict.events,
        "oldest_received": verdict.oldest_micros.map(time),
        "damage": verdict.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "undecodable_batches": verdict.undecodable,
    })
}

/// A damaged place, for scripts.
pub(super) fn damage_json(damage: &Damage) -> Value {
    json!({
        "what": damage.kind.to_string(),
        "segment": damage.segment.0,
        "bytes": damage.bytes.map(|(from, to)| [from, to]),
        "from_batch": damage.from.0,
        "to_batch": damage.to.map(|to| to.0),
    })
}
