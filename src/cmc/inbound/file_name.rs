//! File names as mails and HTTP clients spell them.
//!
//! The parameter `filename*` (RFC 5987), or its continuations `filename*0`, `filename*1*` … (RFC 2231), count before `filename`.
//! `filename` may hold raw UTF-8 or encoded words (RFC 2047): adjacent words of one charset are joined before they are decoded,
//! because some programs split them within a character. What can't be decoded has U+FFFD in its place.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use encoding_rs::Encoding;
use percent_encoding::percent_decode;

use super::part::Parameters;
use crate::cmc::charset::{decode_lossy, encoding};

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The decoded file name, and the name as received if that differs.
pub(super) fn of(parameters: &Parameters) -> Option<(String, Option<Vec<u8>>)> {
    let (original, decoded) = match extended(parameters) {
        Some(extended) => extended,
        None => {
            let original = parameters.plain(b"filename")?;
            let decoded = decode_words(&String::from_utf8_lossy(&original)).into_owned();
            (original, decoded)
        }
    };
    let differs = decoded.as_bytes() != original;
    Some((decoded, differs.then_some(original)))
}

/// The name in the extended parameters, as received and decoded.
fn extended(parameters: &Parameters) -> Option<(Vec<u8>, String)> {
    if let Some(value) = parameters.plain(b"filename*") {
        let decoded = decode_pieces(&[(value.as_slice(), true)]);
        return Some((value, decoded));
    }
    let mut pieces: Vec<(usize, &[u8], bool)> = Vec::new();
    for (name, value) in parameters.all() {
        let Some(number) = name.strip_prefix(b"filename*") else {
            continue;
        };
        let (number, is_encoded) = match number.strip_suffix(b"*") {
            Some(number) => (number, true),
            None => (number, false),
        };
        let number = std::str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse().ok());
        pieces.extend(number.map(|number| (number, value.as_slice(), is_encoded)));
    }
    pieces.sort_by_key(|(number, ..)| *number);
    // What follows a gap belongs to nothing.
    let pieces: Vec<(&[u8], bool)> = pieces
        .iter()
        .enumerate()
        .take_while(|(index, (number, ..))| index == number)
        .map(|(_, (_, value, is_encoded))| (*value, *is_encoded))
        .collect();
    if pieces.is_empty() {
        return None;
    }
    let original = pieces
        .iter()
        .map(|(value, _)| *value)
        .collect::<Vec<_>>()
        .concat();
    Some((original, decode_pieces(&pieces)))
}

/// Joins and decodes pieces, each with whether it is percent-encoded. The first encoded one begins with charset and language.
fn decode_pieces(pieces: &[(&[u8], bool)]) -> String {
    let mut charset = encoding_rs::UTF_8;
    let mut bytes = Vec::new();
    for (index, (value, is_encoded)) in pieces.iter().enumerate() {
        let mut value = *value;
        if !is_encoded {
            bytes.extend_from_slice(value);
            continue;
        }
        let mut parts = value.splitn(3, |byte| *byte == b'\'');
        if let (0, Some(label), Some(_), Some(rest)) = (index, parts.next(), parts.next(), parts.next()) {
            charset = encoding(label).unwrap_or(charset);
            value = rest;
        }
        bytes.extend(percent_decode(value));
    }
    decode_lossy(charset, &bytes)
}

/// Decodes the encoded words in a text.
fn decode_words(text: &str) -> Cow<'_, str> {
    if !text.contains("=?") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut words: Option<(&'static Encoding, Vec<u8>)> = None;
    let mut rest = text;
    while let Some(at) = rest.find("=?") {
        let (before, begin) = rest.split_at(at);
        let word = word(begin);
        let joins =
            word.is_some() && words.is_some() && before.bytes().all(|byte| byte.is_ascii_whitespace());
        if !joins {
            flush(&mut words, &mut out);
            out.push_str(before);
        }
        let Some((encoding, bytes, after)) = word else {
            out.push_str("=?");
            rest = &begin[2..];
            continue;
        };
        match &mut words {
            Some((known, joined)) if *known == encoding => joined.extend(bytes),
            _ => {
                flush(&mut words, &mut out);
                words = Some((encoding, bytes));
            }
        }
        rest = after;
    }
    flush(&mut words, &mut out);
    out.push_str(rest);
    Cow::Owned(out)
}

