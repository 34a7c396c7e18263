//! `cmc-bridge why`: what is wrong with a running bridge, in five lines for people, with an exit code for scripts.
//!
//! The bridge judges itself ([`crate::admin`]); this command only asks it and prints the answer. The worst problem has all five
//! lines, any other one has one more. A bridge that gives no answer is an answer as well: it gets the lines of an outage.

use std::{io::Write, time::Duration};

use clap::Args;
use tokio::runtime::Runtime;

use super::{
    bridge_status::{BridgeClient, BridgeStatus, NoStatus, Problem, seconds_between},
    config_args::ConfigArgs,
};
use crate::{
    admin::status::{BridgeState, problems::Severity},
    cli::exit::Exit,
    human,
    plain::visible,
};

pub const AFTER_HELP: &str = "\
The first five lines are the worst problem: what is wrong, since when, what it costs, what to do, and where to read on. Each
other problem has a line of its own. The bridge judges itself, so its log, its status page and this command agree.

Exit codes:
  0   nothing is wrong, or only something that has time
  1   a warning: consumers wait, or danger approaches
  2   critical: webhooks or acknowledged events are in danger now
  64  wrong command line
  69  the bridge gives no answer, or something else is at that address
  78  admin.listen in the configuration is refused";

/// The exit code of a bridge that gives no answer.
const UNAVAILABLE: u8 = 69;

/// The arguments of `why`.
#[derive(Args, Clone, Debug)]
pub struct WhyArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Admin port of the bridge, such as http://10.0.0.7:9464 [default: admin.listen of the configuration]
    #[arg(long)]
    pub url: Option<String>,
    /// How many seconds to wait for the bridge's answer
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// Asks the bridge and prints its answer.
///
/// # Errors
/// [`Exit::Answered`] with the code of [`AFTER_HELP`]; 64 or 78: nobody could be asked.
pub fn run(args: &WhyArgs, out: &mut impl Write) -> Result<(), Exit> {
    let mut client = match &args.url {
        Some(url) => BridgeClient::new(url)?,
        None => BridgeClient::configured(&args.config)?,
    };
    let limit = Duration::from_secs(args.timeout);
    let asked = Runtime::new()?.block_on(client.ask(limit));
    let code = match asked {
        Ok(status) => {
            write!(out, "{}", answer(&status, client.url()))?;
            code(worst(&status))
        }
        Err(error) => {
            write!(out, "{}", no_answer(client.url(), &error))?;
            UNAVAILABLE
        }
    };
    out.flush()?;
    match code {
        0 => Ok(()),
        code => Err(Exit::Answered(code)),
    }
}

fn code(worst: Option<Severity>) -> u8 {
    match worst {
        None | Some(Severity::Info) => 0,
        Some(Severity::Warning) => 1,
        Some(Severity::Critical) => 2,
    }
}

/// The severity of the worst problem. A version that doesn't judge has its state.
fn worst(status: &BridgeStatus) -> Option<Severity> {
    match (&status.problems, status.state) {
        (Some(problems), _) => problems.iter().map(|problem| problem.severity).min(),
        (None, BridgeState::Ready) => None,
        (None, BridgeState::Impaired | BridgeState::Draining) => Some(Severity::Warning),
        (None, BridgeState::NotReady) => Some(Severity::Critical),
    }
}

/// The answer of a bridge.
fn answer(status: &BridgeStatus, url: &str) -> String {
    let problems = status.problems.as_deref().unwrap_or_default();
    let Some((first, others)) = problems.split_first() else {
        let word = worst(status).map_or("ok", Severity::name);
        let since = format!(
            "its start {} ago, version {}",
            human::age(status.uptime_seconds),
            status.version
        );
        let (costs, action) = match &status.problems {
            Some(_) => ("nothing", "nothing"),
            None => ("its version does not say", "read its status page, or upgrade it"),
        };
        return five_lines(
            word,
            &status.summary,
            [&since, costs, action, &format!("{url}/status")],
        );
    };
    let mut text = five_lines(
        first.severity.name(),
        &sentence(&first.what),
        [
            &since(first, &status.at),
            &sentence(&first.costs),
            &sentence(&first.action),
            &format!("{} and {url}/status", first.runbook),
        ],
    );
    for other in others {
        text += &format!(
            "also    {}: {} ({})\n",
            other.severity.name(),
            one_line(&sentence(&other.what)),
            since(other, &status.at)
        );
    }
    text
}

