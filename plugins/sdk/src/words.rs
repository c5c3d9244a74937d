//! Constructors and short questions for the words that all hooks share.

use std::fmt;

use crate::{Candidate, Denial, Finding, Hold, Reference, Request, Routes, Step, Verdict};

impl Denial {
    /// A 403 with the code `DENIED`. For another answer: `Denial { status: 429, ..Denial::new("...") }`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { status: 403, code: "DENIED".to_owned(), message: message.into(), retry_after_secs: None }
    }

    /// An answer that asks the client to come again: a 429 or a 503 with the header `Retry-After`.
    ///
    /// `retry_after_secs`: Units: seconds.
    pub fn later(status: u16, message: impl Into<String>, retry_after_secs: u32) -> Self {
        // The specification has no code for a 503; this is the one that asks for patience.
        let code = "TOOMANYREQUESTS".to_owned();
        Self { status, code, message: message.into(), retry_after_secs: Some(retry_after_secs) }
    }
}

impl Verdict {
    /// A 403 with the code `DENIED`.
    pub fn deny(message: impl Into<String>) -> Self {
        Self::Deny(Denial::new(message))
    }
}

impl From<Denial> for Verdict {
    fn from(denial: Denial) -> Self {
        Self::Deny(denial)
    }
}

impl Finding {
    /// A 403 with the code `DENIED`.
    pub fn deny(message: impl Into<String>) -> Self {
        Self::Deny(Denial::new(message))
    }

    /// A denial for now.
    ///
    /// `for_secs`: when to ask again. Units: seconds.
    pub fn hold(message: impl Into<String>, for_secs: u32) -> Self {
        Self::Hold(Hold { for_secs, message: message.into() })
    }
}

impl From<Denial> for Finding {
    fn from(denial: Denial) -> Self {
        Self::Deny(denial)
    }
}

impl From<Denial> for Routes {
    fn from(denial: Denial) -> Self {
        Self::Deny(denial)
    }
}

impl From<Denial> for Step {
    fn from(denial: Denial) -> Self {
        Self::Deny(denial)
    }
}

impl Candidate {
    /// A registry by name, with the repository that the client asked for.
    pub fn new(registry: impl Into<String>) -> Self {
        Self {
            registry: registry.into(),
            repository: None,
            timeout_ms: None,
            hedge_after_ms: None,
            options: Vec::new(),
        }
    }

    /// The same registry with another repository.
    #[must_use]
    pub fn with_repository(self, repository: impl Into<String>) -> Self {
        Self { repository: Some(repository.into()), ..self }
    }
}

impl Request {
    /// The tag; none when the content is named by its digest, or not at all.
    pub fn tag(&self) -> Option<&str> {
        match &self.reference {
            Reference::Tag(tag) => Some(tag),
            Reference::Digest(_) | Reference::None => None,
        }
    }

    /// The digest; none when the content is named by a tag, or not at all.
    pub fn digest(&self) -> Option<&str> {
        match &self.reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) | Reference::None => None,
        }
    }
}

/// As people write it: `docker.io/library/alpine:3`, `docker.io/library/alpine@sha256:...`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.reference {
            Reference::None => Ok(()),
            Reference::Tag(tag) => write!(f, ":{tag}"),
            Reference::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Action, Content, Reference, Request};

    #[test]
    fn a_request_reads_as_people_write_it() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (reference, text) in [
            (Reference::None, String::new()),
            (Reference::Tag("3".to_owned()), ":3".to_owned()),
            (Reference::Digest(digest.clone()), format!("@{digest}")),
        ] {
            let request = Request {
                action: Action::Pull,
                content: Content::Manifest,
                registry: "docker.io".to_owned(),
                repository: "library/alpine".to_owned(),
                reference,
            };
            assert_eq!(request.to_string(), format!("docker.io/library/alpine{text}"));
        }
    }
}
