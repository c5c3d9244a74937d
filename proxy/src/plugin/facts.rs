//! What a plugin may know of the call in progress.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::oci::{Digest, Pull};

/// Warnings that one answer carries at the most.
const WARNINGS_MAX: usize = 8;
/// Longest text of a warning. Units: bytes.
const WARNING_MAX: usize = 512;

/// Who asks, and with what.
#[derive(Debug)]
pub struct Facts {
    /// Request id.
    pub id: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Empty when none was sent.
    pub user_agent: String,
    /// Media types of `Accept`, in order.
    pub accept: Vec<String>,
    /// Request headers that the operator lets through, names in lower case.
    pub headers: Vec<(String, String)>,
    warnings: Mutex<Vec<String>>,
    decision: OnceLock<Decision>,
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

impl Facts {
    /// Facts without warnings yet.
    pub fn new(
        id: String,
        client: IpAddr,
        user_agent: String,
        accept: Vec<String>,
        headers: Vec<(String, String)>,
    ) -> Self {
        Self { id, client, user_agent, accept, headers, warnings: Mutex::default(), decision: OnceLock::new() }
    }

    /// Adds a text that the client prints; what is too much is dropped.
    pub(super) fn warn(&self, message: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
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
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the cache holds of what is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cached {
    /// Nothing.
    #[default]
    Absent,
    /// A copy that may be served as it is.
    Fresh {
        /// Its digest.
        digest: Digest,
        /// Since its registry was asked, where that matters.
        age: Option<Duration>,
    },
    /// A tag past its time to live.
    Stale {
        /// The digest that it stood for.
        digest: Digest,
        /// Since its registry was asked.
        age: Duration,
    },
}

/// Looks into the cache without serving from it.
pub type Peek = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Cached> + Send>> + Send + Sync>;

/// One question to the plugins.
#[derive(Clone)]
pub struct Question {
    /// What is asked for.
    pub pull: Arc<Pull>,
    /// Who asks.
    pub facts: Arc<Facts>,
    /// What the cache holds of it.
    pub peek: Peek,
    /// Whether nothing may come of it: state is written to a copy.
    pub dry_run: bool,
}
