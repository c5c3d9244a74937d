//! One plugin by itself: loaded from a file as the proxy would load it, outside a proxy and its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::compile::{self, Awaited};
use super::engine::{Engine, Keeping};
use super::folder::{Found, list_folder, plugin_name};
use super::guest::ConfigFile;
use super::instance::{CheckError, Plugin};
use super::set::PluginSet;
use super::state::{Clock, Refused, State, States};
use crate::metrics::Metrics;

/// Instances that are made to learn what one costs.
const STARTS: usize = 20;

/// What belongs to one plugin, and who compiles it.
pub struct Files {
    /// `allowlist.wasm`; its name is the plugin's, with or without a number before it.
    pub wasm: PathBuf,
    /// Files that it gets as its configuration; of a folder, the files in it.
    pub config: Vec<PathBuf>,
    /// Settings of the host, as text.
    pub settings: Option<String>,
    /// This program's executable.
    pub program: PathBuf,
    /// The state folder that compiled code is kept for; none: it is compiled anew, whatever is kept.
    pub state_dir: Option<PathBuf>,
}

/// A plugin that was loaded by itself.
pub struct Alone {
    /// What was seen of it.
    pub about: About,
    plugin: Arc<Plugin>,
    state: Arc<State>,
    clock: Clock,
}

/// What is known of a plugin without asking it to decide.
#[derive(Clone, Debug)]
pub struct About {
    /// Its name: the file's, without its number.
    pub name: String,
    /// Hooks that it exports, `lifecycle` included.
    pub hooks: Vec<String>,
    /// The interface that it was built for: `tidegate:policy@0.1.0`.
    pub interface: String,
    /// Interfaces that it imports, in full.
    pub imports: Vec<String>,
    /// Units: bytes.
    pub size: usize,
    /// What it took to compile, or to read what was compiled before.
    pub compiling: Duration,
    /// What the first instance took, its configuration read.
    pub first_start: Duration,
    /// The same of a later one, at the median; none where it cannot be started.
    pub start: Option<Duration>,
    /// Whether it accepts its configuration; else why not.
    pub accepts: Result<(), String>,
}

impl Alone {
    /// Loads a plugin: reads, compiles and starts it, and asks it whether it accepts its configuration. That it does
    /// not is no error here.
    ///
    /// # Errors
    /// A text for people: what the proxy would refuse, whatever the configuration.
    pub async fn load(files: Files) -> Result<Self, String> {
        let Files { wasm, config, settings, program, state_dir } = files;
        let mut version = find(&wasm, &config)?.read()?;
        version.settings = settings.map(|text| ConfigFile { name: "settings".to_owned(), text });
        let keeping = state_dir.as_deref().map_or(Keeping::Nothing, Keeping::Full);
        let engine = Engine::new(program, &keeping).map_err(|err| format!("plugins cannot run here: {err:#}"))?;
        let engine = Arc::new(engine);
        let (name, size) = (version.name.clone(), version.wasm.len());
        let started = Instant::now();
        let component = compile::compile(&engine, &version.wasm, Awaited::ByAll).await?;
        let compiling = started.elapsed();
        let kind = component.component_type();
        let imports = kind.imports(component.engine()).map(|(name, _)| name.to_owned()).collect();
        let exports: Vec<String> = kind.exports(component.engine()).map(|(name, _)| name.to_owned()).collect();
        let clock = Clock::standing();
        let states = States::new(None).with_clock(clock.clone());
        let plugin = Plugin::assemble(version, component, &engine, &states, &Arc::new(Metrics::default()))?;
        let started = Instant::now();
        let accepts = match plugin.check().await {
            Ok(()) => Ok(()),
            Err(err @ CheckError::Failed(_)) => return Err(err.to_string()),
            Err(CheckError::Refused(reason)) => Err(reason),
        };
        let first_start = started.elapsed();
        let start = match &accepts {
            Ok(()) => Some(time_starts(&plugin).await?),
            Err(_) => None,
        };
        let (interface, hooks) = interface(&exports);
        let state = states.of(&name);
        let about = About { name, hooks, interface, imports, size, compiling, first_start, start, accepts };
        Ok(Self { about, plugin: Arc::new(plugin), state, clock })
    }

    /// A set of this plugin only.
    pub fn set(&self) -> Arc<PluginSet> {
        Arc::new(PluginSet { generation: 1, plugins: vec![self.plugin.clone()], off: Vec::new() })
    }

    /// Sets the time that it is for the plugin; none: that of the system, as it is now.
    pub fn set_time(&self, time: Option<SystemTime>) {
        self.clock.set(time.unwrap_or_else(SystemTime::now));
    }

    /// Empties the plugin's state.
    pub fn forget_state(&self) {
        self.state.clear();
    }

    /// Puts something into the plugin's state.
    ///
    /// # Errors
    /// What is beyond the limits of a state.
    pub fn put_state(&self, key: &str, value: &str) -> Result<(), String> {
        self.state.set(key, value, None).map_err(|refused| match refused {
            Refused::TooManyKeys => "more keys than a state may have".to_owned(),
            Refused::KeyTooLong => "a key longer than it may be".to_owned(),
            Refused::ValueTooLong => "a value longer than it may be".to_owned(),
        })
    }

    /// What the plugin's state holds.
    pub fn state(&self) -> BTreeMap<String, String> {
        self.state.entries()
    }
}

/// The version of the interface and the hooks of it, from the names of exports.
fn interface(exports: &[String]) -> (String, Vec<String>) {
    let mut version = String::new();
    let mut hooks = Vec::new();
    for export in exports {
        if let Some((hook, of)) = export.strip_prefix("tidegate:policy/").and_then(|rest| rest.split_once('@')) {
            version = format!("tidegate:policy@{of}");
            hooks.push(hook.to_owned());
        }
    }
    (version, hooks)
}

async fn time_starts(plugin: &Plugin) -> Result<Duration, String> {
    let mut times = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        let started = Instant::now();
        plugin.start().await.map_err(|err| err.to_string())?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[STARTS / 2])
}

/// The files as the plugin folder would have found them.
fn find(wasm: &Path, config: &[PathBuf]) -> Result<Found, String> {
    let file = wasm.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = plugin_name(file.strip_suffix(".wasm").unwrap_or(&file)).ok_or_else(|| {
        format!("{}: a plugin's name is letters, digits, `-`, `_` and `.`, at most 64 of them", wasm.display())
    })?;
    let mut given = BTreeMap::new();
    for path in config {
        if path.is_dir() {
            let listed = list_folder(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?;
            given.extend(listed);
        } else {
            given.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path.clone());
        }
    }
    Ok(Found { name: name.to_owned(), wasm: wasm.to_owned(), file, settings: None, config: given })
}
