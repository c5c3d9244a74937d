//! Texts as spans carry them: bounded, and without control characters, whoever wrote them.

use std::fmt::{Display, Write};

/// Longest text in a span. Units: bytes.
const TEXT_MAX: usize = 1024;

/// A text, escaped and bounded.
pub(super) fn clean(text: impl Display) -> String {
    let mut cleaned = Cleaned(String::new());
    // It is an error when there is enough of it.
    let _ = write!(cleaned, "{text}");
    cleaned.0
}

struct Cleaned(String);

impl Write for Cleaned {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for sign in text.chars() {
            let before = self.0.len();
            if sign.is_control() {
                self.0.extend(sign.escape_default());
            } else {
                self.0.push(sign);
            }
            if self.0.len() > TEXT_MAX {
                self.0.truncate(before);
                self.0.push('…');
                return Err(std::fmt::Error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_bounded_and_have_no_control_characters() {
        assert_eq!(clean("library/app é"), "library/app é");
        assert_eq!(clean("a\r\nb\u{1b}[31m\u{7f}\u{9b}"), "a\\r\\nb\\u{1b}[31m\\u{7f}\\u{9b}");
        for long in ["x".repeat(5000), "é".repeat(5000), "\n".repeat(5000), "x".repeat(1023) + "\u{1b}"] {
            let text = clean(&long);
            assert!(text.len() <= TEXT_MAX + '…'.len_utf8() && text.ends_with('…'), "{} bytes", text.len());
            assert!(!text.contains(char::is_control));
        }
        assert_eq!(clean("x".repeat(TEXT_MAX)).len(), TEXT_MAX);
    }
}
