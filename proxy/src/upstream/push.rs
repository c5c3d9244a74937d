//! One request that writes to a registry. A body that has begun to flow is sent once and never again: what the registry
//! wants to be asked with is found out before.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT, VIA, WWW_AUTHENTICATE,
};
use hyper::http::request::Builder;
use hyper::{Request, Response, StatusCode};
use url::Url;

use super::auth::{Asker, For, Grant, Ready};
use super::caller::{self, As};
use super::outgoing::{Outgoing, Patience, Unfed};
use super::{REDIRECTS_MAX, Upstreams, Via, challenge_in, redirect};
use crate::body::{Chunks, Short};
use crate::config::Reach;
use crate::metrics::{Attempt as AttemptLabels, Upstream};
use crate::oci::challenge::Challenge;
use crate::oci::{Action, Credentials, Failure, Place};
use crate::trace::{self, Span};

/// Largest body of an answer that is read. Units: bytes.
const SAID_MAX: usize = 64 << 10;
/// Longest address of an upload that is taken. Units: bytes.
const LOCATION_MAX: usize = 4 << 10;

/// What a registry is offered.
pub struct Offer<'a> {
    /// Whom, and which repository.
    pub place: &'a Place,
    /// What is done there.
    pub action: Action,
    /// The method.
    pub method: &'static str,
    /// Where it goes.
    pub to: To<'a>,
    /// Header `Content-Type`.
    pub media_type: Option<&'a str>,
    /// Header `Content-Range`.
    pub range: Option<&'a str>,
    /// How long to wait for the answer, once the registry has all.
    pub timeout: Duration,
    /// The mirrors that the request has come through.
    pub via: &'a Via,
    /// What the client sent, for registries that are for these.
    pub credentials: Option<&'a Arc<Credentials>>,
}

