//! Real clients pull real images; how a client names the upstream; what is cached, and for whom.

use std::thread;

use tidegate_tests::clients::{self, Client};
use tidegate_tests::content::sha256;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::http::End;
use tidegate_tests::image::Image;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

use crate::{APP, app_blob, assert_caches, assert_pulls, assert_whole, fake_with_app, proxied};

/// Runs something for every client at once.
fn each(clients: &[Box<dyn Client>], work: impl Fn(&dyn Client) + Sync) {
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| work(client.as_ref()));
        }
    });
}

#[test]
fn every_client_works_here_without_the_proxy() {
    let registry = Registry::start();
    let image = Image::small("hello");
    registry.push(&image, "library/hello:1");
    // Where clients put the upstream into the path, the registry takes it for a part of the name.
    registry.push(&image, "docker.io/library/hello:1");
    each(&clients::all(&registry.authority()), |client| {
        for _ in 0..2 {
            assert_eq!(client.pull("library/hello:1").as_ref(), Ok(&image.digest()), "{}", client.name());
            client.remove("library/hello:1");
        }
    });
}

#[test]
fn every_client_pulls_and_pulls_again_from_the_cache_when_the_upstream_is_gone() {
    let registry = Registry::start();
    let image = Image::new("hello", &[900_000, 500_000, 100, 1, 300_000]);
    registry.push(&image, "library/hello:1");
    let proxy = Site::of(&registry.url()).start();
    let clients = clients::all(&proxy.authority());
    each(&clients, |client| {
        assert_eq!(client.pull("library/hello:1").as_ref(), Ok(&image.digest()), "{} cold", client.name());
        client.remove("library/hello:1");
    });
    registry.stop();
    each(&clients, |client| {
        assert_eq!(client.pull("library/hello:1").as_ref(), Ok(&image.digest()), "{} warm", client.name());
    });
}

#[test]
fn every_way_to_name_the_upstream_leads_to_the_same_image() {
    let (_fake, image, proxy) = proxied();
    for path in [
        "/v2/library/app/manifests/1",
        "/v2/app/manifests/1",
        "/v2/docker.io/library/app/manifests/1",
        "/v2/docker.io/app/manifests/1",
        "/v2/index.docker.io/library/app/manifests/1",
        "/v2/registry-1.docker.io/library/app/manifests/1",
    ] {
        let answer = proxy.get(path).fetch();
        assert_whole(&answer, &image.digest());
        assert_eq!(answer.fields.get("OCI-Namespace"), None, "{path}");
    }
    for ns in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        let answer = proxy.get(&format!("{APP}?ns={ns}")).fetch();
        assert_whole(&answer, &image.digest());
        assert!(answer.fields.get("OCI-Namespace").is_some(), "{ns}");
    }
}

#[test]
fn the_name_of_the_upstream_is_never_sent_to_it() {
    let (fake, image, proxy) = proxied();
    assert_whole(&proxy.get(&format!("{APP}?ns=docker.io")).fetch(), &image.digest());
    let blob = app_blob(&image.layer_digest(0));
    assert_whole(&proxy.get(&format!("{blob}?ns=docker.io")).fetch(), &image.layer_digest(0));
    assert!(fake.seen().iter().all(|seen| !seen.query.contains("ns=")), "{:?}", fake.seen());
}

#[test]
fn registries_stay_apart() {
    let (hub, quay) = (Fake::start(), Fake::start());
    let (of_hub, of_quay) = (Image::small("of hub"), Image::small("of quay"));
    hub.put_image(&of_hub, "library/app:1");
    quay.put_image(&of_quay, "library/app:1");
    let proxy = Site::of(&hub.url()).registry("quay.io", &quay.url(), "").start();
    for _ in 0..2 {
        assert_whole(&proxy.get(APP).fetch(), &of_hub.digest());
        assert_whole(&proxy.get(&format!("{APP}?ns=quay.io")).fetch(), &of_quay.digest());
        assert_whole(&proxy.get("/v2/quay.io/library/app/manifests/1").fetch(), &of_quay.digest());
    }
}

