//! Keeps the tag `latest` out, and warns of other tags that move.

use tidegate_sdk::{Request, Verdict, call};

/// Registries of our own: whoever pushes to them knows what `latest` is.
const OWN: [&str; 2] = ["registry.example.com", "ghcr.io"];

struct Plugin;

#[tidegate_sdk::plugin]
impl Plugin {
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

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::host;
    use tidegate_sdk::{Action, Content, Reference};

    use super::*;

    fn admit(registry: &str, tag: &str) -> Verdict {
        Plugin::admit(&Request {
            action: Action::Pull,
            content: Content::Manifest,
            registry: registry.to_owned(),
            repository: "shop/cart".to_owned(),
            reference: Reference::Tag(tag.to_owned()),
        })
    }

    #[test]
    fn latest_is_denied_but_from_registries_of_our_own() {
        assert!(matches!(admit("docker.io", "latest"), Verdict::Deny(_)));
        assert_eq!(admit("registry.example.com", "latest"), Verdict::Allow);
        assert_eq!(host(|host| host.warnings.len()), 1);
        assert_eq!(admit("docker.io", "1.27"), Verdict::Allow);
        assert_eq!(host(|host| host.warnings.len()), 1);
    }
}
