//! What a registry wants to be asked with: nothing, Basic, or a Bearer token from its token service.
//!
//! A credential goes only to the registry that it was configured for, or to a token service that belongs to it (I9).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Deserialize;
use url::Url;

use super::connect::{Clients, failure};
use crate::config::{Credentials, Reach};
use crate::oci::challenge::Challenge;
use crate::oci::{Failure, Place};

/// Largest answer of a token service. Units: bytes.
const TOKEN_BODY_MAX: usize = 64 << 10;
/// Longest time for an answer of a token service.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a token holds that does not tell. Source: distribution's token specification.
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// A token is not used in its last seconds: the request has to arrive, too.
const MARGIN: Duration = Duration::from_secs(5);
/// Grants that are remembered; past it the oldest knowledge is thrown away whole, which costs a request each.
const GRANTS_MAX: usize = 4096;

/// What a request to a repository is made with.
#[derive(Clone)]
pub(super) struct Grant {
    header: HeaderValue,
    until: Option<Instant>,
}

impl Grant {
    fn new(mut header: HeaderValue, until: Option<Instant>) -> Self {
        header.set_sensitive(true);
        Self { header, until }
    }

    /// The header `Authorization`.
    pub fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    fn holds(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

/// The grants of this process, by repository.
#[derive(Default)]
pub(super) struct Grants(Mutex<HashMap<Place, Slot>>);

impl Grants {
    fn slot(&self, place: &Place) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= GRANTS_MAX && !slots.contains_key(place) {
            slots.clear();
        }
        slots.entry(place.clone()).or_default().clone()
    }

    /// The grant that worked last for a repository, if it still holds.
    pub async fn known(&self, place: &Place) -> Option<Grant> {
        self.slot(place).lock().await.clone().filter(Grant::holds)
    }

    /// Gets a new grant after `refused` was not enough. Many pulls that wait for one share one request.
    pub async fn renew(
        &self,
        clients: &Clients,
        reach: &Reach,
        place: &Place,
        challenge: &Challenge,
        refused: Option<&Grant>,
    ) -> Result<Grant, Failure> {
        let slot = self.slot(place);
        let mut grant = slot.lock().await;
        let newer =
            grant.as_ref().filter(|grant| grant.holds() && refused.is_none_or(|old| old.header != grant.header));
        if let Some(newer) = newer {
            return Ok(newer.clone());
        }
        *grant = None;
        let new = match challenge {
            Challenge::Basic => match &reach.credentials {
                Some(credentials) => Grant::new(basic(credentials).await?, None),
                None => {
                    return Err(refusal(format!(
                        "{} asks for a user and a password; set `username` and `password_file`",
                        place.registry
                    )));
                }
            },
            Challenge::Bearer { realm, service, scope } => {
                fetch_token(clients, reach, place, realm, service.as_deref(), scope.as_deref()).await?
            }
        };
        if refused.is_some_and(|old| old.header == new.header) {
            return Err(refusal(format!("{} refuses the configured credentials", place.registry)));
        }
        Ok(grant.insert(new).clone())
    }
}

fn refusal(reason: String) -> Failure {
    Failure::Auth { reason, refused: true }
}

fn broken(reason: String) -> Failure {
    Failure::Auth { reason, refused: false }
}

async fn basic(credentials: &Credentials) -> Result<HeaderValue, Failure> {
    let file = &credentials.password_file;
    let password = tokio::fs::read_to_string(file).await;
    let password = password.map_err(|err| broken(format!("{} cannot be read: {err}", file.display())))?;
    let password = password.trim_end_matches(['\n', '\r']);
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{password}", credentials.username));
    Ok(HeaderValue::try_from(format!("Basic {pair}")).expect("base64 is a header's value"))
}

#[derive(Deserialize)]
struct TokenBody {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Asks the token service. Source: distribution's token specification, "Requesting a Token".
async fn fetch_token(
    clients: &Clients,
    reach: &Reach,
    place: &Place,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
) -> Result<Grant, Failure> {
    let mut url = Url::parse(realm)
        .map_err(|_| broken(format!("{} names a token service that is no address", place.registry)))?;
    check_realm(reach, place, &url)?;
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", scope.unwrap_or(&format!("repository:{}:pull", place.repository)));
    }
    let host = url.host_str().unwrap_or_default().to_owned();
    let mut request = Request::get(url.as_str()).header(ACCEPT, "application/json");
    if let Some(credentials) = &reach.credentials {
        let mut header = basic(credentials).await?;
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    let request = request.body(Empty::new()).map_err(|err| broken(format!("the token service {host}: {err}")))?;
    let client = clients.for_url(&url, reach.listed)?;
    let fetched = tokio::time::timeout(TOKEN_TIMEOUT, async {
        let answer = client
            .request(request)
            .await
            .map_err(|err| broken(format!("the token service {host}: {}", failure(&err))))?;
        let status = answer.status();
        if status != StatusCode::OK {
            let reason = format!("the token service {host} answers {}", status.as_u16());
            let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            return Err(Failure::Auth { reason, refused });
        }
        let body = Limited::new(answer.into_body(), TOKEN_BODY_MAX).collect().await;
        Ok(body.map_err(|err| broken(format!("the token service {host}: {err}")))?.to_bytes())
    });
    let body = fetched.await.map_err(|_| broken(format!("the token service {host} does not answer in time")))??;
    // What stands in the body may be a secret: it is never quoted.
    let token: TokenBody =
        serde_json::from_slice(&body).map_err(|_| broken(format!("the token service {host} sends no token")))?;
    let text = token.token.or(token.access_token).filter(|token| !token.is_empty());
    let text = text.ok_or_else(|| broken(format!("the token service {host} sends no token")))?;
    let header = HeaderValue::try_from(format!("Bearer {text}"));
    let header =
        header.map_err(|_| broken(format!("the token service {host} sends a token with control characters")))?;
    let life = token.expires_in.map_or(DEFAULT_LIFE, |secs| Duration::from_secs(secs.min(86_400)));
    Ok(Grant::new(header, Some(Instant::now() + life.saturating_sub(MARGIN))))
}

/// The realm's host must be the registry's, share its registrable domain, or be allowed by name; else whoever can
/// write an answer of the registry could have the password sent anywhere.
fn check_realm(reach: &Reach, place: &Place, realm: &Url) -> Result<(), Failure> {
    let host = realm.host_str().unwrap_or_default();
    let own = reach.url.host_str().unwrap_or_default();
    let related = host == own || same_domain(host, own) || is_allowed(reach, realm);
    let secure = realm.scheme() == "https" || (realm.scheme() == "http" && reach.url.scheme() == "http");
    if related && secure {
        return Ok(());
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

/// Whether the operator allows a host by name, with or without its port.
pub(super) fn is_allowed(reach: &Reach, url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
    reach.redirect_hosts.iter().any(|allowed| allowed == host || Some(allowed) == with_port.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

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
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", "", true),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/token", "", false),
            ("http://127.0.0.1:5000", "http://127.0.0.2:5001/token", "127.0.0.2:5001", true),
            ("https://registry.lan", "file:///etc/passwd", "", false),
        ] {
            let reach = Reach {
                url: Url::parse(own).expect("an address"),
                listed: true,
                credentials: None,
                redirect_hosts: vec![allowed.to_owned()],
            };
            let realm = Url::parse(realm).expect("an address");
            assert_eq!(check_realm(&reach, &place, &realm).is_ok(), good, "{own} {realm}");
        }
    }
}
