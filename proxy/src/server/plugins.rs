//! The admin listener's part of the plugins: which are in effect, how they fare, and which files are not loaded.

use std::time::{Duration, SystemTime};

use hyper::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::body::Body;
use crate::plugin::{Plugins, Refused, View};

/// The answer of `/plugins`.
#[derive(Serialize, Deserialize, Debug)]
pub struct PluginList {
    /// Counts up at each change.
    pub generation: u64,
    /// Those in effect, in the order in which they are asked.
    pub plugins: Vec<InEffect>,
    /// Those that their settings switch off.
    #[serde(default)]
    pub off: Vec<Off>,
    /// Files that are not loaded.
    pub refused: Vec<NotLoaded>,
}

/// A plugin that its settings switch off.
#[derive(Serialize, Deserialize, Debug)]
pub struct Off {
    /// Its name.
    pub name: String,
    /// `10-allowlist.wasm`
    pub file: String,
    /// Of that file.
    pub digest: String,
}

/// A plugin in effect.
#[derive(Serialize, Deserialize, Debug)]
pub struct InEffect {
    /// Its name.
    pub name: String,
    /// `10-allowlist.wasm`
    pub file: String,
    /// Of the file that it was loaded from.
    pub digest: String,
    /// Version of the interface.
    pub interface: String,
    /// Which hooks it has.
    pub hooks: Vec<String>,
    /// `enforce` or `shadow`.
    pub mode: String,
    /// `pooled` or `fresh`.
    pub isolation: String,
    /// How long a call may take.
    pub deadline_ms: u64,
    /// What an instance may have.
    pub memory_bytes: u64,
    /// When this version was loaded: RFC 3339.
    pub loaded: String,
    /// Calls of this version.
    pub calls: u64,
    /// Those without an answer.
    pub failures: u64,
    /// What a call takes on average. Units: microseconds.
    pub mean_us: f64,
    /// The last failure.
    pub last_error: Option<Failed>,
    /// Whether its `on_error` answer stands for it until it is replaced.
    pub given_up: bool,
}

/// A failure of a plugin.
#[derive(Serialize, Deserialize, Debug)]
pub struct Failed {
    /// When: RFC 3339.
    pub time: String,
    /// Why.
    pub reason: String,
}

/// A file that is not loaded.
#[derive(Serialize, Deserialize, Debug)]
pub struct NotLoaded {
    /// `10-allowlist.wasm`
    pub file: String,
    /// Of which plugin, as far as that is known.
    pub plugin: String,
    /// Why.
    pub reason: String,
    /// Since when: RFC 3339.
    pub since: String,
}

/// Answers `/plugins`.
pub(super) fn plugins(plugins: &Plugins) -> Response<Body> {
    let set = plugins.current();
    let list = PluginList {
        generation: set.generation(),
        plugins: set.views().into_iter().map(in_effect).collect(),
        off: set.off().into_iter().map(|(name, file, digest)| Off { name, file, digest: digest.to_string() }).collect(),
        refused: plugins.refused().into_iter().map(not_loaded).collect(),
    };
    let mut response = Response::new(Body::bytes(serde_json::to_vec(&list).expect("texts and numbers serialize")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn in_effect(view: View) -> InEffect {
    let mean = view.busy / u32::try_from(view.calls).unwrap_or(u32::MAX).max(1);
    InEffect {
        name: view.name,
        file: view.file,
        digest: view.digest.to_string(),
        interface: view.interface,
        hooks: view.hooks.into_iter().map(str::to_owned).collect(),
        mode: view.mode.as_str().to_owned(),
        isolation: view.isolation.to_owned(),
        deadline_ms: ms(view.deadline),
        memory_bytes: view.memory_bytes as u64,
        loaded: time(view.loaded),
        calls: view.calls,
        failures: view.failures,
        mean_us: mean.as_secs_f64() * 1e6,
        last_error: view.last_error.map(|(at, reason)| Failed { time: time(at), reason }),
        given_up: view.given_up,
    }
}

fn not_loaded(refused: Refused) -> NotLoaded {
    let Refused { file, plugin, reason, since } = refused;
    NotLoaded { file, plugin, reason, since: time(since) }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
