//! Stands in for the host off WebAssembly, so that a plugin's unit tests run where they are compiled. Each thread,
//! and so each test, has a host of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::log::Level;
use crate::{Action, Cached, Content, Descriptor, File, Identity, Reference, Request};

/// Look-ups that the host allows in one call of a hook.
const LOOK_UPS_MAX: u32 = 16;
/// Bytes of a manifest that the host gives.
const MANIFEST_MAX: usize = 4 << 20;
/// Bytes of a blob that the host gives.
const BLOB_MAX: usize = 1 << 20;

/// What the host says, and what it was told.
#[derive(Debug)]
pub struct Host {
    /// The plugin's configuration.
    pub files: Vec<File>,
    /// The wall clock. Units: milliseconds.
    pub now_ms: u64,
    /// Who asks.
    pub client: Option<Identity>,
    /// IP address of the client.
    pub client_address: String,
    /// Request headers by name, in lower case.
    pub headers: BTreeMap<String, Vec<String>>,
    /// What `call::attribute` gives.
    pub attributes: BTreeMap<String, String>,
    /// Whether the cache holds what is asked for.
    pub cached: Cached,
    /// Time that the call has left. Units: milliseconds.
    pub remaining_ms: u32,
    /// The lines that the plugin logged.
    pub log: Vec<(Level, String)>,
    /// The warnings for the client.
    pub warnings: Vec<String>,
    /// The manifest under inspection.
    pub image: Image,
    /// What `registry` finds.
    pub registry: Registry,
    /// Counters and gauges of the plugin, as `name{key="value"}`.
    pub metrics: BTreeMap<String, f64>,
    /// What all uses of `state` fail with instead.
    pub state_failure: Option<state::Error>,
    state: BTreeMap<String, Entry>,
}

/// A manifest under inspection.
#[derive(Default, Debug)]
pub struct Image {
    /// What it is.
    pub target: Option<Descriptor>,
    /// Its bytes; type of artifact, subject, layers and annotations are not read from them here.
    pub raw: Vec<u8>,
    /// `artifactType`
    pub artifact_type: Option<String>,
    /// What it is about.
    pub subject: Option<Descriptor>,
    /// Layers, or the manifests of an index.
    pub layers: Vec<Descriptor>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the image's configuration.
    pub labels: BTreeMap<String, String>,
    /// The image's configuration.
    pub config: Vec<u8>,
    /// Digests of the indexes that list it.
    pub parents: Vec<String>,
}

/// A repository that look-ups find things in. What is not there is not found.
#[derive(Default, Debug)]
pub struct Registry {
    /// By tag and by digest.
    pub manifests: BTreeMap<String, Vec<u8>>,
    /// By the digest that they refer to.
    pub referrers: BTreeMap<String, Vec<Descriptor>>,
    /// By digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// What all look-ups fail with instead.
    pub failure: Option<registry::Error>,
    /// What those of a tag or a digest fail with instead.
    pub failures: BTreeMap<String, registry::Error>,
    /// How many there were. The host allows 16 in one call of a hook: set it back before another one.
    pub look_ups: u32,
}

#[derive(Debug)]
struct Entry {
    value: String,
    /// When it is over. Units: milliseconds.
    end_ms: Option<u64>,
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(Host {
        files: Vec::new(),
        now_ms: 1_700_000_000_000,
        client: None,
        client_address: "192.0.2.1".to_owned(),
        headers: BTreeMap::new(),
        attributes: BTreeMap::new(),
        cached: Cached::Absent,
        remaining_ms: 50,
        log: Vec::new(),
        warnings: Vec::new(),
        image: Image::default(),
        registry: Registry::default(),
        metrics: BTreeMap::new(),
        state_failure: None,
        state: BTreeMap::new(),
    });
}

/// Reads or changes the host of this thread. The plugin cannot be called inside.
pub fn host<R>(with: impl FnOnce(&mut Host) -> R) -> R {
    HOST.with_borrow_mut(with)
}

