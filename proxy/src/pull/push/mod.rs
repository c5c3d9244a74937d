//! The life of one push, top to bottom: admission, where it goes, the registry's answer, and what the cache knows after.
//!
//! A push goes to one registry and is tried once: what it brings flows through, and is not kept here.

mod outcome;
mod seal;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::oneshot;

pub use seal::Seals;

use super::admitted::Admitted;
use super::changes::Of;
use super::error::{Cause, Error};
use super::routing::{Routing, Way};
use super::{Caller, Core, Live};
use crate::body::Chunks;
use crate::cache::Manifest;
use crate::oci::manifest::MANIFEST_MAX;
use crate::oci::{
    Asked, Candidate, Code, Content, Denial, Digest, Method, Place, Pull, Push, Reference, Repository, Session, Write,
};
use crate::plugin::{self, Decision, Question};
use crate::trace;
use crate::upstream::{Brought, Offer, Said, To, Unsent};
use outcome::failure_of;
use seal::Upload;

/// What a push brings with it.
#[derive(Default)]
pub struct Offered {
    /// Header `Content-Type`.
    pub media_type: Option<String>,
    /// Header `Content-Range`.
    pub range: Option<String>,
    /// Its body, and the length of that where it is known. Units: bytes.
    pub body: Option<(Chunks, Option<u64>)>,
}

/// What became of a push.
#[derive(Debug)]
pub struct Written {
    /// 201, 202 or 204.
    pub status: u16,
    /// The headers that matter, with addresses of ours.
    pub headers: Vec<(&'static str, String)>,
}

/// A push under way.
struct Pushing {
    core: Arc<Core>,
    live: Arc<Live>,
    push: Arc<Push>,
    caller: Caller,
    /// A pull of the same, for what plugins look up.
    beside: Arc<Routing>,
    question: Question,
}

/// Runs a push.
///
/// # Errors
/// Why it has no answer, or what the registry has against it.
///
/// # Cancel safety
/// A manifest that was sent is waited for all the same, so that the cache knows of it.
pub async fn push(
    core: &Arc<Core>,
    live: &Arc<Live>,
    push: Push,
    offered: Offered,
    caller: Caller,
) -> Result<Written, Error> {
    let pushing = Pushing::new(core, live, push, caller);
    pushing.admit().await?;
    match pushing.push.write.clone() {
        Write::Begin(digest) => pushing.begin(digest, offered).await,
        Write::Mount(digest, from) => pushing.mount(digest, &from).await,
        Write::Look(session) => pushing.look(&session).await,
        Write::Chunk(session) => pushing.chunk(&session, offered).await,
        Write::Finish(session, digest) => pushing.finish(&session, digest, offered).await,
        Write::Cancel(session) => pushing.cancel(&session).await,
        Write::Manifest(reference) => pushing.manifest(reference, offered).await,
        Write::RemoveManifest(reference) => pushing.remove(reference).await,
        Write::RemoveBlob(digest) => pushing.remove_blob(digest).await,
    }
}

/// Lets who may push learn what is there, though he may have only what is cached: clients ask before they send a blob,
/// and again when they have.
pub(super) async fn admitted(routing: &Arc<Routing>) -> Option<Admitted> {
    let Pull { place, addressing, .. } = &*routing.pull;
    if !routing.live.config.pushes(&place.registry) {
        return None;
    }
    let push = Push { place: place.clone(), write: Write::Begin(None), addressing: *addressing };
    let question = Question { asked: Asked::Push(Arc::new(push)), ..routing.question(Way::Routed) };
    let admitted = Admitted::ask(&routing.set, &question).await.ok()?;
    admitted.cached_only().is_none().then_some(admitted)
}

impl Pushing {
    fn new(core: &Arc<Core>, live: &Arc<Live>, push: Push, caller: Caller) -> Self {
        // What a plugin looks up for a push, it has as a pull of the same would.
        let content = match push.write.reference() {
            Some(reference) if push.write.kind() == "manifest" => Content::Manifest(reference),
            Some(Reference::Digest(digest)) => Content::Blob(digest),
            _ => Content::Tags,
        };
        let pull = Pull { place: push.place.clone(), content, method: Method::Get, addressing: push.addressing };
        let beside = Routing::new(core, live, pull, caller.clone(), false);
        let push = Arc::new(push);
        let question = Question { asked: Asked::Push(push.clone()), ..beside.question(Way::Routed) };
        Self { core: core.clone(), live: live.clone(), push, caller, beside, question }
    }

