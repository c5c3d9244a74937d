//! The table of cases that `tidegate plugin test` runs: read from TOML, and checked, with the line of what is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use super::content::{self, Pulled};
use crate::oci::{Addressing, Attempt, Candidate, Content, Failure, Method, Place, Pull, Reference, Registry};
use crate::plugin::{Cached, Given, Identity, Image};
use crate::server::parse_image;

/// The registry that a name without one means.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Who asks, where a case does not say: an address for documentation (RFC 5737).
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// A pull, what the host knows of it, and what must be decided.
#[derive(Debug)]
pub(super) struct Case {
    pub name: String,
    pub pull: Pull,
    pub client: IpAddr,
    pub user_agent: String,
    pub accept: Vec<String>,
    pub headers: Vec<(String, String)>,
    pub identity: Option<Identity>,
    pub given: Given,
    /// The manifest that is inspected.
    pub image: Option<Arc<Image>>,
    pub state: BTreeMap<String, String>,
    /// What the case before has left in the plugin's state stays.
    pub keep_state: bool,
    pub candidates: Vec<Candidate>,
    pub failed: Vec<Attempt>,
    pub expect: Expect,
}

/// What must be decided. What is not named may be anything.
#[derive(Deserialize, Default, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub admission: Option<String>,
    pub routes: Option<Routes>,
    pub rule: Option<String>,
    pub step: Option<String>,
    pub finding: Option<String>,
    /// A part of the text of the denial.
    pub message: Option<String>,
    pub status: Option<u16>,
    pub code: Option<String>,
    pub retry_after_secs: Option<u64>,
    /// A part of each warning, in order.
    pub warnings: Option<Vec<String>>,
    /// What the plugin's state holds afterwards, among other things.
    pub state: Option<BTreeMap<String, String>>,
}

/// `"deny"`, or the places in order.
#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(untagged)]
pub(super) enum Routes {
    Word(String),
    To(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Spanned<Typed>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    name: String,
    pull: Option<Spanned<String>>,
    blob: Option<Spanned<String>>,
    tags: Option<Spanned<String>>,
    referrers: Option<Spanned<String>>,
    method: Option<Spanned<String>>,
    addressing: Option<Spanned<String>>,
    client: Option<IpAddr>,
    identity: Option<Person>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    manifest: Option<Spanned<String>>,
    config: Option<Spanned<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    parents: Vec<Spanned<String>>,
    #[serde(default)]
    registry: content::Registry,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    accept: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    now: Option<Spanned<Datetime>>,
    cached: Option<Copy>,
    #[serde(default)]
    state: BTreeMap<String, String>,
    #[serde(default)]
    keep_state: bool,
    candidates: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    failed: Vec<Failed>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// Who a client is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    subject: String,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    groups: Vec<String>,
}

/// A copy that the cache holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    digest: Spanned<String>,
    age: Option<Spanned<String>>,
    #[serde(default)]
    stale: bool,
}

/// An attempt that failed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    at: Spanned<String>,
    failure: Spanned<String>,
    after: Option<Spanned<String>>,
    #[serde(default)]
    bytes: u64,
    retry_after_secs: Option<u64>,
    #[serde(default)]
    rate_limit: BTreeMap<String, String>,
}

/// What is wrong, and where in the text.
pub(super) struct Wrong(Range<usize>, String);

pub(super) type Read<T> = Result<T, Wrong>;

/// Reads a table of cases. `dir`: where the files lie that it names.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn parse(text: &str, dir: &Path) -> Result<Vec<Case>, (usize, String)> {
    let line = |at: usize| text[..at.min(text.len())].split('\n').count();
    let file: File = toml::from_str(text)
        .map_err(|err| (line(err.span().map_or(0, |span| span.start)), err.message().replace('\n', ", ")))?;
    if file.case.is_empty() {
        return Err((1, "there is no [[case]]".to_owned()));
    }
    let cases = file.case.into_iter().map(|typed| {
        let span = typed.span();
        read(span, typed.into_inner(), dir).map_err(|Wrong(span, reason)| (line(span.start), reason))
    });
    cases.collect()
}

