//! One attempt at one registry: address, credentials, redirects, time limits. Nothing is tried twice here, but for
//! the one request that a challenge or a redirect asks for.

mod answer;
mod auth;
mod caller;
mod connect;
mod dial;
mod docker;
mod egress;
mod health;
mod helper;
mod limits;
mod names;
mod outgoing;
mod push;
mod secret;
mod token;
mod trust;
mod tunnel;
mod via;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, GetAll, HeaderMap, HeaderValue, LOCATION, RANGE, USER_AGENT, VIA,
    WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode};
use url::Url;

use crate::config::{Config, Reach};
use crate::metrics::{Attempt as AttemptLabels, Metrics, Upstream};
use crate::oci::challenge::{self, Challenge};
use crate::oci::{Action, Candidate, Credentials, Failure, Method, Place, RateLimit, Registry};
use crate::trace::{self, Span};
use answer::{Source, Traced, accept, rate_limit};
use auth::{Asker, For, Grant, Grants};
use connect::Clients;
use health::{Health, Stage};
use limits::Limits;
use tunnel::Tunnels;

pub use answer::{Answer, Received};
pub use caller::{As, Fingerprint};
pub use push::{Brought, Offer, Said, To, Unsent};
pub use tunnel::{NoTunnel, Tunnel};
pub use via::{Loop, Via};

/// Redirects that one attempt follows.
const REDIRECTS_MAX: usize = 5;
/// A registry that was not waited for at least so long is not blamed for its silence.
const PATIENCE: Duration = Duration::from_secs(1);

/// All upstreams of a configuration.
pub struct Upstreams {
    config: Arc<Config>,
    clients: Arc<Clients>,
    grants: Grants,
    health: Arc<Health>,
    limits: Arc<Limits>,
    tunnels: Tunnels,
    metrics: Arc<Metrics>,
}

/// What an upstream is asked.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Whom, and about which repository.
    pub place: &'a Place,
    /// What stands behind the repository's name: `manifests/latest`.
    pub resource: &'a str,
    /// What stands behind the question mark.
    pub query: &'a str,
    /// With or without the body.
    pub method: Method,
    /// Header `Accept`.
    pub accept: &'a str,
    /// Only from this byte on. Units: bytes.
    pub from: u64,
    /// Only to before this byte; none: to the end. Units: bytes.
    pub until: Option<u64>,
    /// How long to wait for the headers.
    pub timeout: Duration,
    /// The mirrors that the request has come through.
    pub via: &'a Via,
    /// As whom.
    pub by: As,
    /// What the caller sent.
    pub credentials: Option<&'a Arc<Credentials>>,
}

/// Why there is no answer, and when to come again.
#[derive(Debug)]
pub struct Refused {
    /// What went wrong.
    pub failure: Failure,
    /// What the registry asked for, within reason.
    pub retry_after: Option<Duration>,
    /// What the registry told of its limits: header and value.
    pub rate_limit: Vec<(String, String)>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, retry_after: None, rate_limit: Vec::new() }
    }
}

