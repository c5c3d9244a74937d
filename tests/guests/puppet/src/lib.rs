//! A guest for the tests: each hook does what its line in the configuration says, `inspection = "hold"`, and where
//! there is none has nothing to say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_sdk::{
    Action, Admission, Attempt, CachedTag, Candidate, Config, Denial, Facts, Fallback, File, Finding, Freshness, Hints, Identity, Inspection,
    Lifecycle, Pair, Request, Routes, Routing, Rule, Step, Verdict, call, clock, image, log, metrics, registry, state,
};

struct Puppet;

static LINES: Config<BTreeMap<String, String>> = Config::new("inspection = \"hold\"", File::toml);

/// What the hook is to do.
fn line(hook: &str) -> String {
    let lines = LINES.get().expect("the configuration was checked");
    lines.get(hook).cloned().unwrap_or_default()
}

impl Lifecycle for Puppet {
    fn check() -> Result<(), String> {
        LINES.get()?;
        Ok(())
    }
}

impl Hints for Puppet {
    /// `hints = "client+headers"`, `"none"`; without the line everything, so that nothing is remembered.
    fn depends_on() -> Facts {
        let word = line("hints");
        if word == "panic" {
            panic!("told to fail");
        }
        let known = |name: &str| match name {
            "client" => Facts::CLIENT,
            "headers" => Facts::HEADERS,
            "time" => Facts::TIME,
            "state" => Facts::STATE,
            "lookups" => Facts::LOOKUPS,
            _ => Facts::empty(),
        };
        if word.is_empty() { Facts::all() } else { word.split('+').map(known).fold(Facts::empty(), |all, one| all | one) }
    }
}

/// How often this instance was asked: what a plugin that keeps nothing would not know.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// What every hook may be told to do, before it answers.
fn act(word: &str) {
    match word {
        "panic" => panic!("told to fail"),
        "loop" => loop {
            std::hint::black_box(0);
        },
        "count" => {
            metrics::increment("asked", &[Pair { key: "by".to_owned(), value: "test".to_owned() }], 2);
            metrics::set("level", &[], 0.5);
            metrics::increment("not a name", &[], 1);
        }
        "say" => log::info("asked"),
        "clock" => _ = clock::now_ms(),
        "address" => _ = call::client_address(),
        "accept" => _ = call::accept(),
        "state" => _ = state::get("x"),
        "cached" => _ = call::cache(),
        "limits" => _ = facts(),
        "method" => _ = call::attribute("method"),
        "warn" => call::warn("a warning of the puppet"),
        "remember" => {
            let now = clock::now_ms().to_string();
            let first = state::set_once("first", &now, None).expect("room");
            let times = state::add("times", 1, None).expect("room");
            let kept = times == 1 || first != now;
            log::info(&format!("remembers {times} {kept}"));
        }
        _ => {}
    }
}

impl Admission for Puppet {
    fn admit(request: &Request) -> Verdict {
        let word = line("admission");
        // `admission = "times"`, or with something that is done before: `"times clock"`.
        if let Some(rest) = word.strip_prefix("times") {
            act(rest.trim());
            let times = ASKED.fetch_add(1, Ordering::Relaxed) + 1;
            return Verdict::deny(format!("asked {times} times"));
        }
        act(&word);
        match word.as_str() {
            "read-only" if request.action == Action::Pull => Verdict::Allow,
            "deny" | "read-only" => Verdict::deny(format!("{request} is denied by the puppet")),
            "cached-only" => Verdict::CachedOnly,
            "tell" => Verdict::deny(facts()),
            "who" => Verdict::deny(who()),
            "look" => Verdict::deny(look(request)),
            _ => Verdict::Allow,
        }
    }
}

impl Routing for Puppet {
    fn route(request: &Request, _: &[Candidate]) -> Routes {
        let word = line("routing");
        act(&word);
        if word == "times" {
            let times = ASKED.fetch_add(1, Ordering::Relaxed) + 1;
            return Denial::new(format!("routed {times} times")).into();
        }
        match word.as_str() {
            "" => Routes::Pass,
            "look" => Denial::new(look(request)).into(),
            registry => Routes::To(vec![Candidate::new(registry)]),
        }
    }
}