/// The answer if there is none.
fn no_answer(url: &str, error: &NoStatus) -> String {
    if error.is_elsewhere {
        return five_lines(
            "unknown",
            &format!("No bridge was asked at {url}: {}.", error.cause),
            [
                "not known",
                "not known",
                "Give the address of a bridge's admin port with --url: it begins with http:// unless a proxy adds TLS, and the port is \
                 that of admin.listen (9464 unless you changed it).",
                "cmc-bridge why --help",
            ],
        );
    }
    five_lines(
        Severity::Critical.name(),
        &format!("The bridge at {url} can't be asked: {}.", error.cause),
        [
            "not known; a bridge that has just started answers within seconds",
            "If it is down and no other replica runs, webhooks are being lost. What it acknowledged is on its disk.",
            "See whether the process runs; if not, read its last log lines and its exit code. If it runs, check admin.listen and \
             the network between here and there, and give the right address with --url.",
            "docs/operations.md#cmcbridgedown",
        ],
    )
}

fn five_lines(word: &str, what: &str, lines: [&str; 4]) -> String {
    let mut text = format!("{word}: {}\n", one_line(what));
    for (name, line) in ["since", "costs", "do", "see"].into_iter().zip(lines) {
        text += &format!("{name:<7} {}\n", one_line(line));
    }
    text
}

fn since(problem: &Problem, now: &str) -> String {
    let time = problem.since.parse::<jiff::Timestamp>();
    let time = time.map_or(problem.since.clone(), |time| human::time(time.as_microsecond()));
    format!("{time}, {}", human::age(seconds_between(&problem.since, now)))
}

/// With its full stop.
fn sentence(text: &str) -> String {
    match text.ends_with(['.', '?', '!']) {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// An error may have several lines, an answer has exactly five. What is at the address may be no bridge, and mean harm.
fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    visible(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: serde_json::Value) -> BridgeStatus {
        let mut all = serde_json::json!({
            "at": "2026-10-01T09:03:05.5Z",
            "version": "9.9.9",
            "uptime_seconds": 185,
            "state": "ready",
            "summary": "Webhooks are taken. All events are in Kafka.",
            "something_new": [1, 2],
        });
        all.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn problem(severity: &str, what: &str) -> serde_json::Value {
        serde_json::json!({
            "kind": "lane_blocked", "severity": severity, "streams": ["bounces"], "what": what, "since": "2026-10-01T09:00:00.1Z",
            "costs": "1 event waits on disk", "action": "Start Kafka\nor wait", "runbook": "docs/operations.md#x",
        })
    }

    #[test]
    fn the_worst_problem_has_five_lines_and_others_one() {
        let problems = [
            problem("critical", "The log\nis full"),
            problem("info", "A dead letter"),
        ];
        let status = status(serde_json::json!({ "problems": problems }));
        let text = answer(&status, "http://h:1");
        assert_eq!(
            text,
            "critical: The log is full.\n\
             since   2026-10-01T09:00:00Z, 3 min 5 s\n\
             costs   1 event waits on disk.\n\
             do      Start Kafka or wait.\n\
             see     docs/operations.md#x and http://h:1/status\n\
             also    info: A dead letter. (2026-10-01T09:00:00Z, 3 min 5 s)\n"
        );
        assert_eq!(code(worst(&status)), 2);
    }

    #[test]
    fn severities_have_codes() {
        for (severity, expected) in [("critical", 2), ("warning", 1), ("info", 0)] {
            let status = status(serde_json::json!({ "problems": [problem(severity, "x")] }));
            assert_eq!(code(worst(&status)), expected);
        }
    }

    #[test]
    fn all_is_well() {
        let status = status(serde_json::json!({ "problems": [] }));
        let text = answer(&status, "http://h:1");
        assert!(text.starts_with(
            "ok: Webhooks are taken. All events are in Kafka.\nsince   its start 3 min 5 s ago"
        ));
        assert_eq!((text.lines().count(), code(worst(&status))), (5, 0));
    }

    #[test]
    fn a_version_that_does_not_judge_is_taken_by_its_state() {
        for (state, word, expected) in [
            ("ready", "ok", 0),
            ("draining", "warning", 1),
            ("not_ready", "critical", 2),
        ] {
            let status = status(serde_json::json!({ "state": state }));
            let text = answer(&status, "http://h:1");
            assert!(
                text.starts_with(word) && text.contains("version does not say"),
                "{text}"
            );
            assert_eq!(code(worst(&status)), expected);
        }
    }

    #[test]
    fn no_answer_is_an_answer() {
        for (is_elsewhere, begin) in [
            (
                false,
                "critical: The bridge at http://h:1 can't be asked: refused.\n",
            ),
            (true, "unknown: No bridge was asked at http://h:1: refused.\n"),
        ] {
            let cause = "refused".to_owned();
            let text = no_answer("http://h:1", &NoStatus { cause, is_elsewhere });
            assert!(text.starts_with(begin), "{text}");
            assert_eq!(text.lines().count(), 5);
        }
    }

    #[test]
    fn an_answer_controls_no_terminal() {
        let status = status(serde_json::json!({ "problems": [problem("critical", "a\x1b[2Jb")] }));
        assert!(!answer(&status, "http://h:1").contains('\x1b'));
    }
}
