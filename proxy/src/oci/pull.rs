//! One pull: what is asked for, where it may come from, and what went wrong there.

use std::fmt;
use std::time::Duration;

use super::digest::Digest;
use super::name::{Reference, Registry, Repository};

/// How the client named the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addressing {
    /// The query parameter `ns`, as containerd sends it.
    Ns,
    /// The host that the client talks to, one of `[[virtual_hosts]]`.
    VirtualHost,
    /// The first segment of the path.
    Path,
    /// Not at all: the default registry.
    Default,
    /// By the connection, which the client believes to be the registry's own.
    Intercepted,
}

impl Addressing {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Ns, Self::VirtualHost, Self::Path, Self::Default, Self::Intercepted];

    /// The word for it in a log, and for plugins.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ns => "ns",
            Self::VirtualHost => "virtual-host",
            Self::Path => "path",
            Self::Default => "default",
            Self::Intercepted => "intercept",
        }
    }

    /// The one that a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|addressing| addressing.as_str() == word)
    }
}

impl Addressing {
    /// The address of a resource of a repository, as a client finds it that names registries so. It has no host: the
    /// client stays with the one that it talks to.
    pub fn target(self, place: &Place, resource: &str, query: &str) -> String {
        let Place { registry, repository } = place;
        let path = match self {
            Self::Path => format!("/v2/{registry}/{repository}/{resource}"),
            Self::Ns | Self::VirtualHost | Self::Default | Self::Intercepted => {
                format!("/v2/{repository}/{resource}")
            }
        };
        let query = match (self, query) {
            (Self::Ns, "") => format!("?ns={registry}"),
            (Self::Ns, query) => format!("?{query}&ns={registry}"),
            (_, "") => String::new(),
            (_, query) => format!("?{query}"),
        };
        path + &query
    }
}

/// Whether the client wants the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Headers and body.
    Get,
    /// The same headers, and no body.
    Head,
}

impl Method {
    /// The method's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

/// A repository of a registry: what a link in the cache is keyed by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// By its name, never by its address.
    pub registry: Registry,
    /// As the registry itself calls it.
    pub repository: Repository,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// What a client asks for in a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A manifest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
    /// The list of tags.
    Tags,
    /// What refers to a digest.
    Referrers(Digest),
}

impl Content {
    /// The word for its kind: a label of metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "manifest",
            Self::Blob(_) => "blob",
            Self::Tags => "tags",
            Self::Referrers(_) => "referrers",
        }
    }

    /// The code that says that there is none.
    pub fn unknown(&self) -> super::Code {
        match self {
            Self::Manifest(_) | Self::Referrers(_) => super::Code::ManifestUnknown,
            Self::Blob(_) => super::Code::BlobUnknown,
            Self::Tags => super::Code::NameUnknown,
        }
    }
}

/// One pull request, as the client named it.
#[derive(Clone, Debug)]
pub struct Pull {
    /// The repository, in canonical form.
    pub place: Place,
    /// What of it.
    pub content: Content,
    /// With or without its body.
    pub method: Method,
    /// How the registry was named.
    pub addressing: Addressing,
}

impl fmt::Display for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        match &self.content {
            Content::Manifest(Reference::Tag(tag)) => write!(f, "{place}:{tag}"),
            Content::Manifest(Reference::Digest(digest)) => write!(f, "{place}@{digest}"),
            Content::Blob(digest) => write!(f, "blob {digest} of {place}"),
            Content::Tags => write!(f, "tags of {place}"),
            Content::Referrers(digest) => write!(f, "referrers of {place}@{digest}"),
        }
    }
}

/// A place to try, as the routing hooks gave it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Registry and repository there.
    pub place: Place,
    /// How long to wait for the headers; none: the host's own limit.
    pub timeout: Option<Duration>,
    /// When to start the next candidate beside this one.
    pub hedge_after: Option<Duration>,
    /// What plugins said of it in open-ended words.
    pub options: Vec<(String, String)>,
}

impl Candidate {
    /// A candidate with no opinion about it.
    pub fn plain(place: Place) -> Self {
        Self { place, timeout: None, hedge_after: None, options: Vec::new() }
    }
}

/// Why an attempt at a candidate failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No connection.
    Connect(String),
    /// A connection, but no TLS.
    Tls(String),
    /// No answer in time, or a body that stalled.
    Timeout,
    /// An answer that is none.
    Status(u16),
    /// Our credentials were refused, or the token service failed.
    Auth {
        /// What was said.
        reason: String,
        /// The registry itself refused (else its token service could not be asked).
        refused: bool,
        /// It was shown a user and a password for this very answer, and says that they are none (401).
        wrong_password: bool,
    },
    /// The bytes do not hash to the digest.
    DigestMismatch,
    /// The body ended before its length.
    Truncated,
    /// Anything else that is the upstream's fault.
    Other(String),
}

impl Failure {
    /// The same as it is known from before: nobody has tried a password for it now.
    #[must_use]
    pub fn remembered(&self) -> Self {
        match self.clone() {
            Self::Auth { reason, refused, .. } => Self::Auth { reason, refused, wrong_password: false },
            failure => failure,
        }
    }

    /// A word for it: a label of a metric.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::Timeout => "timeout",
            Self::Status(404) => "not-found",
            Self::Status(429) => "too-many-requests",
            Self::Status(_) => "status",
            Self::Auth { .. } => "auth",
            Self::DigestMismatch => "digest-mismatch",
            Self::Truncated => "truncated",
            Self::Other(_) => "other",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(reason) => write!(f, "no connection: {reason}"),
            Self::Tls(reason) => write!(f, "TLS failed: {reason}"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Status(404) => f.write_str("not found (404)"),
            Self::Status(429) => f.write_str("too many requests (429)"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Auth { reason, .. } => write!(f, "authentication failed: {reason}"),
            Self::DigestMismatch => f.write_str("the content does not match its digest"),
            Self::Truncated => f.write_str("the body ended early"),
            Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// One attempt at one candidate, and how it failed.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What was tried.
    pub candidate: Candidate,
    /// How it failed.
    pub failure: Failure,
    /// From its start to its failure.
    pub duration: Duration,
    /// What it brought of the body. Units: bytes.
    pub bytes: u64,
    /// What the registry asked for.
    pub retry_after: Option<Duration>,
    /// What the registry told of its limits: header and value.
    pub rate_limit: Vec<(String, String)>,
}

/// A denial by a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    /// Status of the answer, 400 to 599.
    pub status: u16,
    /// OCI error code.
    pub code: super::Code,
    /// Which plugin denies.
    pub plugin: String,
    /// What it says to the client.
    pub message: String,
    /// When to come again.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (policy {})", self.message, self.plugin)
    }
}