impl Fallback for Puppet {
    fn on_failure(request: &Request, _: &[Attempt], _: &[Candidate]) -> Step {
        let word = line("fallback");
        act(&word);
        match word.as_str() {
            "look" => Denial::new(look(request)).into(),
            "serve-stale" => Step::ServeStale,
            _ => Step::Pass,
        }
    }
}

impl Inspection for Puppet {
    fn inspect(request: &Request) -> Finding {
        let word = line("inspection");
        act(&word);
        match word.as_str() {
            "hold" => Finding::hold(format!("{request} is held by the puppet"), 90),
            "deny" => Finding::deny(format!("{request} is denied by the puppet")),
            "tell" => Finding::deny(contents()),
            "look" => Finding::deny(look(request)),
            "spend" => Finding::deny(spend()),
            _ => Finding::Release,
        }
    }
}

impl Freshness for Puppet {
    fn judge(request: &Request, cached: Option<&CachedTag>) -> Rule {
        let word = line("freshness");
        act(&word);
        if line("admission") == "log" {
            let cached = cached.map_or("nothing", |cached| cached.digest.as_str());
            log::info(&format!("judges {request}: {cached}"));
        }
        match word.as_str() {
            "serve" => Rule::Serve,
            "revalidate" => Rule::Revalidate,
            digest if digest.starts_with("sha") => Rule::Pin(digest.to_owned()),
            _ => Rule::Pass,
        }
    }
}

/// What is known of the call.
fn facts() -> String {
    let attribute = |name: &str| call::attribute(name).unwrap_or_else(|| "none".to_owned());
    let names = ["remaining", "limit", "window-secs"].map(|name| attribute(&format!("ratelimit.docker.io.{name}")));
    format!("limits={} ailing={}", names.join("/"), attribute("registry.docker.io.ailing"))
}

/// Who asks.
fn who() -> String {
    let known = |who: Identity| format!("{} by {} of {}", who.subject, who.issuer, who.groups.join("+"));
    call::client().map_or_else(|| "anonymous".to_owned(), known)
}

/// What is known of the manifest.
fn contents() -> String {
    let target = image::target().expect("a manifest");
    let layers: Vec<String> = image::layers().into_iter().map(|layer| layer.digest).collect();
    format!(
        "target={} type={} size={} raw={} layers={} annotation={:?} subject={:?} label={:?} none={:?} config={:?} parents={}",
        target.digest,
        target.media_type,
        target.size,
        image::raw().len(),
        layers.join("+"),
        image::annotation("org.example.team"),
        image::subject().map(|subject| subject.digest),
        image::label("name"),
        image::label("other"),
        image::config().map(|config| config.len()),
        image::parents().join("+"),
    )
}

/// What look-ups find.
fn look(request: &Request) -> String {
    let size = |found: Result<Vec<u8>, registry::Error>| found.map(|bytes| bytes.len());
    let digest = image::target().map(|target| target.digest).unwrap_or_default();
    let subject = request.digest().unwrap_or(&digest);
    let referrers: Vec<String> = match registry::referrers(subject, Some("application/vnd.example.sbom")) {
        Ok(found) => found.into_iter().map(|one| one.digest).collect(),
        Err(error) => vec![format!("{error:?}")],
    };
    format!(
        "other={:?} none={:?} bad={:?} referrers={} blob={:?} big={:?}",
        size(registry::manifest("other")),
        size(registry::manifest("none")),
        size(registry::manifest("../x")),
        referrers.join("+"),
        size(registry::blob(&line("blob"))),
        size(registry::blob(&line("big"))),
    )
}

/// How many look-ups there are.
fn spend() -> String {
    let mut found = 0;
    loop {
        match registry::manifest("other") {
            Err(registry::Error::BudgetSpent) => return format!("{found} look-ups"),
            _ => found += 1,
        }
    }
}

tidegate_sdk::export!(Puppet: lifecycle, hints, admission, routing, fallback, inspection, freshness);
