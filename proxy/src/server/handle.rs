//! One request: from HTTP to a pull, and from its answer back to HTTP.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::header::{
    ACCEPT, ACCEPT_RANGES, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE, RETRY_AFTER, TRANSFER_ENCODING, USER_AGENT, VIA, WARNING,
};
use hyper::{Request, Response, StatusCode};

use super::error::Told;
use super::watched::{Record, Watched};
use crate::addressing::{self, Request as Addressed};
use crate::body::Body;
use crate::oci::manifest::Negotiated;
use crate::oci::{Addressing, Code, Content, Digest, Method, Pull};
use crate::plugin::Facts;
use crate::pull::{self, Answer, Caller, Core, Live};
use crate::upstream::Via;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Media types of one request's Accept that are looked at.
const ACCEPT_MAX: usize = 64;

/// Answers a request of a client.
pub(super) async fn handle<B>(core: Arc<Core>, peer: SocketAddr, request: Request<B>) -> Response<Watched> {
    let live = core.live();
    let mut record = Record::new(&core.metrics, &live.config, peer.ip(), request.method(), request.uri().path());
    let response = match answer(&core, &live, peer.ip(), &request, &mut record).await {
        Ok(response) => response,
        Err(told) => {
            record.reason = Some(told.message.clone());
            refusal(&told)
        }
    };
    let (mut head, body) = response.into_parts();
    head.headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    put(&mut head.headers, REQUEST_ID, &record.id);
    if let Some(pull) = record.pull.as_ref().filter(|pull| pull.addressing == Addressing::Ns) {
        put(&mut head.headers, NAMESPACE, pull.place.registry.as_str());
    }
    for warning in &record.warnings {
        let quoted = warning.replace(['"', '\\'], "'");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            head.headers.append(WARNING, value);
        }
    }
    record.status = head.status.as_u16();
    Response::from_parts(head, Watched::new(body, record))
}

async fn answer<B>(
    core: &Arc<Core>,
    live: &Arc<Live>,
    client: IpAddr,
    request: &Request<B>,
    record: &mut Record,
) -> Result<Response<Body>, Told> {
    let headers = request.headers();
    let method = match *request.method() {
        hyper::Method::GET => Method::Get,
        hyper::Method::HEAD => Method::Head,
        _ => {
            return Err(Told {
                close: true,
                ..Told::new(405, Code::Unsupported, "this is a mirror to pull from: it takes GET and HEAD")
            });
        }
    };
    // A body that nobody reads could be taken for the next request.
    if headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return Err(Told { close: true, ..Told::new(400, Code::Unsupported, "a request to pull has no body") });
    }
    let query = request.uri().query().unwrap_or_default();
    let (pull, query) = match addressing::resolve(method, request.uri().path(), query, &live.config.default_registry)? {
        Addressed::Base => return Ok(base()),
        Addressed::Unsupported => return Err(Told::new(404, Code::Unsupported, "a mirror offers no such thing")),
        Addressed::Pull(pull, query) => (pull, query),
    };
    record.pull = Some(pull.clone());
    // A loop ends here, before it takes anything: the mirror that asks is told, and its client by that one.
    let via = Via::parse(headers.get_all(VIA).iter().filter_map(|value| value.to_str().ok()))
        .map_err(|found| Told::new(508, Code::Unsupported, found.to_string()))?;
    let caller = Caller { via, ..caller(live, &record.id, client, headers, &pull, query) };
    let facts = caller.facts.clone();
    let result = pull::run(core, live, pull, caller).await;
    record.warnings = facts.take_warnings();
    let answer = result?;
    record.source = Some(answer.source);
    Ok(response(answer, headers))
}

fn base() -> Response<Body> {
    let mut response = Response::new(Body::bytes("{}"));
    put(response.headers_mut(), CONTENT_TYPE, "application/json");
    put(response.headers_mut(), CONTENT_LENGTH, "2");
    response
}

fn caller(live: &Live, id: &str, client: IpAddr, headers: &HeaderMap, pull: &Pull, query: String) -> Caller {
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
    let facts = Facts::new(id.to_owned(), client, user_agent, accept, shown.collect());
    // A range that holds for another content than this is none (RFC 9110, section 13.1.5).
    let stands = match (&pull.content, headers.get(IF_RANGE)) {
        (_, None) => true,
        (Content::Blob(digest), Some(condition)) => condition == etag(digest).as_str(),
        (_, Some(_)) => false,
    };
    let range = headers.get(RANGE).filter(|_| stands).and_then(text);
    Caller { facts: Arc::new(facts), negotiated, range, query, via: Via::default() }
}

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn response(answer: Answer, request: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(answer.body);
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
        *response.body_mut() = Body::empty();
    }
    response
}

fn refusal(told: &Told) -> Response<Body> {
    let body = crate::oci::error::body(told.code, &told.message, told.detail.as_deref());
    let length = body.len();
    let mut response = Response::new(Body::bytes(body));
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    put(headers, CONTENT_TYPE, "application/json");
    put(headers, CONTENT_LENGTH, &length.to_string());
    if let Some(after) = told.retry_after {
        // Rounded up: one second too early is one request too many.
        put(headers, RETRY_AFTER, &after.as_millis().div_ceil(1000).to_string());
    }
    if told.status == 405 {
        put(headers, ALLOW, "GET, HEAD");
    }
    if told.close {
        put(headers, CONNECTION, "close");
    }
    response
}

/// Puts a header; what an upstream gave and no header may carry is left out.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
