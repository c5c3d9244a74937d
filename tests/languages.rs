//! Every hook and everything that the host offers, in each language that has a layer of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tidegate_tests::authored::all_hooks;
use tidegate_tests::content::sha256;
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Fake, Reply};
use tidegate_tests::http::Answer;
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::{APP, assert_caches, assert_whole, fake_with_app};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The plugin `all-hooks` of a language at work, between two registries. One proxy sees all of it, so that each
/// plugin is compiled once.
struct Stage {
    hub: Fake,
    /// The one that the plugin goes to instead.
    mirror: Fake,
    app: Image,
    pinned: Image,
    proxy: Proxy,
}

impl Stage {
    fn set(language: &'static str) -> Self {
        let (hub, app) = fake_with_app();
        let mirror = Fake::start();
        let pinned = Image::small("pinned");
        let rules = format!("mirror quay.io\npin {}\n", pinned.digest());
        let proxy = Site::of(&hub.url())
            .registry("quay.io", &mirror.url(), "")
            .plugins("headers = [\"x-tell\"]")
            .log("level = \"debug\"")
            .with([
                ("10-all-hooks.wasm", &all_hooks(language).wasm),
                ("10-all-hooks.toml", rules.as_bytes()),
                // What is told here is that it decides, not how fast on a busy machine.
                ("10-all-hooks.settings.toml", b"deadline_ms = 2000"),
            ])
            .start();
        Self { hub, mirror, app, pinned, proxy }
    }

    fn get(&self, name: &str) -> Answer {
        let (repository, tag) = name.split_once(':').unwrap();
        self.proxy.get(&format!("/v2/{repository}/manifests/{tag}")).fetch()
    }

    /// `admission`, `call`, `clock`, `state`, `metrics`.
    fn admits(&self) {
        assert_caches(&self.proxy, &self.app);
        for pulls in 1..=2 {
            let before = now();
            let told = self.proxy.get("/v2/library/told/manifests/1").field("User-Agent", "test/1");
            let told = told.field("Accept", "a/b").field("Accept", "c/d").field("X-Tell", "x").fetch();
            assert_eq!((told.status, told.code().as_str()), (429, "TOOMANYREQUESTS"), "{}", told.text());
            assert_eq!(told.fields.get("Retry-After"), Some("7"));
            assert_eq!(told.fields.get("Warning"), Some("299 - \"this was told\""));
            let message = told.message();
            let at: u64 = between(&message, " now=", " ").parse().expect("seconds");
            assert!((before..=now()).contains(&at), "{message}");
            let id = told.fields.get("X-Request-Id").unwrap();
            assert_eq!(
                message,
                format!(
                    "docker.io/library/told:1 id={id} client=127.0.0.1 identity=none agent=test/1 accept=a/b+c/d \
                     told=x method=GET nothing=none cache=absent left=some clock=on now={at} \
                     state=first+first+none+key-too-long pulls={pulls} (policy all-hooks)"
                )
            );
        }
        let metrics = self.proxy.admin("/metrics").text();
        for line in [
            "tidegate_policy_all_hooks_asked_total{repository=\"library/told\",plugin=\"all-hooks\"} 4",
            "tidegate_policy_all_hooks_pulls{plugin=\"all-hooks\"} 2.0",
        ] {
            assert!(metrics.lines().any(|known| known == line), "{line}: {metrics}");
        }
        self.hub.put_image(&self.app, "library/kept:1");
        assert_ne!(self.get("library/kept:1").status, 200, "only what is cached is served, and nothing is");
        assert_eq!(self.hub.count("GET", "/v2/library/kept/manifests/1"), 0);
    }

