//! One request: from HTTP to a pull, and from its answer back to HTTP.

use std::error::Error;
use std::fmt::Display;
use std::net::Ipv6Addr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::Either;
use http_body::Body;
use hyper::header::{
    ACCEPT, ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST, HeaderMap,
    HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, PROXY_AUTHENTICATE, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
    USER_AGENT, VIA, WARNING, WWW_AUTHENTICATE,
};
use hyper::http::uri::Authority;
use hyper::{Request, Response, StatusCode, Version};

use super::again::{self, Remembering, Repeats};
use super::connect;
use super::error::Told;
use super::guard::{self, Panicked};
use super::peer::Peer;
use super::push;
use super::watched::{Record, Watched, next_id};
use super::who::{self, Asking, Known, Who};
use crate::addressing::{self, Naming, Request as Addressed};
use crate::body::Body as Sent;
use crate::oci::manifest::Negotiated;
use crate::oci::{Addressing, Asked, Code, Content, Digest, Host, Method, Verb};
use crate::plugin::Facts;
use crate::pull::{self, Again, Answer, Caller, Core, Live};
use crate::record::Journal;
use crate::trace::Traces;
use crate::upstream::Via;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest path and query together: a name has 255 bytes, a digest 135. Units: bytes.
const TARGET_MAX: usize = 8 << 10;
/// Media types of one request's Accept that are looked at.
const ACCEPT_MAX: usize = 64;

/// What requests are answered with.
pub(super) struct Answering {
    pub core: Arc<Core>,
    pub traces: Traces,
    pub journal: Arc<Journal>,
    pub who: Who,
    /// Answers that may be given again.
    pub repeats: Repeats,
}

/// Answers a request of a client: at once, where that was done before.
pub(super) fn answered<B>(
    answering: &Arc<Answering>,
    peer: Arc<Peer>,
    request: Request<B>,
) -> impl Future<Output = Response<Watched>> + use<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Display,
{
    match again::answer(answering, &peer, &request) {
        Some(response) => Either::Left(std::future::ready(response)),
        // Boxed, so that a connection holds the room of a request only until its answer begins.
        None => Either::Right(Box::pin(guarded(answering.clone(), peer, request))),
    }
}

/// Answers a request of a client, also where answering it panics.
async fn guarded<B>(answering: Arc<Answering>, peer: Arc<Peer>, request: Request<B>) -> Response<Watched>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Display,
{
    let id = next_id();
    guard::guarded(handle(&answering, id.clone(), &peer, request)).await.unwrap_or_else(|Panicked| {
        tracing::error!(request = id, "a request ended by a panic");
        // The specification has no code for it; clients go by the status.
        let told = Told::new(500, Code::Unsupported, format!("a fault of this mirror; its log has request {id}"));
        refusal(&told).map(Watched::uncounted)
    })
}

