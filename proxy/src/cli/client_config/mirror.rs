//! The proxy as its clients see it: its address, its authority, the registries that it serves, and whether a client may
//! pass it by.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use url::Url;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::ClientConfig;
use crate::config::{Config, read_certificates};
use crate::oci::Registry;

/// What a client is told.
pub(super) struct Mirror {
    /// With its scheme, without a slash behind it: `http://mirror.lan:5000`.
    pub url: String,
    /// As names of images begin with it: `mirror.lan:5000`.
    pub host: String,
    /// Whether it speaks http.
    pub plain: bool,
    /// Certificates of the authority that vouches for it, in PEM.
    pub ca: Option<String>,
    /// In the order of their names.
    pub registries: Vec<Registry>,
    /// The one that a client means who names none.
    pub default_registry: Registry,
    /// What a client does that got no image from the mirror.
    pub source: Source,
    /// The registries that it stands in for on the way out, and the authority that vouches for them, in PEM.
    pub intercepted: Option<(Vec<Registry>, String)>,
    /// The address is one of the machine that the proxy runs on.
    loopback: bool,
    /// Who signed the certificate, where nothing says how clients come to trust it.
    unknown_authority: Option<String>,
}

/// What a client does that got no image from the mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// It asks the registry itself.
    Last,
    /// It gives up.
    Never,
}

impl Mirror {
    /// # Errors
    /// Which argument is wrong, or missing, and what to write.
    pub fn of(config: &Config, asked: &ClientConfig) -> Result<Self, String> {
        let url = address(config, asked.address.as_deref())?;
        if matches!(url.host(), Some(url::Host::Ipv6(_))) && asked.client.takes_no_ipv6_address() {
            return Err(format!(
                "this client takes no IPv6 address such as {} for a mirror: write --address with a name, HOST:PORT",
                url.host_str().unwrap_or_default()
            ));
        }
        let plain = url.scheme() == "http";
        let name = url.host_str().unwrap_or_default();
        // Without a dot or a port in it, a first segment is not taken for a host: `mirror/alpine` is an image of docker.io.
        let host = match (url.port(), name.contains('.')) {
            (Some(port), _) => format!("{name}:{port}"),
            (None, true) => name.to_owned(),
            (None, false) => format!("{name}:{}", url.port_or_known_default().unwrap_or_default()),
        };
        let loopback = name == "localhost"
            || name.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let (ca, unknown_authority) = match (&asked.ca, &config.tls) {
            (Some(_), _) if plain => return Err("--ca: the proxy speaks http, which nobody vouches for".to_owned()),
            (Some(file), _) => (Some(pem(&certificates(file)?)), None),
            (None, Some(tls)) if !plain => authority(&certificates(&tls.certificate)?),
            (None, _) => (None, None),
        };
        let registries = registries(config, &asked.registries)?;
        let intercepted = match &config.intercept {
            Some(intercept) => {
                let all = intercept.registries().into_iter().filter(|registry| registries.contains(registry));
                Some((all.collect(), pem(&certificates(&intercept.authority.file)?)))
            }
            None => None,
        };
        Ok(Self {
            url: url.as_str().trim_end_matches('/').to_owned(),
            host,
            plain,
            ca,
            registries,
            intercepted,
            default_registry: config.default_registry.clone(),
            source: if asked.enforce { Source::Never } else { Source::Last },
            loopback,
            unknown_authority,
        })
    }

    /// Whether a denial sticks.
    pub fn enforces(&self) -> bool {
        self.source == Source::Never
    }

    /// The name of an image of a registry, when it is asked of the mirror itself; none for a registry with a port, which
    /// no client takes inside a name.
    pub fn path(&self, registry: &Registry) -> Option<String> {
        (!registry.as_str().contains(':')).then(|| format!("{}/{registry}", self.host))
    }

    /// A registry to stand in an example: not docker.io, if there is another.
    pub fn example(&self) -> &str {
        let named = |wanted: &str| self.registries.iter().find(|registry| registry.as_str() == wanted);
        let first = || self.registries.iter().find(|registry| !registry.as_str().contains(':'));
        named("quay.io").or_else(first).map_or("quay.io", Registry::as_str)
    }

    /// A registry that stands in no way out, and can stand in a name.
    pub fn not_intercepted(&self) -> Option<&Registry> {
        let intercepted = self.intercepted.as_ref().map_or(&[][..], |(registries, _)| registries);
        let mut others = self.registries.iter().filter(|registry| !intercepted.contains(registry));
        others.find(|registry| !registry.as_str().contains(':'))
    }

