//! Answers that are given again: who asks for what somebody else just got, under the same configuration and the same
//! plugins, of which all would decide the same again, gets it without a second look at everything that was looked at.
//!
//! Nothing is given again that the long way would not give: an answer stands as long as configuration, plugins, cache and
//! freshness of its tag are those that it was made of, and is compared with whole requests, never by a hash alone.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use foldhash::fast::RandomState;
use http_body::Body as HttpBody;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue,
    PRAGMA, USER_AGENT,
};
use hyper::{Method, Request, Response, Uri, Version};

use super::decisions::Over;
use super::handle::{Answering, REQUEST_ID};
use super::peer::Peer;
use super::watched::{Progress, Watched, next_id};
use crate::body::Body;
use crate::cache::Content;
use crate::metrics::Answers;
use crate::oci::Asked;
use crate::plugin::Counting;
use crate::pull::{Again, Live, Source};
use crate::record::{Journal, Line, Tells};

/// Answers that are kept, at most: by places that two share.
const PLACES: usize = 1024;
/// Longest request that is compared, with all that is kept of it. Units: bytes.
const LENGTH_MAX: usize = 4 << 10;
/// Headers that change nothing of an answer, or are part of what is compared. Who sends others goes the long way.
const PLAIN: [HeaderName; 8] =
    [HOST, ACCEPT, USER_AGENT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONNECTION, CACHE_CONTROL, PRAGMA];
/// The same, of those that have no number in the library.
const OTHERS: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

/// The answers that may be given again.
pub(super) struct Repeats {
    random: RandomState,
    places: Box<[Mutex<Two>]>,
}

/// What is kept in one place: the latest, and the one before.
type Two = [Option<Arc<Given>>; 2];

/// A request, as far as its answer depends on it.
struct Wish<'a> {
    hash: u64,
    head: bool,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    /// Who asks, where a plugin wants to know.
    client: Option<IpAddr>,
    /// Which set of plugins decides.
    generation: u64,
}

/// The same, of a request that was answered.
struct Wished {
    hash: u64,
    head: bool,
    uri: Uri,
    host: Option<HeaderValue>,
    accept: Box<[HeaderValue]>,
    client: Option<(IpAddr, Option<HeaderValue>)>,
}

/// An answer that was given.
pub(super) struct Given {
    wished: Wished,
    /// Not kept, and neither is a plugin: an answer that nobody asks for again outlives both.
    live: Weak<Live>,
    generation: u64,
    again: Again,
    /// All headers but the request's id.
    head: HeaderMap,
    asked: Asked,
    source: Source,
    path: Box<str>,
    agent: Option<HeaderValue>,
    /// What its line is made of.
    over: Over,
    answers: Answers,
    /// Counts what the plugins decided.
    counting: Counting,
}

/// A request that is to be remembered with its answer.
pub(super) struct Remembering {
    wished: Wished,
    generation: u64,
    agent: Option<HeaderValue>,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { random: RandomState::default(), places: (0..PLACES).map(|_| Mutex::default()).collect() }
    }
}

