//! Where spans go: a collector that takes OTLP over HTTP. Its address, what it is told of this process, and one
//! message to it.
//!
//! Source: OpenTelemetry Protocol, "OTLP/HTTP"; "OTLP Exporter Configuration"; "Resource SDK".

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use percent_encoding::percent_decode_str;
use prost::Message;
use url::Url;

/// Where a collector takes traces, behind its address.
const PATH: &str = "/v1/traces";
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a collector may take to answer: as long as the specification gives it.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read. Units: bytes.
const ANSWER_MAX: usize = 64 << 10;
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);

/// A collector.
pub(super) struct Collector {
    url: Url,
    headers: HeaderMap,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Collector {
    /// The one that is configured, or else the one that the environment names; none: nobody named one.
    ///
    /// # Errors
    /// When what was named cannot be used. What was typed is not quoted: it may hold a secret.
    pub fn find(configured: Option<Url>) -> Result<Option<Self>, String> {
        let Some(url) = configured.map(below).map_or_else(of_environment, |url| Ok(Some(url)))? else {
            return Ok(None);
        };
        let specific = variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS");
        let headers = specific.or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS")).unwrap_or_default();
        Ok(Some(Self { client: client(&url)?, headers: parse_headers(&headers)?, url }))
    }

    /// Its address, without what may be secret.
    pub fn place(&self) -> String {
        format!("{}{}", self.url.origin().ascii_serialization(), self.url.path())
    }

    /// Sends one message. Gives how many spans of it were not taken.
    ///
    /// # Errors
    /// A text for the operator, when none was taken.
    pub async fn send(&self, message: Vec<u8>) -> Result<u64, String> {
        let exchange = tokio::time::timeout(ANSWER, self.exchange(message)).await;
        exchange.unwrap_or_else(|_| Err(format!("no answer within {ANSWER:?}")))
    }

    async fn exchange(&self, message: Vec<u8>) -> Result<u64, String> {
        let mut request = Request::post(self.url.as_str())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .body(Full::from(message))
            .map_err(|err| format!("no request: {err}"))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        let answer = self.client.request(request).await.map_err(|err| root(&err))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(match status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    format!("it answers {}; OTEL_EXPORTER_OTLP_HEADERS has what it asks for", status.as_u16())
                }
                StatusCode::NOT_FOUND => format!("it answers 404: is there OTLP over HTTP at {}?", self.place()),
                status => format!("it answers {}", status.as_u16()),
            });
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(|err| err.to_string())?;
        // An answer that is no such message refuses nothing.
        let told = ExportTraceServiceResponse::decode(body.to_bytes()).unwrap_or_default();
        Ok(told.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or_default()))
    }
}

/// Where the environment has traces sent.
fn of_environment() -> Result<Option<Url>, String> {
    let own = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let url = match (own, variable("OTEL_EXPORTER_OTLP_ENDPOINT")) {
        (Some(typed), _) => named(&typed, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")?,
        (None, Some(typed)) => below(named(&typed, "OTEL_EXPORTER_OTLP_ENDPOINT")?),
        (None, None) => return Ok(None),
    };
    let own = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
    if own.or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL")).is_some_and(|protocol| protocol.trim() == "grpc") {
        let place = url.origin().ascii_serialization();
        return Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL says that {place} speaks grpc, which is not spoken here; name the address where it takes OTLP over HTTP as `endpoint` in [traces]"
        ));
    }
    Ok(Some(url))
}

/// What is told of this process: what the environment says goes before what it is by itself.
pub(super) fn resource() -> Resource {
    let mut resource = Resource::builder_empty()
        .with_service_name("tidegate")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    if let Some(name) = variable("OTEL_SERVICE_NAME") {
        resource = resource.with_service_name(name);
    }
    resource.build()
}

/// A variable of the environment; one that is empty is none.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn named(typed: &str, name: &str) -> Result<Url, String> {
    let url = Url::parse(typed.trim()).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or_else(|| format!("{name} is no address such as http://collector:4318"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "{name} has a user in it; write what the collector asks for into OTEL_EXPORTER_OTLP_HEADERS"
        ));
    }
    Ok(url)
}

/// Where the traces go of a collector at an address.
fn below(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.ends_with(PATH) {
        url.set_path(&format!("{path}{PATH}"));
    }
    url
}

/// `NAME=VALUE,NAME=VALUE`, the values percent-encoded.
fn parse_headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (at, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
        let parsed = pair.split_once('=').and_then(|(name, value)| {
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let mut value = HeaderValue::from_str(&value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        });
        let wrong = || format!("OTEL_EXPORTER_OTLP_HEADERS: entry {} is no header such as name=value", at + 1);
        let (name, value) = parsed.ok_or_else(wrong)?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn client(url: &Url) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, String> {
    let mut roots = rustls::RootCertStore::empty();
    if url.scheme() == "https" {
        // SSL_CERT_FILE and SSL_CERT_DIR name others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| format!("no TLS: {err}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(1)
        .build(connector))
}

/// The cause of causes.
fn root(err: &(dyn Error + 'static)) -> String {
    let mut err = err;
    while let Some(source) = err.source() {
        err = source;
    }
    err.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_where_traces_are_taken() {
        for (typed, path) in [
            ("http://collector:4318", "/v1/traces"),
            ("http://collector:4318/", "/v1/traces"),
            ("http://collector:4318/v1/traces", "/v1/traces"),
            ("https://gateway.lan/otlp", "/otlp/v1/traces"),
            ("https://gateway.lan/otlp/", "/otlp/v1/traces"),
        ] {
            assert_eq!(below(Url::parse(typed).expect("an address")).path(), path, "{typed}");
        }
        for bad in ["collector:4318", "grpc://collector:4317", "", "http://", "unix:///run/x"] {
            let refused = named(bad, "NAME").expect_err(bad);
            assert!(refused.starts_with("NAME is no address"), "{refused}");
        }
        let refused = named("http://user:hunter2@collector", "NAME").expect_err("a secret");
        assert!(!refused.contains("hunter2"), "{refused}");
    }

    #[test]
    fn headers_are_read_and_never_quoted() {
        let headers = parse_headers("api-key=secret%20one, x-scope = team ,").expect("headers");
        assert_eq!(
            (&headers["api-key"], &headers["x-scope"]),
            (&"secret one".parse().expect("a value"), &"team".parse().expect("a value"))
        );
        assert!(headers["api-key"].is_sensitive());
        for bad in ["secret", "a b=secret", "a=secret%0a", "good=1,=secret"] {
            let refused = parse_headers(bad).expect_err(bad);
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert!(parse_headers("").expect("none").is_empty());
    }
}
