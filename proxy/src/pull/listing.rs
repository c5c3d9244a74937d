//! Lists of tags and of referrers: passed through, from the first candidate that answers.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::attempts::{After, Attempts, Ending, Tried, Wanted};
use super::error::Error;
use super::flights::Lost;
use super::routed::Routed;
use super::{Answer, Source};
use crate::body::Body;
use crate::oci::{Method, Place, Pull};

/// What a registry is told that we take.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/json";
/// What cannot stand inside `<` and `>` of a Link.
const LINK: &AsciiSet = &CONTROLS.add(b'<').add(b'>').add(b'"').add(b' ');

/// Largest list that is passed on whole. Units: bytes.
const LISTING_MAX: usize = 8 << 20;

/// A list as a registry gave it.
#[derive(Clone)]
pub(super) struct Listing {
    media_type: String,
    link: Option<String>,
    filters: Option<String>,
    bytes: Bytes,
}

impl Routed {
    /// A listing. `resource`: what stands behind the repository's name. Many who ask for the same share one request.
    pub async fn listing(self: &Arc<Self>, resource: &str) -> Result<Answer, Error> {
        self.may_ask_upstream()?;
        let (query, what) = (self.caller().query.clone(), resource.to_owned());
        if resource == "tags/list" && query.split('&').any(|pair| pair == "n=0") {
            return Ok(no_tags(self.pull()));
        }
        let work = move |routed: Arc<Self>| {
            let what = what.clone();
            async move { routed.ask_for_list(&what).await }
        };
        let asked = self.share(&self.core().listings, &format!("{resource}?{query}"), ACCEPT, work).await;
        let (_, listing) = asked.map_err(|lost| self.ended(lost.ending, &lost.failed))?;
        let mut headers = Vec::new();
        if let Some(link) = listing.link.and_then(|link| rewrite_link(&link, self.pull(), resource)) {
            headers.push(("link", link));
        }
        if let Some(filters) = listing.filters {
            headers.push(("oci-filters-applied", filters));
        }
        Ok(Answer {
            status: 200,
            media_type: listing.media_type,
            digest: None,
            length: Some(listing.bytes.len() as u64),
            content_range: None,
            headers,
            body: match self.pull().method {
                Method::Get => Body::bytes(listing.bytes),
                Method::Head => Body::empty(),
            },
            source: Source::Upstream,
            again: None,
        })
    }

    async fn ask_for_list(&self, resource: &str) -> Result<(Place, Listing), Lost> {
        let wanted = Wanted { query: &self.caller().query, ..Wanted::whole(Method::Get, resource, ACCEPT) };
        let mut attempts = Attempts::new(self, false);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            let Tried { candidate, started, result } = attempts.fetch(candidate, wanted).await;
            let (failure, retry_after) = match result {
                Err(refused) => (refused.failure, refused.retry_after),
                Ok(answer) => {
                    let text = |name| answer.header(name).map(str::to_owned);
                    let media_type = text("content-type").unwrap_or_else(|| "application/json".to_owned());
                    let (link, filters) = (text("link"), text("oci-filters-applied"));
                    match answer.collect(LISTING_MAX).await {
                        Ok(bytes) => return Ok((candidate.place, Listing { media_type, link, filters, bytes })),
                        Err(failure) => (failure, None),
                    }
                }
            };
            match attempts.after((candidate, started), failure, 0, retry_after).await {
                After::Try(candidate) => next = Some(candidate),
                After::End(end) => ending = end,
            }
        }
        Err(Lost { ending, failed: attempts.failed().into() })
    }
}

/// The answer to who asks for no tags: an empty list without a link. Some registries refuse to give it.
///
/// Source: OCI distribution specification, "Listing Tags".
fn no_tags(pull: &Pull) -> Answer {
    let list = format!("{{\"name\":\"{}\",\"tags\":[]}}", pull.place.repository);
    Answer {
        status: 200,
        media_type: "application/json".to_owned(),
        digest: None,
        length: Some(list.len() as u64),
        content_range: None,
        headers: Vec::new(),
        body: match pull.method {
            Method::Get => Body::bytes(list),
            Method::Head => Body::empty(),
        },
        source: Source::Upstream,
        again: None,
    }
}

/// Makes the link to the next page point to where the client found this one; none where it is no such link.
///
/// Source: OCI distribution specification, "Content Discovery"; RFC 8288, section 3.
pub fn rewrite_link(link: &str, pull: &Pull, resource: &str) -> Option<String> {
    let (target, params) = link.strip_prefix('<')?.split_once('>')?;
    if !params.contains("rel=\"next\"") && !params.contains("rel=next") {
        return None;
    }
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let query = utf8_percent_encode(query, LINK);
    let place = &pull.place;
    let target = pull.addressing.target(place, resource, &query.to_string());
    Some(format!("<{target}>; rel=\"next\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Addressing, Content, Place, Registry, Repository};

    #[test]
    fn a_link_points_back_at_the_proxy() {
        let pull = |addressing| Pull {
            place: Place {
                registry: Registry::parse("docker.io").expect("a registry"),
                repository: Repository::parse("library/a").expect("a repository"),
            },
            content: Content::Tags,
            method: Method::Get,
            addressing,
        };
        let link = "<https://mirror.lan/v2/hub/library/a/tags/list?last=b&n=2>; rel=\"next\"";
        let rewritten = |addressing| rewrite_link(link, &pull(addressing), "tags/list");
        assert_eq!(
            rewritten(Addressing::Path).as_deref(),
            Some("</v2/docker.io/library/a/tags/list?last=b&n=2>; rel=\"next\"")
        );
        assert_eq!(
            rewritten(Addressing::Ns).as_deref(),
            Some("</v2/library/a/tags/list?last=b&n=2&ns=docker.io>; rel=\"next\"")
        );
        for addressing in [Addressing::VirtualHost, Addressing::Default, Addressing::Intercepted] {
            assert_eq!(rewritten(addressing).as_deref(), Some("</v2/library/a/tags/list?last=b&n=2>; rel=\"next\""));
        }
        for none in ["", "x", "</v2/>; rel=\"prev\"", "<"] {
            assert_eq!(rewrite_link(none, &pull(Addressing::Path), "tags/list"), None, "{none}");
        }
    }
}
