//! Traces: what a collector is told of requests, and what becomes of them where there is none.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rustix::process::Signal;
use tidegate_tests::authority::Authority;
use tidegate_tests::collector::{Collector, Span};
use tidegate_tests::content::{Content, sha256};
use tidegate_tests::fake::{Act, Reply, Tokens};
use tidegate_tests::gate::Gate;
use tidegate_tests::guests;
use tidegate_tests::http::{Answer, End};
use tidegate_tests::plugins::allowlist;
use tidegate_tests::proxy::Proxy;
use tidegate_tests::site::Site;
use tidegate_tests::tls::Tls;
use tidegate_tests::{eventually, own_address};

use crate::{APP, app_blob, assert_caches, assert_pulls, assert_whole, fake_with_app};

/// A site that traces all requests.
fn traced(site: Site, collector: &Collector) -> Site {
    site.top(&format!("[traces]\nendpoint = \"{}\"", collector.url()))
}

/// The span of the request that was answered so.
#[track_caller]
fn span_of(collector: &Collector, answer: &Answer) -> Span {
    let id = answer.fields.get("X-Request-Id").expect("each answer has one").to_owned();
    let is = |span: &&Span| span.kind == SpanKind::Server && span.text("tidegate.request") == id;
    collector.wait(&format!("span of request {id}"), |spans| spans.iter().find(is).cloned())
}

/// The spans right below another one, in the order of their beginnings, once there are so many.
#[track_caller]
fn below(collector: &Collector, parent: &Span, count: usize) -> Vec<Span> {
    let mut found = collector.wait(&format!("{count} spans below {}", parent.name), |spans| {
        let found: Vec<Span> = spans.iter().filter(|span| span.parent == parent.id).cloned().collect();
        (found.len() >= count).then_some(found)
    });
    found.sort_by_key(|span| span.time.0);
    assert_eq!(found.len(), count, "{found:#?}");
    for span in &found {
        assert_eq!(span.trace, parent.trace);
        assert!(span.time.0 <= span.time.1 && parent.time.0 <= span.time.0, "{span:?}");
    }
    found
}

#[track_caller]
fn assert_texts(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(span.text(key), *value, "{key} of {span:#?}");
    }
}

