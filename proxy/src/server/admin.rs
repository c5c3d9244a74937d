//! The admin listener: health, metrics, and what the policy would decide.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::decisions::dry_line;
use super::guard;
use super::supposed::Supposed;
use crate::body::Body;
use crate::oci::manifest::Negotiated;
use crate::oci::{Addressing, Content, Method, Place, Pull, Reference, Registry, Repository, Tag};
use crate::plugin::{Decided, Facts, Mode};
use crate::pull::{self, Caller, Core};
use crate::record::{Journal, Line};
use crate::upstream::Via;

/// What the policy decides for an image: the answer of `/explain`.
#[derive(Serialize, Deserialize, Debug)]
pub struct Explanation {
    /// The image, in full.
    pub image: String,
    /// What each plugin decides, in order.
    pub decisions: Vec<Decision>,
    /// The upstreams that would be tried, in order; none where a plugin denies.
    pub upstreams: Option<Vec<Upstream>>,
    /// The same as a line of the decision record, of a request that did not happen.
    pub line: Line,
}

/// What one plugin decides.
#[derive(Serialize, Deserialize, Debug)]
pub struct Decision {
    /// Its name.
    pub plugin: String,
    /// Which hook.
    pub hook: String,
    /// In words.
    pub decides: String,
}

/// An upstream that would be tried.
#[derive(Serialize, Deserialize, Debug)]
pub struct Upstream {
    /// Registry and repository.
    pub place: String,
    /// The registry alone.
    pub registry: String,
    /// Its address; none where the configuration does not know the registry.
    pub address: Option<String>,
}

/// Answers a request to the admin listener, also where answering it panics.
pub(super) async fn guarded<B>(
    core: Arc<Core>,
    journal: Arc<Journal>,
    ready: Arc<AtomicBool>,
    request: Request<B>,
) -> Response<Body> {
    let answered = guard::guarded(admin(core, &journal, ready, request)).await;
    answered.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "a fault of tidegate: its log says where\n"))
}

async fn admin<B>(core: Arc<Core>, journal: &Journal, ready: Arc<AtomicBool>, request: Request<B>) -> Response<Body> {
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" if ready.load(Ordering::Relaxed) => text(StatusCode::OK, "ready\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        "/metrics" => {
            let mut response = text(StatusCode::OK, core.metrics.render());
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        "/explain" => {
            let query = request.uri().query().unwrap_or_default();
            let asked = Supposed::parse(query)
                .and_then(|(image, client)| Ok((parse_image(&image, &core.live().config.default_registry)?, client)));
            match asked {
                Ok((pull, client)) => {
                    let explanation =
                        serde_json::to_vec(&explain(&core, pull, client).await).expect("strings always serialize");
                    let mut response = Response::new(Body::bytes(explanation));
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                    response
                }
                Err(reason) => text(StatusCode::BAD_REQUEST, reason + "\n"),
            }
        }
        "/plugins" => super::plugins::plugins(&core.plugins),
        "/decisions" => super::decisions::decisions(journal, &core.live().config.default_registry, &request),
        path if path == "/cache" || path.starts_with("/cache/") => super::cache::cache(&core, &request).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "the admin listener has /healthz, /readyz, /metrics, /explain?image=IMAGE, /plugins, /decisions?image=IMAGE and /cache\n",
        ),
    }
}

