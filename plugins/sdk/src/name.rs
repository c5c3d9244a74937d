//! Names as the host gives them: what a configuration says must be brought into the same form before it is compared.

use std::net::Ipv6Addr;

/// Docker Hub, under the name that the host uses for it.
pub const DOCKER_HUB: &str = "docker.io";

/// Brings `HOST` or `HOST:PORT` into the canonical form: lower case, and Docker Hub's three names are one.
/// None for what no registry can be called.
pub fn registry(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let host = match split_port(&lower) {
        (host, None) => host,
        (host, Some(port)) if is_port(port) => host,
        _ => return None,
    };
    if !is_host(host) {
        return None;
    }
    match lower.as_str() {
        "index.docker.io" | "registry-1.docker.io" => Some(DOCKER_HUB.to_owned()),
        _ => Some(lower),
    }
}

/// Whether the first segment of an image's name is meant as a registry, not as a part of a repository of Docker Hub:
/// it has a dot or a colon in it, or is `localhost`.
pub fn is_registry_meant(segment: &str) -> bool {
    segment.contains(['.', ':']) || segment == "localhost"
}

/// Splits `HOST[:PORT]`; an IPv6 address stands in brackets.
pub fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

/// Whether this is a repository's name: `library/alpine`.
///
/// Source: OCI distribution specification, "Pulling manifests": the expression that `<name>` must match.
pub fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_component)
}

fn is_port(port: &str) -> bool {
    !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok()
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component;
    loop {
        let after = rest.trim_start_matches(word);
        if after.len() == rest.len() {
            return false;
        }
        if after.is_empty() {
            return true;
        }
        rest = after.trim_start_matches(|byte| !word(byte));
        match &after[..after.len() - rest.len()] {
            "." | "_" | "__" => {}
            dashes if dashes.bytes().all(|byte| byte == b'-') => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts_with_an_optional_port() {
        for (text, canonical) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("Registry-1.Docker.IO", "docker.io"),
            ("localhost", "localhost"),
            ("quay.io:443", "quay.io:443"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("[::1]", "[::1]"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(registry(text).as_deref(), Some(canonical), "{text}");
        }
        for bad in [
            "",
            "user@h",
            "http://h",
            "h:99999",
            "h:0",
            "h:",
            "h:080",
            "h:+1",
            "quay.io.",
            "a..b",
            "-a.io",
            "a_b.io",
            "[::1",
            "[1.2.3.4]",
            "h:1:2",
            "a/b",
            "*.io",
            "bücher.de",
        ] {
            assert_eq!(registry(bad), None, "{bad}");
        }
    }

    #[test]
    fn repositories_match_the_specification() {
        for good in ["a", "library/alpine", "a.b_c__d---e/f0", "0"] {
            assert!(is_repository(good), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "Library/x",
            "-a",
            "a___b",
            "a..b",
            "a/",
            "/a",
            "a//b",
            "é",
            "a é",
            "a b",
            "..",
            "a/../b",
            "a:1/b",
            "a-",
            "a-_b",
            "a/*",
            &long,
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }
}
