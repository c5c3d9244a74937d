//! What a registry wants to be asked with: nothing, Basic, or a Bearer token from its token service.
//!
//! A credential goes only to the registry that it was configured for, or to a token service that belongs to it (I9).
//! Times are told by a clock that never jumps: a wall clock that is set makes no token old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;

use super::caller::By;
use super::connect::Clients;
use super::secret::{Secret, basic};
use super::token::{self, Wanted, bearer};
use crate::config::Reach;
use crate::oci::challenge::Challenge;
use crate::oci::{Action, Credentials, Failure, Place};

/// How long a failure to get a grant stands for all who want the same.
const FAILURE_HOLDS: Duration = Duration::from_secs(1);
/// Grants that are remembered; past it the oldest knowledge is thrown away whole, which costs a request each.
const GRANTS_MAX: usize = 4096;

/// What a request to a repository is made with.
#[derive(Clone)]
pub(super) struct Grant {
    header: HeaderValue,
    until: Option<Instant>,
    since: Instant,
}

impl Grant {
    fn new(header: HeaderValue, life: Option<Duration>) -> Self {
        let since = Instant::now();
        Self { header, until: life.map(|life| since + life), since }
    }

    /// The header `Authorization`.
    pub fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// Whether it is a user and a password themselves, and no token that was had for them.
    pub fn is_password(&self) -> bool {
        self.header.as_bytes().starts_with(b"Basic ")
    }

    fn holds(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// What is known of one repository.
#[derive(Default)]
struct Known {
    grant: Option<Grant>,
    /// What the registry asked for last, to answer it where no challenge is at hand.
    challenge: Option<Challenge>,
    failed: Option<(Instant, Failure)>,
    /// It was answered without any grant.
    open: bool,
}

/// What is known before a request that cannot be made twice.
pub(super) enum Ready {
    /// A grant that holds.
    With(Grant),
    /// None is needed.
    Without,
    /// Nobody knows yet.
    Unknown,
}

type Slot = Arc<tokio::sync::Mutex<Known>>;

/// What a grant is for. One to pull is no grant to push, and is not widened to one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct For {
    pub place: Place,
    pub action: Action,
    /// With whose credentials.
    pub by: By,
}

/// The grants of this process, by repository, by what is done there, and by whose credentials they were had for (I9).
#[derive(Default)]
pub(super) struct Grants(Mutex<HashMap<For, Slot>>);

/// Who wants a grant, and from whom.
#[derive(Clone)]
pub(super) struct Asker {
    pub clients: Arc<Clients>,
    pub reach: Arc<Reach>,
    pub wanted: For,
    /// The caller's, where they are wanted.
    pub credentials: Option<Arc<Credentials>>,
    /// How long a token service is waited for.
    pub limit: Duration,
}

impl Grants {
    /// The same grants, of the registries for which `stays` holds.
    pub fn carried_over(&self, stays: impl Fn(&Place) -> bool) -> Self {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = slots.iter().filter(|(wanted, _)| stays(&wanted.place));
        Self(Mutex::new(kept.map(|(wanted, slot)| (wanted.clone(), slot.clone())).collect()))
    }

    fn slot(&self, wanted: &For) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= GRANTS_MAX && !slots.contains_key(wanted) {
            slots.clear();
        }
        slots.entry(wanted.clone()).or_default().clone()
    }

    /// The grant that worked last for a repository, if it still holds.
    ///
    /// # Errors
    /// None could be had a moment ago: the registry would only ask for it again.
    pub async fn known(&self, wanted: &For) -> Result<Option<Grant>, Failure> {
        let slot = self.slot(wanted);
        let known = slot.lock().await;
        known.lately_failed()?;
        Ok(known.grant.clone().filter(Grant::holds))
    }

    /// What there is for a request that cannot be made twice: a grant that has ended is renewed before.
    ///
    /// # Errors
    /// None could be had.
    pub async fn ready(&self, asker: Asker) -> Result<Ready, Failure> {
        let slot = self.slot(&asker.wanted);
        {
            let known = slot.lock().await;
            known.lately_failed()?;
            match &known.grant {
                Some(grant) if grant.holds() => return Ok(Ready::With(grant.clone())),
                None if known.open => return Ok(Ready::Without),
                None if known.challenge.is_none() => return Ok(Ready::Unknown),
                _ => {}
            }
        }
        Ok(self.renew(asker, None, None).await?.map_or(Ready::Unknown, Ready::With))
    }

    /// Takes note that a request without a grant was answered.
    pub async fn note_open(&self, wanted: &For) {
        self.slot(wanted).lock().await.open = true;
    }

    /// Gets a new grant after `refused` was not enough. Many pulls that wait for one share one request, and its
    /// failure. `challenge`: what the registry asks for; none: as before.
    ///
    /// # Cancel safety
    /// What it asks for is waited for by a task of its own, one for each repository, for no longer than the asker's
    /// limit: a pull that is given little time leaves its grant to the next one.
    pub async fn renew(
        &self,
        asker: Asker,
        challenge: Option<Challenge>,
        refused: Option<&Grant>,
    ) -> Result<Option<Grant>, Failure> {
        let before = Instant::now();
        let slot = self.slot(&asker.wanted);
        let mut known = slot.lock_owned().await;
        known.lately_failed()?;
        let newer = known.grant.as_ref().filter(|grant| {
            // One that was made while this one waited is as new as can be, however short its life is.
            let fresh = grant.holds() || grant.since > before;
            fresh && refused.is_none_or(|old| old.header != grant.header)
        });
        if let Some(newer) = newer {
            return Ok(Some(newer.clone()));
        }
        let Some(challenge) = challenge.or_else(|| known.challenge.clone()) else { return Ok(None) };
        (known.grant, known.open) = (None, false);
        known.challenge = Some(challenge.clone());
        let refused = refused.map(Grant::header);
        let asking = tokio::spawn(async move {
            match answer(&asker, &challenge).await {
                Ok(new) if refused.is_some_and(|old| old == new.header) => {
                    let whose = match asker.wanted.by {
                        By::Mirror => "the configured credentials",
                        By::Nobody => "who shows no user",
                        By::Caller(_) => "the caller's user and password",
                    };
                    let reason = format!("{} refuses {whose}", asker.wanted.place.registry);
                    Err(known.fail(Failure::Auth { reason, refused: true, wrong_password: new.is_password() }))
                }
                Ok(new) => Ok(Some(known.grant.insert(new).clone())),
                Err(failure) => Err(known.fail(failure)),
            }
        });
        asking.await.unwrap_or_else(|_| Err(broken("the program ends".to_owned())))
    }
}

