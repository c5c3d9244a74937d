//! The configuration, validated: units in types, names parsed, paths absolute.
//!
//! A configuration that is wrong is refused whole, with file, line and key; nothing of it takes effect.

mod file;
mod known;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use url::Url;

pub use file::{Log, LogFormat, LogLevel, OnLoadError};

use crate::oci::Registry;

/// Where a configuration file is looked for when none is named.
pub const DEFAULT_FILES: [&str; 2] = ["./tidegate.toml", "/etc/tidegate/tidegate.toml"];

/// The plugin folder that is used when the configuration names none and it is there.
const DEFAULT_PLUGINS_DIR: &str = "./plugins.d";
/// Largest configuration file that is read. Units: bytes.
const FILE_MAX: u64 = 1 << 20;
/// Longest time that a key may name; a longer one is a slip of the finger.
const DURATION_MAX: Duration = Duration::from_hours(10 * 365 * 24);

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
    /// The log.
    pub log: Log,
    /// The file that it was read from, or that there was none.
    pub source: String,
    registries: HashMap<Registry, Reach>,
}

/// `[cache]`
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its folder, which is Tidegate's alone.
    pub dir: PathBuf,
    /// For how long a tag is served without asking its registry.
    pub tag_ttl: Duration,
}

/// `[plugins]`
#[derive(Clone, Debug)]
pub struct Plugins {
    /// The folder that is watched; none: no plugins.
    pub dir: Option<PathBuf>,
    /// Where the last good version of every plugin is kept.
    pub state_dir: PathBuf,
    /// What a plugin means that cannot be loaded at start.
    pub on_load_error: OnLoadError,
    /// Request headers that plugins may read, in lower case.
    pub headers: Vec<String>,
}

/// How a registry is reached.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Its address, without a path.
    pub url: Url,
    /// Whether the operator named it, so that private addresses are meant.
    pub listed: bool,
    /// What it is asked with.
    pub credentials: Option<Credentials>,
    /// Further hosts that it may redirect to, or have its token service on.
    pub redirect_hosts: Vec<String>,
}

/// A user, and where the password is.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// Its password is the content of this file, without the last line end.
    pub password_file: PathBuf,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}{}: {message}", line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ConfigError {
    file: String,
    line: Option<usize>,
    message: String,
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

/// Whether a name stands for a private address by itself. What a name resolves to is checked when it is dialled.
fn is_private_name(registry: &Registry) -> bool {
    let host = registry.host();
    host == "localhost" || !host.contains(['.', ':']) || host.parse().is_ok_and(|address| !is_public(address))
}

/// Whether an address is one of the public internet: not loopback, private, link-local, shared, multicast or reserved.
///
/// Source: IANA special-purpose address registries (RFC 6890).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && b & 0xc0 == 64)
                || (a == 198 && b & 0xfe == 18)
                || (a == 192 && b == 0 && c == 0))
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_public(IpAddr::V4(v4));
            }
            let [first, second, ..] = v6.segments();
            // Global unicast is 2000::/3 (RFC 4291); of it, 2001:db8::/32 is documentation, 2002::/16 is 6to4,
            // which wraps IPv4 addresses, private ones too.
            first & 0xe000 == 0x2000 && !(first == 0x2001 && second == 0xdb8) && first != 0x2002
        }
    }
}

/// The number of the line that begins or goes on behind `before`.
fn lines_in(before: &[u8]) -> usize {
    before.split(|byte| *byte == b'\n').count()
}

/// The text of a file, to tell lines from.
struct Source<'a> {
    text: &'a str,
    name: &'a str,
}

