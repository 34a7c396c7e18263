//! When two forms of an event are the same event: for comparing the sender's Web API with the topics.
//!
//! The sender gives its events no id, and its webhooks and its Web API may write the same event differently. So an event's identity
//! is the values of its documented members, within its stream and composition. The *canonical form* writes them down:
//!
//! - a JSON object without white space, of these members in this order: `apiData`, `created`, `from`, `messageId`, `reason`,
//!   `returnPath`, then for deliveries `senderIp` and `sourceIp`, then `status`, `subject`, `to`;
//! - strings are decoded and written anew with only the escapes that JSON demands (as RFC 8785 has them);
//! - a member that is missing or null counts as `""`. The sender documents empty strings for what it doesn't know;
//! - any other value counts by its text. The sender documents strings alone.
//!
//! The id of the canonical form is the `ce_id` of an event that came from the Web API, and the fingerprint by which events are
//! compared. Members that aren't documented don't count.
//!
//! A version 1 event has `envelopeFrom` and `envelopeTo` in place of `returnPath`, `from`, `to` and `apiData`. It is compared by its
//! own canonical form, of the members that it has in common with version 2: `created`, `envelopeFrom`, `envelopeTo`, `messageId` and
//! so on, where a row's `returnPath` and `to` stand for the envelope's.
//!
//! Events with the same `messageId` and `status` that differ otherwise are *kin*: one of them may be the other, written in a way that
//! this module doesn't know.

use std::borrow::Cow;

use jiff::civil::DateTime;
use uuid::Uuid;

use super::{
    elements::LONGEST_NAME,
    id::Ids,
    json::{Cursor, JsonKind, validate},
    time::civil,
};
use crate::stream::Stream;

/// The members that count, in the order of their names.
const NAMES: [&str; 13] = [
    "apiData",
    "created",
    "envelopeFrom",
    "envelopeTo",
    "from",
    "messageId",
    "reason",
    "returnPath",
    "senderIp",
    "sourceIp",
    "status",
    "subject",
    "to",
];

/// Members of deliveries alone.
const OF_DELIVERIES: [&str; 2] = ["senderIp", "sourceIp"];

/// Members of version 1 alone, and the members of version 2 that hold the same.
const ENVELOPE: [(&str, &str); 2] = [("envelopeFrom", "returnPath"), ("envelopeTo", "to")];

/// Members of version 2 alone.
const VERSION_2: [&str; 4] = ["apiData", "from", "returnPath", "to"];

/// A row of the sender's Web API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The id of its canonical form.
    pub id: Uuid,
    /// The id that the event has on a topic in version 1.
    pub version_1: Uuid,
    /// The same for all its kin.
    pub kin: u64,
    /// Where its status stands among [`Stream::statuses`].
    pub status: usize,
    /// The time that its `created` names.
    pub created: Option<DateTime>,
}

/// An event on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnTopic {
    pub stream: Stream,
    pub composition: String,
    /// The id of its canonical form; of its version 1 form if it has that.
    pub id: Uuid,
    /// The same for all its kin.
    pub kin: u64,
    /// Where its status stands among [`Stream::statuses`].
    pub status: usize,
    /// The time that its `created` names.
    pub created: Option<DateTime>,
}

impl Row {
    /// Reads a row, which must be a valid JSON object.
    pub fn read(stream: Stream, composition: &str, row: &str) -> Row {
        let members = Members::read(row);
        let ids = Ids::new(stream.name(), composition);
        Row {
            id: ids.uuid(members.canonical(stream).as_bytes()),
            version_1: ids.uuid(members.version_1(stream).as_bytes()),
            kin: members.kin(&ids),
            status: members.status(stream),
            created: members.created(),
        }
    }
}

