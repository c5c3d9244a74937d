//! Every request that the distribution specification has is answered through the proxy as docker-registry answers it.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tidegate_tests::content::{noise, sha256};
use tidegate_tests::http::{self, Answer};
use tidegate_tests::image::Image;
use tidegate_tests::registry::Registry;
use tidegate_tests::site::Site;

/// Headers that clients go by; `Location` is compared without its host, and without what names an upload.
const HEADERS: [&str; 9] = [
    "Location",
    "Range",
    "Docker-Content-Digest",
    "Docker-Distribution-API-Version",
    "Content-Type",
    "Content-Range",
    "OCI-Subject",
    "OCI-Filters-Applied",
    "Link",
];

/// A client that tells what it was answered.
struct Client {
    base: String,
    /// What stands before the repository.
    prefix: &'static str,
    /// What stands behind the question mark of each address that is not given.
    ns: &'static str,
    told: Vec<String>,
}

impl Client {
    fn url(&self, path: &str) -> String {
        let path = path.replacen("/v2/", &format!("/v2/{}", self.prefix), 1);
        match (self.ns, path.contains('?')) {
            ("", _) => format!("{}{path}", self.base),
            (ns, true) => format!("{}{path}&{ns}", self.base),
            (ns, false) => format!("{}{path}?{ns}", self.base),
        }
    }

    fn ask(&mut self, what: &str, method: &str, url: &str, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        let request =
            fields.iter().fold(http::method(method, url), |request, (name, value)| request.field(name, value));
        let answer = if method == "GET" || method == "HEAD" { request.fetch() } else { request.carry(body) };
        let mut line = format!("{what}: {method} {}", answer.status);
        for name in HEADERS {
            if let Some(value) = answer.fields.get(name) {
                let _ = write!(line, " | {name}: {}", self.same(value));
            }
        }
        if answer.status >= 400 && method != "HEAD" {
            // Words that are not the specification's are not compared.
            let code = serde_json::from_slice(&answer.body).ok().and_then(|body: Value| {
                body["errors"][0]["code"].as_str().filter(|code| CODES.contains(code)).map(str::to_owned)
            });
            let _ = write!(line, " | {}", code.unwrap_or_default());
        }
        if answer.status == 200 || answer.status == 206 {
            let _ = write!(line, " | {} bytes {}", answer.body.len(), sha256(&answer.body));
        }
        self.told.push(line);
        answer
    }

    /// A value without what must differ: the host, how the registry is named, and the name of an upload.
    fn same(&self, value: &str) -> String {
        let value = value.replace(&self.base, "").replace(&format!("/v2/{}", self.prefix), "/v2/");
        let value = match self.ns {
            "" => value,
            ns => value.replace(&format!("?{ns}"), "").replace(&format!("&{ns}"), ""),
        };
        // In which letters JSON is written is the same for all.
        let value = value.replace("; charset=utf-8", "");
        match value.split_once("/blobs/uploads/") {
            Some((before, _)) => format!("{before}/blobs/uploads/..."),
            None => value,
        }
    }

    fn begin(&mut self, what: &str) -> String {
        let url = self.url("/v2/team/app/blobs/uploads/");
        let begun = self.ask(what, "POST", &url, &[], b"");
        self.location(&begun)
    }

    fn location(&self, answer: &Answer) -> String {
        let location = answer.fields.get("Location").expect("a location");
        if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() }
    }
}

/// Codes of the specification that docker-registry has for what it has them for, too.
const CODES: [&str; 9] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNSUPPORTED",
];

/// An address of an upload, with the digest that ends it.
fn ending(url: &str, digest: &str) -> String {
    format!("{url}{}digest={digest}", if url.contains('?') { '&' } else { '?' })
}

fn uploads(client: &mut Client, blob: &[u8]) {
    let digest = sha256(blob);
    let octets = ("Content-Type", "application/octet-stream");
    let upload = client.begin("an upload begins");
    client.ask("nothing is there yet", "GET", &upload, &[], b"");
    let sent = client.ask("all in one part", "PATCH", &upload, &[octets], blob);
    let upload = client.location(&sent);
    client.ask("all is there", "GET", &upload, &[], b"");
    client.ask("it ends", "PUT", &ending(&upload, &digest), &[], b"");
    let url = client.url(&format!("/v2/team/app/blobs/{digest}"));
    client.ask("the blob is there", "HEAD", &url, &[], b"");
    client.ask("the blob comes", "GET", &url, &[], b"");
    client.ask("a part of the blob comes", "GET", &url, &[("Range", "bytes=10-19")], b"");

    let whole = noise(77, 90_000);
    let (first, rest) = whole.split_at(40_000);
    let (second, last) = rest.split_at(30_000);
    let upload = client.begin("another begins");
    let sent = client.ask("the first part", "PATCH", &upload, &[octets, ("Content-Range", "0-39999")], first);
    let upload = client.location(&sent);
    let sent = client.ask("the second part", "PATCH", &upload, &[octets, ("Content-Range", "40000-69999")], second);
    let upload = client.location(&sent);
    client.ask("the last part ends it", "PUT", &ending(&upload, &sha256(&whole)), &[octets], last);
    client.ask("what has ended is gone", "GET", &upload, &[], b"");

    let alone = noise(78, 1000);
    let upload = client.begin("a third begins");
    client.ask("all of it ends it", "PUT", &ending(&upload, &sha256(&alone)), &[octets], &alone);
    let url = client.url(&format!("/v2/team/app/blobs/uploads/?digest={}", sha256(&noise(79, 500))));
    client.ask("one request alone", "POST", &url, &[octets], &noise(79, 500));

    let upload = client.begin("one that goes wrong");
    client.ask("a part that does not fit", "PATCH", &upload, &[octets, ("Content-Range", "500-999")], &noise(80, 500));
    let upload = client.begin("one of other bytes");
    client.ask("the digest of others", "PUT", &ending(&upload, &digest), &[octets], b"other bytes");
    let upload = client.begin("one that is given up");
    client.ask("it is given up", "DELETE", &upload, &[], b"");
    client.ask("it is gone", "GET", &upload, &[], b"");

    let url = client.url(&format!("/v2/team/other/blobs/uploads/?mount={digest}&from={}team/app", client.prefix));
    client.ask("a mount", "POST", &url, &[], b"");
    let url = client.url(&format!("/v2/team/other/blobs/{digest}"));
    client.ask("what was mounted is there", "HEAD", &url, &[], b"");
    let none = sha256(b"nobody has this");
    let url = client.url(&format!("/v2/team/other/blobs/uploads/?mount={none}&from={}team/app", client.prefix));
    client.ask("a mount of nothing", "POST", &url, &[], b"");
    let url = client.url(&format!("/v2/team/app/blobs/{none}"));
    client.ask("a blob that is not there", "GET", &url, &[], b"");
}

