//! The decisions: which digest a tag may have.

use tidegate_sdk::{Denial, Finding, Pair, Request, Rule, call, clock, date, image, log, metrics, state};

use crate::ledger::Record;
use crate::rules::{Moved, Rules, WhenFull};

/// Media types of what lists images for several platforms.
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Which digest a tag stands for, where it is pinned: what the operator accepted last, else what was seen first.
pub fn judge(rules: &Rules, request: &Request) -> Rule {
    if rules.moved(request) != Moved::Pin {
        return Rule::Pass;
    }
    if let Some(digest) = rules.accepted(request).next_back() {
        return Rule::Pin(digest.to_owned());
    }
    match Record::get(request) {
        Ok(Some(record)) => Rule::Pin(record.digest),
        // Where the ledger fails, the inspection says so.
        Ok(None) | Err(_) => Rule::Pass,
    }
}

/// Decides about the manifest under inspection.
pub fn inspect(rules: &Rules, request: &Request) -> Finding {
    let moved = rules.moved(request);
    if moved == Moved::Allow {
        return Finding::Release;
    }
    let Some(target) = image::target() else {
        let message = format!("{request} is denied: the host shows no manifest to inspect");
        return Denial { status: 503, ..Denial::new(message) }.into();
    };
    let seen = Record {
        digest: target.digest.clone(),
        since_ms: clock::now_ms(),
        is_chosen: !INDEXES.contains(&target.media_type.as_str()) && !takes_indexes(),
        told: None,
    };
    let record = match seen.clone().set_once(request) {
        Ok(record) => record,
        Err(error) => return not_taken_down(rules, request, error),
    };
    if record.digest == seen.digest || image::parents().contains(&record.digest) {
        // The same, or what the registry chose from it for a client that takes no indexes.
        return Finding::Release;
    }
    let is_listed = || image::layers().iter().any(|listed| listed.digest == record.digest);
    let is_unfolded = record.is_chosen && INDEXES.contains(&target.media_type.as_str()) && is_listed();
    if is_unfolded || rules.accepted(request).any(|digest| digest == seen.digest) {
        log::info(&format!("{request} is {} from now on, and was {}", seen.digest, record.digest));
        return match seen.set(request) {
            Ok(()) => Finding::Release,
            Err(error) => not_taken_down(rules, request, error),
        };
    }
    react(rules, request, moved, &record, &seen.digest)
}

/// A tag moved, and nobody has accepted it.
fn react(rules: &Rules, request: &Request, moved: Moved, record: &Record, digest: &str) -> Finding {
    metrics::increment("moved", &[pair("reaction", &moved.to_string())], 1);
    let (first, since) = (&record.digest, date::show(record.since_ms));
    let way_out = format!("\"{request}@{digest}\" in \"accept\" of {}", rules.file);
    let message = format!("{request} moved: it is {digest}, and was {first} since {since}");
    // The first time that a digest is seen there; others are told by the counter.
    if record.told.as_deref() != Some(digest) {
        log::warn(&format!("{message}; it is {moved}; to accept it, write {way_out}"));
        let told = Record { told: Some(digest.to_owned()), ..record.clone() };
        if let Err(error) = told.set(request) {
            log::debug(&format!("that this was told cannot be taken down: {}", error.name()));
        }
    }
    if moved == Moved::Warn {
        call::warn(&message);
        return Finding::Release;
    }
    Finding::deny(format!("{message}; to accept it, the operator writes {way_out}"))
}

/// Whether the client takes indexes. One that says nothing takes anything.
fn takes_indexes() -> bool {
    let accept = call::accept();
    let takes = |accept: &String| INDEXES.iter().any(|index| accept.contains(index)) || accept.contains("*/*");
    accept.is_empty() || accept.iter().any(takes)
}

