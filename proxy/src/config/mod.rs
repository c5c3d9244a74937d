//! The configuration, validated: units in types, names parsed, paths absolute.
//!
//! A configuration that is wrong is refused whole, with file, line and key; nothing of it takes effect.

mod authority;
mod cache;
mod callers;
mod clients;
mod decisions;
mod egress;
mod file;
mod intercept;
mod known;
mod limits;
mod login;
mod plugins;
mod registries;
mod source;
mod tls;
mod traces;
mod trust;
mod virtual_hosts;
mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use authority::Authority;
pub use cache::{Cache, TagTimes};
pub use callers::Callers;
pub use clients::{AddressFrom, Authorities, Clients, User, Users};
pub use decisions::Decisions;
pub use egress::{Egress, EgressProxy, Way};
pub use file::{Log, LogFormat, LogLevel, OnLoadError};
pub use intercept::{Intercept, Others, Wanted};
pub use limits::Limits;
pub use login::Login;
pub use plugins::{Plugins, default_state_dir};
pub use registries::{Reach, is_public};
pub use source::ConfigError;
pub use tls::Tls;
pub use traces::Traces;
pub use trust::{ClientPair, Trust, read_certificates, read_key};
pub use virtual_hosts::{VirtualHost, VirtualHosts};
pub use watch::{Read, Watch};

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
    /// What the listener for clients shows them; none: it speaks plain HTTP.
    pub tls: Option<Tls>,
    /// Who may ask.
    pub clients: Arc<Clients>,
    /// Whether a registry is asked with the credentials of callers, or asked whom it would serve.
    pub asks_callers: bool,
    /// Hosts that stand for a registry each.
    pub virtual_hosts: VirtualHosts,
    /// Registries that clients reach through the proxy as if it were not there; none: nobody connects through it.
    pub intercept: Option<Intercept>,
    /// The registry of a client that names none.
    pub default_registry: Registry,
    /// Whether any public registry is reached by its name.
    pub open_registries: bool,
    /// Where docker's or Podman's logins are, for registries that have none of their own.
    pub docker_config: Option<PathBuf>,
    /// Folders with a folder for each host, of authorities and client certificates.
    pub certs_dirs: Vec<PathBuf>,
    /// How the outside is reached.
    pub egress: Egress,
    /// The cache.
    pub cache: Cache,
    /// The plugins.
    pub plugins: Plugins,
    /// The limits.
    pub limits: Limits,
    /// The log.
    pub log: Log,
    /// The traces.
    pub traces: Traces,
    /// The decision record.
    pub decisions: Decisions,
    /// Nothing stands in its file: all defaults, or a file that is just being written.
    pub blank: bool,
    /// The file that it was read from, or that there was none.
    pub source: String,
    /// In which lines of it `listen` and `admin` stand.
    lines: [Option<usize>; 2],
    file: Option<Read>,
    registries: HashMap<Registry, Arc<Reach>>,
    tag_times: HashMap<Registry, TagTimes>,
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
        let file = Read::before(std::path::absolute(&path).unwrap_or(path.clone()));
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
        let config = Self::parse(&text, &name)?;
        Ok(Self { file: Some(file), ..config })
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
        let tls = source.tls(file.tls)?;
        let clients = Arc::new(source.clients(file.clients, tls.is_some())?);
        let cache = source.cache(file.cache)?;
        let plugins = source.plugins(file.plugins, &cache.dir)?;
        let limits = source.limits(&file.limits)?;
        let traces = source.traces(&file.traces)?;
        let decisions = source.decisions(file.decisions, &cache.dir)?;
        let docker_config = file.docker_config.map(|file| source.docker_config(file, "docker_config")).transpose()?;
        let certs_dirs = source.certs_dirs(file.certs_dirs)?;
        let egress = source.egress(file.egress)?;
        let (mut registries, mut tag_times) = (HashMap::new(), HashMap::new());
        for (name, typed) in file.registries {
            let registry = source.registry(&name, "registries")?;
            let table = format!("registries.\"{registry}\"");
            let times = source.tag_times(typed.tag_ttl.as_ref(), typed.max_stale.as_ref(), &table, cache.tags)?;
            tag_times.insert(registry.clone(), times);
            let reach = source.reach(&registry, typed, listen, docker_config.as_ref())?;
            if registries.insert(registry.clone(), Arc::new(reach)).is_some() {
                return Err(source.error(
                    &name.span(),
                    &format!("registries: {registry} stands here twice, under two of its names"),
                ));
            }
        }
        let asks_callers = registries.values().any(|reach| reach.asks_callers());
        let mut config = Self {
            listen,
            admin,
            tls,
            clients,
            asks_callers,
            virtual_hosts: VirtualHosts::default(),
            intercept: None,
            default_registry,
            open_registries: file.open_registries,
            docker_config,
            certs_dirs,
            egress,
            cache,
            plugins,
            limits,
            log: file.log,
            traces,
            decisions,
            blank: text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')),
            source: name.to_owned(),
            lines: [&file.listen, &file.admin].map(|typed| typed.as_ref().map(|typed| source.line(&typed.span()))),
            file: None,
            registries,
            tag_times,
        };
        if let Some(spanned) = file.default_registry
            && config.reach(&config.default_registry).is_none()
        {
            let registry = &config.default_registry;
            let message =
                format!("default_registry: {registry} is not known; to reach it, add [registries.\"{registry}\"]");
            return Err(source.error(&spanned.span(), &message));
        }
        config.virtual_hosts = source.virtual_hosts(file.virtual_hosts, &config)?;
        config.intercept = file.intercept.map(|typed| source.intercept(&typed, &config)).transpose()?;
        Ok(config)
    }

    /// How long the tags of a registry hold.
    pub fn tag_times(&self, registry: &Registry) -> TagTimes {
        self.tag_times.get(registry).copied().unwrap_or(self.cache.tags)
    }

    /// Keeps what holds until the process ends, as it was `before`. Gives the keys that would have changed.
    pub fn keep_fixed(&mut self, before: &Self) -> Vec<&'static str> {
        fn keep<T: PartialEq + Clone>(changed: &mut Vec<&'static str>, key: &'static str, now: &mut T, before: &T) {
            if now != before {
                now.clone_from(before);
                changed.push(key);
            }
        }
        let mut changed = Vec::new();
        keep(&mut changed, "cache.dir", &mut self.cache.dir, &before.cache.dir);
        keep(&mut changed, "plugins.dir", &mut self.plugins.dir, &before.plugins.dir);
        keep(&mut changed, "plugins.state_dir", &mut self.plugins.state_dir, &before.plugins.state_dir);
        keep(&mut changed, "plugins.on_load_error", &mut self.plugins.on_load_error, &before.plugins.on_load_error);
        keep(&mut changed, "traces.endpoint", &mut self.traces.endpoint, &before.traces.endpoint);
        keep(&mut changed, "traces.ratio", &mut self.traces.ratio, &before.traces.ratio);
        keep(&mut changed, "decisions.file", &mut self.decisions.file, &before.decisions.file);
        keep(&mut changed, "decisions.keep", &mut self.decisions.keep, &before.decisions.keep);
        changed
    }

    /// Its file; none where there was none.
    pub fn path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| file.path.clone())
    }

    /// The files that it was read from: its own, and those whose contents are part of it.
    pub fn files(&self) -> Vec<Read> {
        let authority = self.intercept.iter().flat_map(|intercept| &intercept.authority.files);
        let shown = self.certificates().flat_map(|tls| &tls.files);
        self.file.iter().chain(shown).chain(authority).chain(&self.clients.files).cloned().collect()
    }

    /// All that clients may be shown, what everybody is shown first.
    pub fn certificates(&self) -> impl Iterator<Item = &Tls> {
        self.tls.iter().chain(self.virtual_hosts.certificates())
    }

    /// When what clients are shown, or trust, ends, by file.
    pub fn ends(&self) -> impl Iterator<Item = (&Path, SystemTime)> {
        let authority = self.intercept.iter().map(|intercept| &intercept.authority);
        let shown = self.certificates().map(|tls| (tls.certificate.as_path(), tls.expires));
        shown.chain(authority.map(|authority| (authority.file.as_path(), authority.expires)))
    }

    /// Why the file as a whole is not taken.
    pub fn nothing(&self, reason: &str) -> ConfigError {
        ConfigError { file: self.source.clone(), line: None, message: reason.to_owned() }
    }

    /// What the system refused of the key `listen` or `admin`, with its line.
    pub fn refused(&self, key: &str, reason: &str) -> ConfigError {
        let line = self.lines[usize::from(key == "admin")];
        ConfigError { file: self.source.clone(), line, message: format!("{key}: {reason}") }
    }

    /// The name of a registry as a label of metrics: the public ones that clients may name at will are one.
    pub fn label<'a>(&self, registry: &'a Registry) -> &'a str {
        if self.registries.contains_key(registry) || known::is_known(registry) { registry.as_str() } else { "other" }
    }

    /// How a registry is reached; none where the operator would have to say so first.
    pub fn reach(&self, registry: &Registry) -> Option<Arc<Reach>> {
        if let Some(reach) = self.registries.get(registry) {
            return Some(reach.clone());
        }
        if known::is_known(registry) || (self.open_registries && !is_private_name(registry)) {
            let url = known::address(registry)?;
            return Some(Arc::new(Reach::unlisted(url, self.docker_config.clone())));
        }
        None
    }

    /// Whether a registry is written to.
    pub fn pushes(&self, registry: &Registry) -> bool {
        self.registries.get(registry).is_some_and(|reach| reach.push)
    }

    /// The registries that are listed, and those that work without, in the order of their names.
    pub fn served(&self) -> Vec<Registry> {
        let mut served: Vec<_> = self.registries.keys().cloned().chain(known::known()).collect();
        served.sort();
        served.dedup();
        served
    }

    /// What is right, but not safe: the operator should know of it at each start.
    pub fn warnings(&self) -> Vec<String> {
        let mut listed: Vec<_> = self.registries.iter().collect();
        listed.sort_by_key(|(registry, _)| registry.as_str());
        let mut warnings: Vec<String> = listed.iter().filter_map(|(name, reach)| reach.insecurity(name)).collect();
        let own = listed.iter().flat_map(|(_, reach)| reach.secret_files());
        let mut secrets: Vec<&Path> =
            own.chain(self.docker_config.as_deref()).chain(self.egress.secret_file()).collect();
        secrets.extend(self.certificates().map(|tls| tls.key.as_path()));
        secrets.sort_unstable();
        secrets.dedup();
        warnings.extend(secrets.into_iter().filter_map(login::readable_by_all));
        warnings
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
            ("[cache]\nmax_stale = \"1m\"", 2, "cache.max_stale"),
            ("[registries.\"h.lan\"]\nmax_stale = \"never\"", 2, "registries.\"h.lan\".max_stale"),
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
            ("[registries.\"docker.io\"]\ntoken_file = \"/nonexistent\"", 2, "token_file"),
            ("[registries.\"docker.io\".repositories.\"Org\"]\nusername = \"u\"", 1, "repositories"),
            ("[registries.\"docker.io\".repositories.\"org\"]", 1, "names no credentials"),
            ("[registries.\"docker.io\".repositories.\"org\"]\nusername = \"u\"", 2, "\"org\".username"),
            (
                "[registries.\"docker.io\"]\ntoken_file = \"/etc/hostname\"\nidentity_token_file = \"/etc/hostname\"",
                3,
                "one of them",
            ),
            ("docker_config = \"/etc/hostname\"", 1, "docker_config"),
            ("docker_config = \"/nonexistent\"", 1, "docker_config"),
            ("certs_dirs = [\"certs.d\"]", 1, "certs_dirs"),
            ("[registries.\"h.lan\"]\nca_file = \"/etc/hostname\"", 2, "holds no certificate"),
            ("[registries.\"h.lan\"]\nclient_cert = \"/etc/hostname\"", 2, "client_key"),
            ("[registries.\"h.lan\"]\nclient_key = \"/etc/hostname\"", 2, "client_cert"),
            ("[registries.\"h.lan\"]\nurl = \"http://h.lan\"\ninsecure = true", 1, "insecure"),
            ("[registries.\"h.lan\"]\nproxy = \"socks5://h:1\"", 2, "proxy"),
            ("[registries.\"h.lan\"]\nproxy = \"http://u:hunter2@h:1\"", 2, "proxy_password_file"),
            ("[registries.\"h.lan\"]\nproxy_password_file = \"/etc/hostname\"", 2, "needs"),
            ("[egress]\nproxy = \"yes\"", 2, "egress.proxy"),
            ("[egress]\nno_proxy = [\"a,b\"]", 2, "egress.no_proxy"),
            ("[registries.\"h.lan\"]\nredirect_hosts = [\"*.\"]", 2, "redirect_hosts"),
            ("[registries.\"h.lan\"]\nredirect_hosts = [\"*\"]", 2, "redirect_hosts"),
            ("[limits]\nupstream_ailing = \"0s\"", 2, "limits.upstream_ailing"),
            ("[traces]\nendpoint = \"collector:4318\"", 2, "traces.endpoint"),
            ("[traces]\nendpoint = \"grpc://collector:4317\"", 2, "traces.endpoint"),
            ("[traces]\nendpoint = \"http://u:hunter2@collector\"", 2, "OTEL_EXPORTER_OTLP_HEADERS"),
            ("[traces]\nendpoint = \"http://collector/?key=hunter2\"", 2, "traces.endpoint"),
            ("[traces]\nratio = 1.5", 2, "traces.ratio"),
            ("[traces]\nratio = nan", 2, "traces.ratio"),
            ("[traces]\nratio = \"all\"", 2, "ratio"),
            ("[decisions]\nfile = \"d.jsonl\"", 2, "decisions.file"),
            ("[cache]\ndir = \"/a\"\n[decisions]\nfile = \"/a/d.jsonl\"", 4, "decisions.file"),
            ("[decisions]\nkeep = 100001", 2, "decisions.keep"),
            ("[decisions]\nkeep = -1", 2, "keep"),
            ("[traces]\nendpont = \"http://c\"", 2, "endpont"),
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
            "[registries.\"h.lan\"]\nproxy = \"http://user:hunter2@h.lan\"",
            "[egress]\nproxy = \"user:hunter2@h.lan\"",
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
