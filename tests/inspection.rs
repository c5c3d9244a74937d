//! What plugins see of a manifest before it is served, what they look up for that, and what they find.

use serde_json::{Value, json};
use tidegate_tests::clients;
use tidegate_tests::content::{Content, sha256};
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::image::{Image, tar};
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_pulls, assert_whole, denial, fake_with_app, tell, with_puppet, with_puppet_at};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Puts a manifest under a tag and its digest. Gives its digest.
fn put(fake: &Fake, tag: &str, media_type: &str, manifest: &Value) -> String {
    let bytes = manifest.to_string().into_bytes();
    let digest = sha256(&bytes);
    for reference in [tag, &digest] {
        fake.put(&format!("/v2/library/app/manifests/{reference}"), media_type, bytes.clone().into());
    }
    digest
}

/// A manifest with one layer of a media type, and what else it has.
fn artifact(layer: &str, more: &Value) -> Value {
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2 },
        "layers": [{ "mediaType": layer, "digest": sha256(b"signature"), "size": 9 }],
    });
    manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    manifest
}

#[test]
fn what_a_plugin_does_not_release_no_client_gets() {
    let registry = Registry::start();
    let image = Image::small("app");
    registry.push(&image, "library/app:1");
    let proxy = with_puppet_at(Site::of(&registry.url()), "");
    for client in clients::all(&proxy.authority()) {
        tell(&proxy, "inspection = \"deny\"");
        let error = client.pull("library/app:1").expect_err(client.name());
        assert!(["denied", "403"].iter().any(|word| error.contains(word)), "{}: {error}", client.name());
        tell(&proxy, "");
        assert_eq!(client.pull("library/app:1").as_ref(), Ok(&image.digest()), "{}", client.name());
    }
}

#[test]
fn a_hold_is_a_denial_for_now_also_of_what_is_cached() {
    let (fake, image) = fake_with_app();
    let proxy = with_puppet(&fake, "");
    assert_caches(&proxy, &image);
    tell(&proxy, "inspection = \"hold\"");
    for path in [APP.to_owned(), format!("/v2/library/app/manifests/{}", image.digest())] {
        let answer = proxy.get(&path).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{path}");
        assert_eq!(answer.fields.get("retry-after"), Some("90"));
        assert!(answer.message().contains("is held by the puppet (policy puppet)"), "{}", answer.message());
        let head = proxy.head(&path).fetch();
        assert_eq!((head.status, head.fields.get("docker-content-digest")), (403, None));
    }
    tell(&proxy, "");
    assert_pulls(&proxy, &image);
}

#[test]
fn a_plugin_sees_the_manifest_its_annotations_and_labels() {
    let (fake, image) = fake_with_app();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["annotations"] = json!({ "org.example.team": "blue" });
    let digest = put(&fake, "1", MANIFEST, &manifest);
    let proxy = with_puppet(&fake, "inspection = \"tell\"");
    let told = denial(&proxy);
    let size = manifest.to_string().len();
    let layers: Vec<String> = (0..3).map(|layer| image.layer_digest(layer)).collect();
    for part in [
        format!("target={digest} type={MANIFEST} size={size} raw={size} layers={}", layers.join("+")),
        "annotation=Some(\"blue\") subject=None label=Ok(Some(\"app\")) none=Ok(None)".to_owned(),
        format!("config=Ok({}) parents=", image.blobs[0].len()),
    ] {
        assert!(told.contains(&part), "{part} is not in {told}");
    }
    let config = format!("/v2/library/app/blobs/{}", sha256(&image.blobs[0]));
    assert_eq!(fake.count("GET", &config), 1, "the configuration is fetched once, and cached");
    denial(&proxy);
    assert_eq!(fake.count("GET", &config), 1);
}

