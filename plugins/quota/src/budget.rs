//! Budgets of pulls: so many in a window for each client, each group, or all.

use std::net::IpAddr;

use tidegate_sdk::{
    Action, Cached, Content, Denial, Identity, Pair, Request, Verdict, call, clock, key, log, metrics, state,
};

use crate::rules::{Budget, Per, Rules};

/// Bits of an IPv6 address that are one client's: a house has a whole network of them, and could count as many clients.
const NETWORK_BITS: u32 = 64;

/// Counts a pull, and denies it where a budget is spent.
///
/// What counts is a GET of a manifest, as Docker Hub counts: the layers that follow are no pulls of their own.
pub fn admit(rules: &Rules, request: &Request) -> Verdict {
    let is_pull = request.action == Action::Pull && request.content == Content::Manifest;
    if rules.budgets.is_empty() || !is_pull || call::attribute("method").is_some_and(|method| method != "GET") {
        return Verdict::Allow;
    }
    let client = call::client();
    let mut is_cached = None;
    for budget in &rules.budgets {
        if !budget.images.is_empty() && !budget.images.iter().any(|image| image.covers_on_any_port(request, None)) {
            continue;
        }
        let payers = payers(budget, client.as_ref());
        if payers.is_empty() {
            continue;
        }
        if !budget.cached && *is_cached.get_or_insert_with(|| call::cache() == Cached::Fresh) {
            continue;
        }
        for payer in payers {
            if let Some(denial) = charge(budget, &payer, request, &rules.file) {
                return denial.into();
            }
        }
    }
    Verdict::Allow
}

/// Who pays for the pull from a budget; empty: it does not bind this client.
fn payers(budget: &Budget, client: Option<&Identity>) -> Vec<String> {
    let of = |client: &Identity| client.groups.clone();
    let mut groups = client.map(of).unwrap_or_default();
    if !budget.groups.is_empty() {
        groups.retain(|group| budget.groups.contains(group));
        if groups.is_empty() {
            return Vec::new();
        }
    }
    match (budget.per, client) {
        (Per::All, _) => vec!["all".to_owned()],
        (Per::Group, _) => {
            groups.sort_unstable();
            groups.dedup();
            groups.iter().map(|group| format!("group {group}")).collect()
        }
        // Two issuers may have the same name for two people.
        (Per::Client, Some(client)) => vec![format!("client {} of {}", client.subject, client.issuer)],
        (Per::Client, None) => vec![format!("address {}", network(&call::client_address()))],
    }
}

/// An IPv4 address as it is, an IPv6 address as its network.
fn network(address: &str) -> String {
    match address.parse() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.to_string(),
            None => {
                format!("{}/{NETWORK_BITS}", std::net::Ipv6Addr::from(v6.to_bits() >> NETWORK_BITS << NETWORK_BITS))
            }
        },
        _ => address.to_owned(),
    }
}

/// Counts a pull of somebody; a denial where it is one too many.
///
/// Windows begin at multiples of their length, so that all know without a look-up when the next one does.
fn charge(budget: &Budget, payer: &str, request: &Request, file: &str) -> Option<Denial> {
    let (now_secs, window_secs) = (clock::now_ms() / 1000, u64::from(budget.window_secs));
    let (window, left_secs) = (now_secs / window_secs, window_secs - now_secs % window_secs);
    let left_secs = u32::try_from(left_secs).unwrap_or(u32::MAX);
    let name = format!("budget {} {window_secs} {window} {payer}", budget.name);
    let spent = match state::add(&key::of(&name), 1, Some(left_secs)) {
        Ok(spent) => spent,
        Err(error) => {
            // A pull that cannot be counted is no reason to deny it.
            metrics::increment("not_counted", &[pair("reason", error.name())], 1);
            log::warn(&format!("a pull of {payer} cannot be counted: {}", error.name()));
            return None;
        }
    };
    if spent <= i64::from(budget.pulls) {
        return None;
    }
    metrics::increment("denied", &[pair("budget", &budget.name)], 1);
    let Budget { name, pulls, window, .. } = budget;
    let message = format!(
        "{request} is denied: {payer} has had the {pulls} pulls in {window} of budget \"{name}\" of {file}; try again in \
         {left_secs} s"
    );
    Some(Denial::later(429, message, left_secs))
}