    /// `routing`.
    fn routes(&self) {
        let image = Image::small("mirrored");
        self.mirror.put_image(&image, "team/mirrored:1");
        assert_whole(&self.get("library/mirrored:1"), &image.digest());
        assert_eq!(self.hub.count("GET", "/v2/library/mirrored/manifests/1"), 0);
        let ignored = "a candidate has an option that is not known here: ignored";
        self.proxy.wait(self.proxy.beginning(), ignored, &[("plugin", "all-hooks"), ("option", "colour")]);
        // What it was given comes after its own, and its hook `fallback` says so.
        self.hub.put_image(&self.app, "library/mirrored:2");
        assert_whole(&self.get("library/mirrored:2"), &self.app.digest());
        assert_eq!(self.mirror.count("GET", "/v2/team/mirrored/manifests/2"), 1);
        let denied = self.get("library/nowhere:1");
        assert_eq!((denied.status, denied.code().as_str()), (403, "DENIED"), "{}", denied.text());
        assert_eq!(denied.message(), "docker.io is nowhere (policy all-hooks)");
    }

    /// What the host refuses, where the plugin does not look.
    fn fails(&self) {
        let failed = self.get("library/failing:1");
        assert_eq!((failed.status, failed.code().as_str()), (403, "DENIED"), "{}", failed.text());
        let reason = "`../x` is no reference";
        assert!(failed.message().contains(reason), "{}", failed.message());
        let told = |line: &str| line.contains(r#""plugin":"all-hooks""#) && line.contains(reason);
        eventually("the log tells why", || self.proxy.log().lines().any(told));
    }

    /// `fallback`.
    fn falls_back(&self) {
        let path = "/v2/library/flaky/manifests/1";
        self.hub.always(path, Act::Reply(Reply::status(503)));
        let image = Image::small("flaky");
        self.mirror.put_image(&image, "library/flaky:1");
        assert_whole(&self.get("library/flaky:1"), &image.digest());
        assert_eq!(self.hub.count("GET", path), 2, "it waits, tries again, and then goes elsewhere");
        let gone = Reply::status(404).field("Retry-After", "9").field("RateLimit-Remaining", "5;w=60");
        self.hub.always("/v2/library/mirrored/manifests/3", Act::Reply(gone));
        let denied = self.get("library/mirrored:3");
        assert_eq!((denied.status, denied.code().as_str()), (404, "MANIFEST_UNKNOWN"), "{}", denied.text());
        assert_eq!(
            denied.message(),
            "404 of quay.io/team/mirrored+docker.io/library/mirrored, again after 9, ratelimit-remaining=5;w=60, 0 bytes \
             (policy all-hooks)"
        );
    }

    /// `inspection`, `image` and `registry`.
    fn inspects(&self) {
        let image = Image::new("held", &[30_000, 20_000, 10_000]);
        let other = Image::small("other");
        self.hub.put_image(&other, "library/held:other");
        self.hub.put_image(&image, "library/held:plain");
        let subject = sha256(b"subject");
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["annotations"] = json!({ "org.example.hold": "90", "org.example.team": "blue" });
        manifest["artifactType"] = json!("application/vnd.example.app");
        manifest["subject"] = json!({ "mediaType": MANIFEST, "digest": subject, "size": 7 });
        let manifest = manifest.to_string().into_bytes();
        let (digest, size) = (sha256(&manifest), manifest.len());
        for reference in ["1", &digest] {
            self.hub.put(&format!("/v2/library/held/manifests/{reference}"), MANIFEST, manifest.clone().into());
        }
        let sbom = sha256(b"sbom");
        let found = |digest: &str, kind: &str| json!({ "mediaType": MANIFEST, "digest": digest, "size": 4, "artifactType": kind });
        let list = json!({ "schemaVersion": 2, "mediaType": tidegate_tests::image::INDEX, "manifests": [
            found(&sbom, "application/vnd.example.sbom"), found(&sha256(b"signature"), "other")
        ] });
        let path = format!("/v2/library/held/referrers/{digest}");
        self.hub.put(&path, tidegate_tests::image::INDEX, list.to_string().into_bytes().into());

        let held = self.get("library/held:1");
        assert_eq!((held.status, held.code().as_str()), (403, "DENIED"), "{}", held.text());
        assert_eq!(held.fields.get("Retry-After"), Some("90"));
        let layers: Vec<String> = (0..3).map(|layer| image.layer_digest(layer)).collect();
        assert_eq!(
            held.message(),
            format!(
                "target={digest}+{MANIFEST}+{size} raw={size} layers={} \
                 annotations=org.example.hold=90+org.example.team=blue artifact=application/vnd.example.app \
                 subject={subject} label=held unlabelled=none config={} parents= other={} gone=not-found \
                 bad=`../x` is no reference referrers={sbom}+application/vnd.example.sbom+4 blob={} \
                 (policy all-hooks)",
                layers.join("+"),
                image.blobs[0].len(),
                other.manifest.len(),
                image.blobs[3].len(),
            )
        );
        assert_whole(&self.get("library/held:plain"), &image.digest());
    }

    /// `freshness` and `log`.
    fn judges(&self) {
        let first = |tag: &str| {
            self.hub.put_image(&self.app, &format!("library/tags:{tag}"));
            assert_whole(&self.get(&format!("library/tags:{tag}")), &self.app.digest());
            self.proxy.wait(
                self.proxy.beginning(),
                &format!("docker.io/library/tags:{tag}: the cache holds nothing"),
                &[("plugin", "all-hooks"), ("level", "INFO")],
            );
        };
        let moved = Image::small("moved");
        for (tag, then) in [("moving", &moved), ("still", &self.app)] {
            first(tag);
            self.hub.put_image(&moved, &format!("library/tags:{tag}"));
            assert_whole(&self.get(&format!("library/tags:{tag}")), &then.digest());
            let copy = format!("docker.io/library/tags:{tag}: the cache holds {} for ", self.app.digest());
            eventually(&copy, || self.proxy.log().lines().any(|line| line.contains(&copy)));
        }
        self.hub.put_image(&self.pinned, "library/tags:old");
        self.hub.put_image(&moved, "library/tags:pinned");
        assert_whole(&self.get("library/tags:pinned"), &self.pinned.digest());
        assert_eq!(self.hub.count("GET", "/v2/library/tags/manifests/pinned"), 0);
    }

    /// `lifecycle` and `config`.
    fn refuses(&self) {
        for (rules, reason) in [
            (
                "mirror quay.io\nmiror quay.io\n",
                "10-all-hooks.toml:2: `miror quay.io` is neither `mirror REGISTRY` nor `pin DIGEST`",
            ),
            ("pin sha256:0\n", "no file says `mirror REGISTRY`"),
        ] {
            let refusal = self.proxy.refusal("all-hooks", |site| site.copy("10-all-hooks.toml", rules.as_bytes()));
            assert!(refusal.field("reason").contains(reason), "{refusal:?}");
        }
        // The configuration before stays.
        assert_whole(&self.get("library/tags:pinned"), &self.pinned.digest());
        assert_whole(&self.proxy.get(APP).fetch(), &self.app.digest());
    }
}

fn decides_in_every_hook(language: &'static str) {
    let stage = Stage::set(language);
    stage.admits();
    stage.routes();
    stage.falls_back();
    stage.inspects();
    stage.judges();
    // None of it was a failure of the plugin.
    let log = stage.proxy.log();
    assert!(!log.lines().any(|line| line.contains("\"level\":\"ERROR\"")), "{log}");
    stage.refuses();
    stage.fails();
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).unwrap_or_else(|| panic!("{before:?} is not in {text}")).1;
    rest.split_once(after).unwrap().0
}

#[test]
fn a_plugin_in_c_has_every_hook() {
    decides_in_every_hook("c");
}

#[test]
fn a_plugin_in_go_has_every_hook() {
    decides_in_every_hook("go");
}

#[test]
fn a_plugin_in_javascript_has_every_hook() {
    decides_in_every_hook("js");
}

#[test]
fn a_plugin_in_python_has_every_hook() {
    decides_in_every_hook("python");
}
