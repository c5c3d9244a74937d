//! One push: what a client writes or removes, and where; and what is told of any request, be it a pull or a push.

use std::fmt;
use std::sync::Arc;

use super::action::Action;
use super::digest::Digest;
use super::name::{Reference, Repository};
use super::pull::{Addressing, Content, Place, Pull};

/// A request that writes to a registry, as the client named it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Push {
    /// The repository, in canonical form.
    pub place: Place,
    /// What is done there.
    pub write: Write,
    /// How the registry was named.
    pub addressing: Addressing,
}

/// What a push does.
///
/// Source: OCI distribution specification, "Endpoints".
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Begins an upload (end-4a), with the whole blob where it is named (end-4b).
    Begin(Option<Digest>),
    /// Takes a blob from another repository of the registry (end-11), and begins an upload where that is not done.
    Mount(Digest, Repository),
    /// Asks how far an upload is (end-13).
    Look(Session),
    /// Brings a part (end-5).
    Chunk(Session),
    /// Brings what is left, and ends the upload (end-6).
    Finish(Session, Digest),
    /// Gives an upload up.
    Cancel(Session),
    /// Writes a manifest (end-7).
    Manifest(Reference),
    /// Removes a manifest or a tag (end-9).
    RemoveManifest(Reference),
    /// Removes a blob (end-10).
    RemoveBlob(Digest),
}

/// An upload, by what its client was given for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session(pub String);

impl Write {
    /// The method that asks for it.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Begin(_) | Self::Mount(..) => "POST",
            Self::Look(_) => "GET",
            Self::Chunk(_) => "PATCH",
            Self::Finish(..) | Self::Manifest(_) => "PUT",
            Self::Cancel(_) | Self::RemoveManifest(_) | Self::RemoveBlob(_) => "DELETE",
        }
    }

    /// What it does: giving up one's own upload removes nothing that was there.
    pub fn action(&self) -> Action {
        match self {
            Self::RemoveManifest(_) | Self::RemoveBlob(_) => Action::Delete,
            _ => Action::Push,
        }
    }

    /// The word for the kind of its content.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Manifest(_) | Self::RemoveManifest(_) => "manifest",
            _ => "blob",
        }
    }

    /// What it names; an upload is nothing before its digest is told.
    pub fn reference(&self) -> Option<Reference> {
        match self {
            Self::Begin(Some(digest)) | Self::Mount(digest, _) | Self::Finish(_, digest) | Self::RemoveBlob(digest) => {
                Some(Reference::Digest(*digest))
            }
            Self::Manifest(reference) | Self::RemoveManifest(reference) => Some(reference.clone()),
            Self::Begin(None) | Self::Look(_) | Self::Chunk(_) | Self::Cancel(_) => None,
        }
    }
}

impl fmt::Display for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.place;
        match (self.write.kind(), self.write.reference()) {
            ("manifest", Some(Reference::Tag(tag))) => write!(f, "{place}:{tag}"),
            ("manifest", Some(Reference::Digest(digest))) => write!(f, "{place}@{digest}"),
            (_, Some(reference)) => write!(f, "blob {reference} of {place}"),
            (_, None) => write!(f, "an upload to {place}"),
        }
    }
}

/// What is asked of us, of whichever kind: what plugins, the log and the record are told about.
#[derive(Clone, Debug)]
pub enum Asked {
    /// To read.
    Pull(Arc<Pull>),
    /// To write or to remove.
    Push(Arc<Push>),
}

impl Asked {
    /// What is done.
    pub fn action(&self) -> Action {
        match self {
            Self::Pull(_) => Action::Pull,
            Self::Push(push) => push.write.action(),
        }
    }

    /// The repository, in canonical form.
    pub fn place(&self) -> &Place {
        match self {
            Self::Pull(pull) => &pull.place,
            Self::Push(push) => &push.place,
        }
    }

    /// How the registry was named.
    pub fn addressing(&self) -> Addressing {
        match self {
            Self::Pull(pull) => pull.addressing,
            Self::Push(push) => push.addressing,
        }
    }

    /// The method's name.
    pub fn method(&self) -> &'static str {
        match self {
            Self::Pull(pull) => pull.method.as_str(),
            Self::Push(push) => push.write.method(),
        }
    }

    /// The word for the kind of the content: a label of metrics and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pull(pull) => pull.content.kind(),
            Self::Push(push) => push.write.kind(),
        }
    }

    /// The tag or digest; a list of tags has none, nor has an upload whose digest nobody has told yet.
    pub fn reference(&self) -> Option<Reference> {
        match self {
            Self::Pull(pull) => match &pull.content {
                Content::Manifest(reference) => Some(reference.clone()),
                Content::Blob(digest) | Content::Referrers(digest) => Some(Reference::Digest(*digest)),
                Content::Tags => None,
            },
            Self::Push(push) => push.write.reference(),
        }
    }

    /// Whether a tag is asked for, to read it.
    pub fn is_pull_of_tag(&self) -> bool {
        matches!(self, Self::Pull(pull) if matches!(pull.content, Content::Manifest(Reference::Tag(_))))
    }
}

impl From<Pull> for Asked {
    fn from(pull: Pull) -> Self {
        Self::Pull(Arc::new(pull))
    }
}

impl From<Push> for Asked {
    fn from(push: Push) -> Self {
        Self::Push(Arc::new(push))
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pull(pull) => pull.fmt(f),
            Self::Push(push) => push.fmt(f),
        }
    }
}
