//! The token that lets a pull go on: only the admission plugins give it (I1).

use crate::oci::Denial;
use crate::plugin::{Admission, PluginSet, Question};

/// A pull that every admission plugin lets pass. Nothing else makes one, and nobody gets to the cache or an upstream
/// without it.
#[derive(Debug)]
pub(super) struct Admitted {
    cached_only: Option<String>,
}

impl Admitted {
    /// Asks the admission plugins.
    pub async fn ask(set: &PluginSet, question: &Question) -> Result<Self, Denial> {
        match set.admit(question).await {
            Admission::Allow => Ok(Self { cached_only: None }),
            Admission::CachedOnly(plugin) => Ok(Self { cached_only: Some(plugin) }),
            Admission::Deny(denial) => Err(denial),
        }
    }

    /// For what a policy looks up itself: no client gets what it brings. `cached_only`: why no registry is asked.
    pub fn of_policy(cached_only: Option<String>) -> Self {
        Self { cached_only }
    }

    /// Which plugin lets only the cache serve.
    pub fn cached_only(&self) -> Option<&str> {
        self.cached_only.as_deref()
    }
}
