//! Reprocesses a dead letter with today's parser, limits and streams.
//!
//! A body goes through the server's own code, from its content type to its records. A piece of a webhook goes the same way, in
//! a webhook made of it alone, with the event type, composition and member that its letter names. A refused record goes to its
//! topic as it was.
//!
//! A letter stays dead if none of it becomes an event. It also stays dead if an event would differ from the one that was sent:
//! because a text in the letter's headers may have been cut, or because a record would contain the `*` that overwrote a
//! credential.

use std::borrow::Cow;

use serde_json::json;

use crate::{
    batch::{Batch, BatchView},
    cmc::{self, Rules, SHORTEST},
    dead_letter::{Letter, MAX_TEXT, Reason, Scope},
    stream::Stream,
};

/// What a letter becomes.
#[derive(Debug)]
pub enum Reprocessed {
    /// It is understood. It becomes these events, possibly none, and new dead letters for the pieces still not understood.
    Understood {
        events: Option<(Stream, Batch)>,
        dead_letters: Option<Batch>,
        /// How many letters those records make up.
        letters: usize,
    },
    /// A refused record, to be sent again as it was.
    Record,
    Dead(Dead),
}

/// Why a letter stays dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The name of a [`Reason`], or a word of the replay's own.
    pub reason: &'static str,
    /// For a human; empty when the reason says it all.
    pub detail: Cow<'static, str>,
}

impl Dead {
    /// A reason with a detail for a human.
    pub fn new(reason: &'static str, detail: impl Into<Cow<'static, str>>) -> Dead {
        Dead {
            reason,
            detail: detail.into(),
        }
    }
}

/// Reprocesses a letter.
pub fn reprocess(letter: &Letter, rules: &Rules) -> Reprocessed {
    let result = match letter.reason.scope() {
        Scope::Broker if letter.topic.is_none() => Err(lacks("topic")),
        Scope::Broker => Ok(Reprocessed::Record),
        Scope::Body => body(letter, rules),
        Scope::Element => piece(letter, rules),
    };
    result.unwrap_or_else(Reprocessed::Dead)
}

fn body(letter: &Letter, rules: &Rules) -> Result<Reprocessed, Dead> {
    let content_type = letter.content_type.as_deref().map(whole).transpose()?;
    understand(letter, &letter.value, content_type, rules)
}

