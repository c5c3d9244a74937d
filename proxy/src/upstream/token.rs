//! The token service of a registry: which it may be, and one request to it.
//!
//! Source: distribution's token specification; its `OAuth2` form for identity tokens.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::auth::For;
use super::connect::Clients;
use super::secret::{Secret, basic};
use crate::config::Reach;
use crate::oci::{Failure, Place};

/// Largest answer of a token service. Units: bytes.
const BODY_MAX: usize = 64 << 10;
/// How long a token holds that does not tell. Source: distribution's token specification.
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// Longest time that a token is believed to hold.
const LIFE_MAX: Duration = Duration::from_hours(24);
/// A token is not used in its last seconds, the request has to arrive, too; nor in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(5);

/// What a registry asks its token service to be told.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scope: Option<&'a str>,
}

#[derive(Deserialize)]
struct Body {
    token: Option<String>,
    access_token: Option<String>,
    /// Read leniently: a token with an absurd life is a token.
    expires_in: Option<serde_json::Value>,
}

/// Fetches a token. Gives the header for it, and how long it is to be used.
pub(super) async fn fetch(
    clients: &Clients,
    reach: &Reach,
    grant: &For,
    wanted: Wanted<'_>,
    secret: Option<&Secret>,
    limit: Duration,
) -> Result<(HeaderValue, Duration), Failure> {
    let place = &grant.place;
    let url = Url::parse(wanted.realm)
        .map_err(|_| broken(format!("{} names a token service that is no address", place.registry)))?;
    check_realm(reach, place, &url)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let request = request(url.clone(), grant, wanted, secret)
        .map_err(|err| broken(format!("the token service {host}: {err}")))?;
    let fetched = tokio::time::timeout(limit, async {
        let client = clients.client(&place.registry, reach, &url).await;
        let client = client.map_err(|failure| broken(format!("the token service {host}: {failure}")))?;
        let answer =
            client.send(request).await.map_err(|failure| broken(format!("the token service {host}: {failure}")))?;
        let status = answer.status();
        if status != StatusCode::OK {
            let reason = format!("the token service {host} answers {}", status.as_u16());
            let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            let wrong_password = status == StatusCode::UNAUTHORIZED && matches!(secret, Some(Secret::Password { .. }));
            return Err(Failure::Auth { reason, refused, wrong_password });
        }
        let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
        Ok(body.map_err(|err| broken(format!("the token service {host}: {err}")))?.to_bytes())
    });
    let body =
        fetched.await.map_err(|_| broken(format!("the token service {host} does not answer within {limit:?}")))??;
    // What stands in the body may be a secret: it is never quoted.
    let none = || broken(format!("the token service {host} sends no token"));
    let body: Body = serde_json::from_slice(&body).map_err(|_| none())?;
    let text = body.token.filter(|token| !token.is_empty()).or(body.access_token).filter(|token| !token.is_empty());
    let header = bearer(&text.ok_or_else(none)?);
    let header =
        header.ok_or_else(|| broken(format!("the token service {host} sends a token with control characters")))?;
    Ok((header, use_for(body.expires_in.as_ref())))
}

/// The header of a token; none where no header can carry it.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn broken(reason: String) -> Failure {
    Failure::Auth { reason, refused: false, wrong_password: false }
}

fn request(
    mut url: Url,
    grant: &For,
    wanted: Wanted<'_>,
    secret: Option<&Secret>,
) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let own = format!("repository:{}:{}", grant.place.repository, grant.action.scope());
    let scope = wanted.scope.unwrap_or(&own);
    // Whatever the realm has of a user in front of its host, or behind its number sign, is not ours to send.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_fragment(None);
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    if let Some(Secret::Identity(token)) = secret {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
        form.append_pair("client_id", "tidegate").append_pair("scope", scope);
        if let Some(service) = wanted.service {
            form.append_pair("service", service);
        }
        return Request::post(url.as_str())
            .header(USER_AGENT, agent)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form.finish()));
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = wanted.service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", scope);
    }
    let mut request = Request::get(url.as_str()).header(USER_AGENT, agent).header(ACCEPT, "application/json");
    if let Some(Secret::Password { username, password }) = secret {
        request = request.header(AUTHORIZATION, basic(username, password));
    }
    request.body(Full::default())
}

/// How long a token is used that says for how long it holds.
fn use_for(expires_in: Option<&serde_json::Value>) -> Duration {
    let secs = expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
    let life = match secs {
        Some(secs) if secs.is_finite() && secs > 0.0 => {
            Duration::from_secs_f64(secs.clamp(1.0, LIFE_MAX.as_secs_f64()))
        }
        _ => DEFAULT_LIFE,
    };
    life.saturating_sub(MARGIN.min(life / 4))
}

