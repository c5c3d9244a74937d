//! What a registry has to do with who asks: whose credentials it is asked with, and whom its cached content is for.

use std::time::Duration;

use toml::Spanned;

use super::source::{ConfigError, Source};

/// How long a registry's word on a caller holds where nothing else is said.
const AUTHORIZE_TTL: Duration = Duration::from_mins(5);

/// What a registry has to do with who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Callers {
    /// It is asked with the user and the password of the caller, where the caller sent them.
    pub credentials: bool,
    /// It says who may have what is cached of it, and its word holds for so long; none: whom the mirror serves.
    pub authorize: Option<Duration>,
}

impl Source<'_> {
    pub fn callers(
        &self,
        credentials: Option<Spanned<String>>,
        authorize: Option<Spanned<String>>,
        ttl: Option<Spanned<String>>,
        table: &str,
    ) -> Result<Callers, ConfigError> {
        let word = |typed: Option<Spanned<String>>, key: &str, words: [&str; 2]| match typed {
            None => Ok(None),
            Some(typed) => {
                let at = words.iter().position(|word| word == typed.get_ref()).ok_or_else(|| {
                    let [one, other] = words;
                    let message = format!("{table}.{key}: is neither \"{one}\" nor \"{other}\"");
                    self.error(&typed.span(), &message)
                })?;
                Ok(Some((at == 0, typed.span())))
            }
        };
        let credentials = word(credentials, "credentials", ["caller", "configured"])?.is_some_and(|(caller, _)| caller);
        // What one caller's password brought is not for everybody, where nobody says so.
        let asks = word(authorize, "authorize", ["caller", "anyone"])?.map_or(credentials, |(caller, _)| caller);
        let key = format!("{table}.authorize_ttl");
        let ttl = match ttl {
            None => AUTHORIZE_TTL,
            Some(typed) if !asks => {
                return Err(self.error(&typed.span(), &format!("{key}: needs `authorize = \"caller\"` beside it")));
            }
            Some(typed) => self.duration(&typed, &key)?,
        };
        Ok(Callers { credentials, authorize: asks.then_some(ttl) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::oci::Registry;

    #[test]
    fn what_a_callers_password_brings_is_for_that_caller_unless_said_otherwise() {
        let five = Some(AUTHORIZE_TTL);
        for (lines, credentials, authorize) in [
            ("", false, None),
            ("credentials = \"caller\"", true, five),
            ("credentials = \"configured\"", false, None),
            ("credentials = \"caller\"\nauthorize = \"anyone\"", true, None),
            ("authorize = \"caller\"", false, five),
            ("authorize = \"caller\"\nauthorize_ttl = \"0s\"", false, Some(Duration::ZERO)),
            ("credentials = \"caller\"\nauthorize_ttl = \"1h\"", true, Some(Duration::from_hours(1))),
        ] {
            let config = Config::parse(&format!("[registries.\"h.lan\"]\n{lines}"), "t").expect(lines);
            let reach = config.reach(&Registry::parse("h.lan").expect("a registry")).expect("listed");
            assert_eq!(reach.callers, Callers { credentials, authorize }, "{lines}");
            assert_eq!(config.asks_callers, reach.asks_callers());
        }
        for (lines, word) in [
            ("credentials = \"mine\"", "credentials: is neither \"caller\" nor \"configured\""),
            ("authorize = \"me\"", "authorize: is neither"),
            ("authorize_ttl = \"5m\"", "needs `authorize = \"caller\"`"),
            ("authorize = \"caller\"\nauthorize_ttl = \"soon\"", "authorize_ttl"),
        ] {
            let told = Config::parse(&format!("[registries.\"h.lan\"]\n{lines}"), "t").expect_err(lines).to_string();
            assert!(told.contains(word), "{lines}: {told}");
        }
    }
}
