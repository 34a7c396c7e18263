//! Masking credentials in dead letters.
//!
//! Two things are overwritten with as many `*` as they have bytes, so that offsets stay correct:
//!
//! - every configured value, and its base64 forms (standard and URL-safe, with and without padding, alone or as part
//!   of a longer text, as in Basic credentials);
//! - the value of every member or field with a name of the body's own key (`api_key`, also `api-key` and `apikey`, in
//!   any case), configured or not: in JSON, a form, a multipart body or XML.
//!
//! Both are found however they are spelled: percent-encoded (even partly, and with `+` for a space), with JSON
//! escapes, in up to [`spelling::DEPTH`] layers of these, and all of that in UTF-16 of either byte order. A value
//! that is not a JSON string becomes one, so that valid JSON stays valid: a one-digit number becomes `0`.
//!
//! Configured values shorter than [`SHORTEST`] bytes are not searched for: they would tear innocent text apart. They
//! are still masked as the value of a key.
//!
//! One pass searches for everything ([`needles`]); its time grows with the text, not with the number of credentials.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`needles`] | the search, in every encoding at once |
//! | [`spelling`] | how encodings spell bytes |
//! | [`value`] | the value of a member or field with a name of the key |

mod needles;
mod spelling;
mod value;

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

pub use self::needles::SHORTEST;
use self::{
    needles::{Hit, NAMES, Needles},
    value::{Fill, Values},
};

/// The values to be masked: the configured ones, and whatever a body gives as its key.
#[derive(Clone)]
pub struct Secrets {
    /// `None` if there are more values than can be searched for; then everything is masked.
    needles: Option<Arc<Needles>>,
    values: usize,
}

impl Secrets {
    /// Takes the configured values. Those shorter than [`SHORTEST`] are not searched for.
    pub fn new<'v>(values: impl IntoIterator<Item = &'v str>) -> Self {
        let values: Vec<&str> = values
            .into_iter()
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        Secrets {
            needles: Needles::new(values.iter().copied()).map(Arc::new),
            values: values.len(),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} redacted)", self.values)
    }
}

/// Masks every credential; borrowed if there was none.
pub fn mask<'a>(bytes: &'a [u8], secrets: &Secrets) -> Cow<'a, [u8]> {
    mask_as(bytes, secrets, false)
}

/// [`mask`] for a body that was read as a form, whatever it looks like.
pub(super) fn mask_form<'a>(bytes: &'a [u8], secrets: &Secrets) -> Cow<'a, [u8]> {
    mask_as(bytes, secrets, true)
}

/// [`mask`] for the body of a received mail, which may be large and hold any file. Credentials in UTF-16 are not searched for: a
/// reading of each file as UTF-16 would take a multiple of its memory.
pub(super) fn mask_mail<'a>(bytes: &'a [u8], secrets: &Secrets) -> Cow<'a, [u8]> {
    mask_in(bytes, secrets, false, &[])
}

/// [`mask`] for text.
pub(super) fn mask_text<'a>(text: &'a str, secrets: &Secrets) -> Cow<'a, str> {
    match mask(text.as_bytes(), secrets) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Masks the JSON value of a member with a name of the key.
pub(super) fn mask_whole(value: &[u8]) -> Vec<u8> {
    let mut masked = value.to_vec();
    overwrite(&mut masked, Fill::String);
    masked
}

/// Whether a member has a name of the key.
pub(super) fn is_key(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|key| name.ends_with(key))
}

fn mask_as<'a>(bytes: &'a [u8], secrets: &Secrets, form: bool) -> Cow<'a, [u8]> {
    mask_in(bytes, secrets, form, &Utf16::ALL)
}

fn mask_in<'a>(bytes: &'a [u8], secrets: &Secrets, form: bool, wides: &[Utf16]) -> Cow<'a, [u8]> {
    let mut masked = Cow::Borrowed(bytes);
    let Some(needles) = &secrets.needles else {
        masked.to_mut().fill(b'*');
        return masked;
    };
    find(bytes, needles, form, true, |place, fill| {
        overwrite(masked.to_mut().get_mut(place).unwrap_or_default(), fill);
    });
    // A text that is decoded wrongly also has names and values, but not all of its ends.
    let mut named = false;
    for wide in wides.iter().filter(|_| bytes.contains(&0)) {
        let (text, units) = wide.decode(bytes);
        named |= find(&text, needles, form, !named, |place, _| {
            for unit in units.get(place).unwrap_or_default() {
                let at = wide.begin + 2 * *unit as usize;
                if let Some(unit) = masked.to_mut().get_mut(at..at + 2) {
                    unit.copy_from_slice(&wide.star());
                }
            }
        });
    }
    masked
}

/// Reports the place of everything to be masked, and whether a name had a value. `names`: whether to search for
/// names, too.
fn find(
    text: &[u8],
    needles: &Needles,
    form: bool,
    names: bool,
    mut found: impl FnMut(Range<usize>, Fill),
) -> bool {
    let mut values = Values::new(text, form);
    let mut named = false;
    needles.find(text, &mut |what| match what {
        Hit::Value(place) => found(place, Fill::Stars),
        Hit::Name(name) => {
            if names && let Some((place, fill)) = values.of(name) {
                named = true;
                found(place, fill);
            }
        }
    });
    named
}

fn overwrite(place: &mut [u8], fill: Fill) {
    place.fill(b'*');
    match (fill, place) {
        (Fill::String, [one]) => *one = b'0',
        (Fill::String, [first, .., last]) => (*first, *last) = (b'"', b'"'),
        _ => {}
    }
}

