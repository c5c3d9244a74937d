//! `[registries]`: how each registry is reached, and which addresses nobody is led to.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::Spanned;
use url::Url;

use super::callers::Callers;
use super::egress::Way;
use super::login::Login;
use super::source::{ConfigError, Source};
use super::trust::Trust;
use super::{file, known};
use crate::oci::{Registry, Repository};

/// How a registry is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Its address, without a path.
    pub url: Url,
    /// Whether the operator named it, so that private addresses are meant.
    pub listed: bool,
    /// What it is asked with, by prefix of the repository, the longest first; the one of the whole registry has none.
    logins: Vec<(Option<Repository>, Login)>,
    /// Where docker's or Podman's logins are, for repositories that have none here.
    pub docker_config: Option<PathBuf>,
    /// Further hosts that it may redirect to, or have its token service on: `HOST`, `HOST:PORT`, `*.DOMAIN`.
    pub redirect_hosts: Vec<String>,
    /// Whom we believe that it is it, and who we say that we are.
    pub trust: Trust,
    /// The way there, where it has one of its own.
    pub way: Option<Way>,
    /// What it has to do with who asks.
    pub callers: Callers,
    /// Whether it is written to.
    pub push: bool,
}

impl Reach {
    /// A public registry that nobody listed.
    pub fn unlisted(url: Url, docker_config: Option<PathBuf>) -> Self {
        let (logins, redirect_hosts, trust, callers) = Default::default();
        Self { url, listed: false, logins, docker_config, redirect_hosts, trust, way: None, callers, push: false }
    }

    /// Whether callers' own credentials are of use to it.
    pub fn asks_callers(&self) -> bool {
        self.callers != Callers::default()
    }

    /// What a repository is asked with: of the longest prefix that covers it, component by component.
    /// With the number of components that the prefix has.
    pub fn login(&self, repository: &Repository) -> Option<(usize, &Login)> {
        let covers = |(prefix, login)| match prefix {
            None => Some((0, login)),
            Some(prefix) => repository.is_within(prefix).then(|| (prefix.as_str().split('/').count(), login)),
        };
        self.logins.iter().map(|(prefix, login)| (prefix.as_ref(), login)).find_map(covers)
    }

    /// Whether the operator allows a host by its name, with or without its port, or by its domain.
    pub fn allows(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        self.redirect_hosts.iter().any(|allowed| match allowed.strip_prefix('*') {
            // The dot is left in front: a name below the domain, never one that only ends like it.
            Some(domain) => host.len() > domain.len() && host.ends_with(domain),
            None => allowed == host || Some(allowed) == with_port.as_ref(),
        })
    }

    /// Says aloud that nobody verifies who answers.
    pub(super) fn insecurity(&self, registry: &Registry) -> Option<String> {
        self.trust.insecure.then(|| {
            format!(
                "registries.\"{registry}\".insecure: the certificate of {} is not verified: whoever stands in between can pose as it, and learn its credentials; name its authority with `ca_file` instead",
                self.url.host_str().unwrap_or_default()
            )
        })
    }

