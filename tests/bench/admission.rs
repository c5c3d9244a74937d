//! What a decision costs: admission calls of the example plugin `allowlist`, one after the other, in the real host, with
//! warm instances and with a fresh one each. `make bench` runs it; `tidegate plugin bench` does the same for any plugin.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use tidegate::oci::{Addressing, Content, Method, Place, Pull, Reference, Registry, Repository, Tag};
use tidegate::plugin::{Admission, Alone, Facts, Files, Given, Question, measure};

/// How instances are used, and the settings that say so.
const WAYS: [(&str, &str); 2] = [("warm instances", ""), ("fresh instances", "isolation = \"fresh\"")];

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for rules in [1, 1_000] {
        for (way, settings) in WAYS {
            runtime.block_on(print(rules, way, settings))?;
        }
    }
    Ok(())
}

async fn print(rules: usize, way: &str, settings: &str) -> anyhow::Result<()> {
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/dist/allowlist.wasm");
    ensure!(wasm.exists(), "{} is not there: run `make plugins`", wasm.display());
    let folder = tempfile::tempdir()?;
    let blocked: Vec<String> = (0..rules).map(|number| format!("\"docker.io/library/blocked-{number}\"")).collect();
    let config = folder.path().join("allowlist.toml");
    std::fs::write(&config, format!("block = [{}]", blocked.join(", ")))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
    let files = Files { wasm, config: vec![config], settings: Some(settings.to_owned()), program, state_dir: None };
    let alone = Alone::load(files).await.map_err(anyhow::Error::msg)?;
    let (set, question) = (alone.set(), question());
    ensure!(set.admit(&question).await == Admission::Allow, "the pull must be allowed");
    for cost in measure(&set, &question).await {
        let way = if cost.remembered { "remembered" } else { way };
        println!(
            "admission by allowlist ({rules} rules), {way}, {} calls: median {:.2} us, 99 % {:.2} us",
            cost.calls,
            cost.median.as_secs_f64() * 1e6,
            cost.p99.as_secs_f64() * 1e6
        );
    }
    Ok(())
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
    let lookups = Arc::new(Given::default());
    Question { asked: pull.into(), facts: Arc::new(facts), lookups, image: None, dry_run: false }
}
