//! What is released and what is not: each attack as a repository that it leaves behind.

use tidegate_sdk::registry::Error;
use tidegate_sdk::testing::{self, host};
use tidegate_sdk::{Descriptor, File, Finding, Pair};

use super::{Policies, inspect};
use crate::cosign;
use crate::signer::{self, Signer, payload, sha256};

const IMAGE: &str = "quay.io/team/app:1";
const NAME: &str = "quay.io/team/app";
const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const OTHER: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const INDEX: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";

/// Requires the key of the number 1 for all of `quay.io/team`.
fn policies(more: &str) -> Policies {
    let text = format!(
        "default = \"deny\"\n[[policy]]\nimages = [\"quay.io/team/*\"]\nkeys = [\"cosign.pub\"]\n{more}\n\
         [[policy]]\nimages = [\"docker.io\"]\nrelease = true"
    );
    let file = |name: &str, text| File { name: name.to_owned(), text };
    Policies::parse(&[file("cosign.pub", Signer::new(1).public_pem()), file("40-require-signature.toml", text)])
        .expect("a configuration")
}

fn descriptor(digest: &str, artifact_type: Option<&str>) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: digest.to_owned(),
        size: 1,
        artifact_type: artifact_type.map(str::to_owned),
        platform: None,
        annotations: Vec::new(),
    }
}

/// The image to be inspected, and nothing else yet.
fn stage() {
    host(|host| host.image.target = Some(descriptor(DIGEST, None)));
}

/// Puts a manifest of signatures under the tag of a digest, with the payloads.
fn put_signatures(digest: &str, signatures: &[(&[u8], &str)]) {
    host(|host| {
        host.registry.manifests.insert(cosign::tag(digest), signer::manifest(signatures));
        for (payload, _) in signatures {
            host.registry.blobs.insert(sha256(payload), payload.to_vec());
        }
    });
}

/// Signs a digest by a key of a number.
fn sign(number: u8, digest: &str, name: &str) {
    let payload = payload(digest, name);
    put_signatures(digest, &[(&payload, &Signer::new(number).sign(&payload))]);
}

/// Adds a referrer of a digest with its manifest and a blob.
fn put_referrer(digest: &str, artifact_type: &str, manifest: &[u8], blob: &[u8]) {
    host(|host| {
        let registry = &mut host.registry;
        registry.manifests.insert(sha256(manifest), manifest.to_vec());
        registry.blobs.insert(sha256(blob), blob.to_vec());
        let referrer = descriptor(&sha256(manifest), Some(artifact_type));
        registry.referrers.entry(digest.to_owned()).or_default().push(referrer);
    });
}

/// Status and message of the denial; none: released.
fn denied(policies: &Policies, image: &str) -> Option<(u16, String)> {
    host(|host| host.registry.look_ups = 0);
    match inspect(policies, &testing::request(image)) {
        Finding::Release => None,
        Finding::Deny(denial) => Some((denial.status, denial.message)),
        Finding::Hold(_) => panic!("never said"),
    }
}

#[track_caller]
fn assert_denied(found: &str) {
    let (status, message) = denied(&policies(""), IMAGE).expect("a denial");
    assert_eq!(status, 403, "{message}");
    assert!(message.contains(&format!("(found: {found})")), "{message}");
}

/// How many there were in the last call.
fn look_ups() -> u32 {
    host(|host| host.registry.look_ups)
}

#[test]
fn a_signature_under_the_tag_releases_and_is_remembered() {
    stage();
    sign(1, DIGEST, NAME);
    assert_eq!(denied(&policies(""), IMAGE), None);
    assert_eq!(look_ups(), 2, "the manifest of signatures and the payload");
    assert_eq!(denied(&policies(""), IMAGE), None);
    assert_eq!(look_ups(), 0, "what is verified is remembered");
    // The tag of signatures moves, or vanishes: what was signed stays signed.
    host(|host| host.registry.manifests.clear());
    assert_eq!(denied(&policies(""), IMAGE), None);
    // Another key is another question.
    let rotated = File { name: "cosign.pub".to_owned(), text: Signer::new(2).public_pem() };
    let table = "default = \"deny\"\n[[policy]]\nimages = [\"quay.io/team/*\"]\nkeys = [\"cosign.pub\"]";
    let table = File { name: "40-require-signature.toml".to_owned(), text: table.to_owned() };
    let rotated = Policies::parse(&[rotated, table]).expect("a configuration");
    assert_eq!(denied(&rotated, IMAGE).map(|(status, _)| status), Some(403));
}