/// A way to read UTF-16: byte order and starting offset.
#[derive(Clone, Copy)]
struct Utf16 {
    big: bool,
    begin: usize,
}

impl Utf16 {
    const ALL: [Utf16; 4] = [
        Utf16 { big: false, begin: 0 },
        Utf16 { big: true, begin: 0 },
        Utf16 { big: false, begin: 1 },
        Utf16 { big: true, begin: 1 },
    ];

    fn star(self) -> [u8; 2] {
        let star = u16::from(b'*');
        if self.big {
            star.to_be_bytes()
        } else {
            star.to_le_bytes()
        }
    }

    /// The text in UTF-8, and for each of its bytes the number of the unit that it comes from.
    fn decode(self, bytes: &[u8]) -> (Vec<u8>, Vec<u32>) {
        let (mut text, mut places) = (Vec::new(), Vec::new());
        let (units, _) = bytes.get(self.begin..).unwrap_or_default().as_chunks::<2>();
        let unit = |unit: &[u8; 2]| match self.big {
            true => u16::from_be_bytes(*unit),
            false => u16::from_le_bytes(*unit),
        };
        let mut number = 0;
        for char in char::decode_utf16(units.iter().map(unit)) {
            let char = char.unwrap_or(char::REPLACEMENT_CHARACTER);
            text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            if char.len_utf16() == 2 {
                places.resize(text.len() - 2, number);
                number += 1;
            }
            places.resize(text.len(), number);
            number += 1;
        }
        (text, places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Secrets {
        Secrets::new(values.iter().copied())
    }

    #[test]
    fn keys_in_bodies_that_can_not_be_opened() {
        for (body, expected) in [
            (r#"{"api_key" : "abc","event":"#, r#"{"api_key" : "***","event":"#),
            (r#"{"event":{},"api_key":"abc"#, r#"{"event":{},"api_key":"***"#),
            (r#"{"api_key":"a\"bc\\","#, r#"{"api_key":"*******","#),
            (r#"{"api_key":123,"#, r#"{"api_key":***,"#),
            ("event=%zz&api_key=abc&x=1", "event=%zz&api_key=***&x=1"),
            (
                "a\r\nname=\"api_key\"\r\n\r\nabc\r\n--b",
                "a\r\nname=\"api_key\"\r\n\r\n***\r\n--b",
            ),
            ("my api_key is secret", "my api_key is secret"),
            ("api_key", "api_key"),
            ("api_key=", "api_key="),
        ] {
            let masked = mask(body.as_bytes(), &secrets(&[]));
            assert_eq!(String::from_utf8_lossy(&masked), expected);
            assert_eq!(matches!(masked, Cow::Owned(_)), body != expected, "{body}");
        }
    }

    #[test]
    fn every_spelling_is_overwritten_at_its_length() {
        for (secret, text, expected) in [
            ("s3cret", "a s3cret, s3crets3cret", "a ******, ************"),
            ("s3cret", "s3cre s3cres3cret", "s3cre s3cre******"),
            ("aaaa", "aaaaa", "*****"),
            ("s3cret", "k=%733cret&", "k=********&"),
            ("a b/c<", "x=a+b%2fc%3C&", "x=**********&"),
            ("a b/c<", "x=a%20b%2Fc<", "x=**********"),
            ("a b/c<", r#"{"k":"a b\/c\u003c"}"#, r#"{"k":"************"}"#),
            ("a\\b\"c", r#""a\\b\"c" a\b"c"#, r#""*******" *****"#),
            ("a\\b\"c", "a%5Cb%22c", "*********"),
            ("a\"b\"c", "%22a%5C%22b%5Cu0022c%22", "%22*****************%22"),
            ("鍵😀鍵", r"\u9375\uD83D\uDE00\u9375", "************************"),
            ("鍵😀鍵", "鍵😀鍵", "**********"),
            ("a+b+", "a+b+ a%2Bb%2B a%2bb+", "**** ******** ******"),
            ("100%", "100% 100%25 100%2", "**** ****** ****2"),
        ] {
            let secrets = secrets(&[secret]);
            let masked = mask_text(text, &secrets);
            assert_eq!(masked, expected, "{secret} in {text}");
        }
    }

    #[test]
    fn basic_counts_in_its_three_forms() {
        let secrets = secrets(&["user:pass:word", "pass:word"]);
        for (text, expected) in [
            ("user pass:word", "user *********"),
            ("user:pass:word", "**************"),
            ("dXNlcjpwYXNzOndvcmQ=", "********************"),
            ("dXNlcjpwYXNzOndvcmQ", "*******************"),
            // After one and two other bytes, and before others.
            ("eHVzZXI6cGFzczp3b3JkCg==", "eH******************Cg=="),
            ("eHh1c2VyOnBhc3M6d29yZAo=", "eHh******************Ao="),
            ("dXNlcjpwYXNzOndvcmQ%3D", "**********************"),
        ] {
            assert_eq!(mask_text(text, &secrets), expected);
        }
    }

    #[test]
    fn short_values_are_no_needles_and_innocent_text_is_borrowed() {
        let secrets = secrets(&["abc", "u:pw", "pw", ""]);
        assert!(matches!(mask(b"abc pw u+pw%", &secrets), Cow::Borrowed(_)));
        assert_eq!(mask(b"u:pw", &secrets).as_ref(), b"****");
        assert_eq!(format!("{secrets:?}"), "Secrets(1 redacted)");
    }
}
