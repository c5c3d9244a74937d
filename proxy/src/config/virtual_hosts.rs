//! `[[virtual_hosts]]`: names of the mirror's own, each of which stands for a registry.

use std::collections::HashMap;
use std::ops::Range;

use toml::Spanned;

use super::source::{ConfigError, Source};
use super::tls::Tls;
use super::{Config, file};
use crate::oci::{Host, Registry};

/// All virtual hosts.
#[derive(Clone, Debug, Default)]
pub struct VirtualHosts {
    hosts: Vec<VirtualHost>,
    /// By whole name: its place among the hosts.
    names: HashMap<Host, usize>,
    /// By domain with its leading dot, the longest first.
    domains: Vec<(String, usize)>,
}

/// One entry of `[[virtual_hosts]]`.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// What its names stand for.
    pub registry: Registry,
    /// What is shown to those who ask for one of its names; none: what everybody is shown.
    pub tls: Option<Tls>,
}

impl VirtualHosts {
    /// The one that a host is a name of: a whole name goes before a domain, a longer domain before a shorter one.
    pub fn find(&self, host: &Host) -> Option<&VirtualHost> {
        let below = || self.domains.iter().find(|(domain, _)| host.is_below(domain)).map(|(_, at)| at);
        self.names.get(host).or_else(below).map(|at| &self.hosts[*at])
    }

    /// What they show, where they show something of their own.
    pub fn certificates(&self) -> impl Iterator<Item = &Tls> {
        self.hosts.iter().filter_map(|host| host.tls.as_ref())
    }

    /// Adds a name. Whether it was not there before.
    fn add(&mut self, name: Name, at: usize) -> bool {
        match name {
            Name::Whole(host) => self.names.insert(host, at).is_none(),
            Name::Below(domain) => {
                let new = self.domains.iter().all(|(known, _)| *known != domain);
                self.domains.push((domain, at));
                self.domains.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.len()));
                new
            }
        }
    }
}

enum Name {
    Whole(Host),
    /// Every name below a domain, which begins with a dot.
    Below(String),
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let domain = text.strip_prefix("*.");
        let host = Host::parse(domain.unwrap_or(text)).filter(|_| !text.ends_with('.'))?;
        match domain {
            None => Some(Self::Whole(host)),
            Some(_) => Some(Self::Below(format!(".{host}"))),
        }
    }
}

impl Source<'_> {
    /// `config`: the rest of the configuration, which says how registries are reached and what everybody is shown.
    pub fn virtual_hosts(&self, typed: Vec<file::VirtualHost>, config: &Config) -> Result<VirtualHosts, ConfigError> {
        let mut all = VirtualHosts::default();
        for (at, host) in typed.into_iter().enumerate() {
            let fail = |span: &Range<usize>, message: String| Err(self.error(span, &message));
            let registry = self.registry(&host.registry, "virtual_hosts.registry")?;
            if config.reach(&registry).is_none() {
                let message = format!(
                    "virtual_hosts.registry: {registry} is not known; to reach it, add [registries.\"{registry}\"]"
                );
                return fail(&host.registry.span(), message);
            }
            if host.names.is_empty() {
                let message =
                    "virtual_hosts.names: is empty; write the names that clients use, such as [\"quay.mirror.lan\"]";
                return fail(&host.registry.span(), message.to_owned());
            }
            for name in &host.names {
                let (span, text) = (name.span(), name.get_ref().escape_debug().to_string());
                let Some(parsed) = Name::parse(name.get_ref()) else {
                    return fail(&span, format!("virtual_hosts.names: {}", no_name(name)));
                };
                if !all.add(parsed, at) {
                    return fail(
                        &span,
                        format!("virtual_hosts.names: `{text}` stands here twice; one name is for one registry"),
                    );
                }
            }
            let shown = host.certificate.as_ref().map(Spanned::span);
            let tls = self.pair(host.certificate, host.key, "virtual_hosts")?;
            if let (None, Some(span)) = (&config.tls, shown) {
                let message =
                    "virtual_hosts.certificate: needs [tls], whose certificate is for those who ask for no name";
                return fail(&span, message.to_owned());
            }
            all.hosts.push(VirtualHost { registry, tls });
        }
        Ok(all)
    }
}

fn no_name(typed: &Spanned<String>) -> String {
    let text = typed.get_ref().escape_debug();
    let ported = Host::of_authority(typed.get_ref()).filter(|host| host.as_str() != typed.get_ref());
    match ported {
        Some(host) => format!("`{text}` is no name alone: write `{host}`; the port that clients use does not matter"),
        None => format!("`{text}` is no host name such as quay.mirror.lan or *.quay.mirror.lan"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, host: &str) -> Option<String> {
        let config = Config::parse(text, "t").expect("a configuration");
        let host = Host::of_authority(host).expect("a host");
        config.virtual_hosts.find(&host).map(|found| found.registry.to_string())
    }

    #[test]
    fn a_whole_name_goes_before_a_domain_and_a_longer_domain_before_a_shorter_one() {
        let text = "[[virtual_hosts]]\nnames = [\"Quay.mirror.lan\", \"10.0.0.1\"]\nregistry = \"quay.io\"\n\
                    [[virtual_hosts]]\nnames = [\"*.mirror.lan\"]\nregistry = \"ghcr.io\"\n\
                    [[virtual_hosts]]\nnames = [\"*.k8s.mirror.lan\"]\nregistry = \"registry.k8s.io\"\n";
        for (host, registry) in [
            ("quay.mirror.lan", Some("quay.io")),
            ("QUAY.mirror.lan.:5000", Some("quay.io")),
            ("10.0.0.1:5000", Some("quay.io")),
            ("other.mirror.lan", Some("ghcr.io")),
            ("a.b.mirror.lan", Some("ghcr.io")),
            ("a.k8s.mirror.lan", Some("registry.k8s.io")),
            ("mirror.lan", None),
            ("xmirror.lan", None),
            ("10.0.0.2", None),
        ] {
            assert_eq!(found(text, host).as_deref(), registry, "{host}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_line_and_key() {
        let entry =
            |names: &str, registry: &str| format!("[[virtual_hosts]]\nnames = {names}\nregistry = {registry}\n");
        let quay = |names: &str| entry(names, "\"quay.io\"");
        for (text, line, word) in [
            (quay("[]"), 3, "virtual_hosts.names: is empty"),
            (quay("[\"a_b\"]"), 2, "virtual_hosts.names: `a_b` is no host name"),
            (quay("[\"a.lan:5000\"]"), 2, "write `a.lan`"),
            (quay("[\"*\"]"), 2, "virtual_hosts.names"),
            (quay("[\"http://a.lan\"]"), 2, "virtual_hosts.names"),
            (quay("[\"a.lan\", \"A.LAN\"]"), 2, "twice"),
            (quay("[\"*.a.lan\"]") + &quay("[\"*.a.lan\"]"), 5, "twice"),
            (entry("[\"a.lan\"]", "\"b.lan\""), 3, "add [registries.\"b.lan\"]"),
            (entry("[\"a.lan\"]", "\"a/b\""), 3, "virtual_hosts.registry"),
            (quay("[\"a.lan\"]") + "key = \"/etc/hostname\"\n", 4, "needs virtual_hosts.certificate"),
            (quay("[\"a.lan\"]") + "sni = true\n", 4, "sni"),
            ("[[virtual_hosts]]\nnames = [\"a.lan\"]\n".to_owned(), 1, "registry"),
        ] {
            let message = Config::parse(&text, "t.toml").expect_err(&text).to_string();
            assert!(message.starts_with(&format!("t.toml:{line}: ")), "{text}: {message}");
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
