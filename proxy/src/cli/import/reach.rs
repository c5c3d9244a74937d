//! How each registry is reached, as far as the files say: its scheme, and whether it is trusted without proof.

use std::collections::BTreeMap;

use super::Left;
use crate::oci::Registry;

/// Where something stands.
#[derive(Clone)]
pub(super) struct At {
    pub file: String,
    pub line: usize,
    pub key: &'static str,
}

/// The registries that are named.
#[derive(Default)]
pub(super) struct Reach {
    pub registries: BTreeMap<Registry, Named>,
}

/// What is said of one.
#[derive(Default)]
pub(super) struct Named {
    /// Spoken to in the clear, by an address with `http://`.
    http: Option<At>,
    https: bool,
    /// Told to be trusted without proof: as a whole, or somewhere below it.
    insecure: Option<At>,
    insecure_below: Vec<At>,
    /// Named as a place to pull from, without that word.
    proven: Option<At>,
}

/// What becomes of one.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Trust {
    Proven,
    Insecure,
    Http,
}

impl Reach {
    /// A registry that is named: `HOST[:PORT]`, with or without a path behind it.
    ///
    /// # Errors
    /// Why it is none that can be listed.
    pub fn name(&mut self, text: &str) -> Result<&mut Named, String> {
        let host = text.split_once('/').map_or(text, |(host, _)| host);
        if host.contains('*') {
            return Err(
                "the proxy lists registries by name: add [registries.\"NAME\"] for each that it covers".to_owned()
            );
        }
        // Behind a registry without a path a tag may stand, and a digest.
        let registry = Registry::parse(host).ok_or_else(|| format!("`{}` names no registry", host.escape_debug()))?;
        Ok(self.registries.entry(registry).or_default())
    }

    /// What is said of some repositories of a registry holds for all of it or for none.
    pub fn settle(&self, left: &mut Vec<Left>) {
        for (registry, named) in &self.registries {
            let proven = named.proven.as_ref().filter(|_| named.insecure.is_none());
            for at in &named.insecure_below {
                if let Some(proven) = proven {
                    let why = format!(
                        "a registry is trusted as a whole here, and {}:{} wants proof of it: {registry} is verified",
                        proven.file, proven.line
                    );
                    left.push(Left { file: at.file.clone(), line: Some(at.line), key: at.key.to_owned(), why });
                }
            }
            if let (Some(at), true) = (&named.http, named.https) {
                let why = format!("{registry} is spoken to with https elsewhere, and so it is here");
                left.push(Left { file: at.file.clone(), line: Some(at.line), key: at.key.to_owned(), why });
            }
        }
    }
}

impl Named {
    /// It is a place to pull from; `is_insecure` there.
    pub fn place(&mut self, at: At, has_path: Path, said: Said) {
        match (said, has_path) {
            (Said::Insecure, Path::None) => self.insecure = self.insecure.take().or(Some(at)),
            (Said::Insecure, Path::Some) => self.insecure_below.push(at),
            (Said::Nothing, _) => self.proven = self.proven.take().or(Some(at)),
        }
    }

    /// An address with its scheme.
    pub fn address(&mut self, at: At, scheme: tidegate_formats::Scheme) {
        match scheme {
            tidegate_formats::Scheme::Http => self.http = self.http.take().or(Some(at)),
            tidegate_formats::Scheme::Https => self.https = true,
        }
    }

    /// How it is trusted.
    pub fn trust(&self) -> Trust {
        let below = !self.insecure_below.is_empty() && self.proven.is_none();
        if self.http.is_some() && !self.https {
            Trust::Http
        } else if self.insecure.is_some() || below {
            Trust::Insecure
        } else {
            Trust::Proven
        }
    }
}

/// Whether a place is a part of its registry.
#[derive(Clone, Copy)]
pub(super) enum Path {
    None,
    Some,
}

impl Path {
    pub fn of(text: &str) -> Self {
        if text.contains('/') { Self::Some } else { Self::None }
    }
}

/// What a place says about trust.
#[derive(Clone, Copy)]
pub(super) enum Said {
    Insecure,
    Nothing,
}

impl Said {
    pub fn of(insecure: bool) -> Self {
        if insecure { Self::Insecure } else { Self::Nothing }
    }
}