impl Known {
    fn lately_failed(&self) -> Result<(), Failure> {
        match &self.failed {
            Some((at, failure)) if at.elapsed() < FAILURE_HOLDS => Err(failure.remembered()),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, failure: Failure) -> Failure {
        self.failed = Some((Instant::now(), failure.clone()));
        failure
    }
}

/// Answers a challenge.
async fn answer(asker: &Asker, challenge: &Challenge) -> Result<Grant, Failure> {
    let Asker { clients, reach, wanted, limit, .. } = asker;
    let (limit, place) = (*limit, &wanted.place);
    let registry = &place.registry;
    let secret = match (wanted.by, &asker.credentials) {
        (By::Mirror, _) => Secret::of(place, reach, limit).await.map_err(broken)?,
        (By::Caller(_), Some(shown)) => Some(Secret::of_caller(shown)),
        (By::Caller(_) | By::Nobody, _) => None,
    };
    if let Some(Secret::Token(token)) = &secret {
        let header = bearer(token).ok_or_else(|| broken("the configured token has control characters".to_owned()))?;
        return Ok(Grant::new(header, None));
    }
    match (challenge, &secret) {
        (Challenge::Basic, Some(Secret::Password { username, password })) => {
            Ok(Grant::new(basic(username, password), None))
        }
        (Challenge::Basic, Some(_)) => Err(refusal(format!(
            "{registry} asks for a user and a password, and an identity token is configured; set `username` and `password_file`"
        ))),
        (Challenge::Basic, None) if wanted.by == By::Nobody => {
            Err(refusal(format!("{registry} asks for a user and a password")))
        }
        (Challenge::Basic, None) => {
            Err(refusal(format!("{registry} asks for a user and a password; set `username` and `password_file`")))
        }
        (Challenge::Bearer { realm, service, scope }, secret) => {
            let told = Wanted { realm, service: service.as_deref(), scope: scope.as_deref() };
            let (header, life) = token::fetch(clients, reach, wanted, told, secret.as_ref(), limit).await?;
            Ok(Grant::new(header, Some(life)))
        }
    }
}

fn refusal(reason: String) -> Failure {
    Failure::Auth { reason, refused: true, wrong_password: false }
}

fn broken(reason: String) -> Failure {
    Failure::Auth { reason, refused: false, wrong_password: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Registry, Repository};

    fn to_pull(registry: &str) -> For {
        let place = Place {
            registry: Registry::parse(registry).expect("a registry"),
            repository: Repository::parse("a/b").expect("a repository"),
        };
        For { place, action: Action::Pull, by: By::Mirror }
    }

    #[tokio::test]
    async fn t2_grants_of_registries_that_are_reached_as_before_stay() {
        let grants = Grants::default();
        for registry in ["docker.io", "quay.io"] {
            let grant = Grant::new(HeaderValue::from_static("Bearer t"), None);
            grants.slot(&to_pull(registry)).lock().await.grant = Some(grant);
        }
        let kept = grants.carried_over(|place| place.registry.as_str() == "quay.io");
        assert!(kept.known(&to_pull("quay.io")).await.is_ok_and(|grant| grant.is_some()));
        assert!(kept.known(&to_pull("docker.io")).await.is_ok_and(|grant| grant.is_none()));
    }

    #[tokio::test]
    async fn u9_a_grant_ends_and_a_failure_stands_for_a_moment() {
        let grants = Grants::default();
        let slot = grants.slot(&to_pull("quay.io"));
        let over = Grant::new(HeaderValue::from_static("Bearer t"), Some(Duration::ZERO));
        slot.lock().await.grant = Some(over);
        assert!(grants.known(&to_pull("quay.io")).await.is_ok_and(|grant| grant.is_none()));
        slot.lock().await.fail(broken("down".to_owned()));
        assert!(grants.known(&to_pull("quay.io")).await.is_err_and(|failure| failure == broken("down".to_owned())));
        let long_ago = Instant::now().checked_sub(FAILURE_HOLDS);
        slot.lock().await.failed = long_ago.map(|at| (at, broken("down".to_owned())));
        assert!(grants.known(&to_pull("quay.io")).await.is_ok());
    }

    #[tokio::test]
    async fn a_grant_to_pull_is_no_grant_to_push() {
        let grants = Grants::default();
        let pull = to_pull("quay.io");
        grants.slot(&pull).lock().await.grant = Some(Grant::new(HeaderValue::from_static("Bearer t"), None));
        let push = For { action: Action::Push, ..pull.clone() };
        assert!(grants.known(&push).await.is_ok_and(|grant| grant.is_none()));
        assert!(grants.known(&pull).await.is_ok_and(|grant| grant.is_some()));
    }
}