/// Reads the value of a record. `None` if it is no event of a stream.
pub fn on_topic(value: &[u8]) -> Option<OnTopic> {
    let text = validate(value).ok()?;
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut names = [Value::Missing, Value::Missing];
    let members = Members::read_with(text, |name, value| match name {
        "event_type" => names[0] = value,
        "server_composition" => names[1] = value,
        _ => {}
    });
    let [Value::Text(event_type), Value::Text(composition)] = names else {
        return None;
    };
    let stream = Stream::from_event_type(&event_type)?;
    let ids = Ids::new(stream.name(), &composition);
    let form = match members.is_version_1() {
        true => members.version_1(stream),
        false => members.canonical(stream),
    };
    Some(OnTopic {
        stream,
        id: ids.uuid(form.as_bytes()),
        kin: members.kin(&ids),
        status: members.status(stream),
        created: members.created(),
        composition: composition.into_owned(),
    })
}

/// The value of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Value<'t> {
    /// It is missing or null.
    #[default]
    Missing,
    /// A string, decoded.
    Text(Cow<'t, str>),
    /// Anything else, as it is written.
    Other(&'t str),
}

impl Value<'_> {
    fn text(&self) -> &str {
        match self {
            Value::Missing => "",
            Value::Text(text) => text,
            Value::Other(text) => text,
        }
    }
}

/// The documented members of an event, by the index of their names.
#[derive(Default)]
pub(super) struct Members<'t>([Value<'t>; NAMES.len()]);

