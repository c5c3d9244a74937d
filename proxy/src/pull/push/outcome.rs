//! What a registry said to a push, as its client is told it: the same status, addresses of ours, a message for a person.

use std::time::Duration;

use serde::Deserialize;

use super::{Pushing, Written};
use crate::oci::{Code, Digest, Failure, Place};
use crate::pull::error::{Cause, Error};
use crate::upstream::Said;

/// Longest text of a registry that is handed on. Units: bytes.
const TEXT_MAX: usize = 1 << 10;
/// Longest value of a header that is handed on. Units: bytes.
const HEADER_MAX: usize = 256;
/// Headers that are handed on as they are.
const HEADERS: [&str; 3] = ["range", "docker-upload-uuid", "oci-chunk-min-length"];
/// Headers that are handed on where they hold a digest.
const DIGESTS: [&str; 2] = ["docker-content-digest", "oci-subject"];

/// Source: OCI distribution specification, "Error Codes".
#[derive(Deserialize)]
struct Errors {
    errors: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    code: String,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    detail: serde_json::Value,
}

impl Pushing {
    /// The client's answer. `resource`: what was written, where the registry says that it is there.
    pub(super) fn done(&self, said: &Said, resource: Option<String>) -> Result<Written, Error> {
        if !said.status.is_success() {
            return Err(self.refused(said));
        }
        let mut headers: Vec<(&'static str, String)> = Vec::new();
        for name in HEADERS {
            if let Some(value) = said.header(name).filter(|value| value.len() <= HEADER_MAX) {
                headers.push((name, value.to_owned()));
            }
        }
        for name in DIGESTS {
            if let Some(digest) = said.header(name).and_then(|value| value.parse::<Digest>().ok()) {
                headers.push((name, digest.to_string()));
            }
        }
        if let Some(resource) = resource {
            headers.push(("location", self.address(&resource)));
        }
        Ok(Written { status: said.status.as_u16(), headers })
    }

    /// What the registry has against it.
    fn refused(&self, said: &Said) -> Error {
        let registry = &self.push.place.registry;
        let (code, message, detail) = parse_error(&said.body);
        let status = said.status.as_u16();
        let mut story = format!("{registry} answers {status}");
        if let Some(message) = message {
            story = format!("{story}: {message}");
        }
        let after = said.header("retry-after").and_then(|after| after.parse().ok()).map(Duration::from_secs);
        match status {
            403 => self.error(Cause::Refused(story)),
            429 => self.error(Cause::TooManyRequests(story, after)),
            400..=499 => {
                let code = code.unwrap_or_else(|| match status {
                    404 => self.error(Cause::NotFound(String::new())).unknown,
                    405 => Code::Unsupported,
                    413 => Code::SizeInvalid,
                    _ if self.push.write.kind() == "manifest" => Code::ManifestInvalid,
                    _ => Code::BlobUploadInvalid,
                });
                self.error(Cause::Answered { status, code, story, detail })
            }
            _ => self.unavailable(Cause::Unavailable(story)),
        }
    }
}

/// A failure before there was an answer.
pub(super) fn failure_of(pushing: &Pushing, place: &Place, failure: &Failure) -> Error {
    let mut story = format!("{place}: {failure}");
    let reach = pushing.live.config.reach(&place.registry);
    if let (Failure::Auth { refused: true, wrong_password, .. }, Some(_)) =
        (failure, reach.and_then(|reach| reach.callers.authorize))
    {
        if pushing.caller.credentials.is_none() {
            story.push_str("; log in at this mirror as a user of that registry");
        }
        let (who, wrong_password) = (pushing.caller.who(), *wrong_password);
        return pushing.error(Cause::NotYours { who, story, wrong_password });
    }
    pushing.unavailable(match failure {
        Failure::Auth { refused: true, .. } => Cause::Refused(story),
        Failure::Timeout => Cause::Timeout(story),
        _ => Cause::Unavailable(story),
    })
}

/// The first error of a body, as far as it is one: its code, its text, and what it adds.
fn parse_error(body: &[u8]) -> (Option<Code>, Option<String>, Option<String>) {
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return (None, None, None) };
    let Some(Told { code, message, detail }) = errors.into_iter().next() else { return (None, None, None) };
    let text = |text: String| {
        let text: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
    };
    let message = message.filter(|message| !message.is_empty()).unwrap_or_else(|| code.clone());
    let detail = match detail {
        serde_json::Value::Null => None,
        serde_json::Value::String(detail) => Some(detail),
        detail => Some(detail.to_string()),
    };
    (Code::parse(&code), Some(text(message)), detail.map(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_error_is_read_as_far_as_it_is_one() {
        let body = br#"{"errors":[{"code":"MANIFEST_INVALID","message":"no\r\ngood","detail":{"a":1}},{"code":"X"}]}"#;
        let (code, message, detail) = parse_error(body);
        assert_eq!(code, Some(Code::ManifestInvalid));
        assert_eq!((message.as_deref(), detail.as_deref()), (Some("no  good"), Some("{\"a\":1}")));
        let (code, message, _) = parse_error(br#"{"errors":[{"code":"TEAPOT"}]}"#);
        assert_eq!((code, message.as_deref()), (None, Some("TEAPOT")));
        for junk in [&b""[..], b"<html>", b"{}", b"[]", br#"{"errors":[]}"#, br#"{"errors":[{"code":5}]}"#] {
            assert_eq!(parse_error(junk), (None, None, None));
        }
    }
}