#[test]
fn one_good_signature_among_others_is_enough() {
    stage();
    let (good, other) = (payload(DIGEST, NAME), payload(OTHER, NAME));
    let (by_us, by_them) = (Signer::new(1), Signer::new(2));
    let all = [
        (&good[..], "%%%".to_owned()),
        (&good[..], by_them.sign(&good)),
        (&other[..], by_us.sign(&other)),
        (&good[..], by_us.sign(&good)),
    ];
    let all: Vec<(&[u8], &str)> = all.iter().map(|(payload, signature)| (*payload, signature.as_str())).collect();
    put_signatures(DIGEST, &all);
    assert_eq!(denied(&policies(""), IMAGE), None);
    assert_eq!(look_ups(), 3, "signatures of one payload share it");
}

#[test]
fn what_is_no_signature_of_this_image_by_our_key_is_denied_with_what_was_found() {
    let (good, other) = (payload(DIGEST, NAME), payload(OTHER, NAME));
    let (by_us, by_them) = (Signer::new(1), Signer::new(2));
    let signature = by_us.sign(&good);
    let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).expect("text");
    let other_type = text(&good).replace("cosign container image signature", "atomic container signature").into_bytes();
    let two_digests = text(&good).replace("\"type\"", &format!("\"image2\":\"{OTHER}\",\"type\"")).into_bytes();
    let not_json = b"sha256:1111".to_vec();
    let cases: [(&[u8], String, &str); 10] = [
        (&good, by_them.sign(&good), "1 by another key"),
        (&other, by_us.sign(&other), "1 of another digest"),
        (&other, signature.clone(), "1 of another digest"),
        // The signature of a good payload beside another one.
        (&two_digests, signature.clone(), "1 by another key"),
        (&good, signature[..signature.len() - 3].to_owned(), "1 that cannot be read"),
        (&good, signature[..signature.len() - 4].to_owned(), "1 by another key"),
        (&good, String::new(), "1 that cannot be read"),
        (&good, "A".repeat(100_000), "1 that cannot be read"),
        (&other_type, by_us.sign(&other_type), "1 that cannot be read"),
        (&not_json, by_us.sign(&not_json), "1 that cannot be read"),
    ];
    stage();
    assert_denied("none at all");
    for (payload, signature, found) in &cases {
        put_signatures(DIGEST, &[(payload, signature)]);
        assert_denied(found);
    }
    put_signatures(DIGEST, &[(&good, &by_them.sign(&good)), (&other, &signature)]);
    assert_denied("1 of another digest, 1 by another key");
    assert_eq!(host(|host| host.metric("denied{reason=\"unsigned\"}")).as_deref(), Some("1"));
    assert_eq!(host(|host| host.metric("denied{reason=\"bad\"}")).as_deref(), Some("11"));
}

#[test]
fn a_manifest_of_signatures_that_is_junk_is_denied() {
    stage();
    for manifest in [b"".to_vec(), b"{}".to_vec(), b"[1]".to_vec(), br#"{"layers":{}}"#.to_vec(), vec![0xff; 100]] {
        host(|host| host.registry.manifests.insert(cosign::tag(DIGEST), manifest.clone()));
        let (status, message) = denied(&policies(""), IMAGE).expect("a denial");
        assert_eq!(status, 403, "{message}");
    }
    host(|host| host.registry.manifests.insert(cosign::tag(DIGEST), vec![b' '; 600 << 10]));
    assert_denied("1 too large to be one");
}