/// Where a request goes.
pub enum To<'a> {
    /// What stands behind the repository's name, with its query: `manifests/latest`.
    Resource(&'a str),
    /// An address that the registry gave.
    Upload(&'a Url),
}

/// What it brings.
pub enum Brought {
    /// Nothing, or what is held in memory.
    Held(Bytes),
    /// A body as it comes, and its length where that is known. Units: bytes.
    Flowing(Chunks, Option<u64>),
}

/// What a registry said.
#[derive(Debug)]
pub struct Said {
    /// The status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// The beginning of its body.
    pub body: Bytes,
    /// Where it goes on; else why that is not known.
    pub location: Result<Url, Failure>,
}

/// Why nothing is known of what a registry would have said.
#[derive(Debug)]
pub enum Unsent {
    /// The client broke its body off.
    Client(Short),
    /// The registry cannot be had, or refuses us.
    Registry(Failure),
}

impl From<Failure> for Unsent {
    fn from(failure: Failure) -> Self {
        Self::Registry(failure)
    }
}

impl Said {
    /// A header as text; none where it is absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Upstreams {
    /// Offers something to a registry.
    pub async fn push(&self, offer: &Offer<'_>, brought: Brought) -> Result<Said, Unsent> {
        let registry = &offer.place.registry;
        let span = begin_span(offer);
        let said = match self.config.reach(registry) {
            Some(reach) => span.within(self.push_within(offer, &reach, brought)).await,
            None => Err(Failure::Other(format!("{registry} is not a registry of the configuration")).into()),
        };
        let outcome = match &said {
            Ok(said) => {
                span.number("http.response.status_code", said.status.as_u16().into());
                if said.status.is_success() { "ok" } else { "status" }
            }
            Err(Unsent::Registry(failure)) => {
                span.fail(failure);
                failure.kind()
            }
            Err(Unsent::Client(short)) => {
                span.fail(short);
                "client"
            }
        };
        span.word("tidegate.outcome", outcome);
        let labels = AttemptLabels { registry: self.config.label(registry).to_owned(), outcome };
        self.metrics.attempts.get_or_create_owned(&labels).inc();
        said
    }

    async fn push_within(&self, offer: &Offer<'_>, reach: &Arc<Reach>, brought: Brought) -> Result<Said, Unsent> {
        let url = match &offer.to {
            To::Upload(url) => (*url).clone(),
            To::Resource(resource) => address(reach, &format!("{}/{resource}", offer.place.repository))?,
        };
        match brought {
            Brought::Held(bytes) => {
                let limit = offer.timeout;
                let held = tokio::time::timeout(limit, Box::pin(self.push_held(offer, reach, url, bytes)));
                held.await.map_err(|_| Failure::Timeout)?
            }
            Brought::Flowing(chunks, length) => Box::pin(self.push_flowing(offer, reach, url, (chunks, length))).await,
        }
    }

    /// Sends what can be sent again; where the answer is a challenge, once more with a grant.
    async fn push_held(&self, offer: &Offer<'_>, reach: &Arc<Reach>, url: Url, bytes: Bytes) -> Result<Said, Unsent> {
        let asker = self.asker(offer, reach);
        let grant = self.grants.known(&asker.wanted).await?;
        let (answer, at) = self.send_held(offer, reach, (url.clone(), &bytes), grant.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || at.origin() != reach.url.origin() {
            if grant.is_none() {
                self.grants.note_open(&asker.wanted).await;
            }
            return read(answer, &at, reach).await;
        }
        let challenge = challenge_in(&answer.headers().get_all(WWW_AUTHENTICATE), offer.place)?;
        drop(answer);
        let renewed = self.grants.renew(asker, Some(challenge), grant.as_ref()).await?;
        let (answer, at) = self.send_held(offer, reach, (url, &bytes), renewed.as_ref()).await?;
        let own = at.origin() == reach.url.origin();
        if answer.status() == StatusCode::UNAUTHORIZED && own && renewed.is_some_and(|grant| grant.is_password()) {
            let reason = format!("{} answers 401", offer.place.registry);
            return Err(Failure::Auth { reason, refused: true, wrong_password: true }.into());
        }
        read(answer, &at, reach).await
    }

    /// Follows redirects that keep the method. The credential stays with the registry's own origin (I9).
    async fn send_held(
        &self,
        offer: &Offer<'_>,
        reach: &Reach,
        (mut url, bytes): (Url, &Bytes),
        grant: Option<&Grant>,
    ) -> Result<(Response<Incoming>, Url), Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let own = url.origin() == reach.url.origin();
            let client = self.clients.client(&offer.place.registry, reach, &url).await?;
            let request = offer.request(&url, grant.filter(|_| own)).body(Full::from(bytes.clone()));
            let answer = client.send(request.map_err(|err| no_request(&err))?).await?;
            if !matches!(answer.status().as_u16(), 307 | 308) {
                return Ok((answer, url));
            }
            url = redirect(&url, answer.headers())?;
        }
        Err(Failure::Other(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Sends what comes only once.
    async fn push_flowing(
        &self,
        offer: &Offer<'_>,
        reach: &Arc<Reach>,
        url: Url,
        (mut chunks, length): (Chunks, Option<u64>),
    ) -> Result<Said, Unsent> {
        let asker = self.asker(offer, reach);
        let own = url.origin() == reach.url.origin();
        let grant = if own { self.grant_before(offer, asker.clone()).await? } else { None };
        let client = self.clients.client(&offer.place.registry, reach, &url).await?;
        let limits = &self.config.limits;
        let patience =
            Patience { upstream: limits.upstream_idle, client: limits.write_stall, min_rate: limits.upstream_min_rate };
        let mut again = true;
        let answer = loop {
            let (body, feed) = Outgoing::fed(length);
            let request = offer.request(&url, grant.as_ref()).body(body).map_err(|err| no_request(&err))?;
            let mut sending = pin!(client.send_fed(request));
            let sent = tokio::select! {
                biased;
                sent = &mut sending => sent,
                ended = feed.pump(&mut chunks, patience) => match ended {
                    Err(Unfed::Sender(short)) => return Err(Unsent::Client(short)),
                    Err(Unfed::Stalled) => return Err(Failure::Timeout.into()),
                    Ok(()) | Err(Unfed::Gone) => {
                        tokio::time::timeout(offer.timeout, sending).await.map_err(|_| Failure::Timeout)?
                    }
                },
            };
            match sent {
                Ok(answer) => break answer,
                Err((_, true)) if again && !feed.has_begun() => again = false,
                Err((failure, _)) => return Err(failure.into()),
            }
        };
        if answer.status() == StatusCode::UNAUTHORIZED && own {
            // The next request has a grant that is as new as can be; this one cannot be made again.
            let challenge = challenge_in(&answer.headers().get_all(WWW_AUTHENTICATE), offer.place)?;
            self.grants.renew(asker, Some(challenge), grant.as_ref()).await?;
            let reason = format!("{} wants another login in the middle of an upload; push again", offer.place.registry);
            return Err(Failure::Auth { reason, refused: false, wrong_password: false }.into());
        }
        read(answer, &url, reach).await
    }

    /// The grant for a request that cannot be made twice. Where nothing is known of the registry, it is asked first.
    async fn grant_before(&self, offer: &Offer<'_>, asker: Asker) -> Result<Option<Grant>, Failure> {
        match self.grants.ready(asker.clone()).await? {
            Ready::With(grant) => return Ok(Some(grant)),
            Ready::Without => return Ok(None),
            Ready::Unknown => {}
        }
        let reach = asker.reach.clone();
        let url = address(&reach, "")?;
        let client = self.clients.client(&offer.place.registry, &reach, &url).await?;
        let request = Request::get(url.as_str()).header(USER_AGENT, AGENT).body(Full::default());
        let sent = client.send(request.map_err(|err| no_request(&err))?);
        let answer = tokio::time::timeout(self.config.limits.upstream_headers, sent);
        let answer = answer.await.map_err(|_| Failure::Timeout)??;
        if answer.status() != StatusCode::UNAUTHORIZED {
            self.grants.note_open(&asker.wanted).await;
            return Ok(None);
        }
        let challenge = match challenge_in(&answer.headers().get_all(WWW_AUTHENTICATE), offer.place)? {
            // What it names here is for this address, if anything; what is wanted is known.
            Challenge::Bearer { realm, service, .. } => Challenge::Bearer { realm, service, scope: None },
            Challenge::Basic => Challenge::Basic,
        };
        self.grants.renew(asker, Some(challenge), None).await
    }

    fn asker(&self, offer: &Offer<'_>, reach: &Arc<Reach>) -> Asker {
        // What a registry serves to those alone whom it would serve itself, it has written by those alone too.
        let whose = if reach.callers.authorize.is_some() { As::Caller } else { As::Mirror };
        let (by, credentials) = caller::by(whose, offer.credentials, reach);
        Asker {
            clients: self.clients.clone(),
            reach: reach.clone(),
            wanted: For { place: offer.place.clone(), action: offer.action, by },
            credentials,
            limit: self.config.limits.upstream_headers * 3 / 4,
        }
    }

    /// Counts what a registry is sent.
    pub fn count_pushed(&self, place: &Place, chunks: Chunks) -> Chunks {
        use futures_util::StreamExt;
        let labels = Upstream { registry: self.config.label(&place.registry).to_owned() };
        let sent = self.metrics.pushed_bytes.get_or_create_owned(&labels);
        Box::pin(chunks.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                sent.inc_by(chunk.len() as u64);
            }
        }))
    }
}