    /// The files that hold secrets.
    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let logins = self.logins.iter().map(|(_, login)| login.file());
        let way = self.way.as_ref().and_then(Way::secret_file);
        logins.chain(self.docker_config.as_deref()).chain(self.trust.client.as_ref().map(|pair| &*pair.key)).chain(way)
    }
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
    pub fn reach(
        &self,
        registry: &Registry,
        typed: file::Registry,
        listen: SocketAddr,
        docker_config: Option<&PathBuf>,
    ) -> Result<Reach, ConfigError> {
        let table = format!("registries.\"{registry}\"");
        let key = |name: &str| format!("{table}.{name}");
        let url = match &typed.url {
            Some(url) => self.url(url, &key("url"), listen)?,
            None => known::address(registry).expect("a registry's name makes an address"),
        };
        let mut logins = Vec::new();
        for (prefix, login) in typed.repositories {
            let Some(parsed) = Repository::parse(prefix.get_ref()) else {
                let message = format!(
                    "{}: `{}` is no prefix of repositories: write whole components, such as org or org/team",
                    key("repositories"),
                    prefix.get_ref().escape_debug()
                );
                return Err(self.error(&prefix.span(), &message));
            };
            let table = format!("{}.\"{parsed}\"", key("repositories"));
            let Some(login) = self.login(login, &table)? else {
                let message = format!("{table}: names no credentials; write `username` and `password_file`");
                return Err(self.error(&prefix.span(), &message));
            };
            logins.push((Some(parsed), login));
        }
        logins.sort_by_key(|(prefix, _)| {
            std::cmp::Reverse(prefix.as_ref().map_or(0, |prefix| prefix.as_str().split('/').count()))
        });
        let own = file::Login {
            username: typed.username,
            password_file: typed.password_file,
            token_file: typed.token_file,
            identity_token_file: typed.identity_token_file,
        };
        logins.extend(self.login(own, &table)?.map(|login| (None, login)));
        let docker_config = match typed.docker_config {
            Some(file) => Some(self.docker_config(file, &key("docker_config"))?),
            None => docker_config.cloned(),
        };
        let mut redirect_hosts = Vec::new();
        for host in typed.redirect_hosts {
            redirect_hosts.push(self.redirect_host(&host, &key("redirect_hosts"))?);
        }
        if typed.insecure && url.scheme() == "http" {
            let message = format!("{}: its address is http, which has no certificate to verify", key("insecure"));
            return Err(self.error(&self.span_of(&format!("[{table}]")), &message));
        }
        let trust = self.trust(typed.ca_file, typed.client_cert, typed.client_key, typed.insecure, &table)?;
        let way = self.way(typed.proxy, typed.proxy_password_file, &table)?;
        let callers = self.callers(typed.credentials, typed.authorize, typed.authorize_ttl, &table)?;
        let push = typed.push;
        Ok(Reach { url, listed: true, logins, docker_config, redirect_hosts, trust, way, callers, push })
    }

    /// `HOST`, `HOST:PORT`, or `*.DOMAIN` for every name below a domain.
    fn redirect_host(&self, typed: &Spanned<String>, key: &str) -> Result<String, ConfigError> {
        let Some(domain) = typed.get_ref().strip_prefix("*.") else {
            return Ok(self.registry(typed, key)?.as_str().to_owned());
        };
        match Registry::parse(domain) {
            Some(parsed) if !domain.contains([':', '[']) => Ok(format!("*.{parsed}")),
            _ => {
                let message = format!("{key}: `{}` is no domain such as *.example.com", typed.get_ref().escape_debug());
                Err(self.error(&typed.span(), &message))
            }
        }
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
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        if url.port_or_known_default() == Some(listen.port()) && host.parse().is_ok_and(own) {
            return fail("is the address that Tidegate itself listens on: it would ask itself");
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_longest_prefix_of_whole_components_wins() {
        let file = std::env::current_exe().expect("a test has a file");
        let file = file.parent().expect("in a folder").join("a-token-for-this-test");
        std::fs::write(&file, "t\n").expect("a file");
        let file = file.display();
        let text = format!(
            "[registries.\"quay.io\"]\ntoken_file = \"{file}\"\n\
             [registries.\"quay.io\".repositories.\"org\"]\nusername = \"org\"\npassword_file = \"{file}\"\n\
             [registries.\"quay.io\".repositories.\"org/team\"]\nidentity_token_file = \"{file}\"\n"
        );
        let config = Config::parse(&text, "t").expect("a configuration");
        let reach = config.reach(&Registry::parse("quay.io").expect("a registry")).expect("listed");
        for (repository, components) in
            [("org/team", 2), ("org/team/app", 2), ("org/teams", 1), ("org/app", 1), ("organ/team", 0), ("other", 0)]
        {
            let found = reach.login(&Repository::parse(repository).expect("a repository")).expect("a login");
            assert_eq!(found.0, components, "{repository}");
            let kind = matches!(
                (components, found.1),
                (0, Login::Token { .. }) | (1, Login::Password { .. }) | (2, Login::IdentityToken { .. })
            );
            assert!(kind, "{repository}: {:?}", found.1);
        }
    }

    #[test]
    fn u11_a_domain_allows_what_is_below_it() {
        let text = "[registries.\"h.lan\"]\nredirect_hosts = [\"*.cdn.example.com\", \"one.lan\", \"two.lan:444\"]";
        let config = Config::parse(text, "t").expect("a configuration");
        let reach = config.reach(&Registry::parse("h.lan").expect("a registry")).expect("listed");
        for (url, allowed) in [
            ("https://a.cdn.example.com/x", true),
            ("https://b.a.cdn.example.com:8443/x", true),
            ("https://cdn.example.com/", false),
            ("https://evilcdn.example.com/", false),
            ("https://a.cdn.example.com.evil.net/", false),
            ("https://one.lan:8443/", true),
            ("https://two.lan:444/", true),
            ("https://two.lan/", false),
        ] {
            assert_eq!(reach.allows(&Url::parse(url).expect("an address")), allowed, "{url}");
        }
    }
}
