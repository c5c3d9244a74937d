//! What is held, until when, and what is not.

use tidegate_sdk::testing::{self, host};
use tidegate_sdk::{Descriptor, File, Finding, state};

use super::{Rules, inspect};

const APP: &str = "quay.io/team/app:1";
const ONE: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const OTHER: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

fn rules(text: &str) -> Rules {
    Rules::parse(&File { name: "30-cooldown.toml".to_owned(), text: text.to_owned() }).expect("a configuration")
}

/// Seconds and message of the hold; none: released.
fn held(rules: &Rules, image: &str, digest: &str) -> Option<(u32, String)> {
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: digest.to_owned(),
        size: 1,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
    };
    host(|host| host.image.target = Some(target));
    match inspect(rules, &testing::request(image)) {
        Finding::Release => None,
        Finding::Hold(hold) => Some((hold.for_secs, hold.message)),
        Finding::Deny(denial) => panic!("{denial:?}"),
    }
}

fn pass(ms: u64) {
    host(|host| host.now_ms += ms);
}

#[test]
fn a_new_image_is_held_until_its_days_are_over() {
    let rules = rules("days = 7");
    let (secs, message) = held(&rules, APP, ONE).expect("held");
    assert_eq!(secs, 7 * 86_400);
    let expected = format!(
        "{APP} is held until 2023-11-21 22:13 UTC: {ONE} was first seen on 2023-11-14 22:13 UTC, and 30-cooldown.toml \
         asks for 7 days; to have it now, the operator writes \"quay.io/team/app@{ONE}\" in \"except\" of 30-cooldown.toml"
    );
    assert_eq!(message, expected);
    pass(6 * DAY_MS + 23 * HOUR_MS);
    assert_eq!(held(&rules, APP, ONE).expect("held").0, 3600, "by what was taken down, not from now on");
    let by_digest = format!("quay.io/team/app@{ONE}");
    assert_eq!(held(&rules, &by_digest, ONE).expect("held").0, 3600, "a digest is no way round");
    assert_eq!(held(&rules, "quay.io/team/app:2", ONE).expect("held").0, 3600, "nor is another tag");
    pass(HOUR_MS);
    assert_eq!(held(&rules, APP, ONE), None);
    assert_eq!(held(&rules, &by_digest, ONE), None);
    assert!(held(&rules, APP, OTHER).is_some(), "the tag moved to a new image");
    pass(400 * DAY_MS);
    assert_eq!(held(&rules, APP, ONE), None);
    pass(400 * DAY_MS);
    assert_eq!(held(&rules, APP, ONE), None, "also when its own key is gone");
    assert_eq!(host(|host| host.metric("first_seen{}")).as_deref(), Some("2"));
}

#[test]
fn a_rule_has_days_of_its_own() {
    let rules = rules(
        "days = 7\nask = \"#images\"\n[[rule]]\nimages = [\"quay.io/team/*\"]\ndays = 0\n[[rule]]\nimages = [\"quay.io\"]\ndays = 30",
    );
    assert_eq!(held(&rules, APP, ONE), None);
    let (secs, message) = held(&rules, "quay.io/other:1", ONE).expect("held");
    assert_eq!(secs, 30 * 86_400);
    assert!(message.contains("the rule for \"quay.io\" of 30-cooldown.toml asks for 30 days"), "{message}");
    assert!(message.contains("to have it now, ask #images for \"quay.io/other@sha256:"), "{message}");
    assert_eq!(held(&rules, "docker.io/library/a:1", ONE).expect("held").0, 7 * 86_400);
}

#[test]
fn exceptions_are_not_held() {
    let text =
        format!("days = 7\nexcept = [\"docker.io/library/*\", \"quay.io/team/app:1\", \"quay.io/team/tool@{OTHER}\"]");
    let rules = rules(&text);
    assert_eq!(held(&rules, "docker.io/library/a:1", ONE), None);
    assert_eq!(held(&rules, "quay.io/team/tool:1", OTHER), None);
    assert!(held(&rules, "quay.io/team/tool:1", ONE).is_some());
    assert!(held(&rules, "quay.io/team/app:2", ONE).is_some());
    host(|host| host.image.parents = vec![OTHER.to_owned()]);
    assert_eq!(held(&rules, &format!("quay.io/team/tool@{ONE}"), ONE), None, "a child of an excepted index");
    assert!(held(&rules, &format!("quay.io/team/app@{ONE}"), ONE).is_some(), "in that repository only");
    assert!(held(&rules, "docker.io:443/library/a:1", ONE).is_some(), "what is opened is opened as written");
}