pub(super) fn text(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::bytes(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// What the policy decides for a pull by somebody; changes nothing.
pub async fn explain(core: &Arc<Core>, pull: Pull, supposed: Supposed) -> Explanation {
    let live = core.live();
    let image = pull.to_string();
    let mut facts = Facts::new(
        "explain".to_owned(),
        supposed.address.unwrap_or(IpAddr::from([127, 0, 0, 1])),
        "tidegate explain".to_owned(),
        Vec::new(),
        Vec::new(),
    );
    facts.identity = supposed.identity(live.config.clients.users.as_deref());
    let (negotiated, via) = (Negotiated::ALL, Via::default());
    let caller = Caller {
        facts: Arc::new(facts),
        credentials: None,
        waits: None,
        negotiated,
        range: None,
        query: String::new(),
        via,
        outlet: None,
    };
    let (asked, facts) = (pull.clone(), caller.facts.clone());
    let explained = pull::explain(core, &live, pull, caller).await;
    let dry = dry_line(&asked.clone().into(), &facts, &explained, core.plugins.current().generation());
    let mut decisions: Vec<Decision> = explained.decided.iter().map(in_words).collect();
    let later = [
        (explained.inspectors, "inspection", "asked when the manifest is here"),
        (explained.fallbacks, "fallback", "asked after each failed attempt"),
    ];
    for (plugins, hook, decides) in later {
        decisions.extend(plugins.into_iter().map(|plugin| Decision {
            plugin,
            hook: hook.to_owned(),
            decides: decides.to_owned(),
        }));
    }
    let upstream = |place: &Place| Upstream {
        place: place.to_string(),
        registry: place.registry.to_string(),
        address: live.config.reach(&place.registry).map(|reach| reach.url.to_string()),
    };
    // A registry is asked nothing for who may have only what is cached.
    let cached_only = dry.decision.as_deref() == Some("cached-only");
    let upstreams = explained
        .candidates
        .map(|candidates| if cached_only { Vec::new() } else { candidates })
        .map(|candidates| candidates.iter().map(|(candidate, _)| upstream(&candidate.place)).collect());
    Explanation { image, decisions, upstreams, line: dry }
}

/// What a plugin decided, for a person.
fn in_words(decided: &Decided) -> Decision {
    let places = decided.candidates.as_ref();
    let places = places.map(|places| places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then "));
    let words = match (decided.ruling, places, &decided.detail) {
        ("pass", ..) if decided.hook == "routing" => "as they are".to_owned(),
        ("pass", ..) => "no opinion".to_owned(),
        ("cached-only", ..) => "only from the cache".to_owned(),
        (_, Some(places), _) if places.is_empty() => "nowhere: only the cache may serve".to_owned(),
        (_, Some(places), _) => places,
        (word, None, Some(detail)) => format!("{word}: {detail}"),
        (word, None, None) => word.to_owned(),
    };
    let words = match decided.mode {
        Mode::Shadow => format!("(shadow) {words}"),
        Mode::Enforce | Mode::Off => words,
    };
    Decision { plugin: decided.plugin.to_string(), hook: decided.hook.to_owned(), decides: words }
}

/// Reads an image as people write it: `alpine`, `quay.io/a/b:1`, `docker.io/library/alpine@sha256:...`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_image(image: &str, default: &Registry) -> Result<Pull, String> {
    if let Some((_, rest)) = image.split_once("://") {
        return Err(format!("`{}`: leave the scheme out: `{}`", image.escape_debug(), rest.escape_debug()));
    }
    let fail = || {
        format!(
            "`{}` is no image; write it as docker.io/library/alpine:3.20, or with @sha256:... behind the name",
            image.escape_debug()
        )
    };
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|_| fail())?)),
        None => (image, None),
    };
    // The last colon is one of a tag only behind the last slash: before, it is one of a port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => (before, Some(Tag::parse(tag).ok_or_else(fail)?)),
        _ => (name, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if Registry::is_meant_by(first) => (Registry::parse(first).ok_or_else(fail)?, rest),
        _ => (default.clone(), name),
    };
    let repository = Repository::parse(repository).ok_or_else(fail)?.canonical(&registry);
    let reference = match (digest, tag) {
        (Some(digest), _) => Reference::Digest(digest),
        (None, Some(tag)) => Reference::Tag(tag),
        (None, None) => Reference::Tag(Tag::parse("latest").expect("a tag")),
    };
    let place = Place { registry, repository };
    Ok(Pull { place, content: Content::Manifest(reference), method: Method::Get, addressing: Addressing::Path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_as_people_write_them() {
        let hub = Registry::parse("docker.io").expect("a registry");
        let digest = format!("sha256:{}", "a".repeat(64));
        for (image, full) in [
            ("alpine".to_owned(), "docker.io/library/alpine:latest".to_owned()),
            ("library/alpine:3.20".to_owned(), "docker.io/library/alpine:3.20".to_owned()),
            ("quay.io/a/b".to_owned(), "quay.io/a/b:latest".to_owned()),
            ("127.0.0.1:5000/a".to_owned(), "127.0.0.1:5000/a:latest".to_owned()),
            (format!("docker.io/alpine:3@{digest}"), format!("docker.io/library/alpine@{digest}")),
        ] {
            assert_eq!(parse_image(&image, &hub).map(|pull| pull.to_string()), Ok(full), "{image}");
        }
        for bad in ["", "Alpine", "a b", "a@sha256:x", "a:", "http://a/b"] {
            assert!(parse_image(bad, &hub).is_err(), "{bad}");
        }
    }
}