#[test]
fn a_child_knows_the_indexes_that_list_it_also_after_a_restart() {
    let (fake, image) = fake_with_app();
    let child = json!({ "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
        "platform": { "os": "linux", "architecture": "amd64" } });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [child] });
    let parent = put(&fake, "multi", INDEX, &index);
    let child = format!("/v2/library/app/manifests/{}", image.digest());
    let site = Site::of(&fake.url());
    let proxy = with_puppet_at(site, "inspection = \"tell\"");
    assert!(proxy.get(&child).fetch().message().contains(" parents= "), "nobody has seen the index");
    let message = proxy.get("/v2/library/app/manifests/multi").fetch().message();
    assert!(message.contains(&format!("layers={}", image.digest())), "{message}");
    let told = proxy.get(&child).fetch().message();
    assert!(told.contains(&format!("parents={parent} ")), "{told}");
    let (site, _) = proxy.terminate();
    let proxy = site.start();
    let told = proxy.get(&child).fetch().message();
    assert!(told.contains(&format!("parents={parent} ")), "{told}");
}

#[test]
fn signatures_are_exempt_and_what_can_be_run_is_not() {
    let (fake, _image) = fake_with_app();
    let signing = "application/vnd.dev.cosign.simplesigning.v1+json";
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let subject = json!({ "subject": { "mediaType": MANIFEST, "digest": sha256(b"x"), "size": 1 } });
    let hex = "a".repeat(64);
    for layer in [&b"signature"[..], &tar("etc/passwd", b"root")] {
        fake.put_blob("library/app", layer.to_vec());
    }
    let proxy = with_puppet(&fake, "inspection = \"deny\"");
    let status = |tag: &str, manifest: &Value| {
        let digest = put(&fake, tag, MANIFEST, manifest);
        let by = |reference: &str| proxy.get(&format!("/v2/library/app/manifests/{reference}")).fetch().status;
        (by(tag), by(&digest))
    };
    assert_eq!(status(&format!("sha256-{hex}.sig"), &artifact(signing, &json!({}))).0, 200);
    assert_eq!(status(&format!("sha256-{hex}.att"), &artifact(layer, &json!({}))), (403, 403));
    assert_eq!(status("sbom", &artifact("application/spdx+json", &subject)), (200, 200));
    assert_eq!(status("trick", &artifact(layer, &subject)), (403, 403));
    assert_eq!(status("chart", &artifact("application/vnd.cncf.helm.chart.content.v1", &json!({}))), (403, 403));
    // What calls itself a signature and is an archive, some clients unpack.
    let archive = tar("etc/passwd", b"root");
    for (digit, kind) in [("b", signing), ("c", "application/vnd.acme.thing")] {
        let mut manifest = artifact(kind, &subject);
        manifest["layers"][0]["digest"] = json!(sha256(&archive));
        assert_eq!(status(&format!("disguised-{digit}"), &manifest), (403, 403), "{kind}");
        assert_eq!(status(&format!("sha256-{}.sig", digit.repeat(64)), &manifest).0, 403, "{kind}");
    }
    // And so is what cannot be looked at.
    let mut manifest = artifact(signing, &subject);
    manifest["layers"][0]["digest"] = json!(sha256(b"nowhere"));
    assert_eq!(status("unseen", &manifest), (403, 403));
    fake.put(&format!("/v2/library/app/referrers/sha256:{hex}"), INDEX, b"{\"manifests\":[]}".to_vec().into());
    assert_eq!(proxy.get(&format!("/v2/library/app/referrers/sha256:{hex}")).fetch().status, 200);
}

