//! What an operator has on disk: a configuration, a plugin folder, a cache and a state folder.

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use tempfile::TempDir;

use crate::own_address;
use crate::process::{offline, run};
use crate::program::tidegate;
use crate::proxy::Proxy;

/// A temporary folder that outlives the program, so that it can be started again on it. Cloned, it is the same one.
#[derive(Clone, Debug)]
pub struct Site {
    folder: Arc<TempDir>,
    listen: String,
    admin: String,
    top: String,
    log: String,
    cache: String,
    clients: String,
    limits: String,
    plugins: String,
    registries: String,
    variables: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// A file of which the first half has been copied.
#[derive(Debug)]
pub struct HalfCopy {
    file: File,
    rest: Vec<u8>,
}

impl Site {
    /// Ports chosen by the kernel, everything in one folder, an empty plugin folder, no registry.
    pub fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path().join("plugins.d")).unwrap();
        let any = "127.0.0.1:0".to_owned();
        let (top, log, cache, clients, limits, plugins, registries, variables, wrapper) = Default::default();
        let listen = any.clone();
        Self { folder, listen, admin: any, top, log, cache, clients, limits, plugins, registries, variables, wrapper }
    }

    /// One registry, `docker.io`, which is the default one.
    pub fn of(url: &str) -> Self {
        Self::new().registry("docker.io", url, "")
    }

    /// With a registry at an address, and further lines about it.
    #[must_use]
    pub fn registry(mut self, name: &str, url: &str, lines: &str) -> Self {
        self.registries = format!("{}[registries.\"{name}\"]\nurl = \"{url}\"\n{lines}\n", self.registries);
        self
    }

    /// With ports that stand in the configuration, on an address of its own.
    #[must_use]
    pub fn with_fixed_ports(mut self) -> Self {
        let address = own_address();
        self.listen = format!("{address}:5000");
        self.admin = format!("{address}:5001");
        self
    }

    /// With its port for clients at an address that a certificate names.
    #[must_use]
    pub fn listening_at(mut self, address: Ipv4Addr) -> Self {
        self.listen = format!("{address}:5000");
        self
    }

    /// Where clients will find it; of use with ports that are fixed.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// With a line of the configuration's top level.
    #[must_use]
    pub fn top(mut self, line: &str) -> Self {
        self.top = format!("{}{line}\n", self.top);
        self
    }

    /// With a line in the table `log`.
    #[must_use]
    pub fn log(mut self, line: &str) -> Self {
        self.log = format!("{}{line}\n", self.log);
        self
    }

    /// With a line in the table `cache`.
    #[must_use]
    pub fn cache(mut self, line: &str) -> Self {
        self.cache = format!("{}{line}\n", self.cache);
        self
    }

    /// With lines in the table `clients`.
    #[must_use]
    pub fn clients(mut self, lines: &str) -> Self {
        self.clients = format!("{}{lines}\n", self.clients);
        self
    }

    /// With users who have these passwords, in the table `clients`.
    #[must_use]
    pub fn users(self, users: &[(&str, &str)]) -> Self {
        let file = self.path("htpasswd");
        self.write_users(users);
        self.clients(&format!("htpasswd = \"{}\"", file.display()))
    }

    /// Writes the file of users anew.
    pub fn write_users(&self, users: &[(&str, &str)]) {
        fs::write(self.path("htpasswd"), htpasswd(users)).unwrap();
    }

    /// With lines in the table `limits`.
    #[must_use]
    pub fn limits(mut self, lines: &str) -> Self {
        self.limits = format!("{}{lines}\n", self.limits);
        self
    }

    /// With a line in the table `plugins`.
    #[must_use]
    pub fn plugins(mut self, line: &str) -> Self {
        self.plugins = format!("{}{line}\n", self.plugins);
        self
    }

    /// With an environment variable of the program.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started by another program, which runs what stands behind its own arguments.
    #[must_use]
    pub fn wrapped(mut self, program: &[&str]) -> Self {
        self.wrapper = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// With a plugin and the files beside it, each with its contents.
    #[must_use]
    pub fn with<const N: usize>(self, files: [(&str, &[u8]); N]) -> Self {
        for (name, bytes) in files {
            self.install(name, bytes);
        }
        self
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Path of a file in the plugin folder.
    pub fn plugin_path(&self, name: &str) -> PathBuf {
        self.path("plugins.d").join(name)
    }

    /// Where the cache keeps a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.path("cache/blobs").join(digest.replace(':', "/"))
    }

    /// Files under the cache's staging folder, with their lengths.
    pub fn staging(&self) -> Vec<(PathBuf, u64)> {
        files(&self.path("cache/staging"))
    }

    /// Files of finished blobs, with their lengths.
    pub fn blobs(&self) -> Vec<(PathBuf, u64)> {
        files(&self.path("cache/blobs"))
    }

    /// Puts a file into the plugin folder with a rename, so that it is never seen in part.
    pub fn install(&self, name: &str, bytes: &[u8]) {
        let staged = self.path(&format!("staged-{name}"));
        if let Some(parent) = self.plugin_path(name).parent() {
            fs::create_dir_all(parent).unwrap();
        }
        fs::create_dir_all(staged.parent().unwrap()).unwrap();
        fs::write(&staged, bytes).unwrap();
        fs::rename(staged, self.plugin_path(name)).unwrap();
    }

    /// Copies a file over the one that is there, as `cp` does.
    pub fn copy(&self, name: &str, bytes: &[u8]) {
        fs::write(self.plugin_path(name), bytes).unwrap();
    }

    /// Begins such a copy, and stops in the middle.
    pub fn begin_copy(&self, name: &str, bytes: &[u8]) -> HalfCopy {
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        let mut file = File::create(self.plugin_path(name)).unwrap();
        file.write_all(first).unwrap();
        HalfCopy { file, rest: rest.to_vec() }
    }

    /// Removes a file from the plugin folder.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.plugin_path(name)).unwrap();
    }

    /// Writes the configuration file. Gives its path.
    pub fn write_config(&self) -> PathBuf {
        let folder = self.folder.path().display();
        let config = format!(
            "listen = \"{}\"\nadmin = \"{}\"\n{}\n[log]\nformat = \"json\"\n{}\n\
             [cache]\ndir = \"{folder}/cache\"\n{}\n\
             [clients]\n{}\n[limits]\n{}\n\
             [plugins]\ndir = \"{folder}/plugins.d\"\nstate_dir = \"{folder}/state\"\n{}\n{}",
            self.listen,
            self.admin,
            self.top,
            self.log,
            self.cache,
            self.clients,
            self.limits,
            self.plugins,
            self.registries,
        );
        let file = self.path("tidegate.toml");
        fs::write(&file, config).unwrap();
        file
    }

    /// Changes the text of the configuration file, in place.
    pub fn edit_config(&self, change: impl FnOnce(String) -> String) {
        let file = self.path("tidegate.toml");
        let text = change(fs::read_to_string(&file).unwrap());
        fs::write(file, text).unwrap();
    }

    /// Starts `tidegate serve` and waits until it listens.
    pub fn start(&self) -> Proxy {
        Proxy::start(self.clone(), &self.write_config())
    }

    /// The same with a configuration file as it lies there.
    pub fn start_with(&self, config: &Path) -> Proxy {
        Proxy::start(self.clone(), config)
    }

    /// Runs a verb to its end, with this configuration.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.write_config();
        self.run_as_is(arguments)
    }

    /// Runs a verb to its end, with the configuration file as it lies there.
    pub fn run_as_is(&self, arguments: &[&str]) -> Output {
        let config = self.path("tidegate.toml");
        run(self.command().args(arguments).arg("--config").arg(config))
    }

    /// The program, in this folder and with its environment, without arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(tidegate());
                command
            }
            None => Command::new(tidegate()),
        };
        offline(&mut command).current_dir(self.folder.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl HalfCopy {
    /// Copies the other half, and closes the file.
    pub fn finish(mut self) {
        self.file.write_all(&self.rest).unwrap();
    }
}

/// A file of users as `htpasswd -B` makes it, with hashes that cost little.
pub fn htpasswd(users: &[(&str, &str)]) -> String {
    let line = |(user, password): &(&str, &str)| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
    users.iter().map(line).collect()
}

/// All files below a folder, with their lengths; none where there is no folder.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A file may vanish between the listing and the look at it.
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(files(&path)),
            Ok(metadata) => found.push((path, metadata.len())),
            Err(_) => {}
        }
    }
    found
}
