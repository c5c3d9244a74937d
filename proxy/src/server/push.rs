//! One push: its body from HTTP to a stream of limited patience, and its answer back to HTTP.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use http_body::Body;
use http_body_util::BodyExt;
use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, TRANSFER_ENCODING,
};
use hyper::{Request, Response, StatusCode};

use super::error::Told;
use super::handle::put;
use super::patience::Requests;
use super::peer::Peer;
use super::watched::Record;
use crate::body::{Body as Sent, Chunks, Short};
use crate::oci::{Code, Push, Registry, Write};
use crate::pull::{self, Caller, Core, Live, Offered, Written};

/// Answers a method that an endpoint does not have. `allowed`: those that it has where pushes are taken.
pub(super) fn not_allowed(live: &Live, registry: &Registry, allowed: &'static str) -> Told {
    let (allow, why) = if live.config.pushes(registry) {
        (allowed, "a registry does not have this method here".to_owned())
    } else {
        ("GET, HEAD", read_only(registry))
    };
    Told { close: true, allow, ..Told::new(405, Code::Unsupported, why) }
}

fn read_only(registry: &Registry) -> String {
    format!(
        "this mirror does not write to {registry}; to have it write, set `push = true` under [registries.\"{registry}\"]"
    )
}

/// Answers a push.
pub(super) async fn answer<B>(
    (core, live): (&Arc<Core>, &Arc<Live>),
    peer: &Peer,
    push: &Push,
    (caller, request): (Caller, Request<B>),
    record: &Record,
) -> Result<Response<Sent>, Told>
where
    B: Body<Data = Bytes, Error: Display> + Send + 'static,
{
    let registry = &push.place.registry;
    if !live.config.pushes(registry) {
        return Err(match &push.write {
            // Where nothing can be uploaded, there are no uploads.
            Write::Look(_) => Told::new(404, Code::Unsupported, "a mirror offers no such thing"),
            _ => Told { close: true, ..Told::new(405, Code::Unsupported, read_only(registry)) },
        });
    }
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    let refuse = |message: &str| Err(Told { close: true, ..Told::new(400, Code::Unsupported, message) });
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return refuse("a body has one length: Transfer-Encoding and Content-Length contradict each other");
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return refuse("content is stored as its digest names it: send it without Content-Encoding");
    }
    if body.is_end_stream() {
        return Ok(response(&pull::push(core, live, push.clone(), offered(headers, None), caller).await?));
    }
    let length = body.size_hint().exact();
    let (stall, taken) = (live.config.limits.write_stall, Taken::new(peer, record));
    let ended = taken.ended.clone();
    let body = Some((chunks(body, stall, taken), length));
    let result = pull::push(core, live, push.clone(), offered(headers, body), caller).await;
    // What is left of a body that nobody reads could be taken for the next request.
    let close = !ended.load(Ordering::Acquire);
    let mut response = response(&result.map_err(|err| Told { close, ..err.into() })?);
    if close {
        put(response.headers_mut(), CONNECTION, "close");
    }
    Ok(response)
}

fn offered(headers: &HeaderMap, body: Option<(Chunks, Option<u64>)>) -> Offered {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
    Offered { media_type: text(CONTENT_TYPE), range: text(CONTENT_RANGE), body }
}

fn response(written: &Written) -> Response<Sent> {
    let mut response = Response::new(Sent::empty());
    let status = StatusCode::from_u16(written.status).unwrap_or(StatusCode::OK);
    *response.status_mut() = status;
    for (name, value) in &written.headers {
        put(response.headers_mut(), HeaderName::from_static(name), value);
    }
    if status != StatusCode::NO_CONTENT {
        put(response.headers_mut(), CONTENT_LENGTH, "0");
    }
    response
}

/// Who is to know of what a body brings.
struct Taken {
    requests: Requests,
    received: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Taken {
    fn new(peer: &Peer, record: &Record) -> Self {
        Self { requests: peer.requests.clone(), received: record.received.clone(), ended: Arc::default() }
    }
}

/// The chunks of a body as its client sends them, which may be silent for `stall` at the most.
fn chunks<B>(body: B, stall: Duration, taken: Taken) -> Chunks
where
    B: Body<Data = Bytes, Error: Display> + Send + 'static,
{
    let body: Pin<Box<B>> = Box::pin(body);
    Box::pin(try_unfold((body, taken), move |(mut body, taken)| async move {
        loop {
            let Ok(frame) = tokio::time::timeout(stall, body.frame()).await else {
                return Err(Short(format!("nothing came for {stall:?}")));
            };
            let chunk = match frame {
                None => {
                    taken.ended.store(true, Ordering::Release);
                    return Ok(None);
                }
                Some(Err(err)) => return Err(Short(err.to_string())),
                Some(Ok(frame)) => frame.into_data(),
            };
            // Trailers are nobody's.
            let Ok(chunk) = chunk else { continue };
            taken.requests.take(chunk.len() as u64);
            taken.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if body.is_end_stream() {
                taken.ended.store(true, Ordering::Release);
            }
            return Ok(Some((chunk, (body, taken))));
        }
    }))
}