impl<'t> Members<'t> {
    /// Reads a valid JSON object. If a member is repeated, the last one counts.
    pub fn read(text: &'t str) -> Members<'t> {
        Members::read_with(text, |_, _| {})
    }

    /// The same; `other` receives every other member with a short name.
    fn read_with(text: &'t str, mut other: impl FnMut(&str, Value<'t>)) -> Members<'t> {
        let mut members = Members::default();
        let mut scratch = String::new();
        let mut cursor = Cursor::new(text);
        cursor.peek();
        cursor.enter();
        while let Some(name) = cursor.member() {
            let found = cursor.value();
            let raw = &text[found.span];
            let value = match found.kind {
                JsonKind::String(quoted) => quoted.decode(text).map_or(Value::Other(raw), Value::Text),
                JsonKind::Scalar if raw == "null" => Value::Missing,
                _ => Value::Other(raw),
            };
            let Some(name) = name.decode_up_to(LONGEST_NAME, text, &mut scratch) else {
                continue;
            };
            match NAMES.binary_search(&name) {
                Ok(index) => members.0[index] = value,
                Err(_) => other(name, value),
            }
        }
        members
    }

    fn get(&self, name: &str) -> &Value<'t> {
        match NAMES.binary_search(&name) {
            Ok(index) => &self.0[index],
            Err(_) => &Value::Missing,
        }
    }

    /// The canonical form.
    pub fn canonical(&self, stream: Stream) -> String {
        self.form(stream, |name| {
            ENVELOPE
                .iter()
                .all(|(version_1, _)| *version_1 != name)
                .then(|| self.get(name))
        })
    }

    /// The form of what both versions have.
    fn version_1(&self, stream: Stream) -> String {
        let is_version_1 = self.is_version_1();
        self.form(stream, |name| {
            if VERSION_2.contains(&name) {
                return None;
            }
            let version_2 = ENVELOPE.iter().find(|(version_1, _)| *version_1 == name);
            Some(match version_2 {
                Some((_, version_2)) if !is_version_1 => self.get(version_2),
                _ => self.get(name),
            })
        })
    }

    /// Whether it has the members of version 1 and none of those that took their place.
    fn is_version_1(&self) -> bool {
        let has = |name: &str| *self.get(name) != Value::Missing;
        ENVELOPE.iter().any(|(version_1, _)| has(version_1)) && !VERSION_2.iter().any(|name| has(name))
    }

    /// An object of the members for which `value` gives a value.
    fn form<'v>(&'v self, stream: Stream, value: impl Fn(&str) -> Option<&'v Value<'t>>) -> String {
        let mut form = String::from("{");
        for name in NAMES {
            if stream != Stream::Deliveries && OF_DELIVERIES.contains(&name) {
                continue;
            }
            let Some(value) = value(name) else {
                continue;
            };
            if form.len() > 1 {
                form.push(',');
            }
            form.push('"');
            form.push_str(name);
            form.push_str("\":");
            match value {
                Value::Other(text) => form.push_str(text),
                // serde_json escapes as RFC 8785 demands.
                text => form.push_str(&serde_json::Value::from(text.text()).to_string()),
            }
        }
        form.push('}');
        form
    }

    fn kin(&self, ids: &Ids) -> u64 {
        let [id, status] = ["messageId", "status"].map(|name| self.get(name).text());
        let id = ids.uuid(format!("{id}\0{status}").as_bytes());
        // The version and the variant are in the middle.
        id.as_u64_pair().0.rotate_left(16) ^ id.as_u64_pair().1
    }

    fn status(&self, stream: Stream) -> usize {
        stream.status_index(Some(self.get("status").text()))
    }

    fn created(&self) -> Option<DateTime> {
        civil(self.get("created").text())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROW: &str = r#"{"created":"2026-10-01 09:15:02","returnPath":"bounce@example.co.jp","from":"news@example.co.jp","to":"hanako@example.net","messageId":"\u003C1@example.co.jp\u003E","reason":"","senderIp":"","sourceIp":"192.0.2.10","status":"queued","subject":"\u5341月","apiData":""}"#;

    fn record(stream: Stream, members: &str) -> OnTopic {
        let value = format!(
            r#"{{"event_type":"{stream}","server_composition":"pro",{}"#,
            &members[1..]
        );
        on_topic(value.as_bytes()).unwrap()
    }

    #[test]
    fn the_test_vectors_of_the_documentation() {
        let canonical = r#"{"apiData":"","created":"2026-10-01 09:15:02","from":"news@example.co.jp","messageId":"<1@example.co.jp>","reason":"","returnPath":"bounce@example.co.jp","senderIp":"","sourceIp":"192.0.2.10","status":"queued","subject":"十月","to":"hanako@example.net"}"#;
        assert_eq!(Members::read(ROW).canonical(Stream::Deliveries), canonical);
        let row = Row::read(Stream::Deliveries, "pro", ROW);
        assert_eq!(row.id, Ids::new("deliveries", "pro").uuid(canonical.as_bytes()));
        let documented =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/events.md")).unwrap();
        assert!(documented.contains(canonical), "docs/events.md lacks {canonical}");
        assert!(
            documented.contains(&row.id.to_string()),
            "docs/events.md lacks {}",
            row.id
        );
    }

    #[test]
    fn streams_compositions_and_members_count_and_others_do_not() {
        let row = Row::read(Stream::Deliveries, "pro", ROW);
        assert_eq!(record(Stream::Deliveries, ROW).id, row.id);
        assert_ne!(Row::read(Stream::Deliveries, "sandbox", ROW).id, row.id);
        assert_ne!(Row::read(Stream::Bounces, "pro", ROW).id, row.id);
        let other = ROW.replace("}", r#","later":1,"sourceIp":"192.0.2.10"}"#);
        assert_eq!(Row::read(Stream::Deliveries, "pro", &other).id, row.id);
        let missing = ROW
            .replace(r#","apiData":"""#, "")
            .replace(r#""reason":"""#, r#""reason":null"#);
        assert_eq!(Row::read(Stream::Deliveries, "pro", &missing).id, row.id);
    }

    #[test]
    fn version_1_is_the_same_event() {
        let old = r#"{"reason":"","sourceIp":"192.0.2.10","created":"2026-10-01 09:15:02","subject":"十月","messageId":"<1@example.co.jp>","senderIp":"","status":"queued","envelopeFrom":"bounce@example.co.jp","envelopeTo":"hanako@example.net"}"#;
        let row = Row::read(Stream::Deliveries, "pro", ROW);
        let found = record(Stream::Deliveries, old);
        assert_eq!((found.id, found.kin), (row.version_1, row.kin));
        let another = old.replace("hanako", "taro");
        assert_ne!(record(Stream::Deliveries, &another).id, row.version_1);
        assert_ne!(record(Stream::Deliveries, ROW).id, row.version_1);
    }

    #[test]
    fn kin_have_the_same_mail_and_status() {
        let row = Row::read(
            Stream::Bounces,
            "pro",
            r#"{"messageId":"<1@x>","status":"2","reason":"a"}"#,
        );
        let kin = record(
            Stream::Bounces,
            r#"{"reason":"b","status":2,"messageId":"\u003c1@x>"}"#,
        );
        assert_eq!(kin.kin, row.kin);
        assert_ne!(kin.id, row.id);
        let other = record(
            Stream::Bounces,
            r#"{"reason":"a","status":"3","messageId":"<1@x>"}"#,
        );
        assert_ne!(other.kin, row.kin);
    }

    #[test]
    fn what_is_no_event() {
        for value in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"event_type":"dead_letters","server_composition":"pro"}"#,
            r#"{"event_type":"deliveries"}"#,
            "{",
        ] {
            assert_eq!(on_topic(value.as_bytes()), None, "{value}");
        }
    }

    /// Any values of the documented members.
    fn values() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(any::<String>(), NAMES.len())
    }

    /// Writes a string with every character escaped for which `escape` says so.
    fn written(text: &str, escape: impl Fn(usize) -> bool) -> String {
        let mut out = String::from('"');
        for (at, c) in text.chars().enumerate() {
            match c {
                '"' | '\\' | '\0'..='\x1f' => out += &format!("\\u{:04x}", u32::from(c)),
                c if escape(at) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out += &format!("\\u{unit:04X}");
                    }
                }
                c => out.push(c),
            }
        }
        out + "\""
    }

    proptest! {
        #[test]
        fn any_encoding_of_an_event_is_the_event_and_any_changed_value_is_another(
            values in values(),
            order in Just((0..NAMES.len()).collect::<Vec<_>>()).prop_shuffle(),
            escapes in any::<u64>(),
            spaces in any::<bool>(),
            changed in 0..NAMES.len(),
            change in any::<String>(),
        ) {
            let of_version_2 = |name: &str| !ENVELOPE.iter().any(|(version_1, _)| *version_1 == name);
            let write = |order: &[usize], values: &[String], escapes: u64| {
                let space = if spaces && escapes > 0 { " \n" } else { "" };
                let members: Vec<String> = order
                    .iter()
                    .filter(|index| of_version_2(NAMES[**index]))
                    .map(|index| {
                        let value = written(&values[*index], |at| escapes >> (at % 64) & 1 == 1);
                        let name = written(NAMES[*index], |at| escapes >> ((at + 7) % 64) & 1 == 1);
                        format!("{space}{name}{space}:{space}{value}")
                    })
                    .collect();
                format!("{{{}{space}}}", members.join(","))
            };
            let in_order: Vec<usize> = (0..NAMES.len()).collect();
            let plain = write(&in_order, &values, 0);
            let encoded = write(&order, &values, escapes);
            let row = Row::read(Stream::Deliveries, "pro", &plain);
            prop_assert_eq!(&Row::read(Stream::Deliveries, "pro", &encoded), &row);
            let found = record(Stream::Deliveries, &encoded);
            prop_assert_eq!((found.id, found.kin, found.created), (row.id, row.kin, row.created));
            let mut other = values.clone();
            if other[changed] != change && of_version_2(NAMES[changed]) {
                other[changed] = change;
                let other = write(&order, &other, escapes);
                prop_assert_ne!(Row::read(Stream::Deliveries, "pro", &other).id, row.id);
            }
        }
    }
}
