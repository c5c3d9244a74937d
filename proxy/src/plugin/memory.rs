//! Answers of one version of a plugin, remembered for equal facts. It dies with the version. Whole facts are compared,
//! never only their hashes: what is remembered is a policy.

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwapOption, Guard};
use foldhash::fast::RandomState;

use super::facts::{Facts, Identity, Question};
use super::hints::Depends;
use super::ruling::{Routes, Ruling, Verdict};
use crate::oci::{Asked, Candidate, Content, Pull};

/// Answers that are remembered: a power of two.
const ENTRIES: usize = 4096;
/// Longest text of one, beside the names, which are bounded by themselves: 8 MiB in all at the very most. Units: bytes.
const TEXT_MAX: usize = 2048;

/// One seed for the process, unknown to clients.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// What was answered. Each answer has two places that it may be in, and takes that of an older one where both are taken:
/// it is bounded without ever being cleared.
pub(super) struct Memory {
    depends: Depends,
    places: Box<[ArcSwapOption<Remembered>]>,
}

/// An answer, and the facts that it holds for.
pub(super) struct Remembered {
    hash: u64,
    pull: Arc<Pull>,
    /// What routing was given; none: it is of admission.
    candidates: Option<Vec<Candidate>>,
    client: Option<(IpAddr, Option<Identity>, String)>,
    headers: Option<Headers>,
    pub ruling: Ruling,
}

/// `Accept`, and the headers that the operator lets through.
type Headers = (Vec<String>, Vec<(String, String)>);

/// What a hook is asked, as far as answers may be remembered for it.
pub(super) struct Key<'a> {
    hash: u64,
    pull: &'a Arc<Pull>,
    facts: &'a Facts,
    candidates: Option<&'a [Candidate]>,
}

impl<'a> Key<'a> {
    /// Of the admission hook; none: nothing is remembered for this question.
    pub fn admission(question: &'a Question) -> Option<Self> {
        Self::of(question, None)
    }

    /// Of the routing hook, with the candidates that it is given.
    pub fn routing(question: &'a Question, candidates: &'a [Candidate]) -> Option<Self> {
        Self::of(question, Some(candidates))
    }

    fn of(question: &'a Question, candidates: Option<&'a [Candidate]>) -> Option<Self> {
        let Asked::Pull(pull) = &question.asked else { return None };
        if question.dry_run || question.facts.asks_anew || question.image.is_some() {
            return None;
        }
        let mut hasher = SEED.build_hasher();
        pull.place.hash(&mut hasher);
        match &pull.content {
            Content::Manifest(reference) => reference.hash(&mut hasher),
            Content::Blob(digest) | Content::Referrers(digest) => digest.hash(&mut hasher),
            Content::Tags => {}
        }
        std::mem::discriminant(&pull.content).hash(&mut hasher);
        (pull.method as u8, pull.addressing as u8).hash(&mut hasher);
        candidates.is_some().hash(&mut hasher);
        candidates.unwrap_or_default().iter().for_each(|candidate| candidate.place.hash(&mut hasher));
        Some(Self { hash: hasher.finish(), pull, facts: &question.facts, candidates })
    }