impl Repeats {
    /// What of a request its answer depends on; none: it goes the long way.
    fn wish<'a, B: HttpBody>(
        &self,
        answering: &Answering,
        live: &Live,
        peer: &Peer,
        request: &'a Request<B>,
    ) -> Option<Wish<'a>> {
        let head = match *request.method() {
            Method::GET => false,
            Method::HEAD => true,
            _ => return None,
        };
        // Over HTTP/2 a body needs no header.
        if !request.body().is_end_stream() {
            return None;
        }
        let config = &live.config;
        // Who asks through somebody else, or has something to show. Whom to trust may have changed since it connected.
        let proxied = peer.proxied || config.clients.is_trusted_proxy(peer.address.ip());
        if peer.named.is_some() || peer.through.is_some() || proxied || peer.certificate.is_some() {
            return None;
        }
        if config.asks_callers || config.clients.is_asked_for() || answering.traces.are_on() {
            return None;
        }
        let (uri, headers) = (request.uri(), request.headers());
        if request.version() != Version::HTTP_2 && uri.scheme().is_some() {
            return None;
        }
        let is_plain = |name: &HeaderName| PLAIN.contains(name) || OTHERS.contains(&name.as_str());
        if !headers.keys().all(is_plain) || config.plugins.headers.iter().any(|name| is_named(name)) {
            return None;
        }
        let mut hosts = headers.get_all(HOST).iter();
        let (host, other) = (hosts.next(), hosts.next());
        if other.is_some() || (host.is_none() && request.version() == Version::HTTP_11) {
            return None;
        }
        let (generation, asks_who) = answering.core.plugins.at_a_glance();
        let client = asks_who.then(|| peer.address.ip().to_canonical());
        let mut hasher = self.random.build_hasher();
        let mut length = 0;
        let mut part = |bytes: &[u8]| {
            length += bytes.len();
            hasher.write(bytes);
            hasher.write_u8(0xff);
        };
        part(uri.path().as_bytes());
        part(uri.query().unwrap_or_default().as_bytes());
        part(host.map_or(b"", HeaderValue::as_bytes));
        part(uri.authority().map_or("", |authority| authority.as_str()).as_bytes());
        headers.get_all(ACCEPT).iter().for_each(|value| part(value.as_bytes()));
        if client.is_some() {
            headers.get_all(USER_AGENT).iter().for_each(|value| part(value.as_bytes()));
        }
        let agent: usize = headers.get_all(USER_AGENT).iter().map(HeaderValue::len).sum();
        if length + agent > LENGTH_MAX {
            return None;
        }
        hasher.write_u8(u8::from(head));
        match client {
            Some(IpAddr::V4(client)) => hasher.write_u32(client.to_bits()),
            Some(IpAddr::V6(client)) => hasher.write_u128(client.to_bits()),
            None => {}
        }
        Some(Wish { hash: hasher.finish(), head, uri, headers, client, generation })
    }

    fn place(&self, hash: u64) -> &Mutex<Two> {
        // The upper bits: the others are less mixed.
        &self.places[usize::try_from(hash >> 48).unwrap_or_default() % PLACES]
    }

    fn find(&self, wish: &Wish<'_>) -> Option<Arc<Given>> {
        let kept = self.place(wish.hash).lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().flatten().find(|given| given.wished.is(wish)).cloned()
    }

    fn keep(&self, given: Given) {
        let mut kept = self.place(given.wished.hash).lock().unwrap_or_else(PoisonError::into_inner);
        let [first, second] = &mut *kept;
        let is_first = first.as_ref().is_some_and(|first| first.wished.hash == given.wished.hash);
        let old = first.replace(Arc::new(given));
        let gone = if is_first { old } else { std::mem::replace(second, old) };
        drop((kept, gone));
    }
}

/// Whether a header is one that requests may have that are not looked at closely.
fn is_named(name: &str) -> bool {
    PLAIN.iter().any(|plain| plain.as_str() == name) || OTHERS.contains(&name)
}

fn owned(value: &HeaderValue) -> HeaderValue {
    // What a request brought is part of a larger buffer.
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Wish<'_> {
    fn owned(&self) -> Wished {
        let uri = self.uri.to_string().parse().unwrap_or_default();
        let agent = || self.headers.get(USER_AGENT).map(owned);
        Wished {
            hash: self.hash,
            head: self.head,
            uri,
            host: self.headers.get(HOST).map(owned),
            accept: self.headers.get_all(ACCEPT).iter().map(owned).collect(),
            client: self.client.map(|client| (client, agent())),
        }
    }
}

impl Wished {
    fn is(&self, wish: &Wish<'_>) -> bool {
        self.hash == wish.hash
            && self.head == wish.head
            && self.uri.path() == wish.uri.path()
            && self.uri.query() == wish.uri.query()
            && self.uri.authority() == wish.uri.authority()
            && self.host.as_ref() == wish.headers.get(HOST)
            && self.accept.iter().eq(wish.headers.get_all(ACCEPT))
            && match (&self.client, wish.client) {
                (None, None) => true,
                (Some((client, agent)), Some(other)) => {
                    *client == other && agent.as_ref() == wish.headers.get(USER_AGENT)
                }
                _ => false,
            }
    }
}

/// Gives the answer again that a request of the same wish had; none: the long way is to be gone.
pub(super) fn answer<B: HttpBody>(
    answering: &Answering,
    peer: &Peer,
    request: &Request<B>,
) -> Option<Response<Watched>> {
    let Answering { core, repeats, journal, .. } = answering;
    let live = core.live();
    let wish = repeats.wish(answering, &live, peer, request)?;
    let given = repeats.find(&wish)?;
    let progress = Progress::begin();
    let stands = std::ptr::eq(given.live.as_ptr(), Arc::as_ptr(&live))
        && given.generation == wish.generation
        && progress.started() < given.again.until;
    if !stands {
        return None;
    }
    let body = match given.again.held.content(progress.started())? {
        _ if given.wished.head => Body::empty(),
        Content::Bytes(bytes) => Body::bytes(bytes),
        Content::Blob(blob) => blob.body(peer.outlet.clone()),
    };
    let (id, mut head) = (next_id(), given.head.clone());
    let id = HeaderValue::try_from(id).ok()?;
    head.insert(REQUEST_ID, id.clone());
    core.metrics.repeated.inc();
    given.counting.count();
    given.answers.in_flight.inc();
    let agent = request.headers().get(USER_AGENT);
    let repeated = Repeated {
        journal: journal.is_on().then(|| journal.clone()),
        log: live.config.log.access,
        id,
        client: peer.address.ip().to_canonical(),
        user_agent: (agent != given.agent.as_ref()).then(|| agent.map_or(HeaderValue::from_static(""), owned)),
        began: SystemTime::now(),
        given,
        progress,
    };
    let mut response = Response::new(Watched::again(body, repeated));
    *response.headers_mut() = head;
    Some(response)
}

