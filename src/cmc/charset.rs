//! Names of character encodings, as mails spell them.

use encoding_rs::{Encoding, SHIFT_JIS};

/// The encoding of this name; `None` if it is unknown.
pub(super) fn encoding(label: &[u8]) -> Option<&'static Encoding> {
    // Windows' name for Shift_JIS, frequent in Japanese mail, is missing from the Encoding Standard.
    match label.eq_ignore_ascii_case(b"cp932") {
        true => Some(SHIFT_JIS),
        false => Encoding::for_label(label),
    }
}
