//! `tidegate plugin bench FILE`: what one call of each hook costs, with warm instances and with a fresh one each.

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;

use super::Alike;
use super::check::time;
use crate::oci::manifest::MEDIA_TYPES;
use crate::oci::{Addressing, Digest, Method, Pull, Registry};
use crate::plugin::{Facts, Given, Image, Question, measure};
use crate::server::parse_image;

/// The pull that is asked about: what containerd sends for an image by its tag.
const IMAGE: &str = "docker.io/library/alpine:3.20";
/// How instances are used, and the settings that say so.
const WAYS: [(&str, &str); 2] = [("warm", ""), ("fresh", "isolation = \"fresh\"")];

pub(super) async fn bench(given: &Alike) -> ExitCode {
    println!("{:11}  {:10}  {:>9}  {:>9}  {:>10}", "hook", "instance", "median", "99 %", "calls/s");
    for (way, settings) in WAYS {
        let alone = match given.load_ready(Some(settings.to_owned())).await {
            Ok(alone) => alone,
            Err(refused) => return refused,
        };
        for cost in measure(&alone.set(), &question()).await {
            let (median, p99) = (time(cost.median), time(cost.p99));
            let way = if cost.remembered { "remembered" } else { way };
            // An answer that is remembered has no instance: once is enough.
            if !cost.remembered || settings.is_empty() {
                println!("{:11}  {way:10}  {median:>9}  {p99:>9}  {:>10.0}", cost.hook, cost.per_second);
            }
        }
    }
    ExitCode::SUCCESS
}

/// A manifest of the usual size: a configuration and five layers.
fn manifest() -> Image {
    let digest = |number: u8| Digest::sha256_of(&[number]);
    let layers: Vec<String> = (1..=5)
        .map(|layer| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":1}}"#,
                digest(layer)
            )
        })
        .collect();
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":1}},"layers":[{}]}}"#,
        digest(0),
        layers.join(",")
    );
    Image::parse(Digest::sha256_of(text.as_bytes()), MEDIA_TYPES[1], text.into()).expect("a manifest")
}

fn question() -> Question {
    let hub = Registry::parse("docker.io").expect("a registry");
    let named = parse_image(IMAGE, &hub).expect("an image");
    let pull = Pull { method: Method::Head, addressing: Addressing::Ns, ..named };
    let image = Arc::new(manifest());
    let accept = MEDIA_TYPES.map(str::to_owned).to_vec();
    let client = IpAddr::from([10, 0, 0, 7]);
    let facts = Facts::new("bench".to_owned(), client, "containerd/v2.1.0".to_owned(), accept, Vec::new());
    let given = Arc::new(Given::default());
    Question { asked: pull.into(), facts: Arc::new(facts), lookups: given, image: Some(image), dry_run: false }
}