fn manifests(client: &mut Client, image: &Image) {
    for blob in &image.blobs {
        let upload = client.begin("a blob of the image");
        client.ask("it is sent", "PUT", &ending(&upload, &sha256(blob)), &[], blob);
    }
    let kind = [("Content-Type", image.media_type())];
    let accept = [("Accept", image.media_type())];
    let at = |client: &Client, reference: &str| client.url(&format!("/v2/team/app/manifests/{reference}"));
    for tag in ["1", "2", "3"] {
        let url = at(client, tag);
        client.ask("a manifest by its tag", "PUT", &url, &kind, &image.manifest);
    }
    let url = at(client, &image.digest());
    client.ask("a manifest by its digest", "PUT", &url, &kind, &image.manifest);
    for reference in ["1", &image.digest(), "none", &sha256(b"none")] {
        let url = at(client, reference);
        client.ask("is it there", "HEAD", &url, &accept, b"");
        client.ask("it comes", "GET", &url, &accept, b"");
    }
    let url = at(client, "1");
    client.ask("no JSON", "PUT", &url, &kind, b"manifest");
    let url = at(client, &sha256(b"other"));
    client.ask("the digest of another", "PUT", &url, &kind, &image.manifest);
    let mut lacking: Value = serde_json::from_slice(&image.manifest).unwrap();
    lacking["layers"][0]["digest"] = json!(sha256(b"nobody has this"));
    let url = at(client, "lacking");
    client.ask("a blob is missing", "PUT", &url, &kind, lacking.to_string().as_bytes());
    for query in ["", "?n=2", "?n=2&last=2", "?n=0"] {
        // docker-registry 2.8 takes no 0, where the specification has an empty list.
        if query != "?n=0" {
            let url = client.url(&format!("/v2/team/app/tags/list{query}"));
            client.ask("tags", "GET", &url, &[], b"");
        }
    }
    let url = client.url("/v2/team/none/tags/list");
    client.ask("no repository", "GET", &url, &[], b"");
    let url = client.url(&format!("/v2/team/app/referrers/{}", image.digest()));
    let referrers = client.ask("referrers", "GET", &url, &[], b"");
    // A registry without the API answers 404 in words of its own.
    assert_eq!(referrers.status, 404);
    client.told.pop();
    for reference in [image.digest(), image.digest(), "1".to_owned()] {
        let url = at(client, &reference);
        client.ask("a manifest is removed", "DELETE", &url, &[], b"");
    }
    let url = at(client, "1");
    client.ask("its tag is gone", "GET", &url, &accept, b"");
    let url = client.url(&format!("/v2/team/app/blobs/{}", sha256(&noise(78, 1000))));
    client.ask("a blob is removed", "DELETE", &url, &[], b"");
    client.ask("it is gone", "HEAD", &url, &[], b"");
    client.ask("once more", "DELETE", &url, &[], b"");
}

fn told(base: &str, prefix: &'static str, ns: &'static str) -> Vec<String> {
    let mut client = Client { base: base.to_owned(), prefix, ns, told: Vec::new() };
    let url = format!("{base}/v2/");
    client.ask("a registry", "GET", &url, &[], b"");
    uploads(&mut client, &noise(76, 200_000));
    manifests(&mut client, &Image::small("specified"));
    client.told
}

#[test]
fn every_request_of_the_specification_is_answered_as_the_registry_answers_it() {
    let direct = Registry::start();
    let direct = told(&direct.url(), "", "");
    for (prefix, ns) in [("", ""), ("registry.lan/", ""), ("", "ns=registry.lan")] {
        let registry = Registry::start();
        let lines = "push = true";
        let proxy =
            Site::new().top("default_registry = \"registry.lan\"").registry("registry.lan", &registry.url(), lines);
        let proxy = proxy.start();
        let through = told(&proxy.url(""), prefix, ns);
        let differ: Vec<_> = direct.iter().zip(&through).filter(|(direct, through)| direct != through).collect();
        assert!(differ.is_empty(), "{prefix:?} {ns:?}: {differ:#?}");
        assert_eq!(through.len(), direct.len());
    }
    println!("{} requests, by three ways to name the registry", direct.len());
}
