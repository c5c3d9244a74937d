//! The plugin `require-signature` through the real proxy: what is signed is pulled, and nothing else.

use tidegate_tests::clients;
use tidegate_tests::content::sha256;
use tidegate_tests::cosign::{Signature, Signer, payload, put_bundle, put_signatures};
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::http::Answer;
use tidegate_tests::image::{INDEX, Image};
use tidegate_tests::plugins::require_signature;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_pulls, assert_whole, fake_with_app};

const NAME: &str = "docker.io/library/app";
const REPOSITORY: &str = "library/app";

/// A proxy that asks for a signature by one key for everything of docker.io.
fn with_policy(fake: &Fake, signer: &Signer, more: &str) -> Proxy {
    let (table, key) = (policy(more), signer.public_pem());
    Site::of(&fake.url())
        .cache("tag_ttl = \"0s\"\nmiss_ttl = \"0s\"")
        .with([
            ("40-require-signature.wasm", &require_signature()),
            ("40-require-signature.toml", table.as_bytes()),
            ("40-require-signature.d/cosign.pub", key.as_bytes()),
        ])
        .start()
}

fn policy(more: &str) -> String {
    format!("default = \"deny\"\n[[policy]]\nimages = [\"docker.io\"]\nkeys = [\"cosign.pub\"]\n{more}\n")
}

fn ask(proxy: &Proxy, path: &str) -> Answer {
    proxy.get(path).field("Accept", INDEX).field("Accept", "application/vnd.oci.image.manifest.v1+json").fetch()
}

#[track_caller]
fn assert_denied(answer: &Answer, found: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
    assert!(answer.message().contains(found), "{} has not {found:?}", answer.message());
}

#[test]
fn a_signed_image_is_pulled_by_every_client_and_an_unsigned_one_by_none() {
    let (fake, image) = fake_with_app();
    let signer = Signer::new();
    put_signatures(&fake, REPOSITORY, &image.digest(), &[signer.signature(&image.digest(), NAME)]);
    let unsigned = Image::small("unsigned");
    fake.put_image(&unsigned, "library/unsigned:1");
    let proxy = with_policy(&fake, &signer, "identity = \"same\"");
    for client in clients::all(&proxy.authority()) {
        assert_eq!(client.pull("library/app:1").as_ref(), Ok(&image.digest()), "{}", client.name());
        client.pull("library/unsigned:1").expect_err(client.name());
    }
    let answer = proxy.get("/v2/library/unsigned/manifests/1").fetch();
    let told = format!(
        "docker.io/library/unsigned:1 is denied: {} has no signature as policy \"docker.io\" of \
         40-require-signature.toml asks for (found: none at all)",
        unsigned.digest()
    );
    assert_denied(&answer, &told);
    assert_denied(&proxy.get(&format!("/v2/library/unsigned/manifests/{}", unsigned.digest())).fetch(), "none at all");
}

#[test]
fn what_was_verified_is_not_looked_up_again_until_the_keys_change() {
    let (fake, image) = fake_with_app();
    let (signer, other) = (Signer::new(), Signer::new());
    let list = put_signatures(&fake, REPOSITORY, &image.digest(), &[signer.signature(&image.digest(), NAME)]);
    let proxy = with_policy(&fake, &signer, "");
    for _ in 0..3 {
        assert_pulls(&proxy, &image);
    }
    assert_eq!(fake.count("GET", &list), 1);
    // The tag of signatures moves to one by another key: what was signed stays signed.
    put_signatures(&fake, REPOSITORY, &image.digest(), &[other.signature(&image.digest(), NAME)]);
    assert_pulls(&proxy, &image);
    proxy.reload(|site| site.install("40-require-signature.d/cosign.pub", other.public_pem().as_bytes()));
    assert_pulls(&proxy, &image);
    proxy.reload(|site| site.install("40-require-signature.d/cosign.pub", Signer::new().public_pem().as_bytes()));
    assert_denied(&proxy.get(APP).fetch(), "1 by another key");
    // Back to a key that it was verified by: that is still known, also by a program that was started anew.
    proxy.reload(|site| site.install("40-require-signature.d/cosign.pub", signer.public_pem().as_bytes()));
    assert_pulls(&proxy, &image);
    let (site, _) = proxy.terminate();
    fake.always(&list, Act::Reply(Reply::status(503)));
    assert_pulls(&site.start(), &image);
}

#[test]
fn a_signature_of_an_index_covers_its_images() {
    let fake = Fake::start();
    let (one, two, stranger) = (Image::small("one"), Image::small("two"), Image::small("stranger"));
    let index = fake.put_index(&[(&one, "linux/amd64"), (&two, "linux/arm64")], "library/app:1");
    fake.put_image(&stranger, "library/app:2");
    let signer = Signer::new();
    put_signatures(&fake, REPOSITORY, &index, &[signer.signature(&index, NAME)]);
    let proxy = with_policy(&fake, &signer, "");
    assert_whole(&ask(&proxy, APP), &index);
    for image in [&one, &two] {
        assert_whole(&ask(&proxy, &format!("/v2/library/app/manifests/{}", image.digest())), &image.digest());
    }
    assert_denied(&ask(&proxy, "/v2/library/app/manifests/2"), "none at all");
    for client in clients::all(&proxy.authority()) {
        assert!(client.pull("library/app:1").is_ok(), "{}", client.name());
    }
}

