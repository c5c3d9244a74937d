//! Who is supposed to ask, where a person wants to know what would be decided.

use std::net::IpAddr;

use url::form_urlencoded;

use super::who;
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

    /// As plugins see it: a user with a password here.
    pub(super) fn identity(&self) -> Option<Identity> {
        let (subject, groups) = (self.user.clone()?, self.groups.clone());
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
}
