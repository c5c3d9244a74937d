//! The configuration, validated: units in types, names parsed, paths absolute.
//!
//! A configuration that is wrong is refused whole, with file, line and key; nothing of it takes effect.

mod cache;
mod file;
mod known;
mod limits;
mod plugins;
mod registries;
mod source;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use cache::Cache;
pub use file::{Log, LogFormat, LogLevel, OnLoadError};
pub use limits::Limits;
pub use plugins::Plugins;
pub use registries::{Credentials, Reach, is_public};
pub use source::ConfigError;

use crate::oci::Registry;
use registries::is_private_name;
use source::{Source, lines_in};

/// Where a configuration file is looked for when none is named.
pub const DEFAULT_FILES: [&str; 2] = ["./tidegate.toml", "/etc/tidegate/tidegate.toml"];

/// Largest configuration file that is read. Units: bytes.
const FILE_MAX: u64 = 1 << 20;

/// The configuration of one run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz`, `/metrics` and `/explain` answer; none: nowhere.
    pub admin: Option<SocketAddr>,
    /// The registry of a client that names none.
    pub default_registry: Registry,
    /// Whether any public registry is reached by its name.
    pub open_registries: bool,
    /// The cache.
    pub cache: Cache,
    /// The plugins.
    pub plugins: Plugins,
    /// The limits.
    pub limits: Limits,
    /// The log.
    pub log: Log,
    /// The file that it was read from, or that there was none.
    pub source: String,
    registries: HashMap<Registry, Reach>,
}