/// A pull of a manifest: `quay.io/team/app:1`, `quay.io/team/app@sha256:...`.
///
/// # Panics
/// Where no registry stands before the first slash.
pub fn request(image: &str) -> Request {
    let (registry, rest) = image.split_once('/').expect("REGISTRY/REPOSITORY");
    let (repository, reference) = match (rest.split_once('@'), rest.split_once(':')) {
        (Some((repository, digest)), _) => (repository, Reference::Digest(digest.to_owned())),
        (None, Some((repository, tag))) => (repository, Reference::Tag(tag.to_owned())),
        (None, None) => (rest, Reference::None),
    };
    let (registry, repository) = (registry.to_owned(), repository.to_owned());
    Request { action: Action::Pull, content: Content::Manifest, registry, repository, reference }
}

impl Host {
    /// Makes this the plugin's one configuration file.
    pub fn file(&mut self, name: &str, text: &str) {
        self.files = vec![File { name: name.to_owned(), text: text.to_owned() }];
    }

    /// A counter or a gauge as the operator's page shows it; `name{}` is one without labels.
    pub fn metric(&self, series: &str) -> Option<String> {
        self.metrics.get(series).map(f64::to_string)
    }

    fn entry(&mut self, key: &str) -> Option<&mut Entry> {
        let now_ms = self.now_ms;
        self.state.get_mut(key).filter(|entry| entry.end_ms.is_none_or(|end_ms| now_ms < end_ms))
    }
}

/// Stands in for the call in progress.
pub mod call {
    use super::host;
    use crate::{Cached, Identity};

    /// Request id.
    pub fn id() -> String {
        "test".to_owned()
    }

    /// IP address of the client, without its port.
    pub fn client_address() -> String {
        host(|host| host.client_address.clone())
    }

    /// Who asks; none: anonymous.
    pub fn client() -> Option<Identity> {
        host(|host| host.client.clone())
    }

    /// Empty when the client sent none.
    pub fn user_agent() -> String {
        header("user-agent").pop().unwrap_or_default()
    }

    /// Media types of `Accept`.
    pub fn accept() -> Vec<String> {
        header("accept")
    }

    /// Values of a request header.
    pub fn header(name: &str) -> Vec<String> {
        host(|host| host.headers.get(&name.to_ascii_lowercase()).cloned().unwrap_or_default())
    }

    /// A fact by its name.
    pub fn attribute(name: &str) -> Option<String> {
        host(|host| host.attributes.get(name).cloned())
    }

    /// Whether the cache holds what is asked for.
    pub fn cache() -> Cached {
        host(|host| host.cached)
    }

    /// Time that this call of the hook has left. Units: milliseconds.
    pub fn remaining_ms() -> u32 {
        host(|host| host.remaining_ms)
    }

    /// A text for the client, in the header `Warning`.
    pub fn warn(message: &str) {
        host(|host| host.warnings.push(message.to_owned()));
    }
}

/// Stands in for the plugin's files.
pub mod config {
    use super::host;
    use crate::File;

    /// The plugin's configuration files.
    pub fn files() -> Vec<File> {
        host(|host| host.files.clone())
    }
}

/// Stands in for the host's log.
pub mod log {
    use super::host;
    use crate::log::Level;

    /// Writes one line.
    pub fn write(level: Level, message: &str) {
        host(|host| host.log.push((level, message.to_owned())));
    }
}

/// Stands in for the clocks: both show [`Host::now_ms`](super::testing::Host).
pub mod clock {
    use super::host;

    /// Wall-clock time. Units: milliseconds.
    pub fn now_ms() -> u64 {
        host(|host| host.now_ms)
    }

    /// A clock that never goes back. Units: nanoseconds.
    pub fn monotonic_ns() -> u64 {
        now_ms() * 1_000_000
    }
}

