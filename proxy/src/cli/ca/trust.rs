//! `tidegate ca trust`: puts the authority's certificate where a client of this machine looks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::config::{Authority, Wanted};
use crate::oci::Registry;

/// Its name wherever it is put.
const NAME: &str = "tidegate.crt";

/// Folders of authorities that systems have, and what makes a change of them known.
const STORES: [(&str, &[&str]); 4] = [
    ("usr/local/share/ca-certificates", &["update-ca-certificates"]),
    ("etc/pki/ca-trust/source/anchors", &["update-ca-trust", "extract"]),
    ("etc/pki/trust/anchors", &["update-ca-certificates"]),
    ("etc/ca-certificates/trust-source/anchors", &["update-ca-trust"]),
];

#[derive(Args)]
pub(in crate::cli) struct Trust {
    /// Who is to trust it
    client: Client,
    /// Its folder [default: `ca_dir` of [intercept], else /var/lib/tidegate/ca]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The file system that the client sees
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Client {
    /// Docker Engine: /etc/docker/certs.d, for each intercepted registry
    Docker,
    /// containerd: /etc/containerd/certs.d, for each intercepted registry
    Containerd,
    /// All programs of this machine
    System,
}

impl Trust {
    pub fn install(&self, wanted: &Wanted) -> anyhow::Result<()> {
        let file = self.dir.as_ref().unwrap_or(&wanted.ca_dir).join(Authority::CERTIFICATE);
        let pem = fs::read_to_string(&file).with_context(|| {
            format!("there is no authority: {} cannot be read; to make one, run: tidegate ca init", file.display())
        })?;
        if !pem.contains("-----BEGIN CERTIFICATE-----") || pem.contains("PRIVATE KEY") {
            bail!("{} is no file of certificates alone", file.display());
        }
        match self.client {
            Client::System => self.system(&pem),
            Client::Docker => self.docker(&pem, registries(wanted)?),
            Client::Containerd => self.containerd(&pem, registries(wanted)?),
        }
    }

    fn docker(&self, pem: &str, registries: &[Registry]) -> anyhow::Result<()> {
        for registry in registries {
            // The Engine asks Docker Hub with what the system trusts, and nothing else.
            if registry.as_str() == Registry::DOCKER_HUB {
                println!("docker.io: docker trusts what the system trusts there; run: tidegate ca trust system");
                continue;
            }
            self.put(&format!("etc/docker/certs.d/{registry}/{NAME}"), pem)?;
        }
        println!("docker reads this at the next pull; it comes through this proxy once dockerd has it as HTTPS_PROXY");
        Ok(())
    }

    fn containerd(&self, pem: &str, registries: &[Registry]) -> anyhow::Result<()> {
        let certificate = format!("etc/containerd/certs.d/{NAME}");
        self.put(&certificate, pem)?;
        for registry in registries {
            let server = match registry.as_str() {
                Registry::DOCKER_HUB => "registry-1.docker.io",
                name => name,
            };
            let file = format!("etc/containerd/certs.d/{registry}/hosts.toml");
            // Pulls go to the host, pushes to the server: each is trusted by its own `ca`.
            let hosts = format!(
                "server = \"https://{server}\"\nca = \"/{certificate}\"\n\n[host.\"https://{server}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"/{certificate}\"\n"
            );
            match fs::read_to_string(self.root.join(&file)) {
                Ok(there) if there != hosts => println!(
                    "{} is there already, and is left as it is: {}",
                    self.root.join(&file).display(),
                    advice(&there, server, &format!("ca = \"/{certificate}\""))
                ),
                _ => self.put(&file, &hosts)?,
            }
        }
        println!(
            "containerd reads this at the next pull, where its config_path is /etc/containerd/certs.d; it comes through this proxy once containerd has it as HTTPS_PROXY"
        );
        Ok(())
    }

    fn system(&self, pem: &str) -> anyhow::Result<()> {
        let store = STORES.iter().find(|(folder, _)| self.root.join(folder).is_dir());
        let Some((folder, command)) = store else {
            let known = STORES.map(|(folder, _)| format!("/{folder}")).join(", ");
            bail!("this system has none of {known}: put the certificate where its programs look for authorities");
        };
        self.put(&format!("{folder}/{NAME}"), pem)?;
        let line = command.join(" ");
        if self.dry_run || self.root != Path::new("/") {
            println!("then, there: {line}");
            return Ok(());
        }
        let status = Command::new(command[0]).args(&command[1..]).status();
        let status = status.with_context(|| format!("{line} cannot be run"))?;
        if !status.success() {
            bail!("{line} failed ({status})");
        }
        println!("ran {line}; programs that run already trust it once they are started again");
        Ok(())
    }

    /// Writes a file below the root, where it is not there yet as it is to be.
    fn put(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.root.join(path);
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            println!("{} is there", path.display());
            return Ok(());
        }
        if self.dry_run {
            println!("would write {}", path.display());
            return Ok(());
        }
        let told = || format!("{} cannot be written", path.display());
        fs::create_dir_all(path.parent().with_context(told)?).with_context(told)?;
        fs::write(&path, text).with_context(told)?;
        println!("wrote {}", path.display());
        Ok(())
    }
}

fn registries(wanted: &Wanted) -> anyhow::Result<&[Registry]> {
    if wanted.registries.is_empty() {
        bail!("the configuration names no registries in [intercept]; name its file with --config");
    }
    Ok(&wanted.registries)
}

/// Where a `hosts.toml` of somebody's own needs the line that trusts the authority: wherever it leads to the registry itself.
fn advice(hosts: &str, server: &str, line: &str) -> String {
    let Ok(table) = hosts.parse::<toml::Table>() else {
        return format!("it is no TOML; {line} belongs wherever it leads to https://{server}");
    };
    let leads = |address: &str| {
        let address = address.strip_prefix("https://").unwrap_or(address);
        address.split('/').next().is_some_and(|host| host.eq_ignore_ascii_case(server))
    };
    let mut places = Vec::new();
    // Without a server, that is the registry.
    if table.get("server").and_then(toml::Value::as_str).is_none_or(leads) {
        places.push("its top, where `server` is".to_owned());
    }
    let tables = table.get("host").and_then(toml::Value::as_table);
    let named = tables.into_iter().flat_map(toml::Table::keys).filter(|address| leads(address));
    places.extend(named.map(|address| format!("its [host.\"{address}\"]")));
    if places.is_empty() {
        return format!("it leads nowhere to https://{server}, so it needs no {line}");
    }
    format!("put {line} into {}", places.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_belongs_where_a_file_leads_to_the_registry() {
        for (hosts, told) in [
            ("", "put ca = x into its top, where `server` is"),
            (
                "server = \"https://quay.io\"\n[host.\"http://mirror.lan:5000\"]",
                "put ca = x into its top, where `server` is",
            ),
            (
                "server = \"https://quay.io\"\n[host.\"https://quay.io\"]",
                "put ca = x into its top, where `server` is and its [host.\"https://quay.io\"]",
            ),
            (
                "server = \"https://m.lan/v2/quay.io\"\n[host.\"https://m.lan\"]",
                "it leads nowhere to https://quay.io, so it needs no ca = x",
            ),
            ("server =", "it is no TOML; ca = x belongs wherever it leads to https://quay.io"),
        ] {
            assert_eq!(advice(hosts, "quay.io", "ca = x"), told, "{hosts}");
        }
    }
}