#[test]
fn a_thousand_signatures_cost_no_more_than_eight() {
    stage();
    let payloads: Vec<Vec<u8>> = (0..1000).map(|at| payload(OTHER, &format!("{NAME}{at}"))).collect();
    let signature = Signer::new(1).sign(b"x");
    let all: Vec<(&[u8], &str)> = payloads.iter().map(|payload| (payload.as_slice(), signature.as_str())).collect();
    put_signatures(DIGEST, &all);
    assert_denied("8 of another digest, more than are looked at");
    assert_eq!(look_ups(), 1 + 8 + 1, "the manifest, eight payloads, the referrers");
}

#[test]
fn a_call_ends_before_its_time_does() {
    stage();
    sign(1, DIGEST, NAME);
    host(|host| host.remaining_ms = 14);
    assert_denied("more than are looked at");
    host(|host| host.remaining_ms = 15);
    assert_eq!(denied(&policies(""), IMAGE), None);
}

#[test]
fn a_payload_that_is_too_large_is_not_fetched() {
    stage();
    let mut large = payload(DIGEST, NAME);
    large.resize(65 << 10, b' ');
    put_signatures(DIGEST, &[(&large, &Signer::new(1).sign(&large))]);
    assert_denied("1 too large to be one");
    assert_eq!(look_ups(), 2, "the manifest and the referrers");
}

#[test]
fn a_registry_that_cannot_be_asked_is_not_taken_for_unsigned() {
    stage();
    for (failure, told) in [
        (Error::Unavailable("quay.io did not answer in time".to_owned()), "quay.io did not answer in time"),
        (Error::Denied, "the registry refuses, or only the cache may be asked"),
    ] {
        host(|host| host.registry.failure = Some(failure));
        let (status, message) = denied(&policies(""), IMAGE).expect("a denial");
        assert_eq!(status, 503, "{message}");
        assert!(message.contains("cannot be told") && message.contains(told), "{message}");
    }
    // Where only one place cannot be asked, and the signature is in the other, it is released.
    host(|host| {
        host.registry.failure = None;
        host.registry.failures.insert(cosign::tag(DIGEST), Error::Unavailable("reset".to_owned()));
    });
    let (status, message) = denied(&policies(""), IMAGE).expect("a denial");
    assert!(status == 503 && message.contains("sha256-1111") && message.contains("reset"), "{message}");
    let bundle = signer::bundle(&Signer::new(1), DIGEST, cosign::SIGN_PREDICATE);
    put_referrer(DIGEST, cosign::BUNDLE_ARTIFACT, &signer::bundle_manifest(&bundle), &bundle);
    assert_eq!(denied(&policies(""), IMAGE), None);
}

#[test]
fn signatures_are_found_among_the_referrers() {
    stage();
    let payload = payload(DIGEST, NAME);
    let manifest = signer::manifest(&[(&payload, &Signer::new(1).sign(&payload))]);
    put_referrer(DIGEST, "application/spdx+json", &manifest, &payload);
    assert_denied("none at all");
    put_referrer(DIGEST, cosign::SIGNATURE_ARTIFACT, &manifest, &payload);
    assert_eq!(denied(&policies(""), IMAGE), None);
}

#[test]
fn a_bundle_counts_when_it_is_a_signature_of_this_digest_by_our_key() {
    let put = |bundle: &[u8]| {
        host(|host| host.registry.referrers.clear());
        put_referrer(DIGEST, cosign::BUNDLE_ARTIFACT, &signer::bundle_manifest(bundle), bundle);
    };
    stage();
    let good = signer::bundle(&Signer::new(1), DIGEST, cosign::SIGN_PREDICATE);
    for (bundle, found) in [
        (signer::bundle(&Signer::new(2), DIGEST, cosign::SIGN_PREDICATE), "1 by another key"),
        (signer::bundle(&Signer::new(1), OTHER, cosign::SIGN_PREDICATE), "1 of another digest"),
        // Our own attestation of how the image was built is no signature: it may be one of how it must not be.
        (signer::bundle(&Signer::new(1), DIGEST, "https://slsa.dev/provenance/v1"), "1 that cannot be read"),
        (good[..good.len() / 2].to_vec(), "1 that cannot be read"),
        (b"{}".to_vec(), "1 that cannot be read"),
    ] {
        put(&bundle);
        assert_denied(found);
    }
    put(&good);
    let (_, message) = denied(&policies("identity = \"same\""), IMAGE).expect("a bundle gives no name");
    assert!(message.contains("1 under another name"), "{message}");
    assert_eq!(denied(&policies(""), IMAGE), None);
}

