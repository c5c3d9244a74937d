//! One attempt at one registry: address, credentials, redirects, time limits. Nothing is tried twice here, but for
//! the one request that a challenge or a redirect asks for.

mod auth;
mod connect;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::try_unfold;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode};
use url::Url;

use crate::config::{Config, Reach};
use crate::metrics::{Attempt as AttemptLabels, Metrics, Upstream};
use crate::oci::challenge;
use crate::oci::{Failure, Method, Place};
use auth::Grants;
use connect::Clients;

/// How long an attempt waits for the headers of an answer, when nobody says otherwise.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a body may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Redirects that one attempt follows.
const REDIRECTS_MAX: usize = 5;
/// Longest time that an upstream's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// All upstreams of a configuration.
pub struct Upstreams {
    config: Arc<Config>,
    clients: Clients,
    grants: Grants,
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
}

/// Why there is no answer, and when to come again.
#[derive(Debug)]
pub struct Refused {
    /// What went wrong.
    pub failure: Failure,
    /// What the registry asked for, within reason.
    pub retry_after: Option<Duration>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, retry_after: None }
    }
}

/// An answer: 200, or 206 where the request was for a part. Its body is still to come.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    received: prometheus_client::metrics::counter::Counter,
}

/// A stream of the body of an answer.
pub type Received = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Bytes, Failure>> + Send>>;

impl Upstreams {
    /// The upstreams that a configuration reaches.
    pub fn new(config: Arc<Config>, metrics: Arc<Metrics>) -> Self {
        connect::install_cryptography();
        Self { config, clients: Clients::new(), grants: Grants::default(), metrics }
    }

    /// Whether a registry may be reached at all.
    pub fn reaches(&self, place: &Place) -> bool {
        self.config.reach(&place.registry).is_some()
    }

    /// Asks a registry once.
    pub async fn fetch(&self, ask: &Ask<'_>) -> Result<Answer, Refused> {
        let registry = ask.place.registry.as_str();
        let fetched = match self.config.reach(&ask.place.registry) {
            Some(reach) => self.fetch_within(ask, &reach).await,
            None => Err(Failure::Other(format!("{registry} is not a registry of the configuration")).into()),
        };
        let outcome = fetched.as_ref().map_or_else(|refused| refused.failure.kind(), |_| "ok");
        self.metrics.attempts.get_or_create(&AttemptLabels { registry: registry.to_owned(), outcome }).inc();
        let received = self.metrics.received_bytes.get_or_create_owned(&Upstream { registry: registry.to_owned() });
        let answer = fetched?;
        Ok(Answer { status: answer.status(), headers: answer.headers().clone(), body: answer.into_body(), received })
    }

    async fn fetch_within(&self, ask: &Ask<'_>, reach: &Reach) -> Result<Response<Incoming>, Refused> {
        match tokio::time::timeout(ask.timeout, self.exchange(ask, reach)).await {
            Ok(answer) => accept(answer?, ask),
            Err(_) => Err(Failure::Timeout.into()),
        }
    }

    /// Request, answer; where the answer is a challenge, once more with a grant.
    async fn exchange(&self, ask: &Ask<'_>, reach: &Reach) -> Result<Response<Incoming>, Failure> {
        let query = if ask.query.is_empty() { String::new() } else { format!("?{}", ask.query) };
        let path = format!("/v2/{}/{}{query}", ask.place.repository, ask.resource);
        let url = reach.url.join(&path).map_err(|err| Failure::Other(format!("no address: {err}")))?;
        let grant = self.grants.known(ask.place).await;
        let answer = self.follow(ask, reach, url.clone(), grant.as_ref().map(auth::Grant::header)).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let values = answer.headers().get_all(WWW_AUTHENTICATE);
        let Some(challenge) = challenge::parse(values.iter().filter_map(|value| value.to_str().ok())) else {
            let reason = format!("{} answers 401 without a challenge that can be answered", ask.place.registry);
            return Err(Failure::Auth { reason, refused: true });
        };
        drop(answer);
        let grant = self.grants.renew(&self.clients, reach, ask.place, &challenge, grant.as_ref()).await?;
        self.follow(ask, reach, url, Some(grant.header())).await
    }