/// Spans by what became of them.
fn counted(proxy: &Proxy, outcome: &str) -> u64 {
    let metrics = proxy.admin("/metrics").text();
    let prefix = format!("tidegate_trace_spans_total{{outcome=\"{outcome}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
    value.unwrap_or_else(|| panic!("no {prefix}: {metrics}"))
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap()
}

#[test]
fn a_cold_pull_and_a_warm_one_are_told_span_by_span() {
    let (fake, image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    let blob = app_blob(&image.layer_digest(0));
    let (cold, cold_blob) = (proxy.get(APP).fetch(), proxy.get(&blob).fetch());
    assert_whole(&cold, &image.digest());
    assert_whole(&cold_blob, &image.layer_digest(0));
    assert_caches(&proxy, &image);
    let (warm, warm_blob) = (proxy.get(APP).fetch(), proxy.get(&blob).fetch());

    let span = span_of(&collector, &cold);
    assert_eq!((span.name.as_str(), span.parent.as_str(), &span.failed), ("GET manifest", "", &None));
    let bytes = image.manifest.len().to_string();
    assert_texts(
        &span,
        &[
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", &bytes),
            ("url.path", APP),
            ("client.address", "127.0.0.1"),
            ("tidegate.registry", "docker.io"),
            ("tidegate.repository", "library/app"),
            ("tidegate.reference", "1"),
            ("tidegate.source", "upstream"),
            ("tidegate.decision", "allow"),
        ],
    );
    assert_eq!(span.resource["service.name"], "tidegate");
    assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
    let line = proxy.wait(proxy.beginning(), "request", &[("request", span.text("tidegate.request"))]);
    assert_eq!(line.field("trace"), span.trace);
    let asked = &below(&collector, &span, 1)[0];
    assert_eq!((asked.name.as_str(), asked.kind), ("upstream GET", SpanKind::Client));
    assert_texts(
        asked,
        &[
            ("tidegate.registry", "docker.io"),
            ("tidegate.resource", "manifests/1"),
            ("tidegate.outcome", "ok"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", &bytes),
        ],
    );

    // The transfer of a blob has a span of its own between the request and the upstream.
    let span = span_of(&collector, &cold_blob);
    assert_eq!(span.name, "GET blob");
    assert_texts(&span, &[("tidegate.source", "fill"), ("tidegate.digest", &image.layer_digest(0))]);
    let fill = &below(&collector, &span, 1)[0];
    assert_eq!((fill.name.as_str(), fill.kind, fill.text("tidegate.outcome")), ("fill", SpanKind::Internal, "ok"));
    let asked = &below(&collector, fill, 1)[0];
    let bytes = cold_blob.body.len().to_string();
    assert_texts(asked, &[("tidegate.outcome", "ok"), ("http.response.body.size", &bytes)]);

    // Warm, there is nothing but the request.
    for (answer, name) in [(&warm, "GET manifest"), (&warm_blob, "GET blob")] {
        let span = span_of(&collector, answer);
        assert_eq!((span.name.as_str(), span.text("tidegate.source")), (name, "cache"));
        below(&collector, &span, 0);
    }
    assert!(collector.heads().iter().all(|(path, _)| path == "/v1/traces"));
    assert_eq!(counted(&proxy, "dropped") + counted(&proxy, "failed"), 0);
}

#[test]
fn a_denial_is_told_with_the_plugin_that_denied() {
    let (fake, _image) = fake_with_app();
    let collector = Collector::start();
    let site = traced(Site::of(&fake.url()), &collector).log("access = false");
    let rules = b"block = [\"docker.io/library/app\"]";
    let proxy = site.with([("10-allowlist.wasm", &allowlist()), ("10-allowlist.toml", rules)]).start();
    let answer = proxy.get(APP).fetch();
    assert_eq!(answer.status, 403);
    let span = span_of(&collector, &answer);
    let status = [("http.response.status_code", "403"), ("tidegate.source", "none"), ("url.path", APP)];
    assert_texts(&span, &status);
    assert_texts(&span, &[("tidegate.decision", "deny"), ("tidegate.policy", "allowlist")]);
    assert!(span.text("tidegate.reason").contains("docker.io/library/app"), "{span:?}");
    assert_eq!(span.failed, None, "a denial is no fault");
    let plugin = &below(&collector, &span, 1)[0];
    assert_eq!(plugin.name, "plugin allowlist admission");
    assert_texts(
        plugin,
        &[("tidegate.plugin", "allowlist"), ("tidegate.hook", "admission"), ("tidegate.outcome", "ok")],
    );
    assert!(fake.seen().is_empty());
}

#[test]
fn the_trace_of_a_client_is_taken_up_and_no_registry_hears_of_it() {
    let (fake, image) = fake_with_app();
    let collector = Collector::start();
    let site = Site::of(&fake.url());
    // Nothing is traced but what the client traces.
    let proxy = site.top(&format!("[traces]\nendpoint = \"{}\"\nratio = 0.0", collector.url())).start();
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let unsampled = proxy.get(APP).field("traceparent", &format!("00-{trace}-{parent}-00")).fetch();
    let without = proxy.get(APP).fetch();
    let blob = app_blob(&image.layer_digest(0));
    let answer = proxy
        .get(&blob)
        .field("traceparent", &format!("00-{trace}-{parent}-01"))
        .field("tracestate", "vendor=hunter2")
        .fetch();
    assert_whole(&answer, &image.layer_digest(0));
    let span = span_of(&collector, &answer);
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (trace, parent));
    let fill = &below(&collector, &span, 1)[0];
    below(&collector, fill, 1);
    for (answer, logged) in [(&unsampled, trace), (&without, ""), (&answer, trace)] {
        let id = answer.fields.get("X-Request-Id").expect("an id");
        let line = proxy.wait(proxy.beginning(), "request", &[("request", id)]);
        assert_eq!(line.field("trace"), logged);
    }
    let (_, status) = proxy.terminate();
    assert!(status.success());
    assert_eq!(collector.spans().len(), 3, "{:#?}", collector.spans());
    for seen in fake.seen() {
        assert_eq!((seen.fields.get("traceparent"), seen.fields.get("tracestate")), (None, None), "{seen:?}");
    }
}

#[test]
fn each_attempt_and_its_end_are_told() {
    let (fake, _image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    let content = Content::noise(7, 300_000);
    let path = fake.put_blob("library/app", content.clone());
    fake.next(&path, Reply::status(503).into());
    fake.next(&path, Act::CloseAfter(100_000));
    let answer = proxy.get(&path).fetch();
    assert_whole(&answer, &content.digest());
    let span = span_of(&collector, &answer);
    assert_eq!(span.failed, None);
    let fill = &below(&collector, &span, 1)[0];
    let attempts = below(&collector, fill, 3);
    let ends: Vec<_> = attempts.iter().map(|span| (span.text("tidegate.outcome"), span.failed.is_some())).collect();
    assert_eq!(ends, [("status", true), ("truncated", true), ("ok", false)]);
    assert_texts(&attempts[0], &[("http.response.status_code", "503")]);
    assert_texts(&attempts[1], &[("http.response.body.size", "100000")]);
    assert_texts(&attempts[2], &[("tidegate.from_bytes", "100000"), ("http.response.body.size", "200000")]);
    assert_eq!(fill.events.len(), 2, "{:?}", fill.events);

    // What cannot be had is a fault, and says why.
    let answer = proxy.get("/v2/library/app/manifests/none").fetch();
    assert_eq!(answer.status, 404);
    let span = span_of(&collector, &answer);
    assert_eq!((span.failed.as_ref(), span.text("http.response.status_code")), (None, "404"));
    assert_texts(&below(&collector, &span, 1)[0], &[("tidegate.outcome", "not-found")]);
    fake.stop();
    let answer = proxy.get("/v2/library/app/manifests/other").fetch();
    assert_eq!(answer.status, 502);
    let failed = span_of(&collector, &answer).failed.expect("it is a fault");
    assert!(failed.contains("docker.io"), "{failed}");
}

#[test]
fn who_joins_a_transfer_points_at_it() {
    let (fake, _image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    let content = Content::noise(8, 3_000_000);
    let path = fake.put_blob("library/app", content.clone());
    let gate = Gate::new();
    fake.next(&path, Act::Hold(1_000_000, gate.clone()));
    let first = proxy.get(&path).open().unwrap();
    gate.wait_reached();
    let second = proxy.get(&path).open().unwrap();
    // It is far ahead of the transfer: it gets its part by one beside it.
    let far = proxy.get(&path).field("Range", "bytes=2000000-2000999").fetch();
    assert_eq!((far.status, far.body.len(), far.end), (206, 1000, End::Whole));
    gate.open();
    let (first, second) = (first.finish(), second.finish());
    assert_whole(&first, &content.digest());
    assert_whole(&second, &content.digest());
    let (first, second, far) = (span_of(&collector, &first), span_of(&collector, &second), span_of(&collector, &far));
    let fill = &below(&collector, &first, 1)[0];
    assert_eq!(fill.name, "fill");
    assert_eq!((&second.links, &far.links), (&vec![fill.id.clone()], &vec![fill.id.clone()]));
    below(&collector, &second, 0);
    let beside = &below(&collector, &far, 1)[0];
    assert_eq!((beside.name.as_str(), beside.text("tidegate.from_bytes")), ("upstream GET", "2000000"));
}

#[test]
fn a_client_that_leaves_is_told() {
    let (fake, _image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    let path = fake.put_blob("library/app", Content::noise(9, 20_000_000));
    let gate = Gate::new();
    fake.next(&path, Act::Hold(1_000_000, gate.clone()));
    let client = proxy.get(&path).open().unwrap();
    gate.wait_reached();
    drop(client);
    let span = collector.wait_for("GET blob", &[]);
    assert!(span.failed.is_some() && !span.text("tidegate.broken").is_empty(), "{span:?}");
    gate.open();
    // The transfer goes on without it, and tells its own end.
    let fill = collector.wait_for("fill", &[("tidegate.outcome", "ok")]);
    assert_eq!((&fill.parent, &fill.trace), (&span.id, &span.trace));
}

#[test]
fn a_dead_collector_harms_no_pull_and_is_reported_once() {
    let (fake, image) = fake_with_app();
    let address = nobody();
    let site = Site::of(&fake.url()).top(&format!("[traces]\nendpoint = \"http://{address}\""));
    let proxy = site.start();
    let mut failed = 0;
    for _ in 0..3 {
        assert_pulls(&proxy, &image);
        eventually("spans are lost", || counted(&proxy, "failed") > failed);
        failed = counted(&proxy, "failed");
    }
    let told = "the collector takes no traces: they are lost until it does";
    let event = proxy.wait(proxy.beginning(), told, &[]);
    assert!(event.field("collector").contains(&address.to_string()), "{event:?}");
    assert!(event.field("reason").contains("refused"), "{event:?}");
    assert_eq!(proxy.events(proxy.beginning(), told).len(), 1);
    // Once it is there, it gets what comes, and that is told too.
    let collector = Collector::start_at(address);
    let answer = proxy.get(APP).fetch();
    span_of(&collector, &answer);
    let event = proxy.wait(proxy.beginning(), "the collector takes traces again", &[]);
    assert_eq!(event.field("lost_spans"), counted(&proxy, "failed").to_string());
    for status in [503, 404, 401] {
        let mark = proxy.mark();
        collector.refuse(Some(status));
        assert_pulls(&proxy, &image);
        let event = proxy.wait(mark, told, &[]);
        assert!(event.field("reason").contains(&status.to_string()), "{event:?}");
        collector.refuse(None);
        assert_pulls(&proxy, &image);
        proxy.wait(mark, "the collector takes traces again", &[]);
    }
}

#[test]
fn spans_that_a_collector_does_not_take_are_counted() {
    let (fake, _image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    proxy.get(APP).fetch();
    eventually("both spans are delivered", || counted(&proxy, "delivered") == 2);
    collector.reject(1);
    proxy.get(APP).fetch();
    eventually("it is counted", || counted(&proxy, "failed") == 1);
    assert_eq!(counted(&proxy, "delivered"), 2);
}

#[test]
fn a_silent_collector_fills_the_queue_and_delays_neither_a_pull_nor_the_end() {
    let (fake, image) = fake_with_app();
    let (collector, gate) = (Collector::start(), Gate::new());
    collector.hold(&gate);
    let proxy = traced(Site::of(&fake.url()), &collector).log("access = false").start();
    assert_pulls(&proxy, &image);
    gate.wait_reached();
    // One message is out; 2048 spans wait, and each further one is one too many.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while counted(&proxy, "dropped") == 0 {
                    for _ in 0..100 {
                        assert_eq!(proxy.head(APP).fetch().status, 200);
                    }
                }
            });
        }
    });
    assert_pulls(&proxy, &image);
    let asked = Instant::now();
    proxy.process().signal(Signal::TERM);
    assert!(proxy.process().wait().success());
    // Ten times the two seconds that it has; the queue alone would take it half a minute.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    proxy.wait(proxy.beginning(), "the collector of traces did not take the last spans in time", &[]);
    gate.open();
}