#[test]
fn a_list_of_referrers_full_of_junk_is_bounded() {
    stage();
    for at in 0..1000_u32 {
        put_referrer(DIGEST, cosign::BUNDLE_ARTIFACT, format!("junk {at}").as_bytes(), b"");
    }
    assert_denied("4 that cannot be read, more than are looked at");
    assert_eq!(look_ups(), 1 + 1 + 4);
    // Attestations that say so are passed over.
    host(|host| {
        let annotation =
            Pair { key: cosign::BUNDLE_PREDICATE.to_owned(), value: "https://slsa.dev/provenance/v1".to_owned() };
        for referrer in host.registry.referrers.get_mut(DIGEST).expect("a list") {
            referrer.annotations.push(annotation.clone());
        }
    });
    let bundle = signer::bundle(&Signer::new(1), DIGEST, cosign::SIGN_PREDICATE);
    put_referrer(DIGEST, cosign::BUNDLE_ARTIFACT, &signer::bundle_manifest(&bundle), &bundle);
    assert_eq!(denied(&policies(""), IMAGE), None);
}

#[test]
fn a_signature_of_an_index_covers_what_it_lists() {
    stage();
    sign(1, INDEX, NAME);
    assert_denied("none at all");
    host(|host| host.image.parents = vec![OTHER.to_owned(), INDEX.to_owned()]);
    assert_eq!(denied(&policies(""), IMAGE), None);
    assert_eq!(denied(&policies(""), &format!("{NAME}@{DIGEST}")), None);
    assert_eq!(look_ups(), 0);
    // With more indexes than the host lets look up, nothing is taken for signed that is not.
    host(|host| host.image.parents = (0..16).map(|at| format!("sha256:{at:064}")).collect());
    let (status, message) = denied(&policies(""), IMAGE).expect("a denial");
    assert!(status == 403 && message.contains("more than are looked at"), "{message}");
}

#[test]
fn the_signed_name_must_be_the_one_that_is_asked_for() {
    stage();
    sign(1, DIGEST, "quay.io/team/other");
    assert_eq!(denied(&policies(""), IMAGE), None, "where no name is asked for");
    let (_, message) = denied(&policies("identity = \"same\""), IMAGE).expect("another name");
    assert!(message.contains("1 under another name"), "what was verified without a name does not count: {message}");
    assert_eq!(denied(&policies("identity = \"quay.io/team/other\""), IMAGE), None);
    assert_eq!(denied(&policies("identity = \"same\""), "quay.io/team/other:1"), None);
    let (status, _) = denied(&policies("identity = \"same\""), IMAGE).expect("remembered for the other name only");
    assert_eq!(status, 403);
}

#[test]
fn what_no_policy_asks_for_is_as_the_default_says() {
    stage();
    assert_eq!(denied(&policies(""), "docker.io/library/app:1"), None);
    let (_, message) = denied(&policies(""), "ghcr.io/app:1").expect("a denial");
    assert_eq!(message, "ghcr.io/app:1 is denied: no policy of 40-require-signature.toml covers it");
    assert_eq!(look_ups(), 0);
}

#[test]
fn a_memory_that_is_full_costs_time_and_nothing_else() {
    stage();
    sign(1, DIGEST, NAME);
    for at in 0..10_000 {
        tidegate_sdk::state::set(&at.to_string(), "", None).expect("room");
    }
    for _ in 0..2 {
        assert_eq!(denied(&policies(""), IMAGE), None);
        assert_eq!(look_ups(), 2);
    }
    assert_eq!(host(|host| host.metric("not_remembered{}")).as_deref(), Some("2"));
}

#[test]
fn a_denial_says_what_is_missing_and_who_asks_for_it() {
    stage();
    let (_, message) = denied(&policies(""), IMAGE).expect("a denial");
    let expected = format!(
        "quay.io/team/app:1 is denied: {DIGEST} has no signature as policy \"quay.io/team/*\" of \
         40-require-signature.toml asks for (found: none at all)"
    );
    assert_eq!(message, expected);
}