#[test]
fn the_headers_of_a_good_answer_are_there() {
    let (_fake, image, proxy) = proxied();
    let layer = image.layer_digest(0);
    // Cold and warm alike.
    for _ in 0..2 {
        for request in [proxy.head(APP), proxy.get(APP)] {
            let answer = request.fetch();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.fields.get("Content-Type"), Some(image.media_type()));
            assert_eq!(answer.fields.get("Content-Length"), Some(image.manifest.len().to_string().as_str()));
            assert_eq!(answer.fields.get("Docker-Content-Digest"), Some(image.digest().as_str()));
            assert_eq!(answer.fields.get("Docker-Distribution-API-Version"), Some("registry/2.0"));
        }
        for request in [proxy.head(&app_blob(&layer)), proxy.get(&app_blob(&layer))] {
            let answer = request.fetch();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.fields.get("Content-Type"), Some("application/octet-stream"));
            assert_eq!(answer.fields.get("Content-Length"), Some(image.blobs[1].len().to_string().as_str()));
            assert_eq!(answer.fields.get("Docker-Content-Digest"), Some(layer.as_str()));
            assert_eq!(answer.fields.get("ETag"), Some(format!("\"{layer}\"").as_str()));
            assert_eq!(answer.fields.get("Accept-Ranges"), Some("bytes"));
            assert_eq!(answer.fields.get("Docker-Distribution-API-Version"), Some("registry/2.0"));
        }
    }
    assert_eq!(proxy.head(APP).fetch().body, b"");
}

#[test]
fn what_the_client_has_already_is_not_sent_again() {
    let (_fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let layer = image.layer_digest(0);
    let answer = proxy.get(&app_blob(&layer)).field("If-None-Match", &format!("\"{layer}\"")).fetch();
    assert_eq!((answer.status, answer.body.len()), (304, 0));
}

#[test]
fn a_manifest_is_had_by_its_digest_too() {
    let (fake, image, proxy) = proxied();
    let path = format!("/v2/library/app/manifests/{}", image.digest());
    assert_whole(&proxy.get(&path).fetch(), &image.digest());
    fake.stop();
    assert_whole(&proxy.get(&path).fetch(), &image.digest());
}

#[test]
fn a_warm_image_costs_the_upstream_nothing() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let cold = fake.seen().len();
    for _ in 0..3 {
        assert_pulls(&proxy, &image);
        assert_eq!(proxy.head(APP).fetch().status, 200);
    }
    assert_eq!(fake.seen().len(), cold);
}

#[test]
fn the_cache_survives_a_restart() {
    let (fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    let (site, status) = proxy.terminate();
    assert_eq!(status.code(), Some(0));
    fake.stop();
    assert_pulls(&site.start(), &image);
}

#[test]
fn a_signal_right_after_a_pull_loses_nothing_of_it() {
    // What a client has got whole may still be on its way to the disk: nothing is waited for here.
    for _ in 0..5 {
        let (fake, image, proxy) = proxied();
        assert_pulls(&proxy, &image);
        let (site, status) = proxy.terminate();
        assert_eq!(status.code(), Some(0));
        fake.stop();
        assert_pulls(&site.start(), &image);
    }
}

#[test]
fn a_blob_lies_under_a_path_that_ends_in_its_digest() {
    let (_fake, image, proxy) = proxied();
    assert_caches(&proxy, &image);
    for blob in &image.blobs {
        let path = proxy.site().blob_path(&sha256(blob));
        assert!(std::fs::read(&path).unwrap() == *blob, "{}", path.display());
    }
}

#[test]
fn a_tag_is_asked_for_again_once_its_time_is_over() {
    let fake = Fake::start();
    let (old, new) = (Image::small("old"), Image::small("new"));
    fake.put_image(&old, "library/app:1");
    let patient = Site::of(&fake.url()).cache("tag_ttl = \"1h\"").start();
    let eager = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_whole(&patient.get(APP).fetch(), &old.digest());
    assert_whole(&eager.get(APP).fetch(), &old.digest());
    fake.put_image(&new, "library/app:1");
    assert_whole(&patient.get(APP).fetch(), &old.digest());
    assert_whole(&eager.get(APP).fetch(), &new.digest());
}

#[test]
fn i7_a_stale_tag_is_served_while_every_upstream_fails() {
    let (fake, image) = crate::fake_with_app();
    let proxy = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_caches(&proxy, &image);
    for act in [Reply::status(429).field("Retry-After", "1"), Reply::status(500), Reply::status(503)] {
        fake.always(APP, Act::Reply(act));
        assert_whole(&proxy.get(APP).fetch(), &image.digest());
    }
    fake.stop();
    assert_pulls(&proxy, &image);
    assert_eq!(proxy.head(APP).fetch().status, 200);
    // Without limit: also after a restart.
    assert_pulls(&proxy.kill9().start(), &image);
}

#[test]
fn a_tag_that_the_upstream_no_longer_has_is_gone_once_its_time_is_over() {
    let (fake, image) = crate::fake_with_app();
    let proxy = Site::of(&fake.url()).cache("tag_ttl = \"0s\"").start();
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    fake.always(APP, Act::Reply(Reply::status(404)));
    let answer = proxy.get(APP).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (404, "MANIFEST_UNKNOWN"));
}