impl Source<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        lines_in(&self.text.as_bytes()[..span.start.min(self.text.len())])
    }

    fn error(&self, span: &Range<usize>, message: &str) -> ConfigError {
        ConfigError { file: self.name.to_owned(), line: Some(self.line(span)), message: message.to_owned() }
    }

    /// An error of the TOML reader. Its own rendering quotes the line, in which a secret may stand: only the key is named.
    fn syntax(&self, err: &toml::de::Error) -> ConfigError {
        let line = err.span().map(|span| self.line(&span));
        let key = line.and_then(|line| self.text.lines().nth(line - 1)?.split_once('='));
        let mut message = err.message().replace('\n', ", ");
        let table = line.and_then(|line| self.text.lines().nth(line - 1)).map_or("", str::trim);
        if table.starts_with("[registries.") && !table.contains(['"', '\'']) {
            message = format!("{message}; a name with a dot in it stands in quotes: [registries.\"docker.io\"]");
        }
        let message = match key {
            Some((key, _)) => format!("{}: {message}", key.trim()),
            None => message,
        };
        ConfigError { file: self.name.to_owned(), line, message }
    }

    fn address(&self, typed: Option<&Spanned<String>>, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
        let parse = |typed: &Spanned<String>| {
            typed.get_ref().parse().map_err(|_| {
                let message =
                    format!("{key}: `{}` is no address and port, such as 127.0.0.1:5000 or [::]:5000", typed.get_ref());
                self.error(&typed.span(), &message)
            })
        };
        typed.map(parse).transpose()
    }

    fn registry(&self, typed: &Spanned<String>, key: &str) -> Result<Registry, ConfigError> {
        Registry::parse(typed.get_ref()).ok_or_else(|| {
            let message = format!("{key}: `{}` is no registry name: write its host, and its port where it has one, such as quay.io or registry.lan:5000", typed.get_ref().escape_debug());
            self.error(&typed.span(), &message)
        })
    }

    fn duration(&self, typed: &Spanned<String>, key: &str) -> Result<Duration, ConfigError> {
        let fail = |reason: &str| {
            let message = format!("{key}: `{}` is no duration such as 30s, 5m or 12h: {reason}", typed.get_ref());
            self.error(&typed.span(), &message)
        };
        let duration = humantime::parse_duration(typed.get_ref()).map_err(|err| fail(&err.to_string()))?;
        if duration > DURATION_MAX {
            return Err(fail("longer than ten years"));
        }
        Ok(duration)
    }

    fn absolute(&self, typed: Spanned<PathBuf>, key: &str) -> Result<PathBuf, ConfigError> {
        if typed.get_ref().components().any(|part| part == Component::ParentDir) {
            return Err(self.error(&typed.span(), &format!("{key}: write the path without `..`")));
        }
        if typed.get_ref().is_absolute() {
            return Ok(typed.into_inner());
        }
        let message = format!(
            "{key}: `{}` is a relative path; write it from the root, so that it means the same wherever Tidegate starts",
            typed.get_ref().display()
        );
        Err(self.error(&typed.span(), &message))
    }

    fn cache(&self, typed: file::Cache) -> Result<Cache, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => self.absolute(dir, "cache.dir")?,
            None => user_folder("XDG_CACHE_HOME", ".cache", "/var/cache"),
        };
        let tag_ttl = match typed.tag_ttl {
            Some(ttl) => self.duration(&ttl, "cache.tag_ttl")?,
            None => Duration::from_mins(5),
        };
        Ok(Cache { dir, tag_ttl })
    }

    fn plugins(&self, typed: file::Plugins, cache: &Path) -> Result<Plugins, ConfigError> {
        let dir = match typed.dir {
            Some(dir) => {
                let span = dir.span();
                let dir = self.absolute(dir, "plugins.dir")?;
                if !dir.is_dir() {
                    let message = format!(
                        "plugins.dir: {} is no folder; make it, or remove the key to run without plugins",
                        dir.display()
                    );
                    return Err(self.error(&span, &message));
                }
                if dir.starts_with(cache) {
                    return Err(
                        self.error(&span, "plugins.dir: lies in the cache folder, which Tidegate cleans; move it out")
                    );
                }
                Some(dir)
            }
            None => std::path::absolute(DEFAULT_PLUGINS_DIR).ok().filter(|dir| dir.is_dir()),
        };
        let state_dir = match typed.state_dir {
            Some(dir) => {
                let span = dir.span();
                let dir = self.absolute(dir, "plugins.state_dir")?;
                if dir.starts_with(cache) {
                    return Err(self.error(
                        &span,
                        "plugins.state_dir: lies in the cache folder, which may be emptied at any time; move it out",
                    ));
                }
                dir
            }
            None => user_folder("XDG_STATE_HOME", ".local/state", "/var/lib"),
        };
        for header in &typed.headers {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if header.get_ref().is_empty() || !header.get_ref().bytes().all(word) {
                let message = format!("plugins.headers: `{}` is no header's name", header.get_ref().escape_debug());
                return Err(self.error(&header.span(), &message));
            }
            if ["authorization", "cookie", "proxy-authorization"]
                .contains(&header.get_ref().to_ascii_lowercase().as_str())
            {
                let message = format!("plugins.headers: {} carries secrets, which plugins never see", header.get_ref());
                return Err(self.error(&header.span(), &message));
            }
        }
        let headers = typed.headers.into_iter().map(|header| header.into_inner().to_ascii_lowercase()).collect();
        Ok(Plugins { dir, state_dir, on_load_error: typed.on_load_error.unwrap_or_default(), headers })
    }

    fn reach(&self, registry: &Registry, typed: file::Registry, listen: SocketAddr) -> Result<Reach, ConfigError> {
        let key = |name: &str| format!("registries.\"{registry}\".{name}");
        let url = match &typed.url {
            Some(url) => self.url(url, &key("url"), listen)?,
            None => known::address(registry).expect("a registry's name makes an address"),
        };
        let credentials = match (typed.username, typed.password_file) {
            (Some(username), Some(file)) => {
                let span = file.span();
                let password_file = self.absolute(file, &key("password_file"))?;
                let refuse = |reason: &str| {
                    let message = format!("{}: {} {reason}", key("password_file"), password_file.display());
                    self.error(&span, &message)
                };
                let password = std::fs::read_to_string(&password_file);
                let password = password.map_err(|err| refuse(&format!("cannot be read: {err}")))?;
                if password.trim().is_empty() {
                    return Err(refuse("is empty: it holds the password, in one line"));
                }
                if username.get_ref().contains(':') {
                    return Err(
                        self.error(&username.span(), &format!("{}: a user name has no colon in it", key("username")))
                    );
                }
                Some(Credentials { username: username.into_inner(), password_file })
            }
            (None, None) => None,
            (Some(username), None) => {
                return Err(self.error(
                    &username.span(),
                    &format!("{}: needs {} beside it", key("username"), key("password_file")),
                ));
            }
            (None, Some(file)) => {
                return Err(
                    self.error(&file.span(), &format!("{}: needs {} beside it", key("password_file"), key("username")))
                );
            }
        };
        let mut redirect_hosts = Vec::new();
        for host in typed.redirect_hosts {
            redirect_hosts.push(self.registry(&host, &key("redirect_hosts"))?.as_str().to_owned());
        }
        Ok(Reach { url, listed: true, credentials, redirect_hosts })
    }

    fn url(&self, typed: &Spanned<String>, key: &str, listen: SocketAddr) -> Result<Url, ConfigError> {
        let fail = |reason: &str| Err(self.error(&typed.span(), &format!("{key}: {reason}")));
        let Ok(url) = Url::parse(typed.get_ref()) else {
            return fail("is no address such as https://registry.lan:5000");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return fail("has credentials in it; write them as `username` and `password_file`");
        }
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return fail("is no address that begins with http:// or https://");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return fail("has something behind the host; a registry answers under /v2/ of its host");
        }
        let own = |address: IpAddr| address == listen.ip() || (listen.ip().is_unspecified() && address.is_loopback());
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if url.port_or_known_default() == Some(listen.port()) && host.parse().is_ok_and(own) {
            return fail("is the address that Tidegate itself listens on: it would ask itself");
        }
        Ok(url)
    }
}

/// `$VARIABLE/tidegate`, `~/HOME_FOLDER/tidegate`, or `SYSTEM_FOLDER/tidegate` for a process without a home.
fn user_folder(variable: &str, home_folder: &str, system_folder: &str) -> PathBuf {
    let absolute = |path: std::ffi::OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let base = std::env::var_os(variable).and_then(absolute);
    let home = || std::env::var_os("HOME").and_then(absolute).map(|home| home.join(home_folder));
    base.or_else(home).unwrap_or_else(|| PathBuf::from(system_folder)).join("tidegate")
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