    /// Asks the admission plugins. Who may have only what is cached may write nothing.
    async fn admit(&self) -> Result<(), Error> {
        let facts = &self.caller.facts;
        facts.see(|seen| seen.generation = self.beside.set.generation());
        let denied = |denial| self.error(Cause::Denied(denial));
        let admitted = Admitted::ask(&self.beside.set, &self.question).await.map_err(denied)?;
        match admitted.cached_only() {
            None => {
                facts.decide(Decision::Allow);
                Ok(())
            }
            Some(plugin) => Err(self.error(Cause::Denied(Denial {
                status: 403,
                code: Code::Denied,
                plugin: plugin.to_owned(),
                message: format!("{} is denied: only what is cached may be had, and nothing written", self.push),
                retry_after: None,
            }))),
        }
    }

    /// Where it goes: to the registry that the client named, where no routing plugin names another. Never to a second.
    async fn place(&self) -> Result<Place, Error> {
        let named = vec![Candidate::plain(self.push.place.clone())];
        let routed = self.beside.set.route(&self.question, named).await;
        let candidates = routed.map_err(|denial| self.error(Cause::Denied(denial)))?;
        match candidates.into_iter().next() {
            Some(candidate) => self.writable(candidate.place),
            None => Err(self.error(Cause::Refused("the policy routes it nowhere".to_owned()))),
        }
    }

    fn writable(&self, place: Place) -> Result<Place, Error> {
        if self.live.config.pushes(&place.registry) {
            return Ok(place);
        }
        Err(self.error(Cause::ReadOnly(place.registry)))
    }

    async fn begin(&self, digest: Option<Digest>, offered: Offered) -> Result<Written, Error> {
        let place = self.place().await?;
        match digest {
            None => {
                let said = self.send(&place, To::Resource("blobs/uploads/"), Offered::default()).await?;
                self.went_on(&place, said, None).await
            }
            Some(digest) => {
                let resource = format!("blobs/uploads/?digest={digest}");
                let said = self.send(&place, To::Resource(&resource), offered).await?;
                self.went_on(&place, said, Some(digest)).await
            }
        }
    }

    /// Has the registry take a blob from another of its repositories, where the caller may read that one (I10). Whatever
    /// is in the way, the upload can begin.
    async fn mount(&self, digest: Digest, from: &Repository) -> Result<Written, Error> {
        let place = self.place().await?;
        if place == self.push.place && self.may_read(digest, from).await {
            let resource = format!("blobs/uploads/?mount={digest}&from={from}");
            match self.send(&place, To::Resource(&resource), Offered::default()).await {
                Ok(said) if said.status.is_success() => return self.went_on(&place, said, Some(digest)).await,
                Ok(_) | Err(Error { cause: Cause::Refused(_), .. }) => {}
                Err(err) => return Err(err),
            }
        }
        let said = self.send(&place, To::Resource("blobs/uploads/"), Offered::default()).await?;
        self.went_on(&place, said, None).await
    }

    async fn may_read(&self, digest: Digest, from: &Repository) -> bool {
        let place = Place { registry: self.push.place.registry.clone(), repository: from.clone() };
        let (source, content) = (Candidate::plain(place.clone()), Content::Blob(digest));
        let reading =
            self.beside.another(Pull { place, content, method: Method::Head, addressing: self.push.addressing });
        let admitted = Admitted::ask(&reading.set, &reading.question(Way::Routed)).await;
        // The registry is asked as well: it may be one that would let the mirror read what the caller may not.
        admitted.is_ok_and(|admitted| admitted.cached_only().is_none()) && reading.authorize(vec![source]).await.is_ok()
    }

    async fn look(&self, session: &Session) -> Result<Written, Error> {
        let Upload { place, url } = self.opened(session).await?;
        let said = self.send(&place, To::Upload(&url), Offered::default()).await?;
        let said = Said { location: said.location.or(Ok(url)), ..said };
        self.went_on(&place, said, None).await
    }

    async fn chunk(&self, session: &Session, offered: Offered) -> Result<Written, Error> {
        let Upload { place, url } = self.opened(session).await?;
        let said = self.send(&place, To::Upload(&url), offered).await?;
        let said = Said { location: said.location.or(Ok(url)), ..said };
        self.went_on(&place, said, None).await
    }

    async fn finish(&self, session: &Session, digest: Digest, offered: Offered) -> Result<Written, Error> {
        let Upload { place, mut url } = self.opened(session).await?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let said = self.send(&place, To::Upload(&url), offered).await?;
        self.went_on(&place, said, Some(digest)).await
    }

    async fn cancel(&self, session: &Session) -> Result<Written, Error> {
        let Upload { place, url } = self.opened(session).await?;
        let said = self.send(&place, To::Upload(&url), Offered::default()).await?;
        self.done(&said, None)
    }

