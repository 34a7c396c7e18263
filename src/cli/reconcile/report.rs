//! What was found and done, for people and for scripts.

use std::io::Write;

use serde_json::{Value, json};

use super::Verdict;
use crate::{
    cli::output::Output,
    human,
    plain::visible,
    reconcile::{Cell, Fate, Hole, Outcome, Scope},
};

/// So many missing events are listed one by one.
const LISTED: usize = 50;

/// Prints a line for each day, composition and stream, what is left, and a sentence.
///
/// # Errors
/// The output can't be written.
pub fn print_text(
    outcome: &Outcome,
    scope: &Scope,
    verdict: &Verdict,
    out: &mut Output,
) -> std::io::Result<()> {
    for (key, cell) in &outcome.cells {
        let Cell {
            sender,
            counted,
            topics,
            missing,
            added,
            near,
            unfit,
            unknown,
            unsettled,
        } = cell;
        writeln!(
            out,
            "{} {} {}: the sender has {}, the topic held {}; missing {}, added {}, near misses {near}, unfit {unfit}, unknown to \
             the sender {}",
            key.day,
            visible(scope.composition(key.composition)),
            key.stream,
            human::count(*sender),
            human::count(*topics),
            human::count(*missing),
            human::count(*added),
            human::count(*unknown),
        )?;
        if *counted > 0 {
            let counted = human::count(*counted);
            writeln!(
                out,
                "  compared by the sender's counts, not one by one: {counted}"
            )?;
        }
        if *unsettled > 0 {
            writeln!(out, "  hours that did not settle, not counted: {unsettled}")?;
        }
    }
    for hole in outcome.left.iter().take(LISTED) {
        let [created, id, status] = names(hole).map(|name| visible(&name));
        let why = match hole.fate {
            Fate::Near => "near miss".to_owned(),
            Fate::Unfit(reason) => format!("unfit ({reason})"),
            Fate::ToAdd | Fate::NearToAdd | Fate::Added => "missing".to_owned(),
        };
        writeln!(out, "{why}: {} {created} {id} {status}", hole.key.stream)?;
    }
    if outcome.left.len() > LISTED {
        writeln!(
            out,
            "… and {} more (--json lists all)",
            outcome.left.len() - LISTED
        )?;
    }
    if let Some(why) = &outcome.no_counts {
        writeln!(
            out,
            "the sender's counts can't be used, so all events were read: {why}"
        )?;
    }
    if outcome.too_early > 0 {
        writeln!(
            out,
            "hours that are not over for long enough, not compared: {}",
            outcome.too_early
        )?;
    }
    if outcome.elsewhere > 0 {
        writeln!(
            out,
            "rows that name another hour than the one asked for, not compared there: {}",
            outcome.elsewhere
        )?;
    }
    writeln!(out, "{}", verdict.sentence)?;
    out.flush()
}

/// Prints one JSON object.
///
/// # Errors
/// The output can't be written.
pub fn print_json(
    outcome: &Outcome,
    scope: &Scope,
    verdict: &Verdict,
    out: &mut Output,
) -> std::io::Result<()> {
    let days: Vec<Value> = outcome
        .cells
        .iter()
        .map(|(key, cell)| {
            json!({
                "day": key.day.to_string(),
                "server_composition": scope.composition(key.composition),
                "stream": key.stream.name(),
                "sender": cell.sender,
                "counted_only": cell.counted,
                "topic": cell.topics,
                "missing": cell.missing,
                "added": cell.added,
                "near_misses": cell.near,
                "unfit": cell.unfit,
                "unknown_to_sender": cell.unknown,
                "unsettled_hours": cell.unsettled,
            })
        })
        .collect();
    let left: Vec<Value> = outcome
        .left
        .iter()
        .map(|hole| {
            let [created, id, status] = names(hole);
            let (why, reason) = match hole.fate {
                Fate::Near => ("near_miss", None),
                Fate::Unfit(reason) => ("unfit", Some(reason)),
                Fate::ToAdd | Fate::NearToAdd | Fate::Added => ("missing", None),
            };
            json!({
                "server_composition": scope.composition(hole.key.composition),
                "stream": hole.key.stream.name(),
                "created": created,
                "message_id": id,
                "status": status,
                "why": why,
                "reason": reason,
            })
        })
        .collect();
    let report = json!({
        "days": days,
        "left": left,
        "hours_too_early": outcome.too_early,
        "rows_elsewhere": outcome.elsewhere,
        "counts_unusable": outcome.no_counts,
        "well": verdict.code == 0,
        "verdict": verdict.sentence,
    });
    writeln!(out, "{report}")?;
    out.flush()
}

/// What names an event: `created`, `messageId` and `status`.
fn names(hole: &Hole) -> [String; 3] {
    let row: Value = serde_json::from_str(&hole.text).unwrap_or_default();
    ["created", "messageId", "status"].map(|name| match &row[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    })
}
