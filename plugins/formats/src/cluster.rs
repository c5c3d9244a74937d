//! What an OpenShift cluster has: mirror sets of three kinds, and `image.config.openshift.io/cluster`.

use crate::table::Table;
use crate::{Content, Located, Refusal, Text};

/// `ImageDigestMirrorSet`, `ImageTagMirrorSet` or `ImageContentSourcePolicy`.
#[derive(Clone, PartialEq, Debug)]
pub struct MirrorSet {
    /// Which of the three.
    pub kind: MirrorSetKind,
    /// `metadata.name`.
    pub name: Option<String>,
    /// In the order of the file.
    pub rules: Vec<MirrorRule>,
}

/// Which pulls a mirror set is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorSetKind {
    /// `ImageDigestMirrorSet`: by digest.
    Digest,
    /// `ImageTagMirrorSet`: by tag.
    Tag,
    /// `ImageContentSourcePolicy`: by digest, and the source always after the mirrors.
    ContentSource,
}

impl MirrorSetKind {
    /// The kind, as the object writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Digest => "ImageDigestMirrorSet",
            Self::Tag => "ImageTagMirrorSet",
            Self::ContentSource => "ImageContentSourcePolicy",
        }
    }

    fn field(self) -> &'static str {
        match self {
            Self::Digest => "imageDigestMirrors",
            Self::Tag => "imageTagMirrors",
            Self::ContentSource => "repositoryDigestMirrors",
        }
    }
}

/// The mirrors of one source.
#[derive(Clone, PartialEq, Debug)]
pub struct MirrorRule {
    /// A registry, or the beginning of a repository.
    pub source: Text,
    /// In the order in which they are tried.
    pub mirrors: Vec<Text>,
    /// Whether the source is tried after them.
    pub policy: SourcePolicy,
}

/// `mirrorSourcePolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum SourcePolicy {
    /// The source is tried after the mirrors.
    #[default]
    AllowContactingSource,
    /// It is not.
    NeverContactSource,
}

/// What `image.config.openshift.io/cluster` says about registries.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ImageConfig {
    /// `registrySources.allowedRegistries`; never both with `blocked`.
    pub allowed: Option<Located<Vec<Text>>>,
    /// `registrySources.blockedRegistries`.
    pub blocked: Option<Located<Vec<Text>>>,
    /// `registrySources.insecureRegistries`.
    pub insecure: Vec<Text>,
    /// `registrySources.containerRuntimeSearchRegistries`.
    pub search: Vec<Text>,
    /// `allowedRegistriesForImport`: what people may import image streams from.
    pub allowed_for_import: Vec<DomainForImport>,
    /// `additionalTrustedCA.name`: a config map.
    pub additional_trusted_ca: Option<Text>,
    /// `externalRegistryHostnames`.
    pub external_registry_hostnames: Vec<Text>,
    /// `status.internalRegistryHostname`.
    pub internal_registry_hostname: Option<Text>,
}

/// One of `allowedRegistriesForImport`.
#[derive(Clone, PartialEq, Debug)]
pub struct DomainForImport {
    /// A registry.
    pub domain: Text,
    /// Whether it is spoken to without trust.
    pub insecure: bool,
}

/// Reads an object; its kind and version are taken already.
pub fn read(mut object: Table<'_>, kind: &Text, version: &Text) -> Result<Content, Refusal> {
    let (kind, group) = match kind.as_str() {
        "ImageDigestMirrorSet" => (Some(MirrorSetKind::Digest), "config.openshift.io/v1"),
        "ImageTagMirrorSet" => (Some(MirrorSetKind::Tag), "config.openshift.io/v1"),
        "ImageContentSourcePolicy" => (Some(MirrorSetKind::ContentSource), "operator.openshift.io/v1alpha1"),
        "Image" => (None, "config.openshift.io/v1"),
        "ImageContentPolicy" => {
            return Err(object.refuse(
                kind.line,
                "ImageContentPolicy was given up before a cluster had it: write an ImageDigestMirrorSet",
            ));
        }
        other => {
            let known = "known are ImageDigestMirrorSet, ImageTagMirrorSet, ImageContentSourcePolicy and Image";
            return Err(object.refuse(kind.line, format!("kind {other} says nothing about registries here: {known}")));
        }
    };
    if version.as_str() != group {
        return Err(
            object.refuse(version.line, format!("apiVersion of this kind is {group}, and not {}", version.value))
        );
    }
    let name = metadata_name(&mut object)?;
    match kind {
        Some(kind) => Ok(Content::MirrorSet(read_mirror_set(object, kind, name)?)),
        None => Ok(Content::ImageConfig(read_image_config(object)?)),
    }
}

