//! The search for everything at once: an Aho-Corasick automaton that walks every way to read a text.
//!
//! A text in unknown encodings is a graph: from each position, one edge for each way to read what begins there
//! ([`Readings`]), labelled with the bytes that it yields. A needle is present if some path spells it. The automaton
//! follows all paths at once: positions are visited in order, each with the set of states in which some path arrives.
//! Away from percent signs, plus signs and backslashes that set has one state, and a step costs one look-up.
//!
//! The needles are the configured values, their base64 forms, and the names of the body's own key.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

use aho_corasick::{Anchored, automaton::Automaton, automaton::StateID, nfa::contiguous::NFA};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::spelling::{Readings, is_lead};

/// Shortest value, in bytes, that is searched for.
pub const SHORTEST: usize = 4;

/// The names of a body's key, in lower case. The parser accepts only the first, but a sender that uses another means
/// a secret as well.
pub(super) const NAMES: [&str; 3] = ["api_key", "api-key", "apikey"];

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    /// A configured value, in one of its forms.
    Value(Range<usize>),
    /// A name of the key.
    Name(Range<usize>),
}

/// Everything that is searched for.
pub(super) struct Needles {
    automaton: NFA,
    start: StateID,
    needles: Vec<Vec<u8>>,
    /// How many of them are names, which come first.
    names: usize,
}

impl Needles {
    /// Needles for the names of the key and for these values; `None` if they are more than an automaton can hold.
    pub fn new<'v>(values: impl Iterator<Item = &'v str>) -> Option<Needles> {
        let mut needles: Vec<Vec<u8>> = NAMES.iter().flat_map(|name| in_every_case(name)).collect();
        let names = needles.len();
        let mut known = HashSet::new();
        for value in values {
            let forms = forms(value);
            needles.extend(forms.into_iter().filter(|form| known.insert(form.clone())));
        }
        let automaton = NFA::new(&needles).ok()?;
        let start = automaton.start_state(Anchored::No).ok()?;
        Some(Needles {
            automaton,
            start,
            needles,
            names,
        })
    }

    /// Reports everything that some reading of the text spells, ordered by end.
    pub fn find(&self, text: &[u8], found: &mut impl FnMut(Hit)) {
        let mut readings = Readings::new(text);
        let mut plain = self.start;
        // Where paths through longer characters continue, and in which states.
        let mut ahead: BTreeSet<(usize, StateID)> = BTreeSet::new();
        let mut here = Vec::new();
        for (at, byte) in text.iter().enumerate() {
            let next = self.step(plain, *byte);
            if ahead.is_empty() && !is_lead(*byte) {
                self.report(&mut readings, next, at + 1, found);
                plain = next;
                continue;
            }
            here.clear();
            here.push(plain);
            while let Some(&(place, state)) = ahead.first()
                && place == at
            {
                ahead.pop_first();
                if state != plain {
                    here.push(state);
                }
            }
            for spelled in readings.at(at) {
                for state in &here {
                    let reached = spelled
                        .bytes()
                        .iter()
                        .fold(*state, |state, byte| self.step(state, *byte));
                    self.report(&mut readings, reached, spelled.next, found);
                    // The plain path covers the start state.
                    if reached != self.start && (spelled.next, reached) != (at + 1, next) {
                        ahead.insert((spelled.next, reached));
                    }
                }
            }
            plain = next;
        }
    }

    fn step(&self, state: StateID, byte: u8) -> StateID {
        self.automaton.next_state(Anchored::No, state, byte)
    }

    fn report(&self, readings: &mut Readings<'_>, state: StateID, end: usize, found: &mut impl FnMut(Hit)) {
        if !self.automaton.is_special(state) || !self.automaton.is_match(state) {
            return;
        }
        for index in 0..self.automaton.match_len(state) {
            let number = self.automaton.match_pattern(state, index).as_usize();
            let Some(needle) = self.needles.get(number) else {
                continue;
            };
            let place = start_of(readings, needle, end)..end;
            found(match number < self.names {
                true => Hit::Name(place),
                false => Hit::Value(place),
            });
        }
    }
}

