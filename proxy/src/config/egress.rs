//! `[egress]`: the proxy that the outside is reached through, and what is reached without it.

use std::path::{Path, PathBuf};

use toml::Spanned;
use url::Url;

use super::file;
use super::source::{ConfigError, Source};

/// `[egress]`
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Egress {
    /// The way out; none: as `HTTPS_PROXY` and `HTTP_PROXY` say.
    pub way: Option<Way>,
    /// Hosts, domains and networks that are reached directly; none: as `NO_PROXY` says.
    pub no_proxy: Option<Vec<String>>,
}

/// A way to a registry.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// Without a proxy, whatever the environment says.
    Direct,
    /// Through a proxy.
    Through(EgressProxy),
}

/// A proxy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EgressProxy {
    /// Its address, with the user where it asks for one, and never a password.
    pub url: Url,
    /// The password of that user is the content of this file, without the last line end.
    pub password_file: Option<PathBuf>,
}

impl Way {
    pub(super) fn secret_file(&self) -> Option<&Path> {
        match self {
            Self::Direct => None,
            Self::Through(proxy) => proxy.password_file.as_deref(),
        }
    }
}

impl Egress {
    pub(super) fn secret_file(&self) -> Option<&Path> {
        self.way.as_ref().and_then(Way::secret_file)
    }
}

impl Source<'_> {
    pub fn egress(&self, typed: file::Egress) -> Result<Egress, ConfigError> {
        let way = self.way(typed.proxy, typed.proxy_password_file, "egress")?;
        let no_proxy = match typed.no_proxy {
            None => None,
            Some(hosts) => Some(hosts.into_iter().map(|host| self.no_proxy(host)).collect::<Result<_, _>>()?),
        };
        Ok(Egress { way, no_proxy })
    }

    fn no_proxy(&self, typed: Spanned<String>) -> Result<String, ConfigError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-:*/".contains(&byte);
        if !typed.get_ref().is_empty() && typed.get_ref().bytes().all(good) {
            return Ok(typed.into_inner());
        }
        let message = format!(
            "egress.no_proxy: `{}` is no host, domain or network; write each by itself, such as \"registry.lan\", \".lan\" or \"10.0.0.0/8\"",
            typed.get_ref().escape_debug()
        );
        Err(self.error(&typed.span(), &message))
    }

    /// `proxy` and `proxy_password_file` of a table.
    pub fn way(
        &self,
        proxy: Option<Spanned<String>>,
        password_file: Option<Spanned<PathBuf>>,
        table: &str,
    ) -> Result<Option<Way>, ConfigError> {
        let key = format!("{table}.proxy");
        let Some(proxy) = proxy else {
            return match password_file {
                None => Ok(None),
                Some(file) => {
                    Err(self.error(&file.span(), &format!("{table}.proxy_password_file: needs {key} beside it")))
                }
            };
        };
        // What is typed may hold a password: it is never quoted.
        let fail = |reason: &str| Err(self.error(&proxy.span(), &format!("{key}: {reason}")));
        if proxy.get_ref() == "off" {
            return match password_file {
                None => Ok(Some(Way::Direct)),
                Some(_) => fail("is off, and has a `proxy_password_file`; remove one of them"),
            };
        }
        let Ok(url) = Url::parse(proxy.get_ref()) else {
            return fail("is no address such as http://proxy.lan:3128, nor \"off\"");
        };
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return fail("is no address that begins with http:// or https://");
        }
        if url.password().is_some() {
            return fail("has a password in it; write it into a file, and name that as `proxy_password_file`");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return fail("has something behind the host");
        }
        let password_file = match password_file {
            Some(file) if url.username().is_empty() => {
                let message =
                    format!("{table}.proxy_password_file: needs a user: write {key} as http://USER@HOST:PORT");
                return Err(self.error(&file.span(), &message));
            }
            Some(file) => {
                Some(self.secret_file(file, &format!("{table}.proxy_password_file"), "the password of the proxy")?)
            }
            None => None,
        };
        Ok(Some(Way::Through(EgressProxy { url, password_file })))
    }
}
