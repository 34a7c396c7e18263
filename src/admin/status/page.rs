//! The status page: HTML that is also well-formed XML, and self-contained: no scripts, no images, no external fonts. Every text that
//! is not written here goes through [`Escaped`].

use std::{
    fmt::{self, Write},
    sync::LazyLock,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;

use super::{
    BridgeState, LaneState, LetterReport, LogIntake, Rates, StatusReport, StreamReport, Time, chart,
    escaped::Escaped,
    problems::{Problem, ProblemKind},
    seconds,
};
use crate::human;

const STYLE: &str = include_str!("style.css");

/// Whether the page reloads itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    On,
    Off,
}

/// The header `Content-Security-Policy` of the page: its own style, by its hash, and nothing else.
pub fn content_security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        // SHA-256 from the TLS library: one hash of a constant is not worth a crate.
        let hash = TLS13_AES_128_GCM_SHA256
            .tls13()
            .map(|suite| STANDARD.encode(suite.common.hash_provider.hash(STYLE.as_bytes())))
            .unwrap_or_default();
        format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    });
    &POLICY
}

/// The page of this report.
pub fn html(report: &StatusReport, refresh: Refresh) -> String {
    let mut out = String::with_capacity(32 * 1024);
    // Writing into a string does not fail.
    let _ = write(&mut out, report, refresh);
    out
}

