//! The configuration: which images need a signature by which keys.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use tidegate_sdk::{File, Pattern, Request, key as names, name};
use toml::Spanned;

use crate::key::Key;

/// What to write, in one line, shown where there is no file yet.
const EXAMPLE: &str = "default = \"release\"; policy = [{ images = [\"quay.io/team/*\"], keys = [\"cosign.pub\"] }]";

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    default: Default,
    policy: Vec<Spanned<WrittenPolicy>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPolicy {
    images: Vec<Spanned<String>>,
    keys: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    release: bool,
    identity: Option<Spanned<String>>,
}

/// What becomes of an image that no policy covers.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Default {
    Release,
    Deny,
}

/// All policies, in the order in which they stand: the first that covers an image holds.
#[derive(Debug)]
pub struct Policies {
    /// The file that they stand in.
    pub file: String,
    pub default: Default,
    list: Vec<Policy>,
}

/// What is asked of some images.
#[derive(Debug)]
pub struct Policy {
    images: Vec<Pattern>,
    pub demand: Demand,
}

#[derive(Debug)]
pub enum Demand {
    /// Nothing.
    Release,
    Signature(Signers),
}

/// Who may have signed.
#[derive(Debug)]
pub struct Signers {
    pub keys: Vec<Key>,
    pub identity: Identity,
    /// Of keys and identity: what was verified by others is not verified.
    pub fingerprint: String,
}

/// Which name the signed payload must give the image.
#[derive(Clone, PartialEq, Debug)]
pub enum Identity {
    Any,
    /// That by which the client asks for it.
    Same,
    /// This one, a registry and a repository.
    Is(String),
}

impl Policies {
    /// Parses the configuration: one TOML file, and keys beside it.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn parse(files: &[File]) -> Result<Self, String> {
        let is_table = |file: &&File| Path::new(&file.name).extension().is_some_and(|extension| extension == "toml");
        let (tables, others): (Vec<&File>, Vec<&File>) = files.iter().partition(is_table);
        let file = match tables[..] {
            [file] => file,
            [] => {
                return Err(format!(
                    "no configuration: put a file with the plugin's own stem beside it (10-NAME.toml beside \
                     10-NAME.wasm); for example: {EXAMPLE}"
                ));
            }
            [first, second, ..] => {
                return Err(format!("{} and {} are both there: put all into one file", first.name, second.name));
            }
        };
        let written: Written = file.toml()?;
        if written.policy.is_empty() {
            return Err(format!("{}: no [[policy]] is there: write for example {EXAMPLE}", file.name));
        }
        let mut list = Vec::with_capacity(written.policy.len());
        for policy in written.policy {
            let at = policy.span().start;
            list.push(Policy::parse(file, at, policy.into_inner(), &others)?);
        }
        Ok(Self { file: file.name.clone(), default: written.default, list })
    }

    /// The policy that holds for a manifest. `digests`: of the manifest, and of the indexes that list it.
    pub fn find(&self, request: &Request, digests: &[String]) -> Option<&Policy> {
        self.list.iter().find(|policy| policy.covers(request, digests))
    }
}

impl Policy {
    fn parse(file: &File, at: usize, written: WrittenPolicy, beside: &[&File]) -> Result<Self, String> {
        if written.images.is_empty() {
            return Err(
                file.refuse(at, "\"images\" is empty: write a pattern, \"*\" for everything, or remove this policy")
            );
        }
        let images = file.patterns(&written.images)?;
        if let Some(at) = images.iter().position(|image| image.tag.is_some()) {
            let reason = "a client asks for a tag once, and for what belongs to it by digest, so a policy cannot hold \
                          for a tag: write the repository";
            let span = written.images[at].span();
            return Err(file.refuse(span.start, format_args!("bad pattern \"{}\": {reason}", images[at])));
        }
        let demand = match (written.keys, written.release) {
            (Some(_), true) => {
                return Err(file.refuse(at, "\"keys\" and \"release = true\" are both there: keep one of the two"));
            }
            (None, true) => Demand::Release,
            (Some(keys), false) if !keys.is_empty() => {
                Demand::Signature(Signers::parse(file, &keys, written.identity.as_ref(), beside)?)
            }
            _ => {
                let way_out = "write keys = [\"cosign.pub\"], or release = true for images that need no signature";
                return Err(file.refuse(at, format_args!("this policy has no keys: {way_out}")));
            }
        };
        Ok(Self { images, demand })
    }

    fn covers(&self, request: &Request, digests: &[String]) -> bool {
        let covers = |pattern: &Pattern, digest: Option<&str>| match self.demand {
            // What a policy opens, it opens as written; what it restricts, nobody gets round by a port.
            Demand::Release => pattern.covers(request, digest),
            Demand::Signature(_) => pattern.covers_on_any_port(request, digest),
        };
        self.images.iter().any(|pattern| match pattern.digest {
            None => covers(pattern, None),
            Some(_) => digests.iter().any(|digest| covers(pattern, Some(digest))),
        })
    }

