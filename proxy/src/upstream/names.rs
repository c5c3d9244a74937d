//! The system's resolver: one question at a time for each name, bounded in time and number, and what may be dialled
//! of its answers.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::connect::dns::Name;
use tokio::sync::Semaphore;
use tower_service::Service;

use crate::config::is_public;

/// How long an answer holds, a bad one too: connections that are made at once ask once.
const HOLDS: Duration = Duration::from_secs(1);
/// Names that are remembered; past it all are forgotten, which costs a question each.
const NAMES_MAX: usize = 1024;
/// Questions at once. The system's resolver blocks its thread for as long as it pleases (with most settings half a
/// minute), and files are read on the same threads: a resolver that is dead must not take them all.
const QUESTIONS_MAX: usize = 32;

/// What the resolver said, and when.
type Said = Option<(Instant, Result<Vec<SocketAddr>, String>)>;
type Slot = Arc<tokio::sync::Mutex<Said>>;

/// All names of this process.
pub(super) struct Names {
    slots: Mutex<HashMap<String, Slot>>,
    questions: Arc<Semaphore>,
    /// How long one question may take.
    limit: Duration,
}

impl Names {
    pub fn new(limit: Duration) -> Self {
        Self { slots: Mutex::default(), questions: Arc::new(Semaphore::new(QUESTIONS_MAX)), limit }
    }

    fn slot(&self, name: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= NAMES_MAX && !slots.contains_key(name) {
            slots.clear();
        }
        slots.entry(name.to_owned()).or_default().clone()
    }

    async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, String> {
        let slot = self.slot(name);
        let mut said = slot.lock().await;
        if let Some((at, answer)) = said.as_ref().filter(|(at, _)| at.elapsed() < HOLDS) {
            let _ = at;
            return answer.clone();
        }
        let answer = self.ask(name).await;
        said.insert((Instant::now(), answer)).1.clone()
    }

    async fn ask(&self, name: &str) -> Result<Vec<SocketAddr>, String> {
        let asked = async {
            let Ok(permit) = self.questions.clone().acquire_owned().await else {
                return Err(format!("{name} cannot be resolved: the program ends"));
            };
            let question = (name.to_owned(), 0);
            let asked = tokio::task::spawn_blocking(move || {
                // Kept until the resolver has answered, also when nobody waits for it any more.
                let _held = permit;
                question.to_socket_addrs().map(Iterator::collect)
            });
            match asked.await {
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(err)) => Err(format!("{name} cannot be resolved: {err}")),
                Err(_) => Err(format!("{name} cannot be resolved: the program ends")),
            }
        };
        match tokio::time::timeout(self.limit, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("{name} cannot be resolved: the resolver does not answer within {:?}", self.limit)),
        }
    }
}

/// The resolver as a connector calls it.
#[derive(Clone)]
pub(super) struct Resolver {
    pub names: Arc<Names>,
    /// Whether only public addresses may be dialled.
    pub public_only: bool,
}

/// An address that nobody is led to.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} is no public address: it is reached when its registry is listed under [registries], or, where a redirect or a \
     token service leads there, when that registry's `redirect_hosts` names it"
)]
pub(super) struct NotPublic(pub String);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { names, public_only } = self.clone();
        Box::pin(async move {
            let name = name.as_str();
            let found = names.addresses(name).await.map_err(io::Error::other)?;
            // Those that are looked at here are those that are dialled: an answer that changes meanwhile leads nowhere.
            permitted(name, found, public_only).map(Vec::into_iter)
        })
    }
}

fn permitted(name: &str, found: Vec<SocketAddr>, public_only: bool) -> Result<Vec<SocketAddr>, io::Error> {
    let (allowed, refused): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| !public_only || is_public(address.ip()));
    match refused.first() {
        _ if !allowed.is_empty() => Ok(allowed),
        Some(address) => Err(io::Error::other(NotPublic(format!("{name} is {}, which", address.ip())))),
        None => Err(io::Error::other(format!("{name} has no address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u13_only_public_addresses_of_an_answer_are_dialled() {
        let addresses = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|one| SocketAddr::new(one.parse().expect("an address"), 0)).collect()
        };
        let mixed = addresses(&["10.0.0.1", "93.184.216.34", "::1"]);
        assert_eq!(permitted("h", mixed.clone(), true).expect("one is public"), addresses(&["93.184.216.34"]));
        assert_eq!(permitted("h", mixed.clone(), false).expect("all"), mixed);
        let err = permitted("h", addresses(&["169.254.169.254"]), true).expect_err("it is private").to_string();
        assert!(err.contains("169.254.169.254") && err.contains("[registries]"), "{err}");
        assert!(permitted("h", Vec::new(), false).is_err());
    }

    #[tokio::test]
    async fn u13_many_that_ask_for_one_name_share_an_answer_also_a_bad_one() {
        let names = Names::new(Duration::from_mins(1));
        assert!(!names.addresses("localhost").await.expect("it has one").is_empty());
        // What is known is given without a question.
        names.questions.close();
        assert!(names.addresses("localhost").await.is_ok());
        assert!(names.addresses("other.invalid").await.is_err());
        let slot = names.slot("other.invalid");
        assert!(matches!(&*slot.lock().await, Some((_, Err(_)))));
    }
}