#[test]
fn what_was_not_delivered_yet_is_delivered_at_the_end() {
    let (fake, image) = fake_with_app();
    let collector = Collector::start();
    let proxy = traced(Site::of(&fake.url()), &collector).start();
    assert_pulls(&proxy, &image);
    let answer = proxy.get(APP).fetch();
    let id = answer.fields.get("X-Request-Id").expect("an id").to_owned();
    let (_, status) = proxy.terminate();
    assert!(status.success());
    // Nothing is waited for here: the process has ended.
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.text("tidegate.request") == id), "{spans:#?}");
    let requests = spans.iter().filter(|span| span.kind == SpanKind::Server).count();
    assert_eq!(requests, 2 + image.blobs.len());
}

#[test]
fn i9_no_secret_and_no_control_character_is_in_a_span() {
    let (fake, image) = fake_with_app();
    let tokens = Tokens::of_user("ferry", "tide-and-time");
    fake.require_bearer(&format!("{}/token", fake.url()), &tokens);
    fake.issue(&tokens);
    let collector = Collector::start();
    let site = Site::new();
    fs::write(site.path("password"), "tide-and-time\n").unwrap();
    let lines = format!("username = \"ferry\"\npassword_file = \"{}\"", site.path("password").display());
    let site = traced(site.registry("docker.io", &fake.url(), &lines), &collector)
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "api-key=collector%2Dsecret")
        .with([("10-warner.wasm", &guests::witness(1))]);
    let proxy = site.start();
    let ask = |path: &str| {
        proxy
            .get(path)
            .field("Authorization", "Bearer client-secret")
            .field("Cookie", "session=client-secret")
            .field("X-Registry-Auth", "client-secret")
            .fetch()
    };
    for blob in &image.blobs {
        assert_whole(&ask(&app_blob(&sha256(blob))), &sha256(blob));
    }
    ask(APP);
    ask("/v2/library/app/manifests/1?token=client-secret");
    ask("/v2/library%1b%5b31m/app%0d%0a/manifests/1");
    ask("/v2/%00/%7f/%c2%9b/manifests/%1b");
    ask(&format!("/v2/{}/manifests/1", "a".repeat(5000)));
    fake.always("/v2/library/app/manifests/2", Reply::status(401).into());
    ask("/v2/library/app/manifests/2");
    proxy.reload(|site| site.install("10-warner.wasm", &guests::denier("red \u{1b}[31m\r\n\u{7f}\u{9b} alert")));
    let denied = ask(APP);
    assert_eq!(denied.status, 403);
    let span = span_of(&collector, &denied);
    assert!(span.text("tidegate.reason").contains("red"), "{span:?}");
    let log = proxy.log();
    proxy.terminate();
    let spans = collector.spans();
    assert_eq!(spans.iter().filter(|span| span.kind == SpanKind::Server).count(), image.blobs.len() + 7);
    for text in spans.iter().flat_map(Span::texts) {
        for secret in ["tide-and-time", "client-secret", "collector-secret", "token-1", "Bearer ", "ZmVycnk6"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(!text.contains(char::is_control) && text.len() <= 1100, "{text:?}");
    }
    // It goes where it belongs, and nowhere else.
    assert!(collector.heads().iter().all(|(_, fields)| fields.get("api-key") == Some("collector-secret")));
    assert!(fake.seen().iter().all(|seen| seen.fields.get("api-key").is_none()));
    assert!(!log.contains("collector-secret") && !log.contains("collector%2Dsecret"));
}

