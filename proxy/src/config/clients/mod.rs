//! `[clients]`: who may ask, how they show who they are, and where their address stands.

mod users;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::header::HeaderName;
use ipnet::IpNet;
use rustls::RootCertStore;
use toml::Spanned;

use super::file;
use super::source::{ConfigError, Source};
use super::trust::read_certificates;
use super::watch::Read;

pub use users::{User, Users};

/// The word for the PROXY protocol among the places where an address may stand.
const PROXY_PROTOCOL: &str = "proxy-protocol";

/// `[clients]`
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// From where anybody may ask; none: from everywhere.
    anonymous: Option<Vec<IpNet>>,
    /// Who has a password here; none: nobody can show one.
    pub users: Option<Arc<Users>>,
    /// Whose certificates say who a client is; none: no client is asked for one.
    pub certificates: Option<Authorities>,
    /// Who speaks for clients.
    trusted_proxies: Vec<IpNet>,
    /// Where a trusted proxy says who the client is; none: nowhere.
    pub address_from: Option<AddressFrom>,
    /// The files whose contents are part of this.
    pub(super) files: Vec<Read>,
}

/// Where a trusted proxy says for whom it asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AddressFrom {
    /// In front of all that the connection brings.
    ProxyProtocol,
    /// In a header of each request.
    Header(HeaderName),
}

/// Authorities that vouch for clients.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// Their certificates.
    pub roots: Arc<RootCertStore>,
    /// Where they were read from.
    pub file: PathBuf,
}

impl Clients {
    /// Whether a client may ask that does not say who it is.
    pub fn may_be_anonymous(&self, client: IpAddr) -> bool {
        match &self.anonymous {
            Some(networks) => contains(networks, client),
            None => self.users.is_none() && self.certificates.is_none(),
        }
    }

    /// Whether it matters who a client is.
    pub fn is_asked_for(&self) -> bool {
        self.anonymous.is_some() || self.users.is_some() || self.certificates.is_some()
    }

    /// Whether it is believed what this address says of its clients.
    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        contains(&self.trusted_proxies, address)
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    // A socket for both families shows an address of IPv4 inside one of IPv6.
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

impl Source<'_> {
    pub fn clients(&self, typed: file::Clients, has_tls: bool) -> Result<Clients, ConfigError> {
        let anonymous = typed.anonymous.map(|networks| self.networks(&networks, "clients.anonymous")).transpose()?;
        let trusted_proxies = self.networks(&typed.trusted_proxies, "clients.trusted_proxies")?;
        let address_from = typed.address_from.map(|from| self.address_from(&from)).transpose()?;
        if let (Some((span, _)), true) = (&address_from, trusted_proxies.is_empty()) {
            let message = "clients.address_from: needs clients.trusted_proxies beside it, such as [\"10.0.0.0/8\"]: \
                           anybody else could claim any address";
            return Err(self.error(span, message));
        }
        let mut files = Vec::new();
        let groups = typed.groups.map(|groups| (groups.span(), groups));
        let users = match (typed.htpasswd, groups) {
            (Some(htpasswd), groups) => {
                let groups = groups.map(|(_, groups)| groups);
                let (users, read) = self.users(htpasswd, groups)?;
                files.extend(read);
                Some(Arc::new(users))
            }
            (None, Some((span, _))) => {
                return Err(
                    self.error(&span, "clients.groups: needs clients.htpasswd beside it, whose users it groups")
                );
            }
            (None, None) => None,
        };
        let certificates = match typed.certificates {
            Some(file) if has_tls => {
                let (authorities, read) = self.authorities(file)?;
                files.push(read);
                Some(authorities)
            }
            Some(file) => {
                let message = "clients.certificates: needs [tls]: who speaks plain http shows no certificate";
                return Err(self.error(&file.span(), message));
            }
            None => None,
        };
        let address_from = address_from.map(|(_, from)| from);
        Ok(Clients { anonymous, users, certificates, trusted_proxies, address_from, files })
    }

    fn networks(&self, typed: &[Spanned<String>], key: &str) -> Result<Vec<IpNet>, ConfigError> {
        let network = |typed: &Spanned<String>| {
            let text = typed.get_ref();
            let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            let fail = |reason: &str| {
                let message = format!("{key}: `{}` {reason}", text.escape_debug());
                self.error(&typed.span(), &message)
            };
            let network = parsed.ok_or_else(|| fail("is no network such as 10.0.0.0/8 or fd00::/8"))?;
            if network.trunc() != network {
                return Err(fail(&format!("has bits behind its prefix; write `{}`", network.trunc())));
            }
            Ok(network)
        };
        typed.iter().map(network).collect()
    }