    async fn opened(&self, session: &Session) -> Result<Upload, Error> {
        let opened = self.core.seals.open(&self.push.place, session).await;
        let upload = opened.ok_or_else(|| {
            self.error(Cause::NotFound(
                "this mirror gave out no such upload for this repository; begin anew".to_owned(),
            ))
        })?;
        self.writable(upload.place.clone())?;
        Ok(upload)
    }

    /// What the answer to a part of an upload says: where it goes on, or that the blob is there.
    async fn went_on(&self, place: &Place, said: Said, digest: Option<Digest>) -> Result<Written, Error> {
        match (said.status.as_u16(), digest) {
            (201, Some(digest)) => {
                self.wrote(place);
                self.done(&said, Some(format!("blobs/{digest}")))
            }
            (status, _) if (200..300).contains(&status) => {
                let url = said.location.clone().map_err(|failure| failure_of(self, place, &failure))?;
                let mut written = self.done(&said, None)?;
                let upload = Upload { place: place.clone(), url };
                let Session(sealed) = self.core.seals.seal(&self.push.place, &upload).await;
                written.headers.push(("location", self.address(&format!("blobs/uploads/{sealed}"))));
                Ok(written)
            }
            _ => self.done(&said, None),
        }
    }

    /// Writes a manifest. It is small, so it is held, and known to the cache as soon as the registry has it.
    async fn manifest(self, reference: Reference, mut offered: Offered) -> Result<Written, Error> {
        let place = self.place().await?;
        let slow = |_| self.error(Cause::Client("it comes too slowly".to_owned()));
        let collected = tokio::time::timeout(self.live.config.limits.upstream_push, self.collect(offered.body.take()));
        let bytes = collected.await.map_err(slow)??;
        self.detached(move |pushing| async move { pushing.put_manifest(&place, reference, offered, bytes).await }).await
    }

    async fn put_manifest(
        &self,
        place: &Place,
        reference: Reference,
        offered: Offered,
        bytes: Bytes,
    ) -> Result<Written, Error> {
        let cache = &self.core.cache;
        let resource = format!("manifests/{reference}");
        if let Reference::Tag(tag) = &reference {
            // Whatever comes of it, what the tag was is not served without asking.
            self.core.changes.note(place, Of::Tag(tag));
            cache.expire_tag(place, tag).await;
        }
        let length = bytes.len() as u64;
        let body: Chunks = Box::pin(futures_util::stream::iter([Ok(bytes.clone())]));
        let media_type = offered.media_type.clone();
        let offered = Offered { body: Some((body, Some(length))), ..offered };
        let sent = self.send(place, To::Resource(&resource), offered).await;
        let refused = matches!(&sent, Ok(said) if said.status.is_client_error());
        if let Reference::Tag(tag) = &reference
            && !refused
        {
            // After a failure nobody knows what the tag is now.
            self.core.changes.note(place, Of::Tag(tag));
            cache.forget_tag(place, tag).await;
        }
        let said = sent?;
        let digest = match &reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256_of(&bytes),
        };
        let told = said.header("docker-content-digest").is_none_or(|told| told == digest.to_string());
        if said.status.is_success() {
            self.wrote(place);
            if let Some(media_type) = media_type.filter(|_| told && digest.matches(&bytes)) {
                cache.put_manifest(place, &Manifest { digest, media_type, bytes, ticket: None }).await;
            }
        }
        self.done(&said, Some(if told { format!("manifests/{digest}") } else { resource }))
    }

    async fn remove(self, reference: Reference) -> Result<Written, Error> {
        let place = self.place().await?;
        self.detached(move |pushing| async move {
            let resource = format!("manifests/{reference}");
            let said = pushing.send(&place, To::Resource(&resource), Offered::default()).await?;
            if said.status.is_success() {
                pushing.wrote(&place);
                match &reference {
                    Reference::Tag(tag) => {
                        pushing.core.changes.note(&place, Of::Tag(tag));
                        pushing.core.cache.forget_tag(&place, tag).await;
                    }
                    Reference::Digest(digest) => pushing.forget(&place, *digest).await,
                }
            }
            pushing.done(&said, None)
        })
        .await
    }

    async fn remove_blob(self, digest: Digest) -> Result<Written, Error> {
        let place = self.place().await?;
        self.detached(move |pushing| async move {
            let resource = format!("blobs/{digest}");
            let said = pushing.send(&place, To::Resource(&resource), Offered::default()).await?;
            if said.status.is_success() {
                pushing.wrote(&place);
                pushing.forget(&place, digest).await;
            }
            pushing.done(&said, None)
        })
        .await
    }

    /// What was not there may be there now.
    fn wrote(&self, place: &Place) {
        self.core.changes.note(place, Of::All);
        self.core.misses.forget(place);
    }

    /// What was there is there no more.
    async fn forget(&self, place: &Place, digest: Digest) {
        self.core.changes.note(place, Of::Digest(digest));
        self.core.cache.forget_digest(place, digest).await;
    }

