//! The configuration: who is trusted with what, and the decision.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use tidegate_sdk::{Action, File, Identity, Request, Verdict};
use toml::Spanned;

/// The least that makes sense, in one line.
pub const EXAMPLE: &str = "fill = { groups = [\"ops\"], addresses = [\"127.0.0.1\"] }";

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    fill: Option<Spanned<WrittenPeople>>,
    push: Option<Spanned<WrittenPeople>>,
    delete: Option<Spanned<WrittenPeople>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPeople {
    users: Option<Vec<Spanned<String>>>,
    groups: Option<Vec<Spanned<String>>>,
    addresses: Option<Vec<Spanned<String>>>,
    issuers: Option<Vec<Spanned<String>>>,
}

/// Who is trusted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct People {
    users: Vec<String>,
    groups: Vec<String>,
    networks: Vec<IpNet>,
    /// Whose word counts; none: everybody's whom the proxy believes.
    issuers: Option<Vec<String>>,
}

/// Who is trusted with what.
#[derive(Debug)]
pub struct Rules {
    /// The file that they stand in.
    file: String,
    fill: People,
    push: People,
    delete: People,
}

impl Rules {
    /// Parses a configuration file.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(from: &File) -> Result<Self, String> {
        let written: Written = from.toml()?;
        let missing = || format!("{}: \"fill\" is not there: write for example {EXAMPLE}", from.name);
        let fill = People::parse(from, "fill", written.fill.ok_or_else(missing)?)?;
        let push = written.push.map_or_else(|| Ok(fill.clone()), |push| People::parse(from, "push", push))?;
        let delete = written.delete.map_or_else(|| Ok(push.clone()), |delete| People::parse(from, "delete", delete))?;
        Ok(Self { file: from.name.clone(), fill, push, delete })
    }

    /// Decides about one request.
    pub fn admit(&self, request: &Request, client: Option<&Identity>, address: &str) -> Verdict {
        let (people, table, does) = match request.action {
            Action::Pull if self.fill.trusts(client, address) => return Verdict::Allow,
            Action::Pull => return Verdict::CachedOnly,
            Action::Push => (&self.push, "push", "pushing"),
            Action::Delete => (&self.delete, "delete", "deleting"),
        };
        if people.trusts(client, address) {
            return Verdict::Allow;
        }
        let who = client.map_or_else(|| format!("nobody is logged in at {address}, which"), |who| who.subject.clone());
        Verdict::deny(format!("{does} {request} is denied: {who} is not among [{table}] of {}", self.file))
    }
}