/// Stands in for the manifest under inspection.
pub mod image {
    use super::host;
    use crate::{Descriptor, Pair};

    /// What the manifest itself is.
    pub fn target() -> Option<Descriptor> {
        host(|host| host.image.target.clone())
    }

    /// The manifest's bytes.
    pub fn raw() -> Vec<u8> {
        host(|host| host.image.raw.clone())
    }

    /// `artifactType` of the manifest.
    pub fn artifact_type() -> Option<String> {
        host(|host| host.image.artifact_type.clone())
    }

    /// `subject` of the manifest.
    pub fn subject() -> Option<Descriptor> {
        host(|host| host.image.subject.clone())
    }

    /// Layers of an image; of an index, the manifests that it lists.
    pub fn layers() -> Vec<Descriptor> {
        host(|host| host.image.layers.clone())
    }

    /// Annotations of the manifest itself.
    pub fn annotations() -> Vec<Pair> {
        let pair = |(key, value): (&String, &String)| Pair { key: key.clone(), value: value.clone() };
        host(|host| host.image.annotations.iter().map(pair).collect())
    }

    /// One annotation.
    pub fn annotation(key: &str) -> Option<String> {
        host(|host| host.image.annotations.get(key).cloned())
    }

    /// The image's configuration.
    pub fn config() -> Result<Vec<u8>, String> {
        Ok(host(|host| host.image.config.clone()))
    }

    /// A label of the image's configuration.
    pub fn label(key: &str) -> Result<Option<String>, String> {
        Ok(host(|host| host.image.labels.get(key).cloned()))
    }

    /// Digests of the indexes that list this manifest.
    pub fn parents() -> Vec<String> {
        host(|host| host.image.parents.clone())
    }
}

/// Stands in for look-ups in the repository of the image.
pub mod registry {
    use super::host;
    use crate::Descriptor;
    pub use crate::bindings::tidegate::policy::registry::Error;

    /// A manifest by tag or digest.
    pub fn manifest(reference: &str) -> Result<Vec<u8>, Error> {
        let found = look_up(reference, |registry| registry.manifests.get(reference).cloned())?;
        if found.len() > super::MANIFEST_MAX { Err(Error::TooLarge) } else { Ok(found) }
    }

    /// What refers to a digest.
    pub fn referrers(digest: &str, artifact_type: Option<&str>) -> Result<Vec<Descriptor>, Error> {
        let mut found = look_up(digest, |registry| Some(registry.referrers.get(digest).cloned().unwrap_or_default()))?;
        found.retain(|one| artifact_type.is_none() || one.artifact_type.as_deref() == artifact_type);
        Ok(found)
    }

    /// A small blob.
    pub fn blob(digest: &str) -> Result<Vec<u8>, Error> {
        let found = look_up(digest, |registry| registry.blobs.get(digest).cloned())?;
        if found.len() > super::BLOB_MAX { Err(Error::TooLarge) } else { Ok(found) }
    }

    fn look_up<T>(what: &str, find: impl FnOnce(&super::Registry) -> Option<T>) -> Result<T, Error> {
        host(|host| {
            let registry = &mut host.registry;
            if registry.look_ups == super::LOOK_UPS_MAX {
                return Err(Error::BudgetSpent);
            }
            registry.look_ups += 1;
            match registry.failure.as_ref().or_else(|| registry.failures.get(what)) {
                Some(failure) => Err(failure.clone()),
                None => find(registry).ok_or(Error::NotFound),
            }
        })
    }
}

/// Stands in for the operator's metrics.
pub mod metrics {
    use super::host;
    use crate::Pair;

    /// Adds to a counter.
    pub fn increment(name: &str, labels: &[Pair], by: u32) {
        host(|host| *host.metrics.entry(series(name, labels)).or_default() += f64::from(by));
    }

