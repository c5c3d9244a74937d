//! Which digest each tag had when it was first seen: kept by the host, a key for each tag.

use tidegate_sdk::state::{self, Error};
use tidegate_sdk::{Request, key};

/// What is taken down of a tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub digest: String,
    /// Since when. Units: milliseconds.
    pub since_ms: u64,
    /// Whether it came to a client that takes no indexes: the registry may have chosen it from one.
    pub is_chosen: bool,
    /// The digest that it moved to, of which the operator was told.
    pub told: Option<String>,
}

impl Record {
    /// What was taken down; none: the tag is new.
    ///
    /// # Errors
    /// The host cannot say.
    pub fn get(request: &Request) -> Result<Option<Self>, Error> {
        Ok(state::get(&key::of(&request.to_string()))?.and_then(|text| Self::parse(&text)))
    }

    /// Takes it down, unless the tag is there. Gives what is there afterwards.
    ///
    /// # Errors
    /// The host has no room, or cannot say.
    pub fn set_once(self, request: &Request) -> Result<Self, Error> {
        let text = state::set_once(&key::of(&request.to_string()), &self.to_text(), None)?;
        Ok(Self::parse(&text).unwrap_or(self))
    }

    /// Takes it down in place of what is there.
    ///
    /// # Errors
    /// The host has no room, or cannot say.
    pub fn set(&self, request: &Request) -> Result<(), Error> {
        state::set(&key::of(&request.to_string()), &self.to_text(), None)
    }

    fn to_text(&self) -> String {
        let chosen = if self.is_chosen { "chosen" } else { "-" };
        format!("{} {} {chosen} {}", self.digest, self.since_ms, self.told.as_deref().unwrap_or("-"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (digest, since_ms) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let is_chosen = words.next()? == "chosen";
        let told = words.next().filter(|word| *word != "-").map(str::to_owned);
        Some(Self { digest, since_ms, is_chosen, told })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing::request;

    #[test]
    fn a_record_comes_back_as_it_was_also_of_a_long_name() {
        let long = format!("quay.io/{}:{}", "a/".repeat(120) + "b", "1".repeat(128));
        for image in ["quay.io/a:1", &long] {
            let request = request(image);
            assert_eq!(Record::get(&request), Ok(None));
            let first = Record {
                digest: "sha256:1".to_owned(),
                since_ms: 7,
                is_chosen: true,
                told: Some("sha256:2".to_owned()),
            };
            assert_eq!(first.clone().set_once(&request), Ok(first.clone()));
            let second = Record { digest: "sha256:2".to_owned(), since_ms: 9, is_chosen: false, told: None };
            assert_eq!(second.clone().set_once(&request), Ok(first));
            assert_eq!(second.set(&request), Ok(()));
            assert_eq!(Record::get(&request), Ok(Some(second)));
        }
    }
}
