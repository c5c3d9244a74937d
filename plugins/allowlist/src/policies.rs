//! The files of the configuration, each of which must let a pull through.

use tidegate_formats::{Content, Document};
use tidegate_sdk::{File, Request, Verdict};

use crate::rules::Rules;
use crate::scopes::Scopes;

/// All files.
#[derive(Debug)]
pub struct Policies(Vec<Policy>);

#[derive(Debug)]
enum Policy {
    /// The plugin's own lists.
    Rules(Rules),
    /// Another system's.
    Scopes(Scopes),
}

impl Policies {
    /// Reads all files.
    ///
    /// # Errors
    /// The file, the line, the reason and the way out.
    pub fn load(files: &[File]) -> Result<Self, String> {
        let mut policies = Vec::new();
        for file in files {
            let read = tidegate_formats::read(&file.name, &file.text);
            match read {
                Ok(documents) if !documents.is_empty() => {
                    for document in &documents {
                        policies.push(Policy::Scopes(scopes(document)?));
                    }
                }
                // What is none of the others is a list of this plugin's own, which says best what is wrong with it.
                _ if tidegate_formats::is_toml(&file.text) => policies.push(Policy::Rules(Rules::parse(file)?)),
                Ok(_) => return Err(format!("{}: it is empty", file.name)),
                Err(refusal) => return Err(refusal.to_string()),
            }
        }
        if policies.is_empty() {
            return Err("no configuration: put a file with the plugin's own stem beside it (10-NAME.toml beside \
                        10-NAME.wasm); for example: block = [\"docker.io/library/redis\"]; or an \
                        image.config.openshift.io (10-NAME.yaml) or a policy.json (10-NAME.json)"
                .to_owned());
        }
        Ok(Self(policies))
    }

    /// Decides about one request.
    pub fn admit(&self, request: &Request) -> Verdict {
        for policy in &self.0 {
            let verdict = match policy {
                Policy::Rules(rules) => rules.admit(request),
                Policy::Scopes(scopes) => scopes.admit(request),
            };
            if verdict != Verdict::Allow {
                return verdict;
            }
        }
        Verdict::Allow
    }

    /// What each file says, in a line.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|policy| match policy {
            Policy::Rules(rules) => rules.to_string(),
            Policy::Scopes(scopes) => scopes.to_string(),
        })
    }
}

fn scopes(document: &Document) -> Result<Scopes, String> {
    let file = document.file.as_str();
    match &document.content {
        Content::ImageConfig(config) => Scopes::of_image_config(file, document.line, config),
        Content::SignaturePolicy(policy) => {
            // As containers tools have it, who reads the file reads all of it.
            if let Some(key) = document.unread.first() {
                return Err(format!("{file}:{}: unknown key {}", key.line, key.key));
            }
            Scopes::of_policy(file, policy)
        }
        other => Err(format!(
            "{file}:{}: {} says where images come from, not what may be pulled: it is read by the plugin mirrors",
            document.line,
            other.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::testing;

    fn load(files: &[(&str, &str)]) -> Result<Policies, String> {
        let file = |(name, text): &(&str, &str)| File { name: (*name).to_owned(), text: (*text).to_owned() };
        Policies::load(&files.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn every_file_must_let_a_pull_through() {
        let image =
            "apiVersion: config.openshift.io/v1\nkind: Image\nspec: {registrySources: {allowedRegistries: [quay.io]}}";
        let policies = load(&[("a.toml", "block = [\"quay.io/bad\"]"), ("image.yaml", image)]).expect("both");
        for (name, allowed) in [("quay.io/good:1", true), ("quay.io/bad:1", false), ("docker.io/library/a:1", false)] {
            assert_eq!(policies.admit(&testing::request(name)) == Verdict::Allow, allowed, "{name}");
        }
        assert_eq!(
            policies.lines().collect::<Vec<_>>(),
            ["a.toml blocks 1 pattern", "image.yaml: allowedRegistries 1"]
        );
    }

    #[test]
    fn what_is_refused_names_file_line_and_way_out() {
        for (text, said) in [
            ("", "f: neither \"allow\" nor \"block\" is there"),
            ("blok = []", "f:1: unknown field `blok`"),
            ("[[registry]]\nlocation = 'a.io'", "f:1: registries.conf says where images come from"),
            ("{\"registry-mirrors\": []}", "f:1: daemon.json says where images come from"),
            ("kind: Pod\napiVersion: v1", "f:1: kind Pod says nothing"),
            ("---\n", "f: it is empty"),
            ("{\"default\": [{\"type\": \"reject\"}], \"transports\": 1}", "f:1: transports must be a table"),
        ] {
            let refusal = load(&[("f", text)]).expect_err(text);
            assert!(refusal.starts_with(said), "{text}: {refusal}");
        }
        assert!(load(&[]).expect_err("no file").starts_with("no configuration: put a file"));
    }
}
