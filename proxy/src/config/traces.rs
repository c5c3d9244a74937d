//! `[traces]`: where spans of requests are sent, and of how many requests.

use toml::Spanned;
use url::Url;

use super::file;
use super::source::{ConfigError, Source};

/// `[traces]`
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Traces {
    /// The collector, which takes OTLP over HTTP; none: as the environment says.
    pub endpoint: Option<Url>,
    /// The part of the requests that begin a trace, from 0 to 1; none: as the environment says.
    pub ratio: Option<f64>,
}

impl Source<'_> {
    pub fn traces(&self, typed: &file::Traces) -> Result<Traces, ConfigError> {
        let endpoint = typed.endpoint.as_ref().map(|endpoint| self.collector(endpoint)).transpose()?;
        let ratio = match &typed.ratio {
            Some(ratio) if !(0.0..=1.0).contains(ratio.get_ref()) => {
                let message = "traces.ratio: is not from 0.0 (no request begins a trace) to 1.0 (each does)";
                return Err(self.error(&ratio.span(), message));
            }
            ratio => ratio.as_ref().map(|ratio| *ratio.get_ref()),
        };
        Ok(Traces { endpoint, ratio })
    }

    /// What is typed may hold a password: it is never quoted.
    fn collector(&self, typed: &Spanned<String>) -> Result<Url, ConfigError> {
        let fail = |reason: &str| Err(self.error(&typed.span(), &format!("traces.endpoint: {reason}")));
        let Ok(url) = Url::parse(typed.get_ref()) else {
            return fail("is no address such as http://collector:4318");
        };
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return fail("is no address that begins with http:// or https://; OTLP over gRPC is not spoken");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return fail("has a user in it; what the collector asks for stands in OTEL_EXPORTER_OTLP_HEADERS");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return fail("has something behind the path");
        }
        Ok(url)
    }
}
