//! What a decision costs: 10,000 admission calls of the example plugin `allowlist`, one after the other, in the real
//! host, with warm instances. `make bench` runs it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use tidegate::config::{OnLoadError, Plugins as Config};
use tidegate::metrics::Metrics;
use tidegate::oci::manifest::Descriptor;
use tidegate::oci::{Addressing, Content, Method, Place, Pull, Reference, Registry, Repository, Tag};
use tidegate::oci::{Digest, RateLimit};
use tidegate::plugin::{Admission, Cached, Facts, Looking, Lookups, Missing, Plugins, Question};

/// Calls that are measured.
const CALLS: usize = 10_000;
/// Calls before, so that code and instance are warm.
const WARM_UP: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for rules in [1, 1_000] {
        let times = runtime.block_on(measure(rules))?;
        let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
        println!(
            "admission by allowlist ({rules} rules), {CALLS} calls: median {:.2} us, 90 % {:.2} us, 99 % {:.2} us",
            at(50),
            at(90),
            at(99)
        );
    }
    Ok(())
}

/// Times of all calls, sorted.
async fn measure(rules: usize) -> anyhow::Result<Vec<Duration>> {
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/dist/allowlist.wasm");
    let folder = tempfile::tempdir()?;
    std::fs::copy(&plugin, folder.path().join("10-allowlist.wasm"))
        .with_context(|| format!("{} is not there: run `make plugins`", plugin.display()))?;
    let blocked: Vec<String> = (0..rules).map(|number| format!("\"docker.io/library/blocked-{number}\"")).collect();
    std::fs::write(folder.path().join("10-allowlist.toml"), format!("block = [{}]", blocked.join(", ")))?;
    let config = Config {
        dir: Some(folder.path().to_owned()),
        state_dir: folder.path().join("state"),
        on_load_error: OnLoadError::Refuse,
        headers: Vec::new(),
    };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
    let plugins = Plugins::load(&config, program, &Arc::new(Metrics::default())).await?;
    let set = plugins.current();
    let question = question();
    for _ in 0..WARM_UP {
        ensure!(set.admit(&question).await == Admission::Allow, "the pull must be allowed");
    }
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let started = Instant::now();
        let admission = set.admit(&question).await;
        times.push(started.elapsed());
        ensure!(admission == Admission::Allow, "the pull must be allowed");
    }
    times.sort_unstable();
    Ok(times)
}

fn question() -> Question {
    let place = Place {
        registry: Registry::parse("docker.io").expect("a registry"),
        repository: Repository::parse("library/alpine").expect("a repository"),
    };
    let content = Content::Manifest(Reference::Tag(Tag::parse("3.20").expect("a tag")));
    let pull = Pull { place, content, method: Method::Get, addressing: Addressing::Ns };
    let facts =
        Facts::new("bench".to_owned(), IpAddr::from([127, 0, 0, 1]), "bench".to_owned(), Vec::new(), Vec::new());
    Question { pull: Arc::new(pull), facts: Arc::new(facts), lookups: Arc::new(Nothing), image: None, dry_run: false }
}

/// There is nothing to look up.
struct Nothing;

impl Lookups for Nothing {
    fn cached(&self) -> Looking<'_, Cached> {
        Box::pin(async { Cached::Absent })
    }

    fn manifest(&self, _: Reference) -> Looking<'_, Result<Bytes, Missing>> {
        Box::pin(async { Err(Missing::NotFound) })
    }

    fn referrers(&self, _: Digest) -> Looking<'_, Result<Vec<Descriptor>, Missing>> {
        Box::pin(async { Err(Missing::NotFound) })
    }

    fn blob(&self, _: Digest, _: usize) -> Looking<'_, Result<Bytes, Missing>> {
        Box::pin(async { Err(Missing::NotFound) })
    }

    fn parents(&self, _: Digest) -> Looking<'_, Vec<Digest>> {
        Box::pin(async { Vec::new() })
    }

    fn rate_limit(&self, _: &Registry) -> Option<(RateLimit, Duration)> {
        None
    }

    fn is_ailing(&self, _: &Registry) -> bool {
        false
    }
}