#[test]
fn a_bundle_among_the_referrers_counts_as_a_signature_and_an_attestation_does_not() {
    let (fake, image) = fake_with_app();
    let signer = Signer::new();
    let proxy = with_policy(&fake, &signer, "");
    let provenance = signer.bundle(&image.digest(), "https://slsa.dev/provenance/v1");
    put_bundle(&fake, REPOSITORY, &image.digest(), &provenance);
    assert_denied(&proxy.get(APP).fetch(), "1 that cannot be read");
    let bundle = signer.bundle(&image.digest(), "https://sigstore.dev/cosign/sign/v1");
    put_bundle(&fake, REPOSITORY, &image.digest(), &bundle);
    assert_pulls(&proxy, &image);
}

#[test]
fn a_registry_that_fails_is_not_taken_for_one_without_signatures() {
    let (fake, image) = fake_with_app();
    let signer = Signer::new();
    let list = put_signatures(&fake, REPOSITORY, &image.digest(), &[signer.signature(&image.digest(), NAME)]);
    let proxy = with_policy(&fake, &signer, "");
    fake.always(&list, Act::Reply(Reply::status(500)));
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.fields.get("Retry-After").is_some());
    let message = answer.message();
    assert!(message.contains("cannot be told") && message.contains(".sig"), "{message}");
    fake.always(&list, Act::Serve);
    assert_pulls(&proxy, &image);
}

#[test]
fn each_attack_on_a_signature_ends_in_a_denial() {
    let (signer, thief) = (Signer::new(), Signer::new());
    let other_digest = sha256(b"another image");
    let attack = |name: &str, signatures: &dyn Fn(&str) -> Vec<Signature>, found: &str| {
        let (fake, image) = fake_with_app();
        put_signatures(&fake, REPOSITORY, &image.digest(), &signatures(&image.digest()));
        let proxy = with_policy(&fake, &signer, "identity = \"same\"");
        let answer = proxy.get(APP).fetch();
        println!("{name}");
        assert_denied(&answer, found);
        // Nothing of it is a way to the layers' names.
        assert!(!answer.text().contains(&image.layer_digest(0)));
        proxy
    };
    attack("another image's", &|_| vec![signer.signature(&other_digest, NAME)], "1 of another digest");
    attack("another key's", &|digest| vec![thief.signature(digest, NAME)], "1 by another key");
    attack("another name's", &|digest| vec![signer.signature(digest, "docker.io/library/bad")], "1 under another name");
    let lifted = |digest: &str| {
        let text = signer.signature(&other_digest, NAME).text;
        vec![Signature { payload: payload(digest, NAME), text }]
    };
    attack("lifted from another image", &lifted, "1 by another key");
    let cut = |digest: &str| {
        let mut signature = signer.signature(digest, NAME);
        signature.text.truncate(signature.text.len() - 3);
        vec![signature]
    };
    attack("cut short", &cut, "1 that cannot be read");
    let other_type = |digest: &str| {
        let text = String::from_utf8(payload(digest, NAME)).unwrap().replace("cosign container image", "a blob's");
        vec![Signature { text: signer.sign(text.as_bytes()), payload: text.into_bytes() }]
    };
    attack("of another type", &other_type, "1 that cannot be read");
    let large = |digest: &str| {
        let mut payload = payload(digest, NAME);
        payload.resize(2 << 20, b' ');
        vec![Signature { text: signer.sign(&payload), payload }]
    };
    attack("too large", &large, "1 too large to be one");
    let many = |_: &str| {
        let text = signer.sign(b"x");
        let junk = |at| Signature { payload: payload(&other_digest, &format!("quay.io/{at}")), text: text.clone() };
        (0..1000).map(junk).collect()
    };
    attack("a thousand", &many, "8 of another digest, more than are looked at");
}

#[test]
fn eight_signatures_are_judged_against_four_keys_where_the_deadline_allows_it() {
    let (fake, image) = fake_with_app();
    let (signer, stranger) = (Signer::new(), Signer::new());
    let digest = image.digest();
    let by_others = (0..7).map(|at| stranger.signature(&digest, &format!("{NAME}{at}")));
    let all: Vec<Signature> = by_others.chain([signer.signature(&digest, NAME)]).collect();
    put_signatures(&fake, REPOSITORY, &digest, &all);
    let proxy = with_policy(&fake, &Signer::new(), "");
    // How long 32 verifications take is the machine's affair.
    proxy.reload(|site| site.install("40-require-signature.settings.toml", b"deadline_ms = 10000"));
    let others: Vec<String> = (0..3).map(|_| format!("\"\"\"{}\"\"\"", Signer::new().public_pem())).collect();
    let table = policy("").replace("[\"cosign.pub\"]", &format!("[{}, \"cosign.pub\"]", others.join(", ")));
    proxy.reload(|site| site.install("40-require-signature.toml", table.as_bytes()));
    assert_denied(&proxy.get(APP).fetch(), "8 by another key");
    proxy.reload(|site| site.install("40-require-signature.d/cosign.pub", signer.public_pem().as_bytes()));
    assert_pulls(&proxy, &image);
}

#[test]
fn a_key_that_is_none_is_refused_and_the_policy_stays() {
    let (fake, image) = fake_with_app();
    let signer = Signer::new();
    let proxy = with_policy(&fake, &signer, "");
    assert_denied(&proxy.get(APP).fetch(), "none at all");
    let refusal = proxy.refusal("require-signature", |site| site.install("40-require-signature.d/cosign.pub", b"none"));
    let reason = refusal.field("reason");
    assert!(reason.contains("40-require-signature.toml:4: bad key (cosign.pub)"), "{reason}");
    assert_denied(&proxy.get(APP).fetch(), "none at all");
    assert_eq!(proxy.get(&app_blob(&image.layer_digest(0))).fetch().status, 200, "blobs are not inspected");
}
