//! Who is asking: by network, by a password, by a token of our own, or by certificate.
//!
//! What a client shows stays here, but for the credentials of registries that are configured for them.

mod address;
mod authorization;
mod certificate;
mod limit;
mod login;
mod proxied;
mod realm;
mod token;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderMap, PROXY_AUTHORIZATION};
use sha2::{Digest, Sha256};

use super::error::{Challenge, Told};
use super::peer::Peer;
use crate::config::{Config, User};
use crate::oci::{Code, Credentials};
use crate::plugin::Identity;
use login::{Logins, Refusal};
use token::{Claims, Purpose, Subject, Tokens};

pub use address::client as client_address;
pub use authorization::{Shown, parse as parse_authorization};
pub use certificate::identity as identity_of_certificate;
pub use proxied::{parse as parse_proxied, read as read_proxied};

/// Who says that a user is who it is, where it is the file of passwords.
pub const HTPASSWD: &str = "htpasswd";

/// What is kept of clients that showed who they are.
pub struct Who {
    logins: Logins,
    tokens: Tokens,
}

/// Who asks.
#[derive(Clone, Default, Debug)]
pub struct Known {
    /// None: anybody.
    pub identity: Option<Identity>,
    /// What the client sent, for registries that are asked with it.
    pub credentials: Option<Arc<Credentials>>,
    subject: Option<Subject>,
    /// For how long yet no registry is asked whether these are right, since too many logins have failed.
    pub waits: Option<Duration>,
    /// It has shown nothing that it could be asked for.
    pub is_silent: bool,
}

/// Who asked to be led to a registry that the proxy stands in for, and from where.
#[derive(Clone, Debug)]
pub struct Through {
    pub known: Known,
    pub client: IpAddr,
}

/// A request of somebody who is yet to be known.
pub struct Asking<'a> {
    pub who: &'a Who,
    pub config: &'a Config,
    pub peer: &'a Peer,
    pub client: IpAddr,
}

impl Who {
    /// `state_dir`: where the key of the tokens is kept.
    pub fn new(state_dir: PathBuf) -> Self {
        Self { logins: Logins::new(), tokens: Tokens::new(state_dir) }
    }

    /// A token of somebody who is known.
    fn token(&self, purpose: Purpose, known: &Known) -> String {
        let life = match purpose {
            Purpose::Access => token::LIFE,
            Purpose::Refresh => token::REFRESH_LIFE,
        };
        let credentials = known.credentials.as_ref().map(|shown| (shown.user.clone(), shown.password.clone()));
        let claims = Claims { until: token::ends_after(life), subject: known.subject.clone(), credentials };
        self.tokens.seal(purpose, &claims)
    }
}