#[test]
fn an_excepted_tag_is_pulled_to_its_end() {
    let by_tag = rules("days = 7\nexcept = [\"quay.io/team/app:1\"]");
    let child = format!("quay.io/team/app@{OTHER}");
    assert!(held(&by_tag, &child, OTHER).is_some(), "before the tag was asked for");
    assert_eq!(held(&by_tag, APP, ONE), None);
    assert_eq!(held(&by_tag, &format!("quay.io/team/app@{ONE}"), ONE), None);
    host(|host| host.image.parents = vec![ONE.to_owned()]);
    assert_eq!(held(&by_tag, &child, OTHER), None);
    // An exception that is taken back holds no more.
    assert!(held(&rules("days = 7"), &child, OTHER).is_some());
    pass(DAY_MS);
    assert!(held(&by_tag, &child, OTHER).is_some());
}

#[test]
fn a_child_is_as_old_as_its_index() {
    let rules = rules("days = 7");
    assert!(held(&rules, APP, ONE).is_some());
    pass(6 * DAY_MS);
    host(|host| host.image.parents = vec![ONE.to_owned()]);
    let child = format!("quay.io/team/app@{OTHER}");
    assert_eq!(held(&rules, &child, OTHER).expect("held").0, 86_400);
    pass(DAY_MS);
    assert_eq!(held(&rules, &child, OTHER), None);
    host(|host| host.image.parents.clear());
    assert!(held(&rules, &child, OTHER).is_some(), "it was never taken down by itself");
}

#[test]
fn the_authors_date_counts_only_where_it_is_trusted() {
    let now = host(|host| host.now_ms);
    let created = |text: &str| {
        let config = format!("{{\"created\":\"{text}\"}}").into_bytes();
        host(|host| host.image.config = config);
    };
    created("2023-11-01T00:00:00Z");
    assert!(held(&rules("days = 7"), APP, ONE).is_some());
    let trusting = rules("days = 7\ntrust_created = true");
    assert_eq!(held(&trusting, APP, ONE), None);
    created("2023-11-13T22:13:20Z");
    assert_eq!(held(&trusting, APP, ONE).expect("held").0, 6 * 86_400);
    for text in ["2030-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "yesterday", "0001-01-01T00:00:00Z"] {
        created(text);
        assert_eq!(held(&trusting, APP, ONE).expect(text).0, 7 * 86_400, "{text}");
    }
    host(|host| host.image.annotations.insert(super::CREATED.to_owned(), "2023-11-01".to_owned()));
    assert_eq!(held(&trusting, APP, ONE), None);
    assert_eq!(now, host(|host| host.now_ms));
}

#[test]
fn a_full_ledger_holds_what_is_new_or_releases_it_as_configured() {
    let (holding, releasing) = (rules("days = 7"), rules("days = 7\nwhen_full = \"release\""));
    assert!(held(&holding, APP, ONE).is_some());
    for at in 1..10_000 {
        state::set(&at.to_string(), "", None).expect("room");
    }
    let (secs, message) = held(&holding, APP, OTHER).expect("held");
    assert_eq!(secs, 60);
    assert!(message.contains("the ledger of images is full"), "{message}");
    assert_eq!(held(&releasing, APP, OTHER), None);
    assert_eq!(host(|host| host.metric("not_taken_down{reason=\"full\"}")).as_deref(), Some("2"));
    assert!(held(&releasing, APP, ONE).is_some(), "what is known to be new is held");
    pass(8 * DAY_MS);
    assert_eq!(held(&holding, APP, ONE), None, "what is known to be old is released");
    host(|host| host.state_failure = Some(state::Error::Unavailable));
    for rules in [&holding, &releasing] {
        let (_, message) = held(rules, APP, ONE).expect("held");
        assert!(message.contains("cannot be used"), "{message}");
    }
}

#[test]
fn a_clock_that_goes_back_holds_no_longer_than_the_days() {
    let rules = rules("days = 7");
    assert!(held(&rules, APP, ONE).is_some());
    host(|host| host.now_ms -= 100 * DAY_MS);
    assert_eq!(held(&rules, APP, ONE).expect("held").0, 7 * 86_400);
}
