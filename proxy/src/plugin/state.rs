//! The small shared memory of plugins: kept across reloads, and on disk across restarts.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Keys that one plugin may keep.
const KEYS_MAX: usize = 10_000;
/// Longest key. Units: bytes.
const KEY_MAX: usize = 256;
/// Longest value. Units: bytes.
const VALUE_MAX: usize = 4096;

/// Why a write was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    TooManyKeys,
    KeyTooLong,
    ValueTooLong,
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    value: String,
    /// Units: milliseconds since the epoch; none: kept until removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
}

/// What time it is for plugins and what they keep. A clone shows the same time.
#[derive(Clone, Default)]
pub(super) enum Clock {
    /// The system's wall clock.
    #[default]
    System,
    /// The time of a recorded pull, or of a test. Units: milliseconds since the epoch.
    At(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still until it is set.
    pub fn standing() -> Self {
        Self::At(Arc::new(AtomicU64::new(now_ms())))
    }

    /// Sets a clock that stands still; the system's goes its own way.
    pub fn set(&self, time: SystemTime) {
        if let Self::At(ms) = self {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            ms.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Units: milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        match self {
            Self::System => now_ms(),
            Self::At(ms) => ms.load(Ordering::Relaxed),
        }
    }
}

/// The memory of one plugin.
#[derive(Default)]
pub(super) struct State {
    entries: Mutex<HashMap<String, Entry>>,
    changed: AtomicBool,
    clock: Clock,
}

impl State {
    /// A copy that goes its own way: what a dry run writes is gone with it.
    pub fn fork(&self) -> Self {
        let clock = self.clock.clone();
        Self { entries: Mutex::new(self.lock().clone()), changed: AtomicBool::new(false), clock }
    }

    /// What time it is for the plugin. Units: milliseconds since the epoch.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// All that is kept, in order.
    pub fn entries(&self) -> BTreeMap<String, String> {
        let now = self.now_ms();
        let entries = self.lock();
        let holding = entries.iter().filter(|(_, entry)| entry.holds(now));
        holding.map(|(key, entry)| (key.clone(), entry.value.clone())).collect()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lock().clear();
        self.changed.store(true, Ordering::Relaxed);
    }

    fn until(&self, ttl_secs: Option<u32>) -> Option<u64> {
        ttl_secs.map(|secs| self.now_ms() + u64::from(secs) * 1000)
    }

    pub fn get(&self, key: &str) -> Option<String> {
        let now = self.now_ms();
        self.lock().get(key).filter(|entry| entry.holds(now)).map(|entry| entry.value.clone())
    }

    pub fn set(&self, key: &str, value: &str, ttl_secs: Option<u32>) -> Result<(), Refused> {
        self.update(key, |_| Some((value.to_owned(), self.until(ttl_secs)))).map(|_| ())
    }

    pub fn set_once(&self, key: &str, value: &str, ttl_secs: Option<u32>) -> Result<String, Refused> {
        self.update(key, |before| before.is_none().then(|| (value.to_owned(), self.until(ttl_secs))))
    }

    pub fn add(&self, key: &str, delta: i32, ttl_secs: Option<u32>) -> Result<i64, Refused> {
        let sum = self.update(key, |before| {
            let number: i64 = before.and_then(|entry| entry.value.parse().ok()).unwrap_or(0);
            let until = before.map_or_else(|| self.until(ttl_secs), |entry| entry.until_ms);
            Some((number.saturating_add(delta.into()).to_string(), until))
        })?;
        Ok(sum.parse().expect("a number was written"))
    }

    pub fn remove(&self, key: &str) {
        if self.lock().remove(key).is_some() {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// Changes one entry under the lock; `change` gives none to leave it. Gives the value that is there afterwards.
    fn update(
        &self,
        key: &str,
        change: impl FnOnce(Option<&Entry>) -> Option<(String, Option<u64>)>,
    ) -> Result<String, Refused> {
        if key.len() > KEY_MAX {
            return Err(Refused::KeyTooLong);
        }
        let now = self.now_ms();
        let mut entries = self.lock();
        let before = entries.get(key).filter(|entry| entry.holds(now));
        let Some((value, until_ms)) = change(before) else {
            return Ok(before.map(|entry| entry.value.clone()).unwrap_or_default());
        };
        if value.len() > VALUE_MAX {
            return Err(Refused::ValueTooLong);
        }
        if entries.len() >= KEYS_MAX && !entries.contains_key(key) {
            entries.retain(|_, entry| entry.holds(now));
            if entries.len() >= KEYS_MAX {
                return Err(Refused::TooManyKeys);
            }
        }
        entries.insert(key.to_owned(), Entry { value: value.clone(), until_ms });
        self.changed.store(true, Ordering::Relaxed);
        Ok(value)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The memories of all plugins, by name, and the folder that keeps them.
pub(super) struct States {
    dir: Option<PathBuf>,
    clock: Clock,
    by_plugin: Mutex<HashMap<String, Arc<State>>>,
}

impl States {
    /// `dir`: none keeps nothing.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, clock: Clock::System, by_plugin: Mutex::default() }
    }

    /// The same by another clock.
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// The memory of a plugin. One that cannot be read begins empty, and says so.
    pub fn of(&self, plugin: &str) -> Arc<State> {
        let mut by_plugin = self.by_plugin.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let path = self.dir.as_ref().map(|dir| dir.join(format!("{plugin}.json")));
            let kept = path.map(|path| (read(&path), path));
            let entries = match kept {
                None | Some((Ok(None), _)) => HashMap::new(),
                Some((Ok(Some(entries)), _)) => entries,
                Some((Err(err), path)) => {
                    tracing::error!(plugin, file = %path.display(), error = err.to_string(), "the state of a plugin cannot be read: it begins empty");
                    HashMap::new()
                }
            };
            Arc::new(State { entries: Mutex::new(entries), changed: AtomicBool::new(false), clock: self.clock.clone() })
        };
        by_plugin.entry(plugin.to_owned()).or_insert_with(fresh).clone()
    }

    /// Writes what has changed since the last time. Blocks.
    pub fn flush(&self) {
        let Some(dir) = &self.dir else { return };
        let all: Vec<_> = {
            let by_plugin = self.by_plugin.lock().unwrap_or_else(PoisonError::into_inner);
            by_plugin.iter().map(|(name, state)| (name.clone(), state.clone())).collect()
        };
        for (plugin, state) in all {
            if state.changed.swap(false, Ordering::Relaxed)
                && let Err(err) = write(dir, &plugin, &state)
            {
                state.changed.store(true, Ordering::Relaxed);
                tracing::error!(plugin, folder = %dir.display(), error = err.to_string(), "the state of a plugin cannot be written");
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Option<HashMap<String, Entry>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

fn write(dir: &Path, plugin: &str, state: &State) -> io::Result<()> {
    let now = state.now_ms();
    let entries: HashMap<_, _> = state
        .lock()
        .iter()
        .filter(|(_, entry)| entry.holds(now))
        .map(|(key, entry)| (key.clone(), entry.clone()))
        .collect();
    std::fs::create_dir_all(dir)?;
    let staged = dir.join(format!("{plugin}.json.part"));
    let mut file = std::fs::File::create(&staged)?;
    io::Write::write_all(&mut file, &serde_json::to_vec(&entries)?)?;
    file.sync_data()?;
    std::fs::rename(staged, dir.join(format!("{plugin}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_bounded_atomic_and_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let states = States::new(Some(dir.path().to_owned()));
        let state = states.of("quota");
        assert_eq!(state.add("n", 3, None), Ok(3));
        assert_eq!(state.add("n", -1, None), Ok(2));
        assert_eq!(state.set_once("n", "x", None).as_deref(), Ok("2"));
        assert_eq!(state.set_once("once", "x", None).as_deref(), Ok("x"));
        assert_eq!(state.set("gone", "x", Some(0)), Ok(()));
        assert_eq!(state.get("gone"), None);
        assert_eq!(state.set(&"k".repeat(257), "", None), Err(Refused::KeyTooLong));
        assert_eq!(state.set("k", &"v".repeat(4097), None), Err(Refused::ValueTooLong));
        let fork = state.fork();
        assert_eq!(fork.add("n", 1, None), Ok(3));
        assert_eq!(state.get("n").as_deref(), Some("2"), "a dry run changes nothing");
        states.flush();
        let again = States::new(Some(dir.path().to_owned())).of("quota");
        assert_eq!(again.get("n").as_deref(), Some("2"));
        for key in 0..KEYS_MAX {
            let _ = state.set(&key.to_string(), "", None);
        }
        assert_eq!(state.set("one more", "", None), Err(Refused::TooManyKeys));
    }
}
