//! The logins of docker's `config.json` and of Podman's `auth.json`: `auths`, `credHelpers`, `credsStore`.
//!
//! Source: docker's documentation of `docker login`; containers-auth.json(5).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use super::helper;
use super::secret::{Secret, read};
use crate::oci::{Place, Registry};

/// How docker calls its hub in `auths`, and asks helpers for it.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// The user of a helper's answer whose secret is an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

/// Whatever else stands in an entry is not looked at.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    #[serde(rename = "auth")]
    pair: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity: String,
    #[serde(rename = "registrytoken")]
    token: String,
}

/// Where a secret is.
enum Found<'a> {
    Entry(&'a Auth),
    Helper { name: &'a str, server: String },
}

/// The secret of the longest key that covers a repository with `at_least` so many components.
/// `asks_store`: whether `credsStore` is asked when there is no such key with a helper or a prefix.
pub(super) async fn secret(
    file: &Path,
    place: &Place,
    at_least: usize,
    asks_store: bool,
    limit: Duration,
) -> Result<Option<Secret>, String> {
    let text = read(file).await?;
    // What the parser says may quote a secret: only the place is told.
    let parsed: File = serde_json::from_str(&text).map_err(|err| {
        format!("{}:{}: is no docker configuration (column {})", file.display(), err.line(), err.column())
    })?;
    let found = parsed.find(place, at_least, asks_store);
    for one in found {
        let secret = match one {
            Found::Helper { name, server } => helper::get(name, &server, limit).await?.map(|(username, secret)| {
                if username == TOKEN_USER {
                    Secret::Identity(secret)
                } else {
                    Secret::Password { username, password: secret }
                }
            }),
            Found::Entry(auth) => auth
                .secret()
                .map_err(|reason| format!("{}: the entry of {} {reason}", file.display(), place.registry))?,
        };
        if secret.is_some() {
            return Ok(secret);
        }
    }
    Ok(None)
}

impl File {
    /// Where secrets for a repository may be, the best first: longer prefixes before shorter ones; of one prefix the
    /// helper, then the store for a whole registry, then the entry.
    fn find(&self, place: &Place, at_least: usize, asks_store: bool) -> Vec<Found<'_>> {
        let mut found: Vec<(usize, u8, Found<'_>)> = Vec::new();
        for (key, name) in &self.helpers {
            if let Some(components) = covers(key, place) {
                found.push((components, 0, Found::Helper { name, server: server(key, place) }));
            }
        }
        if asks_store && !self.store.is_empty() {
            let key = self.auths.keys().find(|key| covers(key, place) == Some(0));
            let server = key.map_or_else(|| server("", place), Clone::clone);
            found.push((0, 1, Found::Helper { name: &self.store, server }));
        }
        for (key, auth) in &self.auths {
            if let Some(components) = covers(key, place) {
                found.push((components, 2, Found::Entry(auth)));
            }
        }
        found.retain(|(components, _, _)| *components >= at_least);
        found.sort_by_key(|(components, kind, _)| (std::cmp::Reverse(*components), *kind));
        found.into_iter().map(|(_, _, one)| one).collect()
    }
}

/// What a helper is asked for.
fn server(key: &str, place: &Place) -> String {
    if !key.is_empty() {
        return key.to_owned();
    }
    match place.registry.as_str() {
        Registry::DOCKER_HUB => HUB_SERVER.to_owned(),
        name => name.to_owned(),
    }
}

/// The number of components of the repository that a key names, where it covers one: `quay.io/org` has one. A key with
/// a scheme, or docker's old `HOST/v1/`, names the whole registry.
fn covers(key: &str, place: &Place) -> Option<usize> {
    let (bare, with_scheme) = match key.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (key, false),
    };
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    if Registry::parse(host)? != place.registry {
        return None;
    }
    let path = path.trim_end_matches('/');
    if with_scheme || matches!(path, "" | "v1" | "v2") {
        return Some(0);
    }
    let rest = place.repository.as_str().strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| path.split('/').count())
}

