//! Character encodings as mails name and use them, decoded by the Encoding Standard's rules with these exceptions:
//!
//! - `us-ascii` is UTF-8, and not windows-1252: what is not ASCII after all is UTF-8 or stays undecoded.
//! - Names that Japanese mail programs use and the standard lacks are understood.
//! - In ISO-2022-JP an escape sequence may follow another one. The standard calls that an error, but it stands wherever texts or
//!   encoded words were joined.

use std::borrow::Cow;

use encoding_rs::{EUC_JP, Encoding, ISO_2022_JP, SHIFT_JIS, UTF_8};

/// The encoding of this name; `None` if it is unknown.
pub(super) fn encoding(label: &[u8]) -> Option<&'static Encoding> {
    let label = label.trim_ascii().to_ascii_lowercase();
    match &*label {
        b"us-ascii" | b"ascii" | b"ansi_x3.4-1968" => Some(UTF_8),
        b"cp932" | b"ms932" | b"windows-932" => Some(SHIFT_JIS),
        b"cp51932" | b"eucjp-ms" | b"eucjp-win" => Some(EUC_JP),
        b"cp50220" | b"cp50221" | b"iso-2022-jp-1" | b"iso-2022-jp-ms" => Some(ISO_2022_JP),
        label => Encoding::for_label(label),
    }
}

/// The text; `None` if the bytes are not valid in this encoding. A byte order mark stays.
pub(super) fn decode<'a>(encoding: &'static Encoding, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
    match without_idle_escapes(encoding, bytes) {
        Cow::Borrowed(bytes) => encoding.decode_without_bom_handling_and_without_replacement(bytes),
        Cow::Owned(bytes) => {
            let text = encoding.decode_without_bom_handling_and_without_replacement(&bytes)?;
            Some(Cow::Owned(text.into_owned()))
        }
    }
}

/// The text, with U+FFFD in place of what is not valid.
pub(super) fn decode_lossy(encoding: &'static Encoding, bytes: &[u8]) -> String {
    let bytes = without_idle_escapes(encoding, bytes);
    encoding.decode_without_bom_handling(&bytes).0.into_owned()
}

/// Of ISO-2022-JP: without the escape sequences that another one follows at once.
fn without_idle_escapes<'a>(encoding: &'static Encoding, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    /// Each escape sequence has this length.
    const LENGTH: usize = 3;
    let is_escape = |bytes: &[u8]| {
        matches!(
            bytes,
            [0x1b, b'(', b'B' | b'J' | b'I', ..] | [0x1b, b'$', b'@' | b'B', ..]
        )
    };
    let is_idle = |bytes: &[u8]| is_escape(bytes) && bytes.get(LENGTH..).is_some_and(is_escape);
    if encoding != ISO_2022_JP || !(0..bytes.len()).any(|at| is_idle(&bytes[at..])) {
        return Cow::Borrowed(bytes);
    }
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, tail)) = rest.split_first() {
        rest = match is_idle(rest) {
            true => &rest[LENGTH..],
            false => {
                kept.push(*byte);
                tail
            }
        };
    }
    Cow::Owned(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn japanese_mail_is_decoded_as_its_programs_write_it() {
        let decoded = |label: &str, bytes: &[u8]| {
            decode(encoding(label.as_bytes()).unwrap(), bytes).map(|text| text.into_owned())
        };
        let joined = b"\x1b$B8+\x1b(B\x1b$B@Q\x1b(B";
        let empty = b"a\x1b$B\x1b(B\x1b$B\x1b(Bb\x1b(B";
        let cases: [(&str, &[u8], Option<&str>); 12] = [
            ("ISO-2022-JP", joined, Some("見積")),
            (" iso-2022-jp-ms", joined, Some("見積")),
            ("ISO-2022-JP", empty, Some("ab")),
            ("ISO-2022-JP", b"\x1b(I1\x1b(B", Some("ｱ")),
            ("ISO-2022-JP", b"\x1b$B-!\x1b(B", Some("①")),
            ("ISO-2022-JP", b"\x8C\xA9", None),
            ("cp932", b"\x87\x40", Some("①")),
            ("eucJP-ms", b"\xB8\xAB", Some("見")),
            ("us-ascii", b"plain", Some("plain")),
            ("US-ASCII", "見積".as_bytes(), Some("見積")),
            ("us-ascii", b"caf\xE9", None),
            ("iso-8859-1", b"caf\xE9", Some("café")),
        ];
        for (label, bytes, text) in cases {
            assert_eq!(decoded(label, bytes).as_deref(), text, "{label}");
        }
        assert_eq!(decode_lossy(ISO_2022_JP, joined), "見積");
        assert_eq!(decode_lossy(UTF_8, b"a\xFF"), "a\u{FFFD}");
        assert!(encoding(b"martian").is_none());
    }
}
