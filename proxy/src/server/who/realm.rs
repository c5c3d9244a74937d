//! The token realm: what clients are asked for, and the tokens that they get for it.
//!
//! Source: distribution's token specification, in both its forms; OCI distribution specification, "Error Codes".

use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response};
use serde_json::json;
use url::form_urlencoded;

use super::authorization::{self, Shown};
use super::token::{LIFE, Purpose};
use super::{Asking, Known, unauthorized};
use crate::body::Body as Sent;
use crate::oci::{Code, Repository};
use crate::server::error::{Challenge, Told};
use crate::server::watched::Record;

/// Where tokens are had: below `/v2/`, where all that a balancer hands on lies, and where no repository can be.
const PATH: &str = "/v2/token";
/// For whom they are.
const SERVICE: &str = "tidegate";
/// Longest form that is read. Units: bytes.
const FORM_MAX: usize = 32 << 10;
/// How long a form may take.
const FORM_TIME: Duration = Duration::from_secs(10);

/// How the client called us, and for what.
pub struct Called {
    origin: String,
    scope: Option<String>,
}

impl Called {
    /// The header `WWW-Authenticate`. Bearer alone: docker takes Basic, where it is offered too, even when it has no
    /// user, and gives up. Who sends Basic unasked is let in all the same.
    pub fn challenge(&self, asks: Challenge) -> String {
        let mut text = format!("Bearer realm=\"{}{PATH}\",service=\"{SERVICE}\"", self.origin);
        if let Some(scope) = &self.scope {
            let _ = write!(text, ",scope=\"{scope}\"");
        }
        if asks == Challenge::Renew {
            text.push_str(",error=\"invalid_token\"");
        }
        text
    }
}

impl Asking<'_> {
    /// Whether a request is one for a token.
    pub fn is_for_token(&self, path: &str) -> bool {
        path == PATH && self.challenges()
    }

    /// What a challenge to this request would name. None where nobody is challenged.
    pub fn called<B>(&self, request: &Request<B>) -> Option<Called> {
        self.challenges().then(|| {
            let scope = repository(request.uri().path()).map(|repository| {
                let pulls = matches!(*request.method(), Method::GET | Method::HEAD);
                format!("repository:{repository}:{}", if pulls { "pull" } else { "pull,push" })
            });
            Called { origin: self.origin(request), scope }
        })
    }

    /// How the client called us: it finds us there again.
    fn origin<B>(&self, request: &Request<B>) -> String {
        let headers = request.headers();
        let forwarded = || headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
        let scheme = if self.peer.secure || (self.peer.proxied && forwarded()) { "https" } else { "http" };
        let named = headers.get(HOST).and_then(|host| host.to_str().ok());
        let named = named.or_else(|| request.uri().authority().map(Authority::as_str));
        match named.filter(|host| is_plain(host)) {
            Some(host) => format!("{scheme}://{host}"),
            None => format!("{scheme}://{}", self.config.listen),
        }
    }

    /// Answers a request for a token: by GET with Basic, or by POST with a form.
    pub async fn serve_token<B>(&self, request: Request<B>, record: &mut Record) -> Result<Response<Sent>, Told>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let admitted = match head.method {
            Method::GET if body.is_end_stream() => {
                let shown = authorization::parse(&head.headers, &AUTHORIZATION);
                match shown.map_err(|reason| Told::new(400, Code::Unauthorized, reason)) {
                    Ok(shown) => self.admit(shown).await.map(|known| (known, false)),
                    Err(told) => Err(told),
                }
            }
            Method::POST => {
                let form = read(body).await?;
                self.admit_by_form(&form).await
            }
            _ => Err(refuse(405, "tokens are had by GET, or by POST of a form")),
        };
        let (known, offline) =
            admitted.map_err(|told| told.challenging(|_| Some(format!("Basic realm=\"{SERVICE}\""))))?;
        record.known(known.identity.as_ref());
        let token = self.who.token(Purpose::Access, &known);
        let mut answer = json!({
            "token": token,
            "access_token": token,
            "expires_in": LIFE.as_secs(),
            "issued_at": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        });
        if offline && known.identity.is_some() {
            answer["refresh_token"] = self.who.token(Purpose::Refresh, &known).into();
        }
        let mut response = Response::new(Sent::bytes(answer.to_string()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// Who a form is from, and whether it wants to come again without a password.
    async fn admit_by_form(&self, form: &[(String, String)]) -> Result<(Known, bool), Told> {
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        let known = match field("grant_type") {
            "password" => {
                let shown = authorization::credentials(field("username"), field("password"));
                let none = || Told::new(400, Code::Unauthorized, "username and password of the form are none");
                self.admit(shown.ok_or_else(none)?).await?
            }
            "refresh_token" => self
                .by_token(Purpose::Refresh, field("refresh_token"))
                .ok_or_else(|| unauthorized("the refresh token is none of this mirror, or it is over: log in"))?,
            _ => return Err(refuse(400, "grant_type must be password or refresh_token")),
        };
        Ok((known, field("access_type") == "offline"))
    }

    async fn admit(&self, shown: Shown) -> Result<Known, Told> {
        match shown {
            Shown::Nothing => self.by_nothing(),
            Shown::Basic(shown) => self.log_in(shown).await,
            Shown::Bearer(_) => Err(refuse(400, "a token is had for a user and a password, not for a token")),
        }
    }
}

/// Nothing that could end a quoted text.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]/".contains(&byte))
}

