//! Keeps the plugin set equal to the folder: what changes there takes effect when it is whole and good, and what is
//! bad is reported while the version before goes on serving.
//!
//! A file counts as whole when its writer has closed it, or, where that cannot be seen, when two readings of its
//! fingerprint a while apart are equal.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, Keeping};
use super::folder::{self, Found, Listing, Version};
use super::instance::Plugin;
use super::last_good::LastGood;
use super::lock::{LOCK, Lock};
use super::set::PluginSet;
use super::settings::{Mode, Settings};
use super::state::States;
use super::waiting::{Refused, Waiting};
use super::watch::{Ear, SETTLE, Sightings, watch};
use crate::config::{OnLoadError, Plugins as Config};
use crate::metrics::{self, Metrics, PluginLoad};

/// Changes that never end are looked at after so long all the same.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// For how long a file may be gone, or empty, before that is meant.
const GONE: Duration = Duration::from_secs(2);
/// How often the folder is looked at when nothing is heard: file systems that tell nothing are read so.
const POLL: Duration = Duration::from_secs(2);
/// The lock file among what is missing; no plugin has an `@` in its name.
const LOCK_GONE: &str = "@lock";
/// How often the plugins' state is written.
const FLUSH: Duration = Duration::from_secs(1);

/// The plugins of a running program: the set in effect, and what keeps it so.
pub struct Plugins {
    current: Arc<ArcSwap<PluginSet>>,
    states: Arc<States>,
    waiting: Arc<Waiting>,
}

/// A plugin that cannot be loaded at start, and of which no good version is kept.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine cannot be made.
    #[error("plugins cannot run here: {0}")]
    Engine(String),
    /// The folder cannot be read.
    #[error("the plugin folder {} cannot be read: {source}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Plugins are bad.
    #[error("{}", .0.join("\n"))]
    Bad(Vec<String>),
}

impl Plugins {
    /// No plugins.
    pub fn none() -> Self {
        Self { current: Arc::default(), states: Arc::new(States::new(None)), waiting: Arc::default() }
    }

    /// Loads the plugins of the configuration's folder without watching it, and without keeping anything.
    ///
    /// # Errors
    /// All plugins that are bad.
    pub async fn load(config: &Config, program: PathBuf, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        let Some(dir) = &config.dir else { return Ok(Self::none()) };
        let engine = Engine::new(program, &Keeping::ReadOnly(&config.state_dir));
        let mut loader = Loader::new(dir, States::new(None), None, engine, metrics)?;
        loader.start(OnLoadError::Refuse).await?;
        Ok(Self { current: loader.current, states: loader.states, waiting: loader.waiting })
    }