    fn address_from(&self, typed: &Spanned<String>) -> Result<(std::ops::Range<usize>, AddressFrom), ConfigError> {
        let fail = |reason: &str| {
            let typed_as = typed.get_ref().escape_debug();
            Err(self.error(&typed.span(), &format!("clients.address_from: `{typed_as}` {reason}")))
        };
        let from = match typed.get_ref().as_str() {
            PROXY_PROTOCOL => AddressFrom::ProxyProtocol,
            name => match name.parse::<HeaderName>() {
                Ok(name) if name == "forwarded" => {
                    return fail("is not read; have the balancer send X-Forwarded-For, and write that");
                }
                Ok(name) if ["authorization", "host", "cookie", "via"].contains(&name.as_str()) => {
                    return fail("is no header for addresses; write `proxy-protocol` or `X-Forwarded-For`");
                }
                Ok(name) => AddressFrom::Header(name),
                Err(_) => return fail("is neither `proxy-protocol` nor the name of a header"),
            },
        };
        Ok((typed.span(), from))
    }

    fn authorities(&self, typed: Spanned<PathBuf>) -> Result<(Authorities, Read), ConfigError> {
        const KEY: &str = "clients.certificates";
        let span = typed.span();
        let file = self.absolute(typed, KEY)?;
        let read = Read::before(file.clone());
        let refuse = |reason: &str| self.error(&span, &format!("{KEY}: {} {reason}", file.display()));
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&file).map_err(|reason| refuse(&reason))? {
            roots.add(certificate).map_err(|_| refuse("has a certificate in it that cannot be read"))?;
        }
        Ok((Authorities { roots: Arc::new(roots), file }, read))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn refusal(lines: &str) -> String {
        Config::parse(&format!("[clients]\n{lines}"), "t").expect_err(lines).to_string()
    }

    #[test]
    fn networks_are_read_with_their_line() {
        for bad in ["10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "lan", "10.0.0.0/8/8", "", "10.0.0.256"] {
            let told = refusal(&format!("trusted_proxies = [\"127.0.0.1\"]\nanonymous = [\"{bad}\"]"));
            assert!(told.starts_with("t:3: clients.anonymous: "), "{bad}: {told}");
        }
        assert!(refusal("anonymous = [\"10.0.0.1/8\"]").contains("write `10.0.0.0/8`"));
        let clients = |lines: &str| Config::parse(&format!("[clients]\n{lines}"), "t").expect(lines).clients;
        let address = |text: &str| text.parse().expect("an address");
        for (networks, client, may) in [
            ("\"0.0.0.0/0\"", "203.0.113.7", true),
            ("\"0.0.0.0/0\"", "2001:db8::1", false),
            ("\"::/0\"", "2001:db8::1", true),
            ("\"10.0.0.0/8\"", "10.255.255.255", true),
            ("\"10.0.0.0/8\"", "::ffff:10.1.2.3", true),
            ("\"10.0.0.0/8\"", "11.0.0.0", false),
            ("\"10.1.2.3\"", "10.1.2.3", true),
            ("\"10.1.2.3\"", "10.1.2.4", false),
            ("", "127.0.0.1", false),
        ] {
            let found = clients(&format!("anonymous = [{networks}]")).may_be_anonymous(address(client));
            assert_eq!(found, may, "{networks} {client}");
        }
        assert!(clients("").may_be_anonymous(address("203.0.113.7")), "nothing is configured");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_way_out() {
        for (lines, word) in [
            ("address_from = \"proxy-protocol\"", "needs clients.trusted_proxies"),
            ("trusted_proxies = [\"10.0.0.0/8\"]\naddress_from = \"Forwarded\"", "X-Forwarded-For"),
            ("trusted_proxies = [\"10.0.0.0/8\"]\naddress_from = \"Host\"", "no header for addresses"),
            ("trusted_proxies = [\"10.0.0.0/8\"]\naddress_from = \"a b\"", "neither"),
            ("groups = \"/etc/hostname\"", "needs clients.htpasswd"),
            ("certificates = \"/etc/hostname\"", "needs [tls]"),
            ("htpasswd = \"/nonexistent\"", "cannot be read"),
            ("htpasswd = \"relative\"", "relative path"),
            ("basic = true", "unknown field"),
        ] {
            let told = refusal(lines);
            assert!(told.contains(word), "{lines}: {told}");
        }
    }
}
