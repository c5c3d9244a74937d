//! `tidegate ca init`: makes an authority, once.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
};

use super::fingerprint;
use crate::config::Authority;
use crate::oci::Registry;

/// How long it holds: ten years.
const LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// By how much the clocks of clients may be behind.
const BEHIND: Duration = Duration::from_hours(24);

/// `constrain`: the only registries that it may vouch for.
pub(super) fn init(dir: &Path, constrain: Option<&[Registry]>) -> anyhow::Result<()> {
    let (file, key_file) = (dir.join(Authority::CERTIFICATE), dir.join(Authority::KEY));
    for there in [&file, &key_file] {
        if there.exists() {
            bail!(
                "{} is there already, and clients may trust it; to make another, remove {} and {}, and let clients trust the new one",
                there.display(),
                file.display(),
                key_file.display()
            );
        }
    }
    let key = KeyPair::generate().context("no key can be made")?;
    let certificate = params(constrain)?.self_signed(&key).context("no certificate can be made")?;
    let owner = make_folder(dir)?;
    let write = |path: &Path, mode: u32, text: &str| -> anyhow::Result<()> {
        let told = || format!("{} cannot be written", path.display());
        let mut opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).with_context(told)?;
        give(&opened, owner);
        opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).with_context(told)
    };
    write(&key_file, 0o600, &key.serialize_pem())?;
    write(&file, 0o644, &certificate.pem())?;
    println!("made an authority: whoever trusts {} believes what this proxy shows", file.display());
    println!("  key          {} (of mode 600; it stays on this machine)", key_file.display());
    println!("  fingerprint  SHA-256 {}", fingerprint(&file)?);
    println!("to have a client trust it: tidegate ca trust docker | containerd | system");
    Ok(())
}

fn params(constrain: Option<&[Registry]>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // At most 64 characters (RFC 5280, appendix A.1).
    let name: String = format!("Tidegate {}", host.trim()).trim().chars().take(64).collect();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BEHIND).into(), (now + LIFE).into());
    if let Some(registries) = constrain {
        if registries.is_empty() {
            bail!("--constrain: the configuration names no registries in [intercept]");
        }
        let subtree = |registry: &Registry| {
            if registry.host().parse::<std::net::IpAddr>().is_ok() {
                bail!("--constrain: {registry} is an address, and only names can be listed");
            }
            Ok(GeneralSubtree::DnsName(registry.host().to_owned()))
        };
        let permitted_subtrees = registries.iter().map(subtree).collect::<anyhow::Result<_>>()?;
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
    Ok(params)
}

/// Makes the folder. Gives whose it is: of the user that the folder above it belongs to, so that what root makes below
/// the folder of a service is the service's.
fn make_folder(dir: &Path) -> anyhow::Result<(u32, u32)> {
    let told = || format!("{} cannot be made", dir.display());
    if !dir.exists() {
        let above = dir.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).create(above).with_context(told)?;
        let owner = std::fs::metadata(above).with_context(told)?;
        DirBuilder::new().mode(0o755).create(dir).with_context(told)?;
        give(&File::open(dir).with_context(told)?, (owner.uid(), owner.gid()));
    }
    let owner = std::fs::metadata(dir).with_context(told)?;
    Ok((owner.uid(), owner.gid()))
}

/// Only root may: whoever else makes something owns it, and is right.
fn give(file: &File, (user, group): (u32, u32)) {
    let _ = fchown(file, Some(user), Some(group));
}
