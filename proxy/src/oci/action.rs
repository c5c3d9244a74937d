//! What a client does to a registry's content.

/// What a request does: what plugins are told, and what a registry has to permit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Reads.
    Pull,
    /// Writes.
    Push,
    /// Removes.
    Delete,
}

impl Action {
    /// The word for it in logs, metrics and the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    /// What a token must permit for it.
    ///
    /// Source: distribution's token specification, "Token Scope Documentation".
    pub fn scope(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
            Self::Delete => "delete",
        }
    }
}
