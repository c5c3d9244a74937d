//! Whether a password is right: hashed with bcrypt, few at once, and remembered for a while, so that neither a pull of
//! many layers nor a flood of wrong passwords takes the machine.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::Semaphore;

use super::limit::Limit;
use crate::config::Users;
use crate::oci::Credentials;

/// How long a password that was right is not hashed again.
const REMEMBERED: Duration = Duration::from_mins(5);
/// Passwords that are remembered.
const REMEMBERED_MAX: usize = 4096;
/// Logins that wait for a thread; more are told to come again.
const WAITING_MAX: usize = 256;
/// When they are to come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// A user and a password under a key that only this process has, bound to the hash in the file: when that changes, it
/// is another one.
type Fingerprint = [u8; 32];

/// Why somebody is not let in.
#[derive(PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is no such user, or the password is another.
    Wrong,
    /// Too many have failed, or want to log in at once.
    Wait(Duration),
}

/// The logins of this process.
pub struct Logins {
    key: hmac::Key,
    remembered: Mutex<HashMap<Fingerprint, Instant>>,
    limit: Arc<Limit>,
    /// Hashing takes a core for a while: one of them at least is left to the pulls.
    at_once: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Logins {
    pub fn new() -> Self {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("the system gives random bytes");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let at_once = Arc::new(Semaphore::new((cores / 2).max(1)));
        let waiting = Semaphore::new(WAITING_MAX);
        Self { key, remembered: Mutex::default(), limit: Arc::default(), at_once, waiting }
    }

    /// Whether a user's password is right.
    ///
    /// # Errors
    /// It is not, or it cannot be looked at now.
    pub async fn verify(&self, users: &Arc<Users>, shown: &Credentials, client: IpAddr) -> Result<(), Refusal> {
        let hash = users.get(&shown.user).map(|user| user.hash.clone());
        let fingerprint = hash.as_ref().map(|hash| self.fingerprint(hash, shown));
        if fingerprint.is_some_and(|fingerprint| self.remembers(&fingerprint)) {
            return Ok(());
        }
        self.may_try(client, &shown.user)?;
        let Ok(_waiting) = self.waiting.try_acquire() else { return Err(Refusal::Wait(COME_AGAIN)) };
        let Ok(turn) = self.at_once.clone().acquire_owned().await else { return Err(Refusal::Wait(COME_AGAIN)) };
        // Another request may have found out meanwhile.
        if fingerprint.is_some_and(|fingerprint| self.remembers(&fingerprint)) {
            return Ok(());
        }
        self.may_try(client, &shown.user)?;
        // Who is not there takes as long as who is: how long it takes tells nobody which users there are.
        let known = hash.is_some();
        let (hash, shown, limit) =
            (hash.or_else(|| users.any_hash()).unwrap_or_default(), shown.clone(), self.limit.clone());
        let hashing = tokio::task::spawn_blocking(move || {
            let right = bcrypt::verify(&shown.password, &hash).unwrap_or(false) && known;
            // Counted here, and the turn held until then: who goes away meanwhile has tried all the same.
            if !right {
                limit.failed(client, &shown.user, Instant::now());
            }
            drop(turn);
            right
        });
        match (hashing.await.unwrap_or(false), fingerprint) {
            (true, Some(fingerprint)) => {
                self.remember(fingerprint);
                Ok(())
            }
            _ => Err(Refusal::Wrong),
        }
    }

    /// Somebody else refuses a user's password.
    pub fn refused(&self, client: IpAddr, user: &str) {
        self.limit.failed(client, user, Instant::now());
    }

    /// When a login may be tried; none: now.
    pub fn wait(&self, client: IpAddr, user: &str) -> Option<Duration> {
        self.limit.wait(client, user, Instant::now())
    }

    fn may_try(&self, client: IpAddr, user: &str) -> Result<(), Refusal> {
        self.wait(client, user).map_or(Ok(()), |wait| Err(Refusal::Wait(wait)))
    }

    fn fingerprint(&self, hash: &str, shown: &Credentials) -> Fingerprint {
        let mut keyed = hmac::Context::with_key(&self.key);
        // Neither a hash nor a user has a line end in it.
        for part in [hash, "\n", &shown.user, "\n", &shown.password] {
            keyed.update(part.as_bytes());
        }
        keyed.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn remembers(&self, fingerprint: &Fingerprint) -> bool {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(fingerprint).is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, fingerprint: Fingerprint) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, since| since.elapsed() < REMEMBERED);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(fingerprint, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn users(password: &str) -> Arc<Users> {
        let hash = bcrypt::hash(password, 4).expect("a hash");
        Arc::new(Users::parse(&format!("alice:{hash}\n"), None, Path::new("f")).expect("users"))
    }

    fn shown(user: &str, password: &str) -> Credentials {
        Credentials { user: user.to_owned(), password: password.to_owned() }
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_until_the_file_changes() {
        let (logins, home) = (Logins::new(), IpAddr::from([127, 0, 0, 1]));
        let before = users("secret");
        assert_eq!(logins.verify(&before, &shown("alice", "secret"), home).await, Ok(()));
        let fingerprint = logins.fingerprint(&before.get("alice").expect("alice").hash, &shown("alice", "secret"));
        assert!(logins.remembers(&fingerprint));
        // The same password, hashed anew, is looked at anew.
        let after = users("secret");
        let fingerprint = logins.fingerprint(&after.get("alice").expect("alice").hash, &shown("alice", "secret"));
        assert!(!logins.remembers(&fingerprint));
        let changed = users("other");
        assert_eq!(logins.verify(&changed, &shown("alice", "secret"), home).await, Err(Refusal::Wrong));
        assert_eq!(logins.verify(&changed, &shown("bob", "other"), home).await, Err(Refusal::Wrong));
    }

    #[tokio::test]
    async fn who_fails_too_often_waits_and_who_is_remembered_does_not() {
        let (logins, home) = (Logins::new(), IpAddr::from([127, 0, 0, 1]));
        let users = users("secret");
        assert_eq!(logins.verify(&users, &shown("alice", "secret"), home).await, Ok(()));
        let mut wrong = 0;
        let wait = loop {
            match logins.verify(&users, &shown("alice", &wrong.to_string()), home).await {
                Err(Refusal::Wrong) => wrong += 1,
                Err(Refusal::Wait(wait)) => break wait,
                Ok(()) => panic!("it is wrong"),
            }
        };
        assert_eq!(wrong, 10);
        assert!(wait > Duration::from_secs(50), "{wait:?}");
        assert_eq!(logins.verify(&users, &shown("alice", "secret"), home).await, Ok(()), "she is known");
        let elsewhere = IpAddr::from([127, 0, 0, 2]);
        assert_eq!(logins.verify(&users, &shown("bob", "x"), elsewhere).await, Err(Refusal::Wrong));
    }

    #[tokio::test]
    async fn a_flood_of_wrong_passwords_hashes_few() {
        let logins = Arc::new(Logins::new());
        let users = users("secret");
        let tries = (0..1000).map(|at: u16| {
            let (logins, users) = (logins.clone(), users.clone());
            tokio::spawn(async move {
                logins.verify(&users, &shown("alice", &at.to_string()), IpAddr::from([10, 0, 0, 1])).await
            })
        });
        let mut wrong = 0;
        for tried in tries.collect::<Vec<_>>() {
            wrong += usize::from(tried.await.expect("no panic") == Err(Refusal::Wrong));
        }
        // While the tenth fails, as many are looked at as there are turns.
        let turns = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        assert!((10..10 + turns).contains(&wrong), "{wrong}");
    }
}
