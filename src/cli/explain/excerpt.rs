//! A position in a text, for people: its line and column, and the text around it with a caret below.

use crate::plain::visible;

/// Maximum number of columns shown before the position, and after it.
const AROUND: usize = 40;

/// A position in a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The text around it, on one line.
    pub text: String,
    /// Number of terminal columns before the position in `text`.
    pub caret: usize,
}

impl Excerpt {
    /// The position at this offset, in bytes; the end of the text if the offset lies beyond it.
    pub fn new(bytes: &[u8], offset: usize) -> Excerpt {
        let (before, behind) = bytes.split_at(offset.min(bytes.len()));
        let line_start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let line_end = behind
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(behind.len());
        let before_text = String::from_utf8_lossy(&before[line_start..]);
        // In UTF-8 no position falls inside a character; in other text there is no better place to cut.
        let behind_text = String::from_utf8_lossy(&behind[..line_end]);
        let reversed: String = before_text.chars().rev().collect();
        let shown_before: String = cut(&visible(&reversed), AROUND).chars().rev().collect();
        let shown_behind = cut(&visible(&behind_text), AROUND);
        Excerpt {
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: before_text.chars().count() + 1,
            caret: width(&shown_before),
            text: shown_before + &shown_behind,
        }
    }
}

/// The beginning of a text that fits into this many columns, the last one an ellipsis if something is left out.
pub fn cut(text: &str, columns: usize) -> String {
    let mut used = 0;
    let mut fits = 0;
    for (at, c) in text.char_indices() {
        used += columns_of(c);
        if used > columns {
            return format!("{}…", &text[..fits]);
        }
        if used < columns {
            fits = at + c.len_utf8();
        }
    }
    text.to_owned()
}

fn width(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Terminal columns of a character: two for East Asian scripts and pictographs.
fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF01..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (text, offset, line, column, shown, caret) in [
            ("abc", 1, 1, 2, "abc", 1),
            ("abc", 3, 1, 4, "abc", 3),
            ("abc", 99, 1, 4, "abc", 3),
            ("", 0, 1, 1, "", 0),
            ("a\nbc\nd", 3, 2, 2, "bc", 1),
            ("a\nbc\nd", 4, 2, 3, "bc", 2),
            ("a\r\nb\tc\r\n", 5, 2, 3, "b c ", 2),
            ("十月x", 6, 1, 3, "十月x", 4),
            ("a\u{1b}[2Jb", 5, 1, 6, "a\u{FFFD}[2Jb", 5),
        ] {
            let found = Excerpt::new(text.as_bytes(), offset);
            let expected = Excerpt {
                line,
                column,
                text: shown.to_owned(),
                caret,
            };
            assert_eq!(found, expected, "{text:?} at {offset}");
        }
        let broken = Excerpt::new(b"ab\xffcd", 2);
        assert_eq!((broken.text.as_str(), broken.column), ("ab\u{FFFD}cd", 3));
    }

    #[test]
    fn long_lines_are_cut_on_both_sides() {
        let text = format!("{}!{}", "a".repeat(100), "月".repeat(100));
        let found = Excerpt::new(text.as_bytes(), 100);
        assert_eq!(found.text, format!("…{}!{}…", "a".repeat(39), "月".repeat(19)));
        assert_eq!((found.column, found.caret), (101, 40));
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("月月", 3), "月…");
    }
}
