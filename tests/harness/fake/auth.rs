//! What the fake registry asks for before it answers, and the tokens that it gives out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::{Document, Reply, Seen};

/// Tokens of one service: given out by one fake registry, accepted by another.
#[derive(Clone, Debug)]
pub struct Tokens {
    inner: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    valid: HashSet<String>,
    given: usize,
    /// The values of `Authorization` without one of which none is given; empty: anybody gets one.
    credentials: Vec<String>,
    /// The identity token without which none is given.
    identity: Option<String>,
    /// For how long tokens say that they hold; none: 300 seconds. As JSON.
    life: Option<serde_json::Value>,
}

#[derive(Clone, Debug)]
pub(super) enum Guard {
    Basic(String),
    Bearer { realm: String, tokens: Tokens },
}

impl Tokens {
    /// For anybody.
    pub fn anonymous() -> Self {
        Self { inner: Arc::default() }
    }

    /// For one user only.
    pub fn of_user(user: &str, password: &str) -> Self {
        Self::of_users(&[(user, password)])
    }

    /// For some users only.
    pub fn of_users(users: &[(&str, &str)]) -> Self {
        let credentials = users.iter().map(|(user, password)| basic(user, password)).collect();
        Self { inner: Arc::new(Mutex::new(State { credentials, ..State::default() })) }
    }

    /// For who holds an identity token only.
    pub fn of_identity(token: &str) -> Self {
        let state = State { identity: Some(token.to_owned()), ..State::default() };
        Self { inner: Arc::new(Mutex::new(state)) }
    }

    /// Accepts a token that was never given out.
    pub fn accept(&self, token: &str) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).valid.insert(format!("Bearer {token}"));
    }

    /// For how long tokens say that they hold from now on, as JSON.
    pub fn hold_for(&self, life: &str) {
        let life = serde_json::from_str(life).expect("JSON");
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).life = Some(life);
    }

    /// How many were given out.
    pub fn given(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).given
    }

    /// Accepts none of the present ones any more.
    pub fn expire(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).valid.clear();
    }

    pub(super) fn issue(&self, seen: &Seen) -> Result<Document, Reply> {
        let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = seen.fields.get("Authorization").unwrap_or_default();
        if !state.credentials.is_empty() && !state.credentials.iter().any(|right| right == shown) {
            return Err(Reply::status(401));
        }
        if let Some(identity) = &state.identity {
            let right = seen.method == "POST"
                && seen.body.split('&').any(|pair| pair == "grant_type=refresh_token")
                && seen.body.split('&').any(|pair| pair == format!("refresh_token={identity}"));
            if !right {
                return Err(Reply::status(401));
            }
        }
        state.given += 1;
        let token = format!("token-{}", state.given);
        state.valid.insert(format!("Bearer {token}"));
        let life = state.life.clone().unwrap_or(json!(300));
        let body = json!({ "token": token, "access_token": token, "expires_in": life });
        Ok(Document::new("application/json", body.to_string().into_bytes()))
    }
}

impl Guard {
    pub(super) fn check(&self, seen: &Seen) -> Result<(), Reply> {
        let credential = seen.fields.get("Authorization").unwrap_or_default();
        let (good, challenge) = match self {
            Self::Basic(right) => (credential == right, "Basic realm=\"fake\"".to_owned()),
            Self::Bearer { realm, tokens } => {
                let repository = seen.path.trim_start_matches("/v2/");
                let end =
                    ["/manifests/", "/blobs/", "/tags/", "/referrers/"].iter().find_map(|part| repository.find(part));
                let actions = match seen.method.as_str() {
                    "GET" | "HEAD" => "pull",
                    "DELETE" => "delete",
                    _ => "pull,push",
                };
                let scope =
                    end.map_or(String::new(), |end| format!(",scope=\"repository:{}:{actions}\"", &repository[..end]));
                let valid = &tokens.inner.lock().unwrap_or_else(PoisonError::into_inner).valid;
                (valid.contains(credential), format!("Bearer realm=\"{realm}\",service=\"fake\"{scope}"))
            }
        };
        if good { Ok(()) } else { Err(Reply::status(401).field("WWW-Authenticate", &challenge)) }
    }
}

/// The value of `Authorization` for a user and a password. Source: RFC 7617, RFC 4648 section 4.
pub fn basic(user: &str, password: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for group in format!("{user}:{password}").as_bytes().chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let six = usize::try_from(bits >> (18 - 6 * place) & 63).expect("six bits");
            text.push(if place <= group.len() { char::from(ALPHABET[six]) } else { '=' });
        }
    }
    text
}
