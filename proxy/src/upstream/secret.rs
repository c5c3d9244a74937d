//! The secret that a repository is asked with, read when it is needed, from the files that the configuration names.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use hyper::header::HeaderValue;

use super::docker;
use crate::config::{Login, Reach};
use crate::oci::{Credentials, Place};

/// Largest file that holds a secret. Units: bytes.
const FILE_MAX: u64 = 1 << 20;

/// A secret. It goes to one registry or to its token service, and into no text.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// A user and a password.
    Password { username: String, password: String },
    /// A ready token for the registry.
    Token(String),
    /// A token that the token service changes into one for the registry.
    Identity(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(..)",
            Self::Token(_) => "Token(..)",
            Self::Identity(_) => "Identity(..)",
        })
    }
}

impl Secret {
    /// The secret for a repository: of the longest prefix that has one; of two that are as long, the configuration's
    /// own before that of a docker configuration. None: it is asked as nobody.
    ///
    /// `limit`: how long a helper may take.
    ///
    /// # Errors
    /// Which file cannot be read, or which helper fails.
    pub async fn of(place: &Place, reach: &Reach, limit: Duration) -> Result<Option<Self>, String> {
        let own = reach.login(&place.repository);
        if let Some(file) = &reach.docker_config {
            let at_least = own.map_or(0, |(components, _)| components + 1);
            if let Some(secret) = docker::secret(file, place, at_least, own.is_none(), limit).await? {
                return Ok(Some(secret));
            }
        }
        let Some((_, login)) = own else { return Ok(None) };
        let text = read(login.file()).await?;
        let secret = text.trim_end_matches(['\n', '\r']).to_owned();
        Ok(Some(match login {
            Login::Password { username, .. } => Self::Password { username: username.clone(), password: secret },
            Login::Token { .. } => Self::Token(secret),
            Login::IdentityToken { .. } => Self::Identity(secret),
        }))
    }
}

impl Secret {
    /// What a caller sent.
    pub fn of_caller(shown: &Credentials) -> Self {
        Self::Password { username: shown.user.clone(), password: shown.password.clone() }
    }
}

/// The header of a user and a password.
pub(super) fn basic(username: &str, password: &str) -> HeaderValue {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    let mut value = HeaderValue::try_from(format!("Basic {pair}")).expect("base64 is a header's value");
    value.set_sensitive(true);
    value
}

/// Reads a small file.
pub(super) async fn read(file: &Path) -> Result<String, String> {
    let fail = |reason: String| format!("{} cannot be read: {reason}", file.display());
    let about = tokio::fs::metadata(file).await.map_err(|err| fail(err.to_string()))?;
    if about.len() > FILE_MAX {
        return Err(fail(format!("it is larger than {FILE_MAX} bytes")));
    }
    tokio::fs::read_to_string(file).await.map_err(|err| fail(err.to_string()))
}
