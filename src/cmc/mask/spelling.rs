//! How encodings spell bytes: percent-encoding, JSON escapes, and layers of both.
//!
//! A [`Layer`] is one encoding. A stack of layers is read from the bottom up: the last one decodes what those below
//! it have decoded. Nothing is copied: [`read`] decodes one character in place and returns where the next one begins.

/// The deepest stack that is examined: JSON in a form in JSON, with escapes in its names, has three layers.
pub(super) const DEPTH: usize = 4;

/// One encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// A field of a form: `%XX` is a byte, `+` a space. It ends at `&`.
    Percent,
    /// The inside of a JSON string: a backslash begins an escape. It ends at `"`.
    Escapes,
    /// Either of the two; it never ends.
    Either,
}

/// A character and where the next one begins. A percent escape spells one byte, which may be part of a character.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spelled {
    bytes: [u8; 4],
    len: usize,
    pub next: usize,
}

impl Spelled {
    fn byte_at(byte: u8, next: usize) -> Spelled {
        Spelled {
            bytes: [byte, 0, 0, 0],
            len: 1,
            next,
        }
    }

    fn char_at(char: char, next: usize) -> Spelled {
        let mut bytes = [0; 4];
        let len = char.encode_utf8(&mut bytes).len();
        Spelled { bytes, len, next }
    }

    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The character if it is ASCII; otherwise a byte that is not ASCII.
    pub fn ascii(&self) -> u8 {
        if self.len == 1 { self.bytes[0] } else { 0xFF }
    }
}

/// Whether the byte may begin a character that is longer than one byte.
pub(super) fn is_lead(byte: u8) -> bool {
    matches!(byte, b'%' | b'+' | b'\\')
}

/// Reads the character at `at` through the layers; `None` at the end of the text or of a layer.
pub(super) fn read(text: &[u8], layers: &[Layer], at: usize) -> Option<Spelled> {
    let Some((layer, below)) = layers.split_last() else {
        return Some(Spelled::byte_at(*text.get(at)?, at + 1));
    };
    let lead = read(text, below, at)?;
    decode(*layer, lead, &mut |at| read(text, below, at))
}

/// A text read in every way at once: through any stack of up to [`DEPTH`] layers, which may differ at each position.
pub(super) struct Readings<'t> {
    pub text: &'t [u8],
    /// Recent readings, each stored at its position modulo the length: a deep stack reads the same positions again
    /// and again.
    known: Vec<CachedReading>,
}

#[derive(Clone)]
struct CachedReading {
    at: usize,
    /// Through how many layers it was read, and the results.
    depths: usize,
    spelled: [Spelled; DEPTH + 1],
}

/// How many positions are remembered. No character of a real encoding is longer.
const PLACES: usize = 256;

impl<'t> Readings<'t> {
    pub fn new(text: &'t [u8]) -> Self {
        let nowhere = CachedReading {
            at: usize::MAX,
            depths: 0,
            spelled: [Spelled::byte_at(0, 0); DEPTH + 1],
        };
        Readings {
            text,
            known: vec![nowhere; PLACES],
        }
    }

    /// The different ways to read what begins at `at`, the byte itself first.
    pub fn at(&mut self, at: usize) -> impl Iterator<Item = Spelled> + use<> {
        let mut all = [None; DEPTH + 1];
        let mut last = None;
        for (depth, place) in all.iter_mut().enumerate() {
            let spelled = self.read(at, depth);
            let same = spelled.map(|spelled| (spelled.next, spelled.ascii()));
            if same != last {
                *place = spelled;
                last = same;
            }
            // A byte that leads no escape stays what it is at any depth.
            if !spelled.is_some_and(|spelled| is_lead(spelled.ascii())) {
                break;
            }
        }
        all.into_iter().flatten()
    }

    fn read(&mut self, at: usize, depth: usize) -> Option<Spelled> {
        let byte = *self.text.get(at)?;
        if depth == 0 || !is_lead(byte) {
            return Some(Spelled::byte_at(byte, at + 1));
        }
        let known = &self.known[at % PLACES];
        if known.at == at && depth <= known.depths {
            return Some(known.spelled[depth]);
        }
        let lead = self.read(at, depth - 1)?;
        let spelled = decode(Layer::Either, lead, &mut |at| self.read(at, depth - 1))?;
        let known = &mut self.known[at % PLACES];
        // Depths follow one another, but another position may have taken the slot in between.
        if known.at != at {
            (known.at, known.depths) = (at, 0);
        }
        if known.depths + 1 == depth {
            known.depths = depth;
            known.spelled[depth] = spelled;
        }
        Some(spelled)
    }
}

