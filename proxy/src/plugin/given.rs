//! What there is to look up where no proxy is: what a case, a record or nothing at all says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::lookups::{Cached, Gave, Looking, Lookups, Missing};
use crate::oci::manifest::{Descriptor, MANIFEST_MAX};
use crate::oci::{Digest, Place, RateLimit, Reference, Registry, Repository};

/// The window of a rate limit that does not say how long it is.
const WINDOW: Duration = Duration::from_hours(1);

/// What is known of a pull.
#[derive(Clone, Default, Debug)]
pub struct Given {
    /// What the cache holds.
    pub cached: Cached,
    /// Whether `cached` is known: what is not known is a gap.
    pub knows_cache: bool,
    /// When it is; none: now.
    pub now: Option<SystemTime>,
    /// Manifests of the repository, by tag and by digest.
    pub manifests: HashMap<String, Bytes>,
    /// Blobs of the repository.
    pub blobs: HashMap<Digest, Bytes>,
    /// What refers to a digest.
    pub referrers: HashMap<Digest, Vec<Descriptor>>,
    /// Indexes that list the manifest in question.
    pub parents: Vec<Digest>,
    /// What registries said of the pulls that they still allow, and how long ago.
    pub rate_limits: HashMap<Registry, (RateLimit, Duration)>,
    /// Registries that keep failing.
    pub ailing: HashSet<Registry>,
    /// Places that gave what is asked for, or what lists it.
    pub gave: HashMap<Gave, Vec<Place>>,
    /// Names of facts about registries that are known, be it that there is none.
    pub known: HashSet<String>,
    /// An OCI image layout that has more manifests and blobs.
    pub layout: Option<PathBuf>,
    /// Set when something is asked for that is not known; none: what is not known is not there.
    pub gap: Option<Arc<AtomicBool>>,
}

impl Given {
    /// Takes facts by the names that `call.attribute` has for them, as far as they are about registries.
    ///
    /// # Errors
    /// What there is no such fact as.
    pub fn tell(&mut self, attributes: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, value) in attributes {
            self.known.insert(name.clone());
            // It was asked for, and nobody knew.
            if value.is_empty() {
                continue;
            }
            self.tell_one(name, value).ok_or_else(|| {
                format!(
                    "`{name} = {value}` is no fact; there are ratelimit.REGISTRY.remaining, .limit, .window-secs and \
                     .age-secs, each with a number, registry.REGISTRY.ailing with true or false, and tagged-at and \
                     listed-at with places such as docker.io/library/redis"
                )
            })?;
        }
        Ok(())
    }

    /// What the layout has under a digest, where that is right.
    pub fn from_layout(&self, digest: Digest) -> Option<Bytes> {
        let named = digest.to_string();
        let (algorithm, hex) = named.split_once(':')?;
        let path = self.layout.as_ref()?.join("blobs").join(algorithm).join(hex);
        let about = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        if about.len() > MANIFEST_MAX as u64 {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        (algorithm != "sha256" || Digest::sha256_of(&bytes) == digest).then(|| bytes.into())
    }

    /// Takes note that something was asked for which is not known.
    fn miss(&self) {
        if let Some(gap) = &self.gap {
            gap.store(true, Ordering::Relaxed);
        }
    }

    fn tell_one(&mut self, name: &str, value: &str) -> Option<()> {
        if let Some(how) = Gave::parse(name) {
            let place = |text: &str| {
                let (registry, repository) = text.split_once('/')?;
                Some(Place { registry: Registry::parse(registry)?, repository: Repository::parse(repository)? })
            };
            self.gave.insert(how, value.split(' ').map(place).collect::<Option<_>>()?);
            return Some(());
        }
        let (kind, rest) = name.split_once('.')?;
        let (registry, what) = rest.rsplit_once('.')?;
        let registry = Registry::parse(registry)?;
        if (kind, what) == ("registry", "ailing") {
            if value.parse::<bool>().ok()? {
                self.ailing.insert(registry);
            }
            return Some(());
        }
        let nothing = (RateLimit { remaining: 0, limit: None, window: WINDOW }, Duration::ZERO);
        let number: u64 = value.parse().ok().filter(|_| kind == "ratelimit")?;
        let (limit, age) = self.rate_limits.entry(registry).or_insert(nothing);
        match what {
            "remaining" => limit.remaining = number,
            "limit" => limit.limit = Some(number),
            "window-secs" => limit.window = Duration::from_secs(number),
            "age-secs" => *age = Duration::from_secs(number),
            _ => return None,
        }
        Some(())
    }
}

