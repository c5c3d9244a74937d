//! A real registry (Debian's docker-registry) on an address of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

use crate::image::Image;
use crate::process::{Process, offline, run};
use crate::site::htpasswd;
use crate::{HANG, own_address};

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    folder: TempDir,
    address: SocketAddrV4,
    scheme: &'static str,
    /// As whom images are put there (`NAME:PASSWORD`).
    user: Option<String>,
    process: Mutex<Option<Process>>,
}

impl Registry {
    /// Starts an empty one.
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), own_address(), "http")
    }

    /// Starts an empty one for a few users with their passwords.
    pub fn start_for(users: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("htpasswd"), htpasswd(users)).unwrap();
        let user = users.first().map(|(name, password)| format!("{name}:{password}"));
        Self { user, ..Self::start_in(folder, own_address(), "http") }
    }

    /// Starts an empty one that speaks HTTPS, with a certificate by an authority of its own.
    pub fn start_https() -> Self {
        let (folder, host) = (tempfile::tempdir().unwrap(), own_address());
        let extensions = format!("basicConstraints=CA:FALSE\nsubjectAltName=IP:{host}\n");
        fs::write(folder.path().join("extensions"), extensions).unwrap();
        let openssl = |arguments: &str| {
            let output = run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder.path()));
            assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -keyout authority.key -out authority.pem -subj /CN=authority -days 2"));
        openssl(&format!("req {key} -keyout registry.key -out registry.csr -subj /CN=registry"));
        openssl(
            "x509 -req -in registry.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 \
             -extfile extensions -out registry.pem",
        );
        Self::start_in(folder, host, "https")
    }

    fn start_in(folder: TempDir, host: Ipv4Addr, scheme: &'static str) -> Self {
        let (process, address) = serve(folder.path(), SocketAddrV4::new(host, 0), scheme);
        Self { folder, address, scheme, user: None, process: Mutex::new(Some(process)) }
    }

    /// The certificate of the authority that vouches for it.
    pub fn authority_file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Without a slash at its end.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Host and port.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// Puts an image under a name such as `library/alpine:3`, byte for byte.
    pub fn push(&self, image: &Image, name: &str) {
        let layout = tempfile::tempdir().unwrap();
        image.write_layout(layout.path(), "image");
        let user = self.user.iter().map(|user| format!("--dest-creds={user}"));
        let output = run(offline(&mut Command::new("skopeo"))
            .args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"])
            .args(user)
            .arg(format!("oci:{}:image", layout.path().display()))
            .arg(format!("docker://{}/{name}", self.address)));
        assert!(output.status.success(), "push of {name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Ends it: connections are refused from now on.
    pub fn stop(&self) {
        let process = self.process.lock().unwrap().take().expect("it runs");
        process.signal(rustix::process::Signal::KILL);
        process.wait();
    }

    /// Starts it again, at the same address and with the same contents.
    pub fn restart(&self) {
        *self.process.lock().unwrap() = Some(serve(self.folder.path(), self.address, self.scheme).0);
    }
}

fn serve(folder: &Path, address: SocketAddrV4, scheme: &str) -> (Process, SocketAddrV4) {
    let file = folder.join("config.yml");
    let at = |name: &str| folder.join(name).display().to_string();
    let tls = match scheme {
        "https" => format!(", tls: {{certificate: {}, key: {}}}", at("registry.pem"), at("registry.key")),
        _ => String::new(),
    };
    let auth = match folder.join("htpasswd") {
        file if file.exists() => format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display()),
        _ => String::new(),
    };
    let config = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '{address}', secret: tests{tls}}}\n{auth}",
        at("data"),
    );
    fs::write(&file, config).unwrap();
    let process = Process::start(Command::new("docker-registry").arg("serve").arg(&file));
    let address = process.err.wait(0, HANG, |line| {
        let (_, rest) = line.split_once("listening on ")?;
        rest.split(['"', ',']).next()?.parse().ok()
    });
    let address = address.unwrap_or_else(|| panic!("docker-registry does not listen:\n{}", process.log()));
    (process, address)
}