fn piece(letter: &Letter, rules: &Rules) -> Result<Reprocessed, Dead> {
    let event_type = letter.event_type.as_deref().ok_or_else(|| lacks("event type"))?;
    let composition = letter.server_composition.as_deref();
    // A composition that was accepted is never long enough to have been cut.
    let composition = composition.ok_or_else(|| lacks("server composition"))?;
    let member = letter.member.as_deref().ok_or_else(|| lacks("member"))?;
    let member = whole(member)?;
    let value = std::str::from_utf8(&letter.value)
        .map_err(|_| Dead::new(Reason::InvalidUtf8.name(), "the piece is not UTF-8"))?;
    let (list, name) = (json!(event_type), json!(member));
    let empty = if member == event_type {
        String::new()
    } else {
        format!("{list}:[],")
    };
    let members = match letter.reason {
        Reason::UnexpectedMember => format!(r#""event":{{{list}:[]}},{name}:{value}"#),
        Reason::UnexpectedValue => format!(r#""event":{{{empty}{name}:{value}}}"#),
        _ => format!(r#""event":{{{empty}{name}:[{value}]}}"#),
    };
    let webhook = format!(
        r#"{{"event_type":{list},"server_composition":{},{members}}}"#,
        json!(composition)
    );
    let result = understand(letter, webhook.as_bytes(), Some("application/json"), rules)?;
    match &result {
        Reprocessed::Understood {
            events: Some((_, batch)),
            dead_letters: None,
            ..
        } if batch.events() == 1 => Ok(result),
        _ => Err(Dead::new(letter.reason.name(), "it is no single event")),
    }
}

/// What the server would make of this body.
fn understand(
    letter: &Letter,
    body: &[u8],
    content_type: Option<&str>,
    rules: &Rules,
) -> Result<Reprocessed, Dead> {
    let request = cmc::Request {
        received_at_micros: letter.received_at_micros,
        path: letter.path.as_deref().unwrap_or_default(),
        content_type,
        body,
    };
    let understood = cmc::explain(&request, rules);
    let split = understood.split;
    let events = split.events.map(|(stream, batch, _)| (stream, batch));
    if let (None, Some(first)) = (&events, split.failures.first()) {
        let detail = understood
            .malformed
            .map_or(Cow::Borrowed(""), |malformed| malformed.detail);
        return Err(Dead::new(first.reason.name(), detail));
    }
    let dead_letters = split.dead_letters.map(|(batch, _)| batch);
    if letter.masked {
        let batches = events.iter().map(|(_, batch)| batch).chain(&dead_letters);
        if batches.into_iter().any(holds_asterisks) {
            return Err(Dead::new("masked", "credentials were overwritten in an event"));
        }
    }
    Ok(Reprocessed::Understood {
        events,
        dead_letters,
        letters: split.failures.len(),
    })
}

/// Whether a value has as many `*` in a row as the shortest credential that is overwritten.
fn holds_asterisks(batch: &Batch) -> bool {
    let view = BatchView::decode(batch.bytes());
    view.is_ok_and(|view| {
        view.records.iter().any(|record| {
            let value = record.value();
            let mut windows = value.windows(SHORTEST);
            windows.any(|window| window.iter().all(|byte| *byte == b'*'))
        })
    })
}

/// A text that is certainly complete.
fn whole(text: &str) -> Result<&str, Dead> {
    /// A cut falls before a character of up to four bytes.
    const SHORTEST_CUT: usize = MAX_TEXT - 3;
    match text.len() < SHORTEST_CUT {
        true => Ok(text),
        false => Err(Dead::new("cut", "a text in its headers may have been cut")),
    }
}

fn lacks(what: &str) -> Dead {
    Dead::new("incomplete", format!("the letter has no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, dead_letter::DeadLetter, dead_letter::LetterAssembler};

    fn rules(settings: &[(&str, &str)]) -> Rules {
        let all = [("INGEST__AUTH__API_KEYS", "0123456789")].iter().chain(settings);
        let variables = all.map(|(name, value)| (format!("CMC_BRIDGE__{name}"), (*value).to_owned()));
        let config = config::load(&[], variables).unwrap().config;
        config.rules()
    }

    /// The letters that a server with these rules makes of a body.
    fn letters(body: &str, content_type: Option<&str>, rules: &Rules) -> Vec<Letter> {
        let request = cmc::Request {
            received_at_micros: 1_700_000_000_123_456,
            path: "/webhooks/events",
            content_type,
            body: body.as_bytes(),
        };
        let split = cmc::explain(&request, rules).split;
        let (batch, _) = split.dead_letters.unwrap();
        let view = BatchView::decode(batch.bytes()).unwrap();
        let mut letters = LetterAssembler::default();
        view.records
            .iter()
            .filter_map(|record| {
                let headers: Vec<_> = view.headers(record).collect();
                letters.add(record.key, &headers, &record.value()).unwrap()
            })
            .collect()
    }

    /// The values of the events, the number of new dead letters; or why it stays dead.
    fn tried(letter: &Letter, rules: &Rules) -> Result<(Vec<String>, usize), &'static str> {
        match reprocess(letter, rules) {
            Reprocessed::Dead(dead) => Err(dead.reason),
            Reprocessed::Record => Ok((Vec::new(), 0)),
            Reprocessed::Understood { events, letters, .. } => {
                let values = events.map_or_else(Vec::new, |(_, batch)| {
                    let view = BatchView::decode(batch.bytes()).unwrap();
                    assert_eq!(view.received_at_micros, letter.received_at_micros);
                    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
                    view.records.iter().map(|record| text(&record.value())).collect()
                });
                Ok((values, letters))
            }
        }
    }

    fn event(members: &str) -> String {
        format!(r#"{{"event_type":"deliveries","server_composition":"p\"q"{members}}}"#)
    }

    fn webhook(elements: &str) -> String {
        format!(
            r#"{{"event_type":"deliveries","server_composition":"p\"q","api_key":"0123456789","event":{{"deliveries":[{elements}]}}}}"#
        )
    }

    #[test]
    fn a_body_is_understood_once_the_limit_is_higher() {
        let body = webhook(r#"{"n":1} , {"n":2},7"#);
        let letter = &letters(&body, None, &rules(&[("INGEST__MAX_EVENTS", "1")]))[0];
        assert!(letter.masked);
        assert_eq!(
            tried(letter, &rules(&[("INGEST__MAX_EVENTS", "2")])),
            Err("too_many_events")
        );
        let events = vec![event(r#","n":1"#), event(r#","n":2"#)];
        assert_eq!(tried(letter, &rules(&[])), Ok((events, 1)));
        // Nothing of it is an event: it stays one letter.
        let letter = &letters(&webhook("7,8"), None, &rules(&[("INGEST__MAX_EVENTS", "1")]))[0];
        assert_eq!(tried(letter, &rules(&[])), Err("element_not_object"));
    }

    #[test]
    fn a_form_stays_a_form() {
        let form = "event_type=deliveries&server_composition=p%22q&api_key=0123456789&event=%7B%22deliveries%22%3A%5B%7B%7D%2C%7B%7D%5D%7D";
        let form_type = Some("application/x-www-form-urlencoded");
        let letter = &letters(form, form_type, &rules(&[("INGEST__MAX_EVENTS", "1")]))[0];
        assert_eq!(tried(letter, &rules(&[])), Ok((vec![event(""), event("")], 0)));
        let letter = &letters("a body", Some("text/plain"), &rules(&[]))[0];
        assert_eq!(tried(letter, &rules(&[])), Err("unsupported_media_type"));
    }

    #[test]
    fn a_stream_that_was_off() {
        let body = r#"{"event_type":"blocks","server_composition":"pro","event":{"blocks":[]}}"#;
        let letter = &letters(body, None, &rules(&[]))[0];
        assert_eq!(letter.reason, Reason::UnknownEventType);
        assert_eq!(tried(letter, &rules(&[])), Err("unknown_event_type"));
        // An empty list is understood, and no event.
        let enabled = rules(&[("STREAMS__BLOCKS__ENABLED", "true")]);
        assert_eq!(tried(letter, &enabled), Ok((Vec::new(), 0)));
    }

    #[test]
    fn pieces() {
        let large = format!(r#"{{"s":"{}"}}"#, "十".repeat(1000));
        let body = webhook(&format!(r#"{{}},{large},7,{{"event_type":1}}"#)).replace(
            r#""event":{"#,
            r#""extra":[1],"event":{"total":3,"bounces":[{}],"#,
        );
        let small = rules(&[("KAFKA__MAX_RECORD_BYTES", "1024")]);
        let letters = letters(&body, None, &small);
        let results: Vec<_> = letters
            .iter()
            .map(|letter| (letter.reason, tried(letter, &rules(&[]))))
            .collect();
        let large = event(&format!(",{}", &large[1..large.len() - 1]));
        assert_eq!(
            results,
            [
                (Reason::UnexpectedValue, Err("unexpected_value")),
                (Reason::UnexpectedList, Err("unexpected_list")),
                (Reason::RecordTooLarge, Ok((vec![large], 0))),
                (Reason::ElementNotObject, Err("element_not_object")),
                (Reason::ReservedMember, Err("reserved_member")),
                (Reason::UnexpectedMember, Err("unexpected_member")),
            ]
        );
    }

    #[test]
    fn a_piece_can_not_become_more_than_one_event() {
        let letter = DeadLetter {
            event_type: Some("deliveries"),
            server_composition: Some("pro"),
            member: Some("deliveries"),
            ..DeadLetter::new(Reason::RecordTooLarge, 0, b"{},{}")
        };
        let letter = read(&letter);
        assert_eq!(tried(&letter, &rules(&[])), Err("record_too_large"));
        let lacking = Letter {
            event_type: None,
            ..letter
        };
        assert_eq!(tried(&lacking, &rules(&[])), Err("incomplete"));
    }

    fn read(letter: &DeadLetter<'_>) -> Letter {
        let records = letter.records(1_000_000);
        let record = records.iter().next().unwrap();
        let mut letters = LetterAssembler::default();
        letters
            .add(record.key, &record.headers(), record.value)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn what_was_overwritten_or_cut_is_not_made_up() {
        let body = webhook(r#"{"s":"0123456789"},{}"#);
        let letter = &letters(&body, None, &rules(&[("INGEST__MAX_EVENTS", "1")]))[0];
        assert_eq!(tried(letter, &rules(&[])), Err("masked"));
        let long = format!("application/json;x={}", "x".repeat(300));
        let letter = &letters(
            &webhook("{},{}"),
            Some(&long),
            &rules(&[("INGEST__MAX_EVENTS", "1")]),
        )[0];
        assert_eq!(tried(letter, &rules(&[])), Err("cut"));
        let short = "application/json;x=x";
        let letter = &letters(
            &webhook("{},{}"),
            Some(short),
            &rules(&[("INGEST__MAX_EVENTS", "1")]),
        )[0];
        assert_eq!(tried(letter, &rules(&[])).unwrap().0.len(), 2);
    }

    #[test]
    fn a_refused_record_needs_its_topic() {
        let letter = read(&DeadLetter {
            topic: Some("cmc.bounces"),
            ..DeadLetter::new(Reason::RefusedInvalid, 0, b"v")
        });
        assert_eq!(tried(&letter, &rules(&[])), Ok((Vec::new(), 0)));
        let lacking = Letter {
            topic: None,
            ..letter
        };
        assert_eq!(tried(&lacking, &rules(&[])), Err("incomplete"));
    }
}
