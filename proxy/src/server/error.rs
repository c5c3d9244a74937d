//! From a cause to what the client is told: status, OCI code, and a message for a person. Logged by who answers.

use std::time::Duration;

use crate::addressing::Unaddressed;
use crate::oci::Code;
use crate::oci::endpoint::NoEndpoint;
use crate::pull::{Cause, Error};

/// What a client is told.
#[derive(Debug)]
pub(super) struct Told {
    pub status: u16,
    pub code: Code,
    pub message: String,
    pub detail: Option<Box<str>>,
    pub retry_after: Option<Duration>,
    /// Whether the connection ends with it.
    pub close: bool,
    /// What the client is asked for instead of an answer.
    pub challenge: Option<Challenge>,
    /// The same as the header `WWW-Authenticate`.
    pub authenticate: Option<Box<str>>,
    /// A registry was shown the client's password just now, and says that it is wrong.
    pub wrong_password: bool,
    /// For 405: the methods that there are.
    pub allow: &'static str,
    /// The policy's decision that it tells, and the plugin that decided.
    pub denied_by: Option<String>,
}

/// What a client is asked for that has shown nothing, or nothing that holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    /// A token.
    Ask,
    /// A new one.
    Renew,
}

impl Told {
    /// An answer with nothing but its message.
    pub fn new(status: u16, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            detail: None,
            retry_after: None,
            close: false,
            allow: "GET, HEAD",
            challenge: None,
            authenticate: None,
            wrong_password: false,
            denied_by: None,
        }
    }
}

impl Told {
    /// To who is to wait before another login.
    pub fn too_many_logins(wait: Duration) -> Self {
        let message = "too many logins have failed: come again later";
        Self { retry_after: Some(wait), ..Self::new(429, Code::TooManyRequests, message) }
    }

    /// With its challenge put into words.
    pub fn challenging(self, words: impl FnOnce(Challenge) -> Option<String>) -> Self {
        let authenticate = self.challenge.and_then(words).map(Into::into).or(self.authenticate);
        Self { authenticate, ..self }
    }
}

impl From<Unaddressed> for Told {
    fn from(unaddressed: Unaddressed) -> Self {
        let message = unaddressed.to_string();
        match unaddressed {
            Unaddressed::Ns | Unaddressed::Path(NoEndpoint::Name) => Self::new(400, Code::NameInvalid, message),
            Unaddressed::Path(NoEndpoint::Digest) | Unaddressed::Digest(_) => {
                Self::new(400, Code::DigestInvalid, message)
            }
            // The only failure that the specification has for a tag that is none (end-3).
            Unaddressed::Path(NoEndpoint::Tag) => Self::new(404, Code::ManifestUnknown, message),
            Unaddressed::Page => Self::new(400, Code::Unsupported, message),
            Unaddressed::Path(NoEndpoint::NotFound) => Self::new(404, Code::Unsupported, message),
        }
    }
}

impl From<Error> for Told {
    fn from(error: Error) -> Self {
        let Error { what, unknown, cause } = error;
        match cause {
            Cause::Denied(denial) => Self {
                detail: Some(what.into()),
                retry_after: denial.retry_after,
                denied_by: Some(denial.plugin.clone()),
                ..Self::new(denial.status, denial.code, denial.to_string())
            },
            Cause::UnknownRegistry(registry) => Self::new(
                404,
                Code::NameUnknown,
                format!(
                    "{what}: this mirror does not serve {registry}; to serve it, add to tidegate.toml the line [registries.\"{registry}\"]"
                ),
            ),
            Cause::ReadOnly(registry) => Self::new(
                405,
                Code::Unsupported,
                format!(
                    "{what}: this mirror does not write to {registry}; to have it write, set `push = true` under [registries.\"{registry}\"]"
                ),
            ),
            Cause::Answered { status, code, story, detail } => {
                Self { detail: detail.map(Into::into), ..Self::new(status, code, format!("{what}: {story}")) }
            }
            Cause::Client(story) => Self {
                close: true,
                ..Self::new(400, Code::BlobUploadInvalid, format!("{what}: what was sent cannot be used: {story}"))
            },
            Cause::NotCached(because) => {
                Self::new(403, Code::Denied, format!("{what} is not in the cache, and {because}"))
            }
            Cause::NotFound(story) => Self::new(404, unknown, format!("{what} not found: {story}")),
            Cause::Refused(story) => Self::new(403, Code::Denied, format!("{what} is refused to this mirror: {story}")),
            Cause::Guesses(wait) => Self::too_many_logins(wait),
            Cause::NotYours { who, story, wrong_password } => {
                Self { wrong_password, ..Self::new(403, Code::Denied, format!("{what} is refused to {who}: {story}")) }
            }
            Cause::TooManyRequests(story, after) => Self {
                retry_after: Some(after.unwrap_or(Duration::from_secs(10))),
                ..Self::new(429, Code::TooManyRequests, format!("{what}: {story}"))
            },
            Cause::Timeout(story) => Self::new(504, unknown, format!("{what} cannot be had now: {story}")),
            Cause::Corrupt(story) => Self {
                detail: Some(Code::ManifestInvalid.as_str().into()),
                ..Self::new(502, unknown, format!("{what} cannot be had right: {story}"))
            },
            Cause::Unavailable(story) => Self::new(502, unknown, format!("{what} cannot be had now: {story}")),
        }
    }
}
