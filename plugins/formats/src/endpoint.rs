//! The address of a registry, as containerd and docker write it.

/// `https://mirror.lan:5000/v2/hub`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// With its port, where one is written.
    pub host: String,
    /// Begins with a slash, or is empty; without a slash at its end.
    pub path: String,
}

/// How a registry is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// With TLS.
    Https,
}

impl Endpoint {
    /// Parses an address; one without a scheme is https.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Https, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            Some(_) => return Err("it must begin with https:// or http://".to_owned()),
        };
        if rest.contains(['?', '#']) {
            return Err("it has something behind a ? or #, which no registry has".to_owned());
        }
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if host.contains('@') {
            return Err("it has credentials in it, which belong into the configuration of the proxy".to_owned());
        }
        if host.is_empty() || host.contains(|char: char| char.is_whitespace() || char.is_control()) {
            return Err("it names no host".to_owned());
        }
        Ok(Self { scheme, host: host.to_ascii_lowercase(), path: path.trim_end_matches('/').to_owned() })
    }
}
