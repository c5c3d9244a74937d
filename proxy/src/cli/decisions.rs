//! `tidegate decisions`: what the running proxy decided last, and why.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use url::form_urlencoded;

use super::ask::{ask, no_proxy};
use crate::config::Config;
use crate::record::Line;

/// How long the running proxy may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Which decisions.
#[derive(clap::Args)]
pub(super) struct Decisions {
    /// Of this image, repository or digest only, such as docker.io/library/alpine:3.20
    image: Option<String>,
    /// Of requests that this plugin decided about only
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Denials only
    #[arg(long)]
    denied: bool,
    /// So many at the most
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// As JSON, one line a request, as in the decision record
    #[arg(long)]
    json: bool,
}

pub(super) async fn decisions(config: Arc<Config>, wanted: &Decisions) -> anyhow::Result<ExitCode> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &wanted.limit.to_string());
    query.extend_pairs(wanted.image.iter().map(|image| ("image", image)));
    query.extend_pairs(wanted.plugin.iter().map(|plugin| ("plugin", plugin)));
    query.extend_pairs(wanted.denied.then_some(("decision", "deny")));
    let target = format!("/decisions?{}", query.finish());
    let Some(lines) = ask::<Vec<Line>>(&config, Method::GET, &target, ASK_TIMEOUT).await? else {
        return Ok(no_proxy(&config));
    };
    // The latest stands last, as in a log.
    for line in lines.iter().rev() {
        if wanted.json {
            println!("{}", serde_json::to_string(line)?);
        } else {
            print(line);
        }
    }
    if lines.is_empty() && !wanted.json {
        println!("the running proxy remembers no such request");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(line: &Line) {
    let who = line.identity.as_ref().map_or(line.client.to_string(), |identity| identity.subject.clone());
    let from = line.source.as_ref().map_or(String::new(), |source| format!(" from {source}"));
    println!("{}  {who}  {} {}  {}{from}, {} ms", line.time, line.method, line.image(), line.status, line.elapsed_ms);
    print_decisions(line);
    for tried in &line.upstreams {
        println!(
            "    {}/{}  {}, {} ms, {} bytes",
            tried.registry, tried.repository, tried.outcome, tried.ms, tried.bytes
        );
    }
    if let Some(reason) = &line.reason {
        println!("    refused: {reason}");
    }
    if let Some(broken) = &line.broken {
        println!("    broken: {broken}");
    }
}

/// What each plugin said.
pub(super) fn print_decisions(line: &Line) {
    let width = line.decisions.iter().map(|decided| decided.plugin.len()).max().unwrap_or_default();
    for decided in &line.decisions {
        let mode = if decided.mode == "enforce" { String::new() } else { format!(" ({})", decided.mode) };
        let detail = decided.detail.as_ref().map_or(String::new(), |detail| format!(": {detail}"));
        let places: Vec<String> = decided.candidates.iter().flatten().map(ToString::to_string).collect();
        let detail = if places.is_empty() { detail } else { format!(" {}", places.join(", then ")) };
        let failed = decided.failed.as_ref().map_or(String::new(), |failed| format!(" (it gave no answer: {failed})"));
        println!("    {:width$}  {:10}  {}{mode}{detail}{failed}", decided.plugin, decided.hook, decided.ruling);
    }
}
