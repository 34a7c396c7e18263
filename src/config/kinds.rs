//! The kinds of keys, with the range or the form of their values.

use std::{ops::RangeInclusive, time::Duration};

use ::config::{Value, ValueKind};

use super::{
    parse,
    problem::{Fault, fault},
};
use crate::human;

/// The kind of a key's value.
pub(super) enum Kind {
    Boolean,
    Number(RangeInclusive<u64>),
    /// Bytes.
    Size(RangeInclusive<u64>),
    Duration(RangeInclusive<Duration>),
    /// A duration without a fraction of a second.
    Seconds(RangeInclusive<Duration>),
    /// The HTTP status of malformed webhooks.
    Status,
    /// An IP address and a port.
    Address,
    TimeZone,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text of a form. Its ends are trimmed.
    Text(Form),
    /// Text of a form, or an empty text.
    OptionalText(Form),
    /// One or more texts of a form.
    List(Form),
    /// The name of a file with secrets; the value may be a secret by mistake.
    File,
    /// One secret, or an empty text.
    Secret,
    /// A list of secrets.
    Secrets,
    /// An array of tables, one for each named credential; files only.
    Credentials,
    /// A table of time zones by names of the user's choice.
    TimeZones,
    /// A table with librdkafka's names, dots included, some of them secret.
    Properties,
}

/// What is wrong with a text, if anything.
pub(super) type Form = fn(&str) -> Option<Fault>;

impl Kind {
    /// Whether the key is a table whose entries have names of their own.
    pub(super) fn is_table(&self) -> bool {
        matches!(self, Kind::TimeZones | Kind::Properties)
    }

    /// What is wrong with a value, if anything. For a table, the value is one of its entries. The two kinds with more structure,
    /// [`Kind::Credentials`] and [`Kind::Properties`], are checked where they are read.
    pub(super) fn fault(&self, value: &Value) -> Option<Fault> {
        let kind = &value.kind;
        match self {
            Kind::Boolean => check(value, parse::boolean(kind), "true or false", "give true or false"),
            Kind::Number(range) => match parse::number(kind) {
                Some(number) => outside(value, &number, range, |number| number.to_string()),
                None => is_not(value, "a whole number", "give digits only"),
            },
            Kind::Size(range) => match parse::size(kind) {
                Some(size) => outside(value, &size, range, |size| human::exact_size(*size)),
                None => is_not(
                    value,
                    "a size",
                    "give bytes, or a whole number with KiB, MiB, GiB (by 1024) or k, M, G (by 1000), such as 8MiB",
                ),
            },
            Kind::Duration(range) => duration_fault(value, range),
            Kind::Seconds(range) => duration_fault(value, range).or_else(|| {
                (parse::duration(kind)?.subsec_nanos() != 0).then(|| {
                    fault(
                        "is no whole number of seconds",
                        "give whole seconds, as the header Retry-After needs",
                    )
                })
            }),
            Kind::Status => check(
                value,
                parse::status(kind),
                "a status for malformed webhooks",
                "give 200 to 202, or 400 to 499",
            ),
            Kind::Address => check(
                value,
                parse::address(kind),
                "an address",
                "give an IP address and a port, such as 0.0.0.0:8080 or [::]:8080",
            ),
            Kind::TimeZone | Kind::TimeZones => check(
                value,
                parse::time_zone(kind),
                "a time zone",
                "give a name of the IANA time zone database, such as Asia/Tokyo or UTC",
            ),
            Kind::Choice(words) => text_fault(value, |text| {
                (!words.contains(&text)).then(|| {
                    let what = format!("{} is not a choice here", parse::quoted(text));
                    fault(what, format!("give {}", words.join(" or ")))
                })
            }),
            Kind::Text(form) => text_fault(value, form),
            Kind::OptionalText(form) => match parse::text(kind).map(str::trim) {
                Some("") => None,
                _ => text_fault(value, form),
            },
            Kind::List(form) => match parse::list(kind) {
                Some(items) if items.is_empty() => form("").map(|(_, fix)| fault("is empty", fix)),
                Some(items) => items.iter().find_map(|item| form(item)),
                None => not_a_list(),
            },
            Kind::Secrets => parse::list(kind).is_none().then(not_a_list).flatten(),
            Kind::Secret => parse::text(kind)
                .is_none()
                .then(|| fault("is not text", "put it in quotes")),
            // What it is instead may be a secret.
            Kind::File => parse::text(kind)
                .is_none()
                .then(|| fault("is not text", "put the file's name in quotes")),
            Kind::Credentials | Kind::Properties => None,
        }
    }

    /// The default of a list or table.
    pub(super) fn empty(&self) -> ValueKind {
        match self.is_table() {
            true => ValueKind::Table(::config::Map::new()),
            false => ValueKind::Array(Vec::new()),
        }
    }
}

fn is_not(value: &Value, noun: &str, fix: &str) -> Option<Fault> {
    Some(fault(format!("{} is not {noun}", parse::shown(value)), fix))
}

fn check<T>(value: &Value, parsed: Option<T>, noun: &str, fix: &str) -> Option<Fault> {
    match parsed {
        Some(_) => None,
        None => is_not(value, noun, fix),
    }
}

fn outside<T: PartialOrd>(
    value: &Value,
    parsed: &T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Option<Fault> {
    if range.contains(parsed) {
        return None;
    }
    let size = match parsed < range.start() {
        true => "too small",
        false => "too large",
    };
    let what = format!("{} is {size}", parse::shown(value));
    Some(fault(
        what,
        format!("give {} to {}", show(range.start()), show(range.end())),
    ))
}

fn duration_fault(value: &Value, range: &RangeInclusive<Duration>) -> Option<Fault> {
    match parse::duration(&value.kind) {
        Some(duration) => outside(value, &duration, range, |duration| {
            human::exact_duration(*duration)
        }),
        None => is_not(
            value,
            "a time",
            "give seconds, or a whole number with ms, s, m or h, such as 500ms",
        ),
    }
}

fn text_fault(value: &Value, form: impl Fn(&str) -> Option<Fault>) -> Option<Fault> {
    match parse::text(&value.kind).map(str::trim) {
        Some("") => Some(fault(
            "is empty",
            "give a value, or leave the key out for the default",
        )),
        Some(text) => form(text),
        None => is_not(value, "text", "put it in quotes"),
    }
}

fn not_a_list() -> Option<Fault> {
    Some(fault(
        "is not a list of texts",
        r#"give ["one", "two"], in a variable: one,two"#,
    ))
}
