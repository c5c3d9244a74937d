//! `[intercept]`: the registries that the proxy stands in for when clients connect to them through it, and what becomes of
//! connections to others.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::authority::Authority;
use super::source::{ConfigError, Source};
use super::{Config, file};
use crate::oci::{Host, Registry};

/// Where the authority is when no folder is named.
const DEFAULT_DIR: &str = "/var/lib/tidegate/ca";
/// Where https is spoken.
const HTTPS: u16 = 443;

/// `[intercept]`
#[derive(Clone, Debug)]
pub struct Intercept {
    /// Vouches for the registries.
    pub authority: Authority,
    /// What becomes of connections to other hosts.
    pub others: Others,
    /// By the host and port that clients connect to.
    registries: HashMap<(Host, u16), Registry>,
    /// Further hosts that tunnels may lead to, private ones too; a domain begins with a dot.
    tunnel_hosts: Vec<(String, u16)>,
}

/// What becomes of a connection to a host that is not intercepted.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum Others {
    /// It is refused.
    #[default]
    Refuse,
    /// Its bytes are carried both ways.
    Tunnel,
}

/// What `[intercept]` says of the authority, whether there is one or not.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its folder.
    pub ca_dir: PathBuf,
    /// The registries that it is for.
    pub registries: Vec<Registry>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { ca_dir: PathBuf::from(DEFAULT_DIR), registries: Vec::new() }
    }
}

impl Intercept {
    /// The registry that a client means that connects to a host; none: it is not intercepted.
    pub fn registry(&self, host: &Host, port: u16) -> Option<&Registry> {
        self.registries.get(&(host.clone(), port))
    }

    /// The registries, in the order of their names.
    pub fn registries(&self) -> Vec<Registry> {
        let mut registries: Vec<_> = self.registries.values().cloned().collect();
        registries.sort();
        registries.dedup();
        registries
    }

    /// Whether a tunnel may lead to a host, also to a private address.
    pub fn names(&self, host: &Host, port: u16) -> bool {
        self.tunnel_hosts.iter().any(|(name, at)| {
            *at == port && if name.starts_with('.') { host.is_below(name) } else { host.as_str() == name }
        })
    }

    /// Whether a tunnel may lead to a host's port, where its address is a public one.
    pub fn may_tunnel(&self, host: &Host, port: u16) -> bool {
        port == HTTPS || self.names(host, port)
    }
}

/// Every host and port that a registry is reached at under its own names.
fn places(registry: &Registry) -> impl Iterator<Item = (Host, u16)> + '_ {
    let names: &[&str] = match registry.as_str() {
        Registry::DOCKER_HUB => &["docker.io", "index.docker.io", "registry-1.docker.io"],
        _ => &[registry.host()],
    };
    let hosts: Vec<Host> = names.iter().filter_map(|name| Host::parse(name)).collect();
    hosts.into_iter().map(|host| (host, registry.port().unwrap_or(HTTPS)))
}

impl Wanted {
    /// What the file says, before an authority is there.
    ///
    /// # Errors
    /// When the file cannot be read, or names no registries.
    pub fn open(file: &Path) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|err| ConfigError {
            file: name.clone(),
            line: None,
            message: format!("cannot be read: {err}"),
        })?;
        let source = Source { text: &text, name: &name };
        let typed: file::File = toml::from_str(&text).map_err(|err| source.syntax(&err))?;
        match typed.intercept {
            None => Ok(Self::default()),
            Some(typed) => source.wanted(&typed),
        }
    }
}