async fn handle<B>(answering: &Answering, id: String, peer: &Peer, request: Request<B>) -> Response<Watched>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>> + Display,
{
    let Answering { core, traces, journal, who, .. } = answering;
    let live = core.live();
    let remembering = Remembering::begin(answering, &live, peer, &request);
    // CONNECT has no path, but a target.
    let target = request.uri().authority().filter(|_| *request.method() == hyper::Method::CONNECT);
    let about = (request.method(), target.map_or(request.uri().path(), hyper::http::uri::Authority::as_str));
    let client = who::client_address(&live.config.clients, peer, request.headers());
    let address = client.as_ref().map_or(peer.address.ip(), |address| *address);
    let mut record = Record::new(&core.metrics, journal, &live.config.log, id, address, about);
    let given = request.headers().get_all(TRACE_PARENT).iter().map(|value| value.to_str().unwrap_or_default());
    record.trace(traces.begin(given), about);
    let scope = record.scope();
    let connects = connect::is_asked(&live, peer, &request);
    let answered = async {
        let client = client.map_err(|reason| Told::new(400, Code::Unsupported, reason))?;
        let asking = Asking { who, config: &live.config, peer, client };
        if asking.is_for_token(request.uri().path()) {
            return asking.serve_token(request, &mut record).await;
        }
        let called = asking.called(&request);
        let answered = answer(core, &live, &asking, request, &mut record).await;
        answered.map_err(|told| told.challenging(|asks| called.map(|called| called.challenge(asks))))
    };
    let response = match scope.within(answered).await {
        Ok(response) => response,
        Err(told) => {
            record.reason = Some(told.message.clone());
            if told.denied_by.is_some() {
                (record.decision, record.policy) = (Some("deny"), told.denied_by.clone());
            }
            let mut response = refusal(&told);
            if let Some(reason) = connect::reason(&told).filter(|_| connects) {
                response.extensions_mut().insert(reason);
            }
            response
        }
    };
    let (mut head, body) = response.into_parts();
    head.headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(asked) = record.asked.as_ref().filter(|asked| asked.addressing() == Addressing::Ns) {
        put(&mut head.headers, NAMESPACE, asked.place().registry.as_str());
    }
    for warning in &record.warnings {
        let quoted = warning.replace(['"', '\\'], "'");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            head.headers.append(WARNING, value);
        }
    }
    record.status = head.status.as_u16();
    if let (Some(remembering), Some(again)) = (remembering, head.extensions.remove::<Again>())
        && record.status == 200
        && let Some(over) = record.over()
    {
        remembering.keep(answering, &live, &head.headers, (again, over));
    }
    put(&mut head.headers, REQUEST_ID, &record.id);
    Response::from_parts(head, Watched::new(body, record))
}

async fn answer<B: Body<Data = Bytes, Error: Display> + Send + 'static>(
    core: &Arc<Core>,
    live: &Arc<Live>,
    asking: &Asking<'_>,
    request: Request<B>,
    record: &mut Record,
) -> Result<Response<Sent>, Told> {
    let (headers, peer) = (request.headers(), asking.peer);
    let connects = connect::is_asked(live, peer, &request);
    let refuse = |status, message: &str| Told { close: true, ..Told::new(status, Code::Unsupported, message) };
    // CONNECT has no body and no path, as little as what reads.
    let verb = if connects { Some(Verb::Read(Method::Head)) } else { verb(request.method()) };
    let Some(verb) = verb else {
        return Err(refuse(405, "a registry has no such method"));
    };
    // A body that nobody reads could be taken for the next request.
    let announced = headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|of| of != "0");
    let has_body = announced || !request.body().is_end_stream();
    if has_body && matches!(verb, Verb::Read(_)) {
        return Err(refuse(400, "a request to pull has no body"));
    }
    if !names_one_host(&request) {
        return Err(refuse(400, "a request has one header Host, with a host in it and a port where it needs one"));
    }
    let target = request.uri().path().len() + request.uri().query().unwrap_or_default().len();
    if target > TARGET_MAX {
        return Err(refuse(414, &format!("the address is longer than {TARGET_MAX} bytes, which no name needs")));
    }
    if connects {
        let through = asking.identify_tunnel(headers).await?;
        record.known(through.known.identity.as_ref());
        return connect::answer(live, &core.metrics, &request, through).await;
    }
    let query = request.uri().query().unwrap_or_default();
    let host = host(&request);
    if peer.named.is_some() && host != peer.host {
        return Err(refuse(421, "this connection is to another host than the request is for"));
    }
    let virtual_host = host.and_then(|host| live.config.virtual_hosts.find(&host)).map(|found| &found.registry);
    let in_plain = if virtual_host.is_none() { connect::in_plain(live, peer, &request) } else { Ok(None) };
    let in_plain = in_plain.map_err(|told| Told { close: has_body, ..told })?;
    let intercepted = peer.named.as_ref().or(in_plain);
    let naming = Naming { intercepted, virtual_host, default: &live.config.default_registry };
    let resolved = addressing::resolve(verb, request.uri().path(), query, naming);
    // What a body was to be is not known: it is left, and the connection with it.
    let left = |told: Told| Told { close: told.close || has_body, ..told };
    let addressed = resolved.map_err(|err| left(err.into()))?;
    let identified =
        if in_plain.is_some() { asking.identify_in_plain(headers).await } else { asking.identify(headers).await };
    let known = identified.map_err(left)?;
    record.known(known.identity.as_ref());
    let (asked, query) = match addressed {
        Addressed::Base | Addressed::Unsupported if !matches!(verb, Verb::Read(_)) => {
            return Err(refuse(405, "there is nothing here that could be written to"));
        }
        Addressed::Base => return asking.may_go_unasked(&known).map(|()| base()),
        Addressed::Unsupported => return Err(Told::new(404, Code::Unsupported, "a mirror offers no such thing")),
        Addressed::NotAllowed(registry, allowed) => return Err(push::not_allowed(live, &registry, allowed)),
        Addressed::Pull(pull, query) => (Asked::from(pull), query),
        Addressed::Push(push) => (Asked::from(push), String::new()),
    };
    record.asked = Some(asked.clone());
    // A loop ends here, before it takes anything: the mirror that asks is told, and its client by that one.
    let via = Via::parse(headers.get_all(VIA).iter().filter_map(|value| value.to_str().ok()))
        .map_err(|found| Told::new(508, Code::Unsupported, found.to_string()))?;
    let caller = Caller { via, outlet: peer.outlet.clone(), ..caller(live, record, &known, headers, (&asked, query)) };
    let facts = caller.facts.clone();
    record.facts = Some(facts.clone());
    let pull = match asked {
        Asked::Pull(pull) => pull,
        Asked::Push(push) => {
            let answered = push::answer((core, live), peer, &push, (caller, request), record).await;
            record.decided(&facts);
            return answered.map_err(|told| asking.ask_instead(&known, told));
        }
    };
    let result = pull::run(core, live, Arc::unwrap_or_clone(pull), caller).await;
    record.decided(&facts);
    let answer = result.map_err(|err| asking.ask_instead(&known, err.into()))?;
    (record.source, record.digest) = (Some(answer.source), answer.digest);
    Ok(response(answer, request.headers()))
}

