//! Makes strings of the recorded program harmless to a terminal.
//!
//! Paths, thread names and function names come from the target and are not trusted: a file name can
//! hold an escape sequence that retitles or reprograms the terminal, or a direction mark that turns
//! text around. Such characters are shown as `\x1b` or `\u{202e}` instead.

use std::fmt;

/// A string that prints without control characters.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

/// Wraps a string for printing.
#[must_use]
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// Control characters, line and paragraph separators, and marks that change the direction of text.
fn harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(harmful) {
            let (clean, from) = rest.split_at(at);
            f.write_str(clean)?;
            let mut chars = from.chars();
            match chars.next() {
                Some('\n') => f.write_str("\\n")?,
                Some('\t') => f.write_str("\\t")?,
                Some(c) if u32::from(c) < 0x100 => write!(f, "\\x{:02x}", u32::from(c))?,
                Some(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_direction_marks_are_spelled_out() {
        let hostile = "a\x1b]0;owned\x07\nb\u{9b}31m\u{202e}gpj";
        assert_eq!(
            escaped(hostile).to_string(),
            "a\\x1b]0;owned\\x07\\nb\\x9b31m\\u{202e}gpj"
        );
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        let plain = "std::vec<größe, 大>::~vec()";
        assert_eq!(escaped(plain).to_string(), plain);
    }
}