impl Source<'_> {
    /// `config`: the rest of the configuration, which says how registries are reached.
    pub fn intercept(&self, typed: &file::Intercept, config: &Config) -> Result<Intercept, ConfigError> {
        let wanted = self.wanted(typed)?;
        let table = self.span_of("[intercept]");
        let at = typed.ca_dir.as_ref().map_or(table, Spanned::span);
        let authority = Authority::open(&wanted.ca_dir)
            .map_err(|reason| self.error(&at, &format!("intercept.ca_dir: {reason}")))?;
        let mut registries = HashMap::new();
        for (typed, registry) in typed.registries.iter().zip(wanted.registries) {
            let fail = |reason: String| {
                let message = format!("intercept.registries: {registry} {reason}");
                Err(self.error(&typed.span(), &message))
            };
            if config.reach(&registry).is_none() {
                return fail(format!("is not known; to reach it, add [registries.\"{registry}\"]"));
            }
            for (host, port) in places(&registry) {
                if !authority.vouches_for(&host) {
                    let file = authority.file.display();
                    return fail(format!(
                        "is outside of the domains that {file} may vouch for; make another authority"
                    ));
                }
                if registries.insert((host, port), registry.clone()).is_some() {
                    return fail("stands here twice".to_owned());
                }
            }
        }
        let mut tunnel_hosts = Vec::new();
        for host in &typed.tunnel_hosts {
            if typed.others.unwrap_or_default() == Others::Refuse {
                let message = "intercept.tunnel_hosts: needs others = \"tunnel\"; without it there are no tunnels";
                return Err(self.error(&host.span(), message));
            }
            tunnel_hosts.push(self.tunnel_host(host)?);
        }
        Ok(Intercept { authority, others: typed.others.unwrap_or_default(), registries, tunnel_hosts })
    }

    fn wanted(&self, typed: &file::Intercept) -> Result<Wanted, ConfigError> {
        let mut registries = Vec::new();
        for registry in &typed.registries {
            registries.push(self.registry(registry, "intercept.registries")?);
        }
        if registries.is_empty() {
            let message =
                "intercept.registries: is empty; write the registries that clients pull from, such as [\"quay.io\"]";
            return Err(self.error(&self.span_of("[intercept]"), message));
        }
        let ca_dir = match &typed.ca_dir {
            Some(dir) => self.absolute(dir.clone(), "intercept.ca_dir")?,
            None => PathBuf::from(DEFAULT_DIR),
        };
        Ok(Wanted { ca_dir, registries })
    }

    /// `HOST`, `HOST:PORT`, or `*.DOMAIN` with or without a port. Without one it is that of https.
    fn tunnel_host(&self, typed: &Spanned<String>) -> Result<(String, u16), ConfigError> {
        let text = typed.get_ref();
        let domain = text.strip_prefix("*.");
        let parsed = Host::with_port(domain.unwrap_or(text)).map(|(host, port)| {
            let name = if domain.is_some() { format!(".{host}") } else { host.as_str().to_owned() };
            (name, port.unwrap_or(HTTPS))
        });
        parsed.ok_or_else(|| {
            let text = text.escape_debug();
            let message =
                format!("intercept.tunnel_hosts: `{text}` is no host such as charts.lan, charts.lan:8443 or *.lan");
            self.error(&typed.span(), &message)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    /// The folder of an authority.
    fn authority() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join(Authority::CERTIFICATE), certificate.pem()).expect("written");
        std::fs::write(dir.path().join(Authority::KEY), key.serialize_pem()).expect("written");
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.path().join(Authority::KEY), private).expect("set");
        dir
    }

    fn typed(dir: &tempfile::TempDir, lines: &str) -> String {
        format!("[registries.\"r.lan:5000\"]\n[intercept]\nca_dir = \"{}\"\n{lines}\n", dir.path().display())
    }

    #[test]
    fn a_registry_is_found_under_all_of_its_names_and_its_own_port() {
        let dir = authority();
        let lines = "registries = [\"index.docker.io\", \"quay.io\", \"r.lan:5000\"]\nothers = \"tunnel\"\n\
                     tunnel_hosts = [\"a.lan\", \"b.lan:8443\", \"*.c.lan\", \"[::1]:1\", \"index.docker.io:80\"]";
        let config = Config::parse(&typed(&dir, lines), "t").expect("a configuration");
        let intercept = config.intercept.expect("a table");
        for (host, port, registry) in [
            ("docker.io", 443, Some("docker.io")),
            ("registry-1.docker.io", 443, Some("docker.io")),
            ("auth.docker.io", 443, None),
            ("quay.io", 443, Some("quay.io")),
            ("quay.io", 80, None),
            ("r.lan", 5000, Some("r.lan:5000")),
            ("r.lan", 443, None),
        ] {
            let found = intercept.registry(&Host::parse(host).expect("a host"), port);
            assert_eq!(found.map(Registry::as_str), registry, "{host}:{port}");
        }
        for (host, port, named, may) in [
            ("a.lan", 443, true, true),
            ("a.lan", 80, false, false),
            ("b.lan", 8443, true, true),
            ("b.lan", 443, false, true),
            ("x.c.lan", 443, true, true),
            ("c.lan", 443, false, true),
            ("::1", 1, true, true),
            ("index.docker.io", 80, true, true),
        ] {
            let host = Host::parse(host).expect("a host");
            assert_eq!(
                (intercept.names(&host, port), intercept.may_tunnel(&host, port)),
                (named, may),
                "{host}:{port}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_line_and_key() {
        let dir = authority();
        for (lines, line, word) in [
            ("registries = []", 2, "intercept.registries: is empty"),
            ("registries = [\"a/b\"]", 4, "intercept.registries"),
            ("registries = [\"unknown.lan\"]", 4, "add [registries.\"unknown.lan\"]"),
            ("registries = [\"docker.io\", \"index.docker.io\"]", 4, "stands here twice"),
            ("registries = [\"quay.io\"]\nothers = \"allow\"", 5, "others"),
            ("registries = [\"quay.io\"]\ntunnel_hosts = [\"a.lan\"]", 5, "needs others = \"tunnel\""),
            (
                "registries = [\"quay.io\"]\nothers = \"tunnel\"\ntunnel_hosts = [\"http://a\"]",
                6,
                "`http://a` is no host",
            ),
            ("registries = [\"quay.io\"]\nothers = \"tunnel\"\ntunnel_hosts = [\"*\"]", 6, "intercept.tunnel_hosts"),
            ("others = \"refuse\"", 2, "registries"),
        ] {
            let message = Config::parse(&typed(&dir, lines), "t.toml").expect_err(lines).to_string();
            assert!(message.starts_with(&format!("t.toml:{line}: ")), "{lines}: {message}");
            assert!(message.contains(word), "{lines}: {message}");
        }
    }
}
