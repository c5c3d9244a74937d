//! Lists of tags and of referrers: passed through, from the first candidate that answers.

use futures_util::StreamExt;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::attempts::{After, Attempts, Ending, Wanted};
use super::error::Error;
use super::routed::Routed;
use super::{Answer, Source};
use crate::body::{Body, Short};
use crate::oci::{Addressing, Method, Pull};

/// What cannot stand inside `<` and `>` of a Link.
const LINK: &AsciiSet = &CONTROLS.add(b'<').add(b'>').add(b'"').add(b' ');

impl Routed {
    /// A listing. `resource`: what stands behind the repository's name.
    pub async fn listing(&self, resource: &str) -> Result<Answer, Error> {
        self.may_ask_upstream()?;
        let query = self.caller().query.clone();
        let wanted = Wanted {
            resource,
            query: &query,
            method: self.pull().method,
            accept: "application/vnd.oci.image.index.v1+json, application/json",
            from: 0,
        };
        let mut attempts = Attempts::new(self, false);
        let mut next = attempts.first();
        let mut ending = Ending::Exhausted;
        while let Some(candidate) = next.take() {
            let tried = attempts.fetch(candidate, wanted).await;
            match tried.result {
                Ok(answer) => {
                    let mut headers = Vec::new();
                    if let Some(link) = answer.header("link").and_then(|link| rewrite_link(link, self.pull(), resource))
                    {
                        headers.push(("link", link));
                    }
                    if let Some(filters) = answer.header("oci-filters-applied") {
                        headers.push(("oci-filters-applied", filters.to_owned()));
                    }
                    let media_type = answer.header("content-type").unwrap_or("application/json").to_owned();
                    let length = answer.length();
                    let chunks = answer.stream().map(|chunk| chunk.map_err(|failure| Short(failure.to_string())));
                    let body = match self.pull().method {
                        Method::Get => Body::stream(Box::pin(chunks), length),
                        Method::Head => Body::empty(),
                    };
                    return Ok(Answer {
                        status: 200,
                        media_type,
                        digest: None,
                        length,
                        content_range: None,
                        headers,
                        body,
                        source: Source::Upstream,
                    });
                }
                Err(refused) => {
                    match attempts
                        .after((tried.candidate, tried.started), refused.failure, 0, refused.retry_after)
                        .await
                    {
                        After::Try(candidate) => next = Some(candidate),
                        After::End(end) => ending = end,
                    }
                }
            }
        }
        Err(self.ended(ending, attempts))
    }
}

/// Makes the link to the next page point to where the client found this one; none where it is no such link.
///
/// Source: OCI distribution specification, "Content Discovery"; RFC 8288, section 3.
fn rewrite_link(link: &str, pull: &Pull, resource: &str) -> Option<String> {
    let (target, params) = link.strip_prefix('<')?.split_once('>')?;
    if !params.contains("rel=\"next\"") && !params.contains("rel=next") {
        return None;
    }
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let query = utf8_percent_encode(query, LINK);
    let place = &pull.place;
    Some(match pull.addressing {
        Addressing::Path => format!("</v2/{}/{}/{resource}?{query}>; rel=\"next\"", place.registry, place.repository),
        Addressing::Ns => format!("</v2/{}/{resource}?{query}&ns={}>; rel=\"next\"", place.repository, place.registry),
        Addressing::Default => format!("</v2/{}/{resource}?{query}>; rel=\"next\"", place.repository),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Content, Place, Registry, Repository};

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
        assert_eq!(
            rewritten(Addressing::Default).as_deref(),
            Some("</v2/library/a/tags/list?last=b&n=2>; rel=\"next\"")
        );
        for none in ["", "x", "</v2/>; rel=\"prev\"", "<"] {
            assert_eq!(rewrite_link(none, &pull(Addressing::Path), "tags/list"), None, "{none}");
        }
    }
}