    /// The hash of all that an answer depends on.
    fn hash(&self, depends: Depends) -> u64 {
        if depends == Depends::default() {
            return self.hash;
        }
        let mut hasher = SEED.build_hasher();
        self.hash.hash(&mut hasher);
        if depends.client {
            self.facts.client.hash(&mut hasher);
            let identity = self.facts.identity.as_ref();
            identity.map(|Identity { subject, issuer, groups }| (subject, issuer, groups)).hash(&mut hasher);
            self.facts.user_agent.hash(&mut hasher);
        }
        if depends.headers {
            self.facts.accept.hash(&mut hasher);
            self.facts.headers.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Units: bytes.
    fn text(&self, depends: Depends, ruling: &Ruling) -> usize {
        let pairs =
            |pairs: &[(String, String)]| pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let candidates = |candidates: &[Candidate]| -> usize {
            let of = |it: &Candidate| {
                it.place.registry.as_str().len() + it.place.repository.as_str().len() + pairs(&it.options)
            };
            candidates.iter().map(|it| size_of::<Candidate>() + of(it)).sum()
        };
        let mut length = candidates(self.candidates.unwrap_or_default());
        if depends.client {
            length += self.facts.user_agent.len();
            length += self.facts.identity.as_ref().map_or(0, |Identity { subject, issuer, groups }| {
                subject.len()
                    + issuer.len()
                    + groups.iter().map(|group| size_of::<String>() + group.len()).sum::<usize>()
            });
        }
        if depends.headers {
            length += self.facts.accept.iter().map(|accept| size_of::<String>() + accept.len()).sum::<usize>();
            length += self.facts.headers.len() * size_of::<(String, String)>() + pairs(&self.facts.headers);
        }
        length
            + match ruling {
                Ruling::Verdict(Verdict::Deny(denial)) | Ruling::Routes(Routes::Deny(denial)) => denial.message.len(),
                Ruling::Routes(Routes::To(given)) => candidates(given),
                _ => 0,
            }
    }
}

impl Remembered {
    fn is_of(&self, key: &Key<'_>, hash: u64) -> bool {
        let same_pull = |one: &Pull, other: &Pull| {
            one.place == other.place
                && one.content == other.content
                && one.method == other.method
                && one.addressing == other.addressing
        };
        let facts = key.facts;
        self.hash == hash
            && (Arc::ptr_eq(&self.pull, key.pull) || same_pull(&self.pull, key.pull))
            && self.candidates.as_deref() == key.candidates
            && self.client.as_ref().is_none_or(|(address, identity, agent)| {
                *address == facts.client && *identity == facts.identity && *agent == facts.user_agent
            })
            && self
                .headers
                .as_ref()
                .is_none_or(|(accept, headers)| *accept == facts.accept && *headers == facts.headers)
    }
}

impl Memory {
    pub fn new(depends: Depends) -> Self {
        Self { depends, places: (0..ENTRIES).map(|_| ArcSwapOption::empty()).collect() }
    }

    pub fn depends(&self) -> Depends {
        self.depends
    }

    /// What was answered to the same.
    pub fn get(&self, key: &Key<'_>) -> Option<Guard<Option<Arc<Remembered>>>> {
        let hash = key.hash(self.depends);
        self.places_of(hash).into_iter().find_map(|place| {
            let found = place.load();
            found.as_ref().is_some_and(|found| found.is_of(key, hash)).then_some(found)
        })
    }

    /// Remembers an answer; one that is too long is not.
    pub fn put(&self, key: &Key<'_>, ruling: &Ruling) {
        if key.text(self.depends, ruling) > TEXT_MAX {
            return;
        }
        let (facts, hash) = (key.facts, key.hash(self.depends));
        let remembered = Remembered {
            hash,
            pull: key.pull.clone(),
            candidates: key.candidates.map(<[_]>::to_vec),
            client: self.depends.client.then(|| (facts.client, facts.identity.clone(), facts.user_agent.clone())),
            headers: self.depends.headers.then(|| (facts.accept.clone(), facts.headers.clone())),
            ruling: ruling.clone(),
        };
        let [one, other] = self.places_of(hash);
        let place =
            if one.load().as_ref().is_none_or(|there| there.hash == hash || hash & 1 == 0) { one } else { other };
        place.store(Some(Arc::new(remembered)));
    }

    fn places_of(&self, hash: u64) -> [&ArcSwapOption<Remembered>; 2] {
        // Two parts of the hash that have nothing to do with each other, nor with its lowest bit.
        [hash >> 8, hash >> 36].map(|part| &self.places[usize::try_from(part).unwrap_or(0) & (ENTRIES - 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Addressing, Code, Denial, Digest, Method, Place, Reference, Registry, Repository, Tag};
    use crate::plugin::Given;

    fn place(repository: &str) -> Place {
        Place {
            registry: Registry::parse("docker.io").expect("a registry"),
            repository: Repository::parse(repository).expect("a repository"),
        }
    }

    fn pull(repository: &str, tag: &str) -> Pull {
        let content = Content::Manifest(Reference::Tag(Tag::parse(tag).expect("a tag")));
        Pull { place: place(repository), content, method: Method::Get, addressing: Addressing::Ns }
    }

    fn facts() -> Facts {
        let accept = vec!["a/b".to_owned()];
        let headers = vec![("x-team".to_owned(), "red".to_owned())];
        Facts::new("1".to_owned(), IpAddr::from([10, 0, 0, 7]), "agent".to_owned(), accept, headers)
    }

    fn question(pull: Pull, facts: Facts) -> Question {
        let lookups = Arc::new(Given::default());
        Question { asked: pull.into(), facts: Arc::new(facts), lookups, image: None, dry_run: false }
    }

    fn deny(message: &str) -> Ruling {
        let (code, plugin, message) = (Code::Denied, "p".to_owned(), message.to_owned());
        Ruling::Verdict(Verdict::Deny(Denial { status: 403, code, plugin, message, retry_after: None }))
    }

    const ANY: Depends = Depends { client: false, headers: false };
    const CLIENT: Depends = Depends { client: true, headers: false };
    const HEADERS: Depends = Depends { client: false, headers: true };

    #[test]
    fn an_answer_is_remembered_for_the_same_and_for_nothing_else() {
        let first = question(pull("library/a", "1"), facts());
        let memory = Memory::new(ANY);
        let key = Key::admission(&first).expect("it may be remembered");
        assert!(memory.get(&key).is_none());
        memory.put(&key, &deny("no"));
        let found = |question: &Question| {
            let key = Key::admission(question).expect("it may be remembered");
            memory.get(&key).and_then(|found| found.as_ref().map(|found| found.ruling.clone()))
        };
        assert_eq!(found(&first), Some(deny("no")));
        assert_eq!(found(&question(pull("library/a", "1"), facts())), Some(deny("no")));
        let of = |content| Pull { content, ..pull("library/a", "1") };
        let digest = Digest::sha256_of(b"");
        for other in [
            pull("library/b", "1"),
            pull("library/a", "2"),
            Pull { method: Method::Head, ..pull("library/a", "1") },
            Pull { addressing: Addressing::Path, ..pull("library/a", "1") },
            of(Content::Manifest(Reference::Digest(digest))),
            of(Content::Blob(digest)),
            of(Content::Referrers(digest)),
            of(Content::Tags),
        ] {
            assert_eq!(found(&question(other.clone(), facts())), None, "{other}");
        }
        let candidates = [Candidate::plain(place("library/a"))];
        let routing = Key::routing(&first, &candidates).expect("it may be remembered");
        assert!(memory.get(&routing).is_none());
        memory.put(&routing, &Ruling::Routes(Routes::Pass));
        assert!(memory.get(&routing).is_some());
        let more = [candidates[0].clone(), Candidate::plain(place("mirror/a"))];
        assert!(memory.get(&Key::routing(&first, &more).expect("it may be")).is_none());
        assert!(memory.get(&Key::routing(&first, &[]).expect("it may be")).is_none());
        assert_eq!(found(&first), Some(deny("no")));
    }

    #[test]
    fn an_answer_for_one_client_is_none_for_another() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            question(pull("library/a", "1"), facts)
        };
        let somebody = Identity { subject: "a".to_owned(), issuer: "i".to_owned(), groups: vec!["g".to_owned()] };
        let clients = [
            with(|_| {}),
            with(|facts| facts.client = IpAddr::from([10, 0, 0, 8])),
            with(|facts| facts.user_agent.push('x')),
            with(|facts| {
                facts.identity = Some(Identity { subject: "a".to_owned(), issuer: "i".to_owned(), groups: Vec::new() });
            }),
            {
                let mut facts = facts();
                facts.identity = Some(somebody);
                question(pull("library/a", "1"), facts)
            },
        ];
        let headers = [with(|_| {}), with(|facts| facts.accept.clear()), with(|facts| facts.headers[0].1.push('x'))];
        for (depends, questions) in [(CLIENT, &clients[..]), (HEADERS, &headers[..])] {
            let memory = Memory::new(depends);
            for (number, question) in questions.iter().enumerate() {
                let key = Key::admission(question).expect("it may be remembered");
                assert!(memory.get(&key).is_none(), "{number}");
                memory.put(&key, &deny(&number.to_string()));
            }
            for (number, question) in questions.iter().enumerate() {
                let key = Key::admission(question).expect("it may be remembered");
                let found = memory.get(&key).and_then(|found| found.as_ref().map(|found| found.ruling.clone()));
                assert_eq!(found, Some(deny(&number.to_string())));
            }
        }
        // What it does not depend on does not keep answers apart.
        let memory = Memory::new(HEADERS);
        memory.put(&Key::admission(&clients[0]).expect("it may be"), &deny("no"));
        assert!(memory.get(&Key::admission(&clients[1]).expect("it may be")).is_some());
    }

    #[test]
    fn it_is_bounded() {
        let memory = Memory::new(ANY);
        for number in 0..3 * ENTRIES {
            let question = question(pull("library/a", &number.to_string()), facts());
            let key = Key::admission(&question).expect("it may be remembered");
            memory.put(&key, &deny("no"));
            assert!(memory.get(&key).is_some());
        }
        let first = question(pull("library/b", "1"), facts());
        let key = Key::admission(&first).expect("it may be remembered");
        memory.put(&key, &deny(&"n".repeat(TEXT_MAX + 1)));
        assert!(memory.get(&key).is_none());
    }

    #[test]
    fn what_changes_nothing_or_is_to_be_asked_is_not_remembered() {
        let question = question(pull("library/a", "1"), facts());
        assert!(Key::admission(&Question { dry_run: true, ..question.clone() }).is_none());
        let mut facts = facts();
        facts.asks_anew = true;
        assert!(Key::admission(&Question { facts: Arc::new(facts), ..question }).is_none());
    }
}
