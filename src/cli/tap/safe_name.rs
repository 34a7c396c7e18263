//! Names of attachments, made safe as names of files in one directory.
//!
//! A name is what a stranger wrote. A safe name is one component of a path on every system: never empty, hidden or an option,
//! without separators, characters that steer or that Windows forbids, not one of Windows' devices, and at most [`MOST`] bytes.

use crate::plain::steers;

/// Maximum length of a safe name in bytes. File systems allow 255; the rest is for a number that tells equal names apart.
const MOST: usize = 200;
/// A longer extension is cut like the rest of the name.
const MOST_EXTENSION: usize = 20;
/// The name of an attachment without one.
const UNNAMED: &str = "attachment";

/// The safe form of a name.
pub fn safe_name(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|c| match c {
            '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | char::REPLACEMENT_CHARACTER => '_',
            c if steers(c) => '_',
            c => c,
        })
        .collect();
    // Windows drops these at the end.
    let clean = clean.trim_matches(char::is_whitespace);
    let clean = clean.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    if clean.is_empty() {
        return UNNAMED.to_owned();
    }
    let first = match clean.starts_with(['.', '-', '~']) || is_device(clean) {
        true => "_",
        false => "",
    };
    shortened(&format!("{first}{clean}"))
}

/// The same name with a number before its extension.
pub fn numbered(name: &str, number: u32) -> String {
    let (stem, extension) = split(name);
    format!("{stem} ({number}){extension}")
}

/// Stem and extension; the extension has its dot, or is empty.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= MOST_EXTENSION => name.split_at(at),
        _ => (name, ""),
    }
}

fn shortened(name: &str) -> String {
    let (stem, extension) = split(name);
    let most = MOST - extension.len();
    let ends = stem.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| *end <= most).last().unwrap_or(0);
    format!("{}{extension}", stem[..end].trim_end())
}

/// Whether Windows takes this for a device, whatever extension it has.
fn is_device(name: &str) -> bool {
    let stem = name
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_uppercase();
    let numbered = |device: &str| {
        let number = stem.strip_prefix(device)?;
        let mut digits = number.chars();
        let is_digit = digits
            .next()
            .is_some_and(|c| c.is_ascii_digit() || "¹²³".contains(c));
        (is_digit && digits.next().is_none()).then_some(())
    };
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"].contains(&stem.as_str())
        || ["COM", "LPT"]
            .into_iter()
            .any(|device| numbered(device).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for (name, safe) in [
            ("estimate.csv", "estimate.csv"),
            ("見積 書.csv", "見積 書.csv"),
            ("../../etc/passwd", "_.._.._etc_passwd"),
            ("/etc/passwd", "_etc_passwd"),
            ("C:\\Users\\a.txt", "C__Users_a.txt"),
            ("..", "attachment"),
            (".", "attachment"),
            ("", "attachment"),
            (" . ", "attachment"),
            (".bashrc", "_.bashrc"),
            ("-rf", "_-rf"),
            ("~root", "_~root"),
            ("a\0b\nc\x1b[2Jd\u{7f}", "a_b_c_[2Jd_"),
            ("invoice\u{202E}fdp.exe", "invoice_fdp.exe"),
            ("name. . ", "name"),
            ("CON", "_CON"),
            ("nul.txt", "_nul.txt"),
            ("Com1.tar.gz", "_Com1.tar.gz"),
            ("lpt².txt", "_lpt².txt"),
            ("aux .txt", "_aux.txt"),
            ("COM10", "COM10"),
            ("conference.txt", "conference.txt"),
            ("a\u{FFFD}b", "a_b"),
        ] {
            assert_eq!(safe_name(name), safe, "{name:?}");
        }
        assert_eq!(numbered("estimate.csv", 2), "estimate (2).csv");
        assert_eq!(numbered("README", 3), "README (3)");
        let long = safe_name(&format!("{}.tar.gz", "十".repeat(300)));
        assert!(long.len() <= MOST && long.ends_with("十.gz"), "{long}");
        let long = safe_name(&format!("a.{}", "x".repeat(300)));
        assert_eq!(long.len(), MOST);
    }

    proptest! {
        #[test]
        fn every_name_is_one_plain_component(name in any::<String>()) {
            let safe = safe_name(&name);
            let path = std::path::Path::new("/dir").join(&safe);
            prop_assert_eq!(path.parent(), Some(std::path::Path::new("/dir")));
            prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(safe.as_str()));
            prop_assert!(!safe.is_empty() && safe.len() <= MOST && !safe.chars().any(steers));
            prop_assert!(!safe.starts_with(['.', '-']) && !safe.ends_with(['.', ' ']) && !is_device(&safe));
            prop_assert!(numbered(&safe, u32::MAX).len() <= 255);
        }
    }
}