    /// Loads the plugins and keeps them equal to the folder until `stop`; the task ends then.
    ///
    /// # Errors
    /// A plugin that cannot be loaded, unless the configuration lets it be skipped.
    pub async fn watch(
        config: &Config,
        program: PathBuf,
        metrics: &Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(Self, Option<impl Future<Output = ()> + use<>>), StartError> {
        let Some(dir) = &config.dir else { return Ok((Self::none(), None)) };
        let states = States::new(Some(config.state_dir.join("plugin-state")));
        let last_good = LastGood::new(&config.state_dir, dir);
        let engine = Engine::new(program, &Keeping::Full(&config.state_dir));
        let mut loader = Loader::new(dir, states, Some(last_good), engine, metrics)?;
        // Watched before it is read, so that no change is missed.
        let ear = watch(dir);
        loader.start(config.on_load_error).await?;
        let (current, states, waiting) = (loader.current.clone(), loader.states.clone(), loader.waiting.clone());
        let plugins = Self { current, states, waiting };
        Ok((plugins, Some(loader.run(ear, stop))))
    }

    /// Loads the plugins of a folder to replay what others decided: they know the time that they are told, and what a
    /// folder of states says that they remember. Nothing is written.
    pub(super) async fn replay(
        dir: &Path,
        states: States,
        program: PathBuf,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let engine = Engine::new(program, &Keeping::Nothing);
        let mut loader = Loader::new(dir, states, None, engine, metrics)?;
        loader.start(OnLoadError::Refuse).await?;
        Ok(Self { current: loader.current, states: loader.states, waiting: loader.waiting })
    }

    /// The set in effect now. A request takes it once.
    pub fn current(&self) -> Arc<PluginSet> {
        self.current.load_full()
    }

    /// Which set is in effect, and whether any of its plugins decides by who asks.
    pub fn at_a_glance(&self) -> (u64, bool) {
        let set = self.current.load();
        (set.generation(), set.asks_who())
    }

    /// Files of the folder that are not loaded.
    pub fn refused(&self) -> Vec<Refused> {
        self.waiting.all()
    }

    /// Writes the plugins' state. Blocks.
    pub fn flush(&self) {
        self.states.flush();
    }
}

pub(super) struct Loader {
    pub(super) dir: PathBuf,
    engine: Arc<Engine>,
    states: Arc<States>,
    pub(super) last_good: Option<LastGood>,
    metrics: Arc<Metrics>,
    current: Arc<ArcSwap<PluginSet>>,
    pub(super) sightings: Sightings,
    /// What the folder may hold; none: anything.
    pub(super) lock: Option<Lock>,
    /// Which files of a plugin were read when it was found to be as it is in effect, and when.
    unchanged: HashMap<String, (Vec<PathBuf>, Instant)>,
    /// Since when a plugin in effect has no file any more, or misses one that it has.
    missing: HashMap<String, Instant>,
    /// Versions that were refused, so that they are reported once.
    refused: HashMap<String, Version>,
    waiting: Arc<Waiting>,
    reported: HashSet<String>,
    /// What is wrong as of this look; what is wrong no more is forgotten, and told again if it comes back.
    still_wrong: HashSet<String>,
}

/// What is to be done with one plugin of the folder.
enum Intent {
    /// The version in effect stays.
    Keep,
    /// It is not clear yet: the version in effect stays, and the folder is looked at again.
    Hold,
    /// This version is new.
    Load(Box<Version>),
    /// It cannot even be read.
    Refuse(String),
}

/// A version that is in effect.
#[derive(Clone)]
pub(super) enum Loaded {
    On(Arc<Plugin>),
    /// Its settings say `mode = "off"`: its code is not even compiled.
    Off(Arc<Version>),
}

impl Loaded {
    fn version(&self) -> &Version {
        match self {
            Self::On(plugin) => &plugin.version,
            Self::Off(version) => version,
        }
    }

    fn plugin(&self) -> Option<&Plugin> {
        match self {
            Self::On(plugin) => Some(plugin),
            Self::Off(_) => None,
        }
    }

    fn all_of(set: &PluginSet) -> Vec<Self> {
        set.plugins.iter().cloned().map(Self::On).chain(set.off.iter().cloned().map(Self::Off)).collect()
    }
}

impl Loader {
    fn new(
        dir: &Path,
        states: States,
        last_good: Option<LastGood>,
        engine: wasmtime::Result<Engine>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let engine = engine.map_err(|err| StartError::Engine(format!("{err:#}")))?;
        Ok(Self {
            dir: dir.to_owned(),
            engine: Arc::new(engine),
            states: Arc::new(states),
            last_good,
            metrics: metrics.clone(),
            current: Arc::default(),
            sightings: Sightings::default(),
            lock: None,
            unchanged: HashMap::new(),
            missing: HashMap::new(),
            refused: HashMap::new(),
            waiting: Arc::default(),
            reported: HashSet::new(),
            still_wrong: HashSet::new(),
        })
    }

    async fn run(self, ear: Ear, stop: CancellationToken) {
        // Beside each other: a compilation may take minutes.
        let states = self.states.clone();
        tokio::join!(self.watch(ear, &stop), flush(states, &stop));
    }

