//! Overwriting credentials in what becomes a dead letter.
//!
//! Every occurrence of a configured credential's value is overwritten with as many `*` as it has bytes, so that offsets
//! stay true. An occurrence may be spelled as it is, percent-encoded (also partly, and with `+` for a space), with JSON
//! escapes, or with JSON escapes inside percent-encoding. Of a Basic credential, `user:password`, the password alone and
//! the base64 form count.
//!
//! Values shorter than [`SHORTEST`] bytes are no needles: they would tear innocent text apart. They are still overwritten
//! where the webhook gives them as its `api_key`, as is every other value there.

use std::{borrow::Cow, fmt};

use base64::Engine as _;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{Auth, CredentialKind};

/// Shortest value, in bytes, that is looked for anywhere.
pub const SHORTEST: usize = 4;

/// The credential values to overwrite.
#[derive(Clone, Default)]
pub struct Secrets(Vec<SecretString>);

impl Secrets {
    /// The values of the configured credentials.
    pub fn new(auth: &Auth) -> Self {
        let Auth::Credentials(credentials) = auth else {
            return Secrets::default();
        };
        let mut values = Vec::new();
        for credential in credentials {
            let secret = credential.secret.expose_secret();
            values.push(secret.to_owned());
            if credential.kind == CredentialKind::Basic {
                values.push(base64::engine::general_purpose::STANDARD.encode(secret));
                if let Some((_, password)) = secret.split_once(':') {
                    values.push(password.to_owned());
                }
            }
        }
        values.retain(|value| value.len() >= SHORTEST);
        Secrets(values.into_iter().map(SecretString::from).collect())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} redacted)", self.0.len())
    }
}

/// Overwrites every occurrence of the secrets; borrowed when there was none.
pub fn mask<'a>(bytes: &'a [u8], secrets: &Secrets) -> Cow<'a, [u8]> {
    let mut masked = Cow::Borrowed(bytes);
    let escapes = bytes.contains(&b'\\');
    let percents = bytes.contains(&b'%') || bytes.contains(&b'+');
    for spelling in Spelling::ALL {
        if (spelling.percent && !percents) || (spelling.escapes && !escapes && !percents) {
            continue;
        }
        for secret in &secrets.0 {
            overwrite(bytes, secret.expose_secret(), spelling, &mut masked);
        }
    }
    masked
}

/// Overwrites what looks like the value of an `api_key` in a body that could not be opened: behind `"api_key":` as JSON,
/// behind `api_key=` as a form, in the lines behind `name="api_key"` as multipart. Whether there was something.
pub(super) fn mask_api_key(body: &mut Cow<'_, [u8]>) -> bool {
    const NAME: &[u8] = b"api_key";
    let mut found = false;
    let mut at = 0;
    while let Some(next) = body[at..].windows(NAME.len()).position(|window| window == NAME) {
        at += next + NAME.len();
        let rest = &body[at..];
        let space = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let quote = usize::from(rest.first() == Some(&b'"'));
        let mark = quote + space(&rest[quote..]);
        let (start, ends): (usize, &[u8]) = match rest.get(mark) {
            Some(b':') => {
                let start = mark + 1 + space(&rest[mark + 1..]);
                match rest.get(start) {
                    Some(b'"') => (start + 1, b"\""),
                    _ => (start, b",}"),
                }
            }
            Some(b'=') if mark == 0 => (1, b"&"),
            Some(_) if rest[quote..].starts_with(b"\r\n\r\n") => (mark, b"\r\n"),
            _ => continue,
        };
        let value = &rest[start..];
        let mut escaped = false;
        let end = value.iter().position(|byte| {
            let end = !escaped && ends.contains(byte);
            escaped = !escaped && *byte == b'\\' && ends == b"\"";
            end
        });
        let len = end.unwrap_or(value.len());
        if len > 0 {
            let start = at + start;
            body.to_mut()[start..start + len].fill(b'*');
            found = true;
        }
    }
    found
}

/// [`mask`] for text.
pub(super) fn mask_text<'a>(text: &'a str, secrets: &Secrets) -> Cow<'a, str> {
    match mask(text.as_bytes(), secrets) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn overwrite(bytes: &[u8], secret: &str, spelling: Spelling, masked: &mut Cow<'_, [u8]>) {
    let Some(first) = secret.bytes().next() else {
        return;
    };
    for start in 0..bytes.len() {
        if !matches!(bytes[start], b'%' | b'+' | b'\\') && bytes[start] != first {
            continue;
        }
        if let Some(end) = spelling.read_all(bytes, start, secret) {
            masked.to_mut()[start..end].fill(b'*');
        }
    }
}

/// How a secret may be spelled.
#[derive(Clone, Copy)]
struct Spelling {
    /// `%XX` stands for a byte, `+` for a space.
    percent: bool,
    /// A backslash begins a JSON escape.
    escapes: bool,
}