impl Remembering {
    /// Whether the answer to a request may be remembered at all.
    pub fn begin<B: HttpBody>(answering: &Answering, live: &Live, peer: &Peer, request: &Request<B>) -> Option<Self> {
        let wish = answering.repeats.wish(answering, live, peer, request)?;
        let agent = request.headers().get(USER_AGENT).map(owned);
        Some(Self { wished: wish.owned(), generation: wish.generation, agent })
    }

    /// Keeps an answer of the long way.
    pub fn keep(self, answering: &Answering, live: &Arc<Live>, head: &HeaderMap, (again, over): (Again, Over)) {
        let Self { wished, generation, agent } = self;
        // Another set of plugins took over meanwhile: who of them decided is not looked up.
        let set = answering.core.plugins.current();
        let same = over.facts.seen().generation == generation && set.generation() == generation;
        // And where a registry was asked, the next who gets the answer has not asked it.
        let asked_nobody = over.facts.attempts().is_empty();
        let Some(source) = over.source.filter(|_| same && asked_nobody) else { return };
        let labels =
            crate::metrics::Request { content: over.asked.kind(), status: over.status, source: source.as_str() };
        answering.repeats.keep(Given {
            path: wished.uri.path().into(),
            agent,
            wished,
            live: Arc::downgrade(live),
            generation,
            again,
            head: head.clone(),
            asked: over.asked.clone(),
            source,
            answers: answering.core.metrics.answers(&labels),
            counting: set.counting(&over.facts.decided()),
            over,
        });
    }
}

/// What is told of an answer that was given again, when it is over.
pub(super) struct Repeated {
    given: Arc<Given>,
    /// None: nobody wants to know.
    journal: Option<Arc<Journal>>,
    log: bool,
    id: HeaderValue,
    client: IpAddr,
    /// None: as of the request that was answered first.
    user_agent: Option<HeaderValue>,
    began: SystemTime,
    pub progress: Progress,
}

impl Drop for Repeated {
    fn drop(&mut self) {
        let Given { over, answers, asked, source, path, .. } = &*self.given;
        let took = self.progress.elapsed();
        answers.in_flight.dec();
        answers.count(self.progress.sent, took, self.progress.first_byte(took));
        let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if let Some(journal) = &self.journal {
            journal.note(Arc::new(OverAgain {
                given: self.given.clone(),
                id: self.id.clone(),
                client: self.client,
                user_agent: self.user_agent.take(),
                began: self.began,
                sent: self.progress.sent,
                elapsed_ms,
                broken: self.progress.broken().map(str::to_owned),
            }));
        }
        if self.log {
            // The same fields as of every other request.
            tracing::info!(
                request = text(&self.id),
                client = %self.client,
                method = asked.method(),
                path = %path.escape_debug(),
                pull = %asked,
                addressing = asked.addressing().as_str(),
                status = over.status,
                source = source.as_str(),
                sent_bytes = self.progress.sent,
                elapsed_ms,
                decision = over.decision,
                broken = self.progress.broken(),
                "request"
            );
        }
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

/// What became of a request that was answered as another was before.
struct OverAgain {
    given: Arc<Given>,
    id: HeaderValue,
    client: IpAddr,
    user_agent: Option<HeaderValue>,
    began: SystemTime,
    sent: u64,
    elapsed_ms: u64,
    broken: Option<String>,
}

impl std::fmt::Debug for OverAgain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OverAgain").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Tells for OverAgain {
    fn line(&self) -> Line {
        let mut first = self.given.over.line();
        // Nobody was asked.
        first.decisions.iter_mut().for_each(|decided| decided.us = 0);
        Line {
            time: humantime::format_rfc3339_millis(self.began).to_string(),
            request: text(&self.id).to_owned(),
            client: self.client,
            user_agent: self.user_agent.as_ref().or(self.given.agent.as_ref()).map(text).unwrap_or_default().to_owned(),
            sent_bytes: self.sent,
            elapsed_ms: self.elapsed_ms,
            broken: self.broken.clone(),
            ..first
        }
    }
}
