//! `spool export`: prints the batches that wait as JSON lines.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{
    selection::LogArgs,
    verify::{advice, damage_json},
};
use crate::{
    batch::BatchView,
    cli::{
        exit::Exit,
        output::{Output, say},
        records,
    },
    spool::{Damage, StoredBatch},
    stream::Stream,
};

pub const AFTER_HELP: &str = "\
Each line is a batch, the records of one webhook for one stream:
  {\"stream\":…,\"batch\":…,\"received_at\":…,\"records\":[{\"key\":…,\"headers\":{…},\"value\":…}]}
where the value is a string, or {\"base64\":…} if it is not text. A line takes the place of what can't be read:
  {\"stream\":…,\"missing\":{\"what\":…,\"from_batch\":…,\"to_batch\":…,…}}

Examples:
  cmc-bridge spool export --dir /mnt/old-volume > batches.jsonl
  jq -r '.records[]?.value' batches.jsonl   # only the events";

/// The arguments of `spool export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    #[command(flatten)]
    logs: LogArgs,
}

/// Prints the batches that wait.
///
/// # Errors
/// 64: there is no spool. 65: something can't be read. 69: a bridge has the spool open. 74: a file can't be read.
pub fn run(args: &ExportArgs, out: &mut Output) -> Result<(), Exit> {
    let spool = args.logs.at_rest()?;
    let (mut missing, mut refused) = (0, false);
    for survey in spool.surveys() {
        let (stream, mut survey) = survey?;
        let (mut reported, mut undecodable) = (0, 0);
        loop {
            let batch = survey.next_batch()?;
            for damage in &survey.damage()[reported..] {
                writeln!(out, "{}", missing_line(stream, damage))?;
                say(format_args!("{stream}: {damage}"));
                reported += 1;
            }
            let Some(batch) = batch else {
                break;
            };
            match BatchView::decode(&batch.payload) {
                Ok(view) => writeln!(out, "{}", line(stream, &batch, &view))?,
                Err(error) => {
                    let what = format!("{error}; was it written by a newer version?");
                    say(format_args!("{stream}: batch {}: {what}", batch.seq));
                    let missing = json!({
                        "what": what,
                        "from_batch": batch.seq.0,
                        "to_batch": batch.seq.0 + 1,
                        "payload": records::bytes(Some(&batch.payload)),
                    });
                    writeln!(out, "{}", json!({ "stream": stream.name(), "missing": missing }))?;
                    undecodable += 1;
                }
            }
            if out.closed() {
                return Ok(());
            }
        }
        missing += reported + undecodable;
        refused |= survey.damage().iter().any(Damage::is_refused);
    }
    out.flush()?;
    match missing {
        0 => Ok(()),
        _ => Err(Exit::Data(format!(
            "{missing} parts of the spool can't be read{}",
            advice(refused)
        ))),
    }
}

fn missing_line(stream: Stream, damage: &Damage) -> Value {
    json!({ "stream": stream.name(), "missing": damage_json(damage) })
}

fn line(stream: Stream, batch: &StoredBatch, view: &BatchView<'_>) -> Value {
    let received = jiff::Timestamp::from_microsecond(view.received_at_micros).ok();
    let records: Vec<Value> = view
        .records
        .iter()
        .map(|record| {
            json!({
                "key": records::bytes(record.key),
                "headers": records::headers(view.headers(record).map(|(name, value)| (name, Some(value)))),
                "value": records::bytes(Some(&record.value())),
            })
        })
        .collect();
    json!({
        "stream": stream.name(),
        "batch": batch.seq.0,
        "received_at": received.map(|time| format!("{time:.6}")),
        "records": records,
    })
}
