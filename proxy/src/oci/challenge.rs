//! What a registry asks of a client that is not authenticated: the header `WWW-Authenticate`.
//!
//! Source: RFC 9110, section 11.6.1; the Bearer parameters: distribution's token specification.

/// A challenge that Tidegate can answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a token service.
    Bearer {
        /// Address of the token service.
        realm: String,
        /// Name of the registry at the token service.
        service: Option<String>,
        /// What the token must permit.
        scope: Option<String>,
    },
}

/// Finds the challenge to answer among the values of `WWW-Authenticate`: Bearer rather than Basic, as docker does.
/// None where there is none that we can answer.
pub fn parse<'a>(values: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for value in values {
        for challenge in http_auth::parse_challenges(value).unwrap_or_default() {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    return Some(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_wins_and_nonsense_is_none() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#;
        let Some(Challenge::Bearer { realm, service, scope }) = parse(["Basic realm=\"x\"", hub].into_iter()) else {
            panic!("Bearer must win");
        };
        assert_eq!(realm, "https://auth.docker.io/token");
        assert_eq!(service.as_deref(), Some("registry.docker.io"));
        assert_eq!(scope.as_deref(), Some("repository:library/alpine:pull,push"));
        assert_eq!(parse(["Basic realm=\"x\""].into_iter()), Some(Challenge::Basic));
        for none in ["", "Negotiate", "Bearer service=\"x\"", "Bearer realm=", "\u{7f}\u{0}", "Digest realm=\"x\""] {
            assert_eq!(parse([none].into_iter()), None, "{none:?}");
        }
    }
}
