//! What must hold of every parser of foreign bytes, whatever the bytes are. Fuzz targets and ordinary tests
//! (`replay.rs`) run the same functions: each panics where its property does not hold.
#![allow(dead_code, reason = "a fuzz target uses one of them")]

use std::path::Path;

use tidegate::addressing::{self, Naming, Request};
use tidegate::body::{self, Part};
use tidegate::cli::to_digest_mirror_set;
use tidegate::config::{Config, Users};
use tidegate::oci::endpoint::{self, Segments};
use tidegate::oci::manifest::{self, MEDIA_TYPES, Negotiated};
use tidegate::oci::{
    Addressing, Content, Digest, Endpoint, Host, Method, Place, Pull, Reference, Registry, Repository, Tag, Verb,
    Write, challenge,
};
use tidegate::pull;
use tidegate::server::{self, Shown};
use tidegate::upstream::Via;

/// A parser's property.
pub type Property = fn(&[u8]);

/// All of them, by the names of their fuzz targets and of their folders in `corpus/`.
pub const TARGETS: [(&str, Property); 18] = [
    ("endpoint", endpoint),
    ("name", name),
    ("digest", digest),
    ("range", range),
    ("challenge", challenge),
    ("link", link),
    ("manifest", manifest),
    ("configuration", configuration),
    ("accept", accept),
    ("image", image),
    ("query", query),
    ("push", push),
    ("via", via),
    ("authorization", authorization),
    ("proxied", proxied),
    ("users", users),
    ("formats", formats),
    ("icsp", icsp),
];

fn hub() -> Registry {
    Registry::parse("docker.io").expect("a registry")
}

/// What becomes a path, a header or a line of a log has nothing in it that means something there.
fn assert_harmless(text: &str) {
    let harmful = |sign: char| sign.is_control() || sign.is_whitespace() || "\\%?#@<>\"'`$;&|*".contains(sign);
    assert!(!text.contains(harmful), "{text:?}");
    assert!(!text.split('/').any(|part| matches!(part, "" | "." | "..")), "{text:?}");
}

