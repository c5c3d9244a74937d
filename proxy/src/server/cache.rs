//! The admin listener's part of the cache: how full it is, and what an operator takes out of it.

use std::sync::Arc;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use url::form_urlencoded;

use super::admin::{parse_image, text};
use crate::body::Body;
use crate::cache::Target;
use crate::oci::{Content, Digest, Registry};
use crate::pull::Core;

/// The header that a request must have which changes something. A page of another site cannot make a browser send it
/// without asking first, and nobody here answers such a question.
pub const GUARD: &str = "x-tidegate";

/// Answers a request for a path below `/cache`.
pub(super) async fn cache<B>(core: &Arc<Core>, request: &Request<B>) -> Response<Body> {
    let path = request.uri().path();
    let wanted = if path == "/cache" { Method::GET } else { Method::POST };
    if *request.method() != wanted {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {wanted} only\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_str(wanted.as_str()).expect("a method"));
        return response;
    }
    if wanted == Method::POST && !request.headers().contains_key(GUARD) {
        return text(StatusCode::FORBIDDEN, "a request that changes something needs the header `X-Tidegate: 1`\n");
    }
    let done = match path {
        "/cache" => core.cache.state().await.map(|state| json(&state)),
        "/cache/gc" => core.cache.collect().await.map(|removed| json(&removed)),
        "/cache/rm" => {
            let query = request.uri().query().unwrap_or_default();
            let named = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "image");
            let named = named.map(|(_, value)| value).unwrap_or_default();
            match parse_target(&named, &core.live().config.default_registry) {
                Ok(target) => {
                    tracing::info!(target = %named.escape_debug(), "removed from the cache by the operator");
                    core.cache.remove(target).await.map(|removed| json(&removed))
                }
                Err(reason) => return text(StatusCode::BAD_REQUEST, reason + "\n"),
            }
        }
        _ => {
            return text(
                StatusCode::NOT_FOUND,
                "there are GET /cache, POST /cache/rm?image=IMAGE and POST /cache/gc\n",
            );
        }
    };
    done.unwrap_or_else(|err| {
        tracing::warn!(path, error = err.to_string(), "the cache folder cannot be changed as the operator asked");
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("the cache folder: {err}\n"))
    })
}

fn json(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::bytes(serde_json::to_vec(value).expect("numbers always serialize")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Reads what is to be removed: a repository, an image of it by tag or digest, or a digest alone.
///
/// # Errors
/// What is wrong with it.
pub fn parse_target(named: &str, default: &Registry) -> Result<Target, String> {
    if let Ok(digest) = named.parse::<Digest>() {
        return Ok(Target::Digest(digest));
    }
    let pull = parse_image(named, default)?;
    let last = named.rsplit('/').next().unwrap_or(named);
    match pull.content {
        Content::Manifest(reference) if last.contains([':', '@']) => Ok(Target::Image(pull.place, reference)),
        _ => Ok(Target::Repository(pull.place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Reference;

    #[test]
    fn what_is_to_be_removed_is_read_as_people_write_it() {
        let hub = Registry::parse("docker.io").expect("a registry");
        let digest = format!("sha256:{}", "a".repeat(64));
        let read = |named: &str| match parse_target(named, &hub) {
            Ok(Target::Digest(digest)) => digest.to_string(),
            Ok(Target::Repository(place)) => format!("all of {place}"),
            Ok(Target::Image(place, Reference::Tag(tag))) => format!("{place}:{tag}"),
            Ok(Target::Image(place, Reference::Digest(digest))) => format!("{place}@{digest}"),
            Err(_) => "bad".to_owned(),
        };
        for (named, expected) in [
            (digest.clone(), digest.clone()),
            ("alpine".to_owned(), "all of docker.io/library/alpine".to_owned()),
            ("alpine:3".to_owned(), "docker.io/library/alpine:3".to_owned()),
            ("h.lan:5000/a/b".to_owned(), "all of h.lan:5000/a/b".to_owned()),
            ("h.lan:5000/a/b:1".to_owned(), "h.lan:5000/a/b:1".to_owned()),
            (format!("quay.io/a@{digest}"), format!("quay.io/a@{digest}")),
            (String::new(), "bad".to_owned()),
            ("sha256:abc".to_owned(), "docker.io/library/sha256:abc".to_owned()),
            ("../../etc".to_owned(), "bad".to_owned()),
        ] {
            assert_eq!(read(&named), expected, "{named}");
        }
    }
}