fn flush(words: &mut Option<(&'static Encoding, Vec<u8>)>, out: &mut String) {
    if let Some((encoding, bytes)) = words.take() {
        out.push_str(&decode_lossy(encoding, &bytes));
    }
}

/// The encoded word that begins here: its charset, its bytes, and what follows it.
fn word(text: &str) -> Option<(&'static Encoding, Vec<u8>, &str)> {
    let (charset, rest) = text.strip_prefix("=?")?.split_once('?')?;
    // RFC 2231, 5: a language may follow the charset.
    let encoding = encoding(charset.split('*').next()?.as_bytes())?;
    let (kind, rest) = rest.split_once('?')?;
    // The end is looked for last, and fast: what only looks like many words costs little.
    let (content, after) = rest.split_at(memchr::memmem::find(rest.as_bytes(), b"?=")?);
    let bytes = match kind {
        "B" | "b" => BASE64.decode(content).ok()?,
        "Q" | "q" => decode_q(content.as_bytes()),
        _ => return None,
    };
    Some((encoding, bytes, &after[2..]))
}

fn decode_q(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        bytes.push(match (byte, tail) {
            (b'_', _) => b' ',
            (b'=', [high, low, after @ ..]) if let Some(decoded) = hex(&[*high, *low]) => {
                rest = after;
                decoded
            }
            _ => *byte,
        });
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(disposition: &str) -> Option<(String, Option<Vec<u8>>)> {
        of(&Parameters::of(disposition.as_bytes()))
    }

    #[test]
    fn names_in_every_spelling() {
        for (parameters, decoded, differs) in [
            (r#"filename="plain.csv""#, "plain.csv", false),
            ("filename=plain.csv", "plain.csv", false),
            (r#"filename="見積 書.csv""#, "見積 書.csv", false),
            (r#"filename="a\"b\\c\d.csv""#, r#"a"b\c\d.csv"#, false),
            (r#"FileName = "x;y=z" ; a=b"#, "x;y=z", false),
            (r#"filename="""#, "", false),
            (r#"filename="unterminated"#, "unterminated", false),
            (r#"filename="=?UTF-8?B?6KaL56mNLmNzdg==?=""#, "見積.csv", true),
            (r#"filename="=?utf-8?b?6KaL56mNLmNzdg?=""#, "見積.csv", true),
            (
                r#"filename="=?ISO-2022-JP?B?GyRCOCtAURsoQg==?=.csv""#,
                "見積.csv",
                true,
            ),
            (
                r#"filename="=?Shift_JIS?Q?=8C=A9=90=CF_1.csv?=""#,
                "見積 1.csv",
                true,
            ),
            (r#"filename="=?cp932?Q?=8C=A9=90=CF?=""#, "見積", true),
            (r#"filename="=?EUC-JP*ja?Q?=B8=AB=C0=D1?=""#, "見積", true),
            // One character split over two words, and a blank between words.
            (
                r#"filename="=?UTF-8?Q?=E8=A6?= =?UTF-8?Q?=8B=E7=A9=8D?=""#,
                "見積",
                true,
            ),
            (r#"filename="a =?UTF-8?Q?b?= c""#, "a b c", true),
            // Each word of ISO-2022-JP ends in ASCII, so escape sequences meet.
            (
                r#"filename="=?ISO-2022-JP?B?GyRCOCsbKEI=?= =?ISO-2022-JP?B?GyRCQFEbKEI=?=""#,
                "見積",
                true,
            ),
            // Apache's client does not escape a quote.
            (r#"filename="a"b".csv""#, r#"a"b".csv"#, false),
            (r#"filename="a"b" ; x=y"#, r#"a"b"#, false),
            // No words.
            (r#"filename="=?nonsense?B?eA==?=""#, "=?nonsense?B?eA==?=", false),
            (r#"filename="=?UTF-8?X?eA==?=""#, "=?UTF-8?X?eA==?=", false),
            (r#"filename="=?UTF-8?B?===?=""#, "=?UTF-8?B?===?=", false),
            (r#"filename="=?=?UTF-8?Q?a?=""#, "=?a", true),
            (r#"filename="=?UTF-8?Q?=4?=""#, "=4", true),
            // Extended parameters.
            ("filename*=UTF-8''%E8%A6%8B%E7%A9%8D.csv", "見積.csv", true),
            (
                "filename=\"fallback\"; filename*=iso-2022-jp'ja'%1B$B8+@Q%1B(B",
                "見積",
                true,
            ),
            (
                "filename*0*=UTF-8''%E8%A6; filename*1*=%8B; filename*2=\".csv\"",
                "見.csv",
                true,
            ),
            ("filename*1=b; filename*0=a; filename*3=d", "ab", false),
            ("filename*=plain", "plain", false),
        ] {
            let (found, original) = name(&format!("form-data; {parameters}")).unwrap();
            assert_eq!(
                (found.as_str(), original.is_some()),
                (decoded, differs),
                "{parameters}"
            );
        }
        assert_eq!(name("form-data; name=\"a\""), None);
        assert_eq!(name("form-data"), None);
    }

    #[test]
    fn bytes_of_an_undeclared_charset_are_kept_beside_the_name() {
        let disposition = b"form-data; filename=\"\x8C\xA9\x90\xCF.csv\"";
        let (decoded, original) = of(&Parameters::of(disposition)).unwrap();
        assert!(
            decoded.contains('\u{FFFD}') && decoded.ends_with(".csv"),
            "{decoded}"
        );
        assert_eq!(original.unwrap(), b"\x8C\xA9\x90\xCF.csv");
    }
}