/// The repository in a path, as the client calls it.
fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let end = ["/manifests/", "/blobs/", "/tags/", "/referrers/"].iter().filter_map(|part| rest.rfind(part)).min()?;
    let name = &rest[..end];
    // A registry with a port may stand in front of it.
    let parsed =
        name.split_once('/').map_or(name, |(first, rest)| if first.contains([':', '.']) { rest } else { name });
    (is_plain(name) && Repository::parse(parsed).is_some()).then_some(name)
}

fn refuse(status: u16, message: &str) -> Told {
    Told { close: true, ..Told::new(status, Code::Unsupported, message) }
}

async fn read<B>(body: B) -> Result<Vec<(String, String)>, Told>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let read = tokio::time::timeout(FORM_TIME, Limited::new(body, FORM_MAX).collect()).await;
    let Ok(Ok(form)) = read else { return Err(refuse(400, "the form is too long, or does not come")) };
    Ok(form_urlencoded::parse(&form.to_bytes()).into_owned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::server::peer::Peer;
    use crate::server::who::Who;

    #[test]
    fn the_realm_is_where_the_client_found_us() {
        let config = Config::parse("[registries.\"quay.io\"]\nauthorize = \"caller\"", "t").expect("a configuration");
        let who = Who::new("/nonexistent".into());
        let asked = |secure, proxied, path: &str, fields: &[(&str, &str)]| {
            let mut request = Request::get(path);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let address: std::net::SocketAddr = "127.0.0.1:9".parse().expect("an address");
            let peer = Peer { secure, proxied, ..Peer::at(address) };
            let asking = Asking { who: &who, config: &config, peer: &peer, client: address.ip() };
            let called = asking.called(&request.body(()).expect("a request"));
            called.expect("somebody is challenged").challenge(Challenge::Ask)
        };
        let host = ("host", "mirror.lan:5000");
        let forwarded = ("x-forwarded-proto", "https");
        for (secure, proxied, path, fields, told) in [
            (false, false, "/v2/", &[host][..], "http://mirror.lan:5000/v2/token\",service=\"tidegate\""),
            (true, false, "/v2/", &[host], "https://mirror.lan:5000/v2/token\",service=\"tidegate\""),
            (false, true, "/v2/", &[host, forwarded], "https://mirror.lan:5000/v2/token\",service=\"tidegate\""),
            (false, false, "/v2/", &[host, forwarded], "http://mirror.lan:5000/v2/token\",service=\"tidegate\""),
            (false, false, "/v2/", &[], "http://127.0.0.1:5000/v2/token\",service=\"tidegate\""),
            (false, false, "/v2/", &[("host", "x\" evil")], "http://127.0.0.1:5000/v2/token\",service=\"tidegate\""),
        ] {
            assert_eq!(asked(secure, proxied, path, fields), format!("Bearer realm=\"{told}"));
        }
        for (path, scope) in [
            ("/v2/library/app/manifests/1", Some("library/app")),
            ("/v2/127.0.0.1:5000/a/b/blobs/sha256:x", Some("127.0.0.1:5000/a/b")),
            ("/v2/quay.io/a/tags/list", Some("quay.io/a")),
            ("/v2/a\"b/tags/list", None),
            ("/v2/A/tags/list", None),
            ("/v2/", None),
        ] {
            let told = asked(false, false, path, &[host]);
            let expected = scope.map(|name| format!(",scope=\"repository:{name}:pull\""));
            assert_eq!(
                told.split_once("\"tidegate\"").map(|(_, rest)| rest),
                Some(expected.as_deref().unwrap_or("")),
                "{path}"
            );
        }
    }
}