    /// Sends a request and follows its redirects by hand. The credential stays with the registry's own origin.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        reach: &Reach,
        mut url: Url,
        grant: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let own = url.origin() == reach.url.origin();
            let named = (reach.listed && url.host() == reach.url.host()) || auth::is_allowed(reach, &url);
            let client = self.clients.for_url(&url, named)?;
            let grant = grant.as_ref().filter(|_| own);
            let answer = client.request(request(ask, &url, grant)?).await.map_err(|err| connect::failure(&err))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            url = redirect(&url, answer.headers())?;
        }
        Err(Failure::Other(format!("more than {REDIRECTS_MAX} redirects")))
    }
}

fn request(ask: &Ask<'_>, url: &Url, grant: Option<&HeaderValue>) -> Result<Request<Empty<Bytes>>, Failure> {
    let method = match ask.method {
        Method::Get => hyper::Method::GET,
        Method::Head => hyper::Method::HEAD,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
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
    request.body(Empty::new()).map_err(|err| Failure::Other(format!("no request: {err}")))
}

fn redirect(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Failure::Other("a redirect to nowhere".to_owned()))?;
    let to = from.join(location).map_err(|_| Failure::Other("a redirect to what is no address".to_owned()))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        (_, scheme) => Err(Failure::Other(format!("a redirect from {} to {scheme}, which is refused", from.scheme()))),
    }
}

/// Whether an answer is one: all else is a failure with a name.
fn accept(answer: Response<Incoming>, ask: &Ask<'_>) -> Result<Response<Incoming>, Refused> {
    let status = answer.status();
    let whole = status == StatusCode::OK;
    let part = status == StatusCode::PARTIAL_CONTENT && (ask.from > 0 || ask.until.is_some());
    if !whole && !part {
        let failure = match status.as_u16() {
            code @ (401 | 403) => {
                let reason = format!("{} answers {code}", ask.place.registry);
                Failure::Auth { reason, refused: true }
            }
            code => Failure::Status(code),
        };
        return Err(Refused { failure, retry_after: retry_after(answer.headers()) });
    }
    if let Some(coding) = answer.headers().get(CONTENT_ENCODING)
        && coding != "identity"
    {
        return Err(Failure::Other("the content is encoded, which was not asked for".to_owned()).into());
    }
    Ok(answer)
}

/// Reads `Retry-After`, in seconds or as a date. Nonsense is none; what is past reason is cut.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let duration = match text.trim().parse() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(duration.min(RETRY_AFTER_MAX))
}

impl Answer {
    /// A header as text; none where it is absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length that the headers promise. Units: bytes.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The first byte of the part that this is, and the length of the whole; none where it is no part.
    ///
    /// Source: RFC 9110, section 14.4.
    pub fn part(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split_once('-')?.0.parse().ok()?;
        Some((first, total.parse().ok()))
    }

    /// The body as it comes. It fails when it is silent for too long, or ends before its length.
    pub fn stream(self) -> Received {
        Box::pin(try_unfold((self.body, self.received), |(mut body, received)| async move {
            loop {
                let frame = match tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
                    Err(_) => return Err(Failure::Timeout),
                    Ok(None) => return Ok(None),
                    // Reset, closed early, cut at the edge of a chunk: all that hyper tells is that it is not whole.
                    Ok(Some(Err(_))) => return Err(Failure::Truncated),
                    Ok(Some(Ok(frame))) => frame,
                };
                if let Ok(chunk) = frame.into_data() {
                    received.inc_by(chunk.len() as u64);
                    return Ok(Some((chunk, (body, received))));
                }
            }
        }))
    }

    /// The whole body, which must not be longer than `max` bytes.
    pub async fn collect(self, max: usize) -> Result<Bytes, Failure> {
        use futures_util::StreamExt;
        let mut stream = self.stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() > max {
                return Err(Failure::Other(format!("the content is longer than {max} bytes")));
            }
        }
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u10_retry_after_is_believed_within_reason() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::try_from(value).expect("a header"));
            retry_after(&headers)
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("315360000"), Some(RETRY_AFTER_MAX));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        for junk in ["-1", "soon", "", "1e9"] {
            assert_eq!(read(junk), None, "{junk}");
        }
    }

    #[test]
    fn u11_redirects_never_go_down() {
        let to = |from: &str, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::try_from(location).expect("a header"));
            redirect(&Url::parse(from).expect("an address"), &headers).map(String::from)
        };
        assert_eq!(to("https://a/v2/x", "/blob").expect("relative"), "https://a/blob");
        assert_eq!(to("https://a/v2/x", "//cdn/blob").expect("relative"), "https://cdn/blob");
        assert!(to("https://a/", "http://a/").is_err());
        assert!(to("https://a/", "file:///etc/passwd").is_err());
        assert!(to("https://a/", "").is_ok());
    }
}
