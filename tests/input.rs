//! Requests that are wrong, or odd: an answer in the words of the specification, and nothing sent upstream.

use std::io::{Read, Write};
use std::net::TcpStream;

use tidegate_tests::fake::Fake;
use tidegate_tests::http;
use tidegate_tests::image::Image;
use tidegate_tests::proxy::Proxy;

use crate::{APP, assert_pulls, assert_whole, proxied};

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[track_caller]
fn assert_nothing_was_asked(fake: &Fake) {
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
}

/// Sends bytes as they are, and gives the first line of the answer; empty when there is none.
fn raw(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.authority()).unwrap();
    stream.set_read_timeout(Some(tidegate_tests::HANG)).unwrap();
    // The proxy may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.contains(&b'\n') {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_root_of_the_interface_is_there_and_nothing_else_is() {
    let (_fake, _image, proxy) = proxied();
    for (path, status) in
        [("/v2/", 200), ("/v2", 200), ("/", 404), ("/v1/_ping", 404), ("/v3/", 404), ("/v2/_catalog", 404)]
    {
        assert_eq!(proxy.get(path).fetch().status, status, "{path}");
    }
    let root = proxy.get("/v2/").fetch();
    assert_eq!(root.fields.get("Docker-Distribution-API-Version"), Some("registry/2.0"));
}

#[test]
fn a_name_that_is_none_is_refused_and_not_sent_on() {
    let (fake, _image, proxy) = proxied();
    let long = "a".repeat(256);
    for name in
        ["Library/x", "-a", "a___b", "a..b", "%C3%A9", "a%20b", "a%00b", "a%5cb", "a//b", "./a", "a/./b", long.as_str()]
    {
        let answer = proxy.get(&format!("/v2/{name}/manifests/1")).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (400, "NAME_INVALID"), "{name}");
    }
    for path in ["/v2/../../etc/passwd", "/v2/%2e%2e/%2e%2e/manifests/1", "/v2/a/../../b/manifests/1"] {
        let answer = proxy.get(path).fetch();
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
        assert_eq!(answer.fields.get("Location"), None, "{path}");
    }
    assert_nothing_was_asked(&fake);
}

#[test]
fn a_digest_that_is_none_is_refused_and_not_sent_on() {
    let (fake, _image, proxy) = proxied();
    let upper = HEX.to_ascii_uppercase();
    for digest in [
        "sha256:abc".to_owned(),
        format!("sha256:{HEX}0"),
        format!("sha256:{upper}"),
        format!("md5:{HEX}"),
        "foo+bar:abc".to_owned(),
        "sha256:../../etc/passwd".to_owned(),
        format!("sha256:{HEX}%00"),
        HEX.to_owned(),
        "latest".to_owned(),
    ] {
        let answer = proxy.get(&format!("/v2/library/app/blobs/{digest}")).fetch();
        let refused =
            matches!((answer.status, answer.code().as_str()), (400, "DIGEST_INVALID" | "NAME_INVALID") | (404, _));
        assert!(refused, "{digest}: {} {}", answer.status, answer.text());
    }
    for digest in ["sha256:abc", "sha256:"] {
        let answer = proxy.get(&format!("/v2/library/app/referrers/{digest}")).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (400, "DIGEST_INVALID"), "{digest}");
    }
    assert_nothing_was_asked(&fake);
}

#[test]
fn an_escaped_colon_is_a_colon() {
    let (_fake, image, proxy) = proxied();
    let digest = image.layer_digest(0);
    let escaped = digest.replace(':', "%3A");
    assert_whole(&proxy.get(&format!("/v2/library/app/blobs/{escaped}")).fetch(), &digest);
}

#[test]
fn a_tag_that_is_none_is_unknown_and_not_sent_on() {
    let (fake, _image, proxy) = proxied();
    let long = "a".repeat(129);
    for tag in [long.as_str(), ".x", "-x", "a%20b", "a%2fb"] {
        let answer = proxy.get(&format!("/v2/library/app/manifests/{tag}")).fetch();
        assert!(matches!(answer.status, 400 | 404), "{tag}: {}", answer.status);
        assert!(!answer.code().is_empty());
    }
    assert_nothing_was_asked(&fake);
    // The longest tag there is may be asked for.
    assert_eq!(proxy.get(&format!("/v2/library/app/manifests/{}", "a".repeat(128))).fetch().status, 404);
    assert!(!fake.seen().is_empty());
}

