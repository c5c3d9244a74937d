//! One line of the record. `proxy/CONFIGURATION.md` tells its fields to who reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A request, what it was decided by, and what came of it. A field that later versions add is passed over by readers
/// of today; one that is missing has its default.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Line {
    /// When it came: RFC 3339, in UTC, with milliseconds.
    pub time: String,
    /// Request id.
    pub request: String,
    /// Address of the client.
    pub client: IpAddr,
    /// Who the client has shown to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Empty when none was sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    /// `GET` or `HEAD`.
    pub method: String,
    /// `ns`, `virtual-host`, `path`, `default` or `intercept`.
    pub addressing: String,
    /// `pull`.
    pub action: String,
    /// `manifest`, `blob`, `tags` or `referrers`.
    pub content: String,
    /// As the client named it.
    pub registry: String,
    /// In canonical form.
    pub repository: String,
    /// A tag or a digest; none for a list of tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Media types of `Accept`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept: Vec<String>,
    /// Request headers that plugins may read, names in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Vec<String>>,
    /// What plugins asked `call.attribute` for, and got.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What the cache held when the request came; none: nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Copy>,
    /// Which set of plugins decided: counts up at each change.
    pub generation: u64,
    /// `allow`, `cached-only` or `deny`; none: the policy was not asked to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// The plugin that decided so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Each call of a plugin, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decided>,
    /// The manifest that inspection plugins were asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspected: Option<String>,
    /// Where it might come from, in order, as routing left it; none: routing was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Attempts at upstreams, in the order in which they ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Tried>,
    /// Where the bytes came from: `cache`, `stale`, `fill` or `upstream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Status of the answer; 0: the client went before it.
    pub status: u16,
    /// Of what was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of the body. Units: bytes.
    pub sent_bytes: u64,
    /// To the end of the body.
    pub elapsed_ms: u64,
    /// Texts that the client was to print.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why its body ended short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// Who a client has shown to be.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Identity {
    /// Its name.
    pub subject: String,
    /// Who says so.
    pub issuer: String,
    /// What it belongs to.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What the cache held.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Copy {
    /// `absent`, `fresh` or `stale`.
    pub state: String,
    /// Which manifest or blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Since its registry was asked, where that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_secs: Option<u64>,
}

/// One call of a plugin.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Decided {
    /// Its name.
    pub plugin: String,
    /// Which hook.
    pub hook: String,
    /// `enforce`, or `shadow`: it changed nothing.
    pub mode: String,
    /// The answer in a word: `allow`, `deny`, `to`, `pass`, ...
    pub ruling: String,
    /// What belongs to the word: the text of a denial, a digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where routing leads, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<Route>>,
    /// Why the call gave no answer of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// How long it took. Units: microseconds.
    pub us: u64,
}

/// A candidate.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Route {
    /// Its name.
    pub registry: String,
    /// As the registry itself calls it.
    pub repository: String,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// An attempt at an upstream.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Tried {
    /// Its name.
    pub registry: String,
    /// As the registry itself calls it.
    pub repository: String,
    /// `ok`, or the kind of its failure.
    pub outcome: String,
    /// What it answered, where that was the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What was wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the registry asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_secs: Option<u64>,
    /// What a registry that failed told of its limits, by header.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rate_limit: BTreeMap<String, String>,
    /// To the headers, or to the failure.
    pub ms: u64,
    /// What it brought of the body. Units: bytes.
    pub bytes: u64,
}

impl Line {
    /// What was asked for, as people write it.
    pub fn image(&self) -> String {
        let Self { registry, repository, .. } = self;
        match (self.content.as_str(), &self.reference) {
            ("manifest", Some(reference)) if reference.contains(':') => format!("{registry}/{repository}@{reference}"),
            ("manifest", Some(reference)) => format!("{registry}/{repository}:{reference}"),
            (content, Some(reference)) => format!("{content} {registry}/{repository}@{reference}"),
            (content, None) => format!("{content} {registry}/{repository}"),
        }
    }
}
