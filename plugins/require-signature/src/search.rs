//! Looks for a signature of an image, and decides.

use std::collections::{BTreeMap, HashMap};

use tidegate_sdk::registry::{self, Error};
use tidegate_sdk::{Denial, Finding, Pair, Request, call, image, log, metrics, state};

use crate::cosign::{self, Flaw};
use crate::policy::{Default, Demand, Policies, Policy, Signers};

/// Signatures that are looked at for one manifest. More than the signers of an image would be no accident.
const SIGNATURES_MAX: usize = 8;
/// Referrers that may be signatures and are looked at.
const REFERRERS_MAX: usize = 4;
/// A signature's manifest has some hundred bytes for each signature. Units: bytes.
const MANIFEST_MAX: usize = 512 << 10;
/// A payload has some hundred bytes; a bundle with certificate and entry of a log some thousand. Units: bytes.
const PAYLOAD_MAX: u64 = 64 << 10;
/// With less time left than this, no further signature is looked at: one by each of some keys takes some milliseconds, and
/// a call that ends in time says what it found. Units: milliseconds.
const RESERVE_MS: u32 = 15;
/// What was verified is remembered for so long since: the host keeps 10,000 such memories. Units: seconds.
const REMEMBERED_SECS: u32 = 30 * 86_400;
/// When to come again where a registry cannot be asked. Units: seconds.
const RETRY_AFTER_SECS: u32 = 30;

/// Decides about the manifest under inspection.
pub fn inspect(policies: &Policies, request: &Request) -> Finding {
    let Some(target) = image::target() else {
        let message = format!("{request} is denied: the host shows no manifest to inspect");
        return Denial { status: 503, ..Denial::new(message) }.into();
    };
    // What holds of an index holds of what it lists: its digest names theirs.
    let digests: Vec<String> = std::iter::once(target.digest).chain(image::parents()).collect();
    let file = &policies.file;
    let Some(policy) = policies.find(request, &digests) else {
        return match policies.default {
            Default::Release => Finding::Release,
            Default::Deny => {
                let message = format!("{request} is denied: no policy of {file} covers it");
                Finding::deny(message)
            }
        };
    };
    match &policy.demand {
        Demand::Release => Finding::Release,
        Demand::Signature(signers) => require(signers, request, &digests)
            .map_or_else(|search| search.denial(request, &digests[0], policy, file), |()| Finding::Release),
    }
}

/// Whether one of the digests is signed; else what was found instead.
fn require<'a>(signers: &'a Signers, request: &Request, digests: &[String]) -> Result<(), Box<Search<'a>>> {
    let name = signers.identity.wanted(request);
    let memories = Memories { signers: &signers.fingerprint, name: name.as_deref() };
    if digests.iter().any(|digest| memories.have(digest)) {
        return Ok(());
    }
    let mut search = Search { signers, name: name.clone(), payloads: HashMap::new(), found: Found::default() };
    for digest in digests {
        if search.is_signed(digest) {
            metrics::increment("verified", &[], 1);
            memories.keep(digest);
            return Ok(());
        }
    }
    Err(Box::new(search))
}

/// Digests that were verified, for one set of keys and one name.
struct Memories<'a> {
    signers: &'a str,
    name: Option<&'a str>,
}

impl Memories<'_> {
    fn key(&self, digest: &str) -> String {
        let key = format!("{} {digest} {}", self.signers, self.name.unwrap_or_default());
        tidegate_sdk::key::of(key.trim_end()).into_owned()
    }

    fn have(&self, digest: &str) -> bool {
        // A memory that cannot be read is one that is not there: the signature is verified again.
        matches!(state::get(&self.key(digest)), Ok(Some(_)))
    }

    fn keep(&self, digest: &str) {
        if let Err(error) = state::set(&self.key(digest), "verified", Some(REMEMBERED_SECS)) {
            log::debug(&format!(
                "{digest} is verified, and will be again, since that cannot be remembered: {}",
                error.name()
            ));
            metrics::increment("not_remembered", &[], 1);
        }
    }
}

/// One call of the hook.
struct Search<'a> {
    signers: &'a Signers,
    /// What the payload must call the image.
    name: Option<String>,
    /// By digest: several signatures of an image share one payload.
    payloads: HashMap<String, Result<Vec<u8>, Missing>>,
    found: Found,
}

/// Why something could not be had.
#[derive(Clone)]
enum Missing {
    Nothing,
    TooLarge,
    BudgetSpent,
    Unavailable(String),
}

/// What was found instead of a signature.
#[derive(Default)]
struct Found {
    flaws: BTreeMap<Flaw, u32>,
    too_large: u32,
    /// Not all signatures were looked at.
    cut: bool,
    /// What could not be asked for, and why; the first one.
    unavailable: Option<String>,
}

