//! Registries that work without being listed, and the address that a name makes.

use url::Url;

use crate::oci::Registry;

/// Public registries that people pull from every day. Anything else needs a line in the configuration.
const KNOWN: [&str; 28] = [
    "docker.io",
    "quay.io",
    "ghcr.io",
    "gcr.io",
    "us.gcr.io",
    "eu.gcr.io",
    "asia.gcr.io",
    "mirror.gcr.io",
    "registry.k8s.io",
    "k8s.gcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "registry.gitlab.com",
    "registry.access.redhat.com",
    "registry.redhat.io",
    "registry.connect.redhat.com",
    "registry.fedoraproject.org",
    "registry.opensuse.org",
    "registry.suse.com",
    "container-registry.oracle.com",
    "nvcr.io",
    "lscr.io",
    "cgr.dev",
    "docker.elastic.co",
    "docker.n8n.io",
    "registry.ci.openshift.org",
    "ecr-public.aws.com",
    "xpkg.upbound.io",
];

/// Whether a registry works without being listed.
pub(super) fn is_known(registry: &Registry) -> bool {
    KNOWN.contains(&registry.as_str())
}

/// The registries that work without being listed.
pub(super) fn known() -> impl Iterator<Item = Registry> {
    KNOWN.into_iter().filter_map(Registry::parse)
}

/// A registry's own address: HTTPS at its name; Docker Hub answers elsewhere than at its name.
pub(super) fn address(registry: &Registry) -> Option<Url> {
    let host = match registry.as_str() {
        Registry::DOCKER_HUB => "registry-1.docker.io",
        name => name,
    };
    Url::parse(&format!("https://{host}/")).ok()
}
