//! What other systems say by scopes: a registry, a part of a repository's name, one image by tag or digest, or
//! `*.example.com`. The longest that covers an image decides.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tidegate_formats::{ImageConfig, RequirementKind, SignaturePolicy, Text};
use tidegate_sdk::{Reference, Request, Verdict, name};

/// The scopes of one file.
#[derive(Debug)]
pub struct Scopes {
    file: String,
    kind: Kind,
    /// By scope, as images are named by the host.
    rules: HashMap<String, Rule>,
    /// Repositories of which a tag or a digest is accepted: their digests pass, since a tag is pulled by them.
    accepted_in_part: HashSet<String>,
    /// Of what no scope covers.
    default: Rule,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// `allowedRegistries`: the cluster writes them as scopes of a policy.json that rejects all else.
    Allowed,
    /// `blockedRegistries`
    Blocked,
    /// policy.json
    Policy,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Rule {
    accepts: bool,
    line: usize,
}

impl Scopes {
    /// What an `image.config.openshift.io` says.
    ///
    /// Its insecureRegistries allow nothing by themselves, and neither does the cluster's own registry: both must be
    /// among the allowedRegistries, as in the cluster.
    pub fn of_image_config(file: &str, line: usize, config: &ImageConfig) -> Result<Self, String> {
        let (kind, listed) = match (&config.allowed, &config.blocked) {
            (Some(allowed), _) => (Kind::Allowed, allowed),
            (None, Some(blocked)) => (Kind::Blocked, blocked),
            (None, None) => {
                return Err(format!(
                    "{file}:{line}: it has neither allowedRegistries nor blockedRegistries: remove the file, or name some"
                ));
            }
        };
        let accepts = kind == Kind::Allowed;
        let mut scopes = Self::new(file, kind, Rule { accepts: !accepts, line: listed.line });
        for text in listed.iter() {
            scopes.add(text, accepts)?;
        }
        Ok(scopes)
    }

    /// What a policy.json says, as far as it accepts and rejects.
    pub fn of_policy(file: &str, policy: &SignaturePolicy) -> Result<Self, String> {
        let accepts = |scope: &str, requirements: &[tidegate_formats::Requirement]| {
            let signed = |kind| matches!(kind, RequirementKind::SignedBy | RequirementKind::SigstoreSigned);
            if let Some(signed) = requirements.iter().find(|requirement| signed(requirement.kind)) {
                return Err(format!(
                    "{file}:{}: signatures are verified by the plugin require-signature: ask for them there, and write \
                     insecureAcceptAnything for \"{scope}\" here",
                    signed.line
                ));
            }
            Ok(requirements.iter().all(|requirement| requirement.kind == RequirementKind::Accept))
        };
        let default = Rule { accepts: accepts("default", &policy.default)?, line: policy.default.line };
        let mut scopes = Self::new(file, Kind::Policy, default);
        for scope in &policy.docker {
            let accepts = accepts(&scope.scope, &scope.requirements)?;
            if scope.scope.is_empty() {
                scopes.default = Rule { accepts, line: scope.scope.line };
            } else {
                scopes.add(&scope.scope, accepts)?;
            }
        }
        Ok(scopes)
    }

    fn new(file: &str, kind: Kind, default: Rule) -> Self {
        let (rules, accepted_in_part) = Default::default();
        Self { file: file.to_owned(), kind, rules, accepted_in_part, default }
    }

    fn add(&mut self, text: &Text, accepts: bool) -> Result<(), String> {
        let key = parse(text)
            .map_err(|reason| format!("{}:{}: bad scope \"{}\": {reason}", self.file, text.line, text.value))?;
        let (image, is_part) = repository_of(&key);
        if is_part && accepts {
            self.accepted_in_part.insert(image.to_owned());
        }
        self.rules.insert(key, Rule { accepts, line: text.line });
        Ok(())
    }

    /// Decides about one request.
    pub fn admit(&self, request: &Request) -> Verdict {
        let repository = format!("{}/{}", request.registry, request.repository);
        let found = self.find(request, &repository);
        let (scope, rule) = found.unwrap_or_else(|| (String::new(), self.default));
        if rule.accepts {
            return Verdict::Allow;
        }
        let by_name = !matches!(request.reference, Reference::Tag(_));
        if by_name && !repository_of(&scope).1 && self.accepted_in_part.contains(&repository) {
            return Verdict::Allow;
        }
        let image = match request.tag() {
            Some(tag) if repository_of(&scope).1 || self.accepted_in_part.contains(&repository) => {
                format!("{repository}:{tag}")
            }
            _ => repository,
        };
        let (file, line) = (&self.file, rule.line);
        Verdict::deny(match (self.kind, scope.as_str()) {
            (Kind::Allowed, _) => {
                format!("{image} is not allowed: it is none of the allowedRegistries of {file}:{line}")
            }
            (Kind::Blocked, scope) => format!("{image} is blocked by \"{scope}\" of {file}:{line}"),
            (Kind::Policy, "") => format!("{image} is rejected by the default of {file}:{line}"),
            (Kind::Policy, scope) => format!("{image} is rejected by \"{scope}\" of {file}:{line}"),
        })
    }