fn write(out: &mut String, report: &StatusReport, refresh: Refresh) -> fmt::Result {
    let (tone, word) = match report.state {
        BridgeState::Ready => ("good", "Ready"),
        BridgeState::Impaired => ("warn", "Ready, with trouble"),
        BridgeState::Draining => ("warn", "Draining"),
        BridgeState::NotReady => ("bad", "Not ready"),
    };
    out.push_str(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n",
    );
    if refresh == Refresh::On {
        out.push_str("<meta http-equiv=\"refresh\" content=\"5\"/>\n");
    }
    writeln!(
        out,
        "<title>{word} · cmc-bridge</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    )?;
    writeln!(
        out,
        "<header><h1>cmc-bridge</h1><p>version {} · up {} · as of {} UTC</p></header>\n<main>",
        Escaped(report.version),
        human::age(report.uptime_seconds),
        clock(report.at, report.at)
    )?;
    writeln!(
        out,
        "<section class=\"state {tone}\"><h2>{word}</h2><p>{}</p></section>",
        Escaped(&report.summary)
    )?;
    problems(out, report)?;
    streams(out, report)?;
    rates(out, &report.rates)?;
    dead_letters(out, report)?;
    let other = match refresh {
        Refresh::On => "Loads itself again every 5 s · <a href=\"status?refresh=off\">keep still</a>",
        Refresh::Off => "Kept still · <a href=\"status\">load again every 5 s</a>",
    };
    write!(
        out,
        "</main>\n<footer><p>{other} · <a href=\"status.json\">JSON</a> · <a href=\"metrics\">metrics</a> · \
         <a href=\"readyz\">readyz</a></p></footer>\n</body>\n</html>\n"
    )
}

/// The problems that the state and the tables of the page don't show.
fn problems(out: &mut String, report: &StatusReport) -> fmt::Result {
    let is_shown_below = |problem: &&Problem| {
        matches!(
            problem.kind,
            ProblemKind::LogFailed
                | ProblemKind::LogNotOpen
                | ProblemKind::SpoolFull
                | ProblemKind::Damage
                | ProblemKind::Draining
                | ProblemKind::Starting
                | ProblemKind::LaneBlocked
                | ProblemKind::UnknownLogs
                | ProblemKind::DeadLetters
        )
    };
    let others: Vec<_> = report
        .problems
        .iter()
        .filter(|problem| !is_shown_below(problem))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    out.push_str("<section><h2>What else is wrong</h2>\n");
    for problem in others {
        writeln!(
            out,
            "<p><strong>{}:</strong> {}, for {}, since {} UTC. {}. {}.</p>",
            problem.severity.name(),
            Escaped(&problem.what),
            human::age(seconds(problem.since, report.at)),
            clock(problem.since, report.at),
            Escaped(&problem.costs),
            Escaped(&problem.action)
        )?;
    }
    out.push_str("</section>\n");
    Ok(())
}

fn streams(out: &mut String, report: &StatusReport) -> fmt::Result {
    out.push_str(
        "<section><h2>Streams</h2>\n<table role=\"table\" class=\"streams\"><caption>Each stream from its spool to its \
         Kafka topic. Delivered and diverted count since the start.</caption>\n\
         <thead role=\"rowgroup\"><tr role=\"row\"><th role=\"columnheader\" scope=\"col\">Stream</th>\
         <th role=\"columnheader\" scope=\"col\">Lane</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"number\">Backlog</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"number\">Oldest event</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"number\">Delivered</th>\
         <th role=\"columnheader\" scope=\"col\" class=\"number\">Diverted</th>\
         <th role=\"columnheader\" scope=\"col\">Spool</th></tr></thead>\n",
    );
    for (place, stream) in report.streams.iter().enumerate() {
        write_stream(out, stream, &report.streams[..place], report.at)?;
    }
    out.push_str("</table>\n");
    if let Some(disk) = report.disk {
        let used = disk.total_bytes.saturating_sub(disk.free_bytes);
        out.push_str("<p class=\"disk\"><span>Disk of the spool</span> ");
        bar(out, "disk of the spool", used, disk.total_bytes)?;
        writeln!(
            out,
            " <span class=\"number\">{} free of {}</span></p>",
            human::size(disk.free_bytes),
            human::size(disk.total_bytes)
        )?;
    }
    out.push_str("</section>\n");
    Ok(())
}

/// Writes a stream; `above` are those written before.
fn write_stream(out: &mut String, stream: &StreamReport, above: &[StreamReport], now: Time) -> fmt::Result {
    let (tone, word) = match (stream.log, &stream.lane) {
        (LogIntake::Failed, _) => ("bad", "failed"),
        (LogIntake::NotOpen | LogIntake::Unreadable, _) => ("bad", "not open"),
        (_, LaneState::Blocked { .. }) => ("bad", "blocked"),
        (LogIntake::Full, _) => ("bad", "full"),
        (_, LaneState::Running) => ("good", "running"),
        (_, LaneState::Idle) => ("calm", "idle"),
    };
    write!(
        out,
        "<tbody role=\"rowgroup\"><tr role=\"row\"><th role=\"rowheader\" scope=\"row\">{}<small>{}</small></th>\
         <td role=\"cell\" class=\"lane\"><span class=\"badge {tone}\">{word}</span></td>",
        Escaped(stream.stream),
        Escaped(&stream.topic)
    )?;
    let oldest = stream
        .oldest
        .map_or("–".to_owned(), |oldest| human::age(seconds(oldest, now)));
    for (label, value) in [
        ("Backlog", human::count(stream.backlog)),
        ("Oldest event", oldest),
        ("Delivered", human::count(stream.delivered)),
        ("Diverted", human::count(stream.diverted)),
    ] {
        write!(
            out,
            "<td role=\"cell\" class=\"number\" data-label=\"{label}\">{value}</td>"
        )?;
    }
    out.push_str("<td role=\"cell\" class=\"spool\" data-label=\"Spool\">");
    bar(
        out,
        &format!("spool of {}", stream.stream),
        stream.spool_bytes,
        stream.spool_limit_bytes,
    )?;
    writeln!(
        out,
        "<span class=\"number\">{} of {}</span></td></tr>",
        human::size(stream.spool_bytes),
        human::size(stream.spool_limit_bytes)
    )?;
    if let LaneState::Blocked {
        reason,
        message,
        since,
        last_failure,
        ..
    } = &stream.lane
    {
        let same = above.iter().find(
            |other| matches!(&other.lane, LaneState::Blocked { message: theirs, .. } if theirs == message),
        );
        let text = match same {
            Some(other) => format!("The same as for {}.", other.stream),
            None => message.clone(),
        };
        writeln!(
            out,
            "<tr role=\"row\" class=\"trouble\"><td role=\"cell\" colspan=\"7\"><p><strong>Blocked: {}</strong> for {}, \
             since {} UTC; failed last {} ago.</p><p>{}</p></td></tr>",
            Escaped(reason),
            human::age(seconds(*since, now)),
            clock(*since, now),
            human::age(seconds(*last_failure, now)),
            Escaped(&text)
        )?;
    }
    let refusal = match stream.log {
        LogIntake::Accepting => None,
        LogIntake::Disabled => {
            Some("<strong>Disabled:</strong> it takes no webhooks; what its log still holds is delivered.")
        }
        LogIntake::Unreadable => Some(
            "<strong>Disabled,</strong> and its log is not open: how many events wait in it is not known.",
        ),
        LogIntake::Full => Some(
            "<strong>Full:</strong> its webhooks get 503 until Kafka has taken some of the backlog, or the disk has room.",
        ),
        LogIntake::NotOpen => Some(
            "<strong>Not open:</strong> its webhooks get 503 until its log is open, which is tried again and again.",
        ),
        LogIntake::Failed => Some(
            "<strong>Failed:</strong> its log can't be written, and the process ends. The log of the process says why.",
        ),
    };
    if let Some(refusal) = refusal {
        writeln!(
            out,
            "<tr role=\"row\" class=\"trouble\"><td role=\"cell\" colspan=\"7\"><p>{refusal}</p></td></tr>"
        )?;
    }
    out.push_str("</tbody>\n");
    Ok(())
}

/// How much of a limit is used, as a bar.
fn bar(out: &mut String, what: &str, used: u64, limit: u64) -> fmt::Result {
    let percent = (used as f64 / limit.max(1) as f64 * 100.0).min(100.0);
    let tone = match percent {
        90.0.. => "bad",
        70.0.. => "warn",
        _ => "calm",
    };
    write!(
        out,
        "<svg class=\"bar {tone}\" role=\"img\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\">\
         <title>{}: {percent:.0} % used</title><rect class=\"track\" width=\"100\" height=\"4\"/>\
         <rect class=\"used\" width=\"{percent:.2}\" height=\"4\"/></svg>",
        Escaped(what)
    )
}

fn rates(out: &mut String, rates: &[Rates]) -> fmt::Result {
    out.push_str("<section><h2>Last 15 minutes</h2>\n<div class=\"charts\">\n");
    type Value = fn(&Rates) -> f64;
    for (tone, title, means, value) in [
        (
            "good",
            "Webhooks accepted",
            "answered with 200",
            (|r| r.accepted) as Value,
        ),
        ("bad", "Webhooks refused", "any other answer", |r| r.refused),
        ("calm", "Events delivered", "committed in Kafka", |r| r.delivered),
    ] {
        let now = rates.last().map_or(0.0, value);
        let most = rates.iter().map(value).fold(0.0, f64::max);
        write!(
            out,
            "<div class=\"card {tone}\"><h3>{title}</h3><p class=\"small\">{means}</p>\
             <p class=\"big\">{}<span>/s</span></p><p class=\"small most\">at most {}/s</p>",
            human::rate(now),
            human::rate(most)
        )?;
        let points: Vec<_> = rates.iter().map(|r| (r.seconds_ago, value(r))).collect();
        chart::write(out, title, &points)?;
        out.push_str("</div>\n");
    }
    out.push_str("</div></section>\n");
    Ok(())
}

fn dead_letters(out: &mut String, report: &StatusReport) -> fmt::Result {
    out.push_str("<section><h2>Last dead letters</h2>\n");
    if report.dead_letters.is_empty() {
        out.push_str("<p class=\"none\">None since the start.</p></section>\n");
        return Ok(());
    }
    out.push_str(
        "<table class=\"letters\"><caption>What could not be understood, or was refused by Kafka; a line for each reason in \
         a webhook or transaction. Indices count from 0.</caption>\n\
         <thead><tr><th scope=\"col\">Time (UTC)</th><th scope=\"col\">Reason</th><th scope=\"col\">First one</th>\
         <th scope=\"col\" class=\"number\">Count</th></tr></thead>\n<tbody>\n",
    );
    for letter in &report.dead_letters {
        writeln!(
            out,
            "<tr><td>{}<small>{} ago</small></td><td>{}</td><td>{}</td><td class=\"number\">{}</td></tr>",
            clock(letter.at, report.at),
            human::rough_age(seconds(letter.at, report.at)),
            // A long name may break where its words do.
            Escaped(letter.reason).to_string().replace('_', "_<wbr/>"),
            place(letter),
            human::count(letter.count as u64)
        )?;
    }
    out.push_str("</tbody></table></section>\n");
    Ok(())
}

/// Where a dead letter was in its webhook or batch.
fn place(letter: &LetterReport) -> String {
    let mut text = match letter.scope {
        "element" => "element".to_owned(),
        "broker" => "record".to_owned(),
        _ => return "whole body".to_owned(),
    };
    if let Some(index) = letter.index {
        text += &format!(" {index}");
    }
    if let Some(stream) = letter.stream {
        text += &format!(" of {stream}");
    }
    text
}

/// The time of day, with the date unless it is today's.
fn clock(time: Time, now: Time) -> String {
    let time = jiff::Timestamp::from_microsecond(time.0).unwrap_or_default();
    let now = jiff::Timestamp::from_microsecond(now.0).unwrap_or_default();
    let day = |time: jiff::Timestamp| time.strftime("%F").to_string();
    let shown = match day(time) == day(now) {
        true => time.strftime("%T"),
        false => time.strftime("%F %T"),
    };
    format!("<time datetime=\"{time:.0}\">{shown}</time>")
}