#[test]
fn what_is_not_there_has_its_own_code() {
    let (fake, _image, proxy) = proxied();
    for (path, code) in [
        (format!("/v2/library/app/blobs/sha256:{HEX}"), "BLOB_UNKNOWN"),
        ("/v2/library/app/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/sha256:{HEX}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/sha256-{HEX}.sig"), "MANIFEST_UNKNOWN"),
    ] {
        let answer = proxy.get(&path).fetch();
        assert_eq!((answer.status, answer.code().as_str()), (404, code), "{path}");
        assert_eq!(answer.fields.get("Content-Type").map(|kind| kind.starts_with("application/json")), Some(true));
        assert!(answer.message().contains("library/app"), "{}", answer.message());
    }
    assert!(!fake.seen().is_empty());
}

#[test]
fn nothing_can_be_pushed_or_deleted() {
    let (fake, _image, proxy) = proxied();
    for (method, path) in [
        ("POST", "/v2/library/app/blobs/uploads/"),
        ("PUT", APP),
        ("PATCH", "/v2/library/app/blobs/uploads/1"),
        ("DELETE", APP),
    ] {
        let answer = http::method(method, &proxy.url(path)).field("Content-Length", "0").fetch();
        assert!(matches!(answer.status, 403 | 405), "{method}: {}", answer.status);
        assert!(matches!(answer.code().as_str(), "DENIED" | "UNSUPPORTED"), "{method}: {}", answer.code());
    }
    for method in ["OPTIONS", "TRACE", "FOO"] {
        assert_eq!(http::method(method, &proxy.url(APP)).fetch().status, 405, "{method}");
    }
    assert_nothing_was_asked(&fake);
}

#[test]
fn bytes_that_are_no_request_end_the_connection_and_nothing_more() {
    let (fake, image, proxy) = proxied();
    let mut head = format!("GET {APP} HTTP/1.1\r\nHost: a\r\n").into_bytes();
    let many = [head.clone(), "X-A: b\r\n".repeat(5000).into_bytes(), b"\r\n".to_vec()].concat();
    let long = format!("GET /v2/{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(1 << 20)).into_bytes();
    head.extend_from_slice(format!("X-A: {}\r\n\r\n", "b".repeat(1 << 20)).as_bytes());
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"nonsense\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"\r\n\r\n\0\0\0\0\r\n\r\n".to_vec(),
        many,
        long,
        head,
    ] {
        let line = raw(&proxy, &bytes);
        let refused = line.is_empty() || line.starts_with("HTTP/1.1 4") || line.starts_with("HTTP/1.0 4");
        assert!(refused, "{line}");
    }
    assert_nothing_was_asked(&fake);
    assert_pulls(&proxy, &image);
}

#[test]
fn an_absolute_address_in_the_request_line_is_never_dialled() {
    let (fake, _image, proxy) = proxied();
    let inside = Fake::start();
    inside.put_image(&Image::small("app"), "library/app:1");
    let line =
        raw(&proxy, format!("GET {}{APP} HTTP/1.1\r\nHost: {}\r\n\r\n", inside.url(), inside.authority()).as_bytes());
    assert!(line.starts_with("HTTP/1.1 "), "{line}");
    assert!(inside.seen().is_empty(), "{:?}", inside.seen());
    drop(fake);
}

#[test]
fn an_odd_host_header_changes_nothing() {
    let (_fake, image, proxy) = proxied();
    for host in ["quay.io", "[::1]:5000", "a.b.c.d.example", "169.254.169.254"] {
        assert_whole(&proxy.get(APP).field("Host", host).fetch(), &image.digest());
    }
}

#[test]
fn accept_of_any_kind_gets_the_manifest() {
    let (_fake, image, proxy) = proxied();
    let docker_only = "application/vnd.docker.distribution.manifest.v2+json";
    for accept in [
        "*/*",
        image.media_type(),
        "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*",
    ] {
        assert_whole(&proxy.get(APP).field("Accept", accept).fetch(), &image.digest());
    }
    // By digest there is but one answer.
    let path = format!("/v2/library/app/manifests/{}", image.digest());
    assert_whole(&proxy.get(&path).field("Accept", docker_only).fetch(), &image.digest());
}

#[test]
fn a_blob_is_never_encoded() {
    let (fake, image, proxy) = proxied();
    let path = crate::app_blob(&image.layer_digest(0));
    for accepted in ["gzip", "zstd, gzip", "identity;q=0, *"] {
        let answer = proxy.get(&path).field("Accept-Encoding", accepted).fetch();
        assert_whole(&answer, &image.layer_digest(0));
        assert_eq!(answer.fields.get("Content-Encoding"), None);
    }
    let asked = fake.seen().into_iter().find(|seen| seen.path == path).unwrap();
    assert!(matches!(asked.fields.get("Accept-Encoding"), None | Some("identity")));
}