#[test]
fn without_an_endpoint_nobody_is_told_anything() {
    // Where the specification of OpenTelemetry has a collector by default.
    let Ok(listener) = TcpListener::bind("127.0.0.1:4318") else {
        println!("skipped: something else listens on 127.0.0.1:4318");
        return;
    };
    listener.set_nonblocking(true).unwrap();
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).variable("OTEL_EXPORTER_OTLP_ENDPOINT", "").start();
    let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_whole(&proxy.get(APP).field("traceparent", header).fetch(), &image.digest());
    assert_pulls(&proxy, &image);
    assert_eq!(proxy.wait(proxy.beginning(), "request", &[]).field("trace"), "");
    for outcome in ["delivered", "dropped", "failed"] {
        assert_eq!(counted(&proxy, outcome), 0);
    }
    proxy.terminate();
    assert!(listener.accept().is_err(), "somebody connects");
}

#[test]
fn the_environment_names_the_collector_and_the_service() {
    let (fake, _image) = fake_with_app();
    let [config, traces, all] = [(); 3].map(|()| Collector::start());
    let all_url = all.url();
    let by_all = Site::of(&fake.url()).variable("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("{all_url}/base"));
    let by_traces = by_all.clone().variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{}/its/own", traces.url()));
    let by_config = traced(by_traces.clone(), &config)
        .variable("OTEL_SERVICE_NAME", "mirror")
        .variable("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab,service.name=other");
    for (site, collector, path, service) in [
        (by_all, &all, "/base/v1/traces", "tidegate"),
        (by_traces, &traces, "/its/own", "tidegate"),
        (by_config, &config, "/v1/traces", "mirror"),
    ] {
        let proxy = site.start();
        let span = span_of(collector, &proxy.get(APP).fetch());
        assert_eq!(span.resource["service.name"], service);
        assert_eq!(collector.heads()[0].0, path);
        proxy.terminate();
    }
    assert_eq!(config.spans()[0].resource["deployment.environment"], "lab");
    // What cannot be used there is told, not quoted, and stops nothing.
    for (bad, protocol) in
        [("collector:4318", ""), ("http://user:hunter2@collector", "http/protobuf"), (&all_url, "grpc")]
    {
        let site = Site::of(&fake.url()).variable("OTEL_EXPORTER_OTLP_ENDPOINT", bad);
        let proxy = site.variable("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).start();
        assert_eq!(proxy.get(APP).fetch().status, 200);
        let told = "there are no traces: where they are to go cannot be used";
        let event = proxy.wait(proxy.beginning(), told, &[]);
        assert!(event.field("reason").contains("OTEL_EXPORTER_OTLP_"), "{event:?}");
        assert!(!proxy.log().contains("hunter2"));
    }
}

#[test]
fn a_collector_behind_tls_is_trusted_only_with_its_authority() {
    let (fake, _image) = fake_with_app();
    let (collector, address) = (Collector::start(), own_address());
    let (authority, stranger) = (Authority::new(), Authority::new());
    let tls = Tls::start(address, &authority.server(address.into()), None, &collector.authority());
    let site = |trusted: &Authority| {
        let site = Site::of(&fake.url()).variable("SSL_CERT_FILE", &trusted.file().display().to_string());
        site.top(&format!("[traces]\nendpoint = \"{}\"", tls.url()))
    };
    let proxy = site(&stranger).start();
    assert_eq!(proxy.get(APP).fetch().status, 200);
    let told = "the collector takes no traces: they are lost until it does";
    let event = proxy.wait(proxy.beginning(), told, &[]);
    assert!(event.field("reason").contains("UnknownIssuer"), "{event:?}");
    proxy.terminate();
    assert_eq!(collector.spans().len(), 0);
    let proxy = site(&authority).start();
    span_of(&collector, &proxy.get(APP).fetch());
}

#[test]
fn t2_another_collector_waits_for_the_next_start() {
    let (fake, _image) = fake_with_app();
    let [before, after] = [(); 2].map(|()| Collector::start());
    let proxy = traced(Site::of(&fake.url()), &before).start();
    let mark = proxy.mark();
    proxy.site().edit_config(|text| text.replace(&before.url(), &after.url()));
    let told = "a change of these keys takes effect at the next start; all else is in effect";
    proxy.wait(mark, told, &[("keys", "traces.endpoint")]);
    span_of(&before, &proxy.get(APP).fetch());
    assert_eq!(after.connections(), 0);
}
