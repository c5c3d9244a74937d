//! `tidegate explain IMAGE`: asks the running proxy what its policy decides, else a fresh set of plugins.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;

use super::ask::ask;
use super::{EXIT_BAD_INPUT, OWN_PROGRAM};
use crate::cache::Cache;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::plugin::Plugins;
use crate::pull::{Core, Live};
use crate::server::{self, Explanation, Supposed};
use crate::upstream::Upstreams;

/// How long the running proxy may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn explain(
    config: Arc<Config>,
    image: &str,
    supposed: Supposed,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let pull = match server::parse_image(image, &config.default_registry) {
        Ok(pull) => pull,
        Err(reason) => {
            eprintln!("tidegate: {reason}");
            return Ok(ExitCode::from(EXIT_BAD_INPUT));
        }
    };
    let query = supposed.query(image);
    let asked = ask::<Explanation>(&config, Method::GET, &format!("/explain?{query}"), ASK_TIMEOUT).await?;
    let (explanation, who) = if let Some(explanation) = asked {
        (explanation, "the running proxy")
    } else {
        let metrics = Arc::new(Metrics::default());
        let plugins = match Plugins::load(&config.plugins, PathBuf::from(OWN_PROGRAM), &metrics).await {
            Ok(plugins) => plugins,
            Err(err) => {
                eprintln!("tidegate: {err}");
                return Ok(ExitCode::from(EXIT_BAD_INPUT));
            }
        };
        let cache = Cache::open_to_read(&config.cache.dir, metrics.clone());
        let upstreams = Upstreams::new(config.clone(), metrics.clone());
        let core = Arc::new(Core::new(Live { config, upstreams }, plugins, cache, metrics));
        (server::explain(&core, pull, supposed).await, "a fresh set of plugins, with empty state (no proxy answers)")
    };
    if json {
        println!("{}", serde_json::to_string(&explanation.line)?);
    } else {
        print(&explanation, who);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(explanation: &Explanation, who: &str) {
    println!("{}  (asked: {who})", explanation.image);
    if explanation.decisions.is_empty() {
        println!("  no plugin decides");
    }
    let width = explanation.decisions.iter().map(|decision| decision.plugin.len()).max().unwrap_or_default();
    for decision in &explanation.decisions {
        println!("  {:width$}  {:9}  {}", decision.plugin, decision.hook, decision.decides);
    }
    match &explanation.upstreams {
        None => println!("denied: no upstream would be tried"),
        Some(upstreams) if upstreams.is_empty() => println!("no upstream would be tried: only the cache may serve"),
        Some(upstreams) => {
            if upstreams.iter().all(|upstream| upstream.address.is_none()) {
                println!("refused with 404: this mirror serves none of its upstreams");
            }
            println!("upstreams, in order:");
            for (at, upstream) in upstreams.iter().enumerate() {
                match &upstream.address {
                    Some(address) => println!("  {}. {}  ({address})", at + 1, upstream.place),
                    None => {
                        println!(
                            "  {}. {}  (skipped: to reach it, add to tidegate.toml the line [registries.\"{}\"])",
                            at + 1,
                            upstream.place,
                            upstream.registry
                        );
                    }
                }
            }
        }
    }
}
