//! `[registries]`: how each registry is reached, and which addresses nobody is led to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use toml::Spanned;
use url::Url;

use super::source::{ConfigError, Source};
use super::{file, known};
use crate::oci::Registry;

/// How a registry is reached.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Its address, without a path.
    pub url: Url,
    /// Whether the operator named it, so that private addresses are meant.
    pub listed: bool,
    /// What it is asked with.
    pub credentials: Option<Credentials>,
    /// Further hosts that it may redirect to, or have its token service on.
    pub redirect_hosts: Vec<String>,
}

/// A user, and where the password is.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// Its password is the content of this file, without the last line end.
    pub password_file: PathBuf,
}

/// Whether a name stands for a private address by itself. What a name resolves to is checked when it is dialled.
pub(super) fn is_private_name(registry: &Registry) -> bool {
    let host = registry.host();
    host == "localhost" || !host.contains(['.', ':']) || host.parse().is_ok_and(|address| !is_public(address))
}

/// Whether an address is one of the public internet: not loopback, private, link-local, shared, multicast or reserved.
///
/// Source: IANA special-purpose address registries (RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && b & 0xc0 == 64)
                || (a == 198 && b & 0xfe == 18)
                || (a == 192 && b == 0 && c == 0))
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_public(IpAddr::V4(v4));
            }
            let [first, second, ..] = v6.segments();
            // Global unicast is 2000::/3 (RFC 4291); of it, 2001:db8::/32 is documentation, 2002::/16 is 6to4,
            // which wraps IPv4 addresses, private ones too.
            first & 0xe000 == 0x2000 && !(first == 0x2001 && second == 0xdb8) && first != 0x2002
        }
    }
}

impl Source<'_> {
    pub fn reach(&self, registry: &Registry, typed: file::Registry, listen: SocketAddr) -> Result<Reach, ConfigError> {
        let key = |name: &str| format!("registries.\"{registry}\".{name}");
        let url = match &typed.url {
            Some(url) => self.url(url, &key("url"), listen)?,
            None => known::address(registry).expect("a registry's name makes an address"),
        };
        let credentials = match (typed.username, typed.password_file) {
            (Some(username), Some(file)) => {
                let span = file.span();
                let password_file = self.absolute(file, &key("password_file"))?;
                let refuse = |reason: &str| {
                    let message = format!("{}: {} {reason}", key("password_file"), password_file.display());
                    self.error(&span, &message)
                };
                let password = std::fs::read_to_string(&password_file);
                let password = password.map_err(|err| refuse(&format!("cannot be read: {err}")))?;
                if password.trim().is_empty() {
                    return Err(refuse("is empty: it holds the password, in one line"));
                }
                if username.get_ref().contains(':') {
                    return Err(
                        self.error(&username.span(), &format!("{}: a user name has no colon in it", key("username")))
                    );
                }
                Some(Credentials { username: username.into_inner(), password_file })
            }
            (None, None) => None,
            (Some(username), None) => {
                return Err(self.error(
                    &username.span(),
                    &format!("{}: needs {} beside it", key("username"), key("password_file")),
                ));
            }
            (None, Some(file)) => {
                return Err(
                    self.error(&file.span(), &format!("{}: needs {} beside it", key("password_file"), key("username")))
                );
            }
        };
        let mut redirect_hosts = Vec::new();
        for host in typed.redirect_hosts {
            redirect_hosts.push(self.registry(&host, &key("redirect_hosts"))?.as_str().to_owned());
        }
        Ok(Reach { url, listed: true, credentials, redirect_hosts })
    }

    fn url(&self, typed: &Spanned<String>, key: &str, listen: SocketAddr) -> Result<Url, ConfigError> {
        let fail = |reason: &str| Err(self.error(&typed.span(), &format!("{key}: {reason}")));
        let Ok(url) = Url::parse(typed.get_ref()) else {
            return fail("is no address such as https://registry.lan:5000");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return fail("has credentials in it; write them as `username` and `password_file`");
        }
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return fail("is no address that begins with http:// or https://");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return fail("has something behind the host; a registry answers under /v2/ of its host");
        }
        let own = |address: IpAddr| address == listen.ip() || (listen.ip().is_unspecified() && address.is_loopback());
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if url.port_or_known_default() == Some(listen.port()) && host.parse().is_ok_and(own) {
            return fail("is the address that Tidegate itself listens on: it would ask itself");
        }
        Ok(url)
    }
}