fn assert_printable(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// What a client shows is a user that can be written down and a password, or a token, or it is refused without a quote.
pub fn authorization(data: &[u8]) {
    let Ok(value) = hyper::header::HeaderValue::from_bytes(data) else { return };
    let mut headers = hyper::HeaderMap::new();
    headers.insert(hyper::header::AUTHORIZATION, value);
    match server::parse_authorization(&headers, &hyper::header::AUTHORIZATION) {
        Ok(Shown::Nothing) => {}
        Ok(Shown::Basic(shown)) => {
            assert!(!shown.user.is_empty() && shown.user.len() <= 255 && !shown.user.contains(':'));
            assert_printable(&shown.user);
            assert_printable(&shown.password);
            assert_eq!(format!("{shown:?}"), "Credentials(..)");
        }
        Ok(Shown::Bearer(token)) => assert!(!token.is_empty() && !token.contains(char::is_whitespace)),
        Err(reason) => assert_printable(reason),
    }
}

/// A PROXY header is one of both versions, and what stands behind it is not part of it.
pub fn proxied(data: &[u8]) {
    let Some(named) = server::parse_proxied(data) else { return };
    let text = data.starts_with(b"PROXY ");
    assert!(text || data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    if let (Some(named), true) = (named, text) {
        let text = String::from_utf8_lossy(data);
        assert!(text.contains(&named.port().to_string()), "{text:?}");
    }
}

/// Files of users and groups give users whose passwords are hashed by bcrypt, or a line and a reason that can be shown.
pub fn users(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (users, groups) = text.split_once('\0').unwrap_or((text, ""));
    match Users::parse(users, Some(groups), Path::new("/etc/users")) {
        Ok(parsed) => {
            for name in users.lines().filter_map(|line| Some(line.split_once(':')?.0)) {
                let Some(user) = parsed.get(name) else { continue };
                assert!(["$2a$", "$2b$", "$2y$"].iter().any(|kind| user.hash.starts_with(kind)));
                assert!(!format!("{user:?}").contains(&user.hash));
            }
        }
        Err((_, (line, reason))) => {
            assert!(line >= 1 && line <= text.lines().count().max(1));
            assert_printable(&reason);
        }
    }
}

/// A path that parses is one that can be written again from what it means, and no other.
pub fn endpoint(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let parsed = match endpoint::parse(path) {
        Ok(parsed) => parsed,
        Err(error) => return assert_printable(&error.to_string()),
    };
    let name = |name: &Segments| {
        assert_harmless(&name.whole());
        if let Some((registry, repository)) = name.split() {
            assert!(Registry::parse(registry).is_some() || Repository::parse(&name.whole()).is_some(), "{path:?}");
            assert!(repository.is_empty() || Repository::parse(&repository).is_some(), "{path:?}");
        } else {
            assert!(Repository::parse(&name.whole()).is_some(), "{path:?}");
        }
        name.whole()
    };
    let again = match &parsed {
        Endpoint::Base => "/v2/".to_owned(),
        Endpoint::Catalog => "/v2/_catalog".to_owned(),
        Endpoint::Uploads(of) => format!("/v2/{}/blobs/uploads/", name(of)),
        // What it is called is opened, never looked at.
        Endpoint::Upload(of, _) => return drop(name(of)),
        Endpoint::Tags(of) => format!("/v2/{}/tags/list", name(of)),
        Endpoint::Manifest(of, Reference::Tag(tag)) => format!("/v2/{}/manifests/{tag}", name(of)),
        Endpoint::Manifest(of, Reference::Digest(digest)) => format!("/v2/{}/manifests/{digest}", name(of)),
        Endpoint::Blob(of, digest) => format!("/v2/{}/blobs/{digest}", name(of)),
        Endpoint::Referrers(of, digest) => format!("/v2/{}/referrers/{digest}", name(of)),
    };
    assert_eq!(endpoint::parse(&again).as_ref(), Ok(&parsed), "{path:?} is {again:?}");
}

/// Path and query, as a client names an upstream. What is resolved can be put into a path of the cache.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let default = hub();
    let naming = Naming { intercepted: None, virtual_host: None, default: &default };
    for other in [Naming { virtual_host: Some(&default), ..naming }, Naming { intercepted: Some(&default), ..naming }] {
        if let Ok(Request::Pull(pull, _)) = addressing::resolve(Verb::Read(Method::Get), path, query, other) {
            assert!(pull.addressing == Addressing::Ns || pull.place.registry == default, "{text:?}");
            assert_harmless(pull.place.repository.as_str());
        }
    }
    let (pull, rest) = match addressing::resolve(Verb::Read(Method::Get), path, query, naming) {
        Ok(Request::Pull(pull, rest)) => (pull, rest),
        Ok(Request::Base | Request::Unsupported | Request::NotAllowed(..) | Request::Push(_)) => return,
        Err(error) => return assert_printable(&error.to_string()),
    };
    let repository = pull.place.repository.as_str();
    assert_harmless(repository);
    assert!(!repository.split('/').any(|part| part.starts_with('_')), "{text:?}");
    assert_harmless(&pull.place.registry.as_str().replace(':', ""));
    assert_printable(&pull.to_string());
    assert!(!rest.contains(|sign: char| !sign.is_ascii_graphic()), "{rest:?}");
    // The registry is not told of `ns`, and with it the rest means the same.
    assert!(!rest.split('&').any(|pair| pair.starts_with("ns=")), "{rest:?}");
    let again = match pull.addressing {
        Addressing::Ns => format!("{rest}&ns={}", pull.place.registry),
        _ => rest.clone(),
    };
    match addressing::resolve(Verb::Read(Method::Get), path, &again, naming) {
        Ok(Request::Pull(same, query)) => {
            assert_eq!(query, rest, "{text:?}");
            assert_eq!((same.place, same.content), (pull.place, pull.content), "{text:?}");
        }
        other => panic!("{text:?}: {other:?}"),
    }
}

/// A method, path and query, as a client pushes. What comes of it is harmless, and the address that its client is given
/// leads to the same repository.
pub fn push(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (method, target) = text.split_once(' ').unwrap_or(("", text));
    let verb = match method {
        "POST" => Verb::Post,
        "PUT" => Verb::Put,
        "PATCH" => Verb::Patch,
        "DELETE" => Verb::Delete,
        _ => Verb::Read(Method::Get),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let default = hub();
    let naming = Naming { intercepted: None, virtual_host: None, default: &default };
    let push = match addressing::resolve(verb, path, query, naming) {
        Ok(Request::Push(push)) => push,
        Ok(_) => return,
        Err(error) => return assert_printable(&error.to_string()),
    };
    assert_harmless(push.place.repository.as_str());
    assert_printable(&push.to_string());
    if let Write::Mount(_, from) = &push.write {
        assert_harmless(from.as_str());
        assert_ne!(*from, push.place.repository, "{text:?}");
    }
    let location = push.addressing.target(&push.place, "blobs/uploads/x", "");
    let (path, query) = location.split_once('?').unwrap_or((&location, ""));
    match addressing::resolve(Verb::Patch, path, query, naming) {
        Ok(Request::Push(next)) => assert_eq!((next.place, next.addressing), (push.place, push.addressing), "{text:?}"),
        other => panic!("{text:?}: {location:?}: {other:?}"),
    }
}

/// A name that parses is its own text, and harmless wherever it is put.
pub fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(registry) = Registry::parse(text) {
        let name = registry.as_str();
        assert_eq!(Registry::parse(name).as_ref(), Some(&registry));
        assert_eq!(name, name.to_ascii_lowercase());
        assert_harmless(name);
        assert!(!name.contains('/') && !registry.host().is_empty() && name.len() < 264, "{name:?}");
    }
    if let Some(host) = Host::of_authority(text) {
        assert_eq!(Host::parse(host.as_str()).as_ref(), Some(&host));
        assert_harmless(&host.as_str().replace(':', ""));
        assert!(!host.as_str().is_empty() && host.as_str() == host.as_str().to_ascii_lowercase(), "{host:?}");
    }
    // What a tunnel is asked to: it is the same host, and written as an address it is itself again.
    if let Some((host, port)) = Host::with_port(text) {
        assert_eq!(Host::of_authority(text).as_ref(), Some(&host));
        assert_ne!(port, Some(0), "{text:?}");
        assert_eq!(Host::with_port(&format!("{}:443", host.in_address())), Some((host, Some(443))));
    }
    if let Some(repository) = Repository::parse(text) {
        assert_eq!(repository.as_str(), text);
        assert_harmless(text);
        assert!(text.len() <= 255 && !text.contains(':') && !text.split('/').any(|part| part.starts_with('_')));
        let canonical = repository.clone().canonical(&hub());
        assert_eq!(canonical.clone().canonical(&hub()), canonical);
        assert!(canonical.as_str().ends_with(text));
    }
    if let Some(tag) = Tag::parse(text) {
        assert_eq!(tag.as_str(), text);
        assert_harmless(text);
        assert!(text.len() <= 128 && !text.contains(['/', ':']) && !text.starts_with(['.', '-']));
    }
    Registry::is_meant_by(text);
}

/// A digest that parses is its own text.
pub fn digest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(digest) = text.parse::<Digest>() else { return };
    assert_eq!(digest.to_string(), text);
    assert_eq!(format!("{}:{}", digest.algorithm(), digest.hex()), text);
    assert_harmless(&digest.hex());
    let json = serde_json::to_string(&digest).expect("a text");
    assert_eq!(serde_json::from_str::<Digest>(&json).expect("the same text"), digest);
}

