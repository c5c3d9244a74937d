//! Plugins that decide about what is past: at the time that it was then.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::reload::{Plugins, StartError};
use super::set::PluginSet;
use super::state::{Clock, States};
use crate::metrics::Metrics;

/// The plugins of a folder, at a time that is told.
pub struct Replaying {
    set: Arc<PluginSet>,
    clock: Clock,
}

impl Replaying {
    /// Loads them. `state`: what they remember at the beginning; it is only read. None: nothing.
    ///
    /// # Errors
    /// All plugins that are bad.
    pub async fn load(
        dir: &Path,
        state: Option<&Path>,
        program: PathBuf,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let clock = Clock::standing();
        let states = States::new(state.map(Path::to_owned)).with_clock(clock.clone());
        let plugins = Plugins::replay(dir, states, program, metrics).await?;
        Ok(Self { set: plugins.current(), clock })
    }

    /// The plugins.
    pub fn set(&self) -> Arc<PluginSet> {
        self.set.clone()
    }

    /// Sets the time that it is for them.
    pub fn set_time(&self, time: SystemTime) {
        self.clock.set(time);
    }
}
