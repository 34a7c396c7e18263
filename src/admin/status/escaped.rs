//! Text from elsewhere, escaped for HTML.

use std::fmt::{self, Display, Write};

use crate::plain::steers;

/// A text from elsewhere, harmless in content and in attributes of HTML.
pub struct Escaped<'t>(pub &'t str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' => f.write_char(c)?,
                // Characters that no document may hold, or that change how others are shown.
                c if steers(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_a_text() {
        assert_eq!(
            Escaped("<a href='x' id=\"y\">&amp;\0\u{1b}[31m\u{85}\u{ffff}\n").to_string(),
            "&lt;a href=&#39;x&#39; id=&quot;y&quot;&gt;&amp;amp;\u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}\n"
        );
    }
}
