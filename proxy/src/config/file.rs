//! The configuration file as it is typed. Every key that is not here is refused, with its line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::intercept::Others;

/// `tidegate.toml`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub listen: Option<Spanned<String>>,
    pub admin: Option<Spanned<String>>,
    pub default_registry: Option<Spanned<String>>,
    #[serde(default)]
    pub open_registries: bool,
    pub docker_config: Option<Spanned<PathBuf>>,
    pub certs_dirs: Option<Vec<Spanned<PathBuf>>>,
    #[serde(default)]
    pub egress: Egress,
    #[serde(default)]
    pub tls: Tls,
    #[serde(default)]
    pub clients: Clients,
    #[serde(default)]
    pub virtual_hosts: Vec<VirtualHost>,
    pub intercept: Option<Intercept>,
    #[serde(default)]
    pub cache: Cache,
    #[serde(default)]
    pub plugins: Plugins,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub registries: BTreeMap<Spanned<String>, Registry>,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub traces: Traces,
    #[serde(default)]
    pub decisions: Decisions,
}

/// `[tls]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub certificate: Option<Spanned<PathBuf>>,
    pub key: Option<Spanned<PathBuf>>,
}

/// `[clients]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Clients {
    pub anonymous: Option<Vec<Spanned<String>>>,
    pub htpasswd: Option<Spanned<PathBuf>>,
    pub groups: Option<Spanned<PathBuf>>,
    pub certificates: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub trusted_proxies: Vec<Spanned<String>>,
    pub address_from: Option<Spanned<String>>,
}

/// `[[virtual_hosts]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VirtualHost {
    pub names: Vec<Spanned<String>>,
    pub registry: Spanned<String>,
    pub certificate: Option<Spanned<PathBuf>>,
    pub key: Option<Spanned<PathBuf>>,
}

/// `[intercept]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intercept {
    pub registries: Vec<Spanned<String>>,
    pub ca_dir: Option<Spanned<PathBuf>>,
    pub others: Option<Others>,
    #[serde(default)]
    pub tunnel_hosts: Vec<Spanned<String>>,
}

/// `[cache]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    pub dir: Option<Spanned<PathBuf>>,
    pub tag_ttl: Option<Spanned<String>>,
    pub max_stale: Option<Spanned<String>>,
    pub miss_ttl: Option<Spanned<String>>,
    pub recheck: Option<Spanned<String>>,
    pub max_size: Option<Spanned<String>>,
    pub min_free: Option<Spanned<String>>,
    pub scrub: Option<Spanned<String>>,
}

/// `[limits]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub connections: Option<Spanned<usize>>,
    pub request_head: Option<Spanned<String>>,
    pub write_stall: Option<Spanned<String>>,
    pub drain: Option<Spanned<String>>,
    pub upstream_connect: Option<Spanned<String>>,
    pub upstream_headers: Option<Spanned<String>>,
    pub upstream_attempts: Option<Spanned<String>>,
    pub upstream_idle: Option<Spanned<String>>,
    pub upstream_min_rate: Option<Spanned<String>>,
    pub upstream_push: Option<Spanned<String>>,
    pub upstream_ailing: Option<Spanned<String>>,
    pub orphan_fills: Option<Spanned<usize>>,
    pub orphan_time: Option<Spanned<String>>,
}

/// `[plugins]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Plugins {
    pub dir: Option<Spanned<PathBuf>>,
    pub state_dir: Option<Spanned<PathBuf>>,
    pub on_load_error: Option<OnLoadError>,
    #[serde(default)]
    pub headers: Vec<Spanned<String>>,
}

/// What a plugin means that does not load at start and of which no good version is kept.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum OnLoadError {
    /// Do not start.
    #[default]
    Refuse,
    /// Start without it.
    Skip,
}

/// `[registries."NAME"]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    pub url: Option<Spanned<String>>,
    pub username: Option<Spanned<String>>,
    pub password_file: Option<Spanned<PathBuf>>,
    pub token_file: Option<Spanned<PathBuf>>,
    pub identity_token_file: Option<Spanned<PathBuf>>,
    pub docker_config: Option<Spanned<PathBuf>>,
    pub credentials: Option<Spanned<String>>,
    pub authorize: Option<Spanned<String>>,
    pub authorize_ttl: Option<Spanned<String>>,
    #[serde(default)]
    pub repositories: BTreeMap<Spanned<String>, Login>,
    #[serde(default)]
    pub redirect_hosts: Vec<Spanned<String>>,
    pub tag_ttl: Option<Spanned<String>>,
    pub max_stale: Option<Spanned<String>>,
    pub ca_file: Option<Spanned<PathBuf>>,
    pub client_cert: Option<Spanned<PathBuf>>,
    pub client_key: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub insecure: bool,
    pub proxy: Option<Spanned<String>>,
    pub proxy_password_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    pub push: bool,
}

/// `[registries."NAME".repositories."PREFIX"]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    pub username: Option<Spanned<String>>,
    pub password_file: Option<Spanned<PathBuf>>,
    pub token_file: Option<Spanned<PathBuf>>,
    pub identity_token_file: Option<Spanned<PathBuf>>,
}

/// `[egress]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Egress {
    pub proxy: Option<Spanned<String>>,
    pub proxy_password_file: Option<Spanned<PathBuf>>,
    pub no_proxy: Option<Vec<Spanned<String>>>,
}

/// `[decisions]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Decisions {
    pub file: Option<Spanned<PathBuf>>,
    pub keep: Option<Spanned<usize>>,
}

/// `[traces]`
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Traces {
    pub endpoint: Option<Spanned<String>>,
    pub ratio: Option<Spanned<f64>>,
}

/// `[log]`
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// Least level that is written.
    pub level: LogLevel,
    /// Whether each request gets a line.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info, access: true }
    }
}

/// How the log is written.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Levels of the log.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// We are wrong.
    Error,
    /// The operator may act.
    Warn,
    /// What happens.
    Info,
    /// Why it happens.
    Debug,
}

impl LogLevel {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}