/// The first eight bytes are a size, the rest is a header: every part lies within the size, and none has a byte twice.
pub fn range(data: &[u8]) {
    let Some((size, header)) = data.split_first_chunk() else { return };
    let (size, Ok(header)) = (u64::from_le_bytes(*size), std::str::from_utf8(header)) else { return };
    let within = |start: u64, end: u64| assert!(start < end && end <= size, "{header:?} of {size}: {start} to {end}");
    match body::parse_range(header, size) {
        Part::Whole | Part::Unsatisfiable => {}
        Part::Range(start, end) => within(start, end),
        Part::Many(mut parts) => {
            assert!((2..=32).contains(&parts.len()), "{header:?}: {} parts", parts.len());
            for (start, end) in &parts {
                within(*start, *end);
            }
            parts.sort_unstable();
            assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{header:?}: {parts:?}");
        }
    }
}

/// Values of `WWW-Authenticate`, one a line: the same values, the same challenge; a Bearer has a realm.
pub fn challenge(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = challenge::parse(text.lines());
    assert_eq!(challenge::parse(text.lines()), parsed);
    // A header more that means nothing changes nothing.
    assert_eq!(challenge::parse(text.lines().chain(["Negotiate"])), parsed);
    if parsed.is_none() {
        assert_eq!(challenge::parse(text.lines().chain(["Basic realm=\"x\""])), Some(challenge::Challenge::Basic));
    }
}

/// A `Link` to the next page leads to where the client found this one, whatever the registry wrote.
pub fn link(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let place = Place { registry: hub(), repository: Repository::parse("library/a").expect("a repository") };
    for (addressing, prefix) in [
        (Addressing::Path, "</v2/docker.io/library/a/tags/list"),
        (Addressing::Ns, "</v2/library/a/tags/list"),
        (Addressing::Default, "</v2/library/a/tags/list"),
        (Addressing::VirtualHost, "</v2/library/a/tags/list"),
        (Addressing::Intercepted, "</v2/library/a/tags/list"),
    ] {
        let pull = Pull { place: place.clone(), content: Content::Tags, method: Method::Get, addressing };
        let Some(link) = pull::rewrite_link(text, &pull, "tags/list") else { return };
        let target = link.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
        let target = target.unwrap_or_else(|| panic!("{text:?}: {link:?}"));
        assert!(target.is_empty() || target.starts_with('?'), "{link:?}");
        assert!(!target.contains(|sign: char| !sign.is_ascii_graphic() || "<>\"".contains(sign)), "{link:?}");
        // Written once, it is a link that can be followed and written again.
        assert!(pull::rewrite_link(&link, &pull, "tags/list").is_some(), "{link:?}");
    }
}

