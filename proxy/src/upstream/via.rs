//! The header `Via`: by its own name in it a proxy knows that a request has come back to it, and by its length that
//! proxies ask each other on and on.
//!
//! Source: RFC 9110, section 7.6.3.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Mirrors of this kind that a request may have come through.
const HOPS_MAX: usize = 8;
/// What the names of all of them begin with.
const KIND: &str = "tidegate-";
/// Longest name that is taken for one of them: the kind, and 64 bits in hexadecimal.
const NAME_MAX: usize = KIND.len() + 16;

/// The name of this process among proxies: another at each start, so that it tells nothing of the machine.
static OWN: LazyLock<String> = LazyLock::new(|| format!("{KIND}{:016x}", RandomState::new().hash_one(0)));

/// The mirrors that a request has come through. Others than ours are not told on: their names are their owner's affair.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Via(Vec<String>);

/// A request that must not go on.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Loop {
    /// It has been here.
    #[error("the request has come back to this mirror: an upstream of it asks this mirror in turn")]
    Back,
    /// It has been in too many places.
    #[error(
        "the request has come through more than {HOPS_MAX} mirrors: they ask each other in a circle, or the chain is too long"
    )]
    Long,
}

impl Via {
    /// Reads the values of the header.
    ///
    /// # Errors
    /// The request has been here, or has come too far.
    pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Result<Self, Loop> {
        let mut hops = Vec::new();
        // `1.1 NAME (comment)`, `HTTP/1.1 NAME`; what is no such thing is passed over.
        let names = values.flat_map(|value| value.split(',')).filter_map(|hop| hop.split_ascii_whitespace().nth(1));
        for name in names {
            let hex = name.strip_prefix(KIND).unwrap_or_default();
            if hex.is_empty() || name.len() > NAME_MAX || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                continue;
            }
            if name == OWN.as_str() {
                return Err(Loop::Back);
            }
            if hops.len() == HOPS_MAX {
                return Err(Loop::Long);
            }
            hops.push(name.to_owned());
        }
        Ok(Self(hops))
    }

    /// The header of a request that goes on from here.
    pub(super) fn onward(&self) -> String {
        let hops = self.0.iter().map(String::as_str).chain([OWN.as_str()]);
        hops.map(|hop| format!("1.1 {hop}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u16_a_request_that_was_here_is_known_again() {
        let parse = |value: &str| Via::parse([value].into_iter());
        let first = Via::default().onward();
        assert_eq!(parse(&first), Err(Loop::Back));
        assert_eq!(parse(&format!("1.1 squid (x), {first}")), Err(Loop::Back));
        let other = "1.1 tidegate-00000000000000aa";
        let on = parse(&format!("1.1 proxy.corp, {other} (comment), junk,,1.1")).expect("no loop").onward();
        assert_eq!(on, format!("{other}, {first}"));
        assert_eq!(parse("1.1 tidegate-x\u{7f}y, 1.1 tidegate-, 1.1 tidegate-0000000000000000aa"), Ok(Via::default()));
    }

    #[test]
    fn u16_a_chain_has_an_end() {
        let chain = |hops: usize| (0..hops).map(|hop| format!("1.1 tidegate-{hop:x}")).collect::<Vec<_>>().join(",");
        assert!(Via::parse([chain(8).as_str()].into_iter()).is_ok());
        assert_eq!(Via::parse([chain(9).as_str()].into_iter()), Err(Loop::Long));
        let many = format!("{},", "1.1 squid").repeat(10_000);
        assert_eq!(Via::parse([many.as_str()].into_iter()), Ok(Via::default()));
    }
}