impl People {
    fn parse(file: &File, table: &str, written: Spanned<WrittenPeople>) -> Result<Self, String> {
        let at = written.span().start;
        let WrittenPeople { users, groups, addresses, issuers } = written.into_inner();
        if users.is_none() && groups.is_none() && addresses.is_none() {
            let way_out = "write \"users\", \"groups\" or \"addresses\"; users = [] for nobody";
            return Err(file.refuse(at, format_args!("[{table}] names nobody: {way_out}")));
        }
        let names = |key: &str, names: Option<Vec<Spanned<String>>>| {
            let name = |name: Spanned<String>| {
                let at = name.span().start;
                let name = name.into_inner();
                let bad = name.trim() != name || name.is_empty();
                if bad { Err(file.refuse(at, format_args!("\"{name}\" of {key} is no name"))) } else { Ok(name) }
            };
            names.unwrap_or_default().into_iter().map(name).collect::<Result<Vec<_>, String>>()
        };
        let network = |network: Spanned<String>| {
            let text = network.get_ref();
            let parsed = text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)));
            parsed.map(|network| network.trunc()).ok_or_else(|| {
                let reason = format_args!("\"{text}\" is neither an address nor a network such as 10.0.0.0/8");
                file.refuse(network.span().start, reason)
            })
        };
        let networks = addresses.unwrap_or_default().into_iter().map(network).collect::<Result<Vec<_>, String>>()?;
        let issuers = issuers.map(|issuers| names("issuers", Some(issuers))).transpose()?;
        Ok(Self { users: names("users", users)?, groups: names("groups", groups)?, networks, issuers })
    }

    fn trusts(&self, client: Option<&Identity>, address: &str) -> bool {
        let known =
            client.filter(|client| self.issuers.as_ref().is_none_or(|issuers| issuers.contains(&client.issuer)));
        let by_name = known.is_some_and(|client| {
            self.users.iter().any(|user| user == "*" || *user == client.subject)
                || self.groups.iter().any(|group| client.groups.contains(group))
        });
        by_name
            || address.parse::<IpAddr>().is_ok_and(|address| {
                let address = address.to_canonical();
                self.networks.iter().any(|network| network.contains(&address))
            })
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let People { users, groups, networks, .. } = &self.fill;
        let (users, groups, networks) = (users.len(), groups.len(), networks.len());
        write!(f, "{users} users, {groups} groups and {networks} networks bring images into the cache")
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing;

    use super::*;

    const FILE: &str = "10-gatekeeper.toml";

    fn parse(text: &str) -> Result<Rules, String> {
        Rules::parse(&File { name: FILE.to_owned(), text: text.to_owned() })
    }

    fn person(subject: &str, issuer: &str, groups: &[&str]) -> Identity {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Identity { subject: subject.to_owned(), issuer: issuer.to_owned(), groups }
    }

    #[test]
    fn who_is_trusted_fills_and_who_is_not_gets_what_is_there() {
        let rules = parse(
            "[fill]\nusers = [\"ci\"]\ngroups = [\"ops\"]\naddresses = [\"10.1.0.0/16\", \"fd00::/8\", \"192.0.2.7\"]\n",
        )
        .expect("rules");
        let pull = testing::request("docker.io/library/redis:7");
        for (client, address, allows) in [
            (None, "203.0.113.1", false),
            (None, "10.1.2.3", true),
            (None, "10.2.2.3", false),
            (None, "::ffff:10.1.2.3", true),
            (None, "fd00::5", true),
            (None, "192.0.2.7", true),
            (None, "192.0.2.8", false),
            (None, "nowhere", false),
            (Some(person("ci", "htpasswd", &[])), "203.0.113.1", true),
            (Some(person("CI", "htpasswd", &[])), "203.0.113.1", false),
            (Some(person("alice", "htpasswd", &["ops", "dev"])), "203.0.113.1", true),
            (Some(person("alice", "htpasswd", &["dev"])), "203.0.113.1", false),
            (Some(person("*", "htpasswd", &["*"])), "203.0.113.1", false),
        ] {
            let expected = if allows { Verdict::Allow } else { Verdict::CachedOnly };
            let verdict = rules.admit(&pull, client.as_ref(), address);
            assert_eq!(format!("{verdict:?}"), format!("{expected:?}"), "{client:?} {address}");
        }
    }

    #[test]
    fn an_issuer_that_is_not_listed_vouches_for_nobody() {
        let rules = parse("[fill]\nusers = [\"*\"]\nissuers = [\"people-ca\"]").expect("rules");
        let pull = testing::request("docker.io/library/redis:7");
        let verdict = |issuer| rules.admit(&pull, Some(&person("alice", issuer, &[])), "203.0.113.1");
        assert!(matches!(verdict("people-ca"), Verdict::Allow));
        assert!(matches!(verdict("htpasswd"), Verdict::CachedOnly));
        assert!(matches!(rules.admit(&pull, None, "203.0.113.1"), Verdict::CachedOnly));
    }

    #[test]
    fn pushing_and_deleting_are_for_those_who_fill_unless_said_otherwise() {
        let asked = |text: &str, action, user: &str| {
            let request = Request { action, ..testing::request("quay.io/a/b:1") };
            match parse(text).expect(text).admit(&request, Some(&person(user, "htpasswd", &[])), "203.0.113.1") {
                Verdict::Allow => Ok(()),
                Verdict::CachedOnly => panic!("that is for pulls"),
                Verdict::Deny(denial) => Err(denial.message),
            }
        };
        let one = "[fill]\nusers = [\"ci\"]\n";
        assert_eq!([asked(one, Action::Push, "ci"), asked(one, Action::Delete, "ci")], [Ok(()), Ok(())]);
        let told = format!("pushing quay.io/a/b:1 is denied: bob is not among [push] of {FILE}");
        assert_eq!(asked(one, Action::Push, "bob"), Err(told));
        let two = format!("{one}[push]\nusers = [\"bob\"]\n[delete]\nusers = []\n");
        assert_eq!(asked(&two, Action::Push, "bob"), Ok(()));
        assert!(asked(&two, Action::Push, "ci").is_err());
        assert!(asked(&two, Action::Delete, "bob").is_err_and(|told| told.starts_with("deleting ")));
        let three = format!("{one}[push]\nusers = [\"bob\"]\n");
        assert_eq!(asked(&three, Action::Delete, "bob"), Ok(()), "who pushes deletes");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_line() {
        for (text, told) in [
            ("", "\"fill\" is not there: write for example"),
            ("[push]\nusers = [\"a\"]", "\"fill\" is not there"),
            ("[fill]\n", ":1: [fill] names nobody"),
            ("[fill]\nusers = [\"a\"]\n[push]\n", ":3: [push] names nobody"),
            ("[fill]\naddresses = [\n\"10.0.0.0/33\"]", ":3: \"10.0.0.0/33\" is neither"),
            ("[fill]\nusers = [\" a\"]", ":2: \" a\" of users is no name"),
            ("[fill]\nuser = [\"a\"]", ":2: unknown field `user`"),
        ] {
            let refused = parse(text).expect_err(text);
            assert!(refused.starts_with(FILE) && refused.contains(told), "{text}: {refused}");
        }
        assert!(parse(include_str!("../gatekeeper.toml")).is_ok());
        assert!(parse(EXAMPLE).is_ok());
    }
}