    /// Sets a gauge.
    pub fn set(name: &str, labels: &[Pair], value: f64) {
        host(|host| host.metrics.insert(series(name, labels), value));
    }

    fn series(name: &str, labels: &[Pair]) -> String {
        let labels: Vec<String> = labels.iter().map(|pair| format!("{}={:?}", pair.key, pair.value)).collect();
        format!("{name}{{{}}}", labels.join(","))
    }
}

/// Stands in for the plugin's shared memory.
pub mod state {
    use super::{Entry, Host, host};
    pub use crate::bindings::tidegate::policy::state::Error;

    /// The value of a key.
    pub fn get(key: &str) -> Result<Option<String>, Error> {
        on_host(|host| Ok(host.entry(key).map(|entry| entry.value.clone())))
    }

    /// Sets a key. `ttl_secs`: none: kept until removed. Units: seconds.
    pub fn set(key: &str, value: &str, ttl_secs: Option<u32>) -> Result<(), Error> {
        on_host(|host| insert(host, key, value, ttl_secs))
    }

    /// Sets only when absent; gives what is there afterwards.
    pub fn set_once(key: &str, value: &str, ttl_secs: Option<u32>) -> Result<String, Error> {
        on_host(|host| match host.entry(key) {
            Some(entry) => Ok(entry.value.clone()),
            None => insert(host, key, value, ttl_secs).map(|()| value.to_owned()),
        })
    }

    /// Adds to a decimal number; gives the sum.
    pub fn add(key: &str, delta: i32, ttl_secs: Option<u32>) -> Result<i64, Error> {
        on_host(|host| {
            if let Some(entry) = host.entry(key) {
                let sum = entry.value.parse::<i64>().unwrap_or(0).saturating_add(i64::from(delta));
                entry.value = sum.to_string();
                return Ok(sum);
            }
            insert(host, key, &delta.to_string(), ttl_secs).map(|()| i64::from(delta))
        })
    }

    /// Forgets a key.
    pub fn remove(key: &str) -> Result<(), Error> {
        on_host(|host| {
            host.state.remove(key);
            Ok(())
        })
    }

    fn on_host<T>(with: impl FnOnce(&mut Host) -> Result<T, Error>) -> Result<T, Error> {
        host(|host| match host.state_failure {
            Some(failure) => Err(failure),
            None => with(host),
        })
    }

    fn insert(host: &mut Host, key: &str, value: &str, ttl_secs: Option<u32>) -> Result<(), Error> {
        let now_ms = host.now_ms;
        if host.state.len() >= 10_000 {
            host.state.retain(|_, entry| entry.end_ms.is_none_or(|end_ms| now_ms < end_ms));
        }
        match (key.len(), value.len(), host.state.len()) {
            (257.., _, _) => return Err(Error::KeyTooLong),
            (_, 4097.., _) => return Err(Error::ValueTooLong),
            (_, _, 10_000..) if !host.state.contains_key(key) => return Err(Error::TooManyKeys),
            _ => {}
        }
        let end_ms = ttl_secs.map(|secs| host.now_ms + u64::from(secs) * 1000);
        host.state.insert(key.to_owned(), Entry { value: value.to_owned(), end_ms });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{host, state};

    #[test]
    fn state_ends_when_its_time_is_over() {
        assert_eq!(state::add("hits", 2, Some(10)), Ok(2));
        assert_eq!(state::add("hits", -1, Some(10)), Ok(1));
        assert_eq!(state::set_once("hits", "9", None), Ok("1".to_owned()));
        host(|host| host.now_ms += 10_000);
        assert_eq!(state::get("hits"), Ok(None));
        assert_eq!(state::set_once("hits", "9", None), Ok("9".to_owned()));
        assert_eq!(state::remove("hits"), Ok(()));
        assert_eq!(state::get("hits"), Ok(None));
        assert_eq!(state::set(&"k".repeat(257), "", None), Err(state::Error::KeyTooLong));
    }
}