    async fn watch(mut self, mut ear: Ear, stop: &CancellationToken) {
        let mut first_change: Option<Instant> = None;
        let mut wake = Instant::now() + POLL;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                heard = ear.listen() => {
                    self.sightings.hear(heard);
                    while let Some(heard) = ear.listen_again() {
                        self.sightings.hear(heard);
                    }
                    let now = Instant::now();
                    // Fingerprints are taken now, so that an equal one at the end of the wait is the second reading.
                    if let Ok(listing) = folder::list(&self.dir) {
                        self.sightings.look(&listing, now);
                    }
                    let first = *first_change.get_or_insert(now);
                    wake = (now + SETTLE).min(first + SETTLE_MAX).max(now);
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    first_change = None;
                    let Some(again) = stop.run_until_cancelled(self.refresh()).await else { return };
                    wake = Instant::now() + again.unwrap_or(POLL).min(POLL);
                }
            }
        }
    }

    /// Reads the folder and puts what is new and whole into effect. Gives when to look again, where that is known.
    async fn refresh(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let listing = match folder::list(&self.dir) {
            Ok(listing) => listing,
            Err(err) => {
                // A folder that is gone is no order to drop the policy.
                if self.report_once(err.to_string()) {
                    let folder = self.dir.display();
                    tracing::error!(%folder, error = err.to_string(), "the plugin folder cannot be read: the plugins in effect stay");
                }
                self.end_reports();
                return None;
            }
        };
        let mut again = self.sightings.look(&listing, now);
        if let Err(wait) = self.take_lock(&listing, now) {
            self.end_reports();
            return Some(sooner(again, wait));
        }
        let before = Loaded::all_of(&self.current.load());
        let mut changed = false;
        let mut plugins: Vec<Loaded> = Vec::new();
        for found in &listing.found {
            let live = before.iter().find(|live| live.version().name == found.name);
            let plugin = match self.intend(found, live.map(Loaded::version), now).await {
                Intent::Keep => None,
                Intent::Hold => {
                    again = Some(sooner(again, SETTLE));
                    None
                }
                Intent::Load(version) => self.load(*version, live.and_then(Loaded::plugin)).await.ok(),
                Intent::Refuse(reason) => {
                    self.report_once(reason.clone()).then(|| self.refuse(&found.name, &found.file, reason));
                    None
                }
            };
            changed |= plugin.is_some();
            plugins.extend(plugin.or_else(|| live.cloned()));
        }
        for problem in &listing.problems {
            if self.report_once(format!("{}: {}", problem.file, problem.reason)) {
                self.refuse(problem.name.as_deref().unwrap_or(&problem.file), &problem.file, problem.reason.clone());
            }
        }
        for live in &before {
            let name = &live.version().name;
            if plugins.iter().any(|plugin| &plugin.version().name == name) {
                continue;
            }
            let in_doubt = listing.problems.iter().any(|problem| problem.name.as_ref() == Some(name));
            let gone_for = now - *self.missing.entry(name.clone()).or_insert(now);
            if gone_for < GONE {
                again = Some(sooner(again, GONE.saturating_sub(gone_for)));
            }
            if in_doubt || gone_for < GONE {
                plugins.push(live.clone());
            } else {
                self.forget(name).await;
                changed = true;
            }
        }
        self.report_strays(&listing);
        self.end_reports();
        self.refused.retain(|name, version| {
            let there = listing.found.iter().any(|found| &found.name == name);
            if !there {
                tracing::info!(plugin = name, file = version.file, "the file that was not loaded is gone");
            }
            there
        });
        let (loading, told) = (&self.refused, &self.reported);
        self.waiting.keep(|Refused { plugin, file, reason, .. }| {
            loading.contains_key(plugin) || told.contains(reason) || told.contains(&format!("{file}: {reason}"))
        });
        if changed {
            self.swap(plugins);
        }
        again
    }

    pub(super) fn end_reports(&mut self) {
        self.reported = std::mem::take(&mut self.still_wrong);
    }

    /// Reads the lock file as it is now.
    ///
    /// # Errors
    /// It cannot be used, and nothing new is loaded: when to look again.
    fn take_lock(&mut self, listing: &Listing, now: Instant) -> Result<(), Duration> {
        let path = self.dir.join(LOCK);
        let read = match &listing.lock {
            Some(path) if !self.sightings.is_settled(path, now) => return Err(SETTLE),
            Some(path) => Lock::read(path).map(Some),
            None if self.lock.is_some() => {
                // Gone for a moment is how many programs replace a file.
                let since = *self.missing.entry(LOCK_GONE.to_owned()).or_insert(now);
                if now - since < GONE {
                    return Err(GONE.saturating_sub(now - since));
                }
                tracing::warn!(file = %path.display(), "the lock file is gone: any plugin is loaded from now on");
                Ok(None)
            }
            None => Ok(None),
        };
        self.missing.remove(LOCK_GONE);
        match read {
            Ok(lock) => {
                let absent: Vec<_> =
                    lock.iter().flat_map(|lock| lock.absent(&listing.found)).map(str::to_owned).collect();
                for file in absent {
                    if self.report_once(format!("absent {file}")) {
                        tracing::warn!(file, "the lock file lists a plugin that is not there");
                    }
                }
                self.lock = lock;
                Ok(())
            }
            Err(reason) => {
                if self.report_once(reason.clone()) {
                    tracing::error!(
                        reason,
                        "the lock file cannot be used: nothing new is loaded, the plugins in effect stay"
                    );
                }
                Err(POLL)
            }
        }
    }

    pub(super) fn check_lock(&self, found: &Found, version: &Version) -> Result<(), String> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check(&self.dir, found, version))
    }

    /// What the files of one plugin mean now.
    async fn intend(&mut self, found: &Found, live: Option<&Version>, now: Instant) -> Intent {
        if !self.sightings.are_settled(found, now) {
            return Intent::Hold;
        }
        // Gone or empty for a moment is how many programs replace a file.
        let lacks = live.is_some_and(|live| {
            // Under another number all its files have other names.
            let renamed = live.file != found.file;
            let gone = |name: &String| !found.config.contains_key(name);
            (renamed && live.config.len() > found.config.len())
                || (!renamed && live.config.iter().any(|file| gone(&file.name)))
                || (live.settings.is_some() && found.settings.is_none())
        });
        if lacks {
            let since = *self.missing.entry(found.name.clone()).or_insert(now);
            if now - since < GONE {
                return Intent::Hold;
            }
        } else {
            self.missing.remove(&found.name);
        }
        if self.sightings.has_just_emptied(found, now, GONE) {
            return Intent::Hold;
        }
        let mut files: Vec<PathBuf> = found.paths().cloned().collect();
        files.extend(self.lock.is_some().then(|| self.dir.join(LOCK)));
        if let Some((read, when)) = self.unchanged.get(&found.name)
            && *read == files
            && self.sightings.rest_since(read, *when)
        {
            return Intent::Keep;
        }
        // What was found so before is not what is in effect once another version has been: it is read anew.
        self.unchanged.remove(&found.name);
        let reading = found.clone();
        let version = match tokio::task::spawn_blocking(move || reading.read()).await {
            Ok(Ok(version)) => version,
            Ok(Err(reason)) => return Intent::Refuse(reason),
            Err(err) => return Intent::Refuse(err.to_string()),
        };
        // Read while it changed: what was read is neither the one nor the other.
        if !self.sightings.still_hold(found) {
            return Intent::Hold;
        }
        if let Err(reason) = self.check_lock(found, &version) {
            return Intent::Refuse(reason);
        }
        if live.is_some_and(|live| live.same(&version)) {
            self.unchanged.insert(found.name.clone(), (files, now));
            if self.refused.remove(&found.name).is_some() {
                tracing::info!(plugin = found.name, file = found.file, "the file is again the version in effect");
            }
            return Intent::Keep;
        }
        if self.refused.get(&found.name).is_some_and(|refused| refused.same(&version)) {
            return Intent::Keep;
        }
        Intent::Load(Box::new(version))
    }

    pub(super) async fn load(&mut self, version: Version, before: Option<&Plugin>) -> Result<Loaded, String> {
        let (name, file) = (version.name.clone(), version.file.clone());
        let started = Instant::now();
        match self.make(version.clone(), before).await {
            Ok(loaded) => {
                self.refused.remove(&name);
                self.metrics.plugin_loads.get_or_create(&PluginLoad { plugin: name.clone(), outcome: "ok" }).inc();
                let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                match loaded.plugin() {
                    Some(plugin) => {
                        let hooks = plugin.hooks.names().join(",");
                        tracing::info!(plugin = name, file, hooks, elapsed_ms, "plugin loaded");
                    }
                    None => {
                        tracing::warn!(plugin = name, file, "plugin switched off by its settings: it decides nothing");
                    }
                }
                self.keep(version).await;
                Ok(loaded)
            }
            Err(reason) => {
                self.refused.insert(name.clone(), version);
                Err(self.refuse(&name, &file, reason))
            }
        }
    }

    /// Makes of a version what its settings say.
    pub(super) async fn make(&self, version: Version, before: Option<&Plugin>) -> Result<Loaded, String> {
        if Settings::parse(version.settings.as_ref())?.mode == Mode::Off {
            return Ok(Loaded::Off(Arc::new(version)));
        }
        let plugin = Plugin::load(version, before, &self.engine, &self.states, &self.metrics).await?;
        Ok(Loaded::On(Arc::new(plugin)))
    }

    /// Reports a version that is not loaded; gives its reason back.
    pub(super) fn refuse(&self, plugin: &str, file: &str, reason: String) -> String {
        self.metrics.plugin_loads.get_or_create(&PluginLoad { plugin: plugin.to_owned(), outcome: "failed" }).inc();
        self.waiting.add(plugin, file, &reason);
        let serves = self.current.load().names().any(|name| name == plugin);
        let in_effect = if serves { "the version before" } else { "none of this name" };
        tracing::error!(plugin, file = %self.dir.join(file).display(), reason, in_effect, "plugin not loaded");
        reason
    }

    async fn keep(&self, version: Version) {
        let Some(last_good) = self.last_good.clone() else { return };
        let plugin = version.name.clone();
        let kept = tokio::task::spawn_blocking(move || last_good.put(&version)).await;
        if let Err(err) = kept.map_err(std::io::Error::other).and_then(|kept| kept) {
            tracing::warn!(
                plugin,
                error = err.to_string(),
                "the last good version cannot be kept; a start with a bad file would fail"
            );
        }
    }

    async fn forget(&mut self, name: &str) {
        tracing::info!(plugin = name, "plugin removed");
        self.missing.remove(name);
        self.unchanged.remove(name);
        self.refused.remove(name);
        // What it last said of itself holds no more.
        self.metrics.plugin_series.forget(name);
        self.metrics.plugin_given_up.remove(&metrics::Plugin { plugin: name.to_owned() });
        if let Some(last_good) = self.last_good.clone() {
            let name = name.to_owned();
            let _ = tokio::task::spawn_blocking(move || last_good.remove(&name)).await;
        }
    }

    /// Puts a set into effect, in the order of the files.
    pub(super) fn swap(&mut self, mut loaded: Vec<Loaded>) {
        loaded.sort_by(|one, other| one.version().file.cmp(&other.version().file));
        let generation = self.current.load().generation + 1;
        let mut set = PluginSet { generation, ..PluginSet::default() };
        for one in loaded {
            match one {
                Loaded::On(plugin) => set.plugins.push(plugin),
                Loaded::Off(version) => set.off.push(version),
            }
        }
        let names = set.names().collect::<Vec<_>>().join(",");
        self.metrics.plugin_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.current.store(Arc::new(set));
        tracing::info!(generation, plugins = names, "plugins in effect");
    }

    pub(super) fn report_strays(&mut self, listing: &Listing) {
        for stray in &listing.strays {
            if self.report_once(format!("stray {stray}")) {
                tracing::warn!(file = %self.dir.join(stray).display(), "a file of the plugin folder belongs to no plugin: a configuration has the stem of its .wasm");
            }
        }
    }

    /// Whether this was not told yet.
    pub(super) fn report_once(&mut self, text: String) -> bool {
        self.still_wrong.insert(text.clone());
        self.reported.insert(text)
    }
}

/// The earlier of two times to look again.
fn sooner(again: Option<Duration>, wait: Duration) -> Duration {
    again.map_or(wait, |again| again.min(wait))
}

/// Writes what plugins remember to the disk, again and again.
async fn flush(states: Arc<States>, stop: &CancellationToken) {
    let mut due = tokio::time::interval(FLUSH);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(due.tick()).await.is_some() {
        let states = states.clone();
        let _ = tokio::task::spawn_blocking(move || states.flush_due()).await;
    }
}
