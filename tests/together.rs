//! All clients at once, each in its own way, on one listener with one cache.

use std::fs;
use std::process::Command;
use std::thread;

use tidegate_tests::clients;
use tidegate_tests::content::sha256;
use tidegate_tests::fake::Fake;
use tidegate_tests::image::Image;
use tidegate_tests::process::run;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;

use crate::assert_whole;

/// Asks for all of an image by curl, through a tunnel to Docker Hub. Gives the digests of what came.
fn through_a_tunnel(proxy: &Proxy, image: &Image) -> Vec<String> {
    let ask = |path: &str| {
        let body = proxy.site().path("body");
        let output = run(Command::new("curl")
            .args(["-sS", "--fail", "--noproxy", "", "-o", body.to_str().unwrap()])
            .args(["--proxy", &proxy.url(""), "--cacert"])
            .arg(proxy.site().path("ca/ca.crt"))
            .arg(format!("https://registry-1.docker.io/v2/library/app/{path}")));
        assert!(output.status.success(), "{path}: {output:?}");
        sha256(&fs::read(body).unwrap())
    };
    let blobs = image.blobs.iter().map(|blob| ask(&format!("blobs/{}", sha256(blob))));
    std::iter::once(ask("manifests/1")).chain(blobs).collect()
}

#[test]
fn i4_all_clients_at_once_in_all_modes_have_each_blob_fetched_once() {
    let fake = Fake::start();
    let image = Image::new("app", &[900_000, 500_000, 100, 1, 300_000]);
    fake.put_image(&image, "library/app:1");
    let site = Site::of(&fake.url());
    let ca = site.path("ca");
    let made = site.run(&["ca", "init", "--dir", ca.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let intercept = format!("intercept = {{ registries = [\"docker.io\"], ca_dir = \"{}\" }}", ca.display());
    let hosts = "virtual_hosts = [{ names = [\"hub.mirror.lan\"], registry = \"docker.io\" }]";
    let proxy = site.top(&intercept).top(hosts).start();
    let clients = clients::all(&proxy.authority());
    let all: Vec<String> = std::iter::once(image.digest()).chain(image.blobs.iter().map(|blob| sha256(blob))).collect();

    let mark = proxy.mark();
    thread::scope(|scope| {
        for client in &clients {
            let digest = image.digest();
            scope.spawn(move || assert_eq!(client.pull("library/app:1"), Ok(digest), "{}", client.name()));
        }
        scope.spawn(|| assert_eq!(through_a_tunnel(&proxy, &image), all));
        scope.spawn(|| {
            for blob in &all[1..] {
                let path = format!("/v2/library/app/blobs/{blob}");
                assert_whole(&proxy.get(&path).field("Host", "hub.mirror.lan").fetch(), blob);
            }
        });
    });

    for blob in &all[1..] {
        assert_eq!(fake.count("GET", &format!("/v2/library/app/blobs/{blob}")), 1, "{blob}");
    }
    for mode in ["ns", "path", "default", "virtual-host", "intercept"] {
        proxy.wait(mark, "request", &[("addressing", mode)]);
    }
}
