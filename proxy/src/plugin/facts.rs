//! What a plugin may know of the call in progress, and what is kept of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::image::Image;
use super::lookups::{Cached, Lookups};
use super::settings::Mode;
use crate::oci::{Asked, Digest, Failure, Place};

/// Warnings that one answer carries at the most.
const WARNINGS_MAX: usize = 8;
/// Longest text of a warning. Units: bytes.
const WARNING_MAX: usize = 512;
/// Decisions, and attempts at upstreams, of one request that are kept.
const KEPT_MAX: usize = 256;

/// Longest name of a fact that is kept. Units: bytes.
const ATTRIBUTE_MAX: usize = 512;

/// Who asks, and with what.
#[derive(Debug)]
pub struct Facts {
    /// Request id.
    pub id: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Who it is; none: anonymous.
    pub identity: Option<Identity>,
    /// Empty when none was sent.
    pub user_agent: String,
    /// Media types of `Accept`, in order.
    pub accept: Vec<String>,
    /// Request headers that the operator lets through, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the decision record is written: what replaying the request takes is found out then, also where no plugin
    /// asks for it.
    pub recorded: bool,
    /// Whether plugins are called whatever they have answered before, and nothing that they answer is remembered.
    pub asks_anew: bool,
    passing: AtomicBool,
    seen: Mutex<Seen>,
    warnings: Mutex<Vec<String>>,
    decision: OnceLock<Decision>,
    decided: Mutex<Vec<Decided>>,
    tried: Mutex<Vec<Tried>>,
    shadows: Shadows,
}

/// Who a client is, where it has shown that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its name.
    pub subject: String,
    /// Who says so.
    pub issuer: String,
    /// What it belongs to.
    pub groups: Vec<String>,
}

/// What the policy decided for a pull that it did not deny.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It may go on.
    Allow,
    /// It may have what is cached; which plugin says so.
    CachedOnly(String),
}

impl Decision {
    /// The word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::CachedOnly(_) => "cached-only",
        }
    }

    /// Which plugin decided so, where one did.
    pub fn policy(&self) -> Option<String> {
        match self {
            Self::Allow => None,
            Self::CachedOnly(plugin) => Some(plugin.clone()),
        }
    }
}

/// What one plugin decided.
#[derive(Clone, Debug)]
pub struct Decided {
    /// Its name.
    pub plugin: Arc<str>,
    /// Which hook.
    pub hook: &'static str,
    /// Whether it counts.
    pub mode: Mode,
    /// The word for it: `allow`, `cached-only`, `deny`, `pass`, `to`, `next`, `release`, `hold`, `pin`, ...
    pub ruling: &'static str,
    /// Why, or what exactly.
    pub detail: Option<String>,
    /// Where routing leads.
    pub candidates: Option<Vec<Place>>,
    /// Why the call gave no answer, where `on_error` stands in for it.
    pub failed: Option<String>,
    /// How long it took; nothing where it was remembered.
    pub took: Duration,
}

/// An attempt at an upstream.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Registry and repository.
    pub place: Place,
    /// `ok`, or the kind of its failure.
    pub outcome: &'static str,
    /// What was wrong.
    pub failure: Option<Failure>,
    /// What the registry asked for.
    pub retry_after: Option<Duration>,
    /// What a registry that failed told of its limits: header and value.
    pub rate_limit: Vec<(String, String)>,
    /// To its headers, or to its failure.
    pub took: Duration,
    /// What a failed attempt brought of a body. Units: bytes.
    pub bytes: u64,
}

/// What the decision record wants to know beside what was decided and tried.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    /// Which set of plugins decided.
    pub generation: u64,
    /// What the cache held when it was first looked into; none: nobody looked.
    pub cached: Option<Cached>,
    /// What plugins asked about registries, by the names that `call.attribute` has for it.
    pub attributes: BTreeMap<String, String>,
    /// The manifest that was inspected.
    pub inspected: Option<Digest>,
}

impl Seen {
    /// Keeps what a plugin asked about a registry. Empty: there is no such fact.
    pub(super) fn note_attribute(&mut self, name: &str, told: Option<&str>) {
        if name.len() <= ATTRIBUTE_MAX && self.attributes.len() < KEPT_MAX {
            self.attributes.insert(name.to_owned(), told.unwrap_or_default().to_owned());
        }
    }
}

/// Shadow decisions under way.
#[derive(Default, Debug)]
struct Shadows {
    running: AtomicUsize,
    done: Notify,
}