/// Where a needle begins that some reading of the text spells up to `end`. If there are several positions and the
/// needle begins like an escape, the first one counts: the rest of a cut escape would corrupt the text before it.
fn start_of(readings: &mut Readings<'_>, needle: &[u8], end: usize) -> usize {
    /// No escaped escape is longer.
    const FURTHER: usize = 64;
    let latest = end.saturating_sub(needle.len());
    let lead = needle.first().is_some_and(|byte| is_lead(*byte));
    if !lead && readings.text.get(latest..end) == Some(needle) {
        return latest;
    }
    let mut found = None;
    for start in (0..=latest).rev() {
        if found.is_some_and(|found| !lead || found - start > FURTHER) {
            break;
        }
        if spells(readings, start, needle, end) {
            found = Some(start);
        }
    }
    found.unwrap_or(latest)
}

/// Whether some reading of the text between the two positions spells the needle.
fn spells(readings: &mut Readings<'_>, start: usize, needle: &[u8], end: usize) -> bool {
    // Where paths have arrived, and how much of the needle they have read. Nearly always there is one.
    let mut ahead = BTreeSet::new();
    let mut next = Some((start, 0));
    while let Some((at, read)) = next {
        let (text, rest) = (readings.text.get(at..end), needle.get(read..));
        let (text, rest) = (text.unwrap_or_default(), rest.unwrap_or_default());
        let is_plain = |(byte, wanted): &(&u8, &u8)| byte == wanted && !is_lead(**byte);
        let plain = text.iter().zip(rest).take_while(is_plain).count();
        let (at, read, rest) = (at + plain, read + plain, rest.get(plain..).unwrap_or_default());
        if rest.is_empty() && at == end {
            return true;
        }
        if text.get(plain).copied().is_some_and(is_lead) {
            for spelled in readings.at(at) {
                if spelled.next <= end && rest.starts_with(spelled.bytes()) {
                    ahead.insert((spelled.next, read + spelled.bytes().len()));
                }
            }
        }
        next = ahead.pop_first();
    }
    false
}

/// The word in every mixture of upper and lower case.
fn in_every_case(word: &str) -> Vec<Vec<u8>> {
    word.bytes().fold(vec![Vec::new()], |words, byte| {
        let mut cases = vec![byte, byte.to_ascii_uppercase()];
        cases.dedup();
        let longer = |word: Vec<u8>| {
            let cases = cases.clone().into_iter();
            cases.map(move |byte| [word.as_slice(), &[byte]].concat())
        };
        words.into_iter().flat_map(longer).collect()
    })
}

/// The value and its base64 forms. [`Needles::find`] sees through percent-encoding and escapes around them; those
/// inside base64 must be forms of their own.
fn forms(value: &str) -> Vec<Vec<u8>> {
    const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    let mut inner = vec![value.as_bytes().to_vec()];
    // What some clients encode if the password is not ASCII: not UTF-8, but Latin-1.
    let latin = value.chars().map(|c| u8::try_from(u32::from(c)).ok());
    inner.extend(latin.collect::<Option<Vec<u8>>>());
    let mut forms = inner.clone();
    for plain in [UNRESERVED, NON_ALPHANUMERIC] {
        let percent = percent_encode(value.as_bytes(), plain).to_string();
        let lower = lower_hexadecimal(&percent);
        inner.extend([percent.replace("%20", "+"), lower.replace("%20", "+")].map(String::into_bytes));
        inner.extend([percent, lower].map(String::into_bytes));
    }
    let quoted = serde_json::Value::from(value).to_string();
    inner.extend(quoted.as_bytes().get(1..quoted.len() - 1).map(<[u8]>::to_vec));
    inner.sort();
    inner.dedup();
    for inner in inner {
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            forms.push(engine.encode(&inner).into_bytes());
        }
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            forms.extend((0..3).map(|before| inside_base64(engine, &inner, before)));
        }
    }
    forms.retain(|form| form.len() >= SHORTEST);
    forms
}

/// The base64 letters that depend on these bytes alone if `before` other bytes precede them and any follow.
fn inside_base64(engine: &impl base64::Engine, bytes: &[u8], before: usize) -> Vec<u8> {
    let all = [&[0; 3][..before], bytes].concat();
    let letters = engine.encode(&all).into_bytes();
    let first = (before * 8).div_ceil(6);
    let end = all.len() * 8 / 6;
    letters.get(first..end).unwrap_or_default().to_vec()
}

fn lower_hexadecimal(percent: &str) -> String {
    let mut digits = 0;
    percent
        .chars()
        .map(|c| match (c, digits) {
            ('%', _) => {
                digits = 2;
                c
            }
            (_, 0) => c,
            _ => {
                digits -= 1;
                c.to_ascii_lowercase()
            }
        })
        .collect()
}