fn not_taken_down(rules: &Rules, request: &Request, error: state::Error) -> Finding {
    let is_full = error == state::Error::TooManyKeys;
    metrics::increment("not_taken_down", &[pair("reason", if is_full { "full" } else { "unavailable" })], 1);
    if is_full && rules.when_full == WhenFull::Release {
        log::warn(&format!("{request} is not guarded: the ledger is full (when_full of {})", rules.file));
        return Finding::Release;
    }
    let reason = if is_full { "is full" } else { "cannot be used" };
    let message = format!("{request} is denied: whether it moved is not known, since the ledger of tags {reason}");
    Denial { status: 503, ..Denial::new(message) }.into()
}

fn pair(key: &str, value: &str) -> Pair {
    Pair { key: key.to_owned(), value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing::{self, host};
    use tidegate_sdk::{Descriptor, File};

    const APP: &str = "quay.io/team/app:1";
    const ONE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
    const THREE: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    fn rules(text: &str) -> Rules {
        Rules::parse(&File { name: "50-tag-guard.toml".to_owned(), text: text.to_owned() }).expect("a configuration")
    }

    fn descriptor(media_type: &str, digest: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: 1,
            artifact_type: None,
            platform: None,
            annotations: Vec::new(),
        }
    }

    /// A tag turns out to be an image. The message of the denial; none: released.
    fn denied(rules: &Rules, image: &str, digest: &str) -> Option<String> {
        denied_of(rules, image, descriptor(MANIFEST, digest))
    }

    fn denied_of(rules: &Rules, image: &str, target: Descriptor) -> Option<String> {
        host(|host| {
            host.image.target = Some(target);
            host.warnings.clear();
        });
        match inspect(rules, &testing::request(image)) {
            Finding::Release => None,
            Finding::Deny(denial) => Some(denial.message),
            Finding::Hold(_) => panic!("never said"),
        }
    }

    #[test]
    fn a_tag_that_moved_is_denied_until_it_is_accepted() {
        let deny = rules("moved = \"deny\"");
        assert_eq!(denied(&deny, APP, ONE), None);
        assert_eq!(denied(&deny, APP, ONE), None);
        let expected = format!(
            "{APP} moved: it is {TWO}, and was {ONE} since 2023-11-14 22:13 UTC; to accept it, the operator writes \
             \"{APP}@{TWO}\" in \"accept\" of 50-tag-guard.toml"
        );
        for _ in 0..2 {
            assert_eq!(denied(&deny, APP, TWO), Some(expected.clone()));
        }
        let told = host(|host| host.log.clone());
        assert_eq!(told.len(), 1, "told once: {told:?}");
        assert_eq!(denied(&deny, APP, ONE), None, "back where it was");
        assert_eq!(denied(&deny, &format!("quay.io/team/app@{TWO}"), TWO), None, "a digest does not move");
        assert_eq!(denied(&deny, "quay.io/team/app:2", TWO), None, "another tag");
        let accepting = rules(&format!("moved = \"deny\"\naccept = [\"{APP}@{TWO}\"]"));
        assert!(denied(&accepting, APP, THREE).is_some());
        assert_eq!(denied(&accepting, APP, TWO), None);
        assert!(denied(&accepting, APP, ONE).is_some(), "it is the new one from now on");
        assert_eq!(denied(&deny, APP, TWO), None, "also once the line is gone");
        assert_eq!(host(|host| host.metric("moved{reaction=\"denied\"}")).as_deref(), Some("4"));
    }

    #[test]
    fn a_move_is_warned_of_and_served() {
        let warn = rules("moved = \"warn\"");
        let warnings = || host(|host| host.warnings.clone());
        assert_eq!(denied(&warn, APP, ONE), None);
        assert!(warnings().is_empty());
        for _ in 0..2 {
            assert_eq!(denied(&warn, APP, TWO), None);
            assert_eq!(warnings(), [format!("{APP} moved: it is {TWO}, and was {ONE} since 2023-11-14 22:13 UTC")]);
        }
        assert_eq!(host(|host| host.log.len()), 1);
        assert_eq!(denied(&warn, APP, ONE), None);
        assert!(warnings().is_empty());
    }

    #[test]
    fn a_tag_is_pinned_to_the_first_digest_or_to_what_is_accepted() {
        let pin = rules("moved = \"pin\"");
        let rule = |rules: &Rules| judge(rules, &testing::request(APP));
        assert_eq!(rule(&pin), Rule::Pass);
        assert_eq!(denied(&pin, APP, ONE), None);
        assert_eq!(rule(&pin), Rule::Pin(ONE.to_owned()));
        assert!(denied(&pin, APP, TWO).is_some(), "where the host does not pin, nothing else is served");
        let accepting = rules(&format!("moved = \"pin\"\naccept = [\"{APP}@{TWO}\", \"{APP}@{THREE}\"]"));
        assert_eq!(rule(&accepting), Rule::Pin(THREE.to_owned()));
        assert_eq!(denied(&accepting, APP, THREE), None);
        assert_eq!(rule(&pin), Rule::Pin(THREE.to_owned()));
        assert_eq!(rule(&rules("moved = \"deny\"")), Rule::Pass);
        assert_eq!(judge(&pin, &testing::request("quay.io/team/app:latest")), Rule::Pass);
    }

    #[test]
    fn a_child_of_the_index_is_no_move() {
        let deny = rules("moved = \"deny\"");
        assert_eq!(denied_of(&deny, APP, descriptor(INDEXES[0], ONE)), None);
        host(|host| host.image.parents = vec![THREE.to_owned(), ONE.to_owned()]);
        assert_eq!(denied(&deny, APP, TWO), None);
        host(|host| host.image.parents = vec![THREE.to_owned()]);
        assert!(denied(&deny, APP, TWO).is_some(), "a child of another index");
    }

    #[test]
    fn an_index_that_lists_the_image_is_a_move_unless_the_first_client_took_no_indexes() {
        let deny = rules("moved = \"deny\"");
        let accept = |types: &[&str]| {
            let types = types.iter().map(|&it| it.to_owned()).collect();
            host(|host| host.headers.insert("accept".to_owned(), types));
        };
        let (taker, other) = ("quay.io/team/app:1", "quay.io/team/app:2");
        accept(&[MANIFEST]);
        assert_eq!(denied(&deny, other, ONE), None);
        accept(&[MANIFEST, INDEXES[0]]);
        assert_eq!(denied(&deny, taker, ONE), None);
        host(|host| host.image.layers = vec![descriptor(MANIFEST, THREE), descriptor(MANIFEST, ONE)]);
        // An attacker may list the good image beside a bad one.
        assert!(denied_of(&deny, taker, descriptor(INDEXES[0], TWO)).is_some());
        assert_eq!(denied_of(&deny, other, descriptor(INDEXES[0], TWO)), None);
        host(|host| host.image.parents = vec![TWO.to_owned()]);
        assert_eq!(denied(&deny, other, ONE), None, "a client of the old kind again");
        host(|host| {
            host.image.parents.clear();
            host.image.layers = vec![descriptor(MANIFEST, ONE)];
        });
        assert!(denied_of(&deny, other, descriptor(INDEXES[0], THREE)).is_some(), "it unfolds once");
    }

    #[test]
    fn a_full_ledger_guards_what_it_knows() {
        let (release, deny) = (rules("moved = \"deny\""), rules("moved = \"deny\"\nwhen_full = \"deny\""));
        assert_eq!(denied(&deny, APP, ONE), None);
        for at in 1..10_000 {
            state::set(&at.to_string(), "", None).expect("room");
        }
        let other = "quay.io/team/app:2";
        assert_eq!(denied(&release, other, ONE), None);
        let message = denied(&deny, other, ONE).expect("denied");
        assert!(message.contains("the ledger of tags is full"), "{message}");
        for rules in [&release, &deny] {
            assert_eq!(denied(rules, APP, ONE), None);
            assert!(denied(rules, APP, TWO).expect("denied").contains("moved"));
        }
        host(|host| host.state_failure = Some(state::Error::Unavailable));
        let message = denied(&release, APP, ONE).expect("denied");
        assert!(message.contains("the ledger of tags cannot be used"), "{message}");
    }
}