#[test]
fn i10_a_cached_blob_is_served_through_a_repository_only_when_that_one_holds_it() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("miss_ttl = \"0s\"").start();
    assert_caches(&proxy, &image);
    let digest = image.layer_digest(0);
    let other = format!("/v2/library/other/blobs/{digest}");
    let answer = proxy.get(&other).fetch();
    assert_eq!((answer.status, answer.code().as_str()), (404, "BLOB_UNKNOWN"));
    fake.put_blob("library/other", image.blobs[1].clone());
    assert_whole(&proxy.get(&other).fetch(), &digest);
}

#[test]
fn tags_and_referrers_come_from_the_upstream() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).cache("miss_ttl = \"0s\"").start();
    let tags = br#"{"name":"library/app","tags":["1","2"]}"#;
    fake.put("/v2/library/app/tags/list", "application/json", tags.to_vec().into());
    let answer = proxy.get("/v2/library/app/tags/list").fetch();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &tags[..]));
    let answer = proxy.get("/v2/library/app/tags/list?n=2&ns=docker.io").fetch();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &tags[..]));
    assert_eq!(fake.seen().last().map(|seen| seen.query.clone()).as_deref(), Some("n=2"));

    let referrers = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let path = format!("/v2/library/app/referrers/{}", image.digest());
    assert_eq!(proxy.get(&path).fetch().status, 404);
    fake.put(&path, "application/vnd.oci.image.index.v1+json", referrers.to_vec().into());
    let answer = proxy.get(&path).fetch();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &referrers[..]));
    assert_eq!(answer.fields.get("Content-Type"), Some("application/vnd.oci.image.index.v1+json"));
}

#[test]
fn the_next_page_of_tags_is_had_from_the_proxy() {
    let (fake, _image, proxy) = proxied();
    let link = format!("<{}/v2/library/app/tags/list?n=1&last=1>; rel=\"next\"", fake.url());
    let reply = Reply::status(200)
        .field("Content-Type", "application/json")
        .field("Link", &link)
        .body(br#"{"name":"library/app","tags":["1"]}"#);
    fake.next("/v2/library/app/tags/list", Act::Reply(reply));
    let answer = proxy.get("/v2/library/app/tags/list?n=1").fetch();
    let link = answer.fields.get("Link").expect("there is another page");
    assert!(!link.contains(&fake.authority()), "{link}");
    assert!(link.contains("last=1") && link.contains("rel=\"next\""), "{link}");
    let target = link.trim_start_matches('<').split('>').next().unwrap();
    let target = target.strip_prefix(&proxy.url("")).unwrap_or(target);
    fake.put("/v2/library/app/tags/list", "application/json", b"second page".to_vec().into());
    assert_eq!(proxy.get(target).fetch().text(), "second page");
}

#[test]
fn an_empty_blob_is_a_blob() {
    let (fake, _image, proxy) = proxied();
    let digest = sha256(b"");
    fake.put_blob("library/app", Vec::new());
    for _ in 0..2 {
        let answer = proxy.get(&app_blob(&digest)).fetch();
        assert_whole(&answer, &digest);
        assert_eq!(answer.end, End::Whole);
    }
}

#[test]
fn the_admin_listener_tells_health_and_metrics() {
    let (_fake, image, proxy) = proxied();
    assert_pulls(&proxy, &image);
    let metrics = proxy.admin("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.text().contains("# TYPE "), "{}", metrics.text());
    assert_eq!(proxy.admin("/healthz").status, 200);
    assert_eq!(proxy.admin("/readyz").status, 200);
}