impl Upstreams {
    /// The upstreams that a configuration reaches.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>) -> Self {
        connect::install_cryptography();
        warn_of(&config, None);
        let clients = Arc::new(Clients::new(&config));
        let health = Arc::new(Health::new(metrics.clone()));
        let (limits, tunnels) = (Arc::default(), Tunnels::default());
        Self { config, clients, grants: Grants::default(), health, limits, tunnels, metrics }
    }

    /// The same upstreams under another configuration: what is known of their health, the grants of registries that
    /// are reached as before, and connections that would be made as before, stay.
    #[must_use]
    pub fn renewed(&self, config: Arc<Config>) -> Self {
        warn_of(&config, Some(&self.config));
        let clients = if self.clients.serves(&config) { self.clients.clone() } else { Arc::new(Clients::new(&config)) };
        let grants =
            self.grants.carried_over(|place| self.config.reach(&place.registry) == config.reach(&place.registry));
        let (health, limits) = (self.health.clone(), self.limits.clone());
        let (tunnels, metrics) = (self.tunnels.clone(), self.metrics.clone());
        Self { config, clients, grants, health, limits, tunnels, metrics }
    }

    /// Whether a registry may be reached at all.
    pub fn reaches(&self, place: &Place) -> bool {
        self.config.reach(&place.registry).is_some()
    }

    /// Puts the candidates whose registries keep failing behind the others; none is left out.
    pub fn order(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        self.health.order(candidates, Instant::now())
    }

    /// What a registry said last of the pulls that it still allows, and how long ago.
    pub fn rate_limit(&self, registry: &Registry) -> Option<(RateLimit, Duration)> {
        self.limits.of(registry)
    }

    /// Whether a registry keeps failing, and is asked after the others.
    pub fn is_ailing(&self, registry: &Registry) -> bool {
        self.health.is_ailing(registry)
    }

    /// Asks a registry once.
    pub async fn fetch(&self, ask: &Ask<'_>) -> Result<Answer, Refused> {
        let registry = &ask.place.registry;
        let span = begin_span(ask);
        let fetched = match self.config.reach(registry) {
            Some(reach) => span.within(self.fetch_within(ask, &reach)).await,
            None => Err(Failure::Other(format!("{registry} is not a registry of the configuration")).into()),
        };
        let limits = &self.config.limits;
        let outcome = match &fetched {
            Ok(answer) => {
                self.limits.note(registry, &rate_limit(answer.headers()));
                self.health.good(registry, Stage::Answer);
                "ok"
            }
            Err(Refused { failure, rate_limit, .. }) => {
                self.limits.note(registry, rate_limit);
                // Whom nobody waited for may be well: a plugin, or the end of all attempts, set the time.
                if *failure != Failure::Timeout || ask.timeout >= PATIENCE {
                    self.health.bad(registry, Stage::Answer, failure, limits.upstream_ailing, Instant::now());
                }
                failure.kind()
            }
        };
        let labels = AttemptLabels { registry: self.config.label(registry).to_owned(), outcome };
        self.metrics.attempts.get_or_create_owned(&labels).inc();
        let traced = Traced::new(span, ask.method, &fetched);
        let answer = fetched?;
        let source = Source {
            traced,
            registry: registry.clone(),
            received: self
                .metrics
                .received_bytes
                .get_or_create_owned(&Upstream { registry: self.config.label(registry).to_owned() }),
            health: self.health.clone(),
            idle: limits.upstream_idle,
            min_rate: limits.upstream_min_rate,
            ailing: limits.upstream_ailing,
        };
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body, source })
    }

    async fn fetch_within(&self, ask: &Ask<'_>, reach: &Arc<Reach>) -> Result<Response<Incoming>, Refused> {
        match tokio::time::timeout(ask.timeout, Box::pin(self.exchange(ask, reach))).await {
            Ok(answer) => accept(answer?, ask),
            Err(_) => Err(Failure::Timeout.into()),
        }
    }

    /// Request, answer; where the answer is a challenge, once more with a grant.
    async fn exchange(&self, ask: &Ask<'_>, reach: &Arc<Reach>) -> Result<Response<Incoming>, Failure> {
        let query = if ask.query.is_empty() { String::new() } else { format!("?{}", ask.query) };
        let path = format!("/v2/{}/{}{query}", ask.place.repository, ask.resource);
        let url = reach.url.join(&path).map_err(|err| Failure::Other(format!("no address: {err}")))?;
        let (by, credentials) = caller::by(ask.by, ask.credentials, reach);
        let wanted = For { place: ask.place.clone(), action: Action::Pull, by };
        let grant = self.grants.known(&wanted).await?;
        let (answer, host) = self.follow(ask, reach, url.clone(), grant.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenge = match host {
            None => Some(challenge_in(&answer.headers().get_all(WWW_AUTHENTICATE), ask.place)?),
            // A host that a redirect led to refuses what the registry gave us for it. What it asks for itself is not
            // answered; the registry is asked for another way, with a grant that is as new.
            Some(_) => None,
        };
        drop(answer);
        let asker = Asker {
            clients: self.clients.clone(),
            reach: reach.clone(),
            wanted,
            credentials,
            limit: self.config.limits.upstream_headers * 3 / 4,
        };
        let renewed = match (&challenge, &grant) {
            (None, None) => None,
            _ => self.grants.renew(asker, challenge, grant.as_ref()).await?,
        };
        let (answer, host) = self.follow(ask, reach, url, renewed.as_ref()).await?;
        match host {
            Some(host) if answer.status() == StatusCode::UNAUTHORIZED => {
                let reason = format!("{host}, where {} leads, answers 401", ask.place.registry);
                Err(Failure::Auth { reason, refused: true, wrong_password: false })
            }
            None if answer.status() == StatusCode::UNAUTHORIZED && renewed.is_some_and(|grant| grant.is_password()) => {
                let reason = format!("{} answers 401", ask.place.registry);
                Err(Failure::Auth { reason, refused: true, wrong_password: true })
            }
            _ => Ok(answer),
        }
    }

    /// Sends a request and follows its redirects by hand. The credential stays with the registry's own origin. Gives
    /// the host that answered where it is another than the registry's.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        reach: &Reach,
        mut url: Url,
        grant: Option<&Grant>,
    ) -> Result<(Response<Incoming>, Option<String>), Failure> {
        let grant = grant.map(Grant::header);
        for _ in 0..=REDIRECTS_MAX {
            let own = url.origin() == reach.url.origin();
            let client = self.clients.client(&ask.place.registry, reach, &url).await?;
            let answer = client.send(request(ask, &url, grant.as_ref().filter(|_| own))?).await?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let other = (!own).then(|| url.host_str().unwrap_or_default().to_owned());
                return Ok((answer, other));
            }
            url = redirect(&url, answer.headers())?;
        }
        Err(Failure::Other(format!("more than {REDIRECTS_MAX} redirects")))
    }
}

