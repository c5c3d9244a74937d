//! Which way a host is reached: directly, or through the proxy of the registry, of the configuration or of the
//! environment.

use std::fs;

use hyper::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use url::{Host, Url};

use crate::config::{Egress, EgressProxy, Way};

/// The environment's words for a proxy, as curl and Go read them. A password may stand in them: it has no Debug.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Environment {
    http: String,
    https: String,
    all: String,
    no: String,
}

impl Environment {
    pub fn read() -> Self {
        let first = |names: [&str; 2]| {
            let found = names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
            found.unwrap_or_default()
        };
        let read = Self {
            http: first(["HTTP_PROXY", "http_proxy"]),
            https: first(["HTTPS_PROXY", "https_proxy"]),
            all: first(["ALL_PROXY", "all_proxy"]),
            no: first(["NO_PROXY", "no_proxy"]),
        };
        for (name, value) in [("HTTP_PROXY", &read.http), ("HTTPS_PROXY", &read.https), ("ALL_PROXY", &read.all)] {
            let scheme = value.split_once("://").map_or("http", |(scheme, _)| scheme);
            if !value.is_empty() && !matches!(scheme, "http" | "https") {
                tracing::warn!(variable = name, scheme, "a proxy of this kind is not spoken: it is passed over");
            }
        }
        read
    }
}

/// The proxy that a host is reached through; none: directly. `own`: whether it is the registry's own host, which
/// `no_proxy` does not take away from the registry's own `proxy`. Blocks on the password's file.
///
/// # Errors
/// Why the proxy cannot be used.
pub(super) fn proxy(
    url: &Url,
    own: bool,
    registry: Option<&Way>,
    egress: &Egress,
    environment: &Environment,
) -> Result<Option<Intercept>, String> {
    let no = if own && registry.is_some() {
        String::new()
    } else {
        egress.no_proxy.as_ref().map_or_else(|| environment.no.clone(), |hosts| hosts.join(","))
    };
    // The matcher takes a star for every name, and for no address.
    if no.split(',').any(|entry| entry.trim() == "*") {
        return Ok(None);
    }
    let matcher = match registry.or(egress.way.as_ref()) {
        Some(Way::Direct) => return Ok(None),
        Some(Way::Through(proxy)) => Matcher::builder().all(address(proxy)?).no(no).build(),
        None => {
            let Environment { http, https, all, .. } = environment.clone();
            Matcher::builder().http(http).https(https).all(all).no(no).build()
        }
    };
    let uri: Uri = url.as_str().parse().map_err(|_| format!("{url} is no address"))?;
    Ok(matcher.intercept(&uri).filter(|found| matches!(found.uri().scheme_str(), Some("http" | "https"))))
}

/// The file that the way depends on.
pub(super) fn secret_file<'a>(registry: Option<&'a Way>, egress: &'a Egress) -> Option<&'a std::path::Path> {
    match registry.or(egress.way.as_ref()) {
        Some(Way::Through(proxy)) => proxy.password_file.as_deref(),
        Some(Way::Direct) | None => None,
    }
}

/// A proxy's address with its password in it.
fn address(proxy: &EgressProxy) -> Result<String, String> {
    let mut url = proxy.url.clone();
    if let Some(file) = &proxy.password_file {
        let password = fs::read_to_string(file).map_err(|err| format!("{} cannot be read: {err}", file.display()))?;
        url.set_password(Some(password.trim_end_matches(['\n', '\r'])))
            .map_err(|()| "no place for a password".to_owned())?;
    }
    Ok(url.into())
}

/// Whether a name that goes through a proxy unresolved can only mean a machine nearby. What it resolves to is the
/// proxy's to judge; what tells by itself is refused here.
pub(super) fn is_near(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            let last = name.rsplit('.').next().unwrap_or_default();
            !name.contains('.') || matches!(last, "localhost" | "local" | "internal" | "localdomain")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_on_a_proxy_holds() {
        let through = |text: &str| {
            Some(Way::Through(EgressProxy { url: Url::parse(text).expect("an address"), password_file: None }))
        };
        let environment = Environment {
            http: "http://env:1".to_owned(),
            https: "env:2".to_owned(),
            all: String::new(),
            no: "127.0.0.0/8, .lan,[::1],::1".to_owned(),
        };
        let with = |url: &str, own: bool, registry: Option<&Way>, egress: &Egress| {
            let url = Url::parse(url).expect("an address");
            let found = proxy(&url, own, registry, egress, &environment).expect("a way");
            found.map_or_else(|| "direct".to_owned(), |found| found.uri().to_string())
        };
        let none = Egress::default();
        assert_eq!(with("https://quay.io/", true, None, &none), "http://env:2/");
        assert_eq!(with("http://quay.io/", true, None, &none), "http://env:1/");
        assert_eq!(with("http://127.77.1.2:5000/", true, None, &none), "direct");
        assert_eq!(with("http://[::1]:5000/", true, None, &none), "direct");
        assert_eq!(with("https://registry.lan/", true, None, &none), "direct");
        let site = Egress { way: through("http://site:3"), no_proxy: Some(vec!["quay.io".to_owned()]) };
        assert_eq!(with("https://docker.io/", true, None, &site), "http://site:3/");
        assert_eq!(with("https://registry.lan/", true, None, &site), "http://site:3/");
        assert_eq!(with("https://cdn.quay.io/", false, None, &site), "direct");
        let own = through("https://own:4");
        assert_eq!(with("https://quay.io/", true, own.as_ref(), &site), "https://own:4/");
        assert_eq!(with("https://cdn.quay.io/", false, own.as_ref(), &site), "direct");
        assert_eq!(with("https://cdn.example.com/", false, own.as_ref(), &site), "https://own:4/");
        assert_eq!(with("https://docker.io/", true, Some(&Way::Direct), &site), "direct");
        let all = Egress { no_proxy: Some(vec!["*".to_owned()]), ..site.clone() };
        assert_eq!(with("https://10.0.0.1/", true, None, &all), "direct");
        let off = Egress { way: Some(Way::Direct), no_proxy: None };
        assert_eq!(with("https://docker.io/", true, None, &off), "direct");
    }

    #[test]
    fn what_can_only_be_near_is_known_by_its_name() {
        for (url, near) in [
            ("https://intranet/", true),
            ("https://localhost/", true),
            ("https://a.localhost./", true),
            ("https://metadata.google.internal/", true),
            ("https://quay.io/", false),
            ("https://10.0.0.1/", false),
        ] {
            assert_eq!(is_near(&Url::parse(url).expect("an address")), near, "{url}");
        }
    }
}
