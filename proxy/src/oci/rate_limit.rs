//! What a registry tells of the pulls that it still allows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The window of a limit whose registry does not say how long it is.
const WINDOW: Duration = Duration::from_hours(1);
/// No window is longer.
const WINDOW_MAX: Duration = Duration::from_hours(24 * 31);

/// How much a registry still allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    /// Requests that are left.
    pub remaining: u64,
    /// Requests in all, where that is known.
    pub limit: Option<u64>,
    /// For how long both hold.
    pub window: Duration,
}

impl RateLimit {
    /// Reads the headers of an answer, names in lower case; none where they say nothing of what is left.
    ///
    /// Source: Docker Hub, "Pull usage and limits" (`ratelimit-remaining: 76;w=21600`); IETF draft-ietf-httpapi-ratelimit-headers
    /// before version 8 (`ratelimit-remaining: 76`, `ratelimit-reset: 60`) and since (`ratelimit: "pulls";r=76;t=60`);
    /// the `x-ratelimit-` headers of others.
    pub fn parse(headers: &[(String, String)], now: SystemTime) -> Option<Self> {
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let either =
            |name: &str| header(&format!("ratelimit-{name}")).or_else(|| header(&format!("x-ratelimit-{name}")));
        let one = header("ratelimit");
        let part = |names: [&str; 2]| {
            let mut pairs = one?.split([';', ',']).filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| names.contains(&key.trim())).and_then(|(_, value)| number(value))
        };
        let remaining = either("remaining").and_then(number).or_else(|| part(["r", "remaining"]))?;
        let limit = either("limit").and_then(number).or_else(|| part(["limit", "limit"]));
        let width = ["remaining", "limit"].iter().filter_map(|name| either(name)).find_map(|value| {
            value.split(';').skip(1).find_map(|param| param.trim().strip_prefix("w=").and_then(number))
        });
        let reset = either("reset").and_then(number).or_else(|| part(["t", "reset"])).map(|reset| {
            // Some give a time, not a duration.
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            if reset > WINDOW_MAX.as_secs() { reset.saturating_sub(now) } else { reset }
        });
        let window = width.or(reset).map_or(WINDOW, Duration::from_secs).min(WINDOW_MAX);
        Some(Self { remaining, limit, window })
    }
}

/// The number that a value begins with.
fn number(value: &str) -> Option<u64> {
    let value = value.trim().trim_start_matches('"');
    let end = value.find(|char: char| !char.is_ascii_digit()).unwrap_or(value.len());
    value[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_in_every_form() {
        let now = UNIX_EPOCH + Duration::from_hours(500_000);
        let read = |headers: &[(&str, &str)]| {
            let headers: Vec<_> = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            RateLimit::parse(&headers, now).map(|of| (of.remaining, of.limit, of.window.as_secs()))
        };
        let hub = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")];
        assert_eq!(read(&hub), Some((76, Some(100), 21600)));
        assert_eq!(read(&[("ratelimit-remaining", "5"), ("ratelimit-reset", "60")]), Some((5, None, 60)));
        assert_eq!(read(&[("ratelimit", "\"pulls\";r=50;t=30")]), Some((50, None, 30)));
        assert_eq!(read(&[("ratelimit", "limit=100, remaining=50, reset=30")]), Some((50, Some(100), 30)));
        let epoch = [("x-ratelimit-remaining", "0"), ("x-ratelimit-limit", "60"), ("x-ratelimit-reset", "1800000090")];
        assert_eq!(read(&epoch), Some((0, Some(60), 90)));
        assert_eq!(read(&[("ratelimit-limit", "100;w=21600")]), None);
        assert_eq!(read(&[("ratelimit-remaining", "many")]), None);
        assert_eq!(read(&[("ratelimit-remaining", "99999999999999999999999")]), None);
    }
}