impl Search<'_> {
    /// Looks under the tag `sha256-HEX.sig` first, where most signatures are, then among the referrers.
    fn is_signed(&mut self, digest: &str) -> bool {
        let tag = cosign::tag(digest);
        if let Some(manifest) = self.manifest(&tag)
            && self.is_signed_by_list(&manifest, digest)
        {
            return true;
        }
        let referrers = match registry::referrers(digest, None) {
            Ok(referrers) => referrers,
            Err(error) => {
                self.miss(&format!("the referrers of {digest}"), error.into());
                return false;
            }
        };
        let is_signature = |kind: Option<&str>, annotations: &[Pair]| match kind {
            Some(cosign::SIGNATURE_ARTIFACT) => true,
            // Where it is told that the bundle is an attestation, it needs not be fetched.
            Some(cosign::BUNDLE_ARTIFACT) => annotations
                .iter()
                .find(|pair| pair.key == cosign::BUNDLE_PREDICATE)
                .is_none_or(|pair| pair.value == cosign::SIGN_PREDICATE),
            _ => false,
        };
        let mut signatures = referrers.iter().filter(|it| is_signature(it.artifact_type.as_deref(), &it.annotations));
        for referrer in signatures.by_ref().take(REFERRERS_MAX) {
            let Some(manifest) = self.manifest(&referrer.digest) else { continue };
            let is_signed = match referrer.artifact_type.as_deref() {
                Some(cosign::BUNDLE_ARTIFACT) => self.is_signed_by_bundle(&manifest, digest),
                _ => self.is_signed_by_list(&manifest, digest),
            };
            if is_signed {
                return true;
            }
        }
        self.found.cut |= signatures.next().is_some();
        false
    }

    fn is_signed_by_list(&mut self, manifest: &[u8], digest: &str) -> bool {
        let signatures = match cosign::signatures(manifest) {
            Ok(signatures) => signatures,
            Err(flaw) => {
                self.found.add(flaw);
                return false;
            }
        };
        self.found.cut |= signatures.len() > SIGNATURES_MAX;
        for signed in signatures.into_iter().take(SIGNATURES_MAX) {
            if call::remaining_ms() < RESERVE_MS {
                self.found.cut = true;
                return false;
            }
            let verified = signed.and_then(|signed| {
                let Some(payload) = self.blob(&signed.payload, signed.payload_size) else { return Ok(false) };
                cosign::verify(&self.signers.keys, &payload, &signed.signature, digest, self.name.as_deref())?;
                Ok(true)
            });
            if self.found.is_good(verified) {
                return true;
            }
        }
        false
    }

    fn is_signed_by_bundle(&mut self, manifest: &[u8], digest: &str) -> bool {
        let verified = cosign::bundle(manifest).and_then(|(blob, size)| {
            let Some(bundle) = self.blob(&blob, size) else { return Ok(false) };
            cosign::verify_bundle(&self.signers.keys, &bundle, digest, self.name.as_deref())?;
            Ok(true)
        });
        self.found.is_good(verified)
    }

    fn manifest(&mut self, reference: &str) -> Option<Vec<u8>> {
        match registry::manifest(reference) {
            Ok(manifest) if manifest.len() <= MANIFEST_MAX => Some(manifest),
            Ok(_) => self.miss(reference, Missing::TooLarge),
            Err(error) => self.miss(reference, error.into()),
        }
    }

    /// A payload; none where it cannot be had, which is taken down.
    fn blob(&mut self, digest: &str, size: u64) -> Option<Vec<u8>> {
        if !self.payloads.contains_key(digest) {
            let blob = match size {
                0..=PAYLOAD_MAX => registry::blob(digest).map_err(Missing::from),
                _ => Err(Missing::TooLarge),
            };
            self.payloads.insert(digest.to_owned(), blob);
        }
        match self.payloads[digest].clone() {
            Ok(blob) => Some(blob),
            Err(missing) => self.miss(digest, missing),
        }
    }

    fn miss(&mut self, what: &str, missing: Missing) -> Option<Vec<u8>> {
        match missing {
            Missing::Nothing => {}
            Missing::TooLarge => self.found.too_large += 1,
            Missing::BudgetSpent => self.found.cut = true,
            Missing::Unavailable(reason) => {
                self.found.unavailable.get_or_insert_with(|| format!("{what}: {reason}"));
            }
        }
        None
    }

    fn denial(&self, request: &Request, digest: &str, policy: &Policy, file: &str) -> Finding {
        let Found { flaws, too_large, cut, unavailable } = &self.found;
        let asked = format!("policy \"{}\" of {file}", policy.name());
        if let Some(reason) = unavailable {
            // It may well be signed.
            metrics::increment("denied", &[reason_label("unavailable")], 1);
            let message = format!(
                "{request} is denied for now: whether {digest} is signed, as {asked} asks, cannot be told: no answer for {reason}"
            );
            return Denial::later(503, message, RETRY_AFTER_SECS).into();
        }
        let mut seen: Vec<String> = flaws
            .iter()
            .map(|(flaw, count)| {
                let what = match flaw {
                    Flaw::OtherKey => "by another key",
                    Flaw::OtherDigest => "of another digest",
                    Flaw::OtherName => "under another name",
                    Flaw::Malformed => "that cannot be read",
                };
                format!("{count} {what}")
            })
            .collect();
        if *too_large > 0 {
            seen.push(format!("{too_large} too large to be one"));
        }
        if *cut {
            seen.push("more than are looked at".to_owned());
        }
        let is_unsigned = seen.is_empty();
        let seen = if is_unsigned { "none at all".to_owned() } else { seen.join(", ") };
        metrics::increment("denied", &[reason_label(if is_unsigned { "unsigned" } else { "bad" })], 1);
        Finding::deny(format!("{request} is denied: {digest} has no signature as {asked} asks for (found: {seen})"))
    }
}

impl Found {
    fn add(&mut self, flaw: Flaw) {
        *self.flaws.entry(flaw).or_default() += 1;
    }

    fn is_good(&mut self, verified: Result<bool, Flaw>) -> bool {
        verified.unwrap_or_else(|flaw| {
            self.add(flaw);
            false
        })
    }
}

impl From<Error> for Missing {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound => Self::Nothing,
            Error::TooLarge => Self::TooLarge,
            Error::BudgetSpent => Self::BudgetSpent,
            Error::Denied => Self::Unavailable("the registry refuses, or only the cache may be asked".to_owned()),
            Error::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

fn reason_label(reason: &str) -> Pair {
    Pair { key: "reason".to_owned(), value: reason.to_owned() }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