const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

impl Offer<'_> {
    fn request(&self, url: &Url, grant: Option<&Grant>) -> Builder {
        let mut request = Request::builder()
            .method(self.method)
            .uri(url.as_str())
            .header(USER_AGENT, AGENT)
            .header(VIA, self.via.onward());
        for (name, value) in [(CONTENT_TYPE, self.media_type), (CONTENT_RANGE, self.range)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        match grant {
            Some(grant) => request.header(AUTHORIZATION, HeaderValue::clone(&grant.header())),
            None => request,
        }
    }
}

fn address(reach: &Reach, path: &str) -> Result<Url, Failure> {
    reach.url.join(&format!("/v2/{path}")).map_err(|err| Failure::Other(format!("no address: {err}")))
}

fn no_request(err: &hyper::http::Error) -> Failure {
    Failure::Other(format!("no request: {err}"))
}

/// Reads what a registry said; of its body no more than the beginning, which is for people.
async fn read(answer: Response<Incoming>, at: &Url, reach: &Reach) -> Result<Said, Unsent> {
    let (head, body) = answer.into_parts();
    let status = head.status;
    if status == StatusCode::UNAUTHORIZED {
        let host = at.host_str().unwrap_or_default();
        let who = if at.origin() == reach.url.origin() { host.to_owned() } else { format!("{host}, where it leads,") };
        return Err(Failure::Auth { reason: format!("{who} answers 401"), refused: true, wrong_password: false }.into());
    }
    if status.is_redirection() {
        return Err(Failure::Other(format!("it answers {}, which a push cannot follow", status.as_u16())).into());
    }
    let location = match head.headers.get(hyper::header::LOCATION) {
        Some(value) if value.len() > LOCATION_MAX => {
            Err(Failure::Other(format!("it names an address of more than {LOCATION_MAX} bytes")))
        }
        Some(_) => redirect(at, &head.headers),
        None => Err(Failure::Other("it does not say where the upload goes on".to_owned())),
    };
    let body = tokio::time::timeout(Duration::from_secs(5), Limited::new(body, SAID_MAX).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    Ok(Said { status, headers: head.headers, body, location })
}

fn begin_span(offer: &Offer<'_>) -> Span {
    let span = trace::child(trace::Kind::Client, || format!("upstream {}", offer.method));
    span.word("http.request.method", offer.method);
    span.text("tidegate.registry", &offer.place.registry);
    span.text("tidegate.repository", &offer.place.repository);
    span.word("tidegate.action", offer.action.as_str());
    if let To::Resource(resource) = &offer.to {
        span.text("tidegate.resource", resource);
    }
    span
}