impl Asking<'_> {
    /// Finds out who asks, and lets nobody pass who may not.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Known, Told> {
        if !self.challenges() {
            return self.by_nothing();
        }
        let shown = authorization::parse(headers, &AUTHORIZATION)
            .map_err(|reason| Told::new(400, Code::Unauthorized, reason))?;
        match shown {
            Shown::Nothing => self.by_nothing(),
            Shown::Basic(shown) => self.log_in(shown).await,
            Shown::Bearer(token) => self.by_token(Purpose::Access, &token).ok_or_else(|| Told {
                challenge: Some(Challenge::Renew),
                ..Told::new(401, Code::Unauthorized, "the token is none of this mirror, or it is over: get a new one")
            }),
        }
    }

    /// Finds out who asks for something in plain http through us: what clients show to proxies is for us too.
    pub async fn identify_in_plain(&self, headers: &HeaderMap) -> Result<Known, Told> {
        if headers.contains_key(AUTHORIZATION) || !headers.contains_key(PROXY_AUTHORIZATION) {
            return self.identify(headers).await;
        }
        // Of what a registry could be shown, it has shown nothing yet.
        Ok(Known { is_silent: true, ..self.identify_tunnel(headers).await?.known })
    }

    /// Finds out who asks to be led on, by what clients show to proxies.
    pub async fn identify_tunnel(&self, headers: &HeaderMap) -> Result<Through, Told> {
        let client = self.client;
        let shown =
            if self.challenges() { authorization::parse(headers, &PROXY_AUTHORIZATION) } else { Ok(Shown::Nothing) };
        let known = match shown.map_err(|reason| Told::new(400, Code::Unauthorized, reason))? {
            Shown::Nothing => self.by_nothing(),
            Shown::Basic(shown) => self.log_in(shown).await,
            Shown::Bearer(_) => Err(unauthorized("a proxy is shown a user and a password by Basic")),
        };
        let known = known.map_err(|told| match told.status {
            401 => Told { status: 407, challenge: None, authenticate: Some("Basic realm=\"tidegate\"".into()), ..told },
            _ => told,
        })?;
        // What was meant for us is for no registry.
        Ok(Through { known: Known { credentials: None, waits: None, ..known }, client })
    }

    /// Whether somebody who asks whether this is a registry is told so at once. docker and containers/image send what
    /// they have only where this question is answered with another one.
    pub fn may_go_unasked(&self, known: &Known) -> Result<(), Told> {
        if self.asks_first(known) { Err(unauthorized("log in, or get a token as anybody")) } else { Ok(()) }
    }

    /// Asks somebody who is refused, and has shown nothing, for something to show first: containerd sends what it has
    /// only then.
    pub fn ask_instead(&self, known: &Known, told: Told) -> Told {
        // Passwords of a registry are not guessed through us either.
        if let (true, None, Some(shown)) = (told.wrong_password, &known.identity, &known.credentials) {
            warn_of(self.client, &shown.user);
            self.who.logins.refused(self.client, &shown.user);
        }
        if told.status != 403 || !self.asks_first(known) {
            return told;
        }
        Told { status: 401, code: Code::Unauthorized, challenge: Some(Challenge::Ask), ..told }
    }

    fn asks_first(&self, known: &Known) -> bool {
        self.challenges() && known.is_silent && (self.config.asks_callers || known.identity.is_none())
    }

    /// Whether clients are asked who they are by password or token.
    fn challenges(&self) -> bool {
        self.config.clients.users.is_some() || self.config.asks_callers
    }

    async fn log_in(&self, shown: Credentials) -> Result<Known, Told> {
        let Self { config, client, .. } = *self;
        let name = shown.user.as_str();
        let own = config.clients.users.as_ref().filter(|users| {
            // Who is none of ours may be one of a registry's: that one will say so.
            users.get(name).is_some() || !config.asks_callers || self.by_nothing().is_err()
        });
        let Some(users) = own else {
            let known = self.by_nothing()?;
            let waits = self.who.logins.wait(client, name);
            return Ok(Known { credentials: Some(Arc::new(shown)), waits, is_silent: false, ..known });
        };
        match self.who.logins.verify(users, &shown, client).await {
            Ok(()) => {}
            Err(refusal) => {
                if refusal == Refusal::Wrong {
                    warn_of(client, name);
                }
                return Err(told(&refusal));
            }
        }
        let Some(user) = users.get(name) else { return Err(unauthorized("the user or the password is wrong")) };
        let mut known = of_user(name, user);
        known.credentials = config.asks_callers.then(|| Arc::new(shown));
        Ok(known)
    }

    /// Who a token was made for, as far as that still holds.
    fn by_token(&self, purpose: Purpose, token: &str) -> Option<Known> {
        let claims = self.who.tokens.open(purpose, token)?;
        let clients = &self.config.clients;
        let mut known = match &claims.subject {
            None if clients.may_be_anonymous(self.client) => Known::default(),
            None => return None,
            Some(Subject::User { name, mark }) => {
                let user = clients.users.as_ref()?.get(name)?;
                if *mark != mark_of(user) {
                    return None;
                }
                of_user(name, user)
            }
            Some(Subject::Certificate { subject, issuer, groups }) => {
                clients.certificates.as_ref()?;
                let (subject, issuer, groups) = (subject.clone(), issuer.clone(), groups.clone());
                let identity = Some(Identity { subject, issuer, groups });
                Known { identity, subject: claims.subject.clone(), ..Known::default() }
            }
        };
        let shown = claims.credentials.filter(|_| self.config.asks_callers);
        known.credentials = shown.map(|(user, password)| Arc::new(Credentials { user, password }));
        if let (None, Some(shown)) = (&known.identity, &known.credentials) {
            known.waits = self.who.logins.wait(self.client, &shown.user);
        }
        Some(known)
    }

    fn by_nothing(&self) -> Result<Known, Told> {
        if let Some(through) = &self.peer.through {
            return Ok(Known { is_silent: true, ..through.known.clone() });
        }
        if let (Some(identity), Some(_)) = (&self.peer.certificate, &self.config.clients.certificates) {
            let Identity { subject, issuer, groups } = identity.clone();
            let subject = Some(Subject::Certificate { subject, issuer, groups });
            return Ok(Known {
                identity: Some(identity.clone()),
                subject,
                credentials: None,
                waits: None,
                is_silent: true,
            });
        }
        self.may_be_anonymous()?;
        Ok(Known { is_silent: true, ..Known::default() })
    }

    fn may_be_anonymous(&self) -> Result<(), Told> {
        let Self { config, client, .. } = self;
        if config.clients.may_be_anonymous(*client) {
            return Ok(());
        }
        if config.clients.users.is_some() {
            return Err(unauthorized(&format!("this mirror asks {client} for a user and a password: log in")));
        }
        let what = if config.clients.certificates.is_some() { " without a client certificate" } else { "" };
        Err(Told::new(403, Code::Denied, format!("this mirror does not serve {client}{what}")))
    }
}

fn warn_of(client: IpAddr, user: &str) {
    tracing::warn!(%client, user = user.escape_debug().to_string(), "a login has failed");
}

fn of_user(name: &str, user: &User) -> Known {
    let identity = Identity { subject: name.to_owned(), issuer: HTPASSWD.to_owned(), groups: user.groups.clone() };
    let subject = Subject::User { name: name.to_owned(), mark: mark_of(user) };
    Known { identity: Some(identity), subject: Some(subject), credentials: None, waits: None, is_silent: false }
}

/// What a token knows the hash of its user by.
fn mark_of(user: &User) -> String {
    let digest = Sha256::digest(&user.hash);
    let (mark, _) = digest.split_first_chunk::<8>().expect("SHA-256 has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*mark))
}

/// Which of user and password is wrong is not told.
fn told(refusal: &Refusal) -> Told {
    match refusal {
        Refusal::Wrong => unauthorized("the user or the password is wrong"),
        Refusal::Wait(wait) => Told::too_many_logins(*wait),
    }
}

fn unauthorized(message: &str) -> Told {
    Told { challenge: Some(Challenge::Ask), ..Told::new(401, Code::Unauthorized, message) }
}