    /// Its patterns, for messages.
    pub fn name(&self) -> String {
        let names: Vec<&str> = self.images.iter().map(|image| image.text.as_str()).collect();
        match names[..] {
            [first, ref rest @ ..] if rest.len() > 2 => format!("{first}, ... ({} patterns)", names.len()),
            _ => names.join(", "),
        }
    }
}

impl Signers {
    fn parse(
        file: &File,
        texts: &[Spanned<String>],
        identity: Option<&Spanned<String>>,
        beside: &[&File],
    ) -> Result<Self, String> {
        let (mut keys, mut all) = (Vec::with_capacity(texts.len()), String::new());
        for text in texts {
            let refuse = |reason: String| file.refuse(text.span().start, reason);
            let pem = find_key(text.get_ref(), beside).map_err(refuse)?;
            keys.push(Key::parse(pem).map_err(|reason| {
                let name = if is_pem(text.get_ref()) { "a key" } else { text.get_ref().as_str() };
                refuse(format!("bad key ({name}): {reason}"))
            })?);
            all.push_str(pem.trim());
        }
        let identity = match identity {
            None => Identity::Any,
            Some(text) => Identity::parse(text.get_ref()).map_err(|reason| {
                file.refuse(text.span().start, format_args!("bad identity \"{}\": {reason}", text.get_ref()))
            })?,
        };
        let fingerprint = names::sha256_hex(format!("{all} {identity:?}").as_bytes())[..16].to_owned();
        Ok(Self { keys, identity, fingerprint })
    }
}

impl Identity {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "same" {
            return Ok(Self::Same);
        }
        canonical(text).map(Self::Is).ok_or_else(|| {
            "write \"same\" (the name by which clients ask for it), or a registry and a repository such as \
             \"quay.io/team/app\""
                .to_owned()
        })
    }

    /// The name that is asked for, where one is.
    pub fn wanted(&self, request: &Request) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Same => Some(format!("{}/{}", request.registry, request.repository)),
            Self::Is(name) => Some(name.clone()),
        }
    }
}

/// A reference without its tag and digest in canonical form; none for what is none.
pub fn canonical(reference: &str) -> Option<String> {
    let image = reference.split_once('@').map_or(reference, |(image, _)| image);
    let (registry, rest) = image.split_once('/')?;
    let repository = rest.split_once(':').map_or(rest, |(repository, _)| repository);
    let registry = name::registry(registry).filter(|_| name::is_registry_meant(registry))?;
    if !name::is_repository(repository) {
        return None;
    }
    match registry.as_str() {
        name::DOCKER_HUB if !repository.contains('/') => Some(format!("{registry}/library/{repository}")),
        _ => Some(format!("{registry}/{repository}")),
    }
}

fn is_pem(text: &str) -> bool {
    text.contains("-----")
}