fn verb(method: &hyper::Method) -> Option<Verb> {
    Some(match *method {
        hyper::Method::GET => Verb::Read(Method::Get),
        hyper::Method::HEAD => Verb::Read(Method::Head),
        hyper::Method::POST => Verb::Post,
        hyper::Method::PATCH => Verb::Patch,
        hyper::Method::PUT => Verb::Put,
        hyper::Method::DELETE => Verb::Delete,
        _ => return None,
    })
}

/// Whether a request says whom it is for, and says it once.
fn names_one_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (first, more) = (hosts.next(), hosts.next().is_some());
    let named = request.version() != Version::HTTP_11 || first.is_some();
    named && !more && first.is_none_or(is_host)
}

/// Whom a request is for. An address in its first line goes before the header.
///
/// Source: RFC 9112, section 3.2.2; RFC 9113, section 8.3.1.
fn host<B>(request: &Request<B>) -> Option<Host> {
    match request.uri().authority() {
        Some(authority) => Host::of_authority(authority.as_str()),
        None => Host::of_authority(request.headers().get(HOST)?.to_str().ok()?),
    }
}

/// A name or an address, and a port where there is one.
fn is_host(host: &HeaderValue) -> bool {
    let Ok(host) = Authority::try_from(host.as_bytes()) else { return false };
    let name = host.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_name = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
    };
    // Behind the name stands a port or nothing.
    is_name && (host.as_str().len() == name.len() || host.port_u16().is_some())
}

fn base() -> Response<Sent> {
    let mut response = Response::new(Sent::bytes("{}"));
    put(response.headers_mut(), CONTENT_TYPE, "application/json");
    put(response.headers_mut(), CONTENT_LENGTH, "2");
    response
}

