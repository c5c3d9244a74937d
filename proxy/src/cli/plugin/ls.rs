//! `tidegate plugin ls`: the plugins of the running proxy, how they fare, and what of the folder is not loaded.

use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;

use super::check::time;
use crate::cli::ask::{ask, no_proxy};
use crate::config::Config;
use crate::server::{InEffect, Off, PluginList};

/// How long the running proxy may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a digest, as much as tells files apart: the algorithm and 12 digits.
const DIGEST_LENGTH: usize = 19;

pub(in crate::cli) async fn ls(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let Some(list) = ask::<PluginList>(config, Method::GET, "/plugins", ASK_TIMEOUT).await? else {
        return Ok(no_proxy(config));
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    if list.plugins.is_empty() {
        println!("no plugins are in effect");
    }
    for plugin in &list.plugins {
        print(plugin);
    }
    for Off { name, file, digest } in &list.off {
        println!("{name}  {file}  {}  switched off by its settings", digest.get(..DIGEST_LENGTH).unwrap_or(digest));
    }
    for refused in &list.refused {
        println!("{}  not loaded since {}: {}", refused.file, refused.since, refused.reason);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(plugin: &InEffect) {
    let InEffect { name, file, digest, interface, hooks, mode, isolation, loaded, .. } = plugin;
    let digest = digest.get(..DIGEST_LENGTH).unwrap_or(digest);
    println!("{name}  {file}  {digest}  {mode}, {isolation}");
    println!("    {} of interface {interface}, loaded {loaded}", hooks.join(", "));
    let mean = time(Duration::from_secs_f64(plugin.mean_us / 1e6));
    println!("    {} calls, {mean} each, {} failed", plugin.calls, plugin.failures);
    if let Some(error) = &plugin.last_error {
        println!("    last error {}: {}", error.time, error.reason);
    }
    if plugin.given_up {
        println!(
            "    given up: it failed too often in a row, and its on_error answer stands for it until it is replaced"
        );
    }
}
