//! As whom a registry is asked: as the configuration says, or as who asks us.

use std::sync::{Arc, LazyLock};

use ring::hmac;
use ring::rand::SystemRandom;

use crate::config::Reach;
use crate::oci::Credentials;

/// As whom a registry is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum As {
    /// As the configuration says: with its own credentials, or those of the caller where the registry is for these.
    Mirror,
    /// With the credentials of the caller, or without any: to find out what the caller may have.
    Caller,
}

/// Somebody's credentials under a key that only this process has: to tell callers apart without keeping what they sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a user and a password.
    pub fn of(credentials: &Credentials) -> Self {
        static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
            hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the system gives random bytes")
        });
        let mut keyed = hmac::Context::with_key(&KEY);
        keyed.update(&(credentials.user.len() as u64).to_be_bytes());
        keyed.update(credentials.user.as_bytes());
        keyed.update(credentials.password.as_bytes());
        Self(keyed.sign().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// Whose credentials a grant was had for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum By {
    /// The configured ones.
    Mirror,
    /// None, though there may be some.
    Nobody,
    /// A caller's.
    Caller(Fingerprint),
}

/// Whose credentials a registry is to be asked with, and which they are where they are a caller's.
pub(super) fn by(asked: As, credentials: Option<&Arc<Credentials>>, reach: &Reach) -> (By, Option<Arc<Credentials>>) {
    match (asked, credentials) {
        (As::Mirror, None) => (By::Mirror, None),
        (As::Mirror, Some(_)) if !reach.callers.credentials => (By::Mirror, None),
        (As::Caller, None) => (By::Nobody, None),
        (As::Mirror | As::Caller, Some(shown)) => (By::Caller(Fingerprint::of(shown)), Some(shown.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_callers_apart() {
        let of = |user: &str, password: &str| {
            Fingerprint::of(&Credentials { user: user.to_owned(), password: password.to_owned() })
        };
        assert_eq!(of("a", "bc"), of("a", "bc"));
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_ne!(of("a", "bc"), of("a", "bd"));
    }
}