impl Lookups for Given {
    fn cached(&self) -> Looking<'_, Cached> {
        if !self.knows_cache {
            self.miss();
        }
        Box::pin(std::future::ready(self.cached))
    }

    fn manifest(&self, reference: Reference) -> Looking<'_, Result<Bytes, Missing>> {
        let (name, more) = match reference {
            Reference::Tag(tag) => (tag.to_string(), None),
            Reference::Digest(digest) => (digest.to_string(), self.from_layout(digest)),
        };
        let found = self.manifests.get(&name).cloned().or(more);
        if found.is_none() {
            self.miss();
        }
        Box::pin(std::future::ready(found.ok_or(Missing::NotFound)))
    }

    fn referrers(&self, digest: Digest) -> Looking<'_, Result<Vec<Descriptor>, Missing>> {
        if !self.referrers.contains_key(&digest) {
            self.miss();
        }
        // A registry answers for a digest without referrers too.
        Box::pin(std::future::ready(Ok(self.referrers.get(&digest).cloned().unwrap_or_default())))
    }

    fn blob(&self, digest: Digest, max: usize) -> Looking<'_, Result<Bytes, Missing>> {
        let found = self.blobs.get(&digest).cloned().or_else(|| self.from_layout(digest));
        if found.is_none() {
            self.miss();
        }
        let found = found.ok_or(Missing::NotFound);
        Box::pin(std::future::ready(
            found.and_then(|blob| if blob.len() > max { Err(Missing::TooLarge) } else { Ok(blob) }),
        ))
    }

    fn parents(&self, _: Digest) -> Looking<'_, Vec<Digest>> {
        Box::pin(std::future::ready(self.parents.clone()))
    }

    fn rate_limit(&self, registry: &Registry) -> Option<(RateLimit, Duration)> {
        if !self.known.iter().any(|name| name.starts_with(&format!("ratelimit.{registry}."))) {
            self.miss();
        }
        self.rate_limits.get(registry).copied()
    }

    fn is_ailing(&self, registry: &Registry) -> bool {
        if !self.known.contains(&format!("registry.{registry}.ailing")) {
            self.miss();
        }
        self.ailing.contains(registry)
    }

    fn gave(&self, how: Gave) -> Vec<Place> {
        self.gave.get(&how).cloned().unwrap_or_default()
    }

    fn now(&self) -> SystemTime {
        self.now.unwrap_or_else(SystemTime::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_about_registries_are_told_by_their_names() {
        let tell = |name: &str, value: &str| {
            let mut given = Given::default();
            given.tell(&BTreeMap::from([(name.to_owned(), value.to_owned())])).map(|()| given)
        };
        let hub = Registry::parse("docker.io").expect("a registry");
        let given = tell("ratelimit.docker.io.remaining", "3").expect("a fact");
        assert_eq!(given.rate_limit(&hub).map(|(limit, age)| (limit.remaining, age)), Some((3, Duration::ZERO)));
        assert!(tell("registry.docker.io.ailing", "true").expect("a fact").is_ailing(&hub));
        let given = tell("listed-at", "m.lan/hub/a quay.io/a").expect("a fact");
        let gave = given.gave(Gave::Listed);
        assert_eq!(gave.iter().map(ToString::to_string).collect::<Vec<_>>(), ["m.lan/hub/a", "quay.io/a"]);
        for (name, value) in [
            ("ratelimit.docker.io.remaining", "few"),
            ("ratelimit.docker.io.left", "3"),
            ("ratelimit.remaining", "3"),
            ("weather.docker.io.remaining", "3"),
            ("registry.docker.io.ailing", "maybe"),
            ("tagged-at", "nowhere"),
        ] {
            assert!(tell(name, value).is_err(), "{name} {value}");
        }
    }
}