/// The span of one attempt, from its beginning to the end of its body.
fn begin_span(ask: &Ask<'_>) -> Span {
    let span = trace::child(trace::Kind::Client, || format!("upstream {}", ask.method.as_str()));
    span.word("http.request.method", ask.method.as_str());
    span.text("tidegate.registry", &ask.place.registry);
    span.text("tidegate.repository", &ask.place.repository);
    span.text("tidegate.resource", ask.resource);
    if ask.from > 0 {
        span.number("tidegate.from_bytes", ask.from);
    }
    span
}

/// Says aloud what is not safe in a configuration, and was not said of the one before.
fn warn_of(config: &Config, before: Option<&Config>) {
    let said = before.map(Config::warnings).unwrap_or_default();
    for warning in config.warnings().into_iter().filter(|warning| !said.contains(warning)) {
        tracing::warn!("{warning}");
    }
}

fn challenge_in(values: &GetAll<'_, HeaderValue>, place: &Place) -> Result<Challenge, Failure> {
    challenge::parse(values.iter().filter_map(|value| value.to_str().ok())).ok_or_else(|| {
        let reason = format!("{} answers 401 without a challenge that can be answered", place.registry);
        Failure::Auth { reason, refused: true, wrong_password: false }
    })
}

fn request(ask: &Ask<'_>, url: &Url, grant: Option<&HeaderValue>) -> Result<Request<Full<Bytes>>, Failure> {
    let method = match ask.method {
        Method::Get => hyper::Method::GET,
        Method::Head => hyper::Method::HEAD,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .header(VIA, ask.via.onward())
        .header(ACCEPT, ask.accept)
        // Bytes are kept as they are named by their digest: any coding would change them.
        .header(ACCEPT_ENCODING, "identity");
    match ask.until {
        Some(until) => request = request.header(RANGE, format!("bytes={}-{}", ask.from, until - 1)),
        None if ask.from > 0 => request = request.header(RANGE, format!("bytes={}-", ask.from)),
        None => {}
    }
    if let Some(grant) = grant {
        request = request.header(AUTHORIZATION, grant);
    }
    request.body(Full::default()).map_err(|err| Failure::Other(format!("no request: {err}")))
}

fn redirect(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Failure::Other("a redirect to nowhere".to_owned()))?;
    let mut to = from.join(location).map_err(|_| Failure::Other("a redirect to what is no address".to_owned()))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {
            // Whoever writes a user into an address has us send nothing: what we send is in the configuration.
            let _ = (to.set_username(""), to.set_password(None));
            to.set_fragment(None);
            Ok(to)
        }
        (_, scheme) => Err(Failure::Other(format!("a redirect from {} to {scheme}, which is refused", from.scheme()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t2_another_configuration_keeps_what_still_holds() {
        let config = |docker: &str, rest: &str| {
            let text = format!(
                "listen = \"127.0.0.1:1\"\n{rest}\n[registries.\"docker.io\"]\nurl = \"{docker}\"\n[registries.\"quay.io\"]\nurl = \"http://127.0.0.1:3\""
            );
            Arc::new(Config::parse(&text, "t").expect("a configuration"))
        };
        let place = |registry: &str| Place {
            registry: crate::oci::Registry::parse(registry).expect("a registry"),
            repository: crate::oci::Repository::parse("a/b").expect("a repository"),
        };
        let before = Upstreams::new(config("http://127.0.0.1:2", ""), Arc::default());
        let down = Failure::Connect("down".to_owned());
        for _ in 0..3 {
            let rest = Duration::from_secs(10);
            before.health.bad(&place("docker.io").registry, Stage::Answer, &down, rest, Instant::now());
        }
        let after = before.renewed(config("http://127.0.0.1:4", ""));
        assert!(Arc::ptr_eq(&before.clients, &after.clients), "connections stay");
        let candidates = ["docker.io", "quay.io"].map(|registry| Candidate::plain(place(registry)));
        assert_eq!(after.order(candidates.to_vec())[0], candidates[1], "what fails is known to fail");
        let other = after.renewed(config("http://127.0.0.1:4", "certs_dirs = [\"/elsewhere\"]"));
        assert!(!Arc::ptr_eq(&after.clients, &other.clients));
    }

    #[test]
    fn u11_redirects_never_go_down() {
        let to = |from: &str, location: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_bytes(location).expect("a header"));
            redirect(&Url::parse(from).expect("an address"), &headers).map(String::from)
        };
        assert_eq!(to("https://a/v2/x", b"/blob").expect("relative"), "https://a/blob");
        assert_eq!(to("https://a/v2/x", b"//cdn/blob").expect("relative"), "https://cdn/blob");
        assert_eq!(to("https://a/v2/x", b"https://u:p@cdn/blob#x").expect("absolute"), "https://cdn/blob");
        // What is no text of a header is refused by hyper; what is a word for it stays a word.
        assert_eq!(
            to("https://a/v2/x", b"/b%0d%0aX-Evil:%201?q=%0A").expect("relative"),
            "https://a/b%0d%0aX-Evil:%201?q=%0A"
        );
        assert_eq!(to("https://a/v2/x", b"/a\tb").expect("relative"), "https://a/ab");
        assert!(to("https://a/", b"http://a/").is_err());
        assert!(to("https://a/", b"file:///etc/passwd").is_err());
        assert!(to("https://a/", b"https://").is_err());
        assert!(to("https://a/", "/é".as_bytes()).is_err());
        assert!(to("https://a/", b"").is_ok());
    }
}