    /// Its host without a port.
    pub fn host_alone(&self) -> &str {
        self.host.rsplit_once(':').map_or(&*self.host, |(host, _)| host)
    }

    /// The registries with a port, which cannot stand inside a name.
    pub fn with_port(&self) -> Vec<&str> {
        self.registries.iter().map(Registry::as_str).filter(|name| name.contains(':')).collect()
    }

    /// What holds for every client.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.loopback {
            notes.push(format!(
                "{} is the mirror for clients of its own machine only: for others, `--address HOST:PORT`.",
                self.host
            ));
        }
        if let Some(issuer) = &self.unknown_authority {
            notes.push(format!(
                "The mirror's certificate is signed by {issuer}, whose own certificate is not in `[tls] certificate`: \
                 clients that do not trust it already need it with `--ca FILE`."
            ));
        }
        notes
    }
}

fn address(config: &Config, typed: Option<&str>) -> Result<Url, String> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let Some(typed) = typed else {
        if config.listen.ip().is_unspecified() || config.listen.port() == 0 {
            return Err(format!(
                "{}: listen: {} is no address that clients can be told: write --address HOST:PORT",
                config.source, config.listen
            ));
        }
        return parse(&format!("{scheme}://{}", config.listen));
    };
    let bad = || {
        format!("--address: `{}` is no HOST, HOST:PORT, or address such as https://mirror.lan", typed.escape_debug())
    };
    if typed.contains('@') {
        return Err("--address: write it without credentials".to_owned());
    }
    let url = if typed.contains("://") {
        parse(typed).map_err(|_| bad())?
    } else {
        // A port that is not named is the one that the proxy listens on.
        let named = Registry::parse(typed).ok_or_else(bad)?;
        let has_port = named.as_str().rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if has_port { String::new() } else { format!(":{}", config.listen.port()) };
        parse(&format!("{scheme}://{}{port}", typed.to_ascii_lowercase())).map_err(|_| bad())?
    };
    let bare = url.path() == "/" && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !bare || url.fragment().is_some() {
        return Err(bad());
    }
    let unspecified = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_unspecified(),
        Some(url::Host::Ipv6(address)) => address.is_unspecified(),
        _ => false,
    };
    if unspecified || url.port() == Some(0) {
        return Err(format!("--address: {typed} is no address that clients can be told: write the mirror's HOST:PORT"));
    }
    Ok(url)
}

fn parse(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|err| format!("{text}: {err}"))
}

fn registries(config: &Config, named: &[String]) -> Result<Vec<Registry>, String> {
    if named.is_empty() {
        return Ok(config.served());
    }
    let mut registries = Vec::new();
    for name in named {
        let registry = Registry::parse(name)
            .ok_or_else(|| format!("--registry: `{}` is no registry name such as quay.io", name.escape_debug()))?;
        if config.reach(&registry).is_none() {
            return Err(format!(
                "--registry: {registry} is not served; to serve it, add [registries.\"{registry}\"] to {}",
                config.source
            ));
        }
        registries.push(registry);
    }
    registries.sort();
    registries.dedup();
    Ok(registries)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    read_certificates(file).map_err(|reason| format!("{} {reason}", file.display()))
}

