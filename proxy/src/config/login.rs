//! Credentials of a registry or of a part of it: which, and in which file. The files are read when they are needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::file;
use super::source::{ConfigError, Source};

/// Largest file that holds a secret. Units: bytes.
const SECRET_MAX: u64 = 1 << 20;

/// What a registry is asked with. The secret itself is in the file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Login {
    /// A user and a password: to the registry that asks for them, or to its token service.
    Password {
        /// The user.
        username: String,
        /// Its password is the content of this file, without the last line end.
        file: PathBuf,
    },
    /// A ready token: to the registry, as it is.
    Token {
        /// The token is the content of this file, without the last line end.
        file: PathBuf,
    },
    /// A token that its token service changes into one for the registry.
    IdentityToken {
        /// The token is the content of this file, without the last line end.
        file: PathBuf,
    },
}

impl Login {
    /// Where its secret is.
    pub fn file(&self) -> &Path {
        match self {
            Self::Password { file, .. } | Self::Token { file } | Self::IdentityToken { file } => file,
        }
    }
}

/// A warning about a secret that every user of the machine can read.
pub(super) fn readable_by_all(file: &Path) -> Option<String> {
    let mode = fs::metadata(file).ok()?.permissions().mode();
    (mode & 0o004 != 0)
        .then(|| format!("{} holds a secret, and every user of this machine can read it: chmod o-r", file.display()))
}

impl Source<'_> {
    /// The credentials of a table; none where it names none.
    pub fn login(&self, typed: file::Login, table: &str) -> Result<Option<Login>, ConfigError> {
        let key = |name: &str| format!("{table}.{name}");
        let password = match (typed.username, typed.password_file) {
            (Some(username), Some(file)) => {
                let span = file.span();
                let file = self.secret_file(file, &key("password_file"), "the password")?;
                if username.get_ref().contains(':') {
                    return Err(
                        self.error(&username.span(), &format!("{}: a user name has no colon in it", key("username")))
                    );
                }
                Some((span, Login::Password { username: username.into_inner(), file }))
            }
            (None, None) => None,
            (Some(username), None) => {
                let message = format!("{}: needs {} beside it", key("username"), key("password_file"));
                return Err(self.error(&username.span(), &message));
            }
            (None, Some(file)) => {
                let message = format!("{}: needs {} beside it", key("password_file"), key("username"));
                return Err(self.error(&file.span(), &message));
            }
        };
        let token = match typed.token_file {
            Some(file) => {
                let span = file.span();
                Some((span, Login::Token { file: self.secret_file(file, &key("token_file"), "the token")? }))
            }
            None => None,
        };
        let identity = match typed.identity_token_file {
            Some(file) => {
                let span = file.span();
                let file = self.secret_file(file, &key("identity_token_file"), "the token")?;
                Some((span, Login::IdentityToken { file }))
            }
            None => None,
        };
        let mut named = [password, token, identity].into_iter().flatten();
        let first = named.next();
        if let Some((span, _)) = named.next() {
            let message = format!(
                "{table}: has several of `password_file`, `token_file` and `identity_token_file`; leave one of them"
            );
            return Err(self.error(&span, &message));
        }
        Ok(first.map(|(_, login)| login))
    }

    /// A file that can be read now, and holds something; `what` it holds stands in errors.
    pub fn secret_file(&self, typed: Spanned<PathBuf>, key: &str, what: &str) -> Result<PathBuf, ConfigError> {
        let span = typed.span();
        let file = self.absolute(typed, key)?;
        let refuse = |reason: &str| self.error(&span, &format!("{key}: {} {reason}", file.display()));
        match read_secret(&file) {
            Ok(secret) if secret.trim().is_empty() => Err(refuse(&format!("is empty: it holds {what}, in one line"))),
            Ok(_) => Ok(file),
            Err(reason) => Err(refuse(&reason)),
        }
    }

    /// A `config.json` of docker, or an `auth.json` of Podman, that can be read now.
    pub fn docker_config(&self, typed: Spanned<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
        let span = typed.span();
        let file = self.absolute(typed, key)?;
        let refuse = |reason: &str| self.error(&span, &format!("{key}: {} {reason}", file.display()));
        let text = read_secret(&file).map_err(|reason| refuse(&reason))?;
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
            Ok(_) => Ok(file),
            // What the parser says may quote a secret; the place is enough.
            Err(err) => Err(refuse(&format!("is no JSON object (line {}, column {})", err.line(), err.column()))),
        }
    }
}

/// Reads a file that holds a secret.
fn read_secret(file: &Path) -> Result<String, String> {
    let about = fs::metadata(file).map_err(|err| format!("cannot be read: {err}"))?;
    if about.is_file() && about.len() > SECRET_MAX {
        return Err(format!("is larger than {SECRET_MAX} bytes, which no secret needs"));
    }
    if about.is_dir() {
        return Err("is a folder".to_owned());
    }
    fs::read_to_string(file).map_err(|err| format!("cannot be read: {err}"))
}
