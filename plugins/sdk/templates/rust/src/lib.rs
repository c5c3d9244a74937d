//! Keeps the tag `latest` out, and warns of other tags that move.

use tidegate_sdk::{Admission, Request, Verdict, call};

/// Registries of our own: whoever pushes to them knows what `latest` is.
const OWN: [&str; 2] = ["registry.example.com", "ghcr.io"];

struct Plugin;

impl Admission for Plugin {
    fn admit(request: &Request) -> Verdict {
        let Some(tag) = request.tag() else { return Verdict::Allow };
        if tag == "latest" && !OWN.contains(&request.registry.as_str()) {
            return Verdict::deny(format!("{request} is denied: `latest` is another image tomorrow, name a version"));
        }
        if !tag.contains(|letter: char| letter.is_ascii_digit()) {
            call::warn(&format!("{request} moves: a version or a digest stays what it is"));
        }
        Verdict::Allow
    }
}

tidegate_sdk::export!(Plugin: admission);