/// The realm's host must be the registry's, share its registrable domain, or be allowed by name; else whoever can
/// write an answer of the registry could have the password sent anywhere.
fn check_realm(reach: &Reach, place: &Place, realm: &Url) -> Result<(), Failure> {
    let host = realm.host_str().unwrap_or_default();
    let own = reach.url.host_str().unwrap_or_default();
    let related = host == own || same_domain(host, own) || reach.allows(realm);
    let secure = realm.scheme() == "https" || (realm.scheme() == "http" && reach.url.scheme() == "http");
    if related && secure {
        return Ok(());
    }
    if related {
        return Err(broken(format!("{} names the token service {host} without TLS, which is refused", place.registry)));
    }
    Err(broken(format!(
        "{} names the token service {host}, which is not its own; if it is right, add it to `redirect_hosts`",
        place.registry
    )))
}

fn same_domain(one: &str, other: &str) -> bool {
    let domain = psl::domain_str(one);
    domain.is_some() && domain == psl::domain_str(other)
}

#[cfg(test)]
mod tests {
    use super::super::caller::By;
    use super::*;
    use crate::config::Config;
    use crate::oci::{Action, Registry, Repository};

    #[test]
    fn i9_a_realm_belongs_to_its_registry() {
        let place = Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse("library/a").expect("a repository"),
        };
        for (own, realm, allowed, good) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token", "", true),
            ("https://ghcr.io", "https://ghcr.io/token", "", true),
            ("https://ghcr.io", "http://ghcr.io/token", "", false),
            ("https://a.co.uk", "https://b.co.uk/token", "", false),
            ("https://one.github.io", "https://two.github.io/token", "", false),
            ("https://registry.lan", "https://evil.example/token", "", false),
            ("https://registry.lan", "https://sso.example/token", "sso.example", true),
            ("https://registry.lan", "https://a.sso.example/token", "*.sso.example", true),
            ("https://registry.lan", "http://sso.example/token", "sso.example", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", "", true),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/token", "", false),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/token", "127.0.0.2:5001", true),
            ("https://registry.lan", "file:///etc/passwd", "", false),
        ] {
            let allowed = if allowed.is_empty() { String::new() } else { format!("\"{allowed}\"") };
            let text = format!(
                "listen = \"127.0.0.1:1\"\n[registries.\"docker.io\"]\nurl = \"{own}\"\nredirect_hosts = [{allowed}]"
            );
            let config = Config::parse(&text, "t").expect("a configuration");
            let reach = config.reach(&place.registry).expect("listed");
            let realm = Url::parse(realm).expect("an address");
            assert_eq!(check_realm(&reach, &place, &realm).is_ok(), good, "{own} {realm}");
        }
    }

    #[test]
    fn u9_a_token_is_used_until_shortly_before_its_end_whatever_it_says() {
        let secs = |json: &str| use_for(Some(&serde_json::from_str(json).expect("JSON"))).as_secs_f64();
        let close = |one: f64, other: f64| (one - other).abs() < 1e-6;
        assert!(close(secs("300"), 295.0));
        assert!(close(secs("1"), 0.75));
        assert!(close(secs("0.001"), 0.75));
        for forever in ["1e300", "18446744073709551615", "\"99999999999\""] {
            assert!(close(secs(forever), 86_395.0), "{forever}");
        }
        for junk in ["0", "-5", "\"soon\"", "null", "[]", "{}", "true"] {
            assert!(close(secs(junk), 55.0), "{junk}");
        }
        assert!(close(use_for(None).as_secs_f64(), 55.0));
    }

    #[test]
    fn an_identity_token_is_sent_in_a_form_and_never_in_the_address() {
        let place = Place {
            registry: Registry::parse("quay.io").expect("a registry"),
            repository: Repository::parse("a/b").expect("a repository"),
        };
        let grant = For { place, action: Action::Pull, by: By::Mirror };
        let wanted = Wanted { realm: "", service: Some("quay.io"), scope: None };
        let url = || Url::parse("https://evil:x@quay.io/token?a=b#c").expect("an address");
        let secret = Secret::Identity("secret&scope=x".to_owned());
        let sent = request(url(), &grant, wanted, Some(&secret)).expect("a request");
        assert_eq!((sent.method().as_str(), sent.uri().to_string().as_str()), ("POST", "https://quay.io/token?a=b"));
        let sent = request(url(), &grant, wanted, None).expect("a request");
        assert_eq!(sent.uri().query(), Some("a=b&service=quay.io&scope=repository%3Aa%2Fb%3Apull"));
        assert!(sent.headers().get(AUTHORIZATION).is_none());
    }
}
