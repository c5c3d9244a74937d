//! docker's daemon.json.

use crate::table::Table;
use crate::{Refusal, Text};

/// What daemon.json says about registries; its other keys are among those that were not read.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct DaemonJson {
    /// Mirrors of Docker Hub, in the order in which they are tried: addresses.
    pub registry_mirrors: Vec<Text>,
    /// Registries (`HOST[:PORT]`) and networks (`10.0.0.0/8`) that are spoken to without trust.
    pub insecure_registries: Vec<Text>,
}

pub fn is_one(keys: &[&str]) -> bool {
    keys.iter().any(|key| matches!(*key, "registry-mirrors" | "insecure-registries"))
}

pub fn read(mut file: Table<'_>) -> Result<DaemonJson, Refusal> {
    let registry_mirrors = file.texts("registry-mirrors")?.unwrap_or_default();
    let insecure_registries = file.texts("insecure-registries")?.unwrap_or_default();
    file.finish();
    Ok(DaemonJson { registry_mirrors, insecure_registries })
}
