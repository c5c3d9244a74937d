//! What Tidegate must show, seen from outside: one file a theme.

mod addressing;
mod again;
mod architecture;
mod authoring;
mod bad_guests;
mod cache;
mod callers;
mod callers_clients;
mod callers_upstream;
mod cli;
mod client_config;
mod clients_faults;
mod coalescing;
mod config_input;
mod configuration;
mod connections;
mod cooldown;
mod decisions;
mod disk;
mod endurance;
mod eviction;
mod faults;
mod files;
mod freshness;
mod gatekeeper;
mod import;
mod input;
mod inspection;
mod instruments;
mod integrity;
mod interception;
mod kept;
mod killed_upstream;
mod languages;
mod migrate;
mod mirrors;
mod operated;
mod plugin_verbs;
mod plugins;
mod policies;
mod policy;
mod pulls;
mod push;
mod push_callers;
mod push_faults;
mod push_specification;
mod quota;
mod ranges;
mod registries;
mod reload;
mod remembered;
mod replay;
mod rot;
mod serving;
mod signatures;
mod streaming;
mod tag_guard;
mod tags;
mod together;
mod tokens;
mod traces;
mod transfers;
mod upstream_faults;
mod upstreams;
mod wasi;
mod wasm_input;

use tidegate_tests::content::sha256;
use tidegate_tests::eventually;
use tidegate_tests::fake::Fake;
use tidegate_tests::http::{Answer, End};
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

/// Path of the manifest that most tests ask for, as Docker asks for it.
const APP: &str = "/v2/library/app/manifests/1";

/// A fake docker.io that holds `library/app:1`.
fn fake_with_app() -> (Fake, Image) {
    let fake = Fake::start();
    let image = Image::small("app");
    fake.put_image(&image, "library/app:1");
    (fake, image)
}

/// A fake docker.io that holds `library/app:1`, and a proxy in front of it, without plugins.
fn proxied() -> (Fake, Image, Proxy) {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).start();
    (fake, image, proxy)
}

/// The puppet at work in front of a docker.io, doing as it is told.
fn with_puppet(fake: &Fake, lines: &str) -> Proxy {
    with_puppet_at(Site::of(&fake.url()), lines)
}

/// The same with a configuration of one's own.
fn with_puppet_at(site: Site, lines: &str) -> Proxy {
    site.with([("10-puppet.wasm", &tidegate_tests::plugins::puppet()), ("10-puppet.toml", lines.as_bytes())]).start()
}

/// Tells the puppet to do something else.
fn tell(proxy: &Proxy, lines: &str) {
    proxy.reload(|site| site.copy("10-puppet.toml", lines.as_bytes()));
}

/// Path of a blob in `library/app`.
fn app_blob(digest: &str) -> String {
    format!("/v2/library/app/blobs/{digest}")
}

/// What a plugin says when it denies the request for the app; empty when it is allowed.
fn denial(proxy: &Proxy) -> String {
    let answer = proxy.get(APP).fetch();
    match answer.status {
        200 => String::new(),
        403 => {
            assert_eq!(answer.code(), "DENIED");
            let message = answer.message();
            // The host adds the name of the plugin.
            let (said, by) = message.rsplit_once(" (policy ").expect("it names the plugin that denies");
            assert!(by.ends_with(')'), "{message}");
            said.to_owned()
        }
        status => panic!("status {status}: {}", answer.text()),
    }
}

/// Fails unless an answer is a whole body of a digest.
#[track_caller]
fn assert_whole(answer: &Answer, digest: &str) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.end, End::Whole, "after {} bytes", answer.body.len());
    assert_eq!(sha256(&answer.body), digest);
}

/// Fails when a client could take an answer for a whole body that is not of a digest.
#[track_caller]
fn assert_never_wrong(answer: &Answer, digest: &str) {
    let whole = answer.status == 200 && answer.end == End::Whole;
    assert!(!whole || sha256(&answer.body) == digest, "a whole body of {} wrong bytes", answer.body.len());
}

/// Pulls the app, and waits until all of it is cached: the last byte of a blob is out before its file is renamed.
#[track_caller]
fn assert_caches(proxy: &Proxy, image: &Image) {
    assert_pulls(proxy, image);
    for blob in &image.blobs {
        let path = proxy.site().blob_path(&sha256(blob));
        eventually("the blob is cached", || path.exists());
    }
}

/// Pulls the app piece by piece, as a client does, and fails unless everything is right.
#[track_caller]
fn assert_pulls(proxy: &Proxy, image: &Image) {
    assert_whole(&proxy.get(APP).fetch(), &image.digest());
    for blob in &image.blobs {
        let digest = sha256(blob);
        assert_whole(&proxy.get(&app_blob(&digest)).fetch(), &digest);
    }
}