impl Config {
    /// Opens the file that is named, or the first of [`DEFAULT_FILES`] that is there; with none, the defaults.
    pub fn open(named: Option<&Path>) -> Result<Self, ConfigError> {
        let found =
            named.map(Path::to_owned).or_else(|| DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists()));
        let Some(path) = found else {
            return Self::parse("", "none: built-in defaults");
        };
        let name = path.display().to_string();
        let fail = |message: String| ConfigError { file: name.clone(), line: None, message };
        let about = std::fs::metadata(&path).map_err(|err| fail(format!("cannot be read: {err}")))?;
        if !about.is_file() {
            return Err(fail("is not a regular file".to_owned()));
        }
        if about.len() > FILE_MAX {
            return Err(fail(format!("is larger than {FILE_MAX} bytes, which no configuration needs")));
        }
        let bytes = std::fs::read(&path).map_err(|err| fail(format!("cannot be read: {err}")))?;
        let text = String::from_utf8(bytes).map_err(|err| {
            let before = &err.as_bytes()[..err.utf8_error().valid_up_to()];
            let line = lines_in(before);
            ConfigError { file: name.clone(), line: Some(line), message: "is not UTF-8 text".to_owned() }
        })?;
        Self::parse(&text, &name)
    }

    /// Validates the text of a configuration file; `name` stands in errors.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let source = Source { text, name };
        let file: file::File = toml::from_str(text).map_err(|err| source.syntax(&err))?;
        let listen =
            source.address(file.listen.as_ref(), "listen")?.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 5000)));
        let admin = match &file.admin {
            Some(off) if off.get_ref() == "off" => None,
            admin => Some(source.address(admin.as_ref(), "admin")?.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 5001)))),
        };
        if let (Some(admin), Some(spanned)) = (admin, &file.admin)
            && admin == listen
            && admin.port() != 0
        {
            return Err(source.error(&spanned.span(), "admin: the same address as `listen`; choose another port"));
        }
        let default_registry = match &file.default_registry {
            Some(registry) => source.registry(registry, "default_registry")?,
            None => Registry::parse(Registry::DOCKER_HUB).expect("a registry"),
        };
        let cache = source.cache(file.cache)?;
        let plugins = source.plugins(file.plugins, &cache.dir)?;
        let limits = source.limits(&file.limits)?;
        let mut registries = HashMap::new();
        for (name, typed) in file.registries {
            let registry = source.registry(&name, "registries")?;
            let reach = source.reach(&registry, typed, listen)?;
            if registries.insert(registry.clone(), reach).is_some() {
                return Err(source.error(
                    &name.span(),
                    &format!("registries: {registry} stands here twice, under two of its names"),
                ));
            }
        }
        let config = Self {
            listen,
            admin,
            default_registry,
            open_registries: file.open_registries,
            cache,
            plugins,
            limits,
            log: file.log,
            source: name.to_owned(),
            registries,
        };
        if let Some(spanned) = file.default_registry
            && config.reach(&config.default_registry).is_none()
        {
            let registry = &config.default_registry;
            let message =
                format!("default_registry: {registry} is not known; to reach it, add [registries.\"{registry}\"]");
            return Err(source.error(&spanned.span(), &message));
        }
        Ok(config)
    }

    /// How a registry is reached; none where the operator would have to say so first.
    pub fn reach(&self, registry: &Registry) -> Option<Reach> {
        if let Some(reach) = self.registries.get(registry) {
            return Some(reach.clone());
        }
        if known::is_known(registry) || (self.open_registries && !is_private_name(registry)) {
            let url = known::address(registry)?;
            return Some(Reach { url, listed: false, credentials: None, redirect_hosts: Vec::new() });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text, "tidegate.toml").expect_err(text).to_string()
    }

    #[test]
    fn a_bad_file_is_refused_with_line_and_key() {
        for (text, line, word) in [
            ("\nlisen = 1", 2, "lisen"),
            ("listen = \"here\"", 1, "listen"),
            ("listen = 5000", 1, "listen"),
            ("admin = \"127.0.0.1:5000\"", 1, "admin"),
            ("default_registry = \"http://x\"", 1, "default_registry"),
            ("[cache]\ntag_ttl = \"5 parsecs\"", 2, "tag_ttl"),
            ("[cache]\ntag_ttl = \"-1s\"", 2, "tag_ttl"),
            ("[cache]\ntag_ttl = \"99999999999999999999s\"", 2, "tag_ttl"),
            ("[cache]\ntag_ttl = 5", 2, "tag_ttl"),
            ("[cache]\ndir = \"cache\"", 2, "cache.dir"),
            ("[cache]\nmax_size = \"0\"", 2, "cache.max_size"),
            ("[cache]\nmax_size = \"-1GiB\"", 2, "cache.max_size"),
            ("[cache]\nmax_size = 5", 2, "max_size"),
            ("[cache]\nmin_free = \"much\"", 2, "cache.min_free"),
            ("[cache]\nscrub = \"0s\"", 2, "cache.scrub"),
            ("[cache]\nscrub = \"never\"", 2, "cache.scrub"),
            ("[cache]\ndir = \"/a\"\ndir = \"/b\"", 3, "dir"),
            ("[plugins]\ndir = \"/nonexistent/folder\"", 2, "plugins.dir"),
            ("[plugins]\nheaders = [\"Authorization\"]", 2, "plugins.headers"),
            ("[cache]\ndir = \"/a\"\n[plugins]\nstate_dir = \"/a/b\"", 4, "state_dir"),
            ("[registries.docker.io]\nurl = \"https://x\"", 1, "stands in quotes"),
            ("default_registry = \"unlisted.lan\"", 1, "[registries.\"unlisted.lan\"]"),
            ("[cache]\ndir = \"/a/../b\"", 2, ".."),
            ("[plugins]\nheaders = [\"bad header\"]", 2, "plugins.headers"),
            ("[registries.\"docker.io\"]\nusername = \"u\"\npassword_file = \"/dev/null\"", 3, "is empty"),
            ("[registries.\"a b\"]\nurl = \"http://x\"", 1, "registries"),
            ("[registries.\"docker.io\"]\n[registries.\"index.docker.io\"]", 2, "docker.io"),
            ("[registries.\"docker.io\"]\nurl = \"http://127.0.0.1:5000\"", 2, "url"),
            ("[registries.\"docker.io\"]\nurl = \"http://h/path\"", 2, "url"),
            ("[registries.\"docker.io\"]\nurl = \"ftp://h\"", 2, "url"),
            ("[registries.\"docker.io\"]\nusername = \"u\"", 2, "username"),
            ("[registries.\"docker.io\"]\nusername = \"u\"\npassword_file = \"/nonexistent\"", 3, "password_file"),
        ] {
            let message = refusal(text);
            assert!(message.starts_with(&format!("tidegate.toml:{line}: ")), "{text}: {message}");
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn a_secret_is_never_quoted() {
        for text in [
            "[registries.\"h.lan\"]\npassword = \"hunter2\"",
            "[registries.\"h.lan\"]\nurl = \"https://user:hunter2@h.lan\"",
        ] {
            assert!(!refusal(text).contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn registries_are_reached_only_when_known_listed_or_public() {
        let name = |text: &str| Registry::parse(text).expect("a registry");
        let closed = Config::parse("[registries.\"h.lan\"]", "t").expect("a configuration");
        assert_eq!(closed.reach(&name("docker.io")).expect("known").url.as_str(), "https://registry-1.docker.io/");
        assert!(closed.reach(&name("h.lan")).expect("listed").listed);
        assert!(closed.reach(&name("other.example.com")).is_none());
        let open = Config::parse("open_registries = true", "t").expect("a configuration");
        assert!(!open.reach(&name("other.example.com")).expect("public").listed);
        for private in [
            "169.254.169.254",
            "127.0.0.1:5000",
            "10.1.2.3",
            "localhost",
            "[::1]:80",
            "[::ffff:10.0.0.1]",
            "intranet:5000",
        ] {
            assert!(open.reach(&name(private)).is_none(), "{private}");
        }
    }
}
