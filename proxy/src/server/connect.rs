//! CONNECT: where a client is led that takes this for the proxy on its way out.

use http_body::Body;
use hyper::ext::ReasonPhrase;
use hyper::{Method, Request, Response, Version};

use super::error::Told;
use super::peer::Peer;
use super::tunnel::{Leads, Onward, Relay};
use crate::body::Body as Sent;
use crate::config::{Intercept, Others};
use crate::metrics::{Metrics, Outcome};
use crate::oci::{Code, Host, Registry};
use crate::pull::Live;
use crate::upstream::NoTunnel;

/// Longest text in the first line of an answer: some clients show nothing else of it. Units: bytes.
const REASON_MAX: usize = 300;

/// Where https is spoken.
const HTTPS: u16 = 443;

/// Whether a request is for a tunnel, where there are any. Inside of one there are none, and over HTTP/2 a tunnel is one
/// stream among others.
pub(super) fn is_asked<B>(live: &Live, peer: &Peer, request: &Request<B>) -> bool {
    *request.method() == Method::CONNECT
        && request.version() == Version::HTTP_11
        && live.config.intercept.is_some()
        && peer.named.is_none()
}

/// Leads the connection on, or says why not.
pub(super) async fn answer<B: Body>(
    live: &Live,
    metrics: &std::sync::Arc<Metrics>,
    request: &Request<B>,
) -> Result<Response<Sent>, Told> {
    let led = lead(live, metrics, request).await;
    let outcome = match &led {
        Ok(Onward::Registry { .. }) => "intercepted",
        Ok(Onward::Relay(_)) => "relayed",
        Err(told) if told.status >= 500 => "failed",
        Err(_) => "refused",
    };
    metrics.tunnels.get_or_create(&Outcome { outcome }).inc();
    let mut response = Response::new(Sent::empty());
    response.extensions_mut().insert(Leads::on(led?));
    Ok(response)
}

/// The registry of a request that asks a proxy for something in plain text; none: it asks this mirror itself.
pub(super) fn in_plain<'a, B>(live: &'a Live, peer: &Peer, request: &Request<B>) -> Result<Option<&'a Registry>, Told> {
    // In HTTP/2 every request has its scheme; in HTTP/1.1 those to proxies have (RFC 9112, section 3.2.2).
    let absolute = request.uri().scheme().is_some() && request.version() <= Version::HTTP_11;
    let Some(intercept) = live.config.intercept.as_ref().filter(|_| absolute && peer.named.is_none()) else {
        return Ok(None);
    };
    let target = request.uri().authority().and_then(|target| Host::with_port(target.as_str()));
    let found = target.and_then(|(host, port)| intercept.registry(&host, port.unwrap_or(HTTPS)));
    let refusal = || {
        let message = "nothing but the `registries` in [intercept] is asked for in plain http through this mirror";
        Told::new(403, Code::Denied, message)
    };
    found.map(Some).ok_or_else(refusal)
}

/// Puts the reason of a refusal into the first line of its answer: clients show of a proxy's answer only that.
pub(super) fn reason(told: &Told) -> Option<ReasonPhrase> {
    let printable = told.message.chars().map(|sign| if sign.is_ascii_graphic() { sign } else { ' ' });
    let text: String = printable.take(REASON_MAX).collect();
    ReasonPhrase::try_from(text.into_bytes()).ok()
}

async fn lead<B: Body>(live: &Live, metrics: &std::sync::Arc<Metrics>, request: &Request<B>) -> Result<Onward, Told> {
    let Some(intercept) = &live.config.intercept else {
        return Err(Told::new(405, Code::Unsupported, "this mirror leads nowhere: it has no [intercept]"));
    };
    let target = request.uri().authority().and_then(|target| Host::with_port(target.as_str()));
    let Some((host, Some(port))) = target else {
        return Err(Told::new(400, Code::NameInvalid, "CONNECT names a host and its port, such as quay.io:443"));
    };
    if let Some(registry) = intercept.registry(&host, port) {
        return Ok(Onward::Registry { registry: registry.clone(), host });
    }
    allowed(intercept, &host, port)?;
    match live.upstreams.tunnel(&host, port, intercept.names(&host, port)).await {
        Ok(tunnel) => Ok(Onward::Relay(Relay { to: format!("{host}:{port}"), tunnel, metrics: metrics.clone() })),
        Err(NoTunnel::TooMany) => {
            let message = format!("no tunnel to {host}:{port} now: {}", NoTunnel::TooMany);
            Err(Told::new(503, Code::TooManyRequests, message))
        }
        Err(NoTunnel::Failed(failure)) => {
            let message = format!(
                "no tunnel to {host}:{port} (tunnels lead to public addresses, and to what `tunnel_hosts` in [intercept] names): {failure}"
            );
            Err(Told::new(502, Code::Unsupported, message))
        }
    }
}

fn allowed(intercept: &Intercept, host: &Host, port: u16) -> Result<(), Told> {
    let message = match intercept.others {
        Others::Refuse => format!(
            "{host}:{port} is not led to by this mirror: add it to `registries` in [intercept] to serve it, or let others through with others = \"tunnel\""
        ),
        Others::Tunnel if intercept.may_tunnel(host, port) => return Ok(()),
        Others::Tunnel => format!(
            "{host}:{port} is not led to by this mirror: tunnels lead to port 443, and to what `tunnel_hosts` in [intercept] names"
        ),
    };
    Err(Told::new(403, Code::Denied, message))
}