/// What a layer makes of a character that may begin a longer one; `below` reads its parts.
fn decode(layer: Layer, lead: Spelled, below: &mut dyn FnMut(usize) -> Option<Spelled>) -> Option<Spelled> {
    match (lead.ascii(), layer) {
        (b'&', Layer::Percent) | (b'"', Layer::Escapes) => None,
        (b'+', Layer::Percent | Layer::Either) => Some(Spelled::byte_at(b' ', lead.next)),
        (b'%', Layer::Percent | Layer::Either) => {
            let byte = hexadecimal(below, lead.next, 2);
            Some(byte.map_or(lead, |(byte, next)| Spelled::byte_at(byte as u8, next)))
        }
        (b'\\', Layer::Escapes | Layer::Either) => Some(escape(below, lead.next).unwrap_or(lead)),
        _ => Some(lead),
    }
}

/// The character that follows a backslash.
fn escape(below: &mut dyn FnMut(usize) -> Option<Spelled>, at: usize) -> Option<Spelled> {
    let escaped = below(at)?;
    let meant = match escaped.ascii() {
        b'u' => return code_point(below, escaped.next),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        // Not an escape, but the beginning of a character of another layer.
        b'%' | b'+' => return None,
        other if other.is_ascii() => char::from(other),
        _ => return None,
    };
    Some(Spelled::char_at(meant, escaped.next))
}

/// The character of `XXXX`, or of a surrogate pair `XXXX\uXXXX`.
fn code_point(below: &mut dyn FnMut(usize) -> Option<Spelled>, at: usize) -> Option<Spelled> {
    let (high, next) = hexadecimal(below, at, 4)?;
    if !(0xD800..0xDC00).contains(&high) {
        return Some(Spelled::char_at(char::from_u32(high)?, next));
    }
    let mut at = next;
    for wanted in *b"\\u" {
        let read = below(at)?;
        if read.ascii() != wanted {
            return None;
        }
        at = read.next;
    }
    let (low, next) = hexadecimal(below, at, 4)?;
    if !(0xDC00..0xE000).contains(&low) {
        return None;
    }
    let combined = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    Some(Spelled::char_at(char::from_u32(combined)?, next))
}

fn hexadecimal(
    below: &mut dyn FnMut(usize) -> Option<Spelled>,
    mut at: usize,
    digits: usize,
) -> Option<(u32, usize)> {
    let mut value = 0;
    for _ in 0..digits {
        let read = below(at)?;
        value = value << 4 | char::from(read.ascii()).to_digit(16)?;
        at = read.next;
    }
    Some((value, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str, layers: &[Layer]) -> String {
        let mut bytes = Vec::new();
        let mut at = 0;
        while let Some(read) = read(text.as_bytes(), layers, at) {
            bytes.extend_from_slice(read.bytes());
            at = read.next;
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn layers_are_read_from_the_bottom_up() {
        use Layer::{Escapes, Percent};
        for (text, layers, expected) in [
            ("a%20b+c&d", &[Percent][..], "a b c"),
            (r#"a\"\\\/\u0041\ud83d\ude00\n"b"#, &[Escapes], "a\"\\/A😀\n"),
            ("%5C%22%5Cu0041", &[Percent, Escapes], "\"A"),
            (r"\u002541+", &[Escapes, Percent], "A "),
            (r"\\u0041", &[Escapes, Escapes], "A"),
            ("%2541", &[Percent, Percent], "A"),
            ("%4", &[Percent], "%4"),
            (r"\ud83dx", &[Escapes], r"\ud83dx"),
            (r"100%", &[Percent, Escapes], "100%"),
        ] {
            assert_eq!(decoded(text, layers), expected, "{text}");
        }
    }

    #[test]
    fn all_readings_of_a_place() {
        for (text, expected) in [
            ("a", vec!["a"]),
            ("+", vec!["+", " "]),
            ("%41", vec!["%", "A"]),
            ("%252541", vec!["%", "%", "%", "A"]),
            ("%%34%31", vec!["%", "A"]),
            (r"\\\\n", vec!["\\", "\\", "\\", "\n"]),
            (r"\%22", vec!["\\", "\""]),
            (r"%\u0032\u0032", vec!["%", "\""]),
        ] {
            let found: Vec<_> = Readings::new(text.as_bytes())
                .at(0)
                .map(|spelled| String::from_utf8(spelled.bytes().to_vec()).unwrap())
                .collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