/// A shadow decision under way.
pub(super) struct Shadow(Arc<Facts>);

impl Drop for Shadow {
    fn drop(&mut self) {
        if self.0.shadows.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.shadows.done.notify_waiters();
        }
    }
}

impl Facts {
    /// Facts without warnings yet.
    pub fn new(
        id: String,
        client: IpAddr,
        user_agent: String,
        accept: Vec<String>,
        headers: Vec<(String, String)>,
    ) -> Self {
        Self {
            id,
            client,
            identity: None,
            user_agent,
            accept,
            headers,
            recorded: false,
            asks_anew: false,
            passing: AtomicBool::new(false),
            seen: Mutex::default(),
            warnings: Mutex::default(),
            decision: OnceLock::new(),
            decided: Mutex::default(),
            tried: Mutex::default(),
            shadows: Shadows::default(),
        }
    }

    /// The same who asks with the same, for whom plugins are called whatever they have answered before.
    pub(super) fn anew(&self) -> Self {
        let (id, user_agent) = (self.id.clone(), self.user_agent.clone());
        let (accept, headers) = (self.accept.clone(), self.headers.clone());
        let identity = self.identity.clone();
        Self { identity, asks_anew: true, ..Self::new(id, self.client, user_agent, accept, headers) }
    }

    /// Adds a text for the client, in the header `Warning`; what is too much is dropped.
    pub(super) fn warn(&self, message: &str) {
        let mut warnings = lock(&self.warnings);
        if warnings.len() < WARNINGS_MAX {
            let text: String = message.chars().filter(|char| !char.is_control()).collect();
            warnings.push(text[..text.floor_char_boundary(WARNING_MAX)].to_owned());
        }
    }

    /// Keeps what the policy decided; the first decision holds.
    pub fn decide(&self, decision: Decision) {
        let _ = self.decision.set(decision);
    }

    /// What the policy decided; none where it was not asked, or denied.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.get()
    }

    /// The texts that the client is to print.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.warnings))
    }

    /// Takes note of something for the decision record.
    pub fn see(&self, note: impl FnOnce(&mut Seen)) {
        note(&mut lock(&self.seen));
    }

    /// What was noted for the decision record.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Whether all that plugins have decided about this request so far would be decided again for an equal one: its
    /// answers were remembered, or may be. Says nothing of plugins that were not asked yet: that says
    /// [`PluginSet::remembers`](super::PluginSet::remembers).
    pub fn is_repeatable(&self) -> bool {
        !self.passing.load(Ordering::Relaxed)
    }

    /// Something was decided that holds for this request only.
    pub(super) fn pass(&self) {
        self.passing.store(true, Ordering::Relaxed);
    }

    /// Keeps what a plugin decided.
    pub(super) fn note(&self, decided: Decided) {
        let mut all = lock(&self.decided);
        if all.len() < KEPT_MAX {
            all.push(decided);
        }
    }

    /// What the plugins decided, in the order in which they did.
    pub fn decided(&self) -> Vec<Decided> {
        lock(&self.decided).clone()
    }

    /// Keeps an attempt at an upstream.
    pub fn tried(&self, tried: Tried) {
        let mut all = lock(&self.tried);
        if all.len() < KEPT_MAX {
            all.push(tried);
        }
    }

    /// The attempts at upstreams that were made for this request.
    pub fn attempts(&self) -> Vec<Tried> {
        lock(&self.tried).clone()
    }

    /// Begins a shadow decision.
    pub(super) fn begin_shadow(self: &Arc<Self>) -> Shadow {
        self.shadows.running.fetch_add(1, Ordering::AcqRel);
        Shadow(self.clone())
    }

    /// Whether a plugin in shadow mode still decides.
    pub fn has_shadows(&self) -> bool {
        self.shadows.running.load(Ordering::Acquire) > 0
    }

    /// Waits until no plugin in shadow mode decides any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn shadows_done(&self) {
        loop {
            let done = self.shadows.done.notified();
            if !self.has_shadows() {
                return;
            }
            done.await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One question to the plugins.
#[derive(Clone)]
pub struct Question {
    /// What is asked for.
    pub asked: Asked,
    /// Who asks.
    pub facts: Arc<Facts>,
    /// What there is to look up.
    pub lookups: Arc<dyn Lookups>,
    /// The manifest under inspection.
    pub image: Option<Arc<Image>>,
    /// Whether nothing may come of it: state is written to a copy.
    pub dry_run: bool,
}