    /// The longest scope that covers a request.
    ///
    /// Source: containers-policy.json(5), transport docker: the image, its repository, the parts of its name from the
    /// longest on, the registry, then `*.` and each end of the host, whatever its port. For what a cluster blocks, a
    /// scope without a port covers every port.
    fn find(&self, request: &Request, repository: &str) -> Option<(String, Rule)> {
        let at = |scope: &str| self.rules.get(scope).map(|rule| (scope.to_owned(), *rule));
        let exact = match &request.reference {
            Reference::Tag(tag) => at(&format!("{repository}:{tag}")),
            Reference::Digest(digest) => at(&format!("{repository}@{digest}")),
            Reference::None => None,
        };
        let above = || repository.rmatch_indices('/').map(|(end, _)| &repository[..end]);
        let (host, _) = name::split_port(&request.registry);
        let without_port = (self.kind == Kind::Blocked).then_some(host);
        let names = std::iter::once(repository).chain(above()).chain(without_port);
        exact
            .or_else(|| names.into_iter().find_map(at))
            .or_else(|| host.match_indices('.').find_map(|(dot, _)| at(&format!("*{}", &host[dot..]))))
    }
}

/// Brings a scope into the form of the host's names.
fn parse(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if let Some(domain) = text.strip_prefix("*.") {
        let host = name::registry(domain).filter(|_| !domain.contains([':', '*']));
        return host
            .map(|host| format!("*.{host}"))
            .ok_or_else(|| "write a domain behind it: *.example.com".to_owned());
    }
    let (first, path) = text.split_once('/').unwrap_or((text, ""));
    let Some(registry) = name::registry(first) else {
        return Err(format!("\"{first}\" is no registry: write HOST or HOST:PORT first"));
    };
    if path.is_empty() {
        return Ok(registry);
    }
    let (repository, _) = repository_of(path);
    if !name::is_repository(repository) {
        return Err(format!("\"{repository}\" is no repository: write lower-case names with / between them"));
    }
    Ok(format!("{registry}/{path}"))
}

/// The repository of a scope, and whether the scope is about one tag or digest of it only.
fn repository_of(scope: &str) -> (&str, bool) {
    let last = scope.rfind('/').map_or(0, |at| at + 1);
    // Before the first slash, a colon stands before a port.
    if last == 0 && !scope.contains('@') {
        return (scope, false);
    }
    match scope[last..].find([':', '@']) {
        Some(end) => (&scope[..last + end], true),
        None => (scope, false),
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.rules.len();
        match self.kind {
            Kind::Allowed => write!(f, "{}: allowedRegistries {count}", self.file),
            Kind::Blocked => write!(f, "{}: blockedRegistries {count}", self.file),
            Kind::Policy => {
                let default = if self.default.accepts { "accepts" } else { "rejects" };
                write!(f, "{}: scopes {count}, {default} all else", self.file)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_formats::Content;
    use tidegate_sdk::testing;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn scopes(text: &str) -> Result<Scopes, String> {
        let documents = tidegate_formats::read("f", text).map_err(|refusal| refusal.to_string())?;
        match &documents[0].content {
            Content::ImageConfig(config) => Scopes::of_image_config("f", documents[0].line, config),
            Content::SignaturePolicy(policy) => Scopes::of_policy("f", policy),
            other => panic!("{}", other.name()),
        }
    }

    fn image_config(list: &str, entries: &str) -> String {
        format!("apiVersion: config.openshift.io/v1\nkind: Image\nspec:\n  registrySources:\n    {list}: [{entries}]\n")
    }

    #[track_caller]
    fn assert_decides(text: &str, rows: &[(&str, &str)]) {
        let scopes = scopes(text).expect("scopes");
        for (image, denied) in rows {
            let image = image.replace("@d", &format!("@{DIGEST}"));
            match scopes.admit(&testing::request(&image)) {
                Verdict::Allow => assert_eq!(*denied, "", "{image} is allowed"),
                Verdict::Deny(denial) => assert_eq!(denial.message, *denied, "{image}"),
                Verdict::CachedOnly => panic!("never said"),
            }
        }
    }

    #[test]
    fn allowed_registries_block_all_others() {
        // What the documentation of OpenShift shows.
        let entries = "example.com, quay.io/org, registry.redhat.io, reg1.io/myrepo/myapp:latest, '*.apps.lan', \
                       'image-registry.openshift-image-registry.svc:5000'";
        let text = image_config("allowedRegistries", entries) + "    insecureRegistries: [insecure.com]\n";
        assert_decides(
            &text,
            &[
                ("example.com/a/b:1", ""),
                ("example.com/a/b@d", ""),
                ("quay.io/org/app:1", ""),
                ("quay.io/org/team/app@d", ""),
                ("quay.io/org2/app:1", "quay.io/org2/app is not allowed: it is none of the allowedRegistries of f:5"),
                ("reg1.io/myrepo/myapp:latest", ""),
                // The client asks for what belongs to the tag by digest.
                ("reg1.io/myrepo/myapp@d", ""),
                (
                    "reg1.io/myrepo/myapp:2",
                    "reg1.io/myrepo/myapp:2 is not allowed: it is none of the allowedRegistries of f:5",
                ),
                (
                    "reg1.io/myrepo/other@d",
                    "reg1.io/myrepo/other is not allowed: it is none of the allowedRegistries of f:5",
                ),
                ("a.b.apps.lan/x:1", ""),
                ("a.apps.lan:5000/x:1", ""),
                ("apps.lan/x:1", "apps.lan/x is not allowed: it is none of the allowedRegistries of f:5"),
                ("image-registry.openshift-image-registry.svc:5000/ns/app:1", ""),
                ("insecure.com/app:1", "insecure.com/app is not allowed: it is none of the allowedRegistries of f:5"),
                (
                    "example.com:8443/a:1",
                    "example.com:8443/a is not allowed: it is none of the allowedRegistries of f:5",
                ),
            ],
        );
    }

    #[test]
    fn blocked_registries_leave_all_others() {
        let text =
            image_config("blockedRegistries", "untrusted.com, reg1.io/myrepo/myapp:latest, quay.io/bad, '*.evil.org'");
        assert_decides(
            &text,
            &[
                ("untrusted.com/a:1", "untrusted.com/a is blocked by \"untrusted.com\" of f:5"),
                ("untrusted.com:8443/a@d", "untrusted.com:8443/a is blocked by \"untrusted.com\" of f:5"),
                ("not.untrusted.com/a:1", ""),
                (
                    "reg1.io/myrepo/myapp:latest",
                    "reg1.io/myrepo/myapp:latest is blocked by \"reg1.io/myrepo/myapp:latest\" of f:5",
                ),
                ("reg1.io/myrepo/myapp:2", ""),
                ("reg1.io/myrepo/myapp@d", ""),
                ("quay.io/bad/app:1", "quay.io/bad/app is blocked by \"quay.io/bad\" of f:5"),
                ("quay.io/bader/app:1", ""),
                ("a.evil.org:5000/x:1", "a.evil.org:5000/x is blocked by \"*.evil.org\" of f:5"),
                ("evil.org/x:1", ""),
            ],
        );
    }

    #[test]
    fn the_longest_scope_of_a_policy_decides() {
        let text = "{\"default\": [{\"type\": \"reject\"}], \"transports\": {\n\"docker\": {\n\"docker.io\": [{\"type\": \
                    \"insecureAcceptAnything\"}],\n\"docker.io/team\": [{\"type\": \"reject\"}],\n\"docker.io/team/app\": \
                    [{\"type\": \"insecureAcceptAnything\"}],\n\"docker.io/team/app:bad\": [{\"type\": \"reject\"}],\n\
                    \"*.example.com\": [{\"type\": \"insecureAcceptAnything\"}],\n\"a.example.com\": [{\"type\": \
                    \"insecureAcceptAnything\"}, {\"type\": \"reject\"}]\n}, \"atomic\": {\"\": [{\"type\": \"reject\"}]}}}";
        assert_decides(
            text,
            &[
                ("docker.io/library/a:1", ""),
                ("docker.io/team/x:1", "docker.io/team/x is rejected by \"docker.io/team\" of f:4"),
                ("docker.io/team/app:1", ""),
                ("docker.io/team/app:bad", "docker.io/team/app:bad is rejected by \"docker.io/team/app:bad\" of f:6"),
                ("docker.io/team/app@d", ""),
                ("b.example.com/x:1", ""),
                ("a.example.com/x:1", "a.example.com/x is rejected by \"a.example.com\" of f:8"),
                ("quay.io/x:1", "quay.io/x is rejected by the default of f:1"),
            ],
        );
        let docker_default = "{\"default\": [{\"type\": \"reject\"}], \"transports\": {\"docker\": {\"\": [{\"type\": \
                              \"insecureAcceptAnything\"}]}}}";
        assert_decides(docker_default, &[("quay.io/x:1", "")]);
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        let both = image_config("allowedRegistries", "a.io") + "    blockedRegistries: [b.io]\n";
        let signed = "{\"default\": [{\"type\": \"insecureAcceptAnything\"}], \"transports\": {\"docker\": {\n\"quay.io\": \
                      [{\"type\": \"signedBy\", \"keyType\": \"GPGKeys\", \"keyPath\": \"/k\"}]}}}";
        for (text, said) in [
            (both.as_str(), "f:6: allowedRegistries and blockedRegistries are both there"),
            (signed, "f:2: signatures are verified by the plugin require-signature: ask for them there"),
            (&image_config("allowedRegistries", ""), "f:1: it has neither allowedRegistries nor blockedRegistries"),
            (&image_config("allowedRegistries", "'*.'"), "f:5: bad scope \"*.\": write a domain behind it"),
            (&image_config("allowedRegistries", "'a*.io'"), "f:5: bad scope \"a*.io\": \"a*.io\" is no registry"),
            (&image_config("blockedRegistries", "quay.io/A"), "f:5: bad scope \"quay.io/A\": \"A\" is no repository"),
        ] {
            let refusal = scopes(text).expect_err(said);
            assert!(refusal.starts_with(said), "{refusal}");
        }
    }
}