impl Spelling {
    const ALL: [Spelling; 4] = [
        Spelling {
            percent: false,
            escapes: false,
        },
        Spelling {
            percent: true,
            escapes: false,
        },
        Spelling {
            percent: false,
            escapes: true,
        },
        Spelling {
            percent: true,
            escapes: true,
        },
    ];

    /// Where the secret ends when this spelling of it begins at `at`.
    fn read_all(self, bytes: &[u8], mut at: usize, secret: &str) -> Option<usize> {
        for wanted in secret.chars() {
            at = self.read_char(bytes, at, wanted)?;
        }
        Some(at)
    }

    /// Where the character ends when this spelling of it begins at `at`.
    fn read_char(self, bytes: &[u8], mut at: usize, wanted: char) -> Option<usize> {
        let (byte, next) = self.read_byte(bytes, at)?;
        if self.escapes && byte == b'\\' {
            return self.read_escape(bytes, next, wanted);
        }
        for wanted in wanted.encode_utf8(&mut [0; 4]).bytes() {
            let (byte, next) = self.read_byte(bytes, at)?;
            if byte != wanted {
                return None;
            }
            at = next;
        }
        Some(at)
    }

    /// The same for what stands behind a backslash.
    fn read_escape(self, bytes: &[u8], at: usize, wanted: char) -> Option<usize> {
        let (byte, mut at) = self.read_byte(bytes, at)?;
        if byte != b'u' {
            let meant = match byte {
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                other => char::from(other),
            };
            return (meant == wanted).then_some(at);
        }
        for (index, unit) in wanted.encode_utf16(&mut [0; 2]).iter().enumerate() {
            if index > 0 {
                for wanted in *b"\\u" {
                    let (byte, next) = self.read_byte(bytes, at)?;
                    if byte != wanted {
                        return None;
                    }
                    at = next;
                }
            }
            for shift in [12, 8, 4, 0] {
                let (byte, next) = self.read_byte(bytes, at)?;
                if char::from(byte).to_digit(16)? != u32::from(unit >> shift) & 0xF {
                    return None;
                }
                at = next;
            }
        }
        Some(at)
    }

    /// The byte that is spelled at `at`, and where the next one begins.
    fn read_byte(self, bytes: &[u8], at: usize) -> Option<(u8, usize)> {
        let byte = *bytes.get(at)?;
        match byte {
            b'+' if self.percent => Some((b' ', at + 1)),
            b'%' if self.percent => {
                let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
                let value = digit(at + 1)? << 4 | digit(at + 2)?;
                Some((value as u8, at + 3))
            }
            _ => Some((byte, at + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Credential;

    fn secrets(list: &[(CredentialKind, &str)]) -> Secrets {
        let credential = |(kind, secret): &(CredentialKind, &str)| Credential {
            name: "test".to_owned(),
            kind: *kind,
            secret: SecretString::from((*secret).to_owned()),
        };
        Secrets::new(&Auth::Credentials(list.iter().map(credential).collect()))
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
            let mut masked = Cow::Borrowed(body.as_bytes());
            let found = mask_api_key(&mut masked);
            assert_eq!(String::from_utf8_lossy(&masked), expected);
            assert_eq!(found, body != expected, "{body}");
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
            ("a+b+", "a+b+ a%2Bb%2B a%2bb+", "**** ******** a%2bb+"),
            ("100%", "100% 100%25 100%2", "**** ****** ****2"),
        ] {
            let secrets = secrets(&[(CredentialKind::ApiKey, secret)]);
            let masked = mask_text(text, &secrets);
            assert_eq!(masked, expected, "{secret} in {text}");
        }
    }

    #[test]
    fn basic_counts_in_its_three_forms() {
        let secrets = secrets(&[(CredentialKind::Basic, "user:pass:word")]);
        for (text, expected) in [
            ("user pass:word", "user *********"),
            ("user:pass:word", "**************"),
            ("dXNlcjpwYXNzOndvcmQ=", "********************"),
            ("dXNlcjpwYXNzOndvcmQ%3D", "**********************"),
        ] {
            assert_eq!(mask_text(text, &secrets), expected);
        }
    }

    #[test]
    fn short_values_are_no_needles_and_innocent_text_is_borrowed() {
        let secrets = secrets(&[
            (CredentialKind::Bearer, "abc"),
            (CredentialKind::Basic, "u:pw"),
            (CredentialKind::ApiKey, ""),
        ]);
        assert!(matches!(mask(b"abc pw u+pw%", &secrets), Cow::Borrowed(_)));
        assert_eq!(mask(b"u:pw", &secrets).as_ref(), b"****");
        assert_eq!(format!("{secrets:?}"), "Secrets(2 redacted)");
    }
}