/// The first byte chooses a media type, the rest is a manifest: what is taken is JSON, and an image or an index.
pub fn manifest(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let types = MEDIA_TYPES.iter().copied().chain(["application/json"]);
    let content_type = types.cycle().nth(usize::from(*kind)).expect("it cycles");
    match manifest::parse_blobs(bytes, content_type) {
        Ok(blobs) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes).expect("what is taken is JSON");
            // A number that is too big for one, under a key that nobody reads, is still JSON.
            let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
            let layers = value["layers"].as_array().map_or(0, Vec::len) + usize::from(value["config"].is_object());
            assert_eq!(blobs.len(), layers);
            assert!(layers == 0 || !value["manifests"].is_array(), "both an image and an index");
        }
        // What it says may stand in a log, where it is escaped; it must be short enough to stand there.
        Err(error) => assert!(error.to_string().len() < bytes.len() + 400),
    }
}

/// A configuration is taken, or refused in a line that names the file, and that a terminal can bear.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files that a text names are opened: not those of the machine that fuzzes.
    if text.contains("file") || text.contains("config") || text.contains("\\u") || text.contains("certs") {
        return;
    }
    match Config::parse(text, "fuzz.toml") {
        Ok(config) => {
            assert!(config.reach(&config.default_registry).is_some(), "the default registry cannot be reached");
            assert!(config.limits.connections > 0);
            assert!(config.cache.dir.is_absolute() && !config.cache.dir.starts_with(Path::new("..")));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.starts_with("fuzz.toml"), "{message:?}");
            assert_printable(&message);
        }
    }
}

/// What was negotiated asks for itself again.
pub fn accept(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = Negotiated::parse(text.split(',').map(|one| one.split(';').next().unwrap_or_default().trim()));
    let accept = parsed.accept();
    assert!(!accept.is_empty());
    assert_eq!(Negotiated::parse(accept.split(", ")), parsed, "{accept:?}");
    assert!(parsed.key().len() == 1 && parsed.key() != "0", "{:?}", parsed.key());
}

/// An image as people write it is, in full, itself.
pub fn image(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match server::parse_image(text, &hub()) {
        Ok(pull) => {
            let full = pull.to_string();
            assert_printable(&full);
            // Docker Hub's `library/` may make the longest name too long to be typed; the registry refuses it then.
            if pull.place.repository.as_str().len() > 255 {
                return;
            }
            let again = server::parse_image(&full, &hub()).map(|again| again.to_string());
            assert_eq!(again.as_ref(), Ok(&full), "{text:?}");
        }
        Err(reason) => assert_printable(&reason),
    }
}

/// Values of `Via`, one a line: what is no hop of ours changes nothing, and no chain is endless.
pub fn via(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = Via::parse(text.lines());
    assert_eq!(Via::parse(text.lines().chain(["1.1 squid (of somebody), HTTP/2 cdn"])), parsed);
    if parsed.as_ref().is_ok_and(|via| *via != Via::default()) {
        let round = text.lines().cycle().take(text.lines().count() * 100);
        assert!(Via::parse(round).is_err(), "{text:?}");
    }
}

/// A file of another system is read in bounded time, with lines that it has, or refused in one line.
pub fn formats(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.lines().count() + 1;
    match tidegate_formats::read("f", text) {
        Err(refusal) => {
            assert_printable(&refusal.to_string());
            assert!(refusal.line.is_none_or(|line| (1..=lines + 1).contains(&line)), "{refusal}");
        }
        Ok(documents) => {
            for document in documents {
                assert!((1..=lines).contains(&document.line), "{}", document.line);
                assert!(document.unread.iter().all(|key| (1..=lines).contains(&key.line)), "{:?}", document.unread);
            }
        }
    }
}

/// A policy that is turned into a mirror set is no policy any more, and its name can be a file's.
pub fn icsp(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match to_digest_mirror_set(text) {
        Ok(set) => {
            assert_harmless(&set.name);
            assert!(set.text.len() < text.len(), "{text:?}");
            assert!(to_digest_mirror_set(&set.text).is_err(), "{text:?}");
        }
        Err(error) => assert_printable(&error.to_string()),
    }
}