#[test]
fn look_ups_go_through_the_cache_and_find_what_the_repository_has() {
    let (fake, image) = fake_with_app();
    let other = Image::small("other");
    fake.put_image(&other, "library/app:other");
    let small = fake.put_blob("library/app", b"a small blob".to_vec());
    let big = fake.put_blob("library/app", Content::noise(3, (1 << 20) + 1));
    let sbom = json!({ "mediaType": MANIFEST, "digest": sha256(b"sbom"), "size": 4,
        "artifactType": "application/vnd.example.sbom" });
    let signature = json!({ "mediaType": MANIFEST, "digest": sha256(b"sig"), "size": 3, "artifactType": "other" });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [sbom, signature] }).to_string();
    fake.put(&format!("/v2/library/app/referrers/{}", image.digest()), INDEX, list.clone().into_bytes().into());
    let digest = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let lines = |hook: &str| format!("{hook} = \"look\"\nblob = \"{}\"\nbig = \"{}\"\n", digest(&small), digest(&big));
    let by_digest = format!("/v2/library/app/manifests/{}", image.digest());
    let proxy = with_puppet(&fake, &lines("inspection"));
    let wanted = format!(
        "other=Ok({}) none=Err(Error::NotFound) bad=Err(Error::Unavailable(\"`../x` is no reference\")) referrers={} blob=Ok(12) big=Err(Error::TooLarge)",
        other.manifest.len(),
        sha256(b"sbom")
    );
    for hook in ["inspection", "admission", "routing"] {
        tell(&proxy, &format!("{}\n# {hook}", lines(hook)));
        let told = proxy.get(&by_digest).fetch().message();
        assert!(told.contains(&wanted), "{hook}: {told}");
    }
    assert_eq!(fake.count("GET", "/v2/library/app/manifests/other"), 1, "asked once, cached for the others");
    // A registry without the API keeps the list under a tag.
    fake.always(&format!("/v2/library/app/referrers/{}", image.digest()), Act::Reply(Reply::status(404)));
    let tag = image.digest().replace(':', "-");
    fake.put(&format!("/v2/library/app/manifests/{tag}"), INDEX, list.into_bytes().into());
    let fresh = with_puppet(&fake, &lines("inspection"));
    let told = fresh.get(&by_digest).fetch().message();
    assert!(told.contains(&format!("referrers={} ", sha256(b"sbom"))), "{told}");
}

#[test]
fn look_ups_read_large_blobs_as_they_come_and_from_the_cache() {
    let (fake, _image) = fake_with_app();
    let digest = |content: Content| fake.put_blob("library/app", content).rsplit('/').next().unwrap().to_owned();
    let (small, big) = (digest(Content::noise(4, 200_000)), digest(Content::noise(5, 1_000_000)));
    let lines = format!("inspection = \"look\"\nblob = \"{small}\"\nbig = \"{big}\"\n");
    let proxy = with_puppet(&fake, &lines);
    for temperature in ["cold", "warm"] {
        let told = denial(&proxy);
        assert!(told.contains("blob=Ok(200000) big=Ok(1000000)"), "{temperature}: {told}");
        for digest in [&small, &big] {
            let file = proxy.site().blob_path(digest);
            eventually("it is cached", || file.exists());
        }
    }
}

#[test]
fn a_look_up_after_a_failure_asks_nobody() {
    let (fake, _image) = fake_with_app();
    let proxy = with_puppet(&fake, "fallback = \"look\"");
    fake.put_image(&Image::small("other"), "library/app:other");
    let told = proxy.get("/v2/library/app/manifests/gone").fetch().message();
    assert!(told.contains("other=Err(Error::Denied)"), "{told}");
    assert_eq!(fake.count("GET", "/v2/library/app/manifests/other"), 0);
}

#[test]
fn look_ups_have_a_budget_of_their_own_and_do_not_count_against_the_deadline() {
    let (fake, _image) = fake_with_app();
    let proxy = with_puppet(&fake, "inspection = \"spend\"");
    // Each is asked anew, and takes as long as half of a deadline.
    for _ in 0..32 {
        fake.next("/v2/library/app/manifests/other", Act::Reply(Reply::status(404)));
    }
    assert_eq!(denial(&proxy), "16 look-ups");
}

#[test]
fn a_registry_that_is_silent_costs_a_look_up_and_no_more() {
    let (fake, image) = fake_with_app();
    let site = Site::of(&fake.url()).limits("upstream_headers = \"1s\"\nupstream_attempts = \"2s\"");
    let other = Image::small("other");
    fake.put_image(&other, "library/app:other");
    fake.always("/v2/library/app/manifests/other", Act::Silent);
    let proxy = with_puppet_at(site, "inspection = \"look\"");
    let told = denial(&proxy);
    assert!(told.contains("other=Err(Error::Unavailable("), "{told}");
    tell(&proxy, "");
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
}
