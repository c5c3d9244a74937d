//! Keys of `state` made of names that may be long.

use std::borrow::Cow;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The longest key that the host takes. Units: bytes.
const LEN_MAX: usize = 256;
/// What stays of a longer one, for people who look at the state. Units: bytes.
const HEAD_LEN: usize = 180;

/// The text itself; of one that is too long for a key its beginning and its SHA-256, so that no two are taken for one.
///
/// ```
/// # use tidegate_sdk::key;
/// assert_eq!(key::of("docker.io/library/alpine:3"), "docker.io/library/alpine:3");
/// assert!(key::of(&"long".repeat(100)).len() <= 256);
/// ```
pub fn of(text: &str) -> Cow<'_, str> {
    if text.len() <= LEN_MAX {
        return Cow::Borrowed(text);
    }
    let head = &text[..text.floor_char_boundary(HEAD_LEN)];
    Cow::Owned(format!("{head}#{}", sha256_hex(text.as_bytes())))
}

/// 64 hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_difference() {
        let (one, other) = (format!("{}1", "é".repeat(200)), format!("{}2", "é".repeat(200)));
        assert_ne!(of(&one), of(&other));
        assert!(of(&one).len() <= LEN_MAX);
        assert!(of(&one).starts_with('é'));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(b""), empty);
    }
}