fn pair(key: &str, value: &str) -> Pair {
    Pair { key: key.to_owned(), value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing::{self, host};
    use tidegate_sdk::{File, Reference};

    const APP: &str = "docker.io/library/app:1";

    fn rules(text: &str) -> Rules {
        Rules::parse(&File { name: "60-quota.toml".to_owned(), text: text.to_owned() }).expect("a configuration")
    }

    /// The denial; none: allowed.
    fn denied(rules: &Rules, image: &str) -> Option<Denial> {
        match admit(rules, &testing::request(image)) {
            Verdict::Allow => None,
            Verdict::Deny(denial) => Some(denial),
            Verdict::CachedOnly => panic!("never said"),
        }
    }

    fn from(address: &str) {
        host(|host| {
            host.client = None;
            host.client_address = address.to_owned();
        });
    }

    fn by(subject: &str, groups: &[&str]) {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        let identity = Identity { subject: subject.to_owned(), issuer: "here".to_owned(), groups };
        host(|host| host.client = Some(identity));
    }

    #[test]
    fn a_client_has_so_many_pulls_in_a_window() {
        let rules = rules("[[budget]]\npulls = 2\nwindow = \"1h\"");
        // 13 minutes and 20 seconds of the hour are over.
        for _ in 0..2 {
            assert_eq!(denied(&rules, APP), None);
        }
        let denial = denied(&rules, APP).expect("a denial");
        assert_eq!(
            (denial.status, denial.code.as_str(), denial.retry_after_secs),
            (429, "TOOMANYREQUESTS", Some(2800))
        );
        let expected = "docker.io/library/app:1 is denied: address 192.0.2.1 has had the 2 pulls in 1h of budget \"1\" of \
                        60-quota.toml; try again in 2800 s";
        assert_eq!(denial.message, expected);
        from("192.0.2.2");
        assert_eq!(denied(&rules, APP), None, "another client");
        from("192.0.2.1");
        host(|host| host.now_ms += 2_799_000);
        assert!(denied(&rules, APP).is_some());
        host(|host| host.now_ms += 1_000);
        assert_eq!(denied(&rules, APP), None, "the next window");
        assert_eq!(host(|host| host.metric("denied{budget=\"1\"}")).as_deref(), Some("2"));
    }

    #[test]
    fn only_a_get_of_a_manifest_counts() {
        let rules = rules("[[budget]]\npulls = 1\nwindow = \"1h\"");
        let request = |content| Request { content, reference: Reference::None, ..testing::request(APP) };
        for content in [Content::Blob, Content::TagList, Content::Referrers] {
            for _ in 0..3 {
                assert_eq!(admit(&rules, &request(content)), Verdict::Allow, "{content:?}");
            }
        }
        let method = |method: &str| host(|host| host.attributes.insert("method".to_owned(), method.to_owned()));
        method("HEAD");
        for _ in 0..3 {
            assert_eq!(denied(&rules, APP), None);
        }
        method("GET");
        assert_eq!(denied(&rules, APP), None);
        assert!(denied(&rules, APP).is_some());
    }

    #[test]
    fn what_is_cached_counts_only_where_it_is_said() {
        let (misses, all) = (
            rules("[[budget]]\npulls = 1\nwindow = \"1h\""),
            rules("[[budget]]\nname = \"all\"\npulls = 1\nwindow = \"1h\"\ncached = true"),
        );
        host(|host| host.cached = Cached::Fresh);
        for _ in 0..3 {
            assert_eq!(denied(&misses, APP), None);
        }
        assert_eq!(denied(&all, APP), None);
        assert!(denied(&all, APP).is_some());
        host(|host| host.cached = Cached::Stale);
        assert_eq!(denied(&misses, APP), None);
        assert!(denied(&misses, APP).is_some(), "a stale copy has the registry asked");
    }

    #[test]
    fn groups_have_budgets_together() {
        let rules = rules(
            "[[budget]]\nname = \"ci\"\nper = \"group\"\ngroups = [\"ci\", \"nightly\"]\npulls = 2\nwindow = \"1h\"",
        );
        for _ in 0..5 {
            assert_eq!(denied(&rules, APP), None, "who has no group is not bound");
        }
        by("ann", &["people"]);
        for _ in 0..5 {
            assert_eq!(denied(&rules, APP), None, "nor is another group");
        }
        by("job-1", &["ci", "ci", "people"]);
        assert_eq!(denied(&rules, APP), None);
        by("job-2", &["ci", "nightly"]);
        assert_eq!(denied(&rules, APP), None);
        by("job-3", &["ci"]);
        let message = denied(&rules, APP).expect("a denial").message;
        assert!(message.contains("group ci has had the 2 pulls in 1h of budget \"ci\""), "{message}");
        by("job-4", &["nightly"]);
        assert_eq!(denied(&rules, APP), None, "it has one of its own");
    }

    #[test]
    fn a_budget_of_all_and_one_of_some_images_count_by_themselves() {
        let rules = rules(
            "[[budget]]\nname = \"all\"\nper = \"all\"\npulls = 3\nwindow = \"1d\"\n\
             [[budget]]\nname = \"hub\"\nimages = [\"docker.io\"]\npulls = 1\nwindow = \"1h\"",
        );
        let said = |image: &str| denied(&rules, image).map(|denial| denial.message).unwrap_or_default();
        assert_eq!(said("docker.io/library/app:1"), "");
        assert!(said("docker.io:443/library/app:1").contains("budget \"hub\""));
        from("192.0.2.2");
        assert_eq!(said("quay.io/app:1"), "");
        assert!(said("quay.io/app:1").contains("all has had the 3 pulls in 1d of budget \"all\""));
    }

    #[test]
    fn an_identity_counts_more_than_an_address_and_a_network_as_one() {
        let rules = rules("[[budget]]\npulls = 1\nwindow = \"1h\"");
        by("ann", &[]);
        assert_eq!(denied(&rules, APP), None);
        by("bob", &[]);
        assert_eq!(denied(&rules, APP), None);
        assert!(denied(&rules, APP).expect("a denial").message.contains("client bob of here has had"));
        by(&"x".repeat(5000), &[]);
        assert_eq!(denied(&rules, APP), None);
        assert!(denied(&rules, APP).is_some(), "a long name");
        from("2001:db8::1");
        assert_eq!(denied(&rules, APP), None);
        from("2001:db8::ffff:1");
        let message = denied(&rules, APP).expect("the same network").message;
        assert!(message.contains("address 2001:db8::/64 has had"), "{message}");
        from("2001:db8:0:1::1");
        assert_eq!(denied(&rules, APP), None);
        from("::ffff:192.0.2.9");
        assert_eq!(denied(&rules, APP), None);
        from("192.0.2.9");
        assert!(denied(&rules, APP).is_some());
    }

    #[test]
    fn a_pull_that_cannot_be_counted_goes_on_and_is_told() {
        let rules = rules("[[budget]]\npulls = 1\nwindow = \"1h\"");
        for at in 0..10_000 {
            state::set(&at.to_string(), "", None).expect("room");
        }
        for _ in 0..3 {
            assert_eq!(denied(&rules, APP), None);
        }
        let told = host(|host| host.metric("not_counted{reason=\"too-many-keys\"}"));
        assert_eq!(told.as_deref(), Some("3"));
    }
}
