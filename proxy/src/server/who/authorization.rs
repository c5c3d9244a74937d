//! The header `Authorization` as clients send it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hyper::header::{HeaderMap, HeaderName};

use crate::oci::Credentials;

/// Longest user. Units: bytes.
const USER_MAX: usize = 255;
/// Longest password: some registries have whole key files for it. Units: bytes.
const PASSWORD_MAX: usize = 16 << 10;

/// What a client shows.
#[derive(PartialEq, Eq, Debug)]
pub enum Shown {
    /// Nothing, or a user and a password that are both empty, as containers/image sends them.
    Nothing,
    /// A user and a password.
    Basic(Credentials),
    /// A token.
    Bearer(String),
}

/// Reads the header, or the one like it for proxies.
///
/// # Errors
/// What is wrong with it, without what stands in it.
pub fn parse(headers: &HeaderMap, name: &HeaderName) -> Result<Shown, &'static str> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let several = headers.contains_key(name);
        return if several { Err("a request has one header Authorization") } else { Ok(Shown::Nothing) };
    };
    let value = value.to_str().map_err(|_| "the header Authorization is no text")?.trim();
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        return basic(rest);
    }
    if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() && !rest.contains(' ') {
        return Ok(Shown::Bearer(rest.to_owned()));
    }
    Err("the header Authorization is neither Basic nor Bearer with something behind it")
}

fn basic(pair: &str) -> Result<Shown, &'static str> {
    const NONE: &str =
        "the header Authorization has no user and password in it: it must be Basic and the base64 of USER:PASSWORD";
    let pair = STANDARD.decode(pair).or_else(|_| STANDARD_NO_PAD.decode(pair)).map_err(|_| NONE)?;
    let pair = String::from_utf8(pair).map_err(|_| NONE)?;
    let (user, password) = pair.split_once(':').ok_or(NONE)?;
    credentials(user, password).ok_or(NONE)
}

/// What a user and a password show; none where they cannot be any.
pub fn credentials(user: &str, password: &str) -> Option<Shown> {
    if user.is_empty() && password.is_empty() {
        return Some(Shown::Nothing);
    }
    let long = user.len() > USER_MAX || password.len() > PASSWORD_MAX;
    if user.is_empty()
        || long
        || user.contains(':')
        || [user, password].iter().any(|text| text.contains(char::is_control))
    {
        return None;
    }
    Some(Shown::Basic(Credentials { user: user.to_owned(), password: password.to_owned() }))
}

#[cfg(test)]
mod tests {
    use hyper::header::AUTHORIZATION;

    use super::*;

    fn shown(values: &[&[u8]]) -> Result<Shown, &'static str> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, hyper::header::HeaderValue::from_bytes(value).expect("a value"));
        }
        parse(&headers, &AUTHORIZATION)
    }

    #[test]
    fn a_header_is_read_or_refused() {
        let pair = |user: &str, password: &str| {
            Ok(Shown::Basic(Credentials { user: user.to_owned(), password: password.to_owned() }))
        };
        let encoded = |text: &str| format!("Basic {}", STANDARD.encode(text)).into_bytes();
        assert_eq!(shown(&[]), Ok(Shown::Nothing));
        assert_eq!(shown(&[&encoded(":")]), Ok(Shown::Nothing));
        assert_eq!(shown(&[&encoded("alice:s:e c")]), pair("alice", "s:e c"));
        assert_eq!(shown(&[&encoded("ålice:pässword")]), pair("ålice", "pässword"));
        assert_eq!(shown(&[&encoded("alice:")]), pair("alice", ""));
        assert_eq!(shown(&[b"basic  YTpi"]), pair("a", "b"));
        assert_eq!(shown(&[b"Basic YTpiYw"]), pair("a", "bc"));
        assert_eq!(shown(&[b"bearer abc.def"]), Ok(Shown::Bearer("abc.def".to_owned())));
        for bad in [
            &b"Basic %%%"[..],
            b"Basic",
            b"Bearer",
            b"Bearer a b",
            b"",
            b"Digest x=y",
            b"Basic YWxpY2U=",
            b"Basic /////w==",
            b"Bearer caf\xe9",
            &encoded(":secret"),
            &encoded("a\nb:c"),
            &encoded("a:b\0"),
            &encoded(&format!("{}:x", "a".repeat(256))),
            &encoded(&format!("a:{}", "x".repeat(PASSWORD_MAX + 1))),
        ] {
            assert!(shown(&[bad]).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
        assert!(shown(&[b"Basic YTpi", b"Bearer x"]).is_err());
    }
}
