//! How the plugins in effect fare, for the operator.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use super::folder::Version;
use super::instance::Plugin;
use super::set::PluginSet;
use super::settings::{Isolation, Mode};
use crate::oci::Digest;

/// One plugin in effect.
#[derive(Clone, Debug)]
pub struct View {
    /// Its name.
    pub name: String,
    /// `10-allowlist.wasm`
    pub file: String,
    /// Of the file.
    pub digest: Digest,
    /// Version of the interface that it was built for.
    pub interface: String,
    /// The hooks that it has.
    pub hooks: Vec<&'static str>,
    /// Whether what it decides holds.
    pub mode: Mode,
    /// `pooled` or `fresh`.
    pub isolation: &'static str,
    /// How long a call may take.
    pub deadline: Duration,
    /// What an instance may have. Units: bytes.
    pub memory_bytes: usize,
    /// When this version was loaded.
    pub loaded: SystemTime,
    /// Calls of this version.
    pub calls: u64,
    /// Those without an answer.
    pub failures: u64,
    /// The time of all calls together.
    pub busy: Duration,
    /// The last failure, and when it was.
    pub last_error: Option<(SystemTime, String)>,
    /// Whether its `on_error` answer stands for it.
    pub given_up: bool,
}

impl PluginSet {
    /// How the plugins fare, in the order of their files.
    pub fn views(&self) -> Vec<View> {
        self.plugins.iter().map(|plugin| plugin.view()).collect()
    }

    /// Name, file and digest of the plugins that are switched off, in the order of their files.
    pub fn off(&self) -> Vec<(String, String, Digest)> {
        let about =
            |version: &Arc<Version>| (version.name.clone(), version.file.clone(), Digest::sha256_of(&version.wasm));
        self.off.iter().map(about).collect()
    }
}

impl Plugin {
    fn view(&self) -> View {
        let life = &self.life;
        View {
            name: self.version.name.clone(),
            file: self.version.file.clone(),
            digest: Digest::sha256_of(&self.version.wasm),
            interface: self.hooks.interface.clone(),
            hooks: self.hooks.names(),
            mode: self.settings.mode,
            isolation: match self.settings.isolation {
                Isolation::Pooled => "pooled",
                Isolation::Fresh => "fresh",
            },
            deadline: self.settings.deadline,
            memory_bytes: self.settings.memory_bytes,
            loaded: life.loaded,
            calls: life.calls.load(Ordering::Relaxed),
            failures: life.failures.load(Ordering::Relaxed),
            busy: Duration::from_nanos(life.busy.load(Ordering::Relaxed)),
            last_error: life.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            given_up: life.has_given_up(),
        }
    }
}