    /// Runs in a task of its own: what the registry did must be known here, also when the client has gone.
    async fn detached<F>(self, work: impl FnOnce(Arc<Self>) -> F) -> Result<Written, Error>
    where
        F: Future<Output = Result<Written, Error>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let pushing = Arc::new(self);
        let (stopping, scope) = (pushing.core.stopping.clone(), trace::scope());
        let work = work(pushing.clone());
        pushing.core.fills.spawn(async move {
            if let Some(result) = stopping.run_until_cancelled(scope.within(work)).await {
                let _ = tell.send(result);
            }
        });
        told.await.unwrap_or_else(|_| Err(pushing.error(Cause::Unavailable("the program ends".to_owned()))))
    }

    /// The whole of a manifest.
    async fn collect(&self, body: Option<(Chunks, Option<u64>)>) -> Result<Bytes, Error> {
        let Some((mut chunks, length)) = body else { return Ok(Bytes::new()) };
        let too_large = || {
            let story = format!("a manifest has at most {MANIFEST_MAX} bytes");
            self.error(Cause::Answered { status: 413, code: Code::SizeInvalid, story, detail: None })
        };
        if length.is_some_and(|length| length > MANIFEST_MAX as u64) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|short| self.error(Cause::Client(short.0)))?;
            if bytes.len() + chunk.len() > MANIFEST_MAX {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    async fn send(&self, place: &Place, to: To<'_>, offered: Offered) -> Result<Said, Error> {
        self.beside.may_show(place).await?;
        let limits = &self.live.config.limits;
        let write = &self.push.write;
        let Offered { media_type, range, body } = offered;
        let offer = Offer {
            place,
            action: write.action(),
            method: write.method(),
            to,
            media_type: media_type.as_deref(),
            range: range.as_deref(),
            timeout: match write {
                Write::Begin(None) | Write::Look(_) | Write::Cancel(_) => limits.upstream_headers,
                _ => limits.upstream_push,
            },
            via: &self.caller.via,
            credentials: self.caller.credentials.as_ref(),
        };
        let upstreams = &self.live.upstreams;
        let brought = match body {
            None | Some((_, Some(0))) => Brought::Held(Bytes::new()),
            Some((chunks, length)) if write.kind() == "manifest" => {
                Brought::Held(self.collect(Some((upstreams.count_pushed(place, chunks), length))).await?)
            }
            Some((chunks, length)) => Brought::Flowing(upstreams.count_pushed(place, chunks), length),
        };
        let started = std::time::Instant::now();
        let sent = upstreams.push(&offer, brought).await;
        let (outcome, failure) = match &sent {
            Ok(said) if said.status.is_success() => ("ok", None),
            Ok(said) => {
                let failure = crate::oci::Failure::Status(said.status.as_u16());
                (failure.kind(), Some(failure))
            }
            Err(Unsent::Registry(failure)) => (failure.kind(), Some(failure.clone())),
            Err(Unsent::Client(short)) => ("client", Some(crate::oci::Failure::Other(short.to_string()))),
        };
        if let Some(failure) = &failure {
            let (request, reason) = (self.caller.facts.id.as_str(), failure.to_string());
            tracing::info!(request, registry = %place.registry, push = self.push.to_string(), reason, "a registry did not take a push");
        }
        self.caller.facts.tried(plugin::Tried {
            place: place.clone(),
            outcome,
            failure,
            retry_after: None,
            rate_limit: Vec::new(),
            took: started.elapsed(),
            bytes: 0,
        });
        sent.map_err(|unsent| match unsent {
            Unsent::Client(short) => self.error(Cause::Client(short.0)),
            Unsent::Registry(failure) => failure_of(self, place, &failure),
        })
    }

    fn error(&self, cause: Cause) -> Error {
        let unknown = match &self.push.write {
            Write::Begin(_) | Write::Mount(..) => Code::NameUnknown,
            Write::Look(_) | Write::Chunk(_) | Write::Finish(..) | Write::Cancel(_) => Code::BlobUploadUnknown,
            Write::Manifest(_) | Write::RemoveManifest(_) => Code::ManifestUnknown,
            Write::RemoveBlob(_) => Code::BlobUnknown,
        };
        Error { what: self.push.to_string(), unknown, cause }
    }

    /// The registry cannot be had: that says nothing of what is there.
    fn unavailable(&self, cause: Cause) -> Error {
        let unknown =
            if self.push.write.kind() == "manifest" { Code::ManifestInvalid } else { Code::BlobUploadInvalid };
        Error { unknown, ..self.error(cause) }
    }

    fn address(&self, resource: &str) -> String {
        self.push.addressing.target(&self.push.place, resource, "")
    }
}