/// What a chain ends in, where that vouches for itself; else who signed it. An authority in the middle of a chain may be
/// replaced at any renewal: clients are not told to trust that one.
fn authority(chain: &[CertificateDer<'static>]) -> (Option<String>, Option<String>) {
    let Some(last) = chain.last() else { return (None, None) };
    match Certificate::from_der(last) {
        Ok(read) if read.tbs_certificate.issuer == read.tbs_certificate.subject => {
            (Some(pem(std::slice::from_ref(last))), None)
        }
        Ok(read) => (None, Some(read.tbs_certificate.issuer.to_string())),
        Err(_) => (None, None),
    }
}

/// Certificates alone, written anew: whatever else stands in a file, a key above all, never leaves it.
fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        // Lines of 64 signs. Source: RFC 7468, section 2.
        for line in encoded.as_bytes().chunks(64) {
            text.extend(line.iter().map(|byte| char::from(*byte)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::client_config::Client;

    /// A mirror at an address, in front of registries.
    pub fn mirror(address: &str, source: Source, registries: &[&str]) -> Mirror {
        let url = Url::parse(address).expect("an address");
        let registries = registries.iter().map(|name| Registry::parse(name).expect("a registry")).collect();
        Mirror {
            url: address.to_owned(),
            host: address.split_once("://").expect("with a scheme").1.to_owned(),
            plain: url.scheme() == "http",
            ca: (url.scheme() == "https").then(|| "-----BEGIN CERTIFICATE-----\n".to_owned()),
            registries,
            default_registry: Registry::parse("docker.io").expect("a registry"),
            source,
            intercepted: None,
            loopback: false,
            unknown_authority: None,
        }
    }

    fn asked(address: Option<&str>, registries: &[&str]) -> ClientConfig {
        ClientConfig {
            client: Client::Docker,
            enforce: false,
            address: address.map(str::to_owned),
            ca: None,
            registries: registries.iter().map(|&name| name.to_owned()).collect(),
            write: None,
            force: false,
        }
    }

    #[test]
    fn the_address_is_what_clients_can_use() {
        let config = |listen: &str| Config::parse(&format!("listen = \"{listen}\""), "t").expect("a configuration");
        for (listen, typed, url, host) in [
            ("127.0.0.1:5000", None, "http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("[::1]:5000", None, "http://[::1]:5000", "[::1]:5000"),
            ("0.0.0.0:5000", Some("mirror.lan"), "http://mirror.lan:5000", "mirror.lan:5000"),
            ("0.0.0.0:5000", Some("mirror.lan:80"), "http://mirror.lan", "mirror.lan"),
            ("0.0.0.0:5000", Some("Mirror:5001"), "http://mirror:5001", "mirror:5001"),
            ("0.0.0.0:5000", Some("https://mirror.lan"), "https://mirror.lan", "mirror.lan"),
            ("0.0.0.0:5000", Some("https://mirror/"), "https://mirror", "mirror:443"),
            ("0.0.0.0:5000", Some("https://mirror.lan:8443"), "https://mirror.lan:8443", "mirror.lan:8443"),
        ] {
            let mirror =
                Mirror::of(&config(listen), &asked(typed, &[])).unwrap_or_else(|err| panic!("{typed:?}: {err}"));
            assert_eq!((mirror.url.as_str(), mirror.host.as_str()), (url, host), "{listen} {typed:?}");
        }
        for (listen, typed, word) in [
            ("0.0.0.0:5000", None, "--address"),
            ("127.0.0.1:0", None, "--address"),
            ("127.0.0.1:5000", Some("a b"), "--address"),
            ("127.0.0.1:5000", Some("0.0.0.0:5000"), "clients can be told"),
            ("127.0.0.1:5000", Some("http://[::]:5000"), "clients can be told"),
            ("127.0.0.1:5000", Some("http://mirror.lan:0"), "clients can be told"),
            ("127.0.0.1:5000", Some("ftp://mirror.lan"), "--address"),
            ("127.0.0.1:5000", Some("http://mirror.lan/path"), "--address"),
            ("127.0.0.1:5000", Some("http://user:pw@mirror.lan"), "--address"),
        ] {
            let reason = Mirror::of(&config(listen), &asked(typed, &[])).err().expect("it is refused");
            assert!(reason.contains(word) && !reason.contains("pw"), "{typed:?}: {reason}");
        }
    }

    #[test]
    fn an_ipv6_address_is_refused_where_a_client_takes_none() {
        let config = Config::parse("listen = \"[::1]:5000\"", "t").expect("a configuration");
        for (client, typed, taken) in [
            (Client::Docker, None, true),
            (Client::Podman, None, false),
            (Client::Skopeo, Some("[fd00::1]:5000"), false),
            (Client::Openshift, Some("https://[fd00::1]"), false),
            (Client::Containerd, None, false),
            (Client::Podman, Some("mirror.lan"), true),
        ] {
            let told = Mirror::of(&config, &ClientConfig { client, ..asked(typed, &[]) });
            assert_eq!(told.is_ok(), taken, "{client:?} {typed:?}: {:?}", told.err());
        }
    }

    #[test]
    fn registries_are_those_that_the_proxy_serves() {
        let config = Config::parse("[registries.\"registry.lan:5000\"]", "t.toml").expect("a configuration");
        let all = Mirror::of(&config, &asked(None, &[])).expect("a mirror").registries;
        for name in ["docker.io", "quay.io", "registry.lan:5000"] {
            assert!(all.contains(&Registry::parse(name).expect("a registry")), "{name}");
        }
        let two = Mirror::of(&config, &asked(None, &["registry-1.docker.io", "docker.io", "quay.io"]));
        let two: Vec<_> = two.expect("a mirror").registries.iter().map(ToString::to_string).collect();
        assert_eq!(two, ["docker.io", "quay.io"]);
        let reason = Mirror::of(&config, &asked(None, &["other.lan"])).err().expect("it is refused");
        assert!(reason.contains("[registries.\"other.lan\"]") && reason.contains("t.toml"), "{reason}");
    }
}
