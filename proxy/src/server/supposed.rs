//! Who is supposed to ask, where a person wants to know what would be decided.

use std::net::IpAddr;

use url::form_urlencoded;

use super::who;
use crate::config::Users;
use crate::plugin::Identity;

/// Who is supposed to ask.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Supposed {
    /// Its name; none: anybody.
    pub user: Option<String>,
    /// What it belongs to.
    pub groups: Vec<String>,
    /// From where; none: from this machine.
    pub address: Option<IpAddr>,
}

impl Supposed {
    /// Reads the query of `/explain`: the image, and who asks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(query: &str) -> Result<(String, Self), String> {
        let (mut image, mut supposed) = (String::new(), Self::default());
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "image" => image = value.into_owned(),
                "user" => supposed.user = Some(value.into_owned()),
                "group" => supposed.groups.push(value.into_owned()),
                "address" => {
                    let parsed = value.parse().map_err(|_| format!("`{}` is no address", value.escape_debug()))?;
                    supposed.address = Some(parsed);
                }
                _ => {}
            }
        }
        if supposed.user.is_none() && !supposed.groups.is_empty() {
            return Err("a group is one of a user: name the user too".to_owned());
        }
        Ok((image, supposed))
    }

    /// The query of `/explain` for an image.
    pub fn query(&self, image: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("image", image);
        query.extend_pairs(self.user.iter().map(|user| ("user", user)));
        query.extend_pairs(self.groups.iter().map(|group| ("group", group)));
        query.extend_pairs(self.address.iter().map(|address| ("address", address.to_string())));
        query.finish()
    }

    /// As plugins see it: a user with a password here, of the groups that it has here beside those that are supposed.
    pub(super) fn identity(&self, users: Option<&Users>) -> Option<Identity> {
        let (subject, mut groups) = (self.user.clone()?, self.groups.clone());
        if let Some(user) = users.and_then(|users| users.get(&subject)) {
            groups.extend(user.groups.iter().cloned());
            groups.sort_unstable();
            groups.dedup();
        }
        Some(Identity { subject, issuer: who::HTPASSWD.to_owned(), groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_supposed_to_ask_is_read_as_it_is_written() {
        let supposed = Supposed {
            user: Some("ann & bob".to_owned()),
            groups: vec!["ops".to_owned(), "a=b".to_owned()],
            address: Some(IpAddr::from([10, 1, 2, 3])),
        };
        let query = supposed.query("quay.io/a/b:1");
        assert_eq!(Supposed::parse(&query), Ok(("quay.io/a/b:1".to_owned(), supposed)));
        assert_eq!(Supposed::parse("image=x"), Ok(("x".to_owned(), Supposed::default())));
        for bad in ["image=x&address=here", "image=x&group=ops"] {
            assert!(Supposed::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_is_supposed_to_ask_has_the_groups_that_the_file_names() {
        let hash = bcrypt::hash("secret", 4).expect("a hash");
        let file = std::path::Path::new("f");
        let users = Users::parse(&format!("alice:{hash}\n"), Some("ops: alice\n"), file).expect("users");
        let groups = |user: &str, group: &str| {
            let supposed =
                Supposed { user: Some(user.to_owned()), groups: vec![group.to_owned()], ..Supposed::default() };
            supposed.identity(Some(&users)).map(|identity| identity.groups).unwrap_or_default()
        };
        assert_eq!(
            (groups("alice", "dev"), groups("bob", "dev")),
            (vec!["dev".into(), "ops".into()], vec!["dev".into()])
        );
        assert_eq!(groups("alice", "ops"), ["ops"]);
        assert!(Supposed::default().identity(Some(&users)).is_none());
    }
}