fn read(span: Range<usize>, typed: Typed, dir: &Path) -> Read<Case> {
    let mut pull = pull(&span, &typed)?;
    if let Some(method) = &typed.method {
        pull.method = match method.get_ref().as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            _ => return wrong(method, "method is \"GET\" or \"HEAD\""),
        };
    }
    if let Some(addressing) = &typed.addressing {
        let Some(parsed) = Addressing::parse(addressing.get_ref()) else {
            let known = Addressing::ALL.map(Addressing::as_str).join("\", \"");
            return wrong(addressing, format!("addressing is one of \"{known}\""));
        };
        pull.addressing = parsed;
    }
    let now = typed.now.as_ref().map(|now| {
        let text = now.get_ref().to_string();
        humantime::parse_rfc3339_weak(text.trim_end_matches('Z'))
            .or_else(|_| wrong(now, "now is a time in UTC such as 2026-11-21T10:00:00Z"))
    });
    let candidates = match &typed.candidates {
        None => vec![Candidate::plain(pull.place.clone())],
        Some(given) => given.iter().map(|given| place(given).map(Candidate::plain)).collect::<Read<_>>()?,
    };
    let headers = typed.headers.into_iter().flat_map(|(name, values)| {
        let values = match values {
            Values::One(value) => vec![value],
            Values::Many(values) => values,
        };
        values.into_iter().map(move |value| (name.to_ascii_lowercase(), value))
    });
    let cached = typed.cached.as_ref().map_or(Ok(Cached::Absent), copy)?;
    let mut given = Given { cached, knows_cache: true, now: now.transpose()?, ..Given::default() };
    given.tell(&typed.attributes).map_err(|reason| Wrong(span.clone(), format!("attributes: {reason}")))?;
    typed.registry.tell(dir, &mut given)?;
    let pulled = Pulled {
        manifest: typed.manifest.as_ref(),
        config: typed.config.as_ref(),
        labels: &typed.labels,
        annotations: &typed.annotations,
        parents: &typed.parents,
    };
    let image = pulled.image(dir, &mut given)?;
    if let (Content::Manifest(Reference::Digest(asked)), Some(image)) = (&pull.content, &image)
        && *asked != image.digest
        && typed.manifest.is_some()
    {
        return Err(Wrong(span, format!("the manifest has the digest {}, not the one that is pulled", image.digest)));
    }
    Ok(Case {
        identity: typed.identity.map(|Person { subject, issuer, groups }| Identity { subject, issuer, groups }),
        given,
        image: image.map(Arc::new),
        client: typed.client.unwrap_or(CLIENT),
        user_agent: typed.user_agent,
        accept: typed.accept,
        headers: headers.collect(),
        state: typed.state,
        keep_state: typed.keep_state,
        candidates,
        failed: typed.failed.into_iter().map(failed).collect::<Read<_>>()?,
        expect: expect(&span, typed.expect)?,
        name: typed.name,
        pull,
    })
}

/// Says what is wrong with something that was typed.
pub(super) fn wrong<T, U>(at: &Spanned<U>, reason: impl Into<String>) -> Read<T> {
    Err(Wrong(at.span(), reason.into()))
}

/// What is asked for: one of four keys says it.
fn pull(span: &Range<usize>, typed: &Typed) -> Read<Pull> {
    let given: Vec<(&str, &Spanned<String>)> =
        [("pull", &typed.pull), ("blob", &typed.blob), ("tags", &typed.tags), ("referrers", &typed.referrers)]
            .into_iter()
            .filter_map(|(key, given)| Some((key, given.as_ref()?)))
            .collect();
    let [(key, given)] = given.as_slice() else {
        let reason = "a case has one of `pull`, `blob`, `tags` and `referrers`: what is asked for";
        return Err(Wrong(span.clone(), reason.to_owned()));
    };
    let mut pull = image(given)?;
    pull.content = match (*key, &pull.content) {
        ("pull", content) => content.clone(),
        ("tags", Content::Manifest(Reference::Tag(_))) => Content::Tags,
        ("blob", Content::Manifest(Reference::Digest(digest))) => Content::Blob(*digest),
        ("referrers", Content::Manifest(Reference::Digest(digest))) => Content::Referrers(*digest),
        ("tags", _) => return wrong(given, "tags: a repository alone is named, as docker.io/library/alpine"),
        (key, _) => {
            return wrong(given, format!("{key}: is named by its digest, as docker.io/library/alpine@sha256:..."));
        }
    };
    Ok(pull)
}

