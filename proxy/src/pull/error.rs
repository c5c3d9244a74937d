//! Why a pull has no answer: causes, not statuses. `server` turns them into what a client sees.

use std::time::Duration;

use crate::oci::{Attempt, Code, Denial, Failure, Pull, Registry};

/// Why a pull has no answer.
#[derive(Debug)]
pub struct Error {
    /// What was asked for, in words.
    pub what: String,
    /// The code that says that there is none.
    pub unknown: Code,
    /// Why there is none.
    pub cause: Cause,
}

/// The causes, told apart by what the client is to do next.
#[derive(Debug)]
pub enum Cause {
    /// A policy says no.
    Denied(Denial),
    /// A registry that the configuration does not know.
    UnknownRegistry(Registry),
    /// A registry that is not written to.
    ReadOnly(Registry),
    /// What the registry itself has against a push: it is told as it is.
    Answered {
        /// 400 to 499.
        status: u16,
        /// As the registry gave it, or as its status means it.
        code: Code,
        /// In words.
        story: String,
        /// What the registry adds for programs.
        detail: Option<String>,
    },
    /// The client broke its own body off.
    Client(String),
    /// Only the cache may serve, and it does not have it; which policy says so.
    NotCached(String),
    /// Every upstream that could be asked says that there is none.
    NotFound(String),
    /// An upstream refuses our credentials.
    Refused(String),
    /// An upstream does not let the caller have it.
    NotYours {
        /// Whom.
        who: String,
        /// Why.
        story: String,
        /// It was asked for this, and says that the caller's password is wrong.
        wrong_password: bool,
    },
    /// The caller shows a password that no registry has vouched for, and others have failed too often.
    Guesses(Duration),
    /// An upstream has had enough of us.
    TooManyRequests(String, Option<Duration>),
    /// No upstream answers in time.
    Timeout(String),
    /// What upstreams send is not what was asked for.
    Corrupt(String),
    /// No upstream can serve.
    Unavailable(String),
}

impl Error {
    /// An error about a pull.
    pub fn new(pull: &Pull, cause: Cause) -> Self {
        Self { what: pull.to_string(), unknown: pull.content.unknown(), cause }
    }

    /// What all attempts together mean: the last says most, since the source stands last.
    /// `beside`: what else there is to say.
    pub(super) fn of_attempts(pull: &Pull, attempts: &[Attempt], beside: Option<&str>) -> Self {
        let mut story = story(attempts);
        if let Some(beside) = beside {
            story = format!("{story}; {beside}");
        }
        let cause = match attempts.last().map(|last| (&last.failure, last.retry_after)) {
            None => Cause::Unavailable("there is no upstream to ask".to_owned()),
            Some((Failure::Status(404), _)) => Cause::NotFound(story),
            Some((Failure::Status(429), after)) => Cause::TooManyRequests(story, after),
            Some((Failure::Auth { refused: true, .. }, _)) => Cause::Refused(story),
            Some((Failure::Timeout, _)) => Cause::Timeout(story),
            Some((Failure::DigestMismatch, _)) => Cause::Corrupt(story),
            Some((
                Failure::Connect(_)
                | Failure::Tls(_)
                | Failure::Status(_)
                | Failure::Auth { .. }
                | Failure::Truncated
                | Failure::Other(_),
                _,
            )) => Cause::Unavailable(story),
        };
        Self::new(pull, cause)
    }
}

/// What every attempt came to, in words; what came several times in a row is told once.
pub(super) fn story(attempts: &[Attempt]) -> String {
    let mut told: Vec<(String, usize)> = Vec::new();
    for attempt in attempts {
        let text = format!("{}: {}", attempt.candidate.place, attempt.failure);
        match told.last_mut() {
            Some((last, times)) if *last == text => *times += 1,
            _ => told.push((text, 1)),
        }
    }
    let each =
        told.into_iter().map(|(text, times)| if times == 1 { text } else { format!("{text} ({times} attempts)") });
    each.collect::<Vec<_>>().join("; ")
}