impl Auth {
    /// Docker's order: a ready token, an identity token, a user and a password.
    fn secret(&self) -> Result<Option<Secret>, &'static str> {
        if !self.token.is_empty() {
            return Ok(Some(Secret::Token(self.token.clone())));
        }
        if !self.identity.is_empty() {
            return Ok(Some(Secret::Identity(self.identity.clone())));
        }
        if !self.pair.is_empty() {
            let bytes = base64::engine::general_purpose::STANDARD.decode(self.pair.trim());
            let pair = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = pair.ok_or("has an `auth` that is no base64 of a text")?;
            let (username, password) = pair.split_once(':').ok_or("has an `auth` without a colon in it")?;
            // Docker pads what it writes with zero bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Secret::Password { username: username.to_owned(), password: password.to_owned() }));
        }
        if !self.username.is_empty() && !self.password.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Some(Secret::Password { username, password }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Repository;

    fn place(registry: &str, repository: &str) -> Place {
        Place {
            registry: Registry::parse(registry).expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        }
    }

    fn best(text: &str, place: &Place) -> String {
        let file: File = serde_json::from_str(text).expect("a configuration");
        let found = file.find(place, 0, true);
        let tell = |found: &Found<'_>| match found {
            Found::Helper { name, server } => format!("{name} {server}"),
            Found::Entry(auth) => match auth.secret() {
                Ok(Some(Secret::Password { username, password })) => format!("{username}:{password}"),
                Ok(Some(Secret::Token(token) | Secret::Identity(token))) => token,
                Ok(None) => "nothing".to_owned(),
                Err(reason) => reason.to_owned(),
            },
        };
        found.first().map_or_else(|| "none".to_owned(), tell)
    }

    #[test]
    fn keys_are_read_as_docker_and_podman_read_them() {
        // printf 'u:p' | base64, and so on.
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "quay.io": {"username": "q", "password": "w"},
            "quay.io/org": {"auth": "b3JnOnBhc3M6d29yZA=="},
            "quay.io/org/team": {"identitytoken": "id"},
            "http://plain.lan:5000/v2/": {"registrytoken": "ready"},
            "bad.lan": {"auth": "%%%"},
            "empty.lan": {}
        }, "HttpHeaders": {"X": "y"}}"#;
        for (registry, repository, expected) in [
            ("docker.io", "library/alpine", "u:p"),
            ("quay.io", "other/app", "q:w"),
            ("quay.io", "org", "org:pass:word"),
            ("quay.io", "org/app", "org:pass:word"),
            ("quay.io", "org/team/app", "id"),
            ("quay.io", "org/teams", "org:pass:word"),
            ("plain.lan:5000", "a", "ready"),
            ("bad.lan", "a", "has an `auth` that is no base64 of a text"),
            ("empty.lan", "a", "nothing"),
            ("ghcr.io", "a", "none"),
        ] {
            assert_eq!(best(text, &place(registry, repository)), expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn helpers_come_before_the_store_and_the_store_before_entries() {
        let text = r#"{"credsStore": "desktop", "credHelpers": {"gcr.io": "gcloud", "quay.io/org": "org"},
            "auths": {"https://index.docker.io/v1/": {}, "quay.io": {"auth": "dTpw"}, "gcr.io": {"auth": "dTpw"}}}"#;
        for (registry, repository, expected) in [
            ("docker.io", "library/a", "desktop https://index.docker.io/v1/"),
            ("gcr.io", "a", "gcloud gcr.io"),
            ("quay.io", "org/a", "org quay.io/org"),
            ("quay.io", "a", "desktop quay.io"),
            ("other.lan", "a", "desktop other.lan"),
        ] {
            assert_eq!(best(text, &place(registry, repository)), expected, "{registry}/{repository}");
        }
    }
}
