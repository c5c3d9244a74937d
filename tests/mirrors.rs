//! The files that people have already: their mirrors are asked as the systems that they come from ask them.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::plugins::mirrors;
use tidegate_tests::process::{offline, run};
use tidegate_tests::program::workspace;
use tidegate_tests::site::Site;

/// The digest of nothing: no registry is asked.
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A file of `tests/corpus/mirrors`.
fn corpus(name: &str) -> String {
    let path = workspace().join("tests/corpus/mirrors").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The plugin at work with the objects of a cluster.
fn with_cluster(site: Site) -> Site {
    for name in ["idms.yaml", "itms.yaml", "icsp.yaml", "image.yaml"] {
        site.install(&format!("20-mirrors.d/{name}"), corpus(&format!("cluster/{name}")).as_bytes());
    }
    site.with([("20-mirrors.wasm", &mirrors())])
}

/// Where `tidegate explain` says that an image is looked for, in order; nowhere where it is denied.
fn explained(site: &Site, image: &str) -> Vec<String> {
    let output = site.run_as_is(&["explain", image, "--json"]);
    let line: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{image}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
    let routes = line["routes"].as_array().cloned().unwrap_or_default();
    let place = |route: &Value| {
        let text = |key: &str| route[key].as_str().expect("a text").to_owned();
        format!("{}/{}", text("registry"), text("repository"))
    };
    assert_eq!(line["decision"] == "deny", routes.is_empty(), "{image}: {line}");
    routes.iter().map(place).collect()
}

/// Where containers/image looks for an image with a registries.conf, in order, by Skopeo's own log. What it passes over,
/// since it is blocked, is left out.
fn tried_by_skopeo(registries_conf: &str, image: &str) -> Vec<String> {
    let mut command = Command::new("skopeo");
    command.args(["--debug", "--registries-conf", registries_conf, "inspect", "--no-tags"]);
    let output = run(offline(&mut command).arg(format!("docker://{image}")));
    let log = String::from_utf8_lossy(&output.stderr).replace("\\\"", "\"");
    assert!(!output.status.success(), "{image} is nowhere");
    let between = |line: &str, before: &str| {
        let rest = &line[line.find(before)? + before.len()..];
        Some(rest[..rest.find('"')?].to_owned())
    };
    let tried = log.lines().filter_map(|line| between(line, "msg=\"Trying to access \""));
    let blocked: Vec<String> = log
        .lines()
        .filter(|line| line.contains(" is blocked in "))
        .filter_map(|line| between(line, "msg=\"Accessing \""))
        .collect();
    let tried: Vec<String> = tried.filter(|place| !blocked.contains(place)).collect();
    let place = |place: &String| match place.split_once('@') {
        Some((place, _)) => place.to_owned(),
        None => place.rsplit_once(':').expect("a tag").0.to_owned(),
    };
    tried.iter().map(place).collect()
}

#[test]
fn mirror_sets_lead_where_containers_tools_go_with_what_the_cluster_makes_of_them() {
    let site = with_cluster(Site::new());
    site.write_config();
    let proxy = site.with_fixed_ports().start();
    let registries_conf = workspace().join("tests/corpus/mirrors/registries.conf").display().to_string();
    let names = corpus("pulls.txt");
    let mut pulls = 0;
    for name in names.lines().filter(|line| !line.starts_with('#')) {
        for image in [format!("{name}:1.2"), format!("{name}@{DIGEST}")] {
            assert_eq!(explained(proxy.site(), &image), tried_by_skopeo(&registries_conf, &image), "{image}");
            pulls += 1;
        }
    }
    assert!(pulls >= 60, "only {pulls} pulls were compared");
    println!("{pulls} pulls lead to the same places in the same order");
}
