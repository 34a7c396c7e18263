//! A dead letter on one line.

use crate::{
    dead_letter::{Letter, Scope},
    human,
    plain::visible,
    replay::assembly::RecordPlace,
};

/// A letter on one line: its place, when it was received, the reason, what it is and its size.
pub fn line(place: RecordPlace, letter: &Letter) -> String {
    let RecordPlace { partition, offset } = place;
    let received = human::time(letter.received_at_micros);
    let text = |text: &Option<String>| visible(text.as_deref().unwrap_or("-"));
    let (event_type, composition) = (text(&letter.event_type), text(&letter.server_composition));
    let what = match letter.reason.scope() {
        Scope::Broker => format!("a record of {}", text(&letter.topic)),
        Scope::Body => format!("{event_type} of {composition}"),
        Scope::Element => {
            let index = letter
                .index
                .map_or_else(String::new, |index| format!("[{index}]"));
            format!("{event_type} of {composition}: {}{index}", text(&letter.member))
        }
    };
    let (reason, bytes) = (letter.reason, letter.value.len());
    format!("{partition}/{offset}  {received}  {reason}  {what}  {bytes} bytes")
}

/// The place of a letter that can't be read.
pub fn unreadable(place: RecordPlace) -> String {
    format!("{}/{}", place.partition, place.offset)
}