/// What else the metadata say concerns the cluster only.
fn metadata_name(object: &mut Table<'_>) -> Result<Option<String>, Refusal> {
    let Some(mut metadata) = object.table("metadata")? else { return Ok(None) };
    Ok(metadata.text("name")?.map(|name| name.value))
}

fn read_mirror_set(mut object: Table<'_>, kind: MirrorSetKind, name: Option<String>) -> Result<MirrorSet, Refusal> {
    let mut rules = Vec::new();
    // What the cluster observed.
    object.take("status");
    if let Some(mut spec) = object.table("spec")? {
        for mut rule in spec.tables(kind.field())? {
            let source = rule.needed_text("source")?;
            let mirrors = rule.texts("mirrors")?.unwrap_or_default();
            // The old kind has no such field: there it is a key that nobody reads.
            let policy = if kind == MirrorSetKind::ContentSource { None } else { rule.text("mirrorSourcePolicy")? };
            let policy = match policy.as_ref().map(|text| text.as_str()) {
                None | Some("" | "AllowContactingSource") => SourcePolicy::AllowContactingSource,
                Some("NeverContactSource") => SourcePolicy::NeverContactSource,
                Some(other) => {
                    let line = policy.as_ref().map_or(rule.line, |text| text.line);
                    let reason = format!(
                        "mirrorSourcePolicy \"{other}\" is none: write AllowContactingSource or NeverContactSource"
                    );
                    return Err(rule.refuse(line, reason));
                }
            };
            rules.push(MirrorRule { source, mirrors, policy });
            rule.finish();
        }
        spec.finish();
    }
    object.finish();
    Ok(MirrorSet { kind, name, rules })
}

fn read_image_config(mut object: Table<'_>) -> Result<ImageConfig, Refusal> {
    let mut config = ImageConfig::default();
    if let Some(mut spec) = object.table("spec")? {
        if let Some(mut sources) = spec.table("registrySources")? {
            config.allowed = lines_of(&mut sources, "allowedRegistries")?;
            config.blocked = lines_of(&mut sources, "blockedRegistries")?;
            if let (Some(allowed), Some(blocked)) = (&config.allowed, &config.blocked) {
                let reason = "allowedRegistries and blockedRegistries are both there, and only one of them can hold: \
                              whatever is not allowed is blocked already; remove blockedRegistries";
                return Err(sources.refuse(allowed.line.max(blocked.line), reason));
            }
            config.insecure = sources.texts("insecureRegistries")?.unwrap_or_default();
            config.search = sources.texts("containerRuntimeSearchRegistries")?.unwrap_or_default();
            sources.finish();
        }
        for mut import in spec.tables("allowedRegistriesForImport")? {
            let domain = import.needed_text("domainName")?;
            config.allowed_for_import.push(DomainForImport { domain, insecure: import.flag("insecure")? });
            import.finish();
        }
        if let Some(mut trusted) = spec.table("additionalTrustedCA")? {
            config.additional_trusted_ca = trusted.text("name")?;
            trusted.finish();
        }
        config.external_registry_hostnames = spec.texts("externalRegistryHostnames")?.unwrap_or_default();
        spec.finish();
    }
    if let Some(mut status) = object.table("status")? {
        config.internal_registry_hostname = status.text("internalRegistryHostname")?;
    }
    object.finish();
    Ok(config)
}

/// A list that says something, with the line of its first entry; the cluster takes an empty one for none.
fn lines_of(table: &mut Table<'_>, key: &str) -> Result<Option<Located<Vec<Text>>>, Refusal> {
    let texts = table.texts(key)?.unwrap_or_default();
    Ok(texts.first().map(|first| first.line).map(|line| Located { value: texts, line }))
}