fn caller(live: &Live, record: &Record, known: &Known, headers: &HeaderMap, asked: (&Asked, String)) -> Caller {
    let (asked, query) = asked;
    let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
    let accept: Vec<String> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|media_type| media_type.split(';').next().unwrap_or_default().trim().to_owned())
        .filter(|media_type| !media_type.is_empty())
        .take(ACCEPT_MAX)
        .collect();
    let negotiated = Negotiated::parse(accept.iter().map(String::as_str));
    let user_agent = headers.get(USER_AGENT).and_then(text).unwrap_or_default();
    let allowed = &live.config.plugins.headers;
    let shown = allowed.iter().flat_map(|name| {
        headers.get_all(name.as_str()).iter().filter_map(move |value| Some((name.clone(), text(value)?)))
    });
    let mut facts = Facts::new(record.id.clone(), record.client(), user_agent, accept, shown.collect());
    facts.identity.clone_from(&known.identity);
    facts.recorded = record.is_written();
    // A range that holds for another content than this is none (RFC 9110, section 13.1.5).
    let stands = match (asked, headers.get(IF_RANGE)) {
        (_, None) => true,
        (Asked::Pull(pull), Some(condition)) => {
            matches!(&pull.content, Content::Blob(digest) if condition == etag(digest).as_str())
        }
        (Asked::Push(_), Some(_)) => false,
    };
    let range = headers.get(RANGE).filter(|_| stands).and_then(text);
    let credentials = known.credentials.clone();
    let (waits, via, outlet) = (known.waits, Via::default(), None);
    Caller { facts: Arc::new(facts), credentials, waits, negotiated, range, query, via, outlet }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn response(answer: Answer, request: &HeaderMap) -> Response<Sent> {
    let mut response = Response::new(answer.body);
    if let Some(again) = answer.again {
        response.extensions_mut().insert(again);
    }
    *response.status_mut() = StatusCode::from_u16(answer.status).expect("200, 206 or 416");
    let mut not_modified = false;
    let headers = response.headers_mut();
    put(headers, CONTENT_TYPE, &answer.media_type);
    if let Some(length) = answer.length {
        put(headers, CONTENT_LENGTH, &length.to_string());
    }
    if let Some(range) = &answer.content_range {
        put(headers, CONTENT_RANGE, range);
    }
    if let Some(digest) = &answer.digest {
        let etag = etag(digest);
        not_modified = answer.status == 200
            && request.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|value| {
                value.split(',').any(|one| one.trim() == "*" || one.trim().trim_start_matches("W/") == etag)
            });
        put(headers, CONTENT_DIGEST, &digest.to_string());
        put(headers, ETAG, &etag);
        put(headers, ACCEPT_RANGES, "bytes");
    }
    for (name, value) in &answer.headers {
        put(headers, HeaderName::from_static(name), value);
    }
    if not_modified {
        headers.remove(CONTENT_LENGTH);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Sent::empty();
    }
    response
}

fn refusal(told: &Told) -> Response<Sent> {
    let body = crate::oci::error::body(told.code, &told.message, told.detail.as_deref());
    let length = body.len();
    let mut response = Response::new(Sent::bytes(body));
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    put(headers, CONTENT_TYPE, "application/json");
    put(headers, CONTENT_LENGTH, &length.to_string());
    if let Some(after) = told.retry_after {
        // Rounded up: one second too early is one request too many.
        put(headers, RETRY_AFTER, &after.as_millis().div_ceil(1000).to_string());
    }
    if told.status == 405 {
        put(headers, ALLOW, told.allow);
    }
    if let Some(challenge) = &told.authenticate {
        put(headers, if told.status == 407 { PROXY_AUTHENTICATE } else { WWW_AUTHENTICATE }, challenge);
    }
    if told.close {
        put(headers, CONNECTION, "close");
    }
    response
}

/// Puts a header; what an upstream gave and no header may carry is left out.
pub(super) fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