fn image(given: &Spanned<String>) -> Read<Pull> {
    let hub = Registry::parse(DEFAULT_REGISTRY).expect("a registry");
    parse_image(given.get_ref(), &hub).or_else(|reason| wrong(given, reason))
}

fn place(given: &Spanned<String>) -> Read<Place> {
    image(given).map(|pull| pull.place)
}

fn duration(given: &Spanned<String>) -> Read<Duration> {
    humantime::parse_duration(given.get_ref()).or_else(|_| wrong(given, "is no duration such as \"90s\" or \"3h\""))
}

fn copy(copy: &Copy) -> Read<Cached> {
    let digest = content::digest(&copy.digest)?;
    let age = copy.age.as_ref().map(duration).transpose()?;
    Ok(if copy.stale { Cached::Stale { digest, age: age.unwrap_or_default() } } else { Cached::Fresh { digest, age } })
}

fn failed(failed: Failed) -> Read<Attempt> {
    Ok(Attempt {
        candidate: Candidate::plain(place(&failed.at)?),
        failure: failure(&failed.failure)?,
        duration: failed.after.as_ref().map_or(Ok(Duration::ZERO), duration)?,
        bytes: failed.bytes,
        retry_after: failed.retry_after_secs.map(Duration::from_secs),
        rate_limit: failed.rate_limit.into_iter().collect(),
    })
}

/// Reads a failure as the interface names it; a text may follow: `connect: refused`.
fn failure(given: &Spanned<String>) -> Read<Failure> {
    let (kind, text) = given.get_ref().split_once(": ").unwrap_or((given.get_ref(), ""));
    let reason = || if text.is_empty() { "as the case says".to_owned() } else { text.to_owned() };
    Ok(match kind {
        "connect" => Failure::Connect(reason()),
        "tls" => Failure::Tls(reason()),
        "timeout" => Failure::Timeout,
        "auth" => Failure::Auth { reason: reason(), refused: true, wrong_password: false },
        "digest-mismatch" => Failure::DigestMismatch,
        "truncated" => Failure::Truncated,
        "other" => Failure::Other(reason()),
        kind => {
            let Some(Ok(status)) = kind.strip_prefix("status-").map(str::parse) else {
                let kinds =
                    "connect, tls, timeout, status-429 (any status), auth, digest-mismatch, truncated and other";
                return wrong(given, format!("there is no such failure; there are {kinds}"));
            };
            Failure::Status(status)
        }
    })
}

fn expect(span: &Range<usize>, expect: Expect) -> Read<Expect> {
    let fail = |reason: String| Err(Wrong(span.clone(), reason));
    let Expect { admission, routes, rule, step, finding, .. } = &expect;
    if expect == Expect::default() {
        return fail("the case expects nothing: add to [case.expect] what must be decided".to_owned());
    }
    let words = [
        ("admission", admission.as_deref(), &["allow", "cached-only", "deny"][..]),
        ("rule", rule.as_deref(), &["pass", "serve", "revalidate", "pin"]),
        ("finding", finding.as_deref(), &["release", "hold", "deny"]),
        ("step", step.as_deref(), &["pass", "next", "divert", "serve-stale", "wait", "stop", "deny"]),
        ("routes", if let Some(Routes::Word(word)) = routes { Some(word.as_str()) } else { None }, &["deny"]),
    ];
    for (key, word, known) in words {
        let first = word.map(|word| word.split(' ').next().unwrap_or_default());
        if first.is_some_and(|first| !known.contains(&first)) {
            let list = if key == "routes" { ", or a list of places" } else { "" };
            return fail(format!(
                "expect.{key}: {:?} cannot be; there are {}{list}",
                word.unwrap_or_default(),
                known.join(", ")
            ));
        }
    }
    Ok(expect)
}
