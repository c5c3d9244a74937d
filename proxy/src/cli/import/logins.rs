//! Logins: docker's config.json and pull secrets, put together into one file that the proxy reads as docker's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use tidegate_formats::{Node, Text};

use super::gather::Gathered;
use super::input::{Found, entries, entry, text};
use crate::oci::Registry;

/// What the file will have.
#[derive(Default)]
pub(super) struct Logins {
    /// In docker's form: `auths`, `credHelpers`, `credsStore`. Its values are secrets.
    pub keys: Map<String, Value>,
}

/// Where the logins of a file are found.
pub(super) const FILE: &str = "docker-config.json";

impl Gathered {
    /// A config.json, or what a pull secret holds.
    pub(super) fn logins(&mut self, file: &str, json: &str, first_line: usize) {
        let parsed = serde_json::from_str::<Map<String, Value>>(json);
        let Ok(parsed) = parsed else {
            // What is wrong is not quoted: a secret may stand there.
            return self.leave(file, first_line, ".dockerconfigjson", "it is no JSON object");
        };
        let lines = tidegate_formats::parse_json(file, json).ok();
        let line = |keys: &[&str]| {
            let mut node = lines.as_ref()?;
            let mut line = None;
            for key in keys {
                let (at, below) = entry(node, key)?;
                (line, node) = (Some(at + first_line - 1), below);
            }
            line
        };
        for (key, value) in parsed {
            match (key.as_str(), value) {
                (kind @ ("auths" | "credHelpers"), Value::Object(hosts)) => {
                    for (host, login) in hosts {
                        let at = line(&[kind, &host]).unwrap_or(first_line);
                        self.login(file, at, kind, host, login);
                    }
                    self.carried.push((format!("{file} ({kind})"), FILE.to_owned()));
                }
                ("credsStore", store @ Value::String(_)) => {
                    let at = line(&["credsStore"]).unwrap_or(first_line);
                    match self.logins.keys.get("credsStore") {
                        Some(there) if *there != store => {
                            self.leave(file, at, "credsStore", "another file names another one");
                        }
                        _ => {
                            self.logins.keys.insert("credsStore".to_owned(), store);
                            self.carried.push((format!("{file} (credsStore)"), FILE.to_owned()));
                        }
                    }
                }
                (key, _) => {
                    let at = line(&[key]).unwrap_or(first_line);
                    self.leave(file, at, key, "it is no login: the proxy has no use for it");
                }
            }
        }
    }

    fn login(&mut self, file: &str, line: usize, kind: &str, host: String, mut login: Value) {
        let key = format!("{kind}.\"{host}\"");
        let registry = host.split_once("://").map_or(host.as_str(), |(_, rest)| rest);
        let registry = registry.split_once('/').map_or(registry, |(registry, _)| registry);
        match Registry::parse(registry) {
            Some(registry) => drop(self.named(&registry)),
            None => return self.leave(file, line, &key, "it names no registry"),
        }
        // kubectl writes both; docker reads `auth` only.
        let word = |name: &str| login.get(name).and_then(Value::as_str).map(str::to_owned);
        if kind == "auths"
            && word("auth").is_none()
            && let (Some(user), Some(password)) = (word("username"), word("password"))
            && let Some(fields) = login.as_object_mut()
        {
            let auth = STANDARD.encode(format!("{user}:{password}"));
            fields.insert("auth".to_owned(), Value::String(auth));
        }
        let all = self.logins.keys.entry(kind).or_insert_with(|| Value::Object(Map::new()));
        let Some(all) = all.as_object_mut() else { return };
        match all.get(&host) {
            Some(there) if *there != login => {
                self.leave(file, line, &key, "a file before has another login for it, which holds");
            }
            _ => drop(all.insert(host, login)),
        }
    }

    /// The `auth` of a host in containerd's or k3s' tables, whose keys are those of docker or nearly so.
    pub(super) fn table_login(&mut self, found: &Found, of: &Text) {
        let file = found.file();
        let key = format!("configs.\"{}\".auth", of.value);
        let root = match tidegate_formats::parse_toml(&file, &found.text) {
            Ok(root) => vec![root],
            Err(_) => tidegate_formats::parse_yaml(&file, &found.text).unwrap_or_default(),
        };
        let tables = root.iter().flat_map(|root| {
            let plugins = entry(root, "plugins").into_iter().flat_map(|(_, plugins)| entries(plugins));
            let nested = plugins.filter_map(|(_, _, plugin)| entry(plugin, "registry").map(|(_, registry)| registry));
            nested.chain([root])
        });
        let configured = |table| entry(entry(entry(table, "configs")?.1, &of.value)?.1, "auth");
        let older = |table| entry(entry(table, "auths")?.1, &of.value);
        let mut found_one = None;
        for table in tables {
            found_one = found_one.or(configured(table)).or(older(table));
        }
        let Some((line, auth)) = found_one else { return self.leave(&file, of.line, &key, "it cannot be found again") };
        let mut login = Map::new();
        for (field, line, value) in entries(auth) {
            let name = match field {
                "username" | "password" | "auth" => field,
                "identitytoken" | "identity_token" => "identitytoken",
                other => {
                    self.leave(&file, line, &format!("{key}.{other}"), "it is no part of a login here");
                    continue;
                }
            };
            if let Some(value) = text(value).filter(|value| !value.is_empty()) {
                login.insert(name.to_owned(), Value::String(value.to_owned()));
            }
        }
        let host = of.value.split_once("://").map_or(of.as_str(), |(_, host)| host).to_owned();
        self.carried.push((format!("{file} ({key})"), FILE.to_owned()));
        self.login(&file, line, "auths", host, Value::Object(login));
    }

    /// A pull secret.
    pub(super) fn secret(&mut self, found: &Found, node: &Node) {
        let file = found.file();
        for (key, line, value) in entries(node) {
            match key {
                "apiVersion" | "kind" | "metadata" => {}
                "type" if text(value) == Some("kubernetes.io/dockerconfigjson") => {}
                "type" => self.leave(&file, line, key, "only secrets of kubernetes.io/dockerconfigjson are logins"),
                "data" | "stringData" => {
                    for (name, line, value) in entries(value) {
                        let key_name = format!("{key}.\"{name}\"");
                        if name != ".dockerconfigjson" {
                            self.leave(&file, line, &key_name, "it is no login");
                            continue;
                        }
                        let typed = text(value).unwrap_or_default();
                        let decoded = if key == "data" {
                            let packed: String = typed.split_whitespace().collect();
                            STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok())
                        } else {
                            Some(typed.to_owned())
                        };
                        match decoded {
                            Some(json) => self.logins(&file, &json, line),
                            None => self.leave(&file, line, &key_name, "it is no base64 of a text"),
                        }
                    }
                }
                other => self.leave(&file, line, other, "nothing here reads it"),
            }
        }
    }
}