/// A key that stands in the configuration, or in a file beside it.
fn find_key<'a>(text: &'a str, beside: &[&'a File]) -> Result<&'a str, String> {
    if is_pem(text) {
        return Ok(text);
    }
    match beside.iter().find(|file| file.name == text) {
        Some(file) => Ok(&file.text),
        None => Err(format!(
            "there is no file \"{text}\": put it into the folder of the plugin's stem (40-NAME.d/{text} beside \
             40-NAME.wasm), or write the key itself between two \"\"\""
        )),
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: usize = self
            .list
            .iter()
            .map(|policy| match &policy.demand {
                Demand::Release => 0,
                Demand::Signature(signers) => signers.keys.len(),
            })
            .sum();
        let rest = match self.default {
            Default::Release => "released",
            Default::Deny => "denied",
        };
        write!(f, "{} has {} policies with {keys} keys; all else is {rest}", self.file, self.list.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::Signer;
    use tidegate_sdk::testing;

    fn file(name: &str, text: &str) -> File {
        File { name: name.to_owned(), text: text.to_owned() }
    }

    fn parse(text: &str) -> Result<Policies, String> {
        Policies::parse(&[file("cosign.pub", &Signer::new(1).public_pem()), file("40-require-signature.toml", text)])
    }

    const TEAM: &str = "default = \"deny\"\n[[policy]]\nimages = [\"quay.io/team/*\"]\n";

    #[test]
    fn the_first_policy_that_covers_an_image_holds() {
        let digest = format!("sha256:{}", "1".repeat(64));
        let text = format!(
            "default = \"release\"\n[[policy]]\nimages = [\"quay.io/team/tool\", \"quay.io/*@{digest}\"]\nrelease = true\n\
             [[policy]]\nimages = [\"quay.io\", \"docker.io/app\"]\nkeys = [\"cosign.pub\"]"
        );
        let policies = parse(&text).expect("a configuration");
        let demand = |image: &str, digests: &[String]| {
            let request = testing::request(image);
            policies.find(&request, digests).map(|policy| matches!(policy.demand, Demand::Signature(_)))
        };
        assert_eq!(demand("quay.io/team/tool:1", &[]), Some(false));
        assert_eq!(demand("quay.io/team/app:1", &[]), Some(true));
        assert_eq!(demand("quay.io/team/app:1", &["sha256:x".to_owned(), digest.clone()]), Some(false), "its index");
        assert_eq!(demand("quay.io:443/team/app:1", &[]), Some(true), "a port is no way round");
        assert_eq!(demand("quay.io:443/team/tool:1", &[]), Some(true), "what is opened is opened as written");
        assert_eq!(demand("docker.io/library/app:1", &[]), Some(true));
        assert_eq!(demand("ghcr.io/x:1", &[]), None);
    }

    #[test]
    fn a_key_stands_in_the_configuration_or_beside_it() {
        let beside = parse(&format!("{TEAM}keys = [\"cosign.pub\"]")).expect("beside");
        let inline = parse(&format!("{TEAM}keys = [\"\"\"\n{}\"\"\"]", Signer::new(1).public_pem())).expect("inline");
        let fingerprint = |policies: &Policies| match &policies.list[0].demand {
            Demand::Signature(signers) => signers.fingerprint.clone(),
            Demand::Release => panic!("keys"),
        };
        assert_eq!(fingerprint(&beside), fingerprint(&inline));
        let same = parse(&format!("{TEAM}keys = [\"cosign.pub\"]\nidentity = \"same\"")).expect("with identity");
        assert_ne!(fingerprint(&beside), fingerprint(&same), "what was verified without is not verified with");
        assert_eq!(inline.to_string(), "40-require-signature.toml has 1 policies with 1 keys; all else is denied");
    }

    #[test]
    fn names_are_brought_into_canonical_form() {
        for (text, name) in [
            ("index.docker.io/library/app", Some("docker.io/library/app")),
            ("docker.io/app:1", Some("docker.io/library/app")),
            ("quay.io/team/app@sha256:00", Some("quay.io/team/app")),
            ("localhost:5000/app:1", Some("localhost:5000/app")),
            ("team/app", None),
            ("quay.io/A", None),
            ("", None),
        ] {
            assert_eq!(canonical(text).as_deref(), name, "{text}");
        }
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        for (text, line, reason) in [
            ("policy = []".to_owned(), ":1: ", "missing field `default`"),
            ("default = \"release\"\npolicy = []".to_owned(), ": ", "no [[policy]] is there: write"),
            ("default = \"allow\"".to_owned(), ":1: ", "expected `release` or `deny`"),
            (format!("{TEAM}key = []"), ":4: ", "unknown field `key`, expected one of `images`, `keys`"),
            (TEAM.to_owned(), ":2: ", "this policy has no keys: write keys = "),
            (format!("{TEAM}keys = []"), ":2: ", "this policy has no keys"),
            (format!("{TEAM}keys = [\"cosign.pub\"]\nrelease = true"), ":2: ", "keep one of the two"),
            (format!("{TEAM}keys = [\n\"other.pub\"]"), ":5: ", "there is no file \"other.pub\": put it into"),
            (format!("{TEAM}keys = [\"-----BEGIN PUBLIC KEY-----\"]"), ":4: ", "bad key (a key): it is no public key"),
            (
                format!("{TEAM}keys = [\"cosign.pub\"]\nidentity = \"team/app\""),
                ":5: ",
                "bad identity \"team/app\": write \"same\"",
            ),
            (
                "default = \"deny\"\n[[policy]]\nimages = [\"redis\"]\nkeys = []".to_owned(),
                ":3: ",
                "bad pattern \"redis\": it names no registry: write \"docker.io/library/redis\"",
            ),
            (
                "default = \"deny\"\n[[policy]]\nimages = [\n\"quay.io/a:1\"]\nkeys = []".to_owned(),
                ":4: ",
                "cannot hold for a tag: write the repository",
            ),
            ("default = \"deny\"\n[[policy]]\nimages = []\nkeys = []".to_owned(), ":2: ", "\"images\" is empty"),
        ] {
            let refusal = parse(&text).expect_err(&text);
            assert!(refusal.starts_with(&format!("40-require-signature.toml{line}")), "{text}: {refusal}");
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
        let none = Policies::parse(&[]).expect_err("no file");
        assert!(none.contains("no configuration"), "{none}");
        let two = Policies::parse(&[file("a.toml", ""), file("b.toml", "")]).expect_err("two files");
        assert_eq!(two, "a.toml and b.toml are both there: put all into one file");
    }

    #[test]
    fn the_example_is_accepted() {
        let files = [
            file("cosign.pub", &Signer::new(1).public_pem()),
            file("40-require-signature.toml", include_str!("../require-signature.toml")),
        ];
        assert!(Policies::parse(&files).is_ok(), "{:?}", Policies::parse(&files).err());
    }
}
